//! `data check`, `data split` and `data leaks`: what files of records hold, before anything trains on them.

use crate::{
    prepare::{CapNames, Wording, account, note, open_base},
    terminal::{print, say},
};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use instruct_data::{
    Caps, Date, Demonstration, EncodeReport, Encoder, LeakCheck, Limits, Loss, Overlong, PretrainText, Prompt, Ranking,
    Record, Side, SplitPlan, dedup, read,
};
use std::path::{Path, PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct data check --kind rankings rankings.jsonl
  instruct data check --kind demonstrations --model MODEL.gguf demonstrations.jsonl
  instruct data split --kind prompts --out split prompts.jsonl.gz";
const CHECK_EXAMPLES: &str = "Examples:
  instruct data check --kind rankings rankings.jsonl
  instruct data check --kind demonstrations --model MODEL.gguf demonstrations.jsonl";
const LEAKS_EXAMPLES: &str = "Examples:
  instruct data leaks --kind demonstrations --train train.jsonl --test test.jsonl";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Read files of records, report every problem with its line, and count what is there
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Look for people and prompts that stand both in training and in test files
    #[command(after_help = LEAKS_EXAMPLES)]
    Leaks(LeaksArgs),
    /// Split files of records by user (by prompt where there is none) into train, validation, test
    #[command(after_help = "Examples:\n  instruct data split --kind prompts --out split prompts.jsonl.gz")]
    Split(SplitArgs),
}

#[derive(clap::Args)]
struct CheckArgs {
    /// What the records are
    #[arg(long, value_enum)]
    kind: Kind,
    /// Model folder or .gguf file: its tokenizer and chat template count what only they can tell
    #[arg(long)]
    model: Option<PathBuf>,
    /// Text around a prompt with {prompt} in it; without one, the model's chat template
    #[arg(long, default_value = "", requires = "model")]
    template: String,
    /// Day that the chat template is told, as 2024-07-26; without one, that of the model's folder
    #[arg(long, requires = "model")]
    date: Option<Date>,
    /// Longest prompt, in tokens
    #[arg(long, default_value_t = 1024, requires = "model")]
    max_prompt: usize,
    /// Longest completion, in tokens
    #[arg(long, default_value_t = 1024, requires = "model")]
    max_completion: usize,
    /// Files: JSONL, .gz, .zst, or .txt for pretraining text
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(clap::Args)]
struct LeaksArgs {
    /// What the records are
    #[arg(long, value_enum)]
    kind: Kind,
    /// Files that are trained on (may be repeated)
    #[arg(long, required = true)]
    train: Vec<PathBuf>,
    /// Files that are not (may be repeated)
    #[arg(long, required = true)]
    test: Vec<PathBuf>,
    /// Prompts that share this many leading characters are one prompt; 0 compares them whole
    #[arg(long, default_value_t = 0)]
    dedup_prefix: usize,
}

#[derive(clap::Args)]
struct SplitArgs {
    /// What the records are
    #[arg(long, value_enum)]
    kind: Kind,
    /// Share of the users for validation
    #[arg(long, default_value_t = 0.1)]
    validation: f64,
    /// Share of the users for the test
    #[arg(long, default_value_t = 0.1)]
    test: f64,
    /// Another seed gives another split
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for train.jsonl, validation.jsonl and test.jsonl
    #[arg(long)]
    out: PathBuf,
    /// Files of records
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Prompts,
    Demonstrations,
    Rankings,
    Pretraining,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Check(args) => match args.kind {
            Kind::Prompts => check::<Prompt>(args, &|encoder, records| {
                let (tokens, report) = encoder.prompts(records)?;
                Ok((tokens.iter().map(|of| (of.prompt.len(), 0)).collect(), report))
            }),
            Kind::Demonstrations => check::<Demonstration>(args, &|encoder, records| {
                let (tokens, report) = encoder.demonstrations(records)?;
                Ok((tokens.iter().map(|of| (of.prompt.len(), of.completion.len())).collect(), report))
            }),
            Kind::Rankings => check::<Ranking>(args, &|encoder, records| {
                let (tokens, report) = encoder.rankings(records)?;
                let of = |of: &instruct_data::RankingTokens| {
                    of.completions.iter().map(|ids| (of.prompt.len(), ids.len())).collect::<Vec<_>>()
                };
                Ok((tokens.iter().flat_map(of).collect(), report))
            }),
            Kind::Pretraining => check::<PretrainText>(args, &|encoder, records| {
                let tokenizer = encoder.renderer.tokenizer();
                let lengths = records.iter().map(|text| Ok((0, tokenizer.encode(&text.text)?.len())));
                Ok((lengths.collect::<Result<_>>()?, EncodeReport { kept: records.len(), ..EncodeReport::default() }))
            }),
        },
        Command::Leaks(args) => match args.kind {
            Kind::Prompts => leaks::<Prompt>(args),
            Kind::Demonstrations => leaks::<Demonstration>(args),
            Kind::Rankings => leaks::<Ranking>(args),
            Kind::Pretraining => bail!("pretraining text has neither people nor prompts that could be compared"),
        },
        Command::Split(args) => match args.kind {
            Kind::Prompts => split::<Prompt>(args),
            Kind::Demonstrations => split::<Demonstration>(args),
            Kind::Rankings => split::<Ranking>(args),
            Kind::Pretraining => bail!("pretraining text names no user; cut it into files of your own"),
        },
    }
}

/// Encodes records: the tokens of the prompt and of the completion of each, and what was counted.
type Encode<T> = dyn Fn(&Encoder<'_>, &[T]) -> Result<(Vec<(usize, usize)>, EncodeReport)>;

fn check<T: Record>(args: &CheckArgs, encode: &Encode<T>) -> Result<()> {
    let read = read::<T>(&args.files, &Limits::default())?;
    let found = read.records.len();
    read.skipped.iter().for_each(|skipped| say(&format!("skipped: {skipped}")));
    read.remarks.iter().for_each(|remarks| say(&remarks.to_string()));
    let characters: usize = read.records.iter().flat_map(|r| r.texts()).map(|text| text.chars().count()).sum();
    let users: std::collections::BTreeSet<String> =
        read.records.iter().filter_map(|r| r.user().map(str::to_owned)).collect();
    let encoded = args.model.as_ref().map(|model| encoded(model, args, &read.records, encode)).transpose()?;
    let (_, repeats) = dedup(read.records, 0);
    print(&format!(
        "{found} records, {} skipped, {} repeated, {} users, {characters} characters",
        read.skipped.len(),
        repeats.repeated + repeats.near,
        users.len()
    ));
    encoded.into_iter().flatten().for_each(|line| print(&line));
    Ok(())
}

/// What the model's tokenizer and template make of the records, a line each.
fn encoded<T: Record>(model: &Path, args: &CheckArgs, records: &[T], encode: &Encode<T>) -> Result<Vec<String>> {
    let template = super::typed(&args.template);
    let wording = Wording { template: &template, option: "--template", date: args.date };
    let base = open_base(model, wording, &Device::Cpu)?;
    let caps = Caps { prompt: args.max_prompt, completion: args.max_completion };
    let encoder = Encoder { renderer: &base.renderer, caps, overlong: Overlong::Drop, loss: Loss::Last };
    let (lengths, report) = encode(&encoder, records)?;
    let mut lines = Vec::new();
    note("records", &report, CapNames { prompt: "`--max-prompt`", completion: "`--max-completion`" }, &mut lines);
    let most = |of: fn(&(usize, usize)) -> usize| lengths.iter().map(of).max().unwrap_or(0);
    let all: usize = lengths.iter().map(|(prompt, completion)| prompt + completion).sum();
    lines.push(format!(
        "{} encoded, {all} tokens; the longest prompt has {}, the longest completion {}",
        report.kept,
        most(|of| of.0),
        most(|of| of.1)
    ));
    Ok(lines)
}

fn leaks<T: Record>(args: &LeaksArgs) -> Result<()> {
    let mut check = LeakCheck::new(args.dedup_prefix);
    for (side, files) in [(Side::Train, &args.train), (Side::Test, &args.test)] {
        for file in files {
            let read = read::<T>(&[file], &Limits::default())?;
            account("records", &read).iter().for_each(|line| say(line));
            check.add(&file.display().to_string(), side, &read.records);
        }
    }
    let records = check.verify()?;
    print(&format!("{records} records, and no person and no prompt is on both sides"));
    Ok(())
}

fn split<T: Record>(args: &SplitArgs) -> Result<()> {
    let read = read::<T>(&args.files, &Limits::default())?;
    account("records", &read).iter().for_each(|line| say(line));
    let plan = SplitPlan { seed: args.seed, validation: args.validation, test: args.test };
    let split = plan.split(read.records)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    for (name, side) in [("train", &split.train), ("validation", &split.validation), ("test", &split.test)] {
        write::<T>(&args.out.join(format!("{name}.jsonl")), side)?;
    }
    Ok(())
}

fn write<T: Record>(path: &Path, records: &[T]) -> Result<()> {
    let lines: String = records.iter().map(|record| record.to_line() + "\n").collect();
    super::write_whole(path, lines.as_bytes())?;
    print(&format!("{}: {} records", path.display(), records.len()));
    Ok(())
}
