//! The packed batch: one flat run of tokens, a table of segments, a list of predictions.
//! Batches never pad, so no mask, no left padding and no position fix-up exists anywhere.

use std::ops::Range;

/// A batch of sequences laid end to end. `N` tokens, `M` predictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    predictions: Vec<Prediction>,
}

/// A run of tokens that attends causally to itself, and first to all of its `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Flat rows of this segment's tokens.
    pub tokens: Range<usize>,
    /// Index of an earlier segment that this one continues (a prompt shared by its completions).
    /// A prefix is never nested and never empty.
    pub prefix: Option<usize>,
    /// Which example the tokens belong to: keys the dropout draws, so that they do not depend on
    /// what shares the batch.
    pub example: u64,
}

/// "Row `row` of the hidden states predicts token `target`", with a loss weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Flat row whose hidden state predicts; a completion's first token is predicted by the last
    /// row of its prefix.
    pub row: u32,
    /// The token to predict.
    pub target: u32,
    /// Its weight in the loss.
    pub weight: f32,
}

impl Packed {
    /// An empty batch.
    pub fn new() -> Packed {
        Packed::default()
    }

    /// Appends a sequence of its own (no prefix) and returns its segment index. An empty sequence
    /// is a caller's error and panics: readers refuse empty prompts long before.
    pub fn push(&mut self, tokens: &[u32], example: u64) -> usize {
        assert!(!tokens.is_empty(), "a segment holds at least one token");
        self.append(tokens, None, 0, example)
    }

    /// Appends `completion` as a continuation of segment `prefix`, predicts each of its tokens with
    /// weight `weight`, and returns the range of those predictions, in token order.
    ///
    /// The first prediction reads the prefix's last row, so K completions of one prompt have K
    /// predictions on that row. Panics when `prefix` is itself a continuation.
    pub fn push_completion(&mut self, prefix: usize, completion: &[u32], example: u64, weight: f32) -> Range<usize> {
        let prompt = self.segments[prefix].clone();
        assert!(prompt.prefix.is_none(), "a prefix is never nested");
        let first = self.predictions.len();
        let start = self.ids.len();
        if !completion.is_empty() {
            self.append(completion, Some(prefix), prompt.tokens.len(), example);
        }
        let rows = std::iter::once(prompt.tokens.end - 1).chain(start..);
        self.predictions.extend(rows.zip(completion).map(|(row, &target)| Prediction {
            row: row as u32,
            target,
            weight,
        }));
        first..self.predictions.len()
    }

    /// Appends a whole text as one segment and predicts every token but its first with `weight`.
    pub fn push_text(&mut self, tokens: &[u32], example: u64, weight: f32) -> Range<usize> {
        let segment = self.push(tokens, example);
        let first = self.predictions.len();
        let rows = self.segments[segment].tokens.clone();
        self.predictions.extend(rows.zip(&tokens[1..]).map(|(row, &target)| Prediction {
            row: row as u32,
            target,
            weight,
        }));
        first..self.predictions.len()
    }

    /// Appends `prompt` and `completion` as one segment without sharing, predicting the completion:
    /// the same numbers as a prefix and its continuation.
    pub fn push_pair(&mut self, prompt: &[u32], completion: &[u32], example: u64, weight: f32) -> Range<usize> {
        let joined: Vec<u32> = prompt.iter().chain(completion).copied().collect();
        let segment = self.push(&joined, example);
        let first = self.predictions.len();
        let start = self.segments[segment].tokens.start + prompt.len();
        self.predictions.extend(
            completion
                .iter()
                .enumerate()
                .filter(|(i, _)| start + i > self.segments[segment].tokens.start)
                .map(|(i, &target)| Prediction { row: (start + i - 1) as u32, target, weight }),
        );
        first..self.predictions.len()
    }

    fn append(&mut self, tokens: &[u32], prefix: Option<usize>, position: usize, example: u64) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.segments.push(Segment { tokens: start..self.ids.len(), prefix, example });
        self.segments.len() - 1
    }

    /// Token ids, `(N,)`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Position of each token in its own sequence, prefix included, `(N,)`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The segments, covering `0..N` in order without gaps.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The predictions, `(M,)`.
    pub fn predictions(&self) -> &[Prediction] {
        &self.predictions
    }

    /// Number of tokens `N`.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the batch holds no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The flat row of a segment's last token, where a reward model reads its score.
    pub fn last_row(&self, segment: usize) -> u32 {
        (self.segments[segment].tokens.end - 1) as u32
    }
}
