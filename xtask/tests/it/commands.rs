//! Commands that answer a question, and those that are not there.

use super::xtask;
use std::process::Command;

#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = xtask(std::path::Path::new("."), arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_shows_examples_and_no_chore_of_the_repository_is_among_them() {
    let help = printed(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"pipeline") && commands.len() > 10, "{commands:?}");
    for command in commands.iter().filter(|command| **command != "help") {
        let help = printed(&[command, "--help"]);
        let examples = help.split("Examples:").nth(1).unwrap_or_else(|| panic!("{command} has no examples"));
        assert!((1..=3).contains(&examples.trim().lines().count()), "{command}: {examples}");
    }
    for inner in [["data", "check"], ["data", "leaks"], ["data", "split"], ["config", "default"], ["config", "explain"]]
    {
        assert!(printed(&[inner[0], inner[1], "--help"]).contains("Examples:"), "{inner:?}");
    }
    for chore in ["ci", "torture", "bench", "correctness", "reference", "fixtures", "circle", "gpu"] {
        assert!(!commands.contains(&chore), "{chore}");
    }
}

#[test]
fn an_installed_program_says_where_the_chores_are() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_instruct"));
    let output = program.arg("torture").env_remove("CARGO").env_remove("CARGO_MANIFEST_DIR").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("run `cargo xtask torture` in a clone"), "{message}");
}

#[test]
fn keys_are_explained_and_the_default_is_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("default.toml"), printed(&["config", "default"])).unwrap();
    let arguments = ["pipeline", "--config", "default.toml", "--dry-run", "--set", "model.base=nowhere"];
    let output = xtask(folder.path(), &arguments);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere does not exist"), "{output:?}");
    let explained = printed(&["config", "explain", "ppo.adam"]);
    assert!(explained.contains("ppo.adam.beta2 = 0.95") && explained.contains("InstructGPT"), "{explained}");
    let doctor = printed(&["doctor", "--json"]);
    assert!(doctor.contains("\"name\": \"threads\"") && doctor.contains("\"status\""), "{doctor}");
}
