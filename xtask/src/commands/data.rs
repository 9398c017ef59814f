//! `data check` and `data split`: what a file of records holds, before anything trains on it.

use crate::{
    prepare::account,
    terminal::{print, say},
};
use anyhow::{Context, Result, bail};
use instruct_data::{Demonstration, Limits, PretrainText, Prompt, Ranking, Record, SplitPlan, dedup, read};
use std::path::{Path, PathBuf};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct data check --kind rankings rankings.jsonl
  instruct data split --kind prompts --out split prompts.jsonl.gz";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Read files of records, report every problem with its line, and count what is there
    #[command(after_help = "Examples:\n  instruct data check --kind rankings rankings.jsonl")]
    Check(CheckArgs),
    /// Split files of records by user (by prompt where there is none) into train, validation, test
    #[command(after_help = "Examples:\n  instruct data split --kind prompts --out split prompts.jsonl.gz")]
    Split(SplitArgs),
}

#[derive(clap::Args)]
struct CheckArgs {
    /// What the records are
    #[arg(long, value_enum)]
    kind: Kind,
    /// Files: JSONL, .gz, .zst, or .txt for pretraining text
    #[arg(required = true)]
    files: Vec<PathBuf>,
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
            Kind::Prompts => check::<Prompt>(&args.files),
            Kind::Demonstrations => check::<Demonstration>(&args.files),
            Kind::Rankings => check::<Ranking>(&args.files),
            Kind::Pretraining => check::<PretrainText>(&args.files),
        },
        Command::Split(args) => match args.kind {
            Kind::Prompts => split::<Prompt>(args),
            Kind::Demonstrations => split::<Demonstration>(args),
            Kind::Rankings => split::<Ranking>(args),
            Kind::Pretraining => bail!("pretraining text names no user; cut it into files of your own"),
        },
    }
}

fn check<T: Record>(files: &[PathBuf]) -> Result<()> {
    let read = read::<T>(files, &Limits::default())?;
    let found = read.records.len();
    read.skipped.iter().for_each(|skipped| say(&format!("skipped: {skipped}")));
    read.remarks.iter().for_each(|remarks| say(&remarks.to_string()));
    let characters: usize = read.records.iter().flat_map(|r| r.texts()).map(|text| text.chars().count()).sum();
    let users: std::collections::BTreeSet<String> =
        read.records.iter().filter_map(|r| r.user().map(str::to_owned)).collect();
    let (_, repeats) = dedup(read.records, 0);
    print(&format!(
        "{found} records, {} skipped, {} repeated, {} users, {characters} characters",
        read.skipped.len(),
        repeats.repeated + repeats.near,
        users.len()
    ));
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
