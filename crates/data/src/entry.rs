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
    /// The shape that a value shows by its keys.
    pub(crate) fn of(value: &Value) -> Option<Shape> {
        let has = |key: &str| value.get(key).is_some();
        Some(match value {
            Value::String(_) => Shape::Line,
            _ if has("message_tree_id") => Shape::Tree,
            _ if has("annotator1") => Shape::PandaLm,
            _ if has("instances") => Shape::SeedTask,
            _ if has("turns") => Shape::Questions,
            _ if has("chosen") || has("rejected") => {
                let transcript = !has("prompt") && value.get("chosen").is_some_and(Value::is_string);
                if transcript { Shape::Transcript } else { Shape::Preference }
            }
            _ if has("prompt") || has("messages") => Shape::House,
            _ if has("text") => Shape::Text,
            // Completions without a prompt are a house record too: its message says that the prompt is missing.
            _ if has("completion") || has("completions") => Shape::House,
            _ => return None,
        })
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
