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
use instruct_eval::{Interval, WinRate, accuracy_gain, report_card, win_rate};
use instruct_feedback::{Options, Settings, State, records};
use instruct_runs::Start;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub(crate) const EXAMPLES: &str = "Examples:
  instruct retrain --from runs/0001 --run runs/0002
  instruct retrain --from runs/0001 --feedback FOLDER --run runs/0002 --resume";

/// The file of a run that says what it was trained from, with the keys of the records of feedback.
pub(crate) const RETRAINED: &str = "retrained.json";

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
    /// What was said by then: so many bytes of the log, and their SHA-256.
    log_bytes: u64,
    log_sha256: String,
    /// The rankings that came of it.
    rankings: PathBuf,
    /// The keys of these records.
    pub(crate) keys: Vec<String>,
}

/// Whether the new reward model may train a policy.
#[derive(Serialize)]
struct Gate {
    /// New minus old accuracy on held-out pairs that the old run had already.
    on_old: Interval,
    /// The same on held-out pairs of the feedback; none where no new ranking is held out.
    on_new: Option<Interval>,
    new_pairs: usize,
    passed: bool,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    judge: String,
    /// The new policy against the old one.
    win_rate: WinRate,
    gate: Gate,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    on_interrupt()?;
    let (config, retrained) = if args.resume { continued(&args.run)? } else { begun(args)? };
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    super::pipeline::in_run(&config, &args.run, start, Until::Evaluation, &Solo, |run| {
        run.dir.write_json(RETRAINED, &retrained)?;
        take_over(&retrained.from, run.dir.path())?;
        retrain(run, &retrained)
    })
}

/// The configuration of the old run with the feedback beside its rankings.
fn begun(args: &Args) -> Result<(Config, Retrained)> {
    for name in TAKEN_OVER.iter().chain(&["reward-model", "ppo-ptx"]) {
        if !model_of(&args.from, name).is_dir() {
            bail!("{} has no finished {name}; finish the run first", args.from.display());
        }
    }
    let mut config = Config::read(&args.from.join("config.toml"), &[])?;
    let folder = args.feedback.clone().unwrap_or_else(|| args.from.join("feedback"));
    let retrained = freeze(args, &folder)?;
    config.data.rankings.push(retrained.rankings.display().to_string());
    Ok((config, retrained))
}

fn continued(run: &Path) -> Result<(Config, Retrained)> {
    let path = run.join(RETRAINED);
    let text = fs::read(&path).with_context(|| format!("--resume: cannot read {}", path.display()))?;
    let retrained = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    Ok((Config::read(&run.join("config.toml"), &[])?, retrained))
}

/// Writes the records that come of what was said so far beside the log, under the hash of it: whatever is said later
/// changes nothing for this run.
fn freeze(args: &Args, folder: &Path) -> Result<Retrained> {
    let collected = desk::collected(folder)?;
    let log: String = collected.events.iter().map(|event| event.line()).collect();
    let options = Options { edits_as_pairs: !args.without_edits, ..Options::default() };
    let records = records(&State::of(Settings::default(), collected)?, &options);
    if records.rankings.is_empty() {
        bail!("{}: nothing was said that is a ranking; rank some answers first", folder.display());
    }
    say(&format!("{} rankings come of what people said", records.rankings.len()));
    if !records.demonstrations.is_empty() {
        let count = records.demonstrations.len();
        say(&format!("{count} demonstrations are not used: supervised fine-tuning is taken over from the old run"));
    }
    let lines: String = records.rankings.iter().map(|record| record.to_line() + "\n").collect();
    let log_sha256 = hex(&log);
    let frozen = folder.join("frozen");
    let rankings = frozen.join(format!("{}.jsonl", &hex(&lines)[..16]));
    fs::create_dir_all(&frozen).with_context(|| format!("cannot make {}", frozen.display()))?;
    crate::write_whole(&rankings, lines.as_bytes())?;
    let keys = records.rankings.iter().map(|record| record.prompt.id.clone()).collect();
    Ok(Retrained { from: args.from.clone(), log_bytes: log.len() as u64, log_sha256, rankings, keys })
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
        let copied = copy(&old, &staged);
        copied.and_then(|()| fs::rename(&staged, &new)).with_context(|| format!("cannot copy {}", old.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn retrain(run: &mut Run<'_>, retrained: &Retrained) -> Result<()> {
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
    let keys: BTreeSet<&str> = retrained.keys.iter().map(String::as_str).collect();
    let held_out = &run.material.held_out_rankings;
    let (new, old): (Vec<&RankedGroup>, Vec<&RankedGroup>) =
        held_out.iter().partition(|of| keys.contains(of.id.as_str()));
    let models = [run.open_reward_model()?, run.open(&model_of(&retrained.from, "reward-model"))?];
    let gain = |groups: &[&RankedGroup]| -> Result<(Interval, usize)> {
        let [by_new, by_old] = [ranked(run, &models[0], groups)?, ranked(run, &models[1], groups)?];
        Ok((accuracy_gain(&by_new, &by_old)?, report_card(&by_new)?.pairs))
    };
    let (on_old, _) = gain(&old).context("the old held-out rankings")?;
    let on_new = if new.is_empty() { None } else { gain(&new).ok() };
    let new_pairs = on_new.map_or(0, |(_, pairs)| pairs);
    let is_no_worse = on_old.high.unwrap_or(on_old.mean) >= 0.0 || on_old.mean >= -MARGIN;
    let is_better = on_new.is_some_and(|(gain, _)| gain.low.unwrap_or(gain.mean) > 0.0);
    let passed = is_no_worse && (is_better || new_pairs < FEW_PAIRS);
    Ok(Gate { on_old, on_new: on_new.map(|(gain, _)| gain), new_pairs, passed })
}

impl Gate {
    fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("reward model, new minus old accuracy on the old held-out pairs: {}", shown(&self.on_old))];
        let margin = 100.0 * MARGIN;
        lines.push(format!("  no worse is: within the interval, or by less than {margin:.0} point"));
        lines.push(match &self.on_new {
            Some(gain) => format!("  on {} new held-out pairs: {}", self.new_pairs, shown(gain)),
            None => "  no new ranking is held out".to_owned(),
        });
        if self.new_pairs < FEW_PAIRS {
            lines.push(format!(
                "  fewer than {FEW_PAIRS} new pairs say too little: only that it is no worse on the old ones is asked"
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
    let new = points("new policy", &run.open_compared(Model::PpoPtx)?)?;
    let old = points("old policy", &run.open(&model_of(from, "ppo-ptx"))?)?;
    let groups: Vec<String> = prompts.iter().map(|prompt| prompt.use_case.clone()).collect();
    Ok(Outcome { judge: judge.name(), win_rate: win_rate(&new, &old, Some(&groups))?, gate })
}
