//! How well a score tells good from bad.

use crate::error::{Error, finite};

/// Share of pairs of a good and a bad one in which the good one has the higher score, equal scores counting half: the
/// area under the ROC curve (Hanley and McNeil 1982). A half is chance; `None` where there is no good one, or no bad one.
///
/// ```
/// // Two thumbs up and two down.
/// assert_eq!(instruct_eval::auc(&[0.9, 0.4], &[0.4, 0.1])?, Some(0.875));
/// # Ok::<(), instruct_eval::Error>(())
/// ```
///
/// # Errors
/// On a value that is not finite.
pub fn auc(good: &[f64], bad: &[f64]) -> Result<Option<f64>, Error> {
    for (what, scores) in [("good", good), ("bad", bad)] {
        if !scores.is_empty() {
            finite(what, scores)?;
        }
    }
    if good.is_empty() || bad.is_empty() {
        return Ok(None);
    }
    let mut bad = bad.to_vec();
    bad.sort_by(f64::total_cmp);
    // Twice the number of wins, so that a tie is a whole number.
    let wins = good.iter().map(|score| bad.partition_point(|b| b < score) + bad.partition_point(|b| b <= score));
    Ok(Some(wins.sum::<usize>() as f64 / 2.0 / (good.len() * bad.len()) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_share_of_pairs(
            good in proptest::collection::vec(-3..4i8, 1..30),
            bad in proptest::collection::vec(-3..4i8, 1..30),
        ) {
            let [good, bad] = [good, bad].map(|of| of.into_iter().map(f64::from).collect::<Vec<_>>());
            let of = |good: &f64, bad: &f64| if good > bad { 1.0 } else { f64::from(u8::from(good == bad)) / 2.0 };
            let slow: f64 = good.iter().map(|good| bad.iter().map(|bad| of(good, bad)).sum::<f64>()).sum();
            prop_assert_eq!(auc(&good, &bad).unwrap(), Some(slow / (good.len() * bad.len()) as f64));
        }
    }

    #[test]
    fn without_good_or_bad_there_is_no_area() {
        assert_eq!(auc(&[], &[1.0]), Ok(None));
        assert_eq!(auc(&[1.0], &[]), Ok(None));
        assert_eq!(auc(&[0.0], &[-0.0]), Ok(Some(0.5)));
        assert!(matches!(auc(&[f64::NAN], &[1.0]), Err(Error::NotFinite { what: "good", .. })));
    }
}
