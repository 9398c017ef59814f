//! A mean and how sure it is: the percentile bootstrap.

use crate::error::{Error, finite};
use instruct_random::Source;
use serde::{Deserialize, Serialize};

/// Resamples behind every interval. With 2,000 of them the 2.5 % quantile rests on 50.
pub const RESAMPLES: u64 = 2000;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate itself, not the mean of the resamples.
    pub mean: f64,
    /// 2.5 % quantile of the resampled estimates.
    pub low: f64,
    /// 97.5 % quantile of the resampled estimates.
    pub high: f64,
    /// Units that were resampled (prompts, ranking records).
    pub n: usize,
}

/// Mean of `values` with a 95 % percentile bootstrap interval (Efron 1979): draw `n` of the `n`
/// values with replacement, [`RESAMPLES`] times, and take the quantiles of the means. Deterministic:
/// the draws are keyed by resample.
///
/// # Errors
/// On an empty slice and on a value that is not finite.
pub fn bootstrap(values: &[f64]) -> Result<Interval, Error> {
    finite("values", values)?;
    let units: Vec<(f64, f64)> = values.iter().map(|&value| (value, 1.0)).collect();
    Ok(bootstrap_ratio(&units))
}

/// Interval of `sum(numerator) / sum(denominator)` over units that are resampled whole: pairs of one
/// ranking record stand and fall together. Units with denominator 0 carry nothing and may stand in
/// the list. At least one denominator is positive.
pub(crate) fn bootstrap_ratio(units: &[(f64, f64)]) -> Interval {
    let units: Vec<(f64, f64)> = units.iter().copied().filter(|(_, denominator)| *denominator > 0.0).collect();
    let n = units.len();
    let source = Source::new(0, "eval: bootstrap");
    let mut estimates: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let mut draws = source.at([resample]);
            ratio((0..n).map(|_| units[draws.below(n as u64) as usize]))
        })
        .collect();
    estimates.sort_by(f64::total_cmp);
    Interval {
        mean: ratio(units.iter().copied()),
        low: quantile(&estimates, 0.025),
        high: quantile(&estimates, 0.975),
        n,
    }
}

fn ratio(units: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (above, below) = units.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    above / below
}

/// Quantile of sorted values, linear between neighbours. `sorted` is not empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        #[track_caller]
        fn check(sorted: &[f64], q: f64, want: f64) {
            assert!((quantile(sorted, q) - want).abs() < 1e-12);
        }
        check(&[1.0, 2.0, 3.0], 0.5, 2.0);
        check(&[1.0, 2.0, 3.0], 0.25, 1.5);
        check(&[1.0, 2.0], 0.975, 1.975);
        check(&[7.0], 0.025, 7.0);
    }

    #[test]
    fn one_value_has_no_spread_and_none_no_mean() {
        assert_eq!(bootstrap(&[0.5]), Ok(Interval { mean: 0.5, low: 0.5, high: 0.5, n: 1 }));
        assert_eq!(bootstrap(&[]), Err(Error::Empty { what: "values" }));
        assert!(matches!(bootstrap(&[1.0, f64::NAN]), Err(Error::NotFinite { index: 1, .. })));
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation_when_n_is_large() {
        // 400 draws of 0 and 1 in equal parts: standard error 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let Interval { mean, low, high, n } = bootstrap(&values).unwrap();
        assert_eq!((mean, n), (0.5, 400));
        assert!((low - (0.5 - 1.96 * 0.025)).abs() < 0.006, "{low}");
        assert!((high - (0.5 + 1.96 * 0.025)).abs() < 0.006, "{high}");
    }

    #[test]
    fn the_interval_covers_the_truth_as_often_as_it_says() {
        // 300 data sets of 80 prompts on which the first model truly wins 65 % of the time.
        let source = Source::new(5, "coverage");
        let covered = (0..300)
            .filter(|&set| {
                let mut draws = source.at([set]);
                let wins: Vec<f64> = (0..80).map(|_| f64::from(u8::from(draws.chance(65, 100)))).collect();
                let interval = bootstrap(&wins).unwrap();
                (interval.low..=interval.high).contains(&0.65)
            })
            .count();
        // 95 % of 300 is 285; the percentile bootstrap at n = 80 covers a little less, and the
        // binomial's standard error is 3.8.
        assert!((268..=297).contains(&covered), "{covered} of 300");
    }

    #[test]
    fn a_ratio_resamples_whole_units() {
        // Two units that contradict each other with many pairs each: pooled pairs would pretend to
        // know the ratio, two units cannot.
        let interval = bootstrap_ratio(&[(100.0, 100.0), (0.0, 100.0), (0.0, 0.0)]);
        assert_eq!(interval, Interval { mean: 0.5, low: 0.0, high: 1.0, n: 2 });
    }
}
