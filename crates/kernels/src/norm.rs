//! The arithmetic that layer norm, RMS norm and head norm share: one row, forward and backward.

use crate::simd::{LANES, Lanes};

/// What the forward pass of a row leaves for its backward pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments {
    mean: f32,
    /// `1 / sqrt(variance + eps)`.
    inverse: f32,
}

/// The elements of `x` from `at` on, `outside` beyond its end.
#[inline(always)]
pub(crate) fn load<L: Lanes>(lanes: L, x: &[f32], at: usize, outside: f32) -> L::V {
    let rest = &x[at..];
    if let Some(vector) = rest.first_chunk() {
        return lanes.load(vector);
    }
    let mut padded = [outside; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    lanes.load(&padded)
}

/// Writes to the elements of `x` from `at` on; what lies beyond its end is dropped.
#[inline(always)]
pub(crate) fn store<L: Lanes>(lanes: L, v: L::V, x: &mut [f32], at: usize) {
    let rest = &mut x[at..];
    if let Some(vector) = rest.first_chunk_mut() {
        return lanes.store(v, vector);
    }
    let mut padded = [0.0; LANES];
    lanes.store(v, &mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
}

/// The sum of `f` over a row.
#[inline(always)]
fn sum<L: Lanes>(lanes: L, width: usize, f: impl Fn(usize) -> L::V) -> f32 {
    let mut total = lanes.splat(0.0);
    for at in (0..width).step_by(LANES) {
        total = lanes.add(total, f(at));
    }
    lanes.sum(total)
}

/// The moments of `x` about its mean when `centred`, else about zero.
#[inline(always)]
pub(crate) fn moments<L: Lanes>(lanes: L, x: &[f32], centred: bool, eps: f32) -> Moments {
    let count = x.len() as f32;
    let mean = if centred { sum(lanes, x.len(), |at| load(lanes, x, at, 0.0)) / count } else { 0.0 };
    let square = |at| {
        let deviation = lanes.sub(load(lanes, x, at, mean), lanes.splat(mean));
        lanes.mul(deviation, deviation)
    };
    Moments { mean, inverse: 1.0 / (sum(lanes, x.len(), square) / count + eps).sqrt() }
}

/// `y = gain * (x - mean) * inverse + bias`.
#[inline(always)]
pub(crate) fn normalise<L: Lanes>(
    lanes: L,
    x: &[f32],
    moments: Moments,
    gain: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    for at in (0..x.len()).step_by(LANES) {
        let unit = unit(lanes, x, at, moments);
        let shift = bias.map_or(lanes.splat(0.0), |bias| load(lanes, bias, at, 0.0));
        store(lanes, lanes.mul_add(unit, load(lanes, gain, at, 0.0), shift), y, at);
    }
}

/// With `u` the normalised row and `g = gain * dy`:
/// `dx = inverse * (g - mean(g) - u * mean(g u))`, the middle term only when `centred`, and
/// `dgain += dy u`.
#[inline(always)]
pub(crate) fn backward<L: Lanes>(
    lanes: L,
    x: &[f32],
    dy: &[f32],
    moments: Moments,
    gain: &[f32],
    centred: bool,
    dx: &mut [f32],
    dgain: &mut [f32],
) {
    let count = x.len() as f32;
    let scaled = |at| lanes.mul(load(lanes, dy, at, 0.0), load(lanes, gain, at, 0.0));
    let drift = if centred { sum(lanes, x.len(), scaled) / count } else { 0.0 };
    let pull = sum(lanes, x.len(), |at| lanes.mul(scaled(at), unit(lanes, x, at, moments))) / count;
    for at in (0..x.len()).step_by(LANES) {
        let unit = unit(lanes, x, at, moments);
        let straight = lanes.sub(scaled(at), lanes.splat(drift));
        let inner = lanes.sub(straight, lanes.mul(unit, lanes.splat(pull)));
        store(lanes, lanes.mul(inner, lanes.splat(moments.inverse)), dx, at);
        let gained = lanes.mul_add(load(lanes, dy, at, 0.0), unit, load(lanes, dgain, at, 0.0));
        store(lanes, gained, dgain, at);
    }
}

#[inline(always)]
fn unit<L: Lanes>(lanes: L, x: &[f32], at: usize, moments: Moments) -> L::V {
    let deviation = lanes.sub(load(lanes, x, at, 0.0), lanes.splat(moments.mean));
    lanes.mul(deviation, lanes.splat(moments.inverse))
}
