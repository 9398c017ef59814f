//! What models say of given episodes: log-probabilities, entropies and values of completion tokens.

use crate::{Episode, Result};
use candle_core::{DType, Tensor};
use instruct_data::Packed;
use instruct_kernels::token_logprob;
use instruct_model::{Decoder, Pass};
use std::ops::Range;

/// Log-probability and entropy of every completion token under a model, `(M,)` each, in nats.
///
/// Errors: a sequence longer than the context; those of the operations.
pub fn logprobs(
    model: &Decoder,
    episodes: &[Episode],
    temperature: f32,
    micro_tokens: usize,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    for micro in micro_batches(episodes, micro_tokens) {
        let batch = pack(&episodes[micro]);
        let hidden = model.predicting(&batch, Pass::Infer)?;
        let both = token_logprobs(model, &hidden, &batch, temperature)?;
        for row in both.to_vec2::<f32>()? {
            logprobs.push(row[0]);
            entropies.push(row[1]);
        }
    }
    Ok((logprobs, entropies))
}

/// The value of every state, read at the row that predicts its token, `(M,)`.
///
/// Errors: as [`logprobs`]; a model without a scalar head.
pub fn values(model: &Decoder, episodes: &[Episode], micro_tokens: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for micro in micro_batches(episodes, micro_tokens) {
        let batch = pack(&episodes[micro]);
        let hidden = model.predicting(&batch, Pass::Infer)?;
        values.extend(model.scalars(&hidden, &rows(&batch))?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok(values)
}

/// Cuts episodes into runs of about `micro_tokens` tokens, at least one episode each.
pub fn micro_batches<'a>(episodes: impl IntoIterator<Item = &'a Episode>, micro_tokens: usize) -> Vec<Range<usize>> {
    instruct_data::micro_batches(episodes.into_iter().map(Episode::tokens), micro_tokens)
}

/// The packed batch of some episodes; its predictions run over their completion tokens.
pub fn pack<'a>(episodes: impl IntoIterator<Item = &'a Episode>) -> Packed {
    let mut batch = Packed::new();
    for episode in episodes {
        let prompt = batch.push(&episode.prompt, episode.id);
        batch.push_completion(prompt, &episode.completion, episode.id, 1.0);
    }
    batch
}

/// `(M, 2)` log-probabilities and entropies of a batch's predictions, at a sampling temperature.
///
/// Errors: a model without a language head; those of the operations.
pub fn token_logprobs(model: &Decoder, hidden: &Tensor, batch: &Packed, temperature: f32) -> Result<Tensor> {
    let targets: Vec<u32> = batch.predictions().iter().map(|p| p.target).collect();
    let both = token_logprob(hidden, model.unembedding()?, &rows(batch), &targets, temperature)?;
    Ok(both.to_dtype(DType::F32)?)
}

/// Every prediction's row of [`Decoder::predicting`].
pub fn rows(batch: &Packed) -> Vec<u32> {
    (0..batch.predictions().len() as u32).collect()
}
