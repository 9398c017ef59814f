//! Why a template cannot be compiled or rendered, and how far a rendering may go.

/// What stopped a template.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) what: String,
    /// The line of the template, from 1, once it is known.
    pub(super) line: Option<usize>,
}

/// Who is to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The template is not Jinja.
    Syntax,
    /// The template, or Python, refuses: transformers raises an error here too.
    Refused,
    /// The template is right, and this crate does not render what it uses.
    Beyond,
    /// It goes beyond a limit.
    Endless,
}

pub(super) type Done<T> = Result<T, Fault>;

impl Fault {
    pub(super) fn syntax(line: usize, what: impl Into<String>) -> Fault {
        Fault { kind: Kind::Syntax, what: what.into(), line: Some(line) }
    }

    pub(super) fn refused(what: impl Into<String>) -> Fault {
        Fault { kind: Kind::Refused, what: what.into(), line: None }
    }

    pub(super) fn beyond(what: impl Into<String>) -> Fault {
        Fault { kind: Kind::Beyond, what: what.into(), line: None }
    }

    pub(super) fn endless(what: impl Into<String>) -> Fault {
        Fault { kind: Kind::Endless, what: what.into(), line: None }
    }

    /// The same fault, in the innermost line that anybody names.
    pub(super) fn at(mut self, line: usize) -> Fault {
        self.line.get_or_insert(line);
        self
    }
}

/// Steps that one rendering may take. A step is one part of an expression or statement, one element of a
/// list, or [`BYTES_PER_STEP`] bytes of text read or written, so the limit bounds time and memory alike, and
/// equally on every machine. Templates in use take a few hundred steps per message.
pub(super) const STEPS: u64 = 2_000_000;
const BYTES_PER_STEP: u64 = 64;

/// Counts the steps of one rendering.
#[derive(Debug)]
pub(super) struct Meter {
    left: u64,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { left: STEPS }
    }

    pub(super) fn spend(&mut self, steps: u64) -> Done<()> {
        self.left = self.left.checked_sub(steps).ok_or_else(|| Fault::endless("it runs too long"))?;
        Ok(())
    }

    pub(super) fn spend_bytes(&mut self, bytes: usize) -> Done<()> {
        self.spend(steps_of(bytes))
    }
}

/// The steps that a text of so many bytes costs.
pub(super) fn steps_of(bytes: usize) -> u64 {
    1 + bytes as u64 / BYTES_PER_STEP
}
