//! Where a record came from.

use std::{fmt, path::Path, sync::Arc};

/// Where a record came from. Displays as `path:line`, which editors turn into a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file, as the caller named it.
    pub path: Arc<Path>,
    /// The line on which the record starts, from 1.
    pub line: usize,
}

impl Origin {
    /// The origin of a record at `line` of `path`; for records made by a program, the file they
    /// will be written to.
    pub fn new(path: impl AsRef<Path>, line: usize) -> Origin {
        Origin { path: path.as_ref().into(), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}
