//! Ranks and launchers that are killed: a run goes on with another number of ranks after each death, and ends with the
//! bytes of one process that was left alone.

use super::{
    Death,
    victim::{Pace, STAGES, Victim, has_begun, is_torn, stands_at, wait_until},
};
use anyhow::{Context, Result, bail};
use instruct_random::{Draws, Source};
use std::{
    fs,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Numbers of ranks that share four leaves in whole subtrees.
const WORLDS: [usize; 3] = [1, 2, 4];

/// What is done to a job.
const BLOWS: [Blow; 5] = [
    Blow { signal: "KILL", of: Part::Rank },
    Blow { signal: "STOP", of: Part::Rank },
    Blow { signal: "KILL", of: Part::Launcher },
    Blow { signal: "TERM", of: Part::Launcher },
    Blow { signal: "INT", of: Part::Launcher },
];

#[derive(Clone, Copy)]
struct Blow {
    signal: &'static str,
    of: Part,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Rank,
    Launcher,
}

/// Seconds that ranks wait for one that was stopped: more than any of them is busy alone, on a slow machine too.
const LIMIT: u64 = 20;

/// So long may the ranks of a dead launcher live on, and a launcher whose ranks died.
const PATIENCE: Duration = Duration::from_secs(300);

/// Strikes one run in each of its stages, each time on another number of ranks, and then lets it end.
pub(super) fn kill_one_run(victim: &Victim, pace: &Pace, seed: u64, number: u64) -> Result<Vec<Death>> {
    let name = format!("ranks-{number:04}");
    let mut draws = Source::new(seed, "torture/ranks").at([number]);
    let mut deaths = Vec::new();
    for stage in 0..STAGES.len() {
        deaths.extend(strike_stage(victim, pace, &name, stage, &mut draws)?);
    }
    if deaths.is_empty() {
        bail!("no job on the run {name} could be struck: each was done before");
    }
    let world = world(&mut draws)?;
    Ok(super::settle_and_listen(victim, &name, deaths, victim.launched(&name, world, 600))?.1)
}

fn world(draws: &mut Draws) -> Result<usize> {
    draws.pick(&WORLDS).copied().context("there are numbers")
}

/// Starts a job on the run and strikes it in this stage; nothing when it was done before.
fn strike_stage(victim: &Victim, pace: &Pace, name: &str, stage: usize, draws: &mut Draws) -> Result<Option<Death>> {
    let run = victim.run(name);
    let (world, fraction) = (world(draws)?, draws.uniform_f64());
    let mut blow = *draws.pick(&BLOWS).context("there are blows")?;
    if world == 1 && blow.signal == "STOP" {
        // Nobody waits for it.
        blow.signal = "KILL";
    }
    let begun_before = has_begun(&run, STAGES[stage]);
    let mut launcher = victim.launched(name, world, LIMIT).stderr(Stdio::piped()).spawn().context("no mpirun")?;
    if !wait_until(&mut launcher, || has_begun(&run, STAGES[stage]))? {
        let output = launcher.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("a job of {world} ranks ended by itself with {}:\n{said}", output.status);
        }
        return Ok(None);
    }
    let before = if begun_before { pace.startup() } else { Duration::ZERO };
    sleep(before + pace.stage(stage).mul_f64(fraction));
    let ranks = ranks_of(launcher.id());
    let target = match blow.of {
        Part::Launcher => Some(launcher.id()),
        Part::Rank => draws.pick(&ranks).copied(),
    };
    let Some(target) = target else { return ended(launcher, &ranks).map(|_| None) };
    send(blow.signal, target)?;
    if ended(launcher, &ranks)? == Some(0) {
        return Ok(None);
    }
    let who = if blow.of == Part::Rank { "a rank" } else { "the launcher" };
    let how = format!("SIG{} of {who}, {world} rank{}", blow.signal, if world > 1 { "s" } else { "" });
    Ok(Some(Death { stage: stands_at(&run), how, torn: is_torn(&run), lost: None }))
}

/// Waits until the launcher and every rank is gone, and returns the launcher's code, where it has one.
fn ended(mut launcher: Child, ranks: &[u32]) -> Result<Option<i32>> {
    let begun = Instant::now();
    // Read, because a launcher that cannot write what ranks say waits for ever.
    let mut said = launcher.stderr.take().context("its messages are read")?;
    let reader = std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let status = loop {
        if let Some(status) = launcher.try_wait()? {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            bail!("the launcher {} outlived its ranks", launcher.id());
        }
        sleep(Duration::from_millis(20));
    };
    while let Some(rank) = ranks.iter().find(|&&rank| is_alive(rank)) {
        if begun.elapsed() > PATIENCE {
            bail!("the rank {rank} outlived its launcher");
        }
        sleep(Duration::from_millis(20));
    }
    let _ = reader.join();
    Ok(status.code())
}

fn send(signal: &str, process: u32) -> Result<()> {
    let send = format!("kill -{signal} {process} 2> /dev/null");
    Command::new("sh").args(["-c", &send]).status().context("cannot start sh to send a signal")?;
    Ok(())
}

/// The children of a launcher.
fn ranks_of(launcher: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut ranks: Vec<u32> = numbers.filter(|&process| stat(process).is_some_and(|(_, of)| of == launcher)).collect();
    ranks.sort_unstable();
    ranks
}

/// Whether a process runs; what is dead and not yet waited for does not.
fn is_alive(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| state != 'Z')
}

/// The state and the parent of a process.
fn stat(process: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold spaces.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn children_are_found_and_their_end_is_seen() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(ranks_of(std::process::id()).contains(&child.id()) && is_alive(child.id()));
        send("KILL", child.id()).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id()) && !ranks_of(std::process::id()).contains(&child.id()));
    }
}
