//! A plain text read document by document.

use crate::{
    bytes::{Limits, Lines},
    error::{Error, Problem},
};
use std::{ops::ControlFlow, path::Path};

/// Takes a document: the line on which it starts, the bytes of the file behind it since the last one, and
/// its text or what is wrong with it. Breaks when it has enough.
type Each<'a> = dyn FnMut(usize, u64, Result<String, Problem>) -> ControlFlow<()> + 'a;

/// Calls `each` with every document of a text file that is not blank, until `each` breaks. A byte order mark
/// before a line is ignored: files that are put together keep theirs. A document that is broken, or longer
/// than [`Limits::whole`], is the last one.
pub(crate) fn documents(path: &Path, limits: &Limits, each: &mut Each<'_>) -> Result<(), Error> {
    let mut lines = Lines::open(path, limits, limits.whole)?;
    // Whether the first line that is not blank is a title, so that titles part the file.
    let mut wiki = None;
    let (mut document, mut start, mut passed) = (String::new(), 1, 0);
    let long = Problem::LongPart { part: "document", limit: limits.whole };
    while let Some((number, line)) = lines.next()? {
        let line = match line {
            Ok(line) => line,
            Err(Problem::LongLine { .. }) => return finish(each(start, passed, Err(long))),
            Err(problem) => return finish(each(number, passed, Err(problem))),
        };
        passed += line.len() as u64;
        let titled = is_title(line);
        if !line.trim().is_empty() {
            wiki.get_or_insert(titled);
        }
        if wiki == Some(true) && titled {
            if !document.trim().is_empty()
                && each(start, std::mem::take(&mut passed), Ok(std::mem::take(&mut document))).is_break()
            {
                return Ok(());
            }
            document.clear();
            start = number;
        } else if document.len() + line.len() > limits.whole {
            return finish(each(start, passed, Err(long)));
        }
        document.push_str(line);
    }
    if document.trim().is_empty() { Ok(()) } else { finish(each(start, passed, Ok(document))) }
}

fn finish(_: ControlFlow<()>) -> Result<(), Error> {
    Ok(())
}

/// Whether a line is the title of an article of WikiText.
fn is_title(line: &str) -> bool {
    let line = line.trim();
    line.len() > 4 && line.starts_with("= ") && line.ends_with(" =") && !line[2..].starts_with('=')
}
