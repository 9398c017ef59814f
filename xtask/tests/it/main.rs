//! The program from outside: the flow on a sliver of the world, interruption, and bad input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "a test that counts says what")]

mod bad_input;
mod commands;
mod exports;
mod guards;
mod own_data;
#[cfg(feature = "mpi")]
mod ranks;
mod reliability;
mod resume;
#[cfg(feature = "serve")]
mod serving;

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs the program in `folder` with standard input closed.
fn xtask(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_instruct"));
    command.args(arguments).current_dir(folder).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

/// Sends a signal to a process; false where that fails. A shell has `kill` built in, and a small system no other.
fn signal(name: &str, process: u32) -> bool {
    Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap().success()
}

/// Settings that cut the smoke configuration down to seconds.
const TINY: [&str; 16] = [
    "--set",
    "data.limit=60",
    "--set",
    "sft-baseline.epochs=1",
    "--set",
    "ppo.episodes=32",
    "--set",
    "ppo.batch=8",
    "--set",
    "ppo.minibatch=4",
    "--set",
    "ppo.max-new-tokens=8",
    "--set",
    "evaluate.max-new-tokens=8",
    "--set",
    "checkpoints.every=2",
];

fn smoke() -> String {
    format!("{}/../configs/smoke.toml", env!("CARGO_MANIFEST_DIR"))
}
