//! Words to ids and back, with people's words kept apart from the model's marks.

mod outline;
mod rendered;

pub(crate) use rendered::Mark;

use crate::{bytes::read_text, error::Error};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tokenizers::{Model, ModelWrapper, PostProcessorWrapper, processors::template::TemplateProcessing};

/// A model's tokenizer: byte-pair encoding, special tokens, and where sequences begin and end.
///
/// Text comes in two kinds. People's words ([`Tokenizer::encode`]) never yield a special token,
/// whatever they spell; a rendered chat template ([`Tokenizer::encode_prompt`]) does. There is no
/// padding anywhere in the workspace, and a PAD that a tokenizer declares to be its EOS is ignored,
/// so PAD is never EOS.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The file or folder it came from, for messages.
    place: String,
    /// Spells special tokens out like any other text.
    words: tokenizers::Tokenizer,
    /// Recognises special tokens.
    marks: tokenizers::Tokenizer,
    /// As `words`, for text that goes on where another has ended; `None` where that is `words`.
    continuing: Option<tokenizers::Tokenizer>,
    /// Whether what is laid before a first word stands only at the beginning of a text.
    leads_once: bool,
    /// The special tokens, by id.
    marked: Vec<Mark>,
    vocab_size: usize,
    bos: Option<u32>,
    prepend_bos: bool,
    eos: u32,
    stops: BTreeSet<u32>,
    pad: Option<u32>,
    chat_template: Option<String>,
}

/// What stands beside the vocabulary: the files around `tokenizer.json`, or a GGUF's metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) pad: Option<String>,
    /// `None`: as the tokenizer's post-processor does.
    pub(crate) prepend_bos: Option<bool>,
    pub(crate) stops: Vec<u32>,
    pub(crate) chat_template: Option<String>,
}

impl Tokenizer {
    /// Loads a model folder: `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`
    /// (`encoder.json` and `vocab.bpe` in its first release); then, where they exist,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and
    /// `chat_template.jinja`.
    ///
    /// The vocabulary is byte-pair encoding, of at most 32 MiB and about two million JSON values; the
    /// files around it may have 4 MiB, a chat template 1 MiB.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`], [`Error::TooLarge`], [`Error::Problems`] and
    /// [`Error::Tokenizer`], naming the file and the key.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Tokenizer, Error> {
        let folder = folder.as_ref();
        let settings = settings(folder)?;
        let whole = folder.join("tokenizer.json");
        if whole.is_file() {
            let text = read_text(&whole, VOCABULARY_BYTES)?;
            let inner = load(&text).map_err(|problem| {
                let problem = format!("no tokenizer that can be read: {problem}; fetch it again, or use another model");
                Error::tokenizer(whole.display(), problem)
            })?;
            return Tokenizer::new(inner, settings, &folder.display().to_string());
        }
        let pairs = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];
        let present = |(vocab, merges): &(&str, &str)| folder.join(vocab).is_file() && folder.join(merges).is_file();
        match pairs.into_iter().find(present) {
            Some((vocab, merges)) => from_pair(&folder.join(vocab), &folder.join(merges), settings),
            None => {
                let problem = "holds neither tokenizer.json nor vocab.json with merges.txt; name a model folder";
                Err(Error::tokenizer(folder.display(), problem))
            }
        }
    }

    /// A byte-level tokenizer whose ids are the positions in `tokens`, then in `specials` (the first
    /// of which is EOS).
    pub(crate) fn from_byte_level(
        tokens: Vec<String>,
        merges: Vec<(String, String)>,
        specials: &[&str],
    ) -> Result<Tokenizer, Error> {
        let first = tokens.len() as u32;
        let added = (first..).zip(specials).map(|(id, name)| (id, (*name).to_owned(), true)).collect();
        let vocab = (0..).zip(tokens).map(|(id, token)| (token, id)).collect();
        let settings = Settings { eos: specials.first().map(|name| (*name).to_owned()), ..Settings::default() };
        let parts = Parts { vocab, merges, added, ..Parts::byte_level(json!(null), byte_level(true)) };
        Tokenizer::new(parts.build("byte-pair training")?, settings, "byte-pair training")
    }

    pub(crate) fn new(mut inner: tokenizers::Tokenizer, settings: Settings, place: &str) -> Result<Tokenizer, Error> {
        let broken = |e| Error::tokenizer(place, format!("{e}; fetch the tokenizer again"));
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && let Some(unknown) = bpe.unk_token.as_ref().filter(|unknown| bpe.token_to_id(unknown).is_none())
        {
            let problem = format!("`unk_token` is `{unknown}`, which the vocabulary lacks; correct it");
            return Err(Error::tokenizer(place, problem));
        }
        // A published file may carry somebody's batch settings, which would cut or pad in silence.
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        let id = |name: &Option<String>| name.as_deref().and_then(|name| inner.token_to_id(name));
        let bos = id(&settings.bos);
        let Some(eos) = id(&settings.eos).or_else(|| inner.token_to_id("<|endoftext|>")) else {
            let problem = match settings.eos {
                Some(name) => format!("`eos_token` is `{name}`, which the vocabulary lacks; correct it"),
                None => "no `eos_token` is named; add tokenizer_config.json with one".to_owned(),
            };
            return Err(Error::tokenizer(place, problem));
        };
        let pad = id(&settings.pad).filter(|&pad| pad != eos);
        let begins = inner.encode_fast("", true).map_err(broken)?.get_ids().first().copied();
        let declared = bos.is_some() && begins == bos;
        let prepend_bos = bos.is_some() && settings.prepend_bos.unwrap_or(declared);
        if prepend_bos != declared {
            let processor = bos_processor(&inner, bos.filter(|_| prepend_bos)).map_err(broken)?;
            inner.with_post_processor(processor);
        }
        let stops: BTreeSet<u32> = settings.stops.into_iter().chain([eos]).collect();
        let last = inner.get_vocab(true).into_values().max();
        let mut words = inner.clone();
        words.set_encode_special_tokens(true);
        let (continuing, leads_once) = rendered::continuing(&words).map_err(broken)?;
        Ok(Tokenizer {
            place: place.to_owned(),
            words,
            continuing,
            leads_once,
            marked: rendered::marks(&inner),
            marks: inner,
            vocab_size: last.map_or(0, |id| id as usize + 1),
            bos,
            prepend_bos,
            eos,
            stops,
            pad,
            chat_template: settings.chat_template,
        })
    }

    /// Ids of people's words. A text that spells a special token is spelled, not obeyed, and no
    /// BOS or EOS is added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ids(&self.words, text)
    }

    /// Ids of a rendered prompt, whose special tokens are recognised. If the model begins sequences with
    /// a BOS, the ids begin with exactly one, even when the template wrote it too.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_prompt(&self, rendered: &str) -> Result<Vec<u32>, Error> {
        let mut encoded = self.ids(&self.marks, rendered)?;
        if let Some(bos) = self.prepended().filter(|bos| encoded.first() != Some(bos)) {
            encoded.insert(0, bos);
        }
        Ok(encoded)
    }

    /// The words of `ids`, special tokens left out. Ids beyond the vocabulary (rows that pad an
    /// embedding) become no text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.marks.decode(ids, true).map_err(|e| self.broken("decode", e))
    }

    /// The words of `ids` with the special tokens spelled out, for people who debug.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn decode_with_specials(&self, ids: &[u32]) -> Result<String, Error> {
        self.marks.decode(ids, false).map_err(|e| self.broken("decode", e))
    }

    /// The first special token that `text` spells.
    pub fn special_in(&self, text: &str) -> Option<&str> {
        let spelled = self.marked.iter().filter_map(|mark| Some((text.find(mark.name.as_str())?, mark)));
        spelled.min_by_key(|&(at, _)| at).map(|(_, mark)| mark.name.as_str())
    }

    /// The largest id plus one: the rows that an embedding needs. A model may have more.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a model with fewer embedding rows than the tokenizer has entries.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] with both numbers.
    pub fn check_vocab(&self, rows: usize) -> Result<(), Error> {
        if self.vocab_size <= rows {
            Ok(())
        } else {
            Err(Error::Vocabulary { place: self.place.clone(), tokenizer: self.vocab_size, model: rows })
        }
    }

    /// The end-of-sequence token, which closes every completion.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The ids at which generation stops: EOS, and what `generation_config.json` or the GGUF adds.
    pub fn stops(&self) -> &BTreeSet<u32> {
        &self.stops
    }

    /// The beginning-of-sequence token; [`Tokenizer::encode_prompt`] knows whether it is used.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The BOS that stands before every text of people's words, if one does.
    pub(crate) fn prepended(&self) -> Option<u32> {
        self.bos.filter(|_| self.prepend_bos)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.marked.iter().any(|mark| mark.id == id)
    }

    /// The padding token that the tokenizer declares, if it is not its EOS. Nothing here pads.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.marks.token_to_id(token)
    }

    /// The token of an id as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.marks.id_to_token(id)
    }

    /// The chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The same tokenizer with another chat template, which [`Tokenizer::files`] writes.
    pub fn with_chat_template(self, chat_template: Option<String>) -> Tokenizer {
        Tokenizer { chat_template, ..self }
    }

    /// The same tokenizer that also stops at these ids.
    pub fn with_stops(mut self, stops: &BTreeSet<u32>) -> Tokenizer {
        self.stops.extend(stops);
        self
    }

    /// The same tokenizer with a padding token below `rows`, for programs that pad: never one that begins or
    /// ends a text, because they find the last token of a text by it.
    ///
    /// It is the tokenizer's own where that is sound; else a special token that the chat template does not
    /// write; else a new one, `<|pad|>`, where the model has a row without a token; else an ordinary token:
    /// the last that is half a character, or, where there is none, the last that people do not type as it is
    /// spelled.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the new token cannot be added.
    pub fn with_padding(mut self, rows: usize) -> Result<Tokenizer, Error> {
        let free = |id: &u32| (*id as usize) < rows && Some(*id) != self.bos && !self.stops.contains(id);
        let written = |name: &str| self.chat_template.as_ref().is_some_and(|template| template.contains(name));
        let unused = || self.marked.iter().filter(|mark| !written(&mark.name)).map(|mark| mark.id).find(free);
        if let Some(pad) = self.pad.filter(free).or_else(unused) {
            self.pad = Some(pad);
            return Ok(self);
        }
        if self.vocab_size < rows && self.id(PAD).is_none() {
            return self.with_special(PAD);
        }
        let ordinary = || (0..self.vocab_size as u32).rev().filter(free);
        let name = |id: &u32| self.token(*id).unwrap_or_default();
        let half =
            |id: &u32| name(id).chars().count() > 1 && self.decode(&[*id]).is_ok_and(|text| text.contains('\u{FFFD}'));
        let odd = |id: &u32| !name(id).is_ascii();
        self.pad = ordinary().find(half).or_else(|| ordinary().find(odd)).or_else(|| ordinary().next());
        Ok(self)
    }

    /// The same tokenizer with one special token more, which is its padding.
    fn with_special(&self, name: &str) -> Result<Tokenizer, Error> {
        let mut inner = self.marks.clone();
        let token = tokenizers::AddedToken::from(name, true);
        inner.add_special_tokens([token]).map_err(|e| self.broken("add a padding token", e))?;
        let named = |id: Option<u32>| id.and_then(|id| self.token(id));
        let settings = Settings {
            bos: named(self.bos),
            eos: named(Some(self.eos)),
            pad: Some(name.to_owned()),
            prepend_bos: Some(self.prepend_bos),
            stops: self.stops.iter().copied().collect(),
            chat_template: self.chat_template.clone(),
        };
        Tokenizer::new(inner, settings, &self.place)
    }

    /// `tokenizer.json` and `tokenizer_config.json` as transformers' `PreTrainedTokenizerFast` reads
    /// them, by name. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer cannot be written as JSON.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        let whole = self.marks.to_string(false).map_err(|e| Error::tokenizer("tokenizer.json", e))?;
        let name = |id: Option<u32>| id.and_then(|id| self.token(id));
        let mut config = BTreeMap::from([
            ("tokenizer_class", json!("PreTrainedTokenizerFast")),
            ("clean_up_tokenization_spaces", json!(false)),
            ("eos_token", json!(name(Some(self.eos)))),
        ]);
        let optional = [
            ("bos_token", name(self.bos)),
            ("pad_token", name(self.pad)),
            ("chat_template", self.chat_template.clone()),
        ];
        config.extend(optional.into_iter().filter_map(|(key, value)| Some((key, json!(value?)))));
        if self.bos.is_some() {
            config.insert("add_bos_token", json!(self.prepend_bos));
        }
        let config = serde_json::to_vec_pretty(&config).map_err(|e| Error::tokenizer("tokenizer_config.json", e))?;
        Ok(vec![("tokenizer.json", whole.into_bytes()), ("tokenizer_config.json", config)])
    }

    /// Writes [`Tokenizer::files`] into an existing folder.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), Error> {
        for (name, bytes) in self.files()? {
            let path = folder.as_ref().join(name);
            std::fs::write(&path, bytes).map_err(Error::io(&path))?;
        }
        Ok(())
    }

    /// The file or folder it came from, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    fn ids(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = tokenizer.encode_fast(text, false).map_err(|e| self.broken("encode", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn broken(&self, action: &str, why: tokenizers::Error) -> Error {
        Error::tokenizer(&self.place, format!("cannot {action}: {why}; fetch the tokenizer again"))
    }

    pub(crate) fn name_of(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.token(id)).unwrap_or_default()
    }
}

/// Bytes of a vocabulary with its merges: three times those of Qwen3.
const VOCABULARY_BYTES: usize = 32 << 20;
/// Bytes of a file beside it.
const SETTINGS_BYTES: usize = 4 << 20;
/// The name of a padding token that is added.
const PAD: &str = "<|pad|>";
/// Bytes of a chat template; those in use have ten thousand.
pub(crate) const TEMPLATE_BYTES: usize = 1 << 20;

/// A `tokenizer.json`, or what is wrong with it.
fn load(text: &str) -> Result<tokenizers::Tokenizer, String> {
    outline::check(text.as_bytes())?;
    tokenizers::Tokenizer::from_bytes(text).map_err(|e| e.to_string())
}

/// Puts the BOS before every sequence, for those who load our `tokenizer.json` elsewhere.
fn bos_processor(inner: &tokenizers::Tokenizer, bos: Option<u32>) -> tokenizers::Result<Option<PostProcessorWrapper>> {
    let Some((id, name)) = bos.and_then(|id| Some((id, inner.id_to_token(id)?))) else { return Ok(None) };
    let processor = TemplateProcessing::builder()
        .try_single(format!("{name}:0 $A:0"))?
        .try_pair(format!("{name}:0 $A:0 {name}:1 $B:1"))?
        .special_tokens(vec![(name, id)])
        .build()?;
    Ok(Some(processor.into()))
}

/// Reads what stands beside the vocabulary. All files are optional; one that is there must be JSON.
fn settings(folder: &Path) -> Result<Settings, Error> {
    let read = |name: &str| -> Result<Value, Error> {
        let path = folder.join(name);
        if !path.is_file() {
            return Ok(Value::Null);
        }
        let text = read_text(&path, SETTINGS_BYTES)?;
        let object: serde_json::Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::tokenizer(path.display(), format!("no JSON object ({e}); fetch the file again")))?;
        Ok(object.into())
    };
    let (config, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
    let generation = read("generation_config.json")?;
    let name = |key: &str| token_name(&config[key]).or_else(|| token_name(&map[key]));
    let jinja = folder.join("chat_template.jinja");
    let chat_template = if jinja.is_file() {
        Some(read_text(&jinja, TEMPLATE_BYTES)?)
    } else {
        named_template(&config["chat_template"])
    };
    Ok(Settings {
        bos: name("bos_token"),
        eos: name("eos_token"),
        pad: name("pad_token"),
        prepend_bos: config["add_bos_token"].as_bool(),
        stops: token_ids(&generation["eos_token_id"]),
        chat_template,
    })
}

/// A token as `"<s>"` or `{"content": "<s>", ...}`.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// One id or a list of them.
fn token_ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(one).collect(),
        id => one(id).into_iter().collect(),
    }
}

/// A template as text, or the one named `default` of a list (else its first).
fn named_template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default").or(list.first())?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// GPT-2's two files: a JSON object of ids, and one merge a line after a version line.
fn from_pair(vocab: &Path, merges: &Path, settings: Settings) -> Result<Tokenizer, Error> {
    let text = read_text(vocab, VOCABULARY_BYTES)?;
    let ids: BTreeMap<String, u32> = serde_json::from_str(&text)
        .map_err(|e| Error::tokenizer(vocab.display(), format!("no object of ids ({e}); fetch the file again")))?;
    let text = read_text(merges, VOCABULARY_BYTES)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let split = |(number, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => {
            let place = format!("{}:{}", merges.display(), number + 1);
            Err(Error::tokenizer(place, "no merge of two tokens; fetch the file again"))
        }
    };
    let merges = lines.map(split).collect::<Result<_, _>>()?;
    let end = ids.get("<|endoftext|>").map(|&id| (id, "<|endoftext|>".to_owned(), true));
    let parts = Parts {
        vocab: ids,
        merges,
        added: end.into_iter().collect(),
        ..Parts::byte_level(json!(null), byte_level(true))
    };
    let place = vocab.display().to_string();
    Tokenizer::new(parts.build(&place)?, settings, &place)
}

/// The stages of a byte-pair tokenizer, on the way to `tokenizer.json`.
pub(crate) struct Parts {
    pub(crate) vocab: BTreeMap<String, u32>,
    pub(crate) merges: Vec<(String, String)>,
    /// Id, name, and whether it is special.
    pub(crate) added: Vec<(u32, String, bool)>,
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) decoder: Value,
    pub(crate) unknown: Option<String>,
    pub(crate) byte_fallback: bool,
    pub(crate) ignore_merges: bool,
}

/// The pre-tokenizer and decoder that spell bytes as characters; `split` adds GPT-2's words.
pub(crate) fn byte_level(split: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split })
}

impl Parts {
    pub(crate) fn byte_level(normalizer: Value, pre_tokenizer: Value) -> Parts {
        Parts {
            vocab: BTreeMap::new(),
            merges: Vec::new(),
            added: Vec::new(),
            normalizer,
            pre_tokenizer,
            decoder: byte_level(true),
            unknown: None,
            byte_fallback: false,
            ignore_merges: false,
        }
    }

    /// Goes through `tokenizer.json`, so that what is used here is what is saved.
    pub(crate) fn build(mut self, place: &str) -> Result<tokenizers::Tokenizer, Error> {
        self.added.sort_unstable();
        let added = |(id, content, special): &(u32, String, bool)| {
            json!({
                "id": id, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        let added_tokens: Vec<Value> = self.added.iter().map(added).collect();
        self.vocab.extend(self.added.into_iter().map(|(id, content, _)| (content, id)));
        let whole = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": null,
            "decoder": self.decoder,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": self.unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": self.byte_fallback,
                "byte_fallback": self.byte_fallback,
                "ignore_merges": self.ignore_merges,
                "vocab": self.vocab,
                "merges": self.merges,
            },
        });
        load(&whole.to_string())
            .map_err(|e| Error::tokenizer(place, format!("vocabulary and merges do not fit ({e}); fetch them again")))
    }
}

#[cfg(test)]
mod tests;
