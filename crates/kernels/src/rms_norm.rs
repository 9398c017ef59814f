//! Root-mean-square normalisation: layer norm without the mean and without the bias.

use crate::{Branch, Gain, Path, Result, layer_norm::Norm, op, wide::wide};
use candle_core::{D, Tensor};

/// `gain * x / sqrt(mean(x^2) + eps)` over the channels of `x (n, C)` (Zhang and Sennrich 2019,
/// arXiv 1910.07467, equation 4): `(n, C)`. A [`Gain`] is a parameter, or 1 plus one.
///
/// Errors: shapes that do not fit each other.
pub fn rms_norm(x: &Tensor, gain: impl Into<Gain>, eps: f64) -> Result<Tensor> {
    Branch::of(x).rms_norm(gain, eps)?.alone()
}

impl Branch {
    /// [`rms_norm()`].
    pub fn rms_norm(self, gain: impl Into<Gain>, eps: f64) -> Result<Branch> {
        let gain = gain.into();
        let (rows, width) = self.dims("rms_norm", "x")?;
        op::check_shape("rms_norm", "gain", gain.param().shape(), &[width])?;
        match gain.param().path() {
            Path::Fused => Ok(self.step(rows, Norm::new(gain, None, eps, width))),
            Path::Composed => self.map(|x| composed(x, &gain, eps)),
        }
    }
}

/// The same over the last dimension of `x`, from plain Candle operations.
pub(crate) fn composed(x: &Tensor, gain: &Gain, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(wide(x.dtype()))?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    gain.multiply(&wide.broadcast_div(&scale)?, x.dtype(), x.track_op())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, X, check},
        definitions,
    };

    #[track_caller]
    fn row(x: X, rows: usize, width: usize) {
        let case = Case { op: "rms_norm", rows, width, x, parameters: &[("gain", &[width])] };
        check(&case, |x, p| rms_norm(x, &p.get("gain")?, 1e-5), |v| definitions::norm(&v["x"], &v["gain"], None, 1e-5));
        let case = Case { op: "rms_norm, 1 + gain", ..case };
        let op = |x: &Tensor, p: &crate::Params| rms_norm(x, Gain::one_plus(&p.get("gain")?), 1e-5);
        check(&case, op, |v| definitions::norm(&v["x"], &definitions::one_plus(&v["gain"]), None, 1e-5));
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1);
        row(X::Normal(1.0), 1, 7);
        row(X::Normal(1.0), 4, 16);
        row(X::Normal(30.0), 3, 17);
        row(X::Normal(1.0), 65, 33);
        row(X::Normal(1.0), 200, 128);
        row(X::Extreme(1e4), 5, 48);
        row(X::Denormal, 5, 48);
    }
}
