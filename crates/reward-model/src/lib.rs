//! A reward model: a decoder that reads an answer and returns one number, trained on rankings.
//!
//! People compare answers; they do not grade them. So the loss sees only differences:
//!
//! ```text
//! loss = - 1 / |pairs| * sum over pairs (w better than l) of log sigmoid( r_w - r_l )
//! ```
//!
//! over all pairs of one prompt's `K` completions, from one forward per completion (Ouyang et al.
//! 2022, eq. 1). Adding a constant to every score changes nothing here and a great deal in PPO,
//! which is why [`center`] runs once after [`train`]. Nothing in this crate opens a file, prints or
//! reads a clock.
//!
//! ```
//! use instruct_reward_model::ranking_loss;
//!
//! // Three completions, the second the best, the others tied: two pairs.
//! let out = ranking_loss(&[0.0, 2.0, 0.0], &instruct_data::pairs(&[2, 1, 2]));
//! assert_eq!(out.pairs, 2);
//! assert!((out.loss - (1.0 + (-2.0f64).exp()).ln()).abs() < 1e-9);
//! assert!(out.gradient[1] < 0.0, "a descent step raises the winner's score");
//! ```

mod error;
mod group;
mod loss;
mod memory;
#[cfg(test)]
mod published;
mod saved;
mod train;

pub use crate::{
    error::{Error, Result},
    group::{Group, Item, scores},
    loss::{RankingLoss, ranking_loss},
    memory::memory,
    saved::Rest,
    train::{Plan, State, center, steps, train},
};
