//! The inner loop of a product: a tile of results stays in registers along a panel of the depth.

use super::pack::{LANES, Left, Line, Right};
use std::ops::Range;

/// Blocks of columns of a tile.
pub(super) const COLUMN_BLOCKS: usize = 3;

/// Rows of a tile: with three blocks of columns 24 sums, which leaves eight registers for factors.
const ROWS: usize = 8;

/// Pairs of the depth that are worked through before the next rows: what a tile needs of them, 24 KiB of columns,
/// stays in the first-level cache.
const PANEL: usize = 128;

/// What one call of an inner loop computes: an area of a product, along a panel of its depth. Rows, blocks
/// and pairs exist in factors and target; an area has as many blocks as its unit works on at a time, or
/// fewer, and begins with a row that is a multiple of sixteen; a panel begins and ends between lines of sixteen
/// pairs.
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
    /// What the sums of the first panel are added to.
    pub(super) start: Start<'a>,
}

/// What results are added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// The same row for every row of the result: one number for each column.
    Bias(&'a [f32]),
    /// What the target holds, which is initialised.
    Target,
}

impl Start<'_> {
    /// Writes the beginnings of a row's sums in a block of columns.
    ///
    /// # Safety
    ///
    /// That part of the target exists, nobody else accesses it, and it is initialised if sums start from it.
    #[allow(unsafe_code)]
    pub(super) unsafe fn read(self, target: &Target, row: usize, block: usize, sums: &mut [f32; LANES]) {
        match self {
            Start::Zero => *sums = [0.0; LANES],
            Start::Bias(bias) => {
                let (bias, _) = part_of_bias(bias, block);
                *sums = [0.0; LANES];
                sums[..bias.len()].copy_from_slice(bias);
            }
            // SAFETY: the caller's promises.
            Start::Target => unsafe { target.read(row, block, sums) },
        }
    }
}

/// The part of a bias for a block of columns, and a mask with as many bits set.
fn part_of_bias(bias: &[f32], block: usize) -> (&[f32], u16) {
    let bias = &bias[block * LANES..];
    let bias = &bias[..bias.len().min(LANES)];
    (bias, (0xffff_u32 >> (LANES - bias.len())) as u16)
}

impl Part<'_> {
    /// The same part along smaller panels, one after the other.
    pub(super) fn panels(&self, most: usize) -> impl Iterator<Item = Part<'_>> {
        panels(self.panel.clone(), most).map(|panel| Part { panel, ..self.clone() })
    }

    /// Whether nothing of the depth comes before the panel.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(super) fn is_first(&self) -> bool {
        self.panel.start == 0
    }

    /// Whether nothing of the depth comes after it.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(super) fn is_last(&self) -> bool {
        self.panel.end == self.left.pairs()
    }

    /// What the sums of this panel start from, when those of the panel before are in the target.
    fn beginning(&self) -> Start<'_> {
        if self.panel.start == 0 { self.start } else { Start::Target }
    }
}

/// Cuts pairs into as few panels as `most` allows, of whole lines and of about the same length.
pub(super) fn panels(pairs: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let step = pairs.len().div_ceil(pairs.len().div_ceil(most).max(1)).next_multiple_of(LANES).max(LANES);
    pairs.clone().step_by(step).map(move |start| start..pairs.end.min(start + step))
}

/// A result that several threads fill, each an area of its own.
pub(super) struct Target {
    elements: *mut f32,
    columns: usize,
    /// Whether whole lines are better written past the caches.
    is_large: bool,
}

// SAFETY: it is only accessed through `Unit::fill_area`, whose callers promise that areas are disjoint.
#[allow(unsafe_code)]
unsafe impl Sync for Target {}

impl Target {
    /// A result of `rows` whole rows of `columns`.
    pub(super) fn new(elements: *mut f32, rows: usize, columns: usize) -> Target {
        /// Bytes for which a second-level cache has hardly any room beside the factors.
        const LARGE: usize = 1 << 20;
        Target { elements, columns, is_large: rows * columns * size_of::<f32>() >= LARGE }
    }

    /// Where a row's part in a block of columns begins; inside the result for every row and block of it.
    pub(super) fn at(&self, row: usize, block: usize) -> *mut f32 {
        self.elements.wrapping_add(row * self.columns + block * LANES)
    }

    /// Whether it is better written past the caches and can be, which needs rows of whole lines of 64 bytes. Whether
    /// a large allocation begins at a line is the allocator's choice: mimalloc's do, glibc's do not.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn streams(&self) -> bool {
        self.is_large && self.elements.addr().is_multiple_of(size_of::<Line>()) && self.columns.is_multiple_of(LANES)
    }

    /// Reads a row's part in a block of columns.
    ///
    /// # Safety
    ///
    /// The part exists and is initialised, and nobody else accesses it.
    #[allow(unsafe_code)]
    pub(super) unsafe fn read(&self, row: usize, block: usize, sums: &mut [f32; LANES]) {
        // SAFETY: `width` columns of the block exist.
        unsafe { self.at(row, block).copy_to_nonoverlapping(sums.as_mut_ptr(), self.width(block)) };
    }

    /// Writes a row's part in a block of columns.
    ///
    /// # Safety
    ///
    /// The part exists, and nobody else accesses it.
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
/// The part is what [`Part`] says; nobody else accesses its area, which is initialised if it is added to; the
/// processor has AVX-512F, BW and BF16.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn fill_avx512(part: &Part) {
    for part in &mut part.panels(PANEL) {
        for row in part.rows.clone().step_by(ROWS) {
            let rows = ROWS.min(part.rows.end - row);
            let tile = x86::Tile { part: &part, row };
            // SAFETY: the caller's promises.
            unsafe {
                match part.blocks.len() {
                    1 => tile.rows::<1>(rows),
                    2 => tile.rows::<2>(rows),
                    COLUMN_BLOCKS => tile.rows::<COLUMN_BLOCKS>(rows),
                    blocks => unreachable!("{blocks} blocks in a part"),
                }
            }
        }
    }
}

/// Computes a part in plain code.
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
            let pairs = left.tiles(row).iter().flat_map(|tile| &tile[row % LANES].0);
            let pairs = pairs.skip(panel.start).take(panel.len());
            let mut sums = [0.0; LANES];
            // SAFETY: the caller's promises.
            unsafe { part.beginning().read(target, row, block, &mut sums) };
            pairs.zip(lines).for_each(|(pair, line)| add_pairs(&mut sums, *pair, line));
            // SAFETY: the caller's promises.
            unsafe { target.write(row, block, &sums) };
        }
    }
}

/// `sums[i] += later(pair) later(line[i])`, then the same of the earlier ones: the order of the
/// instruction.
pub(super) fn add_pairs(sums: &mut [f32; LANES], pair: f32, line: &Line) {
    let members = |x: f32| [f32::from_bits(x.to_bits() & 0xffff_0000), f32::from_bits(x.to_bits() << 16)];
    let pair = members(pair);
    for (sum, other) in sums.iter_mut().zip(line.0) {
        let other = members(other);
        *sum += pair[0] * other[0];
        *sum += pair[1] * other[1];
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use super::{LANES, Line, Part, ROWS, Start, part_of_bias};
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
        /// Nobody else accesses them; they exist, and are initialised if they are added to.
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
        /// Nobody else accesses `R` rows of `B` blocks; they exist, and are initialised if they are added to.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn add<const R: usize, const B: usize>(&self) {
            let (&Part { left, right, target, ref panel, .. }, row) = (self.part, self.row);
            let start = self.part.beginning();
            let block = self.part.blocks.start;
            let lines: [&[Line]; B] = std::array::from_fn(|b| &right.block(block + b)[panel.clone()]);
            // Sixteen pairs are one line, panels begin and end between lines, and eight rows from a multiple of
            // eight on are in one tile.
            let tiles = &left.tiles(row)[panel.start / LANES..panel.end / LANES];
            let first = row % LANES;
            assert!(first + R <= LANES, "rows of a tile");
            let masks: [u16; B] = std::array::from_fn(|b| (0xffff_u32 >> (LANES - target.width(block + b))) as u16);
            let mut sums = [[_mm512_setzero_ps(); B]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (b, sum) in sums.iter_mut().enumerate() {
                    let (from, mask) = match start {
                        Start::Zero => continue,
                        Start::Bias(bias) => {
                            let (bias, mask) = part_of_bias(bias, block + b);
                            (bias.as_ptr(), mask)
                        }
                        Start::Target => (target.at(row + r, block + b).cast_const(), masks[b]),
                    };
                    // SAFETY: masked to the columns that exist, of the bias or of the caller's rows.
                    *sum = unsafe { _mm512_maskz_loadu_ps(mask, from) };
                }
            }
            for (at, tile) in tiles.iter().enumerate() {
                let pairs: *const i32 = tile[first..].as_ptr().cast();
                for p in 0..LANES {
                    // SAFETY: there are as many lines as pairs in the tiles, and R rows of sixteen pairs in each tile.
                    unsafe {
                        let columns: [__m512bh; B] =
                            std::array::from_fn(|b| load(lines[b].get_unchecked(at * LANES + p)));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let pair = _mm512_set1_epi32(*pairs.add(r * LANES + p));
                            let pair = std::mem::transmute::<__m512i, __m512bh>(pair);
                            for (sum, columns) in sums.iter_mut().zip(columns) {
                                *sum = _mm512_dpbf16_ps(*sum, pair, columns);
                            }
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
