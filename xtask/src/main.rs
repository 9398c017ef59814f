//! The command line of the workspace: the three-step flow, its single stages, and the checks.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

mod commands;
mod config;
mod embedded;
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
    let command = Cli::parse().command;
    // On a thread of the pool, or every parallel operation would begin by waking it and going to sleep.
    match rayon::scope(|_| run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
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
        Command::Doctor => commands::doctor::run(),
        Command::Ci(args) => commands::ci::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "xtask", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// One line for a person, on standard error; results go to standard output.
#[expect(clippy::print_stderr, reason = "the command line is the one place that prints")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// One line of a command's result, on standard output.
#[expect(clippy::print_stdout, reason = "the command line is the one place that prints")]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
