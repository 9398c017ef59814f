//! A job that nobody has started.

use crate::{
    Collective, Spent,
    error::{Error, Result},
};

/// The first rank of a job that is only planned, for what is worked out from the number of ranks: it knows its place,
/// and whatever would need another rank is [`Error::Planned`].
///
/// ```
/// use instruct_collective::{Collective, Error, Planned, span};
///
/// let ranks = Planned { ranks: 8, on_a_machine: 4 };
/// assert_eq!((ranks.world(), ranks.local_world()), (8, 4));
/// assert_eq!(ranks.barrier(), Err(Error::Planned));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// How many ranks the job would have.
    pub ranks: usize,
    /// And how many of them one machine would.
    pub on_a_machine: usize,
}

impl Collective for Planned {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        self.ranks
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_world(&self) -> usize {
        self.on_a_machine
    }

    fn engine(&self) -> &'static str {
        "planned"
    }

    fn broadcast_bytes(&self, _: usize, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::Planned)
    }

    fn slots(&self, _: &mut [f64]) -> Result<()> {
        Err(Error::Planned)
    }

    fn agree(&self, _: &str, _: u64) -> Result<()> {
        Err(Error::Planned)
    }

    fn barrier(&self) -> Result<()> {
        Err(Error::Planned)
    }

    fn reduce_scatter(&self, _: &mut [f32]) -> Result<()> {
        Err(Error::Planned)
    }

    fn all_gather(&self, _: &mut [f32]) -> Result<()> {
        Err(Error::Planned)
    }

    fn spent(&self) -> Spent {
        Spent::default()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
