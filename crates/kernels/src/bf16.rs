//! Matrix products whose factors are rounded to bf16 and whose sums stay in `f32`.
//!
//! bf16 is the upper half of an `f32`: its range, 8 bits of precision. Processors multiply pairs of
//! them at twice the rate of `f32` (AVX-512-BF16) and more (AMX), so factors are packed in pairs
//! that are neighbours along the depth. A product is made in two moves: [`Left`] and [`Right`] round and
//! pack what lies in memory as `f32`, [`product`] and [`add_product`] add up products of pairs.
//!
//! Every result adds up along the depth in one order, continued through memory where the depth is cut, so
//! that its bits depend neither on the other rows nor on how the work is shared out. They do
//! depend on the [`Unit`], since instructions round what they add in different ways.

use crate::matrix::Matrix;
use rayon::prelude::*;
use std::{ops::Range, sync::OnceLock};
use tile::{Part, Start, Target};

#[cfg(any(test, target_arch = "x86_64"))]
mod amx;
mod pack;
mod tile;

pub(crate) use pack::{Left, Right};

/// The instructions that multiply bf16 on this processor, `amx` or `avx512-bf16`, if it has either.
///
/// Without them, parameters made for bf16 on the fused path still compute the same products in plain code, but
/// slowly: a caller that wants speed then asks for `f32`.
pub fn bf16_unit() -> Option<&'static str> {
    match Unit::best().0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx => Some("amx"),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => Some("avx512-bf16"),
        Kind::Portable => None,
    }
}

/// The instructions that products are made with. A value exists only where the processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    Portable,
}

impl Unit {
    /// The fastest of this processor.
    pub(crate) fn best() -> Unit {
        #[cfg(test)]
        if let Some(unit) = FORCED.get() {
            return unit;
        }
        static BEST: OnceLock<Unit> = OnceLock::new();
        *BEST.get_or_init(|| Unit::available()[0])
    }

    /// All of this processor, the fastest first.
    pub(crate) fn available() -> Vec<Unit> {
        let mut units = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
        {
            // Tiles are packed with the instructions of AVX-512.
            if amx::permitted() && Unit(Kind::Amx).is_right() {
                units.push(Unit(Kind::Amx));
            }
            units.push(Unit(Kind::Avx512));
        }
        units.push(Unit(Kind::Portable));
        units
    }

    /// Whether this unit multiplies small whole numbers, of which all sums are exact, as plain code does. A unit that
    /// few machines have is only used after this check.
    #[cfg(any(test, target_arch = "x86_64"))]
    fn is_right(self) -> bool {
        let (rows, depth, columns) = (37, 70, 45);
        let whole = |len: usize, step: usize| (0..len).map(|i| ((i * step) % 11) as f32 - 5.0).collect::<Vec<f32>>();
        let plain = Unit(Kind::Portable);
        let left = Left::rows_by(plain, Matrix::new(&whole(rows * depth, 7), rows, depth));
        let right = Right::rows_by(plain, Matrix::new(&whole(columns * depth, 3), columns, depth));
        let product = |unit: Unit| {
            let mut out = vec![1.0; rows * columns];
            let (target, start) = (Target::new(out.as_mut_ptr(), rows, columns), Start::Target);
            // Without the pool, one of whose tasks might ask for the best unit while it is being determined.
            let blocks = 0..right.blocks();
            // SAFETY: nobody else knows of the target, which is whole and initialised.
            #[allow(unsafe_code)]
            unsafe {
                unit.fill_area(&Area { left: &left, right: &right, target: &target, rows: 0..rows, blocks, start })
            };
            out
        };
        product(self) == product(plain)
    }
}

#[cfg(test)]
thread_local!(static FORCED: std::cell::Cell<Option<Unit>> = const { std::cell::Cell::new(None) });

#[cfg(test)]
impl Unit {
    /// Makes this the best unit of the calling thread.
    pub(crate) fn force(self) {
        FORCED.set(Some(self));
    }
}

/// Multiplications of pairs below which an area is not worth handing to another thread.
const TASK: usize = 1 << 17;

/// Bytes of the left factor that an area works with at a time, so that they stay in a second-level cache.
const KEPT: usize = 1 << 20;

/// Pairs of the depth that an area works through before the next columns.
const DEEP: usize = 1 << 10;

/// Bytes of sums that an area keeps from one such panel to the next, beside them.
const SUMS: usize = 1 << 20;

/// `left right` with `bias` added to each row: `(rows, columns)`. A row begins `stride` after the one before. What
/// lies between two rows is shorter than a block and must not be read.
pub(crate) fn product(left: &Left, right: &Right, bias: Option<&[f32]>, stride: usize) -> Vec<f32> {
    let (rows, columns) = (left.rows(), right.columns());
    assert!(bias.is_none_or(|bias| bias.len() == columns), "the bias of a product");
    assert!((columns..=columns.next_multiple_of(pack::LANES)).contains(&stride), "the stride of a product");
    if left.depth() == 0 {
        let row = |_| bias.unwrap_or_default().iter().copied().chain(std::iter::repeat(0.0)).take(stride);
        return (0..rows).flat_map(row).collect();
    }
    let mut out = Vec::with_capacity(rows * stride);
    // The last block is computed whole, from zeros where it has no more columns.
    fill(left, right, &Target::new(out.as_mut_ptr(), rows, stride), bias.map_or(Start::Zero, Start::Bias));
    // SAFETY: `fill` has written every element of every row.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(rows * stride)
    };
    out
}

/// `out += left right`, or with `overwrite` `out = left right`.
pub(crate) fn add_product(out: &mut [f32], overwrite: bool, left: &Left, right: &Right) {
    assert_eq!(out.len(), left.rows() * right.columns(), "the result of a product");
    if overwrite && left.depth() == 0 {
        out.fill(0.0);
    }
    let start = if overwrite { Start::Zero } else { Start::Target };
    fill(left, right, &Target::new(out.as_mut_ptr(), left.rows(), right.columns()), start);
}

/// Sets every element of the target to its start plus the product. Does nothing when the depth is 0.
fn fill(left: &Left, right: &Right, target: &Target, start: Start) {
    assert_eq!(left.depth(), right.depth(), "the depths of a product");
    if left.rows() == 0 || right.columns() == 0 || left.depth() == 0 {
        return;
    }
    let (unit, threads) = (Unit::best(), rayon::current_num_threads());
    let row_bytes = left.pairs().min(DEEP) * size_of::<f32>();
    let cuts = left.rows().div_ceil((KEPT / row_bytes).next_multiple_of(32));
    let rows = left.rows().div_ceil(cuts).next_multiple_of(32);
    let groups = right.blocks().div_ceil(unit.group());
    // Several areas for each thread, so that no thread waits long for another. Areas with the same rows follow each
    // other, so that these rows are still in the thread's cache. With several panels they are not, and fewer areas are
    // better.
    let pieces = if left.pairs() <= DEEP {
        (4 * threads).div_ceil(cuts)
    } else {
        let group_bytes = rows * unit.group() * size_of::<pack::Line>();
        (2 * threads).div_ceil(cuts).max(groups.div_ceil((SUMS / group_bytes).max(1)))
    };
    let width = groups.div_ceil(pieces.min(groups)) * unit.group();
    let pieces = right.blocks().div_ceil(width);
    let work = rows.min(left.rows()) * width * pack::LANES * left.pairs();
    let areas = (0..cuts * pieces).into_par_iter().with_min_len((TASK / work.max(1)).max(1));
    areas.for_each(|area| {
        let (cut, piece) = (area / pieces, area % pieces);
        let rows = cut * rows..left.rows().min((cut + 1) * rows);
        let blocks = piece * width..right.blocks().min((piece + 1) * width);
        // SAFETY: different areas have no row and column in common.
        #[allow(unsafe_code)]
        unsafe {
            unit.fill_area(&Area { left, right, target, rows, blocks, start })
        };
    });
}

/// What one task computes: some rows and blocks of columns of a product, along its whole depth.
struct Area<'a> {
    left: &'a Left,
    right: &'a Right,
    target: &'a Target,
    rows: Range<usize>,
    blocks: Range<usize>,
    start: Start<'a>,
}

impl Unit {
    /// Blocks of sixteen columns that are worked on together.
    fn group(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => amx::COLUMN_BLOCKS,
            _ => tile::COLUMN_BLOCKS,
        }
    }

    /// Computes an area.
    ///
    /// # Safety
    ///
    /// The rows and blocks exist, and the first row is a multiple of sixteen. Meanwhile nobody else accesses these
    /// elements, and they are initialised if they are added to.
    #[allow(unsafe_code)]
    unsafe fn fill_area(self, area: &Area) {
        let &Area { left, right, target, ref rows, ref blocks, start } = area;
        let groups = blocks.len().div_ceil(self.group());
        let panels = || tile::panels(0..left.pairs(), DEEP);
        let is_one_panel = panels().nth(1).is_none();
        #[cfg(target_arch = "x86_64")]
        let of_group = amx::sums(rows.len());
        #[cfg(target_arch = "x86_64")]
        let mut sums =
            vec![amx::ZERO; if self.0 == Kind::Amx { of_group * if is_one_panel { 1 } else { groups } } else { 0 }];
        for panel in panels() {
            for group in 0..groups {
                let first = blocks.start + group * self.group();
                let (rows, blocks) = (rows.clone(), first..blocks.end.min(first + self.group()));
                let part = Part { left, right, target, rows, blocks, panel: panel.clone(), start };
                // SAFETY: units come only from `available`, which has asked the processor; the area is the caller's
                // promise.
                unsafe {
                    match self.0 {
                        #[cfg(target_arch = "x86_64")]
                        Kind::Amx => {
                            let own = if is_one_panel { 0 } else { group * of_group };
                            amx::fill(&part, &mut sums[own..][..of_group]);
                        }
                        #[cfg(target_arch = "x86_64")]
                        Kind::Avx512 => tile::fill_avx512(&part),
                        Kind::Portable => tile::fill_portable(&part),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pack::LANES;
    use super::*;
    use crate::check::normals;

    fn rounded(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(nearest_bf16(*x))).collect()
    }

    /// The nearest bf16, found by trying both neighbours.
    fn nearest_bf16(x: f32) -> f32 {
        if x.is_infinite() {
            return x;
        }
        let low = f32::from_bits(x.to_bits() & 0xffff_0000);
        let high = f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000);
        let (below, above) = ((x - low).abs(), (high - x).abs());
        let even = low.to_bits() >> 16 & 1 == 0;
        if below < above || (below == above && even) { low } else { high }
    }

    /// Compares a product, and what is added to a result, with the definition in `f64` over rounded factors.
    #[track_caller]
    pub(super) fn check_product(
        context: &str,
        m: usize,
        k: usize,
        n: usize,
        multiply: impl Fn(&Left, &Right, &mut [f32], bool),
    ) {
        let (a, b) = (normals("a", m * k), normals("b", k * n));
        let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        let (wide_a, wide_b) = (rounded(&a), rounded(&b));
        let wanted: Vec<f64> =
            (0..m * n).map(|i| (0..k).map(|j| wide_a[i / n * k + j] * wide_b[j * n + i % n]).sum()).collect();
        let (transposed_a, transposed_b) = (transpose(&a, m, k), transpose(&b, k, n));
        let lefts = [Left::rows_of(Matrix::new(&a, m, k)), Left::columns_of(Matrix::new(&transposed_a, k, m))];
        let rights = [Right::columns_of(Matrix::new(&b, k, n)), Right::rows_of(Matrix::new(&transposed_b, n, k))];
        for (l, left) in lefts.iter().enumerate() {
            for (r, right) in rights.iter().enumerate() {
                for (accumulate, before) in [(false, f32::NAN), (true, 3.0)] {
                    let mut room = vec![before; m * n + LANES];
                    let out = aligned(&mut room, m * n);
                    multiply(left, right, out, accumulate);
                    let offset = if accumulate { 3.0 } else { 0.0 };
                    let tolerance = 1e-5 * (k as f64).sqrt() + 1e-6;
                    let worst = out.iter().zip(&wanted).map(|(x, y)| (f64::from(*x) - y - offset).abs());
                    let worst = worst.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
                    assert!(worst <= tolerance, "{context}: {m} {k} {n}, {l} {r} {accumulate}: {worst}");
                }
            }
        }
    }

    /// `len` numbers of `room`, the first of which begins a line.
    fn aligned(room: &mut [f32], len: usize) -> &mut [f32] {
        let first = room.as_ptr().align_offset(size_of::<pack::Line>());
        &mut room[first..][..len]
    }

    pub(super) fn multiply(left: &Left, right: &Right, out: &mut [f32], accumulate: bool) {
        if accumulate {
            return add_product(out, false, left, right);
        }
        let columns = right.columns();
        let wide = product(left, right, None, columns.next_multiple_of(16));
        let rows = wide.chunks_exact(columns.next_multiple_of(16));
        assert!(rows.clone().all(|row| row[columns..].iter().all(|x| *x == 0.0)), "zeros behind each row");
        out.copy_from_slice(&rows.flat_map(|row| &row[..columns]).copied().collect::<Vec<f32>>());
        assert!(product(left, right, None, columns) == out, "rows apart and side by side");
        let mut room = vec![f32::NAN; out.len() + LANES];
        let over = aligned(&mut room, out.len());
        add_product(over, true, left, right);
        assert!(over == out, "overwritten");
    }

    fn on<R: Send>(unit: Unit, threads: usize, f: impl FnOnce() -> R + Send) -> R {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(move |_| unit.force());
        pool.build().unwrap().install(f)
    }

    #[test]
    fn every_unit_makes_products() {
        for unit in Unit::available() {
            for (m, k, n) in [
                (1, 1, 1),
                (1, 768, 100),
                (3, 2, 33),
                (8, 32, 48),
                (13, 600, 7),
                (70, 1030, 33),
                (129, 17, 65),
                (200, 64, 16),
                (37, 100, 97),
                // Deeper than the panel of any unit.
                (33, 4500, 40),
                (32, 2049, 48),
            ] {
                for threads in [1, 3] {
                    on(unit, threads, || check_product(&format!("{unit:?}"), m, k, n, multiply));
                }
            }
            let mut out = [1.0; 4];
            let nothing = Matrix::new(&[], 2, 0);
            let (left, right) = (Left::rows_of(nothing), Right::rows_of(nothing));
            add_product(&mut out, false, &left, &right);
            assert_eq!(out, [1.0; 4]);
            add_product(&mut out, true, &left, &right);
            assert_eq!(out, [0.0; 4]);
            assert_eq!(product(&left, &right, None, 2), [0.0; 4]);
            assert_eq!(product(&left, &right, Some(&[1.0, 2.0]), 3), [1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
        }
    }

    #[test]
    fn what_is_large_is_cut_and_written_past_the_caches() {
        for unit in Unit::available() {
            for (m, k, n) in [
                // Several groups of columns along several panels; a result; the left factor; the right one.
                (33, 2100, 200),
                (512, 32, 512),
                (4100, 512, 16),
                (16, 512, 4100),
            ] {
                on(unit, 2, || check_product(&format!("{unit:?}"), m, k, n, multiply));
            }
        }
    }

    #[test]
    fn every_unit_multiplies_whole_numbers_exactly() {
        assert!(Unit::available().into_iter().all(Unit::is_right));
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (k, n, most) = (300, 75, 200);
        let (x, right) = (normals("x", most * k), Right::rows_of(Matrix::new(&normals("w", n * k), n, k)));
        let bias = normals("bias", n);
        let product = |rows: std::ops::Range<usize>| {
            let x = Matrix::new(&x[rows.start * k..rows.end * k], rows.len(), k);
            product(&Left::rows_of(x), &right, Some(&bias), n)
        };
        for unit in Unit::available() {
            let whole = on(unit, 1, || product(0..most));
            for rows in [0..1, 7..9, 3..20, 100..165, 50..199] {
                let part = on(unit, 3, || product(rows.clone()));
                assert!(part == whole[rows.start * n..rows.end * n], "{unit:?} {rows:?}");
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_definition_on_every_unit() {
        let mut x = normals("x", 90);
        x.extend([
            0.0,
            -0.0,
            257.0 / 256.0,
            259.0 / 256.0,
            3.0e38,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-30,
            -1e-45,
            1e-39,
        ]);
        for unit in Unit::available() {
            let packed = on(unit, 1, || Right::rows_of(Matrix::new(&x, 1, x.len())));
            for (x, got) in x.iter().zip(packed.row(0)) {
                let want = if x.is_subnormal() { 0.0 * x } else { nearest_bf16(*x) };
                assert!(got == want && got.is_sign_negative() == want.is_sign_negative(), "{unit:?}: {x} {got}");
            }
            let nan = on(unit, 1, || Right::rows_of(Matrix::new(&[f32::NAN, 1.0], 1, 2)));
            assert!(nan.row(0).next().unwrap().is_nan());
        }
    }
}
