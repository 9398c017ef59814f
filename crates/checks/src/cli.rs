//! The chores, as commands.

use crate::{bench, ci, circle, correctness, fixtures, gpu, reference, torture};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What this repository is checked, measured, broken and regenerated with.
#[derive(Parser)]
#[command(name = "checks", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that continuous integration runs
    Ci(ci::Args),
    /// Kill real runs anywhere, resume them and compare every byte; writes docs/reliability.md
    Torture(torture::Args),
    /// Measure the speed and memory of every stage, beside torch and TRL, against the machine's ceilings
    Bench(Box<bench::Args>),
    /// Gather what the tests measure against references into docs/correctness.md, or compare
    Correctness(correctness::Args),
    /// Make the golden values of the tests anew with torch and transformers, or compare
    Reference(reference::Args),
    /// Generate the embedded instruction world, a simulation, or check that it is up to date
    Fixtures(fixtures::Args),
    /// Serve, rank and retrain in a simulation, several rounds over several seeds, to see whether the circle rises
    Circle(circle::Args),
    /// Try everything that needs a GPU for four minutes, each result written as it comes
    Gpu(gpu::Args),
}

/// The program: parses the command line and runs one chore.
pub fn main() -> ExitCode {
    instruct_kernels::settle_threads();
    instruct_kernels::keep_freed_memory();
    let command = Cli::parse().command;
    // On a thread of the pool, or every parallel operation would begin by waking it and going to sleep.
    let outcome = rayon::scope(|_| match &command {
        Command::Ci(args) => ci::run(args),
        Command::Torture(args) => torture::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Correctness(args) => correctness::run(args),
        Command::Reference(args) => reference::run(args),
        Command::Fixtures(args) => fixtures::run(args),
        Command::Circle(args) => circle::run(args),
        Command::Gpu(args) => gpu::run(args),
    });
    xtask::exit(outcome)
}
