//! Templates: how the world writes a sentence, and how the judge reads one back.
//!
//! A template is lower-case text with slots. `{animal}` is a word of a class, `{animal2}` another
//! one, `{animal.home}` a fact about the first, `<phrase>` one of a list of whole sentences. The
//! same constants write prompts, answers and prose, match a prompt back to its task, and define
//! which word may follow which.

use super::lexicon::lexicon;
use instruct_random::Draws;
use std::collections::{BTreeMap, BTreeSet};

/// Which word stands in which slot.
pub(crate) type Bindings = BTreeMap<String, &'static str>;

/// A list of whole sentences that `<name>` stands for.
pub(crate) type Phrases = &'static [(&'static str, &'static [&'static str])];

/// Writes `template`: bound slots keep their word, others are drawn from their class (never a word
/// that another slot of the same root already holds) and stay bound. Returns lower-case text.
pub(crate) fn fill(template: &str, phrases: Phrases, bound: &mut Bindings, draws: &mut Draws) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(start) = rest.find(['{', '<']) {
        text.push_str(&rest[..start]);
        let close = if rest[start..].starts_with('{') { '}' } else { '>' };
        let end = start + rest[start..].find(close).expect("templates are constants and a test fills each");
        let inside = &rest[start + 1..end];
        if close == '>' {
            let choice = draws.pick(alternatives(phrases, inside)).expect("a phrase has alternatives");
            text.push_str(&fill(choice, phrases, bound, draws));
        } else {
            text.push_str(value(inside, bound, draws));
        }
        rest = &rest[end + 1..];
    }
    text.push_str(rest);
    text
}

/// The word an expression such as `animal.home` stands for, when its slot is bound; a literal word
/// stands for itself.
pub(crate) fn lookup(expression: &str, bound: &Bindings) -> Option<&'static str> {
    let (slot, mut facts) = split(expression);
    let word = *bound.get(slot)?;
    facts.try_fold(word, |word, attribute| lexicon().fact(word, attribute))
}

/// Puts lower-case text into its written form: capitals at sentence starts, for names and days and
/// for "I", and "an" before a vowel.
pub(crate) fn polish(raw: &str) -> String {
    let words: Vec<&str> = raw.split_whitespace().collect();
    let mut text = String::with_capacity(raw.len());
    let mut starts = true;
    for (i, &word) in words.iter().enumerate() {
        let next_is_vowel = words.get(i + 1).is_some_and(|next| next.starts_with(['a', 'e', 'i', 'o', 'u']));
        let word = if word == "a" && next_is_vowel && words[i + 1] != "one" { "an" } else { word };
        let bare = word.trim_end_matches(|c: char| !c.is_alphabetic());
        let proper = bare == "i" || matches!(lexicon().root(bare), Some("name" | "day"));
        if i > 0 {
            text.push(' ');
        }
        if starts || proper {
            text.extend(word.chars().take(1).flat_map(char::to_uppercase));
            text.push_str(&word[1..]);
        } else {
            text.push_str(word);
        }
        starts = word.ends_with(['.', '!', '?', ':']);
    }
    text
}

/// Lower-case words and punctuation marks of a written text. "an" reads as "a"; any other character
/// is a token of its own, so that nothing a completion holds goes unseen.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut inside_word = false;
    for c in text.chars() {
        if c.is_alphabetic() {
            if !inside_word {
                tokens.push(String::new());
            }
            tokens.last_mut().expect("a word was just begun").extend(c.to_lowercase());
        } else if !c.is_whitespace() {
            // A brace of a text is never that of a slot: a model can draw any byte.
            tokens.push(if c == '{' { "(".to_owned() } else { c.to_string() });
        }
        inside_word = c.is_alphabetic();
    }
    for token in &mut tokens {
        if token == "an" {
            token.pop();
        }
    }
    tokens
}

/// The bindings under which `template` reads exactly as `text`, if there are any.
pub(crate) fn matches(template: &[String], text: &[String]) -> Option<Bindings> {
    if template.len() != text.len() {
        return None;
    }
    let mut bound = Bindings::new();
    for (want, got) in template.iter().zip(text) {
        let Some(expression) = want.strip_prefix('{') else {
            if want != got {
                return None;
            }
            continue;
        };
        match lookup(expression, &bound) {
            Some(word) if word == got => {}
            Some(_) => return None,
            None => {
                let (slot, mut facts) = split(expression);
                if facts.next().is_some() {
                    return None;
                }
                bound.insert(slot.to_string(), lexicon().member(class(slot), got)?);
            }
        }
    }
    Some(bound)
}

/// A template cut into tokens: literal ones as [`tokens`] gives them, a slot as `{expression`. Phrases
/// are left out.
pub(crate) fn template_tokens(template: &str) -> Vec<String> {
    let template = without_phrases(template);
    let mut out = Vec::new();
    let mut rest = template.as_str();
    while let Some(start) = rest.find('{') {
        out.extend(tokens(&rest[..start]));
        let end = start + rest[start..].find('}').expect("templates are constants and a test reads each");
        out.push(rest[start..end].to_string());
        rest = &rest[end + 1..];
    }
    out.extend(tokens(rest));
    out
}

/// Which token may follow which, learned from nothing but the templates: words of one root class
/// are one token, so "the fox eats" allows "the owl eats" and forbids "fox owl".
#[derive(Default)]
pub(crate) struct Grammar {
    pairs: BTreeSet<(String, String)>,
}

/// Stands before the first and after the last token of a sentence.
const EDGE: &str = "^";

impl Grammar {
    /// Allows what `template` shows.
    pub(crate) fn learn(&mut self, template: &str) {
        let tokens: Vec<String> = template_tokens(template).iter().map(|t| symbol(t)).collect();
        for sentence in sentences(&tokens) {
            for pair in edged(sentence).windows(2) {
                self.pairs.insert((pair[0].clone(), pair[1].clone()));
            }
        }
    }

    /// How many neighbouring pairs of one sentence (lower-case tokens) no template shows.
    pub(crate) fn faults(&self, sentence: &[String]) -> usize {
        let symbols: Vec<String> = sentence.iter().map(|t| symbol(t)).collect();
        edged(&symbols).windows(2).filter(|pair| !self.pairs.contains(&(pair[0].clone(), pair[1].clone()))).count()
    }
}

/// Cuts tokens into sentences, each with its final `.`, `!` or `?`; the last may lack one.
pub(crate) fn sentences(tokens: &[String]) -> Vec<&[String]> {
    tokens.split_inclusive(|token| ends_sentence(token)).collect()
}

/// Whether a token closes a sentence.
pub(crate) fn ends_sentence(token: &str) -> bool {
    matches!(token, "." | "!" | "?")
}

/// The slot's class: `animal2` is an `animal`.
pub(crate) fn class(slot: &str) -> &str {
    slot.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// `season.next.weather` is the slot `season` and the facts `next`, `weather`, one after the other.
fn split(expression: &str) -> (&str, std::str::Split<'_, char>) {
    let (slot, facts) = expression.split_at(expression.find('.').unwrap_or(expression.len()));
    let mut facts = facts.split('.');
    facts.next();
    (slot, facts)
}

fn value(expression: &str, bound: &mut Bindings, draws: &mut Draws) -> &'static str {
    let (slot, _) = split(expression);
    if !bound.contains_key(slot) {
        let free: Vec<&'static str> = lexicon()
            .words(class(slot))
            .iter()
            .copied()
            .filter(|word| bound.values().all(|held| held != word))
            .collect();
        bound.insert(slot.to_string(), draws.pick(&free).copied().expect("a class has more words than a text slots"));
    }
    lookup(expression, bound).unwrap_or_else(|| panic!("`{}` has no fact for `{expression}`", bound[slot]))
}

fn alternatives(phrases: Phrases, name: &str) -> &'static [&'static str] {
    let found = phrases.iter().find(|(candidate, _)| *candidate == name);
    found.unwrap_or_else(|| panic!("no phrase `{name}`")).1
}

/// Phrases are whole sentences and are learned on their own.
fn without_phrases(template: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        let end = start + rest[start..].find('>').expect("templates are constants and a test reads each");
        rest = &rest[end + 1..];
    }
    text + rest
}

/// A token as the grammar sees it: its root class in braces, or itself.
fn symbol(token: &str) -> String {
    let root = match token.strip_prefix('{').map(split) {
        Some((slot, facts)) => {
            let class = lexicon().root_of_class(class(slot));
            Some(facts.fold(class, |class, attribute| lexicon().range(class, attribute)))
        }
        None => lexicon().root(token),
    };
    root.map_or_else(|| token.to_string(), |root| format!("{{{root}}}"))
}

fn edged(sentence: &[String]) -> Vec<String> {
    let edge = || std::iter::once(EDGE.to_string());
    edge().chain(sentence.iter().cloned()).chain(edge()).collect()
}
