//! Renders a chat template as transformers does.
//!
//! Templates are written for Jinja2 in Python, and a model answers worse when a space of its prompt is
//! missing. So this is an engine of our own, whose values, operators, methods, filters, scopes and cuts of white
//! space are Python's and Jinja2's: `fixtures/reference/templates.py` renders the same templates with
//! transformers, and a test holds the two to the same bytes.
//!
//! A template is a program of whoever published the model. It reads nothing but the conversation, and every step
//! of it is counted, so it ends after the same steps on every machine.

mod arguments;
mod fault;
mod filters;
mod format;
mod lex;
mod operators;
mod parse;
mod run;
mod text;
mod value;

#[cfg(test)]
mod tests;

use crate::{date::Date, error::Error, record::Message};
use fault::{Fault, Kind};
use parse::{Program, parse};
use std::{ops::Range, sync::Arc};
use value::Value;

/// A chat template, ready to be rendered.
#[derive(Clone, Debug)]
pub(crate) struct Jinja {
    /// Where it stands, for messages.
    pub(crate) place: String,
    program: Arc<Program>,
    specials: Vec<(String, String)>,
    date: Date,
}

/// What a template writes for a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// All of it.
    pub(crate) text: String,
    /// The bytes of `text` that stand inside `{% generation %}` blocks: what the model is to say.
    ///
    /// They are those that transformers' mask of assistant tokens covers. So a block whose output is captured
    /// first, by a macro, `set`, `filter` or another block, is counted from where the text had come to by
    /// then, with the length that the block wrote.
    pub(crate) generated: Vec<Range<usize>>,
}

/// Bytes of one rendering, the conversation included.
const RENDERED: usize = 16 << 20;

impl Jinja {
    /// Compiles a template that stands at `place`. `specials` are names and texts of special tokens, such as
    /// `bos_token`, which the template may use; a token that the model lacks must be left out, since
    /// templates ask whether it is defined.
    ///
    /// # Errors
    /// [`Error::Template`] when it does not compile.
    pub(crate) fn compile(place: &str, source: &str, specials: Vec<(String, String)>) -> Result<Jinja, Error> {
        let program = parse(source).map_err(|why| describe(place, why))?;
        Ok(Jinja { place: place.to_owned(), program: Arc::new(program), specials, date: Date::default() })
    }

    /// The same template with another day for `strftime_now`.
    pub(crate) fn with_date(self, date: Date) -> Jinja {
        Jinja { date, ..self }
    }

    /// The day that `strftime_now` tells.
    pub(crate) fn date(&self) -> Date {
        self.date
    }

    /// Writes a conversation out, with `add_generation_prompt` as given. As transformers does, it defines
    /// `messages`, the special tokens, and `tools` and `documents`, which are none.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the conversation or runs too long.
    pub(crate) fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<Rendered, Error> {
        let rendered = self.names(messages, generation_prompt);
        let rendered = rendered.and_then(|names| run::run(&self.program, names, self.date, RENDERED));
        let (text, generated) = rendered.map_err(|why| describe(&self.place, why))?;
        Ok(Rendered { text, generated })
    }

    fn names(&self, messages: &[Message], generation_prompt: bool) -> Result<Vec<(Arc<str>, Value)>, Fault> {
        let entry = |key: &str, text: &str| (Value::text(key), Value::text(text));
        let turn = |m: &Message| Value::dict(vec![entry("role", m.role.as_str()), entry("content", &m.content)]);
        let messages = Value::list(messages.iter().map(turn).collect::<Result<_, _>>()?)?;
        let specials = self.specials.iter().map(|(name, token)| (name.as_str().into(), Value::text(token.as_str())));
        let others = [
            ("messages", messages),
            ("tools", Value::None),
            ("documents", Value::None),
            ("add_generation_prompt", Value::Bool(generation_prompt)),
        ];
        Ok(specials.chain(others.map(|(name, value)| (name.into(), value))).collect())
    }
}

/// What went wrong, in which line of the template, and what to do.
fn describe(place: &str, fault: Fault) -> Error {
    let line = fault.line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let advice = match fault.kind {
        Kind::Syntax => "correct it, or name another template",
        Kind::Refused => "change the conversation, or name another template",
        Kind::Beyond => "transformers may render it; write the template without this, or name another",
        Kind::Endless => "name another template",
    };
    Error::template(place, format!("{line}{}; {advice}", fault.what))
}
