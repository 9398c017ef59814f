//! What a client asks for, read from the shapes of OpenAI's interface.

use crate::{Refusal, fields::Fields};
use instruct_data::{Conversation, Message, Role};
use serde_json::Value;

/// Completions that a client wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The model that it names, if it names one.
    pub model: Option<String>,
    /// What is to be continued.
    pub input: Input,
    /// Completions per prompt.
    pub n: usize,
    /// Whether it wants the text as it is drawn.
    pub stream: bool,
    /// Whether a stream ends with the number of tokens.
    pub include_usage: bool,
    /// Logits are divided by it; 0 takes the most probable token.
    pub temperature: f32,
    /// Draw only from the most probable tokens that add up to it.
    pub top_p: f32,
    /// Draw only from so many of the most probable tokens; 0 is all.
    pub top_k: usize,
    /// Cap on a completion, in tokens.
    pub max_tokens: Option<usize>,
    /// Texts that end a completion, and are no part of it.
    pub stop: Vec<String>,
    /// Keys the draws; the server draws one where the client names none.
    pub seed: Option<u64>,
    /// Whether each token's log-probability is told, and beside it those of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// Names of fields that change nothing.
    pub ignored: Vec<String>,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A conversation that the model is to answer.
    Chat(Conversation),
    /// Texts, as they are.
    Texts(Vec<Prompt>),
}

/// A text that is to be continued as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// In words.
    Text(String),
    /// In ids of the model's vocabulary.
    Ids(Vec<u32>),
}

/// Most completions of a request.
const MOST: u64 = 8;
/// Most alternatives told beside a token.
const ALTERNATIVES: u64 = 20;
/// Most texts that end a completion.
const STOPS: usize = 16;

/// A request to `/v1/chat/completions`.
///
/// Errors: no JSON object, a field of another kind, or one that would change the text and is not supported; by name.
pub fn chat(body: &[u8]) -> Result<Asked, Refusal> {
    let mut fields = Fields::of(body)?;
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        _ => return Err(Refusal::of_field("messages", "`messages` must be a list of at least one message")),
    };
    let messages = messages.into_iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.last().is_some_and(|last| matches!(last.role, Role::Assistant | Role::System)) {
        return Err(Refusal::of_field(
            "messages",
            "`messages` must end with what the model is to answer: a user's turn",
        ));
    }
    for name in ["tools", "functions"] {
        fields.refuse(name, |value| value.as_array().is_some_and(Vec::is_empty))?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.refuse(name, |value| matches!(value.as_str(), Some("none" | "auto")))?;
    }
    fields.refuse("response_format", |value| value["type"] == "text")?;
    fields.refuse("modalities", |value| *value == serde_json::json!(["text"]))?;
    fields.refuse("audio", |_| false)?;
    fields.refuse("prediction", |_| false)?;
    let wants = fields.flag("logprobs")?;
    let alternatives = fields.whole("top_logprobs", 0..=ALTERNATIVES)?;
    if alternatives.is_some_and(|n| n > 0) && !wants {
        return Err(Refusal::of_field("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    let longest = fields.whole("max_completion_tokens", 1..=u64::from(u32::MAX))?;
    let asked = shared(fields, Input::Chat(Conversation { messages }), longest)?;
    Ok(Asked { logprobs: wants.then_some(alternatives.unwrap_or(0) as usize), ..asked })
}

/// A request to `/v1/completions`.
///
/// Errors: as [`chat`].
pub fn completions(body: &[u8]) -> Result<Asked, Refusal> {
    let mut fields = Fields::of(body)?;
    let prompts = prompts(fields.take("prompt"))?;
    fields.refuse("suffix", |value| value.as_str().is_some_and(str::is_empty))?;
    fields.refuse("echo", |value| *value == Value::Bool(false))?;
    fields.refuse("best_of", |value| *value == 1)?;
    let alternatives = fields.whole("logprobs", 0..=ALTERNATIVES)?;
    let asked = shared(fields, Input::Texts(prompts), None)?;
    // OpenAI's default for this endpoint.
    let max_tokens = asked.max_tokens.or(Some(16));
    Ok(Asked { logprobs: alternatives.map(|n| n as usize), max_tokens, ..asked })
}

/// Fields of other servers that change the text.
const ELSEWHERE: [&str; 16] = [
    "dry_multiplier",
    "dynatemp_range",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "json_schema",
    "logits_processors",
    "min_tokens",
    "mirostat",
    "stop_token_ids",
    "structured_outputs",
    "typical_p",
    "xtc_probability",
];

/// Whether a value switches nothing on: false, 0, or empty.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(true) => false,
    }
}

/// What both endpoints have.
fn shared(mut fields: Fields, input: Input, longest: Option<u64>) -> Result<Asked, Refusal> {
    let is_zero = |value: &Value| value.as_f64() == Some(0.0);
    fields.refuse("presence_penalty", is_zero)?;
    fields.refuse("frequency_penalty", is_zero)?;
    fields.refuse("logit_bias", |value| value.as_object().is_some_and(serde_json::Map::is_empty))?;
    for name in ["repetition_penalty", "repeat_penalty"] {
        fields.refuse(name, |value| value.as_f64() == Some(1.0))?;
    }
    fields.refuse("min_p", is_zero)?;
    for name in ELSEWHERE {
        fields.refuse(name, asks_for_nothing)?;
    }
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
    if top_p == 0.0 {
        return Err(Refusal::of_field("top_p", "`top_p` must be above 0; temperature 0 takes the most probable token"));
    }
    let stream = fields.flag("stream")?;
    let include_usage = fields.take("stream_options").is_some_and(|options| options["include_usage"] == true);
    let seed = match fields.take("seed") {
        None => None,
        Some(seed) => {
            let seed_of = |seed: &Value| seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
            Some(seed_of(&seed).ok_or_else(|| Refusal::of_field("seed", "`seed` must be a whole number"))?)
        }
    };
    let stop = fields.strings("stop", STOPS)?;
    if stop.iter().any(String::is_empty) {
        return Err(Refusal::of_field("stop", "`stop` holds an empty text, which would end every completion"));
    }
    Ok(Asked {
        model: fields.text("model")?,
        input,
        n: fields.whole("n", 1..=MOST)?.unwrap_or(1) as usize,
        stream,
        include_usage,
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
        top_p: top_p as f32,
        top_k: fields.whole("top_k", 0..=u64::from(u32::MAX))?.unwrap_or(0) as usize,
        max_tokens: longest.or(fields.whole("max_tokens", 1..=u64::from(u32::MAX))?).map(|n| n as usize),
        stop,
        seed,
        logprobs: None,
        ignored: fields.rest(),
    })
}

/// A turn of the conversation: its words are a string, or parts that are texts.
fn message((at, value): (usize, Value)) -> Result<Message, Refusal> {
    let name = format!("messages[{at}]");
    let refuse = |problem: &str| Refusal::of_field(&name, format!("`{name}` {problem}"));
    let Some(word) = value["role"].as_str() else { return Err(refuse("needs a `role`")) };
    let role = match word {
        // Newer clients call the standing instructions so.
        "developer" => Role::System,
        word => Role::named(word).ok_or_else(|| refuse(&format!("has the unknown role `{word}`")))?,
    };
    for name in ["tool_calls", "function_call", "audio"] {
        if !matches!(&value[name], Value::Null) && value[name] != serde_json::json!([]) {
            return Err(
                refuse(&format!("has `{name}`, which is not supported here")).with_code("unsupported_parameter")
            );
        }
    }
    let content = match &value["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(|part| part_text(part, &refuse)).collect::<Result<String, _>>()?,
        // A model may end an answer before it has begun, and clients send back what they were given.
        Value::Null if role == Role::Assistant => String::new(),
        _ => return Err(refuse("needs `content`: a string, or a list of text parts")),
    };
    if content.is_empty() && !matches!(role, Role::System | Role::Assistant) {
        return Err(refuse("says nothing; its `content` is empty"));
    }
    Ok(Message { role, content })
}

fn part_text<'a>(part: &'a Value, refuse: &impl Fn(&str) -> Refusal) -> Result<&'a str, Refusal> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (Some(kind), _) => {
            let problem = format!("has a part of type `{kind}`; this model reads texts alone");
            Err(refuse(&problem).with_code("unsupported_parameter"))
        }
        _ => Err(refuse("has a part that is no text")),
    }
}

/// A text, several, the ids of one, or those of several.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, Refusal> {
    let refuse = || {
        let kinds = "a string, a list of strings, a list of ids or a list of such lists, and none of them empty";
        Refusal::of_field("prompt", format!("`prompt` must be {kinds}; at most {MOST} at a time"))
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = |all: &[Value]| all.iter().map(id).collect::<Option<Vec<u32>>>().filter(|ids| !ids.is_empty());
    let one = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Some(Prompt::Text(text.clone())),
        Value::Array(all) => ids(all).map(Prompt::Ids),
        _ => None,
    };
    let value = value.ok_or_else(refuse)?;
    if let Some(prompt) = one(&value) {
        return Ok(vec![prompt]);
    }
    let Value::Array(all) = value else { return Err(refuse()) };
    let prompts = all.iter().map(one).collect::<Option<Vec<Prompt>>>().ok_or_else(refuse)?;
    if prompts.is_empty() || prompts.len() as u64 > MOST { Err(refuse()) } else { Ok(prompts) }
}

#[cfg(test)]
mod tests;
