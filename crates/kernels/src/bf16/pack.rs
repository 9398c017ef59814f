//! Rounds matrices of `f32` to bf16 and lays them out in pairs along the depth of a product.

use super::{Kind, Unit};
use crate::simd::{Kernel, Lanes, Level, Vector};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Pairs of a line.
pub(super) const LANES: usize = crate::simd::LANES;

/// Channels of a line.
const CHANNELS: usize = 2 * LANES;

/// Sixteen pairs of bf16, the earlier of a pair in the lower half. They are carried as the bits of
/// `f32`, which is what the transposition of [`crate::simd`] moves.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) Vector);

const ZERO: Line = Line([0.0; LANES]);

/// The left factor: row-major, every row in whole lines, filled up with zeros.
pub(crate) struct Left {
    lines: Vec<Line>,
    rows: usize,
    depth: usize,
}

/// The right factor: blocks of sixteen columns, a line for each pair of the depth, filled up with zeros.
pub(crate) struct Right {
    lines: Vec<Line>,
    columns: usize,
    depth: usize,
}

impl std::fmt::Debug for Right {
    /// Without its numbers, which are as many as the matrix has.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Right({} x {})", self.depth, self.columns)
    }
}

impl Left {
    /// The rows of `x (n, depth)`.
    pub(crate) fn rows_of(x: &[f32], n: usize, depth: usize) -> Left {
        Left::rows_by(Unit::best(), x, n, depth)
    }

    /// [`Left::rows_of`] by this unit.
    pub(super) fn rows_by(unit: Unit, x: &[f32], n: usize, depth: usize) -> Left {
        Left::make(n, depth, |first, row_lines, out| {
            for (row, out) in (first..).zip(out.chunks_mut(row_lines)) {
                unit.round(if row < n { &x[row * depth..(row + 1) * depth] } else { &[] }, out);
            }
        })
    }

    /// The columns of `x (depth, n)`: the transpose of `x`.
    pub(crate) fn columns_of(x: &[f32], depth: usize, n: usize) -> Left {
        let unit = Unit::best();
        Left::make(n, depth, |first, row_lines, out| {
            for at in 0..row_lines {
                let mut lines = [MaybeUninit::new(ZERO); LANES];
                unit.interleave(x, n, CHANNELS * at, first, &mut lines);
                for (row, line) in transposed(&lines).into_iter().enumerate() {
                    out[row * row_lines + at].write(line);
                }
            }
        })
    }

    /// `f(first row, lines of a row, lines)` writes all lines of sixteen rows.
    fn make(rows: usize, depth: usize, f: impl Fn(usize, usize, &mut [MaybeUninit<Line>]) + Sync) -> Left {
        let row_lines = row_lines(depth);
        let lines = filled(rows.next_multiple_of(LANES) * row_lines, LANES * row_lines, |block, out| {
            f(block * LANES, row_lines, out)
        });
        Left { lines, rows, depth }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Pairs of the depth, whole lines of them.
    pub(super) fn pairs(&self) -> usize {
        pairs(self.depth)
    }

    /// Lines from one row to the next.
    pub(super) fn stride(&self) -> usize {
        row_lines(self.depth)
    }

    /// All lines of the row and those after it.
    pub(super) fn rows_from(&self, row: usize) -> &[Line] {
        &self.lines[row * self.stride()..]
    }
}

impl Right {
    /// The rows of `w (n, depth)` as columns: `x wᵀ` is a product with this.
    pub(crate) fn rows_of(w: &[f32], n: usize, depth: usize) -> Right {
        Right::rows_by(Unit::best(), w, n, depth)
    }

    /// [`Right::rows_of`] by this unit.
    pub(super) fn rows_by(unit: Unit, w: &[f32], n: usize, depth: usize) -> Right {
        Right::make(n, depth, |first, out| {
            for (at, out) in out.chunks_mut(LANES).enumerate() {
                let mut lines = [MaybeUninit::new(ZERO); LANES];
                for (row, line) in (first..n).zip(&mut lines) {
                    let whole = &w[row * depth..(row + 1) * depth];
                    unit.round(whole.get(CHANNELS * at..).unwrap_or_default(), std::slice::from_mut(line));
                }
                out.iter_mut().zip(transposed(&lines)).for_each(|(out, line)| _ = out.write(line));
            }
        })
    }

    /// The columns of `x (depth, n)`: `x` itself.
    pub(crate) fn columns_of(x: &[f32], depth: usize, n: usize) -> Right {
        let unit = Unit::best();
        Right::make(n, depth, |first, out| unit.interleave(x, n, 0, first, out))
    }

    /// `f(first column, lines)` writes all lines of a block of columns.
    fn make(columns: usize, depth: usize, f: impl Fn(usize, &mut [MaybeUninit<Line>]) + Sync) -> Right {
        let lines = filled(columns.div_ceil(LANES) * pairs(depth), pairs(depth), |block, out| f(block * LANES, out));
        Right { lines, columns, depth }
    }

    /// Number `row` of the rows that [`Right::rows_of`] was made of, as rounded.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let halves = move |line: &Line| {
            let bits = line.0[row % LANES].to_bits();
            [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
        };
        self.block(row / LANES).iter().flat_map(halves).take(self.depth)
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Blocks of columns.
    pub(super) fn blocks(&self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// The lines of a block, one for each pair of the depth.
    pub(super) fn block(&self, block: usize) -> &[Line] {
        let pairs = pairs(self.depth);
        &self.lines[block * pairs..][..pairs]
    }
}

fn pairs(depth: usize) -> usize {
    depth.div_ceil(CHANNELS) * LANES
}

/// An odd number, so that the rows of a tile do not fall on each other in a cache.
fn row_lines(depth: usize) -> usize {
    depth.div_ceil(CHANNELS) | 1
}

/// `len` lines, of which `f(i, lines)` writes chunk i of `chunk`, in parallel.
fn filled(len: usize, chunk: usize, f: impl Fn(usize, &mut [MaybeUninit<Line>]) + Sync) -> Vec<Line> {
    /// Lines that make a task.
    const TASK: usize = 1 << 10;
    let mut lines = Vec::with_capacity(len);
    let chunks = lines.spare_capacity_mut()[..len].par_chunks_mut(chunk.max(1)).enumerate();
    chunks.with_min_len(TASK / chunk.max(1)).for_each(|(i, lines)| f(i, lines));
    // SAFETY: every chunk has been written whole, which is what both callers' closures are for.
    #[allow(unsafe_code)]
    unsafe {
        lines.set_len(len)
    };
    lines
}

/// Sixteen lines of sixteen pairs, turned.
fn transposed(lines: &[MaybeUninit<Line>; LANES]) -> [Line; LANES] {
    // SAFETY: both callers begin with lines of zeros.
    #[allow(unsafe_code)]
    let lines = lines.each_ref().map(|line| unsafe { line.assume_init_ref() });
    let mut turned = [ZERO; LANES];
    Level::best().run(Transpose { lines, turned: &mut turned });
    turned
}

struct Transpose<'a> {
    lines: [&'a Line; LANES],
    turned: &'a mut [Line; LANES],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = std::array::from_fn(|i| lanes.load(&self.lines[i].0));
        lanes.transpose(rows).into_iter().zip(self.turned).for_each(|(v, line)| lanes.store(v, &mut line.0));
    }
}

impl Unit {
    /// Writes a row as lines, zeros after its end.
    fn round(self, x: &[f32], out: &mut [MaybeUninit<Line>]) {
        match self.0 {
            Kind::Portable => {
                let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
                for (i, line) in out.iter_mut().enumerate() {
                    let first = |j: usize| CHANNELS * i + 2 * j;
                    line.write(Line(std::array::from_fn(|j| pair(at(first(j)), at(first(j) + 1)))));
                }
            }
            // SAFETY: the unit is the proof of the instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            _ => unsafe { x86::round(x, out) },
        }
    }

    /// Writes rows of `x (_, n)` two by two as lines, from row `row` on and sixteen columns from `first` on;
    /// zero beyond the edges.
    fn interleave(self, x: &[f32], n: usize, row: usize, first: usize, out: &mut [MaybeUninit<Line>]) {
        match self.0 {
            Kind::Portable => {
                for (i, line) in out.iter_mut().enumerate() {
                    let [even, odd] = [0, 1].map(|odd| part(x, n, row + 2 * i + odd, first));
                    let at = |x: &[f32], j: usize| x.get(j).copied().unwrap_or(0.0);
                    line.write(Line(std::array::from_fn(|j| pair(at(even, j), at(odd, j)))));
                }
            }
            // SAFETY: the unit is the proof of the instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            _ => unsafe { x86::interleave(x, n, row, first, out) },
        }
    }
}

/// Sixteen columns, from `first` on, of a row of `x (_, n)`, or those that exist.
#[inline(always)]
fn part(x: &[f32], n: usize, row: usize, first: usize) -> &[f32] {
    let end = n.min(first + LANES);
    x.get(row * n + first..row * n + end).unwrap_or_default()
}

/// A pair in one word.
fn pair(even: f32, odd: f32) -> f32 {
    f32::from_bits(rounded(even) | rounded(odd) << 16)
}

/// The bits of the nearest bf16, of the even one of two; denormals become zero, as the instructions have it.
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    match x.classify() {
        std::num::FpCategory::Nan => bits >> 16 | 0x40,
        std::num::FpCategory::Subnormal => bits >> 16 & 0x8000,
        _ => (bits + 0x7fff + (bits >> 16 & 1)) >> 16,
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{CHANNELS, LANES, Line, part};
    use std::{arch::x86_64::*, mem::MaybeUninit};

    /// See [`super::Unit::round`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn round(x: &[f32], out: &mut [MaybeUninit<Line>]) {
        for (i, line) in out.iter_mut().enumerate() {
            let x = x.get(CHANNELS * i..).unwrap_or_default();
            let halves = _mm512_cvtne2ps_pbh(some(x.get(LANES..).unwrap_or_default()), some(x));
            write(line, halves);
        }
    }

    /// See [`super::Unit::interleave`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn interleave(x: &[f32], n: usize, row: usize, first: usize, out: &mut [MaybeUninit<Line>]) {
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i / 2 + i % 2 * 16) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: 32 indices are 64 bytes.
        let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
        for (i, line) in out.iter_mut().enumerate() {
            let even = some(part(x, n, row + 2 * i, first));
            let odd = some(part(x, n, row + 2 * i + 1, first));
            let both = _mm512_cvtne2ps_pbh(odd, even);
            // SAFETY: both types are 32 numbers of 16 bits.
            let pairs = unsafe { _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(both)) };
            // SAFETY: as above.
            write(line, unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) });
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn write(line: &mut MaybeUninit<Line>, halves: __m512bh) {
        // SAFETY: a line is 64 aligned bytes, and so is a vector of 32 bf16.
        unsafe { _mm512_store_ps(line.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512>(halves)) };
    }

    /// The first sixteen of `x`, or all and then zeros.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn some(x: &[f32]) -> __m512 {
        let mask = if x.len() >= LANES { 0xffff } else { (1u16 << x.len()) - 1 };
        // SAFETY: only the masked numbers are read, and they lie inside `x`.
        unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
    }
}
