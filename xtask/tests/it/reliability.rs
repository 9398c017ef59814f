//! What a person meets who continues a run: damage is named, a second process and another configuration
//! are refused, and a terminal that is gone ends nothing.

use super::{TINY, smoke, xtask};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};
use tempfile::TempDir;

/// A finished run of supervised fine-tuning, made once and copied by each test.
fn finished() -> TempDir {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let output = sft(folder.path(), &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    });
    let folder = tempfile::tempdir().unwrap();
    copy(run.path(), folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The arguments that begin or continue the run `run`.
fn arguments(more: &[&str]) -> Vec<String> {
    let config = smoke();
    let fixed = ["sft", "--config", &config, "--run", "run", "--resume"];
    fixed.iter().chain(&TINY).chain(more).map(|s| (*s).to_owned()).collect()
}

fn sft(folder: &Path, more: &[&str]) -> Output {
    let arguments = arguments(more);
    xtask(folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[track_caller]
fn said(output: &Output, code: i32, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// The checkpoint of the most steps in an artefact's folder.
fn newest(artefact: &Path) -> PathBuf {
    let entries = fs::read_dir(artefact.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let mut steps: Vec<PathBuf> = entries.filter(|path| path.display().to_string().contains("step-")).collect();
    steps.sort();
    assert!(steps.len() > 1, "{steps:?}");
    steps.pop().unwrap()
}

/// As a disk could leave it: the length is right, the content is gone.
fn zero(path: &Path) {
    let length = fs::metadata(path).unwrap().len();
    fs::write(path, vec![0; length as usize]).unwrap();
}

#[test]
fn a_run_continues_under_its_own_configuration() {
    let folder = finished();
    let config = folder.path().join("run/config.toml");
    let own = fs::read_to_string(&config).unwrap();
    let resume = ["sft", "--run", "run", "--resume"];
    said(&xtask(folder.path(), &resume), 0, &[]);
    let other = xtask(folder.path(), &[&resume[..], &["--set", "sft-baseline.epochs=2"]].concat());
    said(&other, 2, &["- sft-baseline.epochs = 1", "+ sft-baseline.epochs = 2", "--adopt"]);
    assert!(!String::from_utf8_lossy(&other.stderr).contains("embedded:"), "{other:?}");
    assert_eq!(fs::read_to_string(&config).unwrap(), own);
    // Of several seeds the lowest tells, because the others count on from it.
    for seed in [3, 10] {
        let seed_folder = folder.path().join(format!("seeds/seed-{seed}"));
        fs::create_dir_all(&seed_folder).unwrap();
        fs::write(seed_folder.join("config.toml"), own.replace("seed = 1\n", &format!("seed = {seed}\n"))).unwrap();
    }
    let seeds = xtask(folder.path(), &["sft", "--run", "seeds", "--resume", "--seeds", "2", "--dry-run"]);
    said(&seeds, 0, &[]);
    assert!(String::from_utf8_lossy(&seeds.stdout).contains("seed = 3\n"), "{seeds:?}");
    let nowhere = xtask(folder.path(), &["pipeline", "--run", "nowhere", "--resume"]);
    said(&nowhere, 2, &["--resume: nowhere/config.toml does not exist", "--config", "without --resume"]);
    assert!(!folder.path().join("nowhere").exists());
}

#[test]
fn a_damaged_checkpoint_is_named_and_passed_over() {
    let folder = finished();
    let artefact = folder.path().join("run/sft-init");
    let model = artefact.join("model/model.safetensors");
    let before = (fs::read(&model).unwrap(), fs::read(artefact.join("metrics.jsonl")).unwrap());
    fs::remove_dir_all(artefact.join("model")).unwrap();
    let newest = newest(&artefact);
    zero(&newest.join("optimizer.safetensors"));
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    let warning = ["warning: ", &name, " is passed over: optimizer.safetensors does not match its hash"];
    said(&sft(folder.path(), &[]), 0, &warning);
    assert!(before == (fs::read(&model).unwrap(), fs::read(artefact.join("metrics.jsonl")).unwrap()));
}

#[test]
fn a_damaged_candidate_is_named_and_can_be_made_again() {
    let folder = finished();
    let artefact = folder.path().join("run/sft-baseline");
    let candidate = artefact.join("checkpoints/epoch-01/model.safetensors");
    let before = fs::read(&candidate).unwrap();
    zero(&candidate);
    let parts =
        ["epoch-01", "model.safetensors does not match its hash", "remove the folder", "sft-baseline", "--resume"];
    said(&sft(folder.path(), &[]), 2, &parts);
    fs::remove_dir_all(&artefact).unwrap();
    said(&sft(folder.path(), &[]), 0, &[]);
    assert!(before == fs::read(&candidate).unwrap());
}

#[test]
fn a_changed_configuration_is_refused_with_the_difference() {
    let folder = finished();
    let changed = ["--set", "sft-init.lr=2e-3", "--set", "checkpoints.keep=3"];
    let parts = [
        "was begun with another configuration",
        "- sft-init.lr = 0.001",
        "+ sft-init.lr = 0.002",
        "+ checkpoints.keep = 3",
    ];
    said(&sft(folder.path(), &changed), 2, &parts);
}

#[test]
fn a_second_process_is_told_the_number_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Command::new(env!("CARGO_BIN_EXE_instruct"));
    first.args(arguments(&[])).current_dir(folder.path());
    let mut first = first.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // By then it has locked the folder and written its number.
    while fs::read_to_string(folder.path().join("run/.lock")).unwrap_or_default().trim().is_empty() {
        assert!(first.try_wait().unwrap().is_none(), "the first process ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // It is held where it is: on a busy machine it could otherwise end before the second begins.
    let number = first.id();
    assert!(crate::signal("STOP", number));
    let refused = sft(folder.path(), &[]);
    first.kill().unwrap();
    first.wait().unwrap();
    said(&refused, 2, &["run is in use by process", &number.to_string(), "wait until it ends"]);
    said(&sft(folder.path(), &[]), 0, &[]);
}

/// A disk that is full behind standard error, as a log file's may be.
#[cfg(target_os = "linux")]
#[test]
fn a_run_outlives_its_terminal() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let folder = finished();
    fs::remove_dir_all(folder.path().join("run/sft-init/model")).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_instruct"));
    run.args(arguments(&[])).current_dir(folder.path()).stdin(Stdio::null()).stderr(full());
    assert!(run.status().unwrap().success());
    // Results are another matter.
    let doctor = Command::new(env!("CARGO_BIN_EXE_instruct")).arg("doctor").stdout(full()).output().unwrap();
    said(&doctor, 2, &["cannot write to standard output"]);
}
