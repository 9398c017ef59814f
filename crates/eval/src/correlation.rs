//! Whether two judges say the same of the same answers.

use crate::error::{Error, finite, length};
use serde::{Deserialize, Serialize};

/// How far two lists of numbers rise and fall together, -1..=1 each.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// Pearson's: 1 when one list is a rising straight line of the other. `None` when a list does not vary.
    pub pearson: Option<f64>,
    /// Spearman's: 1 when both lists have one order. `None` when a list does not vary.
    pub spearman: Option<f64>,
    /// Length of each list.
    pub n: usize,
}

/// Correlations of `a[i]` with `b[i]`: Pearson's (Pearson 1895), with means `A` and `B`,
///
/// ```text
/// sum (a - A)(b - B) / sqrt(sum (a - A)^2 * sum (b - B)^2)
/// ```
///
/// and Spearman's (Spearman 1904), which is Pearson's of the ranks, equal values sharing their mean rank.
///
/// # Errors
/// When the slices differ in length, are empty, or hold a value that is not finite.
pub fn correlation(a: &[f64], b: &[f64]) -> Result<Correlation, Error> {
    finite("a", a)?;
    length("b", b.len(), a.len())?;
    finite("b", b)?;
    Ok(Correlation { pearson: pearson(a, b), spearman: pearson(&ranks(a), &ranks(b)), n: a.len() })
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    // Asked of the values: rounding gives equal ones a mean that differs from them, and so a variance.
    let varies = |values: &[f64]| values.windows(2).any(|pair| pair[0] != pair[1]);
    if !varies(a) || !varies(b) {
        return None;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (from_a, from_b) = (a - mean_a, b - mean_b);
        both += from_a * from_b;
        square_a += from_a * from_a;
        square_b += from_b * from_b;
    }
    Some((both / (square_a.sqrt() * square_b.sqrt())).clamp(-1.0, 1.0))
}

/// The rank of each value, 1 the lowest; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        below += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_computed_by_hand() {
        #[track_caller]
        fn check(a: &[f64], b: &[f64], want: Option<(f64, f64)>) {
            let got = correlation(a, b).unwrap();
            let near = |got: Option<f64>, want: Option<f64>| match (got, want) {
                (Some(got), Some(want)) => (got - want).abs() < 1e-12,
                (got, want) => got == want,
            };
            assert!(near(got.pearson, want.map(|w| w.0)) && near(got.spearman, want.map(|w| w.1)), "{got:?}");
            assert_eq!(correlation(b, a).unwrap(), got);
            assert_eq!(got.n, a.len());
        }
        check(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0], Some((1.0, 1.0)));
        check(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0], Some((-1.0, -1.0)));
        // Deviations -1 0 1 and -4/3 -1/3 5/3: 3 / sqrt(2 * 42/9).
        check(&[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0], Some((3.0 / (84.0f64 / 9.0).sqrt(), 1.0)));
        // Ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2). Pearson: deviations -1/3 -1/3 2/3 and -1 0 1.
        check(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0], Some((1.0 / (4.0f64 / 3.0).sqrt(), 1.5 / 3.0f64.sqrt())));
        check(&[1.0, 2.0, 1.0, 2.0], &[1.0, 1.0, 2.0, 2.0], Some((0.0, 0.0)));
        // What does not vary says nothing, even where its mean is rounded.
        check(&[0.1; 3], &[1.0, 2.0, 3.0], None);
        check(&[4.0], &[5.0], None);
        check(&[0.0, -0.0], &[1.0, 2.0], None);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(correlation(&[1.0], &[]), Err(Error::Length { what: "b", got: 0, want: 1 }));
        assert_eq!(correlation(&[], &[]), Err(Error::Empty { what: "a" }));
        assert!(matches!(correlation(&[1.0], &[f64::NAN]), Err(Error::NotFinite { what: "b", .. })));
    }
}
