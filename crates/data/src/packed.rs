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
    /// Which example the tokens belong to. Dropout draws at this number, so that its masks do not depend
    /// on what shares the batch.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a token sees and what it predicts, without segments: its sequence so far, by id.
    fn histories(batch: &Packed) -> Vec<Vec<u32>> {
        let mut histories = Vec::new();
        for segment in batch.segments() {
            let prefix = segment.prefix.map_or(0..0, |p| batch.segments()[p].tokens.clone());
            for row in segment.tokens.clone() {
                let own = &batch.ids()[segment.tokens.start..=row];
                histories.push(batch.ids()[prefix.clone()].iter().chain(own).copied().collect());
            }
        }
        histories
    }

    /// Every prediction as (what was seen, target, weight), sorted.
    fn predictions(batch: &Packed) -> Vec<(Vec<u32>, u32, u32)> {
        let histories = histories(batch);
        let view = |p: &Prediction| (histories[p.row as usize].clone(), p.target, p.weight.to_bits());
        let mut all: Vec<_> = batch.predictions().iter().map(view).collect();
        all.sort();
        all
    }

    fn ids(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(0..100u32, length)
    }

    proptest! {
        #[test]
        fn segments_tile_the_rows_and_positions_continue_the_prefix(
            groups in proptest::collection::vec((ids(1..6), proptest::collection::vec(ids(0..5), 0..4)), 0..5),
        ) {
            let mut batch = Packed::new();
            let mut tokens = 0;
            for (example, (prompt, completions)) in groups.iter().enumerate() {
                let prefix = batch.push(prompt, example as u64);
                tokens += prompt.len();
                for completion in completions {
                    let range = batch.push_completion(prefix, completion, example as u64, 1.0);
                    prop_assert_eq!(range.len(), completion.len());
                    prop_assert_eq!(range.end, batch.predictions().len());
                    tokens += completion.len();
                }
            }
            prop_assert_eq!((batch.len(), batch.positions().len()), (tokens, tokens));
            let mut end = 0;
            for (i, segment) in batch.segments().iter().enumerate() {
                prop_assert_eq!(segment.tokens.start, end);
                prop_assert!(!segment.tokens.is_empty());
                end = segment.tokens.end;
                let prefix = segment.prefix.map(|p| &batch.segments()[p]);
                prop_assert!(prefix.is_none_or(|p| p.prefix.is_none() && p.tokens.end <= segment.tokens.start));
                prop_assert!(prefix.is_none_or(|p| p.example == segment.example));
                let first = prefix.map_or(0, |p| p.tokens.len());
                for (offset, row) in segment.tokens.clone().enumerate() {
                    prop_assert_eq!(batch.positions()[row] as usize, first + offset);
                }
                prop_assert_eq!(batch.last_row(i) as usize, segment.tokens.end - 1);
            }
            prop_assert_eq!(end, tokens);
        }

        /// A shared prompt and a prompt per completion ask for the same predictions from the same
        /// context; so does one segment that holds both.
        #[test]
        fn sharing_changes_no_prediction(prompt in ids(1..6), completions in proptest::collection::vec(ids(0..5), 1..5)) {
            let [mut shared, mut apart, mut joined] = [Packed::new(), Packed::new(), Packed::new()];
            let prefix = shared.push(&prompt, 7);
            for (i, completion) in completions.iter().enumerate() {
                let weight = i as f32;
                shared.push_completion(prefix, completion, 7, weight);
                let own = apart.push(&prompt, 7);
                apart.push_completion(own, completion, 7, weight);
                joined.push_pair(&prompt, completion, 7, weight);
            }
            prop_assert_eq!(predictions(&shared), predictions(&apart));
            prop_assert_eq!(predictions(&shared), predictions(&joined));
            prop_assert_eq!(apart.ids(), joined.ids());
            prop_assert_eq!(apart.positions(), joined.positions());
        }

        /// Without a prompt, a pair is a text; and a text is its first token and the completion of it.
        #[test]
        fn a_text_is_its_first_token_and_the_rest(text in ids(1..9)) {
            let [mut whole, mut pair, mut bare] = [Packed::new(), Packed::new(), Packed::new()];
            let range = whole.push_text(&text, 1, 0.5);
            prop_assert_eq!(range, 0..text.len() - 1);
            pair.push_pair(&text[..1], &text[1..], 1, 0.5);
            bare.push_pair(&[], &text, 1, 0.5);
            prop_assert_eq!(&whole, &pair);
            prop_assert_eq!(&whole, &bare);
        }
    }

    #[test]
    fn k_completions_have_k_predictions_on_the_prompts_last_row() {
        let mut batch = Packed::new();
        let prompt = batch.push(&[5, 6], 0);
        for target in [1, 2, 3] {
            batch.push_completion(prompt, &[target, 9], 0, 1.0);
        }
        let on_last: Vec<u32> = batch.predictions().iter().filter(|p| p.row == 1).map(|p| p.target).collect();
        assert_eq!(on_last, [1, 2, 3]);
        assert!(Packed::new().is_empty() && !batch.is_empty());
    }
}
