//! Encodes what a template has written, in which people's words may spell the model's marks.

use super::Tokenizer;
use crate::error::Error;
use serde_json::{Value, json};
use std::ops::Range;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

impl Tokenizer {
    /// Ids of a text that a template has written. Special tokens are recognised, except in `spelled`: the
    /// ranges, in bytes and in order, in which people's words spell one.
    ///
    /// Nothing is added in front. These are the ids that transformers gives without added special tokens.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub(crate) fn encode_rendered(&self, text: &str, spelled: &[Range<usize>]) -> Result<Vec<u32>, Error> {
        if spelled.is_empty() { self.ids(&self.marks, text) } else { self.in_pieces(text, spelled, &self.words) }
    }

    /// As [`Tokenizer::encode_rendered`], each id with the bytes of the text that it stands for.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub(crate) fn locate_rendered(&self, text: &str, spelled: &[Range<usize>]) -> Result<Vec<Located>, Error> {
        if spelled.is_empty() {
            return self.located(&self.marks, text, 0);
        }
        let words = |tokenizer: &_, piece: Range<usize>| self.located(tokenizer, &text[piece.clone()], piece.start);
        self.cut_at_marks(text, spelled, &self.words, words, |id, taken| (id, taken))
    }

    /// Ids with the bytes that they stand for in a longer text, in which `text` begins at `start`.
    fn located(&self, tokenizer: &tokenizers::Tokenizer, text: &str, start: usize) -> Result<Vec<Located>, Error> {
        let encoding = tokenizer.encode(text, false).map_err(|e| self.broken("encode", e))?;
        let bytes = encoding.get_offsets().iter().map(|&(from, to)| start + from..start + to);
        let located: Vec<Located> = encoding.get_ids().iter().copied().zip(bytes).collect();
        match located.iter().find(|&&(id, _)| id as usize >= self.rows) {
            Some(&(id, _)) => Err(self.without_row(id, self.rows)),
            None => Ok(located),
        }
    }

    /// As [`Tokenizer::encode_rendered`], of a text that goes on where another has ended: what a tokenizer
    /// lays before the first word of a text, such as SentencePiece's space, is left out.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub(crate) fn encode_continuation(&self, text: &str, spelled: &[Range<usize>]) -> Result<Vec<u32>, Error> {
        match &self.continuing {
            Some(continuing) => self.in_pieces(text, spelled, continuing),
            None => self.encode_rendered(text, spelled),
        }
    }

    /// Ids of a text whose first piece between special tokens is encoded with `first`.
    fn in_pieces(
        &self,
        text: &str,
        spelled: &[Range<usize>],
        first: &tokenizers::Tokenizer,
    ) -> Result<Vec<u32>, Error> {
        self.cut_at_marks(text, spelled, first, |tokenizer, piece| self.ids(tokenizer, &text[piece]), |id, _| id)
    }

    /// Cuts the text at its special tokens, as the library does, and encodes what stands between with `words`,
    /// the first piece with the tokenizer `first`; `mark` makes of a special token what `words` makes of others.
    fn cut_at_marks<T>(
        &self,
        text: &str,
        spelled: &[Range<usize>],
        first: &tokenizers::Tokenizer,
        words: impl Fn(&tokenizers::Tokenizer, Range<usize>) -> Result<Vec<T>, Error>,
        mark: impl Fn(u32, Range<usize>) -> T,
    ) -> Result<Vec<T>, Error> {
        let later = if self.leads_once { self.continuing.as_ref().unwrap_or(&self.words) } else { &self.words };
        let (mut encoded, mut begun) = (Vec::new(), 0);
        let words = |piece: Range<usize>| words(if piece.start == 0 { first } else { later }, piece);
        while let Some((taken, id)) = self.next_mark(text, begun, spelled) {
            encoded.extend(words(begun..taken.start)?);
            if id as usize >= self.rows {
                return Err(self.without_row(id, self.rows));
            }
            begun = taken.end;
            encoded.push(mark(id, taken));
        }
        encoded.extend(words(begun..text.len())?);
        Ok(encoded)
    }

    /// The first special token from byte `from` on, with the white space that it takes in.
    fn next_mark(&self, text: &str, from: usize, spelled: &[Range<usize>]) -> Option<(Range<usize>, u32)> {
        text[from..].char_indices().find_map(|(at, _)| {
            let start = from + at;
            let mark = self.longest_mark(&text[start..])?;
            let taken = start..start + mark.name.len();
            let reached = spelled.partition_point(|range| range.end <= taken.start);
            if spelled.get(reached).is_some_and(|range| range.start < taken.end) {
                return None;
            }
            let space = |taken: bool, rest: usize, trimmed: usize| if taken { rest - trimmed } else { 0 };
            let (before, after) = (&text[from..start], &text[taken.end..]);
            let left = space(mark.takes_left, before.len(), before.trim_end().len());
            let right = space(mark.takes_right, after.len(), after.trim_start().len());
            Some((taken.start - left..taken.end + right, mark.id))
        })
    }

    /// The longest special token that `text` begins with.
    pub(crate) fn longest_mark(&self, text: &str) -> Option<&Mark> {
        self.marked.iter().filter(|mark| text.starts_with(mark.name.as_str())).max_by_key(|mark| mark.name.len())
    }
}

/// An id, and the bytes of a text that it stands for.
pub(crate) type Located = (u32, Range<usize>);

/// A special token as it is found in text.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// Whether it takes in the white space before it.
    pub(super) takes_left: bool,
    /// Whether it takes in the white space after it.
    pub(super) takes_right: bool,
}

impl From<(u32, tokenizers::AddedToken)> for Mark {
    fn from((id, token): (u32, tokenizers::AddedToken)) -> Mark {
        Mark { id, name: token.content, takes_left: token.lstrip, takes_right: token.rstrip }
    }
}

/// The special tokens of a tokenizer, by id.
pub(super) fn marks(inner: &tokenizers::Tokenizer) -> Vec<Mark> {
    let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
    let mut marks: Vec<Mark> = added.map(Mark::from).collect();
    marks.sort_unstable_by_key(|mark| mark.id);
    marks
}

/// The tokenizer for text that goes on where another has ended, if that is another one; and whether what is
/// laid before a first word stands only at the very beginning of a text, and not after each special token.
///
/// # Errors
/// The library's own, which a part that it has written itself does not meet.
pub(super) fn continuing(words: &tokenizers::Tokenizer) -> tokenizers::Result<(Option<tokenizers::Tokenizer>, bool)> {
    let parts = [json!(words.get_normalizer()), json!(words.get_pre_tokenizer())];
    let [normalizer, pre_tokenizer] = parts.clone().map(without_lead);
    if [&normalizer, &pre_tokenizer] == [&parts[0], &parts[1]] {
        return Ok((None, false));
    }
    let mut other = words.clone();
    other.with_normalizer(serde_json::from_value::<Option<NormalizerWrapper>>(normalizer)?)?;
    other.with_pre_tokenizer(serde_json::from_value::<Option<PreTokenizerWrapper>>(pre_tokenizer)?);
    Ok((Some(other), leads_once(&parts[1])))
}

/// A part of a tokenizer without what it lays before the first word; null where nothing else is left.
fn without_lead(mut part: Value) -> Value {
    for list in ["normalizers", "pretokenizers"] {
        if let Some(parts) = part.get_mut(list).and_then(Value::as_array_mut) {
            *parts = std::mem::take(parts).into_iter().map(without_lead).filter(|part| !part.is_null()).collect();
            return part;
        }
    }
    match part["type"].as_str() {
        Some("Prepend") => return Value::Null,
        Some("Metaspace") => part["prepend_scheme"] = json!("never"),
        Some("ByteLevel") if part["add_prefix_space"] == true => part["add_prefix_space"] = json!(false),
        Some("Strip") if part["strip_left"] == true => part["strip_left"] = json!(false),
        _ => {}
    }
    part
}

fn leads_once(part: &Value) -> bool {
    match part["pretokenizers"].as_array() {
        Some(parts) => parts.iter().any(leads_once),
        None => part["prepend_scheme"] == "first",
    }
}
