//! What a training loop needs besides its loss, built so that a run can be killed at any instant
//! and end with the same bytes.
//!
//! Everything that changes is one of three things. *State* is flat `f32` buffers (weights,
//! moments, averages) and a little JSON, committed as a whole by [`Artefact::commit`]. *Order* is
//! fixed: sums run over blocks and pairwise trees ([`grad_norm`], [`GradTree`]), never over
//! threads. *Observation* leaves a loop as an [`Event`]; the loop itself opens no file, prints
//! nothing and reads no clock.
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::{Params, Path, Spec};
//! use instruct_train::{AdamConfig, AdamW, Ema, Groups, Schedule};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Three weights that should become 1, 2, 3; a model's backward pass would fill the gradient.
//! let params = Params::zeros(vec![Spec::new("w", [3])], &Device::Cpu, Path::Composed, DType::F32)?;
//! let mut adam = AdamW::new(&params, AdamConfig::default(), Groups::default())?;
//! let mut ema = Ema::new(&params, Ema::DECAY)?;
//! let schedule = Schedule::CosineToTenth { total: 500 };
//! for step in 0..500 {
//!     params.update(|w, g| (0..3).for_each(|i| g[i] = w[i] - (i + 1) as f32))?;
//!     let report = adam.step(&params, schedule.lr(0.05, step))?;
//!     assert!(report.grad_norm.is_finite());
//!     ema.update(&params)?;
//! }
//! for (weight, want) in params.read("w")?.iter().zip([1.0, 2.0, 3.0]) {
//!     assert!((weight - want).abs() < 1e-3, "{weight}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`RunDir`] shows the other half: a run that is killed and resumed.

mod adamw;
mod artefact;
mod blocks;
mod disk;
mod ema;
mod error;
mod events;
mod flat;
mod grad_tree;
mod guard;
mod manifest;
mod run_dir;
mod schedule;
#[cfg(test)]
mod testing;

pub use crate::{
    adamw::{AdamConfig, AdamForm, AdamW, Groups, StepReport},
    artefact::{Artefact, Checkpoint},
    blocks::{clip_grad_norm, grad_norm, pairwise_sum},
    ema::Ema,
    error::{BoxError, Damaged, Result, TrainError},
    events::{Edge, Event, Flow, Listener, Metrics, phase},
    flat::{Flat, read_flat, write_flat},
    grad_tree::GradTree,
    guard::{
        Spike, SpikeWatch, Spikes, check_finite, check_gradients, check_gradients_behind, check_loss, check_weights,
        problems,
    },
    run_dir::{RunDir, Start},
    schedule::Schedule,
};
