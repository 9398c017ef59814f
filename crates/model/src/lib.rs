//! One decoder, driven by a description, that reads and writes what transformers does.
//!
//! GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, SmolLM3, Gemma 2 and Gemma 3 differ in a table of names and a handful of
//! choices, so there is one forward pass ([`Decoder::hidden`]) over packed batches, one [`Engine`] that decodes over a
//! key-value cache ([`generate`] is a loop over it), and one [`Config`] that says which choices. A family
//! is a table in one file. There is no loss here.
//!
//! ```
//! use instruct_model::{Config, Decoder, HeadKind, Request, Sampling, generate};
//! use instruct_kernels::Path;
//! use instruct_random::Source;
//! use candle_core::{DType, Device};
//!
//! # fn main() -> instruct_model::Result<()> {
//! let config = Config::tiny_gpt2(50, 16, 2, 2, 32);
//! let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32)?;
//! decoder.initialise(1)?;
//! let requests = [Request { episode: 7, prompt: vec![1, 2, 3] }];
//! let sampling = Sampling::plain([0].into(), 8);
//! let completions = generate(&decoder, &requests, &sampling, Source::new(1, "sampling"))?;
//! // The same episode gives the same text.
//! assert_eq!(completions, generate(&decoder, &requests, &sampling, Source::new(1, "sampling"))?);
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod config;
mod decoder;
mod engine;
mod error;
mod families;
mod generate;
mod logit_rows;
pub mod memory;
mod sampling;

pub use checkpoint::{Checkpoint, Precision, save};
pub use config::{Activation, Config, Family, HeadKind, NamedShape, Norm, Position, Rotary, Scaling};
pub use decoder::{Decoder, Dropout, Pass};
pub use engine::{Counts, Drawn, Emitted, End, Engine, Room, Ticket};
pub use error::{Error, Result};
pub use generate::{Completion, Request, SLOTS, generate, generate_reporting};
pub use sampling::Sampling;
