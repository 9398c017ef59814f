//! Folders of tokenizers that are written in Python: a vocabulary and its merges in two files, and a class
//! that knows how text is split into words.

use super::{
    Files, VOCABULARY_BYTES, byte_level, gpt4_words,
    outline::{Model, Outline, Pieces, Vocabulary},
};
use crate::{bytes::read_text, error::Error};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::bpe;

/// Reads the two files of a folder; returns the tokenizer and where it came from.
///
/// # Errors
/// [`Error::Tokenizer`] for a folder without them, a class that is not known, a file that is broken, or
/// merges that do not fit; [`Error::Vocabulary`] for more entries than the model has embedding rows.
pub(super) fn read(folder: &Path, files: &Files) -> Result<(tokenizers::Tokenizer, String), Error> {
    let pairs = [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")];
    let paths = pairs.map(|(vocab, merges)| (folder.join(vocab), folder.join(merges)));
    let Some((vocab, merges)) = paths.iter().find(|(vocab, merges)| vocab.is_file() && merges.is_file()) else {
        let problem = "holds neither tokenizer.json nor vocab.json with merges.txt; name a model folder";
        return Err(Error::tokenizer(folder.display(), problem));
    };
    let class = class(files).map_err(|problem| Error::tokenizer(folder.display(), problem))?;
    let place = vocab.display().to_string();
    let ids = entries(vocab)?;
    files.check_largest(ids.values().copied().max(), &place)?;
    let prefix = files.config["add_prefix_space"].as_bool().unwrap_or(false);
    let (normalizer, pre_tokenizer) = class.words(prefix);
    let pieces = Pieces {
        vocab: ids,
        merges: merge_lines(merges)?,
        model: Model::default(),
        added: Vec::new(),
        normalizer,
        pre_tokenizer,
        decoder: byte_level(true),
    };
    let mut inner = Outline::assemble(pieces)
        .map_err(|e| Error::tokenizer(&place, format!("vocabulary and merges do not fit ({e}); fetch them again")))?;
    files.add_tokens(&mut inner, &place, class.specials())?;
    Ok((inner, place))
}

/// How a class of transformers splits text before the merges.
#[derive(Clone, Copy)]
enum Class {
    /// GPT-2's words.
    Gpt2,
    /// The same, of text in composed form.
    GptNeoX,
    /// Words of GPT-4's kind with single digits, of text in composed form.
    Qwen2,
}

/// The class that a file names, else that of the model's type, else GPT-2's, whose release names none.
fn class(files: &Files) -> Result<Class, String> {
    let known = "GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer and Qwen2Tokenizer are read";
    let named = [&files.config, &files.model].into_iter().find_map(|file| file["tokenizer_class"].as_str());
    if let Some(name) = named {
        return match name.trim_end_matches("Fast") {
            "GPT2Tokenizer" | "CodeGenTokenizer" => Ok(Class::Gpt2),
            "GPTNeoXTokenizer" => Ok(Class::GptNeoX),
            "Qwen2Tokenizer" => Ok(Class::Qwen2),
            _ => Err(format!(
                "`tokenizer_class` is `{name}`, whose words are not known; without tokenizer.json {known}; save the \
                 tokenizer as tokenizer.json"
            )),
        };
    }
    match files.model["model_type"].as_str() {
        None | Some("gpt2" | "phi") => Ok(Class::Gpt2),
        Some("gpt_neox") => Ok(Class::GptNeoX),
        Some("qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe") => Ok(Class::Qwen2),
        Some(other) => Err(format!(
            "no `tokenizer_class` is named, and models of type `{other}` have no words of their own; without \
             tokenizer.json {known}; add tokenizer_config.json with one of them"
        )),
    }
}

impl Class {
    /// Normalizer and pre-tokenizer; `prefix` puts a space before a text.
    fn words(self, prefix: bool) -> (Value, Value) {
        let bytes = |split: bool| {
            let mut bytes = byte_level(split);
            bytes["add_prefix_space"] = json!(prefix);
            bytes
        };
        let composed = json!({ "type": "NFC" });
        match self {
            Class::Gpt2 => (Value::Null, bytes(true)),
            Class::GptNeoX => (composed, bytes(true)),
            Class::Qwen2 => (composed, json!({ "type": "Sequence", "pretokenizers": [gpt4_words(""), bytes(false)] })),
        }
    }

    /// The special tokens that transformers gives the class where the files name none.
    fn specials(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Class::Gpt2 => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Class::GptNeoX => {
                &[("bos_token", END), ("eos_token", END), ("unk_token", END), ("pad_token", "<|padding|>")]
            }
            Class::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
        }
    }
}

/// The ids of a vocabulary.
fn entries(path: &Path) -> Result<bpe::Vocab, Error> {
    let text = read_text(path, VOCABULARY_BYTES)?;
    let unusable =
        |why: &str| Error::tokenizer(path.display(), format!("no object of ids ({why}); fetch the file again"));
    match serde_json::from_str(&text).map_err(|why| unusable(&why.to_string()))? {
        Vocabulary::Ids(ids) => Ok(ids),
        Vocabulary::List => Err(unusable("a list")),
    }
}

/// One merge a line, after a line with the version.
fn merge_lines(path: &Path) -> Result<bpe::Merges, Error> {
    let text = read_text(path, VOCABULARY_BYTES)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let split = |(number, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
        _ => {
            let place = format!("{}:{}", path.display(), number + 1);
            Err(Error::tokenizer(place, "no merge of two tokens; fetch the file again"))
        }
    };
    lines.map(split).collect()
}
