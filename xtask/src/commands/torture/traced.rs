//! Deaths between two system calls of a checkpoint, by strace: a process is killed as it enters the
//! n-th call of a name, so the call before it is the last that the disk has seen.

use super::{
    Death,
    calls::{self, Call},
    settle,
    victim::{Victim, is_torn},
};
use crate::say;
use anyhow::{Context, Result, bail};
use std::{path::Path, process::Command};

/// A stage whose checkpoints are torn, and the commands that bring a run to where it begins.
struct Scene {
    stage: &'static str,
    artefact: &'static str,
    before: &'static [&'static str],
}

const SCENES: [Scene; 3] = [
    Scene { stage: "sft-baseline", artefact: "sft-baseline", before: &[] },
    Scene { stage: "reward-model", artefact: "reward-model", before: &["sft"] },
    Scene { stage: "ppo-ptx", artefact: "ppo-ptx", before: &["sft", "reward-model"] },
];

/// Kills at up to `count` points, spread evenly over the three stages and over every kind of call.
pub(super) fn kill_at_points(victim: &Victim, count: usize, seed: u64) -> Result<Vec<Death>> {
    let mut deaths = Vec::new();
    for scene in &SCENES {
        let begun = prepare(victim, scene)?;
        let points = points(victim, scene, &begun)?;
        let chosen = spread(&points, count / SCENES.len(), seed);
        say(&format!("torture: {} of {} points in {}", chosen.len(), points.len(), scene.stage));
        for point in chosen {
            deaths.extend(kill(victim, scene, &begun, point)?);
            super::progress("before a chosen call", &deaths);
        }
    }
    Ok(deaths)
}

/// A run that stands before the scene's stage.
fn prepare(victim: &Victim, scene: &Scene) -> Result<String> {
    let name = format!("before-{}", scene.stage);
    std::fs::create_dir_all(victim.run(&name))?;
    scene.before.iter().try_for_each(|command| victim.finish(command, &name))?;
    Ok(name)
}

/// The calls to die before: those of the last checkpoints of steps and of all that the stage commits
/// after them. The run that they are read from must itself end like any other.
fn points(victim: &Victim, scene: &Scene, begun: &str) -> Result<Vec<Call>> {
    let name = "watched";
    victim.copy(begun, name)?;
    let log = victim.folder.join("watched.log");
    let (status, said) = Victim::end(victim.traced(name, &log, &calls::trace()))?;
    if !status.success() {
        bail!("strace ended with {status}:\n{said}");
    }
    let calls = calls::read(&log, &victim.folder, name)?;
    settle(victim, name, Vec::new())?;
    let ours: Vec<Call> = calls.into_iter().filter(|call| call.paths[0].starts_with(scene.artefact)).collect();
    let stages_step = |call: &Call| call.name == "mkdir" && call.paths[0].contains(".tmp-step-");
    let begins = ours.iter().rposition(stages_step).context("no checkpoint is written under strace")?;
    // Six calls before it, the journals begin to be synced.
    let ours: Vec<Call> = ours.into_iter().skip(begins.saturating_sub(6)).filter(Call::changes).collect();
    let middle = |at: usize| {
        let same = |other: Option<&Call>| other.is_some_and(|o| o.name == "write" && o.paths == ours[at].paths);
        ours[at].name == "write" && same(at.checked_sub(2).and_then(|i| ours.get(i))) && same(ours.get(at + 1))
    };
    Ok((0..ours.len()).filter(|&at| !middle(at)).map(|at| ours[at].clone()).collect())
}

/// Every so many-th of a list; the seed shifts where it begins.
fn spread<T>(list: &[T], count: usize, seed: u64) -> Vec<&T> {
    let count = count.min(list.len());
    let shift = if count < list.len() { seed as usize } else { 0 };
    (0..count).map(|i| &list[(i * list.len() / count.max(1) + shift) % list.len()]).collect()
}

fn kill(victim: &Victim, scene: &Scene, begun: &str, point: &Call) -> Result<Option<Death>> {
    let name = format!("killed-{}-{}-{}", scene.stage, point.name, point.ordinal);
    victim.copy(begun, &name)?;
    let log = victim.folder.join("killed.log");
    let inject = ["-e".to_owned(), format!("inject={}:signal=KILL:when={}", point.name, point.ordinal)];
    let (status, said) = Victim::end(victim.traced(&name, &log, &[calls::trace(), inject].concat()))?;
    if status.success() {
        say(&format!("torture: {name} was not reached: {said}"));
        victim.remove(&name)?;
        return Ok(None);
    }
    if status.code().is_some() {
        bail!("{name} ended with {status} instead of dying:\n{said}");
    }
    let at = died_before(&log, victim, &name)?;
    let death = Death { stage: scene.stage, how: at.name.clone(), torn: is_torn(&victim.run(&name)), lost: None };
    Ok(settle(victim, &name, vec![death])?.pop())
}

/// The call that the killed process never made.
fn died_before(log: &Path, victim: &Victim, run: &str) -> Result<Call> {
    let calls = calls::read(log, &victim.folder, run)?;
    calls.into_iter().rfind(|call| call.result.is_none()).context("the log does not say where the process died")
}

/// Whether there is a strace that may trace.
pub(super) fn is_possible() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}
