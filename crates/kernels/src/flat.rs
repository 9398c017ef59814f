//! Learned state in one line of numbers, worked on block by block.

use crate::{parameters::BLOCK, simd::widened};
use rayon::prelude::*;
use std::borrow::Cow;

/// A line of `f32`: weights, a gradient, a moment, an average, a sum of gradients.
///
/// Whoever learns works on whole flats, in blocks of [`BLOCK`] elements of which the last may be shorter, and asks for
/// numbers only to save or to show them. So where the numbers lie is decided here and nowhere else: today in the
/// memory of the host. What is computed of a block depends on that block alone, and so not on how many threads share
/// the blocks.
///
/// A flat without elements is also what stands for memory that is not there yet ([`crate::Params::swap_grad`]).
#[derive(Default)]
pub struct Flat {
    numbers: Vec<f32>,
}

impl Flat {
    /// So many zeros. Their memory is not touched before it is used.
    pub fn zeros(len: usize) -> Flat {
        Flat { numbers: vec![0.0; len] }
    }

    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// All numbers, lent where they lie in the memory of the host.
    pub fn read(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.numbers)
    }

    /// Overwrites all numbers.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn write(&mut self, numbers: &[f32]) {
        self.numbers.copy_from_slice(numbers);
    }

    /// Changes every block of `flats` by what stands in the same block of these and of `others`: calls
    /// `f(block, flats, others)` once for each block, several at a time, and returns what it returned, in the order
    /// of the blocks.
    ///
    /// # Panics
    /// When the flats differ in length.
    pub fn map<const M: usize, const N: usize, R: Send>(
        flats: [&mut Flat; M],
        others: [&Flat; N],
        f: impl Fn(usize, [&mut [f32]; M], [&[f32]; N]) -> R + Sync,
    ) -> Vec<R> {
        let lens = flats.iter().map(|flat| flat.len()).chain(others.iter().map(|flat| flat.len()));
        let lens: Vec<usize> = lens.collect();
        assert!(lens.windows(2).all(|pair| pair[0] == pair[1]), "flats of {lens:?} elements have other blocks");
        let blocks = lens.first().map_or(0, |len| len.div_ceil(BLOCK));
        let mut flats = flats.map(|flat| flat.numbers.chunks_mut(BLOCK));
        let mut others = others.map(|flat| flat.numbers.chunks(BLOCK));
        const COUNTED: &str = "every flat has as many blocks";
        let parts = (0..blocks).map(|_| {
            (
                flats.each_mut().map(|left| left.next().expect(COUNTED)),
                others.each_mut().map(|left| left.next().expect(COUNTED)),
            )
        });
        let parts: Vec<_> = parts.collect();
        parts.into_par_iter().enumerate().map(|(block, (flats, others))| f(block, flats, others)).collect()
    }

    /// The sum of squares of each block, in `f64`. It is infinite or NaN exactly when an element is, since no sum of
    /// squares of finite `f32` overflows an `f64`, and 0 exactly when all elements are.
    pub fn square_sums(&self) -> Vec<f64> {
        Flat::map([], [self], |_, [], [block]| square_sum(block))
    }

    /// The numbers, for operations on the host.
    pub(crate) fn on_host(&mut self) -> &mut Vec<f32> {
        &mut self.numbers
    }
}

impl From<Vec<f32>> for Flat {
    /// Numbers that came from a file, without a copy.
    fn from(numbers: Vec<f32>) -> Flat {
        Flat { numbers }
    }
}

impl std::fmt::Debug for Flat {
    /// Without its numbers, which are as many as a model's parameters.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Flat({})", self.len())
    }
}

/// The sum of squares of one block, in eight fixed lanes that are added in pairs, so that the compiler may use vectors
/// without changing the order of additions.
fn square_sum(block: &[f32]) -> f64 {
    let [a, b, c, d, e, f, g, h] = widened(
        #[inline(always)]
        || {
            let (rows, rest) = block.as_chunks::<8>();
            let mut lanes = [0.0; 8];
            for row in rows {
                for (lane, &x) in lanes.iter_mut().zip(row) {
                    *lane += f64::from(x) * f64::from(x);
                }
            }
            for (lane, &x) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(x) * f64::from(x);
            }
            lanes
        },
    );
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, shift: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + shift) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Blocks are walked once each, in the same places of every flat, whatever the threads.
    #[track_caller]
    fn check(len: usize, threads: usize) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut sum, mut product) = (Flat::from(numbers(len, 1)), Flat::zeros(len));
        let other = Flat::from(numbers(len, 2));
        let lens = pool.install(|| {
            Flat::map([&mut sum, &mut product], [&other], |block, [sum, product], [other]| {
                for ((s, p), o) in sum.iter_mut().zip(&mut *product).zip(other) {
                    (*s, *p) = (*s + o, *s * o);
                }
                (block, sum.len())
            })
        });
        let (a, b) = (numbers(len, 1), numbers(len, 2));
        assert!(sum.read().iter().zip(a.iter().zip(&b)).all(|(s, (a, b))| *s == a + b), "{len}");
        assert!(product.read().iter().zip(a.iter().zip(&b)).all(|(p, (a, b))| *p == a * b), "{len}");
        let blocks = |(i, block): (usize, &[f32])| (i, block.len());
        assert_eq!(lens, a.chunks(BLOCK).enumerate().map(blocks).collect::<Vec<_>>());
        let sums = pool.install(|| other.square_sums());
        for (found, block) in sums.iter().zip(b.chunks(BLOCK)) {
            let wanted: f64 = block.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((found - wanted).abs() <= 1e-12 * wanted.max(1.0), "{len}: {found}, wanted {wanted}");
        }
        assert_eq!(sums, other.square_sums(), "{threads} threads");
        product.write(&b);
        assert_eq!(product.read(), other.read());
    }

    #[test]
    fn every_block_is_worked_on_once() {
        for len in [0, 1, 7, 9, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17] {
            [1, 3].into_iter().for_each(|threads| check(len, threads));
        }
    }

    #[test]
    fn squares_show_what_is_not_finite_and_what_is_not_zero() {
        let with = |x: f32| {
            let mut flat = Flat::zeros(2 * BLOCK);
            flat.on_host()[BLOCK + 1] = x;
            flat.square_sums()
        };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(with(bad)[0] == 0.0 && !with(bad)[1].is_finite());
        }
        assert!(with(f32::from_bits(1))[1] > 0.0, "the smallest number there is");
        assert_eq!(with(-0.0), [0.0; 2]);
        assert!(Flat::from(vec![f32::MAX; BLOCK]).square_sums()[0].is_finite());
    }

    #[test]
    #[should_panic(expected = "have other blocks")]
    fn flats_of_other_lengths_are_refused() {
        Flat::map([&mut Flat::zeros(3)], [&Flat::zeros(2)], |_, _, _| ());
    }
}
