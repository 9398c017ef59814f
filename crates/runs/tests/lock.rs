//! A run folder is locked against a second process, and free again when its process is killed.
//!
//! In a file of its own, because a child that starts holds its parent's locks for a moment, which
//! would disturb tests that run beside it.

#![allow(clippy::unwrap_used, reason = "clippy does not count a helper in tests/ as a test")]

use instruct_runs::{Result, RunDir, Start};
use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

const FOLDER: &str = "INSTRUCT_RUNS_LOCK_FOLDER";

fn open(path: &Path) -> Result<RunDir<'static>> {
    RunDir::open(path, Start::Resume, "seed = 1\n", &0)
}

/// The child's part: opens the folder, says so, and waits to be killed. On its own it does nothing.
#[test]
fn child() {
    let Some(path) = std::env::var_os(FOLDER) else { return };
    match open(Path::new(&path)) {
        Err(error) => println!("refused: {error};"),
        Ok(_run) => {
            println!("holds it;");
            loop {
                std::thread::park();
            }
        }
    }
}

/// Starts a child and reads what it says, up to its semicolon.
fn spawn(path: &Path) -> (Child, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(FOLDER, path).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0];
    while !said.ends_with(';') && output.read(&mut byte).unwrap() == 1 {
        said.push(char::from(byte[0]));
    }
    // Kept open, or the child's test harness complains when it ends.
    child.stdout = Some(output);
    (child, said)
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let run = open(folder.path()).unwrap();
    let (mut child, said) = spawn(folder.path());
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
    child.wait().unwrap();
    drop(run);

    let (mut child, said) = spawn(folder.path());
    assert!(said.ends_with("holds it;"), "{said}");
    let refused = open(folder.path()).err().expect("the child holds the lock").to_string();
    assert!(refused.contains(&format!("in use by process {}", child.id())), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    open(folder.path()).unwrap();
}
