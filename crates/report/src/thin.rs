//! Long curves made short enough to draw.

/// A point of a curve: step and value.
pub(crate) type Point = (f64, f64);

/// At most `most` of the points, which are in order of their steps: the first, the last, and of each of equally many
/// points between them the lowest and the highest. No peak of the curve is lost.
pub(crate) fn thin(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most.max(4) {
        return points.to_vec();
    }
    let inner = &points[1..points.len() - 1];
    let pieces = (most.max(4) - 2) / 2;
    let mut kept = vec![points[0]];
    for piece in 0..pieces {
        kept.extend(extremes(&inner[piece * inner.len() / pieces..(piece + 1) * inner.len() / pieces]));
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// The lowest and the highest point, in their order; one where they are the same.
fn extremes(points: &[Point]) -> Vec<Point> {
    let better = |than: fn(f64, f64) -> bool| {
        (0..points.len()).reduce(|best, i| if than(points[i].1, points[best].1) { i } else { best })
    };
    let mut places: Vec<usize> = [better(|a, b| a < b), better(|a, b| a > b)].into_iter().flatten().collect();
    places.sort_unstable();
    places.dedup();
    places.into_iter().map(|i| points[i]).collect()
}

/// For each point the mean of itself and its neighbours, `half` on each side; near an end as many on each side as there
/// are on the shorter one, so that the ends are not drawn towards the middle.
pub(crate) fn smooth(points: &[Point], half: usize) -> Vec<Point> {
    let mut sums = vec![0.0];
    points.iter().for_each(|&(_, value)| sums.push(sums[sums.len() - 1] + value));
    let mean = |(i, &(step, _)): (usize, &Point)| {
        let half = half.min(i).min(points.len() - 1 - i);
        (step, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// At most `most` of the points, equally far from each other, the first and the last among them.
pub(crate) fn every(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most.max(2) {
        return points.to_vec();
    }
    let last = most.max(2) - 1;
    (0..=last).map(|i| points[i * (points.len() - 1) / last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curve(values: &[f64]) -> Vec<Point> {
        values.iter().enumerate().map(|(i, &value)| (i as f64, value)).collect()
    }

    #[test]
    fn a_short_curve_stays_whole_and_of_a_long_one_the_peaks_do() {
        #[track_caller]
        fn check(values: &[f64], most: usize, want: &[f64]) {
            let kept: Vec<f64> = thin(&curve(values), most).into_iter().map(|(_, value)| value).collect();
            assert_eq!(kept, want);
        }
        check(&[], 4, &[]);
        check(&[1.0, 2.0, 3.0], 4, &[1.0, 2.0, 3.0]);
        check(&[0.0, 1.0, 9.0, 2.0, -5.0, 3.0, 4.0], 4, &[0.0, 9.0, -5.0, 4.0]);
        check(&[0.0, 7.0, 7.0, 7.0, 1.0], 4, &[0.0, 7.0, 1.0]);
    }

    #[test]
    fn a_mean_over_neighbours_keeps_a_straight_line() {
        let line = curve(&[1.0, 3.0, 5.0, 7.0, 9.0, 11.0]);
        assert_eq!(smooth(&line, 2), line);
        let values: Vec<f64> = smooth(&curve(&[0.0, 3.0, 0.0, 3.0]), 1).into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(smooth(&[], 3), []);
    }

    #[test]
    fn equally_far_points_have_both_ends() {
        let steps: Vec<f64> = every(&curve(&[0.0; 10]), 4).into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [0.0, 3.0, 6.0, 9.0]);
    }

    proptest! {
        #[test]
        fn what_is_left_is_of_the_curve_and_has_its_extremes(
            values in prop::collection::vec(-1e3..1e3f64, 1..400),
            most in 4usize..60,
        ) {
            let whole = curve(&values);
            let kept = thin(&whole, most);
            prop_assert!(kept.len() <= most.max(4));
            prop_assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert!(kept.iter().all(|point| whole.contains(point)));
            let ends = |points: &[Point]| {
                points.iter().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)))
            };
            prop_assert_eq!(ends(&kept), ends(&whole));
            prop_assert_eq!((kept.first(), kept.last()), (whole.first(), whole.last()));
        }
    }
}
