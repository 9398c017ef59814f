//! Which examples form a step, and how they become micro-batches.

use crate::Plan;
use instruct_data::{Packed, micro_batches};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A demonstration as token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Token ids of the prompt; may be empty only when the completion has a token to start from.
    pub prompt: Vec<u32>,
    /// Token ids of the completion, EOS included.
    pub completion: Vec<u32>,
}

impl Example {
    /// Tokens of prompt and completion together.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }
}

/// One example of a step: a demonstration or a window of pretraining text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item<'a> {
    Demonstration(&'a Example),
    Pretraining(&'a [u32]),
}

impl Item<'_> {
    fn is_pretraining(&self) -> bool {
        matches!(self, Item::Pretraining(_))
    }

    fn tokens(&self) -> usize {
        match self {
            Item::Demonstration(example) => example.tokens(),
            Item::Pretraining(window) => window.len(),
        }
    }
}

/// A micro-batch of one kind of example: its tokens, and the weight of each of its predictions.
pub(crate) struct Micro {
    pub(crate) packed: Packed,
    pub(crate) weights: Vec<f32>,
    pub(crate) pretraining: bool,
    /// How many there are.
    pub(crate) examples: usize,
}

impl Micro {
    fn push(&mut self, item: Item<'_>, example: u64, prompt_weight: f32) {
        match item {
            Item::Demonstration(Example { prompt, completion }) if prompt_weight > 0.0 => {
                let joined: Vec<u32> = prompt.iter().chain(completion).copied().collect();
                let range = self.packed.push_text(&joined, example, 1.0);
                let from_prompt = prompt.len().saturating_sub(1);
                self.weights.extend((0..range.len()).map(|i| if i < from_prompt { prompt_weight } else { 1.0 }));
            }
            Item::Demonstration(Example { prompt, completion }) => {
                let range = self.packed.push_pair(prompt, completion, example, 1.0);
                self.weights.extend(range.map(|_| 1.0));
            }
            Item::Pretraining(window) => {
                let range = self.packed.push_text(window, example, 1.0);
                self.weights.extend(range.map(|_| 1.0));
            }
        }
    }
}

/// Demonstrations and windows that one step may draw at most: any of its examples can be the one, and
/// in the mix any can be the other.
pub(crate) fn share_of(plan: &Plan) -> (usize, usize) {
    (plan.batch, if plan.pretraining_share > 0.0 { plan.batch } else { 0 })
}

/// Packs items into micro-batches of about `micro_tokens` tokens, at least one item each:
/// demonstrations first, then pretraining windows, so that the loss of each kind is known apart.
/// Item `i` is example `first + i` for the dropout draws.
pub(crate) fn pack(items: &[Item<'_>], first: u64, prompt_weight: f32, micro_tokens: usize) -> Vec<Micro> {
    let numbered: Vec<(u64, Item)> = (first..).zip(items.iter().copied()).collect();
    let kind = |pretraining: bool| numbered.iter().filter(move |(_, item)| item.is_pretraining() == pretraining);
    [false, true]
        .into_iter()
        .flat_map(|pretraining| {
            let of_kind: Vec<&(u64, Item)> = kind(pretraining).collect();
            let runs = micro_batches(of_kind.iter().map(|(_, item)| item.tokens()), micro_tokens);
            let micro = |run: Range<usize>| {
                let mut micro = Micro { packed: Packed::new(), weights: Vec::new(), pretraining, examples: run.len() };
                of_kind[run].iter().for_each(|(example, item)| micro.push(*item, *example, prompt_weight));
                micro
            };
            runs.into_iter().map(micro).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packing `item` predicts exactly `wanted`: the token read, the token predicted, the weight.
    #[track_caller]
    fn check(item: Item<'_>, prompt_weight: f32, wanted: &[(u32, u32, f32)]) {
        let micros = pack(&[item], 0, prompt_weight, 100);
        let [Micro { packed, weights, .. }] = &micros[..] else { panic!("{} micro-batches", micros.len()) };
        let seen = packed.predictions().iter().zip(weights);
        let seen: Vec<_> = seen.map(|(p, &weight)| (packed.ids()[p.row as usize], p.target, weight)).collect();
        assert_eq!(seen, wanted);
        assert_eq!(weights.len(), packed.predictions().len());
    }

    #[test]
    fn the_loss_sees_completions_with_their_end_and_prompts_only_when_asked() {
        let demonstration = |prompt: &[u32], completion: &[u32], weight, wanted: &[(u32, u32, f32)]| {
            let example = Example { prompt: prompt.to_vec(), completion: completion.to_vec() };
            check(Item::Demonstration(&example), weight, wanted);
        };
        demonstration(&[1, 2, 3], &[4, 0], 0.0, &[(3, 4, 1.0), (4, 0, 1.0)]);
        demonstration(&[1, 2, 3], &[4, 0], 0.5, &[(1, 2, 0.5), (2, 3, 0.5), (3, 4, 1.0), (4, 0, 1.0)]);
        demonstration(&[1, 2], &[0], 1.0, &[(1, 2, 1.0), (2, 0, 1.0)]);
        demonstration(&[1], &[4, 0], 0.5, &[(1, 4, 1.0), (4, 0, 1.0)]);
        demonstration(&[], &[4, 5, 0], 0.0, &[(4, 5, 1.0), (5, 0, 1.0)]);
        demonstration(&[], &[4, 5, 0], 0.5, &[(4, 5, 1.0), (5, 0, 1.0)]);
        check(Item::Pretraining(&[1, 2, 3]), 0.0, &[(1, 2, 1.0), (2, 3, 1.0)]);
        check(Item::Pretraining(&[1, 2, 3]), 0.5, &[(1, 2, 1.0), (2, 3, 1.0)]);
    }

    #[test]
    fn micro_batches_hold_one_kind_each_and_every_item_once() {
        let example = Example { prompt: vec![1, 2, 3], completion: vec![4, 0] };
        let window = [7, 8, 9, 9];
        let (d, p) = (Item::Demonstration(&example), Item::Pretraining(&window[..]));
        let items = [d, p, d, d, p, d];
        for (micro_tokens, wanted) in [(1, vec![5, 5, 5, 5, 4, 4]), (10, vec![10, 10, 8]), (99, vec![20, 8])] {
            let micros = pack(&items, 30, 0.0, micro_tokens);
            assert_eq!(micros.iter().map(|m| m.packed.len()).collect::<Vec<_>>(), wanted);
            let examples = micros.iter().flat_map(|m| m.packed.segments().iter().map(|s| (s.example, m.pretraining)));
            let wanted = [(30, false), (32, false), (33, false), (35, false), (31, true), (34, true)];
            assert_eq!(examples.collect::<Vec<_>>(), wanted, "keyed by place in the step, whatever the packing");
        }
        assert!(pack(&[], 0, 0.0, 10).is_empty());
    }
}
