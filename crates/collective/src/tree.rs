//! One order of addition: a pairwise tree over ranks.

/// Adds the parts of all ranks, of `len` elements each, into the first one, in the tree that splits at the largest power
/// of two below their number; the other parts are left as partial sums.
pub(crate) fn add_up(parts: &mut [f32], len: usize) {
    let ranks = parts.len() / len.max(1);
    let mut stride = 1;
    while stride < ranks {
        for left in (0..ranks - stride).step_by(2 * stride) {
            let (below, above) = parts.split_at_mut((left + stride) * len);
            let (sum, other) = (&mut below[left * len..][..len], &above[..len]);
            sum.iter_mut().zip(other).for_each(|(s, o)| *s += o);
        }
        stride *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        shard::{NOTHING, deal},
        testing::pairwise,
    };
    use proptest::prelude::*;

    fn added(leaves: &[Vec<f32>]) -> Vec<f32> {
        let len = leaves[0].len();
        let mut parts = leaves.concat();
        add_up(&mut parts, len);
        parts[..len].to_vec()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn equals_the_recursion_bit_for_bit(
            leaves in (1usize..40).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 3), n))
        ) {
            prop_assert_eq!(bits(&added(&leaves)), bits(&pairwise(&leaves)));
        }

        #[test]
        fn dealt_to_any_number_of_ranks_the_sum_has_the_same_bits(
            leaves in (1usize..40).prop_flat_map(|n| prop::collection::vec(
                prop::collection::vec(prop_oneof![-1e6f32..1e6, Just(-0.0), Just(0.0)], 3), n)),
            world in 1usize..12
        ) {
            let own = |rank| match &leaves[deal(leaves.len(), rank, world)] {
                [] => vec![NOTHING; 3],
                own => pairwise(own),
            };
            let sums: Vec<_> = (0..world).map(own).collect();
            prop_assert_eq!(bits(&added(&sums)), bits(&pairwise(&leaves)));
        }
    }

    #[test]
    fn nothing_can_be_added_up() {
        add_up(&mut [], 0);
    }
}
