//! What an iteration measured, under the names of the published curves.

use crate::{Plan, experience::Experience, update::UpdateStats};

/// The metrics of one iteration. docs/metrics.md defines each name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Mean over episodes of the summed k1, in nats.
    pub kl: f64,
    /// Mean over episodes of the summed k3, in nats.
    pub kl_k3: f64,
    /// Mean over episodes of the summed entropy, in nats.
    pub entropy: f64,
    /// Mean raw score.
    pub scores: f64,
    /// Mean over episodes of the score that training saw, less `beta` times the summed k1.
    pub rlhf_reward: f64,
    /// The price per nat in this iteration.
    pub kl_coef: f64,
    /// Policy loss, mean over the iteration's minibatches.
    pub policy_loss: f64,
    /// Value loss, mean over the iteration's minibatches.
    pub value_loss: f64,
    /// Pretraining loss in nats per token, mean over the iteration's minibatches; 0 without the mix.
    pub ptx_loss: f64,
    /// `0.5 * mean (logprob - old)^2`.
    pub approxkl: f64,
    /// Share of tokens clipped in the policy loss.
    pub clipfrac: f64,
    /// Mean entropy per token before the update, in nats.
    pub policy_entropy: f64,
    /// Mean ratio.
    pub ratio: f64,
    /// Largest `|ratio - 1|` on the first minibatch.
    pub ratio_first_minibatch: f64,
    /// Share of tokens clipped in the value loss.
    pub value_clipfrac: f64,
    /// `1 - var(returns - values) / var(returns)` before the update.
    pub explained_variance: f64,
    /// Episodes that ended with a stop token.
    pub num_eos_tokens: f64,
    /// Mean return per token.
    pub returns_mean: f64,
    /// Variance of the returns (biased).
    pub returns_var: f64,
    /// Mean completion length, in tokens.
    pub response_tokens: f64,
    /// Largest gap between sampled and recomputed log-probabilities, in nats.
    pub sampling_gap: f64,
    /// Learning rate of the policy.
    pub lr: f64,
    /// Global gradient norm of the policy before clipping, mean over the steps.
    pub grad_norm: f64,
}

impl instruct_runs::Metrics for Metrics {
    fn entries(&self) -> Vec<(&'static str, f64)> {
        let Metrics {
            kl,
            kl_k3,
            entropy,
            scores,
            rlhf_reward,
            kl_coef,
            policy_loss,
            value_loss,
            ptx_loss,
            approxkl,
            clipfrac,
            policy_entropy,
            ratio,
            ratio_first_minibatch,
            value_clipfrac,
            explained_variance,
            num_eos_tokens,
            returns_mean,
            returns_var,
            response_tokens,
            sampling_gap,
            lr,
            grad_norm,
        } = *self;
        vec![
            ("objective/kl", kl),
            ("objective/kl_k3", kl_k3),
            ("objective/entropy", entropy),
            ("objective/scores", scores),
            ("objective/rlhf_reward", rlhf_reward),
            ("objective/kl_coef", kl_coef),
            ("ppo/loss/policy", policy_loss),
            ("ppo/loss/value", value_loss),
            ("ppo/loss/ptx", ptx_loss),
            ("ppo/policy/approxkl", approxkl),
            ("ppo/policy/clipfrac", clipfrac),
            ("ppo/policy/entropy", policy_entropy),
            ("ppo/policy/ratio", ratio),
            ("ppo/policy/ratio_first_minibatch", ratio_first_minibatch),
            ("ppo/val/clipfrac", value_clipfrac),
            ("ppo/val/explained_variance", explained_variance),
            ("ppo/val/num_eos_tokens", num_eos_tokens),
            ("ppo/returns/mean", returns_mean),
            ("ppo/returns/var", returns_var),
            ("ppo/response_tokens", response_tokens),
            ("ppo/sampling_gap", sampling_gap),
            ("ppo/lr", lr),
            ("ppo/grad_norm", grad_norm),
        ]
    }
}

impl Metrics {
    /// What the experience alone tells, before any update.
    pub(crate) fn of_experience(experience: &Experience, plan: &Plan, beta: f64) -> Metrics {
        let Experience { rollout, values, returns, advantages: _ } = experience;
        let episodes = rollout.episodes.len().max(1) as f64;
        let tokens = rollout.old.len().max(1) as f64;
        let kl = rollout.kl().iter().sum::<f64>() / episodes;
        let entropy: f64 = rollout.entropy.iter().map(|&x| f64::from(x)).sum();
        let (returns_mean, returns_var) = moments(returns.iter().map(|&x| f64::from(x)));
        let errors = returns.iter().zip(values).map(|(r, v)| f64::from(r - v));
        let pairs = rollout.episodes.iter().zip(&rollout.scores);
        let seen = pairs.map(|(e, &score)| f64::from(plan.missing_eos.apply(score, e.ended_by_eos)));
        Metrics {
            kl,
            kl_k3: rollout.kl_k3().iter().sum::<f64>() / episodes,
            entropy: entropy / episodes,
            scores: rollout.scores.iter().map(|&x| f64::from(x)).sum::<f64>() / episodes,
            rlhf_reward: seen.sum::<f64>() / episodes - beta * kl,
            kl_coef: beta,
            policy_entropy: entropy / tokens,
            explained_variance: if returns_var > 0.0 { 1.0 - moments(errors).1 / returns_var } else { 0.0 },
            num_eos_tokens: rollout.episodes.iter().filter(|e| e.ended_by_eos).count() as f64,
            returns_mean,
            returns_var,
            response_tokens: tokens / episodes,
            sampling_gap: f64::from(rollout.sampling_gap()),
            ..Metrics::default()
        }
    }

    /// The curves in which a jump deserves a warning.
    pub(crate) fn spiking(&self) -> [(&'static str, f64); 4] {
        [
            ("ppo/loss/policy", self.policy_loss),
            ("ppo/loss/value", self.value_loss),
            ("ppo/loss/ptx", self.ptx_loss),
            ("ppo/grad_norm", self.grad_norm),
        ]
    }

    /// Adds one of `steps` minibatches.
    pub(crate) fn add(&mut self, stats: &UpdateStats, grad_norm: f64, steps: usize) {
        let n = steps as f64;
        self.policy_loss += stats.policy_loss / n;
        self.value_loss += stats.value_loss / n;
        self.ptx_loss += stats.ptx_loss / n;
        self.approxkl += stats.approxkl / n;
        self.clipfrac += stats.clipfrac / n;
        self.ratio += stats.ratio / n;
        self.value_clipfrac += stats.value_clipfrac / n;
        self.grad_norm += grad_norm / n;
    }
}

/// Mean and biased variance.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, values.map(|x| (x - mean).powi(2)).sum::<f64>() / n)
}
