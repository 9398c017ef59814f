//! Root-mean-square norm of every query and key head: the QK-norm of Qwen3 and Gemma 3.

use crate::{
    Branch, Gain, HeadLayout, Path, Result,
    branch::{Reads, Step},
    norm::{self, Moments},
    op, rms_norm,
    simd::{Kernel, Lanes, Level},
};
use candle_core::Tensor;

/// Norms each query head of `qkv (n, (H + 2 Hkv) D)` with `q_gain (D)` and each key head with
/// `k_gain (D)`, as [`crate::rms_norm`] does, and leaves the values alone: the same shape (Qwen3
/// technical report, arXiv 2505.09388, section 2).
///
/// Errors: shapes that do not fit each other.
pub fn head_norm(
    qkv: &Tensor,
    q_gain: impl Into<Gain>,
    k_gain: impl Into<Gain>,
    eps: f64,
    layout: HeadLayout,
) -> Result<Tensor> {
    Branch::of(qkv).head_norm(q_gain, k_gain, eps, layout)?.alone()
}

impl Branch {
    /// [`head_norm()`].
    pub fn head_norm(
        self,
        q_gain: impl Into<Gain>,
        k_gain: impl Into<Gain>,
        eps: f64,
        layout: HeadLayout,
    ) -> Result<Branch> {
        let (q_gain, k_gain) = (q_gain.into(), k_gain.into());
        let (rows, width) = self.dims("head_norm", "qkv")?;
        op::check_shape("head_norm", "qkv", &[rows, width], &[rows, layout.qkv_dim()])?;
        op::check_shape("head_norm", "q_gain", q_gain.param().shape(), &[layout.head_dim])?;
        op::check_shape("head_norm", "k_gain", k_gain.param().shape(), &[layout.head_dim])?;
        match q_gain.param().path() {
            Path::Fused => Ok(self.step(rows, HeadNorm { q_gain, k_gain, eps: eps as f32, layout })),
            Path::Composed => self.map(|qkv| composed(qkv, &q_gain, &k_gain, eps, layout)),
        }
    }
}

fn composed(qkv: &Tensor, q_gain: &Gain, k_gain: &Gain, eps: f64, layout: HeadLayout) -> Result<Tensor> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    let n = qkv.dim(0)?;
    let part = |first: usize, count: usize| qkv.narrow(1, first * head_dim, count * head_dim);
    let normed = |first: usize, count: usize, gain: &Gain| -> Result<Tensor> {
        let heads = part(first, count)?.reshape((n, count, head_dim))?;
        Ok(rms_norm::composed(&heads, gain, eps)?.reshape((n, count * head_dim))?)
    };
    let (q, k) = (normed(0, heads, q_gain)?, normed(heads, kv_heads, k_gain)?);
    Ok(Tensor::cat(&[q, k, part(heads + kv_heads, kv_heads)?], 1)?)
}

struct HeadNorm {
    q_gain: Gain,
    k_gain: Gain,
    eps: f32,
    layout: HeadLayout,
}

impl Step for HeadNorm {
    fn columns(&self) -> usize {
        self.layout.qkv_dim()
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        let (q_gain, k_gain) = (self.q_gain.numbers()?, self.k_gain.numbers()?);
        let gains = (&*q_gain, &*k_gain);
        let (width, eps) = (self.layout.qkv_dim(), self.eps);
        let (y, _) = op::build_blocks(x.len(), width, |first, y| {
            let x = &x[first * width..][..y.len()];
            Level::best().run(Forward { x, gains, eps, layout: self.layout, y })
        });
        Ok(y)
    }

    fn backward(&self, x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let (q_gain, k_gain) = (self.q_gain.numbers()?, self.k_gain.numbers()?);
        let gains = (&*q_gain, &*k_gain);
        let (width, eps) = (self.layout.qkv_dim(), self.eps);
        let (dx, partial) = op::build_blocks(dy.len(), width, |first, dx| {
            let here = first * width..first * width + dx.len();
            let (x, dy) = (&x[here.clone()], &dy[here]);
            Level::best().run(Backward { x, dy, gains, eps, layout: self.layout, dx })
        });
        self.q_gain.param().accumulate(|gain| partial.iter().for_each(|(q, _)| op::add(gain.numbers(), q)));
        self.k_gain.param().accumulate(|gain| partial.iter().for_each(|(_, k)| op::add(gain.numbers(), k)));
        Ok(dx)
    }

    fn reads(&self) -> Reads {
        Reads::Input
    }
}

struct Forward<'a> {
    x: &'a [f32],
    gains: (&'a [f32], &'a [f32]),
    eps: f32,
    layout: HeadLayout,
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let HeadLayout { heads, kv_heads, head_dim } = self.layout;
        let per_token = heads + 2 * kv_heads;
        let rows = self.x.chunks_exact(head_dim).zip(self.y.chunks_exact_mut(head_dim));
        for (i, (x, y)) in rows.enumerate() {
            let head = i % per_token;
            if head >= heads + kv_heads {
                y.copy_from_slice(x);
                continue;
            }
            let gain = if head < heads { self.gains.0 } else { self.gains.1 };
            norm::normalise(lanes, x, norm::moments(lanes, x, false, self.eps), gain, None, y);
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    gains: (&'a [f32], &'a [f32]),
    eps: f32,
    layout: HeadLayout,
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    /// The block's part of both gains' gradients.
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (Vec<f32>, Vec<f32>) {
        let HeadLayout { heads, kv_heads, head_dim } = self.layout;
        let per_token = heads + 2 * kv_heads;
        let (mut dq, mut dk) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        let rows = self.x.chunks_exact(head_dim).zip(self.dy.chunks_exact(head_dim));
        for (i, ((x, dy), dx)) in rows.zip(self.dx.chunks_exact_mut(head_dim)).enumerate() {
            let head = i % per_token;
            if head >= heads + kv_heads {
                dx.copy_from_slice(dy);
                continue;
            }
            let (gain, dgain) = if head < heads { (self.gains.0, &mut dq) } else { (self.gains.1, &mut dk) };
            // Recomputed rather than kept: a head is short and already in cache.
            let moments: Moments = norm::moments(lanes, x, false, self.eps);
            norm::backward(lanes, x, dy, moments, gain, false, dx, dgain);
        }
        (dq, dk)
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
    fn row(x: X, rows: usize, heads: usize, kv_heads: usize, head_dim: usize) {
        let layout = HeadLayout { heads, kv_heads, head_dim };
        let parameters = [("q_gain", &[head_dim][..]), ("k_gain", &[head_dim])];
        let op = &format!("head_norm {heads}:{kv_heads} heads of {head_dim}");
        let case = Case { op, rows, width: layout.qkv_dim(), x, parameters: &parameters };
        let op = |x: &Tensor, p: &crate::Params| head_norm(x, &p.get("q_gain")?, &p.get("k_gain")?, 1e-6, layout);
        check(&case, op, |v| definitions::head_norm(&v["x"], &v["q_gain"], &v["k_gain"], 1e-6, layout));
        let name = &format!("{}, 1 + gain", case.op);
        let op = |x: &Tensor, p: &crate::Params| {
            head_norm(x, Gain::one_plus(&p.get("q_gain")?), Gain::one_plus(&p.get("k_gain")?), 1e-6, layout)
        };
        check(&Case { op: name, ..case }, op, |v| {
            let [q_gain, k_gain] = ["q_gain", "k_gain"].map(|name| definitions::one_plus(&v[name]));
            definitions::head_norm(&v["x"], &q_gain, &k_gain, 1e-6, layout)
        });
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1, 1, 1);
        row(X::Normal(1.0), 2, 2, 1, 5);
        row(X::Normal(1.0), 3, 3, 3, 16);
        row(X::Normal(1.0), 70, 4, 2, 20);
        row(X::Extreme(1e4), 5, 3, 1, 17);
        row(X::Denormal, 5, 3, 1, 17);
    }
}
