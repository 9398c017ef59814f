//! Micro-batches: a list of items, cut where the next item would make a run too long.

use std::ops::Range;

/// Cuts a list of items, given by their lengths in tokens, into runs of consecutive items: at most
/// `limit` tokens and at least one item each. Returns the runs as ranges of indices into the list.
///
/// Each run takes as many items as fit, first to last, because gradients add up run by run: the same
/// lengths and the same limit must always give the same sums. An item longer than `limit` is a run of
/// its own, because no item is ever cut. An empty list gives no run.
///
/// ```
/// assert_eq!(instruct_data::micro_batches([3, 4, 9, 1], 8), [0..2, 2..3, 3..4]);
/// ```
pub fn micro_batches(lengths: impl IntoIterator<Item = usize>, limit: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0usize;
    for (item, length) in lengths.into_iter().enumerate() {
        // A sum beyond `usize` fits no limit.
        let sum = tokens.checked_add(length).filter(|&sum| sum <= limit);
        match (runs.last_mut(), sum) {
            (Some(run), Some(sum)) => {
                run.end = item + 1;
                tokens = sum;
            }
            _ => {
                runs.push(item..item + 1);
                tokens = length;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `want` holds where each run ends; the next begins there.
    #[track_caller]
    fn check(lengths: &[usize], limit: usize, want: &[usize]) {
        let runs = micro_batches(lengths.iter().copied(), limit);
        assert_eq!(runs.iter().map(|run| run.end).collect::<Vec<_>>(), want);
        assert!(runs.into_iter().flatten().eq(0..lengths.len()), "every item once, in order");
    }

    #[test]
    fn runs_are_as_long_as_the_limit_allows() {
        check(&[], 8, &[]);
        check(&[3], 8, &[1]);
        check(&[3, 5], 8, &[2]);
        check(&[3, 6], 8, &[1, 2]);
        check(&[5, 5, 5, 5], 10, &[2, 4]);
        check(&[9], 8, &[1]);
        check(&[1, 9, 1, 1], 8, &[1, 2, 4]);
        check(&[1, 1, 1], 0, &[1, 2, 3]);
        check(&[8, 0, 0, 1], 8, &[3, 4]);
        check(&[0, 9, 0], 8, &[1, 2, 3]);
        check(&[usize::MAX, usize::MAX, 0, 1], usize::MAX, &[1, 3, 4]);
    }

    /// The definition: each run is the longest that fits, or one item.
    fn slow(lengths: &[usize], limit: usize) -> Vec<Range<usize>> {
        let tokens = |run: &Range<usize>| lengths[run.clone()].iter().map(|&length| length as u128).sum::<u128>();
        let mut runs = Vec::new();
        let mut start = 0;
        while start < lengths.len() {
            let longest = (start..lengths.len()).map(|last| start..last + 1).rfind(|run| tokens(run) <= limit as u128);
            let run = longest.unwrap_or(start..start + 1);
            start = run.end;
            runs.push(run);
        }
        runs
    }

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![8 => 0..12usize, 1 => usize::MAX - 3..=usize::MAX]
    }

    proptest! {
        #[test]
        fn fast_is_slow(lengths in proptest::collection::vec(length(), 0..20), limit in length()) {
            prop_assert_eq!(micro_batches(lengths.iter().copied(), limit), slow(&lengths, limit));
        }
    }
}
