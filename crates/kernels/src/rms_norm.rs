//! Root-mean-square normalisation: layer norm without the mean and without the bias.

use crate::{
    Param, Path, Result,
    layer_norm::{Norm, wide},
    op,
};
use candle_core::{D, Tensor};

/// `gain * x / sqrt(mean(x^2) + eps)` over the channels of `x (n, C)` (Zhang and Sennrich 2019,
/// arXiv 1910.07467, equation 4): `(n, C)`.
///
/// Errors: shapes that do not fit each other.
pub fn rms_norm(x: &Tensor, gain: &Param, eps: f64) -> Result<Tensor> {
    let (_, width) = op::dims2("rms_norm", "x", x)?;
    op::check_shape("rms_norm", "gain", gain.shape(), &[width])?;
    match gain.path() {
        Path::Fused => op::apply(x, Norm::new(gain, None, eps, width)),
        Path::Composed => composed(x, gain.value(x.track_op()), eps),
    }
}

/// The same over the last dimension of `x`, from plain Candle operations.
pub(crate) fn composed(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(wide(x.dtype()))?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok(wide.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(gain)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Case, check};

    #[track_caller]
    fn row(rows: usize, width: usize, spread: f32) {
        let case = Case { rows, width, spread, parameters: &[("gain", &[width])] };
        check(&case, |x, p| rms_norm(x, &p.get("gain")?, 1e-5));
    }

    #[test]
    fn fused_and_composed_agree() {
        row(1, 1, 1.0);
        row(1, 7, 1.0);
        row(4, 16, 1.0);
        row(3, 17, 30.0);
        row(65, 33, 1.0);
        row(200, 128, 1.0);
        row(5, 48, 1e4);
        row(5, 48, 1e-40);
    }
}
