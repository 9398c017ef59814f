//! A feed-forward layer: two linear layers with a nonlinearity between them.

use crate::{Branch, Nonlinearity, Param, Result, op};
use candle_core::Tensor;

/// The parameters of a feed-forward layer of width C and inner width I.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// `(I, C)`, or `(2I, C)` with the gate first for [`Nonlinearity::SwiGlu`] and [`Nonlinearity::GeGlu`].
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

/// `nonlinearity(x upᵀ + up_bias) downᵀ + down_bias` of `x (n, C)`: `(n, C)`, as row-invariant as
/// [`linear()`](crate::linear()). What comes out of the nonlinearity, as wide as anything in a transformer,
/// is computed a second time for the backward pass: reading it from memory would cost as much.
///
/// Errors: shapes that do not fit each other.
pub fn feed_forward(x: &Tensor, layer: &FeedForward) -> Result<Tensor> {
    Branch::of(x).feed_forward(layer)?.alone()
}

impl Branch {
    /// [`feed_forward()`].
    pub fn feed_forward(self, layer: &FeedForward) -> Result<Branch> {
        let (_, width) = self.dims("feed_forward", "x")?;
        let (inner, _) = op::matrix("feed_forward", "up", &layer.up)?;
        op::check_shape("feed_forward", "down", layer.down.shape(), &[width, layer.nonlinearity.output(inner)])?;
        let inner = self.linear(&layer.up, layer.up_bias.as_ref())?.activation(layer.nonlinearity)?;
        inner.linear(&layer.down, layer.down_bias.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Params,
        check::{Case, X, check},
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
            let op = |x: &Tensor, p: &Params| feed_forward(x, &layer(p, kind, biased));
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
        row(X::Normal(1.0), 70, 33, 130, Nonlinearity::GeGlu);
        for kind in [Nonlinearity::GeluTanh, Nonlinearity::GeluErf, Nonlinearity::SwiGlu, Nonlinearity::GeGlu] {
            // A gate multiplies two projections.
            row(X::Extreme(if kind.is_gated() { 1e2 } else { 1e4 }), 5, 7, 22, kind);
            row(X::Denormal, 5, 7, 22, kind);
        }
    }
}
