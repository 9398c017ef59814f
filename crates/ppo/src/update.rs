//! One optimizer step of PPO: the clipped losses of a minibatch and the pretraining mix, all into
//! one gradient buffer per model.

use crate::{
    Error, Plan, Result, WhitenScope,
    advantage::whiten,
    experience::Experience,
    loss::{greater, policy_loss, value_loss},
};
use candle_core::{DType, Tensor};
use instruct_data::Packed;
use instruct_kernels::{chain, token_nll_backward};
use instruct_model::{Decoder, Pass};
use instruct_optim::{Compute, GradTree};
use instruct_rollout::{rows, token_logprobs};
use std::ops::Range;

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

impl UpdateStats {
    /// As ranks exchange them.
    fn numbers(&self) -> [f64; 8] {
        let UpdateStats {
            policy_loss,
            value_loss,
            ptx_loss,
            approxkl,
            clipfrac,
            value_clipfrac,
            ratio,
            ratio_deviation,
        } = *self;
        [policy_loss, value_loss, ptx_loss, approxkl, clipfrac, value_clipfrac, ratio, ratio_deviation]
    }

    fn of(numbers: [f64; 8]) -> UpdateStats {
        let [policy_loss, value_loss, ptx_loss, approxkl, clipfrac, value_clipfrac, ratio, ratio_deviation] = numbers;
        UpdateStats { policy_loss, value_loss, ptx_loss, approxkl, clipfrac, value_clipfrac, ratio, ratio_deviation }
    }

    /// Adds what a leaf of the minibatch measured.
    fn add(&mut self, other: &UpdateStats) {
        self.policy_loss += other.policy_loss;
        self.value_loss += other.value_loss;
        self.ptx_loss += other.ptx_loss;
        self.approxkl += other.approxkl;
        self.clipfrac += other.clipfrac;
        self.value_clipfrac += other.value_clipfrac;
        self.ratio += other.ratio;
        self.ratio_deviation = greater(self.ratio_deviation, other.ratio_deviation);
    }
}

/// A minibatch: some episodes of a rollout with their advantages.
pub(crate) struct Minibatch<'a> {
    experience: &'a Experience,
    /// The micro-batches of each leaf.
    pub(crate) leaves: Vec<Vec<Micro>>,
    /// Of its tokens, whitened as the plan says.
    pub(crate) advantages: Vec<f32>,
    tokens: f64,
    compute: Compute<'a>,
}

/// Episodes that are computed together.
pub(crate) struct Micro {
    episodes: Vec<usize>,
    /// Theirs of the tokens of the minibatch.
    tokens: Range<usize>,
}

impl<'a> Minibatch<'a> {
    pub(crate) fn new(
        experience: &'a Experience,
        episodes: &[usize],
        plan: &Plan,
        compute: Compute<'a>,
    ) -> Minibatch<'a> {
        let mut advantages = experience.rollout.pick(&experience.advantages, episodes);
        if plan.whiten_advantages == WhitenScope::Minibatch {
            whiten(&mut advantages, plan.whiten_eps, false);
        }
        let (tokens, mut at) = (advantages.len() as f64, 0);
        let mut micro = |episodes: Vec<usize>| {
            let first = at;
            at += episodes.iter().map(|&episode| experience.rollout.tokens[episode].len()).sum::<usize>();
            Micro { episodes, tokens: first..at }
        };
        let leaves = compute.deal(episodes.len()).map(|leaf| {
            let runs = experience.micro_batches(&episodes[leaf], compute.micro_tokens);
            runs.into_iter().map(&mut micro).collect()
        });
        Minibatch { experience, leaves: leaves.collect(), advantages, tokens, compute }
    }

    /// Whether every parameter of the policy must receive a gradient: not where all advantages are 0, as with
    /// a reward that is the same for all, unless a pretraining mix teaches the whole of a policy without a
    /// value head.
    pub(crate) fn teaches(&self, value_head: bool, ptx: &[Vec<Packed>]) -> bool {
        self.advantages.iter().any(|&advantage| advantage != 0.0)
            || (!value_head && ptx.iter().any(|leaf| !leaf.is_empty()))
    }

    /// Puts the gradients of policy loss, value head (if the policy carries one, weighted by
    /// `head`) and pretraining mix, of which each leaf has its windows, into the policy's buffer.
    pub(crate) fn policy_gradients(
        &self,
        policy: &Decoder,
        plan: &Plan,
        head: Option<f64>,
        ptx: &[Vec<Packed>],
    ) -> Result<UpdateStats> {
        let ptx_tokens: usize = ptx.iter().flatten().map(|batch| batch.predictions().len()).sum();
        let leaves = self.leaves.iter().zip(ptx);
        let of_leaves = GradTree::over(policy.params(), self.compute, leaves, |tree, (leaf, ptx)| {
            let mut stats = UpdateStats::default();
            for micro in leaf {
                self.policy_micro(policy, plan, head, micro, &mut stats)?;
                tree.push(policy.params());
            }
            for batch in ptx {
                stats.ptx_loss += ptx_micro(policy, batch, plan.gamma_ptx, ptx_tokens)?;
                tree.push(policy.params());
            }
            Ok::<_, Error>(stats.numbers())
        })?;
        let mut stats = UpdateStats::default();
        of_leaves.into_iter().for_each(|leaf| stats.add(&UpdateStats::of(leaf)));
        Ok(stats)
    }

    fn policy_micro(
        &self,
        policy: &Decoder,
        plan: &Plan,
        head: Option<f64>,
        micro: &Micro,
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let batch = self.experience.pack(&micro.episodes);
        let hidden = policy.predicting(&batch, Pass::Train)?;
        let logprobs = token_logprobs(policy, &hidden, &batch, plan.temperature)?.narrow(1, 0, 1)?.flatten_all()?;
        let old = self.pick(&self.experience.rollout.old, micro);
        let advantages = &self.advantages[micro.tokens.clone()];
        let out = policy_loss(&logprobs.to_vec1::<f32>()?, &old, advantages, plan.clip, self.tokens);
        stats.policy_loss += out.loss;
        stats.approxkl += out.approxkl;
        stats.clipfrac += out.clipfrac;
        stats.ratio += out.ratio;
        stats.ratio_deviation = greater(stats.ratio_deviation, out.ratio_deviation);
        let mut surrogate = chain(&logprobs, &out.gradient)?;
        if let Some(coefficient) = head {
            let values = policy.scalars(&hidden, &rows(&batch))?.to_dtype(DType::F32)?;
            surrogate = (surrogate + self.value_surrogate(&values, plan, coefficient, micro, stats)?)?;
        }
        Ok(policy.params().backward(&surrogate)?)
    }

    /// Puts the gradients of the value loss into a separate value model's buffer.
    pub(crate) fn value_gradients(
        &self,
        value: &Decoder,
        plan: &Plan,
        coefficient: f64,
        stats: &mut UpdateStats,
    ) -> Result<()> {
        let of_leaves = GradTree::over(value.params(), self.compute, &self.leaves, |tree, leaf| {
            let mut stats = UpdateStats::default();
            for micro in leaf {
                let batch = self.experience.pack(&micro.episodes);
                let hidden = value.predicting(&batch, Pass::Train)?;
                let values = value.scalars(&hidden, &rows(&batch))?.to_dtype(DType::F32)?;
                value.params().backward(&self.value_surrogate(&values, plan, coefficient, micro, &mut stats)?)?;
                tree.push(value.params());
            }
            Ok::<_, Error>(stats.numbers())
        })?;
        of_leaves.into_iter().for_each(|leaf| stats.add(&UpdateStats::of(leaf)));
        Ok(())
    }

    fn value_surrogate(
        &self,
        values: &Tensor,
        plan: &Plan,
        coefficient: f64,
        micro: &Micro,
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
    fn pick(&self, per_token: &[f32], micro: &Micro) -> Vec<f32> {
        self.experience.rollout.pick(per_token, &micro.episodes)
    }
}

/// Adds the gradient of `gamma * (mean over all ptx tokens of -log p)` and returns this batch's
/// share of the mean, without gamma.
pub(crate) fn ptx_micro(policy: &Decoder, batch: &Packed, gamma: f64, tokens: usize) -> Result<f64> {
    let hidden = policy.predicting(batch, Pass::Train)?;
    let targets: Vec<u32> = batch.predictions().iter().map(|p| p.target).collect();
    let weights = vec![(gamma / tokens as f64) as f32; targets.len()];
    let (params, unembedding) = (policy.params(), policy.unembedding()?);
    Ok(f64::from(token_nll_backward(params, &hidden, unembedding, &rows(batch), &targets, &weights)?) / gamma)
}
