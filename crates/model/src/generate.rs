//! Generation: many episodes through a few slots, each drawn from a stream of its own.

use crate::{Decoder, Emitted, End, Engine, Result, Room, Sampling, Ticket};
use instruct_kernels as kernels;
use instruct_random::Source;
use std::sync::Arc;

/// Sequences decoded at a time, where nothing else is said.
pub const SLOTS: usize = 64;

/// One completion to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Keys the draws: the same episode gives the same text, bit for bit, whatever shares its batch.
    pub episode: u64,
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
}

/// One drawn completion of `T` tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The request's episode.
    pub episode: u64,
    /// The tokens, the stop token included when one was drawn, `(T,)`.
    pub ids: Vec<u32>,
    /// Log-probability of each under the whole softmax at the sampling temperature (at 1 when
    /// greedy), before top-k and top-p, in nats, `(T,)`.
    pub logprobs: Vec<f32>,
    /// Entropy of the same softmax before each token, in nats, `(T,)`.
    pub entropies: Vec<f32>,
    /// Whether a stop token ended it, rather than the cap.
    pub ended_by_eos: bool,
}

/// Draws one completion per request, in the order of the requests, [`SLOTS`] at a time.
///
/// An [`Engine`] draws them: slots are refilled as completions end, and a prompt that several requests share is
/// computed once. Token `t` of an episode takes its draw from `source.at([episode, t])`.
///
/// Errors: an empty prompt, or one that leaves no room in the context; a temperature or a top-p
/// outside its range; logits that are not finite.
pub fn generate(
    decoder: &Decoder,
    requests: &[Request],
    sampling: &Sampling,
    source: Source,
) -> Result<Vec<Completion>> {
    generate_reporting(decoder, requests, sampling, SLOTS, source, &mut |_| ())
}

/// As [`generate`], with so many sequences at a time, which changes speed and memory, never the text. `finished` hears
/// how many more completions have ended, whenever some have.
///
/// Errors: as [`generate`].
pub fn generate_reporting(
    decoder: &Decoder,
    requests: &[Request],
    sampling: &Sampling,
    slots: usize,
    source: Source,
    finished: &mut dyn FnMut(usize),
) -> Result<Vec<Completion>> {
    sampling.check()?;
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    let capacity = longest.saturating_add(sampling.max_new_tokens).min(decoder.config().context);
    let mut engine = Engine::new(decoder, Room::for_batches(slots.min(requests.len()), capacity))?;
    let sampling = Arc::new(sampling.clone());
    for request in requests {
        engine.submit(Ticket::new(request.clone(), sampling.clone(), source))?;
    }
    let empty = |request: &Request| Completion { episode: request.episode, ..Completion::default() };
    let mut completions: Vec<Completion> = requests.iter().map(empty).collect();
    kernels::kept_awake(|| -> Result<()> {
        while !engine.is_idle() {
            match receive(&mut completions, engine.step()?) {
                0 => {}
                ended => finished(ended),
            }
        }
        Ok(())
    })?;
    Ok(completions)
}

/// Adds what a step drew to the completions, by the numbers of their tickets; returns how many ended with it.
fn receive(completions: &mut [Completion], emitted: Vec<Emitted>) -> usize {
    let mut ended = 0;
    for Emitted { ticket, drawn, end } in emitted {
        let completion = &mut completions[ticket as usize];
        completion.ids.push(drawn.token);
        completion.logprobs.push(drawn.logprob);
        completion.entropies.push(drawn.entropy);
        completion.ended_by_eos = end == Some(End::Stop);
        ended += usize::from(end.is_some());
    }
    ended
}
