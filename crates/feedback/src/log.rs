//! The files of events, tasks and answers: one JSON object a line, appended and never changed.

use crate::{
    answer::Answer,
    event::{Event, VERSION},
    fault::{Fault, Problem},
    fields::{Fields, number},
    task::Task,
};

/// The events of `log.jsonl`, in its order, and its torn end if it has one.
///
/// # Errors
/// A whole line that is no event. Only the last line can be torn.
pub fn read_log(bytes: &[u8]) -> Result<(Vec<Event>, Option<Torn>), LineError> {
    read_lines(bytes, Event::read)
}

/// The tasks of `tasks.jsonl`, as [`read_log`] reads events.
///
/// # Errors
/// As [`read_log`].
pub fn read_tasks(bytes: &[u8]) -> Result<(Vec<Task>, Option<Torn>), LineError> {
    read_lines(bytes, Task::read)
}

/// The answers of `answers.jsonl`, as [`read_log`] reads events.
///
/// # Errors
/// As [`read_log`].
pub fn read_answers(bytes: &[u8]) -> Result<(Vec<Answer>, Option<Torn>), LineError> {
    read_lines(bytes, Answer::read)
}

/// An end of a file that is no whole line: the program or the machine died while it was written, so nobody was told
/// that it is saved. Cut the file at `offset` before anything is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where it begins; so many bytes are sound.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct LineError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineProblem,
}

/// What can be wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// A newer program wrote it, which may mean something else by its fields.
    #[error("written by a newer version of this program (lines of version {v}; this one reads up to {VERSION})")]
    Newer {
        /// The version of the line.
        v: u64,
    },
    /// It is not what it should be.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn read_lines<T>(bytes: &[u8], read: impl Fn(Fields) -> Result<T, Fault>) -> Result<(Vec<T>, Option<Torn>), LineError> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let rest = &bytes[offset..];
        let torn = Torn { offset, bytes: rest.len() };
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else { return Ok((found, Some(torn))) };
        let last = offset + length + 1 == bytes.len();
        match read_line(&rest[..length], &read) {
            Ok(one) => found.push(one),
            Err(LineProblem::Fault(Fault { problem: Problem::Json { .. }, .. })) if last => {
                return Ok((found, Some(torn)));
            }
            Err(problem) => return Err(LineError { line: found.len() + 1, problem }),
        }
        offset += length + 1;
    }
    Ok((found, None))
}

fn read_line<T>(line: &[u8], read: &impl Fn(Fields) -> Result<T, Fault>) -> Result<T, LineProblem> {
    let mut fields = Fields::parse(line)?;
    match fields.required("v", number)? {
        VERSION => Ok(read(fields)?),
        v if v > VERSION => Err(LineProblem::Newer { v }),
        v => {
            let problem = Problem::Range { found: v.to_string(), allowed: VERSION.to_string() };
            Err(Fault::new("v", problem).into())
        }
    }
}
