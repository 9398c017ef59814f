//! A person's own files: what each command takes of them, counts in them, and remembers of them.

use super::{smoke, xtask};
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

/// A model of a folder of the repository, whose chat template is none.
fn base() -> String {
    format!("{}/../fixtures/base", env!("CARGO_MANIFEST_DIR"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn check(folder: &Path, arguments: &[&str], works: bool, parts: &[&str]) -> String {
    let output = xtask(folder, arguments);
    let said = said(&output);
    assert_eq!(output.status.success(), works, "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    said
}

/// Writes demonstrations of so many users.
fn demonstrations(path: &Path, users: usize) {
    let line = |i: usize| format!("{{\"prompt\": \"Say {i}.\", \"completion\": \"{i}.\", \"user\": \"u{i}\"}}\n");
    fs::write(path, (0..users).map(line).collect::<String>()).unwrap();
}

const SFT: &str = "[model]\nbase = \"BASE\"\ntemplate = \"User: {prompt}\\nAssistant:\"\nmax-prompt = 64\n\
    max-completion = 32\n[data]\ndemonstrations = [\"d.jsonl\"]\n[sft-baseline]\nepochs = 1\nbatch = 16\n\
    [sft-init]\nepochs = 1\nbatch = 16\npretraining-share = 0.0\n";

#[test]
fn fine_tuning_takes_demonstrations_alone_and_notices_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    demonstrations(&folder.path().join("d.jsonl"), 40);
    fs::write(folder.path().join("c.toml"), SFT.replace("BASE", &base())).unwrap();
    let arguments = ["sft", "--config", "c.toml", "--run", "run"];
    check(folder.path(), &arguments, true, &["demonstration: 40 read"]);
    let rest = ["reward-model", "--config", "c.toml", "--run", "run", "--resume"];
    check(folder.path(), &rest, false, &["no file is named in `data.rankings`; name at least one"]);
    let inputs = fs::read_to_string(folder.path().join("run/inputs.json")).unwrap();
    assert!(inputs.contains("\"d.jsonl\"") && inputs.contains("fixtures/base/model.safetensors"), "{inputs}");
    demonstrations(&folder.path().join("d.jsonl"), 41);
    let resumed = [&arguments[..], &["--resume"]].concat();
    check(folder.path(), &resumed, false, &["it is other data now", "- d.jsonl: ", "+ d.jsonl: ", "--adopt"]);
    let adopted = [&resumed[..], &["--adopt"]].concat();
    check(folder.path(), &adopted, true, &["warning: the data differs from what this run began with: + d.jsonl: "]);
    check(folder.path(), &resumed, true, &["demonstration: 41 read"]);
}

#[test]
fn a_tokenizer_counts_what_no_reader_can() {
    let folder = tempfile::tempdir().unwrap();
    demonstrations(&folder.path().join("d.jsonl"), 3);
    let long = format!("{{\"prompt\": \"Say much.\", \"completion\": \"{}\"}}\n", "much ".repeat(99));
    fs::write(folder.path().join("long.jsonl"), long).unwrap();
    let base = base();
    let arguments = ["data", "check", "--kind", "demonstrations", "d.jsonl", "long.jsonl"];
    let without = check(folder.path(), &arguments, true, &["4 records, 0 skipped"]);
    assert!(!without.contains("encoded"), "{without}");
    let with = ["--model", &base, "--template", "User: {prompt}\nAssistant:", "--max-completion", "40"];
    let parts = ["1 completions left out: longer than `--max-completion`", "3 encoded, ", "the longest prompt has "];
    check(folder.path(), &[&arguments[..], &with].concat(), true, &parts);
}

#[test]
fn people_and_prompts_on_both_sides_are_found() {
    let folder = tempfile::tempdir().unwrap();
    for (name, lines) in [
        ("train", "{\"prompt\": \"a\", \"user\": \"x\"}\n{\"prompt\": \"b\", \"user\": \"y\"}\n"),
        ("test", "{\"prompt\": \"c\", \"user\": \"z\"}\n"),
        ("person", "{\"prompt\": \"d\", \"user\": \"y\"}\n"),
        ("prompt", "{\"prompt\": \"a\", \"user\": \"z\"}\n"),
    ] {
        fs::write(folder.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    let arguments = |test| ["data", "leaks", "--kind", "prompts", "--train", "train.jsonl", "--test", test];
    let none = "3 records, and no person and no prompt is on both sides";
    check(folder.path(), &arguments("test.jsonl"), true, &[none]);
    check(folder.path(), &arguments("person.jsonl"), false, &["train.jsonl:2", "person.jsonl:1", "user `y`"]);
    check(folder.path(), &arguments("prompt.jsonl"), false, &["train.jsonl:1", "prompt.jsonl:1"]);
}

#[test]
fn test_prompts_of_ones_own_are_the_evaluation_s_and_leave_training() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = format!("{}/../fixtures/prompts.jsonl", env!("CARGO_MANIFEST_DIR"));
    let prompts = fs::read_to_string(embedded).unwrap();
    let own: String = prompts.lines().take(30).map(|line| format!("{line}\n")).collect();
    fs::write(folder.path().join("own.jsonl"), own).unwrap();
    let config = smoke();
    let arguments = [
        "pipeline",
        "--config",
        &config,
        "--dry-run",
        "--set",
        "data.test-prompts=[\"own.jsonl\"]",
        "--set",
        "data.limit=400",
    ];
    let parts = ["test prompts: 30 read; ", "shared a prompt with held-out data and left training"];
    let said = check(folder.path(), &arguments, true, &parts);
    assert!(!said.contains(" 0 prompts shared a prompt"), "{said}");
}

#[test]
fn records_that_name_people_can_be_kept_out_of_training() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..40)
        .map(|i| format!("{{\"prompt\": \"Write to a{i}@example.org.\", \"completion\": \"Dear you.\"}}\n"))
        .chain((0..40).map(|i| format!("{{\"prompt\": \"Say {i}.\", \"completion\": \"{i}.\"}}\n")))
        .collect();
    fs::write(folder.path().join("d.jsonl"), lines).unwrap();
    fs::write(folder.path().join("c.toml"), SFT.replace("BASE", &base())).unwrap();
    let arguments = ["sft", "--config", "c.toml", "--dry-run", "--set", "data.remove-personal=true"];
    check(folder.path(), &arguments, true, &["left training for what they say of people", " e-mail addresses"]);
    // A prompt of lines that is too long is cut where it may be.
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"Yes.\"}}\n", "So it is.\\n".repeat(60));
    let mut all = fs::read_to_string(folder.path().join("d.jsonl")).unwrap();
    all.push_str(&long);
    fs::write(folder.path().join("d.jsonl"), all).unwrap();
    let arguments = ["sft", "--config", "c.toml", "--dry-run", "--set", "model.overlong=cut-prompt"];
    check(folder.path(), &arguments, true, &["1 with a prompt that was cut at a newline"]);
}

#[test]
fn prompts_that_cutting_makes_one_do_not_stand_on_two_sides() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        |i: usize| format!("{{\"prompt\": \"Say it.\\n{}\", \"completion\": \"Yes.\"}}\n", format!("{i} ").repeat(99));
    fs::write(folder.path().join("d.jsonl"), (0..40).map(line).collect::<String>()).unwrap();
    fs::write(folder.path().join("c.toml"), SFT.replace("BASE", &base())).unwrap();
    let arguments = ["sft", "--config", "c.toml", "--dry-run", "--set", "model.overlong=cut-prompt"];
    let parts =
        ["records left training whose prompt, as it was cut, is held out", "nothing is left of: demonstrations"];
    check(folder.path(), &arguments, false, &parts);
}

#[test]
fn reward_models_are_tried_on_people_whom_they_never_met() {
    let folder = tempfile::tempdir().unwrap();
    let config = smoke();
    let arguments = ["reward-model", "--config", &config, "--run", "run", "--set", "sft-baseline.epochs=1"];
    check(folder.path(), &arguments, true, &["reward model accuracy"]);
    let card = ["report-card", "--run", "run", "--folds", "2"];
    let parts = ["reward model accuracy", "use case ", "fold 1: people it never met ", "fold 2: "];
    check(folder.path(), &card, true, &parts);
    assert!(
        folder.path().join("run/labelers-1-of-2").is_dir() && folder.path().join("run/eval/report-card.json").is_file()
    );
    let folds = fs::read_to_string(folder.path().join("run/eval/labeler-folds.json")).unwrap();
    let folds: serde_json::Value = serde_json::from_str(&folds).unwrap();
    let tested: u64 = folds.as_array().unwrap().iter().map(|fold| fold["unmet"]["n"].as_u64().unwrap()).sum();
    assert!(tested > 60, "{folds}");
}

#[test]
fn large_data_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    demonstrations(&folder.path().join("d.jsonl"), 40);
    // Sixteen prompts that are far too long: what counts is the size of what is read.
    let long = |i: usize| format!("{{\"prompt\": \"{i} {}\", \"completion\": \"x\"}}\n", "much ".repeat(220_000));
    fs::write(folder.path().join("long.jsonl"), (0..16).map(long).collect::<String>()).unwrap();
    let config = SFT.replace("BASE", &base()).replace("\"d.jsonl\"", "\"d.jsonl\", \"long.jsonl\"");
    fs::write(folder.path().join("c.toml"), config).unwrap();
    let start = |cache: &str, parts: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_instruct"));
        command.args(["sft", "--config", "c.toml", "--dry-run"]).env("INSTRUCT_CACHE", cache);
        let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let (printed, said) = (String::from_utf8_lossy(&output.stdout).into_owned(), said(&output));
        parts.iter().for_each(|part| assert!(said.contains(part), "`{part}` is not in: {said}"));
        printed
    };
    // What the process holds when it estimates its memory depends on how it came there.
    let plan = |printed: String| printed.split("memory, of").next().unwrap().to_owned();
    let first = start("cache", &["56 read", "left out: the prompt is longer", "prepared data: kept in cache/"]);
    let again = start("cache", &["prepared data: read from cache/"]);
    assert_eq!(plan(again), plan(first), "it says and plans the same");
    demonstrations(&folder.path().join("d.jsonl"), 41);
    start("cache", &["57 read", "prepared data: kept in cache/"]);
    assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 2);
}
