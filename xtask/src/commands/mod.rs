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
    // Another process may be writing the same.
    write_staged(path, &std::process::id().to_string(), content)
}

/// As [`write_whole`], through a file that is called after `by`: nobody else may write the same under that name. What a
/// process that died left there is written over.
pub(crate) fn write_staged(path: &Path, by: &str, content: &[u8]) -> Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{by}.tmp"));
    let staged = Path::new(&staged);
    let written = std::fs::write(staged, content).and_then(|()| std::fs::rename(staged, path));
    if written.is_err() {
        // A full disk leaves half of it, which nobody else would remove.
        let _ = std::fs::remove_file(staged);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
