//! Which examples form a step, and how they become micro-batches.

use instruct_data::Packed;

/// A demonstration as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids of the prompt; may be empty only when the completion has a token to start from.
    pub prompt: Vec<u32>,
    /// Token ids of the completion, EOS included.
    pub completion: Vec<u32>,
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
}

/// A micro-batch of one kind of example: its tokens, and the weight of each of its predictions.
pub(crate) struct Micro {
    pub(crate) packed: Packed,
    pub(crate) weights: Vec<f32>,
    pub(crate) pretraining: bool,
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

/// Packs items into micro-batches of about `micro_tokens` tokens, at least one item each:
/// demonstrations first, then pretraining windows, so that the loss of each kind is known apart.
/// Item `i` is example `first + i` for the dropout draws.
pub(crate) fn pack(items: &[Item<'_>], first: u64, prompt_weight: f32, micro_tokens: usize) -> Vec<Micro> {
    let mut micros: Vec<Micro> = Vec::new();
    let numbered = || (first..).zip(items);
    let kind = |wanted: bool| numbered().filter(move |(_, item)| item.is_pretraining() == wanted);
    for (example, &item) in kind(false).chain(kind(true)) {
        let tokens = match item {
            Item::Demonstration(example) => example.prompt.len() + example.completion.len(),
            Item::Pretraining(window) => window.len(),
        };
        let pretraining = item.is_pretraining();
        let fits = |last: &Micro| last.pretraining == pretraining && last.packed.len() + tokens <= micro_tokens;
        if !micros.last().is_some_and(fits) {
            micros.push(Micro { packed: Packed::new(), weights: Vec::new(), pretraining });
        }
        if let Some(micro) = micros.last_mut() {
            micro.push(item, example, prompt_weight);
        }
    }
    micros
}
