//! What stops the training of a reward model.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plan contradicts itself.
    #[error("the plan does not hold together: {}", problems.join("; "))]
    Plan {
        /// One line per problem.
        problems: Vec<String>,
    },
    /// Nothing to compare.
    #[error("none of {groups} rankings has a pair of differently ranked completions; there is nothing to learn")]
    NoPairs {
        /// Rankings given.
        groups: usize,
    },
    /// Nothing to centre on.
    #[error("there are no demonstrations to centre the scores on")]
    NoDemonstrations,
    /// A model failed.
    #[error(transparent)]
    Model(#[from] instruct_model::Error),
    /// A fused operation failed.
    #[error(transparent)]
    Kernel(#[from] instruct_kernels::Error),
    /// The optimizer failed.
    #[error(transparent)]
    Optim(#[from] instruct_optim::Error),
    /// A listener failed.
    #[error(transparent)]
    Run(#[from] instruct_runs::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
