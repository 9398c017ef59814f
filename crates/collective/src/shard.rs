//! Who has what: blocks of a flat buffer, leaves of a sum, pieces of a bucket.

use std::ops::Range;

/// Elements of a block, the unit in which a flat buffer is dealt; `instruct_kernels::BLOCK` is the same number, so no
/// block is shared between ranks and what is computed block by block does not depend on their number.
pub const BLOCK: usize = 4096;

/// The most that one exchange of a data call sends from a rank, in bytes: large enough that the time to start an
/// exchange does not matter, small enough beside a model, and far below MPI's limit of 2^31 elements.
pub const BUCKET_BYTES: usize = 25 << 20;

/// What a rank that was dealt no leaf fills its gradient with. Minus zero is the number whose addition changes no bit;
/// adding 0.0 would turn a -0.0 into 0.0, and the sum would depend on the number of ranks.
pub const NOTHING: f32 = -0.0;

/// The elements that `rank` of `world` owns, of a flat buffer of `len`: a run of `ceil(blocks / world)` blocks, less or none
/// at the end.
///
/// ```
/// use instruct_collective::{BLOCK, span};
///
/// let len = 6 * BLOCK + 5;
/// assert_eq!([0, 1, 2].map(|rank| span(len, rank, 3)), [0..3 * BLOCK, 3 * BLOCK..6 * BLOCK, 6 * BLOCK..len]);
/// ```
pub fn span(len: usize, rank: usize, world: usize) -> Range<usize> {
    run_of(BLOCK * len.div_ceil(BLOCK).div_ceil(world), rank, len)
}

/// The leaves of a sum (micro-batches of a step) that `rank` of `world` computes, of `leaves`.
///
/// Runs have the length of a power of two, the least with which `world` ranks suffice, so that each is a subtree of the
/// sum and its bits do not depend on `world`. The last ranks may have few or none; where `leaves / world` is a power of
/// two all have the same.
///
/// ```
/// use instruct_collective::deal;
///
/// assert_eq!([0, 1, 2, 3].map(|rank| deal(8, rank, 4)), [0..2, 2..4, 4..6, 6..8]);
/// assert_eq!([0, 1, 2, 3].map(|rank| deal(5, rank, 4)), [0..2, 2..4, 4..5, 5..5]);
/// ```
pub fn deal(leaves: usize, rank: usize, world: usize) -> Range<usize> {
    run_of(leaves.div_ceil(world).next_power_of_two(), rank, leaves)
}

/// Run number `index` of those of length `run`, of `total`.
fn run_of(run: usize, index: usize, total: usize) -> Range<usize> {
    let start = run.saturating_mul(index).min(total);
    start..start.saturating_add(run).min(total)
}

/// How one data call is cut: in each round every rank handles a piece of at most `step` elements of its span.
pub(crate) struct Rounds {
    len: usize,
    world: usize,
    /// The length of the longest span, which is the first.
    longest: usize,
    step: usize,
}

impl Rounds {
    /// Rounds over a flat buffer of `len`, with pieces such that those of all ranks fit into `bytes`.
    pub(crate) fn new(len: usize, world: usize, bytes: usize) -> Rounds {
        let longest = span(len, 0, world).len();
        Rounds { len, world, longest, step: per_rank(bytes, size_of::<f32>(), world).min(longest.max(1)) }
    }

    /// Elements of all pieces of the first round; no other has more.
    pub(crate) fn bucket(&self) -> usize {
        self.world * self.step
    }

    /// Where each round's pieces start within their spans, and how long they are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.longest).step_by(self.step).map(|start| (start, self.step.min(self.longest - start)))
    }

    /// The elements of the flat buffer in the piece of `rank`, in the round that starts at `start`; `step` of them, or
    /// fewer at the end of its span.
    pub(crate) fn piece(&self, rank: usize, start: usize, step: usize) -> Range<usize> {
        let span = span(self.len, rank, self.world);
        let from = (span.start + start).min(span.end);
        from..(from + step).min(span.end)
    }
}

/// Elements of `size` bytes for each of `world` ranks, so that all fit into `bytes`; at least one.
pub(crate) fn per_rank(bytes: usize, size: usize, world: usize) -> usize {
    (bytes / size / world).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_block_element_and_leaf_has_one_owner(len in 0usize..100_000, world in 1usize..40) {
            let cuts: [&dyn Fn(usize) -> (Range<usize>, usize); 2] = [
                &|rank| (span(len, rank, world), len),
                &|rank| (deal(len, rank, world), len),
            ];
            for cut in cuts {
                let mut next = 0;
                for rank in 0..world {
                    prop_assert_eq!(cut(rank).0.start, next);
                    next = cut(rank).0.end;
                }
                prop_assert_eq!(next, cut(0).1);
            }
        }

        #[test]
        fn a_span_is_a_run_of_whole_blocks(len in 0usize..100_000, world in 1usize..40, rank in 0usize..40) {
            let (own, run) = (span(len, rank % world, world), len.div_ceil(BLOCK).div_ceil(world));
            let block = |at: usize| (at * BLOCK).min(len);
            prop_assert_eq!(own, block(rank % world * run)..block((rank % world + 1) * run));
        }

        #[test]
        fn rounds_take_every_element_once_and_never_more_than_a_bucket(
            len in 0usize..60_000, world in 1usize..9, bytes in 1usize..200_000
        ) {
            let rounds = Rounds::new(len, world, bytes);
            prop_assert!(rounds.bucket() * 4 <= bytes.max(4 * world));
            let mut taken = vec![0; len];
            for (start, step) in rounds.iter() {
                prop_assert!(step * world <= rounds.bucket());
                for rank in 0..world {
                    let piece = rounds.piece(rank, start, step);
                    prop_assert!(piece.len() <= step);
                    taken[piece].iter_mut().for_each(|times| *times += 1);
                }
            }
            prop_assert!(taken.iter().all(|&times| times == 1));
        }

        #[test]
        fn runs_of_leaves_are_aligned_powers_of_two(leaves in 1usize..300, world in 1usize..40) {
            let run = deal(leaves, 0, world).len();
            prop_assert!(run.is_power_of_two() || world == 1 || run == leaves);
            prop_assert!(run < 2 * leaves.div_ceil(world));
        }
    }
}
