//! The trait: what ranks can do together.

use crate::error::Result;
use std::time::Duration;

/// Where messages go, from whatever thread has one; it must have written them out before it returns, because the
/// process may end right after.
pub type Say = dyn Fn(&str) + Send + Sync;

/// What a rank has spent on being one of several, since it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time inside calls: waiting for other ranks, and moving numbers. Zero without a clock.
    pub waited: Duration,
    /// Bytes that this rank handed over for other ranks, once for each of them.
    pub sent: u64,
}

/// One rank's connection to the others.
///
/// Ranks call the same methods in the same order with arguments of the same lengths; where they do not, every rank gets
/// an [`Error::Apart`](crate::Error::Apart). After any error the connection is of no more use: what the other ranks
/// have got is unknown. Dropping it without [`finish`](Collective::finish) ends the job, for all ranks.
pub trait Collective {
    /// This rank's number, `0..world`.
    fn rank(&self) -> usize;

    /// How many ranks there are, at least 1.
    fn world(&self) -> usize;

    /// This rank's number among those on the same machine; what a GPU would be chosen by.
    fn local_rank(&self) -> usize;

    /// How many ranks are on this machine, at least 1: what its memory is shared by.
    fn local_world(&self) -> usize;

    /// What carries the numbers: `solo`, `mpi`, `nccl` or `threads`.
    fn engine(&self) -> &'static str;

    /// Gives every rank the bytes of rank `root`; what the others had in `bytes` is replaced, whatever its length.
    ///
    /// # Errors
    ///
    /// [`Error::Root`](crate::Error::Root) when there is no such rank.
    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Every rank's bytes, in the order of ranks. Lengths may differ. Ranks send in turn, so this is for what is small.
    fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let own = |root| if root == self.rank() { bytes.to_vec() } else { Vec::new() };
        let of = |root| {
            let mut bytes = own(root);
            self.broadcast_bytes(root, &mut bytes).map(|()| bytes)
        };
        (0..self.world()).map(of).collect()
    }

    /// Fills in what the others know: each rank sets its own slots and leaves the rest at 0.0; afterwards every rank
    /// has all, bit for bit, and can add them in an order that does not depend on the number of ranks.
    ///
    /// # Errors
    ///
    /// [`Error::Slot`](crate::Error::Slot) on every rank when two ranks set the same slot.
    fn slots(&self, slots: &mut [f64]) -> Result<()>;

    /// Holds the ranks to one value: `hash` of `what`, for example of all weights.
    ///
    /// # Errors
    ///
    /// [`Error::Disagree`](crate::Error::Disagree) on every rank when one has another hash.
    fn agree(&self, what: &str, hash: u64) -> Result<()>;

    /// Waits until every rank is here.
    fn barrier(&self) -> Result<()>;

    /// Adds the flat buffers of all ranks: afterwards `flat[span(flat.len(), rank, world)]` is the sum over ranks, in
    /// the fixed tree. The rest of `flat` stays what it was, this rank's own part of sums that others hold.
    fn reduce_scatter(&self, flat: &mut [f32]) -> Result<()>;

    /// Gives every rank all of the flat buffer, of which each has `flat[span(flat.len(), rank, world)]`.
    fn all_gather(&self, flat: &mut [f32]) -> Result<()>;

    /// What this rank has spent so far on being one of several.
    fn spent(&self) -> Spent;

    /// Leaves the job in peace; the only way that does not end it for the other ranks.
    fn finish(self: Box<Self>) -> Result<()>;
}
