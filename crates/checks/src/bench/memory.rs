//! What each stage is estimated to hold, beside the peak of a process that runs it.

use super::{Job, ModelSettings, Shape, Stage, own_turn, shapes, stages};
use anyhow::{Result, bail, ensure};
use instruct_model::{
    HeadKind, SLOTS,
    memory::{Buffers, Estimate, Phase, Readout, cached, inferred},
};
use instruct_optim::Compute;
use instruct_ppo as ppo;
use instruct_reward_model as reward_model;
use instruct_sft as sft;
use stages::{Sizes, WINDOW, demonstrations, ppo_plan, rankings};
use std::{fmt::Write as _, path::Path};
use xtask::{
    config::Precision,
    memory::{Machine, scored},
    terminal::{print, say},
    write_whole,
};

/// Share of the measured peak by which an estimate may miss it.
const TOLERANCE: f64 = 0.2;

/// Steps that are measured: in the second every buffer has been written.
const STEPS: usize = 1;

/// What is compared: each stage on a small shape, the largest ones on that of GPT-2, some on other shapes
/// and some in bf16.
const ROWS: [(&str, Stage, Precision); 15] = [
    ("tiny", Stage::Sft, Precision::F32),
    ("tiny", Stage::RewardModel, Precision::F32),
    ("tiny", Stage::RewardModelLong, Precision::F32),
    ("tiny", Stage::Generate, Precision::F32),
    ("tiny", Stage::Ppo, Precision::F32),
    ("tiny", Stage::PpoPtx, Precision::F32),
    ("gpt2", Stage::Sft, Precision::F32),
    ("gpt2", Stage::RewardModelLong, Precision::F32),
    ("gpt2", Stage::Ppo, Precision::F32),
    ("2,128,4,1024", Stage::RewardModel, Precision::F32),
    ("8,512,8,16384", Stage::Ppo, Precision::F32),
    ("smollm2", Stage::Sft, Precision::F32),
    ("tiny", Stage::Ppo, Precision::Bf16),
    ("gpt2", Stage::Sft, Precision::Bf16),
    ("gpt2", Stage::Ppo, Precision::Bf16),
];

/// Measures the rows of these stages, prints the page, and writes it as `memory.md` to a folder.
///
/// Errors: an estimate is off by more than a fifth.
pub(super) fn run(stages: &[Stage], out: Option<&Path>) -> Result<()> {
    let Some(process) = Machine::read(0).map(|machine| machine.held) else {
        bail!("this system does not tell what a process holds");
    };
    let mut rows = Vec::new();
    for (shape, stage, precision) in ROWS.into_iter().filter(|(_, stage, _)| stages.contains(stage)) {
        let shape = shapes::parse(shape).map_err(anyhow::Error::msg)?;
        let name = format!("{shape} {stage} {precision}");
        say(&name);
        let (sizes, settings) = (stage.sizes(&shape), ModelSettings::of(precision));
        let measured =
            own_turn(Job { stage, shape: &shape, sizes, settings, steps: STEPS })?.peak_mb * (1 << 20) as f64;
        rows.push(Row { name, estimate: estimate(stage, &shape, sizes, settings), process, measured });
    }
    let page = page(&rows);
    print(&page);
    if let Some(folder) = out {
        write_whole(&folder.join("memory.md"), page.as_bytes())?;
    }
    ensure!(!rows.is_empty(), "`--memory` compares no such stage");
    let off: Vec<&str> = rows.iter().filter(|row| row.off().abs() > TOLERANCE).map(|row| row.name.as_str()).collect();
    if off.is_empty() {
        return Ok(());
    }
    bail!("off by more than {:.0} %: {}", 100.0 * TOLERANCE, off.join(", "))
}

/// One stage on one shape.
struct Row {
    name: String,
    estimate: Estimate,
    /// What the program holds before it has begun.
    process: u64,
    /// Bytes.
    measured: f64,
}

impl Row {
    fn estimated(&self) -> u64 {
        self.process + self.estimate.peak()
    }

    /// How far the estimate is from the peak, as a share of it.
    fn off(&self) -> f64 {
        self.estimated() as f64 / self.measured - 1.0
    }
}

/// What a turn of these sizes will hold, from the functions that a run asks.
fn estimate(stage: Stage, shape: &Shape, sizes: Sizes, settings: ModelSettings) -> Estimate {
    let (products, frozen) = (settings.precision.dtype(), settings.frozen().bytes() as u64);
    let (config, steps) = (&shape.config, STEPS as u64 + 1);
    let compute = Compute { micro_tokens: settings.micro_tokens, ..Compute::default() };
    match stage {
        Stage::Sft => {
            let (examples, plan) = demonstrations(shape, sizes, steps);
            sft::memory(config, &sft::Data { demonstrations: &examples, pretraining: &[] }, &plan, compute, products)
        }
        Stage::RewardModel | Stage::RewardModelLong => {
            let (groups, plan) = rankings(shape, sizes, steps);
            reward_model::memory(config, &groups, &plan, compute)
        }
        Stage::Generate | Stage::Decode => {
            let slots = sizes.prompts.min(SLOTS);
            let cache = cached(config, slots, sizes.prompt + sizes.completion);
            let filling = inferred(config, slots * sizes.prompt, Readout::Logits(slots));
            let phase = Phase { name: "sample", kept: cache, ..filling };
            let model = Buffers::frozen("model", config, HeadKind::LanguageModel, 4);
            Estimate { models: vec![model.decoding(products)], phases: vec![phase] }
        }
        Stage::Ppo | Stage::PpoPtx => {
            let plan = ppo_plan(stage, sizes, steps);
            let lengths = ppo::Lengths { prompt: sizes.prompt, window: WINDOW, compute };
            let mut estimate = ppo::memory(config, &lengths, &plan, products, frozen);
            estimate.models.push(Buffers::frozen("reward model", config, HeadKind::Score, frozen));
            estimate.phases.push(scored(config, &plan, &lengths));
            estimate
        }
    }
}

/// The page of what was compared, all in MB of a million bytes.
fn page(rows: &[Row]) -> String {
    let mut text = format!(
        "# What a run holds\n\n    cargo xtask bench --memory --out docs\n\n\
         Before it begins, a run compares what each of its stages will hold with what it may take: the memory that \
         the system has available, a control group's limit where that is lower, `memory.limit-mb` where that is \
         lower still. A run that does not fit is refused with exit code 2, the estimate of every stage, and what to \
         change; `--dry-run` prints the same table.\n\n\
         The estimate is a sum of sizes, derived from what the operations keep (`crates/kernels/src/memory.rs`), what \
         a decoder makes of them (`crates/model/src/memory.rs`) and what a stage holds at a time (`memory.rs` of its \
         crate). *Process* is what the program holds before it begins, read from the \
         system, and 8 MiB for each thread, for which the allocator keeps pages apart; \
         *models* are weights, gradients, moments and averages; *sums* the gradients of earlier micro-batches; *kept* \
         the graph of a recorded pass; *moment* what one operation holds on top of it. *Slack* is \
         the largest such moment once more, because freed memory is kept for what comes next, \
         and the hole that a temporary leaves between tensors that stay is not filled by the \
         next one of another size. The 8 MiB and the slack are rules found by measuring (peaks less what a counting \
         allocator saw alive); everything else follows from the code. Of the copies of weights that products in \
         bf16 need, those of a table beside its logits are counted, and those that decoding keeps.\n\n\
         Below, each row is the peak (VmHWM) of a process of its own that ran {} steps of a stage on {} threads, as `bench` \
         measures speed, beside its estimate. The command fails when one is off by more than {:.0} %. All in MB of a million bytes; docs/benchmarks counts 2^20.\n\n",
        STEPS + 1,
        rayon::current_num_threads(),
        100.0 * TOLERANCE
    );
    text +=
        "| shape, stage, precision | process | models | sums | kept | moment | slack | estimate | measured | off |\n";
    text += "|---|---|---|---|---|---|---|---|---|---|\n";
    for row in rows {
        let worst = row.estimate.worst();
        let models = row.estimate.models.iter().map(Buffers::total).sum();
        let _ = write!(text, "| {} ", row.name);
        let columns = [row.process, models, worst.sums, worst.kept, worst.temporary, row.estimate.slack()];
        for bytes in columns.into_iter().chain([row.estimated(), row.measured as u64]) {
            let _ = write!(text, "| {:.0} ", bytes as f64 / 1e6);
        }
        let _ = writeln!(text, "| {:+.0} % |", 100.0 * row.off());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_that_is_a_fifth_off_is_found() {
        let shape = shapes::parse("tiny").unwrap();
        let estimate = estimate(Stage::Sft, &shape, Stage::Sft.sizes(&shape), ModelSettings::of(Precision::F32));
        let peak = estimate.peak() as f64;
        let row = |measured| Row { name: "tiny sft".to_owned(), estimate: estimate.clone(), process: 0, measured };
        assert!(row(peak / 1.19).off() < TOLERANCE && row(peak / 1.21).off() > TOLERANCE);
        assert!(row(peak / 0.81).off() > -TOLERANCE && row(peak / 0.79).off() < -TOLERANCE);
        let page = page(&[row(peak)]);
        assert!(page.contains("| tiny sft |") && page.contains("| +0 % |"), "{page}");
    }
}
