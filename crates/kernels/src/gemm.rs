//! Matrix products on row-major slices, made so that a row does not depend on its neighbours.
//!
//! The `gemm` crate chooses its way by the shape of the whole product, and some of the ways add in
//! another order: matrix-vector products, products of at most 256 results, and depths over 512,
//! which it cuts differently for small and for large products. [`rows_product`] avoids all three, so that
//! the logits of a token are the same bits whether it is decoded alone or trained on in a batch; few
//! rows take a way of our own ([`few_rows`]) that adds in the same order.

use crate::{few_rows, matrix::Matrix, op, simd::Level, transposed};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Depth that the `gemm` crate never cuts, whatever the rest of the shape. Longer sums are cut
/// here, the same way for every number of rows.
const DEPTH: usize = 512;

/// Fewest rows for which products of the `gemm` crate agree; where fewer come to it, because
/// [`few_rows`] would round otherwise, they are padded with zeros.
const MIN_ROWS: usize = 8;

/// Widest result for which `MIN_ROWS` rows would still count as a small product.
pub(crate) const NARROW: usize = 256 / MIN_ROWS;

/// Most rows of a matrix that is transposed before a product: those of a panel of 4 MiB. With matrices of 256 to 2,048
/// rows, products of 1,024 rows then took as long or up to a quarter less, products of 256 rows up to half less. With
/// larger matrices some took longer.
const MOST_TRANSPOSED: usize = 2_048;

/// `x wᵀ + b` for `x (n, k)` and `w (out, k)`: `(n, out)`, each row with the same bits whatever n and
/// whatever the number of threads. A row begins `stride` after the one before, with zeros between them.
pub(crate) fn rows_product(x: &[f32], w: Matrix, b: Option<&[f32]>, stride: usize) -> Vec<f32> {
    let Matrix { rows: out, columns: k, .. } = w;
    let n = x.len() / k.max(1);
    if out > NARROW && k > 2 && n <= few_rows::MOST_ROWS && Level::best().fuses() {
        return few_rows::product(x, w, b, stride, DEPTH);
    }
    let mut y = if out <= NARROW || k <= 2 {
        spread(narrow_product(x, w.elements, k, out), out, stride)
    } else {
        many_rows_product(x, w, stride)
    };
    if let Some(b) = b {
        y.par_chunks_mut((op::ROWS * stride).max(1))
            .for_each(|rows| rows.chunks_exact_mut(stride).for_each(|row| op::add(row, b)));
    }
    y
}

/// [`rows_product`] by the `gemm` crate.
fn many_rows_product(x: &[f32], w: Matrix, stride: usize) -> Vec<f32> {
    let Matrix { rows: out, columns: k, .. } = w;
    let n = x.len() / k;
    if n < MIN_ROWS {
        let mut padded = vec![0.0; MIN_ROWS * k];
        padded[..n * k].copy_from_slice(x);
        let mut result = many_rows_product(&padded, w, stride);
        result.truncate(n * stride);
        return result;
    }
    let x = Matrix::new(x, n, k);
    let write = |y: *mut f32| {
        // SAFETY: `made` lends `n` rows, and the first panel reads none of them.
        #[allow(unsafe_code)]
        unsafe {
            if out <= MOST_TRANSPOSED { fill_transposed(y, stride, x, w) } else { fill(y, stride, false, x, w.t()) }
        }
    };
    // SAFETY: either way writes every element of every row, because k is not 0.
    #[allow(unsafe_code)]
    unsafe {
        made(n, out, stride, write)
    }
}

/// `a b`.
pub(crate) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    if a.columns == 0 {
        return vec![0.0; a.rows * b.columns];
    }
    // SAFETY: `made` lends as many rows, and the first panel reads none of them and writes every element.
    #[allow(unsafe_code)]
    unsafe {
        made(a.rows, b.columns, b.columns, |out| fill(out, b.columns, false, a, b))
    }
}

/// `out += a b`, or with `overwrite` `out = a b`.
pub(crate) fn add_product(out: &mut [f32], overwrite: bool, a: Matrix, b: Matrix) {
    assert_eq!(out.len(), a.rows * b.columns, "the sum of a {} x {} product", a.rows, b.columns);
    if overwrite && a.columns == 0 {
        out.fill(0.0);
    }
    // SAFETY: `out` holds `a.rows * b.columns` initialised elements that nobody else can see.
    #[allow(unsafe_code)]
    unsafe {
        fill(out.as_mut_ptr(), b.columns, !overwrite, a, b)
    };
}

/// `rows` rows that begin `stride` apart, with zeros after the columns that `write` fills in.
///
/// # Safety
///
/// `write` writes `columns` elements of every row, and nothing else, to where it is told to.
#[allow(unsafe_code)]
pub(crate) unsafe fn made(rows: usize, columns: usize, stride: usize, write: impl FnOnce(*mut f32)) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * stride);
    write(out.as_mut_ptr());
    for row in out.spare_capacity_mut()[..rows * stride].chunks_exact_mut(stride.max(1)) {
        row[columns..].fill(MaybeUninit::new(0.0));
    }
    // SAFETY: the columns are the caller's promise, and the rest was just written.
    unsafe { out.set_len(rows * stride) };
    out
}

/// Rows of `columns`, moved to `stride` apart.
fn spread(rows: Vec<f32>, columns: usize, stride: usize) -> Vec<f32> {
    if columns == stride {
        return rows;
    }
    let mut apart = vec![0.0; rows.len() / columns.max(1) * stride];
    for (to, row) in apart.chunks_exact_mut(stride).zip(rows.chunks_exact(columns.max(1))) {
        to[..columns].copy_from_slice(row);
    }
    apart
}

/// [`fill`] with `x wᵀ`, transposing one panel of `w` after the other.
///
/// # Safety
///
/// As [`fill`].
#[allow(unsafe_code)]
unsafe fn fill_transposed(out: *mut f32, stride: usize, x: Matrix, w: Matrix) {
    let mut copy = Vec::new();
    for start in (0..w.columns).step_by(DEPTH) {
        let depth = DEPTH.min(w.columns - start);
        transposed::transpose_columns(&mut copy, w.elements, w.columns, start..start + depth);
        let x = Matrix { elements: &x.elements[start..], columns: depth, ..x };
        let (row_stride, column_stride) = (transposed::stride(w.rows), 1);
        let w = Matrix { elements: &copy, rows: depth, columns: w.rows, row_stride, column_stride };
        // SAFETY: the caller's promise.
        unsafe { run(out, stride, start > 0, x, w) };
    }
}

/// `out = a b`, or `out += a b` when `accumulate`, panel after panel of the depth.
///
/// # Safety
///
/// `out` points to `a.rows` rows of `b.columns` elements, `stride` apart, that nobody else accesses, initialised
/// when `accumulate`.
#[allow(unsafe_code)]
unsafe fn fill(out: *mut f32, stride: usize, accumulate: bool, a: Matrix, b: Matrix) {
    for (i, (a, b)) in panels(a, b).enumerate() {
        // SAFETY: the caller's promise; every panel but the first finds what the one before wrote.
        unsafe { run(out, stride, accumulate || i > 0, a, b) };
    }
}

/// Cuts the depth of `a b` into panels of at most [`DEPTH`], first to last.
fn panels<'a>(a: Matrix<'a>, b: Matrix<'a>) -> impl Iterator<Item = (Matrix<'a>, Matrix<'a>)> {
    assert_eq!(a.columns, b.rows, "the depths of a product");
    // Without rows or columns there is nothing to add to, and no element where a panel would start.
    let depth = if a.rows * b.columns == 0 { 0 } else { a.columns };
    (0..depth).step_by(DEPTH).map(move |start| {
        let depth = DEPTH.min(a.columns - start);
        let left = Matrix { elements: &a.elements[start * a.column_stride..], columns: depth, ..a };
        let right = Matrix { elements: &b.elements[start * b.row_stride..], rows: depth, ..b };
        (left, right)
    })
}

/// One panel of [`fill`]. It works in parallel when the product is large enough to be worth it, which changes no
/// bit.
///
/// # Safety
///
/// As [`fill`].
#[allow(unsafe_code)]
unsafe fn run(out: *mut f32, stride: usize, accumulate: bool, a: Matrix, b: Matrix) {
    let apart = |x: usize| x as isize;
    // SAFETY: a `Matrix` cannot be made without its last element, `(rows - 1) row_stride +
    // (columns - 1) column_stride`, lying inside its slice; `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out,
            1,
            apart(stride),
            accumulate,
            a.elements.as_ptr(),
            apart(a.column_stride),
            apart(a.row_stride),
            b.elements.as_ptr(),
            apart(b.column_stride),
            apart(b.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

/// `x wᵀ` one dot product at a time: for heads with few outputs, where the `gemm` crate's way
/// depends on the number of rows.
fn narrow_product(x: &[f32], w: &[f32], k: usize, out: usize) -> Vec<f32> {
    if k == 0 {
        return Vec::new();
    }
    let row = |x: &[f32]| w.chunks_exact(k).map(|w| dot(x, w)).collect::<Vec<f32>>();
    let rows = x.par_chunks_exact(k).with_min_len(64).map(row).collect::<Vec<_>>();
    debug_assert!(rows.iter().all(|row| row.len() == out));
    rows.concat()
}

/// The dot product in sixteen running sums, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::on;
    use instruct_random::Source;

    fn random(purpose: &str, len: usize) -> Vec<f32> {
        let mut draws = Source::new(7, purpose).at([len as u64]);
        (0..len).map(|_| draws.normal()).collect()
    }

    fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    }

    /// The bits of a row are those of the largest product, whatever rows stand beside it.
    #[track_caller]
    fn check_rows(k: usize, out: usize, most: usize) {
        let x = random("x", most * k);
        let w = random("w", out * k);
        let w = Matrix::new(&w, out, k);
        let whole = on_threads(1, || rows_product(&x, w, None, out));
        let counts = [1, 2, 3, 5, 7, 8, 9, 11, 15, 16, 17, 31, 33, 48, 63, 64, 65, 95, 97, 128, 191, 500, 1023, 2100];
        for n in counts.into_iter().chain([most]).filter(|&n| n <= most) {
            for (threads, first) in [(1, 0), (2, 0), (2, most - n), (3, (most - n) / 2)] {
                let some = &x[first * k..(first + n) * k];
                for stride in [out, out + 5] {
                    let part = on_threads(threads, || rows_product(some, w, None, stride));
                    assert_eq!(part.len(), n * stride);
                    let rows = part.chunks_exact(stride).zip(whole[first * out..].chunks_exact(out));
                    let same =
                        rows.flat_map(|(row, whole)| row.iter().zip(whole)).all(|(a, b)| a.to_bits() == b.to_bits());
                    let gaps = part.chunks_exact(stride).all(|row| row[out..].iter().all(|x| *x == 0.0));
                    assert!(same && gaps, "k {k}, out {out}, rows {first}+{n} {stride} apart, {threads} threads");
                }
            }
        }
        // Few rows take a way of our own, which has its own instructions at every level.
        for (level, n) in Level::available()
            .into_iter()
            .flat_map(|level| [1, 7, 9, 32, 33, 64, 65, few_rows::MOST_ROWS].map(|n| (level, n)))
        {
            let part = on(level, 2, false, || rows_product(&x[..n * k], w, None, out));
            let same = part.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "k {k}, out {out}, {n} rows, {level:?}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        for k in [1, 2, 3, 17, 48, 64, 128, 160, 344, 512, 513, 576] {
            for out in [1, 2, 31, 32, 33, 48, 64, 65, 128, 384] {
                check_rows(k, out, 700);
            }
        }
        for (k, out, most) in [
            (64, 2048, 5000),
            (160, 512, 5000),
            (512, 128, 5000),
            (2048, 576, 2500),
            (576, 2048, 2500),
            (2048, 48, 2500),
            (1536, 1, 2500),
            (1000, 7, 2500),
        ] {
            check_rows(k, out, most);
        }
    }

    #[track_caller]
    fn check_product(m: usize, k: usize, n: usize) {
        let (a, b) = (random("a", m * k), random("b", k * n));
        let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
        let expected: Vec<f64> = (0..m * n)
            .map(|i| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum())
            .collect();
        let close = |got: &[f32], offset: f64| {
            let tolerance = 1e-5 * (k as f64).sqrt() + 1e-6;
            got.iter().zip(&expected).all(|(got, expected)| (f64::from(*got) - expected - offset).abs() < tolerance)
        };
        let (left, right) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
        assert!(close(&product(left, right), 0.0), "{m} {k} {n}");
        assert!(close(&product(Matrix::new(&at, k, m).t(), right), 0.0), "{m} {k} {n}: left transposed");
        assert!(close(&product(left, Matrix::new(&bt, n, k).t()), 0.0), "{m} {k} {n}: right transposed");
        assert!(close(&rows_product(&a, Matrix::new(&bt, n, k), None, n), 0.0), "{m} {k} {n}: by rows");
        let mut sum = vec![3.0; m * n];
        add_product(&mut sum, false, Matrix::new(&at, k, m).t(), right);
        assert!(close(&sum, 3.0), "{m} {k} {n}: added");
        add_product(&mut sum, true, left, right);
        assert!(close(&sum, 0.0), "{m} {k} {n}: overwritten");
        let again = on_threads(1, || product(Matrix::new(&at, k, m).t(), right));
        let many = on_threads(3, || product(Matrix::new(&at, k, m).t(), right));
        assert_eq!(again, many, "{m} {k} {n}: one thread and three");
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, k, n) in [(1, 1, 1), (1, 5, 3), (8, 64, 64), (13, 600, 7), (70, 1030, 33), (129, 17, 65), (3, 2, 100)] {
            check_product(m, k, n);
        }
        assert_eq!(product(Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2)), [0.0; 4]);
        assert!(rows_product(&[], Matrix::new(&[1.0; 80], 40, 2), None, 40).is_empty());
        let mut sum = [3.0; 4];
        add_product(&mut sum, true, Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2));
        assert_eq!(sum, [0.0; 4]);
    }
}
