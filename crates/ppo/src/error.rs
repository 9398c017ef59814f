//! What stops a PPO run, each with the likely cause.

use crate::guards::Alarm;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe contradicts itself.
    #[error("the recipe does not hold together: {}", problems.join("; "))]
    Plan {
        /// One line per problem.
        problems: Vec<String>,
    },
    /// There is nothing to sample from.
    #[error("there are no prompts; check the prompt files and the length caps")]
    NoPrompts,
    /// The mix is on and there is nothing to mix in.
    #[error("gamma-ptx is {gamma} but there is no pretraining window; name pretraining text or set gamma-ptx to 0")]
    NoPretraining {
        /// The weight of the mix.
        gamma: f64,
    },
    /// The plan wants a critic that was not given, or the other way round.
    #[error("the plan's critic and the value model do not match: {0}")]
    Critic(&'static str),
    /// Sampling, scoring or comparing failed.
    #[error(transparent)]
    Rollout(#[from] instruct_rollout::Error),
    /// A guard stopped the run.
    #[error("iteration {iteration}: {alarm}")]
    Guard {
        /// The iteration, counted from 1.
        iteration: u64,
        /// What was seen.
        alarm: Alarm,
    },
    /// A loss, gradient or weight is no number, or no gradient reached a parameter.
    #[error("iteration {iteration}: {source}")]
    NotFinite {
        /// The iteration, counted from 1.
        iteration: u64,
        /// Which one, and at which optimizer step; tensors are named `policy/...`, `value/...` or
        /// `reference/...`.
        source: instruct_optim::Error,
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
