//! What a fine-tuning holds at its worst, before it begins.

use crate::{Data, Example, Plan, batch::share_of};
use candle_core::DType;
use instruct_model::{
    Config, HeadKind,
    memory::{Buffers, Estimate, Phase, Readout, recorded, sums},
};
use instruct_optim::Compute;

/// The most that [`crate::train`] holds, from the lengths of its examples:
///
/// ```text
/// 4 P  +  max over demonstrations and windows of (sums + kept(n) + temporary(n))  +  slack
/// n = min(tokens of a leaf, max(micro-tokens, longest example))
/// ```
///
/// for a decoder of P parameters whose products round to `products`; of the 2 P of moments each rank holds its part.
/// Nothing is computed and nothing allocated.
pub fn memory(config: &Config, data: &Data<'_>, plan: &Plan, compute: Compute, products: DType) -> Estimate {
    let demonstrations: Vec<usize> = data.demonstrations.iter().map(Example::tokens).collect();
    let windows: Vec<usize> = data.pretraining.iter().map(Vec::len).collect();
    let (texts, mixed) = share_of(plan);
    let micro = |lengths: &[usize], examples| micro(lengths, compute.dealt(examples), compute.micro_tokens);
    let kinds = [("demonstrations", micro(&demonstrations, texts)), ("windows", micro(&windows, mixed))];
    let micro_batches = kinds.iter().map(|(_, (_, count))| count).sum();
    let head = HeadKind::LanguageModel;
    let phase = |(name, (tokens, _)): (&'static str, (usize, usize))| {
        let sums = sums(config, head, compute.own().len(), micro_batches);
        Phase { name, sums, ..recorded(config, tokens, plan.dropout > 0.0, Readout::Likelihood(tokens, products)) }
    };
    let phases = kinds.into_iter().filter(|(_, (tokens, _))| *tokens > 0).map(phase).collect();
    let model = Buffers::learner("model", config, head, false).shared_by(compute.ranks.world());
    Estimate { models: vec![model], phases }
}

/// Tokens of the largest micro-batch, and how many of them a leaf may take, when it has `count` of
/// examples of these lengths.
fn micro(lengths: &[usize], count: usize, micro_tokens: usize) -> (usize, usize) {
    let mut longest = lengths.to_vec();
    longest.sort_unstable_by(|a, b| b.cmp(a));
    let leaf: usize = longest.iter().cycle().take(if longest.is_empty() { 0 } else { count }).sum();
    let largest = longest.first().map_or(0, |&one| leaf.min(micro_tokens.max(one)));
    (largest, leaf.div_ceil(micro_tokens.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Example;
    use DType::F32;

    #[track_caller]
    fn check(lengths: &[usize], count: usize, micro_tokens: usize, wanted: (usize, usize)) {
        assert_eq!(micro(lengths, count, micro_tokens), wanted, "{lengths:?} {count}");
    }

    #[test]
    fn micro_batches_are_as_large_as_a_leaf_the_limit_and_the_longest_allow() {
        check(&[5, 9, 7], 2, 100, (16, 1));
        check(&[5, 9, 7], 2, 10, (10, 2));
        check(&[5, 9, 7], 2, 6, (9, 3));
        // Examples come back in the next epoch.
        check(&[5, 9, 7], 4, 100, (30, 1));
        check(&[], 4, 100, (0, 0));
    }

    #[test]
    fn windows_count_when_there_is_a_share_for_them() {
        let config = Config::tiny_gpt2(30, 16, 2, 2, 64);
        let examples = vec![Example { prompt: vec![1; 3], completion: vec![1; 4] }; 9];
        let windows = vec![vec![1; 40]; 5];
        let data = Data { demonstrations: &examples, pretraining: &windows };
        let plan = |pretraining_share| Plan { batch: 8, pretraining_share, ..Plan::default() };
        let estimate = |share, micro_tokens, leaves| {
            memory(&config, &data, &plan(share), Compute { micro_tokens, leaves, ..Compute::default() }, F32)
        };
        let (without, with) = (estimate(0.0, 4_096, 1), estimate(0.5, 4_096, 1));
        assert_eq!((without.phases.len(), with.phases.len()), (1, 2));
        assert_eq!(with.worst().name, "windows");
        assert!(with.worst().sums > 0 && without.worst().sums == 0, "two kinds are two micro-batches");
        let smaller = estimate(0.5, 40, 1);
        assert!(smaller.worst().kept < with.worst().kept);
        // Two of the eight examples at a time, and two levels of leaves; a window and a demonstration are two
        // micro-batches.
        let leaves = estimate(0.5, 4_096, 4);
        assert_eq!(leaves.worst().sums, 3 * with.worst().sums);
        assert_eq!(leaves.worst().kept, recorded(&config, 80, true, Readout::Likelihood(80, F32)).kept);
    }
}
