//! Best-of-n: the baseline that needs no training, from samples already drawn.

use crate::error::{Error, finite, length};

/// What the judge gives, on average, to the sample with the highest proxy score among `n` of the
/// `N` drawn: the unbiased estimator over all `C(N, n)` subsets (Nakano et al. 2021, appendix I),
///
/// ```text
/// sum_i  C(i-1, n-1) / C(N, n) * gold_(i),     samples in ascending order of proxy, i = 1..N
/// ```
///
/// Samples with equal proxy share their gold mean, as drawing among them at random would. With
/// `gold = proxy` this is the expected maximum.
///
/// # Errors
/// When the slices differ in length, are empty or hold a value that is not finite, and when `n` is
/// not in `1..=N`.
pub fn expected_best_of_n(proxy: &[f64], gold: &[f64], n: usize) -> Result<f64, Error> {
    finite("proxy", proxy)?;
    length("gold", gold.len(), proxy.len())?;
    finite("gold", gold)?;
    let total = proxy.len();
    if !(1..=total).contains(&n) {
        return Err(Error::Range { what: "n", got: n, want: "between 1 and the number of samples" });
    }
    let gold = ascending(proxy, gold);
    // From the best sample down: its weight is n / N, and each next one follows by the ratio of two
    // neighbouring binomials, so that none of them is ever computed.
    let mut weight = n as f64 / total as f64;
    let mut sum = 0.0;
    for i in (n..=total).rev() {
        sum += weight * gold[i - 1];
        weight *= (i - n) as f64 / (i - 1).max(1) as f64;
    }
    Ok(sum)
}

/// `KL(best-of-n || policy) = ln n - (n - 1) / n`, exact when no two samples tie \[SF\]. 0 for `n`
/// of 0 or 1.
pub fn best_of_n_kl(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.ln() - (n - 1.0) / n
}

/// Index of the highest score, the first of equals: which of n completions to answer with.
///
/// # Errors
/// On an empty slice and on a score that is not finite.
pub fn pick(scores: &[f64]) -> Result<usize, Error> {
    finite("scores", scores)?;
    let best = (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
    Ok(best)
}

/// Gold in ascending order of proxy, ties replaced by their mean.
fn ascending(proxy: &[f64], gold: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..proxy.len()).collect();
    order.sort_by(|&a, &b| proxy[a].total_cmp(&proxy[b]));
    order
        .chunk_by(|&a, &b| proxy[a] == proxy[b])
        .flat_map(|tied| {
            let mean = tied.iter().map(|&i| gold[i]).sum::<f64>() / tied.len() as f64;
            std::iter::repeat_n(mean, tied.len())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: every subset of size n, its best by proxy, ties averaged.
    fn slow(proxy: &[f64], gold: &[f64], n: usize) -> f64 {
        let (mut sum, mut subsets) = (0.0, 0.0);
        for mask in 0u32..1 << proxy.len() {
            if mask.count_ones() as usize != n {
                continue;
            }
            let inside: Vec<usize> = (0..proxy.len()).filter(|i| mask >> i & 1 == 1).collect();
            let best = inside.iter().map(|&i| proxy[i]).fold(f64::MIN, f64::max);
            let tied: Vec<f64> = inside.iter().filter(|&&i| proxy[i] == best).map(|&i| gold[i]).collect();
            sum += tied.iter().sum::<f64>() / tied.len() as f64;
            subsets += 1.0;
        }
        sum / subsets
    }

    #[test]
    fn rows_computed_by_hand() {
        #[track_caller]
        fn check(proxy: &[f64], gold: &[f64], n: usize, want: f64) {
            let got = expected_best_of_n(proxy, gold, n).unwrap();
            assert!((got - want).abs() < 1e-12, "{got}, not {want}");
        }
        check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 1, 2.0);
        // Subsets {1,2} {1,3} {2,3}: maxima 2, 3, 3.
        check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 2, 8.0 / 3.0);
        check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 3, 3.0);
        // A proxy that is wrong about the best: more samples hurt.
        check(&[1.0, 2.0, 3.0], &[5.0, 4.0, 0.0], 3, 0.0);
        check(&[1.0, 1.0], &[0.0, 1.0], 2, 0.5);
        check(&[4.0], &[7.0], 1, 7.0);
    }

    proptest::proptest! {
        #[test]
        fn the_estimator_is_the_mean_over_all_subsets(
            samples in proptest::collection::vec((0i8..4, -5i8..5), 1..9), n in 1usize..9,
        ) {
            let (proxy, gold): (Vec<f64>, Vec<f64>) = samples.iter().map(|&(p, g)| (f64::from(p), f64::from(g))).unzip();
            // With ties the fast form averages gold over all of the tied samples; so does the mean
            // over subsets, by symmetry.
            let n = n.min(proxy.len());
            let got = expected_best_of_n(&proxy, &gold, n).unwrap();
            proptest::prop_assert!((got - slow(&proxy, &gold, n)).abs() < 1e-9);
        }
    }

    #[test]
    fn many_samples_do_not_overflow() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        // The maximum of n uniform draws lies at n / (n + 1) of the way.
        let got = expected_best_of_n(&values, &values, 1000).unwrap();
        assert!((got - (5001.0 * 1000.0 / 1001.0 - 1.0)).abs() < 1e-6, "{got}");
    }

    #[test]
    fn kl_is_the_formula() {
        assert_eq!((best_of_n_kl(0), best_of_n_kl(1)), (0.0, 0.0));
        assert!((best_of_n_kl(4) - (4f64.ln() - 0.75)).abs() < 1e-15);
    }

    #[test]
    fn kl_is_that_of_a_simulated_best_of_n() {
        // Best of n among M equally likely outcomes, M large: outcome i has probability
        // (i^n - (i-1)^n) / M^n, and the policy 1 / M.
        let (m, n) = (20_000, 8);
        let share = |i: i32| (f64::from(i) / f64::from(m)).powi(n);
        let kl: f64 = (1..=m)
            .map(|i| (share(i), share(i - 1)))
            .filter(|(a, b)| a > b)
            .map(|(a, b)| (a - b) * ((a - b) * f64::from(m)).ln())
            .sum();
        assert!((kl - best_of_n_kl(n as usize)).abs() < 1e-3, "{kl}");
    }

    #[test]
    fn the_first_of_the_best_is_picked() {
        assert_eq!(pick(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
        assert_eq!(pick(&[-1.0]), Ok(0));
        assert_eq!(pick(&[]), Err(Error::Empty { what: "scores" }));
        assert!(pick(&[0.0, f64::NAN]).is_err());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(matches!(expected_best_of_n(&[1.0], &[1.0], 0), Err(Error::Range { got: 0, .. })));
        assert!(matches!(expected_best_of_n(&[1.0], &[1.0], 2), Err(Error::Range { got: 2, .. })));
        assert!(matches!(expected_best_of_n(&[1.0], &[], 1), Err(Error::Length { what: "gold", .. })));
    }
}
