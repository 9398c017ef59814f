//! Mean and spread of a number over seeds.

use crate::error::{Error, finite};
use serde::{Deserialize, Serialize};

/// What several runs, or many margins, have in common and how they differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation (divided by n - 1); 0 for a single value.
    pub sd: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// How many values.
    pub n: usize,
}

impl Spread {
    /// The spread of `values`.
    ///
    /// # Errors
    /// On an empty slice and on a value that is not finite.
    pub fn of(values: &[f64]) -> Result<Spread, Error> {
        finite("values", values)?;
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Ok(Spread {
            mean,
            sd: (squares / (n - 1).max(1) as f64).sqrt(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            n,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_computed_by_hand() {
        #[track_caller]
        fn check(values: &[f64], mean: f64, sd: f64) {
            let spread = Spread::of(values).unwrap();
            assert_eq!((spread.mean, spread.sd, spread.n), (mean, sd, values.len()));
        }
        check(&[2.0], 2.0, 0.0);
        check(&[1.0, 2.0, 3.0], 2.0, 1.0);
        check(&[-1.0, 1.0], 0.0, 2f64.sqrt());
        assert_eq!((Spread::of(&[3.0, 1.0]).unwrap().min, Spread::of(&[3.0, 1.0]).unwrap().max), (1.0, 3.0));
        assert!(Spread::of(&[]).is_err());
    }
}
