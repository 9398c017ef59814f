//! One optimizer step of PPO: the clipped losses of a minibatch and the pretraining mix, all into
//! one gradient buffer per model.

use crate::{
    Plan, Result, WhitenScope,
    advantage::whiten,
    experience::Experience,
    loss::{greater, policy_loss, value_loss},
};
use candle_core::{DType, Tensor};
use instruct_data::Packed;
use instruct_kernels::{chain, token_nll_backward};
use instruct_model::{Decoder, Pass};
use instruct_optim::GradTree;
use instruct_rollout::{rows, token_logprobs};

/// What one minibatch measured before its step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct UpdateStats {
    pub(crate) policy_loss: f64,
    pub(crate) value_loss: f64,
    pub(crate) ptx_loss: f64,
    pub(crate) approxkl: f64,
    pub(crate) clipfrac: f64,
    pub(crate) value_clipfrac: f64,
    pub(crate) ratio: f64,
    pub(crate) ratio_deviation: f64,
}

/// A minibatch: some episodes of a rollout with their advantages.
pub(crate) struct Minibatch<'a> {
    experience: &'a Experience,
    micro: Vec<Vec<usize>>,
    /// Of its tokens, whitened as the plan says.
    pub(crate) advantages: Vec<f32>,
    tokens: f64,
}

impl<'a> Minibatch<'a> {
    pub(crate) fn new(
        experience: &'a Experience,
        episodes: &[usize],
        plan: &Plan,
        micro_tokens: usize,
    ) -> Minibatch<'a> {
        let mut advantages = experience.rollout.pick(&experience.advantages, episodes);
        if plan.whiten_advantages == WhitenScope::Minibatch {
            whiten(&mut advantages, plan.whiten_eps, false);
        }
        let tokens = advantages.len() as f64;
        Minibatch { experience, micro: experience.micro_batches(episodes, micro_tokens), advantages, tokens }
    }

    /// Whether every parameter of the policy must receive a gradient: not where all advantages are 0, as with
    /// a reward that is the same for all, unless a pretraining mix teaches the whole of a policy without a
    /// value head.
    pub(crate) fn teaches(&self, value_head: bool, ptx: &[Packed]) -> bool {
        self.advantages.iter().any(|&advantage| advantage != 0.0) || (!value_head && !ptx.is_empty())
    }

    /// Adds the gradients of policy loss, value head (if the policy carries one, weighted by
    /// `head`) and pretraining mix to the policy's buffer.
    pub(crate) fn policy_gradients(
        &self,
        policy: &Decoder,
        plan: &Plan,
        head: Option<f64>,
        ptx: &[Packed],
    ) -> Result<UpdateStats> {
        let mut stats = UpdateStats::default();
        let mut tree = GradTree::new(self.micro.len() + ptx.len());
        let mut advantages = self.advantages.as_slice();
        for micro in &self.micro {
            let batch = self.experience.pack(micro);
            let (here, rest) = advantages.split_at(batch.predictions().len());
            advantages = rest;
            self.policy_micro(policy, plan, head, micro, &batch, here, &mut stats)?;
            policy.params().with_grads(|grads| tree.push(grads))?;
        }
        let ptx_tokens: usize = ptx.iter().map(|batch| batch.predictions().len()).sum();
        for batch in ptx {
            stats.ptx_loss += ptx_micro(policy, batch, plan.gamma_ptx, ptx_tokens)?;
            policy.params().with_grads(|grads| tree.push(grads))?;
        }
        Ok(stats)
    }

    fn policy_micro(
        &self,
        policy: &Decoder,
        plan: &Plan,
        head: Option<f64>,
        micro: &[usize],
        batch: &Packed,
        advantages: &[f32],
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let hidden = policy.predicting(batch, Pass::Train)?;
        let logprobs = token_logprobs(policy, &hidden, batch, plan.temperature)?.narrow(1, 0, 1)?.flatten_all()?;
        let old = self.pick(&self.experience.rollout.old, micro);
        let out = policy_loss(&logprobs.to_vec1::<f32>()?, &old, advantages, plan.clip, self.tokens);
        stats.policy_loss += out.loss;
        stats.approxkl += out.approxkl;
        stats.clipfrac += out.clipfrac;
        stats.ratio += out.ratio;
        stats.ratio_deviation = greater(stats.ratio_deviation, out.ratio_deviation);
        let mut surrogate = chain(&logprobs, &out.gradient)?;
        if let Some(coefficient) = head {
            let values = policy.scalars(&hidden, &rows(batch))?.to_dtype(DType::F32)?;
            surrogate = (surrogate + self.value_surrogate(&values, plan, coefficient, micro, stats)?)?;
        }
        Ok(policy.params().backward(&surrogate)?)
    }

    /// Adds the gradients of the value loss to a separate value model's buffer.
    pub(crate) fn value_gradients(
        &self,
        value: &Decoder,
        plan: &Plan,
        coefficient: f64,
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let mut tree = GradTree::new(self.micro.len());
        for micro in &self.micro {
            let batch = self.experience.pack(micro);
            let hidden = value.predicting(&batch, Pass::Train)?;
            let values = value.scalars(&hidden, &rows(&batch))?.to_dtype(DType::F32)?;
            value.params().backward(&self.value_surrogate(&values, plan, coefficient, micro, stats)?)?;
            value.params().with_grads(|grads| tree.push(grads))?;
        }
        Ok(())
    }

    fn value_surrogate(
        &self,
        values: &Tensor,
        plan: &Plan,
        coefficient: f64,
        micro: &[usize],
        stats: &mut UpdateStats,
    ) -> Result<Tensor> {
        let old = self.pick(&self.experience.values, micro);
        let returns = self.pick(&self.experience.returns, micro);
        let out = value_loss(&values.to_vec1::<f32>()?, &old, &returns, plan.value_clip, self.tokens);
        stats.value_loss += out.loss;
        stats.value_clipfrac += out.clipfrac;
        let scaled: Vec<f32> = out.gradient.iter().map(|g| (coefficient * f64::from(*g)) as f32).collect();
        Ok(chain(values, &scaled)?)
    }

    /// Of a vector per token, those of a micro-batch.
    fn pick(&self, per_token: &[f32], micro: &[usize]) -> Vec<f32> {
        self.experience.rollout.pick(per_token, micro)
    }
}

/// Adds the gradient of `gamma * (mean over all ptx tokens of -log p)` and returns this batch's
/// share of the mean, without gamma.
fn ptx_micro(policy: &Decoder, batch: &Packed, gamma: f64, tokens: usize) -> Result<f64> {
    let hidden = policy.predicting(batch, Pass::Train)?;
    let targets: Vec<u32> = batch.predictions().iter().map(|p| p.target).collect();
    let weights = vec![(gamma / tokens as f64) as f32; targets.len()];
    let (params, unembedding) = (policy.params(), policy.unembedding()?);
    Ok(f64::from(token_nll_backward(params, &hidden, unembedding, &rows(batch), &targets, &weights)?) / gamma)
}
