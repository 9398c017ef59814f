//! Which tasks of the simulated world training asks for, so that results on other tasks can be told apart.
//!
//! The split is by user, and two users may ask for one task in different words. A prompt is *unseen* when no
//! record of training asks for its task in any words.

use crate::{config::JudgeName, until::Until};
use anyhow::{Result, bail};
use instruct_data::{Demonstration, Prompt, Ranking, Record, Split};
use std::collections::BTreeSet;

/// Tasks of the simulated world.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Asked(BTreeSet<String>);

impl Asked {
    /// The tasks of all records that are trained on. `None` with a judge that reads no tasks.
    ///
    /// Errors: a prompt that is to be judged on the way `until` there is not of the simulated world. Its judge would
    /// give every answer to it 0 points, and every comparison would be a tie.
    pub(crate) fn of(
        judge: JudgeName,
        demonstrations: &Split<Demonstration>,
        rankings: &Split<Ranking>,
        prompts: &Split<Prompt>,
        until: Until,
    ) -> Result<Option<Asked>> {
        if judge != JudgeName::InstructionWorld {
            return Ok(None);
        }
        let answered = prompts.test.iter().filter(|_| until >= Until::Evaluation).map(place);
        let ranked = rankings.validation.iter().chain(&rankings.test).filter(|_| until >= Until::RewardModel);
        let judged: Vec<_> = answered.chain(ranked.map(place)).collect();
        let foreign = || judged.iter().filter(|(_, text)| instruct_world::task(text).is_none());
        if let Some((origin, text)) = foreign().next() {
            let text: String = text.chars().take(60).collect();
            bail!(
                "`data.judge` is `instruction-world`, the rules of a simulation, which cannot read {} of the {} held-out \
                 prompts that it is to judge, such as {origin}: {text:?}; set it to `none`, or name prompts of that \
                 simulation",
                foreign().count(),
                judged.len()
            );
        }
        let texts = demonstrations.train.iter().map(Record::subject);
        let texts = texts.chain(rankings.train.iter().map(Record::subject));
        let texts = texts.chain(prompts.train.iter().map(Record::subject));
        Ok(Some(Asked(texts.filter_map(|text| instruct_world::task(&text)).collect())))
    }

    /// Whether training asks for the task of this prompt. A text without a task counts as asked: nothing is known of
    /// it, so nothing may be claimed.
    pub(crate) fn holds(&self, prompt: &str) -> bool {
        instruct_world::task(prompt).is_none_or(|task| self.0.contains(&task))
    }
}

/// Where a record stands, and the prompt's words.
fn place<T: Record>(record: &T) -> (String, String) {
    (record.origin().to_string(), record.subject())
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_data::{Content, Origin};

    fn prompt(line: usize, text: &str) -> Prompt {
        Prompt {
            id: line.to_string(),
            content: Content::Text(text.to_owned()),
            user: None,
            use_case: None,
            origin: Origin::new("p.jsonl", line),
        }
    }

    fn split<T>(train: Vec<T>, validation: Vec<T>, test: Vec<T>) -> Split<T> {
        Split { train, validation, test }
    }

    fn demonstration(text: &str) -> Demonstration {
        Demonstration { prompt: prompt(1, text), completion: "x".into() }
    }

    fn ranking(text: &str) -> Ranking {
        Ranking {
            prompt: prompt(2, text),
            completions: vec!["x".into(), "y".into()],
            ranks: vec![1, 2],
            labeler: None,
            confidence: None,
            quality: None,
            flags: None,
        }
    }

    fn opposite(of: &str) -> String {
        format!("What is the opposite of {of}?")
    }

    #[test]
    fn what_any_training_record_asks_in_any_words_is_seen() {
        let demonstrations =
            split(vec![demonstration(&opposite("big"))], vec![demonstration(&opposite("wet"))], vec![]);
        let rankings = split(vec![ranking("Tell me the opposite of old.")], vec![], vec![ranking(&opposite("dry"))]);
        let prompts = split(vec![prompt(3, &opposite("hot"))], vec![], vec![prompt(4, &opposite("tall"))]);
        let all = Until::Evaluation;
        let asked = Asked::of(JudgeName::InstructionWorld, &demonstrations, &rankings, &prompts, all).unwrap().unwrap();
        #[track_caller]
        fn check(asked: &Asked, adjective: &str, want: bool) {
            for words in [opposite(adjective), format!("Hello. Tell me the opposite of {adjective}. Thanks.")] {
                assert_eq!(asked.holds(&words), want, "{words}");
            }
        }
        for seen in ["big", "old", "hot"] {
            check(&asked, seen, true);
        }
        for unseen in ["wet", "dry", "tall", "new"] {
            check(&asked, unseen, false);
        }
        assert!(asked.holds("Prove the theorem of Fermat."), "nothing may be claimed of it");
    }

    #[test]
    fn prompts_that_the_judge_cannot_read_are_refused() {
        let foreign = "Prove the theorem of Fermat.";
        let until = |until, judge, held_out: &[&str], ranked: &str| {
            let prompts = (1..).zip(held_out).map(|(line, text)| prompt(line, text)).collect();
            let rankings = split(vec![], vec![ranking(ranked)], vec![]);
            Asked::of(
                judge,
                &split(vec![], vec![], vec![]),
                &rankings,
                &split(vec![prompt(9, foreign)], vec![], prompts),
                until,
            )
        };
        let of = |judge, held_out: &[&str], ranked: &str| until(Until::Evaluation, judge, held_out, ranked);
        #[track_caller]
        fn check(outcome: Result<Option<Asked>>, part: &str) {
            let message = outcome.expect_err("it is refused").to_string();
            assert!(message.contains(part) && message.contains("set it to `none`"), "{message}");
        }
        let (world, fine) = (JudgeName::InstructionWorld, opposite("big"));
        check(
            of(world, &[&fine, foreign, foreign], &fine),
            "cannot read 2 of the 4 held-out prompts that it is to judge, such as p.jsonl:2: \"Prove the theorem",
        );
        check(of(world, &[&fine], foreign), "cannot read 1 of the 2 held-out");
        assert!(of(world, &[&fine], &fine).unwrap().is_some(), "what is trained on is not judged");
        assert!(until(Until::Ppo, world, &[foreign], &fine).is_ok(), "no answer is judged on the way");
        assert!(until(Until::Sft, world, &[foreign], foreign).is_ok(), "no ranking is judged on the way");
        assert!(of(JudgeName::None, &[foreign], foreign).unwrap().is_none());
    }
}
