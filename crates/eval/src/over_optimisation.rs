//! Over-optimisation: proxy and gold against the square root of KL \[GAO\], and the frontier of
//! checkpoints worth keeping.

use crate::error::{Error, length};
use serde::{Deserialize, Serialize};

/// One checkpoint, or one n of best-of-n.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// `sqrt(KL(policy || reference))`, the distance that \[GAO\] plots against. A negative estimate
    /// of KL, which k1 can give, counts as 0.
    pub sqrt_kl: f64,
    /// What the reward model says.
    pub proxy: f64,
    /// What the gold judge says.
    pub gold: f64,
}

/// A law of \[GAO\], fitted: `gold(d) = d * (alpha - beta * d)` for best-of-n,
/// `d * (alpha - beta * ln d)` for reinforcement learning, with `gold` relative to its value at 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Initial slope.
    pub alpha: f64,
    /// What over-optimisation takes away; positive when gold bends down.
    pub beta: f64,
}

/// Points in order of distance, from KL, proxy score and gold score of each checkpoint.
///
/// # Errors
/// When the slices differ in length.
pub fn over_optimisation(kl: &[f64], proxy: &[f64], gold: &[f64]) -> Result<Vec<Point>, Error> {
    length("proxy", proxy.len(), kl.len())?;
    length("gold", gold.len(), kl.len())?;
    let point = |i: usize| Point { sqrt_kl: kl[i].max(0.0).sqrt(), proxy: proxy[i], gold: gold[i] };
    let mut points: Vec<Point> = (0..kl.len()).map(point).collect();
    points.sort_by(|a, b| a.sqrt_kl.total_cmp(&b.sqrt_kl));
    Ok(points)
}

/// The point after which gold only falls while proxy still rises above its value there: where
/// optimisation became over-optimisation. `None` while gold is best at the far end, or proxy has
/// not risen since.
pub fn turning_point(points: &[Point]) -> Option<usize> {
    let best = (0..points.len()).reduce(|best, i| if points[i].gold > points[best].gold { i } else { best })?;
    points[best + 1..].iter().any(|later| later.proxy > points[best].proxy).then_some(best)
}

/// Least squares for the law of best-of-n. `None` with fewer than two distances above 0.
pub fn fit_best_of_n(points: &[Point]) -> Option<Fit> {
    fit(points, |d| d * d)
}

/// Least squares for the law of reinforcement learning. `None` with fewer than two distances above
/// 0, or when all of them are equal.
pub fn fit_reinforcement(points: &[Point]) -> Option<Fit> {
    fit(points, |d| d * d.ln())
}

/// Indices of the points that no other beats: none has at most their distance and more gold, or
/// less distance and at least their gold. In order of distance.
pub fn frontier(points: &[Point]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| {
        points[a].sqrt_kl.total_cmp(&points[b].sqrt_kl).then(points[b].gold.total_cmp(&points[a].gold)).then(a.cmp(&b))
    });
    let mut best = f64::NEG_INFINITY;
    order.retain(|&i| {
        points[i].gold > best && {
            best = points[i].gold;
            true
        }
    });
    order
}

/// Normal equations of `gold = alpha * d - beta * bend(d)` over the points with d > 0.
fn fit(points: &[Point], bend: impl Fn(f64) -> f64) -> Option<Fit> {
    let (mut xx, mut xy, mut yy, mut xg, mut yg) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for point in points.iter().filter(|point| point.sqrt_kl > 0.0) {
        let (x, y) = (point.sqrt_kl, -bend(point.sqrt_kl));
        xx += x * x;
        xy += x * y;
        yy += y * y;
        xg += x * point.gold;
        yg += y * point.gold;
    }
    let determinant = xx * yy - xy * xy;
    // Relative to the product of the diagonal, so that the scale of the distances does not matter.
    let solvable = determinant.abs() > 1e-12 * xx * yy;
    solvable.then(|| Fit { alpha: (xg * yy - yg * xy) / determinant, beta: (yg * xx - xg * xy) / determinant })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(rows: &[(f64, f64, f64)]) -> Vec<Point> {
        rows.iter().map(|&(sqrt_kl, proxy, gold)| Point { sqrt_kl, proxy, gold }).collect()
    }

    #[test]
    fn points_come_in_order_of_distance() {
        let got = over_optimisation(&[4.0, -0.1, 1.0], &[3.0, 1.0, 2.0], &[5.0, 0.0, 6.0]).unwrap();
        assert_eq!(got, points(&[(0.0, 1.0, 0.0), (1.0, 2.0, 6.0), (2.0, 3.0, 5.0)]));
        assert!(over_optimisation(&[1.0], &[], &[1.0]).is_err());
    }

    #[test]
    fn the_turning_point_is_where_gold_falls_and_proxy_rises() {
        assert_eq!(turning_point(&points(&[(0.0, 0.0, 0.0), (1.0, 1.0, 2.0), (2.0, 3.0, 1.0)])), Some(1));
        assert_eq!(turning_point(&points(&[(0.0, 0.0, 0.0), (1.0, 1.0, 2.0)])), None);
        assert_eq!(turning_point(&points(&[(0.0, 1.0, 2.0), (1.0, 0.5, 1.0)])), None);
        assert_eq!(turning_point(&[]), None);
    }

    #[test]
    fn fits_recover_the_laws_they_are_named_after() {
        let distances = [0.0, 0.3, 0.8, 1.5, 2.5];
        let law = |gold: &dyn Fn(f64) -> f64| points(&distances.map(|d| (d, 0.0, if d > 0.0 { gold(d) } else { 0.0 })));
        let near = |fit: Option<Fit>| {
            let fit = fit.unwrap();
            (fit.alpha - 2.0).abs() < 1e-9 && (fit.beta - 0.5).abs() < 1e-9
        };
        assert!(near(fit_best_of_n(&law(&|d| d * (2.0 - 0.5 * d)))));
        assert!(near(fit_reinforcement(&law(&|d| d * (2.0 - 0.5 * d.ln())))));
        assert_eq!(fit_best_of_n(&points(&[(1.0, 0.0, 1.0)])), None);
        assert_eq!(fit_best_of_n(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn the_frontier_is_what_nothing_beats(rows in proptest::collection::vec((0u8..6, 0i8..6), 0..12)) {
            let points: Vec<Point> = rows
                .iter()
                .map(|&(d, g)| Point { sqrt_kl: f64::from(d), proxy: 0.0, gold: f64::from(g) })
                .collect();
            let beats = |a: &Point, b: &Point| {
                (a.sqrt_kl <= b.sqrt_kl && a.gold > b.gold) || (a.sqrt_kl < b.sqrt_kl && a.gold >= b.gold)
            };
            let kept = frontier(&points);
            for &i in &kept {
                proptest::prop_assert!(!points.iter().any(|p| beats(p, &points[i])));
            }
            // One of every unbeaten pair of coordinates is there.
            for p in points.iter().filter(|p| !points.iter().any(|other| beats(other, p))) {
                let there = kept.iter().filter(|&&i| points[i].sqrt_kl == p.sqrt_kl && points[i].gold == p.gold).count();
                proptest::prop_assert_eq!(there, 1);
            }
        }
    }
}
