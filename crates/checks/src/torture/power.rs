//! Power cuts, simulated: a process dies, and then everything is taken back that it had not synced, as
//! far as POSIX lets a file system do so. And disks that lie: what was synced is damaged all the same.
//!
//! POSIX promises a file's content after `fsync` of the file, and a name's creation or change after
//! `fsync` of its folder; nothing else. What a removal took cannot be brought back here, so removals
//! count as done, and with them all changes of names in that folder before.

use super::{
    Death,
    calls::Call,
    settle, settle_and_listen,
    traced::{Scene, shares, spread},
    victim::{Victim, is_torn},
};
use anyhow::{Context, Result, bail};
use instruct_random::{Draws, Source};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

/// What a process has done to a run folder, and how much of it is sure to be on the disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Bytes written and bytes synced of each file that the process wrote to.
    files: BTreeMap<String, Extent>,
    /// Changes of names that are not synced, by folder, in order.
    names: BTreeMap<String, Vec<Change>>,
    /// Checkpoints and models that were renamed to their names, with everything synced after.
    sure: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Extent {
    written: u64,
    synced: u64,
}

#[derive(Debug, PartialEq)]
enum Change {
    Made(String),
    Renamed(String, String),
}

impl Disk {
    /// The state after `calls`, in a run folder in which `before` says how long a file was; what was
    /// there when the process began is on the disk.
    pub(super) fn after(calls: &[Call], before: impl Fn(&str) -> Option<u64>) -> Disk {
        let mut disk = Disk::default();
        disk.go_on(calls, before);
        disk
    }

    /// The same after further calls.
    pub(super) fn go_on(&mut self, calls: &[Call], before: impl Fn(&str) -> Option<u64>) {
        for call in calls.iter().filter(|call| call.result.is_some_and(|result| result >= 0)) {
            self.apply(call, &before);
        }
    }

    fn apply(&mut self, call: &Call, before: &impl Fn(&str) -> Option<u64>) {
        let path = call.paths[0].clone();
        match call.name.as_str() {
            "mkdir" => self.change(&path, Change::Made(path.clone())),
            "openat" if call.changes() => {
                if !self.files.contains_key(&path) {
                    let there = before(&path);
                    self.files.insert(path.clone(), Extent::of(there.unwrap_or(0)));
                    if there.is_none() {
                        self.change(&path, Change::Made(path.clone()));
                    }
                }
                if call.truncates() {
                    self.files.insert(path, Extent::default());
                }
            }
            "write" => {
                let written = call.result.unwrap_or(0).unsigned_abs();
                let extent = self.files.entry(path.clone()).or_insert_with(|| Extent::of(before(&path).unwrap_or(0)));
                extent.written += written;
            }
            "ftruncate" => {
                let length = call.length().unwrap_or(0);
                let extent = self.files.entry(path.clone()).or_insert_with(|| Extent::of(before(&path).unwrap_or(0)));
                *extent = Extent { written: length, synced: extent.synced.min(length) };
            }
            "fsync" | "fdatasync" => self.sync(&path),
            "rename" => {
                let to = call.paths.get(1).cloned().unwrap_or_default();
                self.rename(&path, &to);
                self.change(&to, Change::Renamed(path, to.clone()));
            }
            "unlink" | "unlinkat" => self.remove(&path),
            _ => {}
        }
    }

    /// Of files that grew otherwise than the calls tell: a write that was not heard to end may have been made.
    pub(super) fn take_lengths(&mut self, lengths: &BTreeMap<String, u64>) {
        for (path, extent) in &mut self.files {
            extent.written = lengths.get(path).copied().unwrap_or(extent.written);
            extent.synced = extent.synced.min(extent.written);
        }
    }

    fn change(&mut self, path: &str, change: Change) {
        self.names.entry(parent(path).to_owned()).or_default().push(change);
    }

    fn sync(&mut self, path: &str) {
        if let Some(extent) = self.files.get_mut(path) {
            extent.synced = extent.written;
            return;
        }
        for change in self.names.remove(path).unwrap_or_default() {
            if let Change::Renamed(from, to) = change
                && from.contains("/.tmp-")
                && !to.contains("/.tmp-")
            {
                self.sure.insert(to);
            }
        }
    }

    /// Everything known about `from` and what lies in it is now about `to`.
    fn rename(&mut self, from: &str, to: &str) {
        let moved = |path: &String| match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{to}{rest}"),
            _ => path.clone(),
        };
        self.files = std::mem::take(&mut self.files).into_iter().map(|(path, extent)| (moved(&path), extent)).collect();
        let renamed = |change: Change| match change {
            Change::Made(path) => Change::Made(moved(&path)),
            Change::Renamed(a, b) => Change::Renamed(moved(&a), moved(&b)),
        };
        let names = std::mem::take(&mut self.names).into_iter();
        // Names in the folder itself keep their history; those below it move along.
        self.names = names
            .map(|(folder, changes)| {
                let below = moved(&folder) != folder;
                let changes = if below { changes.into_iter().map(renamed).collect() } else { changes };
                (moved(&folder), changes)
            })
            .collect();
        self.sure.retain(|path| path != from);
    }

    fn remove(&mut self, path: &str) {
        self.files.remove(path);
        self.names.remove(path);
        self.names.remove(parent(path));
    }

    /// Takes back what is not sure: contents first, then names, the innermost first. How much of it, the
    /// draws say; everything is likely.
    pub(super) fn cut_power(&self, run: &Path, draws: &mut Draws) -> Result<()> {
        for (path, extent) in self.files.iter().filter(|(_, extent)| extent.written > extent.synced) {
            spoil(&run.join(path), extent.synced, draws)?;
        }
        let mut keep = |count: usize| if draws.chance(1, 2) { 0 } else { draws.below(count as u64 + 1) as usize };
        self.take_back_names(run, &mut keep)
    }

    /// Of the changes in each folder, in their order, the first so many are kept, as `keep` says.
    fn take_back_names(&self, run: &Path, keep: &mut dyn FnMut(usize) -> usize) -> Result<()> {
        for changes in self.names.values().rev() {
            changes[keep(changes.len())..].iter().rev().try_for_each(|change| undo(run, change))?;
        }
        Ok(())
    }
}

impl Extent {
    fn of(length: u64) -> Extent {
        Extent { written: length, synced: length }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Leaves the first `synced` bytes of a file, and behind them nothing, zeros, or somebody else's data.
fn spoil(path: &Path, synced: u64, draws: &mut Draws) -> Result<()> {
    let mut file = File::options().write(true).open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let length = file.metadata()?.len();
    let tail = length.saturating_sub(synced) as usize;
    match draws.below(3) {
        0 => file.set_len(synced.min(length))?,
        kind => {
            file.seek(SeekFrom::Start(synced))?;
            let filler = if kind == 1 { 0 } else { b'}' };
            file.write_all(&vec![filler; tail])?;
        }
    }
    Ok(())
}

fn undo(run: &Path, change: &Change) -> Result<()> {
    match change {
        Change::Made(path) => {
            let path = run.join(path);
            if path.is_dir() {
                fs::remove_dir_all(&path)?;
            } else if path.exists() {
                fs::remove_file(&path)?;
            }
        }
        Change::Renamed(from, to) if run.join(to).exists() => fs::rename(run.join(to), run.join(from))?,
        Change::Renamed(..) => {}
    }
    Ok(())
}

/// Cuts the power at `count` random calls of the three stages, whatever the call is about. What was
/// renamed to its name and synced must outlive the cut.
pub(super) fn cut(victim: &Victim, scenes: &[Scene], count: usize, seed: u64) -> Result<Vec<Death>> {
    let mut deaths = Vec::new();
    for (scene, share) in scenes.iter().zip(shares(count)) {
        let ours: Vec<&Call> = scene.calls.iter().filter(|call| call.paths[0].starts_with(scene.artefact)).collect();
        for (number, point) in (0..).zip(spread(&ours, share, seed)) {
            let name = format!("unpowered-{}-{number}", scene.artefact);
            let Some(calls) = scene.die(victim, &name, point)? else { continue };
            let run = victim.run(&name);
            let torn = is_torn(&run);
            let disk = Disk::after(&calls, |path| scene.length_before(victim, path));
            disk.cut_power(&run, &mut Source::new(seed, "torture/power").at([number, share as u64]))?;
            if let Some(gone) = disk.sure.iter().find(|path| !run.join(path).exists()) {
                bail!("{name}: a power cut takes {gone}, which should be on the disk");
            }
            let how = "power cut".to_owned();
            deaths.extend(settle(victim, &name, vec![Death { stage: scene.artefact, how, torn, lost: None }])?);
        }
        super::progress("by a power cut", &deaths);
    }
    Ok(deaths)
}

/// Damages one file of the newest checkpoint in `count` runs that were killed. Each has to say which
/// checkpoint it passes over, and to go on from the one before.
pub(super) fn lie(victim: &Victim, scenes: &[Scene], count: usize, seed: u64) -> Result<Vec<Death>> {
    let mut deaths = Vec::new();
    for (scene, share) in scenes.iter().zip(shares(count)) {
        // The last checkpoint is there, and the model is not.
        let points = scene.points()?;
        let after = points.iter().rposition(|call| call.name == "rename" && call.paths[0].contains(".tmp-step-"));
        let after = after.context("no checkpoint is committed")?;
        let is_later = |call: &&&Call| [".tmp-model", ".tmp-ema"].iter().any(|name| call.paths[0].contains(name));
        let late: Vec<&Call> = points[after + 1..].iter().take_while(|call| !is_later(call)).copied().collect();
        for (number, point) in (0..).zip(spread(&late, share, seed)) {
            let name = format!("lied-to-{}-{number}", scene.artefact);
            if scene.die(victim, &name, point)?.is_none() {
                continue;
            }
            let mut draws = Source::new(seed, "torture/lie").at([number, share as u64]);
            let damaged = damage(&victim.run(&name).join(scene.artefact).join("checkpoints"), &mut draws)?;
            let how = "damaged checkpoint".to_owned();
            let death = Death { stage: scene.artefact, how, torn: true, lost: None };
            let (said, settled) = settle_and_listen(victim, &name, vec![death], victim.command("pipeline", &name))?;
            if !said.lines().any(|line| line.contains("is passed over") && line.contains(&damaged)) {
                bail!("{name}: nothing says that {damaged} is passed over:\n{said}");
            }
            deaths.extend(settled);
        }
        super::progress("with a damaged checkpoint", &deaths);
    }
    Ok(deaths)
}

/// Damages one file of the newest checkpoint of a step; returns the checkpoint's name.
fn damage(checkpoints: &Path, draws: &mut Draws) -> Result<String> {
    let names = |folder: &Path| -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    let newest = names(checkpoints)?.into_iter().rfind(|name| name.starts_with("step-"));
    let newest = newest.context("there is no checkpoint to damage")?;
    let folder = checkpoints.join(&newest);
    let file = folder.join(draws.pick(&names(&folder)?).context("a checkpoint has files")?);
    let length = fs::metadata(&file)?.len();
    match draws.below(4) {
        0 => fs::remove_file(&file)?,
        // Well before the zeros that fill up a buffer's last block, or there would be no damage.
        _ => spoil(&file, draws.below((length / 2).max(1)), draws)?,
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::calls;

    /// What is left of a run folder, made by these calls, when the power goes.
    #[track_caller]
    fn check(log: &str, made: &[(&str, &str)], want: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let run = place.join("r");
        for (name, text) in made {
            fs::create_dir_all(run.join(name).parent().unwrap()).unwrap();
            fs::write(run.join(name), text).unwrap();
        }
        let text: String = log
            .lines()
            .map(|line| format!("8 {}\n", line.replace("</", &format!("<{}/r/", place.display()))))
            .collect();
        fs::write(place.join("log"), text.replace("\"/", "\"r/")).unwrap();
        let disk = Disk::after(&calls::read(&place.join("log"), &place, "r").unwrap(), |_| None);
        disk.take_back_names(&run, &mut |_| 0).unwrap();
        let mut left: Vec<String> = walk(&run);
        left.sort();
        assert_eq!(left, want);
    }

    /// What a power cut leaves of a line that was cut off and of one that was appended, both not synced.
    #[test]
    fn what_was_there_before_is_sure_as_far_as_it_is_not_cut_off() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = "8 ftruncate(4</f/r/j>, 60) = 0\n8 write(4</f/r/j>, \"\"..., 7) = 7\n8 fdatasync(4</f/r/j>) = 0\n\
                   8 write(4</f/r/j>, \"\"..., 5) = 5\n";
        fs::write(file.path(), log).unwrap();
        let calls = calls::read(file.path(), Path::new("/f"), "r").unwrap();
        let disk = |calls: &[Call]| Disk::after(calls, |_| Some(100)).files["j"];
        assert_eq!(disk(&calls[..1]), Extent { written: 60, synced: 60 });
        assert_eq!(disk(&calls), Extent { written: 72, synced: 67 });
    }

    fn walk(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    walk(&path).into_iter().map(|inner| format!("{name}/{inner}")).collect()
                } else {
                    vec![name]
                }
            })
            .collect()
    }

    const WRITTEN: &str = "mkdir(\"/c/.tmp-a\", 0777) = 0
openat(AT_FDCWD, \"/c/.tmp-a/w\", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 4
write(4</c/.tmp-a/w>, \"\"..., 3) = 3
fsync(4</c/.tmp-a/w>) = 0
fsync(5</c/.tmp-a>) = 0
rename(\"/c/.tmp-a\", \"/c/a\") = 0
";

    #[test]
    fn what_is_not_synced_may_go() {
        check(WRITTEN, &[("c/a/w", "abc")], &[]);
        check(&format!("{WRITTEN}fsync(5</c>) = 0\n"), &[("c/a/w", "abc")], &["c/a/w"]);
        // The folder that everything lies in was never synced.
        let made = "mkdir(\"/c\", 0777) = 0\n";
        check(&format!("{made}{WRITTEN}fsync(5</c>) = 0\n"), &[("c/a/w", "abc")], &[]);
    }

    #[test]
    fn contents_are_sure_as_far_as_they_are_synced() {
        let log = "8 openat(AT_FDCWD, \"r/j\", O_WRONLY|O_CREAT|O_APPEND, 0666) = 4\n\
                   8 write(4</f/r/j>, \"\"..., 5) = 5\n8 fsync(4</f/r/j>) = 0\n8 write(4</f/r/j>, \"\"..., 7) = 7\n\
                   8 rename(\"r/j\", \"r/k\") = ?\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), log).unwrap();
        let calls = calls::read(file.path(), Path::new("/f"), "r").unwrap();
        let fresh = Disk::after(&calls, |_| None);
        assert_eq!(fresh.files["j"], Extent { written: 12, synced: 5 });
        assert_eq!(fresh.names[""], [Change::Made("j".to_owned())]);
        let there = Disk::after(&calls, |_| Some(100));
        assert_eq!(there.files["j"], Extent { written: 112, synced: 105 });
        assert!(there.names.is_empty());
    }
}
