//! PPO with a pretraining mix: a policy learns what a score rewards, without forgetting its text
//! or leaving its reference.
//!
//! ```text
//! maximise  E[ score(x, y) - beta * log(pi(y|x) / ref(y|x)) ]  +  gamma_ptx * E[ log pi(pretraining) ]
//! ```
//!
//! (Ouyang et al. 2022, eq. 2.) The score is a closure: a reward model, a rule, or both; this crate
//! knows none. A [`Plan`] is a whole recipe, and three published ones are presets. The maths stands
//! alone, as functions on slices: [`gae`], [`whiten`], [`policy_loss`], [`value_loss`]. Nothing here
//! opens a file, prints or reads a clock; [`train`] tells its listener what happens.
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::Path;
//! use instruct_model::{Config, Decoder, HeadKind};
//! use instruct_optim::Compute;
//! use instruct_ppo::{Critic, Plan, Preset, State, Task, train};
//! use instruct_rollout::Episode;
//! use instruct_runs::{Event, Flow};
//!
//! # fn main() -> instruct_ppo::Result<()> {
//! let config = Config::tiny_gpt2(12, 16, 1, 2, 16);
//! let policy = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32)?;
//! policy.initialise(1)?;
//! let (reference, critic) = (policy.deep_copy()?, policy.with_head(HeadKind::Value, 2)?);
//!
//! // The rule: say token 7 as often as you can.
//! let sevens = |episode: &Episode| episode.completion.iter().filter(|&&id| id == 7).count() as f32;
//! let score = |episodes: &[Episode]| Ok(episodes.iter().map(sevens).collect());
//!
//! let plan = Plan {
//!     episodes: 512, batch: 32, minibatch: 16, max_new_tokens: 4, policy_lr: 0.02,
//!     critic: Critic::Separate { lr: 0.02, coefficient: 1.0 },
//!     gamma_ptx: 0.0, ptx_examples: 0,
//!     ..Plan::preset(Preset::InstructGpt)
//! };
//! let task = Task {
//!     reference: &reference, prompts: &[vec![1, 2], vec![3]], pretraining: &[], score: &score,
//!     decode: &|_| Ok(String::new()), stop: [0].into(), compute: Compute::default(),
//! };
//! let mut state = State::new(policy, Some(critic), &plan)?;
//! let mut scores = Vec::new();
//! train(&mut state, &task, &plan, &mut |event| {
//!     if let Event::Step { metrics, .. } = event {
//!         scores.extend(metrics.iter().filter(|(name, _)| *name == "objective/scores").map(|(_, score)| *score));
//!     }
//!     Ok(Flow::Continue)
//! })?;
//! assert!(scores[0] < 1.0 && scores[15] > 2.0, "{scores:?}");
//! # Ok(())
//! # }
//! ```

mod advantage;
mod error;
mod experience;
mod guards;
mod kl;
mod loss;
mod memory;
mod metrics;
mod plan;
#[cfg(test)]
mod published;
mod saved;
mod train;
mod update;

pub use crate::{
    advantage::{gae, rewards, whiten},
    error::{Error, Result},
    guards::{Alarm, GuardMemory, Guards},
    kl::KlControl,
    loss::{PolicyLoss, ValueLoss, policy_loss, value_loss},
    memory::{Lengths, memory},
    metrics::Metrics,
    plan::{Critic, MissingEos, Plan, Preset, WhitenScope},
    saved::Rest,
    train::{State, Task, train},
};
