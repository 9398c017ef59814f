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

use crate::say;
use anyhow::{Context, Result, bail};
use std::{path::Path, process::Command};

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
