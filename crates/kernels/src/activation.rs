//! The nonlinearities between the two halves of a feed-forward layer.

use crate::{
    Branch, Error, Result,
    branch::{Reads, Step},
    norm::{load, store},
    op,
    simd::{Kernel, LANES, Lanes, Level},
};
use candle_core::Tensor;

/// A nonlinearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// [`gelu_tanh`].
    GeluTanh,
    /// [`gelu_erf`].
    GeluErf,
    /// [`swiglu`], which halves the width.
    SwiGlu,
    /// [`geglu`], which halves the width.
    GeGlu,
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` of `x (n, I)`: `(n, I)`, the approximation that
/// GPT-2 uses (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).
///
/// Errors: `x` is not a matrix.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    Branch::of(x).activation(Nonlinearity::GeluTanh)?.alone()
}

/// `x Phi(x)` of `x (n, I)`, with the normal distribution function Phi itself: `(n, I)` (Hendrycks
/// and Gimpel 2016, arXiv 1606.08415, section 2), what GPT-NeoX uses.
///
/// Errors: `x` is not a matrix.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    Branch::of(x).activation(Nonlinearity::GeluErf)?.alone()
}

/// `silu(gate) * up` of `x (n, 2I)`, whose first I channels are the gate: `(n, I)` (Shazeer 2020,
/// arXiv 2002.05202, equation 6).
///
/// Errors: `x` is not a matrix of an even number of columns.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    Branch::of(x).activation(Nonlinearity::SwiGlu)?.alone()
}

/// `gelu(gate) * up` of `x (n, 2I)`, whose first I channels are the gate, with the GELU of [`gelu_tanh`]: `(n, I)`
/// (Shazeer 2020, arXiv 2002.05202, equation 5), what Gemma uses.
///
/// Errors: `x` is not a matrix of an even number of columns.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    Branch::of(x).activation(Nonlinearity::GeGlu)?.alone()
}

impl Nonlinearity {
    /// Whether the first half of what goes in multiplies the second.
    pub(crate) fn is_gated(self) -> bool {
        matches!(self, Nonlinearity::SwiGlu | Nonlinearity::GeGlu)
    }

    /// Channels that come out where `width` go in.
    pub(crate) fn output(self, width: usize) -> usize {
        if self.is_gated() { width / 2 } else { width }
    }

    /// The function on slices: rows of `width` elements.
    pub(crate) fn forward(self, x: &[f32], width: usize) -> Vec<f32> {
        match self {
            Nonlinearity::GeluTanh => map(GeluTanh, x),
            Nonlinearity::GeluErf => map(GeluErf, x),
            Nonlinearity::SwiGlu => gated(Silu, x, width / 2),
            Nonlinearity::GeGlu => gated(GeluTanh, x, width / 2),
        }
    }

    /// The gradient of `x`, of rows of `width` elements, from that of the output.
    pub(crate) fn backward(self, x: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
        match self {
            Nonlinearity::GeluTanh => map_slope(GeluTanh, x, dy),
            Nonlinearity::GeluErf => map_slope(GeluErf, x, dy),
            Nonlinearity::SwiGlu => gated_slope(Silu, x, dy, width / 2),
            Nonlinearity::GeGlu => gated_slope(GeluTanh, x, dy, width / 2),
        }
    }
}

impl Branch {
    /// [`gelu_tanh`], [`gelu_erf`], [`swiglu`] or [`geglu`].
    pub fn activation(self, function: Nonlinearity) -> Result<Branch> {
        let (n, width) = self.dims("activation", "x")?;
        if function.is_gated() && !width.is_multiple_of(2) {
            let expected = "a matrix of an even number of columns".to_owned();
            return Err(Error::Shape { op: "activation", argument: "x", expected, got: vec![n, width] });
        }
        if self.is_fused() {
            return Ok(self.step(n, Activation { function, width }));
        }
        let (gate, up) = (|x: &Tensor| x.narrow(1, 0, width / 2), |x: &Tensor| x.narrow(1, width / 2, width / 2));
        self.map(|x| match function {
            Nonlinearity::GeluTanh => Ok(x.gelu()?),
            Nonlinearity::GeluErf => Ok(x.gelu_erf()?),
            Nonlinearity::SwiGlu => Ok((gate(x)?.silu()? * up(x)?)?),
            Nonlinearity::GeGlu => Ok((gate(x)?.gelu()? * up(x)?)?),
        })
    }
}

struct Activation {
    function: Nonlinearity,
    width: usize,
}

impl Step for Activation {
    fn columns(&self) -> usize {
        self.function.output(self.width)
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        Ok(self.function.forward(x, self.width))
    }

    fn backward(&self, x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        Ok(self.function.backward(x, dy, self.width))
    }

    fn reads(&self) -> Reads {
        Reads::Input
    }

    fn is_cheap(&self) -> bool {
        true
    }
}

/// Elements in a row where rows have no meaning, small enough for a block of rows to stay in the first-level cache.
const WIDTH: usize = 64;

/// A function of one number and its slope.
trait Function: Copy + Send + Sync {
    fn value<L: Lanes>(self, lanes: L, x: L::V) -> L::V;
    fn slope<L: Lanes>(self, lanes: L, x: L::V) -> L::V;
}

fn map<F: Function>(f: F, x: &[f32]) -> Vec<f32> {
    let value = |first: usize, y: &mut [f32]| Level::best().run(Value(f, &x[first * WIDTH..][..y.len()], y));
    op::build_blocks(x.len(), WIDTH, value).0
}

fn map_slope<F: Function>(f: F, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let slope = |first: usize, dx: &mut [f32]| {
        let here = first * WIDTH..first * WIDTH + dx.len();
        Level::best().run(Slope(f, &x[here.clone()], &dy[here], dx))
    };
    op::build_blocks(x.len(), WIDTH, slope).0
}

struct Value<'a, F>(F, &'a [f32], &'a mut [f32]);

impl<F: Function> Kernel for Value<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Value(f, x, y) = self;
        for at in (0..x.len()).step_by(LANES) {
            store(lanes, f.value(lanes, load(lanes, x, at, 0.0)), y, at);
        }
    }
}

struct Slope<'a, F>(F, &'a [f32], &'a [f32], &'a mut [f32]);

impl<F: Function> Kernel for Slope<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Slope(f, x, dy, dx) = self;
        for at in (0..x.len()).step_by(LANES) {
            let slope = f.slope(lanes, load(lanes, x, at, 0.0));
            store(lanes, lanes.mul(slope, load(lanes, dy, at, 0.0)), dx, at);
        }
    }
}

/// `x sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, since `0.5 (1 + tanh u)` is
/// `sigmoid(2u)`: one exponential, and full accuracy where the function is close to zero.
#[derive(Clone, Copy)]
struct GeluTanh;

/// `2 sqrt(2/pi)`.
const TWICE_ROOT: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

impl GeluTanh {
    #[inline(always)]
    fn gate<L: Lanes>(lanes: L, x: L::V) -> L::V {
        let square = lanes.mul(x, x);
        let inner = lanes.mul_add(square, lanes.splat(TWICE_ROOT * CUBIC), lanes.splat(TWICE_ROOT));
        lanes.sigmoid(lanes.mul(x, inner))
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn value<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        lanes.mul(x, Self::gate(lanes, x))
    }

    #[inline(always)]
    fn slope<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        let x = clamp(lanes, x);
        let gate = Self::gate(lanes, x);
        let inner = lanes.mul_add(lanes.mul(x, x), lanes.splat(3.0 * TWICE_ROOT * CUBIC), lanes.splat(TWICE_ROOT));
        let bend = lanes.mul(lanes.mul(gate, lanes.sub(lanes.splat(1.0), gate)), lanes.mul(x, inner));
        lanes.add(gate, bend)
    }
}

/// Beyond 100 every gate is 0 or 1, and the square of a still larger number would overflow: `0 * inf` is no number.
#[inline(always)]
fn clamp<L: Lanes>(lanes: L, x: L::V) -> L::V {
    lanes.min(lanes.splat(100.0), lanes.max(lanes.splat(-100.0), x))
}

#[derive(Clone, Copy)]
struct GeluErf;

impl GeluErf {
    /// `Phi(x) = erfc(-x / sqrt 2) / 2`, by the Chebyshev fit of Press et al., Numerical Recipes,
    /// section 6.2, whose fractional error is below 1.2e-7 everywhere.
    #[inline(always)]
    fn distribution<L: Lanes>(lanes: L, x: L::V) -> L::V {
        let (zero, one) = (lanes.splat(0.0), lanes.splat(1.0));
        let z = lanes.mul(lanes.max(x, lanes.sub(zero, x)), lanes.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = lanes.div(one, lanes.mul_add(z, lanes.splat(0.5), one));
        let fit = [
            -0.822_152_23,
            1.488_515_9,
            -1.135_204,
            0.278_868_07,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ];
        let fit = lanes.polynomial(t, 0.170_872_77, fit);
        let upper = lanes.mul(lanes.mul(t, lanes.exp(lanes.sub(fit, lanes.mul(z, z)))), lanes.splat(0.5));
        lanes.if_less(x, zero, upper, lanes.sub(one, upper))
    }
}

impl Function for GeluErf {
    #[inline(always)]
    fn value<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        lanes.mul(x, Self::distribution(lanes, x))
    }

    #[inline(always)]
    fn slope<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        let x = clamp(lanes, x);
        // The density is exp(-x^2 / 2) / sqrt(2 pi).
        let density = lanes.exp(lanes.mul(lanes.mul(x, x), lanes.splat(-0.5)));
        let density = lanes.mul(density, lanes.splat(0.398_942_3));
        lanes.mul_add(x, density, Self::distribution(lanes, x))
    }
}

/// `f(gate) * up` of rows of `half` gates and as many ups.
fn gated<F: Function>(f: F, x: &[f32], half: usize) -> Vec<f32> {
    let rows = |first: usize, y: &mut [f32]| {
        let x = &x[2 * first * half..][..2 * y.len()];
        Level::best().run(GatedForward { f, x, half, y })
    };
    op::build_blocks(x.len() / 2, half, rows).0
}

fn gated_slope<F: Function>(f: F, x: &[f32], dy: &[f32], half: usize) -> Vec<f32> {
    let rows = |first: usize, dx: &mut [f32]| {
        let (x, dy) = (&x[2 * first * half..][..dx.len()], &dy[first * half..][..dx.len() / 2]);
        Level::best().run(GatedBackward { f, x, dy, half, dx })
    };
    op::build_blocks(x.len(), 2 * half, rows).0
}

/// `x sigmoid(x)`, whose slope is `s (1 + x (1 - s))` with `s = sigmoid(x)`.
#[derive(Clone, Copy)]
struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn value<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        lanes.mul(x, lanes.sigmoid(x))
    }

    #[inline(always)]
    fn slope<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        let (s, one) = (lanes.sigmoid(x), lanes.splat(1.0));
        lanes.mul(s, lanes.mul_add(x, lanes.sub(one, s), one))
    }
}

struct GatedForward<'a, F> {
    f: F,
    x: &'a [f32],
    half: usize,
    y: &'a mut [f32],
}

impl<F: Function> Kernel for GatedForward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (x, y) in self.x.chunks_exact(2 * self.half).zip(self.y.chunks_exact_mut(self.half)) {
            let (gates, ups) = x.split_at(self.half);
            for at in (0..self.half).step_by(LANES) {
                let opened = self.f.value(lanes, load(lanes, gates, at, 0.0));
                store(lanes, lanes.mul(opened, load(lanes, ups, at, 0.0)), y, at);
            }
        }
    }
}

struct GatedBackward<'a, F> {
    f: F,
    x: &'a [f32],
    dy: &'a [f32],
    half: usize,
    dx: &'a mut [f32],
}

impl<F: Function> Kernel for GatedBackward<'_, F> {
    type Output = ();

    /// `d up = dy f(gate)` and `d gate = dy up f'(gate)`.
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let half = self.half;
        let rows = self.x.chunks_exact(2 * half).zip(self.dx.chunks_exact_mut(2 * half));
        for ((x, dx), dy) in rows.zip(self.dy.chunks_exact(half)) {
            let ((gates, ups), (dgates, dups)) = (x.split_at(half), dx.split_at_mut(half));
            for at in (0..half).step_by(LANES) {
                let (gate, up, dy) = (load(lanes, gates, at, 0.0), load(lanes, ups, at, 0.0), load(lanes, dy, at, 0.0));
                store(lanes, lanes.mul(dy, self.f.value(lanes, gate)), dups, at);
                store(lanes, lanes.mul(dy, lanes.mul(up, self.f.slope(lanes, gate))), dgates, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, X, check, numbers},
        definitions,
    };
    use candle_core::Device;

    #[track_caller]
    fn row(x: X, rows: usize, width: usize) {
        for (op, kind) in [
            ("gelu_tanh", Nonlinearity::GeluTanh),
            ("gelu_erf", Nonlinearity::GeluErf),
            ("swiglu", Nonlinearity::SwiGlu),
            ("geglu", Nonlinearity::GeGlu),
        ] {
            if !kind.is_gated() || width.is_multiple_of(2) {
                let case = Case { op, rows, width, x, parameters: &[] };
                check(
                    &case,
                    |x, _| Branch::of(x).activation(kind)?.alone(),
                    |v| definitions::activation(kind, &v["x"], width),
                );
            }
        }
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1);
        row(X::Normal(1.0), 1, 2);
        row(X::Normal(3.0), 3, 10);
        row(X::Normal(1e-3), 2, 16);
        row(X::Normal(2.0), 70, 66);
        row(X::Normal(5.0), 300, 64);
        row(X::Extreme(1e4), 5, 34);
        row(X::Denormal, 4, 34);
    }

    #[test]
    fn far_out_they_are_the_identity_or_zero() {
        let x = candle_core::Var::new(&[[-1e25f32, -1e4, -50.0, 50.0, 1e4, 1e25]], &Device::Cpu).unwrap();
        for f in [gelu_tanh, gelu_erf] {
            let y = f(&x).unwrap();
            assert_eq!(numbers(&y), [0.0, 0.0, 0.0, 50.0, 1e4, 1e25]);
            assert_eq!(numbers(y.backward().unwrap().get(&x).unwrap()), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        }
    }
}
