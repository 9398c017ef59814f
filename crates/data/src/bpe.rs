//! Byte-level byte-pair training, the same bit for bit on every machine and with any number of
//! threads.

use crate::{error::Error, tokenizer::Tokenizer};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, pre_tokenizers::byte_level::ByteLevel,
};

/// Trains a byte-level BPE tokenizer of exactly `vocab_size` entries on `texts`: the 256 bytes, then
/// the merges, then `specials`, of which the first is the end-of-sequence token.
///
/// Words are split as GPT-2 splits them (Radford et al. 2019). The most frequent pair is merged first;
/// among equals, the one with the lowest ids. That order, and counting in sorted maps, makes the
/// result a function of the multiset of words alone; the trainer in `tokenizers` counts in hash maps
/// over threads.
///
/// # Errors
/// [`Error::TooLittleText`] when no pair is left that occurs twice before `vocab_size` is reached;
/// [`Error::Tokenizer`] when `vocab_size` does not even hold the bytes and `specials`, or when
/// `specials` is empty, repeats itself or holds an empty name.
pub fn train_bpe<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    specials: &[&str],
) -> Result<Tokenizer, Error> {
    let distinct: BTreeSet<&&str> = specials.iter().filter(|name| !name.is_empty()).collect();
    if specials.is_empty() || distinct.len() < specials.len() {
        return Err(Error::tokenizer("byte-pair training", "give distinct special tokens, end-of-sequence first"));
    }
    let smallest = 256 + specials.len();
    if vocab_size < smallest {
        let problem = format!("{vocab_size} entries do not hold 256 bytes and the special tokens; ask for {smallest}");
        return Err(Error::tokenizer("byte-pair training", problem));
    }
    let mut trainer = Trainer::new(count_words(texts)?);
    while trainer.tokens.len() + specials.len() < vocab_size {
        if !trainer.merge_best() {
            let reached = trainer.tokens.len() + specials.len();
            return Err(Error::TooLittleText { reached, wanted: vocab_size });
        }
    }
    Tokenizer::from_byte_level(trainer.tokens, trainer.merges, specials)
}

/// The character that stands for each byte in a byte-level vocabulary: printable Latin-1 for
/// itself, the rest from U+0100 on (GPT-2's `bytes_to_unicode`).
pub(crate) fn byte_chars() -> [char; 256] {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if printable(byte) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
    })
}

/// How often each word occurs, spelled in byte characters.
fn count_words<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<String, u64>, Error> {
    let splitter = ByteLevel::new(false, false, true);
    let mut counts = BTreeMap::new();
    for text in texts {
        let mut pieces = PreTokenizedString::from(text);
        splitter.pre_tokenize(&mut pieces).map_err(|e| Error::tokenizer("byte-pair training", e))?;
        for (word, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(word.to_owned(), 1);
                }
            }
        }
    }
    Ok(counts)
}

type Pair = (u32, u32);

/// The state of training: words as ids, and where each adjacent pair occurs.
struct Trainer {
    /// Spelling of each id.
    tokens: Vec<String>,
    ids: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    words: Vec<(Vec<u32>, u64)>,
    pairs: BTreeMap<Pair, Place>,
    /// Candidates, best first. An entry whose count is no longer the pair's is stale.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

#[derive(Default)]
struct Place {
    count: u64,
    words: BTreeSet<usize>,
}

impl Trainer {
    fn new(counts: BTreeMap<String, u64>) -> Trainer {
        let mut alphabet = byte_chars();
        alphabet.sort_unstable();
        let tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        let ids: BTreeMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let spell = |word: &str| word.chars().map(|c| ids[c.encode_utf8(&mut [0; 4]) as &str]).collect();
        let words = counts.iter().map(|(word, &count)| (spell(word), count)).collect();
        let mut trainer =
            Trainer { tokens, ids, merges: Vec::new(), words, pairs: BTreeMap::new(), queue: BinaryHeap::new() };
        let touched = (0..trainer.words.len()).flat_map(|word| trainer.add(word)).collect();
        trainer.enqueue(touched);
        trainer
    }

    /// Merges the most frequent pair; false when none occurs twice.
    fn merge_best(&mut self) -> bool {
        let Some(pair) = self.pop() else { return false };
        let (left, right) = (self.tokens[pair.0 as usize].clone(), self.tokens[pair.1 as usize].clone());
        let merged = self.id_of(format!("{left}{right}"));
        self.merges.push((left, right));
        let words = self.pairs.get(&pair).map(|place| place.words.clone()).unwrap_or_default();
        let mut touched = BTreeSet::new();
        for word in words {
            touched.append(&mut self.remove(word));
            let ids = &mut self.words[word].0;
            *ids = replace(ids, pair, merged);
            touched.append(&mut self.add(word));
        }
        self.enqueue(touched);
        true
    }

    fn pop(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.queue.pop() {
            if count >= 2 && self.pairs.get(&pair).is_some_and(|place| place.count == count) {
                return Some(pair);
            }
        }
        None
    }

    /// The id of a spelling. Two pairs may spell the same token; it has one id.
    fn id_of(&mut self, token: String) -> u32 {
        let next = self.tokens.len() as u32;
        *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            next
        })
    }

    /// Counts the pairs of a word and returns them.
    fn add(&mut self, word: usize) -> BTreeSet<Pair> {
        let (ids, count) = &self.words[word];
        let pairs = ids.windows(2).map(|pair| (pair[0], pair[1]));
        pairs
            .inspect(|&pair| {
                let place = self.pairs.entry(pair).or_default();
                place.count += count;
                place.words.insert(word);
            })
            .collect()
    }

    /// Takes the pairs of a word out of the counts and returns them.
    fn remove(&mut self, word: usize) -> BTreeSet<Pair> {
        let (ids, count) = &self.words[word];
        let pairs = ids.windows(2).map(|pair| (pair[0], pair[1]));
        pairs
            .inspect(|&pair| {
                let place = self.pairs.entry(pair).or_default();
                place.count -= count;
                place.words.remove(&word);
            })
            .collect()
    }

    fn enqueue(&mut self, touched: BTreeSet<Pair>) {
        for pair in touched {
            match self.pairs.get(&pair) {
                Some(place) if place.count > 0 => self.queue.push((place.count, Reverse(pair))),
                _ => {
                    self.pairs.remove(&pair);
                }
            }
        }
    }
}

/// `ids` with every occurrence of `pair`, left to right, replaced by `merged`.
fn replace(ids: &[u32], pair: Pair, merged: u32) -> Vec<u32> {
    let mut replaced = Vec::with_capacity(ids.len());
    let mut at = 0;
    while at < ids.len() {
        if ids[at..].starts_with(&[pair.0, pair.1]) {
            replaced.push(merged);
            at += 2;
        } else {
            replaced.push(ids[at]);
            at += 1;
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str =
        "the cat sat on the mat; the dog sat on the log. They don't chat, they nap at 10:45!\n\n  Naïve café.";

    /// Everything twice, because training stops at pairs that occur once.
    fn twice() -> String {
        TEXT.repeat(2)
    }

    /// The definition: count all pairs again after every merge.
    fn slow(text: &str, merges: usize) -> Vec<(String, String)> {
        let counts = count_words([text]).unwrap();
        let mut words: Vec<(Vec<String>, u64)> =
            counts.into_iter().map(|(word, n)| (word.chars().map(String::from).collect(), n)).collect();
        let mut alphabet = byte_chars().map(String::from).to_vec();
        alphabet.sort();
        let mut found = Vec::new();
        while alphabet.len() < 256 + merges {
            let mut pairs: BTreeMap<(usize, usize), u64> = BTreeMap::new();
            let id = |token: &String| alphabet.iter().position(|t| t == token).unwrap();
            for (word, n) in &words {
                word.windows(2).for_each(|pair| *pairs.entry((id(&pair[0]), id(&pair[1]))).or_default() += n);
            }
            let Some((&(left, right), _)) = pairs.iter().max_by_key(|&(&pair, &n)| (n, Reverse(pair))) else { break };
            let (left, right) = (alphabet[left].clone(), alphabet[right].clone());
            let merged = format!("{left}{right}");
            for (word, _) in &mut words {
                let mut at = 0;
                while at + 1 < word.len() {
                    if word[at] == left && word[at + 1] == right {
                        word[at] = merged.clone();
                        word.remove(at + 1);
                    }
                    at += 1;
                }
            }
            if !alphabet.contains(&merged) {
                alphabet.push(merged);
            }
            found.push((left, right));
        }
        found
    }

    #[test]
    fn training_agrees_with_counting_anew() {
        let mut trainer = Trainer::new(count_words([twice().as_str()]).unwrap());
        while trainer.tokens.len() < 256 + 25 && trainer.merge_best() {}
        assert_eq!(trainer.merges, slow(&twice(), 25));
    }

    #[test]
    fn the_same_words_give_the_same_bytes() {
        let bytes = |texts: &[&str]| train_bpe(texts.iter().copied(), 280, &["<|end|>"]).unwrap().files().unwrap();
        let text = twice();
        let once = bytes(&[&text, "a cat"]);
        assert_eq!(once, bytes(&[&text, "a cat"]));
        assert_eq!(once, bytes(&["a cat", &text]), "a matter of counts, not of order");
    }

    #[test]
    fn ids_are_bytes_then_merges_then_specials() {
        let tokenizer = train_bpe([twice().as_str()], 270, &["<|end|>", "<|sep|>"]).unwrap();
        assert_eq!(tokenizer.vocab_size(), 270);
        assert_eq!((tokenizer.id("!"), tokenizer.eos(), tokenizer.id("<|sep|>")), (Some(0), 268, Some(269)));
        assert_eq!(tokenizer.encode("a<|end|>").unwrap().iter().filter(|&&id| id >= 268).count(), 0);
        assert_eq!(tokenizer.encode_prompt("a<|end|>").unwrap().last(), Some(&268));
    }

    #[test]
    fn too_little_text_and_bad_specials_are_refused() {
        let refused = |size, specials: &[&str]| train_bpe(["ab ab"], size, specials).unwrap_err().to_string();
        assert!(
            refused(300, &["<e>"]).starts_with("byte-pair training stops at 258 of 300 entries"),
            "{}",
            refused(300, &["<e>"])
        );
        assert!(refused(256, &["<e>"]).contains("ask for 257"));
        assert!(refused(300, &[]).contains("end-of-sequence first"));
        assert!(refused(300, &["<e>", "<e>"]).contains("distinct"));
        assert!(refused(300, &["<e>", ""]).contains("distinct"));
    }

    proptest! {
        #[test]
        fn every_text_round_trips(text: String, seen in "[ab c]{0,60}") {
            let size = 257 + usize::from(seen.contains("abab"));
            let tokenizer = train_bpe([seen.as_str()], size, &["<|end|>"]).unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }

        #[test]
        fn fast_is_slow(text in "[abc ]{0,60}") {
            let mut trainer = Trainer::new(count_words([text.as_str()]).unwrap());
            let mut done = 0;
            while done < 6 && trainer.merge_best() {
                done += 1;
            }
            let found = slow(&text, 6);
            prop_assert_eq!(&trainer.merges[..], &found[..trainer.merges.len()]);
        }
    }
}
