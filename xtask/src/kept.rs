//! Large data that was prepared once is read the next time: all of it, in ids, in one file under a hash of what it
//! depends on.
//!
//! Such a file holds what people wrote, so only its owner may read it, and few are kept. What is in doubt (another
//! program, a file that is not whole) is prepared anew: the next run may become slower by this, never other.

use crate::{
    config::DataConfig,
    embedded,
    prepare::{Material, Recipe, resolve},
    terminal::say,
};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Where the prepared data of earlier runs lies.
pub(crate) struct Kept {
    folder: PathBuf,
}

/// The variable that names another folder, or none.
const VARIABLE: &str = "INSTRUCT_CACHE";

/// Bytes of records and text from which on reading them again takes longer than a person likes to wait.
const LEAST: u64 = 16 << 20;

/// Preparations that are kept, the newest ones.
const FILES: usize = 8;

/// Bytes of the hash at the end of a file.
const HASH: usize = 32;

/// Under what the preparation of files with these `hashes` by `recipe` is kept: a hash of both and of this program,
/// since another may prepare otherwise.
///
/// Errors: this program cannot be read.
pub(crate) fn key(recipe: &Recipe<'_>, hashes: &BTreeMap<String, String>) -> Result<String> {
    let program = std::env::current_exe().context("this program has no path")?;
    let program = instruct_runs::sha256(&program, &mut |_| {})?;
    let all = serde_json::to_vec(&(program, recipe, hashes))?;
    Ok(Sha256::digest(&all).iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Kept {
    /// Where the preparation of `data` is kept; `None` where that does not pay, where a part of it can be read but
    /// once, or where the user wants none.
    pub(crate) fn for_data(data: &DataConfig) -> Option<Kept> {
        let own = data.files().map(|(_, name)| name).filter(|name| !name.starts_with(embedded::PREFIX));
        let paths = resolve(&own.cloned().collect::<Vec<_>>(), Path::new(""));
        let found: Option<Vec<fs::Metadata>> = paths.iter().map(|path| fs::metadata(path).ok()).collect();
        let found = found.filter(|found| found.iter().all(fs::Metadata::is_file))?;
        if found.iter().map(fs::Metadata::len).sum::<u64>() < LEAST {
            return None;
        }
        Some(Kept { folder: folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()))? })
    }

    /// What is kept under `key`; what `make` makes otherwise, which is kept then by the process that `keeps`.
    ///
    /// Errors: those of `make`. That nothing can be kept is said, and is none.
    pub(crate) fn read_or(&self, key: &str, keeps: bool, make: impl FnOnce() -> Result<Material>) -> Result<Material> {
        let path = self.folder.join(format!("{key}.prepared"));
        if path.exists() {
            match read(&path) {
                Ok(material) => {
                    say(&format!("prepared data: read from {}", path.display()));
                    return Ok(material);
                }
                Err(problem) => say(&format!("prepared data: {}: {problem:#}; prepared anew", path.display())),
            }
        }
        let material = make()?;
        if !keeps {
            return Ok(material);
        }
        match self.keep(&path, &material) {
            Ok(()) => say(&format!(
                "prepared data: kept in {} for the next run; it holds what people wrote, and may be removed",
                path.display()
            )),
            Err(problem) => say(&format!("prepared data: not kept in {}: {problem:#}", path.display())),
        }
        Ok(material)
    }

    fn keep(&self, path: &Path, material: &Material) -> Result<()> {
        private_folder(&self.folder)?;
        // A run that is killed here leaves this file, which counts among those that are kept.
        let staged = path.with_extension("unfinished");
        let outcome = write(&staged, material).and_then(|()| Ok(fs::rename(&staged, path)?));
        if outcome.is_err() {
            // The first failure is the one to report.
            let _ = fs::remove_file(&staged);
        }
        outcome.and_then(|()| self.forget_oldest())
    }

    fn forget_oldest(&self) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "prepared" || kind == "unfinished") {
                files.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        files.sort();
        let surplus = files.len().saturating_sub(FILES);
        files[..surplus].iter().try_for_each(|(_, path)| fs::remove_file(path))?;
        Ok(())
    }
}

/// The folder that the environment names.
fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    match variable(VARIABLE) {
        Some(off) if off == "off" => None,
        Some(folder) => Some(folder.into()),
        None => {
            let home = || Some(PathBuf::from(variable("HOME")?).join(".cache"));
            let caches = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
            Some(caches.join("instruct/prepared"))
        }
    }
}

fn private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn write(path: &Path, material: &Material) -> Result<()> {
    let file = Hashed { file: BufWriter::new(private_file(path)?), hash: Sha256::new() };
    let Hashed { mut file, hash } = postcard::to_io(material, file)?;
    file.write_all(&hash.finalize())?;
    Ok(file.flush()?)
}

fn read(path: &Path) -> Result<Material> {
    let mut bytes = fs::read(path)?;
    let end = bytes.len().checked_sub(HASH).context("it is too short")?;
    let hash = bytes.split_off(end);
    ensure!(Sha256::digest(&bytes).as_slice() == hash, "it is not whole");
    Ok(postcard::from_bytes(&bytes)?)
}

/// A file, and the hash of what was written to it.
struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        prepare::tests::{ALL, Files, people},
        until::Until,
    };
    use instruct_model::Checkpoint;

    /// Reads what is kept, or counts that it is made.
    fn read_or(kept: &Kept, key: &str, files: &Files, made: &mut usize) -> Material {
        let make = || {
            *made += 1;
            files.prepare(&ALL, Until::Evaluation)
        };
        kept.read_or(key, true, make).unwrap()
    }

    #[test]
    fn what_is_read_again_is_what_was_made() {
        let (files, folder) = (people(40), tempfile::tempdir().unwrap());
        let kept = Kept { folder: folder.path().join("a/b") };
        let made = &mut 0;
        let first = read_or(&kept, "key", &files, made);
        assert_eq!(read_or(&kept, "key", &files, made), first);
        assert_eq!(*made, 1, "the second time it is read");
        let path = kept.folder.join("key.prepared");
        let whole = fs::read(&path).unwrap();
        for (damage, times) in [(&whole[..HASH - 1], 2), (&whole[..whole.len() - 1], 3), (&whole[1..], 4), (&[][..], 5)]
        {
            fs::write(&path, damage).unwrap();
            assert_eq!(read_or(&kept, "key", &files, made), first);
            assert_eq!(*made, times, "what is not whole is made anew");
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert_eq!(read_or(&kept, "key", &files, made), first);
        assert_eq!(*made, 6);
    }

    #[test]
    fn a_folder_that_takes_nothing_costs_no_run() {
        let (files, folder) = (people(40), tempfile::tempdir().unwrap());
        fs::write(folder.path().join("file"), "").unwrap();
        let kept = Kept { folder: folder.path().join("file") };
        let made = &mut 0;
        assert_eq!(read_or(&kept, "key", &files, made), read_or(&kept, "key", &files, made));
        assert_eq!(*made, 2);
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_what_people_wrote() {
        use std::os::unix::fs::PermissionsExt;
        let (files, folder) = (people(40), tempfile::tempdir().unwrap());
        let kept = Kept { folder: folder.path().join("kept") };
        read_or(&kept, "key", &files, &mut 0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        assert_eq!((mode(&kept.folder), mode(&kept.folder.join("key.prepared"))), (0, 0));
    }

    #[test]
    fn the_newest_few_are_kept() {
        let (files, folder) = (people(40), tempfile::tempdir().unwrap());
        let kept = Kept { folder: folder.path().to_owned() };
        fs::write(folder.path().join("0.unfinished"), "of a run that was killed").unwrap();
        fs::write(folder.path().join("mine.txt"), "").unwrap();
        for i in 0..FILES + 2 {
            read_or(&kept, &format!("key-{i}"), &files, &mut 0);
            let age = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(i as u64);
            File::options()
                .write(true)
                .open(folder.path().join(format!("key-{i}.prepared")))
                .unwrap()
                .set_modified(age)
                .unwrap();
            File::options()
                .write(true)
                .open(folder.path().join("0.unfinished"))
                .map(|file| file.set_modified(std::time::SystemTime::UNIX_EPOCH))
                .ok();
        }
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: std::collections::BTreeSet<String> = names.collect();
        let newest = (2..FILES + 2).map(|i| format!("key-{i}.prepared"));
        assert_eq!(names, newest.chain(["mine.txt".to_owned()]).collect());
    }

    #[test]
    fn the_key_is_of_all_that_decides_and_of_nothing_else() {
        let files = people(40);
        let of = |settings: &[&str], until: Until| {
            let config = files.config(&[&ALL[..], settings].concat());
            let model = Checkpoint::open(Path::new(&config.model.base)).unwrap().config().clone();
            let hashes = BTreeMap::from([("d.jsonl".to_owned(), "hash".to_owned())]);
            key(&Recipe::of(&config, &model, until), &hashes).unwrap()
        };
        let plain = of(&[], Until::Evaluation);
        for decides in [
            "seed=2",
            "model.template=\"{prompt}\"",
            "model.date=\"2026-01-05\"",
            "model.max-prompt=47",
            "model.max-completion=23",
            "model.overlong=cut-prompt",
            "model.loss=all",
            "data.validation=0.2",
            "data.limit=3",
            "data.window=0",
            "ppo.max-new-tokens=23",
        ] {
            assert_ne!(of(&[decides], Until::Evaluation), plain, "{decides}");
        }
        for decides_nothing in ["ppo.policy-lr=1e-3", "sft-init.epochs=9", "evaluate.prompts=3", "model.micro-tokens=7"]
        {
            assert_eq!(of(&[decides_nothing], Until::Evaluation), plain, "{decides_nothing}");
        }
        assert_ne!(of(&[], Until::Sft), plain);
        let config = files.config(&ALL);
        let model = Checkpoint::open(Path::new(&config.model.base)).unwrap().config().clone();
        let other = BTreeMap::from([("d.jsonl".to_owned(), "another".to_owned())]);
        assert_ne!(key(&Recipe::of(&config, &model, Until::Evaluation), &other).unwrap(), plain);
    }

    #[test]
    fn the_environment_says_where() {
        #[track_caller]
        fn check(variables: &[(&str, &str)], want: Option<&str>) {
            let of = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            assert_eq!(folder(of), want.map(PathBuf::from));
        }
        check(&[("HOME", "/h")], Some("/h/.cache/instruct/prepared"));
        check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/instruct/prepared"));
        check(&[("HOME", "/h"), (VARIABLE, "/mine")], Some("/mine"));
        check(&[("HOME", "/h"), (VARIABLE, "off")], None);
        check(&[], None);
    }

    #[test]
    fn small_data_and_what_can_be_read_but_once_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let large = folder.path().join("large.jsonl");
        File::create(&large).unwrap().set_len(LEAST).unwrap();
        let of = |names: &[&str]| {
            let named = |name: &&str| name.replace('@', &folder.path().display().to_string());
            let data = DataConfig { prompts: names.iter().map(named).collect(), ..Config::default().data };
            Kept::for_data(&data).is_some()
        };
        fs::write(folder.path().join("small.jsonl"), "x").unwrap();
        assert!(!of(&["@/small.jsonl"]) && !of(&["embedded:prompts.jsonl"]) && !of(&[]));
        assert!(!of(&["@/large.jsonl", "/dev/null"]) && !of(&["@/large.jsonl", "@/absent.jsonl"]));
        let known = std::env::var_os("HOME").is_some() && std::env::var_os(VARIABLE).is_none();
        assert!(!known || of(&["@/large.jsonl", "@/small.jsonl", "embedded:prompts.jsonl"]));
    }
}
