//! Python's values, as far as a chat template meets them: what is true, equal and smaller, and how they are
//! written.

use super::fault::{Done, Fault, Meter, STEPS, steps_of};
use std::{cell::RefCell, fmt::Write as _, rc::Rc, sync::Arc, vec};

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, and what is said of whoever does more with it than to ask or to print it.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    /// Python's whole numbers have no bound; those beyond 64 bits are refused.
    Int(i64),
    Float(f64),
    Text(Arc<str>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    /// A generator: what is taken from it is gone.
    Stream(Rc<Stream>),
    /// Start, stop and step.
    Range(i64, i64, i64),
    /// The place of a namespace, a loop or a macro (with its scope) in the rendering.
    Namespace(usize),
    Loop(usize),
    Macro(usize, usize),
    Method(Rc<(Value, Arc<str>)>),
    Function(&'static str),
}

/// The elements of a list or tuple, at least as many steps as walking them takes, and how deeply they nest.
#[derive(Debug)]
pub(super) struct Items {
    pub(super) values: Vec<Value>,
    weight: u64,
    depth: u16,
}

/// Keys and values in the order in which they came.
#[derive(Debug)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    weight: u64,
    depth: u16,
}

#[derive(Debug)]
pub(super) struct Stream {
    left: RefCell<vec::IntoIter<Value>>,
    weight: u64,
    depth: u16,
}

/// What `keys()`, `values()` and `items()` show of a dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// How deeply lists may nest, so that walking and dropping them takes little of the stack.
const DEPTH: u16 = 100;

/// The weight and depth of a container.
fn measure<'v>(values: impl Iterator<Item = &'v Value>) -> Done<(u64, u16)> {
    let (mut weight, mut depth) = (1u64, 0);
    for value in values {
        weight = weight.saturating_add(value.weight());
        depth = depth.max(value.depth());
    }
    if weight > STEPS || depth >= DEPTH {
        return Err(Fault::endless("it builds a list that is too large or nests too deeply"));
    }
    Ok((weight, depth + 1))
}

impl Dict {
    pub(super) fn new(entries: Vec<(Value, Value)>) -> Done<Dict> {
        let (weight, depth) = measure(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Dict { entries, weight, depth })
    }

    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| equal(known, key)).map(|(_, value)| value)
    }

    pub(super) fn get_text(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| matches!(known, Value::Text(text) if **text == *key)).map(|(_, v)| v)
    }
}

/// Puts an entry at its place: the one that an equal key has, or the end.
///
/// Errors: the key is a list or a dict, which have no hash in Python.
pub(super) fn insert(entries: &mut Vec<(Value, Value)>, key: Value, value: Value) -> Done<()> {
    check_hashable(&key)?;
    match entries.iter_mut().find(|(known, _)| equal(known, &key)) {
        Some((_, old)) => *old = value,
        None => entries.push((key, value)),
    }
    Ok(())
}

/// Errors: Python has no hash for it, so that it cannot be a key.
pub(super) fn check_hashable(value: &Value) -> Done<()> {
    if hashable(value) { Ok(()) } else { Err(Fault::refused(format!("unhashable type: '{}'", value.type_name()))) }
}

fn hashable(value: &Value) -> bool {
    match value {
        Value::List(_) | Value::Dict(_) | Value::View(..) => false,
        Value::Tuple(items) => items.values.iter().all(hashable),
        _ => true,
    }
}

impl Value {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Value {
        Value::Text(text.into())
    }

    pub(super) fn undefined(what: impl Into<Arc<str>>) -> Value {
        Value::Undefined(what.into())
    }

    pub(super) fn list(values: Vec<Value>) -> Done<Value> {
        let (weight, depth) = measure(values.iter())?;
        Ok(Value::List(Rc::new(Items { values, weight, depth })))
    }

    pub(super) fn tuple(values: Vec<Value>) -> Done<Value> {
        let (weight, depth) = measure(values.iter())?;
        Ok(Value::Tuple(Rc::new(Items { values, weight, depth })))
    }

    pub(super) fn dict(entries: Vec<(Value, Value)>) -> Done<Value> {
        Ok(Value::Dict(Rc::new(Dict::new(entries)?)))
    }

    pub(super) fn stream(values: Vec<Value>) -> Done<Value> {
        let (weight, depth) = measure(values.iter())?;
        Ok(Value::Stream(Rc::new(Stream { left: RefCell::new(values.into_iter()), weight, depth })))
    }

    pub(super) fn method(of: &Value, name: &str) -> Value {
        Value::Method(Rc::new((of.clone(), name.into())))
    }

    /// The steps that it takes to walk all of it, as comparing and writing do.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Value::Text(text) => steps_of(text.len()),
            Value::List(items) | Value::Tuple(items) => items.weight,
            Value::Dict(dict) | Value::View(_, dict) => dict.weight,
            Value::Stream(stream) => stream.weight,
            Value::Range(..) => 1 + self.length().unwrap_or(0) as u64,
            Value::Method(method) => 1 + method.0.weight(),
            _ => 1,
        }
    }

    /// The steps that it takes to meet each of its elements, and not what these hold.
    pub(super) fn breadth(&self) -> u64 {
        match self {
            Value::Text(text) => steps_of(text.len()),
            Value::Stream(stream) => 1 + stream.left.borrow().len() as u64,
            _ => 1 + self.length().unwrap_or(0) as u64,
        }
    }

    fn depth(&self) -> u16 {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(dict) | Value::View(_, dict) => dict.depth,
            Value::Stream(stream) => stream.depth,
            Value::Method(method) => 1 + method.0.depth(),
            _ => 0,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Stream(_) => "generator",
            Value::Range(..) => "range",
            Value::Namespace(_) => "Namespace",
            Value::Loop(_) => "LoopContext",
            Value::Macro(..) => "Macro",
            Value::Method(_) => "builtin_function_or_method",
            Value::Function(_) => "function",
        }
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::View(..) | Value::Range(..) => {
                self.length() != Some(0)
            }
            _ => true,
        }
    }

    /// What Python's `len` counts: characters, elements, keys.
    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Value::Undefined(_) => Some(0),
            Value::Text(text) => Some(text.chars().count()),
            Value::List(items) | Value::Tuple(items) => Some(items.values.len()),
            Value::Dict(dict) | Value::View(_, dict) => Some(dict.entries.len()),
            Value::Range(start, stop, step) => Some(range_length(*start, *stop, *step)),
            _ => None,
        }
    }

    /// A number, also where a boolean stands for one.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What a `for` over it meets. A stream is empty after.
    ///
    /// Errors: it cannot be iterated over; it takes too many steps.
    pub(super) fn elements(&self, meter: &mut Meter) -> Done<Vec<Value>> {
        // Each character becomes a value.
        meter.spend(self.as_text().map_or(0, str::len) as u64 + self.breadth())?;
        self.unmetered()
    }

    fn unmetered(&self) -> Done<Vec<Value>> {
        Ok(match self {
            Value::Undefined(_) => Vec::new(),
            Value::Text(text) => text.chars().map(|c| Value::text(c.encode_utf8(&mut [0; 4]) as &str)).collect(),
            Value::List(items) | Value::Tuple(items) => items.values.clone(),
            Value::Dict(dict) | Value::View(View::Keys, dict) => {
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::View(View::Values, dict) => dict.entries.iter().map(|(_, value)| value.clone()).collect(),
            Value::View(View::Items, dict) => {
                let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                dict.entries.iter().map(pair).collect::<Done<_>>()?
            }
            Value::Stream(stream) => stream.left.borrow_mut().by_ref().collect(),
            Value::Range(start, stop, step) => {
                (0..range_length(*start, *stop, *step) as i64).map(|at| Value::Int(start + at * step)).collect()
            }
            _ => return Err(Fault::refused(format!("'{}' object is not iterable", self.type_name()))),
        })
    }

    /// The first element that a `for` would meet, taken away where it comes from a stream.
    pub(super) fn first(&self, meter: &mut Meter) -> Done<Option<Value>> {
        match self {
            Value::Stream(stream) => Ok(stream.left.borrow_mut().next()),
            Value::List(items) | Value::Tuple(items) => Ok(items.values.first().cloned()),
            _ => Ok(self.elements(meter)?.into_iter().next()),
        }
    }
}

fn range_length(start: i64, stop: i64, step: i64) -> usize {
    let (from, to, step) = (i128::from(start), i128::from(stop), i128::from(step));
    let span = if step > 0 { to - from } else { from - to };
    if span <= 0 { 0 } else { ((span - 1) / step.abs() + 1) as usize }
}

/// Python's `==`.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.values.len() == b.values.len() && a.values.iter().zip(&b.values).all(|(a, b)| equal(a, b))
        }
        (Value::Dict(a), Value::Dict(b)) => {
            let same = |(key, value): &(Value, Value)| b.get(key).is_some_and(|other| equal(value, other));
            a.entries.len() == b.entries.len() && a.entries.iter().all(same)
        }
        (Value::Range(a, b, c), Value::Range(x, y, z)) => (a, b, c) == (x, y, z),
        (Value::Namespace(a), Value::Namespace(b)) | (Value::Loop(a), Value::Loop(b)) => a == b,
        (Value::Macro(a, x), Value::Macro(b, y)) => (a, x) == (b, y),
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Stream(a), Value::Stream(b)) => Rc::ptr_eq(a, b),
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => matches!((a.as_float(), b.as_float()), (Some(a), Some(b)) if a == b),
        },
    }
}

/// Python's `<`.
///
/// Errors: the two cannot be compared.
pub(super) fn less(a: &Value, b: &Value) -> Done<bool> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Ok(a < b),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.values.iter().zip(&b.values) {
                if !equal(a, b) {
                    return less(a, b);
                }
            }
            Ok(a.values.len() < b.values.len())
        }
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => Ok(a < b),
            _ => match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => Ok(a < b),
                _ => Err(incomparable(a, b)),
            },
        },
    }
}

fn incomparable(a: &Value, b: &Value) -> Fault {
    if let Some(what) = [a, b].into_iter().find_map(|value| match value {
        Value::Undefined(what) => Some(what),
        _ => None,
    }) {
        return Fault::refused(&**what);
    }
    Fault::refused(format!("'<' is not supported between '{}' and '{}'", a.type_name(), b.type_name()))
}

/// Sorts as Python does: stable, and with `<` alone.
pub(super) fn sorted<T: Clone>(items: Vec<T>, key: &impl Fn(&T) -> Value) -> Done<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let (left, right) = (sorted(left, key)?, sorted(right, key)?);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if less(&key(b), &key(a))? { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left.chain(right));
    Ok(merged)
}

/// What Python's `str` makes of a value.
///
/// Errors: it has no text, or one that differs from run to run.
pub(super) fn display(value: &Value) -> Done<Arc<str>> {
    match value {
        Value::Text(text) => Ok(Arc::clone(text)),
        Value::Undefined(_) => Ok("".into()),
        _ => Ok(repr(value)?.into()),
    }
}

/// What Python's `repr` makes of a value.
///
/// Errors: as for [`display`].
pub(super) fn repr(value: &Value) -> Done<String> {
    let mut out = String::new();
    write_repr(value, &mut out)?;
    Ok(out)
}

fn write_repr(value: &Value, out: &mut String) -> Done<()> {
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
        Value::Int(value) => push(out, format_args!("{value}")),
        Value::Float(value) => out.push_str(&float_repr(*value)),
        Value::Text(text) => out.push_str(&text_repr(text)),
        Value::List(items) => write_all(&items.values, "[", "]", out)?,
        Value::Tuple(items) if items.values.len() == 1 => write_all(&items.values, "(", ",)", out)?,
        Value::Tuple(items) => write_all(&items.values, "(", ")", out)?,
        Value::Dict(dict) => {
            for (at, (key, value)) in dict.entries.iter().enumerate() {
                out.push_str(if at == 0 { "{" } else { ", " });
                write_repr(key, out)?;
                out.push_str(": ");
                write_repr(value, out)?;
            }
            out.push_str(if dict.entries.is_empty() { "{}" } else { "}" });
        }
        Value::View(..) => {
            push(out, format_args!("{}(", value.type_name()));
            write_all(&value.unmetered()?, "[", "])", out)?;
        }
        Value::Range(start, stop, 1) => push(out, format_args!("range({start}, {stop})")),
        Value::Range(start, stop, step) => push(out, format_args!("range({start}, {stop}, {step})")),
        _ => {
            let what = format!("it prints a {}, whose text differs from run to run", value.type_name());
            return Err(Fault::beyond(what));
        }
    }
    Ok(())
}

fn write_all(values: &[Value], open: &str, close: &str, out: &mut String) -> Done<()> {
    out.push_str(open);
    for (at, value) in values.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { ", " });
        write_repr(value, out)?;
    }
    out.push_str(close);
    Ok(())
}

/// Writing into a `String` cannot fail.
fn push(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
}

/// The shortest digits that name the number, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..=15 => format!("{value:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// A text in quotes: single ones, unless it holds those and no double ones.
fn text_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => match u32::from(c) {
                code @ ..=0xff => push(&mut out, format_args!("\\x{code:02x}")),
                code @ ..=0xffff => push(&mut out, format_args!("\\u{code:04x}")),
                code => push(&mut out, format_args!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
    out
}

/// Python and Rust agree on what can be printed: all but controls, separators other than the space, and what
/// is not assigned. Rust also escapes quotes, backslashes and, at the beginning of a text, marks that combine.
pub(super) fn is_printable(c: char) -> bool {
    if matches!(c, '\'' | '"' | '\\') {
        return true;
    }
    let text = String::from_iter(['a', c]);
    text.escape_debug().eq(text.chars())
}

/// Calls of the standard library's JSON with these options.
#[derive(Clone, Debug)]
pub(super) struct Json {
    pub(super) ascii: bool,
    pub(super) indent: Option<String>,
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
}

/// What Python's `json.dumps` makes of a value.
///
/// Errors: JSON has no such value.
pub(super) fn json(value: &Value, how: &Json) -> Done<String> {
    let mut out = String::new();
    write_json(value, how, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, how: &Json, level: usize, out: &mut String) -> Done<()> {
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => push(out, format_args!("{value}")),
        Value::Float(value) => out.push_str(&json_float(*value)),
        Value::Text(text) => write_json_text(text, how.ascii, out),
        Value::List(items) | Value::Tuple(items) => {
            let element = |value: &Value, out: &mut String| write_json(value, how, level + 1, out);
            write_json_all(("[", "]"), &items.values, element, how, level, out)?;
        }
        Value::Dict(dict) => {
            let mut entries = dict.entries.clone();
            if how.sort_keys {
                entries = sorted(entries, &|(key, _)| key.clone())?;
            }
            let entry = |(key, value): &(Value, Value), out: &mut String| {
                write_json_text(&json_key(key)?, how.ascii, out);
                out.push_str(&how.separators.1);
                write_json(value, how, level + 1, out)
            };
            write_json_all(("{", "}"), &entries, entry, how, level, out)?;
        }
        _ => {
            let what = format!("Object of type {} is not JSON serializable", value.type_name());
            return Err(Fault::refused(what));
        }
    }
    Ok(())
}

fn write_json_all<T>(
    (open, close): (&str, &str),
    parts: &[T],
    part: impl Fn(&T, &mut String) -> Done<()>,
    how: &Json,
    level: usize,
    out: &mut String,
) -> Done<()> {
    out.push_str(open);
    let line = |level: usize, out: &mut String| {
        if let Some(indent) = &how.indent {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    };
    for (at, one) in parts.iter().enumerate() {
        out.push_str(if at == 0 { "" } else { &how.separators.0 });
        line(level + 1, out);
        part(one, out)?;
    }
    if !parts.is_empty() {
        line(level, out);
    }
    out.push_str(close);
    Ok(())
}

fn json_float(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => float_repr(value),
    }
}

fn json_key(key: &Value) -> Done<Arc<str>> {
    Ok(match key {
        Value::Text(text) => Arc::clone(text),
        Value::None => "null".into(),
        Value::Bool(value) => if *value { "true" } else { "false" }.into(),
        Value::Int(value) => value.to_string().into(),
        Value::Float(value) => json_float(*value).into(),
        _ => {
            let what = format!("keys must be str, int, float, bool or None, not {}", key.type_name());
            return Err(Fault::refused(what));
        }
    })
}

fn write_json_text(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => push(out, format_args!("\\u{:04x}", u32::from(c))),
            _ if ascii && (!c.is_ascii() || c == '\x7f') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    push(out, format_args!("\\u{unit:04x}"));
                }
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}
