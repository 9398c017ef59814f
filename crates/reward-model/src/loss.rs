//! The K-wise ranking loss and its gradient, on the scores of one prompt's completions.

/// The loss of one ranking and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct RankingLoss {
    /// Mean over the pairs of `-log sigmoid(score_w - score_l)`; 0 without a pair.
    pub loss: f64,
    /// `d loss / d score`, `(K,)`; it sums to 0, because only differences enter.
    pub gradient: Vec<f32>,
    /// Pairs that the scores order as the ranking does; a tie in the scores counts half.
    pub correct: f64,
    /// Sum over pairs of `score_w - score_l`.
    pub margin: f64,
    /// Number of pairs.
    pub pairs: usize,
}

/// Equation 1 of Ouyang et al. 2022 for one prompt with `K` ranked completions:
///
/// ```text
/// loss = - 1 / |pairs| * sum over pairs (w better than l) of log sigmoid( r_w - r_l )
/// ```
///
/// `pairs` are indices of winner and loser in `scores`; see [`crate::Group::pairs`]. Tied completions form
/// none, and `|pairs|` counts those that remain. `K = 2` is the ordinary Bradley-Terry loss. With all scores
/// equal the loss is ln 2.
///
/// # Panics
/// When an index is outside of `scores`.
pub fn ranking_loss(scores: &[f32], pairs: &[(usize, usize)]) -> RankingLoss {
    let n = pairs.len().max(1) as f64;
    let mut gradient = vec![0.0f64; scores.len()];
    let (mut loss, mut correct, mut margin) = (0.0, 0.0, 0.0);
    for &(w, l) in pairs {
        let difference = f64::from(scores[w]) - f64::from(scores[l]);
        loss += softplus(-difference) / n;
        // d softplus(-x) / dx = -sigmoid(-x)
        let slope = -sigmoid(-difference) / n;
        gradient[w] += slope;
        gradient[l] -= slope;
        correct += if difference > 0.0 { 1.0 } else { 0.5 * f64::from(difference == 0.0) };
        margin += difference;
    }
    RankingLoss {
        loss,
        gradient: gradient.into_iter().map(|g| g as f32).collect(),
        correct,
        margin,
        pairs: pairs.len(),
    }
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_data::pairs;

    #[track_caller]
    fn check(scores: &[f32], ranks: &[u32], loss: f64, pairs: usize) {
        let out = ranking_loss(scores, &instruct_data::pairs(ranks));
        assert!((out.loss - loss).abs() < 1e-6, "{out:?}");
        assert_eq!(out.pairs, pairs);
        assert!(out.gradient.iter().sum::<f32>().abs() < 1e-6, "{out:?}");
    }

    #[test]
    fn known_losses() {
        let ln2 = std::f64::consts::LN_2;
        check(&[0.0, 0.0], &[1, 2], ln2, 1);
        check(&[0.0; 9], &[1, 2, 3, 4, 5, 6, 7, 8, 9], ln2, 36);
        check(&[0.0; 4], &[1, 2, 2, 3], ln2, 5); // one tie removes one of six pairs
        check(&[3.0, -1.0], &[1, 1], 0.0, 0); // only ties: nothing to learn
        check(&[2.0, 0.0], &[1, 2], (1.0 + (-2.0f64).exp()).ln(), 1);
        check(&[0.0, 2.0], &[1, 2], (1.0 + 2.0f64.exp()).ln(), 1);
        check(&[-1e4, 1e4], &[1, 2], 2e4, 1); // no overflow
    }

    #[test]
    fn half_credit_for_a_tie_in_the_scores() {
        let out = ranking_loss(&[1.0, 1.0, 0.0], &pairs(&[1, 2, 3]));
        assert_eq!((out.correct, out.margin, out.pairs), (2.5, 2.0, 3));
    }
}
