//! Ids become text while they are drawn.

use instruct_data::{Error, Tokenizer};

/// Writes down a completion as its ids come, so that the parts together are what the tokenizer makes of all ids.
///
/// A character whose bytes are not all there yet is held back. An id is spelled beside those before it, because a
/// tokenizer may write the first word of a text without its space.
#[derive(Debug, Default)]
pub(crate) struct Spelling {
    ids: Vec<u32>,
    /// The ids from here to `spelled` are spelled again, for those that follow.
    before: usize,
    spelled: usize,
}

/// Ids that may wait for the rest of a character, the longest of which has four bytes, before they are spelled as they
/// are. More are needed only where a model writes bytes that are no text.
const PATIENCE: usize = 8;

impl Spelling {
    /// Adds an id; returns the text that it completes, which may be none.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let (known, all) = self.both(tokenizer)?;
        let is_cut = all.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.spelled <= PATIENCE;
        let text = new(&known, &all);
        if text.is_empty() || is_cut {
            return Ok(String::new());
        }
        (self.before, self.spelled) = (self.spelled, self.ids.len());
        Ok(text.to_owned())
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, Error> {
        let (known, all) = self.both(tokenizer)?;
        self.before = self.ids.len();
        self.spelled = self.ids.len();
        Ok(new(&known, &all).to_owned())
    }

    /// So many ids have come.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// What the ids since `before` have been spelled as, and what they are now.
    fn both(&self, tokenizer: &Tokenizer) -> Result<(String, String), Error> {
        Ok((tokenizer.decode(&self.ids[self.before..self.spelled])?, tokenizer.decode(&self.ids[self.before..])?))
    }
}

/// What `all` adds to the text that is `known`: what follows it, or, where a later id has completed a character that was
/// let out in half, what follows the part that is still so.
fn new<'a>(known: &str, all: &'a str) -> &'a str {
    let same = known.bytes().zip(all.bytes()).take_while(|(a, b)| a == b).count();
    &all[all.floor_char_boundary(same)..]
}

/// Looks for texts that end a completion, across the parts in which it comes.
#[derive(Debug)]
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    pub(crate) fn new(stops: Vec<String>) -> Stops {
        Stops { stops, held: String::new() }
    }

    /// Adds a part; returns the text that is certain by now, and whether a stop ends it.
    pub(crate) fn push(&mut self, part: &str) -> (String, bool) {
        self.held.push_str(part);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Takes away the white space around a text, while it comes in parts: what templates write between a prompt and its
/// answer, and models learn to write, is no part of what is said.
#[derive(Debug, Default)]
pub(crate) struct Trim {
    has_begun: bool,
    held: String,
}

impl Trim {
    /// Adds a part; returns what certainly stands inside the text.
    pub(crate) fn push(&mut self, part: &str) -> String {
        self.held.push_str(part);
        let text = if self.has_begun { self.held.as_str() } else { self.held.trim_start() };
        let inside = text.trim_end().to_owned();
        self.held = text[inside.len()..].to_owned();
        self.has_begun |= !inside.is_empty();
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_taken_from_both_ends_and_left_inside() {
        let check = |parts: &[&str]| {
            let mut trim = Trim::default();
            let found: String = parts.iter().map(|part| trim.push(part)).collect();
            assert_eq!(found, parts.concat().trim(), "{parts:?}");
        };
        check(&[" ", "\n", " a", " ", "b ", "\n"]);
        check(&["a"]);
        check(&[" \u{a0}a b", "  ", "c"]);
        check(&["", " ", ""]);
        check(&[]);
    }

    /// A stream of these parts, with these stops.
    #[track_caller]
    fn check(stops: &[&str], parts: &[&str], wanted: &[&str], ends: bool) {
        let mut stream = Stops::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut found = Vec::new();
        for part in parts {
            let (text, ended) = stream.push(part);
            found.push(text);
            if ended {
                assert!(ends, "{found:?} ended");
                assert_eq!(found, wanted);
                return;
            }
        }
        found.push(stream.finish());
        assert!(!ends, "{found:?} did not end");
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_new_follows_what_is_known() {
        for (known, all, wanted) in [("", "ab", "ab"), ("a", "ab", "b"), ("ab", "ab", ""), ("a\u{fffd}", "aé", "é")] {
            assert_eq!(new(known, all), wanted);
        }
    }

    #[test]
    fn a_stop_is_found_across_parts_and_what_may_begin_one_is_held_back() {
        check(&[], &["a", "b"], &["a", "b", ""], false);
        check(&["END"], &["a E", "ND b"], &["a ", ""], true);
        check(&["END"], &["a E", "Nd"], &["a ", "ENd", ""], false);
        check(&["END"], &["a E", "N"], &["a ", "", "EN"], false);
        check(&["b", "ab"], &["xab"], &["x"], true);
        check(&["bc", "abcd"], &["ab", "c"], &["", "a"], true);
        check(&["é"], &["caf", "é!"], &["caf", ""], true);
        check(&["\n\n"], &["a\n", "b\n", "\n"], &["a", "\nb", ""], true);
        check(&["aab"], &["a", "a", "ab"], &["", "", "a"], true);
    }
}
