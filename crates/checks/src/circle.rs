//! `circle`: serve, rank, retrain, several rounds over several seeds, to see whether the circle rises. All of it is a
//! simulation: the labelers of the embedded world answer through the server's own interface what people would.

use crate::server::Server;
use anyhow::{Context, Result, ensure};
use instruct_eval::{Interval, bootstrap};
use instruct_random::Source;
use instruct_world::{Labeler, label, labelers};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::{terminal::print, write_whole};

/// Seed of the embedded world, whose labelers are asked.
const WORLD: u64 = 1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of the circle, each with a seed of its own
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Rounds of serving, ranking and retraining
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Prompts whose answers are ranked in a round
    #[arg(long, default_value_t = 400)]
    prompts: usize,
    /// Answers to each
    #[arg(long, default_value_t = 4)]
    answers: usize,
    /// Where the runs go; what is finished there is not done again
    #[arg(long)]
    out: PathBuf,
    /// After `--`: further arguments of `retrain`, such as --continue --set ppo.episodes=3072
    #[arg(last = true)]
    retrain: Vec<String>,
}

/// One round of one seed.
#[derive(Serialize)]
struct Round {
    rankings: u64,
    /// Whether the new reward model passed the gate; if not, the old policy goes on.
    passed: bool,
    /// New against old policy by the simulated judge; none where no new one was trained.
    win_rate: Option<Value>,
}

/// All rounds of one seed.
#[derive(Serialize)]
struct Seed {
    seed: u64,
    rounds: Vec<Round>,
    /// Points of the simulated judge, of the policy after the last round less that after the first, on the same held-out
    /// prompts.
    gain: Interval,
}

#[derive(Serialize)]
struct Circle<'a> {
    judge: &'static str,
    /// What `retrain` was told besides.
    retrain: &'a [String],
    seeds: Vec<Seed>,
    /// The same over the prompts of all seeds.
    gain: Interval,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 1 && args.seeds > 0, "a gain needs two rounds at least");
    let root = crate::process::root()?;
    let program = crate::process::program(&root)?;
    fs::create_dir_all(&args.out)?;
    keep_arguments(args)?;
    let mut gains = Vec::new();
    let mut seeds = Vec::new();
    for seed in 1..=args.seeds {
        let (result, gain) = Turning { args, program: &program, seed }.turn()?;
        print(&format!("seed {seed}: {} points from the first round to the last", shown(result.gain)));
        gains.extend(gain);
        seeds.push(result);
    }
    let judge = "simulation: the rules of the instruction world";
    let circle = Circle { judge, retrain: &args.retrain, seeds, gain: interval(&gains)? };
    let path = args.out.join("circle.json");
    write_whole(&path, (serde_json::to_string_pretty(&circle)? + "\n").as_bytes())?;
    print(&format!("all seeds: {} points, over {} prompts; {}", shown(circle.gain), gains.len(), path.display()));
    Ok(())
}

/// Refuses to go on with other arguments of `retrain` than the finished rounds had.
fn keep_arguments(args: &Args) -> Result<()> {
    ensure!(
        !args.retrain.iter().any(|argument| argument.starts_with("--judge")),
        "the judge of a circle is the simulation's"
    );
    let (path, own) = (args.out.join("retrain.json"), serde_json::to_string(&args.retrain)?);
    if path.is_file() {
        let begun = fs::read_to_string(&path)?;
        ensure!(
            begun == own,
            "{} began with `retrain` {begun}; go on with these, or name another --out",
            path.display()
        );
        return Ok(());
    }
    write_whole(&path, own.as_bytes())
}

/// The mean gain with its interval over prompts. Where the same policy is served in the end there is no doubt about it.
fn interval(gain: &[f64]) -> Result<Interval> {
    if gain.iter().all(|gain| *gain == 0.0) {
        return Ok(Interval { mean: 0.0, low: Some(0.0), high: Some(0.0), n: gain.len() });
    }
    Ok(bootstrap(gain)?)
}

fn shown(gain: Interval) -> String {
    match (gain.low, gain.high) {
        (Some(low), Some(high)) => format!("{:+.2} [{low:+.2}, {high:+.2}]", gain.mean),
        _ => format!("{:+.2}", gain.mean),
    }
}

/// The circle of one seed.
struct Turning<'a> {
    args: &'a Args,
    program: &'a Path,
    seed: u64,
}

impl Turning<'_> {
    fn folder(&self, round: u64) -> PathBuf {
        self.args.out.join(format!("seed-{}", self.seed)).join(format!("round-{round}"))
    }

    /// All rounds, and the gain on each prompt.
    fn turn(&self) -> Result<(Seed, Vec<f64>)> {
        self.first()?;
        let mut policy = 0;
        let (mut rounds, mut points) = (Vec::new(), Vec::new());
        for round in 1..=self.args.rounds {
            let done = self.round(policy, round)?;
            if done.passed {
                policy = round;
            }
            points.push(self.points(policy)?);
            rounds.push(done);
        }
        let gain = match (points.first(), points.last()) {
            (Some(Some(first)), Some(Some(last))) => first.iter().zip(last).map(|(first, last)| last - first).collect(),
            // Where nothing was trained by the end of the first round, what came later is compared with what was served.
            (Some(None), Some(Some(last))) => {
                self.old_points(policy)?.iter().zip(last).map(|(old, new)| new - old).collect()
            }
            // No policy was ever trained: on every prompt there is nothing to gain.
            _ => vec![0.0; self.prompts()?],
        };
        Ok((Seed { seed: self.seed, rounds, gain: interval(&gain)? }, gain))
    }

    /// The run that the circle begins with.
    fn first(&self) -> Result<()> {
        let run = self.folder(0);
        if run.join("eval/results.json").is_file() {
            return Ok(());
        }
        let mut command = self.instruct();
        command.args(["pipeline", "--set", &format!("seed={}", self.seed), "--run"]).arg(&run);
        command.args(run.exists().then_some("--resume"));
        crate::process::execute(&mut command)
    }

    /// Serves the policy of an earlier round, has its answers ranked, and retrains.
    fn round(&self, policy: u64, round: u64) -> Result<Round> {
        let (from, run) = (self.folder(policy), self.folder(round));
        let feedback = from.join("feedback");
        let ranked = from.join(format!("ranked-{round}"));
        if !ranked.is_file() {
            self.tasks(&from, &feedback, round)?;
            let count = self.rank(&from, &feedback, round)?;
            fs::write(&ranked, count.to_string())?;
        }
        let rankings = fs::read_to_string(&ranked)?.trim().parse().context("a number of rankings")?;
        if !run.join("eval/gate.json").is_file() || read(&run.join("eval/gate.json"))?["passed"] == true {
            self.retrain(&from, &feedback, &run)?;
        }
        let passed = read(&run.join("eval/gate.json"))?["passed"] == true;
        let outcome = run.join("eval/retrained.json");
        let win_rate = if passed { Some(read(&outcome)?["win_rate"].clone()) } else { None };
        Ok(Round { rankings, passed, win_rate })
    }

    fn tasks(&self, from: &Path, feedback: &Path, round: u64) -> Result<()> {
        let mut command = self.instruct();
        command.arg("tasks").arg("--feedback").arg(feedback).args(["--prompts", "embedded:prompts.jsonl"]);
        command.arg("--model").arg(from.join("ppo-ptx/model"));
        let (k, limit, seed) = (self.args.answers, self.args.prompts, 100 * self.seed + round);
        command.args([
            format!("-k={k}"),
            format!("--limit={limit}"),
            format!("--seed={seed}"),
            "--max-new-tokens=64".into(),
        ]);
        crate::process::execute(&mut command)
    }

    /// Every labeler of the world ranks until there is nothing left for anyone; returns how many rankings there are.
    fn rank(&self, from: &Path, feedback: &Path, round: u64) -> Result<u64> {
        let people: Vec<(Labeler, String)> = labelers(WORLD)
            .into_iter()
            .map(|labeler| Server::link(self.program, feedback, &labeler.name).map(|token| (labeler, token)))
            .collect::<Result<_>>()?;
        let server = Server::start(self.instruct().arg("serve").arg(from).arg("--feedback").arg(feedback))?;
        let mut is_left = true;
        while is_left {
            is_left = false;
            for (labeler, token) in &people {
                is_left |= rank_one(&server, labeler, token, self.seed, round)?;
            }
        }
        server.stop()?;
        let log = fs::read_to_string(feedback.join("log.jsonl"))?;
        Ok(log.lines().filter(|line| line.contains("\"kind\":\"ranking\"")).count() as u64)
    }

    /// Retrains, or continues to. That the gate refuses is an outcome, whatever else fails is an error.
    fn retrain(&self, from: &Path, feedback: &Path, run: &Path) -> Result<()> {
        if run.join("eval/retrained.json").is_file() {
            return Ok(());
        }
        let mut command = self.instruct();
        command.arg("retrain").arg("--from").arg(from).arg("--feedback").arg(feedback).arg("--run").arg(run);
        command.args(&self.args.retrain);
        command.args(run.exists().then_some("--resume"));
        let done = crate::process::execute(&mut command);
        match done {
            Err(_) if read(&run.join("eval/gate.json")).is_ok_and(|gate| gate["passed"] == false) => Ok(()),
            other => other,
        }
    }

    /// The points of the policy of a round on every held-out prompt; none of the first run's, which no judge compared yet.
    fn points(&self, policy: u64) -> Result<Option<Vec<f64>>> {
        if policy == 0 {
            return Ok(None);
        }
        numbers(&read(&self.folder(policy).join("eval/retrained.json"))?["new_points"]).map(Some)
    }

    /// Prompts that are held out for the judge.
    fn prompts(&self) -> Result<usize> {
        let results = read(&self.folder(0).join("eval/results.json"))?;
        let prompts = results["win_rate"]["ppo_ptx_vs_sft"]["n"].as_u64();
        Ok(prompts.context("the first run was evaluated on some prompts")? as usize)
    }

    /// The points of the policy that the one of a round was trained from.
    fn old_points(&self, policy: u64) -> Result<Vec<f64>> {
        numbers(&read(&self.folder(policy).join("eval/retrained.json"))?["old_points"])
    }

    fn instruct(&self) -> Command {
        Command::new(self.program)
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn numbers(value: &Value) -> Result<Vec<f64>> {
    let numbers = value.as_array().context("points are a list")?.iter();
    numbers.map(|number| number.as_f64().context("points are numbers")).collect()
}

/// Has a labeler rank one task; false where there is none for that person.
fn rank_one(server: &Server, labeler: &Labeler, token: &str, seed: u64, round: u64) -> Result<bool> {
    let task = server.post(token, "/api/task/next", &json!({ "kind": "rank" }))?;
    let Some(id) = task["task"].as_str() else { return Ok(false) };
    let completions = task["completions"].as_array().context("a task has completions")?;
    let texts: Vec<String> =
        completions.iter().map(|completion| completion["text"].as_str().unwrap_or_default().to_owned()).collect();
    let shown: Vec<u64> = completions.iter().filter_map(|completion| completion["slot"].as_u64()).collect();
    let prompt = task["messages"][0]["content"].as_str().context("a task has a prompt")?;
    let said =
        label(labeler, prompt, &texts, &mut Source::new(seed, "circle").at_name(&format!("{id} {}", labeler.name)));
    let key = format!("c-{seed}-{round}-{}-{id}", labeler.name);
    let ranking = json!({ "key": key, "kind": "ranking", "task": id, "shown": shown, "ranks": said.ranks,
        "quality": said.quality, "confidence": said.confidence, "seconds": 30 });
    server.post(token, "/api/feedback", &ranking)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labelers_have_names_that_a_server_takes() {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        assert!(labelers(WORLD).iter().all(|labeler| labeler.name.bytes().all(is_plain)));
    }

    #[test]
    fn the_same_policy_has_gained_nothing_without_a_doubt() {
        let same = interval(&[0.0; 30]).unwrap();
        assert_eq!((same.mean, same.low, same.high, same.n), (0.0, Some(0.0), Some(0.0), 30));
        let other: Vec<f64> = (0..30).map(f64::from).collect();
        let other = interval(&other).unwrap();
        assert!(other.low.unwrap() < 14.5 && 14.5 < other.high.unwrap(), "{other:?}");
    }

    #[test]
    fn a_gain_is_shown_with_its_sign() {
        assert_eq!(shown(Interval { mean: 1.5, low: Some(-0.25), high: Some(3.0), n: 40 }), "+1.50 [-0.25, +3.00]");
        assert_eq!(shown(Interval { mean: -1.0, low: None, high: None, n: 4 }), "-1.00");
    }
}
