//! The run folder: one process, one configuration, and an artefact's folder for every stage.

use crate::{
    Artefact, Error, Result,
    artefact::{bytes_to_verify, folder_name},
    disk,
    ranks::{Alone, Ranks, agree, meet},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Write},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// The folder of a run, locked for this process until it and its artefacts are dropped. The
/// system releases the lock of a process that dies.
///
/// ```
/// use instruct_runs::{Result, RunDir, Start};
///
/// /// Adds up 0..10, two numbers per checkpoint, in a process that may be killed anywhere.
/// fn count(path: &std::path::Path, start: Start) -> Result<u64> {
///     let run = RunDir::open(path, start, "seed = 1\n", &"a description of this machine")?;
///     let mut artefact = run.artefact("sum")?;
///     let (mut step, mut sum): (u64, u64) = match artefact.checkpoint() {
///         Some(checkpoint) => checkpoint.state()?,
///         None => (0, 0),
///     };
///     while step < 10 {
///         (step, sum) = (step + 1, sum + step);
///         artefact.metrics(step, &[("sum", sum as f64)])?;
///         if step % 2 == 0 {
///             artefact.commit(step, &(step, sum), |_folder| Ok(()))?;
///         }
///     }
///     artefact.finish(step, |folder| Ok(std::fs::write(folder.join("sum"), sum.to_string())?))?;
///     Ok(sum)
/// }
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("run");
/// assert_eq!(count(&path, Start::Fresh).unwrap(), 45);
/// assert_eq!(count(&path, Start::Resume).unwrap(), 45); // from the last checkpoint
/// assert!(count(&path, Start::Fresh).is_err()); // never over an existing run
/// ```
pub struct RunDir<'r> {
    path: PathBuf,
    environment_difference: Vec<String>,
    config_difference: Vec<String>,
    start: Start,
    /// Of the process that writes.
    lock: Option<Arc<File>>,
    ranks: &'r dyn Ranks,
}

/// Whether a run begins or continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Begin; a folder that holds anything is refused.
    Fresh,
    /// Continue the run in the folder; where there is none yet (the process died before it wrote
    /// anything), begin.
    Resume,
    /// As [`Start::Resume`], under the given configuration and with the given data whatever the run was
    /// begun with: they become the run's. For a run that a guard stopped, whose cause lies in them.
    Adopt,
}

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";
const ENVIRONMENT: &str = "environment.json";
const INPUTS: &str = "inputs.json";

impl RunDir<'static> {
    /// Opens the run folder `path`, making it when there is none.
    ///
    /// `config` is the resolved configuration, kept as `config.toml`; `environment` (commit,
    /// features, device, threads, seed) is kept as `environment.json`.
    ///
    /// Errors: a folder that is not empty ([`Start::Fresh`]) or holds something other than a run
    /// ([`Start::Resume`]), both left untouched; a run of another process; a run of another
    /// configuration, with the lines that differ.
    pub fn open(path: &Path, start: Start, config: &str, environment: &impl Serialize) -> Result<Self> {
        RunDir::open_among(&Alone, path, start, config, environment)
    }
}

impl<'r> RunDir<'r> {
    /// As [`RunDir::open`], for one of several processes that do the same work. What the folder differs in is known to
    /// the one that writes alone.
    ///
    /// Errors: as [`RunDir::open`], in the process that writes; [`Error::Ranks`].
    pub fn open_among(
        ranks: &'r dyn Ranks,
        path: &Path,
        start: Start,
        config: &str,
        environment: &impl Serialize,
    ) -> Result<Self> {
        let path = path.to_owned();
        let (environment_difference, config_difference) = (Vec::new(), Vec::new());
        let mut opened = RunDir { path, environment_difference, config_difference, start, lock: None, ranks };
        if ranks.writes() {
            opened.begin(config, environment)?;
        }
        meet(ranks)?;
        agree(ranks, "the configuration", config.as_bytes())?;
        agree(ranks, "the program and the machine", &disk::pretty_json(&opened.path, environment)?)?;
        Ok(opened)
    }

    /// Locks the folder, and keeps or compares what the run began with.
    fn begin(&mut self, config: &str, environment: &impl Serialize) -> Result<()> {
        let (path, start) = (self.path.as_path(), self.start);
        let is_run = || -> Result<bool> { Ok(disk::names(path)?.iter().any(|name| name == CONFIG)) };
        if !is_run()? && !is_vacant(path)? {
            let path = path.to_owned();
            return Err(match start {
                Start::Fresh => Error::NotEmpty { path },
                Start::Resume | Start::Adopt => Error::NotARun { path },
            });
        }
        disk::create_folder(path)?;
        self.lock = Some(Arc::new(lock(path)?));
        let config_difference = match (is_run()?, start) {
            (true, Start::Fresh) => return Err(Error::NotEmpty { path: path.to_owned() }),
            (true, _) => compare_config(&path.join(CONFIG), config)?,
            (false, _) => Vec::new(),
        };
        if !config_difference.is_empty() && start != Start::Adopt {
            return Err(Error::ConfigDiffers { path: path.join(CONFIG), difference: config_difference });
        }
        if !is_run()? || !config_difference.is_empty() {
            disk::replace(&path.join(CONFIG), config.as_bytes())?;
        }
        self.environment_difference = keep_environment(&path.join(ENVIRONMENT), environment)?;
        self.config_difference = config_difference;
        Ok(())
    }

    /// Keeps the hashes of the files that the run reads, by their names, as `inputs.json`, and compares them with those
    /// that it began with. Returns what [`Start::Adopt`] changed, as lines `- then` and `+ now`. Of several processes
    /// each must give the same, and the one that writes compares.
    ///
    /// ```
    /// use instruct_runs::{Error, RunDir, Start};
    /// use std::collections::BTreeMap;
    ///
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("run");
    /// let open = |start| RunDir::open(&path, start, "seed = 1\n", &"this machine");
    /// let data = |hash: &str| BTreeMap::from([("rankings.jsonl".to_owned(), hash.to_owned())]);
    /// open(Start::Fresh)?.keep_inputs(&data("0123"))?;
    /// assert!(open(Start::Resume)?.keep_inputs(&data("0123"))?.is_empty());
    /// let other = open(Start::Resume)?.keep_inputs(&data("4567"));
    /// assert!(matches!(other, Err(Error::InputsDiffer { .. })));
    /// let adopted = open(Start::Adopt)?.keep_inputs(&data("4567"))?;
    /// assert_eq!(adopted, ["- rankings.jsonl: 0123", "+ rankings.jsonl: 4567"]);
    /// assert!(open(Start::Resume)?.keep_inputs(&data("4567"))?.is_empty());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InputsDiffer`] unless the run was opened with [`Start::Adopt`]; an `inputs.json` that is none; the
    /// disk's.
    pub fn keep_inputs(&self, inputs: &BTreeMap<String, String>) -> Result<Vec<String>> {
        agree(self.ranks, "the files that are read", &disk::pretty_json(&self.path.join(INPUTS), inputs)?)?;
        if !self.ranks.writes() {
            return Ok(Vec::new());
        }
        let path = self.path.join(INPUTS);
        let begun: BTreeMap<String, String> = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Malformed { path: path.clone(), problem: error.to_string() })?,
            Err(error) if error.kind() == ErrorKind::NotFound => inputs.clone(),
            Err(error) => return Err(disk::failed("read", &path)(error)),
        };
        let lines = |inputs: &BTreeMap<String, String>| -> Vec<String> {
            inputs.iter().map(|(name, hash)| format!("{name}: {hash}")).collect()
        };
        let difference = difference(&lines(&begun), &lines(inputs));
        if !difference.is_empty() && self.start != Start::Adopt {
            return Err(Error::InputsDiffer { path, difference });
        }
        disk::replace(&path, &disk::pretty_json(&path, inputs)?)?;
        Ok(difference)
    }

    /// The run folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the environment of a resumed run differs from the one it was begun in, as lines `- then`
    /// and `+ now`. Equal results are promised for the same type of CPU and number of threads only,
    /// so this deserves a warning.
    pub fn environment_difference(&self) -> &[String] {
        &self.environment_difference
    }

    /// What [`Start::Adopt`] changed in the configuration, as lines `- then` and `+ now`.
    pub fn config_difference(&self) -> &[String] {
        &self.config_difference
    }

    /// Opens the folder of one artefact, back at its newest whole checkpoint. One at a time per
    /// name: two would write the same journals.
    ///
    /// Errors: a name that is not fit for a folder; the disk's.
    pub fn artefact(&self, name: &str) -> Result<Artefact<'r>> {
        self.artefact_reporting(name, &mut |_| ())
    }

    /// As [`RunDir::artefact`]; `done` hears how many more bytes have been compared with their hashes, again
    /// and again, up to [`RunDir::bytes_to_verify`] where nothing is damaged.
    ///
    /// Errors: as [`RunDir::artefact`].
    pub fn artefact_reporting(&self, name: &str, done: &mut dyn FnMut(u64)) -> Result<Artefact<'r>> {
        Artefact::open(self.path.join(folder_name(name)?), self.lock.clone(), self.ranks, done)
    }

    /// Bytes that opening an artefact compares with their hashes; 0 where there is nothing yet.
    ///
    /// Errors: as [`RunDir::artefact`].
    pub fn bytes_to_verify(&self, name: &str) -> Result<u64> {
        bytes_to_verify(&self.path.join(folder_name(name)?))
    }

    /// Writes `value` as JSON to the file `relative` (`eval/results.json`), so that a crash leaves
    /// the old content or the new. Of several processes one does; what it wrote may not be there yet for the others.
    ///
    /// Errors: a path that leads out of the run folder; the disk's.
    pub fn write_json(&self, relative: &str, value: &impl Serialize) -> Result<PathBuf> {
        if !Path::new(relative).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::Name { name: relative.to_owned() });
        }
        let path = self.path.join(relative);
        if !self.ranks.writes() {
            return Ok(path);
        }
        path.parent().map_or(Ok(()), disk::create_folder)?;
        disk::replace(&path, &disk::pretty_json(&path, value)?)?;
        Ok(path)
    }
}

/// Whether a folder is absent, or holds no more than a process leaves that died at once.
fn is_vacant(path: &Path) -> Result<bool> {
    let staged = format!("{CONFIG}.tmp");
    Ok(disk::names(path)?.iter().all(|name| name == LOCK || *name == staged))
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let failed = disk::failed("lock", &path);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(&failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message; the number may not be written yet.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned();
            return Err(Error::Locked { path: folder.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(&failed)?;
    Ok(file)
}

fn compare_config(path: &Path, config: &str) -> Result<Vec<String>> {
    let begun = fs::read_to_string(path).map_err(disk::failed("read", path))?;
    Ok(difference(&dotted(&begun), &dotted(config)))
}

/// Keeps the environment in which the run was begun and returns how the present one differs.
fn keep_environment(path: &Path, environment: &impl Serialize) -> Result<Vec<String>> {
    let now = disk::pretty_json(path, environment)?;
    if !path.exists() {
        disk::replace(path, &now)?;
    }
    let then = fs::read(path).map_err(disk::failed("read", path))?;
    let lines = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        text.lines().map(|line| line.trim().trim_end_matches(',').to_owned()).collect()
    };
    Ok(difference(&lines(&then), &lines(&now)))
}

/// The lines of a TOML text, without comments and blank lines, each with its section before its
/// key: `sft.epochs = 2`. Good enough to compare and to show; it is no parser.
fn dotted(text: &str) -> Vec<String> {
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) if !name.contains([',', '"', '=']) => section = format!("{}.", name.trim_matches(['[', ']'])),
            _ => lines.push(format!("{section}{line}")),
        }
    }
    lines
}

/// Lines of only one side, those of `then` first. Order does not count.
fn difference(then: &[String], now: &[String]) -> Vec<String> {
    let gone = then.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
    let new = now.iter().filter(|line| !then.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, Damaged, disk::death};
    use serde::Deserialize;
    use std::collections::BTreeSet;
    use std::sync::{
        Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
    };

    const TOML: &str = "seed = 1\n\n[sft] \n# epochs of the paper: 16\nepochs = 2\nlr = 9e-6\n\n[ppo]\nlr = 1e-6\n";

    fn open(path: &Path, start: Start) -> Result<RunDir<'static>> {
        among(&Alone, path, start)
    }

    fn among<'r>(ranks: &'r dyn Ranks, path: &Path, start: Start) -> Result<RunDir<'r>> {
        RunDir::open_among(ranks, path, start, TOML, &BTreeMap::from([("threads", 2), ("seed", 1)]))
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        step: u64,
        hash: u64,
        loss: f64,
    }

    const STEPS: u64 = 9;

    /// A training run in miniature: every number depends on all before it.
    fn train(path: &Path, start: Start) -> Result<()> {
        train_among(&Alone, path, start)
    }

    fn train_among(ranks: &dyn Ranks, path: &Path, start: Start) -> Result<()> {
        let run = among(ranks, path, start)?;
        let mut artefact = run.artefact("sft-init")?;
        artefact.keep_last(2);
        if artefact.model().is_none() {
            let fresh = State { step: 0, hash: 7, loss: 0.1 };
            let mut state: State = artefact.checkpoint().map_or(Ok(fresh), Checkpoint::state)?;
            while state.step < STEPS {
                advance(&mut artefact, &mut state)?;
            }
            artefact.finish(STEPS, |folder| {
                // A run cannot tell whether it was resumed: what it writes depends on its state only.
                let best = state.hash.to_string();
                Ok(fs::write(folder.join("weights"), best)?)
            })?;
        }
        run.write_json("eval/results.json", &artefact.model().is_some())?;
        Ok(())
    }

    fn advance(artefact: &mut Artefact, state: &mut State) -> Result<()> {
        state.step += 1;
        state.hash = state.hash.wrapping_mul(6364136223846793005).wrapping_add(state.step);
        state.loss = (state.loss * 1.7 + state.hash as f64 * 1e-20).fract() / 3.0;
        artefact.metrics(state.step, &[("train/sft/loss", state.loss), ("a", f64::NAN)])?;
        artefact.sample(state.step, &BTreeMap::from([("text", format!("sample \"{}\"", state.hash))]))?;
        artefact.timing(state.step, "time/update", 0.1 + state.step as f64)?;
        let encode = |folder: &Path| {
            crate::write_flat(&folder.join("weights"), &BTreeMap::new(), &[("w", &[state.hash as f32, 1.0])])?;
            fs::create_dir(folder.join("more"))?;
            Ok(fs::write(folder.join("more/moments"), state.hash.to_le_bytes())?)
        };
        if state.step == 5 {
            artefact.commit_named("candidate-5", state.step, encode)?;
        }
        if state.step.is_multiple_of(2) {
            artefact.commit(state.step, state, encode)?;
        }
        Ok(())
    }

    /// Every file below a run folder, but for the lock.
    fn tree(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for name in disk::names(path).unwrap().into_iter().filter(|name| name != LOCK) {
            let inner = path.join(&name);
            if inner.is_dir() {
                files.extend(tree(&inner).into_iter().map(|(rest, bytes)| (format!("{name}/{rest}"), bytes)));
            } else {
                files.insert(name, fs::read(inner).unwrap());
            }
        }
        files
    }

    #[track_caller]
    fn assert_same_tree(got: &Path, want: &Path, context: &str) {
        let (got, want) = (tree(got), tree(want));
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{context}");
        for (name, bytes) in &got {
            let texts = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(&want[name]));
            assert_eq!(texts.0, texts.1, "{context}: {name}");
        }
    }

    #[test]
    fn a_run_killed_between_any_two_writes_ends_like_one_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let straight = folder.path().join("straight");
        train(&straight, Start::Fresh).unwrap();
        let mut deaths = 0;
        for steps in 0.. {
            let path = folder.path().join(format!("killed-{steps}"));
            death::STEPS_LEFT.set(Some(steps));
            let outcome = train(&path, Start::Fresh);
            death::STEPS_LEFT.set(None);
            if outcome.is_ok() {
                break;
            }
            deaths += 1;
            // Die once more while recovering, a few writes in.
            death::STEPS_LEFT.set(Some(steps % 13));
            let _ = train(&path, Start::Resume);
            death::STEPS_LEFT.set(None);
            train(&path, Start::Resume).unwrap();
            assert_same_tree(&path, &straight, &format!("killed after {steps} writes"));
        }
        assert!(deaths > 100, "{deaths}");
    }

    #[test]
    fn the_folder_is_laid_out_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/run");
        train(&path, Start::Fresh).unwrap();
        let files = tree(&path);
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        let checkpoint = |name: &'static str, state: bool| {
            let inner = ["manifest.json", "more/moments", "state.json", "weights"].into_iter();
            let inner = inner.filter(move |file| state || *file != "state.json");
            inner.map(move |file| format!("sft-init/checkpoints/{name}/{file}"))
        };
        let want = ["config.toml", "environment.json", "eval/results.json"].map(str::to_owned).into_iter();
        let want = want.chain(checkpoint("candidate-5", false));
        let want = want.chain(checkpoint("step-000006", true)).chain(checkpoint("step-000008", true));
        let last = ["metrics.jsonl", "model/manifest.json", "model/weights", "samples.jsonl", "timings.jsonl"];
        let want: Vec<_> = want.chain(last.map(|name| format!("sft-init/{name}"))).collect();
        assert_eq!(names, want);
        let first_line = |name: &str| String::from_utf8_lossy(&files[name]).lines().next().unwrap().to_owned();
        assert!(first_line("sft-init/metrics.jsonl").starts_with(r#"{"step":1,"train/sft/loss":0."#));
        assert!(first_line("sft-init/metrics.jsonl").ends_with(r#","a":null}"#));
        assert!(first_line("sft-init/samples.jsonl").starts_with(r#"{"step":1,"text":"sample \""#));
        assert_eq!(first_line("sft-init/timings.jsonl"), r#"{"step":1,"phase":"time/update","seconds":1.1}"#);
        assert_eq!(files["config.toml"], TOML.as_bytes());
    }

    /// A run with checkpoints 6 and 8, not finished, and damage done to it.
    #[track_caller]
    fn check_passed_over(damage: impl FnOnce(&Path), from: Option<u64>, problems: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let [path, straight] = ["run", "straight"].map(|name| folder.path().join(name));
        train(&straight, Start::Fresh).unwrap();
        train(&path, Start::Fresh).unwrap();
        fs::remove_dir_all(path.join("sft-init/model")).unwrap();
        damage(&path.join("sft-init"));
        {
            let artefact = open(&path, Start::Resume).unwrap().artefact("sft-init").unwrap();
            assert_eq!(artefact.checkpoint().map(|checkpoint| checkpoint.step), from);
            let found: Vec<_> = artefact.passed_over().iter().map(Damaged::to_string).collect();
            assert_eq!(found.len(), problems.len(), "{found:?}");
            for (found, problem) in found.iter().zip(problems) {
                assert!(found.contains(problem), "{found}, want {problem}");
            }
            let lines = fs::read_to_string(path.join("sft-init/metrics.jsonl")).unwrap().lines().count();
            assert_eq!(lines as u64, from.unwrap_or(0), "journals are cut to the checkpoint");
            let lines = fs::read_to_string(path.join("sft-init/timings.jsonl")).unwrap().lines().count();
            assert_eq!(lines as u64, from.unwrap_or(0), "timings too");
        }
        train(&path, Start::Resume).unwrap();
        assert_same_tree(&path, &straight, "after the damage");
    }

    #[test]
    fn damaged_checkpoints_are_named_and_passed_over() {
        let at = |artefact: &Path, rest: &str| artefact.join("checkpoints").join(rest);
        check_passed_over(|_| {}, Some(8), &[]);
        check_passed_over(
            |artefact| fs::write(at(artefact, "step-000008/weights"), "short").unwrap(),
            Some(6),
            &["step-000008 is passed over: weights is 5 bytes long"],
        );
        check_passed_over(
            |artefact| fs::write(at(artefact, "step-000008/more/moments"), "notthese").unwrap(),
            Some(6),
            &["more/moments does not match its hash"],
        );
        check_passed_over(
            |artefact| {
                fs::remove_file(at(artefact, "step-000008/manifest.json")).unwrap();
                fs::remove_file(at(artefact, "step-000006/state.json")).unwrap();
            },
            None,
            &["step-000008 is passed over: manifest.json", "step-000006 is passed over: state.json"],
        );
        check_passed_over(
            |artefact| {
                fs::create_dir(at(artefact, ".tmp-step-000010")).unwrap();
                fs::write(at(artefact, ".tmp-step-000010/weights"), "half").unwrap();
            },
            Some(8),
            &[],
        );
        check_passed_over(
            |artefact| {
                let metrics = File::options().write(true).open(artefact.join("metrics.jsonl")).unwrap();
                metrics.set_len(metrics.metadata().unwrap().len() * 7 / 9).unwrap();
            },
            Some(6),
            &["belong to its past"],
        );
        check_passed_over(
            |artefact| {
                let mut timings = File::options().append(true).open(artefact.join("timings.jsonl")).unwrap();
                timings.write_all(b"{\"step\":1,\"pha").unwrap();
            },
            Some(8),
            &[],
        );
    }

    /// A run that is told to stop after `step` saves its state and stops.
    fn interrupt(path: &Path, step: u64) {
        let run = open(path, Start::Resume).unwrap();
        let mut artefact = run.artefact("sft-init").unwrap();
        artefact.keep_last(2);
        let fresh = State { step: 0, hash: 7, loss: 0.1 };
        let mut state: State = artefact.checkpoint().map_or(Ok(fresh), Checkpoint::state).unwrap();
        while state.step < step {
            advance(&mut artefact, &mut state).unwrap();
        }
        artefact
            .commit_interim(step, &state, |folder| Ok(fs::write(folder.join("weights"), state.hash.to_le_bytes())?))
            .unwrap();
    }

    #[test]
    fn an_interrupted_run_leaves_no_other_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let [path, straight] = ["run", "straight"].map(|name| folder.path().join(name));
        train(&straight, Start::Fresh).unwrap();
        for step in [1, 3, 5, 7] {
            interrupt(&path, step);
            let artefact = open(&path, Start::Resume).unwrap().artefact("sft-init").unwrap();
            assert_eq!(artefact.checkpoint().unwrap().step, step);
        }
        train(&path, Start::Resume).unwrap();
        assert_same_tree(&path, &straight, "after four interruptions");
    }

    #[test]
    fn what_a_dead_process_left_over_is_removed_when_the_stage_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Start::Fresh).unwrap();
        let mut artefact = run.artefact("sft-init").unwrap();
        artefact.keep_last(9);
        for step in [2, 4, 6] {
            artefact.commit(step, &0, |_| Ok(())).unwrap();
        }
        artefact.keep_last(1);
        // The step of a stage that is chosen, not trained, counts something else.
        let model = artefact.finish(2, |_| Ok(())).unwrap();
        assert_eq!(disk::names(&model.parent().unwrap().join("checkpoints")).unwrap(), ["step-000006"]);
    }

    #[test]
    fn a_damaged_model_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let [path, straight] = ["run", "straight"].map(|name| folder.path().join(name));
        train(&straight, Start::Fresh).unwrap();
        train(&path, Start::Fresh).unwrap();
        fs::write(path.join("sft-init/model/weights"), "x").unwrap();
        {
            let artefact = open(&path, Start::Resume).unwrap().artefact("sft-init").unwrap();
            assert!(artefact.model().is_none());
            assert!(artefact.passed_over()[0].to_string().contains("model is passed over"));
        }
        train(&path, Start::Resume).unwrap();
        assert_same_tree(&path, &straight, "after the damage");
    }

    /// Threads in place of processes.
    struct Thread<'a> {
        writes: bool,
        place: &'a Barrier,
        answer: &'a AtomicBool,
        hashes: &'a Mutex<BTreeSet<u64>>,
        /// Of an array that is shared, the parts by where they start.
        parts: &'a Mutex<BTreeMap<usize, Vec<f32>>>,
        rank: usize,
    }

    impl Ranks for Thread<'_> {
        fn writes(&self) -> bool {
            self.writes
        }

        fn meet(&self) -> Result<(), crate::BoxError> {
            self.place.wait();
            Ok(())
        }

        fn told(&self, answer: bool) -> Result<bool, crate::BoxError> {
            if self.writes {
                self.answer.store(answer, Ordering::SeqCst);
            }
            self.meet()?;
            let told = self.answer.load(Ordering::SeqCst);
            self.meet()?;
            Ok(told)
        }

        fn collect(&self, array: &crate::Array<'_>, take: &mut crate::Take<'_>) -> Result<(), crate::BoxError> {
            self.parts.lock().unwrap().insert(array.start, array.numbers.to_vec());
            self.meet()?;
            if self.writes {
                std::mem::take(&mut *self.parts.lock().unwrap()).values().try_for_each(|part| take(part))?;
            }
            self.meet()
        }

        fn agree(&self, what: &str, hash: u64) -> Result<(), crate::BoxError> {
            self.hashes.lock().unwrap().insert(hash);
            self.meet()?;
            let one = self.hashes.lock().unwrap().len() == 1;
            self.meet()?;
            self.hashes.lock().unwrap().clear();
            self.meet()?;
            if one { Ok(()) } else { Err(format!("other {what}").into()) }
        }
    }

    /// Calls `work` on so many threads, of which the first writes.
    fn on_threads(ranks: usize, work: impl Fn(&Thread<'_>) + Sync) {
        let (place, answer) = (Barrier::new(ranks), AtomicBool::new(false));
        let (hashes, parts) = (Mutex::default(), Mutex::default());
        std::thread::scope(|scope| {
            for rank in 0..ranks {
                let (place, answer, hashes, parts, work) = (&place, &answer, &hashes, &parts, &work);
                scope.spawn(move || work(&Thread { writes: rank == 0, place, answer, hashes, parts, rank }));
            }
        });
    }

    #[test]
    fn of_several_processes_one_writes_and_all_go_on_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let [path, straight] = ["run", "straight"].map(|name| folder.path().join(name));
        train(&straight, Start::Fresh).unwrap();
        interrupt(&path, 3);
        on_threads(3, |ranks| {
            let run = among(ranks, &path, Start::Resume).unwrap();
            let artefact = run.artefact("sft-init").unwrap();
            assert_eq!(artefact.checkpoint().unwrap().step, 3);
        });
        on_threads(4, |ranks| train_among(ranks, &path, Start::Resume).unwrap());
        assert_same_tree(&path, &straight, "of four processes");
        on_threads(2, |ranks| {
            let artefact = among(ranks, &path, Start::Resume).unwrap().artefact("sft-init").unwrap();
            assert!(artefact.model().is_some() && artefact.named("candidate-5").unwrap().is_some());
        });
    }

    #[test]
    fn processes_that_have_other_things_do_not_work_together() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["run", "other"].map(|name| folder.path().join(name));
        let refused = |part: &str, work: &(dyn Fn(&Thread<'_>) -> Result<()> + Sync)| {
            on_threads(2, |ranks| {
                let message = work(ranks).unwrap_err().to_string();
                assert!(message.contains(part), "{message}");
            });
        };
        refused("other the configuration", &|ranks| {
            RunDir::open_among(ranks, &path, Start::Resume, &format!("writes = {}", ranks.writes), &0).map(drop)
        });
        refused("other the program and the machine", &|ranks| {
            RunDir::open_among(ranks, &path, Start::Adopt, TOML, &ranks.writes).map(drop)
        });
        refused("other the files that are read", &|ranks| {
            let run = RunDir::open_among(ranks, &path, Start::Adopt, TOML, &0)?;
            run.keep_inputs(&BTreeMap::from([("data".to_owned(), ranks.writes.to_string())])).map(drop)
        });
        // A folder that only one process has: the other would begin where nothing is.
        interrupt(&other, 3);
        refused("other checkpoint of sft-init", &|ranks| {
            let own = if ranks.writes { &other } else { &path };
            among(ranks, own, Start::Resume)?.artefact("sft-init").map(drop)
        });
        refused("other state after step 1", &|ranks| {
            let mut artefact = among(ranks, &path, Start::Adopt)?.artefact("apart")?;
            artefact.commit(1, &ranks.writes, |_| Ok(())).map(drop)
        });
    }

    /// A loop that hears at the boundary of step 2, in one process alone, that it should stop.
    #[test]
    fn all_stop_when_the_one_that_writes_is_told_to() {
        #[derive(Debug)]
        struct Counted(u64);
        impl crate::Saved for Counted {
            type Rest = u64;
            fn rest(&self) -> u64 {
                self.0
            }
            fn save(&self, files: &mut crate::ArrayWriter<'_>) -> Result<(), crate::BoxError> {
                Ok(files.write("none", &BTreeMap::new(), [("none", [].as_slice())])?)
            }
            fn load(&mut self, rest: u64, _: &crate::ArrayReader<'_>) -> Result<(), crate::BoxError> {
                self.0 = rest;
                Ok(())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        for last in [2, 5] {
            on_threads(3, |ranks| {
                let run = among(ranks, &path, Start::Resume).unwrap();
                let mut counted = Counted(0);
                let mut recorder = crate::Recorder::new(run.artefact("count").unwrap(), 10, &mut counted).unwrap();
                assert_eq!(counted.0, if last == 2 { 0 } else { 2 });
                while counted.0 < 5 {
                    counted.0 += 1;
                    let step: crate::Event<'_, Counted> =
                        crate::Event::Step { step: counted.0, total: 5, metrics: &[] };
                    recorder.record(&step, false).unwrap();
                    let boundary = crate::Event::Boundary { step: counted.0, state: &counted };
                    let stop = ranks.writes && counted.0 == 2;
                    if recorder.record(&boundary, stop).unwrap() == crate::Flow::Stop {
                        break;
                    }
                }
                assert_eq!(counted.0, last);
            });
        }
    }

    /// An array of which each process holds one number in `parts`, and one that all hold.
    struct Dealt {
        start: usize,
        parts: usize,
    }

    impl crate::Saved for Dealt {
        type Rest = ();
        fn rest(&self) {}
        fn save(&self, files: &mut crate::ArrayWriter<'_>) -> Result<(), crate::BoxError> {
            let own = [self.start as f32];
            let dealt = (own.as_slice().into(), Some([self.start, self.parts]));
            let whole = ([7.0, 8.0].as_slice().into(), None);
            Ok(files.write("arrays", &BTreeMap::new(), [("dealt", dealt), ("all", whole)])?)
        }
        fn load(&mut self, (): (), _: &crate::ArrayReader<'_>) -> Result<(), crate::BoxError> {
            Ok(())
        }
    }

    #[test]
    fn what_processes_hold_in_parts_is_saved_whole() {
        let folder = tempfile::tempdir().unwrap();
        let saved = |processes: usize| {
            let path = folder.path().join(processes.to_string());
            on_threads(processes, |ranks| {
                let mut artefact = among(ranks, &path, Start::Fresh).unwrap().artefact("sft-init").unwrap();
                artefact.restore(&mut Dealt { start: ranks.rank, parts: processes }).unwrap();
                artefact.save(2, &Dealt { start: ranks.rank, parts: processes }).unwrap();
                artefact.save_interim(3, &Dealt { start: ranks.rank, parts: processes }).unwrap();
            });
            let file = |name: &str| path.join("sft-init/checkpoints").join(name).join("arrays.safetensors");
            assert_eq!(fs::read(file("step-000002")).unwrap(), fs::read(file("interrupted-000003")).unwrap());
            crate::read_flat(&file("step-000002")).unwrap().arrays
        };
        for processes in [1, 3] {
            let dealt = (0..processes).map(|number| number as f32).collect();
            assert_eq!(saved(processes), [("all".to_owned(), vec![7.0, 8.0]), ("dealt".to_owned(), dealt)].into());
        }
    }

    #[test]
    fn named_checkpoints_are_verified() {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), Start::Fresh).unwrap();
        let artefact = open(folder.path(), Start::Resume).unwrap().artefact("sft-init").unwrap();
        let candidate = artefact.named("candidate-5").unwrap().unwrap();
        assert_eq!(artefact.named("best").unwrap(), None);
        fs::write(candidate.join("weights"), "x").unwrap();
        assert!(artefact.named("candidate-5").unwrap_err().to_string().contains("weights"));
    }

    #[test]
    fn the_newest_checkpoint_of_another_run_is_the_newest_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), Start::Fresh).unwrap();
        let artefact = folder.path().join("sft-init");
        let newest = || Checkpoint::newest(&artefact).unwrap().map(|checkpoint| checkpoint.step);
        let checkpoints = artefact.join("checkpoints");
        let steps = crate::artefact::steps(&checkpoints).unwrap();
        assert!(steps.len() > 1, "{steps:?}");
        for (step, name) in steps.into_iter().rev() {
            assert_eq!(newest(), Some(step));
            fs::write(checkpoints.join(name).join("state.json"), "other").unwrap();
        }
        assert_eq!(newest(), None);
        assert_eq!(Checkpoint::newest(&folder.path().join("none")).unwrap(), None);
    }

    #[test]
    fn what_is_verified_is_announced() {
        let folder = tempfile::tempdir().unwrap();
        train(folder.path(), Start::Fresh).unwrap();
        let run = open(folder.path(), Start::Resume).unwrap();
        let (mut read, total) = (0, run.bytes_to_verify("sft-init").unwrap());
        let artefact = run.artefact_reporting("sft-init", &mut |bytes| read += bytes).unwrap();
        // Two manifests are read and not hashed.
        let manifests = [artefact.model().unwrap(), &artefact.checkpoint().unwrap().folder];
        let unhashed: u64 = manifests.iter().map(|f| fs::metadata(f.join("manifest.json")).unwrap().len()).sum();
        assert!(read > 0 && read + unhashed == total, "{read} + {unhashed} of {total}");
        assert_eq!(run.bytes_to_verify("ppo").unwrap(), 0);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Start::Fresh).unwrap();
        for name in ["", "..", "a/b", ".hidden", "step-7", "interrupted-7", "a b"] {
            assert!(matches!(run.artefact(name), Err(Error::Name { .. })), "{name}");
        }
        for name in ["../x.json", "/tmp/x.json", "./../x"] {
            assert!(matches!(run.write_json(name, &1), Err(Error::Name { .. })), "{name}");
        }
    }

    #[track_caller]
    fn check_refused(path: &Path, start: Start, config: &str, parts: &[&str]) {
        let tree = |path: &Path| if path.is_dir() { tree(path) } else { BTreeMap::new() };
        let before = tree(path);
        let message = RunDir::open(path, start, config, &0).err().expect("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(tree(path), before, "nothing is written");
    }

    #[test]
    fn folders_with_something_else_in_them_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [path, foreign, empty] = ["run", "foreign", "empty"].map(|name| folder.path().join(name));
        train(&path, Start::Fresh).unwrap();
        fs::create_dir(&foreign).unwrap();
        fs::create_dir(&empty).unwrap();
        fs::write(foreign.join("thesis.tex"), "").unwrap();
        check_refused(&path, Start::Fresh, TOML, &["run is not empty", "--resume"]);
        check_refused(&foreign, Start::Fresh, TOML, &["foreign is not empty"]);
        check_refused(&foreign, Start::Resume, TOML, &["foreign", "not a run"]);
        check_refused(&foreign.join("thesis.tex"), Start::Fresh, TOML, &["thesis.tex"]);
        assert!(!foreign.join(LOCK).exists());
        open(&empty, Start::Resume).unwrap();
        open(&folder.path().join("absent"), Start::Resume).unwrap();
    }

    #[test]
    fn another_configuration_is_refused_with_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), Start::Fresh).unwrap();
        let changed = TOML.replace("epochs = 2", "epochs = 3").replace("1e-6", "2e-6");
        check_refused(
            folder.path(),
            Start::Resume,
            &changed,
            &["config.toml", "- sft.epochs = 2\n- ppo.lr = 1e-6\n+ sft.epochs = 3\n+ ppo.lr = 2e-6"],
        );
        // Only what is configured counts, not how it is laid out or explained.
        let commented = TOML.replace("# epochs of the paper: 16\n", "\n").replace("seed", "  seed");
        RunDir::open(folder.path(), Start::Resume, &commented, &0).unwrap();
    }

    #[test]
    fn another_configuration_is_taken_over_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let changed = TOML.replace("lr = 9e-6", "lr = 1e-6");
        let adopt = |config| RunDir::open(&path, Start::Adopt, config, &0).map(|run| run.config_difference().to_vec());
        // Where there is no run yet, it begins.
        assert!(adopt(TOML).unwrap().is_empty());
        assert_eq!(adopt(&changed).unwrap(), ["- sft.lr = 9e-6", "+ sft.lr = 1e-6"]);
        assert_eq!(fs::read_to_string(path.join(CONFIG)).unwrap(), changed);
        RunDir::open(&path, Start::Resume, &changed, &0).unwrap();
        check_refused(&path, Start::Resume, TOML, &["--adopt"]);
        fs::remove_file(path.join(CONFIG)).unwrap();
        check_refused(&path, Start::Adopt, TOML, &["it is not a run"]);
    }

    #[test]
    fn another_environment_is_shown_and_the_first_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path(), Start::Fresh).unwrap().environment_difference().is_empty());
        assert!(open(folder.path(), Start::Resume).unwrap().environment_difference().is_empty());
        let moved = BTreeMap::from([("threads", 8), ("seed", 1)]);
        let run = RunDir::open(folder.path(), Start::Resume, TOML, &moved).unwrap();
        assert_eq!(run.environment_difference(), ["- \"threads\": 2", "+ \"threads\": 8"]);
        drop(run);
        assert!(open(folder.path(), Start::Resume).unwrap().environment_difference().is_empty());
    }

    #[test]
    fn a_full_disk_is_noticed_before_writing() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Start::Fresh).unwrap();
        let mut artefact = run.artefact("ppo").unwrap();
        let encode = |folder: &Path| Ok(fs::write(folder.join("weights"), [0; 1000])?);
        death::PRETENDED_FREE.set(Some(999));
        assert!(artefact.expect_bytes(999).is_ok());
        let refused = artefact.expect_bytes(1000);
        assert!(matches!(refused, Err(Error::NoSpace { available: 999, needed: 1000, .. })), "{refused:?}");
        // Not even the first checkpoint is begun.
        assert!(matches!(artefact.commit(1, &0, encode), Err(Error::NoSpace { .. })));
        assert!(disk::names(&artefact.folder().join("checkpoints")).unwrap().is_empty());
        death::PRETENDED_FREE.set(None);
        artefact.commit(1, &0, encode).unwrap();
        death::PRETENDED_FREE.set(Some(999));
        let refused = artefact.commit(2, &0, encode);
        death::PRETENDED_FREE.set(None);
        assert!(matches!(refused, Err(Error::NoSpace { available: 999, needed: 1000.., .. })), "{refused:?}");
        assert!(artefact.named("best").unwrap().is_none());
        assert_eq!(artefact.checkpoint().unwrap().step, 1);
        artefact.commit(2, &0, encode).unwrap();
    }

    #[test]
    fn one_folder_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let run = open(folder.path(), Start::Fresh).unwrap();
        let artefact = run.artefact("ppo").unwrap();
        drop(run);
        let message = open(folder.path(), Start::Resume).err().expect("the artefact holds the lock").to_string();
        assert!(message.contains(&format!("in use by process {}", std::process::id())), "{message}");
        drop(artefact);
        open(folder.path(), Start::Resume).unwrap();
    }
}
