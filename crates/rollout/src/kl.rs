//! Estimates of the divergence between two models from one sampled token.

/// The plain estimate of KL(pi, ref) on one sampled token, `k1 = logprob - reference`, in nats.
/// Unbiased; may be negative on a sample.
pub fn k1(logprob: f32, reference: f32) -> f64 {
    f64::from(logprob) - f64::from(reference)
}

/// Half the square, `k2 = (logprob - reference)^2 / 2`, in nats. Never negative, and biased: it agrees
/// with the divergence where the two distributions nearly do.
pub fn k2(logprob: f32, reference: f32) -> f64 {
    k1(logprob, reference).powi(2) / 2.0
}

/// The low-variance estimate on one sampled token,
/// `k3 = exp(reference - logprob) - 1 - (reference - logprob)`, in nats. Unbiased and never
/// negative.
pub fn k3(logprob: f32, reference: f32) -> f64 {
    let difference = f64::from(reference) - f64::from(logprob);
    difference.exp_m1() - difference
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_random::Source;

    #[test]
    fn both_unbiased_estimates_find_the_exact_divergence() {
        // One token from three outcomes.
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.4f64, 0.2, 0.4]);
        let exact: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let mut draws = Source::new(1, "kl").at([]);
        let outcome = |draw: u64| match draw {
            0..5 => 0,
            5..8 => 1,
            _ => 2,
        };
        let drawn: Vec<usize> = (0..40_000).map(|_| outcome(draws.below(10))).collect();
        let mean = |estimate: fn(f32, f32) -> f64| -> f64 {
            drawn.iter().map(|&i| estimate(p[i].ln() as f32, q[i].ln() as f32)).sum::<f64>() / drawn.len() as f64
        };
        assert!((mean(k1) - exact).abs() < 0.01 && (mean(k3) - exact).abs() < 0.005, "exactly {exact}");
    }

    #[test]
    fn equal_models_do_not_diverge_at_all() {
        for logprob in [-1.25, -7.5, -0.001] {
            assert_eq!((k1(logprob, logprob), k2(logprob, logprob), k3(logprob, logprob)), (0.0, 0.0, 0.0));
        }
    }
}
