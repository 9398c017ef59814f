//! How a token is chosen from logits.

use crate::{Error, Result};
use instruct_kernels as kernels;
use std::collections::BTreeSet;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable token (the lowest id among equals).
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are drawn from; 0 is all.
    pub top_k: usize,
    /// Only the most probable tokens whose probabilities add up to `top_p` are drawn from; 1 is all.
    pub top_p: f32,
    /// Ids that end a completion; the one drawn is its last token.
    pub stop: BTreeSet<u32>,
    /// Cap on the completion, in tokens; one is always drawn. The model's context caps it too.
    pub max_new_tokens: usize,
}

impl Sampling {
    /// Plain sampling at temperature 1, which is what reinforcement learning needs: any truncation
    /// would make the recorded log-probabilities those of another distribution.
    pub fn plain(stop: BTreeSet<u32>, max_new_tokens: usize) -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, stop, max_new_tokens }
    }

    /// What logits are divided by: at temperature 0 the greedy choice is recorded as at 1.
    pub(crate) fn scale(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |problem| Err(Error::Sampling { problem });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("the temperature must be finite and at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top-p must be above 0 and at most 1");
        }
        Ok(())
    }
}

/// The token that `uniform` in `[0, 1)` falls on, by inversion over ids in ascending order (over
/// the kept ones when truncated).
pub(crate) fn choose(logits: &[f32], softmax: &kernels::RowSoftmax, sampling: &Sampling, uniform: f64) -> u32 {
    if sampling.temperature == 0.0 {
        return (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32;
    }
    let numerators = softmax.numerators();
    let id = match kept(logits, sampling, numerators) {
        None => invert(0..logits.len(), numerators, uniform),
        Some(ids) => invert(ids.into_iter(), numerators, uniform),
    };
    id as u32
}

/// The ids that top-k and top-p leave, ascending; `None` when they leave all.
fn kept(logits: &[f32], sampling: &Sampling, numerators: &[f32]) -> Option<Vec<usize>> {
    let top_k = if sampling.top_k == 0 { logits.len() } else { sampling.top_k.min(logits.len()) };
    if top_k == logits.len() && sampling.top_p >= 1.0 {
        return None;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(top_k);
    let total: f64 = order.iter().map(|&id| f64::from(numerators[id])).sum();
    let mut sum = 0.0;
    let enough = order.iter().position(|&id| {
        sum += f64::from(numerators[id]);
        sum >= f64::from(sampling.top_p) * total
    });
    order.truncate(enough.map_or(order.len(), |last| last + 1));
    order.sort_unstable();
    Some(order)
}

/// The id on which `uniform` falls, where every id takes its numerator of the line. Both sums add in `f64`, id after id.
fn invert(ids: impl Iterator<Item = usize> + Clone, numerators: &[f32], uniform: f64) -> usize {
    let total: f64 = ids.clone().map(|id| f64::from(numerators[id])).sum();
    let target = uniform * total;
    let (mut sum, mut last) = (0.0, 0);
    for id in ids {
        let w = f64::from(numerators[id]);
        if w > 0.0 {
            sum += w;
            last = id;
        }
        if sum > target {
            return id;
        }
    }
    // Rounding can leave the sum a hair below the target; the last possible token takes the rest.
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1: their logarithms, plus 1.
    const LOGITS: [f32; 4] = [-1.302_585, 0.083_709, -0.609_438, -0.203_973];

    /// Under `sampling`, an even grid of draws falls on the ids in the proportions `wanted`.
    #[track_caller]
    fn check(logits: &[f32], (temperature, top_k, top_p): (f32, usize, f32), wanted: &[f64]) {
        let sampling = Sampling { temperature, top_k, top_p, ..Sampling::plain([].into(), 1) };
        let n = 10_000u16;
        let mut shares = vec![0.0; logits.len()];
        for i in 0..n {
            let softmax = kernels::RowSoftmax::new(logits, sampling.scale());
            let id = choose(logits, &softmax, &sampling, (f64::from(i) + 0.5) / f64::from(n));
            shares[id as usize] += 1.0 / f64::from(n);
        }
        for (share, wanted) in shares.iter().zip(wanted) {
            assert!((share - wanted).abs() < 2e-4, "{shares:?}, wanted {wanted:?}");
        }
    }

    #[test]
    fn truncation_keeps_the_most_probable_and_renormalises() {
        check(&LOGITS, (1.0, 0, 1.0), &[0.1, 0.4, 0.2, 0.3]);
        check(&LOGITS, (1.0, 9, 1.0), &[0.1, 0.4, 0.2, 0.3]);
        check(&LOGITS, (1.0, 2, 1.0), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(&LOGITS, (1.0, 1, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        check(&LOGITS, (1.0, 0, 0.69), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(&LOGITS, (1.0, 0, 0.71), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        check(&LOGITS, (1.0, 0, 0.01), &[0.0, 1.0, 0.0, 0.0]);
        // Top-p counts what top-k left: 0.55 of 0.7 needs the first alone (0.4 / 0.7 = 0.57).
        check(&LOGITS, (1.0, 2, 0.55), &[0.0, 1.0, 0.0, 0.0]);
        // Squared probabilities at half the temperature: 0.01, 0.16, 0.04, 0.09 of 0.3.
        check(&LOGITS, (0.5, 0, 1.0), &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
        check(&LOGITS, (0.0, 0, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        // Among equals the lowest id is the greedy one, and the one that top-k keeps.
        check(&[0.0, 1.0, 1.0, 0.0], (0.0, 0, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        check(&[0.0, 1.0, 1.0, 0.0], (1.0, 1, 1.0), &[0.0, 1.0, 0.0, 0.0]);
        // An impossible token is never drawn, not even by rounding at the end of the line.
        check(&[0.0, f32::NEG_INFINITY], (1.0, 0, 1.0), &[1.0, 0.0]);
        check(&[1e4, 0.0, -1e4], (1.0, 0, 1.0), &[1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_ends_of_the_line_belong_to_the_first_and_last_token() {
        let plain = Sampling::plain([].into(), 1);
        let choose = |logits: &[f32], uniform| choose(logits, &kernels::RowSoftmax::new(logits, 1.0), &plain, uniform);
        assert_eq!(choose(&LOGITS, 0.0), 0);
        assert_eq!(choose(&LOGITS, 1.0 - f64::EPSILON / 2.0), 3);
        assert_eq!(choose(&[0.0, f32::NEG_INFINITY], 1.0 - f64::EPSILON / 2.0), 0);
    }

    /// A token that is drawn once in 500 million times has its place between two that are drawn otherwise.
    #[test]
    fn a_rare_token_has_its_place_on_the_line() {
        let logits = [0.0, -20.0, 0.0];
        let plain = Sampling::plain([].into(), 1);
        let softmax = kernels::RowSoftmax::new(&logits, 1.0);
        let choose = |uniform: f64| choose(&logits, &softmax, &plain, uniform);
        let rare = f64::exp(-20.0);
        let (begins, ends) = (1.0 / (2.0 + rare), (1.0 + rare) / (2.0 + rare));
        assert!(ends - begins < 0.5 / f64::from(1 << 24));
        for (uniform, wanted) in [(begins - 1e-12, 0), (begins + 1e-12, 1), (ends - 1e-12, 1), (ends + 1e-12, 2)] {
            assert_eq!(choose(uniform), wanted, "{uniform}");
        }
    }
}
