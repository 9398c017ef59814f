//! A template's text becomes tokens, with white space around tags cut as Jinja cuts it.
//!
//! The rules are those of Jinja2 3.1 with `trim_blocks` and `lstrip_blocks`: a tag that stands alone on its
//! line takes the line's indentation and its line end away; `-` takes all white space on its side, and `+`
//! none.

use super::{
    fault::{Done, Fault},
    text::is_space,
};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Data(Arc<str>),
    /// `{%`
    TagOpens,
    /// `%}`
    TagCloses,
    /// `{{`
    PrintOpens,
    /// `}}`
    PrintCloses,
    Name(Arc<str>),
    Text(Arc<str>),
    Int(i64),
    Float(f64),
    Sign(&'static str),
    End,
}

/// The signs of expressions, longer ones before those that begin them.
const SIGNS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The tokens of a template with their lines, the last of them [`Token::End`].
pub(super) fn tokens(source: &str) -> Done<Vec<(usize, Token)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    // Jinja drops one line end at the end of a template.
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, begins_line: true, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.data()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    rest: &'s str,
    line: usize,
    /// Whether `rest` begins a line of the template.
    begins_line: bool,
    tokens: Vec<(usize, Token)>,
}

/// What stands before `{{`, `{%` or `{#` and how it is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    Print,
    Tag,
    Comment,
    Raw,
}

impl<'s> Lexer<'s> {
    fn push(&mut self, token: Token) {
        self.tokens.push((self.line, token));
    }

    fn push_data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.into()));
        }
    }

    /// Takes `bytes` of the rest.
    fn take(&mut self, bytes: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.begins_line = if taken.is_empty() { self.begins_line } else { taken.ends_with('\n') };
        self.rest = rest;
        taken
    }

    fn take_spaces(&mut self) {
        self.take(self.rest.len() - self.rest.trim_start_matches(is_space).len());
    }

    /// Text up to the next opening, and what is opened there.
    fn data(&mut self) -> Done<()> {
        let at = ["{{", "{%", "{#"].iter().filter_map(|opening| self.rest.find(opening)).min();
        let Some(at) = at else {
            let text = self.rest;
            self.push_data(text);
            self.take(text.len());
            return Ok(());
        };
        let (text, opened) = self.rest.split_at(at);
        let opening = match &opened[..2] {
            "{{" => Opening::Print,
            "{#" => Opening::Comment,
            _ if raw_length(opened, "raw").is_some() => Opening::Raw,
            _ => Opening::Tag,
        };
        let kept = self.before(text, opening, opened[2..].chars().next());
        self.push_data(kept);
        self.take(at);
        match opening {
            Opening::Print => self.inside(Token::PrintOpens, Token::PrintCloses, "}}"),
            Opening::Tag => self.inside(Token::TagOpens, Token::TagCloses, "%}"),
            Opening::Comment => self.comment(),
            Opening::Raw => self.raw(opened),
        }
    }

    /// The part of `text` that an opening after it leaves.
    fn before<'t>(&self, text: &'t str, opening: Opening, mark: Option<char>) -> &'t str {
        if mark == Some('-') {
            return text.trim_end_matches(is_space);
        }
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let indentation = (line > 0 || self.begins_line) && text[line..].chars().all(is_space);
        if opening != Opening::Print && mark != Some('+') && indentation { &text[..line] } else { text }
    }

    /// Takes `bytes` up to the end of a closing mark that has them, and the white space that it takes.
    fn close(&mut self, bytes: usize, mark: Option<char>, trims_line: bool) {
        self.take(bytes);
        if mark == Some('-') {
            self.take_spaces();
        } else if mark != Some('+') && trims_line && self.rest.starts_with('\n') {
            self.take(1);
        }
    }

    fn comment(&mut self) -> Done<()> {
        let line = self.line;
        // A mark after `{#` is no part of the comment, so `{#-#}` wants another `#}`.
        let start = 2 + usize::from(self.rest[2..].starts_with(['-', '+']));
        let end = self.rest[start..].find("#}").map(|end| start + end);
        let end = end.ok_or_else(|| Fault::syntax(line, "a comment is not closed with `#}`"))?;
        let mark = self.rest[start..end].chars().next_back();
        self.close(end + 2, mark, true);
        Ok(())
    }

    /// `opened` begins with `{% raw %}`.
    fn raw(&mut self, opened: &'s str) -> Done<()> {
        let line = self.line;
        let (length, mark) = raw_length(opened, "raw").unwrap_or_default();
        self.close(length, mark, false);
        let mut ends = self.rest.match_indices("{%").map(|(at, _)| at);
        let end = ends.find_map(|at| Some((at, raw_length(&self.rest[at..], "endraw")?)));
        let (at, (length, mark)) = end.ok_or_else(|| Fault::syntax(line, "`raw` is not closed with `endraw`"))?;
        let kept = self.before(&self.rest[..at], Opening::Raw, self.rest[at + 2..].chars().next());
        self.push_data(kept);
        self.close(at + length, mark, true);
        Ok(())
    }

    /// The tokens of one tag.
    fn inside(&mut self, opens: Token, closes: Token, close: &str) -> Done<()> {
        self.push(opens);
        let marked = self.rest[2..].starts_with(['-', '+']);
        self.take(2 + usize::from(marked));
        let mut brackets = Vec::new();
        let mut before = ' ';
        loop {
            self.take_spaces();
            let trims_line = close == "%}";
            let mark = self.rest.chars().next().filter(|&mark| mark == '-' || trims_line && mark == '+');
            let mark = mark.filter(|_| self.rest[1..].starts_with(close));
            if brackets.is_empty() && (mark.is_some() || self.rest.starts_with(close)) {
                self.push(closes);
                self.close(close.len() + usize::from(mark.is_some()), mark, trims_line);
                return Ok(());
            }
            let Some(next) = self.rest.chars().next() else {
                return Err(Fault::syntax(self.line, format!("a tag is not closed with `{close}`")));
            };
            self.token(next, before, &mut brackets)?;
            before = next;
        }
    }

    fn token(&mut self, next: char, before: char, brackets: &mut Vec<&'static str>) -> Done<()> {
        let line = self.line;
        if next.is_ascii_digit() {
            return self.number(before == '.');
        }
        if is_word(next) {
            let word = self.take(self.rest.len() - self.rest.trim_start_matches(is_word).len());
            self.push(Token::Name(word.into()));
            return Ok(());
        }
        if next == '"' || next == '\'' {
            let length = string_length(self.rest, next).ok_or_else(|| Fault::syntax(line, "a text is not closed"))?;
            let inside = &self.rest[1..length - 1];
            let text = unescape(inside).map_err(|what| Fault::syntax(line, what))?;
            self.push(Token::Text(text.into()));
            self.take(length);
            return Ok(());
        }
        let sign = SIGNS.into_iter().find(|sign| self.rest.starts_with(sign));
        let sign = sign.ok_or_else(|| Fault::syntax(line, format!("`{next}` has no meaning here")))?;
        match sign {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" if brackets.pop() != Some(sign) => {
                return Err(Fault::syntax(line, format!("`{sign}` closes nothing")));
            }
            _ => {}
        }
        self.push(Token::Sign(sign));
        self.take(sign.len());
        Ok(())
    }

    fn number(&mut self, after_dot: bool) -> Done<()> {
        let line = self.line;
        let (length, is_float) = number_length(self.rest, after_dot);
        let text = self.rest[..length].replace('_', "");
        let beyond = || Fault::beyond(format!("the number {text} has more than 64 bits")).at(line);
        let token = if is_float {
            Token::Float(text.parse().map_err(|_| beyond())?)
        } else {
            let digits = |base| i64::from_str_radix(text.get(2..).unwrap_or_default(), base);
            let parsed = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
                Some("0b") => digits(2),
                Some("0o") => digits(8),
                Some("0x") => digits(16),
                _ => text.parse(),
            };
            Token::Int(parsed.map_err(|_| beyond())?)
        };
        self.push(token);
        self.take(length);
        Ok(())
    }
}

/// Bytes of a number at the beginning of a text, and whether it is one with a point or an exponent. After a
/// dot, as in `pair.0.1`, it is not.
fn number_length(text: &str, after_dot: bool) -> (usize, bool) {
    let bytes = text.as_bytes();
    let digits = |from: usize, is: fn(&u8) -> bool| {
        let mut at = from;
        while bytes.get(at).is_some_and(is)
            || at > from && bytes.get(at) == Some(&b'_') && bytes.get(at + 1).is_some_and(is)
        {
            at += 1;
        }
        at
    };
    let based: Option<fn(&u8) -> bool> = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0b") => Some(|b| matches!(b, b'0' | b'1')),
        Some("0o") => Some(|b| matches!(b, b'0'..=b'7')),
        Some("0x") => Some(u8::is_ascii_hexdigit),
        _ => None,
    };
    if let Some(end) = based.map(|is| digits(2, is)).filter(|&end| end > 2) {
        return (end, false);
    }
    let whole = digits(0, u8::is_ascii_digit);
    if after_dot {
        return (whole, false);
    }
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1, u8::is_ascii_digit);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign, u8::is_ascii_digit);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    if end > whole {
        return (end, true);
    }
    // Python knows no decimal number that begins with a zero: `01` is two tokens.
    let zeros = digits(0, |b| *b == b'0');
    (if zeros > 0 { zeros } else { whole }, false)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of `{% raw %}` (or `endraw`) at the beginning of a text, and the mark before its `%}`.
fn raw_length(text: &str, word: &str) -> Option<(usize, Option<char>)> {
    let rest = text.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
    let rest = rest.strip_prefix(word)?.trim_start_matches(is_space);
    let mark = rest.chars().next().filter(|&mark| mark == '-' || word == "endraw" && mark == '+');
    let rest = rest.get(mark.map_or(0, char::len_utf8)..)?.strip_prefix("%}")?;
    Some((text.len() - rest.len(), mark))
}

/// Bytes of the string literal that a text begins with, quotes included.
fn string_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// What Python makes of the inside of a string literal.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(code) = rest.chars().next() else { return Err("a text ends with a backslash".to_owned()) };
        let octal = rest.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
        let (digits, base, skipped) = match code {
            'x' => (2, 16, 1),
            'u' => (4, 16, 1),
            'U' => (8, 16, 1),
            '0'..='7' => (octal, 8, 0),
            'N' => return Err("a text names a character with `\\N`, which is not read".to_owned()),
            _ => {
                match "\n\\'\"abfnrtv"
                    .find(code)
                    .map(|at| ["", "\\", "'", "\"", "\x07", "\x08", "\x0c", "\n", "\r", "\t", "\x0b"][at])
                {
                    Some(meant) => out.push_str(meant),
                    None => out.extend(['\\', code]),
                }
                rest = &rest[code.len_utf8()..];
                continue;
            }
        };
        let number = rest.get(skipped..skipped + digits).and_then(|digits| u32::from_str_radix(digits, base).ok());
        let meant = number.and_then(char::from_u32);
        out.push(meant.ok_or_else(|| format!("`\\{code}` in a text names no character"))?);
        rest = &rest[skipped + digits..];
    }
    out.push_str(rest);
    Ok(out)
}
