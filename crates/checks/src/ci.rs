//! `ci`: what continuous integration runs, the cheapest checks first. The first failure ends it.

use anyhow::{Context, Result, bail};
use std::{env, path::PathBuf, process::Command, time::Instant};
use xtask::terminal::{print, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the smoke pipeline, the torture, the ranks and the type check of the cuda feature
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // Asked before the tests build this program anew: afterwards the system calls it deleted.
    let this = env::current_exe().context("this program has no path")?.display().to_string();
    let mut ci = Ci { root: crate::process::root()?, lines: Vec::new() };
    ci.step("formatting", "cargo", "fmt --all --check", &[])?;
    ci.step(
        "packaging",
        "cargo",
        "package --quiet --offline --workspace --exclude xtask --exclude instruct-checks --exclude instruct-claims --exclude instruct-golden --exclude instruct-browser --exclude instruct-fuzz --no-verify --allow-dirty",
        &[],
    )?;
    // Lints and documentation share one set of dependencies; the tests share those of this program.
    // The fuzz targets are among what is linted; their C++ is not compiled, since nothing links them.
    let no_fuzzer = [("CUSTOM_LIBFUZZER_PATH", "target/none")];
    ci.step("lints", "cargo", "clippy --release --workspace --all-targets -- -D warnings", &no_fuzzer)?;
    // As `cargo xtask` builds it, which is the first thing that a newcomer sees.
    let bare = "clippy --release --package xtask --all-targets --no-default-features -- -D warnings";
    ci.step("lints, no server", "cargo", bare, &[])?;
    ci.step(
        "documentation",
        "cargo",
        "doc --release --workspace --no-deps",
        &[no_fuzzer[0], ("RUSTDOCFLAGS", "-D warnings")],
    )?;
    ci.step("browser", "bash", ".ci/browser", &[])?;
    let measured = format!("target/ci-measured-{}", std::process::id());
    let measures = ci.root.join(&measured).display().to_string();
    ci.step("tests", "cargo", "test --release --workspace", &[(instruct_claims::FILE, &measures)])?;
    ci.step("correctness", &this, &format!("correctness --check --measured {measured}"), &[])?;
    std::fs::remove_file(measures).context("cannot remove the measurements")?;
    ci.step("fixtures", &this, "fixtures --check", &[])?;
    ci.step("reliability", &this, "torture --check", &[])?;
    if !args.quick {
        ci.smoke(&crate::process::program(&ci.root)?.display().to_string())?;
        ci.step("torture", &this, "torture --slice", &[])?;
        ci.step("cuda type check", "bash", ".ci/cuda-check", &[])?;
        ci.step("ranks", "bash", ".ci/mpi", &[])?;
    }
    ci.lines.iter().for_each(|line| say(line));
    print(&format!("ci: {} passed, 0 failed", ci.lines.len()));
    Ok(())
}

/// The checks that passed so far, and where they run.
struct Ci {
    root: PathBuf,
    lines: Vec<String>,
}

impl Ci {
    /// Runs a program with `variables` set; no argument holds a space.
    fn step(&mut self, name: &str, program: &str, arguments: &str, variables: &[(&str, &str)]) -> Result<()> {
        say(&format!("ci: {name}: {program} {arguments}"));
        let begun = Instant::now();
        let mut process = Command::new(program);
        process.args(arguments.split(' ')).envs(variables.iter().copied()).current_dir(&self.root);
        let status = process.status().with_context(|| format!("cannot start {program}"))?;
        if !status.success() {
            bail!("{name} failed: {program} {arguments}");
        }
        self.lines.push(format!("{name:>16}  {:5.0} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// The whole flow on a sliver of the embedded world, in a run folder that is removed.
    fn smoke(&mut self, this: &str) -> Result<()> {
        let folder = format!("target/ci-smoke-{}", std::process::id());
        let arguments = format!("pipeline --config configs/smoke.toml --run {folder}");
        let outcome = self.step("smoke pipeline", this, &arguments, &[]);
        // It may not exist when the run failed at once.
        let _ = std::fs::remove_dir_all(self.root.join(&folder));
        outcome
    }
}
