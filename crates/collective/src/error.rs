//! What can go wrong between ranks, and what to do about it.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. One about several ranks is the same on each of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A launcher started several ranks, and this program sees only itself.
    #[error(
        "{by} says that a launcher started {ranks} ranks, but this program {why}: each of them would train alone. {cure}"
    )]
    Refused {
        /// The variable of the environment.
        by: &'static str,
        /// How many ranks it tells of, at least.
        ranks: usize,
        /// Why the ranks do not see each other.
        why: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// MPI or NCCL refused a call.
    #[error("{call} failed on rank {rank}: {message} (code {code})")]
    Call {
        /// The function of the library.
        call: &'static str,
        /// The rank that called it; 0 where ranks are not numbered yet.
        rank: usize,
        /// The library's return code, or 0 where it has none.
        code: i32,
        /// What the library says of it.
        message: String,
    },
    /// MPI was there already, or had been finished: it starts once in a process.
    #[error("MPI was started in this process before: connect once, and keep the connection")]
    Started,
    /// Ranks are at different places of the program, or have buffers of different lengths.
    #[error("the ranks are not at the same place: {places}")]
    Apart {
        /// Each place and the ranks there.
        places: String,
    },
    /// Ranks have different values of what must be the same everywhere.
    #[error("the ranks disagree about {what}: {values}; they no longer do the same work, so the run must not go on")]
    Disagree {
        /// What was compared.
        what: String,
        /// Each hash and the ranks that have it.
        values: String,
    },
    /// Two ranks set the same slot.
    #[error("slot {slot} was set by rank {first} and by rank {second}: a slot belongs to one rank")]
    Slot {
        /// The place of the slot.
        slot: usize,
        /// A rank that set it.
        first: usize,
        /// Another one.
        second: usize,
    },
    /// There is no such rank.
    #[error("there is no rank {root} to broadcast from: ranks are 0 to {last}")]
    Root {
        /// The rank asked for.
        root: usize,
        /// The highest one.
        last: usize,
    },
    /// The job is only planned, so nobody else is there.
    #[error("this job is only planned: there is no other rank")]
    Planned,
    /// A rank is gone while others wait for it.
    #[error("rank {rank} has left, and rank {waiting} waits for it")]
    Left {
        /// The rank that is gone.
        rank: usize,
        /// The rank that says so.
        waiting: usize,
    },
}
