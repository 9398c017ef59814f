//! A run that goes wrong ends with the cause, what is left of it, and the next thing to do; doing
//! that thing helps.

use super::{TINY, smoke, xtask};
use std::path::Path;

/// Runs a stage of the sliver with these settings, in the folder `run`.
fn stage(folder: &Path, command: &str, more: &[&str]) -> (Option<i32>, String) {
    let config = smoke();
    let mut arguments = vec![command, "--config", &config, "--run", "run"];
    arguments.extend(TINY);
    arguments.extend(more);
    let output = xtask(folder, &arguments);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn check_stopped(folder: &Path, command: &str, more: &[&str], parts: &[&str]) {
    let (code, message) = stage(folder, command, more);
    assert_eq!(code, Some(2), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn a_rate_that_is_too_high_ends_a_run_and_a_lower_one_continues_it() {
    let folder = tempfile::tempdir().unwrap();
    let wild = ["--set", "sft-baseline.lr=1e39"];
    let cause = "stage `sft-baseline`: weight of `embed.weight` is NaN or infinite at step 1";
    let advice = ["no checkpoint of this stage", "--run run --resume", "--adopt"];
    check_stopped(folder.path(), "sft", &wild, &[&[cause], &advice[..]].concat());
    // The mended configuration is another one: it is shown, and taken over when that is asked for.
    let difference = ["- sft-baseline.lr", "+ sft-baseline.lr = 0.001", "--adopt"];
    check_stopped(folder.path(), "sft", &["--resume"], &difference);
    let (code, message) = stage(folder.path(), "sft", &["--resume", "--adopt"]);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("warning") && message.contains("+ sft-baseline.lr = 0.001"), "{message}");
    let (code, message) = stage(folder.path(), "sft", &["--resume"]);
    assert_eq!(code, Some(0), "{message}");
}

#[test]
fn a_policy_that_runs_away_ends_a_run_and_a_lower_rate_continues_it() {
    let folder = tempfile::tempdir().unwrap();
    let longer = ["--set", "ppo.episodes=48"];
    let wild = [&longer[..], &["--set", "ppo.policy-lr=0.5", "--set", "checkpoints.every=1"]].concat();
    check_stopped(folder.path(), "ppo", &wild, &["stage `ppo`: iteration ", "`guards.", "step-00000", "--adopt"]);
    // What the wild rate did is in the checkpoints.
    std::fs::remove_dir_all(folder.path().join("run/ppo")).unwrap();
    let mended = [&longer[..], &["--resume", "--adopt"]].concat();
    let (code, message) = stage(folder.path(), "ppo", &mended);
    assert_eq!(code, Some(0), "{message}");
    assert!(folder.path().join("run/ppo-ptx/model/model.safetensors").exists());
}

#[test]
fn what_cannot_fit_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let table = ["needs more memory than the 100 MB", "ppo-ptx", "models of", "moments", "`model.micro-tokens`"];
    check_stopped(folder.path(), "pipeline", &["--set", "memory.limit-mb=100"], &table);
    assert!(!folder.path().join("run/sft-baseline").exists(), "nothing may begin");
    let wide = ["--resume", "--adopt", "--set", "memory.limit-mb=100000", "--dry-run"];
    let (code, message) = stage(folder.path(), "pipeline", &wide);
    assert_eq!(code, Some(0), "{message}");
}
