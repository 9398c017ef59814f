//! A sampled completion, and what is asked for one.

use instruct_model::Request;
use serde::{Deserialize, Serialize};
use std::error::Error;

/// A sampled completion, as a scorer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Number of the episode over the whole run; keys its draws.
    pub id: u64,
    /// Which prompt it answers: its index among the run's prompts.
    pub group: usize,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the completion, the stop token included when one was drawn.
    pub completion: Vec<u32>,
    /// The completion as text, without special tokens: for a scorer with another tokenizer.
    pub text: String,
    /// Whether a stop token ended it, rather than the cap.
    pub ended_by_eos: bool,
}

impl Episode {
    /// Tokens of prompt and completion together.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }
}

/// A completion to be drawn, with the prompt that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompted {
    /// Which prompt it is: its index among the run's prompts.
    pub group: usize,
    /// What is asked of the model.
    pub request: Request,
}

impl Prompted {
    /// Episode number `episode`, which answers prompt number `group`.
    pub fn new(episode: u64, group: usize, prompt: &[u32]) -> Prompted {
        Prompted { group, request: Request { episode, prompt: prompt.to_vec() } }
    }
}

/// A score per episode: a reward model, a rule, or any closure. Its error stops the run.
pub type Score<'a> = &'a dyn Fn(&[Episode]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>>;

/// Completion ids to text, without special tokens. Its error stops the run: an empty text would be scored like one that
/// the model had written.
pub type Decode<'a> = &'a dyn Fn(&[u32]) -> Result<String, Box<dyn Error + Send + Sync>>;
