//! Deaths at a chosen system call, by strace: a process is killed as it enters the n-th call of a name,
//! so that the disk has seen the call before it and not this one; or the call fails.

use super::{
    Death,
    calls::{self, Call},
    settle,
    victim::{Victim, is_torn},
};
use anyhow::{Context, Result, bail};
use instruct_random::Source;
use std::{
    path::PathBuf,
    process::{Command, ExitStatus},
};
use xtask::terminal::say;

/// A stage whose checkpoints are torn, a run that stands before it, and what the program asks of the
/// system from there to its end.
pub(super) struct Scene {
    pub(super) artefact: &'static str,
    /// The run that stands before the stage; each death befalls a copy.
    begun: String,
    pub(super) calls: Vec<Call>,
}

/// The three stages, and the commands that bring a run to where each begins.
const STAGES: [(&str, &[&str]); 3] =
    [("sft-baseline", &[]), ("reward-model", &["sft"]), ("ppo-ptx", &["sft", "reward-model"])];

impl Scene {
    /// All three. The runs that the calls are read from must themselves end like any other.
    pub(super) fn all(victim: &Victim) -> Result<Vec<Scene>> {
        STAGES.iter().map(|(artefact, before)| Scene::new(victim, artefact, before)).collect()
    }

    fn new(victim: &Victim, artefact: &'static str, before: &[&str]) -> Result<Scene> {
        let begun = format!("before-{artefact}");
        std::fs::create_dir_all(victim.run(&begun))?;
        before.iter().try_for_each(|command| victim.finish(command, &begun))?;
        let mut scene = Scene { artefact, begun, calls: Vec::new() };
        let (status, said) = scene.trace(victim, "watched", &[])?;
        if !status.success() {
            bail!("under strace the program ended with {status}:\n{said}");
        }
        scene.calls = scene.log(victim, "watched")?;
        match settle(victim, "watched", Vec::new())? {
            _ if !victim.run("watched").exists() => Ok(scene),
            _ => bail!("a run under strace ends otherwise than one without"),
        }
    }

    /// Continues a copy of the scene's run, called `name`, under strace.
    fn trace(&self, victim: &Victim, name: &str, inject: &[String]) -> Result<(ExitStatus, String)> {
        victim.copy(&self.begun, name)?;
        let options = [&calls::trace(), inject].concat();
        Victim::end(victim.traced(name, &log_of(victim), &options))
    }

    /// How long a file was before the scene's stage began; `None` when it was not there.
    pub(super) fn length_before(&self, victim: &Victim, path: &str) -> Option<u64> {
        let found = std::fs::metadata(victim.run(&self.begun).join(path)).ok()?;
        Some(found.len())
    }

    fn log(&self, victim: &Victim, name: &str) -> Result<Vec<Call>> {
        calls::read(&log_of(victim), &victim.folder, name)
    }

    /// The calls to die before, in order: those of the last checkpoint of a step and of all that the
    /// stage commits after it. Of many writes to one file the first, the second and the last are kept.
    pub(super) fn points(&self) -> Result<Vec<&Call>> {
        let ours: Vec<&Call> = self.calls.iter().filter(|call| call.paths[0].starts_with(self.artefact)).collect();
        let stages_step = |call: &&Call| call.name == "mkdir" && call.paths[0].contains(".tmp-step-");
        let begins = ours.iter().rposition(stages_step).context("the stage writes no checkpoint")?;
        // Six calls before it, the journals begin to be synced.
        let ours: Vec<&Call> = ours.into_iter().skip(begins.saturating_sub(6)).filter(|call| call.changes()).collect();
        let is_middle = |at: usize| {
            let same = |other: Option<&&Call>| other.is_some_and(|o| o.name == "write" && o.paths == ours[at].paths);
            ours[at].name == "write" && same(at.checked_sub(2).and_then(|i| ours.get(i))) && same(ours.get(at + 1))
        };
        Ok((0..ours.len()).filter(|&at| !is_middle(at)).map(|at| ours[at]).collect())
    }

    /// Kills a copy of the scene's run before `point`. What it had asked of the system is returned, the
    /// call that it never made last; nothing when it did not come that far.
    pub(super) fn die(&self, victim: &Victim, name: &str, point: &Call) -> Result<Option<Vec<Call>>> {
        let inject = ["-e".to_owned(), format!("inject={}:signal=KILL:when={}", point.name, point.ordinal)];
        let (status, said) = self.trace(victim, name, &inject)?;
        if status.success() {
            say(&format!("torture: {name} came to its end before call {} of {}", point.ordinal, point.name));
            victim.remove(name)?;
            return Ok(None);
        }
        if status.code().is_some() {
            bail!("{name} ended with {status} instead of dying:\n{said}");
        }
        let mut calls = self.log(victim, name)?;
        // Other threads may have been in calls of their own.
        let is_it = |call: &Call| call.result.is_none() && call.name == point.name;
        let last = calls.iter().rposition(is_it).or_else(|| calls.iter().rposition(|call| call.result.is_none()));
        calls.truncate(last.context("the log does not say where the process died")? + 1);
        Ok(Some(calls))
    }
}

fn log_of(victim: &Victim) -> PathBuf {
    victim.folder.join("calls.log")
}

/// Whether there is a strace, and it may trace.
pub(super) fn is_possible() -> bool {
    let probe = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    probe.is_ok_and(|output| output.status.success())
}

/// Every so many-th of a list; the seed shifts where it begins.
pub(super) fn spread<T: Clone>(list: &[T], count: usize, seed: u64) -> Vec<T> {
    let count = count.min(list.len());
    let shift = Source::new(seed, "torture/spread").at([]).below(list.len().max(1) as u64) as usize;
    let shift = if count < list.len() { shift } else { 0 };
    (0..count).map(|i| list[(i * list.len() / count.max(1) + shift) % list.len()].clone()).collect()
}

/// Kills before `count` calls, spread over the three stages and over every kind of call.
pub(super) fn kill(victim: &Victim, scenes: &[Scene], count: usize, seed: u64) -> Result<Vec<Death>> {
    let mut deaths = Vec::new();
    for (scene, share) in scenes.iter().zip(shares(count)) {
        for point in spread(&scene.points()?, share, seed) {
            let name = format!("killed-{}-{}-{}", scene.artefact, point.name, point.ordinal);
            let Some(calls) = scene.die(victim, &name, point)? else { continue };
            let how = calls.last().map_or_else(String::new, |call| call.name.clone());
            let death = Death { stage: scene.artefact, how, torn: is_torn(&victim.run(&name)), lost: None };
            deaths.extend(settle(victim, &name, vec![death])?);
        }
        super::progress("before a chosen call", &deaths);
    }
    Ok(deaths)
}

/// `count` in three parts, the first ones the larger.
pub(super) fn shares(count: usize) -> [usize; 3] {
    [count.div_ceil(3), (count + 1) / 3, count / 3]
}

/// What the system may answer, and what the message must hold then.
const FAILURES: [(&str, &str, &[&str]); 2] =
    [("ENOSPC", "free some space", &["mkdir", "openat", "write", "fsync"]), ("EIO", "", &["write", "fsync", "rename"])];

/// Lets `count` calls fail: the program has to end with exit code 2 and say why, and is then continued.
pub(super) fn fail(victim: &Victim, scenes: &[Scene], count: usize, seed: u64) -> Result<Vec<Death>> {
    let mut deaths = Vec::new();
    for (scene, share) in scenes.iter().zip(shares(count)) {
        let points = scene.points()?;
        let all: Vec<_> = FAILURES
            .iter()
            .flat_map(|failure| {
                points.iter().filter(|p| failure.2.contains(&p.name.as_str())).map(move |p| (failure, *p))
            })
            .collect();
        for ((error, advice, _), point) in spread(&all, share, seed) {
            let name = format!("failed-{}-{}-{}", scene.artefact, point.name, point.ordinal);
            let inject = format!("inject={}:error={error}:when={}", point.name, point.ordinal);
            let (status, said) = scene.trace(victim, &name, &["-e".to_owned(), inject])?;
            if status.success() && !scene.log(victim, &name)?.iter().any(|call| call.is_injected) {
                // What is shown of progress is written too, and by the clock, so calls may have other numbers.
                say(&format!("torture: {name}: call {} of {} was of something else", point.ordinal, point.name));
                victim.remove(&name)?;
                continue;
            }
            let told = said.contains("error: ") && said.contains(advice) && said.contains("os error");
            if status.code() != Some(2) || !told || said.contains("panicked") {
                bail!("{error} at {} {} ended with {status}:\n{said}", point.name, point.ordinal);
            }
            let how = format!("{error} from {}", point.name);
            let death = Death { stage: scene.artefact, how, torn: is_torn(&victim.run(&name)), lost: None };
            deaths.extend(settle(victim, &name, vec![death])?);
        }
        super::progress("by a failing call", &deaths);
    }
    Ok(deaths)
}
