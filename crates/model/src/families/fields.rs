//! Reading `config.json` field by field, collecting every problem instead of stopping at the first.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value};

/// The fields of one `config.json`. A getter that finds a problem notes it and returns a stand-in,
/// so that a reader is one expression and all problems are reported together.
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: String,
    problems: &'a RefCell<Vec<String>>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>, problems: &'a RefCell<Vec<String>>) -> Fields<'a> {
        Fields { object, prefix: String::new(), problems }
    }

    /// Notes a problem with `field`.
    pub(crate) fn refuse(&self, field: &str, problem: &str) {
        self.problems.borrow_mut().push(format!("{}{field} {problem}", self.prefix));
    }

    /// The field, where it is present and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is present, even as null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// A count that must be there.
    pub(crate) fn count(&self, field: &str) -> usize {
        self.count_opt(field).unwrap_or_else(|| {
            if self.get(field).is_none() {
                self.refuse(field, "is missing");
            }
            1
        })
    }

    /// A count that may be absent or null.
    pub(crate) fn count_opt(&self, field: &str) -> Option<usize> {
        self.typed(field, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A number with a default.
    pub(crate) fn number(&self, field: &str, default: f64) -> f64 {
        self.typed(field, "a number", Value::as_f64).unwrap_or(default)
    }

    /// A number that must be there.
    pub(crate) fn required_number(&self, field: &str) -> f64 {
        if self.get(field).is_none() {
            self.refuse(field, "is missing");
        }
        self.number(field, 1.0)
    }

    /// A flag with a default.
    pub(crate) fn flag(&self, field: &str, default: bool) -> bool {
        self.typed(field, "true or false", Value::as_bool).unwrap_or(default)
    }

    /// A text, where present.
    pub(crate) fn text(&self, field: &str) -> Option<&'a str> {
        self.typed(field, "a text", Value::as_str)
    }

    /// The list under `field`, where present.
    pub(crate) fn list(&self, field: &str) -> Option<&'a Vec<Value>> {
        self.typed(field, "a list", Value::as_array)
    }

    /// The object under `field`, where present.
    pub(crate) fn object(&self, field: &str) -> Option<Fields<'a>> {
        let object = self.typed(field, "an object", Value::as_object)?;
        Some(Fields { object, prefix: format!("{}{field}.", self.prefix), problems: self.problems })
    }

    /// A token id, where present.
    pub(crate) fn id(&self, field: &str) -> Option<u32> {
        self.typed(field, "a token id", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    /// The padding id. Files write -1 and other ids of no token where there is none.
    pub(crate) fn padding(&self) -> Option<u32> {
        self.get("pad_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }

    /// One token id or a list of them.
    pub(crate) fn ids(&self, field: &str) -> BTreeSet<u32> {
        match self.get(field) {
            Some(Value::Array(list)) => list.iter().filter_map(|value| self.one_id(field, value)).collect(),
            _ => self.id(field).into_iter().collect(),
        }
    }

    fn one_id(&self, field: &str, value: &Value) -> Option<u32> {
        let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
        if id.is_none() {
            self.refuse(field, &format!("lists {value}, which is no token id"));
        }
        id
    }

    /// Refuses any value of `field` but `only`, which is also what its absence means.
    pub(crate) fn only_flag(&self, field: &str, only: bool) {
        if self.flag(field, only) != only {
            self.refuse(field, &format!("is {}, which this decoder does not compute", !only));
        }
    }

    fn typed<T>(&self, field: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.get(field)?;
        let typed = read(value);
        if typed.is_none() {
            self.refuse(field, &format!("is {value}, not {kind}"));
        }
        typed
    }
}
