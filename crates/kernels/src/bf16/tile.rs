//! The inner loop of a product: a tile of results stays in registers along a panel of the depth.

use super::pack::{LANES, Left, Line, Right};
use std::ops::Range;

/// Blocks of columns of a tile.
pub(super) const BLOCKS: usize = 3;

/// Rows of a tile: with three blocks of columns 24 sums, which leaves eight registers for factors.
const ROWS: usize = 8;

/// What one call of an inner loop computes: an area of a product, along a panel of its depth. Rows, blocks
/// and pairs exist in factors and target; an area has as many blocks as its unit works on at a time, or
/// fewer, and a panel begins and ends between lines of sixteen pairs.
#[derive(Clone)]
pub(super) struct Part<'a> {
    pub(super) left: &'a Left,
    pub(super) right: &'a Right,
    pub(super) target: &'a Target,
    /// Rows of the area.
    pub(super) rows: Range<usize>,
    /// Blocks of columns of the area.
    pub(super) blocks: Range<usize>,
    /// Pairs of the depth.
    pub(super) panel: Range<usize>,
    /// Whether the target is added to; it is set otherwise.
    pub(super) accumulate: bool,
}

/// A result that several threads fill, each an area of its own.
pub(super) struct Target {
    elements: *mut f32,
    columns: usize,
}

// SAFETY: it is only written through `Unit::fill`, whose callers promise that areas are disjoint.
#[allow(unsafe_code)]
unsafe impl Sync for Target {}

impl Target {
    /// A result of whole rows of `columns`.
    pub(super) fn new(elements: *mut f32, columns: usize) -> Target {
        Target { elements, columns }
    }

    /// Where a row's part in a block of columns begins; inside the result for every row and block of it.
    pub(super) fn at(&self, row: usize, block: usize) -> *mut f32 {
        self.elements.wrapping_add(row * self.columns + block * LANES)
    }

    /// A row's part in a block of columns.
    ///
    /// # Safety
    ///
    /// Nobody else accesses it; it exists and is initialised.
    #[allow(unsafe_code)]
    pub(super) unsafe fn read(&self, row: usize, block: usize, sums: &mut [f32; LANES]) {
        // SAFETY: `width` columns of the block exist.
        unsafe { self.at(row, block).copy_to_nonoverlapping(sums.as_mut_ptr(), self.width(block)) };
    }

    /// Sets it.
    ///
    /// # Safety
    ///
    /// Nobody else accesses it; it exists.
    #[allow(unsafe_code)]
    pub(super) unsafe fn write(&self, row: usize, block: usize, sums: &[f32; LANES]) {
        // SAFETY: as above.
        unsafe { self.at(row, block).copy_from_nonoverlapping(sums.as_ptr(), self.width(block)) };
    }

    /// Elements from one row to the next.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(super) fn stride(&self) -> usize {
        self.columns
    }

    /// Columns of a block: sixteen, or what is left for the last.
    pub(super) fn width(&self, block: usize) -> usize {
        LANES.min(self.columns - block * LANES)
    }
}

/// Computes a part.
///
/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to; the processor has AVX-512F, BW and BF16.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn fill_avx512(part: &Part) {
    for row in part.rows.clone().step_by(ROWS) {
        let rows = ROWS.min(part.rows.end - row);
        let tile = x86::Tile { part, row };
        // SAFETY: the caller's promises.
        unsafe {
            match part.blocks.len() {
                1 => tile.rows::<1>(rows),
                2 => tile.rows::<2>(rows),
                BLOCKS => tile.rows::<BLOCKS>(rows),
                blocks => unreachable!("{blocks} blocks in a part"),
            }
        }
    }
}

/// The same in plain code.
///
/// # Safety
///
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to.
#[allow(unsafe_code)]
pub(super) unsafe fn fill_portable(part: &Part) {
    let Part { left, right, target, ref panel, .. } = *part;
    for block in part.blocks.clone() {
        let lines = &right.block(block)[panel.clone()];
        for row in part.rows.clone() {
            let pairs = left.rows_from(row).iter().flat_map(|line| &line.0).skip(panel.start).take(panel.len());
            let mut sums = [0.0; LANES];
            if part.accumulate {
                // SAFETY: the caller's promises.
                unsafe { target.read(row, block, &mut sums) };
            }
            pairs.zip(lines).for_each(|(pair, line)| add_pairs(&mut sums, *pair, line));
            // SAFETY: the caller's promises.
            unsafe { target.write(row, block, &sums) };
        }
    }
}

/// `sums[i] += later(pair) later(line[i])`, then the same of the earlier ones: the order of the
/// instruction.
pub(super) fn add_pairs(sums: &mut [f32; LANES], pair: f32, line: &Line) {
    let halves = |x: f32| [f32::from_bits(x.to_bits() & 0xffff_0000), f32::from_bits(x.to_bits() << 16)];
    let pair = halves(pair);
    for (sum, other) in sums.iter_mut().zip(line.0) {
        let other = halves(other);
        *sum += pair[0] * other[0];
        *sum += pair[1] * other[1];
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{LANES, Line, Part, ROWS};
    use std::arch::x86_64::*;

    /// The rows of a part that stay in registers.
    pub(super) struct Tile<'a> {
        pub(super) part: &'a Part<'a>,
        pub(super) row: usize,
    }

    impl Tile<'_> {
        /// Computes `rows` rows, 8 at most, of `B` blocks.
        ///
        /// # Safety
        ///
        /// Nobody else accesses them, and they exist.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        pub(super) unsafe fn rows<const B: usize>(&self, rows: usize) {
            // SAFETY: the caller's promises.
            unsafe {
                match rows {
                    1 => self.add::<1, B>(),
                    2 => self.add::<2, B>(),
                    3 => self.add::<3, B>(),
                    4 => self.add::<4, B>(),
                    5 => self.add::<5, B>(),
                    6 => self.add::<6, B>(),
                    7 => self.add::<7, B>(),
                    _ => self.add::<ROWS, B>(),
                }
            }
        }

        /// # Safety
        ///
        /// Nobody else accesses `R` rows of `B` blocks, and they exist.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn add<const R: usize, const B: usize>(&self) {
            let (Part { left, right, target, panel, .. }, row) = (self.part, self.row);
            let block = self.part.blocks.start;
            let lines: [&[Line]; B] = std::array::from_fn(|b| &right.block(block + b)[panel.clone()]);
            // Sixteen pairs are one line, and panels begin and end between lines.
            let stride = left.stride();
            let whole = &left.rows_from(row)[panel.start / LANES..];
            assert!(whole.len() >= (R - 1) * stride + panel.len() / LANES, "rows of a tile");
            let pairs: *const i32 = whole.as_ptr().cast();
            let masks: [u16; B] = std::array::from_fn(|b| (0xffff_u32 >> (LANES - target.width(block + b))) as u16);
            let mut sums = [[_mm512_setzero_ps(); B]; R];
            if self.part.accumulate {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (b, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: masked to the columns that exist of the caller's rows.
                        *sum = unsafe { _mm512_maskz_loadu_ps(masks[b], target.at(row + r, block + b)) };
                    }
                }
            }
            for p in 0..panel.len() {
                // SAFETY: p is inside the panel, and `lines` are as long; the rows were asserted to be.
                unsafe {
                    let columns: [__m512bh; B] = std::array::from_fn(|b| load(lines[b].get_unchecked(p)));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let pair = _mm512_set1_epi32(*pairs.add(r * stride * LANES + p));
                        let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                        for (sum, columns) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbf16_ps(*sum, pair, columns);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (b, sum) in sums.iter().enumerate() {
                    // SAFETY: as where they were loaded.
                    unsafe { _mm512_mask_storeu_ps(target.at(row + r, block + b), masks[b], *sum) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn load(line: &Line) -> __m512bh {
        // SAFETY: a line is 64 aligned bytes, and so is a vector of 32 bf16.
        unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_load_ps(line.0.as_ptr())) }
    }
}
