//! The fold: tasks, answers and events become what counts.

use crate::{
    answer::Answer,
    event::{Event, Said, To},
    fault::{Fault, Problem},
    fields::check_id,
    task::{Task, TaskKind},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the fold is told beside what people said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seed of all draws: which tasks several labelers get, and in which order each sees completions.
    pub seed: u64,
    /// Of a hundred ranking tasks, how many go to several labelers, so that their agreement can be measured.
    pub overlap_percent: u64,
    /// How many labelers those go to.
    pub overlap_labelers: usize,
    /// How long a task is kept for the labeler who has it, in seconds.
    pub lease: u64,
}

impl Default for Settings {
    /// A fifth of the tasks to three labelers; half an hour.
    fn default() -> Settings {
        Settings { seed: 0, overlap_percent: 20, overlap_labelers: 3, lease: 1800 }
    }
}

/// All that is on disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// `tasks.jsonl`.
    pub tasks: Vec<Task>,
    /// `answers.jsonl`.
    pub answers: Vec<Answer>,
    /// `log.jsonl`.
    pub events: Vec<Event>,
}

/// What follows from all that was said so far. At start it is folded from the files, and while a server runs it
/// takes one event after the other; both give the same.
///
/// Of several events of one person on one thing (a task, an answer, two answers) the last counts that is not
/// retracted. An event can be retracted before it arrives: a page that takes back what it could not deliver is right
/// when the delivery comes late.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) tasks: Vec<Task>,
    /// How many labelers each task wants, as [`State::wanted`] says.
    pub(crate) wants: Vec<Option<usize>>,
    /// The tasks' places in these lists.
    places: BTreeMap<String, usize>,
    pub(crate) answers: BTreeMap<String, Answer>,
    events: Vec<Event>,
    keys: BTreeMap<String, usize>,
    /// Labelers, and the keys of what they take back.
    retracted: BTreeSet<(String, String)>,
    /// Events on a thing, by labeler, in the order in which they came.
    on: BTreeMap<Subject, BTreeMap<String, Vec<usize>>>,
    pub(crate) leases: BTreeMap<(String, TaskKind), Lease>,
}

/// What somebody has said something about, in one of the ways in which it can be done again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// A task by its place, ranked or answered.
    Answered(usize),
    /// A task by its place, left to others.
    Skipped(usize),
    /// A conversation of one's own, by the key of the demonstration: each is another.
    Own(String),
    /// An answer.
    Thumb(String),
    /// Two answers, in the order of their names.
    Pair(String, String),
    /// An answer.
    Edit(String),
}

/// A task that is kept for a labeler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The task's place.
    pub(crate) task: usize,
    /// The second from which on it is not.
    pub(crate) until: u64,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is new. Write it into the log before anybody hears that it is saved.
    Saved,
    /// It is there already: the answer to the first one was lost on its way.
    Repeated,
}

/// Why an event, a task or an answer is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key, or the name of a task or an answer, stands for something else.
    #[error("`{id}` is already used for something else")]
    Used {
        /// The key or the name.
        id: String,
    },
    /// There is no such task.
    #[error("there is no task `{task}`")]
    UnknownTask {
        /// Its name.
        task: String,
    },
    /// The task asks for something else.
    #[error("the task `{task}` wants `{}`", .wants.as_str())]
    OtherKind {
        /// Its name.
        task: String,
        /// What it asks for.
        wants: TaskKind,
    },
    /// There is no such answer, or somebody else asked for it: who may not see it does not learn which.
    #[error("there is no answer `{answer}`")]
    UnknownAnswer {
        /// Its name.
        answer: String,
    },
    /// Two answers to different prompts, which cannot be compared.
    #[error("`{left}` and `{right}` answer different prompts")]
    DifferentPrompts {
        /// The one.
        left: String,
        /// The other.
        right: String,
    },
    /// Somebody else said it.
    #[error("`{key}` is somebody else's")]
    NotYours {
        /// Its key.
        key: String,
    },
    /// It is a retraction itself.
    #[error("`{key}` is a retraction; say again what it took back")]
    Retraction {
        /// Its key.
        key: String,
    },
    /// It does not fit the task.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A line that the fold refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {refusal}")]
pub struct Refused {
    /// `tasks`, `answers` or `log`.
    pub file: &'static str,
    /// The line, from 1.
    pub line: usize,
    /// Why.
    pub refusal: Refusal,
}

impl State {
    /// Nothing has been said yet, and nobody is asked anything.
    pub fn new(settings: Settings) -> State {
        State {
            settings,
            tasks: Vec::new(),
            wants: Vec::new(),
            places: BTreeMap::new(),
            answers: BTreeMap::new(),
            events: Vec::new(),
            keys: BTreeMap::new(),
            retracted: BTreeSet::new(),
            on: BTreeMap::new(),
            leases: BTreeMap::new(),
        }
    }

    /// The fold over all that is on disk.
    ///
    /// # Errors
    /// The first line that it refuses.
    pub fn of(settings: Settings, collected: Collected) -> Result<State, Refused> {
        let mut state = State::new(settings);
        let refused = |file, index: usize| move |refusal| Refused { file, line: index + 1, refusal };
        for (index, task) in collected.tasks.into_iter().enumerate() {
            state.add_task(task).map_err(refused("tasks", index))?;
        }
        for (index, answer) in collected.answers.into_iter().enumerate() {
            state.add_answer(answer).map_err(refused("answers", index))?;
        }
        for (index, event) in collected.events.into_iter().enumerate() {
            state.apply(event).map_err(refused("log", index))?;
        }
        Ok(state)
    }

    /// Takes a task, after those that are there.
    ///
    /// # Errors
    /// [`Refusal::Used`] of a name that stands for another task, and what is wrong with the task itself.
    pub fn add_task(&mut self, task: Task) -> Result<Applied, Refusal> {
        task.check()?;
        if let Some(known) = self.task(&task.id) {
            return if *known == task { Ok(Applied::Repeated) } else { Err(Refusal::Used { id: task.id }) };
        }
        self.places.insert(task.id.clone(), self.tasks.len());
        self.wants.push(self.wanted(&task));
        self.tasks.push(task);
        Ok(Applied::Saved)
    }

    /// Takes an answer that was served.
    ///
    /// # Errors
    /// [`Refusal::Used`] of a name that stands for another answer, and names that are none.
    pub fn add_answer(&mut self, answer: Answer) -> Result<Applied, Refusal> {
        check_id("id", &answer.id)?;
        check_id("labeler", &answer.labeler)?;
        match self.answers.get(&answer.id) {
            Some(known) if *known == answer => Ok(Applied::Repeated),
            Some(_) => Err(Refusal::Used { id: answer.id }),
            None => {
                self.answers.insert(answer.id.clone(), answer);
                Ok(Applied::Saved)
            }
        }
    }

    /// Takes an event.
    ///
    /// # Errors
    /// As [`State::check`]; then nothing has changed.
    pub fn apply(&mut self, event: Event) -> Result<Applied, Refusal> {
        let applied = self.check(&event)?;
        if applied == Applied::Saved {
            self.insert(event);
        }
        Ok(applied)
    }

    /// What [`State::apply`] would say. Ask before the event is written into the log, for a log that the fold refuses
    /// cannot be opened again. Whether the labeler holds a lease is not asked: work that was done is kept.
    ///
    /// # Errors
    /// Why the event cannot be taken.
    pub fn check(&self, event: &Event) -> Result<Applied, Refusal> {
        check_id("key", &event.key)?;
        check_id("by", &event.by)?;
        if let Some(&place) = self.keys.get(&event.key) {
            let known = &self.events[place];
            let same = known.by == event.by && known.said == event.said;
            return if same { Ok(Applied::Repeated) } else { Err(Refusal::Used { id: event.key.clone() }) };
        }
        match &event.said {
            Said::Ranking(ranked) => {
                let task = self.task_for(&ranked.task, Some(TaskKind::Rank))?;
                ranked.check(task.completions.len())?;
            }
            Said::Skip(skipped) => drop(self.task_for(&skipped.task, None)?),
            Said::Demonstration(demonstrated) => {
                if let To::Task(task) = &demonstrated.to {
                    self.task_for(task, Some(TaskKind::Demonstrate))?;
                }
            }
            Said::Thumb(thumb) => drop(self.answer_for(&thumb.answer, &event.by)?),
            Said::Pair(paired) => self.check_pair(&paired.answers, &event.by)?,
            Said::Edit(edited) => drop(self.answer_for(&edited.answer, &event.by)?),
            Said::Retract { retracts } => self.check_retraction(retracts, event)?,
        }
        Ok(Applied::Saved)
    }

    fn check_pair(&self, [left, right]: &[String; 2], by: &str) -> Result<(), Refusal> {
        let prompt = |answer| Ok::<_, Refusal>(&self.answer_for(answer, by)?.messages);
        if prompt(left)? == prompt(right)? {
            return Ok(());
        }
        Err(Refusal::DifferentPrompts { left: left.clone(), right: right.clone() })
    }

    fn check_retraction(&self, key: &str, event: &Event) -> Result<(), Refusal> {
        if key == event.key {
            return Err(Fault::new("retracts", Problem::Repeated { value: key.to_owned() }).into());
        }
        match self.keys.get(key).map(|&place| &self.events[place]) {
            Some(known) if known.by != event.by => Err(Refusal::NotYours { key: key.to_owned() }),
            Some(Event { said: Said::Retract { .. }, .. }) => Err(Refusal::Retraction { key: key.to_owned() }),
            _ => Ok(()),
        }
    }

    fn task_for(&self, id: &str, kind: Option<TaskKind>) -> Result<&Task, Refusal> {
        let task = self.task(id).ok_or_else(|| Refusal::UnknownTask { task: id.to_owned() })?;
        match kind {
            Some(kind) if kind != task.kind => Err(Refusal::OtherKind { task: id.to_owned(), wants: task.kind }),
            _ => Ok(task),
        }
    }

    fn answer_for(&self, id: &str, by: &str) -> Result<&Answer, Refusal> {
        let own = self.answers.get(id).filter(|answer| answer.labeler == by);
        own.ok_or_else(|| Refusal::UnknownAnswer { answer: id.to_owned() })
    }

    fn insert(&mut self, event: Event) {
        let place = self.events.len();
        if let Said::Retract { retracts } = &event.said {
            self.retracted.insert((event.by.clone(), retracts.clone()));
        }
        if let Some(subject) = self.subject(&event) {
            self.leases.retain(|(labeler, _), lease| *labeler != event.by || !subject.ends(lease.task));
            self.on.entry(subject).or_default().entry(event.by.clone()).or_default().push(place);
        }
        self.keys.insert(event.key.clone(), place);
        self.events.push(event);
    }

    /// What an event is about; `None` of a retraction, which is about an event. The tasks that events name are there.
    fn subject(&self, event: &Event) -> Option<Subject> {
        let place = |task: &String| self.places.get(task).copied();
        Some(match &event.said {
            Said::Ranking(ranked) => Subject::Answered(place(&ranked.task)?),
            Said::Skip(skipped) => Subject::Skipped(place(&skipped.task)?),
            Said::Demonstration(demonstrated) => match &demonstrated.to {
                To::Task(task) => Subject::Answered(place(task)?),
                To::Messages(_) => Subject::Own(event.key.clone()),
            },
            Said::Thumb(thumb) => Subject::Thumb(thumb.answer.clone()),
            Said::Pair(paired) => {
                let [left, right] = &paired.answers;
                Subject::Pair(left.min(right).clone(), left.max(right).clone())
            }
            Said::Edit(edited) => Subject::Edit(edited.answer.clone()),
            Said::Retract { .. } => return None,
        })
    }

    /// A task by its name.
    pub fn task(&self, id: &str) -> Option<&Task> {
        self.places.get(id).map(|&place| &self.tasks[place])
    }

    /// An answer by its name.
    pub fn answer(&self, id: &str) -> Option<&Answer> {
        self.answers.get(id)
    }

    /// Every event, in the order in which they came, what was retracted too.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Whether an event was retracted.
    pub(crate) fn is_retracted(&self, event: &Event) -> bool {
        self.retracted.contains(&(event.by.clone(), event.key.clone()))
    }

    /// The event that counts of those at `places`: the last that is not retracted.
    fn last_of(&self, places: &[usize]) -> Option<&Event> {
        places.iter().rev().map(|&place| &self.events[place]).find(|event| !self.is_retracted(event))
    }

    /// The events on a thing that count, by labeler.
    pub(crate) fn said_on<'a>(&'a self, subject: &Subject) -> impl Iterator<Item = (&'a str, &'a Event)> + use<'a> {
        let by = self.on.get(subject).into_iter().flatten();
        by.filter_map(|(labeler, places)| Some((labeler.as_str(), self.last_of(places)?)))
    }

    /// What a labeler said about a thing: nothing ever, something that was retracted since, or what counts.
    pub(crate) fn said_by(&self, subject: &Subject, labeler: &str) -> Option<Option<&Event>> {
        self.on.get(subject)?.get(labeler).map(|places| self.last_of(places))
    }

    /// Every event that counts, by time and key: neither retracted, nor followed by another of the same person on the
    /// same thing.
    pub fn counting(&self) -> Vec<&Event> {
        let places = self.on.values().flat_map(BTreeMap::values);
        let mut events: Vec<&Event> = places.filter_map(|places| self.last_of(places)).collect();
        events.sort_by(|a, b| (a.at, &a.key).cmp(&(b.at, &b.key)));
        events
    }
}

impl Subject {
    /// Whether the labeler is done with the task once this is said.
    fn ends(&self, task: usize) -> bool {
        matches!(self, Subject::Answered(done) | Subject::Skipped(done) if *done == task)
    }
}
