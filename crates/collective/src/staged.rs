//! Flat numbers that travel between devices, while another wire keeps the ranks together.

use crate::{
    Collective,
    error::Result,
    ranks::{Place, Wire},
    watch::Watch,
};
use std::ops::Range;

/// What moves numbers from device to device, one call of its library for each method.
///
/// What [`send`](Lanes::send) and [`receive`](Lanes::receive) are asked between [`begin`](Lanes::begin) and
/// [`end`](Lanes::end) happens at once, so no rank waits for one that waits for it.
pub(crate) trait Lanes {
    /// Numbers on the device.
    type Buffer;

    /// A copy of `host` on the device.
    fn put(&self, host: &[f32]) -> Result<Self::Buffer>;

    /// Room for so many numbers on the device.
    fn room(&self, len: usize) -> Result<Self::Buffer>;

    fn begin(&self) -> Result<()>;

    /// Has `part` of a buffer go to the rank `peer`.
    fn send(&self, from: &Self::Buffer, part: Range<usize>, peer: usize) -> Result<()>;

    /// Has what comes from the rank `peer` fill `part` of a buffer.
    fn receive(&self, to: &mut Self::Buffer, part: Range<usize>, peer: usize) -> Result<()>;

    fn end(&self) -> Result<()>;

    /// Fills `all` with `own` of every rank, in the order of ranks.
    fn gather(&self, own: &Self::Buffer, all: &mut Self::Buffer) -> Result<()>;

    /// Copies a buffer to `host`, when everything that was asked before has happened.
    fn get(&self, from: &Self::Buffer, host: &mut [f32]) -> Result<()>;

    /// Waits until everything that was asked before has happened, so that dropping the lanes breaks nothing off.
    fn close(&self) -> Result<()>;
}

/// What names the lanes of one job, as its first rank makes it.
pub(crate) type Name = [u8; 128];

/// Has rank 0 `make` a name, and every rank `enter` under it.
///
/// # Errors
///
/// Those of both, and of the ranks. A rank that fails must leave `control` with it, or others wait for it.
pub(crate) fn joined<L>(
    control: &impl Wire,
    make: impl FnOnce() -> Result<Name>,
    enter: impl FnOnce(Name, Place) -> Result<L>,
) -> Result<L> {
    let place = control.place();
    let mut name = if place.rank == 0 { make()?.to_vec() } else { Vec::new() };
    control.broadcast_bytes(0, &mut name)?;
    let name = name.try_into().expect("rank 0 sent a name, which has one length");
    let _inside = control.watch().enter("ncclCommInitRank");
    enter(name, place)
}

/// Ranks that `control` keeps together and whose flat numbers travel by `lanes`.
#[derive(Debug)]
#[cfg_attr(not(feature = "nccl"), expect(unreachable_pub, reason = "without the feature only tests have it"))]
pub struct Staged<W, L> {
    // Dropped first: a rank that ends early must end the job before the clean-up of lanes can wait for anybody.
    pub(crate) control: W,
    pub(crate) lanes: L,
}

impl<W: Wire, L: Lanes> Wire for Staged<W, L> {
    fn place(&self) -> Place {
        Place { engine: "nccl", ..self.control.place() }
    }

    fn watch(&self) -> &Watch {
        self.control.watch()
    }

    fn bucket(&self) -> usize {
        self.control.bucket()
    }

    fn gather_words(&self, own: &[u64], all: &mut [u64]) -> Result<()> {
        self.control.gather_words(own, all)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        self.control.broadcast(root, bytes)
    }

    fn exchange(&self, send: &[f32], received: &mut [f32]) -> Result<()> {
        let lanes = &self.lanes;
        let (from, mut to) = (lanes.put(send)?, lanes.room(received.len())?);
        let part = send.len() / self.control.place().world;
        lanes.begin()?;
        for (peer, start) in (0..send.len()).step_by(part).enumerate() {
            lanes.send(&from, start..start + part, peer)?;
            lanes.receive(&mut to, start..start + part, peer)?;
        }
        lanes.end()?;
        lanes.get(&to, received)
    }

    fn gather_floats(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        let (from, mut to) = (self.lanes.put(own)?, self.lanes.room(all.len())?);
        self.lanes.gather(&from, &mut to)?;
        self.lanes.get(&to, all)
    }

    fn close(self) -> Result<()> {
        let Staged { control, lanes } = self;
        if let Err(error) = lanes.close() {
            control.last_words(&error.to_string());
            drop(control);
            return Err(error);
        }
        drop(lanes);
        control.close()
    }
}

#[cfg(test)]
mod tests;
