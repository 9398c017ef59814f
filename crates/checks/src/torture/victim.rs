//! The processes that are killed, and what their run folders are compared with.

use crate::launcher::launcher;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// This program on the configuration of the torture, in a folder of its own.
pub(super) struct Victim {
    program: PathBuf,
    /// Threads of each process; as many as it likes where nothing is said.
    threads: Option<usize>,
    /// Holds the configuration and every run.
    pub(super) folder: PathBuf,
}

const CONFIG: &str = include_str!("../../../../configs/torture.toml");

/// Leaves of a step, where ranks share them.
const LEAVES: usize = 4;

/// The artefacts of a run in the order in which they are begun, and the evaluation.
pub(super) const STAGES: [&str; 6] = ["sft-baseline", "reward-model", "sft-init", "ppo", "ppo-ptx", "evaluation"];

/// The name of the run that nothing interrupts.
pub(super) const WHOLE: &str = "whole";

/// How often a run folder is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// A process that takes longer than this many times an uninterrupted run hangs.
const PATIENCE: u32 = 60;

impl Victim {
    /// A new folder `folder`, with a copy of `program` and the configuration in it.
    pub(super) fn new(program: &Path, folder: &Path) -> Result<Victim> {
        Victim::with(program, folder, CONFIG)
    }

    /// The same, of a program whose ranks share the leaves of a step.
    pub(super) fn of_ranks(program: &Path, folder: &Path) -> Result<Victim> {
        let config = CONFIG.replace("[model]\n", &format!("[model]\nleaves = {LEAVES}\n"));
        // Bits are promised for one number of threads.
        Ok(Victim { threads: Some(1), ..Victim::with(program, folder, &config)? })
    }

    fn with(program: &Path, folder: &Path, config: &str) -> Result<Victim> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        // Tests may build the program anew meanwhile, and a process started from a file that is gone would fail.
        let copy = folder.join("program");
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        fs::write(folder.join("torture.toml"), config)?;
        Ok(Victim { program: copy, threads: None, folder })
    }

    /// The copy of the program.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn run(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `program`'s arguments for `command` on run `name`, continuing what is there.
    fn arguments(command: &str, name: &str) -> [String; 6] {
        [command, "--config", "torture.toml", "--resume", "--run", name].map(str::to_owned)
    }

    /// The flow, or the part of it that `command` names, on run `name`.
    pub(super) fn command(&self, command: &str, name: &str) -> Command {
        let mut process = Command::new(&self.program);
        process.args(Victim::arguments(command, name));
        self.surround(&mut process);
        process
    }

    /// The flow on run `name` on so many ranks, which wait for each other so many seconds. The launcher has the path of
    /// the program that started this one, the ranks have none.
    pub(super) fn launched(&self, name: &str, ranks: usize, limit: u64) -> Command {
        let mut process = launcher(ranks);
        process.args(["-x", "PATH=", "-x", &format!("INSTRUCT_RANK_LIMIT={limit}")]).arg(&self.program);
        process.args(Victim::arguments("pipeline", name));
        self.surround(&mut process);
        process.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("MPIEXEC_TIMEOUT", "900");
        process
    }

    /// The flow on run `name` under strace, which writes to `log` and is told `options`.
    pub(super) fn traced(&self, name: &str, log: &Path, options: &[String]) -> Command {
        let mut process = Command::new("strace");
        process.args(["-f", "-y", "-qq", "-s", "0", "-E", "PATH=", "-o"]).arg(log).args(options).arg(&self.program);
        process.args(Victim::arguments("pipeline", name));
        self.surround(&mut process);
        process.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        process
    }

    /// Without a search path the program finds no git to ask for the commit, so that a commit made
    /// meanwhile does not differ between runs.
    fn surround(&self, process: &mut Command) {
        process.current_dir(&self.folder).env("PATH", "").stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(threads) = self.threads {
            process.env("RAYON_NUM_THREADS", threads.to_string());
        }
    }

    /// Runs a process to its end, with what it says kept.
    pub(super) fn end(mut process: Command) -> Result<(ExitStatus, String)> {
        let output = process.stderr(Stdio::piped()).output().with_context(|| format!("cannot start {process:?}"))?;
        Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Runs a part of the flow, which must succeed.
    pub(super) fn finish(&self, command: &str, name: &str) -> Result<()> {
        let (status, said) = Victim::end(self.command(command, name))?;
        if !status.success() {
            bail!("`{command}` on {} ended with {status}:\n{said}", self.run(name).display());
        }
        Ok(())
    }

    /// The uninterrupted run, and how long each part of it took.
    pub(super) fn whole(&self) -> Result<Pace> {
        let begun = Instant::now();
        let mut child = self.command("pipeline", WHOLE).stderr(Stdio::piped()).spawn()?;
        let run = self.run(WHOLE);
        let mut starts = Vec::new();
        let status = loop {
            // Asked first, so that what it did last is seen.
            let ended = child.try_wait()?;
            while starts.len() < STAGES.len() && has_begun(&run, STAGES[starts.len()]) {
                starts.push(begun.elapsed());
            }
            match ended {
                Some(status) => break status,
                None => sleep(GLANCE),
            }
        };
        if !status.success() || starts.len() < STAGES.len() {
            bail!("the uninterrupted run ended with {status}");
        }
        starts.push(begun.elapsed());
        Ok(Pace { starts })
    }

    /// Files and bytes of the uninterrupted run that every other is compared with.
    pub(super) fn measure(&self) -> Result<(usize, u64)> {
        let files = content(&self.run(WHOLE))?;
        let bytes = files.values().map(|path| Ok(fs::metadata(path)?.len())).sum::<Result<u64>>()?;
        Ok((files.len(), bytes))
    }

    /// A copy of a run as it stands.
    pub(super) fn copy(&self, from: &str, to: &str) -> Result<()> {
        copy_folder(&self.run(from), &self.run(to))
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.run(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// What differs between run `name` and the uninterrupted one: nothing, or the first difference.
    pub(super) fn difference(&self, name: &str) -> Result<Option<String>> {
        let (whole, other) = (content(&self.run(WHOLE))?, content(&self.run(name))?);
        let names = |content: &BTreeMap<String, PathBuf>| content.keys().cloned().collect::<Vec<_>>();
        let (wanted, found) = (names(&whole), names(&other));
        if let Some(name) = wanted.iter().find(|name| !found.contains(name)) {
            return Ok(Some(format!("{name} is missing")));
        }
        if let Some(name) = found.iter().find(|name| !wanted.contains(name)) {
            return Ok(Some(format!("{name} is in no uninterrupted run")));
        }
        for (name, path) in &whole {
            if comparable(name, path)? != comparable(name, &other[name])? {
                return Ok(Some(format!("{name} differs")));
            }
        }
        Ok(None)
    }
}

/// When each stage of an uninterrupted run began, and when it ended.
pub(super) struct Pace {
    starts: Vec<Duration>,
}

impl Pace {
    /// From the start of the process to the first stage: what every resume spends again.
    pub(super) fn startup(&self) -> Duration {
        self.starts[0]
    }

    pub(super) fn stage(&self, index: usize) -> Duration {
        self.starts[index + 1] - self.starts[index]
    }

    pub(super) fn total(&self) -> Duration {
        self.starts[STAGES.len()]
    }
}

/// Whether a run got as far as `stage`.
pub(super) fn has_begun(run: &Path, stage: &str) -> bool {
    if stage == "evaluation" { run.join("ppo-ptx/model").exists() } else { run.join(stage).exists() }
}

/// The stage at which a run stands: the last that has begun.
pub(super) fn stands_at(run: &Path) -> &'static str {
    STAGES.iter().rev().find(|stage| has_begun(run, stage)).copied().unwrap_or("start")
}

/// Whether a process died while a folder of this run was being written or removed.
pub(super) fn is_torn(run: &Path) -> bool {
    STAGES.iter().flat_map(|stage| [run.join(stage), run.join(stage).join("checkpoints")]).any(|folder| {
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
    })
}

/// Waits for a child, but not for ever.
pub(super) fn wait(child: &mut Child, pace: &Pace) -> Result<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > pace.total() * PATIENCE {
            child.kill()?;
            bail!("process {} did not end", child.id());
        }
        sleep(GLANCE);
    }
}

/// Waits until `ready` or the child's end; whether the child still lives.
pub(super) fn wait_until(child: &mut Child, ready: impl Fn() -> bool) -> Result<bool> {
    loop {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        if ready() {
            return Ok(true);
        }
        sleep(GLANCE);
    }
}

/// Every file of a run by its name in it, but for the lock and files that hold what depends on the clock.
fn content(run: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(run)?.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if ![".lock", "seconds.json", "ranks.json", "report.html"].contains(&name.as_str()) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

/// A file's bytes, less the wall-clock figures of the two kinds of files that have some.
fn comparable(name: &str, path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let without = |json: &[u8], keys: &[&str]| -> Result<Vec<u8>> {
        let mut value: Value = serde_json::from_slice(json).with_context(|| path.display().to_string())?;
        let map = value.as_object_mut().with_context(|| format!("{}: not an object", path.display()))?;
        keys.iter().for_each(|key| drop(map.remove(*key)));
        Ok(serde_json::to_vec(&value)?)
    };
    if name == "eval/results.json" {
        return without(&bytes, &["seconds", "peak_memory_mb", "shared"]);
    }
    if name.ends_with("timings.jsonl") {
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        return Ok(lines.map(|line| without(line, &["seconds"])).collect::<Result<Vec<_>>>()?.join(&b'\n'));
    }
    Ok(bytes)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
