//! Ranks agree: bytes and flat numbers travel between processes, and sums have the same bits for any number of ranks.
//!
//! A *rank* is one of `world` processes that do the same work on different data, started by a launcher such as
//! `mpirun` or `srun`. Each has a [`Collective`], and calls the same methods of it in the same order:
//!
//! | plane | what travels | methods |
//! |---|---|---|
//! | control | bytes, a few numbers, agreement | [`broadcast_bytes`], [`all_gather_bytes`], [`slots`], [`agree`], [`barrier`] |
//! | data | flat `f32`, cut into blocks of [`BLOCK`] | [`reduce_scatter`], [`all_gather`] |
//!
//! Behind that one trait there is [`Solo`] (a world of one, where all of it is the identity), [`Planned`] (a job that
//! nobody has started, where all of it is an error), `Mpi` (feature `mpi`),
//! `Nccl` (feature `nccl`: control by MPI, data between GPUs) and, for tests, threads of one process ([`testing`]).
//! [`connect`] chooses by what the launcher left in the environment, never by a flag. Without features nothing here
//! needs more than the standard library.
//!
//! # A step of training
//!
//! [`deal`] says which parts of a sum a rank computes and [`span`] which elements it owns. Here every rank updates the
//! weights of its own span, so it could hold an optimizer's moments for these alone.
//!
//! ```
//! use instruct_collective::{Collective, Error, NOTHING, Solo, deal, span};
//!
//! /// One step on 6 micro-batches; the gradient of number `i` is `i` everywhere.
//! fn step(ranks: &dyn Collective, weights: &mut [f32]) -> Result<(), Error> {
//!     let own = deal(6, ranks.rank(), ranks.world());
//!     let mut gradient = vec![NOTHING; weights.len()]; // stays so on a rank that was dealt nothing
//!     for micro_batch in own {
//!         // Whole numbers add in any order; real gradients are added with `instruct_optim::GradTree`.
//!         gradient.iter_mut().for_each(|g| *g += micro_batch as f32);
//!     }
//!     ranks.reduce_scatter(&mut gradient)?;
//!     for i in span(weights.len(), ranks.rank(), ranks.world()) {
//!         weights[i] -= 0.1 * gradient[i];
//!     }
//!     ranks.all_gather(weights)?;
//!     let hash = weights.iter().fold(0, |hash: u64, w| hash.rotate_left(5) ^ u64::from(w.to_bits()));
//!     ranks.agree("the weights", hash) // an error on every rank if two of them differ
//! }
//!
//! let mut weights = vec![0.0; 10_000];
//! step(&Solo, &mut weights)?;
//! assert!(weights.iter().all(|&w| w == -1.5)); // 0 + 1 + 2 + 3 + 4 + 5 = 15
//! // Three ranks, here threads, end with the same bits.
//! for outcome in instruct_collective::testing::threads(3, |ranks| {
//!     let mut weights = vec![0.0; 10_000];
//!     step(ranks, &mut weights).map(|()| weights)
//! }) {
//!     assert_eq!(outcome, Ok(weights.clone()));
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! # Why the bits are the same
//!
//! Parts of a gradient, the leaves, are added in one tree, which their number alone fixes: it splits at the largest
//! power of two below the number of leaves, as `instruct_optim::GradTree` does. [`deal`] gives each rank an aligned run of a
//! power of two of leaves, so what it adds alone is a subtree, and [`reduce_scatter`] goes on with the same tree over
//! the ranks: it exchanges the parts and adds them itself, because a library's own sum has no promised order.
//! [`NOTHING`] is the one number whose addition changes no bit.
//!
//! # When something goes wrong
//!
//! A rank that waits for a rank that will not come waits for ever, so nothing here is left to wait:
//!
//! - Every call first exchanges what it is. Ranks that are at different places of the program get an [`Error::Apart`]
//!   each, which says who is where. The return code of every exchange is looked at.
//! - [`run`] hands the message of an error or panic to a callback with its rank, and then dropping the collective ends
//!   the whole job with [`FAILED`]. Only [`Collective::finish`] leaves it in peace.
//! - A watchdog thread ends the process with [`OVERDUE`] when a call has waited longer than [`Host::limit`]: a stopped
//!   process, a lost machine. A launcher that cannot reach a machine may still hang, so give jobs a limit there too
//!   (`mpirun --timeout`, `#SBATCH -t`).
//! - [`connect`] refuses when a launcher started several ranks of a program that sees only itself, because each would
//!   train alone without a word.
//!
//! This crate prints nothing and reads no clock: the caller hands both in with [`Host`].
//!
//! # Limits
//!
//! `f32` is the only type of the data plane. Two buckets of [`BUCKET_BYTES`] bound what a call of it needs beyond the
//! caller's buffer. Equal bits need one type of CPU and, on it, a gradient of a micro-batch that does not depend on who
//! computes it. `Nccl` is type-checked, and no GPU has run it.
//!
//! [`broadcast_bytes`]: Collective::broadcast_bytes
//! [`all_gather_bytes`]: Collective::all_gather_bytes
//! [`slots`]: Collective::slots
//! [`agree`]: Collective::agree
//! [`barrier`]: Collective::barrier
//! [`reduce_scatter`]: Collective::reduce_scatter
//! [`all_gather`]: Collective::all_gather

mod collective;
mod error;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod planned;
mod ranks;
mod run;
mod shard;
mod solo;
#[cfg(any(feature = "nccl", test))]
mod staged;
pub mod testing;
mod tree;
mod watch;

#[cfg(feature = "mpi")]
pub use crate::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use crate::nccl::Nccl;
pub use crate::{
    collective::{Collective, Say, Spent},
    error::{Error, Result},
    launch::{Env, Host, Launched, connect, launched},
    planned::Planned,
    run::{FAILED, run},
    shard::{BLOCK, BUCKET_BYTES, NOTHING, deal, span},
    solo::Solo,
    watch::{Clock, LIMIT, OVERDUE},
};
