//! What the training of a reward model holds at its worst, before it begins.

use crate::{Group, Plan};
use instruct_model::{
    Config, HeadKind,
    memory::{Buffers, Estimate, Phase, Readout, recorded, sums},
};
use instruct_optim::Compute;

/// The most that [`crate::train`] holds, from the lengths of its rankings, whose prompts are computed
/// once:
///
/// ```text
/// 4 P  +  sums + kept(n) + temporary(n)  +  slack
/// n = min(tokens of a leaf, max(micro-tokens, longest ranking))
/// ```
///
/// for a decoder of P parameters; of the 2 P of moments each rank holds its part. Nothing is computed and nothing
/// allocated.
pub fn memory(config: &Config, groups: &[Group], plan: &Plan, compute: Compute) -> Estimate {
    let mut longest: Vec<usize> = groups.iter().map(Group::tokens).collect();
    longest.sort_unstable_by(|a, b| b.cmp(a));
    let rankings = compute.dealt(plan.batch);
    let leaf: usize = longest.iter().take(rankings).sum();
    let tokens = leaf.min(compute.micro_tokens.max(longest.first().copied().unwrap_or(0)));
    let completions = groups.iter().map(|group| group.completions.len()).max().unwrap_or(0);
    let sums = sums(config, HeadKind::Score, compute.own().len(), leaf.div_ceil(compute.micro_tokens.max(1)));
    let rows = Readout::Scalar((completions * rankings).min(tokens));
    let phase = Phase { name: "rankings", sums, ..recorded(config, tokens, false, rows) };
    let model = Buffers::learner("model", config, HeadKind::Score, false).shared_by(compute.ranks.world());
    Estimate { models: vec![model], phases: vec![phase] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prompt_is_counted_once() {
        let config = Config::tiny_gpt2(30, 16, 2, 2, 64);
        let group = |k: usize| Group { prompt: vec![1; 30], completions: vec![vec![1; 5]; k], ranks: vec![1; k] };
        let plan = Plan { batch: 2, ..Plan::default() };
        let worst = |k, micro_tokens, leaves| {
            let compute = Compute { micro_tokens, leaves, ..Compute::default() };
            memory(&config, &[group(k), group(k), group(k)], &plan, compute).worst()
        };
        let kept = |k, micro_tokens| worst(k, micro_tokens, 1);
        let tokens = |tokens, rows| recorded(&config, tokens, false, Readout::Scalar(rows)).kept;
        assert_eq!(kept(4, 1_000).kept, tokens(100, 8));
        // A ranking is never cut.
        assert_eq!(kept(4, 10).kept, tokens(50, 8));
        assert!(kept(4, 10).sums > 0 && kept(4, 1_000).sums == 0);
        let leaves = worst(4, 1_000, 2);
        assert_eq!((leaves.kept, leaves.sums), (tokens(50, 4), sums(&config, HeadKind::Score, 2, 1)));
    }
}
