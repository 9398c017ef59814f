//! People as the judge of two policies: both answers to a held-out prompt become a ranking task, whose labelers do not
//! learn which policy wrote which.

use super::super::tasks;
use crate::{desk, prepare::PromptIds, terminal::say};
use anyhow::Result;
use instruct_data::{Origin, Prompt};
use instruct_feedback::{Ranked, Refusal, Said, Sampled, Settings, State, Task, tasks_from};
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
    /// The new policy's answer.
    new: String,
    /// The task; none where both policies answered the same.
    task: Option<String>,
}

/// What people have said so far.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Votes {
    /// For each prompt with a verdict the mean over its labelers: 1 where the new policy's answer is better, 0.5 where it
    /// is as good, 0 where it is worse. While some prompts wait, those without need of a verdict are left out, because
    /// they would draw the mean of few towards a half.
    pub(super) outcomes: Vec<f64>,
    /// What these prompts ask for.
    pub(super) use_cases: Vec<String>,
    /// Prompts that people judged.
    pub(super) judged: usize,
    /// Prompts on which both policies answered the same, so that nobody is asked.
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
        let mut state = State::of(Settings::default(), folder.collected()?)?;
        let (mut comparisons, mut tasks, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (at, prompt) in prompts.iter().enumerate() {
            let (new, old) = (new[at].trim(), old[at].trim());
            // Held-out prompts may repeat one another.
            if !known.insert((&prompt.text, new, old)) {
                continue;
            }
            let (use_case, new_words) = (prompt.use_case.clone(), new.to_owned());
            if new == old {
                comparisons.push(Compared { use_case, new: new_words, task: None });
                continue;
            }
            let Some(task) = task(at, prompt, new, old, seed)? else { continue };
            // A conversation can hold what no page can show; the same words were asked before, perhaps in another order.
            if let Ok(_) | Err(Refusal::Used { .. }) = state.add_task(task.clone()) {
                comparisons.push(Compared { use_case, new: new_words, task: Some(task.id.clone()) });
                tasks.push(task);
            }
        }
        let left_out = prompts.len() - comparisons.len();
        if left_out > 0 {
            say(&format!("{left_out} comparisons are left out: they repeat another, or no page can show their words"));
        }
        tasks::add(&folder, tasks)?;
        Ok(Asked { feedback: feedback.to_owned(), comparisons })
    }

    /// What people have said so far, also while a server works in the folder.
    pub(super) fn votes(&self) -> Result<Votes> {
        let state = State::of(Settings::default(), desk::collected(&self.feedback)?)?;
        let mut said: BTreeMap<&str, Vec<&Ranked>> = BTreeMap::new();
        for event in state.counting() {
            if let Said::Ranking(ranked) = &event.said {
                said.entry(&ranked.task).or_default().push(ranked);
            }
        }
        let mut votes = Votes::default();
        let (mut outcomes, mut is_same) = (Vec::new(), Vec::new());
        for Compared { use_case, new, task } in &self.comparisons {
            let outcome = match task {
                None => {
                    votes.same += 1;
                    Some(0.5)
                }
                Some(id) => {
                    // Whoever wrote the prompt may have been forgotten, and the task with it.
                    let Some(task) = state.task(id) else { continue };
                    let slot = task.completions.iter().position(|of| of.text == *new);
                    said.get(id.as_str()).zip(slot).map(|(rankings, slot)| {
                        rankings.iter().map(|ranked| vote(ranked, slot)).sum::<f64>() / rankings.len() as f64
                    })
                }
            };
            match outcome {
                None => votes.waiting += 1,
                Some(outcome) => {
                    outcomes.push((outcome, use_case.clone()));
                    is_same.push(task.is_none());
                }
            }
        }
        votes.judged = outcomes.len() - votes.same;
        let counts = outcomes.into_iter().zip(is_same).filter(|(_, is_same)| !is_same || votes.waiting == 0);
        (votes.outcomes, votes.use_cases) = counts.map(|(of, _)| of).unzip();
        Ok(votes)
    }
}

/// The ranking task of two answers to a prompt; none where an answer is one that no record can hold.
fn task(at: usize, prompt: &PromptIds, new: &str, old: &str, seed: u64) -> Result<Option<Task>> {
    let completions = vec![("new policy".to_owned(), new.to_owned()), ("old policy".to_owned(), old.to_owned())];
    let (content, user) = (prompt.content(), prompt.user.clone());
    let use_case = Some(prompt.use_case.clone());
    let origin = Origin::new("held-out prompts", at + 1);
    let prompt = Prompt { id: format!("held-out-{at}"), content, user, use_case, origin };
    Ok(tasks_from(&[Sampled { prompt, completions }], seed)?.tasks.pop().map(Task::held_out))
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
    use instruct_data::{Message, Role};
    use instruct_feedback::{Submission, TaskKind};
    use std::fs;

    fn prompt(text: &str) -> PromptIds {
        PromptIds { text: text.to_owned(), turns: Vec::new(), use_case: "all".to_owned(), user: None, ids: vec![1] }
    }

    fn texts<const N: usize>(of: [&str; N]) -> Vec<String> {
        of.map(str::to_owned).to_vec()
    }

    /// What `by` says of tasks: the rank of the answer that begins with `new`, where the other has rank 2.
    fn say_of(tasks: &[Task], by: &str, new_ranks: &[u32]) -> String {
        let line = |(task, rank): (&Task, &u32)| {
            let shown: Vec<usize> = vec![1, 0];
            let is_new = |slot: &usize| task.completions[*slot].text.starts_with("new");
            let ranks: Vec<u32> = shown.iter().map(|slot| if is_new(slot) { *rank } else { 2 }).collect();
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
        let new = texts(["new 0", "new 1", "new 2", "the same ", "new 4", "new 5", "new 6"]);
        let old = texts(["old 0", "old 1", "old 2", "the same", "old 4", "old 5", "old 6"]);
        let prompts: Vec<PromptIds> = (0..7).map(|i| prompt(&format!("Prompt {i}"))).collect();
        let asked = Asked::add(place.path(), &prompts, &new, &old, 1).unwrap();
        let tasks = desk::collected(place.path()).unwrap().tasks;
        assert_eq!(tasks.len(), 6);
        assert!(tasks.iter().all(|task| task.kind == TaskKind::Rank && task.completions.len() == 2 && task.held_out));
        let first: BTreeSet<bool> = tasks.iter().map(|task| task.completions[0].text.starts_with("new")).collect();
        assert_eq!(first.len(), 2, "the number of an answer tells who wrote it");
        let nothing = asked.votes().unwrap();
        assert_eq!((nothing.outcomes, nothing.judged, nothing.same, nothing.waiting), (vec![], 0, 1, 6));
        // Ann says of the first four that the new one wins, ties, loses, wins; Bob that it loses the first.
        let log = say_of(&tasks, "ann", &[1, 2, 3, 1]) + &say_of(&tasks, "bob", &[3]);
        fs::write(place.path().join(desk::LOG), &log).unwrap();
        let votes = asked.votes().unwrap();
        assert_eq!(votes.outcomes, [0.5, 0.5, 0.0, 1.0]);
        assert_eq!((votes.judged, votes.same, votes.waiting, votes.use_cases.len()), (4, 1, 2, 4));
        // Asked again, perhaps by a run with another seed, nothing is doubled and nobody's vote goes to the other.
        for seed in 1..5 {
            let again = Asked::add(place.path(), &prompts, &new, &old, seed).unwrap();
            assert_eq!(desk::collected(place.path()).unwrap().tasks, tasks);
            assert_eq!(again.votes().unwrap(), votes);
        }
        // A task that was removed, because its author is forgotten, is not waited for.
        let all = fs::read_to_string(place.path().join(desk::TASKS)).unwrap();
        fs::write(
            place.path().join(desk::TASKS),
            all.lines().take(5).map(|line| format!("{line}\n")).collect::<String>(),
        )
        .unwrap();
        assert_eq!(asked.votes().unwrap().waiting, 1);
        fs::write(place.path().join(desk::TASKS), all).unwrap();
        // When nobody is waited for any more, what was the same counts too.
        fs::write(place.path().join(desk::LOG), log + &say_of(&tasks[4..], "ann", &[1, 1])).unwrap();
        assert_eq!(asked.votes().unwrap().outcomes, [0.5, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn what_repeats_or_cannot_be_shown_is_asked_of_nobody() {
        let place = tempfile::tempdir().unwrap();
        let turns = ["Hi", "", "Go on"].map(|words| (Role::User, words.to_owned())).to_vec();
        let blank = PromptIds { turns, ..prompt("Go on\n\nHi") };
        assert!(
            matches!(blank.content(), instruct_data::Content::Messages(said) if said.messages[1] == Message::new(Role::User, ""))
        );
        let prompts = [prompt("a"), prompt("a"), prompt("b"), blank];
        let (new, old) = (texts(["new", "new", "new\0", "new"]), texts(["old", "old", "old", "old"]));
        let asked = Asked::add(place.path(), &prompts, &new, &old, 1).unwrap();
        assert_eq!((asked.comparisons.len(), desk::collected(place.path()).unwrap().tasks.len()), (1, 1));
    }
}
