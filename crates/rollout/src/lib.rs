//! I sample and compare: what a policy says, what that is worth, and how far it is from a reference.
//!
//! A rollout goes through three states, each a type that only the one before it gives. [`Sampled`] holds
//! completions with what was recorded while drawing them; [`Scored`] adds a score for each, from a reward
//! model, a rule, or any closure; [`Compared`] adds the log-probabilities of the policy and a reference,
//! and estimates the divergence between them. PPO learns from the last, evaluations stop at any.
//!
//! Vectors per token run over the completion tokens of all episodes, end to end: `(M,)`.
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::Path;
//! use instruct_model::{Config, Decoder, HeadKind, Sampling};
//! use instruct_random::Source;
//! use instruct_rollout::{Episode, Prompted, Sampled};
//!
//! # fn main() -> instruct_rollout::Result<()> {
//! let config = Config::tiny_gpt2(12, 16, 1, 2, 16);
//! let policy = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32)?;
//! policy.initialise(1)?;
//! let reference = policy.deep_copy()?;
//!
//! let prompts = [vec![1, 2], vec![3]];
//! let requests: Vec<Prompted> = (0..).zip(&prompts).map(|(i, prompt)| Prompted::new(i, i as usize, prompt)).collect();
//! let sampling = Sampling::plain([0].into(), 4);
//! let sampled = Sampled::draw(&policy, &requests, &sampling, 64, Source::new(1, "example"), &|ids| Ok(format!("{ids:?}")), &mut |_| ())?;
//!
//! // The rule: short is good.
//! let short = |episodes: &[Episode]| Ok(episodes.iter().map(|e| -(e.completion.len() as f32)).collect());
//! let compared = sampled.score(&short)?.compare(&policy, &reference, 1.0, 1_024)?;
//! assert_eq!(compared.scores.len(), 2);
//! assert!(compared.kl().iter().all(|&nats| nats == 0.0), "the policy is still its reference");
//! # Ok(())
//! # }
//! ```

mod best_of_n;
mod compared;
mod episode;
mod error;
mod kl;
mod reading;
mod sampled;

pub use crate::{
    best_of_n::best_of_n,
    compared::Compared,
    episode::{Decode, Episode, Prompted, Score},
    error::{Error, Result},
    kl::{k1, k2, k3},
    reading::{logprobs, micro_batches, pack, rows, token_logprobs, values},
    sampled::{Readings, Recorded, Sampled, Scored},
};
