//! Log-probabilities of given tokens, without the logits of a whole batch ever being held.

use crate::{Param, Result};
use candle_core::{D, Tensor};

/// For each prediction m, the log-probability of `targets[m]` under
/// `softmax(hidden[rows[m]] Wᵀ / temperature)` and the entropy of that distribution.
///
/// `hidden (N, C)`, `w (V, C)`, `rows` and `targets (M)`; the result is `(M, 2)`: column 0 the
/// log-probability, column 1 the entropy, both in nats. The gradient flows through column 0 only:
/// the entropy is reported, not optimised (InstructGPT has no entropy bonus). Several predictions
/// may read one row.
pub fn token_logprob(hidden: &Tensor, w: &Param, rows: &[u32], targets: &[u32], temperature: f32) -> Result<Tensor> {
    let device = hidden.device();
    let picked = hidden.index_select(&Tensor::new(rows, device)?, 0)?;
    let logits = (picked.matmul(&w.value(hidden.track_op()).t()?)? / f64::from(temperature))?;
    let log_probabilities = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    let targets = Tensor::new(targets, device)?.unsqueeze(1)?;
    let entropy = (log_probabilities.exp()? * &log_probabilities)?.sum_keepdim(1)?.neg()?.detach();
    Ok(Tensor::cat(&[log_probabilities.gather(&targets, 1)?, entropy], 1)?)
}

/// `sum over m of weights[m] * -log p(targets[m])` under `softmax(hidden[rows[m]] Wᵀ)`: a scalar.
///
/// `hidden (N, C)`, `w (V, C)`; `rows`, `targets` and `weights (M)`. The weights are known
/// beforehand, which lets the gradient be computed during the forward, while a chunk of logits is
/// still in cache.
pub fn token_nll(hidden: &Tensor, w: &Param, rows: &[u32], targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let weights = Tensor::new(weights, hidden.device())?.to_dtype(hidden.dtype())?;
    let log_probabilities = token_logprob(hidden, w, rows, targets, 1.0)?.narrow(1, 0, 1)?.squeeze(1)?;
    Ok((log_probabilities * weights)?.sum_all()?.neg()?)
}
