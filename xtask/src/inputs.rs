//! Hashes of the files that a run reads, so that a run that is continued notices other data before it works with it.

use crate::{
    config::Config,
    embedded,
    prepare::{base_path, resolve},
    progress::Progress,
};
use anyhow::{Context, Result};
use instruct_runs::sha256;
use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The files that a configuration names, which are hashed when that is first asked for.
pub(crate) struct Inputs<'a> {
    config: &'a Config,
    found: OnceCell<Found>,
}

struct Found {
    hashes: BTreeMap<String, String>,
    /// Every file that is not inside this program, and how it was before it was hashed.
    stamps: Vec<(PathBuf, Option<Stamp>)>,
}

/// Length and time of the last change.
type Stamp = (u64, SystemTime);

impl Inputs<'_> {
    pub(crate) fn of(config: &Config) -> Inputs<'_> {
        Inputs { config, found: OnceCell::new() }
    }

    /// The SHA-256 of every file, by its name in the configuration: records, text, and the base, of which a folder's
    /// files count that tell of a model or a tokenizer. What is no plain file is left out: a pipe could be read but
    /// once.
    ///
    /// Errors: a file that cannot be read; no room for a temporary folder.
    pub(crate) fn hashes(&self) -> Result<&BTreeMap<String, String>> {
        if let Some(known) = self.found.get() {
            return Ok(&known.hashes);
        }
        let found = find(self.config)?;
        Ok(&self.found.get_or_init(|| found).hashes)
    }

    /// Whether no file has changed since it was hashed, as far as its length and its time tell.
    pub(crate) fn unchanged(&self) -> bool {
        let stamps = self.found.get().map(|found| found.stamps.as_slice()).unwrap_or_default();
        stamps.iter().all(|(path, before)| before.is_some() && stamp(path) == *before)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.len(), file.modified().ok()?))
}

fn find(config: &Config) -> Result<Found> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let unpacked = embedded::unpack(folder.path())?;
    let names: BTreeSet<String> = config.data.files().map(|(_, name)| name.clone()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut files: Vec<(String, PathBuf)> = names.iter().cloned().zip(resolve(&names, &unpacked)).collect();
    files.extend(of_model(&config.model.base, &base_path(&config.model.base, &unpacked))?);
    files.retain(|(_, path)| path.is_file());
    let own = files.iter().filter(|(_, path)| !path.starts_with(folder.path()));
    let stamps = own.map(|(_, path)| (path.clone(), stamp(path))).collect();
    let size = |(_, path): &(String, PathBuf)| fs::metadata(path).map_or(0, |file| file.len() as usize);
    let mut progress = Progress::of("hashing inputs", files.iter().map(size).sum(), "bytes");
    let hash =
        |(name, path): (String, PathBuf)| Ok((name, sha256(&path, &mut |bytes| progress.advance(bytes as usize))?));
    Ok(Found { hashes: files.into_iter().map(hash).collect::<Result<_>>()?, stamps })
}

/// The files of a model: itself, or of a folder those of the kinds that are read.
fn of_model(name: &str, path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.is_dir() {
        return Ok(vec![(name.to_owned(), path.to_owned())]);
    }
    let read = |path: &PathBuf| {
        ["merges.txt", "vocab.bpe"].iter().any(|merges| path.ends_with(merges))
            || path.extension().is_some_and(|kind| ["json", "jinja", "safetensors"].iter().any(|known| kind == *known))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if read(&path) {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((format!("{}/{file}", name.trim_end_matches('/')), path));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_folder_count_the_files_that_tell_of_a_model_or_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let read = ["config.json", "chat_template.jinja", "merges.txt", "vocab.bpe", "model.safetensors"];
        for name in read.iter().chain(&["README.md", "notes.txt", "training_args.bin"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found: BTreeSet<String> =
            of_model("m/", folder.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, read.map(|name| format!("m/{name}")).into());
        assert_eq!(of_model("m.gguf", Path::new("m.gguf")).unwrap(), [("m.gguf".to_owned(), "m.gguf".into())]);
    }
}
