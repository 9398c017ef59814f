//! The arithmetic of attention for a few query rows at a time, shared by training and decoding.
//!
//! Every number that a row produces is computed by a fixed order of operations on its own keys:
//! scores add over channels in order, the softmax adds key j into lane j mod 16, the output adds
//! over keys in order. Rows are computed several at once only to reuse loads; which rows, and what
//! else is in the batch, changes no bit. Keys outside a row's reach enter as exact zeros.

use crate::{
    Scoring,
    simd::{Kernel, LANES, Lanes, Vector},
};
use std::ops::Range;

/// Rows whose probabilities the backward pass keeps before it adds them to the keys' gradients.
const BACKWARD_ROWS: usize = 32;

/// Vectors that hold `n` numbers.
pub(crate) fn vectors(n: usize) -> usize {
    n.div_ceil(LANES)
}

/// The largest score of a row and one over the sum of its exponentials: with them the backward pass
/// computes the same probabilities again. They are kept apart, because the logarithm of both together would lose
/// digits of large scores.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScoreNormaliser {
    max: f32,
    scale: f32,
}

/// One query: its channels and the keys it sees, by position.
pub(crate) struct Query<'a> {
    pub(crate) channels: &'a [f32],
    pub(crate) seen: Range<usize>,
}

/// Positions seen from `position`: all up to itself, or the last `window` of those.
pub(crate) fn seen(position: usize, window: Option<usize>) -> Range<usize> {
    let end = position + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// Writes `row` as number `position` of a transposed run: blocks of sixteen rows, each block
/// channel by channel, so that one vector holds one channel of sixteen rows.
pub(crate) fn put_transposed(run: &mut [Vector], position: usize, row: &[f32]) {
    let block = &mut run[position / LANES * row.len()..][..row.len()];
    for (vector, x) in block.iter_mut().zip(row) {
        vector[position % LANES] = *x;
    }
}

/// [`put_transposed`] of the rows `row(0..count)` from position `first` on.
pub(crate) struct PutTransposed<'a, F> {
    pub(crate) run: &'a mut [Vector],
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) row: F,
}

impl<'r, F: Fn(usize) -> &'r [f32]> Kernel for PutTransposed<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let PutTransposed { run, first, count, row } = self;
        // A block that earlier rows share is completed row by row.
        let shared = (first.next_multiple_of(LANES) - first).min(count);
        (0..shared).for_each(|i| put_transposed(run, first + i, row(i)));
        for i in (shared..count).step_by(LANES) {
            let dim = row(i).len();
            let block = &mut run[(first + i) / LANES * dim..][..dim];
            transpose_rows(lanes, (i..count.min(i + LANES)).map(&row), block);
        }
    }
}

/// Writes the rows `row(0..count)` from position `first` on, each filled up to whole vectors.
pub(crate) struct PutRows<'a, F> {
    pub(crate) run: &'a mut [Vector],
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) row: F,
}

impl<'r, F: Fn(usize) -> &'r [f32]> Kernel for PutRows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for i in 0..self.count {
            let row = (self.row)(i);
            let width = vectors(row.len());
            for (at, to) in self.run[(self.first + i) * width..][..width].iter_mut().enumerate() {
                lanes.store(part(lanes, row, at), to);
            }
        }
    }
}

/// Vector `at` of a row, with zeros after its end.
#[inline(always)]
fn part<L: Lanes>(lanes: L, row: &[f32], at: usize) -> L::V {
    let (whole, rest) = row.as_chunks::<LANES>();
    if let Some(vector) = whole.get(at) {
        return lanes.load(vector);
    }
    let mut padded = [0.0; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    lanes.load(&padded)
}

/// Up to sixteen rows side by side, one vector per channel; lanes without a row are 0.
#[inline(always)]
fn transpose_rows<'a, L: Lanes>(lanes: L, rows: impl Iterator<Item = &'a [f32]> + Clone, to: &mut [Vector]) {
    for (at, to) in to.chunks_mut(LANES).enumerate() {
        let mut parts = [lanes.splat(0.0); LANES];
        for (to, row) in parts.iter_mut().zip(rows.clone()) {
            *to = part(lanes, row, at);
        }
        for (channel, to) in lanes.transpose(parts).into_iter().zip(to) {
            lanes.store(channel, to);
        }
    }
}

/// Row `position`, of `dim` numbers, of a run of rows that each fill whole vectors.
pub(crate) fn get_row(run: &[Vector], position: usize, dim: usize) -> &[f32] {
    &run[position * vectors(dim)..][..vectors(dim)].as_flattened()[..dim]
}

/// Buffers that outlive a call, so that a task does not allocate per row.
#[derive(Default)]
pub(crate) struct Scratch {
    queries: Vec<Vector>,
    weights: Vec<Vector>,
    slopes: Vec<Vector>,
    out: Vec<Vector>,
}

/// Attention of `queries` over one head's keys and values.
pub(crate) struct Attend<'a, F> {
    /// Channels per head.
    pub(crate) dim: usize,
    /// How products become scores.
    pub(crate) scoring: Scoring,
    /// Keys, by [`PutTransposed`].
    pub(crate) keys: &'a [Vector],
    /// Values, by [`PutRows`].
    pub(crate) values: &'a [Vector],
    /// The rows to compute.
    pub(crate) queries: &'a [Query<'a>],
    /// Receives the index of a query, its output (dim) and what normalised its scores.
    pub(crate) put: F,
    pub(crate) scratch: &'a mut Scratch,
}

impl<F: FnMut(usize, &[f32], ScoreNormaliser)> Kernel for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let mut first = 0;
        while first < self.queries.len() {
            let left = self.queries.len() - first;
            first += match L::ACCUMULATORS {
                16.. if left >= 8 => self.rows::<L, 8, 2>(lanes, first),
                16.. if left >= 4 => self.rows::<L, 4, 4>(lanes, first),
                4..16 if left >= 4 => self.rows::<L, 4, 1>(lanes, first),
                2.. if left >= 2 => self.rows::<L, 2, 1>(lanes, first),
                _ => self.rows::<L, 1, 4>(lanes, first),
            };
        }
    }
}

impl<F: FnMut(usize, &[f32], ScoreNormaliser)> Attend<'_, F> {
    /// Computes R queries from `first` on, N vectors of keys or channels at a time; returns R.
    #[inline(always)]
    fn rows<L: Lanes, const R: usize, const N: usize>(&mut self, lanes: L, first: usize) -> usize {
        let (queries, scratch) = (&self.queries[first..first + R], &mut *self.scratch);
        grow(&mut scratch.queries, self.dim);
        let side_by_side = &mut scratch.queries[..self.dim];
        transpose_rows(lanes, queries.iter().map(|query| query.channels), side_by_side);
        scale_row(lanes, side_by_side, self.scoring.scale);
        let reach = reach(queries.iter().map(|query| &query.seen));
        let stride = reach.len();
        grow(&mut scratch.weights, R * stride);
        let products = Products { queries: side_by_side, keys: self.keys, blocks: reach.clone() };
        products.write::<L, R, N>(lanes, &mut scratch.weights, stride);

        let mut normalisers = [ScoreNormaliser::default(); R];
        for (r, normaliser) in normalisers.iter_mut().enumerate() {
            let row = &mut scratch.weights[r * stride..][..stride];
            if let Some(cap) = self.scoring.softcap {
                cap_row(lanes, row, cap);
            }
            *normaliser = softmax(lanes, row, within(&queries[r].seen, &reach));
        }

        let width = vectors(self.dim);
        let keys = queries.iter().map(|query| query.seen.end).max().unwrap_or(0) - reach.start * LANES;
        let weights = KeyWeights { rows: scratch.weights.as_flattened(), stride: stride * LANES, keys };
        grow(&mut scratch.out, R * width);
        weights.combine::<L, R, N>(lanes, &self.values[reach.start * LANES * width..], width, &mut scratch.out);
        for (r, normaliser) in normalisers.into_iter().enumerate() {
            scale_row(lanes, &mut scratch.out[r * width..][..width], normaliser.scale);
            (self.put)(first + r, get_row(&scratch.out, r, self.dim), normaliser);
        }
        R
    }
}

/// One row of the backward pass.
pub(crate) struct Gradient {
    /// The keys it saw, by position.
    pub(crate) seen: Range<usize>,
    /// What normalised its scores in the forward pass.
    pub(crate) normaliser: ScoreNormaliser,
}

/// The backward pass of [`Attend`] for one head, whose probabilities it computes again (Dao et al.
/// 2022, arXiv 2205.14135, appendix B).
pub(crate) struct AttendBackward<'a, F> {
    /// Channels per head.
    pub(crate) dim: usize,
    /// How products become scores.
    pub(crate) scoring: Scoring,
    /// Keys, by [`PutTransposed`].
    pub(crate) keys: &'a [Vector],
    /// Keys, by [`PutRows`].
    pub(crate) key_rows: &'a [Vector],
    /// Values, by [`PutTransposed`].
    pub(crate) values: &'a [Vector],
    /// Queries, by [`PutRows`].
    pub(crate) queries: &'a [Vector],
    /// Outputs, by [`PutRows`].
    pub(crate) outs: &'a [Vector],
    /// Gradients of the outputs, by [`PutRows`].
    pub(crate) grads: &'a [Vector],
    /// What else is known of the same rows. Neither end of `seen` decreases from one row to the next.
    pub(crate) rows: &'a [Gradient],
    /// Gradients of the keys, added to; rows up to a multiple of sixteen.
    pub(crate) key_grads: &'a mut [Vector],
    /// Gradients of the values, added to; rows up to a multiple of sixteen.
    pub(crate) value_grads: &'a mut [Vector],
    /// Receives the index of a row and the gradient of its query (dim).
    pub(crate) put: F,
    pub(crate) scratch: &'a mut Scratch,
}

impl<F: FnMut(usize, &[f32])> Kernel for AttendBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        for start in (0..self.rows.len()).step_by(BACKWARD_ROWS) {
            let block = start..self.rows.len().min(start + BACKWARD_ROWS);
            let reach = reach(self.rows[block.clone()].iter().map(|row| &row.seen));
            grow(&mut self.scratch.weights, BACKWARD_ROWS * reach.len());
            grow(&mut self.scratch.slopes, BACKWARD_ROWS * reach.len());
            self.query_gradients(lanes, block.clone(), &reach);
            match L::ACCUMULATORS {
                16.. => self.key_gradients::<L, 8, 2>(lanes, block, &reach),
                4..16 => self.key_gradients::<L, 4, 1>(lanes, block, &reach),
                _ => self.key_gradients::<L, 2, 1>(lanes, block, &reach),
            }
        }
    }
}

impl<F: FnMut(usize, &[f32])> AttendBackward<'_, F> {
    /// Computes the probabilities of a block of rows, the slopes of their scores, and from those the
    /// gradients of the queries.
    #[inline(always)]
    fn query_gradients<L: Lanes>(&mut self, lanes: L, block: Range<usize>, reach: &Range<usize>) {
        let mut first = block.start;
        while first < block.end {
            let left = block.end - first;
            first += match L::ACCUMULATORS {
                16.. if left >= 8 => self.rows::<L, 8, 2>(lanes, first, &block, reach),
                16.. if left >= 4 => self.rows::<L, 4, 4>(lanes, first, &block, reach),
                4..16 if left >= 4 => self.rows::<L, 4, 1>(lanes, first, &block, reach),
                2.. if left >= 2 => self.rows::<L, 2, 1>(lanes, first, &block, reach),
                _ => self.rows::<L, 1, 4>(lanes, first, &block, reach),
            };
        }
    }

    /// [`Self::query_gradients`] for R rows from `first` on; returns R.
    #[inline(always)]
    fn rows<L: Lanes, const R: usize, const N: usize>(
        &mut self,
        lanes: L,
        first: usize,
        block: &Range<usize>,
        whole: &Range<usize>,
    ) -> usize {
        let (rows, scratch) = (&self.rows[first..first + R], &mut *self.scratch);
        let (width, stride) = (vectors(self.dim), whole.len());
        let reach = reach(rows.iter().map(|row| &row.seen));
        let start = (first - block.start) * stride + reach.start - whole.start;
        let (weights, slopes) = (&mut scratch.weights[start..], &mut scratch.slopes[start..]);

        grow(&mut scratch.queries, self.dim);
        let side_by_side = &mut scratch.queries[..self.dim];
        transpose_rows(lanes, (first..first + R).map(|i| get_row(self.queries, i, self.dim)), side_by_side);
        scale_row(lanes, side_by_side, self.scoring.scale);
        let products = Products { queries: side_by_side, keys: self.keys, blocks: reach.clone() };
        products.write::<L, R, N>(lanes, weights, stride);
        transpose_rows(lanes, (first..first + R).map(|i| get_row(self.grads, i, self.dim)), side_by_side);
        let products = Products { queries: side_by_side, keys: self.values, blocks: reach.clone() };
        products.write::<L, R, N>(lanes, slopes, stride);

        for (r, row) in rows.iter().enumerate() {
            let (weights, slopes) = (&mut weights[r * stride..], &mut slopes[r * stride..]);
            let at = (first + r) * width..(first + r + 1) * width;
            let delta = dot(lanes, &self.outs[at.clone()], &self.grads[at]);
            let (weights, slopes) = (&mut weights[..reach.len()], &mut slopes[..reach.len()]);
            if let Some(cap) = self.scoring.softcap {
                cap_row(lanes, weights, cap);
                bend_row(lanes, slopes, delta, weights, cap);
                score_slopes(lanes, weights, slopes, row, 0.0, &reach);
            } else {
                score_slopes(lanes, weights, slopes, row, delta, &reach);
            }
        }

        let keys = rows[R - 1].seen.end - reach.start * LANES;
        let weights = KeyWeights { rows: slopes.as_flattened(), stride: stride * LANES, keys };
        grow(&mut scratch.out, R * width);
        weights.combine::<L, R, N>(lanes, &self.key_rows[reach.start * LANES * width..], width, &mut scratch.out);
        for r in 0..R {
            scale_row(lanes, &mut scratch.out[r * width..][..width], self.scoring.scale);
            (self.put)(first + r, get_row(&scratch.out, r, self.dim));
        }
        R
    }

    /// Adds a block of rows to the gradients of the keys and values they saw, R keys at a time.
    #[inline(always)]
    fn key_gradients<L: Lanes, const R: usize, const N: usize>(
        &mut self,
        lanes: L,
        block: Range<usize>,
        reach: &Range<usize>,
    ) {
        let (width, stride) = (vectors(self.dim), reach.len() * LANES);
        let rows = &self.rows[block.clone()];
        let mut seeing = 0..0;
        for key in (rows[0].seen.start / R * R..rows[rows.len() - 1].seen.end).step_by(R) {
            // Only these rows have weights for any of the R keys. The weights of the other rows are not even set.
            while seeing.end < rows.len() && rows[seeing.end].seen.start < key + R {
                seeing.end += 1;
            }
            while seeing.start < seeing.end && rows[seeing.start].seen.end <= key {
                seeing.start += 1;
            }
            let from = seeing.start * stride + key - reach.start * LANES;
            let at = (block.start + seeing.start) * width;
            let weights = &self.scratch.weights.as_flattened()[from..];
            let grads = Spread { weights, stride, rows: &self.grads[at..], count: seeing.len(), width, scale: 1.0 };
            grads.add::<L, R, N>(lanes, &mut self.value_grads[key * width..]);
            let weights = &self.scratch.slopes.as_flattened()[from..];
            let queries = Spread { weights, rows: &self.queries[at..], scale: self.scoring.scale, ..grads };
            queries.add::<L, R, N>(lanes, &mut self.key_grads[key * width..]);
        }
    }
}

/// Vectors that cover all keys seen by some rows.
#[inline(always)]
fn reach<'a>(seen: impl Iterator<Item = &'a Range<usize>> + Clone) -> Range<usize> {
    let first = seen.clone().map(|seen| seen.start).min().unwrap_or(0);
    let last = seen.map(|seen| seen.end).max().unwrap_or(0);
    first / LANES..vectors(last)
}

/// Positions relative to the first vector of `reach`.
#[inline(always)]
fn within(seen: &Range<usize>, reach: &Range<usize>) -> Range<usize> {
    seen.start - reach.start * LANES..seen.end - reach.start * LANES
}

/// The lanes of vector `v` that lie in `seen`.
#[inline(always)]
fn lanes_in(v: usize, seen: &Range<usize>) -> Range<usize> {
    let at = |position: usize| position.saturating_sub(v * LANES).min(LANES);
    at(seen.start)..at(seen.end)
}

/// Makes room for `len` vectors. They may still hold numbers of earlier rows.
#[inline(always)]
fn grow(buffer: &mut Vec<Vector>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, [0.0; LANES]);
    }
}

#[inline(always)]
fn scale_row<L: Lanes>(lanes: L, row: &mut [Vector], scale: f32) {
    let scale = lanes.splat(scale);
    for vector in row {
        lanes.store(lanes.mul(lanes.load(vector), scale), vector);
    }
}

/// `cap tanh(score / cap)`.
#[inline(always)]
fn cap_row<L: Lanes>(lanes: L, scores: &mut [Vector], cap: f32) {
    let cap = lanes.splat(cap);
    for scores in scores {
        lanes.store(lanes.softcap(lanes.load(scores), cap), scores);
    }
}

/// Takes `delta` off the gradients of the probabilities, and multiplies them by the slopes of their capped scores,
/// `1 - (capped / cap)^2`: what [`score_slopes`] then makes of them, with a delta of 0, are slopes of scores without
/// their cap.
#[inline(always)]
fn bend_row<L: Lanes>(lanes: L, grads: &mut [Vector], delta: f32, capped: &[Vector], cap: f32) {
    let (delta, cap) = (lanes.splat(delta), lanes.splat(cap));
    for (grads, capped) in grads.iter_mut().zip(capped) {
        let slope = lanes.softcap_slope(lanes.load(capped), cap);
        lanes.store(lanes.mul(lanes.sub(lanes.load(grads), delta), slope), grads);
    }
}

#[inline(always)]
fn dot<L: Lanes>(lanes: L, a: &[Vector], b: &[Vector]) -> f32 {
    let mut sum = lanes.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = lanes.mul_add(lanes.load(a), lanes.load(b), sum);
    }
    lanes.sum(sum)
}

/// Turns scores into exponentials, zero outside `seen`, and returns what normalises them.
#[inline(always)]
fn softmax<L: Lanes>(lanes: L, row: &mut [Vector], seen: Range<usize>) -> ScoreNormaliser {
    let (first, last) = (seen.start / LANES, vectors(seen.end));
    row[..first].fill([0.0; LANES]);
    row[last..].fill([0.0; LANES]);
    let mut max = lanes.splat(f32::NEG_INFINITY);
    for (v, scores) in row[..last].iter().enumerate().skip(first) {
        let scores = lanes.mask(lanes_in(v, &seen), lanes.load(scores), f32::NEG_INFINITY);
        max = lanes.max(scores, max);
    }
    let max = lanes.greatest(max);
    let mut sum = lanes.splat(0.0);
    for (v, scores) in row[..last].iter_mut().enumerate().skip(first) {
        let weights = lanes.exp(lanes.sub(lanes.load(scores), lanes.splat(max)));
        let weights = lanes.mask(lanes_in(v, &seen), weights, 0.0);
        lanes.store(weights, scores);
        sum = lanes.add(sum, weights);
    }
    ScoreNormaliser { max, scale: 1.0 / lanes.sum(sum) }
}

/// Turns scores into probabilities, and the gradients of the probabilities into those of the
/// scores, `p (dp - delta)`; both zero outside the row's reach.
#[inline(always)]
fn score_slopes<L: Lanes>(
    lanes: L,
    weights: &mut [Vector],
    slopes: &mut [Vector],
    row: &Gradient,
    delta: f32,
    reach: &Range<usize>,
) {
    let seen = within(&row.seen, reach);
    let (max, scale, delta) = (lanes.splat(row.normaliser.max), lanes.splat(row.normaliser.scale), lanes.splat(delta));
    for (v, (weights, slopes)) in weights.iter_mut().zip(slopes).enumerate() {
        let inside = lanes_in(v, &seen);
        let p = lanes.mul(lanes.exp(lanes.sub(lanes.load(weights), max)), scale);
        let slope = lanes.mul(p, lanes.sub(lanes.load(slopes), delta));
        lanes.store(lanes.mask(inside.clone(), p, 0.0), weights);
        lanes.store(lanes.mask(inside, slope, 0.0), slopes);
    }
}

/// Products of a few queries, side by side, with blocks of transposed keys.
struct Products<'a> {
    queries: &'a [Vector],
    keys: &'a [Vector],
    blocks: Range<usize>,
}

impl Products<'_> {
    /// Writes the products of query r with block b to `to[r * stride + b]`, blocks from 0.
    #[inline(always)]
    fn write<L: Lanes, const R: usize, const N: usize>(&self, lanes: L, to: &mut [Vector], stride: usize) {
        let mut block = self.blocks.start;
        while block + N <= self.blocks.end {
            self.write_blocks::<L, R, N>(lanes, block, to, stride);
            block += N;
        }
        for block in block..self.blocks.end {
            self.write_blocks::<L, R, 1>(lanes, block, to, stride);
        }
    }

    #[inline(always)]
    fn write_blocks<L: Lanes, const R: usize, const N: usize>(
        &self,
        lanes: L,
        block: usize,
        to: &mut [Vector],
        stride: usize,
    ) {
        let dim = self.queries.len();
        let keys = &self.keys[block * dim..][..N * dim];
        let mut sums = [[lanes.splat(0.0); N]; R];
        for (channel, queries) in self.queries.iter().enumerate() {
            let mut key = [lanes.splat(0.0); N];
            for n in 0..N {
                key[n] = lanes.load(&keys[n * dim + channel]);
            }
            for r in 0..R {
                let query = lanes.splat(queries[r]);
                for n in 0..N {
                    sums[r][n] = lanes.mul_add(query, key[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                lanes.store(sums[r][n], &mut to[r * stride + block - self.blocks.start + n]);
            }
        }
    }
}

/// Rows of weights, one per key, with which rows of values are combined.
struct KeyWeights<'a> {
    rows: &'a [f32],
    stride: usize,
    keys: usize,
}

impl KeyWeights<'_> {
    /// Writes the weighted sum of `values`, rows of `width` vectors, of each of R rows to `to`.
    #[inline(always)]
    fn combine<L: Lanes, const R: usize, const N: usize>(
        &self,
        lanes: L,
        values: &[Vector],
        width: usize,
        to: &mut [Vector],
    ) {
        let mut at = 0;
        while at + N <= width {
            self.combine_at::<L, R, N>(lanes, values, width, at, to);
            at += N;
        }
        for at in at..width {
            self.combine_at::<L, R, 1>(lanes, values, width, at, to);
        }
    }

    #[inline(always)]
    fn combine_at<L: Lanes, const R: usize, const N: usize>(
        &self,
        lanes: L,
        values: &[Vector],
        width: usize,
        at: usize,
        to: &mut [Vector],
    ) {
        let mut rows = [&self.rows[..self.keys]; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &self.rows[r * self.stride..][..self.keys];
        }
        let mut sums = [[lanes.splat(0.0); N]; R];
        for (key, value) in values.chunks_exact(width).take(self.keys).enumerate() {
            let mut channels = [lanes.splat(0.0); N];
            for n in 0..N {
                channels[n] = lanes.load(&value[at + n]);
            }
            for r in 0..R {
                let weight = lanes.splat(rows[r][key]);
                for n in 0..N {
                    sums[r][n] = lanes.mul_add(weight, channels[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                lanes.store(sums[r][n], &mut to[r * width + at + n]);
            }
        }
    }
}

/// Rows that are spread over keys by their weights: the transpose of [`KeyWeights`].
struct Spread<'a> {
    weights: &'a [f32],
    stride: usize,
    rows: &'a [Vector],
    count: usize,
    width: usize,
    scale: f32,
}

impl Spread<'_> {
    /// Adds to each of R keys' sums the rows weighted for that key, times the scale.
    #[inline(always)]
    fn add<L: Lanes, const R: usize, const N: usize>(&self, lanes: L, sums: &mut [Vector]) {
        let mut at = 0;
        while at + N <= self.width {
            self.add_at::<L, R, N>(lanes, at, sums);
            at += N;
        }
        for at in at..self.width {
            self.add_at::<L, R, 1>(lanes, at, sums);
        }
    }

    #[inline(always)]
    fn add_at<L: Lanes, const R: usize, const N: usize>(&self, lanes: L, at: usize, to: &mut [Vector]) {
        let mut sums = [[lanes.splat(0.0); N]; R];
        for (i, row) in self.rows.chunks_exact(self.width).take(self.count).enumerate() {
            let mut channels = [lanes.splat(0.0); N];
            for n in 0..N {
                channels[n] = lanes.load(&row[at + n]);
            }
            let weights = &self.weights[i * self.stride..][..R];
            for r in 0..R {
                let weight = lanes.splat(weights[r]);
                for n in 0..N {
                    sums[r][n] = lanes.mul_add(weight, channels[n], sums[r][n]);
                }
            }
        }
        let scale = lanes.splat(self.scale);
        for r in 0..R {
            for n in 0..N {
                let to = &mut to[r * self.width + at + n];
                lanes.store(lanes.mul_add(sums[r][n], scale, lanes.load(to)), to);
            }
        }
    }
}
