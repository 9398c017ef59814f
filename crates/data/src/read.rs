//! Reads records from files in the house format and from published data sets, and checks all of them
//! before any is used.

use crate::{
    array,
    bytes::{self, Limits},
    documents::documents,
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
/// Files are read piece by piece, so their size does not matter: a line, an element of an array, a document of
/// a `.txt` at a time. A `.txt` file is one document, or one per article when its first line is a WikiText title
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
    problems.append(&mut repeats(&read.records, limits.problems));
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
    let mut passed = |bytes: u64| {
        let bytes = bytes.min(left);
        left -= bytes;
        done(bytes);
    };
    if is_text(path) {
        documents(path, limits, &mut |line, bytes, text| {
            passed(bytes);
            let value = |text| Value::Object([("text".to_owned(), Value::String(text))].into_iter().collect());
            file.take(line, text.map(value))
        })?;
    } else if first_byte(path, limits)? == Some(b'[') {
        array::elements(path, limits, &mut |line, bytes, value| {
            passed(bytes);
            file.take(line, value)
        })?;
    } else {
        let parse = |text: &str| json::parse(text, limits.values);
        bytes::lines(path, limits, &mut |line, text| {
            passed(text.as_ref().map_or(0, |text| text.len() as u64 + 1));
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
        let Ok(buffer) = reader.fill_buf() else { return Ok(None) };
        let blank = |byte: &&u8| byte.is_ascii_whitespace() || bytes::MARK.contains(*byte);
        let skipped = buffer.iter().take_while(blank).count();
        if buffer.len() > skipped || buffer.is_empty() {
            return Ok(buffer.get(skipped).copied());
        }
        reader.consume(skipped);
    }
}

/// Records that say the same twice, and ids that name two prompts, so many at `most`. Ids count within a file:
/// published sets that come in several begin anew in each.
fn repeats<T: Record>(records: &[T], most: usize) -> Vec<RecordError> {
    let mut by_id: BTreeMap<(&Path, &str), SameId<'_, T>> = BTreeMap::new();
    let mut found = Vec::new();
    for record in records {
        // An id that the reader made up says where its record stands, not what it is.
        let given = record.prompt().filter(|prompt| prompt.id != default_id(&prompt.origin));
        let Some(prompt) = given else { continue };
        let id = (&*prompt.origin.path, prompt.id.as_str());
        let Some(same) = by_id.get_mut(&id) else {
            by_id.insert(id, SameId { first: record, subject: None, other: None, by_answer: BTreeMap::new() });
            continue;
        };
        let (other_prompt, same_record) = same.seen(record);
        if let Some(first) = other_prompt.or(same_record) {
            let problem = Problem::Duplicate { first: first.origin().clone(), conflicting: other_prompt.is_some() };
            found.push(RecordError { origin: record.origin().clone(), field: Some("id".to_owned()), problem });
        }
        if found.len() >= most {
            break;
        }
    }
    found
}

/// The records of one id.
struct SameId<'a, T> {
    first: &'a T,
    /// The prompt of `first`, once it has been compared with another.
    subject: Option<String>,
    /// The first whose prompt is not that of `first`.
    other: Option<&'a T>,
    /// The first of each answer; empty while there is one record, as most ids have.
    by_answer: BTreeMap<String, &'a T>,
}

impl<'a, T: Record> SameId<'a, T> {
    /// The first earlier record with another prompt, and the first with the same answer. Takes `record` in.
    fn seen(&mut self, record: &'a T) -> (Option<&'a T>, Option<&'a T>) {
        if self.by_answer.is_empty() {
            self.by_answer.insert(self.first.answer(), self.first);
        }
        let first = self.first;
        let same = *self.subject.get_or_insert_with(|| first.subject()) == record.subject();
        let other_prompt = if same { self.other } else { Some(self.first) };
        if !same {
            self.other.get_or_insert(record);
        }
        let answer = record.answer();
        let same_record = self.by_answer.get(&answer).copied();
        self.by_answer.entry(answer).or_insert(record);
        (other_prompt, same_record)
    }
}

#[cfg(test)]
pub(crate) mod tests;
