//! Bytes in: a file opened, decompressed and cut into lines, each step with a limit.

use crate::error::{Error, Problem};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

/// How much a reader takes in before it refuses. The defaults are ours: far above any record that
/// fits a context, far below what a hostile file could unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one line. 16 MiB.
    pub line: usize,
    /// Bytes of a file that is held whole: a JSON array or a `.txt`. 256 MiB.
    pub whole: usize,
    /// Bytes of a file after decompression. 8 GiB.
    pub file: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { line: 16 << 20, whole: 256 << 20, file: 8 << 30 }
    }
}

/// Opens `path` and undoes gzip or Zstandard. The first bytes decide; the name only adds that a
/// file called `.gz` or `.zst` without them is damaged.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut bytes = BufReader::new(file);
    let magic = bytes.fill_buf().map_err(Error::io(path))?;
    let unpack = |source| Error::Compressed { path: path.to_owned(), source };
    if magic.starts_with(&[0x1F, 0x8B]) {
        Ok(Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(bytes))))
    } else if magic.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        Ok(Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(bytes).map_err(unpack)?)))
    } else if path.extension().is_some_and(|e| e == "gz" || e == "zst") {
        Err(unpack(std::io::Error::new(std::io::ErrorKind::InvalidData, "its first bytes are not those of its kind")))
    } else {
        Ok(Box::new(bytes))
    }
}

/// The whole file as text, with the byte order mark removed, or what is wrong with it and on which
/// line.
pub(crate) fn whole(path: &Path, limits: &Limits) -> Result<Result<String, (usize, Problem)>, Error> {
    let limit = limits.whole.min(usize::try_from(limits.file).unwrap_or(usize::MAX));
    let mut bytes = Vec::new();
    open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(reading(path))?;
    if bytes.len() > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit: limit as u64 });
    }
    let problem_line = |at: usize| 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
    Ok(match text(&bytes, true) {
        Ok(text) => Ok(text.to_owned()),
        Err(Problem::Utf8 { column, utf16 }) => {
            let line = problem_line(column - 1);
            let start = bytes[..column - 1].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
            Err((line, Problem::Utf8 { column: column - start, utf16 }))
        }
        Err(problem) => Err((problem_line(bytes.iter().position(|&b| b == 0).unwrap_or(0)), problem)),
    })
}

/// Calls `each` with every line that is not blank: its number from 1, and its text or what is wrong
/// with it. Line ends are `\n` or `\r\n`; a byte order mark before the first line is ignored.
pub(crate) fn lines(
    path: &Path,
    limits: &Limits,
    each: &mut dyn FnMut(usize, Result<&str, Problem>),
) -> Result<(), Error> {
    let mut reader = open(path)?;
    let (mut line, mut number, mut total) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let read = (&mut reader).take(limits.line as u64 + 1).read_until(b'\n', &mut line).map_err(reading(path))?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        total += read as u64;
        let ended = line.ends_with(b"\n");
        if read > limits.line && !ended {
            each(number, Err(Problem::LongLine { limit: limits.line }));
            total += reader.skip_until(b'\n').map_err(reading(path))? as u64;
        } else {
            match text(&line, number == 1).map(|text| text.trim_end_matches(['\n', '\r'])) {
                Ok(text) if text.trim().is_empty() => {}
                text => each(number, text),
            }
        }
        if total > limits.file {
            return Err(Error::TooLarge { path: path.to_owned(), limit: limits.file });
        }
    }
}

/// Bytes as text: UTF-8 without NUL; `first` says that a byte order mark may stand before them.
fn text(bytes: &[u8], first: bool) -> Result<&str, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|e| Problem::Utf8 {
        column: e.valid_up_to() + 1,
        utf16: first && (bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF])),
    })?;
    if text.contains('\0') {
        return Err(Problem::Nul);
    }
    Ok(if first { text.strip_prefix('\u{FEFF}').unwrap_or(text) } else { text })
}

/// An error while reading. A decoder reports damage as bad data or an early end, which a plain file
/// never does.
fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    move |source| match source.kind() {
        InvalidData | InvalidInput | UnexpectedEof | Other => Error::Compressed { path: path.to_owned(), source },
        _ => Error::Io { path: path.to_owned(), source },
    }
}
