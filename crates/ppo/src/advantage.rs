//! From scores to advantages: rewards per token, generalised advantage estimation, whitening.
//! All of it works on slices of one episode or one batch; nothing here needs a gradient.

/// Generalised advantages of one episode, `(T,)` from `rewards (T,)` and `values (T,)`.
///
/// ```text
/// delta_t = r_t + gamma * V_{t+1} - V_t          V_T = 0
/// A_t     = delta_t + gamma * lambda * A_{t+1}   A_T = 0
/// ```
///
/// The value after the last token is 0 whether that token is EOS or the cap ended the episode
/// (Ziegler et al. 2019; Schulman et al. 2016, eq. 16).
///
/// # Panics
/// When the two slices differ in length.
pub fn gae(rewards: &[f32], values: &[f32], gamma: f32, lambda: f32) -> Vec<f32> {
    assert_eq!(rewards.len(), values.len(), "one value per reward");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_advantage, mut next_value) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    advantages
}

/// Reward of every token of one completion, `(T,)`:
/// `r_t = -beta * (logprob_t - reference_t)`, plus `score` at the action that ended it.
///
/// The score lands on the last token itself, its EOS or the token at the cap, never one past it
/// (Ouyang et al. 2022, eq. 2, per token as in Ziegler et al. 2019).
///
/// # Panics
/// When the two slices differ in length.
pub fn rewards(logprobs: &[f32], reference: &[f32], score: f32, beta: f32) -> Vec<f32> {
    assert_eq!(logprobs.len(), reference.len(), "one reference log-probability per token");
    let mut rewards: Vec<f32> = logprobs.iter().zip(reference).map(|(new, old)| -beta * (new - old)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

/// Shifts and scales `values` in place to mean 0 and variance 1, with the **biased** variance:
/// `(x - mean) / sqrt(var + eps)`.
///
/// The biased form is that of Ziegler et al. 2019 (TensorFlow's moments); TRL divides by n - 1.
/// With `keep_mean` the mean is added back (reward whitening, which must not move the zero).
pub fn whiten(values: &mut [f32], eps: f32, keep_mean: bool) {
    if values.is_empty() {
        return;
    }
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    let offset = if keep_mean { mean } else { 0.0 };
    for x in values {
        *x = ((f64::from(*x) - mean) * scale + offset) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_gae(rewards: &[f32], values: &[f32], lambda: f32, want: &[f32]) {
        let got = gae(rewards, values, 1.0, lambda);
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-6, "{got:?}, want {want:?}");
        }
    }

    #[test]
    fn limits_of_lambda() {
        check_gae(&[0., 0., 1.], &[0.5, 0.4, 0.3], 1.0, &[0.5, 0.6, 0.7]);
        check_gae(&[0., 0., 1.], &[0.5, 0.4, 0.3], 0.0, &[-0.1, -0.1, 0.7]);
        check_gae(&[], &[], 0.95, &[]);
        check_gae(&[2.0], &[0.5], 0.95, &[1.5]);
    }

    #[test]
    fn score_lands_on_the_last_token() {
        assert_eq!(rewards(&[-1.0, -2.0], &[-1.5, -2.0], 3.0, 0.1), [-0.05, 3.0]);
        assert!(rewards(&[], &[], 3.0, 0.1).is_empty());
    }

    #[test]
    fn whitening_uses_the_biased_variance() {
        let mut x = [1.0, 2.0, 3.0];
        whiten(&mut x, 0.0, false);
        // Biased variance 2/3: 1 / sqrt(2/3) = 1.2247; the unbiased form would give 1.0.
        assert!((x[2] - 1.224_745).abs() < 1e-5 && x[1].abs() < 1e-7, "{x:?}");
        let mut y = [1.0, 2.0, 3.0];
        whiten(&mut y, 0.0, true);
        assert!((y[2] - 3.224_745).abs() < 1e-5, "{y:?}");
        let mut constant = [5.0; 4];
        whiten(&mut constant, 1e-8, false);
        assert_eq!(constant, [0.0; 4]);
    }
}
