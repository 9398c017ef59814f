//! Records in the house format. TRL's prompt, prompt/completion, messages and preference records have the
//! same keys; Alpaca's, Dolly's and ShareGPT's have other names for them.

use crate::{
    entry::{COMPLETIONS, PROMPTS},
    error::Problem,
    json::Fields,
    origin::Origin,
    record::{Content, Conversation, Demonstration, Message, Prompt, Ranking, Role},
    shapes::{conversation, tasks::joined},
};
use serde_json::Value;

/// `{id?, prompt | messages, user?, use_case?}`. Messages that end with the assistant and have no
/// completion beside them are a whole conversation, whose prompt is all but its last message.
pub(crate) fn prompt(fields: &mut Fields<'_>) -> Option<Prompt> {
    let content = match whole_conversation(fields) {
        Some(name) => {
            let mut messages = conversation::messages(fields, name)?;
            messages.pop_if(|last| last.role == Role::Assistant);
            conversation::content(fields, name, messages)
        }
        None => content(fields),
    };
    attributes(fields, content)
}

/// A prompt with a completion, or messages whose last is the completion.
pub(crate) fn demonstration(fields: &mut Fields<'_>) -> Option<Demonstration> {
    let Some(name) = whole_conversation(fields) else {
        let content = content(fields);
        let name = fields.first_given(&COMPLETIONS).unwrap_or(COMPLETIONS[0]);
        fields.leave_others(&COMPLETIONS, name);
        let completion = fields.required(name).and_then(|value| conversation::reply(fields, name, value, false));
        let prompt = attributes(fields, content);
        return Some(Demonstration { prompt: prompt?, completion: completion? });
    };
    let mut messages = conversation::messages(fields, name)?;
    let Some(last) = messages.pop_if(|last| last.role == Role::Assistant) else {
        let problem = Problem::LastRole { expected: "assistant" };
        // Published conversations end where the person left, often after a question.
        return if name == "conversations" { fields.skip(name, problem) } else { fields.problem(name, problem) };
    };
    if last.content.trim().is_empty() {
        return fields.problem(name, Problem::Empty);
    }
    let content = conversation::content(fields, name, messages);
    Some(Demonstration { prompt: attributes(fields, content)?, completion: last.content })
}

/// The field of the messages that are a whole conversation, because no completion stands beside them.
fn whole_conversation(fields: &mut Fields<'_>) -> Option<&'static str> {
    if fields.first_given(&COMPLETIONS).is_some() || fields.has("completions") {
        return None;
    }
    let name = ["messages", "conversations"].into_iter().find(|name| fields.has(name))?;
    fields.leave_others(&PROMPTS, name);
    Some(name)
}

/// A prompt with `completions`, `ranks` and what the labeler said about them.
pub(crate) fn ranking(fields: &mut Fields<'_>) -> Option<Ranking> {
    let content = content(fields);
    let prompt = attributes(fields, content);
    let completions = completions(fields);
    let k = completions.as_ref().map(Vec::len);
    let ranks = fields.array("ranks").and_then(|values| ranks(fields, values, k));
    let labeler = fields.optional_name("labeler");
    let confidence = match fields.given("confidence") {
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

/// TRL's `prompt?, chosen, rejected`, of texts or of messages. Conversations may repeat the prompt. Without a
/// prompt, two conversations share it, and two texts are split where they part.
pub(crate) fn preference(fields: &mut Fields<'_>) -> Option<Ranking> {
    let sides = [side(fields, "chosen"), side(fields, "rejected")];
    if PROMPTS.iter().any(|name| fields.has(name)) {
        let content = content(fields);
        let [chosen, rejected] = sides;
        let (content, chosen, rejected) = (content?, chosen?, rejected?);
        let (prompt, better) = continued(fields, "chosen", &content, chosen)?;
        let (other, worse) = continued(fields, "rejected", &content, rejected)?;
        if prompt != other {
            return fields.skip("rejected", Problem::Inconsistent);
        }
        return Some(comparison(attributes(fields, Some(prompt))?, [better, worse]));
    }
    let (content, completions) = match sides {
        [Some(Side::Text(better)), Some(Side::Text(worse))] => {
            let at = parting(&better, &worse);
            if better[..at].trim().is_empty() {
                return fields.problem("chosen", Problem::NoSharedBeginning);
            }
            (around(fields, better[..at].to_owned())?, [better[at..].to_owned(), worse[at..].to_owned()])
        }
        [Some(Side::Thread(shared, better)), Some(Side::Thread(other, worse))] => {
            if shared != other {
                return fields.skip("rejected", Problem::Inconsistent);
            }
            (conversation::content(fields, "chosen", shared)?, [better, worse])
        }
        [None, _] | [_, None] => return None,
        _ => return fields.problem("rejected", Problem::Inconsistent),
    };
    Some(comparison(attributes(fields, Some(content))?, completions))
}

/// One side of a comparison.
enum Side {
    /// A text, or one message of the assistant where a prompt stands beside it.
    Text(String),
    /// A whole conversation: what precedes the last reply, and that reply.
    Thread(Vec<Message>, String),
}

fn side(fields: &mut Fields<'_>, name: &str) -> Option<Side> {
    let value = fields.required(name)?;
    match value {
        Value::Array(values) if values.len() > 1 || !PROMPTS.iter().any(|name| fields.has(name)) => {
            let (before, reply) = conversation::thread(fields, name)?;
            Some(Side::Thread(before, reply))
        }
        _ => conversation::reply(fields, name, value, true).map(Side::Text),
    }
}

/// The prompt and the completion of one side. A conversation must hold every message of the record's own
/// prompt, in order; it may hold more.
fn continued(fields: &mut Fields<'_>, name: &str, content: &Content, side: Side) -> Option<(Content, String)> {
    let (before, reply) = match side {
        Side::Text(reply) => return Some((content.clone(), reply)),
        Side::Thread(before, reply) => (before, reply),
    };
    let said = |a: &Message, b: &Message| a.role == b.role && a.content.trim() == b.content.trim();
    let mut rest = before.iter();
    if content.conversation().messages.iter().all(|wanted| rest.any(|message| said(message, wanted))) {
        return Some((conversation::ending_with_user(fields, name, before)?, reply));
    }
    let field = fields.first_given(&PROMPTS).unwrap_or(PROMPTS[0]).to_owned();
    fields.problem(name, Problem::Lacks { field })
}

/// Where two texts part, in bytes, as TRL's `extract_prompt` has it: a space before the first difference
/// belongs to the completions, and of a text that begins the other the last character is its completion.
fn parting(a: &str, b: &str) -> usize {
    let Some(((last, c), _)) = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).last() else {
        return 0;
    };
    let end = last + c.len_utf8();
    let whole = end == a.len().min(b.len());
    if whole || c == ' ' { last } else { end }
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

/// The words of the prompt, with what stands beside them.
fn content(fields: &mut Fields<'_>) -> Option<Content> {
    let name = PROMPTS.into_iter().find(|name| fields.has(name)).unwrap_or(PROMPTS[0]);
    fields.leave_others(&PROMPTS, name);
    let text = name == "prompt" || name == "instruction";
    match fields.required(name)? {
        Value::String(_) if text => {
            let text = fields.text(name);
            around(fields, text?)
        }
        Value::Array(_) if name != "instruction" => {
            let messages = conversation::messages(fields, name)?;
            conversation::content(fields, name, messages)
        }
        other if name == "prompt" => fields.wrong_type(name, "a string or an array of messages", other),
        other if text => fields.wrong_type(name, "a string", other),
        other => fields.wrong_type(name, "an array of messages", other),
    }
}

/// A prompt that is text, as the turn of a person: `input` (Dolly's `context`) follows the text on a line of
/// its own, and `system` and `history` stand before it, as LLaMA-Factory (commit 02e2fb3) reads Alpaca's records.
fn around(fields: &mut Fields<'_>, text: String) -> Option<Content> {
    let input = fields.joined_text("input");
    let context = fields.joined_text("context");
    let system = conversation::system(fields);
    let history = history(fields);
    let (input, context) = (input?.unwrap_or_default(), context?.unwrap_or_default());
    if !input.is_empty() && !context.is_empty() {
        return fields.problem("context", Problem::Beside { field: "input".to_owned() });
    }
    let text = if input.is_empty() && context.is_empty() { text } else { joined(&text, &(input + &context), "\n") };
    let mut messages: Vec<Message> = system?.map(|system| Message::new(Role::System, system)).into_iter().collect();
    messages.extend(history?);
    if messages.is_empty() {
        return Some(Content::Text(text));
    }
    messages.push(Message::new(Role::User, text));
    Some(Content::Messages(Conversation { messages }))
}

/// Earlier turns, as pairs of what the person and the model said.
fn history(fields: &mut Fields<'_>) -> Option<Vec<Message>> {
    let Some(value) = fields.given("history") else { return Some(Vec::new()) };
    fields.join("history");
    let Value::Array(turns) = value else { return fields.wrong_type("history", "an array of pairs of strings", value) };
    let mut messages = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let name = format!("history[{i}]");
        let Some([asked, answered]) = turn.as_array().map(Vec::as_slice) else {
            return fields.wrong_type(&name, "a pair of strings", turn);
        };
        messages.push(Message::new(Role::User, fields.text_of(&format!("{name}[0]"), asked, false)?));
        messages.push(Message::new(Role::Assistant, fields.text_of(&format!("{name}[1]"), answered, false)?));
    }
    Some(messages)
}

fn completions(fields: &mut Fields<'_>) -> Option<Vec<String>> {
    let values = fields.array("completions")?;
    let read = |(i, value)| conversation::reply(fields, &format!("completions[{i}]"), value, true);
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
    if fields.given("quality").is_none() {
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
    if fields.given("flags").is_none() {
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
