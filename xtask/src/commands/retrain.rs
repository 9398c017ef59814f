//! `retrain`: what people said of a run's answers trains its next reward model and its next policy.

use crate::{
    config::Config,
    desk,
    evaluate::{Judge, percent, ranked},
    listener::on_interrupt,
    models::Model,
    prepare::RankedGroup,
    stages::Run,
    terminal::{print, say},
    until::Until,
};
use anyhow::{Context, Result, bail};
use instruct_collective::Solo;
use instruct_data::Record;
use instruct_eval::{FEWEST, Interval, WinRate, accuracy_gain, report_card, win_rate};
use instruct_feedback::{Options, Settings, State, records};
use instruct_runs::Start;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct retrain --from runs/0001 --run runs/0002
  instruct retrain --from runs/0001 --feedback FOLDER --run runs/0002 --resume";

/// The file of a run that says what it was trained from, with the keys of the records of feedback.
const RETRAINED: &str = "retrained.json";

/// Where the rankings of a run lie, in a folder of feedback.
pub(crate) const FROZEN: &str = "frozen";

/// Fewer new held-out pairs say too little of whether the new reward model is better on them.
const FEW_PAIRS: usize = 50;

/// How much worse on the old held-out pairs still counts as no worse: two reward models of one recipe differ by about
/// that much when some of their records do, because these come in another order.
const MARGIN: f64 = 0.01;

/// What SFT made, which is taken over.
const TAKEN_OVER: [&str; 2] = ["sft-baseline", "sft-init"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Finished run whose answers people saw
    #[arg(long)]
    from: PathBuf,
    /// Folder of feedback; without one, that of the run
    #[arg(long)]
    feedback: Option<PathBuf>,
    /// Folder of the new run
    #[arg(long)]
    run: PathBuf,
    /// Leave out that an edited answer is better than the answer it was made of: edits make answers longer
    #[arg(long)]
    without_edits: bool,
    /// Continue the new run after an interruption, on the feedback that it began with
    #[arg(long)]
    resume: bool,
}

/// What a run was trained from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Retrained {
    from: PathBuf,
    /// The folders of feedback that it was trained on: this one's, and those of the runs before.
    feedback: Vec<PathBuf>,
    /// SHA-256 of what was said there by then.
    log_sha256: String,
    /// The rankings that came of it.
    rankings: PathBuf,
    /// The keys of these records.
    pub(crate) keys: Vec<String>,
    /// Those among them that the old run was not trained on.
    new: Vec<String>,
}

/// Whether the new reward model may train a policy.
#[derive(Serialize)]
struct Gate {
    /// New minus old accuracy on held-out pairs that the old run had already.
    on_old: Interval,
    /// The same on held-out pairs of the feedback; none where no new ranking is held out.
    on_new: Option<Interval>,
    new_pairs: usize,
    /// Whether there are enough of these to ask that the new model is better on them.
    is_asked: bool,
    passed: bool,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    judge: String,
    /// The new policy against the old one.
    win_rate: WinRate,
    /// The judge's points of both, on every held-out prompt, so that rounds can be compared prompt by prompt.
    new_points: Vec<f64>,
    old_points: Vec<f64>,
    gate: Gate,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    on_interrupt()?;
    // A run that was killed before it wrote down what it is trained from begins again, on what was said by now; where
    // that is more, its configuration says so.
    let is_begun = args.resume && args.run.join(RETRAINED).is_file();
    let (config, retrained) = if is_begun { continued(args)? } else { begun(args)? };
    if config.data.limit > 0 {
        say(&format!("`data.limit` is {}: that many rankings are chosen, of old and new together", config.data.limit));
    }
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    super::pipeline::in_run(&config, &args.run, start, Until::Evaluation, &Solo, |run| {
        run.dir.write_json(RETRAINED, &retrained)?;
        take_over(&retrained.from, run.dir.path())?;
        let outcome = retrain(run, &retrained);
        print(&format!("report: {}", super::report::write(run.dir.path())?.display()));
        outcome
    })
}

/// The configuration of the old run with all feedback beside its own rankings.
fn begun(args: &Args) -> Result<(Config, Retrained)> {
    for name in TAKEN_OVER.iter().chain(&["reward-model", "ppo-ptx"]) {
        if !model_of(&args.from, name).is_dir() {
            bail!("{} has no finished {name}; finish the run first", args.from.display());
        }
    }
    let mut config = Config::read(&args.from.join("config.toml"), &[])?;
    let before = read(&args.from)?;
    let retrained = freeze(args, before.as_ref())?;
    // What was said before is frozen anew with the rest: it may have been taken back, or said otherwise.
    let earlier = before.map(|before| before.rankings.display().to_string());
    config.data.rankings.retain(|file| Some(file) != earlier.as_ref());
    config.data.rankings.push(retrained.rankings.display().to_string());
    Ok((config, retrained))
}

fn continued(args: &Args) -> Result<(Config, Retrained)> {
    let retrained = read(&args.run)?.context("--resume: the run says nothing of what it is trained from")?;
    if fs::canonicalize(&args.from)? != retrained.from {
        bail!("{} was trained from {}; name that one with --from", args.run.display(), retrained.from.display());
    }
    Ok((Config::read(&args.run.join("config.toml"), &[])?, retrained))
}

/// What a run was trained from, if it was retrained.
pub(crate) fn read(run: &Path) -> Result<Option<Retrained>> {
    let path = run.join(RETRAINED);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).map(Some).with_context(|| path.display().to_string())
}

/// Writes the records that come of what was said so far beside the log, under the hash of it: whatever is said later
/// changes nothing for this run.
fn freeze(args: &Args, before: Option<&Retrained>) -> Result<Retrained> {
    let folder = args.feedback.clone().unwrap_or_else(|| args.from.join("feedback"));
    let whole = |path: &Path| fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()));
    let mut folders = before.map(|before| before.feedback.clone()).unwrap_or_default();
    let folder = whole(&folder)?;
    if !folders.contains(&folder) {
        folders.push(folder.clone());
    }
    let options = Options { edits_as_pairs: !args.without_edits, ..Options::default() };
    let (mut log, mut rankings, mut demonstrations) = (String::new(), Vec::new(), 0);
    for folder in &folders {
        let collected = desk::collected(folder)?;
        log.extend(collected.events.iter().map(|event| event.line()));
        let records = records(&State::of(Settings::default(), collected)?, &options);
        rankings.extend(records.rankings);
        demonstrations += records.demonstrations.len();
    }
    if rankings.is_empty() {
        bail!("{}: nothing was said that is a ranking; rank some answers first", folder.display());
    }
    say(&format!("{} rankings come of what people said", rankings.len()));
    if demonstrations > 0 {
        say(&format!("{demonstrations} demonstrations are not used: fine-tuning is taken over from the old run"));
    }
    let lines: String = rankings.iter().map(|record| record.to_line() + "\n").collect();
    let frozen = folder.join(FROZEN);
    let path = frozen.join(format!("{}.jsonl", &hex(&lines)[..16]));
    fs::create_dir_all(&frozen).with_context(|| format!("cannot make {}", frozen.display()))?;
    crate::write_whole(&path, lines.as_bytes())?;
    let keys: Vec<String> = rankings.iter().map(|record| record.prompt.id.clone()).collect();
    let known = |key: &&String| before.is_none_or(|before| !before.keys.contains(key));
    let new = keys.iter().filter(known).cloned().collect();
    Ok(Retrained { from: whole(&args.from)?, feedback: folders, log_sha256: hex(&log), rankings: path, keys, new })
}

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn model_of(run: &Path, artefact: &str) -> PathBuf {
    run.join(artefact).join("model")
}

/// Copies the artefacts of SFT, whole or not at all.
fn take_over(from: &Path, run: &Path) -> Result<()> {
    for name in TAKEN_OVER {
        let (old, new, staged) = (from.join(name), run.join(name), run.join(format!(".{name}.tmp")));
        if new.exists() {
            continue;
        }
        // What an earlier process did not finish, if anything.
        let _ = fs::remove_dir_all(&staged);
        let copied = copy(&old, &staged).and_then(|()| fs::rename(&staged, &new));
        copied.and_then(|()| File::open(run)?.sync_all()).with_context(|| format!("cannot copy {}", old.display()))?;
    }
    Ok(())
}

/// Copies a folder, and waits until the copy is on the disk.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to)?;
            File::open(to)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
}

/// Says where the new rankings went, because people are on one side each, and a person may be the only one.
fn tell_sides(run: &Run<'_>, retrained: &Retrained) {
    let count = |groups: &[RankedGroup]| groups.iter().filter(|of| retrained.new.contains(&of.id)).count();
    let (trained, held_out) = (count(&run.material.rankings), count(&run.material.held_out_rankings));
    let left = retrained.new.len() - trained - held_out;
    say(&format!(
        "of {} new rankings {trained} are trained on, {held_out} are held out, {left} are left out (as \
                  repeated, over the cap of their user, too long, or like a prompt that is held out)",
        retrained.new.len()
    ));
    if trained == 0 {
        say("warning: none of the new rankings is trained on");
    }
}

fn retrain(run: &mut Run<'_>, retrained: &Retrained) -> Result<()> {
    tell_sides(run, retrained);
    run.baseline_and_reward_model()?;
    let gate = gate(run, retrained)?;
    run.dir.write_json("eval/gate.json", &gate)?;
    gate.lines().iter().for_each(|line| print(line));
    if !gate.passed {
        bail!("the new reward model does not pass, so no policy is trained on it; collect more rankings");
    }
    let frozen = run.frozen()?;
    run.ppo(Model::PpoPtx, run.config.ppo.gamma_ptx, &frozen)?;
    drop(frozen);
    let outcome = compare(run, &retrained.from, gate)?;
    let WinRate { mean, low, high, n, .. } = outcome.win_rate;
    print(&format!("new against old policy: {} of {n} prompts, by {}", percent(mean, low, high).trim(), outcome.judge));
    let path = run.dir.write_json("eval/retrained.json", &outcome)?;
    print(&format!("results: {}", path.display()));
    Ok(())
}

/// Compares old and new reward model on the pairs that both never saw.
fn gate(run: &Run<'_>, retrained: &Retrained) -> Result<Gate> {
    let keys: BTreeSet<&str> = retrained.new.iter().map(String::as_str).collect();
    let held_out = &run.material.held_out_rankings;
    let (new, old): (Vec<&RankedGroup>, Vec<&RankedGroup>) =
        held_out.iter().partition(|of| keys.contains(of.id.as_str()));
    let models = [run.open_reward_model()?, run.open(&model_of(&retrained.from, "reward-model"))?];
    let gain = |groups: &[&RankedGroup]| -> Result<Option<(Interval, usize)>> {
        let [by_new, by_old] = [ranked(run, &models[0], groups)?, ranked(run, &models[1], groups)?];
        match accuracy_gain(&by_new, &by_old) {
            Ok(gain) => Ok(Some((gain, report_card(&by_new)?.pairs))),
            Err(instruct_eval::Error::Empty { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    };
    let (on_old, _) =
        gain(&old)?.context("no old ranking is held out, so nothing says whether the new model is worse")?;
    let on_new = gain(&new)?;
    Ok(Gate::of(on_old, on_new))
}

impl Gate {
    /// Decides, given the gain on old held-out pairs, and that on new ones with their number.
    fn of(on_old: Interval, on_new: Option<(Interval, usize)>) -> Gate {
        let (on_new, new_pairs) = on_new.map_or((None, 0), |(gain, pairs)| (Some(gain), pairs));
        let is_no_worse = on_old.high.unwrap_or(on_old.mean) >= 0.0 || on_old.mean >= -MARGIN;
        // Few prompts have no interval, however many pairs they hold.
        let least = on_new.and_then(|gain| gain.low).filter(|_| new_pairs >= FEW_PAIRS);
        let passed = is_no_worse && least.is_none_or(|low| low > 0.0);
        Gate { on_old, on_new, new_pairs, is_asked: least.is_some(), passed }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("reward model, new minus old accuracy on the old held-out pairs: {}", shown(&self.on_old))];
        let margin = 100.0 * MARGIN;
        lines.push(format!("  no worse is: within the interval, or by less than {margin:.0} point"));
        lines.push(match &self.on_new {
            Some(gain) => format!("  on {} new held-out pairs: {}", self.new_pairs, shown(gain)),
            None => "  no new ranking is held out".to_owned(),
        });
        if !self.is_asked {
            lines.push(format!(
                "  fewer than {FEW_PAIRS} new pairs, or {FEWEST} prompts, say too little: only that it is no worse on the \
                 old ones is asked"
            ));
        }
        lines
    }
}

fn shown(gain: &Interval) -> String {
    percent(gain.mean, gain.low, gain.high).trim().to_owned()
}

/// The new policy against the old one, on held-out prompts.
fn compare(run: &Run<'_>, from: &Path, gate: Gate) -> Result<Outcome> {
    let prompts = &run.material.prompts.test;
    let prompts = &prompts[..prompts.len().min(run.config.evaluate.prompts)];
    let judge = Judge::new(run)?;
    let points = |what: &str, model: &instruct_model::Decoder| -> Result<Vec<f64>> {
        let episodes = run.episodes(what, model, prompts, "evaluation")?;
        judge.points(run, prompts, &episodes)
    };
    // What `serve` serves of either: the last weights, also where an average was kept.
    let new = points("new policy", &run.open(&model_of(run.dir.path(), "ppo-ptx"))?)?;
    let old = points("old policy", &run.open(&model_of(from, "ppo-ptx"))?)?;
    let groups: Vec<String> = prompts.iter().map(|prompt| prompt.use_case.clone()).collect();
    let win_rate = win_rate(&new, &old, Some(&groups))?;
    Ok(Outcome { judge: judge.name(), win_rate, new_points: new, old_points: old, gate })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(mean: f64, around: Option<f64>) -> Interval {
        Interval { mean, low: around.map(|around| mean - around), high: around.map(|around| mean + around), n: 40 }
    }

    /// Whether new pairs decide, and whether the gate lets through.
    #[track_caller]
    fn check(on_old: Interval, on_new: Option<(Interval, usize)>, wanted: (bool, bool)) {
        let gate = Gate::of(on_old, on_new);
        assert_eq!((gate.is_asked, gate.passed), wanted, "{:?}", gate.lines());
    }

    #[test]
    fn the_gate_asks_for_no_harm_and_where_it_can_for_good() {
        let (same, better, worse) = (gain(0.0, Some(0.01)), gain(0.1, Some(0.05)), gain(-0.1, Some(0.05)));
        check(same, None, (false, true));
        check(worse, None, (false, false));
        check(worse, Some((better, 500)), (true, false));
        check(same, Some((better, 50)), (true, true));
        check(same, Some((better, 49)), (false, true));
        check(same, Some((gain(0.02, Some(0.05)), 500)), (true, false));
        check(same, Some((worse, 500)), (true, false));
        // No interval says nothing, in either direction.
        check(same, Some((gain(0.5, None), 500)), (false, true));
        check(same, Some((gain(-0.5, None), 500)), (false, true));
        // By the margin: an interval below zero, and less than a point.
        check(gain(-0.009, Some(0.001)), None, (false, true));
        check(gain(-0.011, Some(0.001)), None, (false, false));
        check(gain(-0.011, None), None, (false, false));
    }
}
