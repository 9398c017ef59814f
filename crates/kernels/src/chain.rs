//! Where a gradient that was computed outside the graph joins it.

use crate::Result;
use candle_core::Tensor;

/// A scalar whose gradient with respect to `output (M)` is `gradient (M)`: the sum of their product. A
/// loss that is a function on slices returns its own gradient, and this is how that reaches a network.
///
/// Errors: two lengths.
pub fn chain(output: &Tensor, gradient: &[f32]) -> Result<Tensor> {
    Ok((output * Tensor::new(gradient, output.device())?)?.sum_all()?)
}
