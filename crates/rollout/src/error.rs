//! What stops a rollout, each with the likely cause.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The ids of a completion have no text.
    #[error("episode {episode} cannot be spelled: {source}")]
    Decode {
        /// The episode.
        episode: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
    /// A model failed.
    #[error(transparent)]
    Model(#[from] instruct_model::Error),
    /// An operation failed.
    #[error(transparent)]
    Kernel(#[from] instruct_kernels::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
