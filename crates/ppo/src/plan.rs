//! Everything a PPO run can be told, and the three published recipes by name.

use crate::{guards::Guards, kl::KlControl};
use instruct_optim::{AdamConfig, AdamForm, Decay, Schedule, problems};
use serde::{Deserialize, Serialize};

/// A complete recipe. Every constant has a source in the presets below; "ours" marks a value that
/// the source does not give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Episodes over the whole run; prompts repeat in newly shuffled order when they run out.
    pub episodes: u64,
    /// Episodes sampled per iteration.
    pub batch: usize,
    /// Episodes per optimizer step; divides `batch`.
    pub minibatch: usize,
    /// Passes over the batch per iteration.
    pub inner_epochs: usize,
    /// Sampling temperature; logits are divided by it in old, new and reference alike.
    pub temperature: f32,
    /// Cap on completion tokens.
    pub max_new_tokens: usize,
    /// Peak learning rate of the policy.
    pub policy_lr: f64,
    /// How the learning rates move over iterations.
    pub schedule: Schedule,
    /// Where values come from.
    pub critic: Critic,
    /// Price of divergence from the reference.
    pub kl: KlControl,
    /// Discount per token.
    pub gamma: f32,
    /// Decay of the advantage estimate.
    pub lambda: f32,
    /// Half-width of the ratio clip.
    pub clip: f32,
    /// Half-width of the value clip.
    pub value_clip: f32,
    /// Where advantages are whitened.
    pub whiten_advantages: WhitenScope,
    /// Whether rewards are whitened too (scale only, the mean is kept), per batch.
    pub whiten_rewards: bool,
    /// Epsilon under the root of every whitening.
    pub whiten_eps: f32,
    /// What a completion that never stopped is worth.
    pub missing_eos: MissingEos,
    /// Weight of the pretraining loss (token means on both sides); 0 turns the mix off.
    pub gamma_ptx: f64,
    /// Pretraining windows per episode when the mix is on.
    pub ptx_examples: usize,
    /// Decay of the averaged policy per optimizer step; 0 keeps no average.
    pub ema: f64,
    /// Policies kept as candidates, evenly spaced over the iterations, the last one among them; 0 keeps none.
    pub candidates: u64,
    /// Adam's constants, for policy and critic.
    pub adam: AdamConfig,
    /// When to stop, or to warn.
    pub guards: Guards,
}

/// Where values come from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Critic {
    /// A model of its own, initialised from the reward model, with its own optimizer.
    Separate {
        /// Its learning rate.
        lr: f64,
        /// Weight of its loss.
        coefficient: f64,
    },
    /// A zero-initialised head on the policy's trunk, trained in the policy's step.
    Head {
        /// Weight of its loss beside the policy's.
        coefficient: f64,
    },
}

/// Over which tokens advantages are whitened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhitenScope {
    /// All completion tokens of the iteration, before the split.
    Batch,
    /// The completion tokens of each minibatch.
    Minibatch,
    /// Not at all.
    Off,
}

/// What a completion without a stop token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "value")]
pub enum MissingEos {
    /// Its score, like any other.
    Off,
    /// This score instead of its own.
    Replace(f32),
    /// Its score less this.
    Penalty(f32),
}

impl MissingEos {
    /// The score that training sees.
    pub fn apply(&self, score: f32, ended_by_eos: bool) -> f32 {
        match *self {
            MissingEos::Replace(fixed) if !ended_by_eos => fixed,
            MissingEos::Penalty(penalty) if !ended_by_eos => score - penalty,
            _ => score,
        }
    }
}

/// A published recipe by the name of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Ouyang et al. 2022, appendix C.4.
    #[serde(rename = "instructgpt")]
    InstructGpt,
    /// Stiennon et al. 2020, with the constants of the replication by Huang et al. 2024.
    SummarizeFromFeedback,
    /// Ziegler et al. 2019, with the constants of the authors' code.
    LmHumanPreferences,
}

impl Plan {
    /// The complete recipe of a source.
    pub fn preset(preset: Preset) -> Plan {
        match preset {
            Preset::InstructGpt => Plan::instructgpt(),
            Preset::SummarizeFromFeedback => Plan::summarize_from_feedback(),
            Preset::LmHumanPreferences => Plan::lm_human_preferences(),
        }
    }

    /// Ouyang et al. 2022. Ours, because the paper does not give them: `policy_lr` (it reports
    /// divergence above 8.05e-6 at 1.3B), whitening and its scope, `value_clip`, Adam's epsilon,
    /// weight decay, the gradient norm limit, and token means on both sides of `gamma_ptx`.
    fn instructgpt() -> Plan {
        Plan {
            episodes: 256_000,
            batch: 512,
            minibatch: 64,
            inner_epochs: 1,
            temperature: 1.0,
            max_new_tokens: 1_024,
            policy_lr: 5e-6,
            schedule: Schedule { warm_up: 10, decay: Decay::Constant },
            critic: Critic::Separate { lr: 9e-6, coefficient: 1.0 },
            kl: KlControl::Fixed { beta: 0.02 },
            gamma: 1.0,
            lambda: 0.95,
            clip: 0.2,
            value_clip: 0.2,
            whiten_advantages: WhitenScope::Batch,
            whiten_rewards: false,
            whiten_eps: 1e-8,
            missing_eos: MissingEos::Off,
            gamma_ptx: 27.8,
            ptx_examples: 8,
            ema: 0.992,
            candidates: 0,
            adam: AdamConfig::default(),
            guards: Guards::default(),
        }
    }

    /// Stiennon et al. 2020 as replicated on TL;DR: one separate value model from the reward model,
    /// four passes over the whole batch, a fixed score of -1 without a stop token.
    fn summarize_from_feedback() -> Plan {
        Plan {
            episodes: 1_000_000,
            minibatch: 512,
            inner_epochs: 4,
            temperature: 0.7,
            max_new_tokens: 53,
            policy_lr: 3e-6,
            schedule: Schedule { warm_up: 0, decay: Decay::LinearToZero },
            critic: Critic::Separate { lr: 3e-6, coefficient: 0.1 },
            kl: KlControl::Fixed { beta: 0.05 },
            missing_eos: MissingEos::Replace(-1.0),
            gamma_ptx: 0.0,
            ptx_examples: 0,
            ema: 0.0,
            adam: AdamConfig { beta2: 0.999, eps: 1e-5, clip_norm: 0.0, ..AdamConfig::default() },
            ..Plan::instructgpt()
        }
    }

    /// Ziegler et al. 2019: value head on the policy, adaptive price, TensorFlow's Adam, advantages
    /// whitened inside each minibatch, rewards whitened as in the stylistic tasks.
    fn lm_human_preferences() -> Plan {
        let base = Plan::summarize_from_feedback();
        Plan {
            max_new_tokens: 24,
            policy_lr: 1e-5,
            critic: Critic::Head { coefficient: 0.1 },
            kl: KlControl::Adaptive { initial: 0.15, target: 6.0, horizon: 10_000.0 },
            whiten_advantages: WhitenScope::Minibatch,
            whiten_rewards: true,
            adam: AdamConfig { form: AdamForm::TensorFlow, ..base.adam },
            ..base
        }
    }

    /// Iterations of the run; the last one is full, so episodes are rounded up to whole batches.
    pub fn iterations(&self) -> u64 {
        self.episodes.div_ceil(self.batch.max(1) as u64)
    }

    /// The name of the policy after so many iterations, where it is a candidate.
    pub fn candidate(&self, iteration: u64) -> Option<String> {
        let kept = |done: u64| done.saturating_mul(self.candidates) / self.iterations().max(1);
        let is_one = iteration > 0 && kept(iteration) > kept(iteration - 1);
        is_one.then(|| format!("iteration-{iteration:04}"))
    }

    /// The names of all candidates, in order.
    pub fn candidate_names(&self) -> Vec<String> {
        (1..=self.iterations()).filter_map(|iteration| self.candidate(iteration)).collect()
    }

    /// Optimizer steps per iteration.
    pub fn steps_per_iteration(&self) -> usize {
        self.inner_epochs * (self.batch / self.minibatch.max(1))
    }

    /// What is wrong with the recipe, each with its key; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let beta = self.kl.initial();
        let adaptive = match self.kl {
            KlControl::Adaptive { target, horizon, .. } => target > 0.0 && horizon > 0.0,
            KlControl::Fixed { .. } => true,
        };
        let (critic_learns, coefficient) = match self.critic {
            Critic::Separate { lr, coefficient } => (lr > 0.0 && lr.is_finite(), coefficient),
            Critic::Head { coefficient } => (true, coefficient),
        };
        let guards = problems(&self.guards.checks());
        let own = problems(&[
            (self.batch > 0, "`batch` is 0: sample at least one episode per iteration"),
            (
                self.minibatch > 0 && self.batch.is_multiple_of(self.minibatch),
                "`minibatch` does not divide `batch`: episodes would be dropped",
            ),
            (self.inner_epochs > 0, "`inner-epochs` is 0: nothing would be learned"),
            (self.temperature > 0.0, "`temperature` must be above 0: greedy episodes have no ratio"),
            (self.max_new_tokens > 0, "`max-new-tokens` is 0"),
            (self.policy_lr > 0.0 && self.policy_lr.is_finite(), "`policy-lr` must be above 0"),
            ((0.0..=1.0).contains(&self.gamma), "`gamma` must lie in 0..=1"),
            ((0.0..=1.0).contains(&self.lambda), "`lambda` must lie in 0..=1"),
            (self.clip > 0.0, "`clip` must be above 0"),
            (self.value_clip > 0.0, "`value-clip` must be above 0"),
            (self.gamma_ptx >= 0.0, "`gamma-ptx` must not be negative"),
            (self.gamma_ptx == 0.0 || self.ptx_examples > 0, "`gamma-ptx` is set but `ptx-examples` is 0"),
            ((0.0..1.0).contains(&self.ema), "`ema` must lie in 0..1"),
            (self.candidates <= self.iterations(), "`candidates` are more than there are iterations"),
            (beta >= 0.0 && beta.is_finite(), "the price per nat in `kl` must be a number, not below 0"),
            (adaptive, "`kl.target` and `kl.horizon` must be above 0"),
            (coefficient > 0.0 && coefficient.is_finite(), "`critic.coefficient` must be above 0"),
            (critic_learns, "`critic.lr` must be above 0"),
        ]);
        [own, self.adam.problems(), guards].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_sound() {
        for preset in [Preset::InstructGpt, Preset::SummarizeFromFeedback, Preset::LmHumanPreferences] {
            assert_eq!(Plan::preset(preset).problems(), Vec::<String>::new(), "{preset:?}");
        }
    }

    #[test]
    fn a_recipe_that_cannot_learn_says_why() {
        #[track_caller]
        fn check(plan: Plan, part: &str) {
            let problems = plan.problems();
            assert!(problems.len() == 1 && problems[0].contains(part), "`{part}` is not all of {problems:?}");
        }
        let plan = || Plan::preset(Preset::InstructGpt);
        check(Plan { batch: 100, ..plan() }, "`minibatch`");
        check(Plan { candidates: 501, ..plan() }, "`candidates`");
        check(Plan { policy_lr: f64::INFINITY, ..plan() }, "`policy-lr`");
        check(Plan { critic: Critic::Separate { lr: -1.0, coefficient: 1.0 }, ..plan() }, "`critic.lr`");
        check(Plan { critic: Critic::Head { coefficient: f64::NAN }, ..plan() }, "`critic.coefficient`");
        check(Plan { kl: KlControl::Fixed { beta: -0.1 }, ..plan() }, "`kl`");
        check(Plan { adam: AdamConfig { eps: 0.0, ..AdamConfig::default() }, ..plan() }, "`adam.eps`");
        check(Plan { guards: Guards { max_kl: f64::NAN, ..Guards::default() }, ..plan() }, "`guards.max-kl`");
        check(Plan { kl: KlControl::Adaptive { initial: 0.1, target: 0.0, horizon: 1.0 }, ..plan() }, "`kl.target`");
    }

    #[test]
    fn instructgpt_takes_eight_steps_an_iteration() {
        let plan = Plan::preset(Preset::InstructGpt);
        assert_eq!((plan.iterations(), plan.steps_per_iteration()), (500, 8));
    }

    #[test]
    fn candidates_are_evenly_spaced_and_the_last_is_one() {
        #[track_caller]
        fn check(iterations: u64, candidates: u64, want: &[u64]) {
            let plan = Plan { episodes: iterations * 8, batch: 8, candidates, ..Plan::preset(Preset::InstructGpt) };
            let want: Vec<String> = want.iter().map(|iteration| format!("iteration-{iteration:04}")).collect();
            assert_eq!(plan.candidate_names(), want);
        }
        check(10, 0, &[]);
        check(10, 1, &[10]);
        check(10, 2, &[5, 10]);
        check(10, 3, &[4, 7, 10]);
        check(3, 3, &[1, 2, 3]);
    }

    #[test]
    fn missing_eos_rules() {
        assert_eq!(MissingEos::Off.apply(0.5, false), 0.5);
        assert_eq!(MissingEos::Replace(-1.0).apply(0.5, false), -1.0);
        assert_eq!(MissingEos::Replace(-1.0).apply(0.5, true), 0.5);
        assert_eq!(MissingEos::Penalty(1.0).apply(0.5, false), -0.5);
    }
}
