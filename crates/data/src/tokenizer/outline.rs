//! Checks what a `tokenizer.json` is made of before the `tokenizers` crate reads it: some descriptions
//! make that crate build an encoder that panics, loops, or differs from call to call.

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use std::fmt;

/// JSON values of one file, counted by their marks. A vocabulary of 150,000 with its merges has
/// 1.2 million.
const VALUES: usize = 1 << 21;

/// `Err` says why the description cannot be used, and names the field. `Ok` says only that no known reason
/// was found.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    let values = text.iter().filter(|byte| b",:[{".contains(byte)).count();
    if values > VALUES {
        return Err(format!("holds about {values} values, more than the {VALUES} that are read"));
    }
    let outline: Outline = serde_json::from_slice(text).map_err(|why| why.to_string())?;
    let Some(model) = &outline.model else { return Err("`model` is missing".to_owned()) };
    model.check()?;
    for (i, token) in outline.added_tokens.iter().enumerate() {
        if token.content.is_empty() {
            return Err(format!("`added_tokens[{i}].content` is empty"));
        }
    }
    let parts = [
        ("normalizer", &outline.normalizer, NORMALIZERS),
        ("pre_tokenizer", &outline.pre_tokenizer, PRE_TOKENIZERS),
        ("post_processor", &outline.post_processor, POST_PROCESSORS),
        ("decoder", &outline.decoder, DECODERS),
    ];
    parts
        .iter()
        .filter(|(_, part, _)| !part.is_null())
        .try_for_each(|(field, part, known)| component(field, part, known))
}

/// The kinds of each part that occur in the tokenizers of decoders.
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace", "ByteLevel"];
const PRE_TOKENIZERS: &[&str] =
    &["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"];
const POST_PROCESSORS: &[&str] = &["Sequence", "ByteLevel", "TemplateProcessing"];
const DECODERS: &[&str] = &["Sequence", "ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"];

#[derive(Deserialize)]
struct Outline {
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

/// The model. Of its vocabulary and merges only lengths are kept.
#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    vocab: Option<Vocabulary>,
    merges: Option<Merges>,
}

impl Model {
    fn check(&self) -> Result<(), String> {
        if let Some(other) = self.kind.as_ref().filter(|kind| *kind != "BPE") {
            return Err(format!("`model.type` is `{other}`; `BPE` is read"));
        }
        let (Some(vocab), Some(merges)) = (&self.vocab, &self.merges) else {
            return Err("`model.vocab` or `model.merges` is missing".to_owned());
        };
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err("`model.dropout` is set, and would encode a text differently each time".to_owned());
        }
        let affixes = [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ];
        for (field, affix) in affixes {
            if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
                return Err(format!("`model.{field}` is set, which no known decoder's is"));
            }
        }
        if merges.longest > vocab.longest {
            return Err(format!("`model.merges[{}]` makes a token that the vocabulary lacks", merges.at));
        }
        Ok(())
    }
}

/// Refuses kinds that are not `known`, and fields with which a known kind fails later.
fn component(field: &str, part: &Value, known: &[&str]) -> Result<(), String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    if !known.contains(&kind) {
        return Err(format!("`{field}.type` is `{kind}`; known are {}", known.join(", ")));
    }
    match kind {
        "Sequence" => {
            let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
            let list = lists.iter().find_map(|name| Some((name, part.get(name)?.as_array()?)));
            let Some((name, list)) = list else { return Err(format!("`{field}` lists nothing")) };
            list.iter().enumerate().try_for_each(|(i, part)| component(&format!("{field}.{name}[{i}]"), part, known))
        }
        "Replace" | "Split" => pattern(field, part, kind),
        "Prepend" if part.get("prepend").and_then(Value::as_str).is_none_or(str::is_empty) => {
            Err(format!("`{field}.prepend` is empty"))
        }
        "Strip" if part.get("stop").is_some_and(|stop| stop.as_u64() != Some(0)) => {
            Err(format!("`{field}.stop` is not 0, which no known decoder's is"))
        }
        "TemplateProcessing" => template(field, part),
        _ => Ok(()),
    }
}

/// An empty pattern matches everywhere and for ever.
fn pattern(field: &str, part: &Value, kind: &str) -> Result<(), String> {
    let pattern = part.get("pattern").unwrap_or(&Value::Null);
    match (pattern.get("String").and_then(Value::as_str), pattern.get("Regex").and_then(Value::as_str)) {
        (Some(text), None) if !text.is_empty() => Ok(()),
        (None, Some(regex)) if !regex.is_empty() && kind == "Split" => Ok(()),
        (None, Some(_)) if kind == "Replace" => {
            Err(format!("`{field}.pattern` is a regular expression; a text is read"))
        }
        _ => Err(format!("`{field}.pattern` is empty")),
    }
}

/// A template may name its own special tokens and, for one text, one sequence.
fn template(field: &str, part: &Value) -> Result<(), String> {
    for (side, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = part.get(side).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (i, piece) in pieces.iter().enumerate() {
            let special = piece.get("SpecialToken").and_then(|token| token.get("id")?.as_str());
            let sequence = piece.get("Sequence").and_then(|sequence| sequence.get("id")?.as_str());
            let known = match (special, sequence) {
                (Some(name), None) => part.get("special_tokens").is_some_and(|tokens| tokens.get(name).is_some()),
                (None, Some(name)) => sequences.contains(&name),
                _ => false,
            };
            if !known {
                return Err(format!("`{field}.{side}[{i}]` names what the template does not define"));
            }
        }
    }
    Ok(())
}

/// The longest token in bytes.
struct Vocabulary {
    longest: usize,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Lengths;
        impl<'de> Visitor<'de> for Lengths {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Vocabulary, A::Error> {
                let mut found = Vocabulary { longest: 0 };
                while let Some((token, _)) = access.next_entry::<String, u32>()? {
                    found.longest = found.longest.max(token.len());
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Lengths)
    }
}

/// The longest token that a merge makes, in bytes, and the merge.
struct Merges {
    longest: usize,
    at: usize,
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merges, D::Error> {
        struct Lengths;
        impl<'de> Visitor<'de> for Lengths {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Merges, A::Error> {
                let mut found = Merges { longest: 0, at: 0 };
                let mut at = 0;
                while let Some(Made(length)) = access.next_element()? {
                    if length > found.longest {
                        found = Merges { longest: length, at };
                    }
                    at += 1;
                }
                Ok(found)
            }
        }
        deserializer.deserialize_seq(Lengths)
    }
}

/// The length of what one merge makes: `"a b"` or `["a", "b"]`.
struct Made(usize);

impl<'de> Deserialize<'de> for Made {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Made, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Made;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Made, E> {
                Ok(Made(text.len().saturating_sub(1)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Made, A::Error> {
                let (left, right) = (access.next_element::<String>()?, access.next_element::<String>()?);
                match (left, right, access.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Made(left.len() + right.len())),
                    _ => Err(A::Error::custom("a merge of two tokens expected")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}
