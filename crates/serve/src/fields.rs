//! The fields of a request, taken one by one, so that what is left is known.

use crate::Refusal;
use serde_json::{Map, Value};
use std::{fmt::Display, ops::RangeInclusive};

/// A JSON object from a client. `null` is as good as nothing.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// The object in a body.
    pub(crate) fn of(body: &[u8]) -> Result<Fields, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(Refusal::new(400, "the body must be a JSON object")),
            Err(why) => Err(Refusal::new(400, format!("the body is no JSON: {why}"))),
        }
    }

    /// A field, whatever it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.parsed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        Ok(self.parsed(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, Refusal> {
        let number = self.parsed(name, "a number", Value::as_f64)?;
        within(name, number, &range)
    }

    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let whole =
            |value: &Value| value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as u64));
        let number = self.parsed(name, "a whole number", whole)?;
        within(name, number, &range)
    }

    /// A string, or several.
    pub(crate) fn strings(&mut self, name: &str, most: usize) -> Result<Vec<String>, Refusal> {
        let strings = |value: &Value| match value {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(all) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let strings = self.parsed(name, "a string or a list of strings", strings)?.unwrap_or_default();
        match strings.len() {
            n if n > most => {
                Err(Refusal::of_field(name, format!("`{name}` has {n} strings; at most {most} are taken")))
            }
            _ => Ok(strings),
        }
    }

    /// Refuses a field that would change the text, unless it asks for nothing.
    pub(crate) fn refuse(&mut self, name: &str, is_harmless: fn(&Value) -> bool) -> Result<(), Refusal> {
        match self.take(name) {
            Some(value) if !is_harmless(&value) => {
                let message =
                    format!("`{name}` is not supported here, and without it the answer would be another; leave it out");
                Err(Refusal::of_field(name, message).with_code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// The names of the fields that nobody took.
    pub(crate) fn rest(self) -> Vec<String> {
        self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect()
    }

    fn parsed<T>(&mut self, name: &str, kind: &str, parse: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Refusal::of_field(name, format!("`{name}` must be {kind}"))),
        }
    }
}

fn within<T: PartialOrd + Display>(
    name: &str,
    value: Option<T>,
    range: &RangeInclusive<T>,
) -> Result<Option<T>, Refusal> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (least, most) = (range.start(), range.end());
            Err(Refusal::of_field(name, format!("`{name}` is {value}; it must lie in {least}..={most}")))
        }
        value => Ok(value),
    }
}
