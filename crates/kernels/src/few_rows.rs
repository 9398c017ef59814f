//! `x wᵀ` for few rows, where reading the weights is all the work: decoding.
//!
//! The `gemm` crate repacks its operands at every call, which pays off over many rows and not over
//! few. Here every weight is read once, where it lies: sixteen rows of `w` by sixteen
//! channels are turned in registers, so that one vector holds one channel of sixteen results, and then
//! serve all rows of `x`, which lie side by side for that: at a distance of a multiple of 4 KiB they would
//! push each other out of the first-level cache. Each result is one chain of fused multiply-adds in the order of the
//! channels, cut into panels like the products of [`crate::gemm`], and so has the same bits.

use crate::{
    norm::load,
    shared::Shared,
    simd::{Kernel, LANES, Lanes, Level, Vector},
};
use rayon::prelude::*;

/// Most rows that come here: a batch of decoding, a short prompt. At 128 rows this was as fast as the `gemm`
/// crate on matrices of 256 to 3,072 channels, at 64 from a fifth to five times faster; at 256 it was slower.
pub(crate) const MOST_ROWS: usize = 128;

/// Rows whose sums stand at a time.
const ROWS: usize = 64;

/// Multiply-adds below which a task is not worth handing to another thread.
const TASK: usize = 1 << 18;

/// `x wᵀ` for `x (n, k)` and `w (out, k)`: `(n, out)`, with n at most [`MOST_ROWS`]. `depth` is where
/// sums are cut, a multiple of sixteen.
pub(crate) fn product(x: &[f32], w: &[f32], n: usize, k: usize, out: usize, depth: usize) -> Vec<f32> {
    assert!(depth.is_multiple_of(LANES), "sums are cut between blocks of sixteen channels");
    let mut y = vec![0.0; n * out];
    if n == 0 {
        return y;
    }
    let parts: Vec<Rows> = x.chunks(ROWS * k).map(|x| Rows::of(x, k)).collect();
    let shared = Shared::new(&mut y);
    let tasks = w.par_chunks(LANES * k).enumerate().with_min_len((TASK / (n * k * LANES).max(1)).max(1));
    tasks.for_each(|(block, w)| {
        for (part, x) in parts.iter().enumerate() {
            let (mut sums, width) = ([[0.0; LANES]; ROWS], w.len() / k);
            Level::best().run(Block { x, w, k, depth, sums: &mut sums });
            for (row, sums) in (part * ROWS..).zip(&sums[..x.n]) {
                // SAFETY: these columns of every row belong to this block alone.
                #[allow(unsafe_code)]
                let y = unsafe { shared.slice(row * out + block * LANES, width) };
                y.copy_from_slice(&sums[..width]);
            }
        }
    });
    y
}

/// Some rows of `x`, at most [`ROWS`].
struct Rows {
    n: usize,
    /// Sixteen channels of every row, then the next sixteen: `(k / 16, n, 16)`, rounded up and filled with
    /// zeros.
    lines: Vec<Vector>,
}

impl Rows {
    fn of(x: &[f32], k: usize) -> Rows {
        let n = x.len() / k;
        let mut lines = vec![[0.0; LANES]; n * k.div_ceil(LANES)];
        for (row, x) in x.chunks_exact(k).enumerate() {
            for (block, x) in x.chunks(LANES).enumerate() {
                lines[block * n + row][..x.len()].copy_from_slice(x);
            }
        }
        Rows { n, lines }
    }
}

/// Sixteen columns of the result, or fewer at its edge.
struct Block<'a> {
    x: &'a Rows,
    /// Their rows of weights.
    w: &'a [f32],
    k: usize,
    depth: usize,
    /// One vector for each row of `x`.
    sums: &'a mut [Vector; ROWS],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Block { x: &Rows { n, ref lines }, w, k, depth, sums } = self;
        for start in (0..k).step_by(depth) {
            let end = k.min(start + depth);
            let mut panel = [[0.0; LANES]; ROWS];
            for at in (start..end).step_by(LANES) {
                let channels = turned(lanes, w, k, at, end);
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
            for (sum, panel) in sums[..n].iter_mut().zip(&panel) {
                let total = if start == 0 { lanes.load(panel) } else { lanes.add(lanes.load(sum), lanes.load(panel)) };
                lanes.store(total, sum);
            }
        }
    }
}

/// Channels `at..end`, sixteen at most, of all rows of `w`: one vector per channel.
#[inline(always)]
pub(crate) fn turned<L: Lanes>(lanes: L, w: &[f32], k: usize, at: usize, end: usize) -> [Vector; LANES] {
    let mut rows = [lanes.splat(0.0); LANES];
    // Sixteen rows are read side by side, which no processor foresees. The next sixteen are asked for
    // meanwhile, in the order in which they lie.
    let ahead = w.as_ptr().wrapping_add(LANES * (k + at));
    for (i, (vector, row)) in rows.iter_mut().zip(w.chunks_exact(k)).enumerate() {
        lanes.prefetch(ahead.wrapping_add(LANES * i));
        *vector = load(lanes, &row[at..end.min(at + LANES)], 0, 0.0);
    }
    let mut channels = [[0.0; LANES]; LANES];
    for (channel, vector) in channels.iter_mut().zip(lanes.transpose(rows)) {
        lanes.store(vector, channel);
    }
    channels
}

/// Adds the products of `R` rows of these channels of `x`, from `row` on.
#[inline(always)]
fn add<L: Lanes, const R: usize>(lanes: L, x: &[Vector], channels: &[Vector], row: usize, panel: &mut [Vector; ROWS]) {
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
