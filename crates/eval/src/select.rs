//! Which checkpoint to keep.

use crate::error::{Error, finite};

/// The chosen candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Its place among the candidates.
    pub index: usize,
    /// Mean score of every candidate, in their order.
    pub means: Vec<f64>,
}

/// The candidate with the highest mean score, the earliest of equals. `score` gives one candidate's
/// scores on the validation prompts, such as those of a reward model: the rule by which \[IG\]
/// chooses its SFT model, since validation loss overfits after one epoch while people still prefer
/// later ones. It is called once per candidate, in order.
///
/// # Errors
/// What `score` returns; [`Error::Empty`] without candidates or without scores of one; and
/// [`Error::NotFinite`] when one of its scores is not a number.
pub fn select<T, E: From<Error>>(
    candidates: &[T],
    mut score: impl FnMut(&T) -> Result<Vec<f64>, E>,
) -> Result<Selection, E> {
    let mut means = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let scores = score(candidate)?;
        finite("scores", &scores)?;
        means.push(scores.iter().sum::<f64>() / scores.len() as f64);
    }
    if means.is_empty() {
        return Err(Error::Empty { what: "candidates" }.into());
    }
    let index = crate::best_of_n::pick(&means)?;
    Ok(Selection { index, means })
}

/// The checkpoint with the best judge score among those whose KL to the reference is at most
/// `budget`: `points[i]` is `(kl, score)`. The earliest of equals; `None` when none fits, or when no
/// number of a point is comparable.
pub fn select_within_kl(points: &[(f64, f64)], budget: f64) -> Option<usize> {
    let fits = |&i: &usize| points[i].0 <= budget && !points[i].1.is_nan();
    (0..points.len()).filter(fits).fold(None, |best: Option<usize>, i| match best {
        Some(b) if points[i].1 <= points[b].1 => Some(b),
        _ => Some(i),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_mean_wins_and_the_earliest_of_equals() {
        let scores = [vec![1.0, 2.0], vec![3.0, 3.0], vec![6.0, 0.0]];
        let chosen = select::<_, Error>(&[0, 1, 2], |&i: &usize| Ok(scores[i].clone())).unwrap();
        assert_eq!(chosen, Selection { index: 1, means: vec![1.5, 3.0, 3.0] });
    }

    #[test]
    fn what_the_scorer_refuses_is_refused() {
        let broken = || Error::Empty { what: "prompts" };
        assert_eq!(select(&[()], |()| Err::<Vec<f64>, Error>(broken())), Err(broken()));
        assert_eq!(select::<(), Error>(&[], |()| Ok(vec![1.0])), Err(Error::Empty { what: "candidates" }));
        assert!(matches!(select(&[()], |()| Ok::<_, Error>(vec![f64::NAN])), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn the_budget_binds() {
        #[track_caller]
        fn check(points: &[(f64, f64)], budget: f64, want: Option<usize>) {
            assert_eq!(select_within_kl(points, budget), want);
        }
        let points = [(0.0, 1.0), (2.0, 5.0), (4.0, 7.0), (9.0, 6.0)];
        check(&points, 0.0, Some(0));
        check(&points, 3.0, Some(1));
        check(&points, 100.0, Some(2));
        check(&points, -1.0, None);
        check(&[(0.0, 1.0), (0.0, 1.0)], 1.0, Some(0));
        check(&[(0.0, f64::NAN), (0.0, 1.0)], 1.0, Some(1));
        check(&[], 1.0, None);
    }
}
