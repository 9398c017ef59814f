//! Results: medians, spreads and ratios, and each stage's share of what the machine can do.

use super::{
    ModelSettings, Shape, Stage, Turn,
    ceilings::{self, Ceilings},
    median,
    stages::Sizes,
};
use anyhow::Result;
use instruct_model::{HeadKind, Position};
use std::{collections::BTreeMap, fmt::Write as _};

/// Everything that one call measured.
#[derive(serde::Serialize)]
pub(super) struct Report {
    cpu: String,
    threads: usize,
    kernels: &'static str,
    /// What multiplies bf16.
    bf16: Option<&'static str>,
    settings: ModelSettings,
    /// Packages of the peer.
    peer: Option<BTreeMap<String, String>>,
    ceilings: Ceilings,
    rows: Vec<Row>,
    pub(super) sweeps: Vec<super::sweeps::Point>,
}

/// One stage on one shape, with the raw turns.
#[derive(serde::Serialize)]
struct Row {
    shape: String,
    stage: String,
    /// Rates are in tokens a second; each is the median of the turns' medians.
    rate: f64,
    peak_mb: f64,
    peer_rate: Option<f64>,
    peer_peak_mb: Option<f64>,
    ours: Vec<Turn>,
    theirs: Vec<Turn>,
    /// What a step needs at least, over what the machine can do in its time.
    share: Option<f64>,
    /// What the machine could do just then, where that was asked.
    ceilings: Option<Ceilings>,
    /// Megabytes of parameters, gradient, moments and average, for all models of the stage.
    floor_mb: f64,
}

impl Report {
    /// Nothing but the machine, whose ceilings are measured now.
    pub(super) fn new(settings: ModelSettings, peer: Option<BTreeMap<String, String>>) -> Result<Report> {
        let ceilings = ceilings::measure(settings.precision)?;
        let cpu = xtask::machine::cpu_model();
        let (threads, kernels) = (rayon::current_num_threads(), instruct_kernels::cpu_level());
        let (bf16, rows, sweeps) = (instruct_kernels::bf16_unit(), Vec::new(), Vec::new());
        Ok(Report { cpu, threads, kernels, bf16, settings, peer, ceilings, rows, sweeps })
    }

    /// Adds a row. A shared machine changes from minute to minute, so that its ceilings are measured anew for
    /// a stage that is compared with them.
    pub(super) fn add(&mut self, stage: Stage, shape: &Shape, ours: Vec<Turn>, theirs: Vec<Turn>) -> Result<()> {
        let rate = |turns: &[Turn]| median(&turns.iter().map(Turn::rate).collect::<Vec<_>>());
        let peak = |turns: &[Turn]| turns.iter().map(|turn| turn.peak_mb).fold(0.0, f64::max);
        let has_peer = !theirs.is_empty();
        let of = |rate: fn(&Turn) -> f64| median(&ours.iter().map(rate).collect::<Vec<_>>());
        let bounded = match stage {
            Stage::Sft => Some(of(Turn::rate)),
            Stage::Decode => Some(of(Turn::rate_after_prompt)),
            _ => None,
        };
        let ceilings = bounded.map(|_| ceilings::measure(self.settings.precision)).transpose()?;
        let share = bounded.zip(ceilings).map(|(rate, ceilings)| share(stage, shape, rate, ceilings, self.settings));
        self.rows.push(Row {
            shape: shape.to_string(),
            stage: stage.to_string(),
            rate: rate(&ours),
            peak_mb: peak(&ours),
            peer_rate: has_peer.then(|| rate(&theirs)),
            peer_peak_mb: has_peer.then(|| peak(&theirs)),
            share: share.flatten(),
            ceilings,
            floor_mb: floor_mb(stage, shape, self.settings),
            ours,
            theirs,
        });
        Ok(())
    }

    /// For a person.
    pub(super) fn table(&self) -> String {
        let ModelSettings { precision, micro_tokens, .. } = self.settings;
        let bf16 = self.bf16.unwrap_or("no unit for bf16");
        let mut text = format!("{}, {} threads, {}, {bf16}\n", self.cpu, self.threads, self.kernels);
        let _ = writeln!(
            text,
            "products in {precision}, PPO's reference and reward model in {}, up to {micro_tokens} tokens at a time",
            self.settings.frozen()
        );
        for (package, version) in self.peer.iter().flatten() {
            let _ = write!(text, "{package} {version}  ");
        }
        let Ceilings { gflops, gigabytes } = self.ceilings;
        let _ = writeln!(
            text,
            "\nceilings at first: {gflops:.0} GFLOP/s in {precision} products, {gigabytes:.1} GB/s of reading\n"
        );
        let _ = writeln!(
            text,
            "{:>8} {:>18} {:>9} {:>13} {:>9} {:>13} {:>6} {:>8} {:>8} {:>6} {:>8} {:>7} {:>7}",
            "shape",
            "stage",
            "tokens/s",
            "spread",
            "peer",
            "spread",
            "ratio",
            "MB",
            "peer MB",
            "ratio",
            "floor MB",
            "ceiling",
            "start s"
        );
        for row in &self.rows {
            let spread = |turns: &[Turn]| {
                let rates = || turns.iter().map(Turn::rate);
                let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
                if turns.is_empty() { String::new() } else { format!("{low:.0}-{high:.0}") }
            };
            let maybe = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
            let _ = writeln!(
                text,
                "{:>8} {:>18} {:>9.0} {:>13} {:>9} {:>13} {:>6} {:>8.0} {:>8} {:>6} {:>8.0} {:>7} {:>7.1}",
                row.shape,
                row.stage,
                row.rate,
                spread(&row.ours),
                maybe(row.peer_rate, 0),
                spread(&row.theirs),
                maybe(row.peer_rate.map(|peer| row.rate / peer), 2),
                row.peak_mb,
                maybe(row.peer_peak_mb, 0),
                maybe(row.peer_peak_mb.map(|peer| row.peak_mb / peer), 2),
                row.floor_mb,
                row.share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share)),
                median(&row.ours.iter().map(|turn| turn.start).collect::<Vec<_>>()),
            );
        }
        for point in &self.sweeps {
            let _ = writeln!(text, "{point}");
        }
        text
    }
}

/// Elements of the matrices that every token passes through, the unembedding of a language model
/// included.
fn matmul_parameters(shape: &Shape, head: HeadKind) -> f64 {
    let config = &shape.config;
    let specs = config.specs(head);
    let matrices = specs.iter().filter(|(_, dims)| dims.len() == 2).map(|(_, dims)| dims.iter().product::<usize>());
    let table = config.vocab * config.width;
    let learned = if config.position == Position::Learned { config.context * config.width } else { 0 };
    // Tied or not, the table is looked up once and multiplied once, by a language model.
    let unused = learned + if head.is_language() && config.tied { 0 } else { table };
    (matrices.sum::<usize>() - unused) as f64
}

/// SFT: six operations per matrix element and token, and attention, over the ceiling of products
/// (recomputation is not counted, the optimizer's time is). Decoding: weights and cache read per
/// token, over the ceiling of reading, once the prompt has been read. Other stages mix the two.
fn share(stage: Stage, shape: &Shape, rate: f64, ceilings: Ceilings, settings: ModelSettings) -> Option<f64> {
    let config = &shape.config;
    let weights = matmul_parameters(shape, HeadKind::LanguageModel);
    let Sizes { prompt, completion, .. } = stage.sizes(shape);
    match stage {
        Stage::Sft => {
            let attended = (config.heads * config.head_dim * config.layers) as f64;
            let seen = (prompt + completion) as f64 / 2.0;
            let operations = 6.0 * weights + 12.0 * attended * seen;
            Some(rate * operations / (ceilings.gflops * 1e9))
        }
        Stage::Decode => {
            let seen = prompt as f64 + completion as f64 / 2.0;
            let cache = 2.0 * (config.kv_heads * config.head_dim * config.layers) as f64 * seen;
            let bytes = settings.precision.bytes() * weights + 4.0 * cache;
            Some(rate * bytes / (ceilings.gigabytes * 1e9))
        }
        _ => None,
    }
}

/// Parameters of every model of the stage, with gradient and two moments where it learns, and the
/// averaged policy, in `f32` but for what is frozen.
fn floor_mb(stage: Stage, shape: &Shape, settings: ModelSettings) -> f64 {
    let of = |head| shape.config.parameters(head) as f64;
    let (language, scalar) = (of(HeadKind::LanguageModel), of(HeadKind::Score));
    let bytes = match stage {
        Stage::Sft => 16.0 * language,
        Stage::RewardModel | Stage::RewardModelLong => 16.0 * scalar,
        Stage::Generate | Stage::Decode => 4.0 * language,
        Stage::Ppo | Stage::PpoPtx => {
            // Policy and critic learn in turns, with one gradient at a time.
            let learning = (12.0 + 4.0) * language + 12.0 * scalar + 4.0 * language.max(scalar);
            learning + settings.frozen().bytes() * (language + scalar)
        }
    };
    bytes / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::parse;
    use xtask::config::Precision;

    #[test]
    fn gpt2_has_85_million_block_weights_and_its_unembedding() {
        let shape = parse("gpt2").unwrap();
        let blocks = 12.0 * 12.0 * 768.0 * 768.0;
        assert_eq!(matmul_parameters(&shape, HeadKind::LanguageModel), blocks + 50_257.0 * 768.0);
        // The scalar head is a matrix of one row.
        assert_eq!(matmul_parameters(&shape, HeadKind::Score), blocks + 768.0);
        let ceilings = Ceilings { gflops: 300.0, gigabytes: 20.0 };
        let settings = ModelSettings::of(Precision::F32);
        let reading = share(Stage::Decode, &shape, 40.0, ceilings, settings).unwrap();
        assert!((reading - 40.0 * 4.0 * (123.53e6 + 1.77e6) / 20e9).abs() < 1e-3, "{reading}");
        assert!(share(Stage::Ppo, &shape, 40.0, ceilings, settings).is_none());
        let halved = ModelSettings { precision: Precision::Bf16, ..settings };
        let reading = share(Stage::Decode, &shape, 40.0, ceilings, halved).unwrap();
        assert!((reading - 40.0 * (2.0 * 123.53e6 + 4.0 * 1.77e6) / 20e9).abs() < 1e-3, "{reading}");
    }
}
