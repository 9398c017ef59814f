//! The two ways to set the price of divergence from the reference.

use serde::{Deserialize, Serialize};

/// How the price `beta` of one nat of divergence is set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum KlControl {
    /// The same price throughout (Ouyang et al. 2022: 0.02).
    Fixed {
        /// Price per nat.
        beta: f64,
    },
    /// A proportional controller that steers towards `target` (Ziegler et al. 2019, section 2.2).
    Adaptive {
        /// Price before the first update.
        initial: f64,
        /// Wanted mean over episodes of the summed k1, in nats.
        target: f64,
        /// Episodes over which a constant error of 100 % doubles the price, roughly.
        horizon: f64,
    },
}

impl KlControl {
    /// Price before the first update.
    pub fn initial(&self) -> f64 {
        match *self {
            KlControl::Fixed { beta } => beta,
            KlControl::Adaptive { initial, .. } => initial,
        }
    }

    /// Price after a batch of `episodes` whose mean summed k1 was `kl`:
    /// `beta * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)`.
    pub fn next(&self, beta: f64, kl: f64, episodes: usize) -> f64 {
        match *self {
            KlControl::Fixed { .. } => beta,
            KlControl::Adaptive { target, horizon, .. } => {
                let error = (kl / target - 1.0).clamp(-0.2, 0.2);
                beta * (1.0 + error * episodes as f64 / horizon)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kl: f64, want: f64) {
        let control = KlControl::Adaptive { initial: 0.15, target: 6.0, horizon: 10_000.0 };
        let got = control.next(0.15, kl, 512);
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    #[test]
    fn adaptive_price() {
        check(6.0, 0.15); // on target: unchanged
        check(60.0, 0.15 * (1.0 + 0.2 * 0.0512)); // clipped above
        check(0.0, 0.15 * (1.0 - 0.2 * 0.0512)); // clipped below
        check(6.6, 0.15 * (1.0 + 0.1 * 0.0512)); // proportional inside
        assert_eq!(KlControl::Fixed { beta: 0.02 }.next(0.02, 99.0, 512), 0.02);
    }
}
