//! Generation: many episodes through a few slots, each drawn from a stream of its own.

use crate::{Decoder, Error, Result};
use candle_core::{DType, Tensor};
use instruct_kernels::{self as kernels, CacheRow, KvCache};
use instruct_random::Source;
use rayon::prelude::*;
use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
};

/// One completion to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Keys the draws: the same episode gives the same text, bit for bit, whatever shares its batch.
    pub episode: u64,
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
}

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable token (the lowest id among equals).
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are drawn from; 0 is all.
    pub top_k: usize,
    /// Only the most probable tokens whose probabilities add up to `top_p` are drawn from; 1 is all.
    pub top_p: f32,
    /// Ids that end a completion; the one drawn is its last token.
    pub stop: BTreeSet<u32>,
    /// Cap on the completion, in tokens; one is always drawn. The model's context caps it too.
    pub max_new_tokens: usize,
    /// Sequences decoded at a time. Changes the speed, never the text.
    pub slots: usize,
}

impl Sampling {
    /// Plain sampling at temperature 1, which is what reinforcement learning needs: any truncation
    /// would make the recorded log-probabilities those of another distribution.
    pub fn plain(stop: BTreeSet<u32>, max_new_tokens: usize) -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, stop, max_new_tokens, slots: 64 }
    }

    /// What logits are divided by: at temperature 0 the greedy choice is recorded as at 1.
    fn scale(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }

    fn check(&self) -> Result<()> {
        let refuse = |problem| Err(Error::Sampling { problem });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("the temperature must be finite and at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top-p must be above 0 and at most 1");
        }
        Ok(())
    }
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

/// Draws one completion per request, in the order of the requests.
///
/// Slots are refilled as completions end; prompts are computed in the same pass as the running
/// sequences' next tokens. Token `t` of an episode takes its draw from
/// `source.at([episode, t])`.
///
/// Errors: an empty prompt, or one that leaves no room in the context; a temperature or a top-p
/// outside its range; logits that are not finite.
pub fn generate(
    decoder: &Decoder,
    requests: &[Request],
    sampling: &Sampling,
    source: Source,
) -> Result<Vec<Completion>> {
    generate_reporting(decoder, requests, sampling, source, &mut |_| ())
}

/// As [`generate`]; `finished` hears how many more completions have ended, whenever some have.
///
/// Errors: as [`generate`].
pub fn generate_reporting(
    decoder: &Decoder,
    requests: &[Request],
    sampling: &Sampling,
    source: Source,
    finished: &mut dyn FnMut(usize),
) -> Result<Vec<Completion>> {
    sampling.check()?;
    let context = decoder.config().context;
    for request in requests {
        let refuse = |problem| Err(Error::Request { episode: request.episode, problem });
        match request.prompt.len() {
            0 => return refuse("the prompt is empty"),
            n if n >= context => return refuse("the prompt leaves no room in the context; shorten it"),
            _ => {}
        }
    }
    let mut batch = Batch::new(decoder, requests, sampling)?;
    kernels::kept_awake(|| -> Result<()> {
        while batch.admit() {
            let logits = batch.forward(decoder)?;
            match batch.draw(&logits, sampling, source)? {
                0 => {}
                ended => finished(ended),
            }
        }
        Ok(())
    })?;
    Ok(batch.finished.into_iter().map(|done| done.expect("the loop ends when every request has finished")).collect())
}

/// The running sequences, one per occupied slot.
struct Batch<'a> {
    requests: &'a [Request],
    waiting: VecDeque<usize>,
    slots: Vec<Option<Running>>,
    cache: KvCache,
    finished: Vec<Option<Completion>>,
    max_new_tokens: usize,
    context: usize,
}

struct Running {
    request: usize,
    /// Tokens whose keys and values are not in the cache yet: the prompt, then one at a time.
    pending: Vec<u32>,
    cached: usize,
    completion: Completion,
}

impl<'a> Batch<'a> {
    fn new(decoder: &Decoder, requests: &'a [Request], sampling: &Sampling) -> Result<Batch<'a>> {
        let slots = sampling.slots.clamp(1, requests.len().max(1));
        let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(1);
        let context = decoder.config().context;
        let capacity = longest.saturating_add(sampling.max_new_tokens).min(context);
        Ok(Batch {
            requests,
            waiting: (0..requests.len()).collect(),
            slots: (0..slots).map(|_| None).collect(),
            cache: decoder.cache(slots, capacity)?,
            finished: vec![None; requests.len()],
            max_new_tokens: sampling.max_new_tokens,
            context,
        })
    }

    /// Fills free slots; false when nothing runs and nothing waits.
    fn admit(&mut self) -> bool {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_none()) {
            let Some(request) = self.waiting.pop_front() else { break };
            let Request { episode, ref prompt } = self.requests[request];
            let completion = Completion { episode, ..Completion::default() };
            *slot = Some(Running { request, pending: prompt.clone(), cached: 0, completion });
        }
        self.slots.iter().any(Option::is_some)
    }

    /// Logits of the next token of every running sequence, `(running, V)`.
    fn forward(&mut self, decoder: &Decoder) -> Result<Tensor> {
        let (mut ids, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, running) in self.slots.iter_mut().enumerate() {
            let Some(running) = running else { continue };
            rows.extend((0..running.pending.len()).map(|i| CacheRow { slot, position: running.cached + i }));
            running.cached += running.pending.len();
            ids.append(&mut running.pending);
            last.push(rows.len() as u32 - 1);
        }
        let hidden = decoder.extend(&ids, &rows, &last, &mut self.cache)?;
        Ok(kernels::logits(&hidden, decoder.unembedding()?)?)
    }

    /// Draws the next token of every running sequence; returns how many have ended with it.
    fn draw(&mut self, logits: &Tensor, sampling: &Sampling, source: Source) -> Result<usize> {
        let rows = Rows::of(logits)?;
        let mut running: Vec<&mut Running> = self.slots.iter_mut().flatten().collect();
        running.par_iter_mut().enumerate().try_for_each(|(i, running)| -> Result<()> {
            let row = rows.get(i)?;
            let Completion { episode, ids, logprobs, entropies, .. } = &mut running.completion;
            if !row.iter().all(|logit| logit.is_finite()) {
                return Err(Error::Logits { episode: *episode, token: ids.len() });
            }
            // The probabilities of many tokens of a large vocabulary lie below 2^-24, the grain of an `f32` draw.
            let uniform = source.at([*episode, ids.len() as u64]).uniform_f64();
            // The arithmetic of the training forward, so that both give the same bits.
            let softmax = kernels::RowSoftmax::new(&row, sampling.scale());
            let id = choose(&row, &softmax, sampling, uniform);
            ids.push(id);
            logprobs.push(softmax.logprob(row[id as usize]));
            entropies.push(softmax.entropy());
            running.pending.push(id);
            Ok(())
        })?;
        Ok(self.retire(&sampling.stop))
    }

    /// Moves ended sequences out of their slots; returns how many.
    fn retire(&mut self, stop: &BTreeSet<u32>) -> usize {
        let mut ended = 0;
        for slot in &mut self.slots {
            let Some(mut running) = slot.take() else { continue };
            let ids = &running.completion.ids;
            let stopped = ids.last().is_some_and(|id| stop.contains(id));
            let full = running.cached + 2 > self.context;
            if stopped || full || ids.len() >= self.max_new_tokens {
                running.completion.ended_by_eos = stopped;
                self.finished[running.request] = Some(running.completion);
                ended += 1;
            } else {
                *slot = Some(running);
            }
        }
        ended
    }
}

/// The rows of a matrix in `f32`, for the threads of a pool.
///
/// These threads must not ask a GPU for a row: there each thread has a stream of its own, which does not
/// wait for the one that computes the matrix. Candle would also copy the whole matrix for every row.
enum Rows {
    /// A matrix on the CPU: a row is copied by the thread that reads it.
    OnCpu(Tensor),
    /// A matrix of another device, copied as a whole.
    Copied(Vec<Vec<f32>>),
}

impl Rows {
    /// The rows of `matrix (n, V)`. Where it is not on the CPU this waits for it, on the thread that computes it.
    fn of(matrix: &Tensor) -> Result<Rows> {
        if matrix.device().is_cpu() {
            return Ok(Rows::OnCpu(matrix.to_dtype(DType::F32)?));
        }
        Rows::copied(matrix)
    }

    /// The rows of `matrix (n, V)`, copied to the host at once.
    fn copied(matrix: &Tensor) -> Result<Rows> {
        Ok(Rows::Copied(matrix.to_dtype(DType::F32)?.to_vec2()?))
    }

    /// Row `i`, `(V)`.
    fn get(&self, i: usize) -> Result<Cow<'_, [f32]>> {
        match self {
            Rows::OnCpu(matrix) => Ok(matrix.get(i)?.to_vec1()?.into()),
            Rows::Copied(rows) => Ok(rows[i].as_slice().into()),
        }
    }
}

/// The token that `uniform` in `[0, 1)` falls on, by inversion over ids in ascending order (over
/// the kept ones when truncated).
fn choose(logits: &[f32], softmax: &kernels::RowSoftmax, sampling: &Sampling, uniform: f64) -> u32 {
    if sampling.temperature == 0.0 {
        return (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32;
    }
    let numerators = softmax.numerators();
    let id = match kept(logits, sampling, numerators) {
        None => invert(0..logits.len(), numerators, uniform),
        Some(ids) => invert(ids.into_iter(), numerators, uniform),
    };
    id as u32
}

/// The ids that top-k and top-p leave, ascending; `None` when they leave all.
fn kept(logits: &[f32], sampling: &Sampling, numerators: &[f32]) -> Option<Vec<usize>> {
    let top_k = if sampling.top_k == 0 { logits.len() } else { sampling.top_k.min(logits.len()) };
    if top_k == logits.len() && sampling.top_p >= 1.0 {
        return None;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(top_k);
    let total: f64 = order.iter().map(|&id| f64::from(numerators[id])).sum();
    let mut sum = 0.0;
    let enough = order.iter().position(|&id| {
        sum += f64::from(numerators[id]);
        sum >= f64::from(sampling.top_p) * total
    });
    order.truncate(enough.map_or(order.len(), |last| last + 1));
    order.sort_unstable();
    Some(order)
}

/// The id on which `uniform` falls, where every id takes its numerator of the line. Both sums add in `f64`, id after id.
fn invert(ids: impl Iterator<Item = usize> + Clone, numerators: &[f32], uniform: f64) -> usize {
    let total: f64 = ids.clone().map(|id| f64::from(numerators[id])).sum();
    let target = uniform * total;
    let (mut sum, mut last) = (0.0, 0);
    for id in ids {
        let w = f64::from(numerators[id]);
        if w > 0.0 {
            sum += w;
            last = id;
        }
        if sum > target {
            return id;
        }
    }
    // Rounding can leave the sum a hair below the target; the last possible token takes the rest.
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1: their logarithms, plus 1.
    const LOGITS: [f32; 4] = [-1.302_585, 0.083_709, -0.609_438, -0.203_973];

    /// Under `sampling`, an even grid of draws falls on the ids in the proportions `wanted`.
    #[track_caller]
    fn check(logits: &[f32], (temperature, top_k, top_p): (f32, usize, f32), wanted: &[f64]) {
        let sampling = Sampling { temperature, top_k, top_p, ..Sampling::plain([].into(), 1) };
        let n = 10_000u16;
        let mut shares = vec![0.0; logits.len()];
        for i in 0..n {
            let softmax = kernels::RowSoftmax::new(logits, sampling.scale());
            let id = choose(logits, &softmax, &sampling, (f64::from(i) + 0.5) / f64::from(n));
            shares[id as usize] += 1.0 / f64::from(n);
        }
        for (share, wanted) in shares.iter().zip(wanted) {
            assert!((share - wanted).abs() < 2e-4, "{shares:?}, wanted {wanted:?}");
        }
    }

    #[test]
    fn truncation_keeps_the_most_probable_and_renormalises() {
        check(&LOGITS, (1.0, 0, 1.0), &[0.1, 0.4, 0.2, 0.3]);
        check(&LOGITS, (1.0, 9, 1.0), &[0.1, 0.4, 0.2, 0.3]);
        check(&LOGITS, (1.0, 2, 1.0), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(&LOGITS, (1.0, 1, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        check(&LOGITS, (1.0, 0, 0.69), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(&LOGITS, (1.0, 0, 0.71), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        check(&LOGITS, (1.0, 0, 0.01), &[0.0, 1.0, 0.0, 0.0]);
        // Top-p counts what top-k left: 0.55 of 0.7 needs the first alone (0.4 / 0.7 = 0.57).
        check(&LOGITS, (1.0, 2, 0.55), &[0.0, 1.0, 0.0, 0.0]);
        // Squared probabilities at half the temperature: 0.01, 0.16, 0.04, 0.09 of 0.3.
        check(&LOGITS, (0.5, 0, 1.0), &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
        check(&LOGITS, (0.0, 0, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        // Among equals the lowest id is the greedy one, and the one that top-k keeps.
        check(&[0.0, 1.0, 1.0, 0.0], (0.0, 0, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        check(&[0.0, 1.0, 1.0, 0.0], (1.0, 1, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        // An impossible token is never drawn, not even by rounding at the end of the line.
        check(&[0.0, f32::NEG_INFINITY], (1.0, 0, 1.0), &[1.0, 0.0]);
        check(&[1e4, 0.0, -1e4], (1.0, 0, 1.0), &[1.0, 0.0, 0.0]);
    }

    /// A copied matrix has the rows of one that is read where it lies.
    #[test]
    fn rows_are_the_same_copied_and_where_they_lie() {
        let check = |matrix: &Tensor, wanted: &[[f32; 3]]| {
            for rows in [Rows::of(matrix).unwrap(), Rows::copied(matrix).unwrap()] {
                for (i, wanted) in wanted.iter().enumerate() {
                    assert_eq!(*rows.get(i).unwrap(), *wanted, "row {i} of {matrix}");
                }
            }
        };
        let (rows, cpu) = ([[0.5f32, -1.25, 3.0], [7.0, 0.0, f32::NEG_INFINITY]], &candle_core::Device::Cpu);
        let matrix = Tensor::new(&rows, cpu).unwrap();
        assert!(matches!(Rows::of(&matrix).unwrap(), Rows::OnCpu(_)));
        check(&matrix, &rows);
        check(&matrix.to_dtype(DType::BF16).unwrap(), &rows);
        check(&matrix.narrow(0, 1, 1).unwrap(), &rows[1..]);
        check(&Tensor::new(&[[0.5f32, 7.0], [-1.25, 0.0], [3.0, f32::NEG_INFINITY]], cpu).unwrap().t().unwrap(), &rows);
    }

    #[test]
    fn the_ends_of_the_line_belong_to_the_first_and_last_token() {
        let plain = Sampling::plain([].into(), 1);
        let choose = |logits: &[f32], uniform| choose(logits, &kernels::RowSoftmax::new(logits, 1.0), &plain, uniform);
        assert_eq!(choose(&LOGITS, 0.0), 0);
        assert_eq!(choose(&LOGITS, 1.0 - f64::EPSILON / 2.0), 3);
        assert_eq!(choose(&[0.0, f32::NEG_INFINITY], 1.0 - f64::EPSILON / 2.0), 0);
    }

    /// A token that is drawn once in 500 million times has its place between two that are drawn otherwise.
    #[test]
    fn a_rare_token_has_its_place_on_the_line() {
        let logits = [0.0, -20.0, 0.0];
        let plain = Sampling::plain([].into(), 1);
        let softmax = kernels::RowSoftmax::new(&logits, 1.0);
        let choose = |uniform: f64| choose(&logits, &softmax, &plain, uniform);
        let rare = f64::exp(-20.0);
        let (begins, ends) = (1.0 / (2.0 + rare), (1.0 + rare) / (2.0 + rare));
        assert!(ends - begins < 0.5 / f64::from(1 << 24));
        for (uniform, wanted) in [(begins - 1e-12, 0), (begins + 1e-12, 1), (ends - 1e-12, 1), (ends + 1e-12, 2)] {
            assert_eq!(choose(uniform), wanted, "{uniform}");
        }
    }
}
