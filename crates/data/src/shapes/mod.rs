//! The shapes in which others publish human data, one file each, and how they are recognised.

pub(crate) mod hh;
pub(crate) mod house;
pub(crate) mod oasst;
pub(crate) mod tasks;

use serde_json::Value;

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
            // Completions alone are a record of the house that lacks its prompt, and is told so.
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
