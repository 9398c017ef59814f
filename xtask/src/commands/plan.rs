//! What a run will take, from exact token counts and one assumption about the machine.

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
    let demonstrations = of(&material.demonstrations.train);
    let rankings: f64 = material.rankings.iter().map(|r| r.group.tokens() as f64).sum();
    let window = material.windows.first().map_or(0.0, |w| w.len() as f64);
    let prompts: f64 = material.prompts.train.iter().map(|p| p.ids.len() as f64).sum();
    let prompt = prompts / material.prompts.train.len().max(1) as f64;
    let episodes = (config.ppo.iterations() * config.ppo.batch as u64) as f64;
    let episode = prompt + config.ppo.max_new_tokens as f64;
    let inner = config.ppo.inner_epochs as f64;
    let ptx = episodes * inner * config.ppo.ptx_examples as f64 * window;
    // A forward takes 2 operations per parameter and token, a training pass 6. PPO samples, scores,
    // compares with two models and reads values (5 forwards at most) and trains two models.
    let stages = [
        ("sft-baseline", demonstrations * config.sft_baseline.epochs as f64, 6.0),
        ("reward-model", rankings * config.reward_model.epochs as f64, 6.0),
        ("sft-init", demonstrations * config.sft_init.epochs as f64 / (1.0 - config.sft_init.pretraining_share), 6.0),
        ("ppo", episodes * episode, 10.0 + 12.0 * inner),
        ("ppo-ptx", episodes * episode + ptx * 6.0 / (10.0 + 12.0 * inner), 10.0 + 12.0 * inner),
    ];
    let line = |(name, tokens, per): (&str, f64, f64)| {
        let seconds = tokens * per * parameters / ASSUMED_FLOPS;
        let name = if name.starts_with("ppo") { format!("{name} (at the cap)") } else { name.to_owned() };
        format!("{name:>21}: {tokens:>12.0} tokens, about {seconds:.0} s at {:.0} GFLOP/s", ASSUMED_FLOPS / 1e9)
    };
    let mut lines: Vec<String> = stages.into_iter().filter(|(name, ..)| until.makes(name)).map(line).collect();
    if let Some((stages, machine)) = super::pipeline::estimate(config, base, material, until, ranks) {
        lines.push(format!("memory, of {} that this run may take:", mega(machine.limit)));
        lines.extend(table(&stages, machine).lines().map(str::to_owned));
    }
    lines
}
