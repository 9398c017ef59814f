//! Records in the house format. TRL's prompt, prompt/completion, messages and preference records have the
//! same keys.

use crate::{
    error::Problem,
    json::Fields,
    origin::Origin,
    record::{Content, Conversation, Demonstration, Message, Prompt, Ranking, Role},
};
use serde_json::Value;

/// `{id?, prompt | messages, user?, use_case?}`. Messages that end with the assistant and have no
/// completion beside them are a whole conversation, whose prompt is all but its last message.
pub(crate) fn prompt(fields: &mut Fields<'_>) -> Option<Prompt> {
    let whole = fields.has("messages") && !fields.has("completion") && !fields.has("completions");
    let content = if whole {
        let mut messages = messages(fields, "messages")?;
        messages.pop_if(|last| last.role == Role::Assistant);
        ending_with_user(fields, "messages", messages)
    } else {
        content(fields)
    };
    attributes(fields, content)
}

/// A prompt with `completion`, or messages whose last is the completion.
pub(crate) fn demonstration(fields: &mut Fields<'_>) -> Option<Demonstration> {
    if fields.has("completion") || !fields.has("messages") {
        let content = content(fields);
        let completion = fields.required("completion");
        let completion = completion.and_then(|value| reply(fields, "completion", value, false));
        let prompt = attributes(fields, content);
        return Some(Demonstration { prompt: prompt?, completion: completion? });
    }
    let mut messages = messages(fields, "messages")?;
    let Some(last) = messages.pop_if(|last| last.role == Role::Assistant) else {
        return fields.problem("messages", Problem::LastRole { expected: "assistant" });
    };
    let content = ending_with_user(fields, "messages", messages);
    Some(Demonstration { prompt: attributes(fields, content)?, completion: last.content })
}

/// A prompt with `completions`, `ranks` and what the labeler said about them.
pub(crate) fn ranking(fields: &mut Fields<'_>) -> Option<Ranking> {
    let content = content(fields);
    let prompt = attributes(fields, content);
    let completions = completions(fields);
    let k = completions.as_ref().map(Vec::len);
    let ranks = fields.array("ranks").and_then(|values| ranks(fields, values, k));
    let labeler = fields.optional_name("labeler");
    let confidence = match fields.get("confidence") {
        None => Some(None),
        Some(value) => match value.as_f64() {
            Some(number) if (number as f32).is_finite() => Some(Some(number as f32)),
            Some(number) => {
                let allowed = "a number of single precision".to_owned();
                fields.problem("confidence", Problem::OutOfRange { found: number.to_string(), allowed })
            }
            None => fields.wrong_type("confidence", "a number", value),
        },
    };
    let quality = quality(fields, k);
    let flags = flags(fields, k);
    Some(Ranking {
        prompt: prompt?,
        completions: completions?,
        ranks: ranks?,
        labeler: labeler?,
        confidence: confidence?,
        quality: quality?,
        flags: flags?,
    })
}

/// TRL's `prompt?, chosen, rejected`, of texts or of messages. Without a prompt, the two
/// conversations share it.
pub(crate) fn preference(fields: &mut Fields<'_>) -> Option<Ranking> {
    if fields.has("prompt") {
        let (chosen, rejected) = (fields.required("chosen"), fields.required("rejected"));
        let content = content(fields);
        let chosen = chosen.and_then(|value| reply(fields, "chosen", value, true));
        let rejected = rejected.and_then(|value| reply(fields, "rejected", value, true));
        let prompt = attributes(fields, content);
        return Some(comparison(prompt?, [chosen?, rejected?]));
    }
    let (better, worse) = (thread(fields, "chosen"), thread(fields, "rejected"));
    let ((shared, better), (other, worse)) = (better?, worse?);
    if shared != other {
        return fields.skip("rejected", Problem::Inconsistent);
    }
    let content = ending_with_user(fields, "chosen", shared);
    Some(comparison(attributes(fields, content)?, [better, worse]))
}

/// A ranking of two, the better first.
pub(crate) fn comparison(prompt: Prompt, completions: [String; 2]) -> Ranking {
    Ranking {
        prompt,
        completions: completions.into(),
        ranks: vec![1, 2],
        labeler: None,
        confidence: None,
        quality: None,
        flags: None,
    }
}

/// The prompt around `content`: id, user and use case. Asks for all of them even when the content is
/// unusable, so that all problems of the record are reported at once.
pub(crate) fn attributes(fields: &mut Fields<'_>, content: Option<Content>) -> Option<Prompt> {
    let id = fields.optional_name("id");
    let user = fields.optional_name("user");
    let use_case = fields.optional_text("use_case");
    let origin = fields.origin();
    let id = id?.unwrap_or_else(|| default_id(&origin));
    Some(Prompt { id, content: content?, user: user?, use_case: use_case?, origin })
}

/// `<file stem>-<line>`, the id of a record that has none.
pub(crate) fn default_id(origin: &Origin) -> String {
    let name = origin.path.file_name().unwrap_or_default().to_string_lossy();
    format!("{}-{}", name.split('.').next().unwrap_or_default(), origin.line)
}

/// Ranks that start at 1 and count up: densely after ties (1,2,2,3) or as in competitions
/// (1,2,2,4), one way throughout.
pub(crate) fn check_ranks(ranks: &[i64]) -> Result<Vec<u32>, Problem> {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let follows = |next: &dyn Fn(usize, i64) -> i64| {
        let mut previous = 0;
        sorted.iter().enumerate().all(|(better, &rank)| {
            let fits = (better > 0 && rank == previous) || rank == next(better, previous);
            previous = rank;
            fits
        })
    };
    let dense = follows(&|_, previous| previous + 1);
    let competition = follows(&|better, _| better as i64 + 1);
    if dense || competition {
        // Both rules keep every rank between 1 and the number of completions.
        Ok(ranks.iter().map(|&rank| rank as u32).collect())
    } else {
        Err(Problem::Ranks { found: sorted })
    }
}

fn content(fields: &mut Fields<'_>) -> Option<Content> {
    let name = if !fields.has("prompt") && fields.has("messages") { "messages" } else { "prompt" };
    match fields.required(name)? {
        Value::String(_) if name == "prompt" => fields.text(name).map(Content::Text),
        Value::Array(_) => {
            let messages = messages(fields, name)?;
            ending_with_user(fields, name, messages)
        }
        other if name == "prompt" => fields.wrong_type(name, "a string or an array of messages", other),
        other => fields.wrong_type(name, "an array of messages", other),
    }
}

fn ending_with_user(fields: &mut Fields<'_>, name: &str, messages: Vec<Message>) -> Option<Content> {
    match messages.last() {
        Some(last) if last.role == Role::User => Some(Content::Messages(Conversation { messages })),
        _ => fields.problem(name, Problem::LastRole { expected: "user" }),
    }
}

fn messages(fields: &mut Fields<'_>, name: &str) -> Option<Vec<Message>> {
    let values = fields.array(name)?;
    messages_of(fields, name, values, false)
}

fn messages_of(fields: &mut Fields<'_>, name: &str, values: &[Value], may_be_empty: bool) -> Option<Vec<Message>> {
    let read = |(i, value)| message(fields, &format!("{name}[{i}]"), value, may_be_empty);
    let read: Vec<Option<Message>> = values.iter().enumerate().map(read).collect();
    read.into_iter().collect()
}

fn message(fields: &mut Fields<'_>, name: &str, value: &Value, may_be_empty: bool) -> Option<Message> {
    let mut inner = fields.inner(value, name)?;
    let role = inner.text("role").and_then(|word| role(&mut inner, &word));
    let content = inner.required("content").and_then(|value| inner.text_of("content", value, may_be_empty));
    Some(Message { role: role?, content: content? })
}

fn role(fields: &mut Fields<'_>, word: &str) -> Option<Role> {
    match [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.as_str() == word) {
        Some(role) => Some(role),
        None => fields.problem(
            "role",
            Problem::OutOfRange { found: format!("`{word}`"), allowed: "`system`, `user` or `assistant`".to_owned() },
        ),
    }
}

/// A completion: a text, or one message of the assistant.
fn reply(fields: &mut Fields<'_>, name: &str, value: &Value, may_be_empty: bool) -> Option<String> {
    let Value::Array(values) = value else {
        return fields.text_of(name, value, may_be_empty);
    };
    let mut messages = messages_of(fields, name, values, may_be_empty)?;
    match (messages.pop(), messages.is_empty()) {
        (Some(only), true) if only.role == Role::Assistant => Some(only.content),
        _ => fields.wrong_type(name, "a string or one message of the assistant", value),
    }
}

/// A conversation that ends with the assistant: what precedes, and the reply.
fn thread(fields: &mut Fields<'_>, name: &str) -> Option<(Vec<Message>, String)> {
    let values = fields.array(name)?;
    let mut messages = messages_of(fields, name, values, true)?;
    match messages.pop_if(|last| last.role == Role::Assistant) {
        Some(last) => Some((messages, last.content)),
        None => fields.problem(name, Problem::LastRole { expected: "assistant" }),
    }
}

fn completions(fields: &mut Fields<'_>) -> Option<Vec<String>> {
    let values = fields.array("completions")?;
    let read = |(i, value)| reply(fields, &format!("completions[{i}]"), value, true);
    let read: Vec<Option<String>> = values.iter().enumerate().map(read).collect();
    if values.len() < 2 {
        let problem = Problem::OutOfRange { found: "one completion".to_owned(), allowed: "two or more".to_owned() };
        return fields.problem("completions", problem);
    }
    read.into_iter().collect()
}

/// Notes a length that differs from `k`, when `k` is known.
fn counted<T>(fields: &mut Fields<'_>, name: &str, values: Vec<Option<T>>, k: Option<usize>) -> Option<Vec<T>> {
    match k {
        Some(completions) if completions != values.len() => {
            fields.problem(name, Problem::Count { found: values.len(), completions })
        }
        _ => values.into_iter().collect(),
    }
}

fn ranks(fields: &mut Fields<'_>, values: &[Value], k: Option<usize>) -> Option<Vec<u32>> {
    let read = |(i, value)| fields.integer_of(&format!("ranks[{i}]"), value);
    let read = values.iter().enumerate().map(read).collect();
    let read = counted(fields, "ranks", read, k)?;
    check_ranks(&read).map_or_else(|problem| fields.problem("ranks", problem), Some)
}

fn quality(fields: &mut Fields<'_>, k: Option<usize>) -> Option<Option<Vec<u8>>> {
    if !fields.has("quality") {
        return Some(None);
    }
    let values = fields.array("quality")?;
    let read = |(i, value)| {
        let name = format!("quality[{i}]");
        let number = fields.integer_of(&name, value)?;
        match u8::try_from(number) {
            Ok(grade @ 1..=7) => Some(grade),
            _ => fields.problem(
                &name,
                Problem::OutOfRange { found: number.to_string(), allowed: "between 1 and 7".to_owned() },
            ),
        }
    };
    let read = values.iter().enumerate().map(read).collect();
    counted(fields, "quality", read, k).map(Some)
}

fn flags(fields: &mut Fields<'_>, k: Option<usize>) -> Option<Option<Vec<Vec<String>>>> {
    if !fields.has("flags") {
        return Some(None);
    }
    let values = fields.array("flags")?;
    let read = |(i, value): (usize, &Value)| {
        let name = format!("flags[{i}]");
        let Value::Array(words) = value else {
            return fields.wrong_type(&name, "an array of strings", value);
        };
        let word = |(j, word)| fields.text_of(&format!("{name}[{j}]"), word, false);
        words.iter().enumerate().map(word).collect()
    };
    let read = values.iter().enumerate().map(read).collect();
    counted(fields, "flags", read, k).map(Some)
}
