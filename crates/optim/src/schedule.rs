//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate moves: up to its peak, then down from it. Steps count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Schedule {
    /// Steps on a line from a tenth of the peak to the peak; 0 begins at the peak. 10 in InstructGPT's
    /// PPO (appendix C.4); none is mentioned for SFT and the reward model.
    pub warm_up: u64,
    /// What comes after.
    pub decay: Decay,
}

/// How the learning rate leaves its peak, over the steps that are left after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It stays there (InstructGPT, appendix C.4: PPO).
    Constant,
    /// Half a cosine to one tenth of the peak (InstructGPT, appendix C.1 for SFT, C.2 for the reward
    /// model).
    CosineToTenth,
    /// A line to 0 (Ziegler et al. 2019, and the replications of Stiennon et al. 2020).
    LinearToZero,
}

impl Schedule {
    /// The peak throughout.
    pub const CONSTANT: Schedule = Schedule { warm_up: 0, decay: Decay::Constant };

    /// Half a cosine over the whole run, without warm-up.
    pub const COSINE: Schedule = Schedule { warm_up: 0, decay: Decay::CosineToTenth };

    /// The learning rate of step `step` of a run of `total` steps. Past its end a run stays where it
    /// ended.
    pub fn lr(&self, peak: f64, step: u64, total: u64) -> f64 {
        if step < self.warm_up {
            return peak * (0.1 + 0.9 * progress(step, self.warm_up));
        }
        let done = progress(step - self.warm_up, total.saturating_sub(self.warm_up));
        peak * match self.decay {
            Decay::Constant => 1.0,
            Decay::CosineToTenth => 0.1 + 0.45 * (1.0 + (PI * done).cos()),
            Decay::LinearToZero => 1.0 - done,
        }
    }
}

/// How much of `total` lies behind, in `[0, 1]`; nothing lies ahead of an empty span.
fn progress(step: u64, total: u64) -> f64 {
    if step >= total { 1.0 } else { step as f64 / total as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(warm_up: u64, decay: Decay, total: u64, rows: &[(u64, f64)]) {
        let schedule = Schedule { warm_up, decay };
        for &(step, want) in rows {
            let got = schedule.lr(2.0, step, total) / 2.0;
            assert!((got - want).abs() < 1e-12, "{schedule:?} at {step}: {got}, want {want}");
        }
    }

    #[test]
    fn rows_of_every_schedule() {
        check(0, Decay::Constant, 5, &[(0, 1.0), (1, 1.0), (u64::MAX, 1.0)]);
        check(
            0,
            Decay::CosineToTenth,
            8,
            &[(0, 1.0), (2, 0.1 + 0.45 * (1.0 + 0.5f64.sqrt())), (4, 0.55), (8, 0.1), (9, 0.1), (u64::MAX, 0.1)],
        );
        check(0, Decay::CosineToTenth, 1, &[(0, 1.0), (1, 0.1)]);
        check(0, Decay::CosineToTenth, 0, &[(0, 0.1)]);
        check(
            10,
            Decay::Constant,
            500,
            &[(0, 0.1), (1, 0.19), (5, 0.55), (9, 0.91), (10, 1.0), (11, 1.0), (u64::MAX, 1.0)],
        );
        check(0, Decay::LinearToZero, 4, &[(0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (100, 0.0)]);
        // What is left after the warm-up is the span of the decay.
        check(2, Decay::LinearToZero, 6, &[(0, 0.1), (1, 0.55), (2, 1.0), (4, 0.5), (6, 0.0)]);
        check(2, Decay::CosineToTenth, 10, &[(1, 0.55), (2, 1.0), (6, 0.55), (10, 0.1)]);
        // A run that ends within its warm-up never reaches the peak.
        check(10, Decay::LinearToZero, 5, &[(0, 0.1), (4, 0.46), (9, 0.91), (10, 0.0)]);
    }

    #[test]
    fn schedules_round_trip_through_serde() {
        for decay in [Decay::Constant, Decay::CosineToTenth, Decay::LinearToZero] {
            let schedule = Schedule { warm_up: 7, decay };
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule, "{text}");
        }
        assert!(serde_json::from_str::<Schedule>(r#"{"decay":"linear-to-zero","warm-up":1,"total":3}"#).is_err());
    }
}
