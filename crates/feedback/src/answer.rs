//! What a model answered to somebody, so that feedback can name it.

use crate::{
    event::VERSION,
    fault::Fault,
    fields::{Fields, id, list, message, number, string, truth},
};
use instruct_data::Message;
use serde::Serialize;

/// An answer that was served. Whatever was served is taken down; whether a record may be made of it is asked later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name to give feedback on.
    pub id: String,
    /// The model that wrote it.
    pub model: String,
    /// What it answers.
    pub messages: Vec<Message>,
    /// The answer.
    pub text: String,
    /// The seed with which the same model says it again.
    pub seed: u64,
    /// Who asked. Nobody else can give feedback on it.
    pub labeler: String,
    /// Whether that person lets what is said be trained on.
    pub consent: bool,
}

impl Answer {
    /// The answer as a line of `answers.jsonl`, its newline included.
    pub fn line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            v: u64,
            id: &'a str,
            model: &'a str,
            messages: &'a [Message],
            text: &'a str,
            seed: u64,
            labeler: &'a str,
            consent: bool,
        }
        let Answer { id, model, messages, text, seed, labeler, consent } = self;
        let line = Line { v: VERSION, id, model, messages, text, seed: *seed, labeler, consent: *consent };
        serde_json::to_string(&line).expect("answers have string keys, and strings and numbers as values") + "\n"
    }

    /// The answer in the fields of a line whose version has been read.
    pub(crate) fn read(mut fields: Fields) -> Result<Answer, Fault> {
        let answer = Answer {
            id: fields.required("id", id)?,
            model: fields.required("model", string)?,
            messages: fields.required("messages", list(usize::MAX, message))?,
            text: fields.required("text", string)?,
            seed: fields.required("seed", number)?,
            labeler: fields.required("labeler", id)?,
            consent: fields.required("consent", truth)?,
        };
        fields.end()?;
        Ok(answer)
    }
}
