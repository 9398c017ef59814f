//! JSON read strictly: no key twice, every field asked for by name, and none left that nobody asked for.

use crate::fault::{Fault, Problem};
use instruct_data::{Message, Role, strict_json};
use serde_json::{Map, Value, error::Category};
use std::{collections::BTreeSet, fmt, ops::RangeInclusive};

/// Most bytes of a text that a person writes: 64 KiB.
pub const MAX_TEXT: usize = 64 << 10;
/// Most bytes of a note: 4 KiB.
pub const MAX_NOTE: usize = 4 << 10;
/// Most completions of a task.
pub const MAX_COMPLETIONS: usize = 16;
/// Most messages of a conversation that a person writes.
pub const MAX_MESSAGES: usize = 256;
/// Whole numbers up to here are the same in JavaScript.
const EXACT: u64 = (1 << 53) - 1;

/// The fields of an object that nobody has asked for yet.
pub(crate) struct Fields {
    object: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The fields of a body or a line.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Fields, Fault> {
        let value = strict_json(bytes).map_err(|error| malformed(&error))?;
        Fields::of(value, "")
    }

    /// The fields of `value`, which messages call `path`; it is empty for the body itself.
    pub(crate) fn of(value: Value, path: &str) -> Result<Fields, Fault> {
        match value {
            Value::Object(object) => Ok(Fields { object, path: path.to_owned() }),
            other => Err(Fault {
                field: (!path.is_empty()).then(|| path.to_owned()),
                problem: Problem::Type { expected: "an object", found: type_name(&other) },
            }),
        }
    }

    /// A field that may be absent; null is absent.
    pub(crate) fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value, &str) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        let value = self.object.remove(name).filter(|value| !value.is_null());
        value.map(|value| read(value, &self.inside(name))).transpose()
    }

    /// A field that must be there.
    pub(crate) fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value, &str) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.optional(name, read)?.ok_or_else(|| Fault::new(self.inside(name), Problem::Missing))
    }

    /// Refuses what nobody asked for.
    pub(crate) fn end(self) -> Result<(), Fault> {
        let left = self.object.keys().next().map(|name| self.inside(name));
        left.map_or(Ok(()), |name| Err(Fault::new(name, Problem::Unknown)))
    }

    fn inside(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// A word of a fixed list.
pub(crate) trait Word: Copy + 'static {
    const WORDS: &'static [Self];
    fn word(self) -> &'static str;
}

/// Declares an enum whose variants are words of bodies and files.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them, in their order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word that bodies and files use.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl $crate::fields::Word for $name {
            const WORDS: &'static [$name] = $name::ALL;
            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

/// One of the words of `T`.
pub(crate) fn word<T: Word>(value: Value, path: &str) -> Result<T, Fault> {
    let found = string(value, path)?;
    T::WORDS.iter().copied().find(|known| known.word() == found).ok_or_else(|| {
        let words: Vec<String> = T::WORDS.iter().map(|known| format!("`{}`", known.word())).collect();
        Fault::new(path, Problem::Range { found: shown(&found), allowed: words.join(", ") })
    })
}

/// An identifier: letters, digits, `.`, `_` and `-`, at most 64 of them.
pub(crate) fn id(value: Value, path: &str) -> Result<String, Fault> {
    let found = string(value, path)?;
    check_id(path, &found)?;
    Ok(found)
}

/// Refuses what is no identifier.
pub(crate) fn check_id(path: &str, text: &str) -> Result<(), Fault> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(sound) {
        return Ok(());
    }
    let allowed = "1 to 64 letters, digits, dots, underscores and hyphens".to_owned();
    Err(Fault::new(path, Problem::Range { found: shown(text), allowed }))
}

/// A text that a person wrote: something in it, no NUL, at most [`MAX_TEXT`] bytes.
pub(crate) fn written(value: Value, path: &str) -> Result<String, Fault> {
    let found = at_most(MAX_TEXT, value, path)?;
    usable(&found, false).map_err(|problem| Fault::new(path, problem))?;
    Ok(found)
}

/// A note: any text of at most [`MAX_NOTE`] bytes.
pub(crate) fn note(value: Value, path: &str) -> Result<String, Fault> {
    at_most(MAX_NOTE, value, path)
}

fn at_most(most: usize, value: Value, path: &str) -> Result<String, Fault> {
    let found = string(value, path)?;
    if found.len() <= most { Ok(found) } else { Err(Fault::new(path, Problem::Long { found: found.len(), most })) }
}

/// Whether a record may hold the text.
pub(crate) fn usable(text: &str, may_be_empty: bool) -> Result<(), Problem> {
    if text.contains('\0') {
        return Err(Problem::Nul);
    }
    if !may_be_empty && text.trim().is_empty() { Err(Problem::Empty) } else { Ok(()) }
}

pub(crate) fn string(value: Value, path: &str) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong("a string", &other, path)),
    }
}

pub(crate) fn truth(value: Value, path: &str) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| wrong("true or false", &value, path))
}

/// Any whole number of 64 bits.
pub(crate) fn number(value: Value, path: &str) -> Result<u64, Fault> {
    value.as_u64().ok_or_else(|| wrong("a whole number", &value, path))
}

/// Seconds.
pub(crate) fn seconds(value: Value, path: &str) -> Result<u64, Fault> {
    whole(0..=EXACT)(value, path)
}

/// A whole number in a range that `T` can hold.
pub(crate) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(Value, &str) -> Result<T, Fault> {
    move |value, path| {
        let found = number(value, path)?;
        let inside = Some(found).filter(|found| range.contains(found)).and_then(|found| T::try_from(found).ok());
        inside.ok_or_else(|| {
            let allowed = format!("between {} and {}", range.start(), range.end());
            Fault::new(path, Problem::Range { found: found.to_string(), allowed })
        })
    }
}

/// The number of a completion.
pub(crate) fn slot(value: Value, path: &str) -> Result<usize, Fault> {
    whole(0..=MAX_COMPLETIONS as u64 - 1)(value, path)
}

/// A rank.
pub(crate) fn rank(value: Value, path: &str) -> Result<u32, Fault> {
    whole(1..=MAX_COMPLETIONS as u64)(value, path)
}

/// A list of at most `most`.
pub(crate) fn list<T>(
    most: usize,
    each: impl Fn(Value, &str) -> Result<T, Fault>,
) -> impl FnOnce(Value, &str) -> Result<Vec<T>, Fault> {
    move |value, path| {
        let Value::Array(values) = value else { return Err(wrong("an array", &value, path)) };
        if values.len() > most {
            let want = format!("at most {most}");
            return Err(Fault::new(path, Problem::Count { found: values.len(), want }));
        }
        values.into_iter().enumerate().map(|(i, value)| each(value, &format!("{path}[{i}]"))).collect()
    }
}

/// A value that may be null.
pub(crate) fn nullable<T>(
    read: impl Fn(Value, &str) -> Result<T, Fault>,
) -> impl Fn(Value, &str) -> Result<Option<T>, Fault> {
    move |value, path| if value.is_null() { Ok(None) } else { read(value, path).map(Some) }
}

/// Refuses a list that holds a value twice.
pub(crate) fn distinct<T: Ord + fmt::Display>(values: &[T], path: &str) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    let twice = values.iter().find(|value| !seen.insert(*value));
    twice.map_or(Ok(()), |value| Err(Fault::new(path, Problem::Repeated { value: value.to_string() })))
}

/// A conversation that the model may answer, with texts that a person may write.
pub(crate) fn conversation(value: Value, path: &str) -> Result<Vec<Message>, Fault> {
    let messages = list(MAX_MESSAGES, message)(value, path)?;
    for (i, message) in messages.iter().enumerate() {
        if message.content.len() > MAX_TEXT {
            let problem = Problem::Long { found: message.content.len(), most: MAX_TEXT };
            return Err(Fault::new(format!("{path}[{i}].content"), problem));
        }
    }
    answerable(&messages, path)?;
    Ok(messages)
}

/// Whether a record may hold these messages as its prompt.
pub(crate) fn answerable(messages: &[Message], path: &str) -> Result<(), Fault> {
    for (i, message) in messages.iter().enumerate() {
        let sound = usable(&message.content, message.role == Role::System);
        sound.map_err(|problem| Fault::new(format!("{path}[{i}].content"), problem))?;
    }
    match messages.last().map(|last| &last.role) {
        None => Err(Fault::new(path, Problem::Empty)),
        Some(Role::System | Role::Assistant) => Err(Fault::new(path, Problem::LastRole)),
        Some(_) => Ok(()),
    }
}

/// A message, whatever it says.
pub(crate) fn message(value: Value, path: &str) -> Result<Message, Fault> {
    let mut fields = Fields::of(value, path)?;
    let role = fields.required("role", role)?;
    let content = fields.required("content", string)?;
    fields.end()?;
    Ok(Message { role, content })
}

fn role(value: Value, path: &str) -> Result<Role, Fault> {
    let found = string(value, path)?;
    let allowed = "`system`, `user`, `assistant` or another voice that chat templates know".to_owned();
    let fault = || Fault::new(path, Problem::Range { found: shown(&found), allowed });
    Role::named(&found).ok_or_else(fault)
}

fn wrong(expected: &'static str, found: &Value, path: &str) -> Fault {
    Fault::new(path, Problem::Type { expected, found: type_name(found) })
}

/// The value between backquotes, cut when it is long.
fn shown(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    let more = if start.len() < text.len() { "..." } else { "" };
    format!("`{start}{more}`")
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_u64() => "a whole number",
        Value::Number(number) if number.is_i64() => "a negative number",
        Value::Number(_) => "a fraction",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn malformed(error: &serde_json::Error) -> Fault {
    let message = error.to_string();
    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason).to_owned();
    let problem = match error.classify() {
        Category::Data => Problem::Twice { reason },
        _ => Problem::Json { column: error.column(), reason },
    };
    Fault { field: None, problem }
}
