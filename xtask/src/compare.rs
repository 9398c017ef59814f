//! The comparison of models by what they answered. No model is opened here: answers come from outside, so that a
//! test can put a script in the place of decoders and a rule of its own in the place of the judge.

use crate::{
    models::{COMPARISONS, Model},
    prepare::PromptIds,
};
use anyhow::{Context, Result};
use instruct_eval::{Correlation, WinRate, best_of_n_kl, correlation, win_rate};
use instruct_rollout::Episode;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is asked, and who says which answer is better.
pub(crate) struct Panel<'a> {
    pub(crate) prompts: &'a [PromptIds],
    /// Which prompts ask for a task that nothing in training asks for; `None` where nobody can tell.
    pub(crate) unseen: Option<Vec<bool>>,
    /// Points of answers, one each.
    pub(crate) judge: &'a dyn Fn(&[Episode]) -> Result<Vec<f64>>,
}

/// One answer to each prompt.
pub(crate) struct Answered {
    pub(crate) episodes: Vec<Episode>,
    /// What the reward model says of them.
    pub(crate) scores: Vec<f64>,
}

/// What every compared model answered, and how that was judged.
pub(crate) struct AllJudged(BTreeMap<Model, Judged>);

struct Judged {
    answered: Answered,
    points: Vec<f64>,
}

/// Who won, and what the answers were like.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) win_rate: BTreeMap<String, WinRate>,
    /// The same on the prompts whose task nothing in training asks for; empty where there are none.
    pub(crate) win_rate_unseen: BTreeMap<String, WinRate>,
    pub(crate) judge_mean: BTreeMap<String, f64>,
    pub(crate) answers: BTreeMap<String, Lengths>,
    /// Of the judge's points and the reward model's scores, over all answers of all models.
    pub(crate) judge_correlation: Correlation,
    pub(crate) best_of_n: Vec<BestOfN>,
}

/// How long answers are. A judge may like what is long, and a cap flatters who has learned to be brief.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Lengths {
    /// Share of answers that a stop token ended, rather than the cap.
    pub(crate) ended: f64,
    /// Mean number of tokens, the stop token included.
    pub(crate) mean_tokens: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct BestOfN {
    pub(crate) n: usize,
    pub(crate) kl: f64,
    pub(crate) win_rate_vs_sft: WinRate,
    pub(crate) win_rate_vs_sft_unseen: Option<WinRate>,
    #[serde(flatten)]
    pub(crate) lengths: Lengths,
}

impl Panel<'_> {
    /// Asks every compared model, one after the other, and the judge about its answers.
    ///
    /// Errors: those of `answer` and of the judge.
    pub(crate) fn judge_all(&self, answer: &mut dyn FnMut(Model) -> Result<Answered>) -> Result<AllJudged> {
        let judged = |model: Model| {
            let answered = answer(model)?;
            let points = (self.judge)(&answered.episodes)?;
            Ok((model, Judged { answered, points }))
        };
        Ok(AllJudged(Model::ALL.into_iter().map(judged).collect::<Result<_>>()?))
    }

    /// Compares all answers, and the best of each `n` answers of the SFT model, which `best` gives, with that
    /// model's single ones.
    ///
    /// Errors: those of `best` and of the judge; answers that are not one for each prompt, or points that are no
    /// numbers.
    pub(crate) fn compare(
        &self,
        answers: &AllJudged,
        best_of_n: &[usize],
        best: &mut dyn FnMut(usize) -> Result<Vec<Episode>>,
    ) -> Result<Comparison> {
        let (mut all, mut unseen) = (BTreeMap::new(), BTreeMap::new());
        for (a, b) in COMPARISONS {
            let key = format!("{}_vs_{}", a.key(), b.key());
            let (rate, on_unseen) = self.rates(&answers.of(a)?.points, &answers.of(b)?.points)?;
            all.insert(key.clone(), rate);
            unseen.extend(on_unseen.map(|rate| (key, rate)));
        }
        let sft = &answers.of(Model::Sft)?.points;
        let best_of = |&n: &usize| {
            let episodes = best(n)?;
            let (win_rate_vs_sft, win_rate_vs_sft_unseen) = self.rates(&(self.judge)(&episodes)?, sft)?;
            let lengths = Lengths::of(&episodes);
            Ok(BestOfN { n, kl: best_of_n_kl(n), win_rate_vs_sft, win_rate_vs_sft_unseen, lengths })
        };
        Ok(Comparison {
            win_rate: all,
            win_rate_unseen: unseen,
            judge_mean: answers.by_key(|judged| mean(&judged.points)),
            answers: answers.by_key(|judged| Lengths::of(&judged.answered.episodes)),
            judge_correlation: answers.correlation()?,
            best_of_n: best_of_n.iter().map(best_of).collect::<Result<_>>()?,
        })
    }

    /// Win rates of `a` over `b`: on all prompts, and on those with an unseen task, where there are any.
    fn rates(&self, a: &[f64], b: &[f64]) -> Result<(WinRate, Option<WinRate>)> {
        let use_cases: Vec<String> = self.prompts.iter().map(|prompt| prompt.use_case.clone()).collect();
        let all = win_rate(a, b, Some(&use_cases))?;
        let marks = self.unseen.as_deref().unwrap_or_default();
        let unseen: Vec<usize> = (0..marks.len()).filter(|&i| marks[i]).collect();
        let on = |points: &[f64]| unseen.iter().map(|&i| points[i]).collect::<Vec<f64>>();
        let use_cases: Vec<String> = unseen.iter().map(|&i| use_cases[i].clone()).collect();
        let unseen = (!unseen.is_empty()).then(|| win_rate(&on(a), &on(b), Some(&use_cases))).transpose()?;
        Ok((all, unseen))
    }

    /// A table for people to read: every prompt with every model's answer and points.
    pub(crate) fn samples(&self, answers: &AllJudged) -> Vec<serde_json::Value> {
        let row = |(i, prompt): (usize, &PromptIds)| {
            let given = answers
                .0
                .iter()
                .map(|(model, judged)| (model.key(), judged.answered.episodes[i].text.as_str(), judged.points[i]));
            sample(prompt, &given.collect::<Vec<_>>())
        };
        self.prompts.iter().enumerate().map(row).collect()
    }
}

/// A prompt with answers to it: who gave each, its text, and its points.
pub(crate) fn sample(prompt: &PromptIds, answers: &[(&str, &str, f64)]) -> serde_json::Value {
    let answer = |&(who, text, points): &(&str, &str, f64)| {
        (who.to_owned(), serde_json::json!({ "text": text.trim(), "points": points }))
    };
    let answers: serde_json::Map<String, serde_json::Value> = answers.iter().map(answer).collect();
    serde_json::json!({ "prompt": prompt.text, "use_case": prompt.use_case, "answers": answers })
}

impl AllJudged {
    fn of(&self, model: Model) -> Result<&Judged> {
        self.0.get(&model).with_context(|| format!("{} was not asked", model.key()))
    }

    fn by_key<T>(&self, f: impl Fn(&Judged) -> T) -> BTreeMap<String, T> {
        self.0.iter().map(|(model, judged)| (model.key().to_owned(), f(judged))).collect()
    }

    fn correlation(&self) -> Result<Correlation> {
        let all = |f: &dyn Fn(&Judged) -> Vec<f64>| self.0.values().flat_map(f).collect::<Vec<f64>>();
        let (points, scores) = (all(&|judged| judged.points.clone()), all(&|judged| judged.answered.scores.clone()));
        Ok(correlation(&points, &scores)?)
    }
}

impl Lengths {
    pub(crate) fn of(episodes: &[Episode]) -> Lengths {
        let each = |f: &dyn Fn(&Episode) -> f64| mean(&episodes.iter().map(f).collect::<Vec<f64>>());
        Lengths {
            ended: each(&|episode| f64::from(u8::from(episode.ended_by_eos))),
            mean_tokens: each(&|episode| episode.completion.len() as f64),
        }
    }
}

/// 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers to ten prompts. A digit is the whole answer and worth its value to the judge.
    const SCRIPT: [(Model, &str); 5] = [
        (Model::Base, "0532466452"),
        (Model::Sft, "5641334240"),
        (Model::SftInit, "3035210540"),
        (Model::Ppo, "4452460420"),
        (Model::PpoPtx, "4024133001"),
    ];

    /// The prompts with an unseen task.
    const UNSEEN: [usize; 6] = [2, 4, 5, 7, 8, 9];

    /// What somebody with this many stop tokens and tokens per answer says.
    fn episodes(digits: &str, ended: usize, tokens: usize) -> Vec<Episode> {
        let episode = |(i, digit): (usize, char)| Episode {
            id: i as u64,
            group: i,
            prompt: vec![1],
            completion: vec![2; tokens],
            text: format!(" {digit}\n"),
            ended_by_eos: i < ended,
        };
        digits.chars().enumerate().map(episode).collect()
    }

    fn script(model: Model) -> Result<Answered> {
        let place = SCRIPT.iter().position(|(name, _)| *name == model).unwrap();
        let episodes = episodes(SCRIPT[place].1, 2 * place, 10 + place);
        // This reward model dislikes what the judge likes.
        let scores = episodes.iter().map(|e| 1.0 - 0.5 * digit(e)).collect();
        Ok(Answered { episodes, scores })
    }

    fn digit(episode: &Episode) -> f64 {
        episode.text.trim().parse().unwrap()
    }

    /// Runs the script through the evaluation, with or without knowing what is unseen.
    fn compared(knows_tasks: bool) -> (Comparison, Vec<serde_json::Value>) {
        let prompt = |i: usize| PromptIds {
            turns: Vec::new(),
            user: None,
            text: format!("prompt {i}"),
            use_case: if i < 4 { "chat" } else { "open_qa" }.to_owned(),
            ids: vec![1],
        };
        let prompts: Vec<PromptIds> = (0..10).map(prompt).collect();
        let judge = |episodes: &[Episode]| Ok(episodes.iter().map(digit).collect());
        let unseen = knows_tasks.then(|| (0..10).map(|i| UNSEEN.contains(&i)).collect());
        let panel = Panel { prompts: &prompts, unseen, judge: &judge };
        let all = panel.judge_all(&mut script).unwrap();
        let mut best =
            |n: usize| Ok(if n == 2 { episodes("3333333333", 9, 30) } else { episodes("5555555555", 3, 40) });
        (panel.compare(&all, &[2, 8], &mut best).unwrap(), panel.samples(&all))
    }

    /// Two models that change places, anywhere from the script to the key, change a number in each of their rows.
    #[test]
    fn every_comparison_is_between_the_models_that_it_names() {
        #[track_caller]
        fn check(comparison: &Comparison, key: &str, won: f64, won_unseen: f64) {
            let (got, on_unseen) = (&comparison.win_rate[key], &comparison.win_rate_unseen[key]);
            assert_eq!((got.mean, got.n), (won / 10.0, 10), "{key}");
            assert_eq!((on_unseen.mean, on_unseen.n), (won_unseen / 6.0, 6), "{key}, unseen");
        }
        let (comparison, _) = compared(true);
        assert_eq!(comparison.win_rate.len(), 7);
        check(&comparison, "ppo_ptx_vs_sft", 2.5, 1.5);
        check(&comparison, "ppo_vs_sft", 5.5, 4.5);
        check(&comparison, "ppo_ptx_vs_ppo", 3.5, 1.0);
        check(&comparison, "ppo_ptx_vs_sft_init", 4.5, 2.0);
        check(&comparison, "ppo_vs_sft_init", 6.0, 3.5);
        check(&comparison, "ppo_ptx_vs_base", 2.0, 0.0);
        check(&comparison, "sft_vs_base", 3.0, 1.0);
    }

    #[test]
    fn use_cases_and_means_are_those_of_the_prompts_and_models() {
        let (comparison, samples) = compared(true);
        let by_group = &comparison.win_rate["ppo_vs_sft"].by_group;
        assert_eq!((by_group["chat"].mean, by_group["chat"].n), (0.5, 4));
        assert_eq!((by_group["open_qa"].mean, by_group["open_qa"].n), (3.5 / 6.0, 6));
        let means: Vec<(&str, f64)> = comparison.judge_mean.iter().map(|(key, mean)| (key.as_str(), *mean)).collect();
        assert_eq!(means, [("base", 3.7), ("ppo", 3.1), ("ppo_ptx", 1.8), ("sft", 3.2), ("sft_init", 2.3)]);
        // Points fall in a straight line where scores rise.
        let Correlation { pearson, spearman, n } = comparison.judge_correlation;
        assert!((pearson.unwrap() + 1.0).abs() < 1e-12 && (spearman.unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(n, 50);
        assert_eq!(samples[9]["prompt"], "prompt 9");
        assert_eq!(samples[9]["answers"]["ppo_ptx"], serde_json::json!({ "text": "1", "points": 1.0 }));
        assert_eq!(samples[9]["answers"]["sft"], serde_json::json!({ "text": "0", "points": 0.0 }));
    }

    #[test]
    fn lengths_and_ends_are_those_of_the_model_that_spoke() {
        let (comparison, _) = compared(true);
        let got: Vec<(&str, f64, f64)> =
            comparison.answers.iter().map(|(key, of)| (key.as_str(), of.ended, of.mean_tokens)).collect();
        let want = [
            ("base", 0.0, 10.0),
            ("ppo", 0.6, 13.0),
            ("ppo_ptx", 0.8, 14.0),
            ("sft", 0.2, 11.0),
            ("sft_init", 0.4, 12.0),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn the_best_of_n_are_compared_with_sft() {
        let (comparison, _) = compared(true);
        let got: Vec<(usize, f64, f64)> = comparison
            .best_of_n
            .iter()
            .map(|b| (b.n, b.win_rate_vs_sft.mean, b.win_rate_vs_sft_unseen.as_ref().unwrap().mean))
            .collect();
        assert_eq!(got, [(2, 0.4, 0.5), (8, 0.85, 1.0)]);
        assert_eq!(comparison.best_of_n[0].lengths, Lengths { ended: 0.9, mean_tokens: 30.0 });
        assert_eq!(comparison.best_of_n[1].kl, best_of_n_kl(8));
    }

    #[test]
    fn without_tasks_nothing_is_said_of_unseen_ones() {
        let (comparison, _) = compared(false);
        assert!(comparison.win_rate_unseen.is_empty());
        assert!(comparison.best_of_n.iter().all(|best| best.win_rate_vs_sft_unseen.is_none()));
        let json = serde_json::to_value(&comparison).unwrap();
        let keys = ["win_rate", "judge_mean", "answers", "judge_correlation", "best_of_n"];
        assert!(keys.iter().all(|key| json.get(key).is_some()), "{json}");
        assert_eq!(json["best_of_n"][0]["mean_tokens"], 30.0);
    }
}
