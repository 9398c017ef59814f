//! What a person wrote is taken out.

use crate::{
    answer::Answer,
    event::{Demonstrated, Event, Said, To},
    state::Collected,
    task::Task,
};
use std::collections::BTreeSet;

/// What remains when a person is forgotten, and what went.
#[derive(Clone, Debug, PartialEq)]
pub struct Forgotten {
    /// What remains, in its order: what the files are to hold from now on.
    pub remain: Collected,
    /// How many tasks went.
    pub tasks: usize,
    /// How many answers went.
    pub answers: usize,
    /// The keys of the events that went, in their order. A run that has one of them as the id of a record was
    /// trained on it.
    pub keys: Vec<String>,
}

/// Takes out everything that a labeler wrote: that person's events, the tasks whose prompt is that person's, the
/// answers that were given to that person, and what others said of these tasks and answers, for it holds the same
/// words or hangs in the air without them.
pub fn forget(labeler: &str, collected: Collected) -> Forgotten {
    let own_task = |task: &Task| task.user.as_deref() == Some(labeler);
    let own_answer = |answer: &Answer| answer.labeler == labeler;
    let (gone_tasks, tasks): (Vec<Task>, Vec<Task>) = collected.tasks.into_iter().partition(own_task);
    let (gone_answers, answers): (Vec<Answer>, Vec<Answer>) = collected.answers.into_iter().partition(own_answer);
    let task_names: BTreeSet<&str> = gone_tasks.iter().map(|task| task.id.as_str()).collect();
    let answer_names: BTreeSet<&str> = gone_answers.iter().map(|answer| answer.id.as_str()).collect();
    let names_task = |id: &String| task_names.contains(id.as_str());
    let names_answer = |id: &String| answer_names.contains(id.as_str());
    let touches = |event: &Event| match &event.said {
        Said::Ranking(ranked) => names_task(&ranked.task),
        Said::Skip(skipped) => names_task(&skipped.task),
        Said::Demonstration(Demonstrated { to: To::Task(task), .. }) => names_task(task),
        Said::Demonstration(_) => false,
        Said::Thumb(thumb) => names_answer(&thumb.answer),
        Said::Pair(paired) => paired.answers.iter().any(names_answer),
        Said::Edit(edited) => names_answer(&edited.answer),
        Said::Retract { .. } => false,
    };
    let goes = |event: &&Event| event.by == labeler || touches(event);
    let mut keys: BTreeSet<String> = collected.events.iter().filter(goes).map(|event| event.key.clone()).collect();
    // Who took back what went took back nothing that is left.
    let takes_back = |event: &&Event| matches!(&event.said, Said::Retract { retracts } if keys.contains(retracts));
    let retractions: Vec<String> = collected.events.iter().filter(takes_back).map(|event| event.key.clone()).collect();
    keys.extend(retractions);
    let (went, events): (Vec<Event>, Vec<Event>) =
        collected.events.into_iter().partition(|event| keys.contains(&event.key));
    Forgotten {
        tasks: gone_tasks.len(),
        answers: gone_answers.len(),
        keys: went.into_iter().map(|event| event.key).collect(),
        remain: Collected { tasks, answers, events },
    }
}
