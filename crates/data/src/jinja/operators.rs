//! Python's operators.

use super::{
    fault::{Done, Fault, Meter},
    format::percent,
    value::{Value, check_hashable, equal, less},
};

fn undefined(a: &Value, b: &Value) -> Option<Fault> {
    [a, b].into_iter().find_map(|value| match value {
        Value::Undefined(what) => Some(Fault::refused(&**what)),
        _ => None,
    })
}

fn unsupported(sign: &str, a: &Value, b: &Value) -> Fault {
    let what = format!("unsupported operand type(s) for {sign}: '{}' and '{}'", a.type_name(), b.type_name());
    Fault::refused(what)
}

/// `a sign b` for an operator of arithmetic.
///
/// # Errors
/// What Python raises; a whole number beyond 64 bits.
pub(super) fn binary(sign: &str, a: &Value, b: &Value, meter: &mut Meter) -> Done<Value> {
    if let (Value::Text(format), "%") = (a, sign) {
        return percent(format, b, meter).map(Value::text);
    }
    if let Some(fault) = undefined(a, b) {
        return Err(fault);
    }
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        return whole(sign, x, y);
    }
    if let (Some(x), Some(y)) = (a.as_float(), b.as_float()) {
        return real(sign, x, y);
    }
    match (sign, a, b) {
        ("+", Value::Text(x), Value::Text(y)) => {
            meter.spend_bytes(x.len() + y.len())?;
            Ok(Value::text([&**x, y].concat()))
        }
        ("+", Value::List(x), Value::List(y)) => {
            meter.spend(a.breadth() + b.breadth())?;
            Value::list([&x.values[..], &y.values].concat())
        }
        ("+", Value::Tuple(x), Value::Tuple(y)) => {
            meter.spend(a.breadth() + b.breadth())?;
            Value::tuple([&x.values[..], &y.values].concat())
        }
        ("*", Value::Text(_) | Value::List(_) | Value::Tuple(_), _) if b.as_int().is_some() => repeat(a, b, meter),
        ("*", _, Value::Text(_) | Value::List(_) | Value::Tuple(_)) if a.as_int().is_some() => repeat(b, a, meter),
        _ => Err(unsupported(sign, a, b)),
    }
}

fn repeat(what: &Value, times: &Value, meter: &mut Meter) -> Done<Value> {
    let times = usize::try_from(times.as_int().unwrap_or(0)).unwrap_or(0);
    if let Value::Text(text) = what {
        // Twice: it is put together, and then copied into the value. Both stand in memory for a moment.
        meter.spend_bytes(text.len().saturating_mul(times).saturating_mul(2))?;
        return Ok(Value::text(text.repeat(times)));
    }
    meter.spend(what.breadth().saturating_mul(times as u64))?;
    match what {
        Value::List(items) => Value::list(vec![&items.values[..]; times].concat()),
        Value::Tuple(items) => Value::tuple(vec![&items.values[..]; times].concat()),
        _ => Ok(Value::None),
    }
}

fn whole(sign: &str, a: i64, b: i64) -> Done<Value> {
    let by_zero = || Fault::refused("division by zero");
    let beyond = || Fault::beyond(format!("{a} {sign} {b} has more than 64 bits"));
    let result = match sign {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" | "//" | "%" if b == 0 => return Err(by_zero()),
        "/" => return Ok(Value::Float(a as f64 / b as f64)),
        // Python rounds down and gives the remainder the sign of the divisor.
        "//" => {
            a.checked_div_euclid(b).map(|quotient| quotient - i64::from(b < 0 && a.checked_rem_euclid(b) != Some(0)))
        }
        "%" => {
            a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }).or(Some(0))
        }
        _ if b < 0 => return real(sign, a as f64, b as f64),
        _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(Value::Int).ok_or_else(beyond)
}

fn real(sign: &str, a: f64, b: f64) -> Done<Value> {
    if b == 0.0 && matches!(sign, "/" | "//" | "%") || a == 0.0 && b < 0.0 && sign == "**" {
        return Err(Fault::refused("float division by zero"));
    }
    let rest = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(Value::Float(match sign {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => ((a - rest()) / b).round(),
        "%" => rest(),
        _ => a.powf(b),
    }))
}

/// `-value`.
///
/// # Errors
/// It is no number, or -2^63.
pub(super) fn negative(value: &Value) -> Done<Value> {
    if let Value::Undefined(what) = value {
        return Err(Fault::refused(&**what));
    }
    if let Value::Float(number) = value {
        return Ok(Value::Float(-number));
    }
    let number = value
        .as_int()
        .ok_or_else(|| Fault::refused(format!("bad operand type for unary -: '{}'", value.type_name())))?;
    number.checked_neg().map(Value::Int).ok_or_else(|| Fault::beyond("a number has more than 64 bits"))
}

/// `a sign b` for an operator that compares, and for `in`.
///
/// # Errors
/// What Python raises.
pub(super) fn compare(sign: &str, a: &Value, b: &Value, meter: &mut Meter) -> Done<bool> {
    meter.spend(a.weight().min(b.weight()))?;
    match sign {
        "==" => Ok(equal(a, b)),
        "!=" => Ok(!equal(a, b)),
        "<" => less(a, b),
        ">" => less(b, a),
        "<=" => Ok(less(a, b)? || equal(a, b)),
        ">=" => Ok(less(b, a)? || equal(a, b)),
        "in" => contains(b, a, meter),
        _ => Ok(!contains(b, a, meter)?),
    }
}

/// `element in container`.
pub(super) fn contains(container: &Value, element: &Value, meter: &mut Meter) -> Done<bool> {
    match container {
        Value::Text(text) => match element {
            Value::Text(part) => {
                meter.spend_bytes(text.len())?;
                Ok(text.contains(&**part))
            }
            _ => {
                let what = format!("'in <string>' requires string as left operand, not {}", element.type_name());
                Err(Fault::refused(what))
            }
        },
        Value::Dict(dict) => {
            check_hashable(element)?;
            meter.spend(dict.entries.len() as u64 * element.weight())?;
            Ok(dict.get(element).is_some())
        }
        _ => {
            for other in container.elements(meter)? {
                meter.spend(other.weight().min(element.weight()))?;
                if equal(&other, element) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}
