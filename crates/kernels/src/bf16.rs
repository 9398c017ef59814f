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

use rayon::prelude::*;
use std::sync::OnceLock;

#[cfg(any(test, target_arch = "x86_64"))]
mod amx;
mod pack;
mod tile;

pub(crate) use pack::{Left, Right};

/// What multiplies bf16 on this processor: `amx`, `avx512-bf16`, or nothing that is worth it.
///
/// Where it is nothing, parameters made for bf16 on the fused path still compute the same
/// products, slowly, in plain code: a caller that wants speed asks for `f32` there.
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

    /// Whether this unit multiplies small whole numbers, of which all sums are exact, as plain code does:
    /// asked of one that could only be emulated on the machines that this was written on.
    #[cfg(any(test, target_arch = "x86_64"))]
    fn is_right(self) -> bool {
        let (rows, depth, columns) = (37, 70, 45);
        let whole = |len: usize, step: usize| (0..len).map(|i| ((i * step) % 11) as f32 - 5.0).collect::<Vec<f32>>();
        let plain = Unit(Kind::Portable);
        let left = Left::rows_by(plain, &whole(rows * depth, 7), rows, depth);
        let right = Right::rows_by(plain, &whole(columns * depth, 3), columns, depth);
        let product = |unit: Unit| {
            let mut out = vec![1.0; rows * columns];
            let target = tile::Target::new(out.as_mut_ptr(), columns);
            // One after the other: a task of the pool might ask for the best unit while it is being found.
            for first in (0..right.blocks()).step_by(unit.group()) {
                let (blocks, panel) = (first..right.blocks().min(first + unit.group()), 0..left.pairs());
                let (left, right, target) = (&left, &right, &target);
                let part = tile::Part { left, right, target, rows: 0..rows, blocks, panel, accumulate: true };
                // SAFETY: nobody else knows of the target, which is whole and initialised.
                #[allow(unsafe_code)]
                unsafe {
                    unit.fill(&part)
                };
            }
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

/// Rows of a task at least, where there are enough: fewer would read a block of columns too often.
const TASK_ROWS: usize = 64;

/// Multiplications of pairs below which a task is not worth handing to another thread.
const TASK: usize = 1 << 17;

/// `left right`: `(rows, columns)` in row-major order.
pub(crate) fn product(left: &Left, right: &Right) -> Vec<f32> {
    let len = left.rows() * right.columns();
    if left.depth() == 0 {
        return vec![0.0; len];
    }
    let mut out = Vec::with_capacity(len);
    let target = tile::Target::new(out.as_mut_ptr(), right.columns());
    fill(left, right, &target, false);
    // SAFETY: `fill` has written every element of every row.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(len)
    };
    out
}

/// `out += left right`.
pub(crate) fn add_product(out: &mut [f32], left: &Left, right: &Right) {
    assert_eq!(out.len(), left.rows() * right.columns(), "the result of a product");
    fill(left, right, &tile::Target::new(out.as_mut_ptr(), right.columns()), true);
}

/// Sets every element of the target to the product, or adds the product to it.
fn fill(left: &Left, right: &Right, target: &tile::Target, accumulate: bool) {
    assert_eq!(left.depth(), right.depth(), "the depths of a product");
    if left.rows() == 0 || right.columns() == 0 {
        return;
    }
    let unit = Unit::best();
    let groups = right.blocks().div_ceil(unit.group());
    // A whole number of tiles, so that only the last task has a ragged one.
    let rows = (left.rows() * groups).div_ceil(4 * rayon::current_num_threads()).max(TASK_ROWS).next_multiple_of(32);
    let cuts = left.rows().div_ceil(rows);
    let work = rows.min(left.rows()) * unit.group() * pack::LANES * left.pairs();
    let tasks = (0..groups * cuts).into_par_iter().with_min_len((TASK / work.max(1)).max(1));
    tasks.for_each(|task| {
        let (group, cut) = (task / cuts, task % cuts);
        let first = group * unit.group();
        let (blocks, panel) = (first..right.blocks().min(first + unit.group()), 0..left.pairs());
        let rows = cut * rows..left.rows().min((cut + 1) * rows);
        // SAFETY: the areas of different tasks have no row and column in common.
        #[allow(unsafe_code)]
        unsafe {
            unit.fill(&tile::Part { left, right, target, rows, blocks, panel, accumulate })
        };
    });
}

impl Unit {
    /// Blocks of sixteen columns that are worked on together.
    fn group(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => amx::BLOCKS,
            _ => tile::BLOCKS,
        }
    }

    /// Pairs of the depth that are worked through before the next rows, whole lines of them: what a tile
    /// needs of them stays in the first-level cache (24 KiB of columns), for AMX in the second.
    fn panel(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => 1024,
            _ => 128,
        }
    }

    /// Computes a part, a limited number of pairs of its panel at a time.
    ///
    /// # Safety
    ///
    /// The part is what [`tile::Part`] says; nobody else accesses its area meanwhile, which is initialised if
    /// it is added to.
    #[allow(unsafe_code)]
    unsafe fn fill(self, part: &tile::Part) {
        for start in part.panel.clone().step_by(self.panel()) {
            let panel = start..part.panel.end.min(start + self.panel());
            let accumulate = part.accumulate || start > part.panel.start;
            let part = tile::Part { panel, accumulate, ..part.clone() };
            // SAFETY: `available` is the only maker of units, and has asked the processor; the area is
            // the caller's promise.
            unsafe {
                match self.0 {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Amx => amx::fill(&part),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512 => tile::fill_avx512(&part),
                    Kind::Portable => tile::fill_portable(&part),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::normals;

    fn rounded(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(half(*x))).collect()
    }

    /// The nearest bf16, found by trying both neighbours.
    fn half(x: f32) -> f32 {
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
        let turn = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        let (wide_a, wide_b) = (rounded(&a), rounded(&b));
        let wanted: Vec<f64> =
            (0..m * n).map(|i| (0..k).map(|j| wide_a[i / n * k + j] * wide_b[j * n + i % n]).sum()).collect();
        let lefts = [Left::rows_of(&a, m, k), Left::columns_of(&turn(&a, m, k), k, m)];
        let rights = [Right::columns_of(&b, k, n), Right::rows_of(&turn(&b, k, n), n, k)];
        for (l, left) in lefts.iter().enumerate() {
            for (r, right) in rights.iter().enumerate() {
                for (accumulate, before) in [(false, f32::NAN), (true, 3.0)] {
                    let mut out = vec![before; m * n];
                    multiply(left, right, &mut out, accumulate);
                    let offset = if accumulate { 3.0 } else { 0.0 };
                    let tolerance = 1e-5 * (k as f64).sqrt() + 1e-6;
                    let worst = out.iter().zip(&wanted).map(|(x, y)| (f64::from(*x) - y - offset).abs());
                    let worst = worst.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
                    assert!(worst <= tolerance, "{context}: {m} {k} {n}, {l} {r} {accumulate}: {worst}");
                }
            }
        }
    }

    pub(super) fn multiply(left: &Left, right: &Right, out: &mut [f32], accumulate: bool) {
        if accumulate {
            add_product(out, left, right);
        } else {
            out.copy_from_slice(&product(left, right));
        }
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
            let (left, right) = (Left::rows_of(&[], 2, 0), Right::rows_of(&[], 2, 0));
            add_product(&mut out, &left, &right);
            assert_eq!(out, [1.0; 4]);
            assert_eq!(product(&left, &right), [0.0; 4]);
        }
    }

    #[test]
    fn every_unit_multiplies_whole_numbers_exactly() {
        assert!(Unit::available().into_iter().all(Unit::is_right));
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (k, n, most) = (300, 75, 200);
        let (x, right) = (normals("x", most * k), Right::rows_of(&normals("w", n * k), n, k));
        let product = |rows: std::ops::Range<usize>| {
            product(&Left::rows_of(&x[rows.start * k..rows.end * k], rows.len(), k), &right)
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
            let packed = on(unit, 1, || Right::rows_of(&x, 1, x.len()));
            for (x, got) in x.iter().zip(packed.row(0)) {
                let want = if x.is_subnormal() { 0.0 * x } else { half(*x) };
                assert!(got == want && got.is_sign_negative() == want.is_sign_negative(), "{unit:?}: {x} {got}");
            }
            let nan = on(unit, 1, || Right::rows_of(&[f32::NAN, 1.0], 1, 2));
            assert!(nan.row(0).next().unwrap().is_nan());
        }
    }
}
