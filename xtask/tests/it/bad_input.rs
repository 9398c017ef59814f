//! Bad input is refused with one message that says where, what, and what to do, and leaves nothing
//! half-written.

use super::{smoke, xtask};
use std::{fs, path::Path};

/// Runs the program and expects exit code 2 and a message that holds every part.
#[track_caller]
fn check_refused(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let output = xtask(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

/// Runs the pipeline over a ranking file of this content.
#[track_caller]
fn check_rankings(content: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.jsonl"), content).unwrap();
    let config = smoke();
    let arguments = ["pipeline", "--config", &config, "--run", "run", "--set", "data.rankings=[\"r.jsonl\"]"];
    check_refused(folder.path(), &arguments, parts);
    assert!(!folder.path().join("run/sft-baseline").exists(), "nothing may begin");
}

#[test]
fn broken_records_are_named_by_line_and_field() {
    check_rankings(b"{\"prompt\": \"a\", \"completions\": [\"b\", \"c\"], \"ranks\": [1]}\n", &["r.jsonl:1", "ranks"]);
    check_rankings(b"{\"prompt\": \"a\", \"completions\": [\"b\"\n", &["r.jsonl:1", "JSON"]);
    check_rankings(
        b"{\"completions\": [\"b\", \"c\"], \"ranks\": [1, 2]}\n",
        &["r.jsonl:1", "field `prompt` is missing"],
    );
    check_rankings(
        b"{\"prompt\": \"\", \"completions\": [\"b\", \"c\"], \"ranks\": [1, 2]}\n",
        &["r.jsonl:1", "prompt"],
    );
    check_rankings(b"", &["r.jsonl"]);
    check_rankings(
        b"{\"prompt\": \"a\", \"completions\": [\"b\", \"c\"], \"ranks\": [0, 7]}\n{\"prompt\": 3}\n",
        &["r.jsonl:1", "r.jsonl:2", "4 problems"],
    );
}

#[track_caller]
fn check_setting(setting: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let config = smoke();
    check_refused(folder.path(), &["pipeline", "--config", &config, "--run", "run", "--set", setting], parts);
}

#[test]
fn configurations_are_refused_by_key() {
    check_setting("ppo.epizodes=3", &["`ppo.epizodes`", "known here", "episodes"]);
    check_setting("ppo.minibatch=7", &["`minibatch`"]);
    check_setting("model.max-prompt=100000", &["`model.max-prompt`", "context"]);
    check_setting("model.base=nowhere", &["`model.base`", "embedded:demonstrations.jsonl"]);
    check_setting("data.rankings=[\"absent.jsonl\"]", &["absent.jsonl"]);
    check_setting("data.limit=3", &["nothing is left"]);
}

#[test]
fn broken_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let generate = ["generate", "--model", "model", "--prompt", "x", "--template", "{prompt}:"];
    check_refused(folder.path(), &generate, &["config.json"]);
    let base = format!("{}/../fixtures/base", env!("CARGO_MANIFEST_DIR"));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(format!("{base}/{name}"), model.join(name)).unwrap();
    }
    check_refused(folder.path(), &generate, &["model.safetensors"]);
    let weights = fs::read(format!("{base}/model.safetensors")).unwrap();
    fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    check_refused(folder.path(), &generate, &["model.safetensors"]);
    fs::write(model.join("model.safetensors"), b"not weights at all").unwrap();
    check_refused(folder.path(), &generate, &["model.safetensors"]);
    fs::write(model.join("model.safetensors"), &weights).unwrap();
    assert!(xtask(folder.path(), &generate).status.success());
    check_refused(folder.path(), &["generate", "--model", "absent", "--prompt", "x"], &["absent"]);
    check_refused(folder.path(), &["generate", "--model", "model", "--prompt", "x"], &["template"]);
}

#[test]
fn a_run_folder_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(folder.path().join("run/precious"), "data").unwrap();
    let config = smoke();
    check_refused(folder.path(), &["pipeline", "--config", &config, "--run", "run"], &["not empty"]);
    assert_eq!(fs::read(folder.path().join("run/precious")).unwrap(), b"data");
}
