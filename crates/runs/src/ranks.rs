//! Several processes in one run folder: all do the same work, and one of them writes.

use crate::{Array, BoxError, Error, Result};
use sha2::{Digest, Sha256};

/// How the processes of a run meet. Each opens the folder with [`RunDir::open_among`](crate::RunDir::open_among) and
/// calls the same methods of it in the same order, on the same state. The one that writes does so while the others
/// wait; they read what it wrote.
///
/// No method may return before every process has called it. How that is done, and that nobody waits for a process
/// that is gone, is up to who implements it. What they have in common is looked at wherever one could have something
/// else: other settings, other data, another folder, another past.
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

    /// Gives the process that writes all numbers of an array of which each process holds a run: `take` is called there
    /// with the pieces, in order, and nowhere else.
    ///
    /// Errors: those of `take`; as [`Ranks::meet`].
    fn collect(&self, array: &Array<'_>, take: &mut Take<'_>) -> Result<(), BoxError>;

    /// Holds the processes to one `hash` of `what`.
    ///
    /// Errors: one has another, on every process; as [`Ranks::meet`].
    fn agree(&self, what: &str, hash: u64) -> Result<(), BoxError>;
}

/// Takes the next numbers of an array.
pub type Take<'a> = dyn FnMut(&[f32]) -> Result<(), BoxError> + 'a;

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

    fn collect(&self, array: &Array<'_>, take: &mut Take<'_>) -> Result<(), BoxError> {
        take(&array.numbers)
    }

    fn agree(&self, _: &str, _: u64) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Waits until every process is here.
pub(crate) fn meet(ranks: &dyn Ranks) -> Result<()> {
    ranks.meet().map_err(Error::Ranks)
}

/// Refuses processes that have other `bytes` of `what`: from there on they would not do the same work.
pub(crate) fn agree(ranks: &dyn Ranks, what: &str, bytes: &[u8]) -> Result<()> {
    let hash = Sha256::digest(bytes);
    let first = hash.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
    ranks.agree(what, first).map_err(Error::Ranks)
}
