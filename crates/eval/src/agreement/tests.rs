use super::*;
use instruct_random::Source;
use proptest::prelude::*;
use serde::Deserialize;
use std::path::Path;

/// What scipy and the package krippendorff say (`fixtures/reference/agreement.py`).
#[derive(Deserialize)]
struct Golden {
    tau: Vec<Tau>,
    alpha: Vec<Alpha>,
    table: Table,
}

#[derive(Deserialize)]
struct Tau {
    a: Vec<u32>,
    b: Vec<u32>,
    tau: Option<f64>,
}

#[derive(Deserialize)]
struct Alpha {
    items: Vec<Judged>,
    alpha: f64,
}

#[derive(Deserialize)]
struct Table {
    rows: Vec<Vec<Option<usize>>>,
    alpha: f64,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/agreement/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn judged(rankings: &[(&str, &[u32])]) -> Judged {
    rankings.iter().map(|(labeler, ranks)| ((*labeler).to_owned(), ranks.to_vec())).collect()
}

#[track_caller]
fn near(got: Option<f64>, want: Option<f64>) {
    match (got, want) {
        (Some(got), Some(want)) => assert!((got - want).abs() < 1e-11, "{got}, not {want}"),
        (got, want) => assert_eq!(got, want),
    }
}

/// Pairs, pairwise, with ties half, tau-b, alpha.
type Row = (usize, Option<f64>, Option<f64>, Option<f64>, Option<f64>);

fn row(found: &Agreement) -> Row {
    let mean = |interval: Option<Interval>| interval.map(|interval| interval.mean);
    let all = &found.all;
    (all.pairs, mean(all.pairwise), mean(all.with_ties_half), mean(all.tau_b), mean(found.alpha))
}

#[track_caller]
fn check_row(got: Row, want: Row) {
    assert_eq!(got.0, want.0);
    near(got.1, want.1);
    near(got.2, want.2);
    near(got.3, want.3);
    near(got.4, want.4);
}

#[test]
fn rows_computed_by_hand() {
    #[track_caller]
    fn check(items: &[Judged], want: Row) {
        check_row(row(&agreement(items).unwrap()), want);
    }
    check(&[], (0, None, None, None, None));
    // Nobody shares anything.
    check(&[judged(&[("ann", &[1, 2])]), judged(&[("bob", &[1, 2])])], (0, None, None, None, None));
    check(&[judged(&[("ann", &[1, 2]), ("bob", &[1, 2])])], (1, Some(1.0), Some(1.0), Some(1.0), Some(1.0)));
    // Values 1 2 and 2 1: every unit differs; of four values two and two, so a pair differs by chance in 2 of 3.
    check(&[judged(&[("ann", &[1, 2]), ("bob", &[2, 1])])], (1, Some(0.0), Some(0.0), Some(-1.0), Some(-0.5)));
    // One tie of two: no strict pair, half a credit, no tau. Places 1 2 and 1.5 1.5: distances are 1/2 + 2/2 = 1.5
    // from each end to the middle, and 1/2 + 2 + 1/2 = 3 between the ends. Observed: 2 * 1.5^2. Expected, over 3:
    // 1 * 2 * 1.5^2 twice and 1 * 1 * 3^2, which is 18.
    check(&[judged(&[("ann", &[1, 2]), ("bob", &[1, 1])])], (0, None, Some(0.5), None, Some(1.0 - 3.0 * 4.5 / 18.0)));
    // Both tied: they agree, but nobody could have differed from what all say.
    check(&[judged(&[("ann", &[1, 1]), ("bob", &[4, 4])])], (0, None, Some(1.0), None, None));
    // Only the order counts, so gaps change nothing.
    let (dense, sparse) = ([1, 2, 2, 3], [1, 4, 4, 9]);
    check(&[judged(&[("ann", &dense), ("bob", &sparse)])], (5, Some(1.0), Some(1.0), Some(1.0), Some(1.0)));
    // Three people: pairs (a, b) agree on 3 of 3, (a, c) on 1 of 3, (b, c) on 1 of 3; tau is 1, -1/3 and -1/3.
    let three = judged(&[("ann", &[1, 2, 3]), ("bob", &[1, 2, 3]), ("eve", &[2, 3, 1])]);
    let got = row(&agreement(&[three]).unwrap());
    assert_eq!(got.0, 9);
    near(got.1, Some(5.0 / 9.0));
    near(got.2, Some(5.0 / 9.0));
    near(got.3, Some(1.0 / 9.0));
}

#[test]
fn each_labeler_is_held_against_the_others() {
    let items = [
        judged(&[("ann", &[1, 2]), ("bob", &[1, 2]), ("eve", &[2, 1])]),
        judged(&[("ann", &[2, 1]), ("eve", &[1, 2])]),
        judged(&[("ian", &[1, 2])]),
    ];
    let found = agreement(&items).unwrap();
    let of = |name: &str| found.labelers[name].pairwise.unwrap().mean;
    near(Some(of("ann")), Some(1.0 / 3.0));
    near(Some(of("bob")), Some(0.5));
    near(Some(of("eve")), Some(0.0));
    assert!(!found.labelers.contains_key("ian"), "nobody saw what he saw");
    assert_eq!((found.items, found.all.pairs, found.labelers["ann"].pairs), (2, 4, 3));
}

#[test]
fn tau_b_is_that_of_scipy() {
    let golden = golden();
    for case in &golden.tau {
        let found = agreement(&[judged(&[("ann", &case.a), ("bob", &case.b)])]).unwrap();
        near(found.all.tau_b.map(|tau| tau.mean), case.tau);
    }
    assert!(golden.tau.len() > 10 && golden.tau.iter().any(|case| case.tau.is_none()));
}

#[test]
fn alpha_is_that_of_the_package_and_of_the_paper() {
    let golden = golden();
    for case in &golden.alpha {
        near(agreement(&case.items).unwrap().alpha.map(|alpha| alpha.mean), Some(case.alpha));
    }
    assert!(golden.alpha.len() > 4);
    let units = (0..12).map(|unit| golden.table.rows.iter().filter_map(|row| row[unit]).collect());
    let table = alpha_of([Valued::new(6, units)].iter());
    near(table, Some(golden.table.alpha));
    assert_eq!(format!("{:.3}", table.unwrap()), "0.815", "as printed in the paper");
}

#[test]
fn groups_of_one_number_of_completions_do_not_share_their_chance() {
    // Two people who rank at random agree no better because some items have two completions and some nine.
    let mut draws = Source::new(1, "random rankings").at([]);
    let mut random = |k: usize| {
        let mut ranks = || draws.permutation(k).iter().map(|&place| place as u32 + 1).collect::<Vec<u32>>();
        judged(&[("ann", &ranks()), ("bob", &ranks())])
    };
    let items: Vec<Judged> = (0..400).map(|i| random([2, 9][i % 2])).collect();
    let alpha = agreement(&items).unwrap().alpha.unwrap();
    assert!(alpha.low.unwrap() < 0.0 && alpha.high.unwrap() > 0.0, "{alpha:?}");
    // Thrown together, the ranks of two would look alike beside those of nine.
    let together: Vec<Valued> = items.iter().map(|judged| Valued { values: 19, ..valued(judged) }).collect();
    assert!(alpha_of(together.iter()).unwrap() > 0.1);
}

#[test]
fn intervals_resample_items_and_few_items_have_none() {
    let agree = judged(&[("ann", &[1, 2, 3]), ("bob", &[1, 2, 3])]);
    let differ = judged(&[("ann", &[1, 2, 3]), ("bob", &[3, 1, 2])]);
    let of = |alike: usize, others: usize| {
        agreement(&[vec![agree.clone(); alike], vec![differ.clone(); others]].concat()).unwrap()
    };
    let few = of(10, 9);
    for interval in [few.all.pairwise, few.all.with_ties_half, few.all.tau_b, few.alpha] {
        assert_eq!(interval.map(|interval| (interval.low, interval.high, interval.n)), Some((None, None, 19)));
    }
    // 200 items, half of which say 1 and half 1/3: standard error 1/3 / sqrt(200) = 0.0236, of tau twice that.
    let many = of(100, 100);
    for (interval, error) in [(many.all.pairwise, 0.0236), (many.all.tau_b, 0.0471)] {
        let Interval { mean, low, high, .. } = interval.unwrap();
        assert!((low.unwrap() - (mean - 1.96 * error)).abs() < 0.25 * error, "{interval:?}");
        assert!((high.unwrap() - (mean + 1.96 * error)).abs() < 0.25 * error, "{interval:?}");
    }
    let alpha = many.alpha.unwrap();
    assert!(alpha.low.unwrap() < alpha.mean && alpha.mean < alpha.high.unwrap(), "{alpha:?}");
    // Who agreed on twenty of twenty is not certain to agree.
    let all = of(20, 0);
    assert_eq!(all.all.pairwise.and_then(|interval| interval.low), Some(crate::interval::wilson(1.0, 20).0));
    near(all.all.tau_b.and_then(|tau| tau.low), Some(2.0 * crate::interval::wilson(1.0, 20).0 - 1.0));
    assert_eq!(all.alpha, Some(Interval { mean: 1.0, low: None, high: None, n: 20 }));
}

#[test]
fn the_alpha_of_a_simulated_pair_is_covered_as_often_as_its_interval_says() {
    // The truth is the alpha of ten thousand items; 60 samples of forty items each.
    let source = Source::new(7, "coverage of alpha");
    let sample = |set: u64, items: u64| -> Vec<Judged> {
        let one = |item| {
            let mut draws = source.at([set, item]);
            let quality: Vec<f32> = (0..4).map(|_| draws.normal()).collect();
            let mut ranks = || {
                let seen: Vec<f32> = quality.iter().map(|quality| quality + draws.normal()).collect();
                seen.iter().map(|own| 1 + seen.iter().filter(|other| *other > own).count() as u32).collect::<Vec<u32>>()
            };
            judged(&[("ann", &ranks()), ("bob", &ranks())])
        };
        (0..items).map(one).collect()
    };
    let values: Vec<Valued> = sample(0, 10_000).iter().map(valued).collect();
    let truth = alpha_of(values.iter()).unwrap();
    let covers = |set: &u64| {
        let alpha = alpha(&sample(*set, 40)).unwrap();
        (alpha.low.unwrap()..=alpha.high.unwrap()).contains(&truth)
    };
    // 95 % of 60 is 57, with a standard error of 1.7.
    let covered = (1..61).filter(covers).count();
    assert!((51..=60).contains(&covered), "{covered} of 60 around {truth}");
}

#[test]
fn items_that_do_not_fit_are_refused() {
    #[track_caller]
    fn check(item: Judged, want: Error) {
        assert_eq!(agreement(&[judged(&[("ann", &[1, 2])]), item]), Err(want));
    }
    check(judged(&[("ann", &[1, 2]), ("bob", &[1])]), Error::Length { what: "ranks", got: 1, want: 2 });
    check(judged(&[("ann", &[1]), ("ann", &[1])]), Error::Repeated { labeler: "ann".to_owned(), item: 1 });
}

#[test]
fn results_carry_the_keys_of_the_page() {
    let found = agreement(&[judged(&[("ann", &[1, 2]), ("bob", &[1, 2])])]).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    let one = serde_json::json!({"mean": 1.0, "low": null, "high": null, "n": 1});
    let against = serde_json::json!({"pairs": 1, "pairwise": one, "with_ties_half": one, "tau_b": one});
    let mut want = against.clone();
    want["alpha"] = one;
    want["items"] = 1.into();
    want["labelers"] = serde_json::json!({"ann": against, "bob": against});
    assert_eq!(json, want);
    assert_eq!(serde_json::from_value::<Agreement>(json).unwrap(), found);
}

#[test]
fn what_was_shown_first_wins_no_more_often_than_it_should() {
    #[track_caller]
    fn check(rankings: &[&[u32]], want: &[(f64, f64)]) {
        let rankings: Vec<Vec<u32>> = rankings.iter().map(|ranks| ranks.to_vec()).collect();
        let found = position_bias(&rankings).unwrap();
        assert_eq!(found.iter().map(|place| place.place).collect::<Vec<_>>(), (0..want.len()).collect::<Vec<_>>());
        for (place, (best, expected)) in found.iter().zip(want) {
            near(Some(place.best.mean), Some(*best));
            near(Some(place.expected), Some(*expected));
        }
    }
    check(&[], &[]);
    check(&[&[1, 2]], &[(1.0, 0.5), (0.0, 0.5)]);
    // The best need not have rank 1, and those who tie for it share it.
    check(&[&[5, 3], &[2, 2]], &[(0.25, 0.5), (0.75, 0.5)]);
    // The third place is in one of the two rankings.
    check(&[&[2, 1], &[1, 1, 1]], &[(1.0 / 6.0, 5.0 / 12.0), (4.0 / 6.0, 5.0 / 12.0), (1.0 / 3.0, 1.0 / 3.0)]);
    // People who always take the first stand out, people who do not do not.
    let first: Vec<Vec<u32>> = vec![vec![1, 2, 3, 4]; 40];
    assert!(position_bias(&first).unwrap()[0].best.low.unwrap() > 0.25);
    let mut draws = Source::new(3, "orders").at([]);
    let drawn: Vec<Vec<u32>> = (0..400).map(|_| draws.permutation(4).iter().map(|&r| r as u32 + 1).collect()).collect();
    for place in position_bias(&drawn).unwrap() {
        assert!((place.best.low.unwrap()..=place.best.high.unwrap()).contains(&place.expected), "{place:?}");
    }
}

/// The measures again, slowly and in other words: sums over ordered pairs of labelers and completions, signs
/// instead of comparisons, and for alpha every two values that anybody gave.
fn slow(items: &[Judged]) -> Row {
    let (mut strict, mut same, mut credit, mut all) = (0, 0, 0.0, 0);
    let mut taus = Vec::new();
    for item in items {
        for (a, first) in item {
            for (_, second) in item.iter().filter(|(b, _)| b != a) {
                let (mut product, mut squares_a, mut squares_b) = (0, 0, 0);
                for i in 0..first.len() {
                    for j in (0..first.len()).filter(|j| *j != i) {
                        let x = (i64::from(first[i]) - i64::from(first[j])).signum();
                        let y = (i64::from(second[i]) - i64::from(second[j])).signum();
                        product += x * y;
                        squares_a += x * x;
                        squares_b += y * y;
                        strict += i64::from(x * y != 0);
                        same += i64::from(x * y == 1);
                        credit += 1.0 - (x - y).abs() as f64 / 2.0;
                        all += 1;
                    }
                }
                if squares_a * squares_b > 0 {
                    taus.push(product as f64 / ((squares_a * squares_b) as f64).sqrt());
                }
            }
        }
    }
    let of = |above: f64, below: f64| (below > 0.0).then(|| above / below);
    let tau = of(taus.iter().sum(), taus.len() as f64);
    ((strict / 4) as usize, of(same as f64, strict as f64), of(credit, f64::from(all)), tau, slow_alpha(items))
}

fn slow_alpha(items: &[Judged]) -> Option<f64> {
    let (mut observed, mut expected) = (0.0, 0.0);
    for k in 0..10 {
        let units: Vec<Vec<f64>> = items
            .iter()
            .filter(|item| item.len() > 1 && item[0].1.len() == k)
            .flat_map(|item| (0..k).map(|unit| item.iter().map(|(_, ranks)| place(ranks, unit)).collect()))
            .collect();
        let pool: Vec<f64> = units.concat();
        let n = pool.len() as f64;
        // How many values lie between two, those that are at either end counted half.
        let apart = |a: f64, b: f64| {
            let inside = pool.iter().filter(|v| **v > a.min(b) && **v < a.max(b)).count() as f64;
            let ends = pool.iter().filter(|v| a != b && (**v == a || **v == b)).count() as f64;
            ((inside + ends / 2.0) / n).powi(2)
        };
        for unit in &units {
            let pairs = unit.iter().enumerate().flat_map(|(i, a)| unit[..i].iter().map(move |b| (a, b)));
            observed += pairs.map(|(a, b)| 2.0 * apart(*a, *b)).sum::<f64>() / (unit.len() - 1) as f64;
        }
        for (i, a) in pool.iter().enumerate() {
            expected += pool[..i].iter().map(|b| 2.0 * apart(*a, *b)).sum::<f64>() / (n - 1.0);
        }
    }
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// The mean of the places that equal ranks take in sorted order.
fn place(ranks: &[u32], unit: usize) -> f64 {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let places: Vec<f64> = (1..=sorted.len()).filter(|at| sorted[at - 1] == ranks[unit]).map(|at| at as f64).collect();
    places.iter().sum::<f64>() / places.len() as f64
}

fn any_item() -> impl Strategy<Value = Judged> {
    (1usize..6, 1usize..5).prop_flat_map(|(k, people)| {
        prop::collection::vec(prop::collection::vec(1u32..5, k), people).prop_map(|rankings| {
            rankings.into_iter().enumerate().map(|(i, ranks)| (format!("labeler-{i}"), ranks)).collect()
        })
    })
}

proptest! {
    #[test]
    fn every_measure_is_that_of_the_slow_one(items in prop::collection::vec(any_item(), 0..6)) {
        check_row(row(&agreement(&items).unwrap()), slow(&items));
    }

    #[test]
    fn names_and_the_order_of_people_and_completions_change_nothing(
        items in prop::collection::vec(any_item(), 0..5),
        seed in 0u64..1000,
    ) {
        let mut draws = Source::new(seed, "shuffles").at([]);
        let mut shuffled = items.clone();
        for item in &mut shuffled {
            let order = draws.permutation(item[0].1.len());
            item.iter_mut().for_each(|(_, ranks)| *ranks = order.iter().map(|&at| ranks[at]).collect());
            draws.shuffle(item);
        }
        check_row(row(&agreement(&shuffled).unwrap()), row(&agreement(&items).unwrap()));
    }
}
