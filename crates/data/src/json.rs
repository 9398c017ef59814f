//! JSON read strictly: a key that occurs twice is refused, and every field is asked for by name, so
//! that a message can name the field that is wrong.

use crate::{
    error::{Problem, RecordError},
    origin::Origin,
};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::{cell::Cell, collections::BTreeMap, fmt, path::Path, sync::Arc};

/// The JSON value that these bytes are, in which no object may have a key twice.
///
/// # Errors
/// serde_json's, and one of the category [`serde_json::error::Category::Data`] for a key that occurs twice.
pub fn strict_json(bytes: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = value(&mut deserializer, usize::MAX)?;
    deserializer.end().map(|()| value)
}

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
    /// What else is to be said of the file.
    pub(crate) remarks: Remarks,
}

/// What the reader made of a file beyond its records, so that nothing is guessed or left out without a word.
/// Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remarks {
    /// The file.
    pub path: Arc<Path>,
    /// Fields that became part of the prompt (`system`, `history`, `input`), with the number of records that
    /// have each.
    pub joined: BTreeMap<String, usize>,
    /// Fields that are not used, with the number of their occurrences.
    pub unused: BTreeMap<String, usize>,
    /// Parts of records for which the kind asked for has no place, such as the later turns of a question,
    /// with their number.
    pub parts: BTreeMap<&'static str, usize>,
}

impl Remarks {
    fn new(path: &Arc<Path>) -> Remarks {
        let [joined, unused] = [BTreeMap::new(), BTreeMap::new()];
        Remarks { path: Arc::clone(path), joined, unused, parts: BTreeMap::new() }
    }

    /// Whether there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.unused.is_empty() && self.parts.is_empty()
    }
}

impl fmt::Display for Remarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |(name, number): (&String, &usize)| format!("{number} `{name}`");
        let joined: Vec<String> = self.joined.iter().map(field).collect();
        let parts = self.parts.iter().map(|(what, number)| format!("{number} {what}"));
        let unused: Vec<String> = self.unused.iter().map(field).chain(parts).collect();
        let said = [("part of the prompt", joined), ("not used", unused)];
        let said = said.iter().filter(|(_, list)| !list.is_empty());
        let said: Vec<String> = said.map(|(what, list)| format!("{what}: {}", list.join(", "))).collect();
        write!(f, "{}: {}", self.path.display(), said.join("; "))
    }
}

impl Sink {
    pub(crate) fn new(path: &Path, spread: usize) -> Sink {
        let path: Arc<Path> = path.into();
        let remarks = Remarks::new(&path);
        Sink { path, spread, problems: Vec::new(), skipped: Vec::new(), remarks }
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

    /// Notes that `number` parts of the record have no place in what is read.
    pub(crate) fn leave_out(&mut self, what: &'static str, number: usize) {
        if number > 0 {
            *self.sink.remarks.parts.entry(what).or_default() += number;
        }
    }

    /// Notes the fields that say something and are in no group of `known`. Those that change what is answered
    /// are refused: without them the words mean something else.
    pub(crate) fn only(&mut self, known: &[&[&str]]) {
        let object = self.object;
        let says =
            |name: &&String| !known.iter().any(|group| group.contains(&name.as_str())) && self.given(name).is_some();
        for name in object.keys().filter(says).collect::<Vec<_>>() {
            if CONTEXT.contains(&name.as_str()) {
                let _: Option<()> = self.problem(name, Problem::Unreadable);
            } else {
                self.leave(name);
            }
        }
    }

    /// Notes those of `names` that say something beside `used`, which says the same.
    pub(crate) fn leave_others(&mut self, names: &[&str], used: &str) {
        for name in names.iter().filter(|name| **name != used) {
            if self.given(name).is_some() {
                self.leave(name);
            }
        }
    }

    fn leave(&mut self, name: &str) {
        let name = self.general_path(name);
        *self.sink.remarks.unused.entry(name).or_default() += 1;
    }

    /// Notes that a field became part of the prompt.
    pub(crate) fn join(&mut self, name: &str) {
        *self.sink.remarks.joined.entry(name.to_owned()).or_default() += 1;
    }

    /// As [`Fields::optional_text`], of a text that becomes part of the prompt.
    pub(crate) fn joined_text(&mut self, name: &str) -> Option<Option<String>> {
        let text = self.optional_text(name)?;
        if text.is_some() {
            self.join(name);
        }
        Some(text)
    }

    /// The field's path with every index left out, so that all messages of a conversation share one.
    fn general_path(&self, name: &str) -> String {
        let path = self.path(name);
        let mut pieces = path.split('[');
        let first = pieces.next().unwrap_or_default().to_owned();
        pieces.fold(first, |path, piece| path + "[" + piece.trim_start_matches(|c: char| c.is_ascii_digit()))
    }

    /// The field; null counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The field where it says something: a blank text and an empty list, which labelling tools write for
    /// nothing, count as absent.
    pub(crate) fn given(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| match value {
            Value::String(text) => !text.trim().is_empty(),
            Value::Array(values) => !values.is_empty(),
            Value::Object(object) => !object.is_empty(),
            _ => true,
        })
    }

    /// The first of `names` that says something.
    pub(crate) fn first_given<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.given(name).is_some())
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

    /// A text, if it says something. The outer `None` means that it is there and wrong.
    pub(crate) fn optional_text(&mut self, name: &str) -> Option<Option<String>> {
        let blank = |value: &&Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        match self.get(name).filter(|value| !blank(value)) {
            None => Some(None),
            Some(value) => self.text_of(name, value, false).map(Some),
        }
    }

    /// A name, which may be written as an integer.
    pub(crate) fn optional_name(&mut self, name: &str) -> Option<Option<String>> {
        match self.get(name) {
            Some(Value::Number(number)) => match whole(number) {
                Some(integer) => Some(Some(integer.to_string())),
                None if !number.is_f64() => Some(Some(number.to_string())),
                None => self.optional_text(name),
            },
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

    /// `value` as an integer, which may be written as 1.0: tables with gaps turn integers into fractions.
    pub(crate) fn integer_of(&mut self, name: &str, value: &Value) -> Option<i64> {
        match value.as_number().and_then(whole) {
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

/// Fields that change what is answered: words around the prompt, where a shape does not read them, and what
/// is no text.
const CONTEXT: [&str; 17] = [
    "system",
    "system_prompt",
    "history",
    "input",
    "context",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "documents",
    "attachments",
];

/// A number without a fraction.
fn whole(number: &Number) -> Option<i64> {
    // Beyond this a fraction does not tell neighbouring integers apart.
    const EXACT: f64 = (1u64 << 53) as f64;
    let fraction = || number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT).map(|x| x as i64);
    number.as_i64().or_else(fraction)
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
