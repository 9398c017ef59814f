//! What the pages say, beside what the files and the terminal say.
#![allow(clippy::unwrap_used, reason = "clippy does not count a helper in tests/ as a test")]

mod hostile;
mod html;
mod numbers;
mod opened;
mod parts;

use instruct_report::Run;
use std::collections::BTreeMap;

/// A run made of texts.
pub(crate) fn run(name: &str, files: &[(&str, &str)]) -> Run {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    Run::from_files(name, |path| files.get(path).map(|text| text.as_bytes().to_vec()))
}
