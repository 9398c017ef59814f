//! The last state of a rollout: what two models say of its tokens, and how far they are apart.

use crate::{
    Episode,
    kl::{k1, k3},
};
use std::ops::Range;

/// Scored completions with what the policy and a reference say of them; see [`crate::Scored::compare`].
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// The episodes, `(E,)`.
    pub episodes: Vec<Episode>,
    /// Their raw scores, `(E,)`.
    pub scores: Vec<f32>,
    /// Where each episode's tokens lie in the vectors below, `(E,)`.
    pub tokens: Vec<Range<usize>>,
    /// Log-probabilities recorded while sampling, `(M,)`; those of `old` where nothing was recorded.
    pub sampled: Vec<f32>,
    /// Log-probabilities under the policy, `(M,)`: *old* once the policy learns.
    pub old: Vec<f32>,
    /// Log-probabilities under the reference, `(M,)`.
    pub reference: Vec<f32>,
    /// Entropy of the policy before each token, `(M,)`.
    pub entropy: Vec<f32>,
}

impl Compared {
    /// Largest difference between a log-probability recorded while sampling and the one of the training
    /// forward, in nats; NaN where one is no number.
    pub fn sampling_gap(&self) -> f32 {
        let larger = |a: f64, b: f64| if b.is_nan() || b > a { b } else { a };
        self.sampled.iter().zip(&self.old).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, larger) as f32
    }

    /// Summed k1 of each episode, in nats, `(E,)`.
    pub fn kl(&self) -> Vec<f64> {
        self.per_episode(k1)
    }

    /// Summed k3 of each episode, in nats, `(E,)`.
    pub fn kl_k3(&self) -> Vec<f64> {
        self.per_episode(k3)
    }

    /// Of a vector per token, the tokens of these episodes, in their order.
    pub fn pick(&self, per_token: &[f32], episodes: &[usize]) -> Vec<f32> {
        episodes.iter().flat_map(|&index| &per_token[self.tokens[index].clone()]).copied().collect()
    }

    fn per_episode(&self, estimate: fn(f32, f32) -> f64) -> Vec<f64> {
        let sum = |tokens: &Range<usize>| {
            let pairs = self.old[tokens.clone()].iter().zip(&self.reference[tokens.clone()]);
            pairs.map(|(&logprob, &reference)| estimate(logprob, reference)).sum()
        };
        self.tokens.iter().map(sum).collect()
    }
}
