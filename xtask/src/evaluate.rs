//! The final evaluation: win rates by a judge, divergence, alignment tax, best-of-n, and the reward
//! model's report card, gathered in `eval/results.json`.

use crate::{
    compare::{Answered, BestOfN, Comparison, Lengths, Panel, mean},
    config::JudgeName,
    frontier::{Frontier, Measured},
    machine::peak_memory_mb,
    models::Model,
    prepare::{PromptIds, RankedGroup},
    progress::Progress,
    rewards::{Rewards, rewards},
    shared::Shared,
    stages::{EVALUATION, Frozen, Run, ValidationAnswers},
    terminal::print,
};
use anyhow::{Context, Result};
use instruct_eval::{Interval, Ranked, ReportCard, Spread, WinRate, best_of_n_kl, report_card};
use instruct_model::Decoder;
use instruct_random::Source;
use instruct_reward_model::{Group, Item};
use instruct_rollout::{Episode, best_of_n};
use instruct_sft::{nll, perplexity};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// Everything that one run found out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    seed: u64,
    judge: String,
    evaluated_weights: &'static str,
    sft: SftResults,
    reward_model: RewardResults,
    ppo: PpoResults,
    ppo_without_ptx: PpoResults,
    #[serde(flatten)]
    comparison: Comparison,
    alignment_tax: BTreeMap<String, f64>,
    /// Written beside these results.
    #[serde(skip)]
    frontier: Option<Frontier>,
    seconds: BTreeMap<String, f64>,
    /// What being shared by several ranks cost each stage.
    #[serde(skip_serializing_if = "Shared::is_empty")]
    shared: Shared,
    peak_memory_mb: f64,
}

#[derive(Clone, Debug, Serialize)]
struct SftResults {
    validation_loss: f64,
    init_validation_loss: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct RewardResults {
    accuracy: f64,
    accuracy_low: Option<f64>,
    accuracy_high: Option<f64>,
    accuracy_length_baseline: f64,
    accuracy_ceiling: Option<f64>,
    /// On prompts whose task nothing in training asks for; none where there are no such pairs.
    accuracy_unseen: Option<Interval>,
    ece: f64,
    pairs: usize,
    pairs_unseen: usize,
    report_card: ReportCard,
    /// Of the evaluation alone, which has answers to spoil.
    #[serde(skip_serializing_if = "Option::is_none")]
    rewards: Option<Rewards>,
}

#[derive(Clone, Debug, Serialize)]
struct PpoResults {
    /// Mean over held-out prompts of the summed k1 to the reference, in nats.
    kl: f64,
    /// Mean reward-model score on held-out prompts.
    score: f64,
    /// Largest deviation from 1 on the first minibatch of any iteration.
    ratio_first_minibatch: f64,
    mean_tokens: f64,
}

/// Evaluates the models of a run and writes `eval/results.json` and `eval/samples.json`.
pub(crate) fn evaluate(run: &mut Run<'_>) -> Result<Results> {
    let (begun, before) = (std::time::Instant::now(), run.ranks().spent());
    let prompts = &run.material.prompts.test;
    let prompts = &prompts[..prompts.len().min(run.config.evaluate.prompts)];
    let judge = Judge::new(run)?;
    let frozen = run.frozen()?;
    let unseen = run.material.asked.as_ref().map(|asked| prompts.iter().map(|p| !asked.holds(&p.text)).collect());
    let judged = |episodes: &[Episode]| judge.points(run, prompts, episodes);
    let panel = Panel { prompts, unseen, judge: &judged };
    let mut measured = Examined::default();
    let all = panel.judge_all(&mut |model| {
        run.stop_if_interrupted()?;
        measured.examine(run, model, prompts, &frozen)
    })?;
    let baseline = run.open_compared(Model::Sft)?;
    let mut best = |n: usize| best_of(run, &baseline, n, &frozen.reward_model, prompts);
    let comparison = panel.compare(&all, &run.config.evaluate.best_of_n, &mut best)?;
    let samples = panel.samples(&all);
    drop(baseline);
    let frontier = frontier(run, &judge, &frozen)?;
    let results = |model: Model| measured.ppo.get(&model).cloned().context("both policies were examined");
    let loss = |model: Model| measured.validation_loss.get(&model).copied().context("both were examined");
    let mut results = Results {
        seed: run.config.seed,
        judge: judge.name(),
        // What is opened: a policy without the weights that are asked for is an error.
        evaluated_weights: match (run.config.evaluate.use_ema, run.config.ppo.candidates) {
            (true, _) => "ema",
            (false, 0) => "last",
            (false, _) => "chosen",
        },
        sft: SftResults { validation_loss: loss(Model::Sft)?, init_validation_loss: loss(Model::SftInit)? },
        reward_model: RewardResults { rewards: measured.rewards.clone(), ..reward_results(run, &frozen.reward_model)? },
        ppo: results(Model::PpoPtx)?,
        ppo_without_ptx: results(Model::Ppo)?,
        comparison,
        alignment_tax: measured.perplexity.clone(),
        frontier,
        seconds: BTreeMap::new(),
        shared: Shared::default(),
        peak_memory_mb: peak_memory_mb(),
    };
    let seconds = begun.elapsed().as_secs_f64();
    run.seconds.insert(EVALUATION.to_owned(), seconds);
    results.seconds = run.seconds.clone();
    run.add_cost(EVALUATION, seconds, before)?;
    results.shared = run.shared.clone();
    run.dir.write_json("eval/results.json", &results)?;
    run.dir.write_json("eval/samples.json", &samples)?;
    if let Some(frontier) = &results.frontier {
        run.dir.write_json("eval/frontier.json", frontier)?;
    }
    Ok(results)
}

/// What is measured of the compared models besides their answers.
#[derive(Default)]
struct Examined {
    perplexity: BTreeMap<String, f64>,
    /// Of both fine-tuned models, on demonstrations.
    validation_loss: BTreeMap<Model, f64>,
    /// Of both policies.
    ppo: BTreeMap<Model, PpoResults>,
    /// Of the fine-tuned model.
    rewards: Option<Rewards>,
}

impl Examined {
    /// Opens a model, asks it everything, and closes it.
    fn examine(&mut self, run: &Run<'_>, model: Model, prompts: &[PromptIds], frozen: &Frozen) -> Result<Answered> {
        let (key, decoder) = (model.key(), run.open_compared(model)?);
        let what = |part: &str| format!("{key}: {part}");
        let episodes = run.episodes(&what("answers"), &decoder, prompts, "evaluation")?;
        let scores = run.scores(&frozen.reward_model, &episodes)?;
        let windows = &run.material.held_out_windows;
        let windows = &windows[..windows.len().min(run.config.evaluate.windows)];
        let compute = run.compute();
        let mut progress = Progress::of(&what("perplexity"), run.own_part(windows.len()), "windows");
        if !windows.is_empty() {
            let perplexity = perplexity(&decoder, windows, compute, &mut |done| progress.advance(done))?;
            self.perplexity.insert(key.to_owned(), perplexity);
        }
        drop(progress);
        match model {
            Model::Base => {}
            Model::Sft | Model::SftInit => {
                let held_out = &run.material.demonstrations.validation;
                let mut progress = Progress::of(&what("validation"), run.own_part(held_out.len()), "examples");
                let loss = nll(&decoder, held_out, compute, &mut |done| progress.advance(done))?;
                self.validation_loss.insert(model, loss);
            }
            Model::Ppo | Model::PpoPtx => {
                self.ppo.insert(model, ppo_results(run, model, &episodes, &scores, &decoder, frozen)?);
            }
        }
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        if model == Model::Sft {
            self.rewards = Some(rewards(run, key, &episodes, &scores, &frozen.reward_model)?);
        }
        Ok(Answered { episodes, scores })
    }
}

/// Who says which answer is better.
pub(crate) enum Judge {
    /// The rules of the simulated world, which the reward model never saw.
    InstructionWorld,
    /// A reward model trained from the base, with another seed, on the rankings that the first one never saw. It is a
    /// proxy too: its accuracy on the other rankings says how far to trust it, and the correlation of both
    /// models' scores how much it merely repeats the first.
    HeldOutRewardModel { model: Box<Decoder>, accuracy: f64, records: usize },
}

impl Judge {
    pub(crate) fn new(run: &Run<'_>) -> Result<Judge> {
        if run.config.data.judge == JudgeName::InstructionWorld {
            return Ok(Judge::InstructionWorld);
        }
        let mut artefact = run.artefact("judge-model")?;
        let model = match artefact.model() {
            Some(folder) => run.open(folder)?,
            None => {
                let groups: Vec<Group> = run.material.held_out_rankings.iter().map(|r| r.group.clone()).collect();
                // A seed of its own: the run's would give it the head and the order of the reward model that it
                // judges the results of, and the base's trunk shares less of that model's training than SFT's.
                let seed = Source::new(run.config.seed, "judge model").at([]).u64();
                let base = run.open_compared(Model::Base)?;
                let (trained, state) = run.train_reward_model(artefact, base, &groups, seed)?;
                artefact = trained;
                artefact.finish(state.step, |folder| Ok(run.save(&state.model, folder)?))?;
                state.model.params().release_grad();
                state.model
            }
        };
        let accuracy =
            report_card(&ranked(run, &model, &run.material.rankings.iter().collect::<Vec<_>>())?)?.accuracy.mean;
        Ok(Judge::HeldOutRewardModel {
            model: Box::new(model),
            accuracy,
            records: run.material.held_out_rankings.len(),
        })
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Judge::InstructionWorld => "simulation: the rules of the instruction world".to_owned(),
            Judge::HeldOutRewardModel { accuracy, records, .. } => format!(
                "a second reward model, trained from the base on {records} held-out rankings; it agrees with the other \
                 rankings on {:.1} % of pairs",
                100.0 * accuracy
            ),
        }
    }

    pub(crate) fn points(&self, run: &Run<'_>, prompts: &[PromptIds], episodes: &[Episode]) -> Result<Vec<f64>> {
        match self {
            Judge::InstructionWorld => Ok(episodes
                .iter()
                .map(|episode| f64::from(instruct_world::judge(&prompts[episode.group].text, episode.text.trim())))
                .collect()),
            Judge::HeldOutRewardModel { model, .. } => {
                Ok(run.scores(model, episodes)?.into_iter().map(f64::from).collect())
            }
        }
    }
}

/// The best by the reward model of `n` answers of `baseline` to each prompt.
fn best_of(
    run: &Run<'_>,
    baseline: &Decoder,
    n: usize,
    reward_model: &Decoder,
    prompts: &[PromptIds],
) -> Result<Vec<Episode>> {
    run.stop_if_interrupted()?;
    let ids: Vec<(usize, &[u32])> = prompts.iter().map(|p| p.ids.as_slice()).enumerate().collect();
    let score = |episodes: &[Episode]| Ok(run.scores_here(reward_model, episodes)?);
    let decode = |ids: &[u32]| run.decode(ids);
    let source = Source::new(run.config.seed, "best-of-n");
    let best = run.compute().share(ids.len(), |own| -> Result<_> {
        let mut progress = Progress::of(&format!("best of {n}"), n * own.len(), "answers");
        let mut finished = |answers: usize| progress.advance(answers);
        Ok(best_of_n(
            baseline,
            &ids[own],
            n,
            &run.sampling(),
            run.config.model.slots,
            source,
            &score,
            &decode,
            &mut finished,
        )?)
    })?;
    Ok(best.concat())
}

/// The candidates of both PPO runs, and the best of n answers of their reference, as the reward model and the judge see
/// them on validation prompts. None where no candidates were kept.
fn frontier(run: &Run<'_>, judge: &Judge, frozen: &Frozen) -> Result<Option<Frontier>> {
    if run.config.ppo.candidates == 0 {
        return Ok(None);
    }
    let prompts = run.selection_prompts();
    let gold = |episodes: &[Episode]| Ok::<_, anyhow::Error>(mean(&judge.points(run, prompts, episodes)?));
    let measured = |what: &str, name: &str, model: &Decoder| -> Result<Measured> {
        run.stop_if_interrupted()?;
        let ValidationAnswers { episodes, kl, score } = run.validated(what, model, frozen)?;
        Ok(Measured { name: name.to_owned(), kl, proxy: score, gold: gold(&episodes)? })
    };
    let mut runs = Vec::new();
    for model in [Model::PpoPtx, Model::Ppo] {
        let artefact = run.artefact(model.artefact().unwrap_or_default())?;
        let of = |name: &String| {
            let candidate = run.open_candidate(&artefact, name)?;
            measured(&format!("frontier: {}, {name}", model.key()), name, &candidate)
        };
        runs.push((model.key(), run.config.ppo.candidate_names().iter().map(of).collect::<Result<Vec<_>>>()?));
    }
    let start = run.open_compared(Model::SftInit)?;
    let reference = Measured { kl: 0.0, ..measured("frontier: reference", Model::SftInit.key(), &start)? };
    let best = |&n: &usize| -> Result<Measured> {
        let episodes = best_of(run, &start, n, &frozen.reward_model, prompts)?;
        let scores: Vec<f64> = run.scores(&frozen.reward_model, &episodes)?.into_iter().map(f64::from).collect();
        let (name, kl) = (format!("best of {n}"), best_of_n_kl(n));
        Ok(Measured { name, kl, proxy: mean(&scores), gold: gold(&episodes)? })
    };
    let best = run.config.evaluate.best_of_n.iter().map(best).collect::<Result<Vec<_>>>()?;
    Frontier::of(prompts.len(), run.config.kl_budget(), &reference, runs, best).map(Some)
}

impl RewardResults {
    /// Accuracy by labeler, use case, confidence and difference in length, a line each.
    pub(crate) fn groups(&self) -> Vec<String> {
        let card = &self.report_card;
        let by = [
            ("labeler", &card.by_labeler),
            ("use case", &card.by_use_case),
            ("confidence", &card.by_confidence),
            ("longer by", &card.by_length_gap),
        ];
        let line = |(kind, name, of): (&str, &String, &Interval)| {
            let label = format!("{kind} {name}");
            format!("{label:>32}  {}  n = {}", percent(of.mean, of.low, of.high), of.n)
        };
        by.into_iter()
            .flat_map(|(kind, groups)| groups.iter().map(move |(name, of)| (kind, name, of)))
            .map(line)
            .collect()
    }

    /// The line that a person reads.
    pub(crate) fn line(&self) -> String {
        let ceiling = self.accuracy_ceiling.map_or(String::new(), |c| format!(", ceiling {:.1}", 100.0 * c));
        let unseen = self.accuracy_unseen.map_or(String::new(), |unseen| {
            format!(
                "; unseen tasks {}, {} pairs",
                percent(unseen.mean, unseen.low, unseen.high).trim_start(),
                self.pairs_unseen
            )
        });
        let gain = &self.report_card.gain_over_length;
        format!(
            "{:>22}  {}  longer wins {:.1} (paired difference {}){ceiling}, ECE {:.3}, {} pairs{unseen}",
            "reward model accuracy",
            percent(self.accuracy, self.accuracy_low, self.accuracy_high),
            100.0 * self.accuracy_length_baseline,
            percent(gain.mean, gain.low, gain.high).trim(),
            self.ece,
            self.pairs
        )
    }
}

/// A share with its interval, or that there were too few outcomes for one.
pub(crate) fn percent(mean: f64, low: Option<f64>, high: Option<f64>) -> String {
    let interval = match (low, high) {
        (Some(low), Some(high)) => format!("[{:.1}, {:.1}]", 100.0 * low, 100.0 * high),
        _ => "[too few]".to_owned(),
    };
    format!("{:5.1} %  {interval}", 100.0 * mean)
}

/// A win rate, and that on unseen tasks.
fn won(all: &WinRate, unseen: Option<&WinRate>) -> String {
    let one = |w: &WinRate| format!("{}  n = {}", percent(w.mean, w.low, w.high), w.n);
    let unseen = unseen.map_or(String::new(), |unseen| format!("; unseen tasks {}", one(unseen).trim_start()));
    one(all) + &unseen
}

/// How a reward model orders the pairs of rankings that nothing was trained on.
pub(crate) fn reward_results(run: &Run<'_>, reward_model: &Decoder) -> Result<RewardResults> {
    graded(run, &ranked(run, reward_model, &run.material.held_out_rankings.iter().collect::<Vec<_>>())?)
}

/// The same of held-out rankings that have their scores.
pub(crate) fn graded(run: &Run<'_>, records: &[Ranked]) -> Result<RewardResults> {
    let card = report_card(records)?;
    let unseen = run.material.asked.as_ref().and_then(|asked| {
        let unseen = |record: &&Ranked| record.prompt.as_ref().is_some_and(|prompt| !asked.holds(prompt));
        // Whatever else could be wrong was wrong above: here there may be no pair, and then there is no accuracy.
        report_card(&records.iter().filter(unseen).cloned().collect::<Vec<_>>()).ok()
    });
    Ok(RewardResults {
        accuracy: card.accuracy.mean,
        accuracy_low: card.accuracy.low,
        accuracy_high: card.accuracy.high,
        accuracy_length_baseline: card.accuracy_length_baseline,
        accuracy_ceiling: card.accuracy_ceiling,
        accuracy_unseen: unseen.as_ref().map(|card| card.accuracy),
        ece: card.ece,
        pairs: card.pairs,
        pairs_unseen: unseen.map_or(0, |card| card.pairs),
        report_card: card,
        rewards: None,
    })
}

/// Rankings with a reward model's scores, and the gold judge's where there is one.
pub(crate) fn ranked(run: &Run<'_>, reward_model: &Decoder, rankings: &[&RankedGroup]) -> Result<Vec<Ranked>> {
    let items: Vec<Item> = rankings
        .iter()
        .flat_map(|r| r.group.completions.iter().map(|completion| Item { prompt: &r.group.prompt, completion }))
        .collect();
    let mut scores = run.scores_of("reward model's card", reward_model, &items)?.into_iter();
    let gold = run.config.data.judge == JudgeName::InstructionWorld;
    let record = |r: &&RankedGroup| {
        let points = |text: &String| f64::from(instruct_world::judge(&r.prompt, text.trim()));
        Ranked {
            scores: scores.by_ref().take(r.group.completions.len()).map(f64::from).collect(),
            ranks: r.group.ranks.clone(),
            lengths: r.group.completions.iter().map(Vec::len).collect(),
            same_as: first_alike(&r.group.completions),
            gold: gold.then(|| r.completions.iter().map(points).collect()),
            prompt: Some(r.prompt.clone()),
            labeler: r.labeler.clone(),
            use_case: r.use_case.clone(),
            confidence: r.confidence.map(|c| c.to_string()),
        }
    };
    Ok(rankings.iter().map(record).collect())
}

/// For each text, the index of the first that is equal.
fn first_alike(texts: &[Vec<u32>]) -> Vec<usize> {
    texts.iter().enumerate().map(|(i, text)| texts.iter().position(|other| other == text).unwrap_or(i)).collect()
}

fn ppo_results(
    run: &Run<'_>,
    model: Model,
    episodes: &[Episode],
    scores: &[f32],
    policy: &Decoder,
    frozen: &Frozen,
) -> Result<PpoResults> {
    let kl = run.kl(policy, episodes, scores, frozen)?;
    let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
    let journal = run.dir.path().join(model.artefact().unwrap_or_default()).join("metrics.jsonl");
    Ok(PpoResults {
        kl,
        score: mean(&scores),
        ratio_first_minibatch: largest_deviation(&journal)?,
        mean_tokens: Lengths::of(episodes).mean_tokens,
    })
}

/// The largest `ppo/policy/ratio_first_minibatch` of a run's journal.
fn largest_deviation(path: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let deviation = |line: &str| -> Option<f64> {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        row.get("ppo/policy/ratio_first_minibatch")?.as_f64()
    };
    Ok(text.lines().filter_map(deviation).fold(0.0, f64::max))
}

impl Results {
    /// The lines that a person reads at the end of a run.
    pub(crate) fn table(&self) -> String {
        let Comparison { win_rate, win_rate_unseen, answers, judge_correlation, best_of_n, .. } = &self.comparison;
        let mut lines = vec![format!("judge: {}", self.judge)];
        lines.extend(win_rate.iter().map(|(key, w)| format!("{key:>22}  {}", won(w, win_rate_unseen.get(key)))));
        for BestOfN { n, kl, win_rate_vs_sft, win_rate_vs_sft_unseen, lengths } in best_of_n {
            let rate = won(win_rate_vs_sft, win_rate_vs_sft_unseen.as_ref());
            let key = format!("best of {n} vs sft");
            lines.push(format!("{key:>22}  {rate}  KL {kl:.2}, {:.1} tokens", lengths.mean_tokens));
        }
        let each = |f: &dyn Fn(&Lengths) -> String| {
            answers.iter().map(|(name, of)| format!("{name} {}", f(of))).collect::<Vec<_>>().join("  ")
        };
        lines.push(format!("{:>22}  {}", "answers that end", each(&|of| format!("{:.1} %", 100.0 * of.ended))));
        lines.push(format!("{:>22}  {}", "tokens of an answer", each(&|of| format!("{:.1}", of.mean_tokens))));
        let number = |r: Option<f64>| r.map_or("none".to_owned(), |r| format!("{r:.2}"));
        lines.push(format!(
            "{:>22}  Pearson {}, Spearman {}, {} answers",
            "judge ~ reward model",
            number(judge_correlation.pearson),
            number(judge_correlation.spearman),
            judge_correlation.n
        ));
        lines.push(self.reward_model.line());
        for (name, p) in [("ppo-ptx", &self.ppo), ("ppo", &self.ppo_without_ptx)] {
            lines.push(format!(
                "{name:>22}  KL {:.2}, score {:.2}, {:.1} tokens, |ratio - 1| <= {:.1e}",
                p.kl, p.score, p.mean_tokens, p.ratio_first_minibatch
            ));
        }
        lines.extend(self.frontier.iter().flat_map(Frontier::lines));
        let tax: Vec<String> = self.alignment_tax.iter().map(|(name, p)| format!("{name} {p:.3}")).collect();
        if !tax.is_empty() {
            lines.push(format!("{:>22}  {}", "perplexity", tax.join("  ")));
        }
        let seconds: Vec<String> = self.seconds.iter().map(|(name, s)| format!("{name} {s:.0}")).collect();
        let total: f64 = self.seconds.values().sum();
        lines.push(format!("{:>22}  {} = {total:.0}", "seconds", seconds.join(" + ")));
        lines.extend(self.shared.lines());
        lines.push(format!("{:>22}  {:.0} MB", "peak memory", self.peak_memory_mb));
        lines.join("\n")
    }

    /// The headline numbers, by name.
    fn headlines(&self) -> BTreeMap<String, f64> {
        let mut out: BTreeMap<String, f64> =
            self.comparison.win_rate.iter().map(|(key, w)| (format!("win_rate/{key}"), w.mean)).collect();
        let unseen = self.comparison.win_rate_unseen.iter();
        out.extend(unseen.map(|(key, w)| (format!("win_rate_unseen/{key}"), w.mean)));
        for (name, lengths) in &self.comparison.answers {
            out.insert(format!("ended/{name}"), lengths.ended);
            out.insert(format!("tokens/{name}"), lengths.mean_tokens);
        }
        out.extend(self.comparison.judge_correlation.spearman.map(|r| ("judge_correlation/spearman".to_owned(), r)));
        out.extend(self.alignment_tax.iter().map(|(name, p)| (format!("perplexity/{name}"), *p)));
        out.insert("reward_model/accuracy".to_owned(), self.reward_model.accuracy);
        if let Some(ceiling) = self.reward_model.accuracy_ceiling {
            out.insert("reward_model/ceiling_minus_accuracy".to_owned(), ceiling - self.reward_model.accuracy);
        }
        out.extend(self.reward_model.accuracy_unseen.map(|of| ("reward_model/accuracy_unseen".to_owned(), of.mean)));
        out.insert("ppo_ptx/kl".to_owned(), self.ppo.kl);
        out.insert("seconds".to_owned(), self.seconds.values().sum());
        out.insert("peak_memory_mb".to_owned(), self.peak_memory_mb);
        out
    }
}

/// Mean and spread of every headline over seeds, written beside the runs.
pub(crate) fn over_seeds(folder: &Path, results: &[Results]) -> Result<()> {
    if results.is_empty() {
        return Ok(());
    }
    let mut columns: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, value) in results.iter().flat_map(Results::headlines) {
        columns.entry(name).or_default().push(value);
    }
    let spreads = columns.iter().map(|(name, values)| Ok((name.clone(), Spread::of(values)?)));
    let spreads = spreads.collect::<Result<BTreeMap<String, Spread>>>()?;
    for (name, s) in &spreads {
        print(&format!("{name:>38}  {:.4} +- {:.4}  [{:.4}, {:.4}]  {} seeds", s.mean, s.sd, s.min, s.max, s.n));
    }
    let report = serde_json::json!({ "spread": spreads, "runs": results });
    crate::commands::write_whole(&folder.join("results.json"), &serde_json::to_vec_pretty(&report)?)
}
