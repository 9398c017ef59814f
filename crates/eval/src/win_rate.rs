//! How often one model beats another on the same prompts.

use crate::{
    error::{Error, finite, length},
    interval::{Interval, bootstrap},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Share of prompts won, ties counted half, with its 95 % interval over prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    /// The share, 0..=1.
    pub mean: f64,
    /// Lower end of the 95 % interval; `None` with fewer than [`crate::FEWEST`] prompts.
    pub low: Option<f64>,
    /// Upper end of the 95 % interval, under the same condition.
    pub high: Option<f64>,
    /// Prompts.
    pub n: usize,
    /// The same for each group of prompts, such as a use case; empty without groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_group: BTreeMap<String, Interval>,
}

/// What the interval of a win rate says of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval lies above a half: the first is better.
    Better,
    /// It lies below a half: the first is worse.
    Worse,
    /// It holds a half: neither is shown to be better.
    Undecided,
    /// There is no interval, because there are fewer than [`crate::FEWEST`] prompts.
    TooFew,
}

impl Verdict {
    /// The verdict of an interval's ends, each in 0..=1.
    ///
    /// ```
    /// use instruct_eval::Verdict;
    ///
    /// assert_eq!(Verdict::of(Some(0.36), Some(0.48)), Verdict::Worse);
    /// assert_eq!(Verdict::of(Some(0.46), Some(0.58)), Verdict::Undecided);
    /// ```
    pub fn of(low: Option<f64>, high: Option<f64>) -> Verdict {
        match (low, high) {
            (Some(low), Some(_)) if low > 0.5 => Verdict::Better,
            (Some(_), Some(high)) if high < 0.5 => Verdict::Worse,
            (Some(_), Some(_)) => Verdict::Undecided,
            _ => Verdict::TooFew,
        }
    }
}

/// Win rate of `a` over `b`: per prompt 1 for a win, 0.5 for a tie, 0 for a loss. `a[i]` and `b[i]`
/// are a judge's points for the two answers to prompt `i`, which `groups[i]` sorts.
///
/// # Errors
/// When the slices differ in length, are empty, or hold a value that is not finite.
pub fn win_rate(a: &[f64], b: &[f64], groups: Option<&[String]>) -> Result<WinRate, Error> {
    win_rate_of(&outcomes(a, b)?, groups)
}

/// Per-prompt outcomes: 1 where `a` has more points than `b`, 0.5 where as many, 0 where fewer.
///
/// # Errors
/// As [`win_rate`].
pub fn outcomes(a: &[f64], b: &[f64]) -> Result<Vec<f64>, Error> {
    length("b", b.len(), a.len())?;
    finite("a", a)?;
    finite("b", b)?;
    Ok(a.iter().zip(b).map(|(a, b)| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 }).collect())
}

/// Win rate from outcomes in 0..=1, one per prompt. A judge that may depend on the order of the two
/// answers is asked in both orders, and the outcome is the mean of its two verdicts.
///
/// # Errors
/// As [`win_rate`].
pub fn win_rate_of(outcomes: &[f64], groups: Option<&[String]>) -> Result<WinRate, Error> {
    let Interval { mean, low, high, n } = bootstrap(outcomes)?;
    let mut members: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    if let Some(groups) = groups {
        length("groups", groups.len(), outcomes.len())?;
        for (group, &outcome) in groups.iter().zip(outcomes) {
            members.entry(group.clone()).or_default().push(outcome);
        }
    }
    let by_group = members
        .into_iter()
        .map(|(group, outcomes)| Ok((group, bootstrap(&outcomes)?)))
        .collect::<Result<_, Error>>()?;
    Ok(WinRate { mean, low, high, n, by_group })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &[f64], b: &[f64], want: f64) {
        let rate = win_rate(a, b, None).unwrap();
        assert_eq!((rate.mean, rate.n), (want, a.len()));
        assert_eq!((rate.low, rate.high), (None, None), "so few prompts have no interval");
        // What one side wins the other loses.
        let mirrored = win_rate(b, a, None).unwrap();
        assert!((mirrored.mean - (1.0 - want)).abs() < 1e-12);
    }

    #[test]
    fn wins_count_one_and_ties_half() {
        check(&[1.0], &[0.0], 1.0);
        check(&[1.0, 1.0], &[1.0, 1.0], 0.5);
        check(&[3.0, 2.0, 5.0, 4.0, 1.0], &[1.0, 2.0, 4.0, 1.0, 2.0], 0.7);
        check(&[0.0, -1.0, 2.0, 2.0], &[1.0, 1.0, 1.0, 3.0], 0.25);
        check(&[0.0], &[-0.0], 0.5);
    }

    #[test]
    fn groups_split_the_same_prompts() {
        let groups = ["chat", "qa", "chat", "qa"].map(str::to_string);
        let rate = win_rate(&[1.0, 1.0, 1.0, 0.0], &[0.0, 1.0, 0.0, 1.0], Some(&groups)).unwrap();
        assert_eq!(rate.mean, 0.625);
        assert_eq!(rate.by_group["chat"], Interval { mean: 1.0, low: None, high: None, n: 2 });
        assert_eq!((rate.by_group["qa"].mean, rate.by_group["qa"].n), (0.25, 2));
        let weighted: f64 = rate.by_group.values().map(|group| group.mean * group.n as f64).sum::<f64>() / 4.0;
        assert_eq!(weighted, rate.mean);
    }

    #[test]
    fn a_verdict_is_what_the_interval_allows() {
        let check = |low, high, verdict| assert_eq!(Verdict::of(low, high), verdict, "{low:?} {high:?}");
        check(Some(0.51), Some(0.6), Verdict::Better);
        check(Some(0.5), Some(0.6), Verdict::Undecided);
        check(Some(0.4), Some(0.6), Verdict::Undecided);
        check(Some(0.4), Some(0.5), Verdict::Undecided);
        check(Some(0.4), Some(0.49), Verdict::Worse);
        check(None, None, Verdict::TooFew);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(win_rate(&[1.0], &[], None), Err(Error::Length { what: "b", got: 0, want: 1 }));
        assert_eq!(win_rate(&[], &[], None), Err(Error::Empty { what: "a" }));
        assert!(matches!(win_rate(&[1.0], &[f64::NAN], None), Err(Error::NotFinite { what: "b", index: 0, .. })));
        let groups = [String::new()];
        assert!(matches!(win_rate(&[1.0; 2], &[0.0; 2], Some(&groups)), Err(Error::Length { what: "groups", .. })));
    }

    #[test]
    fn results_carry_the_keys_of_the_run_folder() {
        let json = serde_json::to_value(win_rate(&[1.0], &[0.0], None).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"mean": 1.0, "low": null, "high": null, "n": 1}));
    }

    proptest::proptest! {
        #[test]
        fn the_mean_is_that_of_the_obvious_count(pairs in proptest::collection::vec((0i8..5, 0i8..5), 1..40)) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|&(a, b)| (f64::from(a), f64::from(b))).unzip();
            let wins = pairs.iter().filter(|(a, b)| a > b).count() as f64;
            let ties = pairs.iter().filter(|(a, b)| a == b).count() as f64;
            let rate = win_rate(&a, &b, None).unwrap();
            proptest::prop_assert!((rate.mean - (wins + ties / 2.0) / pairs.len() as f64).abs() < 1e-12);
            proptest::prop_assert_eq!(rate.low.is_some(), pairs.len() >= crate::FEWEST);
            if let (Some(low), Some(high)) = (rate.low, rate.high) {
                proptest::prop_assert!(0.0 <= low && low <= rate.mean && rate.mean <= high && high <= 1.0);
            }
        }
    }
}
