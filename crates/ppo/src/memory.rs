//! What PPO holds at its worst, before it begins.

use crate::{Critic, Plan};
use candle_core::DType;
use instruct_model::{
    Config, HeadKind,
    memory::{Buffers, Estimate, Phase, Readout, inferred, recorded, sampled, sums},
};
use instruct_optim::Compute;

/// The most that [`crate::train`] holds, when every completion runs into the cap after the longest
/// prompts; what scores is the caller's to add.
///
/// ```text
/// models:  policy 4 P + average P;  value model 3 P, when it is one of its own;  reference P;
///          of moments (2 P each) and average each rank holds its part
/// sample:  cache(slots, longest prompt + cap) + a pass over the prompts that fill the slots
/// compare: passes of n tokens without a graph, for log-probabilities and values
/// update:  sums + kept(n) + temporary(n), for policy, pretraining windows and value model in turn
/// n = min(tokens of the batch or of a minibatch's leaf, max(micro-tokens, longest episode))
/// ```
///
/// Of the n tokens of a pass, the completions' are read.
///
/// The reference takes `frozen` bytes per parameter; P counts 4, and 2 more of a policy whose products round to
/// bf16, as `products` says. `config` is that of every model.
/// Nothing is computed and nothing allocated.
pub fn memory(config: &Config, lengths: &Lengths, plan: &Plan, products: DType, frozen: u64) -> Estimate {
    let head = match plan.critic {
        Critic::Separate { .. } => HeadKind::LanguageModel,
        Critic::Head { .. } => HeadKind::LanguageModelWithValue,
    };
    let mut models = vec![Buffers::learner("policy", config, head, plan.ema > 0.0).decoding(products)];
    if let Critic::Separate { .. } = plan.critic {
        // Policy and critic learn in turns, with one gradient at a time; the larger is the policy's.
        models.push(Buffers { gradient: 0, ..Buffers::learner("value model", config, HeadKind::Value, false) });
    }
    models.push(Buffers::frozen("reference", config, HeadKind::LanguageModel, frozen));
    let ranks = lengths.compute.ranks.world();
    let models = models.into_iter().map(|model| model.shared_by(ranks)).collect();
    Estimate { models, phases: phases(config, lengths, plan, head, products) }
}

/// How long things get in a run, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Lengths<'a> {
    /// The longest prompt.
    pub prompt: usize,
    /// The longest window of pretraining text; 0 when there is none.
    pub window: usize,
    /// How many of them are computed at a time.
    pub compute: Compute<'a>,
}

impl Lengths<'_> {
    /// The longest episode.
    fn episode(&self, config: &Config, plan: &Plan) -> usize {
        (self.prompt + plan.max_new_tokens).min(config.context)
    }

    /// Tokens of the largest of the micro-batches that `tokens` of items of this length are cut into, and
    /// how many there are.
    fn micro(&self, tokens: usize, item: usize) -> (usize, usize) {
        let limit = self.compute.micro_tokens;
        (tokens.min(limit.max(item)), tokens.div_ceil(limit.max(1)))
    }
}

fn phases(config: &Config, lengths: &Lengths, plan: &Plan, head: HeadKind, products: DType) -> Vec<Phase> {
    let episode = lengths.episode(config, plan);
    let compute = lengths.compute;
    let answered = plan.batch.div_ceil(compute.ranks.world());
    let (passed, _) = lengths.micro(answered * episode, episode);
    let dealt = compute.dealt(plan.minibatch);
    let (update, own) = lengths.micro(dealt * episode, episode);
    // However short the prompts are that share a micro-batch.
    let read = |tokens: usize, episodes: usize| tokens.min(episodes * plan.max_new_tokens);
    let windows = if plan.gamma_ptx > 0.0 { compute.dealt(plan.minibatch * plan.ptx_examples) } else { 0 };
    let (mixed, more) = lengths.micro(windows * lengths.window, lengths.window);
    let slots = compute.slots.clamp(1, answered.max(1));
    let sums = |head, micro_batches| sums(config, head, compute.own().len(), micro_batches);
    let mut phases = vec![
        sampled(config, slots, lengths.prompt, plan.max_new_tokens),
        Phase { name: "compare", ..inferred(config, passed, Readout::Logprob(read(passed, answered), products)) },
        Phase {
            name: "update of the policy",
            sums: sums(head, own + more),
            ..recorded(config, update, false, Readout::Logprob(read(update, dealt), products))
        },
    ];
    if mixed > 0 {
        let pass = recorded(config, mixed, false, Readout::Likelihood(mixed, products));
        phases.push(Phase { name: "pretraining mix", sums: sums(head, own + more), ..pass });
    }
    if let Critic::Separate { .. } = plan.critic {
        let pass = recorded(config, update, false, Readout::Scalar(read(update, dealt)));
        phases.push(Phase { name: "update of the values", sums: sums(HeadKind::Value, own), ..pass });
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(change: impl Fn(&mut Plan, &mut Lengths)) -> Estimate {
        let config = Config::tiny_gpt2(30, 16, 2, 2, 64);
        let base = Plan::preset(crate::Preset::InstructGpt);
        let mut plan = Plan { batch: 32, minibatch: 32, max_new_tokens: 16, ptx_examples: 1, ..base };
        let compute = Compute { micro_tokens: 10_000, ..Compute::default() };
        let mut lengths = Lengths { prompt: 9, window: 20, compute };
        change(&mut plan, &mut lengths);
        memory(&config, &lengths, &plan, DType::F32, 4)
    }

    #[test]
    fn smaller_settings_take_less() {
        let whole = estimate(|_, _| {});
        let less = |what: &str, change: fn(&mut Plan, &mut Lengths)| {
            let (peak, most) = (estimate(change).peak(), whole.peak());
            assert!(peak < most, "{what}: {peak} of {most}");
        };
        // More micro-batches keep less of a graph, and add a level to the tree of their sums.
        let update = |of: &Estimate| of.phases.iter().find(|p| p.name == "update of the policy").cloned().unwrap();
        let (cut, uncut) = (update(&estimate(|_, lengths| lengths.compute.micro_tokens = 50)), update(&whole));
        assert!(cut.kept < uncut.kept && cut.sums > uncut.sums, "{cut:?} {uncut:?}");
        // So do more leaves, each of a part of the minibatch: here two levels, over one for the mix.
        let leaves = update(&estimate(|_, lengths| lengths.compute.leaves = 4));
        assert!(leaves.kept < uncut.kept && leaves.sums == 3 * uncut.sums, "{leaves:?} {uncut:?}");
        less("minibatch", |plan, _| plan.minibatch = 8);
        less("mix", |plan, _| plan.gamma_ptx = 0.0);
        less("cap", |plan, _| plan.max_new_tokens = 4);
        less("average", |plan, _| plan.ema = 0.0);
        less("critic", |plan, _| plan.critic = Critic::Head { coefficient: 0.1 });
    }

    #[test]
    fn models_and_phases_are_those_of_the_plan() {
        let names = |estimate: &Estimate| estimate.models.iter().map(|model| model.name).collect::<Vec<_>>();
        assert_eq!(names(&estimate(|_, _| {})), ["policy", "value model", "reference"]);
        let head = estimate(|plan, _| plan.critic = Critic::Head { coefficient: 0.1 });
        assert_eq!(names(&head), ["policy", "reference"]);
        assert_eq!((head.phases.len(), estimate(|_, _| {}).phases.len()), (4, 5));
    }
}
