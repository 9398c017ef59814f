//! I step: a gradient in, other weights out, the same bits whatever computed the gradient's parts.
//!
//! Everything works on a model's flat buffers, block by block. [`Compute`] says how: in how many leaves the gradient of
//! a step is computed, and which ranks share them; each rank holds the optimizer's state of its own span. Sums run over
//! blocks and pairwise trees ([`grad_norm`], [`GradTree`]), never over threads. What must outlive the process leaves as
//! arrays and text ([`AdamW::state`]), and whoever keeps it decides where. The guards here look at numbers alone: what
//! is not finite, what no gradient reached, what jumped.
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::{Params, Path, Spec};
//! use instruct_collective::Solo;
//! use instruct_optim::{AdamConfig, AdamW, Ema, Groups, Schedule};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Three weights that should become 1, 2, 3; a model's backward pass would fill the gradient.
//! let params = Params::zeros(vec![Spec::new("w", [3])], &Device::Cpu, Path::Composed, DType::F32)?;
//! let mut adam = AdamW::new(&params, AdamConfig::default(), Groups::default())?;
//! let mut ema = Ema::new(&params, Ema::DECAY)?;
//! for step in 0..500 {
//!     params.update(|w, g| (0..3).for_each(|i| g[i] = w[i] - (i + 1) as f32))?;
//!     let report = adam.step(&params, Schedule::COSINE.lr(0.05, step, 500), &Solo)?;
//!     assert!(report.grad_norm.is_finite());
//!     ema.update(&params)?;
//! }
//! for (weight, want) in params.read("w")?.iter().zip([1.0, 2.0, 3.0]) {
//!     assert!((weight - want).abs() < 1e-3, "{weight}");
//! }
//! # Ok(())
//! # }
//! ```

mod adamw;
mod blocks;
mod compute;
mod ema;
mod error;
mod grad_tree;
mod guard;
mod schedule;
mod state;
#[cfg(test)]
mod testing;

pub use crate::{
    adamw::{AdamConfig, AdamForm, AdamW, Groups, StepReport},
    blocks::{clip_grad_norm, grad_norm, pairwise_sum},
    compute::Compute,
    ema::Ema,
    error::{Error, Result},
    grad_tree::GradTree,
    guard::{
        Spike, SpikeWatch, Spikes, check_finite, check_gradients, check_gradients_behind, check_loss, check_weights,
        problems,
    },
    schedule::{Decay, Schedule},
    state::{Arrays, Read, Text, Write, load_learner, save_learner},
};
