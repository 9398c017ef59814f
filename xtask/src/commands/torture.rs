//! `torture`: kills real runs anywhere, resumes them, and compares every byte with a run that was left
//! alone; what was tried, survived and lost becomes docs/reliability.md.
//!
//! A *death* is one end of a process before its time. Deaths come from outside at random instants
//! ([`random`]), or before a chosen system call of a checkpoint ([`traced`], by strace, so that it is
//! this very program that dies and not one built to). After its deaths a run is resumed to its end; all
//! of them count as lost when one byte differs.

use crate::{print, say};
use anyhow::{Context, Result, bail};
use std::{fs, path::PathBuf};

mod calls;
mod page;
mod random;
mod traced;
mod victim;

use victim::Victim;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kills at random instants, at least
    #[arg(long, default_value_t = 220)]
    kills: usize,
    /// Deaths before chosen system calls, at most; needs strace
    #[arg(long, default_value_t = 90)]
    points: usize,
    /// Keys where and how to kill
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only a few deaths of each kind, as continuous integration runs them; writes no page
    #[arg(long, conflicts_with = "check")]
    slice: bool,
    /// Compare docs/reliability.md with what it is made from, and kill nothing
    #[arg(long)]
    check: bool,
    /// Where the runs are kept while they are needed (200 MB each); without it a folder under target/
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// One end of a process before its time, and what became of the run.
pub(crate) struct Death {
    /// Where the run stood.
    stage: &'static str,
    /// The signal, or the system call before which the process died.
    how: String,
    /// Whether a folder was being written or removed just then.
    torn: bool,
    /// What was different in the end.
    lost: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = super::ci::root()?;
    if args.check {
        return page::check(&root);
    }
    let (kills, points) = if args.slice { (12, 8) } else { (args.kills, args.points) };
    let temporary = root.join(format!("target/torture-{}", std::process::id()));
    let victim = Victim::new(args.folder.as_ref().unwrap_or(&temporary))?;
    let pace = victim.whole()?;
    say(&format!("torture: an uninterrupted run takes {:.1} s", pace.total().as_secs_f64()));
    let mut random = Vec::new();
    for number in 0.. {
        if random.len() >= kills {
            break;
        }
        random.extend(random::kill_one_run(&victim, &pace, args.seed, number)?);
        progress("at random", &random);
    }
    let chosen = traced::kill_at_points(&victim, points, args.seed)?;
    let found = page::Found { random, chosen };
    let lost = found.lost();
    if lost > 0 {
        bail!("{lost} deaths lost something; their runs are kept in {}", victim.folder.display());
    }
    fs::remove_dir_all(&victim.folder).context("cannot remove the runs")?;
    if args.slice {
        print(&found.summary());
        return Ok(());
    }
    page::write(&root, &found)?;
    print(&found.summary());
    Ok(())
}

/// Resumes a run to its end and compares it. What differs is said, and its folder kept.
fn settle(victim: &Victim, name: &str, mut deaths: Vec<Death>) -> Result<Vec<Death>> {
    let difference = match victim.finish("pipeline", name) {
        Ok(()) => victim.difference(name)?,
        Err(error) => Some(format!("{error:#}")),
    };
    match difference {
        None => victim.remove(name)?,
        Some(difference) => {
            say(&format!("torture: LOST: {name}: {difference}"));
            deaths.iter_mut().for_each(|death| death.lost = Some(difference.clone()));
        }
    }
    Ok(deaths)
}

fn progress(kind: &str, deaths: &[Death]) {
    let lost = deaths.iter().filter(|death| death.lost.is_some()).count();
    say(&format!("torture: {} deaths {kind}, {lost} lost", deaths.len()));
}
