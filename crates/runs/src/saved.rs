//! How a stage's state becomes the files of a checkpoint, and comes back exactly.

use crate::{Artefact, BoxError, Error, Flat, Result, read_flat, write_flat};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// State that a run saves and continues from: named flat arrays in files, and the rest as serde knows
/// it. What [`Saved::save`] and [`Saved::rest`] hand over has to be all that the future depends on.
pub trait Saved {
    /// Everything that is not an array: counters, what guards remember. It goes through JSON, which
    /// keeps every finite `f64` exactly and no NaN.
    type Rest: Serialize + DeserializeOwned;

    /// What is not an array.
    fn rest(&self) -> Self::Rest;

    /// Writes every file of arrays.
    ///
    /// Errors: those of the arrays' owners, and of `files`.
    fn save(&self, files: &mut ArrayWriter<'_>) -> Result<(), BoxError>;

    /// Takes over `rest`, and reads what [`Saved::save`] wrote.
    ///
    /// Errors: state of another model; those of `files`.
    fn load(&mut self, rest: Self::Rest, files: &ArrayReader<'_>) -> Result<(), BoxError>;
}

/// Writes files of arrays into the folder of a checkpoint, or only counts what they would take.
pub struct ArrayWriter<'a> {
    folder: Option<&'a Path>,
    bytes: u64,
}

impl ArrayWriter<'_> {
    /// Writes `NAME.safetensors` in the format of [`write_flat`].
    ///
    /// Errors: the disk's.
    pub fn write(&mut self, name: &str, text: &BTreeMap<String, String>, arrays: &[(&str, &[f32])]) -> Result<()> {
        self.bytes += arrays.iter().map(|(_, values)| size_of_val(*values) as u64).sum::<u64>();
        match self.folder {
            Some(folder) => write_flat(&file(folder, name), text, arrays),
            None => Ok(()),
        }
    }
}

/// Reads the files of arrays of a checkpoint.
pub struct ArrayReader<'a> {
    folder: &'a Path,
}

impl ArrayReader<'_> {
    /// Reads `NAME.safetensors`.
    ///
    /// Errors: those of [`read_flat`].
    pub fn read(&self, name: &str) -> Result<Flat> {
        read_flat(&file(self.folder, name))
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.safetensors"))
}

impl Artefact<'_> {
    /// Brings `state` to where the newest whole checkpoint left it; a state without one stays as it is.
    /// From here on even the first checkpoint is not begun without room for it.
    ///
    /// Errors: a checkpoint of another model; too little space for a checkpoint, now already.
    pub fn restore<S: Saved>(&mut self, state: &mut S) -> Result<()> {
        if let Some(checkpoint) = self.checkpoint() {
            let files = ArrayReader { folder: &checkpoint.folder };
            let failed = |source| Error::Restore { path: checkpoint.folder.clone(), source };
            state.load(checkpoint.state()?, &files).map_err(failed)?;
        }
        let mut sizes = ArrayWriter { folder: None, bytes: 0 };
        state.save(&mut sizes).map_err(|source| Error::Encode { path: self.folder().to_owned(), source })?;
        self.expect_bytes(sizes.bytes)
    }

    /// Commits `state` as the checkpoint of `step`; see [`Artefact::commit`].
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn save<S: Saved>(&mut self, step: u64, state: &S) -> Result<PathBuf> {
        self.commit(step, &state.rest(), |folder| write(state, folder))
    }

    /// Commits `state` because the run is about to stop; see [`Artefact::commit_interim`].
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn save_interim<S: Saved>(&mut self, step: u64, state: &S) -> Result<PathBuf> {
        self.commit_interim(step, &state.rest(), |folder| write(state, folder))
    }
}

fn write<S: Saved>(state: &S, folder: &Path) -> Result<(), BoxError> {
    state.save(&mut ArrayWriter { folder: Some(folder), bytes: 0 })
}
