//! One file per command.

pub(crate) mod bench;
pub(crate) mod ci;
pub(crate) mod correctness;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod fixtures;
pub(crate) mod generate;
pub(crate) mod pipeline;
pub(crate) mod plan;
pub(crate) mod pretrain;
pub(crate) mod reference;
pub(crate) mod score;
pub(crate) mod torture;

use crate::say;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Writes a whole file, so that a failure leaves the old content or none.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".tmp");
    let staged = Path::new(&staged);
    std::fs::write(staged, content)
        .and_then(|()| std::fs::rename(staged, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

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
