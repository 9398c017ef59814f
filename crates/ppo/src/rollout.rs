//! One iteration's experience: completions, what they scored, and what every model said of their
//! tokens. All per-token vectors run over the completion tokens of all episodes, end to end.

use crate::{
    Error, Plan, Result, WhitenScope,
    advantage::{gae, rewards, whiten},
    kl::{k1, k3},
    loss::greater,
};
use candle_core::{DType, Tensor};
use instruct_data::Packed;
use instruct_kernels::{Path, token_logprob};
use instruct_model::{Decoder, Pass, Request, Sampling, generate};
use instruct_random::Source;
use std::{collections::BTreeSet, ops::Range};

/// A sampled completion, as a scorer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// Number of the episode over the whole run; keys its draws.
    pub id: u64,
    /// Which prompt it answers: its index among the run's prompts.
    pub group: usize,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the completion, the stop token included when one was drawn.
    pub completion: Vec<u32>,
    /// The completion as text, without special tokens: for a scorer with another tokenizer.
    pub text: String,
    /// Whether a stop token ended it, rather than the cap.
    pub ended_by_eos: bool,
}

/// A score per episode: a reward model, a rule, or any closure. Its error stops the run.
pub type Score<'a> = &'a dyn Fn(&[Episode]) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;

/// What an iteration learns from. `E` episodes with `M` completion tokens in all.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// The episodes, `(E,)`.
    pub episodes: Vec<Episode>,
    /// Their raw scores, `(E,)`.
    pub scores: Vec<f32>,
    /// Where each episode's tokens lie in the vectors below, `(E,)`.
    pub tokens: Vec<Range<usize>>,
    /// Log-probabilities recorded while sampling, `(M,)`.
    pub sampled: Vec<f32>,
    /// Log-probabilities under the policy before the update, `(M,)`; those of sampling where the path
    /// makes them the same bits.
    pub old: Vec<f32>,
    /// Log-probabilities under the reference, `(M,)`.
    pub reference: Vec<f32>,
    /// Entropy of the policy before the update, `(M,)`.
    pub entropy: Vec<f32>,
    /// Values before the update, read at the row that predicts each token, `(M,)`.
    pub values: Vec<f32>,
    /// Advantages, whitened when the scope is the batch, `(M,)`.
    pub advantages: Vec<f32>,
    /// Advantages before whitening plus values, `(M,)`.
    pub returns: Vec<f32>,
}

impl Rollout {
    /// Samples one completion per request at the plan's temperature, without truncation.
    ///
    /// On the fused path what is recorded while sampling has the bits of the training forward, and so
    /// is the old log-probability already; the first minibatch of the update checks that it is.
    pub fn sample(
        policy: &Decoder,
        requests: &[(usize, Request)],
        plan: &Plan,
        stop: &BTreeSet<u32>,
        source: Source,
        decode: &dyn Fn(&[u32]) -> String,
    ) -> Result<Rollout> {
        let sampling = Sampling { temperature: plan.temperature, ..Sampling::plain(stop.clone(), plan.max_new_tokens) };
        let plain: Vec<Request> = requests.iter().map(|(_, request)| request.clone()).collect();
        let mut rollout = Rollout::default();
        for (completion, (group, request)) in generate(policy, &plain, &sampling, source)?.into_iter().zip(requests) {
            let start = rollout.sampled.len();
            rollout.tokens.push(start..start + completion.ids.len());
            rollout.sampled.extend(completion.logprobs);
            rollout.entropy.extend(completion.entropies);
            rollout.episodes.push(Episode {
                id: request.episode,
                group: *group,
                prompt: request.prompt.clone(),
                text: decode(&completion.ids),
                completion: completion.ids,
                ended_by_eos: completion.ended_by_eos,
            });
        }
        if policy.params().path() == Path::Fused {
            rollout.old.clone_from(&rollout.sampled);
        }
        Ok(rollout)
    }

    /// Experience of episodes drawn elsewhere, for measuring divergence: without what sampling
    /// recorded.
    pub fn of(episodes: Vec<Episode>) -> Rollout {
        let mut rollout = Rollout::default();
        let mut start = 0;
        for episode in &episodes {
            rollout.tokens.push(start..start + episode.completion.len());
            start += episode.completion.len();
        }
        rollout.episodes = episodes;
        rollout
    }

    /// Asks the scorer, once for all episodes.
    ///
    /// Errors: the scorer's own; a wrong number of scores; a score that is not finite.
    pub fn score(&mut self, score: Score<'_>) -> Result<()> {
        self.scores = score(&self.episodes).map_err(Error::Score)?;
        if self.scores.len() != self.episodes.len() {
            return Err(Error::ScoreCount { got: self.scores.len(), wanted: self.episodes.len() });
        }
        match self.scores.iter().position(|score| !score.is_finite()) {
            Some(at) => Err(Error::ScoreNotFinite { episode: self.episodes[at].id, score: self.scores[at] }),
            None => Ok(()),
        }
    }

    /// Computes the log-probabilities of every completion token in the training forward, under the
    /// reference and, where sampling has not left them, under the policy, with the policy's entropy.
    pub fn logprobs(&mut self, policy: &Decoder, reference: &Decoder, plan: &Plan, micro_tokens: usize) -> Result<()> {
        if self.old.is_empty() {
            (self.old, self.entropy) = self.read(policy, plan, micro_tokens)?;
        }
        (self.reference, _) = self.read(reference, plan, micro_tokens)?;
        Ok(())
    }

    /// Log-probability and entropy of every completion token under a model, `(M,)` each.
    fn read(&self, model: &Decoder, plan: &Plan, micro_tokens: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
        for micro in self.micro_batches(&self.all(), micro_tokens) {
            let batch = self.pack(&micro);
            let hidden = model.predicting(&batch, Pass::Infer)?;
            let both = token_logprobs(model, &hidden, &batch, plan.temperature)?;
            for row in both.to_vec2::<f32>()? {
                logprobs.push(row[0]);
                entropies.push(row[1]);
            }
        }
        Ok((logprobs, entropies))
    }

    /// Reads the value of every state, at the row that predicts its token.
    pub fn values(&mut self, value: &Decoder, micro_tokens: usize) -> Result<()> {
        let mut values = Vec::new();
        for micro in self.micro_batches(&self.all(), micro_tokens) {
            let batch = self.pack(&micro);
            let hidden = value.predicting(&batch, Pass::Infer)?;
            values.extend(value.scalars(&hidden, &rows(&batch))?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
        }
        self.values = values;
        Ok(())
    }

    /// Turns scores and divergences into advantages and returns, at the price `beta` per nat.
    pub fn advantages(&mut self, plan: &Plan, beta: f64) {
        let mut reward = Vec::with_capacity(self.old.len());
        for ((tokens, episode), &score) in self.tokens.iter().zip(&self.episodes).zip(&self.scores) {
            let score = plan.missing_eos.apply(score, episode.ended_by_eos);
            reward.extend(rewards(&self.old[tokens.clone()], &self.reference[tokens.clone()], score, beta as f32));
        }
        if plan.whiten_rewards {
            whiten(&mut reward, plan.whiten_eps, true);
        }
        self.advantages.clear();
        for tokens in &self.tokens {
            let (reward, values) = (&reward[tokens.clone()], &self.values[tokens.clone()]);
            self.advantages.extend(gae(reward, values, plan.gamma, plan.lambda));
        }
        self.returns = self.advantages.iter().zip(&self.values).map(|(a, v)| a + v).collect();
        if plan.whiten_advantages == WhitenScope::Batch {
            whiten(&mut self.advantages, plan.whiten_eps, false);
        }
    }

    /// Largest difference between a log-probability recorded while sampling and the one recomputed
    /// by the training forward, in nats.
    pub fn sampling_gap(&self) -> f32 {
        self.sampled.iter().zip(&self.old).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, greater) as f32
    }

    /// Summed k1 per episode, in nats, `(E,)`.
    pub fn kl(&self) -> Vec<f64> {
        self.per_episode(k1)
    }

    /// Summed k3 per episode, in nats, `(E,)`.
    pub fn kl_k3(&self) -> Vec<f64> {
        self.per_episode(k3)
    }

    fn per_episode(&self, estimate: fn(f32, f32) -> f64) -> Vec<f64> {
        let sum = |tokens: &Range<usize>| {
            let pairs = self.old[tokens.clone()].iter().zip(&self.reference[tokens.clone()]);
            pairs.map(|(&logprob, &reference)| estimate(logprob, reference)).sum()
        };
        self.tokens.iter().map(sum).collect()
    }

    /// The indices of all episodes.
    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.episodes.len()).collect()
    }

    /// Cuts a list of episodes into runs of about `micro_tokens` tokens, at least one each.
    pub(crate) fn micro_batches(&self, episodes: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
        let mut runs: Vec<Vec<usize>> = Vec::new();
        let mut tokens = usize::MAX;
        for &index in episodes {
            let episode = &self.episodes[index];
            let len = episode.prompt.len() + episode.completion.len();
            if tokens.saturating_add(len) > micro_tokens {
                runs.push(Vec::new());
                tokens = 0;
            }
            tokens += len;
            if let Some(run) = runs.last_mut() {
                run.push(index);
            }
        }
        runs
    }

    /// The packed batch of some episodes; its predictions run over their completion tokens.
    pub(crate) fn pack(&self, episodes: &[usize]) -> Packed {
        let mut batch = Packed::new();
        for &index in episodes {
            let episode = &self.episodes[index];
            let prompt = batch.push(&episode.prompt, episode.id);
            batch.push_completion(prompt, &episode.completion, episode.id, 1.0);
        }
        batch
    }

    /// One per-token vector, restricted to some episodes.
    pub(crate) fn pick(&self, values: &[f32], episodes: &[usize]) -> Vec<f32> {
        episodes.iter().flat_map(|&index| &values[self.tokens[index].clone()]).copied().collect()
    }
}

/// `(M, 2)` log-probabilities and entropies of a batch's predictions, at a sampling temperature.
pub(crate) fn token_logprobs(model: &Decoder, hidden: &Tensor, batch: &Packed, temperature: f32) -> Result<Tensor> {
    let targets: Vec<u32> = batch.predictions().iter().map(|p| p.target).collect();
    let both = token_logprob(hidden, model.unembedding()?, &rows(batch), &targets, temperature)?;
    Ok(both.to_dtype(DType::F32)?)
}

/// Every prediction's row of [`Decoder::predicting`].
pub(crate) fn rows(batch: &Packed) -> Vec<u32> {
    (0..batch.predictions().len() as u32).collect()
}
