//! `ci`: what continuous integration runs, the cheapest checks first.

use crate::say;
use anyhow::{Context, Result, bail};
use std::{process::Command, time::Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the packaging dry run and the type check of the cuda feature
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    step("formatting", "cargo", &["fmt", "--all", "--check"])?;
    step("lints", "cargo", &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("tests", "cargo", &["test", "--release", "--workspace"])?;
    step("fixtures", &this()?, &["fixtures", "--check"])?;
    let run = std::env::temp_dir().join(format!("instruct-ci-{}", std::process::id()));
    let smoke = ["pipeline", "--config", "configs/smoke.toml", "--run", &run.display().to_string()].map(str::to_owned);
    let smoke: Vec<&str> = smoke.iter().map(String::as_str).collect();
    let outcome = step("smoke pipeline", &this()?, &smoke);
    // The folder may not exist when the run failed at once.
    let _ = std::fs::remove_dir_all(&run);
    outcome?;
    if !args.quick {
        step("packaging", "cargo", &["package", "--workspace", "--exclude", "xtask", "--no-verify", "--allow-dirty"])?;
        step("cuda type check", "bash", &["-c", CUDA_CHECK])?;
    }
    say("ci: everything passed");
    Ok(())
}

/// Type-checks the cuda feature without CUDA: `.ci/cuda-check` gives candle's build script a
/// compiler that writes empty kernels.
const CUDA_CHECK: &str = "bash .ci/cuda-check";

fn this() -> Result<String> {
    Ok(std::env::current_exe().context("this program has no path")?.display().to_string())
}

fn step(name: &str, program: &str, arguments: &[&str]) -> Result<()> {
    say(&format!("ci: {name}"));
    let begun = Instant::now();
    let status = Command::new(program).args(arguments).status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{name} failed: {program} {}", arguments.join(" "));
    }
    say(&format!("ci: {name} passed in {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}
