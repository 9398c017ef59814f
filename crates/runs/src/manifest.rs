//! Folders that are whole or not there: written under another name, hashed, synced, renamed.

use crate::{BoxError, Damaged, Error, Result, disk};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

/// The manifest's name inside its folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// How the names of folders begin that are being written or removed. They are never read, and
/// removed at the next start.
pub(crate) const STAGED: &str = ".tmp-";

/// What a committed folder holds. It has no time and no machine in it, so that equal content gives
/// an equal manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// Steps done.
    pub(crate) step: u64,
    /// Bytes of each journal that belong to the past of this folder.
    pub(crate) journals: BTreeMap<String, u64>,
    files: BTreeMap<String, Entry>,
    /// Hash of all of the above: a flipped bit in `step` would match every file.
    seal: String,
}

/// One file of a committed folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    const VERSION: u32 = 1;

    /// Total size of the files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.bytes).sum()
    }

    /// Hashes and syncs all files under `folder`.
    fn of(folder: &Path, step: u64, journals: BTreeMap<String, u64>) -> Result<Manifest> {
        let mut files = BTreeMap::new();
        for name in files_under(folder, "")? {
            let path = folder.join(&name);
            disk::sync(&path)?;
            let entry = Entry::of(&path, &mut |_| ()).map_err(disk::failed("read", &path))?;
            files.insert(name, entry);
        }
        let mut manifest = Manifest { version: Manifest::VERSION, step, journals, files, seal: String::new() };
        manifest.seal = manifest.sealed();
        Ok(manifest)
    }

    /// A hash of everything else in it.
    pub(crate) fn sealed(&self) -> String {
        let Manifest { version, step, journals, files, seal: _ } = self;
        let mut hasher = Sha256::new();
        hasher.update(format!("{version} {step} {journals:?} {files:?}"));
        hex(&hasher.finalize())
    }
}

impl Entry {
    fn of(path: &Path, done: &mut dyn FnMut(u64)) -> io::Result<Entry> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut bytes = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(Entry { bytes, sha256: hex(&hasher.finalize()) });
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
            done(read as u64);
        }
    }
}

/// The SHA-256 of a file, in hexadecimal; `done` hears how many more bytes have been read, again and again.
///
/// Errors: the disk's.
pub fn sha256(path: &Path, done: &mut dyn FnMut(u64)) -> Result<String> {
    Ok(Entry::of(path, done).map_err(disk::failed("read", path))?.sha256)
}

/// Makes the folder `parent/name` with what `encode` writes into the folder that it is given, all
/// or nothing, and returns its path and manifest.
///
/// `parent` must exist. When the folder is already there with the same content it is left alone;
/// one with other content (a damaged checkpoint that a resumed run makes again) is replaced.
pub(crate) fn commit(
    parent: &Path,
    name: &str,
    step: u64,
    journals: BTreeMap<String, u64>,
    encode: impl FnOnce(&Path) -> Result<(), BoxError>,
) -> Result<(PathBuf, Manifest)> {
    let target = parent.join(name);
    let staged = parent.join(format!("{STAGED}{name}"));
    disk::remove(&staged)?;
    disk::create_staged(&staged)?;
    let outcome = fill(&target, &staged, step, journals, encode)
        .and_then(|manifest| publish(&staged, &target, &manifest).map(|()| manifest));
    if outcome.is_err() {
        // The first failure is the one to report; what remains is removed at the next start.
        let _ = disk::remove(&staged);
    }
    Ok((target, outcome?))
}

/// Reads a committed folder's manifest and compares every file with it.
pub(crate) fn verify(folder: &Path) -> Result<Manifest, Damaged> {
    verify_reporting(folder, &mut |_| ())
}

/// As [`verify`]; `done` hears how many more bytes have been read, again and again.
pub(crate) fn verify_reporting(folder: &Path, done: &mut dyn FnMut(u64)) -> Result<Manifest, Damaged> {
    let damaged = |problem| Damaged { folder: folder.to_owned(), problem };
    let bytes = fs::read(folder.join(MANIFEST)).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{MANIFEST} is not a manifest: {error}")))?;
    if manifest.version != Manifest::VERSION {
        return Err(damaged(format!("{MANIFEST} has version {}, this program reads 1", manifest.version)));
    }
    if manifest.seal != manifest.sealed() {
        return Err(damaged(format!("{MANIFEST} does not match its own hash")));
    }
    for (name, entry) in &manifest.files {
        compare(folder, name, entry, done).map_err(|problem| damaged(format!("{name} {problem}")))?;
    }
    Ok(manifest)
}

/// Takes a folder away in one step, then removes what it held: half a folder is never seen under
/// its name.
pub(crate) fn discard(folder: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(()) };
    let away = parent.join(format!("{STAGED}old-{}", name.to_string_lossy()));
    disk::remove(&away)?;
    disk::rename(folder, &away)?;
    disk::remove(&away)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fill(
    target: &Path,
    staged: &Path,
    step: u64,
    journals: BTreeMap<String, u64>,
    encode: impl FnOnce(&Path) -> Result<(), BoxError>,
) -> Result<Manifest> {
    encode(staged).map_err(|source| Error::Encode { path: target.to_owned(), source })?;
    let manifest = Manifest::of(staged, step, journals)?;
    let path = staged.join(MANIFEST);
    disk::write(&path, &disk::pretty_json(&path, &manifest)?)?;
    folders_under(staged)?.iter().try_for_each(|folder| disk::sync(folder))?;
    Ok(manifest)
}

fn publish(staged: &Path, target: &Path, manifest: &Manifest) -> Result<()> {
    let parent = target.parent().unwrap_or(Path::new("."));
    if target.exists() {
        if verify(target).is_ok_and(|there| there == *manifest) {
            return disk::remove(staged);
        }
        discard(target)?;
    }
    disk::rename(staged, target)?;
    disk::sync(parent)
}

/// What does not match, if anything.
fn compare(folder: &Path, name: &str, entry: &Entry, done: &mut dyn FnMut(u64)) -> Result<(), String> {
    if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err("lies outside the folder".to_owned());
    }
    let path = folder.join(name);
    let bytes = fs::metadata(&path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if bytes != entry.bytes {
        return Err(format!("is {bytes} bytes long, the manifest says {}", entry.bytes));
    }
    let found = Entry::of(&path, done).map_err(|error| format!("cannot be read: {error}"))?;
    if found == *entry { Ok(()) } else { Err("does not match its hash in the manifest".to_owned()) }
}

/// Files under `folder`, as sorted names with `/`, each beginning with `prefix`.
fn files_under(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for name in disk::names(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            files.extend(files_under(&path, &format!("{prefix}{name}/"))?);
        } else {
            files.push(format!("{prefix}{name}"));
        }
    }
    Ok(files)
}

/// `folder` and the folders in it, innermost first.
fn folders_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for name in disk::names(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            folders.extend(folders_under(&path)?);
        }
    }
    folders.push(folder.to_owned());
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit_text(parent: &Path, name: &str, text: &str) -> Result<(PathBuf, Manifest)> {
        let journals = BTreeMap::from([("metrics.jsonl".to_owned(), 12)]);
        commit(parent, name, 3, journals, |folder| {
            fs::create_dir(folder.join("inner"))?;
            fs::write(folder.join("inner/weights"), text)?;
            Ok(fs::write(folder.join("config.json"), "{}")?)
        })
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (one, manifest) = commit_text(folder.path(), "one", "abc").unwrap();
        let (two, _) = commit_text(folder.path(), "two", "abc").unwrap();
        assert_eq!(fs::read(one.join(MANIFEST)).unwrap(), fs::read(two.join(MANIFEST)).unwrap());
        assert_eq!(verify(&one).unwrap(), manifest);
        assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["config.json", "inner/weights"]);
        assert_eq!(manifest.bytes(), 5);
        // SHA-256 of "abc" from FIPS 180-2.
        assert!(manifest.files["inner/weights"].sha256.starts_with("ba7816bf8f01cfea"));
    }

    #[test]
    fn a_folder_is_replaced_only_by_other_content() {
        let folder = tempfile::tempdir().unwrap();
        commit_text(folder.path(), "one", "abc").unwrap();
        for text in ["abc", "abcd", "abc"] {
            let (path, manifest) = commit_text(folder.path(), "one", text).unwrap();
            assert_eq!(fs::read_to_string(path.join("inner/weights")).unwrap(), text);
            assert_eq!(verify(&path).unwrap(), manifest);
            assert_eq!(disk::names(folder.path()).unwrap(), ["one"], "nothing staged is left");
        }
    }

    #[test]
    fn a_failing_closure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = commit(folder.path(), "one", 0, BTreeMap::new(), |folder| {
            fs::write(folder.join("half"), "half")?;
            Err("no more weights".into())
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("no more weights") && message.contains("one"), "{message}");
        assert!(disk::names(folder.path()).unwrap().is_empty());
    }

    #[track_caller]
    fn check_damage(part: &str, damage: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = commit_text(folder.path(), "one", "abc").unwrap();
        damage(&path);
        let damaged = verify(&path).unwrap_err().to_string();
        assert!(damaged.contains(part) && damaged.contains(path.to_str().unwrap()), "{damaged}");
    }

    #[test]
    fn damage_is_named() {
        check_damage("inner/weights is 2 bytes long, the manifest says 3", |path| {
            fs::write(path.join("inner/weights"), "ab").unwrap();
        });
        check_damage("inner/weights does not match its hash", |path| {
            fs::write(path.join("inner/weights"), "abd").unwrap();
        });
        check_damage("config.json cannot be read", |path| fs::remove_file(path.join("config.json")).unwrap());
        check_damage("manifest.json: ", |path| fs::remove_file(path.join(MANIFEST)).unwrap());
        check_damage("is not a manifest", |path| fs::write(path.join(MANIFEST), "{\"version\":1,").unwrap());
        let edit = |from: &'static str, to: &'static str| {
            move |path: &Path| {
                let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
                assert!(text.contains(from));
                fs::write(path.join(MANIFEST), text.replacen(from, to, 1)).unwrap();
            }
        };
        check_damage("its own hash", edit("\"step\": 3", "\"step\": 2"));
        check_damage("its own hash", edit("inner/weights", "../weights"));
        check_damage("has version 2", edit("\"version\": 1", "\"version\": 2"));
    }
}
