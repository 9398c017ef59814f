//! People as the judge of two policies: both answers to a held-out prompt become a ranking task, whose labelers do not
//! learn which policy wrote which.

use super::super::tasks;
use crate::{desk, prepare::PromptIds, terminal::say};
use anyhow::{Context, Result};
use instruct_data::{Origin, Prompt};
use instruct_feedback::{Ranked, Said, Sampled, Settings, State, Task, tasks_from};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// What people are asked about two policies, held-out prompt by prompt.
#[derive(Serialize, Deserialize)]
pub(super) struct Asked {
    /// The folder of feedback where the tasks lie.
    pub(super) feedback: PathBuf,
    comparisons: Vec<Compared>,
}

/// Both answers to one prompt.
#[derive(Serialize, Deserialize)]
struct Compared {
    use_case: String,
    /// The task, and the number of the new policy's answer in it; none where both policies answered the same.
    task: Option<(String, usize)>,
}

/// What people have said so far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdicts {
    /// For each prompt with a verdict the mean over its labelers: 1 where the new policy's answer is better, 0.5 where it
    /// is as good, 0 where it is worse.
    pub(super) outcomes: Vec<f64>,
    /// What these prompts ask for.
    pub(super) use_cases: Vec<String>,
    /// Those among them on which both policies answered the same, so that nobody is asked.
    pub(super) same: usize,
    /// Prompts of which nobody has said anything.
    pub(super) waiting: usize,
}

impl Asked {
    /// Makes the tasks and adds those to the folder of feedback that are not there. `new` and `old` are the answers to
    /// the prompts, in their order; `seed` draws which of two has the lower number.
    ///
    /// Errors: another program works in the folder; the disk's.
    pub(super) fn add(
        feedback: &Path,
        prompts: &[PromptIds],
        new: &[String],
        old: &[String],
        seed: u64,
    ) -> Result<Asked> {
        let folder = desk::Folder::open(feedback)?;
        let (asked, tasks) = Asked::of(feedback, prompts, new, old, seed)?;
        tasks::add(&folder, tasks)?;
        Ok(asked)
    }

    fn of(
        feedback: &Path,
        prompts: &[PromptIds],
        new: &[String],
        old: &[String],
        seed: u64,
    ) -> Result<(Asked, Vec<Task>)> {
        let (mut comparisons, mut tasks, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (at, prompt) in prompts.iter().enumerate() {
            let (new, old, use_case) = (new[at].trim(), old[at].trim(), prompt.use_case.clone());
            if new == old {
                comparisons.push(Compared { use_case, task: None });
                continue;
            }
            // None where an answer is one that no record can hold.
            let Some(task) = task(at, prompt, new, old, seed)? else { continue };
            let slot = task.completions.iter().position(|completion| completion.text == new);
            let slot = slot.context("a task holds the answers that it was made of")?;
            // Held-out prompts may repeat one another.
            if known.insert(task.id.clone()) {
                comparisons.push(Compared { use_case, task: Some((task.id.clone(), slot)) });
                tasks.push(task);
            }
        }
        let left_out = prompts.len() - comparisons.len();
        if left_out > 0 {
            say(&format!(
                "{left_out} comparisons are left out: they repeat another, or no record may hold their answers"
            ));
        }
        Ok((Asked { feedback: feedback.to_owned(), comparisons }, tasks))
    }

    /// What people have said so far, also while a server works in the folder.
    pub(super) fn verdicts(&self) -> Result<Verdicts> {
        let state = State::of(Settings::default(), desk::collected(&self.feedback)?)?;
        let mut said: BTreeMap<&str, Vec<&Ranked>> = BTreeMap::new();
        for event in state.counting() {
            if let Said::Ranking(ranked) = &event.said {
                said.entry(&ranked.task).or_default().push(ranked);
            }
        }
        let mut verdicts = Verdicts::default();
        for Compared { use_case, task } in &self.comparisons {
            let outcome = match task {
                None => {
                    verdicts.same += 1;
                    0.5
                }
                Some((task, new)) => match said.get(task.as_str()) {
                    Some(rankings) => {
                        rankings.iter().map(|ranked| vote(ranked, *new)).sum::<f64>() / rankings.len() as f64
                    }
                    None => {
                        verdicts.waiting += 1;
                        continue;
                    }
                },
            };
            verdicts.outcomes.push(outcome);
            verdicts.use_cases.push(use_case.clone());
        }
        Ok(verdicts)
    }
}

/// The ranking task of two answers to a prompt.
fn task(at: usize, prompt: &PromptIds, new: &str, old: &str, seed: u64) -> Result<Option<Task>> {
    let completions = vec![("new policy".to_owned(), new.to_owned()), ("old policy".to_owned(), old.to_owned())];
    let (content, use_case) = (prompt.content(), Some(prompt.use_case.clone()));
    let origin = Origin::new("held-out prompts", at + 1);
    let prompt = Prompt { id: format!("held-out-{at}"), content, user: None, use_case, origin };
    Ok(tasks_from(&[Sampled { prompt, completions }], seed)?.tasks.pop())
}

/// What one labeler says of the answer with this number against the other.
fn vote(ranked: &Ranked, new: usize) -> f64 {
    let rank = |wanted: bool| ranked.shown.iter().zip(&ranked.ranks).find(|(slot, _)| (**slot == new) == wanted);
    match rank(true).map(|(_, rank)| rank).cmp(&rank(false).map(|(_, rank)| rank)) {
        Ordering::Less => 1.0,
        Ordering::Equal => 0.5,
        Ordering::Greater => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_feedback::{Submission, TaskKind};

    fn prompt(text: &str) -> PromptIds {
        PromptIds { text: text.to_owned(), turns: Vec::new(), use_case: "all".to_owned(), ids: vec![1] }
    }

    /// Says of each task which of its answers is better, by their words: `new` wins, ties or loses.
    fn say_of(tasks: &[Task], by: &str, new_ranks: &[u32]) -> String {
        let line = |(task, rank): (&Task, &u32)| {
            let shown: Vec<usize> = vec![1, 0];
            let ranks: Vec<u32> =
                shown.iter().map(|at| if task.completions[*at].text.starts_with("new") { *rank } else { 2 }).collect();
            let body = format!(
                r#"{{"key":"{by}-{}","kind":"ranking","task":"{}","shown":{shown:?},"ranks":{ranks:?},"seconds":1}}"#,
                task.id, task.id
            );
            Submission::parse(body.as_bytes()).unwrap().event(by, 1).line()
        };
        tasks.iter().zip(new_ranks).map(line).collect()
    }

    #[test]
    fn votes_are_those_for_the_new_policy_whatever_order_people_saw() {
        let place = tempfile::tempdir().unwrap();
        let words =
            |of: &str| (0..7).map(|i| if i == 3 { "the same ".to_owned() } else { format!("{of} {i}") }).collect();
        let (new, old): (Vec<String>, Vec<String>) = (words("new"), words("old"));
        let prompts: Vec<PromptIds> = (0..7).map(|i| prompt(&format!("Prompt {i}"))).collect();
        let asked = Asked::add(place.path(), &prompts, &new, &old, 1).unwrap();
        let tasks = desk::collected(place.path()).unwrap().tasks;
        assert_eq!(tasks.len(), 6);
        assert!(tasks.iter().all(|task| task.kind == TaskKind::Rank && task.completions.len() == 2));
        let first: BTreeSet<bool> = tasks.iter().map(|task| task.completions[0].text.starts_with("new")).collect();
        assert_eq!(first.len(), 2, "the number of an answer tells who wrote it");
        let nothing = asked.verdicts().unwrap();
        assert_eq!((nothing.outcomes, nothing.same, nothing.waiting), (vec![0.5], 1, 6));
        // Ann says of the first four that the new one wins, ties, loses, wins; Bob that it loses the first.
        let log = say_of(&tasks, "ann", &[1, 2, 3, 1]) + &say_of(&tasks, "bob", &[3]);
        std::fs::write(place.path().join(desk::LOG), log).unwrap();
        let verdicts = asked.verdicts().unwrap();
        assert_eq!(verdicts.outcomes, [0.5, 0.5, 0.0, 0.5, 1.0]);
        assert_eq!((verdicts.same, verdicts.waiting, verdicts.use_cases.len()), (1, 2, 5));
        // Asked again, nothing is doubled.
        let again = Asked::add(place.path(), &prompts, &new, &old, 1).unwrap();
        assert_eq!(desk::collected(place.path()).unwrap().tasks, tasks);
        assert_eq!(again.verdicts().unwrap(), verdicts);
    }

    #[test]
    fn what_repeats_or_cannot_be_written_down_is_asked_of_nobody() {
        let prompts = ["a", "a", "b"].map(prompt);
        let (new, old) = (["new", "new", "new\0"].map(str::to_owned), ["old", "old", "old"].map(str::to_owned));
        let (asked, tasks) = Asked::of(Path::new("nowhere"), &prompts, &new, &old, 1).unwrap();
        assert_eq!((asked.comparisons.len(), tasks.len()), (1, 1));
    }
}
