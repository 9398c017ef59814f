//! One file per command.

pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod dry_run;
pub(crate) mod feedback;
pub(crate) mod generate;
mod opening;
pub(crate) mod pipeline;
pub(crate) mod plan;
pub(crate) mod pretrain;
pub(crate) mod report;
pub(crate) mod report_card;
pub(crate) mod retrain;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod tasks;

use crate::terminal::say;
use anyhow::{Context, Result};
use std::path::Path;

/// A template as it was typed: a shell leaves `\n` as two characters, and no template means these.
pub(crate) fn typed(template: &str) -> String {
    if template.contains("\\n") {
        say("--template: `\\n` is taken as the newline that it stands for");
    }
    template.replace("\\n", "\n")
}

/// Writes a whole file, so that a failure leaves the old content or none.
///
/// Errors: the disk's.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut staged = path.as_os_str().to_owned();
    // Another process may be writing the same.
    staged.push(format!(".{}.tmp", std::process::id()));
    let staged = Path::new(&staged);
    let written = std::fs::write(staged, content).and_then(|()| std::fs::rename(staged, path));
    if written.is_err() {
        // A full disk leaves half of it, which nobody else would remove.
        let _ = std::fs::remove_file(staged);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
