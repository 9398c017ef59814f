//! The default data and base inside this binary, so that it works away from the repository.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Name and content of every embedded file.
const FILES: [(&str, &[u8]); 10] = [
    ("prompts.jsonl", include_bytes!("../../fixtures/prompts.jsonl")),
    ("demonstrations.jsonl", include_bytes!("../../fixtures/demonstrations.jsonl")),
    ("rankings.jsonl", include_bytes!("../../fixtures/rankings.jsonl")),
    ("pretraining.jsonl", include_bytes!("../../fixtures/pretraining.jsonl")),
    ("pretraining-held-out.jsonl", include_bytes!("../../fixtures/pretraining-held-out.jsonl")),
    ("base/config.json", include_bytes!("../../fixtures/base/config.json")),
    ("base/generation_config.json", include_bytes!("../../fixtures/base/generation_config.json")),
    ("base/model.safetensors", include_bytes!("../../fixtures/base/model.safetensors")),
    ("base/tokenizer.json", include_bytes!("../../fixtures/base/tokenizer.json")),
    ("base/tokenizer_config.json", include_bytes!("../../fixtures/base/tokenizer_config.json")),
];

/// What `model.base` says for the base inside this program.
pub(crate) const BASE: &str = "embedded";

/// How the name of an embedded file begins in `[data]`.
pub(crate) const PREFIX: &str = "embedded:";

/// Names of the embedded files of records.
pub(crate) fn records() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name).filter(|name| !name.contains('/'))
}

/// The default configuration.
pub(crate) const DEFAULT_CONFIG: &str = include_str!("../../configs/fixtures.toml");

/// Writes the embedded files into `folder`, so that every message about a record has a path and a
/// line to point at. Files that are already there with the same content are left alone.
pub(crate) fn unpack(folder: &Path) -> Result<PathBuf> {
    for (name, content) in FILES {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|present| present == content) {
            continue;
        }
        let parent = path.parent().context("every embedded file lies in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(folder.to_owned())
}
