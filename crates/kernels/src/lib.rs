//! Fused differentiable operations of a decoder, each beside its composed oracle; they know no model.

pub use activation::{gelu_erf, gelu_tanh, swiglu};
pub use attention::{attention, attention_composed};
pub use decode::{CacheRow, KvCache, cached_attention};
pub use denormals::{denormals_flushed, flush_denormals_everywhere};
pub use device::{DeviceChoice, probe_device};
pub use dropout::{DropKey, dropout};
pub use embedding::embedding;
pub use error::{Error, Result};
pub use gather::gather_rows;
pub use head_norm::head_norm;
pub use layer_norm::layer_norm;
pub use layout::{HeadLayout, Span};
pub use linear::{linear, logits};
pub use logprob::{logprob_of, token_logprob, token_nll};
pub use parameters::{BLOCK, Param, Params, Path, Slot, Spec};
pub use rms_norm::rms_norm;
pub use rope::{Rope, RopeScaling, rope};

mod activation;
mod attend;
mod attention;
#[cfg(test)]
mod check;
mod decode;
mod denormals;
mod device;
mod dropout;
mod embedding;
mod error;
mod gather;
mod gemm;
mod head_norm;
mod layer_norm;
mod layout;
mod linear;
mod logprob;
mod norm;
mod op;
mod parameters;
mod rms_norm;
mod rope;
mod simd;
