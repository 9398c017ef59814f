//! One value of a file on its way to become records: the shape that it shows, and what takes records
//! of one kind out of it.

use crate::{
    error::Problem,
    json::{Fields, Sink},
};
use serde_json::Value;

/// How one kind of record is taken out of one value of one shape. Implemented for the four records
/// alone.
pub trait Extract {
    /// What messages call many of these.
    const KIND: &'static str;

    /// The records in `entry`; `None` when the shape holds none of this kind, or when a problem
    /// was noted.
    #[doc(hidden)]
    fn extract(entry: &mut Entry<'_>) -> Option<Vec<Self>>
    where
        Self: Sized;
}

/// One value of a file on its way to become records.
#[doc(hidden)]
pub struct Entry<'a> {
    pub(crate) shape: Shape,
    pub(crate) value: &'a Value,
    pub(crate) line: usize,
    pub(crate) sink: &'a mut Sink,
}

impl Entry<'_> {
    pub(crate) fn fields(&mut self) -> Option<Fields<'_>> {
        Fields::new(self.value, "", self.line, self.sink)
    }

    /// Notes the fields that no record of this shape has. What is no object has none, and its shape says what
    /// is wrong with it.
    pub(crate) fn remark(&mut self) {
        let shape = self.shape;
        if self.value.is_object()
            && let Some(mut fields) = self.fields()
        {
            fields.only(shape.keys());
        }
    }

    pub(crate) fn wrong_kind<T: Extract>(&mut self) -> Option<Vec<T>> {
        self.sink.line(self.line, Problem::WrongKind { shape: self.shape.name(), wanted: T::KIND });
        None
    }
}

/// The shape of a file's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    House,
    Preference,
    Transcript,
    Tree,
    PandaLm,
    SeedTask,
    Questions,
    Line,
    Text,
}

impl Shape {
    /// The shape that a value shows by its keys and their types.
    pub(crate) fn of(value: &Value) -> Option<Shape> {
        let has = |key: &str| value.get(key).is_some_and(|value| !value.is_null());
        let any = |keys: &[&str]| keys.iter().any(|key| has(key));
        Some(match value {
            Value::String(_) => Shape::Line,
            _ if has("message_tree_id") => Shape::Tree,
            _ if has("annotator1") => Shape::PandaLm,
            _ if has("instances") => Shape::SeedTask,
            _ if any(&SIDES) => {
                if any(&PROMPTS) || !is_transcript(value) {
                    Shape::Preference
                } else {
                    Shape::Transcript
                }
            }
            _ if any(&PROMPTS) => Shape::House,
            _ if value.get("turns").is_some_and(Value::is_array) => Shape::Questions,
            _ if has("text") => Shape::Text,
            // Completions without a prompt are a house record too, and so is a prompt that is null: the message
            // says that the prompt is missing.
            _ if any(&["completion", "completions"]) || PROMPTS.iter().any(|key| value.get(key).is_some()) => {
                Shape::House
            }
            _ => return None,
        })
    }

    /// The keys that records of this shape may have, in groups. Of published sets also those that say nothing
    /// to a model.
    fn keys(self) -> &'static [&'static [&'static str]] {
        match self {
            Shape::House => &[&PROMPTS, &AROUND, &ATTRIBUTES, &COMPLETIONS, &RANKED],
            Shape::Preference => &[&PROMPTS, &AROUND, &ATTRIBUTES, &SIDES],
            Shape::Transcript => &[&ATTRIBUTES, &SIDES],
            Shape::Tree => &[&["message_tree_id", "tree_state", "prompt", "origin"]],
            Shape::PandaLm => &[
                &["idx", "motivation_app", "cmp_key", "instruction", "input", "response1", "response2"],
                &["annotator1", "annotator2", "annotator3"],
            ],
            Shape::SeedTask => &[&["id", "name", "instruction", "instances", "is_classification"]],
            Shape::Questions => &[&["question_id", "category", "turns", "reference"]],
            Shape::Text => &[&["text"]],
            Shape::Line => &[],
        }
    }

    /// What messages call a file of this shape.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::House => "a file of prompts",
            Shape::Preference => "a preference file",
            Shape::Transcript => "an hh-rlhf transcript",
            Shape::Tree => "an OASST tree",
            Shape::PandaLm => "a PandaLM comparison",
            Shape::SeedTask => "a self-instruct task",
            Shape::Questions => "a list of questions",
            Shape::Line => "a list of JSON strings",
            Shape::Text => "a text file",
        }
    }
}

/// Fields in which a record's prompt may stand.
pub(crate) const PROMPTS: [&str; 4] = ["prompt", "messages", "conversations", "instruction"];

/// Fields in which a demonstration's completion may stand.
pub(crate) const COMPLETIONS: [&str; 3] = ["completion", "output", "response"];

/// What may stand around a prompt.
const AROUND: [&str; 5] = ["system", "system_prompt", "history", "input", "context"];

/// What is known of a prompt.
const ATTRIBUTES: [&str; 3] = ["id", "user", "use_case"];

/// What a labeler says of completions.
const RANKED: [&str; 6] = ["completions", "ranks", "labeler", "confidence", "quality", "flags"];

/// The sides of a comparison.
const SIDES: [&str; 2] = ["chosen", "rejected"];

/// Whether one side of a comparison is a transcript of hh-rlhf.
fn is_transcript(value: &Value) -> bool {
    let marked = |text: &str| text.contains("\n\nAssistant:") || text.trim_start().starts_with("Human:");
    SIDES.iter().any(|side| value[*side].as_str().is_some_and(marked))
}
