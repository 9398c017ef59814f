//! JSON read strictly: a key that occurs twice is refused, and every field is asked for by name, so
//! that a message can name the field that is wrong.

use crate::{
    error::{Problem, RecordError},
    origin::Origin,
};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::{cell::Cell, fmt, path::Path, sync::Arc};

/// Reads one JSON value, made of at most `most` values, and refuses anything after it.
pub(crate) fn parse(text: &str, most: usize) -> Result<Value, Problem> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict { left: &Cell::new(most), most }.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|e| malformed(&e, e.column()))
}

/// Reads a value of a larger document, made of at most `most` values.
pub(crate) fn value<'de, D: Deserializer<'de>>(deserializer: D, most: usize) -> Result<Value, D::Error> {
    Strict { left: &Cell::new(most), most }.deserialize(deserializer)
}

/// The value at the start of `text`, made of at most `most` values, and its length.
pub(crate) fn prefix(text: &str, most: usize) -> (usize, serde_json::Result<Value>) {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict { left: &Cell::new(most), most }.deserialize(&mut deserializer);
    // Only a stream tells how many bytes it has read.
    (deserializer.into_iter::<serde::de::IgnoredAny>().byte_offset(), value)
}

/// What the parser says, without the place that it has counted.
pub(crate) fn malformed(error: &serde_json::Error, column: usize) -> Problem {
    let message = error.to_string();
    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason).to_owned();
    Problem::Malformed { column, reason }
}

/// Reads a value in which no object has the same key twice and which is made of at most `most` values.
#[derive(Clone, Copy)]
struct Strict<'a> {
    left: &'a Cell<usize>,
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(D::Error::custom(format!("more than {} values", self.most)));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{key}` occurs twice")));
            }
            let value = access.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// What one file has yielded besides records.
pub(crate) struct Sink {
    pub(crate) path: Arc<Path>,
    /// [`crate::Limits::spread`].
    pub(crate) spread: usize,
    /// Reasons to refuse.
    pub(crate) problems: Vec<RecordError>,
    /// Records left out of a published data set that is known to hold unusable ones, with the reason.
    pub(crate) skipped: Vec<RecordError>,
}

impl Sink {
    pub(crate) fn new(path: &Path, spread: usize) -> Sink {
        Sink { path: path.into(), spread, problems: Vec::new(), skipped: Vec::new() }
    }

    pub(crate) fn error(&self, line: usize, field: Option<String>, problem: Problem) -> RecordError {
        RecordError { origin: self.origin(line), field, problem }
    }

    pub(crate) fn origin(&self, line: usize) -> Origin {
        Origin { path: Arc::clone(&self.path), line }
    }

    /// Notes that the line is unusable.
    pub(crate) fn line(&mut self, line: usize, problem: Problem) {
        let error = self.error(line, None, problem);
        self.problems.push(error);
    }
}

/// One object of a record. Every accessor notes what is wrong and returns `None`, so that a record
/// reports all its problems at once.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: String,
    pub(crate) line: usize,
    pub(crate) sink: &'a mut Sink,
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which the messages call `prefix` (empty for the record itself).
    pub(crate) fn new(value: &'a Value, prefix: &str, line: usize, sink: &'a mut Sink) -> Option<Fields<'a>> {
        match value {
            Value::Object(object) => Some(Fields { object, prefix: prefix.to_owned(), line, sink }),
            other => {
                let field = (!prefix.is_empty()).then(|| prefix.to_owned());
                let problem = Problem::WrongType { expected: "an object", found: type_name(other) };
                let error = sink.error(line, field, problem);
                sink.problems.push(error);
                None
            }
        }
    }

    /// The same for an object inside this one.
    pub(crate) fn inner<'b>(&'b mut self, value: &'b Value, name: &str) -> Option<Fields<'b>> {
        let prefix = self.path(name);
        Fields::new(value, &prefix, self.line, self.sink)
    }

    pub(crate) fn origin(&self) -> Origin {
        self.sink.origin(self.line)
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Notes a problem of field `name`.
    pub(crate) fn problem<T>(&mut self, name: &str, problem: Problem) -> Option<T> {
        let error = self.sink.error(self.line, Some(self.path(name)), problem);
        self.sink.problems.push(error);
        None
    }

    /// Notes that the record is left out because of field `name`.
    pub(crate) fn skip<T>(&mut self, name: &str, problem: Problem) -> Option<T> {
        let error = self.sink.error(self.line, Some(self.path(name)), problem);
        self.sink.skipped.push(error);
        None
    }

    /// The field; null counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A field that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Option<&'a Value> {
        match self.get(name) {
            Some(value) => Some(value),
            None => self.problem(name, Problem::Missing),
        }
    }

    /// A text with something in it.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let value = self.required(name)?;
        self.text_of(name, value, false)
    }

    /// A text, if it is there. The outer `None` means that it is there and wrong.
    pub(crate) fn optional_text(&mut self, name: &str) -> Option<Option<String>> {
        match self.get(name) {
            None => Some(None),
            Some(value) => self.text_of(name, value, false).map(Some),
        }
    }

    /// A name, which may be written as an integer.
    pub(crate) fn optional_name(&mut self, name: &str) -> Option<Option<String>> {
        match self.get(name) {
            Some(Value::Number(number)) if !number.is_f64() => Some(Some(number.to_string())),
            _ => self.optional_text(name),
        }
    }

    /// `value` as text, which the messages call `name`.
    pub(crate) fn text_of(&mut self, name: &str, value: &Value, may_be_empty: bool) -> Option<String> {
        let Value::String(text) = value else {
            return self.wrong_type(name, "a string", value);
        };
        if text.contains('\0') {
            return self.problem(name, Problem::Nul);
        }
        if !may_be_empty && text.trim().is_empty() {
            return self.problem(name, Problem::Empty);
        }
        Some(text.clone())
    }

    /// An array with something in it.
    pub(crate) fn array(&mut self, name: &str) -> Option<&'a [Value]> {
        match self.required(name)? {
            Value::Array(values) if values.is_empty() => self.problem(name, Problem::Empty),
            Value::Array(values) => Some(values),
            other => self.wrong_type(name, "an array", other),
        }
    }

    /// `value` as an integer.
    pub(crate) fn integer_of(&mut self, name: &str, value: &Value) -> Option<i64> {
        match value.as_i64() {
            Some(integer) => Some(integer),
            None => self.wrong_type(name, "an integer", value),
        }
    }

    /// Refuses more than [`Sink::spread`] bytes, which text comes to when each of several records gets a
    /// copy of it.
    pub(crate) fn spread(&mut self, name: &str, bytes: usize) -> Option<()> {
        let limit = self.sink.spread;
        if bytes <= limit { Some(()) } else { self.problem(name, Problem::Spread { limit }) }
    }

    pub(crate) fn wrong_type<T>(&mut self, name: &str, expected: &'static str, found: &Value) -> Option<T> {
        self.problem(name, Problem::WrongType { expected, found: type_name(found) })
    }
}

/// The JSON type of a value, with its article.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
