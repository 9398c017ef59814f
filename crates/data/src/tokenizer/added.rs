//! Added tokens: one fact, which the files of a folder tell in pieces.
//!
//! The rules are those of transformers 5.23 (`PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__`), so that a prompt is split here as it was when the model was trained.

use super::{Files, SPECIALS, outline::ADDED, token_name};
use crate::error::Error;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::AddedToken;

impl Files {
    /// Adds the tokens that the files beside the vocabulary name, each as the next free id unless the
    /// vocabulary has it. What `inner` has, it keeps, but for the flags that `tokenizer_config.json` gives.
    /// `defaults` are the special tokens of the tokenizer's class, as name and token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a token that is malformed, or that a file gives another id.
    pub(super) fn add_tokens(
        &self,
        inner: &mut tokenizers::Tokenizer,
        place: &str,
        defaults: &[(&str, &str)],
    ) -> Result<(), Error> {
        let has = |inner: &tokenizers::Tokenizer, token: &str| inner.token_to_id(token).is_some();
        let add = |inner: &mut tokenizers::Tokenizer, tokens: Vec<AddedToken>| {
            if tokens.len() > ADDED {
                let problem = format!("{} added tokens, more than the {ADDED} that are read", tokens.len());
                return Err(Error::tokenizer(place, format!("{problem}; fetch the tokenizer again")));
            }
            let added = inner.add_tokens(tokens).map(drop);
            added.map_err(|e| Error::tokenizer(place, format!("added tokens: {e}; fetch the tokenizer again")))
        };
        let (named, extra) = (self.named_tokens(defaults), self.extra_tokens());
        let mut listed = self.listed(inner, place, &extra)?;
        let names: BTreeSet<&String> = named.iter().map(|token| &token.content).collect();
        for token in listed.values_mut() {
            token.special |= names.contains(&token.content);
        }
        let new = listed.iter().filter(|(_, token)| !has(inner, &token.content));
        let new: Vec<(u32, String)> = new.map(|(&id, token)| (id, token.content.clone())).collect();
        add(inner, listed.into_values().collect())?;
        check_ids(inner, place, &new)?;
        let added = contents(inner);
        // A vocabulary without its EOS is refused, in better words, by whoever asks for the EOS.
        let eos = self.name("eos_token", defaults).map(|token| token.content);
        let wanted = |token: &AddedToken| {
            !added.contains(&token.content) && (eos.as_ref() != Some(&token.content) || has(inner, &token.content))
        };
        let missing = named.into_iter().chain(extra).filter(wanted).collect();
        add(inner, missing)
    }

    /// What a file names `key`. `special_tokens_map.json` is older than `added_tokens_decoder`, and speaks
    /// first where there is none.
    pub(super) fn named(&self, key: &str) -> Option<&Value> {
        let files = if self.has_decoder() { [&self.config, &self.map] } else { [&self.map, &self.config] };
        files.into_iter().map(|file| &file[key]).find(|value| token_name(value).is_some())
    }

    fn has_decoder(&self) -> bool {
        self.config["added_tokens_decoder"].is_object()
    }

    /// The tokens that files list, by the id that they give them.
    fn listed(
        &self,
        inner: &tokenizers::Tokenizer,
        place: &str,
        extra: &[AddedToken],
    ) -> Result<BTreeMap<u32, AddedToken>, Error> {
        let malformed = |file: &str, key: &str| {
            Error::tokenizer(place, format!("{file}: `{key}` is no token with an id; correct it"))
        };
        if let Some(decoder) = self.config["added_tokens_decoder"].as_object() {
            let entry = |(id, token): (&String, &Value)| {
                let entry = Option::zip(id.parse().ok(), token_of(token, false));
                entry.ok_or_else(|| malformed("`added_tokens_decoder` of tokenizer_config.json", id))
            };
            return decoder.iter().map(entry).collect();
        }
        let known = contents(inner);
        let names = SPECIALS.iter().filter_map(|key| self.named(key).and_then(token_name));
        let special: BTreeSet<String> = names.chain(extra.iter().map(|token| token.content.clone())).collect();
        let entry = |(content, id): (&String, &Value)| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|_| !content.is_empty());
            let token = AddedToken::from(content.clone(), special.contains(content));
            Ok((id.ok_or_else(|| malformed("added_tokens.json", content))?, token))
        };
        let entries = self.added.as_object().into_iter().flatten();
        entries.filter(|(content, _)| !known.contains(*content)).map(entry).collect()
    }

    /// The special tokens that have a name, each once.
    fn named_tokens(&self, defaults: &[(&str, &str)]) -> Vec<AddedToken> {
        let own = self.own_names();
        let keys = SPECIALS.into_iter().chain(own.iter().map(String::as_str));
        once(keys.filter_map(|key| self.name(key, defaults)))
    }

    /// The special token that is called `key`.
    fn name(&self, key: &str, defaults: &[(&str, &str)]) -> Option<AddedToken> {
        let silent = [&self.config, &self.map].iter().all(|file| file.get(key).is_none());
        let default = defaults.iter().find(|(name, _)| *name == key).filter(|_| silent);
        let named = self.named(key).and_then(|value| token_of(value, true));
        named.or_else(|| default.map(|(_, token)| AddedToken::from(*token, true)))
    }

    /// The names of special tokens that only this model has: `image_token`.
    fn own_names(&self) -> Vec<String> {
        let config = self.config.as_object().into_iter().flatten();
        let own = config.filter(|(key, value)| key.ends_with("_token") && value.is_string());
        own.map(|(key, _)| key.clone()).filter(|key| !SPECIALS.contains(&key.as_str())).collect()
    }

    /// Special tokens without a name, each once.
    fn extra_tokens(&self) -> Vec<AddedToken> {
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let files = if self.has_decoder() { vec![&self.config] } else { vec![&self.map, &self.config] };
        let lists = files.into_iter().flat_map(|file| keys.map(|key| &file[key]));
        let values = lists.flat_map(|list| match list {
            Value::Array(list) => list.iter().collect(),
            Value::Object(named) => named.values().collect(),
            _ => Vec::new(),
        });
        once(values.filter_map(|value| token_of(value, true)))
    }
}

/// Refuses tokens that did not get the ids that the files give them: transformers 4 takes what is written, 5
/// the next free ids, and a model was trained with one of them.
fn check_ids(inner: &tokenizers::Tokenizer, place: &str, new: &[(u32, String)]) -> Result<(), Error> {
    for (id, token) in new {
        let got = inner.token_to_id(token).unwrap_or_default();
        if got != *id {
            let problem = format!(
                "added token `{token}` is to be {id}, and the next free id is {got}; correct `added_tokens_decoder` of \
                 tokenizer_config.json, or added_tokens.json"
            );
            return Err(Error::tokenizer(place, problem));
        }
    }
    Ok(())
}

/// What the added tokens of `inner` spell.
fn contents(inner: &tokenizers::Tokenizer) -> BTreeSet<String> {
    inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect()
}

/// The tokens, without those that spell what an earlier one does.
fn once(tokens: impl Iterator<Item = AddedToken>) -> Vec<AddedToken> {
    let mut seen = BTreeSet::new();
    tokens.filter(|token| seen.insert(token.content.clone())).collect()
}

/// A token as `"<s>"` or as an object with its flags.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    let content = token_name(value).filter(|content| !content.is_empty())?;
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    let special = special || flag("special", false);
    let token = AddedToken::from(content, special).normalized(flag("normalized", !special));
    let token = token.single_word(flag("single_word", false));
    Some(token.lstrip(flag("lstrip", false)).rstrip(flag("rstrip", false)))
}
