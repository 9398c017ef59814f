//! A run that is interrupted anywhere ends with the same bytes as one that is not.

use super::{TINY, smoke, xtask};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn killed_runs_end_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let config = smoke();
    let arguments = |run: &'static str, resume: bool| {
        let mut arguments = vec!["pipeline", "--config", &config, "--run", run];
        arguments.extend(TINY);
        arguments.extend(resume.then_some("--resume"));
        arguments.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>()
    };
    let run = |arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        xtask(folder.path(), &arguments)
    };
    let whole = run(&arguments("whole", false));
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));

    // One process is killed soon after each of these began, then one runs to its end.
    let mut killed_alive = 0;
    for stage in ["sft-baseline", "reward-model", "ppo-ptx"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_instruct"))
            .args(arguments("killed", true))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !folder.path().join("killed").join(stage).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        // On a machine that let this test wait it may be through.
        let _ = child.kill();
        killed_alive += u32::from(child.wait().unwrap().code().is_none());
    }
    assert!(killed_alive > 0, "every process was through before it was killed");
    let rest = run(&arguments("killed", true));
    assert!(rest.status.success(), "{}", String::from_utf8_lossy(&rest.stderr));
    let (whole, killed) = (files(&folder.path().join("whole")), files(&folder.path().join("killed")));
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(killed[name] == *bytes, "{name} differs");
    }
    assert!(whole.keys().any(|name| name.ends_with("ppo-ptx/model/model.safetensors")));
    the_chosen_candidate_is_the_result(&folder.path().join("whole"));
}

/// Of the candidates, evenly spaced, the one that scored most on validation prompts is the run's model.
fn the_chosen_candidate_is_the_result(run: &Path) {
    let rows = fs::read_to_string(run.join("eval/ppo-ptx-selection.json")).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let score = |row: &serde_json::Value| row["mean_score"].as_f64().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    let chosen = rows.iter().find(|row| row["chosen"] == true).unwrap();
    assert!(rows.iter().all(|row| score(row) <= score(chosen)), "{rows:?}");
    let weights = |folder: String| fs::read(run.join("ppo-ptx").join(folder).join("model.safetensors")).unwrap();
    let name = chosen["candidate"].as_str().unwrap();
    assert!(weights(format!("checkpoints/{name}")) == weights("model".to_owned()), "{name} is not the result");
    assert!(run.join("eval/frontier.json").is_file());
}

/// Every file of a run that does not hold wall-clock figures.
pub(super) fn files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(run).unwrap().display().to_string();
            let clock = ["timings.jsonl", "seconds.json", "ranks.json", "eval/results.json", "report.html", ".lock"];
            if path.is_dir() {
                folders.push(path);
            } else if !clock.iter().any(|clock| name.ends_with(clock)) {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}
