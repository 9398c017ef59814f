//! Single-turn task lists: PandaLM's comparisons, self-instruct's seeds, lists of questions, and
//! bare JSON strings.

use crate::{
    entry::Entry,
    error::Problem,
    json::{Fields, type_name},
    record::{Content, Demonstration, Prompt, Ranking},
    shapes::house,
};
use serde_json::Value;

/// The three annotators' rankings of two replies: 0 is a tie, 1 and 2 name the better reply. An
/// empty reply was judged like any other.
pub(crate) fn pandalm(fields: &mut Fields<'_>) -> Option<Vec<Ranking>> {
    let prompt = pandalm_prompt(fields);
    let replies = [response(fields, "response1"), response(fields, "response2")];
    let votes = ["annotator1", "annotator2", "annotator3"].map(|name| (name, vote(fields, name)));
    let prompt = prompt?;
    let [first, second] = replies;
    let completions = [first?, second?];
    let ranking = |(labeler, ranks): (&str, Option<[u32; 2]>)| {
        Some(Ranking {
            ranks: ranks?.into(),
            labeler: Some(labeler.to_owned()),
            ..house::comparison(prompt.clone(), completions.clone())
        })
    };
    votes.into_iter().map(ranking).collect()
}

/// PandaLM's prompt: instruction and input joined; its application is the use case.
pub(crate) fn pandalm_prompt(fields: &mut Fields<'_>) -> Option<Prompt> {
    let idx = fields.optional_name("idx");
    let use_case = fields.optional_text("motivation_app");
    let content = task(fields, "input");
    let origin = fields.origin();
    let id = idx?.map_or_else(|| house::default_id(&origin), |idx| format!("pandalm-{idx}"));
    Some(Prompt { id, content: content?, user: None, use_case: use_case?, origin })
}

/// A reply. Seven of the data set's are the YAML word `True`, kept as the text that the annotators
/// saw.
fn response(fields: &mut Fields<'_>, name: &str) -> Option<String> {
    match fields.required(name)? {
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        value => fields.text_of(name, value, true),
    }
}

fn vote(fields: &mut Fields<'_>, name: &str) -> Option<[u32; 2]> {
    let value = fields.required(name)?;
    match fields.integer_of(name, value)? {
        0 => Some([1, 1]),
        1 => Some([1, 2]),
        2 => Some([2, 1]),
        other => {
            let allowed = "0 (tie), 1 or 2".to_owned();
            fields.problem(name, Problem::OutOfRange { found: other.to_string(), allowed })
        }
    }
}

/// self-instruct's seeds: one demonstration per instance.
pub(crate) fn seeds(fields: &mut Fields<'_>) -> Option<Vec<Demonstration>> {
    let id = fields.optional_name("id");
    let instruction = fields.text("instruction");
    let instances = fields.array("instances")?;
    let shared = id.iter().flatten().chain(&instruction).map(String::len).sum::<usize>();
    fields.spread("instances", shared.saturating_mul(instances.len()))?;
    let origin = fields.origin();
    let id = id?.unwrap_or_else(|| house::default_id(&origin));
    let instruction = instruction?;
    let read = |(i, value)| {
        let mut instance = fields.inner(value, &format!("instances[{i}]"))?;
        let input = instance.required("input").and_then(|value| instance.text_of("input", value, true));
        let output = instance.text("output");
        let content = Content::Text(joined(&instruction, &input?, "\n\n"));
        let id = if i == 0 { id.clone() } else { format!("{id}-{i}") };
        let prompt = Prompt { id, content, user: None, use_case: None, origin: origin.clone() };
        Some(Demonstration { prompt, completion: output? })
    };
    instances.iter().enumerate().map(read).collect()
}

/// FastChat's question lists: the first turn, with its category as the use case.
pub(crate) fn question(fields: &mut Fields<'_>) -> Option<Prompt> {
    let id = fields.optional_name("question_id");
    let use_case = fields.optional_text("category");
    let turns = fields.array("turns")?;
    let first = fields.text_of("turns[0]", &turns[0], false);
    fields.leave_out("later turns of questions", turns.len() - 1);
    let origin = fields.origin();
    let id = id?.unwrap_or_else(|| house::default_id(&origin));
    Some(Prompt { id, content: Content::Text(first?), user: None, use_case: use_case?, origin })
}

/// A line that is one JSON string.
pub(crate) fn line(entry: &mut Entry<'_>) -> Option<Prompt> {
    let origin = entry.sink.origin(entry.line);
    match entry.value {
        Value::String(text) if !text.trim().is_empty() && !text.contains('\0') => {
            let content = Content::Text(text.clone());
            Some(Prompt { id: house::default_id(&origin), content, user: None, use_case: None, origin })
        }
        Value::String(text) => {
            entry.sink.line(entry.line, if text.contains('\0') { Problem::Nul } else { Problem::Empty });
            None
        }
        other => {
            let found = type_name(other);
            entry.sink.line(entry.line, Problem::WrongType { expected: "a string", found });
            None
        }
    }
}

/// `instruction` and the field `input`, of which one may be empty.
fn task(fields: &mut Fields<'_>, input: &str) -> Option<Content> {
    let mut part = |name| {
        let value = fields.required(name)?;
        fields.text_of(name, value, true)
    };
    let (instruction, input) = (part("instruction"), part(input));
    let text = joined(&instruction?, &input?, "\n\n");
    if text.is_empty() { fields.problem("instruction", Problem::Empty) } else { Some(Content::Text(text)) }
}

/// Two parts of a task, of which one may be empty.
pub(crate) fn joined(instruction: &str, input: &str, between: &str) -> String {
    let parts = [instruction.trim(), input.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(between)
}
