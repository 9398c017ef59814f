//! `retrain`: what people said of a run's answers trains its next reward model and its next policy.

mod gate;
mod people;
mod thumbs;
mod trained_on;

pub(crate) use trained_on::{FROZEN, Retrained};

use crate::{
    compare::sample,
    config::Config,
    evaluate::{Judge, RewardResults, graded, percent, ranked},
    listener::on_interrupt,
    models::Model,
    prepare::{PromptIds, RankedGroup},
    stages::Run,
    terminal::{print, say},
    until::Until,
};
use anyhow::{Context, Result, bail};
use gate::{Gate, gate};
use instruct_collective::Solo;
use instruct_eval::{Verdict, WinRate, win_rate, win_rate_of};
use instruct_rollout::Episode;
use instruct_runs::Start;
use people::{Asked, Votes};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};
use trained_on::How;

pub(crate) const EXAMPLES: &str = "Examples:
  instruct retrain --from runs/0001 --run runs/0002
  instruct retrain --from runs/0001 --run runs/0002 --continue --set ppo.episodes=3072
  instruct retrain --from runs/0001 --run runs/0002 --judge people    # asks them blind; --resume counts their answers";

/// What fine-tuning made.
const FINE_TUNED: [&str; 2] = ["sft-baseline", "sft-init"];

/// The file of a run that says what people were asked about its policy.
const ASKED: &str = "eval/asked.json";

/// And whether its reward model may train one.
const GATE: &str = "eval/gate.json";

/// How well that reward model orders what people ranked.
const GRADED: &str = "eval/reward-model.json";

/// How far the new policy pleases that reward model more than the old one did.
const PREFERRED: &str = "eval/preferred.json";

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
    /// Go on with the old policy; without it PPO starts at `sft-init`, which is the reference either way
    #[arg(long = "continue")]
    continues: bool,
    /// Train the first step anew, with the demonstrations and edits of people, instead of taking over what it made
    #[arg(long, conflicts_with = "continues")]
    fine_tune: bool,
    /// Who compares the new policy with the old one; without it the judge of the run, and with --resume whoever it was
    #[arg(long, value_enum)]
    judge: Option<By>,
    /// Overrides a key of the old run's reward-model, ppo, evaluate, checkpoints or memory, or data.remove-personal, with
    /// --fine-tune also of sft-baseline and sft-init, for example --set ppo.episodes=3072 (may be repeated); what is
    /// retrained from the new run keeps it
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Continue the new run after an interruption, on the feedback that it began with
    #[arg(long)]
    resume: bool,
}

/// Who compares two policies.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The judge that the run's configuration names
    Run,
    /// People: both answers to each held-out prompt become a task in the folder of feedback
    People,
}

/// The new reward model's card, as the results of other runs have it.
#[derive(Serialize)]
struct Graded {
    reward_model: RewardResults,
}

/// New against old policy by the new reward model.
#[derive(Serialize)]
struct Preferred {
    win_rate: WinRate,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    judge: String,
    /// The new policy against the old one.
    win_rate: WinRate,
    /// The points of both on every prompt that was judged, so that rounds can be compared prompt by prompt. People give
    /// one point, shared as they share their votes.
    new_points: Vec<f64>,
    old_points: Vec<f64>,
    /// Prompts of which people have said nothing yet.
    waiting: usize,
    /// Prompts that nobody need judge, because both answered the same; they count when none waits.
    same: usize,
    gate: Gate,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    on_interrupt()?;
    // A run that was killed before it wrote down what it is trained from begins again, on what was said by now; where
    // that is more, its configuration says so.
    let is_begun = args.resume && Retrained::is_written(&args.run);
    if args.resume && !is_begun {
        say("the run had not begun when it ended: it begins as this command says, on what people have said by now");
    }
    let (config, retrained) = if is_begun { continued(args)? } else { begun(args)? };
    if config.data.limit > 0 {
        say(&format!("`data.limit` is {}: that many rankings are chosen, of old and new together", config.data.limit));
    }
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    super::pipeline::in_run(&config, &args.run, start, Until::Evaluation, &Solo, |run| {
        retrained.write(run.dir)?;
        if !retrained.how.fine_tunes {
            take_over(retrained.from(), run.dir.path())?;
        }
        let outcome = retrain(run, &retrained);
        super::report::at_the_end(run.dir.path(), outcome)
    })
}

/// The configuration of the old run with all feedback beside its own records.
fn begun(args: &Args) -> Result<(Config, Retrained)> {
    for name in FINE_TUNED.iter().chain(&["reward-model", "ppo-ptx"]) {
        if !model_of(&args.from, name).is_dir() {
            bail!("{} has no finished {name}; finish the run first", args.from.display());
        }
    }
    let how = How {
        continues: args.continues,
        fine_tunes: args.fine_tune,
        leaves_out_edits: args.without_edits,
        asks_people: args.judge == Some(By::People),
    };
    check_settings(&args.settings, args.fine_tune)?;
    let retrained = Retrained::freeze(&args.from, args.feedback.as_deref(), how)?;
    let config = retrained.config(&args.settings)?;
    if !args.continues && Retrained::read(&args.from)?.is_some_and(|from| from.how.continues) {
        say(&format!(
            "warning: {} went on with a policy, in {} episodes, and this run begins one anew in as many; --set \
             ppo.episodes gives it more",
            args.from.display(),
            config.ppo.episodes
        ));
    }
    Ok((config, retrained))
}

/// Refuses to set what the new run takes over from the old one: it would change nothing, or the sides of the split, and
/// with these which records may be compared. A preset lies below the keys that a run has written out, so it changes
/// nothing either.
fn check_settings(settings: &[String], fine_tunes: bool) -> Result<()> {
    const OPEN: [&str; 6] = ["reward-model.", "ppo.", "evaluate.", "checkpoints.", "memory.", "data.remove-personal"];
    const FINE_TUNING: [&str; 2] = ["sft-baseline.", "sft-init."];
    let open = OPEN.iter().chain(FINE_TUNING.iter().filter(|_| fine_tunes));
    for setting in settings {
        let key = setting.split('=').next().unwrap_or(setting).trim();
        if key == "ppo.preset" {
            bail!("--set {setting}: the old run has a value for every key of ppo; set the keys that are to differ");
        }
        if !open.clone().any(|table| key.starts_with(table)) {
            let tables: Vec<&str> = open.map(|table| table.trim_end_matches('.')).collect();
            bail!(
                "--set {setting}: `{key}` cannot be set here, since the rest is taken over from the old run; what can is \
                 in {}, such as ppo.episodes",
                tables.join(", ")
            );
        }
    }
    Ok(())
}

fn continued(args: &Args) -> Result<(Config, Retrained)> {
    let mut retrained =
        Retrained::read(&args.run)?.context("--resume: the run says nothing of what it is trained from")?;
    let (from, run) = (retrained.from(), args.run.display());
    if fs::canonicalize(&args.from)? != from {
        bail!("{run} was trained from {}; name that one with --from", from.display());
    }
    for (asked, began, flag) in [
        (args.continues, retrained.how.continues, "--continue"),
        (args.fine_tune, retrained.how.fine_tunes, "--fine-tune"),
        (args.without_edits, retrained.how.leaves_out_edits, "--without-edits"),
    ] {
        if asked && !began {
            bail!("{run} began without {flag}; leave it out, or begin another run");
        }
    }
    if let Some(feedback) = &args.feedback
        && fs::canonicalize(feedback)? != retrained.feedback()?
    {
        bail!("{run} began on {}; what is said elsewhere is for another run", retrained.feedback()?.display());
    }
    if let Some(judge) = args.judge {
        retrained.how.asks_people = judge == By::People;
    }
    let own = args.run.join("config.toml");
    let config = Config::read(&own, &[])?;
    if Config::read(&own, &args.settings)? != config {
        bail!("{run} began with other values than --set asks for; leave them out, or begin another run");
    }
    Ok((config, retrained))
}

fn model_of(run: &Path, artefact: &str) -> PathBuf {
    run.join(artefact).join("model")
}

/// Copies what fine-tuning made, whole or not at all.
fn take_over(from: &Path, run: &Path) -> Result<()> {
    for name in FINE_TUNED {
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
    let keys = retrained.new_keys();
    let count = |groups: &[RankedGroup]| groups.iter().filter(|of| keys.contains(of.id.as_str())).count();
    let (trained, held_out) = (count(&run.material.rankings), count(&run.material.held_out_rankings));
    let all = keys.len();
    // A folder that was copied may hold a record twice.
    let left = all.saturating_sub(trained + held_out);
    say(&format!(
        "of {all} new rankings {trained} are trained on, {held_out} are held out, {left} are left out (as repeated, over \
         the cap of their user or `data.limit`, personal, too long, or like a prompt that is held out)"
    ));
    if trained == 0 {
        say("warning: none of the new rankings is trained on");
    }
}

fn retrain(run: &mut Run<'_>, retrained: &Retrained) -> Result<()> {
    let folder = run.dir.path();
    if retrained.how.asks_people
        && let Some((asked, gate)) = read::<Asked>(&folder.join(ASKED))?.zip(read::<Gate>(&folder.join(GATE))?)
        && gate.passed
    {
        // All that takes long is done: people are asked, and their votes are counted.
        return conclude(run, by_people(run, retrained, &asked, gate)?);
    }
    tell_sides(run, retrained);
    let candidates = run.baseline_and_reward_model()?;
    let held_out: Vec<&RankedGroup> = run.material.held_out_rankings.iter().collect();
    let by_new = ranked(run, &run.open_reward_model()?, &held_out)?;
    let gate = gate(run, retrained, &by_new)?;
    run.dir.write_json(GATE, &gate)?;
    gate.lines().iter().for_each(|line| print(line));
    thumbs::tell(run, retrained)?;
    run.dir.write_json(GRADED, &Graded { reward_model: graded(run, &by_new)? })?;
    if !gate.passed {
        bail!("the new reward model does not pass, so no policy is trained on it; collect more rankings");
    }
    // Both are there already where they were taken over.
    run.selection(&candidates)?;
    run.sft_init()?;
    run.goes_on_with = retrained.how.continues.then(|| model_of(retrained.from(), "ppo-ptx"));
    let frozen = run.frozen()?;
    run.ppo(Model::PpoPtx, run.config.ppo.gamma_ptx, &frozen)?;
    drop(frozen);
    let answers = answers(run, retrained)?;
    tell_preferred(run, &answers)?;
    if retrained.how.asks_people {
        let asked = ask(run, retrained, answers)?;
        return conclude(run, by_people(run, retrained, &asked, gate)?);
    }
    conclude(run, Some(by_judge(run, &answers, gate)?))
}

/// Says whether the new policy pleases the new reward model more than the old policy does. It was trained for that, so
/// this is no judge. But where it does not, PPO achieved nothing, and that is known before anybody is asked.
fn tell_preferred(run: &Run<'_>, [new, old]: &[Vec<Episode>; 2]) -> Result<()> {
    let reward_model = run.open_reward_model()?;
    let scores = |episodes: &[Episode]| -> Result<Vec<f64>> {
        Ok(run.scores(&reward_model, episodes)?.into_iter().map(f64::from).collect())
    };
    let win_rate = win_rate(&scores(new)?, &scores(old)?, None)?;
    print(&format!("the new reward model, which PPO was to please, prefers the new policy: {}", shown(&win_rate)));
    print(match Verdict::of(win_rate.low, win_rate.high) {
        Verdict::Worse => "  PPO did not get as far as it had with the old policy: more ppo.episodes may help",
        _ => "  that is no verdict: the judge decides",
    });
    run.dir.write_json(PREFERRED, &Preferred { win_rate })?;
    Ok(())
}

fn shown(WinRate { mean, low, high, n, .. }: &WinRate) -> String {
    format!("{} of {n} prompts", percent(*mean, *low, *high).trim())
}

/// Writes down what came of it, if anything yet.
fn conclude(run: &Run<'_>, outcome: Option<Outcome>) -> Result<()> {
    let Some(outcome) = outcome else { return Ok(()) };
    let WinRate { low, high, .. } = outcome.win_rate;
    print(&format!("the new policy wins against the old one: {}, by {}", shown(&outcome.win_rate), outcome.judge));
    print(&format!("  {}", said(Verdict::of(low, high), outcome.waiting)));
    let path = run.dir.write_json("eval/retrained.json", &outcome)?;
    print(&format!("results: {}", path.display()));
    Ok(())
}

/// A verdict in words, given how many prompts wait for people.
fn said(verdict: Verdict, waiting: usize) -> &'static str {
    match verdict {
        _ if waiting > 0 => "so far: people are still asked",
        Verdict::TooFew => "too few prompts to say which is better",
        Verdict::Better => "it is better: serve the new run",
        Verdict::Worse => {
            "it is WORSE: go on serving the old run. PPO differs more from run to run than a few rankings can mend; more \
             of them, or --continue, may help"
        }
        Verdict::Undecided => {
            "50 % lies within the interval: neither is shown to be better, so nothing speaks for serving the new one"
        }
    }
}

/// The prompts on which the two policies are compared.
fn compared<'a>(run: &Run<'a>) -> &'a [PromptIds] {
    let prompts = &run.material.prompts.test;
    &prompts[..prompts.len().min(run.config.evaluate.prompts)]
}

/// The answers of new and old policy. They are of what `serve` serves of either: the last weights, also where an average
/// was kept.
fn answers(run: &Run<'_>, retrained: &Retrained) -> Result<[Vec<Episode>; 2]> {
    let of = |what: &str, folder: &Path| {
        run.episodes(what, &run.open(&model_of(folder, "ppo-ptx"))?, compared(run), "evaluation")
    };
    Ok([of("new policy", run.dir.path())?, of("old policy", retrained.from())?])
}

/// The new policy against the old one by the judge of the run.
fn by_judge(run: &Run<'_>, [new, old]: &[Vec<Episode>; 2], gate: Gate) -> Result<Outcome> {
    let prompts = compared(run);
    let judge = Judge::new(run)?;
    let [new_points, old_points] = [judge.points(run, prompts, new)?, judge.points(run, prompts, old)?];
    let rows = prompts.iter().enumerate().map(|(place, prompt)| {
        let answers = [("new", new, &new_points), ("old", old, &old_points)];
        sample(prompt, &answers.map(|(who, episodes, points)| (who, episodes[place].text.as_str(), points[place])))
    });
    run.dir.write_json("eval/samples.json", &rows.collect::<Vec<_>>())?;
    let groups: Vec<String> = prompts.iter().map(|prompt| prompt.use_case.clone()).collect();
    let win_rate = win_rate(&new_points, &old_points, Some(&groups))?;
    Ok(Outcome { judge: judge.name(), win_rate, new_points, old_points, waiting: 0, same: 0, gate })
}

/// The new policy against the old one by what people have said so far; none, and what is to be done, where they have said
/// nothing.
fn by_people(run: &Run<'_>, retrained: &Retrained, asked: &Asked, gate: Gate) -> Result<Option<Outcome>> {
    let Votes { outcomes, use_cases, judged, same, waiting } = asked.votes()?;
    print(&format!("people: {judged} comparisons are judged, {waiting} wait, {same} times both answered the same"));
    if waiting > 0 {
        let (run, feedback) = (run.dir.path().display(), asked.feedback.display());
        print(&format!("  people judge at: instruct serve {run} --feedback {feedback}"));
        print(&format!(
            "  their votes count with: instruct retrain --from {} --run {run} --resume",
            retrained.from().display()
        ));
    }
    if outcomes.is_empty() {
        return Ok(None);
    }
    let win_rate = win_rate_of(&outcomes, Some(&use_cases))?;
    let old_points = outcomes.iter().map(|new| 1.0 - new).collect();
    let judge = "people".to_owned();
    Ok(Some(Outcome { judge, win_rate, new_points: outcomes, old_points, waiting, same, gate }))
}

/// Makes the tasks that people judge, and writes down which answer of each is the new policy's.
fn ask(run: &Run<'_>, retrained: &Retrained, answers: [Vec<Episode>; 2]) -> Result<Asked> {
    let [new, old] = answers.map(|of| of.into_iter().map(|episode| episode.text).collect::<Vec<_>>());
    let asked = Asked::add(retrained.feedback()?, compared(run), &new, &old, run.config.seed)?;
    run.dir.write_json(ASKED, &asked)?;
    Ok(asked)
}

/// What a file of the run says, if it is there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).map(Some).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::{check_settings, said};
    use instruct_eval::Verdict;

    #[test]
    fn a_verdict_says_what_to_serve_when_everybody_was_heard() {
        let check = |verdict, waiting, words: &str| assert!(said(verdict, waiting).starts_with(words), "{verdict:?}");
        check(Verdict::Better, 0, "it is better");
        check(Verdict::Worse, 0, "it is WORSE");
        check(Verdict::Undecided, 0, "50 % lies within");
        check(Verdict::TooFew, 0, "too few prompts");
        check(Verdict::Better, 2, "so far");
    }

    #[test]
    fn only_what_the_new_run_makes_can_be_set() {
        let check = |setting: &str, fine_tunes: bool, is_open: bool| {
            let told = check_settings(&[setting.to_owned()], fine_tunes);
            assert_eq!(told.is_ok(), is_open, "{setting}: {told:?}");
        };
        check("ppo.episodes=3072", false, true);
        check("reward-model.epochs=2", false, true);
        check(" ppo.kl.beta = 0.05", false, true);
        check("sft-init.lr=1e-5", true, true);
        check("sft-init.lr=1e-5", false, false);
        check("seed=2", false, false);
        check("data.test=0.5", true, false);
        check("model.base=OTHER", false, false);
        check("data.remove-personal=true", false, true);
        check("ppo", false, false);
        check("ppo.preset=instructgpt", false, false);
    }
}
