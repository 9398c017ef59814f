//! `reference`: makes the golden values of `fixtures/reference` anew with torch and transformers, or
//! compares.

use crate::{print, say};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, safetensors};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare new values with the committed ones, and change nothing
    #[arg(long)]
    check: bool,
    /// A Python that has torch, transformers, safetensors and numpy; without one, an environment with
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

/// Runs the scripts of `folder`, which write to `out`.
fn make(python: &Path, folder: &Path, out: &Path) -> Result<()> {
    execute(Command::new(python).arg(folder.join("reference.py")).arg(out))?;
    execute(Command::new(python).arg(folder.join("traces.py")).arg(out.join("traces")))
}

/// An environment with the packages of `versions.json`, made once.
fn environment(folder: &Path) -> Result<PathBuf> {
    let place = Path::new("target/reference-environment");
    let python = place.join("bin/python");
    let path = folder.join("versions.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let versions: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)?;
    let pinned = |name: &str| -> Result<String> {
        let version = versions.get(name).and_then(|v| v.as_str());
        let version = version.with_context(|| format!("{} names no version of {name}", path.display()))?;
        // What follows a plus names the build, which differs between machines.
        Ok(format!("{name}=={}", version.split('+').next().unwrap_or(version)))
    };
    if !python.exists() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(place))?;
    }
    let packages = [pinned("torch")?, pinned("transformers")?, "safetensors".to_owned(), "numpy".to_owned()];
    execute(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    Ok(python)
}

fn execute(command: &mut Command) -> Result<()> {
    say(&format!("{command:?}"));
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if status.success() {
        return Ok(());
    }
    bail!("{command:?} failed with {status}")
}

/// The worst difference between two folders of golden values.
///
/// Errors: a file, a tensor or a shape differs, or a value does by more than [`TOLERANCE`].
fn compare(committed: &Path, new: &Path) -> Result<f64> {
    let mut worst = 0.0;
    let files = tensor_files(committed)?;
    if files.is_empty() {
        bail!("{} holds no golden values", committed.display());
    }
    for path in files {
        let name = path.strip_prefix(committed)?;
        let read = |path: &Path| -> Result<BTreeMap<_, _>> {
            let tensors = safetensors::load(path, &Device::Cpu).with_context(|| path.display().to_string())?;
            Ok(tensors.into_iter().collect())
        };
        let (was, is) = (read(&path)?, read(&new.join(name))?);
        if !was.keys().eq(is.keys()) {
            bail!("{} holds other tensors than the new one: run `cargo xtask reference`", path.display());
        }
        for ((tensor, was), is) in was.iter().zip(is.values()) {
            let values = |t: &candle_core::Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
            let difference = if was.shape() == is.shape() { gap(&values(was)?, &values(is)?) } else { f64::INFINITY };
            if difference > TOLERANCE {
                bail!(
                    "{}: `{tensor}` differs by {difference:.1e} of its largest value: run `cargo xtask reference` and \
                     look at what changed",
                    path.display()
                );
            }
            worst = f64::max(worst, difference);
        }
    }
    Ok(worst)
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

/// Every file of tensors below `folder`, sorted.
fn tensor_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(tensor_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    found.sort();
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/reference");
        assert_eq!(compare(&folder, &folder).unwrap(), 0.0);
        let empty = tempfile::tempdir().unwrap();
        assert!(compare(&folder, empty.path()).is_err());
        assert!(compare(empty.path(), &folder).is_err());
    }
}
