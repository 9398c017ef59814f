//! Cross-validation over groups of labelers: does a reward model know people it never met?

use crate::error::Error;
use instruct_random::Source;
use std::collections::BTreeSet;

/// One fold: indices of the records to train on and of those to test on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Records of the other groups' labelers.
    pub train: Vec<usize>,
    /// Records of this group's labelers.
    pub test: Vec<usize>,
}

/// Splits records into `k` folds so that no labeler is on both sides of one (\[IG\] section 5.2:
/// five groups). `labelers[i]` made record `i`. Labelers are dealt to groups in an order drawn from
/// `seed`; every record is tested once.
///
/// # Errors
/// When `k` is less than 2 or more than there are labelers.
pub fn labeler_folds<S: AsRef<str>>(labelers: &[S], k: usize, seed: u64) -> Result<Vec<Fold>, Error> {
    let distinct: BTreeSet<&str> = labelers.iter().map(AsRef::as_ref).collect();
    if k < 2 || k > distinct.len() {
        return Err(Error::Range { what: "k", got: k, want: "between 2 and the number of labelers" });
    }
    let mut people: Vec<&str> = distinct.into_iter().collect();
    Source::new(seed, "eval: labeler folds").at([]).shuffle(&mut people);
    let fold = |group: usize| {
        let tested: BTreeSet<&str> = people.iter().copied().skip(group).step_by(k).collect();
        let (test, train) = (0..labelers.len()).partition(|&i| tested.contains(labelers[i].as_ref()));
        Fold { train, test }
    };
    Ok((0..k).map(fold).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_tested_once_by_people_not_trained_on() {
        let labelers: Vec<String> = (0..40).map(|i| format!("labeler {}", i * i % 7)).collect();
        let folds = labeler_folds(&labelers, 3, 1).unwrap();
        let mut tested: Vec<usize> = folds.iter().flat_map(|fold| fold.test.clone()).collect();
        tested.sort_unstable();
        assert_eq!(tested, (0..40).collect::<Vec<_>>());
        for fold in &folds {
            assert_eq!(fold.train.len() + fold.test.len(), 40);
            let test: BTreeSet<&String> = fold.test.iter().map(|&i| &labelers[i]).collect();
            assert!(fold.train.iter().all(|&i| !test.contains(&labelers[i])) && !fold.test.is_empty());
        }
        assert_eq!(folds, labeler_folds(&labelers, 3, 1).unwrap());
        assert!(labeler_folds(&labelers, 5, 1).is_err() && labeler_folds(&labelers, 1, 1).is_err());
    }
}
