//! The commands of `instruct`, their help, and the handing over of the repository's chores.

use crate::{
    commands, machine,
    ranks::{on_ranks, refuse_ranks},
    terminal::{message, say},
    until::Until,
};
use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Align a language model with human preferences: supervised fine-tuning, a reward model trained
/// on rankings, PPO with a pretraining mix.
#[derive(Parser)]
#[command(name = "instruct", version, max_term_width = 100, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  instruct pipeline                                  the whole flow on the embedded simulation, minutes on two cores
  instruct pipeline --config my.toml --dry-run       what a run of yours would read, hold and take
  instruct generate --model runs/0001/ppo-ptx/model --prompt \"Name a colour.\"";

#[derive(Subcommand)]
enum Command {
    /// Run all stages: base -> SFT -> reward model -> PPO and PPO-ptx -> evaluation
    #[command(after_help = commands::pipeline::EXAMPLES)]
    Pipeline(commands::pipeline::Args),
    /// Run the flow up to supervised fine-tuning
    #[command(after_help = commands::pipeline::SFT_EXAMPLES)]
    Sft(commands::pipeline::Args),
    /// Run the flow up to the reward model
    #[command(after_help = commands::pipeline::REWARD_MODEL_EXAMPLES)]
    RewardModel(commands::pipeline::Args),
    /// Run the flow up to both PPO runs
    #[command(after_help = commands::pipeline::PPO_EXAMPLES)]
    Ppo(commands::pipeline::Args),
    /// Run the flow up to the evaluation; what the run folder already holds is not done again
    #[command(after_help = commands::pipeline::EVALUATE_EXAMPLES)]
    Evaluate(commands::pipeline::Args),
    /// Train a byte-level BPE and a small GPT-2-shaped base on plain text
    #[command(after_help = commands::pretrain::EXAMPLES)]
    Pretrain(commands::pretrain::Args),
    /// Complete prompts, or chat when there is neither a prompt nor a file
    #[command(after_help = commands::generate::EXAMPLES)]
    Generate(commands::generate::Args),
    /// Log-probabilities of a language model, or scores of a reward model
    #[command(after_help = commands::score::EXAMPLES)]
    Score(commands::score::Args),
    /// Answer over HTTP as OpenAI's interface does
    #[command(after_help = commands::serve::EXAMPLES)]
    Serve(commands::serve::Args),
    /// Make tasks for people: answers of models to rank, or answers to write
    #[command(after_help = commands::tasks::EXAMPLES)]
    Tasks(commands::tasks::Args),
    /// Train the next reward model and policy on what people said of a run's answers
    #[command(after_help = commands::retrain::EXAMPLES)]
    Retrain(commands::retrain::Args),
    /// Show a run, or compare several, in one HTML page
    #[command(after_help = commands::report::EXAMPLES)]
    Report(commands::report::Args),
    /// Write the report of a run again and again while it goes on
    #[command(after_help = commands::report::WATCH_EXAMPLES)]
    Watch(commands::report::WatchArgs),
    /// Say who may give feedback and what was given, or take it back
    #[command(after_help = commands::feedback::EXAMPLES)]
    Feedback(commands::feedback::Args),
    /// Say how a run's reward model orders held-out rankings, by labeler, use case and more
    #[command(after_help = commands::report_card::EXAMPLES)]
    ReportCard(commands::report_card::Args),
    /// Check or split files of records, or look for what two sides share
    #[command(after_help = commands::data::EXAMPLES)]
    Data(commands::data::Args),
    /// Print every key of a configuration, or explain one
    #[command(after_help = commands::config::EXAMPLES)]
    Config(commands::config::Args),
    /// Say what a run would take on machines that are not at hand
    #[command(after_help = commands::plan::EXAMPLES)]
    Plan(commands::plan::Args),
    /// Say what this machine and this build offer, and what to do about what they lack
    #[command(after_help = commands::doctor::EXAMPLES)]
    Doctor(commands::doctor::Args),
    /// Print completions for a shell
    #[command(
        after_help = "Examples:\n  instruct completions bash > ~/.local/share/bash-completion/completions/instruct"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What `checks` does with the repository: it is not in this program, and not in its help.
const CHORES: [&str; 8] = ["ci", "torture", "bench", "correctness", "reference", "fixtures", "circle", "gpu"];

/// The program: parses the command line, runs the command, and says what went wrong.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(chore) = arguments.first().filter(|first| CHORES.contains(&first.as_str())) {
        return exit(hand_over(chore, &arguments));
    }
    instruct_kernels::settle_threads();
    instruct_kernels::keep_freed_memory();
    let command = Cli::parse().command;
    let outcome = match command {
        // Whoever waits for clients must not do so on a thread of the pool, which would be missing there.
        Command::Serve(_) => run(command),
        // On a thread of the pool, or every parallel operation would begin by waking it and going to sleep.
        command => rayon::scope(|_| run(command)),
    };
    machine::leave_usage();
    exit(outcome)
}

/// Exit code 0, or the message of an error and exit code 2.
pub fn exit(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", message(&error)));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<()> {
    let flow = |args: commands::pipeline::Args, until| on_ranks(|ranks| commands::pipeline::run(&args, until, ranks));
    let alone = |work: &dyn Fn() -> Result<()>| refuse_ranks().and_then(|()| work());
    match command {
        Command::Pipeline(args) | Command::Evaluate(args) => flow(args, Until::Evaluation),
        Command::Sft(args) => flow(args, Until::Sft),
        Command::RewardModel(args) => flow(args, Until::RewardModel),
        Command::Ppo(args) => flow(args, Until::Ppo),
        Command::Pretrain(args) => alone(&|| commands::pretrain::run(&args)),
        Command::Generate(args) => alone(&|| commands::generate::run(&args)),
        Command::Score(args) => alone(&|| commands::score::run(&args)),
        Command::Retrain(args) => alone(&|| commands::retrain::run(&args)),
        Command::Report(args) => alone(&|| commands::report::run(&args)),
        Command::Watch(args) => alone(&|| commands::report::watch(&args)),
        Command::Tasks(args) => alone(&|| commands::tasks::run(&args)),
        Command::Feedback(args) => alone(&|| commands::feedback::run(&args)),
        Command::Serve(args) => alone(&|| commands::serve::run(&args)),
        Command::ReportCard(args) => alone(&|| commands::report_card::run(&args)),
        Command::Data(args) => alone(&|| commands::data::run(&args)),
        Command::Config(args) => alone(&|| commands::config::run(&args)),
        Command::Plan(args) => alone(&|| commands::plan::run(&args)),
        Command::Doctor(args) => alone(&|| commands::doctor::run(&args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "instruct", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs a chore of the repository through `checks`, which cargo builds when it is first asked for.
///
/// Errors: this is an installed program, which has no repository; the chore failed.
fn hand_over(chore: &str, arguments: &[String]) -> Result<()> {
    let Some(mut checks) = cargo("instruct-checks") else {
        bail!("`{chore}` checks the repository of this program: run `cargo xtask {chore}` in a clone of it");
    };
    checks.arg("--").args(arguments);
    become_it(checks)
}

/// Cargo, about to build and run a package of the repository that it has started this program from; nothing, where it
/// was not started so.
pub(crate) fn cargo(package: &str) -> Option<std::process::Command> {
    let cargo = std::env::var_os("CARGO").filter(|_| std::env::var_os("CARGO_MANIFEST_DIR").is_some())?;
    let mut run = std::process::Command::new(cargo);
    run.args(["run", "--release", "--package", package]);
    // Whoever built this program for a GPU has what building the other takes.
    run.args(cfg!(feature = "cuda").then_some("--features=cuda"));
    Some(run)
}

/// Runs another program in the place of this one.
///
/// Errors: it cannot be started.
pub(crate) fn become_it(mut program: std::process::Command) -> Result<()> {
    // In this process's place, so that it hears what a terminal sends.
    #[cfg(unix)]
    return Err(std::os::unix::process::CommandExt::exec(&mut program)).context("cannot start cargo");
    #[cfg(not(unix))]
    {
        let status = program.status().context("cannot start cargo")?;
        // It has said what went wrong.
        std::process::exit(status.code().unwrap_or(2))
    }
}
