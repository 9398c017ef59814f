//! Root-mean-square normalisation.

use crate::{Param, Result};
use candle_core::Tensor;

/// `gain * x / sqrt(mean(x^2) + eps)` over the channels of `x (n, C)` (Zhang and Sennrich 2019,
/// arXiv 1910.07467, equation 4).
pub fn rms_norm(x: &Tensor, gain: &Param, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(gain.value(x.track_op()))?)
}
