//! Supervised fine-tuning: a decoder learns to continue prompts as people did.
//!
//! The loss is the mean of `-log p(token)` over completion tokens, EOS included, the prompt
//! excluded unless asked for (Ouyang et al. 2022, section 3.5). A share of the examples may be
//! plain pretraining text, which is how the start of reinforcement learning is made. Nothing in
//! this crate opens a file, prints or reads a clock; [`train`] tells its listener what happens.
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::Path;
//! use instruct_model::{Config, Decoder, HeadKind};
//! use instruct_optim::Compute;
//! use instruct_runs::Flow;
//! use instruct_sft::{Data, Example, Plan, State, nll, train};
//!
//! # fn main() -> instruct_sft::Result<()> {
//! let config = Config::tiny_gpt2(16, 16, 1, 2, 16);
//! let model = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32)?;
//! model.initialise(1)?;
//! let examples = [Example { prompt: vec![1, 2], completion: vec![3, 0] }];
//! let data = Data { demonstrations: &examples, pretraining: &[] };
//! let plan = Plan { epochs: 20, batch: 1, lr: 0.01, ..Plan::default() };
//!
//! let (mut state, compute) = (State::new(model, &plan)?, Compute::default());
//! let before = nll(&state.model, &examples, compute, &mut |_| ())?;
//! train(&mut state, &data, &plan, compute, &mut |_| Ok(Flow::Continue))?;
//! assert!(nll(&state.model, &examples, compute, &mut |_| ())? < 0.5 * before);
//! # Ok(())
//! # }
//! ```

mod batch;
mod error;
mod memory;
mod saved;
mod train;

pub use crate::{
    batch::Example,
    error::{Error, Result},
    memory::memory,
    saved::Rest,
    train::{Data, Plan, State, nll, perplexity, steps, train},
};
