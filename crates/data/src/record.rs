//! What people wrote: prompts, demonstrations, rankings, and plain text.

use crate::{entry::Extract, origin::Origin};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A prompt, of a labeler or a user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prompt {
    /// Unique in its data set. Records without one are named `<file stem>-<line>`.
    pub id: String,
    /// The words to answer.
    #[serde(flatten)]
    pub content: Content,
    /// Who wrote it: the unit of the per-user cap and of the split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What it asks for, as in table 1 of \[IG\] (`generation`, `open_qa`, ...); free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_case: Option<String>,
    /// File and line.
    #[serde(skip)]
    pub origin: Origin,
}

/// The words of a prompt: a plain text, or a conversation that ends with the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Content {
    /// Plain text, written as `prompt`.
    #[serde(rename = "prompt")]
    Text(String),
    /// A conversation, written as `messages`.
    #[serde(rename = "messages")]
    Messages(Conversation),
}

/// Messages in the order in which they were spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. Of what is read from a file, only the words of the system may be empty, which some
    /// templates write otherwise than none.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// Another voice that a chat template may know by this word, such as `tool`.
    Other(Arc<str>),
}

impl Role {
    /// The word that records and templates use: `system`, `user`, `assistant`, or that of another voice.
    pub fn as_str(&self) -> &str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Other(word) => word,
        }
    }

    /// The role of this word; `None` of a word that no published template knows.
    pub fn named(word: &str) -> Option<Role> {
        let known = [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.as_str() == word);
        known.or_else(|| Role::OTHERS.contains(&word).then(|| Role::Other(word.into())))
    }

    /// The words of [`Role::Other`] that published chat templates know.
    pub(crate) const OTHERS: [&str; 7] =
        ["tool", "developer", "function", "ipython", "observation", "environment", "context"];

    /// Whether the model may answer to this voice: a person, or a tool, but not itself or its instructions.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self, Role::User | Role::Other(_))
    }

    /// What [`Role::named`] takes, for messages.
    pub(crate) fn allowed() -> String {
        let others = Role::OTHERS.map(|word| format!("`{word}`")).join(", ");
        format!("`system`, `user` or `assistant`, or a further voice that templates know: {others}")
    }
}

impl TryFrom<String> for Role {
    type Error = String;

    fn try_from(word: String) -> Result<Role, String> {
        Role::named(&word).ok_or_else(|| format!("unknown role `{word}`; it must be {}", Role::allowed()))
    }
}

impl From<Role> for String {
    fn from(role: Role) -> String {
        role.as_str().to_owned()
    }
}

impl Content {
    /// The messages: a plain text is one message of the user.
    pub fn conversation(&self) -> Conversation {
        match self {
            Content::Text(text) => Conversation { messages: vec![Message::new(Role::User, text)] },
            Content::Messages(conversation) => conversation.clone(),
        }
    }

    /// All the words, one entry per message.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Content::Text(text) => vec![text],
            Content::Messages(conversation) => conversation.messages.iter().map(|m| m.content.as_str()).collect(),
        }
    }
}

/// A prompt and the completion that a person wrote for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Demonstration {
    /// The prompt.
    #[serde(flatten)]
    pub prompt: Prompt,
    /// The completion, never empty.
    pub completion: String,
}

/// One person's ranking of K >= 2 completions of one prompt. A prompt that three people ranked is
/// three records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// The prompt.
    #[serde(flatten)]
    pub prompt: Prompt,
    /// The completions. One may be empty: a model that says nothing has been ranked too, and its
    /// tokens are the end-of-sequence token alone.
    pub completions: Vec<String>,
    /// Rank of each completion, 1 = best, equal = tie, as written: dense (1,2,2,3) or as in
    /// competitions (1,2,2,4). Only the order carries meaning.
    pub ranks: Vec<u32>,
    /// Who ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labeler: Option<String>,
    /// How sure the labeler was, on the data set's own scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Overall quality of each completion, 1 to 7 (\[IG\] table 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Vec<u8>>,
    /// Names of what is wrong with each completion (\[IG\] table 3), one list per completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<Vec<String>>>,
}

/// The pairs `(winner, loser)` of a ranking, as indices in ascending order; equal ranks form no pair.
///
/// `ranks[i]` is the rank of completion `i`, 1 the best.
pub fn pairs(ranks: &[u32]) -> Vec<(usize, usize)> {
    let all = (0..ranks.len()).flat_map(|w| (0..ranks.len()).map(move |l| (w, l)));
    all.filter(|&(w, l)| ranks[w] < ranks[l]).collect()
}

/// Those of [`pairs`] whose completions differ. Between two that are equal nothing can be preferred, whatever
/// their ranks say, and no model could tell them apart.
pub fn distinct_pairs<T: PartialEq>(ranks: &[u32], completions: &[T]) -> Vec<(usize, usize)> {
    pairs(ranks).into_iter().filter(|&(w, l)| completions[w] != completions[l]).collect()
}

/// Text for pretraining or for the pretraining mix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PretrainText {
    /// One document.
    pub text: String,
    /// File and line on which it starts.
    #[serde(skip)]
    pub origin: Origin,
}

/// What reading, hygiene and leak checks need to know of a record. Sealed: the four records of this
/// crate implement it.
pub trait Record: Sized + Serialize + Extract {
    /// File and line.
    fn origin(&self) -> &Origin;

    /// The prompt; `None` of pretraining text.
    fn prompt(&self) -> Option<&Prompt>;

    /// What was answered to the prompt, and by whom. Two records with the same prompt and the same answer
    /// are the same record twice.
    fn answer(&self) -> String;

    /// Every text that a person or a model wrote, for filters.
    fn texts(&self) -> Vec<&str>;

    /// The words that make two records alike. A conversation is read from its newest turn
    /// backwards, so that threads of one tree are not near-duplicates merely because they begin
    /// alike.
    fn subject(&self) -> String {
        let texts = self.prompt().map_or_else(|| self.texts(), |prompt| prompt.content.texts());
        texts.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Who wrote the prompt, where that is known.
    fn user(&self) -> Option<&str> {
        self.prompt().and_then(|prompt| prompt.user.as_deref())
    }

    /// The record as one JSON line of the house format, without the newline.
    fn to_line(&self) -> String {
        serde_json::to_string(self).expect("records have string keys, and strings and numbers as values")
    }
}

impl Record for Prompt {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn prompt(&self) -> Option<&Prompt> {
        Some(self)
    }
    fn answer(&self) -> String {
        String::new()
    }
    fn texts(&self) -> Vec<&str> {
        self.content.texts()
    }
}

impl Record for Demonstration {
    fn origin(&self) -> &Origin {
        &self.prompt.origin
    }
    fn prompt(&self) -> Option<&Prompt> {
        Some(&self.prompt)
    }
    fn answer(&self) -> String {
        self.completion.clone()
    }
    fn texts(&self) -> Vec<&str> {
        let mut texts = self.prompt.content.texts();
        texts.push(&self.completion);
        texts
    }
}

impl Record for Ranking {
    fn origin(&self) -> &Origin {
        &self.prompt.origin
    }
    fn prompt(&self) -> Option<&Prompt> {
        Some(&self.prompt)
    }
    fn answer(&self) -> String {
        let labeler = self.labeler.as_deref().unwrap_or_default();
        std::iter::once(labeler).chain(self.completions.iter().map(String::as_str)).collect::<Vec<_>>().join("\0")
    }
    fn texts(&self) -> Vec<&str> {
        let mut texts = self.prompt.content.texts();
        texts.extend(self.completions.iter().map(String::as_str));
        texts
    }
}

impl Record for PretrainText {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn prompt(&self) -> Option<&Prompt> {
        None
    }
    fn answer(&self) -> String {
        String::new()
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.text]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranks: &[u32], want: &[(usize, usize)]) {
        assert_eq!(pairs(ranks), want);
    }

    #[test]
    fn every_two_completions_with_different_ranks_form_a_pair() {
        check(&[], &[]);
        check(&[1], &[]);
        check(&[1, 2], &[(0, 1)]);
        check(&[2, 1], &[(1, 0)]);
        check(&[1, 1], &[]);
        check(&[3, 1, 2], &[(1, 0), (1, 2), (2, 0)]);
        check(&[1, 2, 2, 3], &[(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]);
        check(&[1, 2, 2, 4], &[(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]);
    }

    #[test]
    fn equal_completions_form_no_pair() {
        assert_eq!(distinct_pairs(&[1, 2], &["a", "a"]), []);
        assert_eq!(distinct_pairs(&[3, 1, 2], &["a", "b", "a"]), [(1, 0), (1, 2)]);
        assert_eq!(distinct_pairs(&[3, 1, 2], &["a", "b", "c"]), pairs(&[3, 1, 2]));
    }
}
