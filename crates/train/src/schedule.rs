//! The learning rate as a function of the step.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate moves from its peak. Steps count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// Always the peak.
    Constant,
    /// Half a cosine from the peak at step 0 to one tenth of it at step `total`, without warm-up
    /// (InstructGPT, appendix C.1 for SFT and C.2 for the reward model).
    CosineToTenth {
        /// Steps of the whole run.
        total: u64,
    },
    /// A line from one tenth of the peak at step 0 to the peak at step `iterations`, then constant
    /// (InstructGPT, appendix C.4: PPO over its first 10 iterations).
    WarmupFromTenth {
        /// Steps until the peak; 0 means constant.
        iterations: u64,
    },
    /// A line from the peak at step 0 to 0 at step `total` (Ziegler et al. 2019, and the
    /// replications of Stiennon et al. 2020).
    LinearToZero {
        /// Steps of the whole run.
        total: u64,
    },
}

impl Schedule {
    /// The learning rate of step `step` (0-based), given the peak. Past its end a schedule stays
    /// where it ended.
    pub fn lr(&self, peak: f64, step: u64) -> f64 {
        let factor = match *self {
            Schedule::Constant => 1.0,
            Schedule::CosineToTenth { total } => 0.1 + 0.45 * (1.0 + (PI * progress(step, total)).cos()),
            Schedule::WarmupFromTenth { iterations } => 0.1 + 0.9 * progress(step, iterations),
            Schedule::LinearToZero { total } => 1.0 - progress(step, total),
        };
        peak * factor
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
    fn check(schedule: Schedule, rows: &[(u64, f64)]) {
        for &(step, want) in rows {
            let got = schedule.lr(2.0, step) / 2.0;
            assert!((got - want).abs() < 1e-12, "{schedule:?} at {step}: {got}, want {want}");
        }
    }

    #[test]
    fn rows_of_every_schedule() {
        check(Schedule::Constant, &[(0, 1.0), (1, 1.0), (u64::MAX, 1.0)]);
        check(
            Schedule::CosineToTenth { total: 8 },
            &[(0, 1.0), (2, 0.1 + 0.45 * (1.0 + 0.5f64.sqrt())), (4, 0.55), (8, 0.1), (9, 0.1), (u64::MAX, 0.1)],
        );
        check(Schedule::CosineToTenth { total: 1 }, &[(0, 1.0), (1, 0.1)]);
        check(Schedule::CosineToTenth { total: 0 }, &[(0, 0.1)]);
        check(
            Schedule::WarmupFromTenth { iterations: 10 },
            &[(0, 0.1), (1, 0.19), (5, 0.55), (9, 0.91), (10, 1.0), (11, 1.0), (u64::MAX, 1.0)],
        );
        check(Schedule::WarmupFromTenth { iterations: 0 }, &[(0, 1.0)]);
        check(Schedule::LinearToZero { total: 4 }, &[(0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (100, 0.0)]);
    }

    #[test]
    fn schedules_round_trip_through_serde() {
        for schedule in [
            Schedule::Constant,
            Schedule::CosineToTenth { total: 7 },
            Schedule::WarmupFromTenth { iterations: 10 },
            Schedule::LinearToZero { total: 3 },
        ] {
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule, "{text}");
        }
        assert!(serde_json::from_str::<Schedule>(r#"{"kind":"linear-to-zero","total":3,"warmup":1}"#).is_err());
    }
}
