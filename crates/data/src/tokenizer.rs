//! Words to ids and back, with people's words kept apart from the model's marks.

mod added;
mod outline;
mod pair;
mod rendered;

pub(crate) use rendered::Mark;

use crate::{
    bytes::read_text,
    date::{Date, DateError},
    error::Error,
};
use outline::{Outline, Pieces};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tokenizers::{AddedToken, Model, ModelWrapper, PostProcessorWrapper, processors::template::TemplateProcessing};

/// A model's tokenizer: byte-pair encoding, special tokens, and where sequences begin and end.
///
/// Text comes in two kinds. People's words ([`Tokenizer::encode`]) never yield a special token,
/// whatever they spell; a rendered chat template ([`Tokenizer::encode_prompt`]) does. There is no
/// padding anywhere in the workspace, and a PAD that a tokenizer declares to be its EOS is ignored,
/// so PAD is never EOS.
///
/// Fine-tunes add tokens (`[PAD]`) for which the model has no embedding row. Such a token is never
/// encoded: words spell it, and a template that writes it is refused.
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
    /// The tokens that people's words must not become: special ones, and those without a row.
    marked: Vec<Mark>,
    vocab_size: usize,
    /// Ids from here on have no embedding row, as far as the folder tells; none is encoded.
    rows: usize,
    bos: Option<u32>,
    prepend_bos: bool,
    eos: u32,
    stops: BTreeSet<u32>,
    pad: Option<u32>,
    declared: BTreeMap<&'static str, String>,
    chat_template: Option<String>,
    date: Option<Date>,
}

/// What stands beside the vocabulary: the files around `tokenizer.json`, or a GGUF's metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) pad: Option<String>,
    /// The tokens that [`SPECIALS`] name, by those names and as the files spell them.
    pub(crate) declared: BTreeMap<&'static str, String>,
    /// `None`: as the tokenizer's post-processor does.
    pub(crate) prepend_bos: Option<bool>,
    pub(crate) stops: Vec<u32>,
    pub(crate) chat_template: Option<String>,
    /// The day that the chat template is told.
    pub(crate) date: Option<Date>,
}

impl Tokenizer {
    /// Loads a model folder: `tokenizer.json`, or the `vocab.json` and `merges.txt` of a tokenizer written
    /// in Python (`encoder.json` and `vocab.bpe` in GPT-2's first release); then, where they exist,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `config.json`,
    /// `generation_config.json` and `chat_template.jinja`.
    ///
    /// The added tokens are those of all these files, as transformers 5 puts them together. The ids that
    /// stop are those of `generation_config.json`, else of `config.json`, and EOS. Without `tokenizer.json`
    /// the `tokenizer_class` says how text is split into words: `GPT2Tokenizer`, `CodeGenTokenizer`,
    /// `GPTNeoXTokenizer` or `Qwen2Tokenizer`.
    ///
    /// The vocabulary is byte-pair encoding, of at most 48 MiB, 524,288 entries and 1,048,576 merges (twice
    /// Gemma's); the files around it may have 4 MiB, a chat template 1 MiB.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`], [`Error::TooLarge`], [`Error::Problems`] and
    /// [`Error::Tokenizer`], naming the file and the key; [`Error::Vocabulary`] when `config.json` gives the
    /// model fewer embedding rows than the vocabulary has entries.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Tokenizer, Error> {
        let folder = folder.as_ref();
        let files = Files::read(folder)?;
        let whole = folder.join("tokenizer.json");
        let (inner, place) = if whole.is_file() {
            (from_whole(&whole, &files)?, folder.display().to_string())
        } else {
            pair::read(folder, &files)?
        };
        Tokenizer::new(inner, files.settings(folder)?, &place)?.within(files.rows())
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
        let id = |name: &Option<String>| name.as_deref().and_then(|name| inner.token_to_id(name));
        let bos = id(&settings.bos);
        let Some(eos) = inner.token_to_id(settings.eos.as_deref().unwrap_or("<|endoftext|>")) else {
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
        // A file may list a token that ends texts as an ordinary one; people's words must not end a text, and
        // what ends an answer is no part of it.
        let added = inner.get_added_tokens_decoder();
        let ordinary = stops.iter().filter_map(|id| added.get(id)).filter(|token| !token.special);
        let special: Vec<AddedToken> = ordinary.map(|token| token.clone().special(true)).collect();
        inner.add_tokens(special).map_err(broken)?;
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
            rows: usize::MAX,
            bos,
            prepend_bos,
            eos,
            stops,
            pad,
            declared: settings.declared,
            chat_template: settings.chat_template,
            date: settings.date,
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
    /// As for [`Tokenizer::encode`]; the text spells a token for which the model has no embedding row.
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

    /// The first special token, or token without an embedding row, that `text` spells.
    pub fn special_in(&self, text: &str) -> Option<&str> {
        let spelled = self.marked.iter().filter_map(|mark| Some((text.find(mark.name.as_str())?, mark)));
        spelled.min_by_key(|&(at, _)| at).map(|(_, mark)| mark.name.as_str())
    }

    /// The largest id plus one: the rows that an embedding needs for every token. A model may have more, or
    /// none for tokens that were added later.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a model whose embedding has no row for a token that may be encoded: one of the vocabulary,
    /// or EOS, or a BOS that begins sequences.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] with both numbers; [`Error::Tokenizer`] naming the token.
    pub fn check_vocab(&self, rows: usize) -> Result<(), Error> {
        if self.vocab_size.min(self.rows) > rows {
            return Err(Error::Vocabulary { place: self.place.clone(), tokenizer: self.vocab_size, model: rows });
        }
        let needed = [Some(self.eos), self.bos.filter(|_| self.prepend_bos)];
        match needed.into_iter().flatten().find(|&id| id as usize >= rows) {
            Some(id) => Err(self.without_row(id, rows)),
            None => Ok(()),
        }
    }

    /// The end-of-sequence token, which closes every completion.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The ids at which generation stops: EOS, and what `generation_config.json`, else `config.json`, or the
    /// GGUF adds.
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

    /// The padding token that the tokenizer declares, if it is not its EOS and has an embedding row. Nothing
    /// here pads.
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

    /// The day that the chat template was told when the model was trained, if the folder says so.
    pub fn date(&self) -> Option<Date> {
        self.date
    }

    /// The same tokenizer with another day for its chat template, which [`Tokenizer::files`] writes.
    pub(crate) fn with_date(self, date: Option<Date>) -> Tokenizer {
        Tokenizer { date, ..self }
    }

    /// The same tokenizer that also stops at these ids.
    pub(crate) fn with_stops(mut self, stops: &BTreeSet<u32>) -> Tokenizer {
        self.stops.extend(stops);
        self
    }

    /// The same tokenizer with a padding token below `rows`, for programs that pad: never one that begins or
    /// ends a text, because they find the last token of a text by it. `taken` are the ids that the model's own
    /// files say do so; a tokenizer may name no BOS where they do.
    ///
    /// It is the tokenizer's own where that is sound; else a special token that the chat template does not
    /// write; else a new one, `<|pad|>`, where the model has a row without a token; else an ordinary token:
    /// the last that is half a character, or, where there is none, the last that people do not type as it is
    /// spelled.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the new token cannot be added, or every token begins or ends texts.
    pub fn with_padding(mut self, rows: usize, taken: &BTreeSet<u32>) -> Result<Tokenizer, Error> {
        let taken: BTreeSet<u32> = self.stops.iter().chain(&self.bos).chain(taken).copied().collect();
        let free = |id: &u32| (*id as usize) < rows && !taken.contains(id);
        let written = |name: &str| self.chat_template.as_ref().is_some_and(|template| template.contains(name));
        let unused = || self.marked.iter().filter(|mark| !written(&mark.name)).map(|mark| mark.id).find(free);
        if let Some(pad) = self.pad.filter(free).or_else(unused) {
            self.pad = Some(pad);
            return Ok(self);
        }
        if self.vocab_size < rows && self.id(PAD).is_none() {
            let made = self.with_special(PAD)?;
            // In a vocabulary with holes a new token may get another id than the next.
            if made.pad.as_ref().is_some_and(free) {
                return Ok(made);
            }
        }
        let ordinary = || (0..self.vocab_size as u32).rev().filter(free);
        let name = |id: &u32| self.token(*id).unwrap_or_default();
        let half =
            |id: &u32| name(id).chars().count() > 1 && self.decode(&[*id]).is_ok_and(|text| text.contains('\u{FFFD}'));
        let odd = |id: &u32| !name(id).is_ascii();
        let pad = ordinary().find(half).or_else(|| ordinary().find(odd)).or_else(|| ordinary().next());
        match pad {
            Some(pad) => Ok(Tokenizer { pad: Some(pad), ..self }),
            None => {
                let problem =
                    format!("each of its tokens below {rows} begins or ends texts, and none is left to pad with");
                Err(Error::tokenizer(&self.place, format!("{problem}; use a model with more rows")))
            }
        }
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
            declared: self.declared.clone(),
            prepend_bos: Some(self.prepend_bos),
            stops: self.stops.iter().copied().collect(),
            chat_template: self.chat_template.clone(),
            date: self.date,
        };
        Tokenizer::new(inner, settings, &self.place)?.within(self.rows)
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
            (DATE, self.date.map(|date| date.to_string())),
        ];
        config.extend(optional.into_iter().filter_map(|(key, value)| Some((key, json!(value?)))));
        for (key, token) in self.declared.iter().filter(|(key, token)| **key != "pad_token" && self.id(token).is_some())
        {
            config.entry(key).or_insert_with(|| json!(token));
        }
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
        match encoding.get_ids().iter().find(|&&id| id as usize >= self.rows) {
            Some(&id) => Err(self.without_row(id, self.rows)),
            None => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// The same tokenizer for a model with so many embedding rows: words spell what lies beyond them.
    fn within(mut self, rows: usize) -> Result<Tokenizer, Error> {
        self.rows = rows;
        let added = self.marks.get_added_tokens_decoder();
        let beyond: BTreeMap<u32, AddedToken> = added.into_iter().filter(|(id, _)| *id as usize >= rows).collect();
        for words in std::iter::once(&mut self.words).chain(&mut self.continuing) {
            let spelled = beyond.values().map(|token| token.clone().special(true));
            let changed = words.add_tokens(spelled).map(drop);
            changed.map_err(|e| Error::tokenizer(&self.place, format!("cannot add tokens: {e}; fetch them again")))?;
        }
        self.marked.extend(beyond.into_iter().filter(|(_, token)| !token.special).map(Mark::from));
        self.pad = self.pad.filter(|&pad| (pad as usize) < rows);
        Ok(self)
    }

    fn without_row(&self, id: u32, rows: usize) -> Error {
        let name = self.name_of(Some(id));
        let next = "leave it out of the template, or use a model that was trained with it";
        let problem = format!("`{name}` is token {id}, and the model has {rows} embedding rows; {next}");
        Error::tokenizer(&self.place, problem)
    }

    fn broken(&self, action: &str, why: tokenizers::Error) -> Error {
        Error::tokenizer(&self.place, format!("cannot {action}: {why}; fetch the tokenizer again"))
    }

    /// The tokens that a chat template may name, as transformers passes them: `bos_token` and its like. One that
    /// the tokenizer lacks is left out, since templates ask whether it is defined.
    pub(crate) fn specials(&self) -> Vec<(String, String)> {
        let mut specials = self.declared.clone();
        let used = [("bos_token", self.bos), ("eos_token", Some(self.eos)), ("pad_token", self.pad)];
        specials.extend(used.into_iter().filter_map(|(name, id)| Some((name, self.token(id?)?))));
        specials.into_iter().map(|(name, token)| (name.to_owned(), token)).collect()
    }

    pub(crate) fn name_of(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.token(id)).unwrap_or_default()
    }
}

/// Bytes of a vocabulary with its merges; Gemma's has 34 million.
const VOCABULARY_BYTES: usize = 48 << 20;
/// Bytes of a file beside it.
const SETTINGS_BYTES: usize = 4 << 20;
/// The names of special tokens in transformers' files, in the order in which it adds them.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Our key of `tokenizer_config.json`: the day that the chat template is told. Transformers has none, and tells a
/// template its clock.
const DATE: &str = "chat_template_date";
/// The name of a padding token that is added.
const PAD: &str = "<|pad|>";
/// Bytes of a chat template; those in use have ten thousand.
pub(crate) const TEMPLATE_BYTES: usize = 1 << 20;

/// The tokenizer of a `tokenizer.json`, with the tokens that the files beside it add.
fn from_whole(path: &Path, files: &Files) -> Result<tokenizers::Tokenizer, Error> {
    let text = read_text(path, VOCABULARY_BYTES)?;
    let unusable = |problem| {
        let problem = format!("no tokenizer that can be read: {problem}; fetch it again, or use another model");
        Error::tokenizer(path.display(), problem)
    };
    let outline = Outline::read(&text).map_err(unusable)?;
    let place = path.parent().unwrap_or(path).display().to_string();
    // Before all of it is built, which takes several times the memory.
    files.check_largest(outline.largest(), &place)?;
    let mut inner = outline.complete(text).map_err(unusable)?;
    files.add_tokens(&mut inner, &place, &[])?;
    Ok(inner)
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

/// The JSON files that stand beside the vocabulary. All are optional; one that is there must be an object.
struct Files {
    /// `tokenizer_config.json`.
    config: Value,
    /// `special_tokens_map.json`.
    map: Value,
    /// `added_tokens.json`.
    added: Value,
    /// `config.json`, the model's.
    model: Value,
    /// `generation_config.json`.
    generation: Value,
}

impl Files {
    fn read(folder: &Path) -> Result<Files, Error> {
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
        Ok(Files {
            config: read("tokenizer_config.json")?,
            map: read("special_tokens_map.json")?,
            added: read("added_tokens.json")?,
            model: read("config.json")?,
            generation: read("generation_config.json")?,
        })
    }

    fn settings(&self, folder: &Path) -> Result<Settings, Error> {
        let name = |key: &str| self.named(key).and_then(token_name);
        let jinja = folder.join("chat_template.jinja");
        let chat_template = if jinja.is_file() {
            Some(read_text(&jinja, TEMPLATE_BYTES)?)
        } else {
            named_template(&self.config["chat_template"])
        };
        let date = match &self.config[DATE] {
            Value::Null => Ok(None),
            Value::String(day) => day.parse().map(Some).map_err(|problem: DateError| problem.to_string()),
            other => Err(format!("wants a day as text, like \"2024-07-26\", not {other}")),
        };
        let date = date.map_err(|problem| {
            let place = folder.join("tokenizer_config.json");
            Error::tokenizer(place.display(), format!("`{DATE}`: {problem}"))
        })?;
        Ok(Settings {
            bos: name("bos_token"),
            eos: name("eos_token"),
            pad: name("pad_token"),
            declared: SPECIALS.into_iter().filter_map(|key| Some((key, name(key)?))).collect(),
            prepend_bos: self.config["add_bos_token"].as_bool(),
            stops: self.stops(),
            chat_template,
            date,
        })
    }

    /// The ids at which transformers' `generate` stops: those of the first file that names any.
    fn stops(&self) -> Vec<u32> {
        let files = [&self.generation, &self.model, &self.model["text_config"]];
        let named = files.map(|file| token_ids(&file["eos_token_id"]));
        named.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
    }

    /// Embedding rows of the model; without a limit where `config.json` names none.
    fn rows(&self) -> usize {
        let rows = |file: &Value| file["vocab_size"].as_u64();
        let rows = rows(&self.model).or_else(|| rows(&self.model["text_config"]));
        rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(usize::MAX)
    }

    /// Refuses a vocabulary whose `largest` id has no embedding row.
    fn check_largest(&self, largest: Option<u32>, place: &str) -> Result<(), Error> {
        let (tokenizer, model) = (largest.map_or(0, |id| id as usize + 1), self.rows());
        if tokenizer <= model {
            return Ok(());
        }
        Err(Error::Vocabulary { place: place.to_owned(), tokenizer, model })
    }
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

/// The stages of a byte-pair tokenizer.
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

/// The word pattern of GPT-4's tokenizer. Llama 3 and Qwen2 share it, except for the number of digits in
/// a word, `{1,3}` or one.
pub(crate) fn gpt4_words(digits: &str) -> Value {
    let pattern = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        &format!(r"\p{{N}}{digits}"),
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|");
    split(&pattern)
}

/// A pre-tokenizer that makes a word of each match of a pattern, and of what stands between two.
pub(crate) fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
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

    pub(crate) fn build(mut self, place: &str) -> Result<tokenizers::Tokenizer, Error> {
        self.added.sort_unstable();
        let token =
            |(_, content, special): &(u32, String, bool)| AddedToken::from(content.clone(), *special).normalized(false);
        let added = self.added.iter().map(token).collect();
        self.vocab.extend(self.added.into_iter().map(|(id, content, _)| (content, id)));
        let pieces = Pieces {
            vocab: self.vocab.into_iter().collect(),
            merges: self.merges,
            model: outline::Model::of(self.unknown, self.byte_fallback, self.ignore_merges),
            added,
            normalizer: self.normalizer,
            pre_tokenizer: self.pre_tokenizer,
            decoder: self.decoder,
        };
        Outline::assemble(pieces)
            .map_err(|e| Error::tokenizer(place, format!("vocabulary and merges do not fit ({e}); fetch them again")))
    }
}

#[cfg(test)]
mod tests;
