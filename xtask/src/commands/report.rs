//! `report` and `watch`: a run in one HTML page.

use crate::{
    commands::write_staged,
    config::{Config, differences},
    listener::{INTERRUPTED, on_interrupt},
    terminal::{print, say},
    write_whole,
};
use anyhow::{Result, bail};
use instruct_report::{Run, compare};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct report runs/0001                          writes runs/0001/report.html
  instruct report runs/0001 runs/0002 --out two.html";

pub(crate) const WATCH_EXAMPLES: &str = "Examples:
  instruct watch runs/0001                           writes runs/0001/report.html every ten seconds until the run ends";

/// The page of a run, in its folder.
const PAGE: &str = "report.html";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run folders; several are compared on one page
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to write; without it, report.html in the folder of the (first) run
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct WatchArgs {
    /// Run folder
    run: PathBuf,
    /// Seconds between two pages
    #[arg(long, default_value_t = 10)]
    every: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runs: Vec<Run> = args.runs.iter().map(|folder| read(folder)).collect::<Result<_>>()?;
    let page = match runs.as_slice() {
        [one] => one.page(),
        several => compare(several),
    };
    for problem in runs.iter().flat_map(Run::problems) {
        say(&format!("warning: {problem}"));
    }
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join(PAGE));
    write_whole(&out, page.as_bytes())?;
    print(&format!("report: {}", out.display()));
    Ok(())
}

pub(crate) fn watch(args: &WatchArgs) -> Result<()> {
    on_interrupt()?;
    loop {
        let is_done = ["eval/results.json", "eval/retrained.json"].iter().any(|name| args.run.join(name).is_file());
        let path = write(&args.run)?;
        say(&format!("wrote {}{}", path.display(), if is_done { "; the run is finished" } else { "" }));
        for _ in 0..args.every.max(1) * 10 {
            if is_done || INTERRUPTED.load(Ordering::SeqCst) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Writes the page of a run that has ended, whatever ended it, and hands that on.
pub(crate) fn at_the_end<T>(folder: &Path, outcome: Result<T>) -> Result<T> {
    let path = folder.join(PAGE);
    // The process that has the run is the only one that writes under this name, also after one that died over it.
    let written = read(folder).and_then(|run| write_staged(&path, "run", run.page().as_bytes()));
    match (written, outcome) {
        (Ok(()), outcome) => {
            print(&format!("report: {}", path.display()));
            outcome
        }
        (Err(why), Ok(_)) => Err(why),
        // What ended the run is what matters.
        (Err(why), Err(outcome)) => {
            say(&format!("warning: there is no report: {why:#}"));
            Err(outcome)
        }
    }
}

/// Writes the page of a run into its folder, while another process may work there.
fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(PAGE);
    write_whole(&path, read(folder)?.page().as_bytes())?;
    Ok(path)
}

fn read(folder: &Path) -> Result<Run> {
    let config = folder.join("config.toml");
    if !config.is_file() {
        bail!("{}: this is no run folder; it has no config.toml", folder.display());
    }
    let name = fs::canonicalize(folder).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let run = Run::from_files(&name.unwrap_or_else(|| "run".to_owned()), |path| fs::read(folder.join(path)).ok());
    // A configuration of another version of this program is shown without what it changes.
    let differences = Config::read(&config, &[]).and_then(|config| differences(&config)).unwrap_or_default();
    Ok(run.with_differences(differences))
}
