//! Renders a chat template as transformers does.

use crate::{error::Error, patience::patiently, record::Message};
use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig, value::Value};
use std::{ops::Range, sync::Arc};

/// A chat template, ready to be rendered.
#[derive(Clone, Debug)]
pub(crate) struct Jinja {
    /// Where it stands, for messages.
    pub(crate) place: String,
    program: Arc<Program>,
}

/// What a template writes for a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// All of it.
    pub(crate) text: String,
    /// The bytes of `text` that stand inside `{% generation %}` blocks: what the model is to say.
    #[allow(dead_code, reason = "whoever trains on whole conversations reads it")]
    pub(crate) generated: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Program {
    environment: Environment<'static>,
    specials: Vec<(String, String)>,
}

/// Instructions that one rendering may take, and its recursion depth: a template is a program of
/// whoever published the model. Templates in use take a few hundred per message.
const FUEL: u64 = 1_000_000;
const RECURSION: usize = 64;
/// Bytes of one rendering, the conversation included.
const RENDERED: usize = 16 << 20;

impl Jinja {
    /// Compiles a template that stands at `place`. `specials` are names and texts of special tokens, such as
    /// `bos_token`, which the template may use.
    ///
    /// # Errors
    /// [`Error::Template`] when it does not compile.
    pub(crate) fn compile(place: &str, source: &str, specials: Vec<(String, String)>) -> Result<Jinja, Error> {
        let environment = environment(source).map_err(|why| describe(place, why))?;
        Ok(Jinja { place: place.to_owned(), program: Arc::new(Program { environment, specials }) })
    }

    /// Writes a conversation out, with `add_generation_prompt` as given.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the conversation or runs too long.
    pub(crate) fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<Rendered, Error> {
        let (program, messages) = (Arc::clone(&self.program), messages.to_vec());
        let work = move || program.render(&messages, generation_prompt);
        let text = patiently(work).unwrap_or_else(|why| Err(failed(&why))).map_err(|why| describe(&self.place, why))?;
        Ok(Rendered { text, generated: Vec::new() })
    }
}

impl Program {
    fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<String, minijinja::Error> {
        let turn = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let messages: Value = messages.iter().map(turn).collect();
        let globals = self.specials.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let context = [("messages", messages), ("add_generation_prompt", Value::from(generation_prompt))];
        let context = Value::from_pairs(globals.chain(context));
        let mut text = Limited(Vec::new());
        self.environment.get_template("chat")?.render_captured_to(context, &mut text)?;
        String::from_utf8(text.0).map_err(|e| failed(&e))
    }
}

/// Text of at most [`RENDERED`] bytes. Fuel does not bound it: fuel is charged per instruction, and one
/// instruction may write a list that was doubled forty times.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED {
            return Err(std::io::Error::other(format!("it writes more than {RENDERED} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failed(what: &dyn std::fmt::Display) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::BadSerialization, what.to_string())
}

fn environment(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", |value: Value| python_json(&value));
    environment.add_template_owned("chat", source.to_owned())?;
    Ok(environment)
}

/// JSON as Python's `json.dumps` spaces it, without escaping for HTML.
fn python_json(value: &Value) -> Result<String, minijinja::Error> {
    let mut bytes = Limited(Vec::new());
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonSpaces);
    serde::Serialize::serialize(value, &mut serializer).map_err(|e| failed(&e))?;
    String::from_utf8(bytes.0).map_err(|e| failed(&e))
}

struct PythonSpaces;

impl serde_json::ser::Formatter for PythonSpaces {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W) -> std::io::Result<()> {
        to.write_all(b": ")
    }
}

/// What went wrong, in which line of the template, and what to do.
fn describe(place: &str, error: minijinja::Error) -> Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let advice = match error.kind() {
        ErrorKind::OutOfFuel => "it runs too long; name another template",
        ErrorKind::SyntaxError => "correct it, or write `template = \"...{prompt}...\"` in the configuration",
        ErrorKind::UnknownFunction if what.contains("strftime_now") => {
            "it wants today's date, which would change the prompts from day to day; write the date into the template"
        }
        _ => "change the conversation, or name another template",
    };
    Error::template(place, format!("{line}{what}; {advice}"))
}
