//! `torture`: kills real runs anywhere, resumes them, and compares every byte with a run that was left
//! alone; what was tried, survived and lost becomes docs/reliability.md.
//!
//! A *death* is one end of a process before its time. Deaths come from outside at random instants
//! ([`random`]), or before a chosen system call of a checkpoint ([`traced`], by strace, so that it is
//! this very program that dies and not one built to). After its deaths a run is resumed to its end; all
//! of them count as lost when one byte differs.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::terminal::{print, say};

mod calls;
mod full;
mod page;
mod power;
mod random;
mod ranks;
mod served;
mod traced;
mod victim;

use crate::inputs;
use page::{Found, Record};
use victim::Victim;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kills at random instants, at least
    #[arg(long, default_value_t = 220)]
    kills: usize,
    /// Deaths before chosen system calls, at most; a third as many failing calls and power cuts. Needs strace
    #[arg(long, default_value_t = 48)]
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
    /// Write docs/reliability.md anew around the numbers that it has, after a change of its words
    #[arg(long, conflicts_with_all = ["check", "slice"])]
    rewrite: bool,
    /// Only kill ranks and launchers of PROGRAM, built with the feature `mpi`, and write their table into
    /// docs/reliability.md; needs mpirun, or the launcher that INSTRUCT_MPIRUN names
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["check", "slice", "rewrite", "inputs"])]
    ranks: Option<PathBuf>,
    /// Only kill a server under its clients, and write its table into docs/reliability.md; half of it needs strace
    #[arg(long, conflicts_with_all = ["check", "slice", "rewrite", "inputs", "ranks"])]
    server: bool,
    /// Only give the program the hostile inputs, and write their table into docs/reliability.md
    #[arg(long, conflicts_with_all = ["check", "slice", "rewrite"])]
    inputs: bool,
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

/// How many deaths of each kind.
struct Counts {
    random: usize,
    chosen: usize,
    failing: usize,
    power: usize,
    lies: usize,
    sizes: usize,
}

impl Counts {
    /// A few of each kind: what continuous integration has two minutes for.
    const SLICE: Counts = Counts { random: 6, chosen: 3, failing: 2, power: 2, lies: 1, sizes: 3 };

    fn of(args: &Args) -> Counts {
        if args.slice {
            return Counts::SLICE;
        }
        let points = args.points;
        Counts {
            random: args.kills,
            chosen: points,
            failing: points / 3,
            power: points / 3,
            lies: points / 8,
            sizes: 14,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::process::root()?;
    if args.check {
        return page::check(&root);
    }
    if args.rewrite {
        return page::rewrite(&root, None);
    }
    if args.inputs {
        let inputs = feed(&crate::process::program(&root)?, &root)?;
        return page::rewrite(&root, Some(&|record| record.inputs = inputs.trim().to_owned()));
    }
    let temporary = root.join(format!("target/torture-{}", std::process::id()));
    let folder = args.folder.as_ref().unwrap_or(&temporary);
    if let Some(program) = &args.ranks {
        return kill_ranks(&Victim::of_ranks(program, folder)?, &root, args.seed);
    }
    if !args.slice && !traced::is_possible() {
        bail!("many of the deaths need strace, and there is none that may trace: install it, or run with --slice");
    }
    let program = crate::process::program(&root)?;
    let victim = Victim::new(&program, folder)?;
    if args.server {
        return kill_servers(&victim, &root, args.seed);
    }
    // A test gives the program the same inputs, and continuous integration runs both.
    let inputs = if args.slice { String::new() } else { feed(&program, &root)? };
    let found = Found { inputs, ..torment(&victim, &Counts::of(args), args.seed)? };
    if found.lost() > 0 {
        bail!("{} deaths lost something; their runs are kept in {}", found.lost(), victim.folder.display());
    }
    fs::remove_dir_all(&victim.folder).context("cannot remove the runs")?;
    if !args.slice {
        page::write(&root, &found)?;
    }
    print(&found.summary());
    Ok(())
}

/// Kills a server until it has died often enough, and writes its table.
fn kill_servers(victim: &Victim, root: &Path, seed: u64) -> Result<()> {
    let (deaths, said) = served::kill(victim, root, page::ENOUGH_SERVERS, seed)
        .with_context(|| format!("its folder is kept in {}", victim.folder.display()))?;
    record_survived(victim, root, &deaths, &|record| record.take_servers(&deaths))?;
    print(&format!("torture: {} deaths of a server under its clients, {said}: 0 lost", deaths.len()));
    Ok(())
}

/// Writes a table of deaths of which none may have lost anything, and removes what they left.
fn record_survived(victim: &Victim, root: &Path, deaths: &[Death], take: &dyn Fn(&mut Record)) -> Result<()> {
    let lost = deaths.iter().filter(|death| death.lost.is_some()).count();
    if lost > 0 {
        bail!("{lost} deaths lost something; what they left is kept in {}", victim.folder.display());
    }
    fs::remove_dir_all(&victim.folder).context("cannot remove what was tortured")?;
    page::rewrite(root, Some(take))
}

/// Kills ranks and launchers until enough have died, and writes their table.
fn kill_ranks(victim: &Victim, root: &Path, seed: u64) -> Result<()> {
    let pace = victim.whole()?;
    say(&format!("torture: an uninterrupted run of one process takes {:.1} s", pace.total().as_secs_f64()));
    let mut deaths = Vec::new();
    for number in 0.. {
        if deaths.len() >= page::ENOUGH_RANKS {
            break;
        }
        deaths.extend(ranks::kill_one_run(victim, &pace, seed, number)?);
        progress("of ranks and launchers", &deaths);
    }
    record_survived(victim, root, &deaths, &|record| record.take_ranks(&deaths))?;
    print(&format!("torture: {} deaths of ranks and launchers: 0 lost", deaths.len()));
    Ok(())
}

/// Gives the program every hostile input; a table of what became of them.
fn feed(program: &Path, root: &Path) -> Result<String> {
    let rows = inputs::run(program, root, inputs::PATIENCE)?;
    for row in &rows {
        row.problems.iter().for_each(|problem| say(&format!("torture: FAILED: {}: {problem}", row.name)));
    }
    let failed = rows.iter().filter(|row| !row.problems.is_empty()).count();
    say(&format!("torture: {} inputs, {failed} not as expected", rows.len()));
    if failed > 0 {
        bail!("{failed} hostile inputs were not treated as fixtures/bad/expectations.toml says");
    }
    Ok(inputs::table(&rows))
}

fn torment(victim: &Victim, counts: &Counts, seed: u64) -> Result<Found> {
    let pace = victim.whole()?;
    say(&format!("torture: an uninterrupted run takes {:.1} s", pace.total().as_secs_f64()));
    let mut found = Found { whole: victim.measure()?, ..Found::default() };
    for number in 0.. {
        if found.random.len() >= counts.random {
            break;
        }
        found.random.extend(random::kill_one_run(victim, &pace, seed, number)?);
        progress("at random", &found.random);
    }
    match full::fill(victim, counts.sizes)? {
        Some(deaths) => found.full = deaths,
        None => say("skipped: a full disk, because this user may make no mount namespace"),
    }
    progress("by a full disk", &found.full);
    if !traced::is_possible() {
        say("skipped: deaths at chosen system calls, because there is no strace that may trace");
        return Ok(found);
    }
    let scenes = traced::Scene::all(victim)?;
    found.points = scenes.iter().map(|scene| Ok(scene.points()?.len())).sum::<Result<usize>>()?;
    found.chosen = traced::kill(victim, &scenes, counts.chosen, seed)?;
    found.failing = traced::fail(victim, &scenes, counts.failing, seed)?;
    found.power = power::cut(victim, &scenes, counts.power, seed)?;
    found.lies = power::lie(victim, &scenes, counts.lies, seed)?;
    Ok(found)
}

/// Resumes a run to its end and compares it. What differs is said, and its folder kept.
fn settle(victim: &Victim, name: &str, deaths: Vec<Death>) -> Result<Vec<Death>> {
    Ok(settle_and_listen(victim, name, deaths, victim.command("pipeline", name))?.1)
}

/// The same by `process`; also what that said.
fn settle_and_listen(
    victim: &Victim,
    name: &str,
    mut deaths: Vec<Death>,
    process: Command,
) -> Result<(String, Vec<Death>)> {
    let (status, said) = Victim::end(process)?;
    let difference = if status.success() {
        victim.difference(name)?
    } else {
        Some(format!("its continuation ended with {status}:\n{said}"))
    };
    match difference {
        None => victim.remove(name)?,
        Some(difference) => {
            say(&format!("torture: LOST: {name}: {difference}"));
            deaths.iter_mut().for_each(|death| death.lost = Some(difference.clone()));
        }
    }
    Ok((said, deaths))
}

fn progress(kind: &str, deaths: &[Death]) {
    let lost = deaths.iter().filter(|death| death.lost.is_some()).count();
    say(&format!("torture: {} deaths {kind}, {lost} lost", deaths.len()));
}
