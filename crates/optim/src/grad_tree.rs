//! Gradients of micro-batches, added as a pairwise tree, so that the sum does not depend on how
//! the micro-batches were dealt to ranks.

use crate::blocks::BLOCK;
use rayon::prelude::*;

/// Adds the gradients of a step's micro-batches in a fixed tree: `((0+1)+(2+3))+(4+5)`.
///
/// The tree over `n` leaves splits at the largest power of two below `n`. A rank that holds an
/// aligned run of `2^k` micro-batches therefore computes a subtree of it, and one more tree over
/// the ranks' sums finishes with the same additions in the same order: bit-identical gradients on
/// one rank or many.
///
/// The tree is a binary counter: level `k` is empty or holds the sum of `2^k` micro-batches, so
/// `n` micro-batches need about `log2 n` buffers. The newest sum stays in the caller's buffer, and
/// a single micro-batch is never copied.
///
/// ```
/// use instruct_optim::GradTree;
///
/// let mut tree = GradTree::new(3);
/// let mut grads = vec![0.0; 2];
/// for micro_batch in 1..=3 {
///     grads.iter_mut().for_each(|g| *g += micro_batch as f32); // what a backward pass does
///     tree.push(&mut grads);
/// }
/// assert_eq!(grads, [6.0, 6.0]);
/// ```
#[derive(Debug)]
pub struct GradTree {
    total: usize,
    seen: usize,
    levels: Vec<Option<Vec<f32>>>,
    spare: Vec<Vec<f32>>,
}

impl GradTree {
    /// A tree over `total` micro-batches (at least one) per optimizer step.
    pub fn new(total: usize) -> GradTree {
        GradTree { total: total.max(1), seen: 0, levels: Vec::new(), spare: Vec::new() }
    }

    /// Takes the gradient of the next micro-batch out of `grads`, which must have been zero before
    /// its backward pass.
    ///
    /// Leaves `grads` at zero, ready for the next backward pass; after the last micro-batch it
    /// holds the whole sum instead, and the tree is ready for the next step.
    pub fn push(&mut self, grads: &mut [f32]) {
        self.seen += 1;
        let last = self.seen == self.total;
        for level in &mut self.levels {
            if let Some(earlier) = level.take() {
                add(grads, &earlier);
                self.spare.push(earlier);
            } else if !last {
                *level = Some(take(grads, self.spare.pop()));
                return;
            }
        }
        if last {
            self.seen = 0;
        } else {
            self.levels.push(Some(take(grads, self.spare.pop())));
        }
    }
}

/// Moves `grads` into a buffer and leaves zeros: its memory is the gradient's, and stays there.
fn take(grads: &mut [f32], spare: Option<Vec<f32>>) -> Vec<f32> {
    let mut buffer = spare.unwrap_or_default();
    buffer.clear();
    buffer.extend_from_slice(grads);
    grads.par_chunks_mut(BLOCK).for_each(|block| block.fill(0.0));
    buffer
}

/// `sum += earlier`, element by element.
fn add(sum: &mut [f32], earlier: &[f32]) {
    let blocks = sum.par_chunks_mut(BLOCK).zip(earlier.par_chunks(BLOCK));
    blocks.for_each(|(sum, earlier)| sum.iter_mut().zip(earlier).for_each(|(s, e)| *s += e));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: split at the largest power of two below the number of leaves.
    fn naive(leaves: &[Vec<f32>]) -> Vec<f32> {
        if let [leaf] = leaves {
            return leaf.clone();
        }
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        naive(left).iter().zip(naive(right)).map(|(l, r)| l + r).collect()
    }

    fn through_tree(tree: &mut GradTree, leaves: &[Vec<f32>]) -> Vec<f32> {
        let mut grads = vec![0.0; leaves[0].len()];
        for leaf in leaves {
            assert!(grads.iter().all(|&g| g == 0.0), "the buffer is clean before every backward pass");
            grads.iter_mut().zip(leaf).for_each(|(g, l)| *g += l);
            tree.push(&mut grads);
        }
        grads
    }

    proptest! {
        #[test]
        fn equals_the_recursion_bit_for_bit(
            leaves in (1usize..40).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 3), n))
        ) {
            let mut tree = GradTree::new(leaves.len());
            prop_assert_eq!(through_tree(&mut tree, &leaves), naive(&leaves));
            // The same tree serves the next step.
            prop_assert_eq!(through_tree(&mut tree, &leaves), naive(&leaves));
        }

        #[test]
        fn ranks_add_the_same_numbers(
            share in 0u32..4, ranks in 1usize..6, seed in 1u32..1000
        ) {
            let share = 1usize << share;
            let leaf = |i: usize| vec![(seed as f32 * 0.37 + i as f32).sin() * 10f32.powi(i as i32 % 7), 1.0 / (1.0 + i as f32)];
            let leaves: Vec<_> = (0..share * ranks).map(leaf).collect();
            let alone = through_tree(&mut GradTree::new(leaves.len()), &leaves);
            let sums: Vec<_> = leaves.chunks(share).map(|own| through_tree(&mut GradTree::new(share), own)).collect();
            prop_assert_eq!(through_tree(&mut GradTree::new(ranks), &sums), alone);
        }
    }

    #[test]
    fn one_micro_batch_is_not_copied() {
        let mut tree = GradTree::new(1);
        let mut grads = vec![1.0, 2.0];
        tree.push(&mut grads);
        assert_eq!(grads, [1.0, 2.0]);
        assert!(tree.levels.is_empty() && tree.spare.is_empty());
    }

    #[test]
    fn buffers_stay_logarithmic() {
        let mut tree = GradTree::new(1000);
        let mut grads = vec![1.0];
        for _ in 0..1000 {
            tree.push(&mut grads);
            grads[0] += 1.0;
        }
        assert!(tree.levels.len() + tree.spare.len() <= 20, "{} + {}", tree.levels.len(), tree.spare.len());
    }
}
