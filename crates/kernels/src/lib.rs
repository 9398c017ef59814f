//! Fused differentiable operations of a decoder, each beside its composed oracle; they know no model.
//!
//! # Overview
//!
//! [`Params`] holds all parameters of a model in one [`Flat`] buffer and their gradients in another.
//! [`Param`] is a handle to one of them. The operations are functions of a Candle tensor and such
//! handles. Each exists twice, and [`Path`] chooses when the parameters are made:
//!
//! - **fused**: `f32` on the CPU. Weights are untracked views of the flat buffer. The backward pass
//!   of an operation adds the gradient of its weights straight to the flat gradient, so that Candle
//!   never allocates, zeroes or copies one.
//! - **composed**: plain Candle operations over ordinary variables, on any device and in any float
//!   dtype. It is what CUDA runs, and in `f64` it is the oracle of the tests. Operations without
//!   parameters are fused exactly where their input is `f32` on the CPU.
//!
//! A [`Branch`] makes several operations one node of the graph, which keeps only those intermediate results that a
//! backward pass reads. Each function here is a branch of one operation.
//!
//! A graph is recorded exactly when the input of an operation is tracked. Tracking enters at
//! [`embedding`] with the sentinel of the parameters; without it everything is inference.
//!
//! Batches are packed: the rows of a tensor are the tokens of all sequences, one after the other,
//! and only [`attention`] knows where one sequence ends. On the fused path a row's result has the
//! same bits whatever else is in the batch, whether it is decoded or trained on, and however many
//! threads there are.
//!
//! [`settle_threads`] prepares a process for these operations; [`kept_awake`] and [`widened`] are for the loops that
//! call them. [`compare_on`] checks the composed path on a device.
//!
//! # Example
//!
//! Learning that token 1 follows token 0:
//!
//! ```
//! use candle_core::{DType, Device};
//! use instruct_kernels::{Params, Path, Spec, embedding, linear, token_nll};
//!
//! let specs = vec![Spec::new("embed", [3, 4]), Spec::new("layer", [4, 4])];
//! let params = Params::zeros(specs, &Device::Cpu, Path::Fused, DType::F32)?;
//! params.set("embed", &[1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0.])?;
//! let (embed, layer) = (params.get("embed")?, params.get("layer")?);
//!
//! let mut losses = Vec::new();
//! for _ in 0..20 {
//!     let x = embedding(&[0], &embed, Some(params.sentinel()))?;
//!     let loss = token_nll(&linear(&x, &layer, None)?, &embed, &[0], &[1], &[1.0])?;
//!     params.zero_grad();
//!     params.backward(&loss)?;
//!     params.update(|weights, grads| weights.iter_mut().zip(grads).for_each(|(w, g)| *w -= 0.5 * *g))?;
//!     losses.push(loss.to_scalar::<f32>()?);
//! }
//! assert_eq!(losses[0], 3f32.ln()); // every token is as likely at first
//! assert!(losses[19] < 0.1, "{losses:?}");
//! # Ok::<(), instruct_kernels::Error>(())
//! ```
//!
//! # Limits
//!
//! There are no CUDA kernels yet: with the `cuda` feature the composed path runs there. Master
//! weights and gradients live on the host on every path.

pub use activation::{Nonlinearity, geglu, gelu_erf, gelu_tanh, swiglu};
#[cfg(feature = "mimalloc")]
pub use allocator::{give_freed_memory_back, keep_freed_memory};
pub use attention::{attention, attention_composed};
pub use bf16::bf16_unit;
pub use branch::Branch;
pub use chain::chain;
pub use decode::{CacheRow, KvCache, cached_attention};
pub use denormals::{denormals_flushed, flush_denormals_everywhere};
pub use device::{DeviceChoice, probe_device};
pub use dropout::{DropKey, dropout};
pub use embedding::{embedding, scaled_embedding};
pub use error::{Error, Result};
pub use feed_forward::{FeedForward, feed_forward};
pub use flat::Flat;
pub use gain::Gain;
pub use gather::gather_rows;
pub use head_norm::head_norm;
pub use layer_norm::layer_norm;
pub use layout::{HeadLayout, Scoring, Span};
pub use linear::linear;
pub use logprob::{RowSoftmax, token_logprob, token_nll, token_nll_backward};
pub use on_device::{Comparison, Differences, compare_on};
pub use parameters::{BLOCK, Param, Params, Path, Slot, Spec};
pub use rms_norm::rms_norm;
pub use rope::{Rope, RopeScaling, rope};
pub use simd::{cpu_level, widened};
pub use threads::{kept_awake, settle_threads};
pub use unembedding::{Unembedding, logits};

mod activation;
#[cfg(feature = "mimalloc")]
mod allocator;
mod attend;
mod attention;
mod bf16;
mod branch;
mod chain;
#[cfg(test)]
mod check;
mod decode;
#[cfg(test)]
mod definitions;
mod denormals;
mod device;
mod dropout;
mod embedding;
mod error;
mod feed_forward;
mod few_rows;
mod flat;
mod gain;
mod gather;
mod gemm;
mod head_norm;
mod layer_norm;
mod layout;
mod linear;
mod logprob;
mod matrix;
pub mod memory;
mod norm;
mod on_device;
mod op;
mod parameters;
mod rms_norm;
mod rope;
mod shared;
mod simd;
mod threads;
mod transposed;
mod unembedding;
mod weights;
mod wide;
