//! What an iteration learns from: a rollout, its values, and the advantages that follow.

use crate::{
    Plan, WhitenScope,
    advantage::{gae, rewards, whiten},
};
use instruct_data::Packed;
use instruct_rollout::{Compared, Episode, micro_batches, pack};

/// A rollout with everything that its losses read. Vectors per token run as in [`Compared`].
#[derive(Clone, Debug)]
pub(crate) struct Experience {
    pub(crate) rollout: Compared,
    /// Values before the update, read at the row that predicts each token, `(M,)`.
    pub(crate) values: Vec<f32>,
    /// Advantages, whitened when the scope is the batch, `(M,)`.
    pub(crate) advantages: Vec<f32>,
    /// Advantages before whitening plus values, `(M,)`.
    pub(crate) returns: Vec<f32>,
}

impl Experience {
    /// Turns scores and divergences into advantages and returns, at the price `beta` per nat.
    pub(crate) fn new(rollout: Compared, values: Vec<f32>, plan: &Plan, beta: f64) -> Experience {
        let mut reward = Vec::with_capacity(rollout.old.len());
        for ((tokens, episode), &score) in rollout.tokens.iter().zip(&rollout.episodes).zip(&rollout.scores) {
            let score = plan.missing_eos.apply(score, episode.ended_by_eos);
            let (old, reference) = (&rollout.old[tokens.clone()], &rollout.reference[tokens.clone()]);
            reward.extend(rewards(old, reference, score, beta as f32));
        }
        if plan.whiten_rewards {
            whiten(&mut reward, plan.whiten_eps, true);
        }
        let mut advantages = Vec::with_capacity(reward.len());
        for tokens in &rollout.tokens {
            advantages.extend(gae(&reward[tokens.clone()], &values[tokens.clone()], plan.gamma, plan.lambda));
        }
        let returns = advantages.iter().zip(&values).map(|(a, v)| a + v).collect();
        if plan.whiten_advantages == WhitenScope::Batch {
            whiten(&mut advantages, plan.whiten_eps, false);
        }
        Experience { rollout, values, advantages, returns }
    }

    /// Cuts a list of episodes into runs of about `micro_tokens` tokens, at least one each.
    pub(crate) fn micro_batches(&self, episodes: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
        let runs = micro_batches(self.episodes(episodes), micro_tokens);
        runs.into_iter().map(|run| episodes[run].to_vec()).collect()
    }

    /// The packed batch of some episodes; its predictions run over their completion tokens.
    pub(crate) fn pack(&self, episodes: &[usize]) -> Packed {
        pack(self.episodes(episodes))
    }

    fn episodes(&self, indices: &[usize]) -> impl Iterator<Item = &Episode> {
        indices.iter().map(|&index| &self.rollout.episodes[index])
    }
}
