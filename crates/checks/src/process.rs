//! Other programs that the checks start.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use xtask::terminal::say;

/// Says what it starts, and waits for it.
///
/// Errors: it does not start, or fails.
pub(crate) fn execute(command: &mut Command) -> Result<()> {
    say(&format!("{command:?}"));
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if status.success() {
        return Ok(());
    }
    bail!("{command:?} failed with {status}")
}

/// The Python of an environment at `place` that has these packages; made when it is not there.
pub(crate) fn python_environment(place: &Path, packages: impl Iterator<Item = String>) -> Result<PathBuf> {
    let python = place.join("bin/python");
    if !python.exists() {
        say(&format!("an environment with gigabytes of packages is made at {}", place.display()));
        execute(Command::new("python3").args(["-m", "venv"]).arg(place))?;
    }
    execute(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    Ok(python)
}

/// The workspace: beside the manifest that cargo names to the programs it runs.
///
/// Errors: this was not started by cargo.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let manifest = manifest.context("this checks a repository: run it through `cargo xtask`")?;
    let root = Path::new(&manifest).ancestors().nth(2).context("checks lies in a folder of the workspace")?;
    Ok(root.to_owned())
}

/// The program that people install, built from the repository at `root`.
///
/// Errors: it does not build.
pub fn program(root: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "xtask", "--bin", "instruct"]).current_dir(root);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the program does not build");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(root.join(target).join("release/instruct"))
}
