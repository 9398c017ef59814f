//! A whole feed-forward layer as one operation: its wide inner activations never enter the graph.
//!
//! Candle zeroes, adds and copies a gradient at every edge of the graph. Around the nonlinearity of
//! a transformer those edges are four times as wide as anywhere else; at a width of 128 on two cores
//! leaving them out saved a tenth of the layer's time, and one of its two wide tensors.

use crate::{
    Branch, Nonlinearity, Param, Path, Result,
    branch::{Reads, Step},
    gelu_erf, gelu_tanh,
    linear::{self, linear},
    op, swiglu,
};
use candle_core::Tensor;
use std::sync::OnceLock;

/// The parameters of a feed-forward layer of width C and inner width I.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// `(I, C)`, or `(2I, C)` with the gate first for [`Nonlinearity::SwiGlu`].
    pub up: Param,
    /// As long as `up` has rows.
    pub up_bias: Option<Param>,
    /// What happens in between.
    pub nonlinearity: Nonlinearity,
    /// `(C, I)`.
    pub down: Param,
    /// `(C)`.
    pub down_bias: Option<Param>,
}

/// `nonlinearity(x upᵀ + up_bias) downᵀ + down_bias` of `x (n, C)`: `(n, C)`. The same bits as
/// [`linear()`], the nonlinearity and [`linear()`] one after the other, and as row-invariant.
///
/// Errors: shapes that do not fit each other.
pub fn feed_forward(x: &Tensor, layer: &FeedForward) -> Result<Tensor> {
    Branch::of(x).feed_forward(layer)?.alone()
}

impl Branch {
    /// [`feed_forward()`].
    pub fn feed_forward(self, layer: &FeedForward) -> Result<Branch> {
        if layer.up.path() == Path::Composed {
            return self.map(|x| composed(x, layer));
        }
        let (rows, width) = self.dims("feed_forward", "x")?;
        let sizes = sizes(width, layer)?;
        Ok(self.step(rows, Fused { layer: layer.clone(), sizes, inner: OnceLock::new() }))
    }
}

fn composed(x: &Tensor, layer: &FeedForward) -> Result<Tensor> {
    let inner = linear(x, &layer.up, layer.up_bias.as_ref())?;
    let inner = match layer.nonlinearity {
        Nonlinearity::GeluTanh => gelu_tanh(&inner)?,
        Nonlinearity::GeluErf => gelu_erf(&inner)?,
        Nonlinearity::SwiGlu => swiglu(&inner)?,
    };
    linear(&inner, &layer.down, layer.down_bias.as_ref())
}

#[derive(Clone, Copy)]
struct Sizes {
    width: usize,
    /// Rows of `up`.
    inner: usize,
    /// Columns of `down`, half of the above with a gate.
    gated: usize,
}

fn sizes(width: usize, layer: &FeedForward) -> Result<Sizes> {
    let name = "feed_forward";
    let (inner, _) = op::matrix(name, "up", &layer.up)?;
    let gated = layer.nonlinearity.output(inner);
    op::check_shape(name, "up", layer.up.shape(), &[inner, width])?;
    op::check_shape(name, "down", layer.down.shape(), &[width, gated])?;
    for (argument, bias, len) in [("up_bias", &layer.up_bias, inner), ("down_bias", &layer.down_bias, width)] {
        bias.as_ref().map_or(Ok(()), |bias| op::check_shape(name, argument, bias.shape(), &[len]))?;
    }
    Ok(Sizes { width, inner, gated })
}

struct Fused {
    layer: FeedForward,
    sizes: Sizes,
    /// What goes into the nonlinearity, `(n, inner)`, when there will be a backward pass.
    inner: OnceLock<Vec<f32>>,
}

impl Step for Fused {
    fn columns(&self) -> usize {
        self.sizes.width
    }

    fn forward(&self, x: &[f32], keep: bool) -> candle_core::Result<Vec<f32>> {
        let (layer, Sizes { width, inner, gated }) = (&self.layer, self.sizes);
        let before = linear::forward(x, &layer.up, layer.up_bias.as_ref(), width, inner)?;
        let after = layer.nonlinearity.forward(&before, inner);
        let y = linear::forward(&after, &layer.down, layer.down_bias.as_ref(), gated, width)?;
        if keep {
            // Set at most once, because what is kept has one forward pass.
            let _ = self.inner.set(before);
        }
        Ok(y)
    }

    /// The nonlinearity is computed a second time: reading its result from memory costs as much.
    fn backward(&self, x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let (layer, Sizes { width, inner, gated }) = (&self.layer, self.sizes);
        let Some(before) = self.inner.get() else {
            candle_core::bail!("feed_forward: a backward pass before its forward pass");
        };
        let after = layer.nonlinearity.forward(before, inner);
        let dafter = linear::backward(&after, dy, &layer.down, layer.down_bias.as_ref(), gated, width)?;
        let dbefore = layer.nonlinearity.backward(before, &dafter, inner);
        linear::backward(x, &dbefore, &layer.up, layer.up_bias.as_ref(), width, inner)
    }

    fn reads(&self) -> Reads {
        Reads::Input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Params,
        check::{Case, X, check, numbers},
        definitions,
    };

    fn layer(params: &Params, nonlinearity: Nonlinearity, biased: bool) -> FeedForward {
        let get = |name| params.get(name).unwrap();
        let bias = |name| biased.then(|| get(name));
        let (up_bias, down_bias) = (bias("up_bias"), bias("down_bias"));
        FeedForward { up: get("up"), up_bias, nonlinearity, down: get("down"), down_bias }
    }

    #[track_caller]
    fn row(x: X, rows: usize, width: usize, inner: usize, kind: Nonlinearity) {
        let gated = kind.output(inner);
        let (up, down) = ([inner, width], [width, gated]);
        let parameters = [("down", &down[..]), ("up", &up), ("down_bias", &down[..1]), ("up_bias", &up[..1])];
        for biased in [true, false] {
            let parameters = if biased { &parameters[..] } else { &parameters[..2] };
            let op = &format!("feed_forward {kind:?} {inner}{}", if biased { ", biased" } else { "" });
            let case = Case { op, rows, width, x, parameters };
            let op = |x: &Tensor, p: &Params| {
                let layer = layer(p, kind, biased);
                let (one, apart) = (feed_forward(x, &layer)?, composed(x, &layer)?);
                assert_eq!(numbers(&one), numbers(&apart), "one operation and three");
                Ok(one)
            };
            check(&case, op, |v| {
                let bias = |name: &str| biased.then(|| v[name].to_vec());
                let up = definitions::linear(&v["x"], &v["up"], bias("up_bias").as_deref(), width);
                let after = definitions::activation(kind, &up, inner);
                definitions::linear(&after, &v["down"], bias("down_bias").as_deref(), gated)
            });
        }
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1, 2, Nonlinearity::GeluTanh);
        row(X::Normal(1.0), 3, 4, 10, Nonlinearity::SwiGlu);
        row(X::Normal(1.0), 9, 17, 66, Nonlinearity::GeluErf);
        row(X::Normal(1.0), 70, 33, 130, Nonlinearity::SwiGlu);
        row(X::Normal(1.0), 130, 40, 160, Nonlinearity::GeluTanh);
        for kind in [Nonlinearity::GeluTanh, Nonlinearity::GeluErf, Nonlinearity::SwiGlu] {
            // A gate multiplies two projections.
            row(X::Extreme(if kind == Nonlinearity::SwiGlu { 1e2 } else { 1e4 }), 5, 7, 22, kind);
            row(X::Denormal, 5, 7, 22, kind);
        }
    }
}
