//! What `--dry-run` says that a run will take, from exact token counts and one assumption about the machine.

use crate::{
    config::Config,
    memory::{mega, table},
    prepare::{Base, Material},
    until::Until,
};
use instruct_collective::Collective;
use instruct_model::HeadKind;

/// Floating-point operations a second that training sustains here, an assumption: a two-core
/// server CPU. `doctor` says what this machine has; the estimate is for orders of magnitude.
const ASSUMED_FLOPS: f64 = 60e9;

/// Tokens, memory and time of each stage that is run `until` there, a line each.
pub(crate) fn lines(
    config: &Config,
    base: &Base,
    material: &Material,
    until: Until,
    ranks: &dyn Collective,
) -> Vec<String> {
    let parameters = base.description.parameters(HeadKind::LanguageModel) as f64;
    let of = |examples: &[instruct_sft::Example]| -> f64 { examples.iter().map(|e| e.tokens() as f64).sum() };
    let prompts: f64 = material.prompts.train.iter().map(|p| p.ids.len() as f64).sum();
    let tokens = Tokens {
        demonstrations: of(&material.demonstrations.train),
        rankings: material.rankings.iter().map(|r| r.group.tokens() as f64).sum(),
        prompt: prompts / material.prompts.train.len().max(1) as f64,
        window: material.windows.first().map_or(0.0, |w| w.len() as f64),
    };
    let line = |Work { stage, tokens, operations }: Work| {
        let seconds = tokens * operations * parameters / ASSUMED_FLOPS;
        let name = if stage.starts_with("ppo") { format!("{stage} (at the cap)") } else { stage.to_owned() };
        format!("{name:>21}: {tokens:>12.0} tokens, about {seconds:.0} s at {:.0} GFLOP/s", ASSUMED_FLOPS / 1e9)
    };
    let work = work(config, &tokens).into_iter().filter(|work| until.makes(work.stage));
    let mut lines: Vec<String> = work.map(line).collect();
    if let Some((stages, machine)) = super::pipeline::estimate(config, base, material, until, ranks) {
        lines.push(format!("memory, of {} that this run may take:", mega(machine.limit)));
        lines.extend(table(&stages, machine).lines().map(str::to_owned));
    }
    lines
}

/// Tokens of what a run reads.
pub(super) struct Tokens {
    /// Of all demonstrations that are trained on.
    pub(super) demonstrations: f64,
    /// Of all rankings, a prompt counted once for its completions.
    pub(super) rankings: f64,
    /// Of a prompt, in the mean.
    pub(super) prompt: f64,
    /// Of a window of pretraining text.
    pub(super) window: f64,
}

/// What a stage computes.
pub(super) struct Work {
    /// The artefact that it makes.
    pub(super) stage: &'static str,
    /// Tokens that go through models; in PPO every completion is as long as its cap.
    pub(super) tokens: f64,
    /// Floating-point operations for each parameter and token.
    pub(super) operations: f64,
}

/// The work of every stage that trains. A forward takes 2 operations per parameter and token, a training pass 6. PPO
/// samples, scores, compares with two models and reads values (5 forwards at most) and trains two models.
pub(super) fn work(config: &Config, tokens: &Tokens) -> Vec<Work> {
    let episodes = (config.ppo.iterations() * config.ppo.batch as u64) as f64;
    let episode = tokens.prompt + config.ppo.max_new_tokens as f64;
    let inner = config.ppo.inner_epochs as f64;
    let ptx = episodes * inner * config.ppo.ptx_examples as f64 * tokens.window;
    let demonstrations = tokens.demonstrations;
    let of_ppo = 10.0 + 12.0 * inner;
    let stages = [
        ("sft-baseline", demonstrations * config.sft_baseline.epochs as f64, 6.0),
        ("reward-model", tokens.rankings * config.reward_model.epochs as f64, 6.0),
        ("sft-init", demonstrations * config.sft_init.epochs as f64 / (1.0 - config.sft_init.pretraining_share), 6.0),
        ("ppo", episodes * episode, of_ppo),
        ("ppo-ptx", episodes * episode + ptx * 6.0 / of_ppo, of_ppo),
    ];
    stages.into_iter().map(|(stage, tokens, operations)| Work { stage, tokens, operations }).collect()
}
