//! What people said is a log of events; everything else is a fold over it.
//!
//! People rank completions, compare two answers, correct one, write one, or take back what they said. Each of these
//! is an [`Event`], one line of a file that is only ever appended to. Who is asked what next, how far the work is,
//! how well people agree and what may be trained on follow from the events, the [`Task`]s and the [`Answer`]s that
//! they name: a [`State`] is folded from the files when a server starts, takes one event after the other while it
//! runs, and is the same either way.
//!
//! Nothing here opens a file, reads a clock or knows a model: bytes and the present second are handed in. So
//! whoever uses it decides when a line is safe on disk, and tests need neither.
//!
//! - A client's body becomes a [`Submission`], and with labeler and second an event; [`State::check`] says whether
//!   it may be written into the log, [`State::apply`] takes it.
//! - [`read_log`], [`read_tasks`] and [`read_answers`] read the files and say where a torn end begins.
//! - [`State::next`] assigns, [`records`] says what becomes what, [`progress`], [`groups`], [`shown_ranks`] and
//!   [`gold`] count.
//! - [`tasks_from`] makes tasks of sampled completions; [`forget`] takes out what a person wrote.
//!
//! Draws have addresses: the tasks that several labelers get, the numbers of completions and the order in which a
//! labeler sees them are functions of the seed and of names, and stay when tasks are added.
//!
//! # Example
//!
//! ```
//! use instruct_data::{Content, Origin, Prompt, Record};
//! use instruct_feedback::*;
//!
//! // Two models answered one prompt.
//! let content = Content::Text("Name a fruit.".to_owned());
//! let prompt = Prompt { id: "p".into(), content, user: None, use_case: None, origin: Origin::new("prompts.jsonl", 1) };
//! let completions = vec![("ppo".to_owned(), "An apple.".to_owned()), ("sft".to_owned(), "Fruit.".to_owned())];
//! let tasks = tasks_from(&[Sampled { prompt, completions }], 7)?.tasks;
//!
//! // Ann asks for work, and posts what she thinks.
//! let mut state = State::of(Settings::default(), Collected { tasks, ..Collected::default() })?;
//! let assigned = state.next("ann", TaskKind::Rank, 1_000).ok_or("no task")?;
//! let body = format!(
//!     r#"{{"key":"k1","kind":"ranking","task":"{}","shown":{:?},"ranks":[1,2],"seconds":9}}"#,
//!     assigned.task, assigned.order,
//! );
//! let event = Submission::parse(body.as_bytes())?.event("ann", 1_009);
//! assert_eq!(state.check(&event)?, Applied::Saved);
//! let log = event.line(); // to be written and synced before Ann hears that it is saved
//! state.apply(event.clone())?;
//! assert_eq!(state.apply(event)?, Applied::Repeated); // her page asked twice
//!
//! // What is trained on.
//! let record = &records(&state, &Options::default()).rankings[0];
//! assert_eq!((record.prompt.id.as_str(), record.labeler.as_deref()), ("k1", Some("ann")));
//!
//! // The log says the same when the server starts again.
//! let (events, torn) = read_log(log.as_bytes())?;
//! assert_eq!((events.as_slice(), torn), (state.events(), None));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answer;
mod assign;
mod event;
mod fault;
mod fields;
mod forget;
mod log;
mod progress;
mod records;
mod state;
mod submission;
mod task;

pub use crate::{
    answer::Answer,
    assign::{Assigned, Queue},
    event::{
        Choice, Demonstrated, Edited, Event, Flag, Kind, Paired, Ranked, Reason, Said, Skipped, Thumb, To, VERSION,
    },
    fault::{Fault, Problem},
    fields::{MAX_COMPLETIONS, MAX_MESSAGES, MAX_NOTE, MAX_TEXT},
    forget::{Forgotten, forget},
    log::{LineError, LineProblem, Torn, read_answers, read_log, read_tasks},
    progress::{Gold, Labeled, Progress, Tasks, gold, groups, progress, shown_ranks},
    records::{ALL_BAD, EDITED, Options, Rated, Records, Why, records},
    state::{Applied, Collected, Refusal, Refused, Settings, State},
    submission::Submission,
    task::{Completion, Made, Sampled, Task, TaskKind, tasks_from},
};
