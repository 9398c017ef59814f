//! The linear layer, whose every row is the same whatever rows stand beside it.

use crate::{Param, Result};
use candle_core::Tensor;

/// `x Wᵀ + b`: `x (n, in)`, `w (out, in)`, `b (out)` to `(n, out)`.
///
/// On the fused path a row of the result has the same bits whatever `n` is.
pub fn linear(x: &Tensor, w: &Param, b: Option<&Param>) -> Result<Tensor> {
    let product = x.matmul(&w.value(x.track_op()).t()?)?;
    match b {
        Some(b) => Ok(product.broadcast_add(b.value(x.track_op()))?),
        None => Ok(product),
    }
}

/// Unembeds every row: `hidden (n, C)`, `w (V, C)` to `(n, V)`. Meant for decoding, where the next
/// token is drawn from all of them; losses use [`crate::token_nll`] and [`crate::token_logprob`].
pub fn logits(hidden: &Tensor, w: &Param) -> Result<Tensor> {
    linear(hidden, w, None)
}
