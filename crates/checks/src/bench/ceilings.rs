//! What this machine can do at most: products of large matrices, and reading memory.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use instruct_kernels::{Params, Path, Spec, linear};
use rayon::prelude::*;
use std::time::Instant;
use xtask::config::Precision;

/// The most that any stage could reach here.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Ceilings {
    /// Billions of additions and multiplications a second in products of square matrices, in the precision
    /// of the run.
    pub(super) gflops: f64,
    /// Billions of bytes read a second by all threads together.
    pub(super) gigabytes: f64,
}

/// The best of several tries each.
pub(super) fn measure(precision: Precision) -> Result<Ceilings> {
    Ok(Ceilings { gflops: products(precision)?, gigabytes: reading()? })
}

fn products(precision: Precision) -> Result<f64> {
    const N: usize = 2_048;
    let params = Params::zeros(vec![Spec::new("w", vec![N, N])], &Device::Cpu, Path::Fused, precision.dtype())?;
    params.set("w", &vec![0.5; N * N])?;
    let (w, x) = (params.get("w")?, Tensor::ones((N, N), DType::F32, &Device::Cpu)?);
    let best = best_of(6, || Ok(linear(&x, &w, None)?))?;
    Ok(2.0 * (N as f64).powi(3) / best / 1e9)
}

fn reading() -> Result<f64> {
    let memory = vec![1u64; 1 << 27];
    let sum = |chunk: &[u64]| chunk.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x));
    let best = best_of(6, || Ok(memory.par_chunks(1 << 20).map(sum).sum::<u64>()))?;
    Ok((memory.len() * 8) as f64 / best / 1e9)
}

/// Seconds of the fastest of `tries`.
fn best_of<T>(tries: usize, mut f: impl FnMut() -> Result<T>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..tries {
        let begun = Instant::now();
        std::hint::black_box(f()?);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
