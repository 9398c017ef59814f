//! What people are asked to do.

use crate::{
    event::VERSION,
    fault::{Fault, Problem},
    fields::{
        Fields, MAX_COMPLETIONS, answerable, check_id, id, list, message, rank, string, truth, usable, word, words,
    },
};
use instruct_data::{Content, Conversation, Message, Prompt, Role};
use instruct_random::Source;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a labeler is asked to do: rank the completions of a prompt, or write the completion of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Made of its content, so the same prompt with the same completions has it again.
    pub id: String,
    /// What is to be done.
    pub kind: TaskKind,
    /// The prompt.
    pub messages: Vec<Message>,
    /// The completions; a completion's index is its `slot`. None where one is to be written.
    pub completions: Vec<Completion>,
    /// Who wrote the prompt.
    pub user: Option<String>,
    /// What the prompt asks for.
    pub use_case: Option<String>,
    /// The ranks that are known to be right, in the order of `completions`. Such a task tests labelers, so each of
    /// them gets it once, and it is never trained on.
    pub gold: Option<Vec<u32>>,
    /// The prompt is held out: what is said of it compares models, and is never trained on.
    pub held_out: bool,
}

words! {
    /// What a labeler is asked to do.
    TaskKind {
        /// Rank completions.
        Rank = "rank",
        /// Write a completion.
        Demonstrate = "demonstrate",
    }
}

/// A completion and the models that wrote it: several where they wrote the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// The words.
    pub text: String,
    /// Names of models. They never leave the server.
    pub models: Vec<String>,
}

/// A prompt and what models wrote for it: `(model, text)`, in any order.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The prompt.
    pub prompt: Prompt,
    /// The completions.
    pub completions: Vec<(String, String)>,
}

/// Tasks, and what gave none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The tasks, in the order of the prompts.
    pub tasks: Vec<Task>,
    /// Indices of the prompts for which fewer than two different completions were left. When two models are
    /// compared these are ties.
    pub too_few: Vec<usize>,
    /// Indices of the prompts that repeat an earlier one with the same completions.
    pub repeated: Vec<usize>,
    /// Completions with a NUL, which no record may hold. They were left out.
    pub unusable: usize,
}

/// Ranking tasks of prompts with sampled completions. Equal texts become one completion.
///
/// The numbers of the completions are drawn from `seed`, so that they do not tell which model wrote which.
///
/// # Errors
/// A prompt with more than [`MAX_COMPLETIONS`] different completions.
pub fn tasks_from(sampled: &[Sampled], seed: u64) -> Result<Made, Fault> {
    let mut made = Made::default();
    let mut seen = BTreeMap::new();
    for (index, Sampled { prompt, completions }) in sampled.iter().enumerate() {
        let sound = completions.iter().filter(|(_, text)| usable(text, true).is_ok());
        let mut texts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (model, text) in sound {
            let models = texts.entry(text).or_default();
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        made.unusable += completions.iter().filter(|(_, text)| usable(text, true).is_err()).count();
        if texts.len() > MAX_COMPLETIONS {
            let problem = Problem::Count { found: texts.len(), want: format!("at most {MAX_COMPLETIONS}") };
            return Err(Fault::new(format!("completions of `{}`", prompt.id), problem));
        }
        let task = ranking_task(prompt, texts, seed);
        if task.completions.len() < 2 {
            made.too_few.push(index);
        } else if seen.insert(task.id.clone(), index).is_some() {
            made.repeated.push(index);
        } else {
            made.tasks.push(task);
        }
    }
    Ok(made)
}

fn ranking_task(prompt: &Prompt, texts: BTreeMap<&str, Vec<String>>, seed: u64) -> Task {
    let sorted: Vec<Completion> =
        texts.into_iter().map(|(text, models)| Completion { text: text.to_owned(), models }).collect();
    let task = Task::new(TaskKind::Rank, prompt, sorted);
    let order = Source::new(seed, "feedback: slots").at_name(&task.id).permutation(task.completions.len());
    let completions = order.into_iter().map(|at| task.completions[at].clone()).collect();
    Task { completions, ..task }
}

impl Task {
    /// The same task about a prompt that is held out. It has an id of its own, because what is said of the other may be
    /// trained on.
    pub fn held_out(self) -> Task {
        let id = format!("h{}", self.id.trim_start_matches('t'));
        Task { id, held_out: true, ..self }
    }

    /// A task to write the completion of a prompt.
    pub fn demonstrate(prompt: &Prompt) -> Task {
        Task::new(TaskKind::Demonstrate, prompt, Vec::new())
    }

    fn new(kind: TaskKind, prompt: &Prompt, completions: Vec<Completion>) -> Task {
        let messages = prompt.content.conversation().messages;
        let texts: Vec<&str> = completions.iter().map(|completion| completion.text.as_str()).collect();
        let content = serde_json::json!([kind, messages, texts]).to_string();
        let id = format!("t-{:016x}", Source::new(0, "feedback: task").at_name(&content).u64());
        let (user, use_case) = (prompt.user.clone(), prompt.use_case.clone());
        Task { id, kind, messages, completions, user, use_case, gold: None, held_out: false }
    }

    /// Whether a completion names the model that wrote it, or another of the task: then the labeler can tell them
    /// apart, and a page says so. Names are looked for as whole words in any case, and so is what stands before the
    /// first digit or sign of a name, from four letters on: `smollm` of `SmolLM2-135M`.
    pub fn names_model(&self, slot: usize) -> bool {
        let Some(completion) = self.completions.get(slot) else { return false };
        let text = completion.text.to_lowercase();
        self.completions.iter().flat_map(|completion| &completion.models).any(|name| {
            let name = name.to_lowercase();
            let family: String = name.chars().take_while(|c| c.is_alphabetic()).collect();
            has_word(&text, &name) || (family.len() >= 4 && has_word(&text, &family))
        })
    }

    /// The task as a line of `tasks.jsonl`, its newline included.
    pub fn line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            v: u64,
            id: &'a str,
            kind: TaskKind,
            messages: &'a [Message],
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            completions: &'a [Completion],
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            use_case: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            gold: Option<&'a [u32]>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            held_out: bool,
        }
        let line = Line {
            v: VERSION,
            id: &self.id,
            kind: self.kind,
            messages: &self.messages,
            completions: &self.completions,
            user: self.user.as_deref(),
            use_case: self.use_case.as_deref(),
            gold: self.gold.as_deref(),
            held_out: self.held_out,
        };
        serde_json::to_string(&line).expect("tasks have string keys, and strings and numbers as values") + "\n"
    }

    /// The task in the fields of a line whose version has been read.
    pub(crate) fn read(mut fields: Fields) -> Result<Task, Fault> {
        let task = Task {
            id: fields.required("id", id)?,
            kind: fields.required("kind", word)?,
            messages: fields.required("messages", list(usize::MAX, message))?,
            completions: fields.optional("completions", list(MAX_COMPLETIONS, completion))?.unwrap_or_default(),
            user: fields.optional("user", name)?,
            use_case: fields.optional("use_case", name)?,
            gold: fields.optional("gold", list(MAX_COMPLETIONS, rank))?,
            held_out: fields.optional("held_out", truth)?.unwrap_or(false),
        };
        fields.end()?;
        task.check()?;
        Ok(task)
    }

    /// Whether it can be asked, written down and read again.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        check_id("id", &self.id)?;
        answerable(&self.messages, "messages")?;
        let found = self.completions.len();
        match self.kind {
            TaskKind::Rank if found < 2 => {
                return Err(Fault::new("completions", Problem::Count { found, want: "two or more".to_owned() }));
            }
            TaskKind::Demonstrate if found > 0 => {
                return Err(Fault::new("completions", Problem::Count { found, want: "none".to_owned() }));
            }
            _ => {}
        }
        match self.gold.as_ref().map(Vec::len).filter(|ranks| *ranks != found || found == 0) {
            Some(ranks) => Err(Fault::new("gold", Problem::Count { found: ranks, want: found.to_string() })),
            None => Ok(()),
        }
    }
}

fn completion(value: serde_json::Value, path: &str) -> Result<Completion, Fault> {
    let mut fields = Fields::of(value, path)?;
    let text = fields.required("text", |value, path| {
        let text = string(value, path)?;
        usable(&text, true).map_err(|problem| Fault::new(path, problem))?;
        Ok(text)
    })?;
    let models = fields.required("models", list(MAX_COMPLETIONS, name))?;
    fields.end()?;
    Ok(Completion { text, models })
}

/// A text with something in it.
fn name(value: serde_json::Value, path: &str) -> Result<String, Fault> {
    let text = string(value, path)?;
    usable(&text, false).map_err(|problem| Fault::new(path, problem))?;
    Ok(text)
}

/// The prompt of a record: one message of the user is a text, as the house writes it.
pub(crate) fn content(messages: &[Message]) -> Content {
    match messages {
        [Message { role: Role::User, content }] => Content::Text(content.clone()),
        _ => Content::Messages(Conversation { messages: messages.to_vec() }),
    }
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    let alone = |(at, found): (usize, &str)| {
        !part(text[..at].chars().next_back()) && !part(text[at + found.len()..].chars().next())
    };
    !word.is_empty() && text.match_indices(word).any(alone)
}
