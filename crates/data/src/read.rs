//! Reads records from files in the house format and from published data sets, and checks all of them
//! before any is used.

use crate::{
    bytes::{self, Limits},
    entry::{Entry, Shape},
    error::{Error, Problem, Problems, RecordError},
    json::{self, Remarks, Sink, type_name},
    record::Record,
    shapes::house::default_id,
};
use serde_json::Value;
use std::{collections::BTreeMap, io::BufRead, ops::ControlFlow, path::Path};

/// What [`read`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    /// The records, in the order of the files and of their lines.
    pub records: Vec<T>,
    /// What was left out of data sets that are known to hold unusable records (hh-rlhf's
    /// comparisons whose sides answer different prompts), with the reason.
    pub skipped: Vec<RecordError>,
    /// What else is to be said of the files, one entry for each of which there is something.
    pub remarks: Vec<Remarks>,
}

/// Reads all `paths` as records of kind `T`: [`Prompt`](crate::Prompt),
/// [`Demonstration`](crate::Demonstration), [`Ranking`](crate::Ranking) or
/// [`PretrainText`](crate::PretrainText).
///
/// Files are JSONL, a JSON array, or (for pretraining text) `.txt`; gzip and Zstandard are undone
/// on the way. The first record of a file shows its shape, one of:
///
/// | shape | keys | holds |
/// |---|---|---|
/// | house, TRL | `prompt` (text or messages) or `messages`, then `completion`, or `completions` and `ranks` | prompts, demonstrations, rankings |
/// | TRL preference | `prompt`?, `chosen`, `rejected` (texts, messages, or whole conversations) | prompts, rankings |
/// | Alpaca, Dolly | `instruction`, `input` or `context`, `output` or `response`, or `chosen` and `rejected` | prompts, demonstrations, rankings |
/// | ShareGPT | `conversations` of `from` and `value`, `chosen`? and `rejected`? | prompts, demonstrations, rankings |
/// | hh-rlhf transcript | `chosen`, `rejected` as `\n\nHuman: ...\n\nAssistant: ...` | prompts, rankings |
/// | OASST tree | `message_tree_id`, `prompt` | prompts, demonstrations (rank-0 replies by people), rankings; `user` is the tree |
/// | PandaLM comparison | `instruction`, `input`, `response1`, `response2`, `annotator1..3` | prompts, rankings (three records each) |
/// | self-instruct task | `instruction`, `instances` | prompts, demonstrations |
/// | question list | `turns`, `category` | prompts: the first turn |
/// | JSON string | none | prompts |
/// | text | `text`, or a `.txt` file | pretraining text |
///
/// Beside a prompt that is text, `system`, `history` (pairs of turns) and `input` become part of the
/// conversation; beside messages `system` does. `tools`, `images` and their like are refused, and every other
/// field is named in [`Read::remarks`]. A comparison of two texts without a prompt is split where they part.
/// A blank optional field counts as absent, and 1.0 is an integer.
///
/// A `.txt` file is one document, or one per article when its first line is a WikiText title
/// (`" = Title = "`). Ranks may have gaps after ties (1,2,2,4) or not (1,2,2,3); any other gap, or
/// a start other than 1, is refused. OASST's ranks get 1 added.
///
/// # Errors
/// [`Error::Problems`] with every problem of every file: nothing is returned unless all of it is
/// usable. [`Error::Io`], [`Error::Compressed`] and [`Error::TooLarge`] name the file.
pub fn read<T: Record>(paths: &[impl AsRef<Path>], limits: &Limits) -> Result<Read<T>, Error> {
    read_reporting(paths, limits, &mut |_| ())
}

/// As [`read`]; `done` hears how many more bytes of the files are behind it, again and again. They add up
/// to the files' sizes. Of a compressed file it hears too much too soon, because what is counted is text.
///
/// # Errors
/// As [`read`].
pub fn read_reporting<T: Record>(
    paths: &[impl AsRef<Path>],
    limits: &Limits,
    done: &mut dyn FnMut(u64),
) -> Result<Read<T>, Error> {
    let mut read = Read { records: Vec::new(), skipped: Vec::new(), remarks: Vec::new() };
    let mut problems = Vec::new();
    for path in paths {
        let mut sink = Sink::new(path.as_ref(), limits.spread);
        read_file(path.as_ref(), limits, &mut read.records, &mut sink, done)?;
        problems.append(&mut sink.problems);
        read.skipped.append(&mut sink.skipped);
        read.remarks.extend(Some(sink.remarks).filter(|remarks| !remarks.is_empty()));
    }
    problems.append(&mut repeats(&read.records));
    if problems.is_empty() { Ok(read) } else { Err(Problems(problems).into()) }
}

fn read_file<T: Record>(
    path: &Path,
    limits: &Limits,
    records: &mut Vec<T>,
    sink: &mut Sink,
    done: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    // A file that cannot be read is refused below, in better words.
    let mut left = std::fs::metadata(path).map_or(0, |file| file.len());
    let mut file = Values { shape: None, waiting: Vec::new(), empty: true, most: limits.problems, records, sink };
    if is_text(path) {
        match bytes::whole(path, limits)? {
            Ok(text) => {
                let text = without_marks(text);
                let mut values =
                    documents(&text).into_iter().map(|(line, text)| (line, serde_json::json!({ "text": text })));
                let _ = values.try_for_each(|(line, value)| file.take(line, Ok(value)));
            }
            Err((line, problem)) => drop(file.take(line, Err(problem))),
        }
    } else if first_byte(path, limits)? == Some(b'[') {
        match bytes::whole(path, limits)? {
            Ok(text) => json::parse_array(&text, limits.values, &mut |line, value| file.take(line, value)),
            Err((line, problem)) => drop(file.take(line, Err(problem))),
        }
    } else {
        let parse = |text: &str| json::parse(text, limits.values);
        bytes::lines(path, limits, &mut |line, text| {
            let bytes = text.as_ref().map_or(0, |text| text.len() as u64 + 1).min(left);
            left -= bytes;
            done(bytes);
            file.take(line, text.and_then(parse))
        })?;
    }
    done(left);
    file.end();
    Ok(())
}

/// The values of one file, turned into records as they come. The first value of a known shape decides
/// the shape of the file, so that the message about a later value can name the field that it lacks.
struct Values<'a, T> {
    shape: Option<Shape>,
    waiting: Vec<(usize, Value)>,
    empty: bool,
    /// Problems after which no more is taken.
    most: usize,
    records: &'a mut Vec<T>,
    sink: &'a mut Sink,
}

impl<T: Record> Values<'_, T> {
    fn take(&mut self, line: usize, value: Result<Value, Problem>) -> ControlFlow<()> {
        self.empty = false;
        match value {
            Ok(value) => self.value(line, value),
            Err(problem) => self.sink.line(line, problem),
        }
        if self.sink.problems.len() + self.waiting.len() < self.most {
            return ControlFlow::Continue(());
        }
        self.sink.line(line, Problem::Enough { most: self.most });
        ControlFlow::Break(())
    }

    fn value(&mut self, line: usize, value: Value) {
        self.shape = self.shape.or_else(|| Shape::of(&value));
        self.waiting.push((line, value));
        if let Some(shape) = self.shape {
            for (line, value) in std::mem::take(&mut self.waiting) {
                let mut entry = Entry { shape, value: &value, line, sink: self.sink };
                entry.remark();
                self.records.extend(T::extract(&mut entry).unwrap_or_default());
            }
        }
    }

    fn end(self) {
        if self.empty {
            self.sink.line(1, Problem::NoRecord);
        }
        for (line, value) in self.waiting {
            self.sink.line(line, Problem::UnknownShape { found: describe(&value) });
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Object(object) if !object.is_empty() => {
            format!("keys {}", object.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "))
        }
        Value::Object(_) => "no keys".to_owned(),
        other => type_name(other).to_owned(),
    }
}

/// Whether the name, without `.gz` or `.zst`, ends in `.txt`.
fn is_text(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".zst").ends_with(".txt")
}

/// The first byte that is neither white space nor part of a byte order mark.
fn first_byte(path: &Path, limits: &Limits) -> Result<Option<u8>, Error> {
    let mut reader = std::io::Read::take(bytes::open(path, limits)?, limits.line as u64);
    loop {
        // The file is read in full next, and that reports what is wrong.
        let Ok(bytes) = reader.fill_buf() else { return Ok(None) };
        let blank = |byte: &&u8| byte.is_ascii_whitespace() || [0xEF, 0xBB, 0xBF].contains(*byte);
        let skipped = bytes.iter().take_while(blank).count();
        if bytes.len() > skipped || bytes.is_empty() {
            return Ok(bytes.get(skipped).copied());
        }
        reader.consume(skipped);
    }
}

/// The text without the byte order marks before its lines, which files that are put together keep.
fn without_marks(text: String) -> String {
    if text.contains("\n\u{FEFF}") { text.replace("\n\u{FEFF}", "\n") } else { text }
}

/// The documents of a plain text with the line on which each starts.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let is_title = |line: &str| {
        let line = line.trim();
        line.len() > 4 && line.starts_with("= ") && line.ends_with(" =") && !line[2..].starts_with('=')
    };
    let wiki = text.lines().find(|line| !line.trim().is_empty()).is_some_and(is_title);
    let (mut starts, mut at) = (vec![(1, 0)], 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if wiki && is_title(line) && at > 0 {
            starts.push((number + 1, at));
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|&(_, at)| at).chain([text.len()]);
    let pieces = starts.iter().zip(ends).map(|(&(line, start), end)| (line, &text[start..end]));
    pieces.filter(|(_, piece)| !piece.trim().is_empty()).collect()
}

/// Records that say the same twice, and ids that name two prompts. Ids count within a file: published sets
/// that come in several begin anew in each.
fn repeats<T: Record>(records: &[T]) -> Vec<RecordError> {
    let mut by_id: BTreeMap<(&Path, &str), Vec<&T>> = BTreeMap::new();
    let mut found = Vec::new();
    for record in records {
        // An id that the reader made up says where its record stands, not what it is.
        let given = record.prompt().filter(|prompt| prompt.id != default_id(&prompt.origin));
        let Some(prompt) = given else { continue };
        let same_id = by_id.entry((&*prompt.origin.path, &prompt.id)).or_default();
        let other_prompt = same_id.iter().find(|first| first.subject() != record.subject());
        let same_record = same_id.iter().find(|first| first.answer() == record.answer());
        if let Some(first) = other_prompt.or(same_record) {
            let problem = Problem::Duplicate { first: first.origin().clone(), conflicting: other_prompt.is_some() };
            found.push(RecordError { origin: record.origin().clone(), field: Some("id".to_owned()), problem });
        }
        same_id.push(record);
    }
    found
}

#[cfg(test)]
pub(crate) mod tests;
