//! Learned state in one line of numbers, worked on block by block.

use crate::{parameters::BLOCK, simd::widened};
use rayon::prelude::*;
use std::{borrow::Cow, ops::Range};

/// A line of `f32`: weights, a gradient, a moment, an average, a sum of gradients.
///
/// Whoever learns works on whole flats, in blocks of [`BLOCK`] elements of which the last may be shorter, and asks for
/// numbers only to save or to show them. So where the numbers lie is decided here and nowhere else: today in the
/// memory of the host. What is computed of a block depends on that block alone, and so not on how many threads share
/// the blocks.
///
/// A flat without elements is also what stands for memory that is not there yet ([`crate::Params::swap_grad`]).
///
/// Where processes share a line, each can hold a run of its blocks ([`Flat::hold`]), and works on these alone.
#[derive(Default)]
pub struct Flat {
    /// The elements that are held.
    numbers: Vec<f32>,
    /// The first of them, which begins a block.
    start: usize,
    /// Elements of the whole line.
    len: usize,
    /// Whether processes hold a run each, though one of these runs may be the whole line.
    dealt: bool,
}

impl Flat {
    /// So many zeros. Their memory is not touched before it is used.
    pub fn zeros(len: usize) -> Flat {
        Flat::from(vec![0.0; len])
    }

    /// Elements of the whole line.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the line has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements that are held: all of them, before [`Flat::hold`].
    pub fn held(&self) -> Range<usize> {
        self.start..self.start + self.numbers.len()
    }

    /// Forgets all elements but `held`, and gives their memory back.
    ///
    /// # Panics
    /// When one of these is not held, or a block would be cut.
    pub fn hold(&mut self, held: Range<usize>) {
        let now = self.held();
        self.dealt = true;
        if held == now {
            return;
        }
        let whole = |at: usize| at == self.len || at.is_multiple_of(BLOCK);
        assert!(whole(held.start) && whole(held.end), "{held:?} of {} cuts a block", self.len);
        assert!(now.start <= held.start && held.end <= now.end, "{held:?} of {now:?}");
        self.numbers = self.numbers[held.start - now.start..held.end - now.start].to_vec();
        self.start = held.start;
    }

    /// Where the elements that are held start, and how many the whole line has, once [`Flat::hold`] was called.
    pub fn dealt(&self) -> Option<[usize; 2]> {
        self.dealt.then_some([self.start, self.len])
    }

    /// The numbers that are held, lent where they lie in the memory of the host.
    pub fn read(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.numbers)
    }

    /// Overwrites the numbers that are held.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn write(&mut self, numbers: &[f32]) {
        self.numbers.copy_from_slice(numbers);
    }

    /// Lends the numbers that are held, for other processes to fill some of them in: `f(numbers)`.
    pub fn lend<R>(&mut self, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(&mut self.numbers)
    }

    /// Changes every block of `flats` by what stands in the same block of these and of `others`: calls
    /// `f(block, flats, others)` once for each block that all of them hold, several at a time, and returns what it
    /// returned, in the order of the blocks. `block` is the place in the whole line.
    ///
    /// # Panics
    /// When the lines differ in length.
    pub fn map<const M: usize, const N: usize, R: Send>(
        flats: [&mut Flat; M],
        others: [&Flat; N],
        f: impl Fn(usize, [&mut [f32]; M], [&[f32]; N]) -> R + Sync,
    ) -> Vec<R> {
        let lens = flats.iter().map(|flat| flat.len()).chain(others.iter().map(|flat| flat.len()));
        let lens: Vec<usize> = lens.collect();
        assert!(lens.windows(2).all(|pair| pair[0] == pair[1]), "flats of {lens:?} elements have other blocks");
        let held = flats.iter().map(|flat| flat.held()).chain(others.iter().map(|flat| flat.held()));
        let common = held.reduce(|a, b| a.start.max(b.start)..a.end.min(b.end)).unwrap_or_default();
        let blocks = common.start / BLOCK..common.start / BLOCK + common.len().div_ceil(BLOCK);
        let from = |flat: &Flat| common.start.saturating_sub(flat.start).min(flat.numbers.len());
        let mut flats = flats.map(|flat| {
            let from = from(flat);
            flat.numbers[from..].chunks_mut(BLOCK)
        });
        let mut others = others.map(|flat| flat.numbers[from(flat)..].chunks(BLOCK));
        const COUNTED: &str = "every flat holds these blocks";
        let parts = blocks.map(|block| {
            (
                block,
                flats.each_mut().map(|left| left.next().expect(COUNTED)),
                others.each_mut().map(|left| left.next().expect(COUNTED)),
            )
        });
        let parts: Vec<_> = parts.collect();
        parts.into_par_iter().map(|(block, flats, others)| f(block, flats, others)).collect()
    }

    /// The sum of squares of each block that is held, in `f64`. It is infinite or NaN exactly when an element is, since
    /// no sum of squares of finite `f32` overflows an `f64`, and 0 exactly when all elements are.
    pub fn square_sums(&self) -> Vec<f64> {
        self.square_sums_of(self.held())
    }

    /// As [`Flat::square_sums`], of the blocks of `elements` alone.
    ///
    /// # Panics
    /// When one of these is not held, or a block would be cut.
    pub fn square_sums_of(&self, elements: Range<usize>) -> Vec<f64> {
        let within = elements.start - self.start..elements.end - self.start;
        let whole = within.end == self.numbers.len() || elements.end.is_multiple_of(BLOCK);
        assert!(within.is_empty() || elements.start.is_multiple_of(BLOCK) && whole, "{elements:?} cuts a block");
        self.numbers[within].par_chunks(BLOCK).map(square_sum).collect()
    }

    /// The numbers, for operations on the host.
    pub(crate) fn on_host(&mut self) -> &mut [f32] {
        &mut self.numbers
    }

    /// The memory of the numbers.
    pub(crate) fn into_host(self) -> Vec<f32> {
        self.numbers
    }
}

impl From<Vec<f32>> for Flat {
    /// Numbers that came from a file, without a copy.
    fn from(numbers: Vec<f32>) -> Flat {
        Flat { start: 0, len: numbers.len(), numbers, dealt: false }
    }
}

impl std::fmt::Debug for Flat {
    /// Without its numbers, which are as many as a model's parameters.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Flat({:?} of {})", self.held(), self.len)
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

    /// Flats that hold other runs of one line are walked where all hold something.
    #[track_caller]
    fn check_held(len: usize, one: Range<usize>, other: Range<usize>, blocks: Range<usize>) {
        let (mut whole, mut shard) = (Flat::from(numbers(len, 1)), Flat::from(numbers(len, 2)));
        let mut third = Flat::from(numbers(len, 3));
        shard.hold(one.clone());
        third.hold(other);
        assert_eq!((shard.len(), shard.held()), (len, one.clone()));
        assert_eq!(shard.square_sums(), Flat::from(numbers(len, 2)).square_sums_of(one.clone()));
        let walked = Flat::map([&mut whole, &mut shard], [&third], |block, [whole, shard], [third]| {
            whole.iter_mut().zip(&mut *shard).zip(third).for_each(|((w, s), t)| (*w, *s) = (*s, *t));
            block
        });
        assert_eq!(walked, blocks.clone().collect::<Vec<_>>());
        let touched = (blocks.start * BLOCK).min(len)..(blocks.end * BLOCK).min(len);
        for (i, w) in whole.read().iter().enumerate() {
            assert_eq!(*w, numbers(len, if touched.contains(&i) { 2 } else { 1 })[i], "element {i}");
        }
        for (i, s) in one.zip(shard.read().iter()) {
            assert_eq!(*s, numbers(len, if touched.contains(&i) { 3 } else { 2 })[i], "element {i}");
        }
    }

    #[test]
    fn a_flat_can_hold_a_run_of_its_blocks() {
        let len = 2 * BLOCK + 5;
        check_held(len, 0..len, 0..len, 0..3);
        check_held(len, BLOCK..len, 0..len, 1..3);
        check_held(len, 0..BLOCK, 0..len, 0..1);
        check_held(len, 0..2 * BLOCK, BLOCK..len, 1..2);
        check_held(len, 0..BLOCK, BLOCK..len, 1..1);
        check_held(len, len..len, 0..len, 3..3);
    }

    #[test]
    #[should_panic(expected = "cuts a block")]
    fn a_run_that_cuts_a_block_is_refused() {
        Flat::zeros(2 * BLOCK).hold(0..BLOCK + 1);
    }

    #[test]
    #[should_panic(expected = "have other blocks")]
    fn flats_of_other_lengths_are_refused() {
        Flat::map([&mut Flat::zeros(3)], [&Flat::zeros(2)], |_, _, _| ());
    }
}
