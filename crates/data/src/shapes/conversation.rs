//! Lists of messages, in whichever field they stand: `role` and `content`, or ShareGPT's `from` and `value`.

use crate::{
    error::Problem,
    json::Fields,
    record::{Content, Conversation, Message, Role},
};
use serde_json::Value;

/// The messages of a field.
pub(crate) fn messages(fields: &mut Fields<'_>, name: &str) -> Option<Vec<Message>> {
    let values = fields.array(name)?;
    messages_of(fields, name, values, false)
}

/// A prompt of messages, with the record's `system` before them. What else may stand around a text has no
/// place beside a conversation that is written out.
pub(crate) fn content(fields: &mut Fields<'_>, name: &str, mut messages: Vec<Message>) -> Option<Content> {
    let system = system(fields)?;
    if let Some(other) = fields.first_given(&["history", "input", "context"]) {
        return fields.problem(other, Problem::Beside { field: name.to_owned() });
    }
    if let Some(system) = system {
        match messages.first() {
            Some(first) if first.role == Role::System && first.content.trim() == system.trim() => {}
            Some(first) if first.role == Role::System => {
                return fields.problem("system", Problem::Beside { field: name.to_owned() });
            }
            _ => messages.insert(0, Message::new(Role::System, system)),
        }
    }
    ending_with_user(fields, name, messages)
}

/// The standing instructions beside a prompt.
pub(crate) fn system(fields: &mut Fields<'_>) -> Option<Option<String>> {
    let name = fields.first_given(&SYSTEMS).unwrap_or(SYSTEMS[0]);
    fields.leave_others(&SYSTEMS, name);
    fields.joined_text(name)
}

/// Fields in which they may stand.
const SYSTEMS: [&str; 2] = ["system", "system_prompt"];

/// A conversation that the model may answer.
pub(crate) fn ending_with_user(fields: &mut Fields<'_>, name: &str, messages: Vec<Message>) -> Option<Content> {
    match messages.last() {
        Some(last) if last.role.is_answered() => Some(Content::Messages(Conversation { messages })),
        _ => fields.problem(name, Problem::LastRole { expected: "user" }),
    }
}

/// A completion: a text, or one message of the assistant.
pub(crate) fn reply(fields: &mut Fields<'_>, name: &str, value: &Value, may_be_empty: bool) -> Option<String> {
    let message = match value {
        Value::Array(values) => match values.as_slice() {
            [only] => message(fields, &format!("{name}[0]"), only, may_be_empty)?,
            _ => return fields.wrong_type(name, "a string or one message of the assistant", value),
        },
        Value::Object(_) => message(fields, name, value, may_be_empty)?,
        _ => return fields.text_of(name, value, may_be_empty),
    };
    if message.role == Role::Assistant {
        return Some(message.content);
    }
    fields.wrong_type(name, "a string or one message of the assistant", value)
}

/// A conversation that ends with the assistant: what precedes, and the reply, which may be empty.
pub(crate) fn thread(fields: &mut Fields<'_>, name: &str) -> Option<(Vec<Message>, String)> {
    let values = fields.array(name)?;
    let mut messages = messages_of(fields, name, values, true)?;
    match messages.pop_if(|last| last.role == Role::Assistant) {
        Some(last) => Some((messages, last.content)),
        None => fields.problem(name, Problem::LastRole { expected: "assistant" }),
    }
}

fn messages_of(fields: &mut Fields<'_>, name: &str, values: &[Value], may_be_empty: bool) -> Option<Vec<Message>> {
    let read = |(i, value)| message(fields, &format!("{name}[{i}]"), value, may_be_empty);
    let read: Vec<Option<Message>> = values.iter().enumerate().map(read).collect();
    read.into_iter().collect()
}

fn message(fields: &mut Fields<'_>, name: &str, value: &Value, may_be_empty: bool) -> Option<Message> {
    let mut inner = fields.inner(value, name)?;
    inner.only(&[&["role", "content", "from", "value"]]);
    let shared = !inner.has("role") && inner.has("from");
    let (role, content) = if shared { ("from", "value") } else { ("role", "content") };
    let role = inner.text(role).and_then(|word| voice(&mut inner, role, &word));
    // An empty system message is written by some templates, and means something else than none.
    let may_be_empty = may_be_empty || role == Some(Role::System);
    let content = inner.required(content).and_then(|value| words(&mut inner, content, value, may_be_empty));
    Some(Message { role: role?, content: content? })
}

/// Who speaks: ShareGPT has other words for the person and the model. A template may know further voices;
/// what it does not write is counted where records become ids.
fn voice(fields: &mut Fields<'_>, name: &str, word: &str) -> Option<Role> {
    let word = match word {
        "human" if name == "from" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" if name == "from" => "assistant",
        other => other,
    };
    let problem = || Problem::OutOfRange { found: format!("`{word}`"), allowed: Role::allowed() };
    Role::named(word).or_else(|| fields.problem(name, problem()))
}

/// What a message says: a text, or parts that are all text.
fn words(fields: &mut Fields<'_>, name: &str, value: &Value, may_be_empty: bool) -> Option<String> {
    let Value::Array(parts) = value else { return fields.text_of(name, value, may_be_empty) };
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let path = format!("{name}[{i}]");
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text"), Some(said)) => text += &fields.text_of(&path, said, true)?,
            _ => return fields.problem(&path, Problem::Unreadable),
        }
    }
    fields.text_of(name, &Value::String(text), may_be_empty)
}
