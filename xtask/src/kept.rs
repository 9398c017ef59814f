//! Large data that was prepared once is read the next time: in ids, with the words of prompts and rankings beside
//! them, in one file under a hash of what it depends on.
//!
//! Such a file holds what people wrote, so only its owner may read it, and few are kept. What is in doubt (another
//! program, a file that is not whole) is prepared anew: the next run may become slower by this, never other.

use crate::{
    config::DataConfig,
    desk::hex,
    inputs::Inputs,
    prepare::{Material, Recipe, own_files},
    terminal::say,
};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Where the prepared data of earlier runs lies, and what that of this one is made from.
pub(crate) struct Kept<'a> {
    folder: PathBuf,
    inputs: &'a Inputs<'a>,
    /// Whether this process is the one, of several that prepare the same, that keeps it.
    keeps: bool,
}

/// The variable that names another folder, or none.
const VARIABLE: &str = "INSTRUCT_CACHE";

/// Bytes of records and text from which on reading them again takes longer than a person likes to wait.
const LEAST: u64 = 16 << 20;

/// Preparations that are kept, the newest ones, and their bytes; the newest stays whatever it has.
const FILES: usize = 8;
const BYTES: u64 = 16 << 30;

/// Bytes of the hash at the end of a file.
const HASH: usize = 32;

/// Under what the preparation of files with these `hashes` by `recipe` is kept: a hash of both and of this program,
/// since another may prepare otherwise.
///
/// Errors: this program cannot be read.
fn key(recipe: &Recipe<'_>, hashes: &BTreeMap<String, String>) -> Result<String> {
    // A program that was built anew while it runs is read there as it runs.
    let running = PathBuf::from("/proc/self/exe");
    let program = if running.exists() { running } else { std::env::current_exe()? };
    let program = instruct_runs::sha256(&program, &mut |_| {})?;
    let all = serde_json::to_vec(&(program, recipe, hashes))?;
    Ok(hex(&Sha256::digest(&all)))
}

impl<'a> Kept<'a> {
    /// Where the preparation of `data`, which the configuration of `inputs` names, is kept; `None` where that does not
    /// pay, where a part of it can be read but once, or where the user wants none.
    pub(crate) fn for_data(data: &DataConfig, inputs: &'a Inputs<'a>, keeps: bool) -> Option<Kept<'a>> {
        let found: Option<Vec<fs::Metadata>> = own_files(data).iter().map(|path| fs::metadata(path).ok()).collect();
        let found = found.filter(|found| found.iter().all(fs::Metadata::is_file))?;
        if found.iter().map(fs::Metadata::len).sum::<u64>() < LEAST {
            return None;
        }
        let folder = folder(|name| std::env::var_os(name).filter(|value| !value.is_empty()))?;
        Some(Kept { folder, inputs, keeps })
    }

    /// What is kept of `recipe`; what `make` makes otherwise, which is kept then.
    ///
    /// Errors: those of `make`. That nothing can be read or kept is said, and is none.
    pub(crate) fn read_or(&self, recipe: &Recipe<'_>, make: impl FnOnce() -> Result<Material>) -> Result<Material> {
        let key =
            self.inputs.hashes().and_then(|hashes| key(recipe, hashes)).and_then(|key| self.private().map(|()| key));
        match key {
            Ok(key) => self.read_or_keep(&self.folder.join(format!("{key}.prepared")), make),
            Err(problem) => {
                say(&format!("prepared data: neither read nor kept: {problem:#}"));
                make()
            }
        }
    }

    fn read_or_keep(&self, path: &Path, make: impl FnOnce() -> Result<Material>) -> Result<Material> {
        if path.exists() {
            match read(path) {
                Ok(material) => {
                    say(&format!("prepared data: read from {}", path.display()));
                    return Ok(material);
                }
                Err(problem) => say(&format!("prepared data: {}: {problem:#}; prepared anew", path.display())),
            }
        }
        let material = make()?;
        if self.keeps {
            match self.keep(path, &material) {
                Ok(()) => say(&format!(
                    "prepared data: kept in {} for the next run; it holds what people wrote, and may be removed",
                    path.display()
                )),
                Err(problem) => say(&format!("prepared data: not kept in {}: {problem:#}", path.display())),
            }
        }
        Ok(material)
    }

    /// Makes the folder, or refuses one in which others could put what this program would read.
    fn private(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.folder).with_context(|| self.folder.display().to_string())?;
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&self.folder)?.permissions());
            ensure!(mode & 0o022 == 0, "others may write to {}; forbid it with chmod go-w", self.folder.display());
        }
        Ok(())
    }

    fn keep(&self, path: &Path, material: &Material) -> Result<()> {
        ensure!(self.inputs.unchanged(), "a file has changed while it was read");
        // For its owner alone. A run that is killed leaves it, and it counts among those that are kept.
        let file = tempfile::Builder::new().suffix(".unfinished").tempfile_in(&self.folder)?;
        let mut file = Hashed { file: BufWriter::new(file), hash: Sha256::new(), failed: None };
        if let Err(problem) = postcard::to_io(material, &mut file) {
            // What writes them forgets what the disk said.
            return Err(file.failed.map_or_else(|| problem.into(), Into::into));
        }
        let Hashed { mut file, hash, .. } = file;
        file.write_all(&hash.finalize())?;
        file.into_inner()?.persist(path)?;
        if let Err(problem) = self.forget_oldest() {
            say(&format!("prepared data: older files stay in {}: {problem:#}", self.folder.display()));
        }
        Ok(())
    }

    fn forget_oldest(&self) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Another run may have removed it.
            if path.extension().is_some_and(|kind| kind == "prepared" || kind == "unfinished")
                && let Ok(found) = fs::metadata(&path)
            {
                files.push((found.modified()?, found.len(), path));
            }
        }
        files.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (number, (_, len, path)) in files.iter().enumerate() {
            bytes += len;
            if number > 0 && (number >= FILES || bytes > BYTES) {
                fs::remove_file(path).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
            }
        }
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

fn read(path: &Path) -> Result<Material> {
    let mut bytes = fs::read(path)?;
    let end = bytes.len().checked_sub(HASH).context("it is too short")?;
    let hash = bytes.split_off(end);
    ensure!(Sha256::digest(&bytes).as_slice() == hash, "it is not whole");
    Ok(postcard::from_bytes(&bytes)?)
}

/// A file, the hash of what was written to it, and what the disk refused.
struct Hashed {
    file: BufWriter<tempfile::NamedTempFile>,
    hash: Sha256,
    failed: Option<io::Error>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind
        })?;
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
    use std::{
        collections::BTreeSet,
        time::{Duration, SystemTime},
    };

    /// A folder to keep in, and files whose preparation is kept there.
    struct Place {
        files: Files,
        config: Config,
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let (files, folder) = (people(40), tempfile::tempdir().unwrap());
            let config = files.config(&ALL);
            Place { files, config, folder }
        }

        /// Reads what is kept under this name in `folder`, or counts that it is made.
        fn read_or(&self, folder: &Path, name: &str, made: &mut usize) -> Material {
            let inputs = Inputs::of(&self.config);
            inputs.hashes().unwrap();
            let kept = Kept { folder: folder.to_owned(), inputs: &inputs, keeps: true };
            kept.private().unwrap();
            let make = || {
                *made += 1;
                self.files.prepare(&ALL, Until::Evaluation)
            };
            kept.read_or_keep(&folder.join(format!("{name}.prepared")), make).unwrap()
        }
    }

    #[test]
    fn what_is_read_again_is_what_was_made() {
        let (place, made) = (Place::new(), &mut 0);
        let folder = place.folder.path().join("a/b");
        let first = place.read_or(&folder, "key", made);
        assert_eq!(place.read_or(&folder, "key", made), first);
        assert_eq!(*made, 1, "the second time it is read");
        let path = folder.join("key.prepared");
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let damages = [&whole[..HASH - 1], &whole[..whole.len() - 1], &whole[1..], &[][..], &flipped[..]];
        for (damage, times) in damages.into_iter().zip(2..) {
            fs::write(&path, damage).unwrap();
            assert_eq!(place.read_or(&folder, "key", made), first);
            assert_eq!(*made, times, "what is not whole is made anew");
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_kept() {
        let place = Place::new();
        let inputs = Inputs::of(&place.config);
        inputs.hashes().unwrap();
        assert!(inputs.unchanged());
        let kept = Kept { folder: place.folder.path().to_owned(), inputs: &inputs, keeps: true };
        let path = place.folder.path().join("key.prepared");
        let make = || {
            let material = place.files.prepare(&ALL, Until::Evaluation);
            fs::write(place.files.folder.path().join("d.jsonl"), "changed").unwrap();
            material
        };
        assert!(kept.read_or_keep(&path, make).is_ok());
        assert!(!path.exists() && !inputs.unchanged());
    }

    #[test]
    fn a_folder_that_takes_nothing_costs_no_run() {
        let place = Place::new();
        let (inputs, file) = (Inputs::of(&place.config), place.folder.path().join("file"));
        fs::write(&file, "").unwrap();
        let model = Checkpoint::open(Path::new(&place.config.model.base)).unwrap().config().clone();
        let recipe = Recipe::of(&place.config, &model, Until::Evaluation);
        let kept = Kept { folder: file, inputs: &inputs, keeps: true };
        assert!(kept.read_or(&recipe, || place.files.prepare(&ALL, Until::Evaluation)).is_ok());
        assert!(kept.private().is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_what_people_wrote_and_writes_what_is_read() {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new();
        let folder = place.folder.path().join("kept");
        place.read_or(&folder, "key", &mut 0);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        assert_eq!((mode(&folder), mode(&folder.join("key.prepared"))), (0, 0));
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).unwrap();
        let inputs = Inputs::of(&place.config);
        let refused = Kept { folder, inputs: &inputs, keeps: true }.private().unwrap_err().to_string();
        assert!(refused.contains("chmod go-w"), "{refused}");
    }

    #[test]
    fn the_newest_few_are_kept() {
        let place = Place::new();
        let folder = place.folder.path();
        let aged = |name: &str, seconds: usize| {
            let file = fs::File::options().append(true).create(true).open(folder.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds as u64)).unwrap();
        };
        aged("killed.unfinished", 0);
        aged("mine.txt", 0);
        for i in 0..FILES + 2 {
            place.read_or(folder, &format!("key-{i}"), &mut 0);
            aged(&format!("key-{i}.prepared"), i);
        }
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: BTreeSet<String> = names.collect();
        let newest = (2..FILES + 2).map(|i| format!("key-{i}.prepared"));
        assert_eq!(names, newest.chain(["mine.txt".to_owned()]).collect());
    }

    #[test]
    fn the_key_is_of_all_that_decides_and_of_nothing_else() {
        let files = people(40);
        let hashed = |hash: &str, settings: &[&str], until: Until| {
            let config = files.config(&[&ALL[..], settings].concat());
            let model = Checkpoint::open(Path::new(&config.model.base)).unwrap().config().clone();
            let hashes = BTreeMap::from([("d.jsonl".to_owned(), hash.to_owned())]);
            key(&Recipe::of(&config, &model, until), &hashes).unwrap()
        };
        let of = |settings: &[&str]| hashed("hash", settings, Until::Evaluation);
        let plain = of(&[]);
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
            "data.prompts=[\"@/../p.jsonl\"]",
        ] {
            assert_ne!(of(&[decides]), plain, "{decides}");
        }
        for decides_nothing in [
            "ppo.policy-lr=1e-3",
            "sft-init.epochs=9",
            "evaluate.prompts=3",
            "model.micro-tokens=7",
            "ppo.max-new-tokens=23",
        ] {
            assert_eq!(of(&[decides_nothing]), plain, "{decides_nothing}");
        }
        assert_ne!(of(&["data.window=0", "ppo.max-new-tokens=23"]), of(&["data.window=0"]));
        assert_eq!(hashed("hash", &[], Until::Sft), plain, "no judge reads it on the way");
        assert_ne!(hashed("another", &[], Until::Evaluation), plain);
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
        fs::File::create(&large).unwrap().set_len(LEAST).unwrap();
        let config = Config::default();
        let inputs = Inputs::of(&config);
        let of = |names: &[&str]| {
            let named = |name: &&str| name.replace('@', &folder.path().display().to_string());
            let data = DataConfig { prompts: names.iter().map(named).collect(), ..config.data.clone() };
            Kept::for_data(&data, &inputs, true).is_some()
        };
        fs::write(folder.path().join("small.jsonl"), "x").unwrap();
        assert!(!of(&["@/small.jsonl"]) && !of(&["embedded:prompts.jsonl"]) && !of(&[]));
        assert!(!of(&["@/large.jsonl", "/dev/null"]) && !of(&["@/large.jsonl", "@/absent.jsonl"]));
        let known = std::env::var_os("HOME").is_some() && std::env::var_os(VARIABLE).is_none();
        assert!(!known || of(&["@/large.jsonl", "@/small.jsonl", "embedded:prompts.jsonl"]));
    }
}
