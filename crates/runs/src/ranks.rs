//! Several processes in one run folder: all do the same work, and one of them writes.

use crate::{BoxError, Error, Result};

/// How the processes of a run meet. Each opens the folder with [`RunDir::open_among`](crate::RunDir::open_among) and
/// calls the same methods of it in the same order, on the same state. The one that writes does so while the others
/// wait; they read what it wrote.
///
/// No method may return before every process has called it. How that is done, and that nobody waits for a process
/// that is gone, is up to who implements it.
pub trait Ranks {
    /// Whether this process is the one that writes. Of all processes exactly one is.
    fn writes(&self) -> bool;

    /// Waits until every process is here.
    ///
    /// Errors: one will never come.
    fn meet(&self) -> Result<(), BoxError>;

    /// The answer of the process that writes; what the others give is ignored.
    ///
    /// Errors: as [`Ranks::meet`].
    fn told(&self, answer: bool) -> Result<bool, BoxError>;
}

/// A run of one process, which waits for nobody.
pub(crate) struct Alone;

impl Ranks for Alone {
    fn writes(&self) -> bool {
        true
    }

    fn meet(&self) -> Result<(), BoxError> {
        Ok(())
    }

    fn told(&self, answer: bool) -> Result<bool, BoxError> {
        Ok(answer)
    }
}

/// Waits until every process is here.
pub(crate) fn meet(ranks: &dyn Ranks) -> Result<()> {
    ranks.meet().map_err(Error::Ranks)
}
