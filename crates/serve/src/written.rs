//! The shapes of OpenAI's interface, as the server writes them.

use serde_json::{Value, json};

/// Which of the two endpoints a response belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
}

/// What all parts of a response have in common.
pub(crate) struct Frame {
    pub(crate) shape: Shape,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Names by which people give feedback on the choices.
    pub(crate) answers: Vec<String>,
    pub(crate) seed: u64,
}

/// Tokens of a request and of its completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl Usage {
    fn value(self) -> Value {
        let Usage { prompt, completion } = self;
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }
}

/// A token as the client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) logprob: f32,
    pub(crate) alternatives: Vec<(String, f32)>,
}

/// A choice that is whole.
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) finish: &'static str,
    pub(crate) logprobs: Option<Vec<Told>>,
}

impl Frame {
    /// A response that is not streamed.
    pub(crate) fn whole(&self, choices: &[Whole], usage: Usage) -> Value {
        let choice = |(index, Whole { text, finish, logprobs }): (usize, &Whole)| {
            let mut choice = json!({ "index": index, "finish_reason": finish });
            choice["logprobs"] = self.logprobs(logprobs.as_deref());
            match self.shape {
                Shape::Chat => choice["message"] = json!({ "role": "assistant", "content": text, "refusal": null }),
                Shape::Text => choice["text"] = json!(text),
            }
            choice
        };
        let mut body = self.around(match self.shape {
            Shape::Chat => "chat.completion",
            Shape::Text => "text_completion",
        });
        body["choices"] = choices.iter().enumerate().map(choice).collect();
        body["usage"] = usage.value();
        body
    }

    /// The part of a stream that opens a choice, where there is one.
    pub(crate) fn opening(&self, index: usize) -> Option<Value> {
        (self.shape == Shape::Chat)
            .then(|| self.chunk(index, json!({ "role": "assistant", "content": "" }), None, None))
    }

    /// The part of a stream that adds to a choice.
    pub(crate) fn part(&self, index: usize, text: &str, logprobs: Option<&[Told]>, finish: Option<&str>) -> Value {
        let delta = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
        let mut chunk = self.chunk(index, delta, logprobs, finish);
        if self.shape == Shape::Text {
            chunk["choices"][0]["text"] = json!(text);
        }
        chunk
    }

    /// The part of a stream that tells the number of tokens.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.around(self.streamed());
        chunk["choices"] = json!([]);
        chunk["usage"] = usage.value();
        chunk
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Option<&[Told]>, finish: Option<&str>) -> Value {
        let mut choice = json!({ "index": index, "finish_reason": finish });
        choice["logprobs"] = self.logprobs(logprobs);
        if self.shape == Shape::Chat {
            choice["delta"] = delta;
        }
        let mut chunk = self.around(self.streamed());
        chunk["choices"] = json!([choice]);
        chunk
    }

    fn streamed(&self) -> &'static str {
        match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Text => "text_completion",
        }
    }

    fn around(&self, object: &str) -> Value {
        let Frame { id, created, model, answers, seed, .. } = self;
        json!({
            "id": id, "object": object, "created": created, "model": model,
            "instruct": { "answers": answers, "seed": seed },
        })
    }

    fn logprobs(&self, told: Option<&[Told]>) -> Value {
        let Some(told) = told else { return Value::Null };
        let one = |text: &str, logprob: f32| json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() });
        match self.shape {
            Shape::Chat => {
                let token = |told: &Told| {
                    let mut token = one(&told.text, told.logprob);
                    token["top_logprobs"] =
                        told.alternatives.iter().map(|(text, logprob)| one(text, *logprob)).collect();
                    token
                };
                json!({ "content": told.iter().map(token).collect::<Value>() })
            }
            Shape::Text => {
                let top = |told: &Told| told.alternatives.iter().map(|(t, l)| (t.clone(), json!(l))).collect::<Value>();
                json!({
                    "tokens": told.iter().map(|told| &told.text).collect::<Vec<_>>(),
                    "token_logprobs": told.iter().map(|told| told.logprob).collect::<Vec<_>>(),
                    "top_logprobs": told.iter().map(top).collect::<Value>(),
                })
            }
        }
    }
}
