//! A ranking as token ids, and how several of them share one packed batch.

use crate::Result;
use candle_core::{DType, Tensor};
use instruct_data::{Packed, distinct_pairs, micro_batches};
use instruct_model::{Decoder, Pass};
use serde::{Deserialize, Serialize};

/// One ranking record: a prompt, its completions, and the order a labeler gave them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Token ids of each completion, EOS included; at least one token each, `(K,)`.
    pub completions: Vec<Vec<u32>>,
    /// Rank of each completion, 1 the best, equal ranks a tie, `(K,)`.
    pub ranks: Vec<u32>,
}

impl Group {
    /// The pairs `(winner, loser)` that the ranking orders, as indices of completions. Equal ranks form none,
    /// nor do equal completions: a loss over differences has no gradient there.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        distinct_pairs(&self.ranks, &self.completions)
    }

    /// Tokens of the group when its prompt is computed once.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completions.iter().map(Vec::len).sum::<usize>()
    }
}

/// Something to score: a prompt and one completion, as token ids.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Token ids of the prompt; at least one.
    pub prompt: &'a [u32],
    /// Token ids of the completion; when empty the score is read at the prompt's last token.
    pub completion: &'a [u32],
}

/// Scores of many completions, `(n,)`, in the order given, without recording a graph.
///
/// Completions that follow each other with the same prompt share its computation. `micro_tokens`
/// bounds the tokens computed at a time; it changes memory, never the scores.
///
/// Errors: a sequence longer than the model's context; a decoder without a scalar head.
pub fn scores(model: &Decoder, items: &[Item], micro_tokens: usize) -> Result<Vec<f32>> {
    let new_tokens = |i: usize| {
        // A prompt that stands in the batch already is not computed again.
        let shares = i > 0 && items[i - 1].prompt == items[i].prompt;
        items[i].completion.len() + if shares { 0 } else { items[i].prompt.len() }
    };
    let mut out = Vec::with_capacity(items.len());
    for run in micro_batches((0..items.len()).map(new_tokens), micro_tokens) {
        let mut batch = ItemBatch::default();
        run.for_each(|i| batch.push(items[i], i as u64));
        out.extend(batch.scores(model, Pass::Infer)?.to_vec1::<f32>()?);
    }
    Ok(out)
}

/// Completions in one packed batch, and the row at which each is scored.
#[derive(Default)]
pub(crate) struct ItemBatch<'a> {
    pub(crate) packed: Packed,
    pub(crate) rows: Vec<u32>,
    prompt: Option<(&'a [u32], usize)>,
}

impl<'a> ItemBatch<'a> {
    /// Scores of the completions, `(n,)` in `f32`.
    pub(crate) fn scores(&self, model: &Decoder, pass: Pass) -> Result<Tensor> {
        let hidden = model.hidden_at(&self.packed, &self.rows, pass)?;
        let rows: Vec<u32> = (0..self.rows.len() as u32).collect();
        Ok(model.scalars(&hidden, &rows)?.to_dtype(DType::F32)?)
    }

    pub(crate) fn push(&mut self, item: Item<'a>, example: u64) {
        let prefix = match self.prompt {
            Some((prompt, segment)) if prompt == item.prompt => segment,
            _ => {
                let segment = self.packed.push(item.prompt, example);
                self.prompt = Some((item.prompt, segment));
                segment
            }
        };
        let segments = self.packed.segments().len();
        self.packed.push_completion(prefix, item.completion, example, 1.0);
        let scored = if self.packed.segments().len() > segments { segments } else { prefix };
        self.rows.push(self.packed.last_row(scored));
    }
}
