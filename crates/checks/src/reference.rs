//! `reference`: makes the golden values of `fixtures/reference` anew with torch and transformers, or
//! compares.

use crate::process::{execute, python_environment};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, safetensors};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::terminal::{print, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare new values with the committed ones, and change nothing
    #[arg(long)]
    check: bool,
    /// A Python that has the packages of every versions.json there; without one, an environment with
    /// the recorded versions is made under target/ (several gigabytes of packages)
    #[arg(long)]
    python: Option<PathBuf>,
    /// The folder of the golden values and of the scripts that make them
    #[arg(long, default_value = "fixtures/reference")]
    folder: PathBuf,
}

/// How far a new value may lie from the committed one, against the largest of its tensor: other
/// processors and releases of torch add in another order.
const TOLERANCE: f64 = 1e-5;

pub(crate) fn run(args: &Args) -> Result<()> {
    let python = match &args.python {
        Some(python) => python.clone(),
        None => environment(&args.folder)?,
    };
    if !args.check {
        return make(&python, &args.folder, &args.folder);
    }
    let new = tempfile::tempdir()?;
    make(&python, &args.folder, new.path())?;
    let worst = compare(&args.folder, new.path())?;
    print(&format!("reference: up to date; the worst difference is {worst:.1e} of its tensor's largest value"));
    Ok(())
}

/// The scripts, and the folder that each writes to.
const SCRIPTS: [(&str, &str); 9] = [
    ("reference.py", ""),
    ("traces.py", "traces"),
    ("pieces.py", "pieces"),
    ("optimizer.py", "optimizer"),
    ("tokenizer.py", "tokenizer"),
    ("replies.py", "replies"),
    ("gguf_greedy.py", "gguf"),
    ("templates.py", "templates"),
    ("agreement.py", "agreement"),
];

/// What a script leaves out where material that is not in the repository is absent.
const OUTSIDE: [&str; 2] = ["gguf/smollm2.json", "tokenizer/golden.json"];

/// Runs the scripts of `folder`, which write to `out`.
fn make(python: &Path, folder: &Path, out: &Path) -> Result<()> {
    for (script, place) in SCRIPTS {
        execute(Command::new(python).arg(folder.join(script)).arg(out.join(place)))?;
    }
    for (package, test, script) in WRITTEN {
        // Folders go out through the very code that the tests hold to what transformers makes of them.
        let folders = tempfile::tempdir()?;
        let write = ["test", "--release", "-p", package, "--test", "it", "--", "--ignored", test];
        execute(Command::new("cargo").args(write).env("INSTRUCT_OUT", folders.path()))?;
        execute(Command::new(python).arg(folder.join(script)).arg(folders.path()).arg(out))?;
    }
    Ok(())
}

/// A package, its test that writes folders, and the script that loads them.
const WRITTEN: [(&str, &str, &str); 2] = [
    ("instruct-model", "folders_for_transformers", "roundtrip.py"),
    ("xtask", "exports_for_transformers", "exports.py"),
];

/// An environment with the packages of every `versions.json`, made once.
fn environment(folder: &Path) -> Result<PathBuf> {
    let packages = packages(folder)?.into_iter().chain(["safetensors".to_owned(), "numpy".to_owned()]);
    python_environment(Path::new("target/reference-environment"), packages)
}

/// The packages that the values were made with, as pip pins them.
fn packages(folder: &Path) -> Result<BTreeSet<String>> {
    let mut pinned = BTreeSet::new();
    for path in SCRIPTS.map(|(_, place)| folder.join(place).join("versions.json")).iter().filter(|path| path.exists()) {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let versions: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let versions = versions.iter().filter_map(|(name, version)| Some((name, version.as_str()?)));
        // What follows a plus names the build, which differs between machines.
        let pin =
            |(name, version): (&String, &str)| format!("{name}=={}", version.split('+').next().unwrap_or(version));
        pinned.extend(versions.filter(|(name, _)| *name != "python").map(pin));
    }
    Ok(pinned)
}

/// The worst difference between two folders of golden values.
///
/// Errors: a file is in one of them alone; a tensor or a shape differs, or a value does by more than
/// [`TOLERANCE`]; another file says something else.
fn compare(committed: &Path, new: &Path) -> Result<f64> {
    let (was, is) = (files(committed, Path::new(""))?, files(new, Path::new(""))?);
    if was.is_empty() {
        bail!("{} holds no golden values", committed.display());
    }
    let mut worst = 0.0;
    for name in was.union(&is) {
        let (old, new) = (committed.join(name), new.join(name));
        if !is.contains(name) && OUTSIDE.iter().any(|outside| name == Path::new(outside)) {
            say(&format!("skipped: {} needs material that is not in the repository", name.display()));
            continue;
        }
        let difference = match name.extension().and_then(|extension| extension.to_str()) {
            _ if !was.contains(name) || !is.contains(name) => f64::INFINITY,
            Some("safetensors") => tensor_difference(&old, &new)?,
            Some("json") if json(&old)? == json(&new)? => 0.0,
            Some("gguf") if fs::read(&old)? == fs::read(&new)? => 0.0,
            _ => f64::INFINITY,
        };
        if difference > TOLERANCE {
            bail!("{} is another: run `cargo xtask reference` and look at what changed", old.display());
        }
        worst = f64::max(worst, difference);
    }
    Ok(worst)
}

/// The worst difference between the tensors of two files; infinite where a name or a shape differs.
fn tensor_difference(old: &Path, new: &Path) -> Result<f64> {
    let read = |path: &Path| -> Result<BTreeMap<_, _>> {
        let tensors = safetensors::load(path, &Device::Cpu).with_context(|| path.display().to_string())?;
        Ok(tensors.into_iter().collect())
    };
    let (was, is) = (read(old)?, read(new)?);
    if !was.keys().eq(is.keys()) {
        return Ok(f64::INFINITY);
    }
    let mut worst = 0.0;
    for (was, is) in was.values().zip(is.values()) {
        let values = |t: &candle_core::Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let difference = if was.shape() == is.shape() { gap(&values(was)?, &values(is)?) } else { f64::INFINITY };
        worst = f64::max(worst, difference);
    }
    Ok(worst)
}

fn json(path: &Path) -> Result<serde_json::Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// The largest difference against the largest value; NaN equals NaN and nothing else.
fn gap(was: &[f64], is: &[f64]) -> f64 {
    let size = was.iter().filter(|x| !x.is_nan()).fold(1e-6, |size, x| f64::max(size, x.abs()));
    let apart = |(a, b): (&f64, &f64)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (false, false) => (a - b).abs() / size,
        _ => f64::INFINITY,
    };
    was.iter().zip(is).map(apart).fold(0.0, f64::max)
}

/// Every golden file below `folder`, by its path from there. Versions say what ran, not what came out.
fn files(folder: &Path, below: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let place = folder.join(below);
    for entry in fs::read_dir(&place).with_context(|| format!("cannot list {}", place.display()))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        let golden = ["safetensors", "json", "gguf"].iter().any(|kind| name.extension().is_some_and(|e| e == *kind));
        if entry.file_type()?.is_dir() {
            found.extend(files(folder, &name)?);
        } else if golden && entry.file_name() != "versions.json" {
            found.insert(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_relative_and_nan_is_nan() {
        assert_eq!(gap(&[1.0, -4.0], &[1.0, -4.0]), 0.0);
        assert_eq!(gap(&[1.0, -4.0], &[2.0, -4.0]), 0.25);
        assert_eq!(gap(&[f64::NAN, 2.0], &[f64::NAN, 2.0]), 0.0);
        assert_eq!(gap(&[f64::NAN], &[0.0]), f64::INFINITY);
        assert_eq!(gap(&[0.0], &[f64::NAN]), f64::INFINITY);
    }

    #[test]
    fn the_committed_values_agree_with_themselves_and_with_nothing_less() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference");
        assert_eq!(compare(&folder, &folder).unwrap(), 0.0);
        let empty = tempfile::tempdir().unwrap();
        assert!(compare(&folder, empty.path()).is_err());
        assert!(compare(empty.path(), &folder).is_err());
    }

    #[test]
    fn packages_are_pinned_without_their_builds() {
        let folder = tempfile::tempdir().unwrap();
        let versions = r#"{"seed": 1, "python": "3.11.7", "torch": "2.15.0+cu132"}"#;
        fs::write(folder.path().join("versions.json"), versions).unwrap();
        assert_eq!(packages(folder.path()).unwrap(), ["torch==2.15.0".to_owned()].into());
    }
}
