//! A mean and how sure it is: the percentile bootstrap, widened by the score interval where outcomes are shares.

use crate::error::{Error, finite};
use instruct_random::Source;
use serde::{Deserialize, Serialize};

/// Resamples behind every interval. With 2,000 of them the 2.5 % quantile rests on 50.
pub const RESAMPLES: u64 = 2000;

/// Fewer units than this give no interval. Resamples of few units have few different means, and quantiles of
/// those say nothing: of two prompts that were both won they would say `[1, 1]`.
pub const FEWEST: usize = 20;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate itself, not the mean of the resamples.
    pub mean: f64,
    /// Lower end; `None` with fewer than [`FEWEST`] units, and where no formula knows one.
    pub low: Option<f64>,
    /// Upper end, under the same condition.
    pub high: Option<f64>,
    /// Units that were resampled (prompts, ranking records).
    pub n: usize,
}

/// Mean of `values` with a 95 % percentile bootstrap interval (Efron 1979): draw `n` of the `n`
/// values with replacement, [`RESAMPLES`] times, and take the quantiles of the means. Deterministic:
/// the draws are keyed by resample.
///
/// Where all values are equal every resample is too, and the quantiles would claim certainty; where nearly all are
/// they nearly do. Of shares (values in 0..=1) the interval therefore reaches at least as far as Wilson's score
/// interval does, and other equal values have none. With fewer than [`FEWEST`] values there is no interval.
///
/// # Errors
/// On an empty slice and on a value that is not finite.
pub fn bootstrap(values: &[f64]) -> Result<Interval, Error> {
    finite("values", values)?;
    let units: Vec<(f64, f64)> = values.iter().map(|&value| (value, 1.0)).collect();
    let found = bootstrap_ratio(&units);
    let shares = values.iter().all(|value| (0.0..=1.0).contains(value));
    let (true, Some(low), Some(high)) = (shares, found.low, found.high) else { return Ok(found) };
    let (least, most) = wilson(found.mean, found.n);
    Ok(Interval { low: Some(low.min(least)), high: Some(high.max(most)), ..found })
}

/// Interval of `sum(numerator) / sum(denominator)` over units that are resampled whole: pairs of one
/// ranking record stand and fall together. Units with denominator 0 carry nothing and may stand in
/// the list. At least one denominator is positive. Equal and few units are treated as in [`bootstrap`].
pub(crate) fn bootstrap_ratio(units: &[(f64, f64)]) -> Interval {
    let units: Vec<(f64, f64)> = units.iter().copied().filter(|(_, denominator)| *denominator > 0.0).collect();
    let (mean, n) = (ratio(units.iter().copied()), units.len());
    // Cross products, because quotients of equal shares may differ in their last bit.
    let equal = units.windows(2).all(|pair| pair[0].0 * pair[1].1 == pair[1].0 * pair[0].1);
    let bounds = match (n < FEWEST, equal) {
        (true, _) => None,
        (false, true) => (0.0..=1.0).contains(&mean).then(|| wilson(mean, n)),
        (false, false) => percentiles(&units),
    };
    Interval { mean, low: bounds.map(|bounds| bounds.0), high: bounds.map(|bounds| bounds.1), n }
}

/// The 2.5 % and 97.5 % quantiles of resampled ratios.
fn percentiles(units: &[(f64, f64)]) -> Option<(f64, f64)> {
    resampled(units.len(), |drawn| Some(ratio(drawn.iter().map(|&unit| units[unit]))))
}

/// The 2.5 % and 97.5 % quantiles of what `estimate` makes of `n` of the units `0..n`, drawn with replacement,
/// [`RESAMPLES`] times. `None` when one of these resamples has no estimate: quantiles of the others would be
/// quantiles of the lucky ones. `n` is positive.
pub(crate) fn resampled(n: usize, mut estimate: impl FnMut(&[usize]) -> Option<f64>) -> Option<(f64, f64)> {
    let source = Source::new(0, "eval: bootstrap");
    let mut drawn = vec![0; n];
    let mut estimates = Vec::new();
    for resample in 0..RESAMPLES {
        let mut draws = source.at([resample]);
        drawn.fill_with(|| draws.below(n as u64) as usize);
        estimates.push(estimate(&drawn)?);
    }
    estimates.sort_by(f64::total_cmp);
    Some((quantile(&estimates, 0.025), quantile(&estimates, 0.975)))
}

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % score interval of a share `p` of `n` independent outcomes (Wilson 1927, "Probable inference, the
/// law of succession, and statistical inference"): the true shares from which `p` lies less than `z`
/// standard errors away,
///
/// ```text
/// (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
/// ```
///
/// At `p` = 1 its lower end is `n / (n + z^2)`, so `n` wins of `n` are no certainty.
pub(crate) fn wilson(p: f64, n: usize) -> (f64, f64) {
    let n = n as f64;
    let square = Z * Z / n;
    let half = Z * (p * (1.0 - p) / n + square / (4.0 * n)).sqrt();
    let end = |sign: f64| ((p + square / 2.0 + sign * half) / (1.0 + square)).clamp(0.0, 1.0);
    (end(-1.0), end(1.0))
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
    fn who_wins_more_often_has_no_lower_end_that_is_lower() {
        #[track_caller]
        fn check(n: usize) {
            let ends = |won: usize| {
                let interval = bootstrap(&[vec![1.0; won], vec![0.0; n - won]].concat()).unwrap();
                (interval.low.unwrap(), interval.high.unwrap())
            };
            let all: Vec<(f64, f64)> = (0..=n).map(ends).collect();
            assert!(all.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1), "{all:?}");
            assert!(all[n].0 < 1.0 && all[0].1 > 0.0, "{all:?}");
        }
        check(20);
        check(37);
    }

    #[test]
    fn none_have_no_mean_and_a_value_that_is_no_number_is_refused() {
        assert_eq!(bootstrap(&[]), Err(Error::Empty { what: "values" }));
        assert!(matches!(bootstrap(&[1.0, f64::NAN]), Err(Error::NotFinite { index: 1, .. })));
    }

    #[test]
    fn few_values_have_no_interval_and_equal_ones_that_of_wilson() {
        #[track_caller]
        fn check(values: &[f64], mean: f64, want: Option<(f64, f64)>) {
            let got = bootstrap(values).unwrap();
            assert_eq!((got.mean, got.n), (mean, values.len()));
            match (want, got.low.zip(got.high)) {
                (Some(want), Some(got)) => {
                    assert!((got.0 - want.0).abs() < 1e-6 && (got.1 - want.1).abs() < 1e-6, "{got:?}, not {want:?}");
                }
                (want, got) => assert_eq!(got, want),
            }
        }
        check(&[0.5], 0.5, None);
        check(&[1.0; 2], 1.0, None);
        check(&[1.0; 19], 1.0, None);
        check(&[[0.0; 9], [1.0; 9]].concat(), 0.5, None);
        // z^2 = 3.8414588: 20 / 23.8414588 = 0.8388749, 3.8414588 / 23.8414588 = 0.1611251.
        check(&[1.0; 20], 1.0, Some((0.838_874_9, 1.0)));
        check(&[0.0; 20], 0.0, Some((0.0, 0.161_125_1)));
        // 1.9599640 * sqrt(0.25 / 20 + 3.8414588 / 1600) / 1.1920729 = 0.2007023.
        check(&[0.5; 20], 0.5, Some((0.299_297_7, 0.700_702_3)));
        // 100 / 103.8414588.
        check(&[1.0; 100], 1.0, Some((0.963_006_5, 1.0)));
        // No share, so no score interval.
        check(&[7.0; 20], 7.0, None);
    }

    #[test]
    fn equal_units_of_different_sizes_are_equal() {
        let units: Vec<(f64, f64)> = (1..=20).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
        let interval = bootstrap_ratio(&units);
        assert_eq!(interval.low.zip(interval.high), Some(wilson(1.0 / 3.0, 20)));
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation_when_n_is_large() {
        // 400 draws of 0 and 1 in equal parts: standard error 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let Interval { mean, low, high, n } = bootstrap(&values).unwrap();
        assert_eq!((mean, n), (0.5, 400));
        assert!((low.unwrap() - (0.5 - 1.96 * 0.025)).abs() < 0.006, "{low:?}");
        assert!((high.unwrap() - (0.5 + 1.96 * 0.025)).abs() < 0.006, "{high:?}");
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
                (interval.low.unwrap()..=interval.high.unwrap()).contains(&0.65)
            })
            .count();
        // 95 % of 300 is 285; the percentile bootstrap at n = 80 covers a little less, and the
        // binomial's standard error is 3.8.
        assert!((268..=297).contains(&covered), "{covered} of 300");
    }

    #[test]
    fn a_ratio_resamples_whole_units() {
        // Twenty units of a hundred pairs each, ten for and ten against: 2,000 pooled pairs would pretend to
        // know the ratio to 0.011, twenty units know it to 0.11.
        let mut units = [[(100.0, 100.0); 10], [(0.0, 100.0); 10]].concat();
        units.push((0.0, 0.0));
        let Interval { mean, low, high, n } = bootstrap_ratio(&units);
        assert_eq!((mean, n), (0.5, 20));
        assert!((0.35..0.5).contains(&(high.unwrap() - low.unwrap())), "{low:?} {high:?}");
    }
}
