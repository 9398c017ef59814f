//! One artefact of a run: its journals, its checkpoints and, in the end, its model.

use crate::{
    BoxError, Damaged, Error, Result, disk,
    manifest::{self, Manifest, STAGED},
    ranks::{Ranks, agree, meet},
};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned, ser::SerializeMap};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The folder of one artefact (`sft-init`, `reward-model`, ...), opened for one process by
/// [`crate::RunDir::artefact`].
///
/// ```text
/// metrics.jsonl  samples.jsonl  timings.jsonl
/// checkpoints/step-000123/   what `encode` wrote, state.json, manifest.json
/// checkpoints/interrupted-000124/   the same between two of the schedule; gone with the next of them
/// checkpoints/<name>/        candidates and the best, never removed
/// model/                     the result; its presence means that the artefact is finished
/// ```
///
/// Opening brings the journals back to where the newest whole checkpoint was made, so that a run
/// killed at any instant continues as if it had not been. A checkpoint is written under another
/// name, synced, and renamed; one that does not match its manifest is passed over for the one
/// before it.
pub struct Artefact<'r> {
    folder: PathBuf,
    /// Of the process that writes.
    journals: Option<Journals>,
    checkpoint: Option<Checkpoint>,
    model: Option<PathBuf>,
    passed_over: Vec<Damaged>,
    keep_last: usize,
    expected_bytes: u64,
    ranks: &'r dyn Ranks,
    _lock: Option<Arc<File>>,
}

/// A whole checkpoint of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Steps done when it was made.
    pub step: u64,
    /// Its folder: what `encode` wrote, and `state.json`.
    pub folder: PathBuf,
}

impl Checkpoint {
    /// The newest whole checkpoint in an artefact's folder, which is only read, so that it may be another run's; `None`
    /// where there is none.
    ///
    /// Errors: a folder that cannot be listed.
    pub fn newest(artefact: &Path) -> Result<Option<Checkpoint>> {
        let checkpoints = artefact.join("checkpoints");
        let newest_first = steps(&checkpoints)?.into_iter().rev();
        let mut all = newest_first.map(|(step, name)| Checkpoint { step, folder: checkpoints.join(name) });
        Ok(all.find(|checkpoint| manifest::verify(&checkpoint.folder).is_ok()))
    }

    /// The state that was handed to [`Artefact::commit`].
    ///
    /// Errors: a state of another shape, written by another version of the program for example.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S> {
        let path = self.folder.join(STATE);
        let bytes = fs::read(&path).map_err(disk::failed("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Malformed { path, problem: error.to_string() })
    }
}

/// A checkpoint of the schedule, or one between two of these.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Scheduled,
    Interim,
}

const STATE: &str = "state.json";
const SCHEDULED: &str = "step-";
const INTERIM: &str = "interrupted-";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";
const TIMINGS: &str = "timings.jsonl";

impl<'r> Artefact<'r> {
    /// `done` hears how many more bytes have been compared with their hashes. The process that writes holds `lock`,
    /// and mends what a killed one left before the others look.
    pub(crate) fn open(
        folder: PathBuf,
        lock: Option<Arc<File>>,
        ranks: &'r dyn Ranks,
        done: &mut dyn FnMut(u64),
    ) -> Result<Artefact<'r>> {
        let checkpoints = folder.join("checkpoints");
        if ranks.writes() {
            disk::create_folder(&checkpoints)?;
            remove_staged(&folder)?;
            remove_staged(&checkpoints)?;
        } else {
            meet(ranks)?;
        }
        let mut passed_over = Vec::new();
        let mut whole = |path: &Path| match verify_with_journals(path, &folder, done) {
            Ok(manifest) => Some(manifest),
            Err(damaged) => {
                passed_over.push(damaged);
                None
            }
        };
        let model = Some(folder.join("model")).filter(|path| path.exists());
        let model = model.and_then(|path| whole(&path).map(|manifest| (path, manifest)));
        let newest_first = steps(&checkpoints)?.into_iter().rev();
        let checkpoint = newest_first
            .map(|(step, name)| Checkpoint { step, folder: checkpoints.join(name) })
            .find_map(|checkpoint| whole(&checkpoint.folder).map(|manifest| (checkpoint, manifest)));
        let past = model.as_ref().map(|(_, m)| m).or(checkpoint.as_ref().map(|(_, m)| m));
        let journals = if ranks.writes() {
            let journals = Journals::open(&folder, past)?;
            meet(ranks)?;
            Some(journals)
        } else {
            None
        };
        let expected_bytes = past.map_or(0, Manifest::bytes);
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let of_model = model.as_ref().map(|(_, manifest)| manifest.sealed());
        let of_checkpoint = checkpoint.as_ref().map(|(_, manifest)| manifest.sealed());
        agree(ranks, &format!("checkpoint of {name}"), format!("{of_model:?} {of_checkpoint:?}").as_bytes())?;
        Ok(Artefact {
            journals,
            checkpoint: checkpoint.map(|(checkpoint, _)| checkpoint),
            model: model.map(|(path, _)| path),
            passed_over,
            keep_last: 2,
            expected_bytes,
            folder,
            ranks,
            _lock: lock,
        })
    }

    /// What the process that writes answers.
    pub(crate) fn told(&self, answer: bool) -> Result<bool> {
        self.ranks.told(answer).map_err(Error::Ranks)
    }

    /// How the processes of the run meet.
    pub(crate) fn ranks(&self) -> &'r dyn Ranks {
        self.ranks
    }

    /// Lets the process that writes make `folder` while the others do `others` and wait: nobody reads what it removes,
    /// and all find what it made.
    fn together(
        &mut self,
        folder: PathBuf,
        write: impl FnOnce(&mut Self, &Path) -> Result<()>,
        others: impl FnOnce() -> Result<()>,
    ) -> Result<PathBuf> {
        meet(self.ranks)?;
        if self.ranks.writes() {
            write(self, &folder)?
        } else {
            others()?
        }
        meet(self.ranks)?;
        Ok(folder)
    }

    /// The artefact's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The finished model, once [`Artefact::finish`] has committed it. A pipeline skips the stage.
    pub fn model(&self) -> Option<&Path> {
        self.model.as_deref()
    }

    /// The newest whole checkpoint: the one to continue from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Checkpoints, or a model, that were found damaged and passed over: to be shown.
    pub fn passed_over(&self) -> &[Damaged] {
        &self.passed_over
    }

    /// How many checkpoints of steps are kept (2, and never fewer than 1). Two, so that one that
    /// turns out to be damaged has one before it.
    pub fn keep_last(&mut self, count: usize) {
        self.keep_last = count.max(1);
    }

    /// Says that a checkpoint takes about `bytes`, so that even the first is not begun without room.
    ///
    /// Errors: too little space for one, now already.
    pub fn expect_bytes(&mut self, bytes: u64) -> Result<()> {
        self.expected_bytes = self.expected_bytes.max(bytes);
        disk::ensure_space(&self.folder, self.expected_bytes)
    }

    /// Appends `{"step": step, name: value, ...}` to `metrics.jsonl`, in this order. A value that is
    /// not finite becomes `null`.
    pub fn metrics(&mut self, step: u64, entries: &[(&'static str, f64)]) -> Result<()> {
        self.journals.as_mut().map_or(Ok(()), |of| of.metrics.append(&MetricsRow { step, entries }))
    }

    /// Appends `row` (a struct or map) with its `step` to `samples.jsonl`.
    pub fn sample(&mut self, step: u64, row: &impl Serialize) -> Result<()> {
        self.journals.as_mut().map_or(Ok(()), |of| of.samples.append(&SampleRow { step, row }))
    }

    /// Appends a phase's wall-clock time to `timings.jsonl`. `step` is the number that the step
    /// under way will have when it is done: a resume drops the rows after its checkpoint's step.
    pub fn timing(&mut self, step: u64, phase: &str, seconds: f64) -> Result<()> {
        let row = TimingRow { step, phase: phase.into(), seconds };
        self.journals.as_mut().map_or(Ok(()), |of| of.timings.append(&row))
    }

    /// Commits `checkpoints/step-<step>/` with `state` and what `encode` writes into the folder it
    /// is given, all or nothing, and removes the oldest beyond those to keep.
    ///
    /// Two commits of equal content have equal bytes: nothing in them knows the time. `state` goes
    /// through JSON, which keeps every finite `f64` exactly and no NaN.
    ///
    /// Errors: too little space, judged by the largest checkpoint so far and by
    /// [`Artefact::expect_bytes`]; the closure's error; the disk's. Earlier checkpoints are intact
    /// whatever happens.
    pub fn commit(
        &mut self,
        step: u64,
        state: &impl Serialize,
        encode: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<PathBuf> {
        self.commit_state(Kind::Scheduled, step, state, encode, || Ok(()))
    }

    /// Commits `checkpoints/interrupted-<step>/` as [`Artefact::commit`] does, between two of the
    /// schedule, because the run is about to stop. It counts for nothing in what is kept and is removed
    /// by the next [`Artefact::commit`]: a run that was interrupted leaves the same folders in the end.
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn commit_interim(
        &mut self,
        step: u64,
        state: &impl Serialize,
        encode: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<PathBuf> {
        self.commit_state(Kind::Interim, step, state, encode, || Ok(()))
    }

    /// While the process that writes is in `encode`, the others are in `others`.
    pub(crate) fn commit_state(
        &mut self,
        kind: Kind,
        step: u64,
        state: &impl Serialize,
        encode: impl FnOnce(&Path) -> Result<(), BoxError>,
        others: impl FnOnce() -> Result<()>,
    ) -> Result<PathBuf> {
        let prefix = match kind {
            Kind::Scheduled => SCHEDULED,
            Kind::Interim => INTERIM,
        };
        let folder = self.folder.join("checkpoints").join(format!("{prefix}{step:06}"));
        // It holds recent losses and norms, so that weights that have parted show.
        agree(self.ranks, &format!("state after step {step}"), &disk::pretty_json(&folder, state)?)?;
        let write = |artefact: &mut Self, folder: &Path| {
            artefact.commit_folder(folder, step, |folder| {
                encode(folder)?;
                let path = folder.join(STATE);
                Ok(disk::write(&path, &disk::pretty_json(&path, state)?)?)
            })?;
            match kind {
                Kind::Scheduled => artefact.prune(step),
                Kind::Interim => Ok(()),
            }
        };
        let folder = self.together(folder, write, others)?;
        self.checkpoint = Some(Checkpoint { step, folder: folder.clone() });
        Ok(folder)
    }

    /// Commits `checkpoints/<name>/`, a candidate or the best so far, which is never removed. It
    /// holds weights to choose from, not a state to continue from. An older one of this name is
    /// replaced.
    ///
    /// Errors: as [`Artefact::commit`], or a name that is not fit for a folder.
    pub fn commit_named(
        &mut self,
        name: &str,
        step: u64,
        encode: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<PathBuf> {
        let folder = self.folder.join("checkpoints").join(folder_name(name)?);
        self.together(folder, |artefact, folder| artefact.commit_folder(folder, step, encode), || Ok(()))
    }

    /// The folder of a named checkpoint, after comparing it with its manifest; `None` when there is
    /// none of this name.
    ///
    /// Errors: it is damaged, or the name is not fit for a folder.
    pub fn named(&self, name: &str) -> Result<Option<PathBuf>> {
        let folder = self.folder.join("checkpoints").join(folder_name(name)?);
        if !folder.exists() {
            return Ok(None);
        }
        manifest::verify(&folder).map_err(|damaged| Error::Malformed {
            path: damaged.folder,
            problem: format!(
                "{}; remove the folder {} and continue with --resume: it is made again",
                damaged.problem,
                self.folder.display()
            ),
        })?;
        Ok(Some(folder))
    }

    /// Commits `model/`, which marks the artefact as finished.
    ///
    /// Errors: as [`Artefact::commit`].
    pub fn finish(&mut self, step: u64, encode: impl FnOnce(&Path) -> Result<(), BoxError>) -> Result<PathBuf> {
        let write = |artefact: &mut Self, folder: &Path| {
            // A process that died between its last checkpoint and the removal of the oldest left one
            // too many; once the model is there nobody would look again. All steps are past now, whatever
            // `step` counts.
            artefact.prune(u64::MAX)?;
            artefact.commit_folder(folder, step, encode)
        };
        let folder = self.together(self.folder.join("model"), write, || Ok(()))?;
        self.model = Some(folder.clone());
        Ok(folder)
    }

    fn commit_folder(
        &mut self,
        folder: &Path,
        step: u64,
        encode: impl FnOnce(&Path) -> Result<(), BoxError>,
    ) -> Result<()> {
        let parent = folder.parent().unwrap_or(&self.folder);
        disk::ensure_space(parent, self.expected_bytes)?;
        // What the manifest calls the past must be on the disk before the manifest is.
        let past = self.journals.as_ref().map_or(Ok(BTreeMap::new()), Journals::synced)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let (_, manifest) = manifest::commit(parent, &name, step, past, encode)?;
        self.expected_bytes = self.expected_bytes.max(manifest.bytes());
        Ok(())
    }

    /// Removes all but the newest checkpoints up to `step`. Later ones can only be damaged ones
    /// that this run will make again.
    fn prune(&self, step: u64) -> Result<()> {
        let checkpoints = self.folder.join("checkpoints");
        let past = steps(&checkpoints)?.into_iter().filter(|&(at, _)| at <= step);
        let (scheduled, interim): (Vec<_>, Vec<_>) = past.partition(|(_, name)| name.starts_with(SCHEDULED));
        let surplus = scheduled.len().saturating_sub(self.keep_last);
        let surplus = scheduled[..surplus].iter().chain(&interim);
        surplus.map(|(_, name)| checkpoints.join(name)).try_for_each(|folder| manifest::discard(&folder))
    }
}

/// A folder's name made of letters, digits, `-` and `_`, or an error.
pub(crate) fn folder_name(name: &str) -> Result<&str> {
    let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || [SCHEDULED, INTERIM].iter().any(|of| name.starts_with(of)) || !name.chars().all(fit) {
        return Err(Error::Name { name: name.to_owned() });
    }
    Ok(name)
}

/// What the process that writes appends to.
struct Journals {
    metrics: Journal,
    samples: Journal,
    timings: Journal,
}

impl Journals {
    /// Opens them where the newest whole checkpoint or model was made.
    fn open(folder: &Path, past: Option<&Manifest>) -> Result<Journals> {
        let journal = |name: &str| Journal::open(folder.join(name));
        let (mut metrics, mut samples, mut timings) = (journal(METRICS)?, journal(SAMPLES)?, journal(TIMINGS)?);
        let offset = |name: &str| past.and_then(|manifest| manifest.journals.get(name).copied()).unwrap_or(0);
        metrics.cut(offset(METRICS))?;
        samples.cut(offset(SAMPLES))?;
        timings.cut_after_step(past.map(|manifest| manifest.step))?;
        disk::sync(folder)?;
        Ok(Journals { metrics, samples, timings })
    }

    /// Waits until they are on the disk, and returns the lengths that a manifest holds.
    fn synced(&self) -> Result<BTreeMap<String, u64>> {
        for journal in [&self.metrics, &self.samples, &self.timings] {
            disk::sync(&journal.path)?;
        }
        Ok([(METRICS, &self.metrics), (SAMPLES, &self.samples)].map(|(name, of)| (name.to_owned(), of.bytes)).into())
    }
}

/// An append-only file of JSON lines that knows its length.
struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Journal {
    fn open(path: PathBuf) -> Result<Journal> {
        let failed = disk::failed("open", &path);
        let file = File::options().append(true).create(true).open(&path).map_err(&failed)?;
        let bytes = file.metadata().map_err(&failed)?.len();
        drop(failed);
        Ok(Journal { path, file, bytes })
    }

    /// One line, in one write.
    fn append(&mut self, row: &impl Serialize) -> Result<()> {
        let malformed = |error: serde_json::Error| Error::Malformed {
            path: self.path.clone(),
            problem: format!("a row cannot be written: {error}"),
        };
        let mut line = serde_json::to_vec(row).map_err(malformed)?;
        line.push(b'\n');
        disk::append(&self.path, &mut self.file, &line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> Result<()> {
        if self.bytes > bytes {
            disk::cut(&self.path, &self.file, bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Cuts timings behind the last row of `step` or before; all of them when there is no step.
    /// Their lengths vary with the clock, so a byte offset would make manifests differ between
    /// runs that are otherwise equal.
    fn cut_after_step(&mut self, step: Option<u64>) -> Result<()> {
        let bytes = fs::read(&self.path).map_err(disk::failed("read", &self.path))?;
        let past = |line: &[u8]| {
            let row = serde_json::from_slice::<TimingRow<'_>>(line).ok();
            line.ends_with(b"\n") && row.is_some_and(|row| Some(row.step) <= step)
        };
        let kept = bytes.split_inclusive(|&byte| byte == b'\n').take_while(|line| past(line));
        self.cut(kept.map(|line| line.len() as u64).sum())
    }
}

struct MetricsRow<'a> {
    step: u64,
    entries: &'a [(&'static str, f64)],
}

impl Serialize for MetricsRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.entries.len()))?;
        map.serialize_entry("step", &self.step)?;
        for (name, value) in self.entries {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct SampleRow<'a, T> {
    step: u64,
    #[serde(flatten)]
    row: &'a T,
}

#[derive(Serialize, Deserialize)]
struct TimingRow<'a> {
    step: u64,
    phase: std::borrow::Cow<'a, str>,
    seconds: f64,
}

/// A whole folder whose past the journals still hold.
fn verify_with_journals(folder: &Path, artefact: &Path, done: &mut dyn FnMut(u64)) -> Result<Manifest, Damaged> {
    let manifest = manifest::verify_reporting(folder, done)?;
    for (name, &bytes) in &manifest.journals {
        let found = fs::metadata(artefact.join(name)).map_or(0, |file| file.len());
        if found < bytes {
            let problem = format!("{name} is {found} bytes long, and {bytes} belong to its past");
            return Err(Damaged { folder: folder.to_owned(), problem });
        }
    }
    Ok(manifest)
}

/// Bytes that opening the artefact in this folder compares with their hashes, when nothing is damaged: those
/// of its model and of its newest checkpoint.
pub(crate) fn bytes_to_verify(folder: &Path) -> Result<u64> {
    let checkpoints = folder.join("checkpoints");
    let newest = steps(&checkpoints)?.pop().map(|(_, name)| checkpoints.join(name));
    [Some(folder.join("model")), newest].into_iter().flatten().map(|folder| disk::bytes(&folder)).sum()
}

/// The checkpoints of steps in a folder, interim ones too, oldest first.
pub(crate) fn steps(checkpoints: &Path) -> Result<Vec<(u64, String)>> {
    let number = |name: &str| name.strip_prefix(SCHEDULED).or_else(|| name.strip_prefix(INTERIM))?.parse().ok();
    let numbered = |name: String| Some((number(&name)?, name));
    let mut steps: Vec<_> = disk::names(checkpoints)?.into_iter().filter_map(numbered).collect();
    steps.sort();
    Ok(steps)
}

/// Removes what a process left that died while writing or removing a folder.
fn remove_staged(folder: &Path) -> Result<()> {
    let staged = disk::names(folder)?.into_iter().filter(|name| name.starts_with(STAGED));
    staged.map(|name| folder.join(name)).try_for_each(|path| disk::remove(&path))
}
