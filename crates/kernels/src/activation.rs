//! The nonlinearities between the two halves of a feed-forward layer.

use crate::Result;
use candle_core::Tensor;

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` of any shape: the approximation that GPT-2
/// uses (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu()?)
}

/// `x Phi(x)` of any shape, with the exact normal distribution function (Hendrycks and Gimpel
/// 2016, arXiv 1606.08415): what GPT-NeoX uses.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

/// `silu(gate) * up` of `x (n, 2I)`, whose first I channels are the gate: `(n, I)` (Shazeer 2020,
/// arXiv 2002.05202).
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let parts = x.chunk(2, 1)?;
    Ok((parts[0].silu()? * &parts[1])?)
}
