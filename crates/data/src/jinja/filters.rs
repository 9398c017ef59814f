//! Jinja's filters and tests, and the `tojson` of transformers.

use super::{
    arguments::Given,
    fault::{Done, Fault},
    format::percent,
    operators::{binary, compare},
    run::Run,
    text,
    value::{Json, Value, View, equal, insert, json, less, sorted},
};
use std::{rc::Rc, sync::Arc};

/// Filters of Jinja that no chat template was seen to use.
const UNKNOWN: [&str; 11] = [
    "filesizeformat",
    "forceescape",
    "pprint",
    "random",
    "striptags",
    "truncate",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// The others, for templates that ask whether there is one.
const KNOWN: [&str; 43] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
];

/// `value | name(given)`. Where Jinja's `safe` and `escape` give a text that escapes what is added to it, this
/// gives a plain text.
///
/// # Errors
/// What Jinja and Python raise; a filter that is not rendered.
pub(super) fn filter(run: &mut Run<'_>, name: &str, value: Value, given: Given) -> Done<Value> {
    run.meter.spend(1)?;
    match name {
        "default" | "d" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"])?;
            let replaced = value.is_undefined() || boolean.is_some_and(|boolean| boolean.truth()) && !value.truth();
            Ok(if replaced { default.unwrap_or_else(|| Value::text("")) } else { value })
        }
        "length" | "count" => {
            let [] = given.bind(name, [])?;
            run.meter.spend(value.as_text().map_or(0, |_| value.breadth()))?;
            let length = value.length().map(|length| Value::Int(length as i64));
            length.ok_or_else(|| Fault::refused(format!("object of type '{}' has no len()", value.type_name())))
        }
        "string" | "safe" => Ok(Value::Text(run.display(&value)?)),
        "upper" | "lower" | "capitalize" | "title" | "trim" | "center" | "escape" | "e" | "replace" | "format" => {
            text_filter(run, name, &value, &given)
        }
        "indent" => indent(run, &value, &given),
        "int" => to_int(&value, &given),
        "float" => to_float(&value, &given),
        "abs" => match &value {
            Value::Float(number) => Ok(Value::Float(number.abs())),
            _ => match value.as_int().map(i64::checked_abs) {
                Some(Some(number)) => Ok(Value::Int(number)),
                _ => Err(Fault::refused(format!("bad operand type for abs(): '{}'", value.type_name()))),
            },
        },
        "round" => round(&value, &given),
        "tojson" => to_json(run, &value, &given),
        "items" => match &value {
            Value::Undefined(_) => Value::stream(Vec::new()),
            Value::Dict(dict) => Value::stream(Value::View(View::Items, Rc::clone(dict)).elements(&mut run.meter)?),
            _ => Err(Fault::refused("Can only get item pairs from a mapping.")),
        },
        "attr" => {
            let [name] = given.bind("attr", ["name"])?;
            let name: Arc<str> = run.display(&name.unwrap_or(Value::None))?;
            let found = run.python_attribute(&value, &name)?;
            Ok(found.unwrap_or_else(|| Value::undefined(format!("there is no attribute '{name}'"))))
        }
        "map" | "select" | "reject" | "selectattr" | "rejectattr" => choose(run, name, &value, given),
        _ => sequence_filter(run, name, &value, &given),
    }
}

/// The filters whose value is a text, or becomes one.
fn text_filter(run: &mut Run<'_>, name: &str, value: &Value, given: &Given) -> Done<Value> {
    let text = run.display(value)?;
    run.meter.spend_bytes(text.len())?;
    match name {
        "upper" | "lower" | "capitalize" => text::call(&text, name, given, &mut run.meter),
        "title" => Ok(Value::text(titled(&text))),
        "trim" => {
            let [chars] = given.bind(name, ["chars"])?;
            let places = chars.into_iter().collect();
            text::call(&text, "strip", &Given { places, names: Vec::new() }, &mut run.meter)
        }
        "center" => {
            let [width] = given.bind(name, ["width"])?;
            let width = width.map_or(Some(80), |width| width.as_int());
            let width = width.ok_or_else(|| Fault::refused("center wants a whole number"))?;
            text::pad(&text, usize::try_from(width).unwrap_or(0), ' ', name, &mut run.meter).map(Value::text)
        }
        "escape" | "e" => {
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                match c {
                    '&' => out.push_str("&amp;"),
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '\'' => out.push_str("&#39;"),
                    '"' => out.push_str("&#34;"),
                    _ => out.push(c),
                }
            }
            Ok(Value::text(out))
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else { return Err(Fault::refused("replace wants two texts")) };
            let count = count.filter(|count| !matches!(count, Value::None)).map_or(Some(-1), |count| count.as_int());
            let count = count.ok_or_else(|| Fault::refused("replace wants a whole number"))?;
            let (old, new) = (run.display(&old)?, run.display(&new)?);
            text::replace(&text, &old, &new, count, &mut run.meter).map(Value::text)
        }
        _ => {
            if !given.names.is_empty() && !given.places.is_empty() {
                return Err(Fault::refused("can't handle positional and keyword arguments at the same time"));
            }
            let entries = given.names.iter().map(|(name, value)| (Value::Text(Arc::clone(name)), value.clone()));
            let values = if given.names.is_empty() {
                Value::tuple(given.places.clone())?
            } else {
                Value::dict(entries.collect())?
            };
            percent(&text, &values, &mut run.meter).map(Value::text)
        }
    }
}

/// Jinja's own titles: words end at white space, hyphens and opening brackets.
fn titled(text: &str) -> String {
    let ends = |c: char| text::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    text.split_inclusive(ends).map(text::capitalize).collect()
}

fn indent(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [width, first, blank] = given.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (first.is_some_and(|first| first.truth()), blank.is_some_and(|blank| blank.truth()));
    let text = value.as_text().ok_or_else(|| Fault::refused("indent wants a text"))?;
    let indentation: Arc<str> = match width {
        Some(Value::Text(text)) => text,
        width => {
            let width = width.map_or(Some(4), |width| width.as_int());
            let width = width.ok_or_else(|| Fault::refused("indent wants a whole number or a text"))?;
            let width = usize::try_from(width).unwrap_or(0);
            run.meter.spend_bytes(width)?;
            " ".repeat(width).into()
        }
    };
    // The line end that Jinja adds makes a last, empty line count as one.
    let text = format!("{text}\n");
    let mut out = String::new();
    for (at, line) in text::lines(&text, false).into_iter().enumerate() {
        run.meter.spend_bytes(line.len() + indentation.len())?;
        out.push_str(if at == 0 { "" } else { "\n" });
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(Value::text(out))
}

fn to_int(value: &Value, given: &Given) -> Done<Value> {
    let [default, base] = given.bind("int", ["default", "base"])?;
    let base = base.map_or(Some(10), |base| base.as_int()).and_then(|base| u32::try_from(base).ok());
    let base = base.filter(|base| (2..=36).contains(base)).ok_or_else(|| Fault::beyond("`int` with such a base"))?;
    let truncated = |number: f64| {
        let fits = number.is_finite() && number.abs() < 9e18;
        fits.then_some(Value::Int(number as i64))
    };
    let number = match value {
        Value::Undefined(what) => return Err(Fault::refused(&**what)),
        Value::Float(number) => truncated(*number),
        Value::Text(text) => {
            let digits = text::strip(text, "strip", None).replace('_', "");
            let digits = digits.strip_prefix('+').unwrap_or(&digits);
            let whole = i64::from_str_radix(digits, base).ok().map(Value::Int);
            whole.or_else(|| truncated(digits.parse().ok()?))
        }
        _ => value.as_int().map(Value::Int),
    };
    Ok(number.or(default).unwrap_or(Value::Int(0)))
}

fn to_float(value: &Value, given: &Given) -> Done<Value> {
    let [default] = given.bind("float", ["default"])?;
    let number = match value {
        Value::Undefined(what) => return Err(Fault::refused(&**what)),
        Value::Text(text) => text::strip(text, "strip", None).replace('_', "").parse().ok(),
        _ => value.as_float(),
    };
    Ok(number.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
}

fn round(value: &Value, given: &Given) -> Done<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"])?;
    let precision = precision.map_or(Some(0), |precision| precision.as_int());
    let precision = precision.and_then(|precision| usize::try_from(precision).ok()).filter(|&digits| digits <= 300);
    let precision = precision.ok_or_else(|| Fault::beyond("`round` to other than 0 to 300 digits"))?;
    let number = value.as_float().ok_or_else(|| match value {
        Value::Undefined(what) => Fault::refused(&**what),
        _ => Fault::refused(format!("type {} doesn't define __round__ method", value.type_name())),
    })?;
    let scale = 10f64.powi(precision as i32);
    match method.as_ref().and_then(Value::as_text).unwrap_or("common") {
        "common" if value.as_int().is_some() => Ok(value.as_int().map_or(Value::None, Value::Int)),
        // Rust writes the nearest digits, half to even, and so rounds as Python does.
        "common" => Ok(Value::Float(format!("{number:.precision$}").parse().unwrap_or(number))),
        "ceil" => Ok(Value::Float((number * scale).ceil() / scale)),
        "floor" => Ok(Value::Float((number * scale).floor() / scale)),
        _ => Err(Fault::refused("method must be common, ceil or floor")),
    }
}

fn to_json(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [ascii, indent, separators, sort_keys] =
        given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent.filter(|indent| !matches!(indent, Value::None)) {
        None => None,
        Some(Value::Text(text)) => Some(text.to_string()),
        Some(width) => {
            let width = width.as_int().ok_or_else(|| Fault::refused("indent wants a whole number or a text"))?;
            let width = usize::try_from(width).unwrap_or(0);
            run.meter.spend_bytes(width)?;
            Some(" ".repeat(width))
        }
    };
    run.meter.spend(value.weight().saturating_mul(1 + indent.as_ref().map_or(0, String::len) as u64))?;
    let separators = match separators.filter(|separators| !matches!(separators, Value::None)) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(separators) => {
            let texts: Vec<Value> = separators.elements(&mut run.meter)?;
            let text = |at: usize| texts.get(at).and_then(Value::as_text).map(str::to_owned);
            text(0).zip(text(1)).ok_or_else(|| Fault::refused("separators are two texts"))?
        }
    };
    run.meter.spend_bytes((separators.0.len() + separators.1.len()).saturating_mul(value.weight() as usize))?;
    let ascii = ascii.is_some_and(|ascii| ascii.truth());
    let sort_keys = sort_keys.is_some_and(|sort| sort.truth());
    json(value, &Json { ascii, indent, separators, sort_keys }).map(Value::text)
}

/// `map`, `select`, `reject` and the two that ask an attribute. Like Jinja's generators, what they return can
/// be walked once.
fn choose(run: &mut Run<'_>, name: &str, value: &Value, mut given: Given) -> Done<Value> {
    // Jinja looks into nothing that is false, so `tools | select` is empty where there are none.
    let elements = if value.truth() { value.elements(&mut run.meter)? } else { Vec::new() };
    if name == "map" {
        return map(run, elements, given);
    }
    let mut attribute = None;
    if name.ends_with("attr") {
        if given.places.is_empty() {
            return Err(Fault::refused("Missing parameter for attribute name"));
        }
        attribute = Some(given.places.remove(0));
    }
    let test_name = if given.places.is_empty() { None } else { Some(run.display(&given.places.remove(0))?) };
    let mut kept = Vec::new();
    for element in elements {
        let asked = match &attribute {
            Some(attribute) => path(run, &element, attribute)?,
            None => element.clone(),
        };
        let holds = match &test_name {
            Some(test_name) => test(run, test_name, &asked, &given)?,
            None => asked.truth(),
        };
        if holds != name.starts_with("reject") {
            kept.push(element);
        }
    }
    Value::stream(kept)
}

fn map(run: &mut Run<'_>, elements: Vec<Value>, mut given: Given) -> Done<Value> {
    let mut mapped = Vec::new();
    if given.places.is_empty() {
        let [attribute, default] = given.bind("map", ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| Fault::refused("map requires a filter argument"))?;
        for element in elements {
            let mut found = path(run, &element, &attribute)?;
            if let (true, Some(default)) = (found.is_undefined(), &default) {
                found = default.clone();
            }
            mapped.push(found);
        }
        return Value::stream(mapped);
    }
    let by = run.display(&given.places.remove(0))?;
    for element in elements {
        mapped.push(filter(run, &by, element, given.clone())?);
    }
    Value::stream(mapped)
}

/// An attribute, or one of an attribute where dots stand between them.
fn path(run: &mut Run<'_>, value: &Value, attribute: &Value) -> Done<Value> {
    let Value::Text(names) = attribute else { return run.item(value, attribute) };
    let mut value = value.clone();
    for name in names.split('.') {
        let number = name.parse().ok().filter(|_| name.bytes().all(|b| b.is_ascii_digit())).map(Value::Int);
        value = run.item(&value, &number.unwrap_or_else(|| Value::text(name)))?;
    }
    Ok(value)
}

/// What elements are compared by: an attribute, small letters, or themselves.
fn key_of(run: &mut Run<'_>, value: &Value, attribute: Option<&Value>, case_sensitive: bool) -> Done<Value> {
    let value = match attribute.filter(|attribute| !matches!(attribute, Value::None)) {
        Some(attribute) => path(run, value, attribute)?,
        None => value.clone(),
    };
    Ok(match &value {
        Value::Text(text) if !case_sensitive => {
            run.meter.spend_bytes(text.len())?;
            Value::text(text.to_lowercase())
        }
        _ => value,
    })
}

fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::truth)
}

fn sort(run: &mut Run<'_>, keyed: Vec<(Value, Value)>, reverse: bool) -> Done<Vec<Value>> {
    let comparisons = keyed.len().checked_ilog2().map_or(0, u64::from);
    for (key, _) in &keyed {
        run.meter.spend(key.weight().saturating_mul(comparisons))?;
    }
    let mut keyed = keyed;
    if reverse {
        // So that equal elements keep their order.
        keyed.reverse();
    }
    let mut keyed = sorted(keyed, &|(key, _)| key.clone())?;
    if reverse {
        keyed.reverse();
    }
    Ok(keyed.into_iter().map(|(_, value)| value).collect())
}

/// The filters whose value is walked.
fn sequence_filter(run: &mut Run<'_>, name: &str, value: &Value, given: &Given) -> Done<Value> {
    match name {
        "list" => Value::list(value.elements(&mut run.meter)?),
        "first" => {
            let first = value.first(&mut run.meter)?;
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        "last" if matches!(value, Value::Stream(_)) => Err(Fault::refused("'generator' object is not reversible")),
        "last" => {
            let last = value.elements(&mut run.meter)?.pop();
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        "join" => join(run, value, given),
        "reverse" => match value {
            Value::Text(text) => {
                run.meter.spend_bytes(text.len())?;
                Ok(Value::text(text.chars().rev().collect::<String>()))
            }
            _ => {
                let mut elements = value.elements(&mut run.meter)?;
                elements.reverse();
                Value::stream(elements)
            }
        },
        "dictsort" => dictsort(run, value, given),
        "sort" => {
            let [reverse, case, attribute] = given.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let mut keyed = Vec::new();
            for element in value.elements(&mut run.meter)? {
                let names: Vec<Value> = match attribute.as_ref().and_then(Value::as_text) {
                    Some(names) => names.split(',').map(Value::text).collect(),
                    None => vec![attribute.clone().unwrap_or(Value::None)],
                };
                let keys = names.iter().map(|name| key_of(run, &element, Some(name), is_true(case.as_ref())));
                keyed.push((Value::list(keys.collect::<Done<_>>()?)?, element));
            }
            Value::list(sort(run, keyed, is_true(reverse.as_ref()))?)
        }
        "unique" | "min" | "max" => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
            let mut keyed = Vec::new();
            for element in value.elements(&mut run.meter)? {
                keyed.push((key_of(run, &element, attribute.as_ref(), is_true(case.as_ref()))?, element));
            }
            if name == "unique" { unique(run, keyed) } else { extreme(name, keyed) }
        }
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for element in value.elements(&mut run.meter)? {
                let element = match attribute.as_ref().filter(|attribute| !matches!(attribute, Value::None)) {
                    Some(attribute) => path(run, &element, attribute)?,
                    None => element,
                };
                sum = binary("+", &sum, &element, &mut run.meter)?;
            }
            Ok(sum)
        }
        "groupby" => group(run, value, given),
        "batch" => batch(run, value, given),
        "slice" => slice(run, value, given),
        _ if UNKNOWN.contains(&name) => {
            Err(Fault::beyond(format!("it uses the filter `{name}`, which is not rendered")))
        }
        _ => Err(Fault::refused(format!("there is no filter `{name}`"))),
    }
}

fn join(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [separator, attribute] = given.bind("join", ["d", "attribute"])?;
    let separator = separator.map_or(Ok("".into()), |separator| run.display(&separator))?;
    let mut out = String::new();
    for (at, element) in value.elements(&mut run.meter)?.into_iter().enumerate() {
        let element = match attribute.as_ref().filter(|attribute| !matches!(attribute, Value::None)) {
            Some(attribute) => path(run, &element, attribute)?,
            None => element,
        };
        let text = run.display(&element)?;
        run.meter.spend_bytes(separator.len() + text.len())?;
        out.push_str(if at == 0 { "" } else { &separator });
        out.push_str(&text);
    }
    Ok(Value::text(out))
}

fn dictsort(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [case, by, reverse] = given.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let Value::Dict(dict) = value else {
        return Err(Fault::refused(format!("'{}' has no entries to sort", value.type_name())));
    };
    let by_value = match by.as_ref().map_or(Some("key"), Value::as_text) {
        Some("key") => false,
        Some("value") => true,
        _ => return Err(Fault::refused("You can only sort by either \"key\" or \"value\"")),
    };
    let mut keyed = Vec::new();
    for (key, value) in &dict.entries {
        let by = key_of(run, if by_value { value } else { key }, None, is_true(case.as_ref()))?;
        keyed.push((by, Value::tuple(vec![key.clone(), value.clone()])?));
    }
    Value::list(sort(run, keyed, is_true(reverse.as_ref()))?)
}

fn unique(run: &mut Run<'_>, keyed: Vec<(Value, Value)>) -> Done<Value> {
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for (key, element) in keyed {
        run.meter.spend(seen.len() as u64 * key.weight())?;
        let before = seen.len();
        insert(&mut seen, key, Value::None)?;
        if seen.len() > before {
            kept.push(element);
        }
    }
    Value::stream(kept)
}

/// The first of the smallest or largest.
fn extreme(name: &str, keyed: Vec<(Value, Value)>) -> Done<Value> {
    let mut best: Option<(Value, Value)> = None;
    for (key, element) in keyed {
        let better = match &best {
            None => true,
            Some((other, _)) if name == "min" => less(&key, other)?,
            Some((other, _)) => less(other, &key)?,
        };
        if better {
            best = Some((key, element));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, element)| element))
}

fn group(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [attribute, default, case] = given.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let case = is_true(case.as_ref());
    let mut keyed = Vec::new();
    for element in value.elements(&mut run.meter)? {
        let mut key = key_of(run, &element, attribute.as_ref(), case)?;
        if let (true, Some(default)) = (key.is_undefined(), &default) {
            key = key_of(run, default, None, case)?;
        }
        keyed.push((key.clone(), Value::tuple(vec![key, element])?));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sort(run, keyed, false)? {
        let Value::Tuple(pair) = pair else { continue };
        let (key, element) = (&pair.values[0], &pair.values[1]);
        match groups.last_mut().filter(|(known, _)| equal(known, key)) {
            Some((_, elements)) => elements.push(element.clone()),
            None => groups.push((key.clone(), vec![element.clone()])),
        }
    }
    let mut pairs = Vec::new();
    for (key, elements) in groups {
        // The name of a group is written as its first element writes it.
        let named = match attribute.as_ref().filter(|_| !case) {
            Some(attribute) => match path(run, &elements[0], attribute)? {
                Value::Undefined(_) => default.clone().unwrap_or(key),
                named => named,
            },
            None => key,
        };
        pairs.push(Value::tuple(vec![named, Value::list(elements)?])?);
    }
    Value::list(pairs)
}

fn batch(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [size, fill] = given.bind("batch", ["linecount", "fill_with"])?;
    let size = size.and_then(|size| size.as_int()).and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    let size = size.ok_or_else(|| Fault::beyond("`batch` of less than one"))?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let mut batches = Vec::new();
    for part in value.elements(&mut run.meter)?.chunks(size) {
        let mut part = part.to_vec();
        if let Some(fill) = &fill {
            run.meter.spend((size - part.len()) as u64)?;
            part.resize(size, fill.clone());
        }
        batches.push(Value::list(part)?);
    }
    Value::stream(batches)
}

fn slice(run: &mut Run<'_>, value: &Value, given: &Given) -> Done<Value> {
    let [parts, fill] = given.bind("slice", ["slices", "fill_with"])?;
    let parts = parts.and_then(|parts| parts.as_int()).and_then(|parts| usize::try_from(parts).ok());
    let parts = parts.filter(|&parts| parts > 0).ok_or_else(|| Fault::refused("`slice` into less than one part"))?;
    run.meter.spend(parts as u64)?;
    let elements = value.elements(&mut run.meter)?;
    let (each, longer) = (elements.len() / parts, elements.len() % parts);
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let mut rest = &elements[..];
    let mut slices = Vec::new();
    for part in 0..parts {
        let (taken, after) = rest.split_at(each + usize::from(part < longer));
        rest = after;
        let mut taken = taken.to_vec();
        taken.extend(fill.clone().filter(|_| part >= longer));
        slices.push(Value::list(taken)?);
    }
    Value::stream(slices)
}

/// `value is name(given)`.
///
/// # Errors
/// What Jinja and Python raise.
pub(super) fn test(run: &mut Run<'_>, name: &str, value: &Value, given: &Given) -> Done<bool> {
    let sign = match name {
        "==" | "eq" | "equalto" => "==",
        "!=" | "ne" => "!=",
        ">" | "gt" | "greaterthan" => ">",
        ">=" | "ge" => ">=",
        "<" | "lt" | "lessthan" => "<",
        "<=" | "le" => "<=",
        "in" => "in",
        "divisibleby" | "sameas" => {
            let [other] = given.bind(name, [""])?;
            let other = other.ok_or_else(|| Fault::refused(format!("the test `{name}` lacks an argument")))?;
            return Ok(if name == "sameas" {
                value.type_name() == other.type_name() && equal(value, &other)
            } else {
                equal(&binary("%", value, &other, &mut run.meter)?, &Value::Int(0))
            });
        }
        _ => {
            let [] = given.bind(name, [])?;
            return plain_test(run, name, value);
        }
    };
    let [other] = given.bind(name, [""])?;
    let other = other.ok_or_else(|| Fault::refused(format!("the test `{name}` lacks an argument")))?;
    compare(sign, value, &other, &mut run.meter)
}

fn plain_test(run: &mut Run<'_>, name: &str, value: &Value) -> Done<bool> {
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => value.as_text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => value.length().is_some() || matches!(value, Value::Stream(_) | Value::Loop(_)),
        "sequence" => value.length().is_some() && !matches!(value, Value::View(..)),
        "callable" => {
            matches!(
                value,
                Value::Macro(..) | Value::Method(_) | Value::Function(_) | Value::Loop(_) | Value::Undefined(_)
            )
        }
        "odd" | "even" => {
            let rest = binary("%", value, &Value::Int(2), &mut run.meter)?;
            equal(&rest, &Value::Int(i64::from(name == "odd")))
        }
        "lower" => text::is_cased(&run.display(value)?, char::is_lowercase, char::is_uppercase),
        "upper" => text::is_cased(&run.display(value)?, char::is_uppercase, char::is_lowercase),
        "escaped" => false,
        "filter" => value.as_text().is_some_and(|name| KNOWN.contains(&name) || UNKNOWN.contains(&name)),
        "test" => return Err(Fault::beyond("it asks whether there is a test, which is not rendered")),
        _ => return Err(Fault::refused(format!("there is no test `{name}`"))),
    })
}
