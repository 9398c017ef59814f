//! The tokenizer that a GGUF file carries in its metadata, taken as plain values.

use crate::{
    error::Error,
    tokenizer::{Parts, Settings, Tokenizer, byte_level, gpt4_words, split},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The `tokenizer.*` metadata of a GGUF file; each field says its key. The caller reads the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// The file, for messages.
    pub path: std::path::PathBuf,
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: how words are split before BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; needed by `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, as `left right`; needed by `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn; one more id to stop at.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: ends a message that calls a tool; one more id to stop at.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; by default true for `llama` and for the `pre` names of Llama 3.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; by default true for `llama`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

const FOLDER: &str = "use the model's Hugging Face folder instead";

/// How tokens are spelled that end a turn or a text, whichever model they belong to, as in llama.cpp: older
/// converters name the end of the text alone, and chat templates end turns with another token.
///
/// llama.cpp (00ad355) has more spellings, of families that are not read here and of code that is filled in.
const ENDS: [&str; 13] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

impl GgufTokenizer {
    /// The ids that end a completion: those that the metadata names, and the tokens that are spelled like the end
    /// of a turn or of a text, of whatever type, because converters have written them as ordinary ones.
    ///
    /// llama.cpp does the same, but for `</s>`: only a control token of that spelling ends a text here, because
    /// Gemma's vocabulary has it for HTML, and transformers goes on after it.
    pub fn stops(&self) -> BTreeSet<u32> {
        let ends = |&(id, token): &(u32, &String)| {
            ENDS.contains(&token.as_str()) && (token != "</s>" || self.kind(id) == CONTROL)
        };
        let spelled = (0..).zip(&self.tokens).filter(ends).map(|(id, _)| id);
        [self.eos, self.eot, self.eom].into_iter().flatten().chain(spelled).collect()
    }

    /// The tokens that people's words must not become: control tokens, and whatever ends a text, because a word
    /// that ends a text would cut it. llama.cpp makes control tokens of the latter too.
    fn special(&self) -> BTreeSet<u32> {
        let control = |id: &u32| self.kind(*id) == CONTROL || (self.kind(*id) == UNKNOWN && self.model == "llama");
        (0..self.tokens.len() as u32).filter(control).chain(self.stops()).collect()
    }

    /// What kind of token it is, 1 where nothing is said of it.
    fn kind(&self, id: u32) -> i32 {
        self.token_types.get(id as usize).copied().unwrap_or(1)
    }
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata describes.
    ///
    /// `gpt2` takes its merges as they stand. `llama` has scores instead: every way to put a token
    /// together from two others becomes a merge, ordered by the token's score, as the conversion in
    /// transformers does.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] that names the key: an unknown model or `pre`, lists of different
    /// lengths, a broken merge, an id beyond the vocabulary, or no EOS.
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Tokenizer, Error> {
        check_lengths(gguf)?;
        let name = |key: &str, id: Option<u32>| match id.map(|id| (id, gguf.tokens.get(id as usize))) {
            None => Ok(None),
            Some((_, Some(token))) => Ok(Some(token.clone())),
            Some((id, None)) => {
                let problem =
                    format!("`{key}` is {id}, beyond the {} tokens; convert the model again", gguf.tokens.len());
                Err(Error::tokenizer(gguf.path.display(), problem))
            }
        };
        for (key, id) in [("eot_token_id", gguf.eot), ("eom_token_id", gguf.eom)] {
            name(key, id)?;
        }
        let sentencepiece = gguf.model == "llama";
        let llama3 = gguf.pre.as_deref().and_then(Words::of) == Some(Words::Llama3);
        let unknown = name("unknown_token_id", gguf.unknown)?;
        let settings = Settings {
            bos: name("bos_token_id", gguf.bos)?,
            eos: name("eos_token_id", gguf.eos)?,
            pad: name("padding_token_id", gguf.padding)?,
            declared: unknown.iter().map(|token| ("unk_token", token.clone())).collect(),
            prepend_bos: Some(gguf.add_bos.unwrap_or(sentencepiece || llama3)),
            stops: gguf.stops().into_iter().collect(),
            chat_template: gguf.chat_template.clone(),
            date: None,
        };
        let parts = match gguf.model.as_str() {
            "gpt2" => byte_level_parts(gguf)?,
            "llama" => sentencepiece_parts(gguf, unknown),
            other => {
                let problem = format!(
                    "`tokenizer.ggml.model` is `{other}`; `gpt2` and `llama` can be read; use the model's folder instead"
                );
                return Err(Error::tokenizer(gguf.path.display(), problem));
            }
        };
        if gguf.eos.is_none() && !gguf.tokens.iter().any(|token| token == "<|endoftext|>") {
            let problem = format!("`tokenizer.ggml.eos_token_id` is missing; {FOLDER}");
            return Err(Error::tokenizer(gguf.path.display(), problem));
        }
        let parts = Parts { vocab: vocabulary(gguf), added: added(gguf), ..parts };
        let place = gguf.path.display().to_string();
        Tokenizer::new(parts.build(&place)?, settings, &place)
    }
}

fn check_lengths(gguf: &GgufTokenizer) -> Result<(), Error> {
    let tokens = gguf.tokens.len();
    let needed = [("scores", gguf.scores.len(), gguf.model == "llama"), ("token_type", gguf.token_types.len(), false)];
    for (key, length, required) in needed {
        if length != tokens && (required || length > 0) {
            let problem =
                format!("`tokenizer.ggml.{key}` has {length} entries for {tokens} tokens; convert the model again");
            return Err(Error::tokenizer(gguf.path.display(), problem));
        }
    }
    Ok(())
}

/// Ids by spelling. Where two ids have the same spelling, the lower one is kept, because text can be
/// encoded to one of them only.
fn vocabulary(gguf: &GgufTokenizer) -> BTreeMap<String, u32> {
    let mut vocab = BTreeMap::new();
    for (id, token) in (0..).zip(&gguf.tokens) {
        vocab.entry(token.clone()).or_insert(id);
    }
    vocab
}

/// The tokens that are found in text before it is split into words. User-defined ones are found in people's
/// words too, unless they are special.
fn added(gguf: &GgufTokenizer) -> Vec<(u32, String, bool)> {
    let special = gguf.special();
    let added = vocabulary(gguf).into_iter().map(|(token, id)| (id, token, special.contains(&id)));
    added.filter(|&(id, _, special)| special || gguf.kind(id) == USER_DEFINED).collect()
}

fn byte_level_parts(gguf: &GgufTokenizer) -> Result<Parts, Error> {
    let pre = gguf.pre.as_deref().unwrap_or("default");
    let Some(words) = Words::of(pre) else {
        let known = WORDS.map(|(_, names)| names.replace(' ', ", ")).join(", ");
        let problem = format!("`tokenizer.ggml.pre` is `{pre}`, which is not among {known}; {FOLDER}");
        return Err(Error::tokenizer(gguf.path.display(), problem));
    };
    let split = |(i, merge): (usize, &String)| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => {
            let problem = format!("`tokenizer.ggml.merges[{i}]` is `{merge}`, no two tokens; convert the model again");
            Err(Error::tokenizer(gguf.path.display(), problem))
        }
    };
    let merges = gguf.merges.iter().enumerate().map(split).collect::<Result<_, _>>()?;
    let ignore_merges = words == Words::Llama3;
    let (normalizer, pre_tokenizer) = words.splitter();
    Ok(Parts { merges, ignore_merges, ..Parts::byte_level(normalizer, pre_tokenizer) })
}

/// How text is split into words before BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// What llama.cpp takes where a converter knew no better: four patterns, one after the other.
    Default,
    /// GPT-2's pattern.
    Gpt2,
    /// GPT-2's pattern, every digit a word.
    Gpt2Digits,
    /// GPT-4's pattern, with up to three digits in a word.
    Gpt4,
    /// The same, and a word that is a token is never put together from others; a sequence begins with BOS.
    Llama3,
    /// GPT-4's pattern, every digit a word.
    Gpt4Digits,
    /// The same, after Unicode's composition.
    Qwen2,
}

/// The names of `tokenizer.ggml.pre` by what they mean. llama.cpp has one pattern for all names of a line
/// (`llama_vocab_pre_type` in its `src/llama-vocab.cpp` at 00ad355). Its names of encoders are left out, and so is
/// `pixtral`: its words are not those of Llama 3, as which llama.cpp takes them.
const WORDS: [(Words, &str); 7] = [
    (Words::Default, "default"),
    (Words::Gpt2, "gpt-2 gpt2 olmo mpt phi-2 gigachat a.x-4.0 mellum exaone4 jais trillion granite-docling"),
    (Words::Gpt2Digits, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (Words::Gpt4, "dbrx smaug-bpe glm4 chatglm-bpe"),
    (Words::Llama3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 midm-2.0 lfm2"),
    (Words::Gpt4Digits, "stablelm2 hunyuan solar-open grok-2"),
    (Words::Qwen2, "qwen2 deepseek-r1-qwen kormo megrez"),
];

impl Words {
    /// What a `pre` name means.
    fn of(pre: &str) -> Option<Words> {
        WORDS.into_iter().find(|(_, names)| names.split(' ').any(|name| name == pre)).map(|(words, _)| words)
    }

    /// Normalizer and pre-tokenizer.
    fn splitter(self) -> (Value, Value) {
        let digits = json!({ "type": "Digits", "individual_digits": true });
        match self {
            Words::Default => (json!(null), sequence(DEFAULT.map(split).into_iter().chain([byte_level(false)]))),
            Words::Gpt2 => (json!(null), byte_level(true)),
            Words::Gpt2Digits => (json!(null), sequence([digits, byte_level(true)])),
            Words::Gpt4 | Words::Llama3 => (json!(null), sequence([gpt4_words("{1,3}"), byte_level(false)])),
            Words::Gpt4Digits => (json!(null), sequence([gpt4_words(""), byte_level(false)])),
            Words::Qwen2 => (json!({ "type": "NFC" }), sequence([gpt4_words(""), byte_level(false)])),
        }
    }
}

fn sequence(parts: impl IntoIterator<Item = Value>) -> Value {
    json!({ "type": "Sequence", "pretokenizers": Vec::from_iter(parts) })
}

/// The patterns of [`Words::Default`]: runs of punctuation, GPT-2's words, numbers, three digits.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

fn sentencepiece_parts(gguf: &GgufTokenizer, unknown: Option<String>) -> Parts {
    let prefix = gguf.add_space_prefix.unwrap_or(true);
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    let prepend = json!({ "type": "Prepend", "prepend": "\u{2581}" });
    let normalizers = if prefix { vec![prepend, spaces] } else { vec![spaces] };
    let back = json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " });
    let mut decoders = vec![back, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    decoders.extend(prefix.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 })));
    Parts {
        merges: merges_by_score(gguf),
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: json!(null),
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        unknown,
        byte_fallback: true,
        ..Parts::byte_level(json!(null), json!(null))
    }
}

/// Every split of an ordinary token into two tokens, best score first.
fn merges_by_score(gguf: &GgufTokenizer) -> Vec<(String, String)> {
    let (vocab, special) = (vocabulary(gguf), gguf.special());
    let normal = |id: &usize| gguf.kind(*id as u32) == 1 && !special.contains(&(*id as u32));
    let mut merges = Vec::new();
    for id in (0..gguf.tokens.len()).filter(normal) {
        let token = gguf.tokens[id].as_str();
        let mut splits: Vec<(u32, u32, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*vocab.get(left)?, *vocab.get(right)?, left, right))
            })
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, left, right)| (gguf.scores[id], left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2))));
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

    fn found(words: Words, text: &str) -> Vec<String> {
        let splitter: PreTokenizerWrapper = serde_json::from_value(words.splitter().1).unwrap();
        let mut cut = PreTokenizedString::from(text);
        splitter.pre_tokenize(&mut cut).unwrap();
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    /// By hand, from the patterns of `llm_tokenizer_bpe` in llama.cpp.
    #[test]
    fn every_name_splits_words_as_llama_cpp_does() {
        let text = "He's 1234 +5,\n\n  ok";
        let wanted = |words: Words| match words {
            Words::Default => "He|'|s| |123|4| |+|5|,|\n\n | ok",
            Words::Gpt2 => "He|'s| 1234| +|5|,|\n\n | ok",
            Words::Gpt2Digits => "He|'s| |1|2|3|4| +|5|,|\n\n | ok",
            Words::Gpt4 | Words::Llama3 => "He|'s| |123|4| +|5|,\n\n| | ok",
            Words::Gpt4Digits | Words::Qwen2 => "He|'s| |1|2|3|4| +|5|,\n\n| | ok",
        };
        for (words, names) in WORDS {
            let differs = u8::from(found(words, text).join("|") != wanted(words));
            for name in names.split(' ') {
                assert_eq!(Words::of(name), Some(words));
                let case = format!("{} {name}", format!("{words:?}").to_lowercase());
                instruct_claims::holds("text/gguf-words", &case, differs.into(), 0.0);
            }
        }
        assert_eq!(
            found(Words::Default, "a  $b<c>``12345678x. y"),
            ["a", "  ", "$", "b", "<", "c", ">", "``", "123", "456", "78", "x", ".", " y"]
        );
    }
}
