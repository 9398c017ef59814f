//! Kills at random instants: a run is killed in each of its stages and often again while it recovers,
//! and in the end compared with one that was left alone.

use super::{
    Death,
    victim::{Pace, STAGES, Victim, has_begun, is_torn, stands_at, wait, wait_until},
};
use anyhow::{Context, Result, bail};
use instruct_random::{Draws, Source};
use std::{
    process::{Child, Command, Stdio},
    thread::sleep,
};

/// Where in a process a kill is aimed.
#[derive(Clone, Copy)]
enum Aim {
    /// Into this stage of [`STAGES`].
    Stage(usize),
    /// Into what a process does before its first step: reading data, verifying, cutting journals.
    Recovery,
}

/// Kills one run again and again until it is through. `number` is that of the run, and keys its draws.
pub(super) fn kill_one_run(victim: &Victim, pace: &Pace, seed: u64, number: u64) -> Result<Vec<Death>> {
    let name = format!("random-{number:04}");
    let mut draws = Source::new(seed, "torture/random").at([number]);
    let mut deaths = Vec::new();
    for stage in 0..STAGES.len() {
        deaths.extend(kill(victim, pace, &name, Aim::Stage(stage), &mut draws)?);
        if draws.chance(1, 2) {
            deaths.extend(kill(victim, pace, &name, Aim::Recovery, &mut draws)?);
        }
    }
    super::settle(victim, &name, deaths)
}

/// Starts a process on the run and kills it; nothing when it was done before.
fn kill(victim: &Victim, pace: &Pace, name: &str, aim: Aim, draws: &mut Draws) -> Result<Option<Death>> {
    let run = victim.run(name);
    let signal = *draws.pick(&["KILL", "KILL", "KILL", "INT", "TERM"]).context("there are signals")?;
    let fraction = draws.uniform_f64();
    let begun_before = matches!(aim, Aim::Stage(stage) if has_begun(&run, STAGES[stage]));
    let mut child = victim.command("pipeline", name).stderr(Stdio::piped()).spawn()?;
    let alive = match aim {
        Aim::Recovery => wait_until(&mut child, || true)?,
        Aim::Stage(stage) => wait_until(&mut child, || has_begun(&run, STAGES[stage]))?,
    };
    if !alive {
        return Ok(None);
    }
    sleep(match aim {
        Aim::Recovery => pace.startup().mul_f64(1.2 * fraction),
        Aim::Stage(stage) if begun_before => pace.startup() + pace.stage(stage).mul_f64(fraction),
        Aim::Stage(stage) => pace.stage(stage).mul_f64(fraction),
    });
    strike(&mut child, signal)?;
    let output = {
        wait(&mut child, pace)?;
        child.wait_with_output()?
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => return Ok(None),
        // Killed, or stopped by a signal before it could take care of signals.
        None => {}
        Some(2) if said.contains("--resume") => {}
        Some(_) => bail!("after SIG{signal} the process ended with {}:\n{said}", output.status),
    }
    let stage = if matches!(aim, Aim::Recovery) { "recovery" } else { stands_at(&run) };
    Ok(Some(Death { stage, how: format!("SIG{signal}"), torn: is_torn(&run), lost: None }))
}

/// Sends a signal; a child that is already gone feels nothing.
fn strike(child: &mut Child, signal: &str) -> Result<()> {
    if signal == "KILL" {
        let _ = child.kill();
        return Ok(());
    }
    let send = format!("kill -{signal} {} 2> /dev/null", child.id());
    Command::new("sh").args(["-c", &send]).status().context("cannot start sh to send a signal")?;
    Ok(())
}
