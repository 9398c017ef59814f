//! Takes a `tokenizer.json` apart and checks the parts before the `tokenizers` crate gets them: some
//! descriptions make that crate build an encoder that panics, loops, or differs from call to call. It
//! would also hold a large file several times over.

use crate::json;
use serde::{
    Deserialize,
    de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use std::fmt;
use tokenizers::{AddedToken, Tokenizer, models::bpe};

/// Entries of a vocabulary: twice those of Gemma's.
const ENTRIES: usize = 1 << 19;
/// Merges of a vocabulary: twice those of Gemma's.
const MERGES: usize = 1 << 20;
/// Merges for each entry. SentencePiece's vocabularies have two, because a token is made in several ways.
const MERGES_PER_ENTRY: usize = 8;
/// Added tokens. Models of speech have 65,536.
pub(super) const ADDED: usize = 1 << 17;
/// JSON values of a normalizer, a pre-tokenizer, a post-processor or a decoder.
const PART: usize = 1 << 14;
/// Words whose ids each thread remembers: nearly all that people use, in some megabytes.
const WORDS: usize = 1 << 15;

/// The parts of a byte-pair tokenizer, merges excepted.
#[derive(Deserialize)]
pub(super) struct Outline {
    version: Option<String>,
    model: Option<Model>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Part,
    #[serde(default)]
    pre_tokenizer: Part,
    #[serde(default)]
    post_processor: Part,
    #[serde(default)]
    decoder: Part,
}

impl Outline {
    /// Reads all but the merges. `Err` says why the text cannot be used, and names the field. `Ok` says
    /// only that no known reason was found.
    pub(super) fn read(text: &str) -> Result<Outline, String> {
        let outline: Outline = serde_json::from_str(text).map_err(|why| why.to_string())?;
        if let Some(other) = outline.version.as_ref().filter(|version| *version != "1.0") {
            return Err(format!("`version` is `{other}`; `1.0` is read"));
        }
        let Some(model) = &outline.model else { return Err("`model` is missing".to_owned()) };
        model.check()?;
        outline.check_parts()?;
        Ok(outline)
    }

    /// The largest id that the vocabulary gives to a token that is not an added one.
    pub(super) fn largest(&self) -> Option<u32> {
        let added: std::collections::BTreeSet<&str> =
            self.added_tokens.iter().map(|added| added.token.content.as_str()).collect();
        let ids = self.model.as_ref()?.vocab.as_ref()?.ids()?.iter();
        ids.filter(|(token, _)| !added.contains(token.as_str())).map(|(_, &id)| id).max()
    }

    /// The tokenizer, with the merges of the text that the outline is of.
    pub(super) fn complete(self, text: String) -> Result<Tokenizer, String> {
        #[derive(Deserialize)]
        struct Whole {
            model: Merged,
        }
        #[derive(Deserialize)]
        struct Merged {
            merges: Vec<Merge>,
        }
        let whole: Whole = serde_json::from_str(&text).map_err(|why| why.to_string())?;
        drop(text);
        let pair = |Merge(pair)| pair;
        self.build(whole.model.merges.into_iter().filter_map(pair).collect())
    }

    /// A byte-pair tokenizer of these parts.
    ///
    /// Errors: a part that cannot be used, by its name; a merge that does not fit the vocabulary.
    pub(super) fn assemble(pieces: Pieces) -> Result<Tokenizer, String> {
        let Pieces { vocab, merges, model, added, normalizer, pre_tokenizer, decoder } = pieces;
        let outline = Outline {
            version: None,
            model: Some(Model { vocab: Some(Vocabulary::Ids(vocab)), ..model }),
            added_tokens: added.into_iter().map(|token| Added { _id: 0, token }).collect(),
            normalizer: Part(normalizer),
            pre_tokenizer: Part(pre_tokenizer),
            post_processor: Part::default(),
            decoder: Part(decoder),
        };
        outline.check_parts()?;
        outline.build(merges)
    }

    fn check_parts(&self) -> Result<(), String> {
        if self.added_tokens.len() > ADDED {
            return Err(format!("`added_tokens` are {}, more than the {ADDED} that are read", self.added_tokens.len()));
        }
        if let Some(i) = self.added_tokens.iter().position(|added| added.token.content.is_empty()) {
            return Err(format!("`added_tokens[{i}].content` is empty"));
        }
        let parts = [
            ("normalizer", &self.normalizer, NORMALIZERS),
            ("pre_tokenizer", &self.pre_tokenizer, PRE_TOKENIZERS),
            ("post_processor", &self.post_processor, POST_PROCESSORS),
            ("decoder", &self.decoder, DECODERS),
        ];
        parts
            .iter()
            .filter(|(_, Part(part), _)| !part.is_null())
            .try_for_each(|(field, Part(part), known)| component(field, part, known))
    }

    fn build(self, merges: bpe::Merges) -> Result<Tokenizer, String> {
        let model = self.model.unwrap_or_default().build(merges)?;
        let mut tokenizer = Tokenizer::new(model);
        let normalizer: Option<tokenizers::NormalizerWrapper> = self.normalizer.read("normalizer")?;
        tokenizer.with_normalizer(normalizer).map_err(|why| format!("`normalizer`: {why}"))?;
        tokenizer.with_pre_tokenizer(self.pre_tokenizer.read::<tokenizers::PreTokenizerWrapper>("pre_tokenizer")?);
        tokenizer.with_post_processor(self.post_processor.read::<tokenizers::PostProcessorWrapper>("post_processor")?);
        tokenizer.with_decoder(self.decoder.read::<tokenizers::DecoderWrapper>("decoder")?);
        let added = self.added_tokens.into_iter().map(|added| added.token);
        tokenizer.add_tokens(added).map_err(|why| format!("`added_tokens`: {why}"))?;
        Ok(tokenizer)
    }
}

/// What [`Outline::assemble`] makes a tokenizer of.
pub(super) struct Pieces {
    pub(super) vocab: bpe::Vocab,
    pub(super) merges: bpe::Merges,
    /// Its `vocab` is not read.
    pub(super) model: Model,
    pub(super) added: Vec<AddedToken>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
}

/// The kinds of each part that occur in the tokenizers of decoders.
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace", "ByteLevel"];
const PRE_TOKENIZERS: &[&str] =
    &["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"];
const POST_PROCESSORS: &[&str] = &["Sequence", "ByteLevel", "TemplateProcessing"];
const DECODERS: &[&str] = &["Sequence", "ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"];

/// A token as `added_tokens` lists it. Its id is that of the vocabulary, or the next free one: the
/// `tokenizers` crate does not read the one that is written down.
#[derive(Deserialize)]
struct Added {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// A normalizer or the like, of at most [`PART`] values.
#[derive(Default)]
struct Part(Value);

impl Part {
    fn read<T: DeserializeOwned>(self, field: &str) -> Result<Option<T>, String> {
        serde_json::from_value(self.0).map_err(|why| format!("`{field}`: {why}"))
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Part, D::Error> {
        json::value(deserializer, PART).map(Part)
    }
}

/// The model. Of its merges only the number is kept.
#[derive(Default, Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Option<Vocabulary>,
    merges: Option<Count>,
}

impl Model {
    /// One that spells what it lacks in bytes (`bytes`), else as `unknown`; `ignore_merges` takes a word
    /// that is an entry as it is.
    pub(super) fn of(unknown: Option<String>, bytes: bool, ignore_merges: bool) -> Model {
        Model {
            unk_token: unknown,
            fuse_unk: Some(bytes),
            byte_fallback: Some(bytes),
            ignore_merges: Some(ignore_merges),
            ..Model::default()
        }
    }

    fn check(&self) -> Result<(), String> {
        if let Some(other) = self.kind.as_ref().filter(|kind| *kind != "BPE") {
            return Err(format!("`model.type` is `{other}`; `BPE` is read"));
        }
        let (Some(vocab), Some(Count(merges))) = (&self.vocab, &self.merges) else {
            return Err("`model.vocab` or `model.merges` is missing".to_owned());
        };
        let Some(vocab) = vocab.ids() else { return Err("`model.vocab` is a list, not an object of ids".to_owned()) };
        let most = MERGES.min(MERGES_PER_ENTRY.saturating_mul(vocab.len()));
        if *merges > most {
            let entries = vocab.len();
            return Err(format!("`model.merges` are {merges}, more than the {most} that {entries} entries may have"));
        }
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
        Ok(())
    }

    fn build(self, merges: bpe::Merges) -> Result<bpe::BPE, String> {
        let Some(Vocabulary::Ids(vocab)) = self.vocab else { return Err("`model.vocab` is missing".to_owned()) };
        // The builder has room for the longest token, and panics when a merge makes a longer one.
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some(i) = merges.iter().position(|(left, right)| left.len() + right.len() > longest) {
            return Err(format!("`model.merges[{i}]` makes a token that the vocabulary lacks"));
        }
        let mut builder = bpe::BPE::builder()
            .cache_capacity(WORDS)
            .vocab_and_merges(vocab, merges)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        // Nothing but 0 and the empty text come here; they are kept as they are written.
        if let Some(dropout) = self.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(unknown) = self.unk_token {
            builder = builder.unk_token(unknown);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        builder.build().map_err(|why| format!("`model.merges`: {why}"))
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

/// Ids by token, or the list that another kind of model has in its place.
pub(super) enum Vocabulary {
    Ids(bpe::Vocab),
    List,
}

impl Vocabulary {
    pub(super) fn ids(&self) -> Option<&bpe::Vocab> {
        match self {
            Vocabulary::Ids(ids) => Some(ids),
            Vocabulary::List => None,
        }
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Vocabulary, A::Error> {
                let mut ids = bpe::Vocab::default();
                while let Some((token, id)) = access.next_entry::<String, u32>()? {
                    ids.insert(token, id);
                    if ids.len() > ENTRIES {
                        return Err(A::Error::custom(format!("more than the {ENTRIES} entries that are read")));
                    }
                }
                Ok(Vocabulary::Ids(ids))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vocabulary, A::Error> {
                while access.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocabulary::List)
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// How many elements a list has.
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while access.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// One merge, `"a b"` or `["a", "b"]`; `None` for the line that names a version.
struct Merge(Option<(String, String)>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    _ if text.starts_with("#version") => Ok(Merge(None)),
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(Some((left.to_owned(), right.to_owned())))),
                    _ => Err(E::custom("a merge of two tokens expected")),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Merge, A::Error> {
                let (left, right) = (access.next_element::<String>()?, access.next_element::<String>()?);
                match (left, right, access.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(Some((left, right)))),
                    _ => Err(A::Error::custom("a merge of two tokens expected")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}
