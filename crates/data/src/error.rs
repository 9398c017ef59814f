//! What can be wrong with people's data, said with path, line, field and the next thing to do.

use crate::{leak::Leak, origin::Origin};
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Everything this crate refuses. Each message names the file (and line and field, where there is
/// one) and ends with the next thing to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{}: {source}; check the path and its permissions", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A compressed file is damaged, cut short, or not what its name says.
    #[error("{}: cannot be decompressed ({source}); fetch the file again", .path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// The path is not a file, but a folder, a pipe or a device.
    #[error("{}: this is {found}; name a file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file is compressed in a format that this crate does not read.
    #[error("{}: packed with {packer}, which is not read; unpack it, or pack it with gzip or Zstandard", .path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What packed it.
        packer: &'static str,
    },
    /// A compressed file unpacks to more than any text does.
    #[error("{}: unpacks to more than {ratio} times its size, as no text does; fetch it from a source you trust, or unpack it yourself", .path.display())]
    Bomb {
        /// The file.
        path: PathBuf,
        /// [`crate::Limits::ratio`].
        ratio: u64,
    },
    /// A file is larger, after decompression, than [`crate::Limits`] allows.
    #[error("{}: more than {limit} bytes after decompression; split the file or raise the limit", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Records that cannot be used: all of them, not the first.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The same people or prompts stand on two sides of a split.
    #[error("{}", list_leaks(.0))]
    Leaks(Vec<Leak>),
    /// Fractions of a split that are negative or add up to more than 1.
    #[error("split: validation {validation} and test {test} must not be negative nor add up to 1 or more; lower them")]
    Fractions {
        /// Share of the validation side.
        validation: f64,
        /// Share of the test side.
        test: f64,
    },
    /// A tokenizer file or description is unusable.
    #[error("{place}: {problem}")]
    Tokenizer {
        /// File or source of the description.
        place: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The tokenizer has more entries than the model has embedding rows.
    #[error(
        "{place}: the tokenizer has {tokenizer} entries and the model {model} embedding rows; use the tokenizer that the model was trained with"
    )]
    Vocabulary {
        /// File or folder of the tokenizer.
        place: String,
        /// Entries of the tokenizer.
        tokenizer: usize,
        /// Rows of the model's embedding.
        model: usize,
    },
    /// Byte-pair training ran out of pairs that occur twice.
    #[error(
        "byte-pair training stops at {reached} of {wanted} entries: no pair occurs twice; give it more text or ask for {reached}"
    )]
    TooLittleText {
        /// Entries that the text supports, special tokens included.
        reached: usize,
        /// Entries asked for.
        wanted: usize,
    },
    /// A chat template does not compile, fails, or refuses the conversation.
    #[error("{place}: {problem}")]
    Template {
        /// Where the template stands.
        place: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Error {
    pub(crate) fn tokenizer(place: impl fmt::Display, problem: impl fmt::Display) -> Error {
        Error::Tokenizer { place: place.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn template(place: impl fmt::Display, problem: impl fmt::Display) -> Error {
        Error::Template { place: place.to_string(), problem: problem.to_string() }
    }

    /// The one problem of a file.
    pub(crate) fn at(path: &Path, line: usize, problem: Problem) -> Error {
        Problems(vec![RecordError { origin: Origin::new(path, line), field: None, problem }]).into()
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}

/// The message of [`Error::Leaks`].
fn list_leaks(leaks: &[Leak]) -> String {
    let shown = Problems::SHOWN;
    let lines: String = leaks.iter().take(shown).map(|leak| format!("\n  {leak}")).collect();
    let rest = if leaks.len() > shown { format!("\n  and {} more", leaks.len() - shown) } else { String::new() };
    let advice = "split all data sets with one seed, or remove one record of each pair";
    format!("{} leaks between splits; {advice}{lines}{rest}", leaks.len())
}

/// One thing wrong with one record: ``path:line: field `x` problem; next thing to do``.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// File and line.
    pub origin: Origin,
    /// The field, as a path inside the record (`messages[2].content`); `None` when the line as a
    /// whole is unusable.
    pub field: Option<String>,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecordError { origin, field, problem } = self;
        match field {
            Some(field) => write!(f, "{origin}: field `{field}` {problem}"),
            None => write!(f, "{origin}: {problem}"),
        }
    }
}

/// What can be wrong with a record. Displays as a clause that continues "field `x`" or the line,
/// and ends with the next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The line is not JSON; a key that occurs twice in one object counts.
    Malformed {
        /// Column of the fault, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// The line is not UTF-8.
    Utf8 {
        /// Column (in bytes, from 1) of the first bad byte.
        column: usize,
        /// Whether the file starts as UTF-16 does.
        utf16: bool,
    },
    /// A NUL byte or `\u0000`.
    Nul,
    /// The line is longer than [`crate::Limits::line`].
    LongLine {
        /// The limit in bytes.
        limit: usize,
    },
    /// An element of a JSON array that is longer than [`crate::Limits::line`], or a document of a text file
    /// that is longer than [`crate::Limits::whole`].
    LongPart {
        /// What it is.
        part: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The text that records share comes to more than [`crate::Limits::spread`] when each has its own copy.
    Spread {
        /// The limit in bytes.
        limit: usize,
    },
    /// So many problems that the rest of the file was not read.
    Enough {
        /// [`crate::Limits::problems`].
        most: usize,
    },
    /// The file has no record.
    NoRecord,
    /// No known record shape has these keys.
    UnknownShape {
        /// The keys found (or the JSON type, when it is no object).
        found: String,
    },
    /// The record's shape is known, but it holds no records of the kind asked for.
    WrongKind {
        /// The shape found.
        shape: &'static str,
        /// What was to be read.
        wanted: &'static str,
    },
    /// The field is absent or null.
    Missing,
    /// The field is empty or only white space.
    Empty,
    /// The field has another JSON type.
    WrongType {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A number outside its range.
    OutOfRange {
        /// The number, or the word, found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// A per-completion field whose length differs from the number of completions.
    Count {
        /// Its length.
        found: usize,
        /// The number of completions.
        completions: usize,
    },
    /// Ranks that do not count up from 1.
    Ranks {
        /// The ranks found, sorted.
        found: Vec<i64>,
    },
    /// A conversation that does not end where a completion can begin.
    LastRole {
        /// The role that must speak last.
        expected: &'static str,
    },
    /// An earlier record has the same id, and either the same content or another prompt.
    Duplicate {
        /// The earlier record.
        first: Origin,
        /// Whether the two prompts differ.
        conflicting: bool,
    },
    /// The two sides of a comparison do not continue the same prompt.
    Inconsistent,
    /// The two sides of a comparison without a prompt do not begin alike.
    NoSharedBeginning,
    /// The conversation does not hold what the field of this name says.
    Lacks {
        /// The other field.
        field: String,
    },
    /// The field has no place beside a conversation that is written out.
    Beside {
        /// The conversation's field.
        field: String,
    },
    /// A model would have to read the field, and it is not text.
    Unreadable,
    /// More tokens than the cap allows.
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The cap.
        limit: usize,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Malformed { column, reason } => {
                write!(f, "malformed JSON at column {column} ({reason}); each line must be one JSON value")
            }
            Problem::Utf8 { column, utf16: false } => {
                write!(f, "invalid UTF-8 at byte {column}; save the file as UTF-8")
            }
            Problem::Utf8 { utf16: true, .. } => f.write_str("the file is UTF-16; save it as UTF-8"),
            Problem::Nul => f.write_str("holds a NUL character; remove it"),
            Problem::LongLine { limit } => write!(f, "the line is longer than {limit} bytes; split the record"),
            Problem::LongPart { part, limit } => write!(f, "the {part} is longer than {limit} bytes; split it"),
            Problem::Spread { limit } => {
                write!(f, "comes to more than {limit} bytes when every record has its own; split the record")
            }
            Problem::Enough { most } => {
                write!(f, "read no further after {most} problems; mend these, or name another file")
            }
            Problem::NoRecord => f.write_str("the file holds no record; give it at least one line"),
            Problem::UnknownShape { found } => {
                write!(f, "no known record has this shape ({found}); see the record formats of instruct-data's `read`")
            }
            Problem::WrongKind { shape, wanted } => {
                write!(f, "{shape} holds no {wanted}; name another file for {wanted}")
            }
            Problem::Missing => f.write_str("is missing; add it"),
            Problem::Empty => f.write_str("is empty; fill it or remove the record"),
            Problem::WrongType { expected, found } => write!(f, "is {found}; it must be {expected}"),
            Problem::OutOfRange { found, allowed } => write!(f, "is {found}; it must be {allowed}"),
            Problem::Count { found, completions } => {
                write!(f, "has {found} entries for {completions} completions; give one for each")
            }
            Problem::Ranks { found } => {
                write!(f, "holds {found:?}; ranks start at 1 and count up, ties either as 1,2,2,3 or as 1,2,2,4")
            }
            Problem::LastRole { expected } => {
                write!(f, "must end with the {expected}; cut or complete the conversation")
            }
            Problem::Duplicate { first, conflicting: false } => {
                write!(f, "repeats the record at {first}; remove one of them")
            }
            Problem::Duplicate { first, conflicting: true } => {
                write!(f, "names another prompt at {first}; give each prompt an id of its own")
            }
            Problem::Inconsistent => f.write_str("does not continue the same prompt as `chosen`; remove the record"),
            Problem::NoSharedBeginning => {
                f.write_str("begins otherwise than `rejected`, so the record has no prompt; add `prompt`")
            }
            Problem::Lacks { field } => {
                write!(f, "is a conversation without the words of `{field}`; make them agree, or remove one")
            }
            Problem::Beside { field } => {
                write!(f, "has no place beside `{field}`; write it as a message there, or remove it")
            }
            Problem::Unreadable => {
                f.write_str("changes what is answered and is not read; write it as text, or remove it")
            }
            Problem::TooLong { tokens, limit } => {
                write!(
                    f,
                    "is {tokens} tokens long, the limit is {limit}; shorten it, or choose to drop or cut long records"
                )
            }
        }
    }
}

/// All problems found before refusing. Prints the first [`Problems::SHOWN`] and counts the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<RecordError>);

impl Problems {
    /// How many problems are printed.
    pub const SHOWN: usize = 20;
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.len();
        write!(f, "{total} {} in the data", if total == 1 { "problem" } else { "problems" })?;
        for problem in self.0.iter().take(Problems::SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        if total > Problems::SHOWN {
            write!(f, "\n  and {} more", total - Problems::SHOWN)?;
        }
        if let Some(enough) = self.0.iter().skip(Problems::SHOWN).find(|p| matches!(p.problem, Problem::Enough { .. }))
        {
            write!(f, "\n  {enough}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
