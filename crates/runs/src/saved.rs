//! How a stage's state becomes the files of a checkpoint, and comes back exactly.

use crate::{
    Artefact, BoxError, Checkpoint, Error, Flat, Ranks, Result,
    artefact::Kind,
    flat::{read_flat, write_streamed},
    ranks::Take,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    borrow::Cow,
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

/// An array of a state: all of it, or the run that this process holds where several hold one each.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    /// The numbers that this process holds.
    pub numbers: Cow<'a, [f32]>,
    /// The place of the first of them in the whole array.
    pub start: usize,
    /// Numbers of the whole array.
    pub len: usize,
    /// Whether each process holds a run; otherwise each holds all of it, and nobody need ask.
    pub dealt: bool,
}

impl<'a> From<&'a [f32]> for Array<'a> {
    fn from(numbers: &'a [f32]) -> Array<'a> {
        Array { numbers: Cow::Borrowed(numbers), start: 0, len: numbers.len(), dealt: false }
    }
}

impl<'a> From<(Cow<'a, [f32]>, Option<[usize; 2]>)> for Array<'a> {
    /// From the numbers that are held, and, where each process holds a run, the place of the first and the number of all.
    fn from((numbers, dealt): (Cow<'a, [f32]>, Option<[usize; 2]>)) -> Array<'a> {
        let [start, len] = dealt.unwrap_or([0, numbers.len()]);
        Array { numbers, start, len, dealt: dealt.is_some() }
    }
}

/// Writes files of arrays into the folder of a checkpoint, on the process that writes; on the others it hands over what
/// they hold of arrays that are shared. Or it only counts what the files would take.
pub struct ArrayWriter<'a> {
    target: Target<'a>,
    bytes: u64,
}

enum Target<'a> {
    Counted,
    Written(&'a Path, &'a dyn Ranks),
    HandedOver(&'a dyn Ranks),
}

impl ArrayWriter<'_> {
    /// Writes `NAME.safetensors` in the format of [`crate::write_flat`].
    ///
    /// Errors: the disk's; those of the other processes.
    pub fn write<'a>(
        &mut self,
        name: &str,
        text: &BTreeMap<String, String>,
        arrays: impl IntoIterator<Item = (&'a str, impl Into<Array<'a>>)>,
    ) -> Result<()> {
        let arrays: BTreeMap<&str, Array<'_>> = arrays.into_iter().map(|(name, array)| (name, array.into())).collect();
        let lens: BTreeMap<&str, usize> = arrays.iter().map(|(&name, array)| (name, array.len)).collect();
        self.bytes += lens.values().map(|len| (size_of::<f32>() * len) as u64).sum::<u64>();
        let numbers = |array: &Array<'_>, ranks: &dyn Ranks, take: &mut Take<'_>| {
            if array.dealt { ranks.collect(array, take) } else { take(&array.numbers) }
        };
        match self.target {
            Target::Counted => Ok(()),
            Target::Written(folder, ranks) => write_streamed(&file(folder, name), text, &lens, &mut |name, write| {
                numbers(&arrays[name], ranks, write)
            }),
            Target::HandedOver(ranks) => {
                arrays.values().try_for_each(|array| numbers(array, ranks, &mut |_| Ok(()))).map_err(Error::Ranks)
            }
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

impl Checkpoint {
    /// Its files of arrays.
    pub fn arrays(&self) -> ArrayReader<'_> {
        ArrayReader { folder: &self.folder }
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
            let failed = |source| Error::Restore { path: checkpoint.folder.clone(), source };
            state.load(checkpoint.state()?, &checkpoint.arrays()).map_err(failed)?;
        }
        let mut sizes = ArrayWriter { target: Target::Counted, bytes: 0 };
        state.save(&mut sizes).map_err(|source| Error::Encode { path: self.folder().to_owned(), source })?;
        self.expect_bytes(sizes.bytes)
    }

    /// Commits `state` as the checkpoint of `step`; see [`Artefact::commit`].
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn save<S: Saved>(&mut self, step: u64, state: &S) -> Result<PathBuf> {
        self.save_as(Kind::Scheduled, step, state)
    }

    /// Commits `state` because the run is about to stop; see [`Artefact::commit_interim`].
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn save_interim<S: Saved>(&mut self, step: u64, state: &S) -> Result<PathBuf> {
        self.save_as(Kind::Interim, step, state)
    }

    /// The process that writes gets from the others what they hold.
    fn save_as<S: Saved>(&mut self, kind: Kind, step: u64, state: &S) -> Result<PathBuf> {
        let ranks = self.ranks();
        let write = |folder: &Path| save_into(state, Target::Written(folder, ranks));
        let others = || save_into(state, Target::HandedOver(ranks)).map_err(Error::Ranks);
        self.commit_state(kind, step, &state.rest(), write, others)
    }
}

fn save_into<S: Saved>(state: &S, target: Target<'_>) -> Result<(), BoxError> {
    state.save(&mut ArrayWriter { target, bytes: 0 })
}
