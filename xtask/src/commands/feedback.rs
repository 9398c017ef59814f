//! `feedback`: who may give feedback, what was given, and how it is taken back.

use crate::{
    commands::retrain::{FROZEN, Retrained},
    desk::{ANSWERS, Folder, LOCAL_LABELER, LOG, Role, TASKS, collected, is_name},
    terminal::{print, say},
};
use anyhow::{Context, Result, bail};
use instruct_eval::{Interval, PAPER_AGREEMENT, agreement, position_bias};
use instruct_feedback::{Options, Settings, State, forget, gold, groups, progress, records, shown_ranks};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct feedback link runs/0001/feedback ann      a link for a person, printed once
  instruct feedback show runs/0001/feedback          who did how much, and how far they agree
  instruct feedback forget runs/0001/feedback ann    what a person wrote is removed";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Name a person and print their link, once; an earlier link of theirs opens nothing any more
    Link {
        /// Folder of feedback
        folder: PathBuf,
        /// The person's name: letters, digits, `.`, `_` and `-`
        labeler: String,
        /// What they may do
        #[arg(long, value_enum, default_value = "labeler")]
        role: Role,
        /// Where the server is reached
        #[arg(long, default_value = "http://127.0.0.1:8080")]
        url: String,
    },
    /// Say who did how much, how far people agree, and what records come of it
    Show {
        /// Folder of feedback
        folder: PathBuf,
    },
    /// Remove what a person wrote, and name the runs that were trained on it
    Forget {
        /// Folder of feedback
        folder: PathBuf,
        /// The person's name
        labeler: String,
        /// Where the runs lie that may have been made with it; their frozen records are removed too
        #[arg(long, default_value = "runs")]
        runs: PathBuf,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Link { folder, labeler, role, url } => link(folder, labeler, *role, url),
        Command::Show { folder } => show(folder),
        Command::Forget { folder, labeler, runs } => forget_labeler(folder, labeler, runs),
    }
}

fn link(folder: &Path, labeler: &str, role: Role, url: &str) -> Result<()> {
    if !is_name(labeler) || labeler == LOCAL_LABELER {
        bail!("`{labeler}` is no name: take 1 to 64 letters, digits, `.`, `_` and `-`, and not `{LOCAL_LABELER}`");
    }
    let token = Folder::open(folder)?.name(labeler, role)?;
    say(&format!("give this link to {labeler}; it is not kept here, and another call makes another"));
    print(&format!("{}/chat#token={token}", url.trim_end_matches('/')));
    Ok(())
}

fn show(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!("{}: there is no such folder; `instruct serve` makes one", folder.display());
    }
    // Also while a server works there.
    let state = State::of(Settings::default(), collected(folder)?)?;
    let progress = progress(&state);
    let tasks = progress.tasks;
    print(&format!(
        "tasks: {} in all, {} done, {} left, {} skipped",
        tasks.total, tasks.done, tasks.left, tasks.skipped
    ));
    print("labeler            rankings  pairs thumbs  edits demonstr.  skips  median seconds");
    for of in &progress.labelers {
        let seconds = of.seconds_median.map_or("-".to_owned(), |seconds| format!("{seconds:.0}"));
        print(&format!(
            "{:<18} {:>8} {:>6} {:>6} {:>6} {:>9} {:>6}  {:>14}",
            of.id, of.rankings, of.pairs, of.thumbs, of.edits, of.demonstrations, of.skips, seconds
        ));
    }
    print(&format!("said again later: {}; taken back: {}", progress.replaced, progress.retracted));
    agreed(&state)?;
    let records = records(&state, &Options::default());
    print(&format!(
        "records: {} rankings, {} demonstrations; {} prompts wait for completions; {} thumbs",
        records.rankings.len(),
        records.demonstrations.len(),
        records.prompts.len(),
        records.thumbs.len()
    ));
    records.left_out.iter().for_each(|(why, count)| print(&format!("  left out, {why:?}: {count}")));
    Ok(())
}

/// How far people agree, and what is known of how they work.
fn agreed(state: &State) -> Result<()> {
    let agreement = agreement(&groups(state))?;
    if agreement.items == 0 {
        print("agreement: no two people have ranked the same");
    } else {
        let all = agreement.all;
        print(&format!(
            "agreement over {} prompts: pairwise {} (the paper's labelers: {:.1} %), ties half {}, tau-b {}, alpha {}",
            agreement.items,
            share(all.pairwise),
            100.0 * PAPER_AGREEMENT,
            share(all.with_ties_half),
            number(all.tau_b),
            number(agreement.alpha)
        ));
        let line = |(id, against): (&String, &instruct_eval::Against)| {
            print(&format!("  {id} against the others: {}", share(against.pairwise)));
        };
        agreement.labelers.iter().for_each(line);
    }
    for place in position_bias(&shown_ranks(state))? {
        let expected = 100.0 * place.expected;
        print(&format!(
            "  place {} held the best in {} (chance {expected:.1} %)",
            place.place + 1,
            share(Some(place.best))
        ));
    }
    for (id, gold) in gold(state) {
        print(&format!("  {id} on tasks that are known: {gold:?}"));
    }
    Ok(())
}

fn share(interval: Option<Interval>) -> String {
    interval.map_or("-".to_owned(), |interval| match (interval.low, interval.high) {
        (Some(low), Some(high)) => format!("{:.1} % [{:.1}, {:.1}]", 100.0 * interval.mean, 100.0 * low, 100.0 * high),
        _ => format!("{:.1} %", 100.0 * interval.mean),
    })
}

fn number(interval: Option<Interval>) -> String {
    interval.map_or("-".to_owned(), |interval| match (interval.low, interval.high) {
        (Some(low), Some(high)) => format!("{:.2} [{low:.2}, {high:.2}]", interval.mean),
        _ => format!("{:.2}", interval.mean),
    })
}

fn forget_labeler(path: &Path, labeler: &str, runs: &Path) -> Result<()> {
    let folder = existing(path)?;
    let forgotten = forget(labeler, folder.collected()?);
    if folder.unname(labeler)? {
        say(&format!("{labeler}'s link opens nothing any more, once the server is started again"));
    }
    if forgotten.keys.is_empty() && forgotten.tasks == 0 && forgotten.answers == 0 {
        say(&format!("{labeler} has written nothing here"));
        return Ok(());
    }
    // First what is found by the keys in the log: when that is rewritten nobody knows them any more.
    unfreeze_in_runs(&folder, runs, &forgotten.keys)?;
    let remain = &forgotten.remain;
    // The log goes first: events that name what is gone could not be opened, while what nobody names harms nothing, and a
    // second call removes it.
    let files = [
        (LOG, remain.events.iter().map(|event| event.line()).collect::<String>()),
        (ANSWERS, remain.answers.iter().map(|answer| answer.line()).collect()),
        (TASKS, remain.tasks.iter().map(|task| task.line()).collect()),
    ];
    for (name, content) in files {
        folder.replace(name, content.as_bytes()).with_context(|| format!("cannot write {name}"))?;
    }
    say(&format!(
        "removed of {labeler}: {} events, {} tasks, {} answers",
        forgotten.keys.len(),
        forgotten.tasks,
        forgotten.answers
    ));
    Ok(())
}

/// Removes frozen records, and names the runs that were made with them.
fn unfreeze_in_runs(folder: &Folder, runs: &Path, keys: &[String]) -> Result<()> {
    let retrained = retrained(runs)?;
    for file in unfreeze(folder, &retrained, keys)? {
        say(&format!("removed {file}: a run that was trained on it can be used, and not be resumed"));
    }
    let with = |(run, retrained): &(PathBuf, Retrained)| (run.clone(), retrained.count_of(keys));
    let made: Vec<(PathBuf, usize)> = retrained.iter().map(with).filter(|(_, count)| *count > 0).collect();
    if made.is_empty() {
        say(&format!("no run under {} was made with it", runs.display()));
    }
    for (run, count) in made {
        let run = run.display();
        say(&format!("{run} was made with {count} of these records; what it learned stays in its weights: remove it"));
    }
    Ok(())
}

/// Removes the frozen records that hold some of these, wherever they lie: in this folder of feedback, and in those of the
/// runs, also where a run never began on them. Returns their paths.
fn unfreeze(folder: &Folder, runs: &[(PathBuf, Retrained)], keys: &[String]) -> Result<Vec<String>> {
    let mut files: BTreeSet<PathBuf> = runs.iter().flat_map(|(_, retrained)| retrained.files()).collect();
    let of_runs = runs.iter().flat_map(|(run, retrained)| retrained.folders().chain([run.join("feedback")]));
    let folders: BTreeSet<PathBuf> = of_runs.chain([folder.path().to_owned()]).collect();
    for frozen in folders.iter().map(|folder| folder.join(FROZEN)).filter(|frozen| frozen.is_dir()) {
        let failed = || format!("cannot list {}", frozen.display());
        for entry in fs::read_dir(&frozen).with_context(failed)? {
            files.insert(fs::canonicalize(entry.with_context(failed)?.path()).with_context(failed)?);
        }
    }
    let mut removed = Vec::new();
    for path in files.into_iter().filter(|path| path.is_file()) {
        let failed = || path.display().to_string();
        let text = String::from_utf8_lossy(&fs::read(&path).with_context(failed)?).into_owned();
        if keys.iter().any(|key| text.contains(&format!("\"id\":\"{key}\""))) {
            fs::remove_file(&path).with_context(failed)?;
            removed.push(failed());
        }
    }
    Ok(removed)
}

/// The retrained runs under a folder, however deep; what lies inside a run is not looked at. None where the folder does
/// not exist.
fn retrained(runs: &Path) -> Result<Vec<(PathBuf, Retrained)>> {
    let (mut found, mut left) = (Vec::new(), vec![runs.to_owned()]);
    while let Some(folder) = left.pop() {
        let failed = || format!("cannot list {}", folder.display());
        let entries = match fs::read_dir(&folder) {
            Err(_) if !folder.exists() => continue,
            entries => entries.with_context(failed)?,
        };
        for entry in entries {
            let entry = entry.with_context(failed)?;
            let run = entry.path();
            if let Some(retrained) = Retrained::read(&run)? {
                found.push((run, retrained));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !run.join("config.toml").is_file() {
                left.push(run);
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn existing(path: &Path) -> Result<Folder> {
    if !path.is_dir() {
        bail!("{}: there is no such folder; `instruct serve` makes one", path.display());
    }
    Folder::open(path)
}
