//! The report card of a reward model on rankings it has not seen.

use crate::{
    error::{Error, finite, length},
    interval::{Interval, bootstrap_ratio},
    spread::Spread,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One ranking record with a reward model's scores. All vectors are per completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranked {
    /// What the reward model gave.
    pub scores: Vec<f64>,
    /// What the labeler said: 1 is best, equal is a tie. Only the order counts.
    pub ranks: Vec<u32>,
    /// The index of the first completion that is the same; empty where all differ. Two that are the same form
    /// no pair: no score could tell them apart.
    pub same_as: Vec<usize>,
    /// Tokens, for the "longer wins" baseline.
    pub lengths: Vec<usize>,
    /// What the gold judge gave, where there is one.
    pub gold: Option<Vec<f64>>,
    /// What was answered. Records of one prompt are resampled together: several labelers' rankings
    /// of it are not independent. Without one, the record stands for itself.
    pub prompt: Option<String>,
    /// Who ranked.
    pub labeler: Option<String>,
    /// What the prompt asks for.
    pub use_case: Option<String>,
    /// How sure the labeler was, in words or as a printed number.
    pub confidence: Option<String>,
}

/// How well scores foretell rankings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportCard {
    /// Share of pairs whose better completion has the higher score, equal scores half. The interval
    /// resamples prompts, because pairs of one share completions, or at least the difficulty.
    pub accuracy: Interval,
    /// Share of the same pairs whose better completion is the longer one, equal lengths half.
    pub accuracy_length_baseline: f64,
    /// The difference of both, paired: its interval, too, resamples prompts. Above zero the scores know more than length.
    pub gain_over_length: Interval,
    /// Share of the same pairs on which the gold judge agrees with the labeler, equal points half:
    /// the most that a model of the judge can reach against the labelers' noise. Only where every
    /// record has gold points.
    pub accuracy_ceiling: Option<f64>,
    /// Score of the better minus score of the worse, over pairs.
    pub margin: Spread,
    /// Expected calibration error over ten bins of `sigmoid(margin)`.
    pub ece: f64,
    /// The curve behind it; bins without pairs are left out.
    pub reliability: Vec<Bin>,
    /// Accuracy by labeler.
    pub by_labeler: BTreeMap<String, Interval>,
    /// Accuracy by use case.
    pub by_use_case: BTreeMap<String, Interval>,
    /// Accuracy by the labeler's confidence.
    pub by_confidence: BTreeMap<String, Interval>,
    /// Accuracy by how much longer the better completion is, in tokens: far below zero the model
    /// must know more than length.
    pub by_length_gap: BTreeMap<String, Interval>,
    /// Pairs that the labelers ordered; ties make none, nor do two completions that are the same.
    pub pairs: usize,
    /// Records with at least one pair.
    pub records: usize,
    /// Records without one, left out.
    pub records_without_pair: usize,
}

/// One bin of the reliability curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Lower edge; the bin is `low..low + 0.1`.
    pub low: f64,
    /// Mean predicted probability inside.
    pub predicted: f64,
    /// Share that came true.
    pub observed: f64,
    /// Ordered pairs inside, each pair in both orders.
    pub n: usize,
}

/// Grades scores against rankings (Ouyang et al. 2022, section 3.5).
///
/// Calibration asks of every pair in both orders whether "the first is better, with probability
/// `sigmoid(first - second)`" came true; asking only winner against loser would call any model
/// underconfident, and asking in the order of the file would make the answer depend on it.
///
/// # Errors
/// When a record's vectors differ in length, a score is not finite, or no record has a pair.
pub fn report_card(records: &[Ranked]) -> Result<ReportCard, Error> {
    let mut pairs = Vec::new();
    let mut first = BTreeMap::new();
    for (record, ranked) in records.iter().enumerate() {
        check(ranked)?;
        let unit = ranked.prompt.as_ref().map_or(record, |prompt| *first.entry(prompt).or_insert(record));
        pairs.extend(ordered_pairs(record, unit, ranked));
    }
    if pairs.is_empty() {
        return Err(Error::Empty { what: "pairs" });
    }
    let margins: Vec<f64> = pairs.iter().map(|pair| pair.margin).collect();
    let reliability = reliability(&margins);
    let with_pair = pairs.iter().map(|pair| pair.record).collect::<BTreeSet<usize>>().len();
    let by = |key: &dyn Fn(&Pair) -> Option<String>| accuracy_by(&pairs, key);
    Ok(ReportCard {
        accuracy: accuracy(pairs.iter()),
        accuracy_length_baseline: mean(pairs.iter().map(|pair| credit(pair.length_gap as f64))),
        gain_over_length: mean_by_prompt(
            pairs.iter().map(|pair| (pair.unit, credit(pair.margin) - credit(pair.length_gap as f64))),
        ),
        accuracy_ceiling: records
            .iter()
            .all(|ranked| ranked.gold.is_some())
            .then(|| mean(pairs.iter().map(|pair| credit(pair.gold_gap)))),
        margin: Spread::of(&margins)?,
        ece: reliability.iter().map(|bin| bin.n as f64 * (bin.predicted - bin.observed).abs()).sum::<f64>()
            / (2 * pairs.len()) as f64,
        reliability,
        by_labeler: by(&|pair| records[pair.record].labeler.clone()),
        by_use_case: by(&|pair| records[pair.record].use_case.clone()),
        by_confidence: by(&|pair| records[pair.record].confidence.clone()),
        by_length_gap: by(&|pair| Some(gap_name(pair.length_gap).to_owned())),
        pairs: pairs.len(),
        records: with_pair,
        records_without_pair: records.len() - with_pair,
    })
}

/// How much more of the pairs the scores of `new` order right than those of `old`, on the same records: the difference
/// of both accuracies, with its interval over prompts. Pairs that both order alike add nothing to it, so it is narrower
/// than the two intervals together.
///
/// # Errors
/// As [`report_card`]; records that are not the same.
pub fn accuracy_gain(new: &[Ranked], old: &[Ranked]) -> Result<Interval, Error> {
    length("old", old.len(), new.len())?;
    let mut units: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    let mut first = BTreeMap::new();
    for (record, (new, old)) in new.iter().zip(old).enumerate() {
        check(new)?;
        check(old)?;
        length("old ranks", old.ranks.len(), new.ranks.len())?;
        let prompt = new.prompt.as_ref();
        let at = prompt.map_or(record, |prompt| *first.entry(prompt).or_insert(record));
        let unit = units.entry(at).or_default();
        for (new, old) in ordered_pairs(record, at, new).zip(ordered_pairs(record, at, old)) {
            unit.0 += credit(new.margin) - credit(old.margin);
            unit.1 += 1.0;
        }
    }
    if units.values().all(|unit| unit.1 == 0.0) {
        return Err(Error::Empty { what: "pairs" });
    }
    Ok(bootstrap_ratio(&units.into_values().collect::<Vec<_>>()))
}

/// A pair that a labeler ordered; every gap is better minus worse.
struct Pair {
    record: usize,
    /// The first record of its prompt.
    unit: usize,
    margin: f64,
    length_gap: i64,
    gold_gap: f64,
}

fn check(ranked: &Ranked) -> Result<(), Error> {
    finite("scores", &ranked.scores)?;
    length("ranks", ranked.ranks.len(), ranked.scores.len())?;
    length("lengths", ranked.lengths.len(), ranked.scores.len())?;
    if !ranked.same_as.is_empty() {
        length("same_as", ranked.same_as.len(), ranked.scores.len())?;
    }
    match &ranked.gold {
        Some(gold) => length("gold", gold.len(), ranked.scores.len()),
        None => Ok(()),
    }
}

fn ordered_pairs(record: usize, unit: usize, ranked: &Ranked) -> impl Iterator<Item = Pair> {
    let k = ranked.ranks.len();
    let all = (0..k).flat_map(move |better| (0..k).map(move |worse| (better, worse)));
    let same = |a, b| !ranked.same_as.is_empty() && ranked.same_as[a] == ranked.same_as[b];
    all.filter(move |&(better, worse)| ranked.ranks[better] < ranked.ranks[worse] && !same(better, worse)).map(
        move |(better, worse)| Pair {
            record,
            unit,
            margin: ranked.scores[better] - ranked.scores[worse],
            length_gap: ranked.lengths[better] as i64 - ranked.lengths[worse] as i64,
            gold_gap: ranked.gold.as_ref().map_or(0.0, |gold| gold[better] - gold[worse]),
        },
    )
}

/// 1 for a positive gap, half for none.
fn credit(gap: f64) -> f64 {
    if gap > 0.0 { 1.0 } else { f64::from(u8::from(gap == 0.0)) / 2.0 }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    sum / f64::from(n)
}

fn accuracy<'a>(pairs: impl Iterator<Item = &'a Pair>) -> Interval {
    mean_by_prompt(pairs.map(|pair| (pair.unit, credit(pair.margin))))
}

/// The mean of what pairs are worth, given with the first record of their prompt.
fn mean_by_prompt(pairs: impl Iterator<Item = (usize, f64)>) -> Interval {
    let mut units: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (unit, worth) in pairs {
        let unit = units.entry(unit).or_default();
        unit.0 += worth;
        unit.1 += 1.0;
    }
    bootstrap_ratio(&units.into_values().collect::<Vec<_>>())
}

fn accuracy_by(pairs: &[Pair], key: &dyn Fn(&Pair) -> Option<String>) -> BTreeMap<String, Interval> {
    let mut groups: BTreeMap<String, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs {
        if let Some(name) = key(pair) {
            groups.entry(name).or_default().push(pair);
        }
    }
    groups.into_iter().map(|(name, pairs)| (name, accuracy(pairs.into_iter()))).collect()
}

/// Names sort from "better is much shorter" to "better is much longer".
fn gap_name(gap: i64) -> &'static str {
    match gap {
        ..=-16 => "a: 16 or more shorter",
        -15..=-4 => "b: 4 to 15 shorter",
        -3..=3 => "c: within 3",
        4..=15 => "d: 4 to 15 longer",
        16.. => "e: 16 or more longer",
    }
}

fn reliability(margins: &[f64]) -> Vec<Bin> {
    let mut sums = [(0.0, 0.0, 0usize); 10];
    for &margin in margins {
        for (margin, came_true) in [(margin, 1.0), (-margin, 0.0)] {
            let predicted = 1.0 / (1.0 + (-margin).exp());
            let bin = &mut sums[((predicted * 10.0) as usize).min(9)];
            *bin = (bin.0 + predicted, bin.1 + came_true, bin.2 + 1);
        }
    }
    let bins = sums.iter().enumerate().filter(|(_, (_, _, n))| *n > 0);
    bins.map(|(i, &(predicted, observed, n))| Bin {
        low: i as f64 / 10.0,
        predicted: predicted / n as f64,
        observed: observed / n as f64,
        n,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_random::Source;

    fn ranked(scores: &[f64], ranks: &[u32]) -> Ranked {
        Ranked { scores: scores.to_vec(), ranks: ranks.to_vec(), lengths: vec![1; ranks.len()], ..Ranked::default() }
    }

    #[track_caller]
    fn check_accuracy(records: &[Ranked], accuracy: f64, pairs: usize) {
        let card = report_card(records).unwrap();
        assert_eq!((card.accuracy.mean, card.pairs), (accuracy, pairs));
    }

    #[test]
    fn ties_in_labels_make_no_pair_and_ties_in_scores_count_half() {
        check_accuracy(&[ranked(&[3.0, 2.0, 1.0], &[1, 2, 3])], 1.0, 3);
        check_accuracy(&[ranked(&[1.0, 2.0, 3.0], &[1, 2, 3])], 0.0, 3);
        check_accuracy(&[ranked(&[3.0, 2.0, 1.0], &[1, 1, 2])], 1.0, 2);
        check_accuracy(&[ranked(&[1.0, 1.0], &[1, 2])], 0.5, 1);
        check_accuracy(&[ranked(&[2.0, 1.0], &[1, 2]), ranked(&[9.0, 9.0], &[1, 1])], 1.0, 1);
        // Ranks need not be dense.
        check_accuracy(&[ranked(&[2.0, 1.0, 0.0, 5.0], &[2, 7, 9, 1])], 1.0, 6);
    }

    #[test]
    fn a_gain_is_the_difference_of_the_accuracies() {
        let mut draws = Source::new(3, "gain").at([]);
        let mut records = |quality: f64| -> Vec<Ranked> {
            let record = |i: usize| {
                let scores = [1.0, 2.0, 3.0].map(|rank| f64::from(draws.normal()) - quality * rank);
                Ranked { prompt: Some((i / 2).to_string()), ..ranked(&scores, &[1, 2, 3]) }
            };
            (0..60).map(record).collect()
        };
        let (new, old) = (records(1.0), records(0.2));
        let [better, worse] = [&new, &old].map(|records| report_card(records).unwrap().accuracy.mean);
        let gain = accuracy_gain(&new, &old).unwrap();
        assert!((gain.mean - (better - worse)).abs() < 1e-12 && gain.n == 30, "{gain:?}");
        assert!(gain.low.unwrap() < gain.mean && gain.mean < gain.high.unwrap() && gain.low.unwrap() > 0.0);
        let none = accuracy_gain(&new, &new).unwrap();
        assert_eq!(none.mean, 0.0);
        assert!(accuracy_gain(&new, &old[1..]).is_err());
        assert!(accuracy_gain(&[ranked(&[1.0, 2.0], &[1, 1])], &[ranked(&[1.0, 2.0], &[1, 1])]).is_err());
    }

    #[test]
    fn completions_that_are_the_same_make_no_pair() {
        let alike = |same_as: &[usize]| Ranked { same_as: same_as.to_vec(), ..ranked(&[1.0, 0.0, 1.0], &[1, 2, 3]) };
        check_accuracy(&[alike(&[])], 0.5, 3);
        check_accuracy(&[alike(&[0, 1, 2])], 0.5, 3);
        check_accuracy(&[alike(&[0, 1, 0])], 0.5, 2);
        assert!(report_card(&[alike(&[0, 0, 0])]).is_err(), "no pair is left");
        assert!(report_card(&[alike(&[0])]).is_err());
    }

    #[test]
    fn everything_on_the_card_by_hand() {
        let records = [
            Ranked {
                scores: vec![2.0, 0.0, 1.0],
                ranks: vec![1, 2, 3],
                lengths: vec![30, 10, 10],
                gold: Some(vec![5.0, 3.0, 3.0]),
                same_as: Vec::new(),
                prompt: None,
                labeler: Some("ann".into()),
                use_case: Some("chat".into()),
                confidence: Some("3".into()),
            },
            Ranked {
                scores: vec![0.0, 1.0],
                ranks: vec![1, 2],
                lengths: vec![5, 9],
                gold: Some(vec![1.0, 2.0]),
                same_as: Vec::new(),
                prompt: None,
                labeler: Some("bob".into()),
                use_case: Some("chat".into()),
                confidence: None,
            },
            Ranked { gold: Some(vec![0.0; 2]), ..ranked(&[0.0, 0.0], &[1, 1]) },
        ];
        let card = report_card(&records).unwrap();
        // Pairs: (0,1) +2, (0,2) +1, (1,2) -1, and -1.
        assert_eq!((card.accuracy.mean, card.accuracy.n), (0.5, 2));
        assert_eq!((card.pairs, card.records, card.records_without_pair), (4, 2, 1));
        assert_eq!((card.margin.mean, card.margin.max), (0.25, 2.0));
        assert_eq!(card.accuracy_length_baseline, (1.0 + 1.0 + 0.5 + 0.0) / 4.0);
        assert_eq!((card.gain_over_length.mean, card.gain_over_length.n), (0.5 - 2.5 / 4.0, 2));
        assert_eq!(card.accuracy_ceiling, Some((1.0 + 1.0 + 0.5 + 0.0) / 4.0));
        assert_eq!(card.by_labeler["bob"].mean, 0.0);
        assert!((card.by_labeler["ann"].mean - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(card.by_use_case["chat"].n, 2);
        assert_eq!(card.by_confidence.keys().collect::<Vec<_>>(), ["3"]);
        let gaps: Vec<(&str, f64)> = card.by_length_gap.iter().map(|(name, at)| (&name[..1], at.mean)).collect();
        assert_eq!(gaps, [("b", 0.0), ("c", 0.0), ("e", 1.0)]);
    }

    #[test]
    fn labelers_of_one_prompt_are_resampled_together() {
        let of = |prompt: &str, right: bool| Ranked {
            prompt: Some(prompt.to_owned()),
            ..ranked(&[f64::from(u8::from(right)), 0.5], &[1, 2])
        };
        // Twenty prompts, each ranked by four who agree: twenty opinions, not eighty.
        let wide: Vec<Ranked> = (0..80).map(|i| of(&format!("{}", i / 4), i / 4 < 12)).collect();
        let narrow: Vec<Ranked> = wide.iter().map(|r| Ranked { prompt: None, ..r.clone() }).collect();
        let (wide, narrow) = (report_card(&wide).unwrap(), report_card(&narrow).unwrap());
        assert_eq!((wide.accuracy.mean, wide.accuracy.n, wide.records), (0.6, 20, 80));
        assert_eq!((narrow.accuracy.mean, narrow.accuracy.n, narrow.records), (0.6, 80, 80));
        let width = |card: &ReportCard| card.accuracy.high.unwrap() - card.accuracy.low.unwrap();
        assert!((1.6..2.5).contains(&(width(&wide) / width(&narrow))), "{wide:?}");
    }

    #[test]
    fn without_gold_there_is_no_ceiling() {
        let mut records = vec![ranked(&[1.0, 0.0], &[1, 2]); 2];
        records[0].gold = Some(vec![1.0, 0.0]);
        assert_eq!(report_card(&records).unwrap().accuracy_ceiling, None);
    }

    #[test]
    fn an_honest_model_is_calibrated_and_a_loud_one_is_not() {
        // Labels drawn from sigmoid(margin): the scores are the truth.
        let mut draws = Source::new(2, "calibration").at([]);
        let honest: Vec<Ranked> = (0..20_000)
            .map(|_| {
                let margin = 2.0 * f64::from(draws.normal());
                let first = draws.uniform_f64() < 1.0 / (1.0 + (-margin).exp());
                ranked(&[margin, 0.0], if first { &[1, 2] } else { &[2, 1] })
            })
            .collect();
        let loud: Vec<Ranked> = honest.iter().map(|r| ranked(&[3.0 * r.scores[0], 0.0], &r.ranks)).collect();
        let (honest, loud) = (report_card(&honest).unwrap(), report_card(&loud).unwrap());
        assert!(honest.ece < 0.02, "{}", honest.ece);
        assert!(loud.ece > 0.08, "{}", loud.ece);
        assert_eq!(honest.accuracy.mean, loud.accuracy.mean);
        // Each pair stands there in both orders, so that the curve is symmetric about one half.
        for (low, high) in honest.reliability.iter().zip(honest.reliability.iter().rev()) {
            assert!((low.predicted - (1.0 - high.predicted)).abs() < 1e-9 && low.n == high.n);
        }
    }

    #[test]
    fn a_model_that_knows_nothing_is_calibrated_at_one_half() {
        let card = report_card(&[ranked(&[0.0, 0.0], &[1, 2])]).unwrap();
        assert_eq!(card.reliability, [Bin { low: 0.5, predicted: 0.5, observed: 0.5, n: 2 }]);
        assert_eq!((card.ece, card.accuracy.mean), (0.0, 0.5));
    }

    #[test]
    fn records_that_do_not_fit_are_refused() {
        assert!(matches!(report_card(&[]), Err(Error::Empty { what: "pairs" })));
        assert!(matches!(report_card(&[ranked(&[1.0, 1.0], &[1, 1])]), Err(Error::Empty { what: "pairs" })));
        assert!(matches!(report_card(&[ranked(&[f64::NAN, 1.0], &[1, 2])]), Err(Error::NotFinite { .. })));
        let mut short = ranked(&[2.0, 1.0], &[1, 2]);
        short.lengths.pop();
        assert!(matches!(report_card(&[short]), Err(Error::Length { what: "lengths", .. })));
    }

    proptest::proptest! {
        #[test]
        fn accuracy_is_that_of_the_obvious_loop(rows in proptest::collection::vec(
            proptest::collection::vec((0i8..4, 1u32..4, 0usize..4), 2..6), 1..6,
        )) {
            let records: Vec<Ranked> = rows
                .iter()
                .map(|row| Ranked {
                    scores: row.iter().map(|r| f64::from(r.0)).collect(),
                    ranks: row.iter().map(|r| r.1).collect(),
                    lengths: row.iter().map(|r| r.2).collect(),
                    ..Ranked::default()
                })
                .collect();
            let (mut right, mut longer, mut pairs) = (0.0, 0.0, 0.0);
            for row in &rows {
                for (i, a) in row.iter().enumerate() {
                    for b in &row[i + 1..] {
                        if a.1 == b.1 { continue; }
                        let (w, l) = if a.1 < b.1 { (a, b) } else { (b, a) };
                        right += if w.0 > l.0 { 1.0 } else if w.0 == l.0 { 0.5 } else { 0.0 };
                        longer += if w.2 > l.2 { 1.0 } else if w.2 == l.2 { 0.5 } else { 0.0 };
                        pairs += 1.0;
                    }
                }
            }
            if pairs > 0.0 {
                let card = report_card(&records).unwrap();
                proptest::prop_assert!((card.accuracy.mean - right / pairs).abs() < 1e-12);
                proptest::prop_assert!((card.accuracy_length_baseline - longer / pairs).abs() < 1e-12);
                // As if the lengths were another model's scores.
                let by_length = |of: &Ranked| of.lengths.iter().map(|length| *length as f64).collect();
                let lengths: Vec<Ranked> =
                    records.iter().map(|of| Ranked { scores: by_length(of), ..of.clone() }).collect();
                proptest::prop_assert_eq!(card.gain_over_length, accuracy_gain(&records, &lengths).unwrap());
            }
        }
    }
}
