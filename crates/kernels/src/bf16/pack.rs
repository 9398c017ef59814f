//! Rounds matrices of `f32` to bf16 and lays them out in pairs along the depth of a product.

use super::{Kind, Unit};
use crate::{
    matrix::Matrix,
    simd::{Kernel, Lanes, Level, Vector},
};
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

/// The left factor: tiles of sixteen rows by one line. First come the tiles of the first sixteen rows, along the
/// depth, then those of the next sixteen; the last tiles are filled up with zeros. A tile is 1 KiB in one piece, which
/// is read faster than sixteen lines that lie apart.
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

/// Blocks of columns that are packed together. Each row of the matrix is then read in pieces of 512 bytes; single
/// lines that lie far apart would arrive one at a time.
const TOGETHER: usize = 8;

impl std::fmt::Debug for Right {
    /// Without its numbers, which are as many as the matrix has.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Right({} x {})", self.depth, self.columns)
    }
}

impl Left {
    /// The rows of `x (n, depth)`: `x` itself.
    pub(crate) fn rows_of(x: Matrix) -> Left {
        Left::rows_by(Unit::best(), x)
    }

    /// [`Left::rows_of`] by this unit.
    pub(super) fn rows_by(unit: Unit, x: Matrix) -> Left {
        Left::make(x.rows, x.columns, 1, |block, way, out| {
            for row in 0..LANES {
                unit.round(x.row(block * LANES + row), way, out.iter_mut().skip(row).step_by(LANES));
            }
        })
    }

    /// The columns of `x (depth, n)`: the transpose of `x`.
    pub(crate) fn columns_of(x: Matrix) -> Left {
        let (unit, depth) = (Unit::best(), x.rows);
        Left::make(x.columns, depth, TOGETHER, |block, way, out| {
            let lines = row_lines(depth);
            let mut blocks: Vec<&mut [MaybeUninit<Line>]> = out.chunks_mut(lines * LANES).collect();
            for line in 0..lines {
                let mut as_read = [[MaybeUninit::new(ZERO); LANES]; TOGETHER];
                for pair in 0..LANES {
                    prefetch_rows(x, line * LANES + pair, block, blocks.len());
                    let [even, odd] = pair_of_rows(x, line * LANES + pair, block);
                    let lines = as_read.iter_mut().map(|lines| &mut lines[pair]).take(blocks.len());
                    unit.interleave(even, odd, Way::Cached, lines);
                }
                for (block, as_read) in blocks.iter_mut().zip(&as_read) {
                    // SAFETY: every line was initialised, with zeros.
                    #[allow(unsafe_code)]
                    let lines = unsafe { transposed(as_read) };
                    unit.put(&lines, way, &mut block[line * LANES..][..LANES]);
                }
            }
        })
    }

    /// `f(block, lines)` writes all tiles of `together` blocks of sixteen rows, from `block` on.
    fn make(
        rows: usize,
        depth: usize,
        together: usize,
        f: impl Fn(usize, Way, &mut [MaybeUninit<Line>]) + Sync,
    ) -> Left {
        let block = LANES * row_lines(depth);
        let len = rows.div_ceil(LANES) * block;
        // SAFETY: both callers write all lines.
        #[allow(unsafe_code)]
        let lines = unsafe { filled(len, together * block, |chunk, way, out| f(chunk * together, way, out)) };
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

    /// The tiles of sixteen rows, of which `row` is one, along the depth.
    pub(super) fn tiles(&self, row: usize) -> &[[Line; LANES]] {
        let lines = row_lines(self.depth) * LANES;
        self.lines[row / LANES * lines..][..lines].as_chunks().0
    }
}

impl Right {
    /// The rows of `w (n, depth)` as columns: `x wᵀ` is a product with this.
    pub(crate) fn rows_of(w: Matrix) -> Right {
        Right::rows_by(Unit::best(), w)
    }

    /// [`Right::rows_of`] by this unit.
    pub(super) fn rows_by(unit: Unit, w: Matrix) -> Right {
        Right::make(w.rows, w.columns, 1, |block, way, out| {
            for (at, out) in out.chunks_mut(LANES).enumerate() {
                let mut lines = [MaybeUninit::new(ZERO); LANES];
                for (row, line) in (block * LANES..).zip(&mut lines) {
                    let rest = w.row(row).get(CHANNELS * at..).unwrap_or_default();
                    unit.round(rest, Way::Cached, std::iter::once(line));
                }
                // SAFETY: every line was initialised, with zeros.
                #[allow(unsafe_code)]
                let lines = unsafe { transposed(&lines) };
                unit.put(&lines, way, out);
            }
        })
    }

    /// The columns of `x (depth, n)`: `x` itself.
    pub(crate) fn columns_of(x: Matrix) -> Right {
        let (unit, depth) = (Unit::best(), x.rows);
        Right::make(x.columns, depth, TOGETHER, |block, way, out| {
            let mut blocks: Vec<&mut [MaybeUninit<Line>]> = out.chunks_mut(pairs(depth)).collect();
            for pair in 0..pairs(depth) {
                prefetch_rows(x, pair, block, blocks.len());
                let [even, odd] = pair_of_rows(x, pair, block);
                unit.interleave(even, odd, way, blocks.iter_mut().map(|lines| &mut lines[pair]));
            }
        })
    }

    /// `f(block, lines)` writes all lines of `together` blocks of columns, from `block` on.
    fn make(
        columns: usize,
        depth: usize,
        together: usize,
        f: impl Fn(usize, Way, &mut [MaybeUninit<Line>]) + Sync,
    ) -> Right {
        let len = columns.div_ceil(LANES) * pairs(depth);
        // SAFETY: both callers write all lines.
        #[allow(unsafe_code)]
        let lines = unsafe { filled(len, together * pairs(depth), |chunk, way, out| f(chunk * together, way, out)) };
        Right { lines, columns, depth }
    }

    /// Row `row` of the matrix whose rows [`Right::rows_of`] packed, rounded to bf16.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let members = move |line: &Line| {
            let bits = line.0[row % LANES].to_bits();
            [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
        };
        self.block(row / LANES).iter().flat_map(members).take(self.depth)
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
    row_lines(depth) * LANES
}

fn row_lines(depth: usize) -> usize {
    depth.div_ceil(CHANNELS)
}

/// `len` lines, in chunks of `chunk`. `f(i, lines)` writes chunk i; several run at a time.
///
/// # Safety
///
/// `f` writes all lines of its chunk.
#[allow(unsafe_code)]
unsafe fn filled(len: usize, chunk: usize, f: impl Fn(usize, Way, &mut [MaybeUninit<Line>]) + Sync) -> Vec<Line> {
    /// Lines that make a task.
    const TASK: usize = 1 << 10;
    let (mut lines, way) = (Vec::with_capacity(len), Way::of(len));
    let chunks = lines.spare_capacity_mut()[..len].par_chunks_mut(chunk.max(1)).enumerate();
    chunks.with_min_len(TASK / chunk.max(1)).for_each(|(i, lines)| {
        let _written = Written(way);
        f(i, way, lines);
    });
    // SAFETY: every chunk has been written whole, by the caller's promise.
    unsafe { lines.set_len(len) };
    lines
}

/// Sixteen lines of sixteen pairs, transposed.
///
/// # Safety
///
/// They are initialised.
#[allow(unsafe_code)]
unsafe fn transposed(lines: &[MaybeUninit<Line>; LANES]) -> [Line; LANES] {
    // SAFETY: the caller's promise.
    let lines = lines.each_ref().map(|line| unsafe { line.assume_init_ref() });
    let mut to = [ZERO; LANES];
    Level::best().run(Transpose { lines, to: &mut to });
    to
}

struct Transpose<'a> {
    lines: [&'a Line; LANES],
    to: &'a mut [Line; LANES],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = std::array::from_fn(|i| lanes.load(&self.lines[i].0));
        lanes.transpose(rows).into_iter().zip(self.to).for_each(|(v, line)| lanes.store(v, &mut line.0));
    }
}

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Cached,
    /// Past the caches. A line that is not in a cache would be read before it is overwritten, which takes more than
    /// twice as long.
    Streamed,
}

impl Way {
    /// How to write this many lines: through the caches as long as a second-level cache of 2 MiB holds them.
    fn of(lines: usize) -> Way {
        if lines <= 1 << 15 { Way::Cached } else { Way::Streamed }
    }
}

/// Dropped after the last line of a task, even if that panicked: from then on other threads see what was streamed.
struct Written(Way);

impl Drop for Written {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Way::Streamed {
            // SAFETY: every processor of this kind has the instruction.
            #[allow(unsafe_code)]
            unsafe {
                std::arch::x86_64::_mm_sfence()
            };
        }
    }
}

impl Unit {
    /// Writes lines to others.
    fn put(self, lines: &[Line; LANES], way: Way, out: &mut [MaybeUninit<Line>]) {
        match (self.0, way) {
            (Kind::Portable, _) | (_, Way::Cached) => {
                out.iter_mut().zip(lines).for_each(|(out, line)| _ = out.write(*line))
            }
            // SAFETY: the unit is the proof of the instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            _ => unsafe { x86::stream(lines, out) },
        }
    }

    /// Writes a row as lines, zeros after its end.
    fn round<'a>(self, x: &[f32], way: Way, out: impl Iterator<Item = &'a mut MaybeUninit<Line>>) {
        match self.0 {
            Kind::Portable => {
                let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
                for (i, line) in out.enumerate() {
                    let first = |j: usize| CHANNELS * i + 2 * j;
                    line.write(Line(std::array::from_fn(|j| pair(at(first(j)), at(first(j) + 1)))));
                }
            }
            // SAFETY: the unit is the proof of the instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            _ => unsafe { x86::round(x, way, out) },
        }
    }

    /// Writes two rows as lines of pairs, sixteen columns each, zeros after their ends.
    fn interleave<'a>(self, even: &[f32], odd: &[f32], way: Way, out: impl Iterator<Item = &'a mut MaybeUninit<Line>>) {
        match self.0 {
            Kind::Portable => {
                let at = |x: &[f32], i: usize| x.get(i).copied().unwrap_or(0.0);
                for (i, line) in out.enumerate() {
                    let column = |j: usize| LANES * i + j;
                    line.write(Line(std::array::from_fn(|j| pair(at(even, column(j)), at(odd, column(j))))));
                }
            }
            // SAFETY: the unit is the proof of the instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            _ => unsafe { x86::interleave(even, odd, way, out) },
        }
    }
}

/// Both rows of a pair, from a block of columns on; empty beyond the last row.
fn pair_of_rows<'x>(x: Matrix<'x>, pair: usize, block: usize) -> [&'x [f32]; 2] {
    [2 * pair, 2 * pair + 1].map(|row| x.row(row).get(block * LANES..).unwrap_or_default())
}

/// Prefetches what [`pair_of_rows`] will return some pairs later: rows lie so far apart that a processor does not
/// foresee the next one.
fn prefetch_rows(x: Matrix, pair: usize, block: usize, blocks: usize) {
    const AHEAD: usize = 8;
    for row in [2 * (pair + AHEAD), 2 * (pair + AHEAD) + 1] {
        for at in (block..block + blocks).map(|block| row * x.row_stride + block * LANES) {
            prefetch(x.elements.as_ptr().wrapping_add(at));
        }
    }
}

/// Prefetches the memory at an address, which need not be valid.
fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect that a program could see.
    #[allow(unsafe_code)]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A pair in one word.
fn pair(even: f32, odd: f32) -> f32 {
    f32::from_bits(rounded(even) | rounded(odd) << 16)
}

/// The bits of the nearest bf16, or of the even one where two are equally near. Denormals become zero, as in the
/// instructions.
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
    use super::{CHANNELS, LANES, Line, Way};
    use std::{arch::x86_64::*, mem::MaybeUninit};

    /// See [`super::Unit::round`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn round<'a>(x: &[f32], way: Way, out: impl Iterator<Item = &'a mut MaybeUninit<Line>>) {
        for (i, line) in out.enumerate() {
            let x = x.get(CHANNELS * i..).unwrap_or_default();
            let pairs = _mm512_cvtne2ps_pbh(some(x.get(LANES..).unwrap_or_default()), some(x));
            write(line, pairs, way);
        }
    }

    /// See [`super::Unit::interleave`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn interleave<'a>(
        even: &[f32],
        odd: &[f32],
        way: Way,
        out: impl Iterator<Item = &'a mut MaybeUninit<Line>>,
    ) {
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
        for (i, line) in out.enumerate() {
            let [even, odd] = [even, odd].map(|x| x.get(LANES * i..).unwrap_or_default());
            let both = _mm512_cvtne2ps_pbh(some(odd), some(even));
            // SAFETY: both types are 32 numbers of 16 bits.
            let pairs = unsafe { _mm512_permutexvar_epi16(order, std::mem::transmute::<__m512bh, __m512i>(both)) };
            // SAFETY: as above.
            write(line, unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) }, way);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn write(line: &mut MaybeUninit<Line>, pairs: __m512bh, way: Way) {
        let to = line.as_mut_ptr().cast();
        // SAFETY: a line is 64 aligned bytes, and so is a vector of 32 bf16.
        unsafe {
            let pairs = std::mem::transmute::<__m512bh, __m512>(pairs);
            match way {
                Way::Cached => _mm512_store_ps(to, pairs),
                Way::Streamed => _mm512_stream_ps(to, pairs),
            }
        }
    }

    /// See [`super::Unit::put`].
    #[target_feature(enable = "avx512f")]
    pub(super) fn stream(lines: &[Line; LANES], out: &mut [MaybeUninit<Line>]) {
        for (line, out) in lines.iter().zip(out) {
            // SAFETY: a line is 64 aligned bytes.
            unsafe { _mm512_stream_ps(out.as_mut_ptr().cast(), _mm512_load_ps(line.0.as_ptr())) };
        }
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
