//! `x wᵀ` for few rows, where reading the weights is most of the work: decoding.
//!
//! The `gemm` crate repacks its operands at every call, which pays off over many rows and not over
//! few. Here every weight is read once, where it lies, in one of two ways:
//!
//! - up to eight rows of `x`: sixteen rows of `w` by sixteen channels are transposed in registers, so that one vector
//!   holds one channel of sixteen results;
//! - more of them: the rows of `x` are transposed, once, so that one vector holds one channel of
//!   sixteen rows, and each weight is multiplied with it as it is read.
//!
//! Either way a result is one chain of fused multiply-adds in the order of the channels, cut into panels
//! like the products of [`crate::gemm`], and so has the same bits.

use crate::{
    attend::PutTransposed,
    gemm::made,
    matrix::Matrix,
    norm::load,
    op,
    simd::{Kernel, LANES, Lanes, Level, Vector},
};
use rayon::prelude::*;

/// Most rows that come here: a batch of decoding, a short prompt. At 128 rows this was as fast as the `gemm`
/// crate on matrices of 256 to 3,072 channels, at 64 from a fifth to five times faster; at 256 it was slower.
pub(crate) const MOST_ROWS: usize = 128;

/// Most rows of `x` for which weights are transposed: with more, transposing `x` is less work.
const MOST_FOR_WEIGHTS: usize = 8;

/// Multiply-adds below which a task is not worth handing to another thread.
const TASK: usize = 1 << 18;

/// `x wᵀ + b` for `x (n, k)` and `w (out, k)`: `(n, out)`, with n at most [`MOST_ROWS`]. A row begins `stride` after
/// the one before, with zeros between them. `depth` is where sums are cut, a multiple of sixteen.
pub(crate) fn product(x: &[f32], w: Matrix, b: Option<&[f32]>, stride: usize, depth: usize) -> Vec<f32> {
    assert!(depth.is_multiple_of(LANES), "sums are cut between blocks of sixteen channels");
    let Matrix { rows: out, columns: k, .. } = w;
    let n = x.len() / k;
    let parts: Vec<Rows> = x.chunks(4 * LANES * k).map(|x| Rows::of(x, k)).collect();
    let write = |y: *mut f32| {
        let y = Target(y);
        let blocks = w.elements.par_chunks(LANES * k).enumerate();
        blocks.with_min_len((TASK / (n * k * LANES).max(1)).max(1)).for_each(|(block, w)| {
            let (mut results, width) = ([[0.0; LANES]; 4 * LANES], w.len() / k);
            let b = b.map(|b| &b[block * LANES..][..width]);
            for (part, x) in parts.iter().enumerate() {
                let n = x.multiply(w, k, depth, &mut results);
                for (row, results) in (part * 4 * LANES..).zip(&mut results[..n]) {
                    if let Some(b) = b {
                        op::add(&mut results[..width], b);
                    }
                    // SAFETY: these columns of every row belong to this block alone.
                    #[allow(unsafe_code)]
                    unsafe {
                        y.write(row * stride + block * LANES, &results[..width])
                    };
                }
            }
        });
    };
    // SAFETY: the blocks are all columns, and each is written in every row.
    #[allow(unsafe_code)]
    unsafe {
        made(n, out, stride, write)
    }
}

/// Memory for results, not initialised yet.
struct Target(*mut f32);

// SAFETY: it is only written, and the callers of `write` promise that no two threads meet.
#[allow(unsafe_code)]
unsafe impl Sync for Target {}

impl Target {
    /// # Safety
    ///
    /// From `at` on there is room for as many results, and nobody else accesses it.
    #[allow(unsafe_code)]
    unsafe fn write(&self, at: usize, results: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(at).copy_from_nonoverlapping(results.as_ptr(), results.len()) };
    }
}

/// Some rows of `x`, at most 64.
enum Rows {
    /// Sixteen channels of each of `n` rows, then the next sixteen: `(k / 16, n, 16)`, rounded up and filled with
    /// zeros. (At a distance of a multiple of 4 KiB rows would push each other out of the first-level cache.)
    AsTheyAre { n: usize, lines: Vec<Vector> },
    /// Sixteen rows, one channel after the other, then the next sixteen: `(n / 16, k, 16)`, rounded up and filled
    /// with zeros.
    Transposed { n: usize, lines: Vec<Vector> },
}

impl Rows {
    fn of(x: &[f32], k: usize) -> Rows {
        let n = x.len() / k;
        if n > MOST_FOR_WEIGHTS {
            let mut lines = vec![[0.0; LANES]; n.div_ceil(LANES) * k];
            let row = |i: usize| &x[i * k..(i + 1) * k];
            Level::best().run(PutTransposed { run: &mut lines, first: 0, count: n, row });
            return Rows::Transposed { n, lines };
        }
        let mut lines = vec![[0.0; LANES]; n * k.div_ceil(LANES)];
        for (row, x) in x.chunks_exact(k).enumerate() {
            for (block, x) in x.chunks(LANES).enumerate() {
                lines[block * n + row][..x.len()].copy_from_slice(x);
            }
        }
        Rows::AsTheyAre { n, lines }
    }

    /// Products with up to sixteen rows of `w`: a line of results for each of these rows, whose number is returned.
    fn multiply(&self, w: &[f32], k: usize, depth: usize, results: &mut [Vector; 4 * LANES]) -> usize {
        let level = Level::best();
        match self {
            Rows::AsTheyAre { n, lines } => level.run(WeightsTransposed { n: *n, lines, w, k, depth, results }),
            Rows::Transposed { n, lines } => match n.div_ceil(LANES) {
                1 => level.run(RowsTransposed::<1> { lines, w, k, depth, results }),
                2 => level.run(RowsTransposed::<2> { lines, w, k, depth, results }),
                3 => level.run(RowsTransposed::<3> { lines, w, k, depth, results }),
                _ => level.run(RowsTransposed::<4> { lines, w, k, depth, results }),
            },
        }
        match self {
            Rows::AsTheyAre { n, .. } | Rows::Transposed { n, .. } => *n,
        }
    }
}

/// The product with [`Rows::AsTheyAre`], which transposes the weights.
struct WeightsTransposed<'a> {
    n: usize,
    lines: &'a [Vector],
    w: &'a [f32],
    k: usize,
    depth: usize,
    results: &'a mut [Vector],
}

impl Kernel for WeightsTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let WeightsTransposed { n, lines, w, k, depth, results } = self;
        for start in (0..k).step_by(depth) {
            let end = k.min(start + depth);
            let mut panel = [[0.0; LANES]; MOST_FOR_WEIGHTS];
            for at in (start..end).step_by(LANES) {
                let channels = transposed_channels(lanes, w, k, at, end);
                let channels = &channels[..LANES.min(end - at)];
                let x = &lines[at / LANES * n..][..n];
                let mut row = 0;
                // Eight chains of additions at a time hide how long each addition takes.
                while row + 8 <= n {
                    add::<L, 8>(lanes, x, channels, row, &mut panel);
                    row += 8;
                }
                while row + 2 <= n {
                    add::<L, 2>(lanes, x, channels, row, &mut panel);
                    row += 2;
                }
                if row < n {
                    add::<L, 1>(lanes, x, channels, row, &mut panel);
                }
            }
            for (sum, panel) in results[..n].iter_mut().zip(&panel) {
                let total = if start == 0 { lanes.load(panel) } else { lanes.add(lanes.load(sum), lanes.load(panel)) };
                lanes.store(total, sum);
            }
        }
    }
}

/// Channels `at..end`, sixteen at most, of all rows of `w`: one vector per channel.
#[inline(always)]
pub(crate) fn transposed_channels<L: Lanes>(lanes: L, w: &[f32], k: usize, at: usize, end: usize) -> [Vector; LANES] {
    let mut rows = [lanes.splat(0.0); LANES];
    for (vector, w) in rows.iter_mut().zip(w.chunks_exact(k)) {
        lanes.prefetch(ahead(w, k, at, LANES));
        *vector = load(lanes, &w[at..end.min(at + LANES)], 0, 0.0);
    }
    let mut channels = [[0.0; LANES]; LANES];
    for (channel, vector) in channels.iter_mut().zip(lanes.transpose(rows)) {
        lanes.store(vector, channel);
    }
    channels
}

/// Adds the products of `R` rows of these channels of `x`, from `row` on.
#[inline(always)]
fn add<L: Lanes, const R: usize>(
    lanes: L,
    x: &[Vector],
    channels: &[Vector],
    row: usize,
    panel: &mut [Vector; MOST_FOR_WEIGHTS],
) {
    let mut sums: [L::V; R] = std::array::from_fn(|r| lanes.load(&panel[row + r]));
    let x: &[Vector; R] = x[row..].first_chunk().expect("the caller counts rows");
    for (j, channel) in channels.iter().enumerate() {
        let channel = lanes.load(channel);
        for r in 0..R {
            sums[r] = lanes.mul_add(lanes.splat(x[r][j]), channel, sums[r]);
        }
    }
    for r in 0..R {
        lanes.store(sums[r], &mut panel[row + r]);
    }
}

/// The product with [`Rows::Transposed`], `V` vectors of rows.
struct RowsTransposed<'a, const V: usize> {
    lines: &'a [Vector],
    w: &'a [f32],
    k: usize,
    depth: usize,
    results: &'a mut [Vector],
}

impl<const V: usize> Kernel for RowsTransposed<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let mut sums = [[[0.0; LANES]; LANES]; V];
        match (L::ACCUMULATORS, V) {
            (16.., 1) => self.sums::<L, 16>(lanes, &mut sums),
            (16.., 2 | 3) => self.sums::<L, 8>(lanes, &mut sums),
            (16.., _) | (_, 1) => self.sums::<L, 4>(lanes, &mut sums),
            _ => self.sums::<L, 2>(lanes, &mut sums),
        }
        for (sums, results) in sums.iter().zip(self.results.as_chunks_mut::<LANES>().0) {
            let of_rows = lanes.transpose(std::array::from_fn(|i| lanes.load(&sums[i])));
            of_rows.into_iter().zip(results).for_each(|(v, result)| lanes.store(v, result));
        }
    }
}

impl<const V: usize> RowsTransposed<'_, V> {
    /// One vector of rows of `x` for each row of `w`, `R` of these at a time.
    #[inline(always)]
    fn sums<L: Lanes, const R: usize>(&mut self, lanes: L, sums: &mut [[Vector; LANES]; V]) {
        let rows = self.w.len() / self.k;
        let mut first = 0;
        while first + R <= rows {
            self.some::<L, R>(lanes, first, sums);
            first += R;
        }
        for row in first..rows {
            self.some::<L, 1>(lanes, row, sums);
        }
    }

    #[inline(always)]
    fn some<L: Lanes, const R: usize>(&mut self, lanes: L, first: usize, sums: &mut [[Vector; LANES]; V]) {
        let (k, mut rows, mut x) = (self.k, [&self.w[..0]; R], [&self.lines[..0]; V]);
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &self.w[(first + r) * k..][..k];
        }
        for (v, x) in x.iter_mut().enumerate() {
            *x = &self.lines[v * k..][..k];
        }
        for start in (0..k).step_by(self.depth) {
            let end = k.min(start + self.depth);
            let mut panel = [[lanes.splat(0.0); V]; R];
            for at in (start..end).step_by(LANES) {
                for row in rows {
                    lanes.prefetch(ahead(row, k, at, R));
                }
                // Two loops that do the same, because the compiler unrolls the one whose length it knows.
                if at + LANES <= end {
                    for channel in at..at + LANES {
                        multiply(lanes, &rows, &x, channel, &mut panel);
                    }
                } else {
                    for channel in at..end {
                        multiply(lanes, &rows, &x, channel, &mut panel);
                    }
                }
            }
            for (r, panel) in panel.into_iter().enumerate() {
                for (sums, panel) in sums.iter_mut().zip(panel) {
                    let sum = &mut sums[first + r];
                    lanes.store(if start == 0 { panel } else { lanes.add(lanes.load(sum), panel) }, sum);
                }
            }
        }
    }
}

/// Adds the products of one channel of `R` rows of `w` with `V` vectors of rows of `x`.
#[inline(always)]
fn multiply<L: Lanes, const R: usize, const V: usize>(
    lanes: L,
    w: &[&[f32]; R],
    x: &[&[Vector]; V],
    channel: usize,
    panel: &mut [[L::V; V]; R],
) {
    let mut vectors = [lanes.splat(0.0); V];
    for v in 0..V {
        vectors[v] = lanes.load(&x[v][channel]);
    }
    for r in 0..R {
        let w = lanes.splat(w[r][channel]);
        for v in 0..V {
            panel[r][v] = lanes.mul_add(w, vectors[v], panel[r][v]);
        }
    }
}

/// The address to prefetch while channel `at` of a row is worked on. It lies further along the same row, so that every
/// row stays a stream that the processor foresees, or past the row's end in the row that comes `rows` later.
#[inline(always)]
fn ahead(row: &[f32], k: usize, at: usize, rows: usize) -> *const f32 {
    /// Channels: six lines. From four to twelve were as fast.
    const AHEAD: usize = 96;
    let at = at + AHEAD;
    row.as_ptr().wrapping_add(if at < k { at } else { rows * k + at - k })
}
