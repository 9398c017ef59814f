//! Layer normalisation that trains, unlike Candle's fused one.

use crate::{
    Branch, Gain, Param, Path, Result,
    branch::{Reads, Step},
    norm::{self, Moments},
    op,
    simd::{Kernel, Lanes, Level},
    wide::{add_vector, multiply_by_vector, wide},
};
use candle_core::Tensor;
use std::sync::OnceLock;

/// `gain * (x - mean) / sqrt(variance + eps) + bias` over the channels of `x (n, C)`, with the
/// biased variance (Ba et al. 2016, arXiv 1607.06450, equation 4): `(n, C)`.
///
/// Errors: shapes that do not fit each other.
pub fn layer_norm(x: &Tensor, gain: &Param, bias: &Param, eps: f64) -> Result<Tensor> {
    Branch::of(x).layer_norm(gain, bias, eps)?.alone()
}

impl Branch {
    /// [`layer_norm()`].
    pub fn layer_norm(self, gain: &Param, bias: &Param, eps: f64) -> Result<Branch> {
        let (rows, width) = self.dims("layer_norm", "x")?;
        op::check_shape("layer_norm", "gain", gain.shape(), &[width])?;
        op::check_shape("layer_norm", "bias", bias.shape(), &[width])?;
        match gain.path() {
            Path::Fused => Ok(self.step(rows, Norm::new(gain.into(), Some(bias), eps, width))),
            Path::Composed => self.map(|x| composed(x, gain, bias, eps)),
        }
    }
}

fn composed(x: &Tensor, gain: &Param, bias: &Param, eps: f64) -> Result<Tensor> {
    let tracked = x.track_op();
    let wide = x.to_dtype(wide(x.dtype()))?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
    let unit = centred.broadcast_div(&scale)?.to_dtype(x.dtype())?;
    add_vector(&multiply_by_vector(&unit, gain.value(tracked)?)?, bias.value(tracked)?)
}

/// Layer norm, or RMS norm when it has no bias and is not centred.
pub(crate) struct Norm {
    gain: Gain,
    bias: Option<Param>,
    eps: f32,
    width: usize,
    moments: OnceLock<Vec<Moments>>,
}

impl Norm {
    pub(crate) fn new(gain: Gain, bias: Option<&Param>, eps: f64, width: usize) -> Norm {
        Norm { gain, bias: bias.cloned(), eps: eps as f32, width, moments: OnceLock::new() }
    }
}

impl Step for Norm {
    fn columns(&self) -> usize {
        self.width
    }

    fn forward(&self, x: &[f32], keep: bool) -> candle_core::Result<Vec<f32>> {
        let (width, eps) = (self.width, self.eps);
        let gain = &*self.gain.numbers()?;
        let bias = self.bias.as_ref().map(|bias| bias.elements()).transpose()?;
        let bias = bias.as_deref();
        let (y, moments) = op::build_blocks(x.len(), width, |first, y| {
            let x = &x[first * width..][..y.len()];
            Level::best().run(Forward { x, gain, bias, eps, y })
        });
        if keep {
            // Set at most once, because a recorded operation has one forward pass.
            let _ = self.moments.set(moments.concat());
        }
        Ok(y)
    }

    fn backward(&self, x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let width = self.width;
        let gain = &*self.gain.numbers()?;
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("norm: a backward pass before its forward pass");
        };
        let (dx, partial) = op::build_blocks(dy.len(), width, |first, dx| {
            let here = first * width..first * width + dx.len();
            let (x, dy, moments) = (&x[here.clone()], &dy[here], &moments[first..]);
            Level::best().run(Backward { x, dy, moments, gain, centred: self.bias.is_some(), dx })
        });
        self.gain.param().accumulate(|dgain| partial.iter().for_each(|partial| op::add(dgain.numbers(), partial)));
        if let Some(bias) = &self.bias {
            bias.accumulate(|dbias| op::add(dbias.numbers(), &op::column_sums(dy, width)));
        }
        Ok(dx)
    }

    fn reads(&self) -> Reads {
        Reads::Input
    }

    fn is_cheap(&self) -> bool {
        true
    }
}

struct Forward<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = Vec<Moments>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Vec<Moments> {
        let Forward { x, gain, bias, eps, y } = self;
        let mut all = Vec::with_capacity(x.len() / gain.len());
        for (x, y) in x.chunks_exact(gain.len()).zip(y.chunks_exact_mut(gain.len())) {
            let moments = norm::moments(lanes, x, bias.is_some(), eps);
            norm::normalise(lanes, x, moments, gain, bias, y);
            all.push(moments);
        }
        all
    }
}

struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    moments: &'a [Moments],
    gain: &'a [f32],
    centred: bool,
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    /// The block's part of the gain's gradient.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Vec<f32> {
        let Backward { x, dy, moments, gain, centred, dx } = self;
        let width = gain.len();
        let mut dgain = vec![0.0; width];
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, dy), dx), &moments) in rows.zip(moments) {
            norm::backward(lanes, x, dy, moments, gain, centred, dx, &mut dgain);
        }
        dgain
    }
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
        let parameters = [("gain", &[width][..]), ("bias", &[width])];
        let case = Case { op: "layer_norm", rows, width, x, parameters: &parameters };
        let op = |x: &Tensor, p: &crate::Params| layer_norm(x, &p.get("gain")?, &p.get("bias")?, 1e-5);
        check(&case, op, |v| definitions::norm(&v["x"], &v["gain"], Some(&v["bias"]), 1e-5));
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
