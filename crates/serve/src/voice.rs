//! The model that is served, and how a request becomes tickets for it.

use crate::{
    Refusal,
    asked::{Asked, Input, Prompt},
};
use instruct_data::{Renderer, Tokenizer};
use instruct_model::{Decoder, Request, Room, Sampling, Ticket};
use instruct_random::Source;
use std::sync::Arc;

/// A language model with its words.
pub struct Voice {
    /// What clients call it.
    pub name: String,
    /// The model.
    pub decoder: Arc<Decoder>,
    /// How conversations are put to it.
    pub renderer: Renderer,
    /// How many answers it writes at a time, and how long they may be.
    pub room: Room,
    /// What its matrix products are computed in, for clients: `f32` or `bf16`.
    pub precision: &'static str,
}

/// The purpose of the draws: that of `instruct generate`, so that it repeats what was served.
const PURPOSE: &str = "generate";

impl Voice {
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        self.renderer.tokenizer()
    }

    /// Tickets for every prompt of a request and every choice of it, in this order, and the tokens of all prompts.
    ///
    /// Choice `j` of prompt `i` is episode `i * n + j`, as in `instruct generate`.
    pub(crate) fn tickets(&self, asked: &Asked, seed: u64) -> Result<(Vec<Ticket>, usize), Refusal> {
        let prompts = self.encode(&asked.input)?;
        let source = Source::new(seed, PURPOSE);
        let tokens = prompts.iter().map(Vec::len).sum();
        let mut tickets = Vec::with_capacity(prompts.len() * asked.n);
        for (i, prompt) in prompts.into_iter().enumerate() {
            let room = self.left_after(&prompt)?;
            let sampling = Arc::new(Sampling {
                temperature: asked.temperature,
                top_k: asked.top_k,
                top_p: asked.top_p,
                stop: self.renderer.stops().clone(),
                max_new_tokens: asked.max_tokens.unwrap_or(room).min(room),
            });
            for j in 0..asked.n {
                let request = Request { episode: (i * asked.n + j) as u64, prompt: prompt.clone() };
                let ticket = Ticket::new(request, sampling.clone(), source);
                tickets.push(Ticket { alternatives: asked.logprobs.unwrap_or(0), ..ticket });
            }
        }
        Ok((tickets, tokens))
    }

    fn encode(&self, input: &Input) -> Result<Vec<Vec<u32>>, Refusal> {
        let refuse = |name: &str, why: String| Refusal::of_field(name, why);
        match input {
            Input::Chat(conversation) => {
                let asked = self.renderer.ask(conversation.clone());
                let ids = asked.map(|asked| asked.ids().to_vec()).map_err(|why| refuse("messages", why.to_string()))?;
                Ok(vec![ids])
            }
            Input::Texts(prompts) => prompts.iter().map(|prompt| self.encode_text(prompt)).collect(),
        }
    }

    fn encode_text(&self, prompt: &Prompt) -> Result<Vec<u32>, Refusal> {
        match prompt {
            Prompt::Text(text) => {
                self.tokenizer().encode_prompt(text).map_err(|why| Refusal::of_field("prompt", why.to_string()))
            }
            Prompt::Ids(ids) => {
                let rows = self.decoder.config().vocab;
                match ids.iter().find(|id| **id as usize >= rows) {
                    Some(id) => Err(Refusal::of_field("prompt", format!("the model has no token {id}; it has {rows}"))),
                    None => Ok(ids.clone()),
                }
            }
        }
    }

    /// Tokens that may follow a prompt.
    fn left_after(&self, prompt: &[u32]) -> Result<usize, Refusal> {
        let most = self.room.capacity.min(self.decoder.config().context);
        match most.checked_sub(prompt.len()) {
            _ if prompt.is_empty() => {
                Err(Refusal::of_field("prompt", "the prompt has no token in this model's vocabulary; change it"))
            }
            Some(left) if left > 0 => Ok(left),
            _ => {
                let message =
                    format!("the prompt has {} tokens; with its answer at most {most} fit here", prompt.len());
                Err(Refusal::of_field("messages", message).with_code("context_length_exceeded"))
            }
        }
    }
}
