//! How far a policy has moved, from log-probabilities of its own samples.

use crate::error::{Error, length};
use serde::{Deserialize, Serialize};

/// KL(policy || reference) estimated on completions that the policy sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kl {
    /// Mean over completions of the summed `lp - ref`: unbiased, noisy, may be negative.
    pub k1: f64,
    /// Mean over completions of the summed `exp(ref - lp) - 1 - (ref - lp)`: never negative
    /// (Schulman 2020).
    pub k3: f64,
    /// Mean `lp - ref` per token.
    pub k1_per_token: f64,
    /// Completions.
    pub n: usize,
    /// Their tokens.
    pub tokens: usize,
}

/// Both estimators over completions: `policy[i][t]` and `reference[i][t]` are the log-probabilities
/// (nats) of token `t` of completion `i`. Sums over tokens, means over completions.
///
/// # Errors
/// When shapes differ, nothing was sampled, or a log-probability is not finite.
pub fn kl<P: AsRef<[f32]>, R: AsRef<[f32]>>(policy: &[P], reference: &[R]) -> Result<Kl, Error> {
    length("reference", reference.len(), policy.len())?;
    let (mut k1, mut k3, mut tokens) = (0.0, 0.0, 0);
    for (policy, reference) in policy.iter().zip(reference) {
        let (policy, reference) = (policy.as_ref(), reference.as_ref());
        length("reference[i]", reference.len(), policy.len())?;
        for (index, (&lp, &rf)) in policy.iter().zip(reference).enumerate() {
            let gap = f64::from(lp) - f64::from(rf);
            if !gap.is_finite() {
                return Err(Error::NotFinite { what: "log-probabilities", index, value: gap });
            }
            k1 += gap;
            // exp_m1 keeps the digits of the small gaps that nearly all tokens have.
            k3 += (-gap).exp_m1() + gap;
        }
        tokens += policy.len();
    }
    if tokens == 0 {
        return Err(Error::Empty { what: "log-probabilities" });
    }
    let n = policy.len();
    Ok(Kl { k1: k1 / n as f64, k3: k3 / n as f64, k1_per_token: k1 / tokens as f64, n, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_random::Source;

    #[test]
    fn rows_computed_by_hand() {
        let got = kl(&[vec![-1.0, -2.0], vec![-0.5]], &[vec![-1.5, -2.0], vec![-0.25]]).unwrap();
        assert_eq!((got.k1, got.n, got.tokens), (0.125, 2, 3));
        let k3 = |gap: f64| (-gap).exp() - 1.0 + gap;
        assert!((got.k3 - (k3(0.5) + k3(-0.25)) / 2.0).abs() < 1e-12);
        assert!((got.k1_per_token - 0.25 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn equal_policies_have_no_divergence_at_all() {
        let same = [vec![-1.25f32, -7.5], vec![-0.001]];
        let got = kl(&same, &same).unwrap();
        assert_eq!((got.k1, got.k3), (0.0, 0.0));
    }

    #[test]
    fn both_estimators_find_the_exact_divergence() {
        // One token from three outcomes.
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.4f64, 0.2, 0.4]);
        let exact: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let mut draws = Source::new(1, "kl").at([]);
        let outcomes: Vec<usize> = (0..40_000)
            .map(|_| match draws.below(10) {
                0..5 => 0,
                5..8 => 1,
                _ => 2,
            })
            .collect();
        let of = |table: [f64; 3]| outcomes.iter().map(|&i| [table[i].ln() as f32]).collect::<Vec<_>>();
        let got = kl(&of(p), &of(q)).unwrap();
        assert!((got.k1 - exact).abs() < 0.01 && (got.k3 - exact).abs() < 0.005, "{got:?}, exactly {exact}");
    }

    #[test]
    fn shapes_and_numbers_are_checked() {
        assert!(matches!(kl(&[vec![0.0]], &[vec![0.0, 1.0]]), Err(Error::Length { what: "reference[i]", .. })));
        assert!(matches!(kl::<Vec<f32>, Vec<f32>>(&[], &[]), Err(Error::Empty { .. })));
        assert!(matches!(kl(&[vec![f32::NAN]], &[vec![0.0]]), Err(Error::NotFinite { .. })));
    }
}
