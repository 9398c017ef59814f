//! The methods of Python's `str`, which count characters where Rust counts bytes.
//!
//! Unicode's letters are Rust's: `isalpha` and its like may differ from Python's on rare characters outside of
//! ASCII.

use super::{
    arguments::Given,
    fault::{Done, Fault, Meter},
    format::{Fields, brace_format},
    value::{Value, is_printable},
};

/// The methods of `str` that templates may name.
pub(super) const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Python's white space: Unicode's, and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Calls a method of `text`.
///
/// Errors: what Python raises; a method of `str` that no template was seen to need.
pub(super) fn call(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Done<Value> {
    meter.spend_bytes(text.len())?;
    meter.spend(given.places.iter().map(Value::breadth).sum())?;
    match name {
        "strip" | "lstrip" | "rstrip" => strip_method(text, name, given),
        "split" | "rsplit" => split_method(text, name, given, meter),
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"])?;
            let keep = keep.is_some_and(|keep| keep.truth());
            pieces(lines(text, keep), meter)
        }
        "startswith" | "endswith" => affix(text, name, given),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, given),
        "partition" | "rpartition" => {
            let [separator] = given.bind(name, [""])?;
            let separator = given_text(name, separator)?;
            let found = if name == "partition" { text.split_once(&*separator) } else { text.rsplit_once(&*separator) };
            let parts = match found {
                _ if separator.is_empty() => return Err(Fault::refused("empty separator")),
                Some((before, after)) => [before, &separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(parts.map(Value::text).into())
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = given.bind(name, [""])?;
            let affix = given_text(name, affix)?;
            let cut = if name == "removeprefix" { text.strip_prefix(&*affix) } else { text.strip_suffix(&*affix) };
            Ok(Value::text(cut.unwrap_or(text)))
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["", "", ""])?;
            let count = count.map_or(Ok(-1), |count| given_int(name, &count))?;
            replace(text, &given_text(name, old)?, &given_text(name, new)?, count, meter).map(Value::text)
        }
        "join" => join(text, given, meter),
        "center" | "ljust" | "rjust" | "zfill" => pad_method(text, name, given, meter),
        "format" => brace_format(text, &Fields::Arguments(given), meter).map(Value::text),
        "format_map" => {
            let [fields] = given.bind(name, [""])?;
            let Some(Value::Dict(dict)) = fields else { return Err(Fault::refused("format_map wants a dict")) };
            brace_format(text, &Fields::Dict(&dict), meter).map(Value::text)
        }
        _ => {
            let [] = given.bind(name, [])?;
            plain(text, name)
        }
    }
}

/// The methods without arguments.
fn plain(text: &str, name: &str) -> Done<Value> {
    let all = |is: fn(char) -> bool| Ok(Value::Bool(!text.is_empty() && text.chars().all(is)));
    Ok(Value::text(match name {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "capitalize" => capitalize(text),
        "title" => title(text),
        "casefold" if text.is_ascii() => text.to_ascii_lowercase(),
        "swapcase" => text
            .chars()
            .map(|c| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() })
            .collect(),
        "isalpha" => return all(char::is_alphabetic),
        "isalnum" => return all(char::is_alphanumeric),
        "isdigit" | "isdecimal" | "isnumeric" => return all(char::is_numeric),
        "isspace" => return all(is_space),
        "isascii" => return Ok(Value::Bool(text.is_ascii())),
        "isprintable" => return Ok(Value::Bool(text.chars().all(is_printable))),
        "islower" => return Ok(Value::Bool(is_cased(text, char::is_lowercase, char::is_uppercase))),
        "isupper" => return Ok(Value::Bool(is_cased(text, char::is_uppercase, char::is_lowercase))),
        "istitle" => return Ok(Value::Bool(text.chars().any(char::is_alphabetic) && title(text) == text)),
        "isidentifier" => {
            let begins = text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            return Ok(Value::Bool(begins && text.chars().all(|c| c.is_alphanumeric() || c == '_')));
        }
        _ => return Err(Fault::beyond(format!("it calls `{name}` of a text, which is not rendered"))),
    }))
}

/// Whether a text has letters of one case and none of the other.
pub(super) fn is_cased(text: &str, one: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(one) && !text.chars().any(other)
}

/// The first character as a title begins, the others small.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(title_of).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// A letter as it begins a title: `ß` becomes `Ss`. Letters that are two in one have a form of their own for
/// this, and Georgian ones stay small.
fn title_of(c: char) -> String {
    match c {
        'Ǆ'..='ǆ' => return 'ǅ'.into(),
        'Ǉ'..='ǉ' => return 'ǈ'.into(),
        'Ǌ'..='ǌ' => return 'ǋ'.into(),
        'Ǳ'..='ǳ' => return 'ǲ'.into(),
        'ა'..='ჿ' => return c.into(),
        _ => {}
    }
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
}

/// Every letter that follows no letter begins a word.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.push_str(&title_of(c)),
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// The text of a required argument.
fn given_text(name: &str, value: Option<Value>) -> Done<std::sync::Arc<str>> {
    match value {
        Some(Value::Text(text)) => Ok(text),
        Some(other) => Err(Fault::refused(format!("{name}() wants a str, not {}", other.type_name()))),
        None => Err(Fault::refused(format!("{name}() lacks an argument"))),
    }
}

fn given_int(name: &str, value: &Value) -> Done<i64> {
    value.as_int().ok_or_else(|| Fault::refused(format!("{name}() wants an int, not {}", value.type_name())))
}

fn strip_method(text: &str, name: &str, given: &Given) -> Done<Value> {
    let [chars] = given.bind(name, [""])?;
    let chars = chars.filter(|chars| !matches!(chars, Value::None)).map(|chars| given_text(name, Some(chars)));
    Ok(Value::text(strip(text, name, chars.transpose()?.as_deref())))
}

/// `strip`, `lstrip` or `rstrip`: of white space, or of `chars`.
pub(super) fn strip<'t>(text: &'t str, name: &str, chars: Option<&str>) -> &'t str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(strips) };
    if name == "lstrip" { text } else { text.trim_end_matches(strips) }
}

/// A list of texts, each of which costs a step.
fn pieces<'t>(parts: impl IntoIterator<Item = &'t str>, meter: &mut Meter) -> Done<Value> {
    let mut texts = Vec::new();
    for part in parts {
        meter.spend_bytes(part.len())?;
        texts.push(Value::text(part));
    }
    Value::list(texts)
}

fn split_method(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Done<Value> {
    let [separator, most] = given.bind(name, ["sep", "maxsplit"])?;
    let most = most.map_or(Ok(-1), |most| given_int(name, &most))?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !matches!(separator, Value::None));
    let Some(separator) = separator else {
        let parts = if name == "split" { split_spaces(text, most) } else { rsplit_spaces(text, most) };
        return pieces(parts, meter);
    };
    let separator = given_text(name, Some(separator))?;
    if separator.is_empty() {
        return Err(Fault::refused("empty separator"));
    }
    let parts = most.saturating_add(1);
    if name == "split" {
        return pieces(text.splitn(parts, &*separator), meter);
    }
    let mut parts: Vec<&str> = text.rsplitn(parts, &*separator).collect();
    parts.reverse();
    pieces(parts, meter)
}

/// Words, of which the last keeps the white space after it where the splits run out.
fn split_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() == most { None } else { rest.find(is_space) };
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        parts.push(part);
        rest = after.trim_start_matches(is_space);
    }
    parts
}

fn rsplit_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let space = if parts.len() == most { None } else { rest.char_indices().rfind(|&(_, c)| is_space(c)) };
        let (before, part) = rest.split_at(space.map_or(0, |(at, c)| at + c.len_utf8()));
        parts.push(part);
        rest = before.trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// The lines of a text, where Python ends them.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let mark = match &rest[end..] {
            after if after.starts_with("\r\n") => 2,
            after => after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end + mark } else { end }]);
        rest = &rest[end + mark..];
    }
    lines
}

/// The bytes that a slice of characters covers, its start in characters, and whether it starts inside the text.
fn window(
    text: &str,
    name: &str,
    start: Option<Value>,
    end: Option<Value>,
) -> Done<(std::ops::Range<usize>, usize, bool)> {
    let present = |value: Option<Value>| value.filter(|value| !matches!(value, Value::None));
    let (start, end) = (present(start), present(end));
    if start.is_none() && end.is_none() {
        return Ok((0..text.len(), 0, true));
    }
    let length = text.chars().count() as i64;
    let place = |value: Option<Value>, default: i64| {
        let at = value.map_or(Ok(default), |value| given_int(name, &value))?;
        Ok(if at < 0 { (at + length).max(0) } else { at })
    };
    let (start, end) = (place(start, 0)?, place(end, length)?.min(length));
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    let inside = start <= end && start <= length;
    let bytes = if inside { byte(start)..byte(end) } else { text.len()..text.len() };
    Ok((bytes, start as usize, inside))
}

fn affix(text: &str, name: &str, given: &Given) -> Done<Value> {
    let [affixes, start, end] = given.bind(name, ["", "", ""])?;
    let (bytes, _, inside) = window(text, name, start, end)?;
    let within = &text[bytes];
    let has =
        |affix: &str| inside && if name == "startswith" { within.starts_with(affix) } else { within.ends_with(affix) };
    match affixes {
        Some(Value::Tuple(affixes)) => {
            for affix in &affixes.values {
                if has(&given_text(name, Some(affix.clone()))?) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        affix => Ok(Value::Bool(has(&given_text(name, affix)?))),
    }
}

fn search(text: &str, name: &str, given: &Given) -> Done<Value> {
    let [part, start, end] = given.bind(name, ["", "", ""])?;
    let part = given_text(name, part)?;
    let (bytes, first, inside) = window(text, name, start, end)?;
    let within = &text[bytes];
    if name == "count" {
        let count = if part.is_empty() { within.chars().count() + 1 } else { within.matches(&*part).count() };
        return Ok(Value::Int(if inside { count as i64 } else { 0 }));
    }
    let found = if name.starts_with('r') { within.rfind(&*part) } else { within.find(&*part) };
    match found.filter(|_| inside) {
        Some(at) => Ok(Value::Int((first + within[..at].chars().count()) as i64)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Fault::refused("substring not found")),
    }
}

/// Python's `replace`; a negative count means all.
pub(super) fn replace(text: &str, old: &str, new: &str, count: i64, meter: &mut Meter) -> Done<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(most).count();
    meter.spend_bytes(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, most))
}

fn join(text: &str, given: &Given, meter: &mut Meter) -> Done<Value> {
    let [parts] = given.bind("join", [""])?;
    let parts = parts.ok_or_else(|| Fault::refused("join() lacks an argument"))?;
    let mut out = String::new();
    for (at, part) in parts.elements(meter)?.iter().enumerate() {
        let Some(part) = part.as_text() else {
            let what = format!("sequence item {at}: expected str instance, {} found", part.type_name());
            return Err(Fault::refused(what));
        };
        meter.spend_bytes(text.len() + part.len())?;
        out.push_str(if at == 0 { "" } else { text });
        out.push_str(part);
    }
    Ok(Value::text(out))
}

fn pad_method(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Done<Value> {
    let [width, fill] = if name == "zfill" {
        let [width] = given.bind(name, [""])?;
        [width, None]
    } else {
        given.bind(name, ["", ""])?
    };
    let width = width.ok_or_else(|| Fault::refused(format!("{name}() lacks an argument")))?;
    let width = usize::try_from(given_int(name, &width)?).unwrap_or(0);
    let fill = fill.map_or(Ok(" ".into()), |fill| given_text(name, Some(fill)))?;
    let mut fills = fill.chars();
    let (Some(fill), None) = (fills.next(), fills.next()) else {
        return Err(Fault::refused("The fill character must be exactly one character long"));
    };
    if name == "zfill" {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (sign, width) = (&text[..text.len() - digits.len()], width.saturating_sub(text.len() - digits.len()));
        return Ok(Value::text(sign.to_owned() + &pad(digits, width, '0', "rjust", meter)?));
    }
    Ok(Value::text(pad(text, width, fill, name, meter)?))
}

/// Fills a text up to `width` characters: `center`, `ljust` or `rjust`.
pub(super) fn pad(text: &str, width: usize, fill: char, name: &str, meter: &mut Meter) -> Done<String> {
    let missing = width.saturating_sub(text.chars().count());
    meter.spend_bytes(text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // Where the two sides cannot be equal, Python's left one is larger in odd widths.
        _ => missing / 2 + (missing & width & 1),
    };
    let fills = |count: usize| std::iter::repeat_n(fill, count);
    Ok(fills(left).chain(text.chars()).chain(fills(missing - left)).collect())
}
