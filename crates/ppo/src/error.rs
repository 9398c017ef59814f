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
    /// The scorer failed.
    #[error("the scoring function failed: {0}")]
    Score(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The scorer returned too few or too many numbers.
    #[error("the scoring function returned {got} scores for {wanted} episodes")]
    ScoreCount {
        /// Scores returned.
        got: usize,
        /// Episodes asked about.
        wanted: usize,
    },
    /// The scorer returned something that is not a number.
    #[error("episode {episode} scored {score}; a reward must be finite (did the reward model diverge?)")]
    ScoreNotFinite {
        /// The episode.
        episode: u64,
        /// Its score.
        score: f32,
    },
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
        source: instruct_train::TrainError,
    },
    /// A model failed.
    #[error(transparent)]
    Model(#[from] instruct_model::Error),
    /// A fused operation failed.
    #[error(transparent)]
    Kernel(#[from] instruct_kernels::Error),
    /// The optimizer failed, or a listener did.
    #[error(transparent)]
    Train(#[from] instruct_train::TrainError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
