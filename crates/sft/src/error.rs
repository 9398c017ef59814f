//! What stops a supervised fine-tuning.

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
    /// Nothing to learn from.
    #[error("there are no demonstrations; check the files and the length caps")]
    NoDemonstrations,
    /// The mix is on and there is nothing to mix in.
    #[error("a share of {share} pretraining examples is asked for, but there is no pretraining text")]
    NoPretraining {
        /// The share.
        share: f64,
    },
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
