//! What a person reads: lines on standard error and standard output, and how an error is put.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether another process says what this one would.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From here on nothing is said and nothing printed: another process of the same run does it.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether [`be_quiet`] was called.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// One line for a person, on standard error; results go to standard output. A terminal that is gone, or
/// a full disk behind it, must not end a run.
pub fn say(text: &str) {
    if !is_quiet() {
        say_at_all_costs(text);
    }
}

/// As [`say`], in a process that is quiet too: its last words.
pub(crate) fn say_at_all_costs(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// One line of a command's result, on standard output. A result that cannot be given is a failure, and
/// ends the process with exit code 2.
pub fn print(text: &str) {
    if is_quiet() {
        return;
    }
    if let Err(error) = writeln!(io::stdout(), "{text}") {
        say(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(2);
    }
}

/// An error as one message for a terminal: its causes, and what to do about a full disk.
pub fn message(error: &anyhow::Error) -> String {
    format!("{}{}", printable(&with_causes(error)), advice_on_space(error))
}

/// The message with its causes. A cause that the message quotes is left out.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(|cause| cause.to_string()).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        _ if text.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

/// A message that may quote a hostile file, without characters that a terminal obeys. Of an endless
/// message it keeps the beginning and the end.
fn printable(message: &str) -> String {
    const LINES: usize = 60;
    const LINE: usize = 2_000;
    let lines: Vec<String> = message.lines().map(|line| shortened(line, LINE)).collect();
    let text = match lines.len().checked_sub(LINES) {
        None | Some(0) => lines.join("\n"),
        Some(left_out) => {
            let (head, tail) = (&lines[..LINES - 5], &lines[lines.len() - 5..]);
            format!("{}\n  ({left_out} lines left out)\n{}", head.join("\n"), tail.join("\n"))
        }
    };
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

fn shortened(line: &str, most: usize) -> String {
    let count = line.chars().count();
    if count <= most {
        return line.to_owned();
    }
    let head: String = line.chars().take(most / 2).collect();
    let tail: String = line.chars().skip(count - most / 2).collect();
    format!("{head} (...) {tail}")
}

/// What to do about a full disk, where the error does not say so itself.
fn advice_on_space(error: &anyhow::Error) -> &'static str {
    const ADVICE: &str = "; free some space, then continue with --resume";
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    };
    if error.chain().any(full) && !format!("{error:#}").contains(ADVICE) { ADVICE } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("a.txt: no such file; check the path");
        assert_eq!(with_causes(&error), "a.txt: no such file; check the path");
        assert_eq!(with_causes(&error.context("reading")), "reading: a.txt: no such file; check the path");
    }

    #[test]
    fn messages_are_printable() {
        assert_eq!(printable("a\u{1b}[2J\r\nb"), "a\u{FFFD}[2J\nb");
        let long = format!("{}; do this", "x".repeat(100_000));
        assert!(printable(&long).len() < 3_000 && printable(&long).ends_with("; do this"));
        let many = format!("problems:\n{}mend them", "  one\n".repeat(1_000));
        assert!(printable(&many).lines().count() < 70 && printable(&many).ends_with("mend them"));
        assert_eq!(printable("a\n  b"), "a\n  b");
    }
}
