//! One run by several processes under a launcher. `.ci/mpi` runs these tests, with a program that speaks MPI.

use super::{resume::files, smoke};
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

/// The program on so many ranks, with one thread each. The launcher ends a job that hangs.
fn launcher(ranks: usize, folder: &Path, arguments: &[&str]) -> Command {
    let mut launcher = Command::new(std::env::var_os("INSTRUCT_MPIRUN").unwrap_or_else(|| "mpirun".into()));
    launcher.args(["-np", &ranks.to_string(), env!("CARGO_BIN_EXE_instruct")]).args(arguments);
    launcher.env("RAYON_NUM_THREADS", "1").current_dir(folder).stdin(Stdio::null());
    for (name, value) in [
        ("MPIEXEC_TIMEOUT", "900"),
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ] {
        launcher.env(name, value);
    }
    launcher
}

/// One of the processes that the launcher started.
fn a_child_of(launcher: u32) -> Option<u32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // Behind the name, which stands in parentheses: the state, and the parent.
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
        (parent == launcher.to_string()).then(|| entry.file_name().to_str()?.parse().ok())?
    })
}

fn on_ranks(ranks: usize, folder: &Path, arguments: &[&str]) -> Output {
    launcher(ranks, folder, arguments).output().expect("mpirun is there: .ci/mpi installs it")
}

/// Starts a job, kills a rank of it once `checkpoint` of a stage exists, and waits until the job is gone. Whether it was
/// ended within that stage: on a busy machine it can be through before.
fn ended_within(stage: &Path, checkpoint: &str, ranks: usize, folder: &Path, arguments: &[&str]) -> bool {
    let mut job = launcher(ranks, folder, arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !stage.join("checkpoints").join(checkpoint).exists() {
        if let Some(status) = job.try_wait().unwrap() {
            // On a machine that let this test wait the checkpoint came and went.
            assert!(status.success(), "it ended by itself before {checkpoint} of {}", stage.display());
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // One that is gone by itself cannot be killed.
    let _ = a_child_of(job.id()).map(|rank| crate::signal("KILL", rank));
    !job.wait().unwrap().success() && !stage.join("model").exists()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_run_has_the_same_bytes_on_any_number_of_ranks_and_after_moving_to_another() {
    let folder = tempfile::tempdir().unwrap();
    // What the torture kills: dropout, a mix, an adaptive price, a value model, an average, candidates.
    let config = format!("{}/../configs/torture.toml", env!("CARGO_MANIFEST_DIR"));
    let flow = |command: &'static str, run: &'static str| {
        let arguments = [command, "--config", &config, "--run", run, "--set", "model.leaves=4"];
        arguments.map(str::to_owned).to_vec()
    };
    let start = |ranks: usize, command, run, resume: bool| {
        let mut arguments = flow(command, run);
        arguments.extend(resume.then(|| "--resume".to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        succeeded(&on_ranks(ranks, folder.path(), &arguments))
    };
    start(1, "pipeline", "one", false);
    let said = start(2, "pipeline", "two", false);
    assert!(said.contains("2 ranks over mpi, 2 on this machine; the first has 1 thread on processors "), "{said}");
    assert_eq!(said.matches("run folder").count(), 1, "one rank speaks: {said}");
    // Ended within two stages, and each time continued on another number of ranks.
    let moved = ["moved", "moved-2", "moved-3"].into_iter().find(|run| {
        let arguments = flow("pipeline", run);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--resume"]).collect();
        [("ppo", 2), ("ppo-ptx", 4)].into_iter().all(|(stage, ranks)| {
            let stage = folder.path().join(run).join(stage);
            ended_within(&stage, "step-000002", ranks, folder.path(), &arguments)
        })
    });
    let moved = moved.expect("of three jobs one was ended within two stages");
    start(1, "pipeline", moved, true);
    let one = files(&folder.path().join("one"));
    assert!(one.keys().any(|name| name.ends_with("ppo-ptx/model/model.safetensors")));
    for run in ["two", moved] {
        let other = files(&folder.path().join(run));
        assert_eq!(other.keys().collect::<Vec<_>>(), one.keys().collect::<Vec<_>>(), "{run}");
        one.iter().for_each(|(name, bytes)| assert!(other[name] == *bytes, "{run}: {name} differs"));
    }
}

#[test]
fn what_ranks_cannot_share_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = smoke();
    let refused = |ranks: usize, arguments: &[&str], part: &str| {
        let output = on_ranks(ranks, folder.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(part), "{said}");
    };
    let three = ["sft", "--config", &config, "--run", "three", "--set", "model.leaves=4"];
    refused(3, &three, "4 leaves cannot be shared by 3 ranks: `model.leaves` must be 3 times a power of two");
    assert!(!folder.path().join("three").exists(), "before a folder is made");
    refused(2, &["doctor"], "share their work among ranks; start this command alone");
}
