//! The transpose of some columns of a matrix, as a copy.
//!
//! The `gemm` crate packs `wᵀ` by reading one channel of 64 rows of `w` at a time. Where the rows lie at a
//! distance of a large power of two they push each other out of the first-level cache, and a product of
//! 1,024 rows took a fifth longer at 3,072 channels than the same product of a matrix that had been transposed
//! before. This transposes sixteen by sixteen elements in registers.

use crate::{
    few_rows::transposed_channels,
    shared::Shared,
    simd::{Kernel, LANES, Lanes, Level, Vector},
};
use rayon::prelude::*;
use std::ops::Range;

/// Channels that a task transposes before it writes them down.
const CHANNELS: usize = 128;

/// Replaces `copy` by the transpose of some columns of `w (out, k)`. Rows of the transpose begin [`stride`] apart.
pub(crate) fn transpose_columns(copy: &mut Vec<f32>, w: &[f32], k: usize, columns: Range<usize>) {
    let stride = stride(w.len() / k);
    copy.resize(columns.len() * stride, 0.0);
    let shared = Shared::new(copy);
    w.par_chunks(LANES * k).enumerate().for_each(|(block, w)| {
        let rows = w.len() / k;
        for at in columns.clone().step_by(CHANNELS) {
            let mut lines = [[0.0; LANES]; CHANNELS];
            let end = columns.end.min(at + CHANNELS);
            Level::best().run(Transpose { w, k, channels: at..end, lines: &mut lines });
            for (channel, line) in (at..end).zip(&lines) {
                // SAFETY: these elements of every row of the copy belong to this block alone.
                #[allow(unsafe_code)]
                let copy = unsafe { shared.slice((channel - columns.start) * stride + block * LANES, rows) };
                copy.copy_from_slice(&line[..rows]);
            }
        }
    });
}

/// Elements from one row of the transpose of `out` columns to the next: an odd number of cache lines, so that rows do
/// not push each other out of the cache.
pub(crate) fn stride(out: usize) -> usize {
    (out.div_ceil(LANES) | 1) * LANES
}

struct Transpose<'a> {
    w: &'a [f32],
    k: usize,
    channels: Range<usize>,
    lines: &'a mut [Vector; CHANNELS],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Transpose { w, k, channels, lines } = self;
        for (at, lines) in channels.clone().step_by(LANES).zip(lines.as_chunks_mut::<LANES>().0) {
            *lines = transposed_channels(lanes, w, k, at, channels.end);
        }
    }
}
