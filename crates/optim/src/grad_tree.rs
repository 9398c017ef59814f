//! The gradients of a step, added as a pairwise tree, so that the sum does not depend on who computed which part.

use crate::{Compute, Error};
use instruct_kernels::{Flat, Params};

/// Adds the gradients of a step's micro-batches in a fixed order: those of each leaf in a pairwise tree
/// `((0+1)+(2+3))+(4+5)`, and the leaves in one more such tree.
///
/// A tree over `n` parts splits at the largest power of two below `n`. Whoever holds an aligned run of `2^k` of all
/// leaves therefore computes a subtree, and one more tree over these sums finishes with the same additions in the same
/// order: bit-identical gradients on one rank or many. Micro-batches are cut within a leaf
/// ([`crate::Compute::deal`]), so they do not depend on the other leaves either.
///
/// A tree is a binary counter: level `k` is empty or holds the sum of `2^k` parts, so `n` parts need about `log2 n`
/// flats beside the gradient. Gradients change hands and are not copied ([`Params::swap_grad`]).
///
/// ```
/// use candle_core::{DType, Device};
/// use instruct_kernels::{Params, Path, Spec};
/// use instruct_optim::{Compute, GradTree};
///
/// # fn main() -> instruct_optim::Result<()> {
/// let params = Params::zeros(vec![Spec::new("w", [2])], &Device::Cpu, Path::Composed, DType::F32)?;
/// let leaves = [vec![1.0, 2.0], vec![], vec![3.0]];
/// let compute = Compute { leaves: 3, ..Compute::default() };
/// let counts = GradTree::over(&params, compute, leaves, |tree, micro_batches| -> instruct_optim::Result<_> {
///     for micro_batch in &micro_batches {
///         params.with_grads(|grads| grads.iter_mut().for_each(|g| *g += micro_batch))?; // what a backward pass does
///         tree.push(&params);
///     }
///     Ok([micro_batches.len() as f64])
/// })?;
/// assert_eq!((counts, params.grad("w")?), (vec![[2.0], [0.0], [1.0]], vec![6.0, 6.0]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct GradTree {
    micro_batches: Counter,
    leaves: Counter,
    /// Memory of gradients that were added to others.
    spare: Vec<Flat>,
    /// Whether the gradient has some of it since the last micro-batch.
    lent: bool,
}

impl GradTree {
    /// Calls `leaf(tree, l)` for each of `leaves` that are this rank's own, in order, which takes backward passes of
    /// `params` and [`GradTree::push`]es each. Leaves the sum of all gradients of all ranks in `params`, whose gradient
    /// must be zero at first, and returns what the calls returned on every rank, in the order of the leaves. Of several
    /// ranks each has the sum in its own span alone, which is what [`crate::AdamW`] steps along.
    ///
    /// What a step counts besides its gradient belongs there, N numbers for each leaf: added in the order of the
    /// leaves, they have the same bits whoever computed which.
    ///
    /// Several ranks need [`Compute::check`] to hold, and `leaves` to be as many as it says.
    ///
    /// Errors: the first of `leaf`; those of the ranks. The gradient is then that of no step.
    pub fn over<L, E: From<Error>, const N: usize>(
        params: &Params,
        compute: Compute<'_>,
        leaves: impl IntoIterator<Item = L>,
        mut leaf: impl FnMut(&mut GradTree, L) -> Result<[f64; N], E>,
    ) -> Result<Vec<[f64; N]>, E> {
        let mut tree = GradTree::default();
        let alone = compute.ranks.world() == 1;
        let (own, mut counted) = (compute.own(), Vec::new());
        for (number, l) in leaves.into_iter().enumerate() {
            if !alone && !own.contains(&number) {
                counted.push([0.0; N]);
                continue;
            }
            counted.push(leaf(&mut tree, l)?);
            tree.end_leaf(params);
        }
        let mut sum = tree.leaves.sum(&mut tree.spare);
        params.release_grad();
        params.swap_grad(&mut sum);
        if !alone {
            add_ranks(params, compute, &mut counted)?;
        }
        Ok(counted)
    }

    /// Takes the gradient of the next micro-batch out of `params`, which must have been zero before its backward
    /// pass and is zero after this.
    pub fn push(&mut self, params: &Params) {
        let mut gradient = Flat::default();
        params.swap_grad(&mut gradient);
        if gradient.is_empty() {
            // Nothing has ever been added to it.
            gradient = Flat::zeros(params.len());
        }
        self.lent = false;
        self.micro_batches.add(gradient, &mut self.spare);
        self.lend(params);
    }

    /// Gives the next backward pass memory that is to spare, where it has none.
    fn lend(&mut self, params: &Params) {
        if !self.lent
            && let Some(mut memory) = self.spare.pop()
        {
            params.swap_grad(&mut memory);
            params.zero_grad();
            self.lent = true;
        }
    }

    /// What is pushed after this belongs to the next leaf. A leaf without micro-batches adds zeros.
    fn end_leaf(&mut self, params: &Params) {
        if self.micro_batches.is_zero() {
            self.push(params);
        }
        let leaf = self.micro_batches.sum(&mut self.spare);
        self.leaves.add(leaf, &mut self.spare);
        self.lend(params);
    }
}

/// Finishes the tree over the sums of all ranks, and fills in what the others counted.
fn add_ranks<const N: usize>(params: &Params, compute: Compute<'_>, counted: &mut [[f64; N]]) -> Result<(), Error> {
    let ranks = compute.ranks;
    params.with_grads(|grads| ranks.reduce_scatter(grads))??;
    Ok(ranks.slots(counted.as_flattened_mut())?)
}

/// Parts that are added in pairs as they come.
#[derive(Debug, Default)]
struct Counter {
    /// The sum of `2^k` parts at place `k`, where there is one.
    levels: Vec<Option<Flat>>,
}

impl Counter {
    fn is_zero(&self) -> bool {
        self.levels.iter().all(Option::is_none)
    }

    fn add(&mut self, part: Flat, spare: &mut Vec<Flat>) {
        let mut sum = part;
        for level in &mut self.levels {
            match level.take() {
                Some(earlier) => spare.push(add(earlier, &mut sum)),
                None => {
                    *level = Some(sum);
                    return;
                }
            }
        }
        self.levels.push(Some(sum));
    }

    /// The sum of all parts, without elements when there were none, and none are left.
    fn sum(&mut self, spare: &mut Vec<Flat>) -> Flat {
        let mut parts = self.levels.drain(..).flatten();
        let mut sum = parts.next().unwrap_or_default();
        spare.extend(parts.map(|earlier| add(earlier, &mut sum)));
        sum
    }
}

/// Adds `earlier` to `sum`, in the memory of `earlier`: so that of a step's first gradient stays the gradient's, which
/// a model lends to another ([`Params::hand_over_grad`]). What is returned is memory that nobody reads any more.
fn add(mut earlier: Flat, sum: &mut Flat) -> Flat {
    Flat::map([&mut earlier], [sum], |_, [earlier], [sum]| earlier.iter_mut().zip(sum).for_each(|(e, s)| *e += s));
    std::mem::swap(&mut earlier, sum);
    earlier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::params;
    use instruct_collective::testing::pairwise;
    use proptest::prelude::*;

    type Parts = Vec<Vec<f32>>;

    /// The definition; of no parts, zeros.
    fn naive(parts: &[Vec<f32>]) -> Vec<f32> {
        if parts.is_empty() { vec![0.0; 3] } else { pairwise(parts) }
    }

    /// One step of a model whose backward passes give these gradients, and what is left in it.
    fn through_tree(params: &Params, leaves: &[Parts]) -> Vec<f32> {
        params.zero_grad();
        let lens = GradTree::over(params, Compute::default(), leaves, |tree, leaf| -> crate::Result<_> {
            for part in leaf {
                params.with_grads(|grads| {
                    assert!(grads.iter().all(|&g| g == 0.0), "it is zero before every backward pass");
                    grads.iter_mut().zip(part).for_each(|(g, x)| *g += x);
                })?;
                tree.push(params);
            }
            Ok([leaf.len() as f64])
        });
        assert_eq!(lens.unwrap(), leaves.iter().map(|leaf| [leaf.len() as f64]).collect::<Vec<_>>());
        params.grad("w").unwrap()
    }

    fn model() -> Params {
        params(&[("v", &[2]), ("w", &[3])])
    }

    /// As `backward` leaves it in the flat gradient, in the slot of `w`.
    fn in_slot(part: &[f32]) -> Vec<f32> {
        let at = model().slots()[1].offset;
        let mut flat = vec![0.0; at + part.len()];
        flat[at..].copy_from_slice(part);
        flat
    }

    fn placed(leaves: &[Parts]) -> Vec<Parts> {
        leaves.iter().map(|leaf| leaf.iter().map(|part| in_slot(part)).collect()).collect()
    }

    fn sums(leaves: &[Parts]) -> Parts {
        leaves.iter().map(|leaf| naive(leaf)).collect()
    }

    fn parts(most: usize) -> impl Strategy<Value = Parts> {
        prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 3), 0..most)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn equals_the_recursion_bit_for_bit(leaves in prop::collection::vec(parts(12), 1..9), one in parts(40)) {
            let params = model();
            prop_assert_eq!(through_tree(&params, &placed(&leaves)), naive(&sums(&leaves)));
            // One leaf is the tree of all micro-batches.
            prop_assert_eq!(through_tree(&params, &placed(std::slice::from_ref(&one))), naive(&one));
        }

        #[test]
        fn ranks_add_the_same_numbers(leaves in 1usize..9, examples in 0usize..30, together in 1usize..4, seed in 1u32..1000) {
            // A micro-batch holds a few examples of one leaf.
            let example = |i: usize| vec![(seed as f32 * 0.37 + i as f32).sin() * 10f32.powi(i as i32 % 7), 1.0 / (1.0 + i as f32), -0.0];
            let micro = |run: &[Vec<f32>]| run.iter().fold(vec![0.0; 3], |sum, x| sum.iter().zip(x).map(|(a, b)| a + b).collect());
            let examples: Parts = (0..examples).map(example).collect();
            let compute = Compute { leaves: 4 * leaves, ..Compute::default() };
            let leaves: Vec<Parts> =
                compute.deal(examples.len()).map(|run| examples[run].chunks(together).map(micro).collect()).collect();
            let bits = |gradient: Vec<f32>| gradient.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let alone = bits(through_tree(&model(), &placed(&leaves)));
            for share in [1, 2, 4] {
                // Each run of leaves on a model of its own, and a leaf each of one more tree.
                let ranks: Vec<Parts> =
                    leaves.chunks(share).map(|own| vec![through_tree(&model(), &placed(own))]).collect();
                prop_assert_eq!(&bits(through_tree(&model(), &placed(&ranks))), &alone, "runs of {} leaves", share);
            }
        }
    }

    /// The flats that exist beside the gradient, at most, in a step of these micro-batches per leaf.
    #[track_caller]
    fn check_flats(leaves: &[usize], wanted: usize) {
        let (params, mut tree, mut most) = (model(), GradTree::default(), 0);
        for &micro_batches in leaves {
            for _ in 0..micro_batches {
                let held = |counter: &Counter| counter.levels.iter().flatten().count();
                most = most.max(held(&tree.micro_batches) + held(&tree.leaves) + tree.spare.len());
                tree.push(&params);
            }
            tree.end_leaf(&params);
        }
        assert_eq!(most, wanted, "{leaves:?}");
    }

    #[test]
    fn flats_are_as_many_as_the_levels_of_both_trees() {
        check_flats(&[1], 0);
        check_flats(&[2], 1);
        check_flats(&[1000], 9);
        check_flats(&[1, 1], 1);
        check_flats(&[1; 4], 2);
        check_flats(&[4; 4], 4);
        check_flats(&[3; 7], 3);
    }

    #[test]
    fn a_gradient_keeps_its_memory() {
        let params = model();
        let address = |params: &Params| params.with_grads(|grads| grads.as_ptr() as usize).unwrap();
        let before = address(&params);
        for leaves in [vec![1], vec![3, 0, 4]] {
            let leaves: Vec<Parts> = leaves.into_iter().map(|n| vec![in_slot(&[1.0, 2.0, 3.0]); n]).collect();
            through_tree(&params, &leaves);
            assert_eq!(address(&params), before);
        }
    }
}
