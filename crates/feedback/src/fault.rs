//! What is wrong with what a client sent or a file holds, by field.

/// What is wrong, and with which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", .field.as_ref().map(|field| format!("`{field}`: ")).unwrap_or_default())]
pub struct Fault {
    /// The field, such as `ranks[2]` or `messages[0].role`; `None` of the body or the line itself.
    pub field: Option<String>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No JSON, or none that ends.
    #[error("not JSON at byte {column}: {reason}")]
    Json {
        /// Where the parser stopped, from 1.
        column: usize,
        /// What it says.
        reason: String,
    },
    /// JSON in which an object has the same key twice.
    #[error("{reason}")]
    Twice {
        /// Which key.
        reason: String,
    },
    /// A field that must be there is not.
    #[error("missing")]
    Missing,
    /// A field that nothing reads. It may be a misspelt one, so it is not passed over.
    #[error("no such field")]
    Unknown,
    /// Another type of JSON.
    #[error("expected {expected}, found {found}")]
    Type {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A value outside what is allowed.
    #[error("{found} must be {allowed}")]
    Range {
        /// The value.
        found: String,
        /// What it may be.
        allowed: String,
    },
    /// A text that is too long.
    #[error("{found} bytes; at most {most} are taken")]
    Long {
        /// Its bytes.
        found: usize,
        /// How many it may have.
        most: usize,
    },
    /// A text without anything in it.
    #[error("empty")]
    Empty,
    /// A text with a NUL, which no record may hold.
    #[error("holds a NUL character")]
    Nul,
    /// A list whose length does not fit.
    #[error("{found} values, where {want} belong")]
    Count {
        /// Its length.
        found: usize,
        /// The length that fits, in words or as a number.
        want: String,
    },
    /// A value that stands where another of the same list stands already.
    #[error("{value} stands there twice")]
    Repeated {
        /// The value.
        value: String,
    },
    /// Fields of which one excludes the other.
    #[error("stands beside `{other}`; one of them must go")]
    Beside {
        /// The other.
        other: &'static str,
    },
    /// A conversation that ends with the model, or with its instructions.
    #[error("the last message must be one that the model may answer, such as the user's")]
    LastRole,
    /// `all_bad` with ranks that differ.
    #[error("all are bad, but the ranks differ")]
    NotAllBad,
}

impl Fault {
    pub(crate) fn new(field: impl Into<String>, problem: Problem) -> Fault {
        Fault { field: Some(field.into()), problem }
    }

    /// The outermost field, as errors of the interface name their parameter: `ranks` of `ranks[2]`.
    pub fn parameter(&self) -> Option<&str> {
        self.field.as_deref().and_then(|field| field.split(['[', '.']).next())
    }
}
