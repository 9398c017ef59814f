//! Bodies, files, the fold, assignment and records, from outside.

#![allow(clippy::unwrap_used, reason = "clippy does not count a helper in tests/ as a test")]

mod assign;
mod bodies;
mod files;
mod fold;
mod forget;
mod progress;
mod properties;
mod records;
mod tasks;

use instruct_data::{Message, Role};
use instruct_feedback::*;

/// A ranking task with completions `c0`, `c1`, ...
fn task(id: &str, completions: usize) -> Task {
    Task {
        id: id.to_owned(),
        kind: TaskKind::Rank,
        messages: vec![Message::new(Role::User, format!("prompt of {id}"))],
        completions: (0..completions).map(|i| completion(&format!("c{i}"), "ppo")).collect(),
        user: None,
        use_case: None,
        gold: None,
        held_out: false,
    }
}

fn writing(id: &str) -> Task {
    Task { kind: TaskKind::Demonstrate, completions: Vec::new(), ..task(id, 0) }
}

fn completion(text: &str, model: &str) -> Completion {
    Completion { text: text.to_owned(), models: vec![model.to_owned()] }
}

/// An answer to `prompt` that may be trained on.
fn answer(id: &str, labeler: &str, prompt: &str, text: &str) -> Answer {
    Answer {
        id: id.to_owned(),
        model: "ppo".to_owned(),
        messages: vec![Message::new(Role::User, prompt)],
        text: text.to_owned(),
        seed: u64::MAX,
        labeler: labeler.to_owned(),
        consent: true,
    }
}

/// What `by` posts at second `at`: the fields of the body beside its key, with single quotes for double ones.
#[track_caller]
fn event(key: &str, at: u64, by: &str, fields: &str) -> Event {
    let body = format!("{{'key':'{key}',{fields}}}").replace('\'', "\"");
    let submission = match fields.contains("'retracts'") {
        true => Submission::parse_retraction(body.as_bytes()),
        false => Submission::parse(body.as_bytes()),
    };
    submission.unwrap_or_else(|fault| panic!("{body}: {fault}")).event(by, at)
}

/// A ranking of all completions, shown in the order of their slots.
#[track_caller]
fn ranking(key: &str, at: u64, by: &str, task: &str, ranks: &[u32]) -> Event {
    let shown: Vec<usize> = (0..ranks.len()).collect();
    event(key, at, by, &format!("'kind':'ranking','task':'{task}','shown':{shown:?},'ranks':{ranks:?},'seconds':10"))
}

#[track_caller]
fn skip(key: &str, at: u64, by: &str, task: &str) -> Event {
    event(key, at, by, &format!("'kind':'skip','task':'{task}','reason':'other','seconds':1"))
}

#[track_caller]
fn retract(key: &str, at: u64, by: &str, of: &str) -> Event {
    event(key, at, by, &format!("'retracts':'{of}'"))
}

#[track_caller]
fn fold(tasks: Vec<Task>, answers: Vec<Answer>, events: Vec<Event>) -> State {
    State::of(Settings::default(), Collected { tasks, answers, events }).unwrap()
}

/// Settings under which every task wants so many labelers.
fn wanting(labelers: usize) -> Settings {
    Settings { overlap_percent: 100, overlap_labelers: labelers, ..Settings::default() }
}

/// Keys of what counts.
fn counting(state: &State) -> Vec<&str> {
    state.counting().iter().map(|event| event.key.as_str()).collect()
}
