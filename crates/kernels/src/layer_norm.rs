//! Layer normalisation that trains, unlike Candle's fused one.

use crate::{Param, Result};
use candle_core::Tensor;

/// `gain * (x - mean) / sqrt(var + eps) + bias` over the channels of `x (n, C)`, with the biased
/// variance (Ba et al. 2016, arXiv 1607.06450, equation 4).
pub fn layer_norm(x: &Tensor, gain: &Param, bias: &Param, eps: f64) -> Result<Tensor> {
    let tracked = x.track_op();
    let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let scale = (x.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(gain.value(tracked))?.broadcast_add(bias.value(tracked))?)
}
