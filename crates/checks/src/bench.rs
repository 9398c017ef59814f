//! `bench`: how fast and how large every stage is, beside PyTorch, transformers and TRL on the same
//! machine, and against what the machine can do.

use anyhow::{Context, Result, bail};
use shapes::Shape;
use stages::{Sizes, Stage};
use std::{path::PathBuf, process::Command, time::Instant};
use xtask::{
    config::{Config, Precision},
    terminal::{print, say},
    write_whole,
};

mod ceilings;
mod memory;
mod peer;
mod prepare;
mod ranks;
mod report;
mod served;
mod shapes;
mod stages;
mod submitted;
mod sweeps;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The stages to measure; all of them without this
    #[arg(long, value_enum)]
    stage: Vec<Stage>,
    /// tiny, gpt2, smollm2, or LAYERS,WIDTH,HEADS,VOCABULARY in the shape of GPT-2
    #[arg(long, default_values = ["tiny"], value_parser = shapes::parse)]
    shape: Vec<Shape>,
    #[command(flatten)]
    settings: ModelSettings,
    /// Measure torch, transformers and TRL too, taking turns; makes an environment under target/
    /// (gigabytes of packages)
    #[arg(long)]
    peer: bool,
    /// A Python that has torch, transformers, trl and datasets, instead of that environment
    #[arg(long, requires = "peer")]
    python: Option<PathBuf>,
    /// How often each side has its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure how cost grows as well: tokens per batch, context, K, prompt, vocabulary
    #[arg(long)]
    sweeps: bool,
    /// Compare what each stage is estimated to hold with what it holds; fails when one is a fifth off
    #[arg(long, conflicts_with_all = ["peer", "sweeps", "shape", "precision", "frozen", "micro_tokens", "rounds", "steps"])]
    memory: bool,
    /// Generate so many demonstrations, and measure how long they take to ids: from their file, and kept
    #[arg(long, value_name = "RECORDS", num_args = 0..=1, default_missing_value = "1000000", conflicts_with_all = ["memory", "peer", "sweeps", "shape", "stage", "precision", "frozen", "micro_tokens", "rounds", "steps", "json"])]
    prepare: Option<usize>,
    /// Compare so many ranks, with their part of the threads each, with one process: SFT on 32 sequences, the reward model
    /// on 16 rankings, PPO on 64 episodes. Needs this program with its feature `mpi`, and mpirun
    #[arg(long, value_name = "RANKS", conflicts_with_all = ["memory", "peer", "sweeps", "prepare", "json"])]
    ranks: Option<usize>,
    /// Under a launcher: how fast a gradient of so many megabytes is added and gathered
    #[arg(long, value_name = "MEGABYTES", num_args = 0..=1, default_missing_value = "500", conflicts_with_all = ["memory", "peer", "sweeps", "prepare", "json", "ranks"])]
    line: Option<usize>,
    #[command(flatten)]
    served: served::Args,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Write results.json and table.txt to a folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Measure one stage of these sizes in this process and print it: how the command calls itself
    #[arg(long, hide = true, value_parser = stages::parse_sizes)]
    alone: Option<Sizes>,
    /// Leaves of a step, with --alone
    #[arg(long, hide = true, default_value_t = 1)]
    leaves: usize,
    /// Steps of one turn; the first is not counted
    #[arg(long, default_value_t = 4)]
    steps: usize,
}

/// The settings of a run's `[model]` on which speed and memory depend.
#[derive(Clone, Copy, Debug, clap::Args, serde::Serialize)]
pub(crate) struct ModelSettings {
    /// f32, or bf16: factors of products are rounded to it; the peer's whole model is in it
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    /// What PPO's reference and reward model are held in; the same without this
    #[arg(long, value_enum)]
    frozen: Option<Precision>,
    /// Most tokens that pass through our models at a time
    #[arg(long, default_value_t = default_micro_tokens())]
    micro_tokens: usize,
}

/// What a run takes without the setting.
fn default_micro_tokens() -> usize {
    Config::default().model.micro_tokens
}

impl ModelSettings {
    fn of(precision: Precision) -> ModelSettings {
        ModelSettings { precision, frozen: None, micro_tokens: default_micro_tokens() }
    }

    fn frozen(self) -> Precision {
        self.frozen.unwrap_or(self.precision)
    }
}

/// One turn of one side: a process of its own.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Turn {
    /// Seconds of every step but the first.
    seconds: Vec<f64>,
    /// Tokens that one step handles.
    tokens: usize,
    /// Most memory that the process held, in megabytes.
    peak_mb: f64,
    /// Seconds of the first step, which is not counted.
    first: f64,
    /// Seconds of the process outside its steps: from its start to the first step, and to its end after the
    /// last.
    #[serde(default)]
    start: f64,
    /// Seconds of a step of ours that draws one token and no more: what reading the prompt takes. Measured
    /// after the others, for decoding.
    #[serde(default)]
    prompt: f64,
    /// Seconds that measuring it took.
    #[serde(default)]
    after: f64,
    /// Share of each rank's time in calls of the others, and megabytes that it sent a step, both over all steps; empty
    /// where one process did everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranks: Vec<[f64; 2]>,
}

impl Turn {
    /// Tokens per second in the median step.
    fn rate(&self) -> f64 {
        self.tokens as f64 / median(&self.seconds)
    }

    /// Tokens per second of one sequence once the prompt has been read, and has given the first.
    fn rate_after_prompt(&self) -> f64 {
        (self.tokens - 1) as f64 / (median(&self.seconds) - self.prompt)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.steps == 0 || args.rounds == 0 {
        bail!("--steps and --rounds are at least 1");
    }
    let stages = if args.stage.is_empty() { Stage::ALL.to_vec() } else { args.stage.clone() };
    if let Some(sizes) = args.alone {
        return xtask::on_ranks(|ranks| {
            let maker = stages::Maker { shape: &args.shape[0], settings: args.settings, leaves: args.leaves, ranks };
            let turn = stages::measure(stages[0], &maker, sizes, args.steps)?;
            if ranks.rank() == 0 {
                print(&serde_json::to_string(&turn)?);
            }
            Ok(())
        });
    }
    if let Some(megabytes) = args.line {
        return xtask::on_ranks(|them| ranks::line(them, megabytes, args.rounds));
    }
    if let Some(ranks) = args.ranks {
        return ranks::run(ranks, args);
    }
    if args.served.model.is_some() {
        return served::run(&args.served, args.settings, args.rounds, args.out.as_deref());
    }
    if let Some(records) = args.prepare {
        return prepare::run(records, args.out.as_deref());
    }
    if args.memory {
        return memory::run(&stages, args.out.as_deref());
    }
    let peer = args.peer.then(|| peer::Peer::find(args.python.as_deref())).transpose()?;
    let mut report = report::Report::new(args.settings, peer.as_ref().map(peer::Peer::versions).transpose()?)?;
    for shape in &args.shape {
        for &stage in &stages {
            let job = Job { stage, shape, sizes: stage.sizes(shape), settings: args.settings, steps: args.steps };
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 1..=args.rounds {
                say(&format!("{shape} {stage}: round {round} of {}", args.rounds));
                if let Some(peer) = peer.as_ref().filter(|_| stage.has_peer()) {
                    theirs.push(peer.turn(job)?);
                }
                ours.push(own_turn(job)?);
            }
            report.add(stage, shape, ours, theirs)?;
            save(args, &report)?;
        }
    }
    if args.sweeps {
        report.sweeps = sweeps::measure(args.settings, args.steps)?;
        save(args, &report)?;
    }
    print(&if args.json { serde_json::to_string(&report)? } else { report.table() });
    Ok(())
}

/// Writes what is measured so far: a run takes long, and what ends it early should cost one stage.
fn save(args: &Args, report: &report::Report) -> Result<()> {
    let Some(folder) = &args.out else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    write_whole(&folder.join("results.json"), (serde_json::to_string_pretty(report)? + "\n").as_bytes())?;
    write_whole(&folder.join("table.txt"), report.table().as_bytes())
}

/// One stage in a process of its own, so that its memory is its own.
fn own_turn(job: Job<'_>) -> Result<Turn> {
    let this = std::env::current_exe().context("this program has no path")?;
    parse_turn(job.alone(&mut Command::new(this)))
}

/// What one turn measures.
#[derive(Clone, Copy)]
struct Job<'a> {
    stage: Stage,
    shape: &'a Shape,
    sizes: Sizes,
    settings: ModelSettings,
    steps: usize,
}

impl Job<'_> {
    /// Adds what makes this program do it in one process.
    fn alone<'p>(&self, process: &'p mut Command) -> &'p mut Command {
        let Job { stage, shape, sizes, settings, steps } = self;
        process.args(["bench", "--alone", &sizes.to_string(), "--stage", &stage.to_string(), "--shape", &shape.name]);
        process.args(["--precision", &settings.precision.to_string(), "--frozen", &settings.frozen().to_string()]);
        process.args(["--micro-tokens", &settings.micro_tokens.to_string()]);
        process.args(["--steps", &steps.to_string()])
    }
}

/// Runs a process whose last line is a [`Turn`].
fn parse_turn(process: &mut Command) -> Result<Turn> {
    let begun = Instant::now();
    let output = process.output().with_context(|| format!("cannot start {process:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{process:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let line = text.lines().last().unwrap_or_default();
    let turn: Turn = serde_json::from_str(line).with_context(|| format!("{process:?} printed `{line}`"))?;
    let steps = turn.first + turn.seconds.iter().sum::<f64>() + turn.after;
    Ok(Turn { start: begun.elapsed().as_secs_f64() - steps, ..turn })
}
