//! Axes: which numbers stand on them, and where a value lies.

use std::ops::RangeInclusive;

/// An axis from `low` to `high` with marks at multiples of `step`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) low: f64,
    pub(crate) high: f64,
    step: f64,
    /// Digits after the point that the step has.
    digits: usize,
}

impl Axis {
    /// From the least to the greatest of `values`, with at most `most` marks at round numbers: multiples of 1, 2 or 5
    /// times a power of ten. Values that are not finite, or absurd, count for nothing; of none, from 0 to 1.
    pub(crate) fn exact(values: impl IntoIterator<Item = f64>, most: usize) -> Axis {
        let (low, high) = ends(values);
        let (step, digits) = step(high - low, |step| inside(low, high, step).count() <= most);
        Axis { low, high, step, digits }
    }

    /// As [`Axis::exact`], but a little longer at both ends, so that no value lies on an edge. It does not go below 0
    /// for that.
    pub(crate) fn padded(values: impl IntoIterator<Item = f64>, most: usize) -> Axis {
        let (low, high) = ends(values);
        let more = 0.04 * (high - low);
        let floor = if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        Axis::exact([(low - more).max(floor), high + more], most)
    }

    /// Where `value` lies between `from` and `to`.
    pub(crate) fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (to - from) * (value - self.low) / (self.high - self.low)
    }

    /// The marks, each with its label.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        inside(self.low, self.high, self.step).map(|k| self.tick(k as f64 * self.step)).collect()
    }

    fn tick(&self, value: f64) -> (f64, String) {
        let (far, digits) = (value.abs().max(self.step), self.digits);
        // A sum of steps may miss 0 by the last bit.
        let value = if value.abs() < self.step * 1e-6 { 0.0 } else { value };
        if value == 0.0 && digits > 5 {
            return (value, "0".to_owned());
        }
        if value != 0.0 && (far >= 1e6 || digits > 5) {
            return (value, format!("{value:.0e}"));
        }
        (value, format!("{value:.digits$}"))
    }
}

/// Values beyond this are no measurements, and would overflow where two of them are subtracted.
const FURTHEST: f64 = 1e300;

/// Least and greatest, far enough apart to be an axis.
fn ends(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let sane = values.into_iter().filter(|value| value.abs() < FURTHEST);
    let (low, high) = sane.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let enough = 1e-9 * low.abs().max(high.abs());
    if high - low > enough.max(f64::MIN_POSITIVE) {
        return (low, high);
    }
    let half = if low == 0.0 { 0.5 } else { 0.1 * low.abs() };
    (low - half, high + half)
}

/// How far a multiple may be off, in steps: 0.3 / 0.1 is a little below 3.
const SLACK: f64 = 1e-9;

/// Which multiples of `step` lie between the ends.
fn inside(low: f64, high: f64, step: f64) -> RangeInclusive<i64> {
    (low / step - SLACK).ceil() as i64..=(high / step + SLACK).floor() as i64
}

/// The least round step that makes few enough marks in a range of this width, and its digits after the point.
fn step(width: f64, is_enough: impl Fn(f64) -> bool) -> (f64, usize) {
    // Ten steps of this power of ten are at most the width; with three marks the answer is two powers above.
    let least = width.log10().floor() as i32 - 1;
    let steps = (least..=least + 3).flat_map(|exponent| [1.0, 2.0, 5.0].map(|mantissa| (mantissa, exponent)));
    let size = |(mantissa, exponent): (f64, i32)| (mantissa * 10f64.powi(exponent), (-exponent).max(0) as usize);
    let found = steps.map(size).find(|&(step, _)| is_enough(step));
    found.unwrap_or_else(|| size((1.0, least + 3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_are_round() {
        #[track_caller]
        fn check(axis: Axis, want: &[&str]) {
            let labels: Vec<String> = axis.ticks().into_iter().map(|(_, label)| label).collect();
            assert_eq!(labels, want, "{axis:?}");
        }
        check(Axis::exact([1.0, 96.0], 5), &["20", "40", "60", "80"]);
        check(Axis::exact([0.0, 1.0], 6), &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        check(Axis::exact([0.0, 0.3], 4), &["0.0", "0.1", "0.2", "0.3"]);
        check(Axis::exact([-0.03, 1.52], 6), &["0.0", "0.5", "1.0", "1.5"]);
        check(Axis::exact([0.0, 0.0015], 6), &["0.0000", "0.0005", "0.0010", "0.0015"]);
        check(Axis::exact([0.0, 2e-6], 4), &["0", "1e-6", "2e-6"]);
        check(Axis::exact([0.0, 3e7], 5), &["0", "1e7", "2e7", "3e7"]);
        check(Axis::exact([5.0, 5.0], 5), &["4.6", "4.8", "5.0", "5.2", "5.4"]);
        check(Axis::exact([], 5), &["0.0", "0.5", "1.0"]);
        check(Axis::exact([f64::NAN, 1.0, f64::INFINITY, f64::MAX, f64::MIN, 2.0], 5), &["1.0", "1.5", "2.0"]);
        check(Axis::exact([0.0, 0.0], 3), &["-0.5", "0.0", "0.5"]);
    }

    #[test]
    fn room_at_the_ends_does_not_go_below_nothing() {
        let ends = |axis: Axis| (axis.low, axis.high);
        assert_eq!(ends(Axis::padded([1.0, 101.0], 5)), (0.0, 105.0));
        assert_eq!(ends(Axis::padded([-50.0, 50.0], 5)), (-54.0, 54.0));
        assert_eq!(ends(Axis::padded([200.0, 300.0], 5)), (196.0, 304.0));
    }

    #[test]
    fn a_value_lies_between_the_ends_in_proportion() {
        let axis = Axis::exact([10.0, 20.0], 5);
        let places: Vec<f64> = [10.0, 15.0, 20.0].map(|value| axis.place(value, 100.0, 0.0)).to_vec();
        assert_eq!(places, [100.0, 50.0, 0.0]);
    }

    proptest! {
        #[test]
        fn marks_are_few_ordered_and_inside(a in -1e9..1e9f64, width in 1e-6..1e9f64, most in 3usize..9) {
            for axis in [Axis::exact([a, a + width], most), Axis::padded([a, a + width], most)] {
                let ticks: Vec<f64> = axis.ticks().into_iter().map(|(value, _)| value).collect();
                prop_assert!(ticks.len() <= most, "{} marks on {:?}", ticks.len(), axis);
                prop_assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
                let slack = 1e-6 * (axis.high - axis.low) + 1e-9 * a.abs();
                prop_assert!(ticks.iter().all(|t| (axis.low - slack..=axis.high + slack).contains(t)));
                prop_assert!(axis.low <= a + slack && axis.high >= a + width - slack);
            }
        }
    }
}
