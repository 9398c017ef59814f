//! The command line of the workspace: the three-step flow, its single stages, and the checks.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::{
    io::{self, Write},
    process::ExitCode,
};

mod commands;
mod config;
#[cfg(test)]
mod corpus;
mod embedded;
/// The fuzz targets' functions; the file is theirs, and asks for the configuration's parser.
#[cfg(test)]
#[allow(unreachable_pub, reason = "there it is a library's")]
#[path = "../../fuzz/src/entries.rs"]
mod entries;
mod evaluate;
mod initial;
mod listen;
mod memory;
mod prepare;
mod saved;
mod stages;
#[cfg(test)]
mod tidy;
mod world;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Align a language model with human preferences: supervised fine-tuning, a reward model trained
/// on rankings, PPO with a pretraining mix.
#[derive(Parser)]
#[command(name = "xtask", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all stages: base -> SFT -> reward model -> PPO and PPO-ptx -> evaluation
    Pipeline(commands::pipeline::Args),
    /// Run the flow up to supervised fine-tuning
    Sft(commands::pipeline::Args),
    /// Run the flow up to the reward model
    RewardModel(commands::pipeline::Args),
    /// Run the flow up to both PPO runs
    Ppo(commands::pipeline::Args),
    /// Run the flow up to the evaluation; what the run folder already holds is not done again
    Evaluate(commands::pipeline::Args),
    /// Train a byte-level BPE and a small GPT-2-shaped base on plain text
    Pretrain(commands::pretrain::Args),
    /// Complete prompts, or chat when there is neither a prompt nor a file
    Generate(commands::generate::Args),
    /// Log-probabilities of a language model, or scores of a reward model
    Score(commands::score::Args),
    /// Check or split files of records
    Data(commands::data::Args),
    /// Generate the embedded instruction world, a simulation, or check that it is up to date
    Fixtures(commands::fixtures::Args),
    /// Make the golden values of the tests anew with torch and transformers, or compare
    Reference(commands::reference::Args),
    /// Gather what the tests measure against references into docs/correctness.md, or compare
    Correctness(commands::correctness::Args),
    /// Measure the speed and memory of every stage, beside torch and TRL, against the machine's ceilings
    Bench(commands::bench::Args),
    /// Kill real runs anywhere, resume them and compare every byte; writes docs/reliability.md
    Torture(commands::torture::Args),
    /// Say what this machine and this build offer
    Doctor,
    /// Everything that continuous integration runs
    Ci(commands::ci::Args),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    instruct_kernels::settle_threads();
    instruct_kernels::keep_freed_memory();
    let command = Cli::parse().command;
    // On a thread of the pool, or every parallel operation would begin by waking it and going to sleep.
    let outcome = rayon::scope(|_| run(command));
    if let Some(path) = std::env::var_os(PEAK) {
        // Nobody is told when it fails: who asked finds no file.
        let _ = std::fs::write(path, evaluate::peak_memory_mb().to_string());
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}{}", legible(&told(&error)), room(&error)));
            ExitCode::from(2)
        }
    }
}

/// The message with its causes; one that the message quotes is not said again.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(|cause| cause.to_string()).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        _ if text.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

/// Names a file to which the program writes the megabytes of memory that it has held at most. The
/// system forgets the number with the process, and gives it to a parent in no safe way.
const PEAK: &str = "INSTRUCT_PEAK";

/// A message that may quote a hostile file, for a terminal: no character that one obeys, and of what
/// is endless the beginning and the end.
fn legible(message: &str) -> String {
    const LINES: usize = 60;
    const LINE: usize = 2_000;
    let lines: Vec<String> = message.lines().map(|line| shortened(line, LINE)).collect();
    let text = match lines.len().checked_sub(LINES) {
        None | Some(0) => lines.join("\n"),
        Some(left_out) => {
            let (head, tail) = (&lines[..LINES - 5], &lines[lines.len() - 5..]);
            format!("{}\n  ({left_out} lines left out)\n{}", head.join("\n"), tail.join("\n"))
        }
    };
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

fn shortened(line: &str, most: usize) -> String {
    let count = line.chars().count();
    if count <= most {
        return line.to_owned();
    }
    let head: String = line.chars().take(most / 2).collect();
    let tail: String = line.chars().skip(count - most / 2).collect();
    format!("{head} (...) {tail}")
}

fn run(command: Command) -> Result<()> {
    use commands::pipeline::Until;
    match command {
        Command::Pipeline(args) | Command::Evaluate(args) => commands::pipeline::run(&args, Until::Evaluation),
        Command::Sft(args) => commands::pipeline::run(&args, Until::Sft),
        Command::RewardModel(args) => commands::pipeline::run(&args, Until::RewardModel),
        Command::Ppo(args) => commands::pipeline::run(&args, Until::Ppo),
        Command::Pretrain(args) => commands::pretrain::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Data(args) => commands::data::run(&args),
        Command::Fixtures(args) => commands::fixtures::run(&args),
        Command::Reference(args) => commands::reference::run(&args),
        Command::Correctness(args) => commands::correctness::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Torture(args) => commands::torture::run(&args),
        Command::Doctor => commands::doctor::run(),
        Command::Ci(args) => commands::ci::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "xtask", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// What to do about a full disk, where the error does not say so itself.
fn room(error: &anyhow::Error) -> &'static str {
    const ADVICE: &str = "; free some space, then continue with --resume";
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    };
    if error.chain().any(full) && !format!("{error:#}").contains(ADVICE) { ADVICE } else { "" }
}

/// One line for a person, on standard error; results go to standard output. A terminal that is gone, or
/// a full disk behind it, must not end a run.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// One line of a command's result, on standard output. A result that cannot be given is a failure.
pub(crate) fn print(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        say(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("a.txt: no such file; check the path");
        assert_eq!(told(&error), "a.txt: no such file; check the path");
        assert_eq!(told(&error.context("reading")), "reading: a.txt: no such file; check the path");
    }

    #[test]
    fn messages_are_legible() {
        assert_eq!(legible("a\u{1b}[2J\r\nb"), "a\u{FFFD}[2J\nb");
        let long = format!("{}; do this", "x".repeat(100_000));
        assert!(legible(&long).len() < 3_000 && legible(&long).ends_with("; do this"));
        let many = format!("problems:\n{}mend them", "  one\n".repeat(1_000));
        assert!(legible(&many).lines().count() < 70 && legible(&many).ends_with("mend them"));
        assert_eq!(legible("a\n  b"), "a\n  b");
    }
}
