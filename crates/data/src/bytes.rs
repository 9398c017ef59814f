//! Bytes in: a file opened, decompressed and cut into lines, each step with a limit.

use crate::error::{Error, Problem};
use std::{
    cell::Cell,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::ControlFlow,
    path::Path,
    rc::Rc,
};

/// How much a reader takes in before it refuses. The defaults are ours: far above any record that
/// fits a context, far below what a hostile file could unpack to. With them no refused file takes
/// more than 200 MB of memory (`fixtures/bad` holds the inputs on which that is measured).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one line, or of one element of a JSON array, after which the file is read no further. 16 MiB.
    pub line: usize,
    /// JSON values in one record, each element and each member counted. 1,048,576.
    pub values: usize,
    /// Bytes of text that one JSON value may come to when what its records share (a thread of messages,
    /// an instruction) is written out for each of them. 32 MiB.
    pub spread: usize,
    /// Bytes of one document of a `.txt`, which is held whole. 64 MiB.
    pub whole: usize,
    /// Bytes of a file after decompression. 8 GiB.
    pub file: u64,
    /// How many times its own size a compressed file may unpack to, once that is more than
    /// [`Limits::line`]. Text reaches 10 or so. 200.
    pub ratio: u64,
    /// Problems of one file after which it is read no further. 1,000.
    pub problems: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line: 16 << 20,
            values: 1 << 20,
            spread: 32 << 20,
            whole: 64 << 20,
            file: 8 << 30,
            ratio: 200,
            problems: 1_000,
        }
    }
}

/// A small file as text, held whole: UTF-8 with at most `most` bytes. Byte order marks before it are dropped.
///
/// # Errors
/// [`Error::Io`], [`Error::NotAFile`] for folders, pipes and devices, [`Error::TooLarge`], and
/// [`Error::Problems`] with line and column for text that is not UTF-8 or holds a NUL.
pub fn read_text(path: impl AsRef<Path>, most: usize) -> Result<String, Error> {
    let path = path.as_ref();
    let file = regular(path)?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let bytes = at_most(file, path, most, usize::try_from(length).unwrap_or(most))?;
    checked(bytes).map_err(|(line, problem)| Error::at(path, line, problem))
}

/// Opens `path` and undoes gzip or Zstandard. The first bytes decide; the name only adds that a
/// file called `.gz` or `.zst` without them is damaged.
pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Box<dyn BufRead>, Error> {
    let taken = Rc::new(Cell::new(0));
    let mut bytes = BufReader::new(Counted { inner: regular(path)?, count: Rc::clone(&taken) });
    let magic = bytes.fill_buf().map_err(Error::io(path))?;
    let unpack = |source| Error::Compressed { path: path.to_owned(), source };
    let guard = |inner: Box<dyn Read>| Box::new(BufReader::new(Guard { inner, taken, given: 0, limits: *limits }));
    if magic.starts_with(&[0x1F, 0x8B]) {
        Ok(guard(Box::new(flate2::bufread::MultiGzDecoder::new(bytes))))
    } else if magic.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        Ok(guard(Box::new(zstd::stream::read::Decoder::with_buffer(bytes).map_err(unpack)?)))
    } else if let Some(&(_, packer)) = OTHERS.iter().find(|(start, _)| magic.starts_with(start)) {
        Err(Error::Packed { path: path.to_owned(), packer })
    } else if path.extension().is_some_and(|e| e == "gz" || e == "zst") {
        Err(unpack(io::Error::new(io::ErrorKind::InvalidData, "its first bytes are not those of its kind")))
    } else {
        Ok(guard(Box::new(bytes)))
    }
}

/// The bytes of a byte order mark in UTF-8.
pub(crate) const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// The first bytes of files in formats that are not unpacked here. No text begins with them.
const OTHERS: [(&[u8], &str); 3] = [(b"BZh", "bzip2"), (b"\xFD7zXZ\0", "xz"), (b"PK\x03\x04", "zip")];

/// Takes a line: its number, and its text or what is wrong with it. Breaks when it has enough.
type Each<'a> = dyn FnMut(usize, Result<&str, Problem>) -> ControlFlow<()> + 'a;

/// Calls `each` with every line that is not blank, numbered from 1, until `each` breaks. Line ends are
/// `\n` or `\r\n`. A byte order mark before a line is ignored: files that are put together keep theirs.
/// A line that is too long is the last one.
pub(crate) fn lines(path: &Path, limits: &Limits, each: &mut Each<'_>) -> Result<(), Error> {
    let mut lines = Lines::open(path, limits, limits.line)?;
    while let Some((number, line)) = lines.next()? {
        let flow = match line.map(|line| line.trim_end_matches(['\n', '\r'])) {
            Ok(line) if line.trim().is_empty() => ControlFlow::Continue(()),
            Err(problem @ Problem::LongLine { .. }) => {
                let _ = each(number, Err(problem));
                ControlFlow::Break(())
            }
            line => each(number, line),
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(())
}

/// Bytes of the longest line that room is made for before it is read.
const MOST_AT_ONCE: usize = 1 << 26;

/// A line: its number, and its text or what is wrong with it.
type Numbered<'a> = (usize, Result<&'a str, Problem>);

/// The lines of a file, one after the other in the same memory.
pub(crate) struct Lines<'p> {
    reader: Box<dyn BufRead>,
    path: &'p Path,
    most: usize,
    bytes: Vec<u8>,
    number: usize,
}

impl<'p> Lines<'p> {
    /// Opens a file whose lines have at most `most` bytes each.
    ///
    /// It makes room for such a line at once, up to a limit, because a vector that grows by doubling holds its
    /// content twice while it moves. Room that is not written to takes no memory.
    pub(crate) fn open(path: &'p Path, limits: &Limits, most: usize) -> Result<Lines<'p>, Error> {
        let bytes = Vec::with_capacity(most.min(MOST_AT_ONCE) + 1);
        Ok(Lines { reader: open(path, limits)?, path, most, bytes, number: 0 })
    }

    /// The next line with its number from 1, with its end and without the marks before it, or what is wrong with
    /// it; `None` at the end of the file. Nothing is to be read after a line that is too long.
    pub(crate) fn next(&mut self) -> Result<Option<Numbered<'_>>, Error> {
        self.bytes.clear();
        let read = (&mut self.reader).take((self.most as u64).saturating_add(1)).read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|source| reading(self.path, source))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read > self.most && !self.bytes.ends_with(b"\n") {
            return Ok(Some((self.number, Err(Problem::LongLine { limit: self.most }))));
        }
        Ok(Some((self.number, text(&self.bytes, self.number == 1))))
    }
}

/// Opens a file and refuses what cannot be read a second time from its start: a pipe would wait for
/// ever, or be empty the second time.
fn regular(path: &Path) -> Result<File, Error> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::NotAFile { path: path.to_owned(), found });
    }
    File::open(path).map_err(Error::io(path))
}

/// Reads to the end, or refuses more than `most` bytes. It makes room for the `expected` bytes at once,
/// because a vector that grows by doubling holds its content twice while it moves.
fn at_most(reader: impl Read, path: &Path, most: usize, expected: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(expected.min(most).saturating_add(1));
    reader.take((most as u64).saturating_add(1)).read_to_end(&mut bytes).map_err(|source| reading(path, source))?;
    if bytes.len() > most {
        return Err(Error::TooLarge { path: path.to_owned(), limit: most as u64 });
    }
    Ok(bytes)
}

/// The bytes of a whole file as text, or what is wrong with them and on which line.
fn checked(bytes: Vec<u8>) -> Result<String, (usize, Problem)> {
    let line_of = |bytes: &[u8], at: usize| 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count();
    match text(&bytes, true) {
        Ok(text) => {
            let mark = bytes.len() - text.len();
            let mut text = String::from_utf8(bytes).map_err(|_| (1, Problem::Utf8 { column: 1, utf16: false }))?;
            text.drain(..mark);
            Ok(text)
        }
        Err(Problem::Utf8 { column, utf16 }) => {
            let start = bytes[..column - 1].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
            Err((line_of(&bytes, column - 1), Problem::Utf8 { column: column - start, utf16 }))
        }
        Err(problem) => Err((line_of(&bytes, bytes.iter().position(|&b| b == 0).unwrap_or(0)), problem)),
    }
}

/// Bytes as text: UTF-8 without NUL, and without the byte order marks before it. `first` says that a file
/// begins with them, so that they may tell that it is UTF-16.
pub(crate) fn text(bytes: &[u8], first: bool) -> Result<&str, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|e| Problem::Utf8 {
        column: e.valid_up_to() + 1,
        utf16: first && (bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF])),
    })?;
    if text.contains('\0') {
        return Err(Problem::Nul);
    }
    Ok(text.trim_start_matches('\u{FEFF}'))
}

/// How many bytes have been read.
struct Counted {
    inner: File,
    count: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Stops a file that unpacks to too much.
struct Guard {
    inner: Box<dyn Read>,
    taken: Rc<Cell<u64>>,
    given: u64,
    limits: Limits,
}

impl Read for Guard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.given += read as u64;
        if self.given > self.limits.file {
            return Err(io::Error::other(Unpacked::Large(self.limits.file)));
        }
        let grown = self.given > self.limits.line as u64;
        if grown && self.given > self.taken.get().saturating_mul(self.limits.ratio) {
            return Err(io::Error::other(Unpacked::Bomb(self.limits.ratio)));
        }
        Ok(read)
    }
}

/// Why [`Guard`] stopped, on its way through `io::Error`.
#[derive(Debug, thiserror::Error)]
enum Unpacked {
    #[error("more than {0} bytes")]
    Large(u64),
    #[error("more than {0} times its size")]
    Bomb(u64),
}

/// An error while reading. A decoder reports damage as bad data or an early end, which a plain file
/// never does.
pub(crate) fn reading(path: &Path, source: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    let path = path.to_owned();
    match source.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(&Unpacked::Large(limit)) => return Error::TooLarge { path, limit },
        Some(&Unpacked::Bomb(ratio)) => return Error::Bomb { path, ratio },
        None => {}
    }
    match source.kind() {
        InvalidData | InvalidInput | UnexpectedEof | Other => Error::Compressed { path, source },
        _ => Error::Io { path, source },
    }
}
