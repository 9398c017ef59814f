//! Python's two ways to format: `"%s" % value` and `"{}".format(value)`.

use super::{
    arguments::Given,
    fault::{Done, Fault, Meter},
    text::pad,
    value::{Dict, Value, display, repr},
};

/// How one value is to be written.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`; `-` of `%` is `<`.
    align: Option<char>,
    /// `+` or a space, before numbers that are not negative.
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    comma: bool,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

/// More digits than this after the point say nothing, and Rust's own formatting has a bound.
const PRECISION: usize = 1_000;

fn too_few() -> Fault {
    Fault::refused("not enough arguments for format string")
}

/// `format % value`: a tuple gives one value for each place, a dict gives them by name.
///
/// Errors: what Python raises.
pub(super) fn percent(format: &str, value: &Value, meter: &mut Meter) -> Done<String> {
    meter.spend_bytes(format.len())?;
    let single = [value.clone()];
    let places = match value {
        Value::Tuple(items) => &items.values[..],
        _ => &single[..],
    };
    let mut used = 0;
    let mut next = || {
        used += 1;
        places.get(used - 1).ok_or_else(too_few)
    };
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let named = match rest.strip_prefix('(') {
            Some(inside) => {
                let end = inside.find(')').ok_or_else(|| Fault::refused("incomplete format key"))?;
                rest = &inside[end + 1..];
                let Value::Dict(dict) = value else { return Err(Fault::refused("format requires a mapping")) };
                let missing = || Fault::refused(format!("KeyError: {:?}", &inside[..end]));
                Some(dict.get_text(&inside[..end]).ok_or_else(missing)?)
            }
            None => None,
        };
        let mut spec = flags(&mut rest);
        spec.width = match size(&mut rest, &mut next)? {
            Some(width) if width < 0 => {
                spec.align = Some('<');
                width.unsigned_abs() as usize
            }
            width => width.unwrap_or(0) as usize,
        };
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            spec.precision = Some(size(&mut rest, &mut next)?.unwrap_or(0).max(0) as usize);
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let kind = rest.chars().next().ok_or_else(|| Fault::refused("incomplete format"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = named.map_or_else(&mut next, Ok)?;
        meter.spend(value.weight())?;
        out.push_str(&percent_one(value, kind, spec, meter)?);
    }
    out.push_str(rest);
    let mapping = matches!(value, Value::Dict(_) | Value::List(_) | Value::Range(..) | Value::Undefined(_));
    if used < places.len() && !mapping {
        return Err(Fault::refused("not all arguments converted during string formatting"));
    }
    Ok(out)
}

fn flags(rest: &mut &str) -> Spec {
    let mut spec = Spec::default();
    while let Some(flag) = rest.chars().next().filter(|flag| "-+ #0".contains(*flag)) {
        match flag {
            '-' => spec.align = Some('<'),
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            // A plus wins over a space.
            _ if spec.sign == Some('+') => {}
            _ => spec.sign = Some(flag),
        }
        *rest = &rest[1..];
    }
    spec
}

/// Digits, or `*`, which takes the number from the values.
fn size<'v>(rest: &mut &str, next: &mut impl FnMut() -> Done<&'v Value>) -> Done<Option<i64>> {
    if let Some(after) = rest.strip_prefix('*') {
        *rest = after;
        return next()?.as_int().map(Some).ok_or_else(|| Fault::refused("* wants int"));
    }
    number(rest).map(|number| number.map(|number| number as i64))
}

/// The digits at the beginning of a text.
fn number(rest: &mut &str) -> Done<Option<usize>> {
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    let parsed = || number.parse::<u32>().map_err(|_| Fault::refused("Too many decimal digits in format string"));
    if digits == 0 { Ok(None) } else { parsed().map(|number| Some(number as usize)) }
}

fn percent_one(value: &Value, kind: char, mut spec: Spec, meter: &mut Meter) -> Done<String> {
    let text = match kind {
        's' => display(value)?.to_string(),
        'r' => repr(value)?,
        'a' if repr(value)?.is_ascii() => repr(value)?,
        'c' => match value {
            Value::Text(text) if text.chars().count() == 1 => text.to_string(),
            _ => {
                let code = value.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?));
                code.ok_or_else(|| Fault::refused("%c requires int or char"))?.to_string()
            }
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            spec.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
            let whole = |value: &Value| match value {
                Value::Float(number) if matches!(kind, 'd' | 'i' | 'u') => Value::Int(*number as i64),
                _ => value.clone(),
            };
            if value.as_float().is_none() {
                if let Value::Undefined(what) = value {
                    return Err(Fault::refused(&**what));
                }
                return Err(Fault::refused(format!("%{kind} format: a number is required, not {}", value.type_name())));
            }
            return write_number(&whole(value), &spec, meter);
        }
        _ => return Err(Fault::refused(format!("unsupported format character '{kind}'"))),
    };
    spec.align = spec.align.or(Some('>'));
    spec.zero = false;
    write_text(&text, &spec, meter)
}

/// What the fields of a format are filled from.
pub(super) enum Fields<'f> {
    Arguments(&'f Given),
    Dict(&'f Dict),
}

/// `format.format(...)`.
///
/// Errors: what Python raises; a field that reaches into its value, or a width that is a field.
pub(super) fn brace_format(format: &str, fields: &Fields<'_>, meter: &mut Meter) -> Done<String> {
    let mut out = String::new();
    let mut automatic = 0;
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let end = rest.find('}').filter(|_| brace == "{");
        let end = end.ok_or_else(|| Fault::refused(format!("Single '{brace}' encountered in format string")))?;
        let (field, spec) = rest[..end].split_once(':').unwrap_or((&rest[..end], ""));
        rest = &rest[end + 1..];
        let (name, conversion) = field.split_once('!').unwrap_or((field, ""));
        if name.contains(['.', '[']) || spec.contains('{') {
            return Err(Fault::beyond(format!("it formats the field `{{{field}:{spec}}}`, which is not rendered")));
        }
        let value = field_value(name, &mut automatic, fields)?;
        meter.spend(value.weight())?;
        let value = match conversion {
            "" => value,
            "s" => Value::Text(display(&value)?),
            "r" => Value::text(repr(&value)?),
            _ => return Err(Fault::refused(format!("Unknown conversion specifier '{conversion}'"))),
        };
        out.push_str(&brace_one(&value, spec, meter)?);
    }
    out.push_str(rest);
    Ok(out)
}

fn field_value(name: &str, automatic: &mut usize, fields: &Fields<'_>) -> Done<Value> {
    let place = if name.is_empty() {
        *automatic += 1;
        Some(*automatic - 1)
    } else {
        name.parse().ok()
    };
    let found = match (fields, place) {
        (Fields::Arguments(given), Some(place)) => given.places.get(place),
        (Fields::Arguments(given), None) => {
            given.names.iter().find(|(known, _)| **known == *name).map(|(_, value)| value)
        }
        (Fields::Dict(dict), _) => dict.get_text(name),
    };
    found.cloned().ok_or_else(|| Fault::refused(format!("nothing is given for the field `{{{name}}}`")))
}

fn brace_one(value: &Value, spec: &str, meter: &mut Meter) -> Done<String> {
    if spec.is_empty() {
        return Ok(display(value)?.to_string());
    }
    let spec = parsed(spec)?;
    match value {
        Value::Text(text)
            if matches!(spec.kind, None | Some('s')) && spec.sign.is_none() && spec.align != Some('=') =>
        {
            let spec = Spec { align: spec.align.or(Some('<')), ..spec };
            write_text(text, &spec, meter)
        }
        Value::Int(_) | Value::Float(_) => write_number(value, &spec, meter),
        Value::Bool(_) if spec.kind.is_some() => write_number(value, &spec, meter),
        Value::Bool(_) => write_number(&Value::Int(value.as_int().unwrap_or(0)), &spec, meter),
        _ => Err(Fault::refused(format!("unsupported format string for {}", value.type_name()))),
    }
}

/// `[[fill]align][sign][#][0][width][,][.precision][kind]`
fn parsed(text: &str) -> Done<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let is_align = |c: char| "<>=^".contains(c);
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(fill), Some(align)) if is_align(align) => {
            (spec.fill, spec.align) = (Some(fill), Some(align));
            rest = chars.as_str();
        }
        (Some(align), _) if is_align(align) => {
            spec.align = Some(align);
            rest = &text[1..];
        }
        _ => {}
    }
    let skip = |flag: char, rest: &mut &str| match rest.strip_prefix(flag) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    };
    for sign in ['+', '-', ' '] {
        if spec.sign.is_none() && skip(sign, &mut rest) {
            spec.sign = Some(sign);
        }
    }
    spec.alternate = skip('#', &mut rest);
    spec.zero = skip('0', &mut rest);
    spec.width = number(&mut rest)?.unwrap_or(0);
    spec.comma = skip(',', &mut rest);
    if skip('.', &mut rest) {
        spec.precision = Some(number(&mut rest)?.ok_or_else(|| Fault::refused("Format specifier missing precision"))?);
    }
    let mut kinds = rest.chars();
    spec.kind = kinds.next();
    if kinds.next().is_some() {
        return Err(Fault::refused(format!("Invalid format specifier '{text}'")));
    }
    Ok(spec)
}

fn write_text(text: &str, spec: &Spec, meter: &mut Meter) -> Done<String> {
    let cut = spec.precision.and_then(|precision| text.char_indices().nth(precision));
    let text = cut.map_or(text, |(at, _)| &text[..at]);
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    aligned(text, spec.align.unwrap_or('<'), spec.width, fill, meter)
}

fn aligned(text: &str, align: char, width: usize, fill: char, meter: &mut Meter) -> Done<String> {
    if align == '^' {
        // Unlike `center`, formatting puts the odd one to the right.
        let left = width.saturating_sub(text.chars().count()) / 2;
        let half = pad(text, text.chars().count() + left, fill, "rjust", meter)?;
        return pad(&half, width, fill, "ljust", meter);
    }
    pad(text, width, fill, if align == '<' { "ljust" } else { "rjust" }, meter)
}

fn write_number(value: &Value, spec: &Spec, meter: &mut Meter) -> Done<String> {
    let kind = spec.kind.unwrap_or(if matches!(value, Value::Float(_)) { 'r' } else { 'd' });
    let (negative, mut digits) = match (kind, value.as_int(), value.as_float()) {
        ('d' | 'n' | 'x' | 'X' | 'o' | 'b', Some(whole), _) => (whole < 0, whole_digits(whole, kind, spec)),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' | 'r', _, Some(number)) => {
            (number.is_sign_negative() && !number.is_nan(), float_digits(number.abs(), kind, spec)?)
        }
        _ => {
            return Err(Fault::refused(format!(
                "Unknown format code '{kind}' for object of type '{}'",
                value.type_name()
            )));
        }
    };
    if spec.comma {
        digits = grouped(&digits);
    }
    let sign = if negative {
        "-"
    } else {
        spec.sign.filter(|sign| *sign != '-').map_or("", |sign| if sign == '+' { "+" } else { " " })
    };
    let zeros = spec.zero && spec.align != Some('<');
    if zeros || spec.align == Some('=') {
        let fill = spec.fill.unwrap_or(if zeros { '0' } else { ' ' });
        return Ok(sign.to_owned() + &pad(&digits, spec.width.saturating_sub(sign.len()), fill, "rjust", meter)?);
    }
    aligned(&(sign.to_owned() + &digits), spec.align.unwrap_or('>'), spec.width, spec.fill.unwrap_or(' '), meter)
}

fn whole_digits(whole: i64, kind: char, spec: &Spec) -> String {
    let size = whole.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'o' => ("0o", format!("{size:o}")),
        'b' => ("0b", format!("{size:b}")),
        _ => ("", size.to_string()),
    };
    // `%` reads a precision as the least number of digits.
    let zeros = "0".repeat(spec.precision.unwrap_or(0).min(PRECISION).saturating_sub(digits.len()));
    format!("{}{zeros}{digits}", if spec.alternate { prefix } else { "" })
}

fn float_digits(size: f64, kind: char, spec: &Spec) -> Done<String> {
    let precision = spec.precision.unwrap_or(6);
    if precision > PRECISION {
        return Err(Fault::beyond(format!("it formats a number with {precision} digits")));
    }
    if !size.is_finite() {
        let text = if size.is_nan() { "nan" } else { "inf" };
        return Ok(if kind.is_uppercase() { text.to_uppercase() } else { text.to_owned() });
    }
    let text = match kind.to_ascii_lowercase() {
        'f' => format!("{size:.precision$}"),
        '%' => format!("{:.precision$}%", size * 100.0),
        'e' => exponent(&format!("{size:.precision$e}")),
        'r' if spec.precision.is_none() => super::value::float_repr(size),
        _ => general(size, precision.max(1), spec.alternate),
    };
    Ok(if kind.is_uppercase() { text.to_uppercase() } else { text })
}

/// Rust's `1e5` as Python's `1e+05`.
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
}

/// `%g`: so many digits, with an exponent where the number is very small or has more digits than that.
fn general(size: f64, precision: usize, keep_zeros: bool) -> String {
    let scientific = format!("{size:.*e}", precision - 1);
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let cut = |digits: &str| match digits.contains('.') && !keep_zeros {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent(&format!("{}e{power}", cut(digits)));
    }
    cut(&format!("{size:.*}", (precision as i32 - 1 - power).max(0) as usize))
}

/// A comma between thousands.
fn grouped(digits: &str) -> String {
    let whole = digits.bytes().take_while(u8::is_ascii_digit).count();
    let mut out = String::new();
    for (at, digit) in digits[..whole].chars().enumerate() {
        if at > 0 && (whole - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + &digits[whole..]
}
