//! The two clipped losses of PPO with their gradients, on slices over the predictions of a
//! minibatch. The network's part of the graph continues from the gradient returned here.

use instruct_rollout::k2;

/// A loss, its gradient with respect to the network's outputs, and what is worth plotting.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyLoss {
    /// `sum_m max(-A_m ratio_m, -A_m clip(ratio_m)) / denominator`; lower is better.
    pub loss: f64,
    /// `d loss / d logprob`, `(M,)`.
    pub gradient: Vec<f32>,
    /// `0.5 * sum (logprob - old)^2 / denominator`, the name and form of the published curves.
    pub approxkl: f64,
    /// Share of tokens on which the clipped branch is the larger one.
    pub clipfrac: f64,
    /// Mean of `exp(logprob - old)`: 1 on the first minibatch after a rollout.
    pub ratio: f64,
    /// Largest `|ratio - 1|` over the tokens.
    pub ratio_deviation: f64,
}

/// The clipped surrogate over `M` completion tokens (Schulman et al. 2017, eq. 7, as a loss).
///
/// ```text
/// ratio = exp(logprob - old)
/// loss  = sum max(-A * ratio, -A * clip(ratio, 1 - eps, 1 + eps)) / denominator
/// ```
///
/// `denominator` is the number of tokens of the whole minibatch, so that micro-batches add up to
/// the token mean. Where the clipped branch wins the gradient is 0; at equality the free branch
/// counts. On the first minibatch after a rollout the loss is minus the mean advantage.
///
/// # Panics
/// When the slices differ in length.
pub fn policy_loss(logprobs: &[f32], old: &[f32], advantages: &[f32], clip: f32, denominator: f64) -> PolicyLoss {
    assert!(logprobs.len() == old.len() && old.len() == advantages.len(), "one old log-probability and advantage each");
    let (low, high) = (1.0 - f64::from(clip), 1.0 + f64::from(clip));
    let mut out = PolicyLoss {
        loss: 0.0,
        gradient: Vec::with_capacity(logprobs.len()),
        approxkl: 0.0,
        clipfrac: 0.0,
        ratio: 0.0,
        ratio_deviation: 0.0,
    };
    for ((&new, &old), &advantage) in logprobs.iter().zip(old).zip(advantages) {
        let (difference, advantage) = (f64::from(new) - f64::from(old), f64::from(advantage));
        let ratio = difference.exp();
        let free = -advantage * ratio;
        let clipped = -advantage * ratio.clamp(low, high);
        let is_clipped = clipped > free;
        out.loss += free.max(clipped) / denominator;
        out.gradient.push(if is_clipped { 0.0 } else { (free / denominator) as f32 });
        out.approxkl += k2(new, old) / denominator;
        out.clipfrac += f64::from(is_clipped) / denominator;
        out.ratio += ratio / denominator;
        out.ratio_deviation = greater(out.ratio_deviation, (ratio - 1.0).abs());
    }
    out
}

/// The greater of two numbers. Unlike with `f64::max` a NaN wins, so that the guard that reads the
/// maximum fails on it.
pub(crate) fn greater(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// The value loss, its gradient with respect to the values, and its clip fraction.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueLoss {
    /// `0.5 * sum max((v - R)^2, (clip(v) - R)^2) / denominator`.
    pub loss: f64,
    /// `d loss / d value`, `(M,)`.
    pub gradient: Vec<f32>,
    /// Share of tokens on which the clipped branch is the larger one.
    pub clipfrac: f64,
}

/// The clipped value loss over `M` completion tokens (Ziegler et al. 2019).
///
/// ```text
/// loss = 0.5 * sum max( (v - R)^2, (clip(v, old - eps, old + eps) - R)^2 ) / denominator
/// ```
///
/// # Panics
/// When the slices differ in length.
pub fn value_loss(values: &[f32], old: &[f32], returns: &[f32], clip: f32, denominator: f64) -> ValueLoss {
    assert!(values.len() == old.len() && old.len() == returns.len(), "one old value and return each");
    let mut out = ValueLoss { loss: 0.0, gradient: Vec::with_capacity(values.len()), clipfrac: 0.0 };
    for ((&value, &old), &target) in values.iter().zip(old).zip(returns) {
        let (value, old, target, clip) = (f64::from(value), f64::from(old), f64::from(target), f64::from(clip));
        let free = (value - target).powi(2);
        let clipped = (value.clamp(old - clip, old + clip) - target).powi(2);
        let is_clipped = clipped > free;
        out.loss += 0.5 * free.max(clipped) / denominator;
        out.gradient.push(if is_clipped { 0.0 } else { ((value - target) / denominator) as f32 });
        out.clipfrac += f64::from(is_clipped) / denominator;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_minibatch_is_minus_the_mean_advantage() {
        let advantages = [0.5, -1.0, 2.0];
        let out = policy_loss(&[-1.0, -2.0, -3.0], &[-1.0, -2.0, -3.0], &advantages, 0.2, 3.0);
        assert!((out.loss + 0.5).abs() < 1e-7);
        assert_eq!((out.clipfrac, out.approxkl, out.ratio_deviation), (0.0, 0.0, 0.0));
        assert!((out.ratio - 1.0).abs() < 1e-12);
    }

    #[track_caller]
    fn check_policy(difference: f32, advantage: f32, loss: f64, clipped: bool) {
        let out = policy_loss(&[difference], &[0.0], &[advantage], 0.2, 1.0);
        assert!((out.loss - loss).abs() < 1e-6, "{out:?}");
        assert_eq!(out.clipfrac == 1.0, clipped, "{out:?}");
        assert_eq!(out.gradient[0] == 0.0, clipped, "{out:?}");
    }

    #[test]
    fn each_branch_of_the_clip() {
        let ln = |ratio: f32| ratio.ln();
        check_policy(ln(1.5), 1.0, -1.2, true); // a gain beyond the clip earns nothing more
        check_policy(ln(1.5), -1.0, 1.5, false); // a loss is felt in full
        check_policy(ln(0.5), 1.0, -0.5, false);
        check_policy(ln(0.5), -1.0, 0.8, true);
        check_policy(ln(1.1), 1.0, -1.1, false);
    }

    #[test]
    fn a_nan_is_the_largest_deviation_wherever_it_stands() {
        for at in 0..3 {
            let mut new = [0.0; 3];
            new[at] = f32::NAN;
            assert!(policy_loss(&new, &[0.0; 3], &[1.0; 3], 0.2, 3.0).ratio_deviation.is_nan(), "{at}");
        }
    }

    #[test]
    fn micro_batches_add_up() {
        let (new, old, target) = ([0.1, 0.2, -0.3], [0.0, 0.1, 0.0], [1.0, -1.0, 0.5]);
        let whole = policy_loss(&new, &old, &target, 0.2, 3.0).loss;
        let parts = policy_loss(&new[..1], &old[..1], &target[..1], 0.2, 3.0).loss
            + policy_loss(&new[1..], &old[1..], &target[1..], 0.2, 3.0).loss;
        assert!((whole - parts).abs() < 1e-12);
    }
}
