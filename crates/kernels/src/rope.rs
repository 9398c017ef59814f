//! Rotary position embedding of query and key heads.

use crate::{
    Branch, Error, HeadLayout, Result,
    attention::check,
    branch::{Reads, Step},
    op,
};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::{
    f64::consts::TAU,
    sync::{Arc, OnceLock},
};

/// Rotates the query and key heads of `qkv (n, (H + 2 Hkv) D)` by the angles of `positions (n)`
/// (Su et al. 2021, arXiv 2104.09864), channel i paired with channel i + rotary_dim / 2 as in
/// transformers. Values, and channels beyond the rotary dimension, pass unchanged. Differentiable.
///
/// Refuses positions outside the table and a rotary dimension larger than D.
pub fn rope(qkv: &Tensor, positions: &[u32], table: &Arc<Rope>, layout: HeadLayout) -> Result<Tensor> {
    Branch::of(qkv).rope(positions, table, layout)?.alone()
}

impl Branch {
    /// [`rope()`].
    pub fn rope(self, positions: &[u32], table: &Arc<Rope>, layout: HeadLayout) -> Result<Branch> {
        let rows = check("rope", self.dims("rope", "qkv")?, layout, None)?;
        op::check_shape("rope", "positions", &[positions.len()], &[rows])?;
        op::check_indices("rope", "positions", positions, table.positions())?;
        if 2 * table.pairs > layout.head_dim {
            let expected = format!("a rotary dimension of at most {}", layout.head_dim);
            return Err(Error::Shape { op: "rope", argument: "table", expected, got: vec![2 * table.pairs] });
        }
        if self.is_fused() {
            return Ok(self.step(rows, Rotation { positions: positions.into(), table: table.clone(), layout }));
        }
        self.map(|qkv| compose(qkv, positions, table, layout))
    }
}

/// How the rotation frequencies of a pretrained model are stretched to longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595, equation 4).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a blend between: Llama 3.1, as
    /// transformers computes `rope_type = "llama3"`.
    Llama3 {
        /// The stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_max / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the pretraining before the stretch.
        original_max: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071, section 3), as transformers computes `rope_type = "yarn"`: pairs
    /// that turn often within the original context are kept, those that hardly turn are divided by `factor`, and
    /// between the two the share that is kept falls evenly from pair to pair.
    Yarn {
        /// The stretch of the pairs that turn least.
        factor: f64,
        /// Pairs that turn more often than this within the original context are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this within the original context are stretched fully.
        beta_slow: f64,
        /// Whether the two bounds are widened to whole pairs.
        truncate: bool,
        /// Context of the pretraining before the stretch.
        original_max: usize,
        /// What cosines and sines are multiplied by, so that attention logits grow by its square.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// The frequency of pair `i` of `dim / 2`, which unscaled is `theta^(-2i / dim)`, in radians per position.
    pub fn frequency(self, i: usize, dim: usize, theta: f64) -> f64 {
        let frequency = unscaled(i, dim, theta);
        match self {
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                let turns = original_max as f64 * frequency / TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max, .. } => {
                // The pair, as a fraction, that turns so often within the original context.
                let pair = |turns: f64| dim as f64 * (original_max as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (first, last) = (pair(beta_fast), pair(beta_slow));
                let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
                let (first, last) = (first.max(0.0), last.min(dim as f64 - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                let stretched = ((i as f64 - first) / width).clamp(0.0, 1.0);
                frequency * (1.0 - stretched + stretched / factor)
            }
        }
    }

    /// What cosines and sines are multiplied by.
    fn attention_factor(self) -> f64 {
        match self {
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        }
    }
}

/// `theta^(-2i / dim)`.
fn unscaled(i: usize, dim: usize, theta: f64) -> f64 {
    theta.powf(-2.0 * i as f64 / dim as f64)
}

/// Cosines and sines of every position and rotated pair, both times the scaling's attention factor.
#[derive(Debug)]
pub struct Rope {
    pairs: usize,
    /// `(positions, pairs)`
    cos: Vec<f32>,
    /// `(positions, pairs)`
    sin: Vec<f32>,
    /// Both tables, on the first other device that asked for them.
    elsewhere: OnceLock<(Tensor, Tensor)>,
}

impl Rope {
    /// The tables for `max_positions` positions, rotating the first `rotary_dim` channels of each
    /// head, pair i at frequency `theta^(-2i / rotary_dim)`, scaled. Angles are computed in `f64`, so
    /// that far positions keep their digits. Refuses an odd `rotary_dim`.
    pub fn new(rotary_dim: usize, max_positions: usize, theta: f64, scaling: Option<RopeScaling>) -> Result<Rope> {
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let (expected, got) = ("even and not 0", rotary_dim as f64);
            return Err(Error::Value { op: "rope", argument: "rotary_dim", expected, got });
        }
        let pairs = rotary_dim / 2;
        let frequency = |i| match scaling {
            None => unscaled(i, rotary_dim, theta),
            Some(scaling) => scaling.frequency(i, rotary_dim, theta),
        };
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let by = scaling.map_or(1.0, RopeScaling::attention_factor);
        let table = |f: fn(f64) -> f64| {
            let row =
                |position: usize| frequencies.iter().map(move |frequency| (by * f(position as f64 * frequency)) as f32);
            (0..max_positions).flat_map(row).collect()
        };
        Ok(Rope { pairs, cos: table(f64::cos), sin: table(f64::sin), elsewhere: OnceLock::new() })
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs
    }

    /// The tables `(positions, pairs)` on a device, kept for the device that asks first.
    fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some((cos, sin)) = self.elsewhere.get().filter(|(cos, _)| cos.device().same_device(device)) {
            return Ok((cos.clone(), sin.clone()));
        }
        let upload = |table: &[f32]| Tensor::from_slice(table, (self.positions(), self.pairs), device);
        let tables = (upload(&self.cos)?, upload(&self.sin)?);
        let _ = self.elsewhere.set(tables.clone());
        Ok(tables)
    }
}

/// The fused rotation, times the table's attention factor. Its backward pass is the rotation by the negative angle,
/// times the same factor.
struct Rotation {
    positions: Arc<[u32]>,
    table: Arc<Rope>,
    layout: HeadLayout,
}

impl Rotation {
    /// Rotates a copy of `qkv`, forwards with `sign` 1 and backwards with -1.
    fn rotate(&self, qkv: &[f32], sign: f32) -> Vec<f32> {
        let HeadLayout { heads, kv_heads, head_dim } = self.layout;
        let mut out = qkv.to_vec();
        let width = self.layout.qkv_dim();
        out.par_chunks_mut(op::ROWS * width).zip(self.positions.par_chunks(op::ROWS)).for_each(|(rows, positions)| {
            for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
                row.chunks_exact_mut(head_dim)
                    .take(heads + kv_heads)
                    .for_each(|head| self.rotate_head(head, *position, sign));
            }
        });
        out
    }

    fn rotate_head(&self, head: &mut [f32], position: u32, sign: f32) {
        let pairs = self.table.pairs;
        let angles = position as usize * pairs..(position as usize + 1) * pairs;
        let (first, second) = head[..2 * pairs].split_at_mut(pairs);
        let angles = self.table.cos[angles.clone()].iter().zip(&self.table.sin[angles]);
        for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            let sin = sign * sin;
            (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
        }
    }
}

impl Step for Rotation {
    fn columns(&self) -> usize {
        self.layout.qkv_dim()
    }

    fn forward(&self, qkv: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        Ok(self.rotate(qkv, 1.0))
    }

    fn backward(&self, _qkv: &[f32], _out: &[f32], grad: &[f32]) -> candle_core::Result<Vec<f32>> {
        Ok(self.rotate(grad, -1.0))
    }

    fn reads(&self) -> Reads {
        Reads::Nothing
    }
}

/// [`rope`] from plain Candle operations, on any device.
fn compose(qkv: &Tensor, positions: &[u32], table: &Rope, layout: HeadLayout) -> Result<Tensor> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    let (rows, pairs, rotating) = (positions.len(), table.pairs, heads + kv_heads);
    let (cos, sin) = table.on(qkv.device())?;
    let positions = Tensor::new(positions, qkv.device())?;
    let angles = |table: Tensor| table.index_select(&positions, 0)?.to_dtype(qkv.dtype())?.unsqueeze(1);
    let (cos, sin) = (angles(cos)?, angles(sin)?);
    let heads = qkv.narrow(1, 0, rotating * head_dim)?.reshape((rows, rotating, head_dim))?;
    let (x, y) = (heads.narrow(2, 0, pairs)?, heads.narrow(2, pairs, pairs)?);
    let rotated_x = (x.broadcast_mul(&cos)? - y.broadcast_mul(&sin)?)?;
    let rotated_y = (y.broadcast_mul(&cos)? + x.broadcast_mul(&sin)?)?;
    let rest = heads.narrow(2, 2 * pairs, head_dim - 2 * pairs)?;
    let parts = if rest.elem_count() == 0 { vec![rotated_x, rotated_y] } else { vec![rotated_x, rotated_y, rest] };
    let rotated = Tensor::cat(&parts, 2)?.reshape((rows, rotating * head_dim))?;
    let values = qkv.narrow(1, rotating * head_dim, kv_heads * head_dim)?;
    Ok(Tensor::cat(&[rotated, values], 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, Inputs, X, check, normals},
        definitions,
    };
    use candle_core::DType;

    #[track_caller]
    fn row(x: X, rotary_dim: usize, (heads, kv_heads, head_dim): (usize, usize, usize), positions: &[u32]) {
        let layout = HeadLayout { heads, kv_heads, head_dim };
        let table = Arc::new(Rope::new(rotary_dim, 3000, 10_000.0, None).unwrap());
        let op = &format!("rope of {rotary_dim} in {heads}:{kv_heads} heads of {head_dim}");
        let case = Case { op, rows: positions.len(), width: layout.qkv_dim(), x, parameters: &[] };
        let definition = |v: &Inputs| definitions::rope(&v["x"], positions, rotary_dim, 10_000.0, layout);
        check(&case, |x, _| rope(x, positions, &table, layout), definition);
    }

    #[test]
    fn rotates_queries_and_keys() {
        row(X::Normal(1.0), 8, (2, 1, 8), &[0, 1, 2, 1, 2999]);
        row(X::Normal(1.0), 2, (1, 1, 2), &[5]);
        row(X::Normal(1.0), 4, (3, 3, 16), &[7, 0, 30]);
        row(X::Normal(1.0), 6, (3, 1, 7), &[2, 2, 0]);
        row(X::Normal(1.0), 64, (4, 2, 64), &(0..200).collect::<Vec<_>>());
        row(X::Extreme(1e4), 4, (2, 1, 5), &[0, 1, 2999]);
        row(X::Denormal, 4, (2, 1, 5), &[0, 1, 2999]);
    }

    #[test]
    fn position_0_is_left_alone() {
        let layout = HeadLayout { heads: 2, kv_heads: 1, head_dim: 6 };
        let table = Arc::new(Rope::new(6, 4, 10_000.0, None).unwrap());
        let x = normals("x", 2 * layout.qkv_dim());
        let y = rope(&Tensor::from_slice(&x, (2, 24), &Device::Cpu).unwrap(), &[0, 0], &table, layout).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), x);
    }

    #[test]
    fn scaling_stretches_low_frequencies() {
        let (factor, original_max) = (8.0, 8192);
        let llama = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max };
        // The last of three pairs has the wavelength that theta is chosen for.
        let share = |scaling: RopeScaling, wavelength: f64| {
            let theta = (wavelength / TAU).powf(1.5);
            scaling.frequency(2, 6, theta) * wavelength / TAU
        };
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-12, "{found}, wanted {wanted}");
        near(share(llama, 100.0), 1.0);
        near(share(llama, 10_000.0), 1.0 / 8.0);
        // Halfway between 1 and 4 turns of the original context, half of the frequency is kept.
        near(share(llama, 8192.0 / 2.5), 0.5 + 0.5 / 8.0);
        near(share(RopeScaling::Linear { factor: 4.0 }, 50.0), 0.25);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let layout = HeadLayout { heads: 1, kv_heads: 1, head_dim: 4 };
        let x = Tensor::zeros((2, 12), DType::F32, &Device::Cpu).unwrap();
        let refused = |positions: &[u32], dim: usize, message: &str| {
            let table = Arc::new(Rope::new(dim, 5, 10_000.0, None).unwrap());
            let error = rope(&x, positions, &table, layout).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused(&[0, 5], 4, "positions[1] is 5");
        refused(&[0], 4, "positions must be [2], got [1]");
        refused(&[0, 1], 6, "a rotary dimension of at most 4");
        assert!(Rope::new(3, 5, 10_000.0, None).unwrap_err().to_string().contains("even"));
    }
}
