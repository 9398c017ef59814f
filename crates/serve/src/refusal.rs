//! What a client is told when it does not get what it asked for.

use serde_json::{Value, json};

/// An answer that is none: a status and what OpenAI's clients expect in its body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct Refusal {
    /// The status of the HTTP response.
    pub status: u16,
    /// What is wrong and what to do, in a sentence.
    pub message: String,
    /// The field that is to blame.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal without further details.
    pub fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request has a field that cannot be honoured.
    pub fn of_field(name: &str, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(name.to_owned()), ..Refusal::new(400, message) }
    }

    /// The same, with a word for programs.
    pub fn with_code(self, code: &'static str) -> Refusal {
        Refusal { code: Some(code), ..self }
    }

    /// The server has as much to do as it takes.
    pub fn busy(message: &str) -> Refusal {
        Refusal { retry_after: Some(1), ..Refusal::new(429, message).with_code("rate_limit_exceeded") }
    }

    /// The body of the response.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}
