//! What an iteration must not look like: each guard says what it saw, the likely cause, and the key
//! that sets it.

use crate::{Error, MissingEos, Result};
use instruct_optim::SpikeWatch;
use instruct_rollout::{Episode, Scored};
use serde::{Deserialize, Serialize};

/// When a run stops, or warns, before it wastes hours. Every default is ours, since no published
/// implementation has one: TRL's early stop on KL was removed again. A healthy run stays far from
/// each; 0 turns a guard off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Guards {
    /// Largest `|ratio - 1|` on the first minibatch of an iteration. On the fused path it is 0; in
    /// f32 the sums of a softmax over 10^5 tokens round by less than the default.
    pub ratio_tolerance: f64,
    /// Largest `objective/kl`, in nats per episode. At 100 a policy says what its reference would say
    /// once in e^100 times; recorded runs, over-optimised ones included, stay below 11.
    pub max_kl: f64,
    /// Most negative sum of k1 over an iteration's episodes, in nats. `exp(-sum of k1)` has the mean 1
    /// when the recorded log-probabilities are those that sampled, so that by Markov's inequality
    /// an honest iteration reaches `-x` with a chance of at most `e^-x`, whatever its size: 2e-9 at 20.
    pub negative_kl: f64,
    /// Least `ppo/policy/entropy`, in nats per token. Below it every completion of a prompt is the
    /// same one, and advantages are noise.
    pub min_entropy: f64,
    /// Iterations in a row in which every completion runs into the cap. One may be an untrained
    /// policy; without a stop id nothing is expected to end, and nothing is counted.
    pub capped_iterations: u64,
    /// Iterations in a row in which every episode has the same score. One may be a rule that nobody
    /// has satisfied yet.
    pub constant_iterations: u64,
    /// A loss or gradient norm so many standard deviations above its recent values is warned of.
    pub spike_z: f64,
}

impl Default for Guards {
    fn default() -> Guards {
        Guards {
            ratio_tolerance: 1e-4,
            max_kl: 100.0,
            negative_kl: 20.0,
            min_entropy: 1e-3,
            capped_iterations: 10,
            constant_iterations: 10,
            spike_z: SpikeWatch::Z,
        }
    }
}

impl Guards {
    /// What is wrong with them, each `(fine, problem)`.
    pub(crate) fn checks(&self) -> [(bool, &'static str); 5] {
        let limit = |x: f64| x >= 0.0;
        [
            (limit(self.ratio_tolerance), "`guards.ratio-tolerance` must be a number, not below 0"),
            (limit(self.max_kl), "`guards.max-kl` must be a number, not below 0"),
            (limit(self.negative_kl), "`guards.negative-kl` must be a number, not below 0"),
            (limit(self.min_entropy), "`guards.min-entropy` must be a number, not below 0"),
            (limit(self.spike_z), "`guards.spike-z` must be a number, not below 0"),
        ]
    }
}

/// What the guards remember from one iteration to the next: part of the state, so that a resumed run
/// stops where the uninterrupted one does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardMemory {
    /// Iterations in a row in which nothing ended before the cap.
    pub capped: u64,
    /// Iterations in a row in which every score was the same.
    pub constant: u64,
    /// Recent losses and gradient norms.
    pub spikes: SpikeWatch,
}

/// What stopped a run, with its likely cause and the key of the plan that decides.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Alarm {
    /// The policy that trains is not the one that sampled.
    #[error(
        "on the first minibatch a ratio differs from 1 by {deviation:.3e}, and `guards.ratio-tolerance` is \
         {tolerance:.1e}: old and new log-probabilities come from different weights, temperatures or forwards, or \
         dropout is on"
    )]
    Ratio {
        /// Largest `|ratio - 1|`.
        deviation: f64,
        /// What rounding allows.
        tolerance: f64,
    },
    /// The policy has left its reference far behind.
    #[error(
        "the policy is {kl:.1} nats per episode from its reference, and `guards.max-kl` is {limit}: raise the price in \
         `kl`, lower `policy-lr`, or look at what the highest scores are given for"
    )]
    Divergence {
        /// `objective/kl`.
        kl: f64,
        /// The limit.
        limit: f64,
    },
    /// A divergence that honest sampling does not give.
    #[error(
        "the summed KL of {episodes} episodes is {total:.1} nats, and `guards.negative-kl` allows -{limit}: their \
         tokens were not drawn from the policy whose log-probabilities are compared (weights that moved, a truncated \
         or suppressed distribution, another temperature)"
    )]
    NegativeKl {
        /// Sum of k1 over the iteration.
        total: f64,
        /// Episodes of the iteration.
        episodes: usize,
        /// How negative it may be.
        limit: f64,
    },
    /// The policy says one thing only.
    #[error(
        "the policy's entropy is {entropy:.1e} nats per token, and `guards.min-entropy` is {floor:.1e}: it has \
         collapsed onto one completion per prompt; raise the price in `kl` or lower `policy-lr`"
    )]
    EntropyCollapse {
        /// `ppo/policy/entropy`.
        entropy: f64,
        /// The floor.
        floor: f64,
    },
    /// Nothing ends any more.
    #[error(
        "for {iterations} iterations no completion has ended before the cap of {cap} tokens \
         (`guards.capped-iterations`): raise `max-new-tokens`, set `missing-eos`, or check that demonstrations end \
         with a stop id and that it is among {stop:?}"
    )]
    AllCapped {
        /// Iterations in a row.
        iterations: u64,
        /// The cap, in tokens.
        cap: usize,
        /// The ids that would have ended a completion.
        stop: Vec<u32>,
    },
    /// There is nothing to learn from the scores.
    #[error(
        "for {iterations} iterations every episode has scored {score} (`guards.constant-iterations`): nothing can be \
         learned from a reward without variance; look at the scoring function and at `missing-eos`"
    )]
    ConstantScore {
        /// Iterations in a row.
        iterations: u64,
        /// The score that training saw.
        score: f32,
    },
}

impl GuardMemory {
    /// Counts an iteration whose completions have been drawn.
    ///
    /// Errors: [`Alarm::AllCapped`].
    pub(crate) fn sampled(
        &mut self,
        guards: &Guards,
        episodes: &[Episode],
        cap: usize,
        stop: impl IntoIterator<Item = u32>,
    ) -> Result<(), Alarm> {
        let stop: Vec<u32> = stop.into_iter().collect();
        let capped = !stop.is_empty() && episodes.iter().all(|episode| !episode.ended_by_eos);
        self.capped = if capped { self.capped + 1 } else { 0 };
        match guards.capped_iterations {
            limit if limit > 0 && self.capped >= limit => Err(Alarm::AllCapped { iterations: self.capped, cap, stop }),
            _ => Ok(()),
        }
    }

    /// Counts an iteration whose completions have been scored.
    ///
    /// Errors: [`Alarm::ConstantScore`].
    pub(crate) fn scored(&mut self, guards: &Guards, scored: &Scored, missing: MissingEos) -> Result<(), Alarm> {
        let pairs = scored.scores.iter().zip(&scored.episodes);
        let mut seen = pairs.map(|(&score, episode)| missing.apply(score, episode.ended_by_eos));
        let Some(score) = seen.next() else { return Ok(()) };
        // One episode alone varies from nothing.
        let constant = scored.scores.len() > 1 && seen.all(|other| other == score);
        self.constant = if constant { self.constant + 1 } else { 0 };
        match guards.constant_iterations {
            limit if limit > 0 && self.constant >= limit => {
                Err(Alarm::ConstantScore { iterations: self.constant, score })
            }
            _ => Ok(()),
        }
    }
}

/// Judges what the log-probabilities of an iteration say: its divergence per episode and its entropy
/// per token, both finite.
///
/// Errors: [`Alarm::NegativeKl`], [`Alarm::Divergence`], [`Alarm::EntropyCollapse`].
pub(crate) fn compared(guards: &Guards, kl: f64, entropy: f64, episodes: usize) -> Result<(), Alarm> {
    let total = kl * episodes as f64;
    if guards.negative_kl > 0.0 && total < -guards.negative_kl {
        return Err(Alarm::NegativeKl { total, episodes, limit: guards.negative_kl });
    }
    if guards.max_kl > 0.0 && kl > guards.max_kl {
        return Err(Alarm::Divergence { kl, limit: guards.max_kl });
    }
    if entropy < guards.min_entropy {
        return Err(Alarm::EntropyCollapse { entropy, floor: guards.min_entropy });
    }
    Ok(())
}

/// The first minibatch after a rollout must find the policy unchanged.
///
/// Errors: [`Alarm::Ratio`] when some ratio is further than the tolerance from 1, or no number.
pub(crate) fn first_ratio(guards: &Guards, deviation: f64) -> Result<(), Alarm> {
    let tolerance = guards.ratio_tolerance;
    // Written so that a NaN fails too.
    if tolerance == 0.0 || deviation <= tolerance { Ok(()) } else { Err(Alarm::Ratio { deviation, tolerance }) }
}

/// Puts the number of the iteration, from 1 on, before an alarm.
pub(crate) fn at<T>(iteration: u64, result: Result<T, Alarm>) -> Result<T> {
    result.map_err(|alarm| Error::Guard { iteration: iteration + 1, alarm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_ratio(deviation: f64, passes: bool) {
        assert_eq!(first_ratio(&Guards::default(), deviation).is_ok(), passes, "{deviation}");
    }

    #[test]
    fn only_a_ratio_of_one_passes() {
        check_ratio(0.0, true);
        check_ratio(1e-4, true);
        check_ratio(2e-4, false);
        check_ratio(f64::INFINITY, false);
        check_ratio(f64::NAN, false);
        assert!(first_ratio(&Guards { ratio_tolerance: 0.0, ..Guards::default() }, 1.0).is_ok(), "0 turns it off");
    }

    #[track_caller]
    fn check_compared(kl: f64, entropy: f64, part: &str) {
        let found = compared(&Guards::default(), kl, entropy, 128).err().map_or(String::new(), |a| a.to_string());
        assert!(if part.is_empty() { found.is_empty() } else { found.contains(part) }, "{kl} {entropy}: {found}");
        let off = Guards { max_kl: 0.0, negative_kl: 0.0, min_entropy: 0.0, ..Guards::default() };
        compared(&off, kl, entropy, 128).unwrap();
    }

    #[test]
    fn divergence_and_entropy_have_their_limits() {
        check_compared(3.0, 0.5, "");
        check_compared(-0.15, 0.5, "");
        check_compared(-0.16, 0.5, "`guards.negative-kl`");
        check_compared(100.0, 0.5, "");
        check_compared(101.0, 0.5, "`guards.max-kl`");
        check_compared(3.0, 9e-4, "`guards.min-entropy`");
    }
}
