//! A JSON array read element by element, so that its size does not matter.

use crate::{
    bytes::{self, Limits},
    error::{Error, Problem},
    json,
};
use serde_json::Value;
use std::{io::BufRead, ops::ControlFlow, path::Path};

/// Takes an element: the line on which it starts, the bytes of the file behind it since the last one, and
/// what it is or what is wrong with it. Breaks when it has enough.
type Each<'a> = dyn FnMut(usize, u64, Result<Value, Problem>) -> ControlFlow<()> + 'a;

/// Calls `each` with every element of the JSON array in a file, until `each` breaks. An element that is
/// broken, or longer than [`Limits::line`], is the last one.
pub(crate) fn elements(path: &Path, limits: &Limits, each: &mut Each<'_>) -> Result<(), Error> {
    elements_of(bytes::open(path, limits)?, path, limits, each)
}

fn elements_of(reader: Box<dyn BufRead>, path: &Path, limits: &Limits, each: &mut Each<'_>) -> Result<(), Error> {
    let mut cursor = Cursor { reader, path, at: Place { line: 1, before: 0 }, passed: 0 };
    cursor.skip(|byte| byte.is_ascii_whitespace() || bytes::MARK.contains(&byte))?;
    let mut text = Vec::new();
    // Each element stands after one of these: the first after the bracket, the others after a comma.
    for opening in std::iter::once(b'[').chain(std::iter::repeat(b',')) {
        let found = cursor.space()?;
        if opening == b',' && found == Some(b']') {
            cursor.pass(1);
            if cursor.space()?.is_some() {
                let _ = each(cursor.at.line, 0, Err(cursor.at.expected("nothing after the array")));
            }
            return Ok(());
        }
        if found != Some(opening) {
            let _ = each(cursor.at.line, 0, Err(cursor.at.expected("`,` or `]`")));
            return Ok(());
        }
        cursor.pass(1);
        match cursor.space()? {
            None => {
                let _ = each(cursor.at.line, 0, Err(cursor.at.expected("a value")));
                return Ok(());
            }
            // An empty array: the next round finds the closing bracket above.
            Some(b']') if opening == b'[' => continue,
            Some(_) => {}
        }
        let start = cursor.at;
        let extent = cursor.element(limits.line, &mut text)?;
        let passed = std::mem::take(&mut cursor.passed);
        let (value, after) = match start.read(&text, limits, extent) {
            Ok(read) => read,
            Err((line, problem)) => {
                let _ = each(line, passed, Err(problem));
                return Ok(());
            }
        };
        if each(start.line, passed, Ok(value)).is_break() {
            return Ok(());
        }
        if let Some(after) = after {
            let _ = each(after.line, 0, Err(after.expected("`,` or `]`")));
            return Ok(());
        }
    }
    Ok(())
}

/// A place in the file: its line, and the bytes before it on that line.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    before: usize,
}

impl Place {
    /// The place behind these bytes.
    fn behind(self, bytes: &[u8]) -> Place {
        match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => {
                let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
                Place { line: self.line + lines, before: bytes.len() - end - 1 }
            }
            None => Place { before: self.before + bytes.len(), ..self },
        }
    }

    fn expected(self, what: &str) -> Problem {
        Problem::Malformed { column: self.before + 1, reason: format!("expected {what}") }
    }

    /// The value that starts here, and where something else follows that should not; or what is wrong, and
    /// on which line.
    fn read(self, bytes: &[u8], limits: &Limits, extent: Extent) -> Result<(Value, Option<Place>), (usize, Problem)> {
        let long = (self.line, Problem::LongPart { part: "element of the array", limit: limits.line });
        let text = match bytes::text(bytes, false) {
            // Cut inside a character.
            Err(Problem::Utf8 { column, .. }) if extent == Extent::Long && column + 3 > bytes.len() => {
                return Err(long);
            }
            Err(Problem::Utf8 { column, utf16 }) => {
                let place = self.behind(&bytes[..column - 1]);
                return Err((place.line, Problem::Utf8 { column: place.before + 1, utf16 }));
            }
            Err(problem) => {
                let nul = bytes.iter().position(|&byte| byte == 0).unwrap_or_default();
                return Err((self.behind(&bytes[..nul]).line, problem));
            }
            Ok(text) => text,
        };
        let (length, value) = json::prefix(text, limits.values);
        let value = match value {
            Ok(value) => value,
            Err(error) if extent == Extent::Long && error.is_eof() => return Err(long),
            Err(error) => {
                let before = if error.line() == 1 { self.before } else { 0 };
                return Err((self.line + error.line() - 1, json::malformed(&error, before + error.column())));
            }
        };
        let own = text.len() - usize::from(extent == Extent::Ended);
        let rest = text.get(length..own).unwrap_or_default();
        let after = own - rest.trim_ascii_start().len();
        match extent {
            _ if after < own => Ok((value, Some(self.behind(&text.as_bytes()[..after])))),
            Extent::Long => Err(long),
            Extent::Ended | Extent::File => Ok((value, None)),
        }
    }
}

/// Where the bytes of an element end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// With the comma or the bracket after it, which the parser sees.
    Ended,
    /// With the file.
    File,
    /// Before the element does, because it is too long.
    Long,
}

/// Where the reading of a file has come to.
struct Cursor<'p> {
    reader: Box<dyn BufRead>,
    path: &'p Path,
    at: Place,
    /// Bytes that nobody was told of yet.
    passed: u64,
}

impl Cursor<'_> {
    fn buffer(&mut self) -> Result<&[u8], Error> {
        let path = self.path;
        self.reader.fill_buf().map_err(|source| bytes::reading(path, source))
    }

    /// Goes on by bytes that are no line ends.
    fn pass(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.at.before += bytes;
        self.passed += bytes as u64;
    }

    /// Goes on over the bytes that `which` names, and returns the next one.
    fn skip(&mut self, which: fn(u8) -> bool) -> Result<Option<u8>, Error> {
        loop {
            let at = self.at;
            let buffer = self.buffer()?;
            let skipped = buffer.iter().take_while(|&&byte| which(byte)).count();
            let (next, end) = (buffer.get(skipped).copied(), buffer.is_empty());
            let at = at.behind(&buffer[..skipped]);
            self.pass(skipped);
            self.at = at;
            if next.is_some() || end {
                return Ok(next);
            }
        }
    }

    fn space(&mut self) -> Result<Option<u8>, Error> {
        self.skip(|byte| byte.is_ascii_whitespace())
    }

    /// Copies an element, at least one byte, so that what is no value is seen, and at most `most`. Behind it stands
    /// the comma or bracket that ends it, which is not passed.
    fn element(&mut self, most: usize, into: &mut Vec<u8>) -> Result<Extent, Error> {
        into.clear();
        let mut outline = Outline::default();
        loop {
            let (at, first) = (self.at, into.is_empty());
            let buffer = self.buffer()?;
            if buffer.is_empty() {
                return Ok(Extent::File);
            }
            let ends = |(i, &byte): (usize, &u8)| outline.ends(byte) && !(first && i == 0);
            let inside = buffer.iter().enumerate().position(ends).unwrap_or(buffer.len());
            let taken = inside.min(most.saturating_add(1) - into.len());
            into.extend_from_slice(&buffer[..taken]);
            let (end, at) = (buffer.get(inside).copied(), at.behind(&buffer[..taken]));
            self.pass(taken);
            self.at = at;
            if into.len() > most {
                return Ok(Extent::Long);
            }
            if let Some(end) = end {
                into.push(end);
                return Ok(Extent::Ended);
            }
        }
    }
}

/// How far an element is open.
#[derive(Default)]
struct Outline {
    depth: usize,
    quoted: bool,
    /// Bytes that still belong to an escape, whatever they are: the parser takes four behind `\u` before it looks.
    escaped: u8,
}

/// The byte behind a backslash comes next.
const ESCAPE: u8 = 5;

impl Outline {
    /// Whether the element ends before this byte.
    fn ends(&mut self, byte: u8) -> bool {
        if self.quoted {
            self.escaped = match (self.escaped, byte) {
                (0, b'\\') => ESCAPE,
                (0, b'"') => {
                    self.quoted = false;
                    0
                }
                (ESCAPE, b'u') => 4,
                (ESCAPE, _) => 0,
                (left, _) => left.saturating_sub(1),
            };
            return false;
        }
        match byte {
            b'"' => self.quoted = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' | b',' if self.depth == 0 => return true,
            b']' | b'}' => self.depth -= 1,
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests;
