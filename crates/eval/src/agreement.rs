//! How far people who ranked the same completions agree, and whether the place of a completion on the page decides.

use crate::{
    error::{Error, length},
    interval::{FEWEST, Interval, bootstrap, bootstrap_ratio, resampled},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What several people said of one item: each labeler with the ranks of its completions, 1 the best, equal for a
/// tie. Only the order of the ranks counts. An item is a prompt with its completions, and is what is resampled.
pub type Judged = Vec<(String, Vec<u32>)>;

/// How often InstructGPT's training labelers agreed with each other: 72.6 +- 1.5 % of pairs (Ouyang et al. 2022,
/// section 3.4). Those whose rankings were not trained on agreed on 77.3 +- 1.3 %.
pub const PAPER_AGREEMENT: f64 = 0.726;

/// How far labelers agree. Nothing stands where nobody shares anything that the measure can see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Every two labelers of every item.
    #[serde(flatten)]
    pub all: Against,
    /// Krippendorff's alpha for ordinal data: 1 is agreement, 0 is what chance would give, below 0 is less.
    pub alpha: Option<Interval>,
    /// Items that two labelers or more have ranked.
    pub items: usize,
    /// Each labeler who shares an item against those who share it.
    pub labelers: BTreeMap<String, Against>,
}

/// Measures over pairs of labelers. Intervals resample items, because the pairs of one item share its completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// Pairs of completions that both labelers of a pair ordered.
    pub pairs: usize,
    /// Share of these pairs on which both named the same better completion. The paper's 72.6 %
    /// ([`PAPER_AGREEMENT`]) is to be read beside it.
    pub pairwise: Option<Interval>,
    /// The same over all pairs of completions, a tie half way between the two orders: it agrees half with either,
    /// and wholly with another tie. People who tie whatever is hard look better by `pairwise` than they are.
    pub with_ties_half: Option<Interval>,
    /// Mean of Kendall's tau-b over pairs of labelers, without those of whom one tied everything.
    pub tau_b: Option<Interval>,
}

/// How often the completion in one place of the page was ranked best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The place, 0 the first on the page.
    pub place: usize,
    /// Share of the rankings with this place in which it holds the best. Completions that tie for the best share it.
    pub best: Interval,
    /// What the share would be if places did not matter: the mean of one over the number of completions.
    pub expected: f64,
}

/// How far the labelers of `items` agree: pairwise, with ties counted half, by Kendall's tau-b and by
/// Krippendorff's alpha, all of them together and each against the others.
///
/// Tau-b of two labelers (Kendall 1945, "The treatment of ties in ranking problems") is
///
/// ```text
/// (pairs in the same order - pairs in opposite orders)
///     / sqrt(pairs that the first ordered * pairs that the second ordered)
/// ```
///
/// Alpha is that of Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D. Its units are the
/// completions of an item and its values are their ranks, tied ones as the mean of the places that they share. Let
/// `m` people have valued a unit, `o(c, k)` be the sum over units of the pairs of values `(c, k)` divided by
/// `m - 1`, `n(c)` be the number of values `c`, and `n` the number of all. Then
///
/// ```text
/// alpha = 1 - (n - 1) sum over c < k of o(c, k) d(c, k)^2 / sum over c < k of n(c) n(k) d(c, k)^2
/// d(c, k) = n(c) / 2 + the values between c and k + n(k) / 2
/// ```
///
/// Chance is what people would give who rank as many completions without reading them, so rank 2 of two must not
/// be taken for rank 2 of nine. Items with different numbers of completions therefore keep sums of their own, with
/// `d` in units of their own `n`; both sums, divided by `n - 1` as above, are added over these groups, and alpha is
/// one less their quotient. With one number of completions this is the formula above.
///
/// # Errors
/// When rankings of one item differ in length, or a labeler stands in one twice.
pub fn agreement(items: &[Judged]) -> Result<Agreement, Error> {
    items.iter().enumerate().try_for_each(|(item, judged)| check(item, judged))?;
    let meetings: Vec<Meeting<'_>> =
        items.iter().enumerate().flat_map(|(item, judged)| meetings(item, judged)).collect();
    let names: BTreeSet<&str> = meetings.iter().flat_map(|meeting| meeting.labelers).collect();
    let of = |name: &str| against(meetings.iter().filter(|meeting| meeting.labelers.contains(&name)));
    Ok(Agreement {
        all: against(meetings.iter()),
        alpha: alpha(items),
        items: items.iter().filter(|judged| judged.len() > 1).count(),
        labelers: names.into_iter().map(|name| (name.to_owned(), of(name))).collect(),
    })
}

/// How often the completion shown in each place was ranked best. `rankings[i][p]` is the rank that one person gave
/// to what stood in place `p`, 1 the best. Rankings are resampled, those of one prompt too: each person saw the
/// completions in an order drawn for that person alone, so where the best one stood was drawn anew.
///
/// # Errors
/// None on what is described; those of [`bootstrap`].
pub fn position_bias(rankings: &[Vec<u32>]) -> Result<Vec<Place>, Error> {
    let places = rankings.iter().map(Vec::len).max().unwrap_or(0);
    let at = |place: usize| {
        let with: Vec<&Vec<u32>> = rankings.iter().filter(|ranks| ranks.len() > place).collect();
        let won: Vec<f64> = with.iter().map(|ranks| won(ranks, place)).collect();
        let expected = with.iter().map(|ranks| 1.0 / ranks.len() as f64).sum::<f64>() / with.len() as f64;
        Ok(Place { place, best: bootstrap(&won)?, expected })
    };
    (0..places).map(at).collect()
}

/// What the completion in `place` has of being the best.
fn won(ranks: &[u32], place: usize) -> f64 {
    let best = ranks.iter().min();
    let sharing = ranks.iter().filter(|rank| Some(*rank) == best).count();
    if ranks.get(place) == best { 1.0 / sharing as f64 } else { 0.0 }
}

fn check(item: usize, judged: &Judged) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for (labeler, ranks) in judged {
        length("ranks", ranks.len(), judged[0].1.len())?;
        if !seen.insert(labeler) {
            return Err(Error::Repeated { labeler: labeler.clone(), item });
        }
    }
    Ok(())
}

/// Two labelers of one item.
struct Meeting<'a> {
    item: usize,
    labelers: [&'a str; 2],
    /// Pairs of completions that both ordered, and those of them that both ordered alike.
    strict: usize,
    alike: usize,
    /// All pairs of completions, and what both have in common on them with ties counted half.
    pairs: usize,
    credit: f64,
    tau: Option<f64>,
}

/// Every two labelers of an item.
fn meetings(item: usize, judged: &Judged) -> impl Iterator<Item = Meeting<'_>> {
    let later = move |i: usize| judged[i + 1..].iter().map(move |second| (&judged[i], second));
    (0..judged.len()).flat_map(later).map(move |(first, second)| meeting(item, first, second))
}

fn meeting<'a>(item: usize, first: &'a (String, Vec<u32>), second: &'a (String, Vec<u32>)) -> Meeting<'a> {
    let (mut by_first, mut by_second, mut strict, mut alike, mut pairs) = (0, 0, 0, 0, 0);
    for i in 0..first.1.len() {
        for j in 0..i {
            let (a, b) = (first.1[i].cmp(&first.1[j]), second.1[i].cmp(&second.1[j]));
            pairs += 1;
            by_first += usize::from(a.is_ne());
            by_second += usize::from(b.is_ne());
            strict += usize::from(a.is_ne() && b.is_ne());
            alike += usize::from(a.is_ne() && a == b);
        }
    }
    let both_tied = pairs + strict - by_first - by_second;
    let one_tied = by_first + by_second - 2 * strict;
    let ordered = ((by_first * by_second) as f64).sqrt();
    Meeting {
        item,
        labelers: [&first.0, &second.0],
        strict,
        alike,
        pairs,
        credit: (alike + both_tied) as f64 + one_tied as f64 / 2.0,
        tau: (ordered > 0.0).then(|| (2.0 * alike as f64 - strict as f64) / ordered),
    }
}

fn against<'a>(meetings: impl Iterator<Item = &'a Meeting<'a>> + Clone) -> Against {
    let pairwise = over_items(meetings.clone(), |meeting| (meeting.alike as f64, meeting.strict as f64));
    let with_ties_half = over_items(meetings.clone(), |meeting| (meeting.credit, meeting.pairs as f64));
    // As a share of the way from -1 to 1, so that equal ones are treated as equal shares are.
    let share = over_items(meetings.clone(), |meeting| meeting.tau.map_or((0.0, 0.0), |tau| ((1.0 + tau) / 2.0, 1.0)));
    let back = |share: f64| 2.0 * share - 1.0;
    let tau_b = share.map(|share| Interval {
        mean: back(share.mean),
        low: share.low.map(back),
        high: share.high.map(back),
        n: share.n,
    });
    Against { pairs: meetings.map(|meeting| meeting.strict).sum(), pairwise, with_ties_half, tau_b }
}

/// The ratio of two sums over meetings, with the meetings of one item resampled together.
fn over_items<'a>(
    meetings: impl Iterator<Item = &'a Meeting<'a>>,
    part: impl Fn(&Meeting<'a>) -> (f64, f64),
) -> Option<Interval> {
    let mut units: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for meeting in meetings {
        let (above, below) = part(meeting);
        let unit = units.entry(meeting.item).or_default();
        *unit = (unit.0 + above, unit.1 + below);
    }
    let units: Vec<(f64, f64)> = units.into_values().collect();
    units.iter().any(|(_, below)| *below > 0.0).then(|| bootstrap_ratio(&units))
}

/// Alpha over the items that several labelers share.
fn alpha(items: &[Judged]) -> Option<Interval> {
    let shared: Vec<Valued> = items.iter().filter(|judged| judged.len() > 1).map(valued).collect();
    let all: Vec<usize> = (0..shared.len()).collect();
    let of = |drawn: &[usize]| alpha_of(drawn.iter().map(|&item| &shared[item]));
    let mean = of(&all)?;
    // Items without a difference are the same item again and again: no resample would differ.
    let certain = shared.iter().all(|valued| valued.apart.is_empty());
    let bounds = if all.len() < FEWEST || certain { None } else { resampled(all.len(), of) };
    Some(Interval { mean, low: bounds.map(|bounds| bounds.0), high: bounds.map(|bounds| bounds.1), n: all.len() })
}

/// What an item adds to the sums of its group. Values are numbered from 0.
struct Valued {
    /// Number of values that there can be; items with equal ones form a group.
    values: usize,
    /// How often each value stands there.
    counts: Vec<(usize, f64)>,
    /// The part of `o(c, k)` for `c < k`.
    apart: Vec<((usize, usize), f64)>,
}

fn valued(judged: &Judged) -> Valued {
    let places: Vec<Vec<usize>> = judged.iter().map(|(_, ranks)| doubled_places(ranks)).collect();
    let completions = judged[0].1.len();
    let units = (0..completions).map(|unit| places.iter().map(|places| places[unit]).collect());
    Valued::new(2 * completions + 1, units)
}

/// Twice the place of each rank, where tied ones have the mean of the places that they share: whole numbers.
fn doubled_places(ranks: &[u32]) -> Vec<usize> {
    let count = |holds: &dyn Fn(&u32) -> bool| ranks.iter().filter(|rank| holds(rank)).count();
    ranks.iter().map(|own| 2 * count(&|rank| rank < own) + count(&|rank| rank == own) + 1).collect()
}

impl Valued {
    /// `units` hold the values of each unit; a unit with one value alone says nothing of agreement.
    fn new(values: usize, units: impl Iterator<Item = Vec<usize>>) -> Valued {
        let (mut counts, mut apart) = (BTreeMap::new(), BTreeMap::new());
        for unit in units.filter(|unit| unit.len() > 1) {
            for (i, &a) in unit.iter().enumerate() {
                *counts.entry(a).or_default() += 1.0;
                for &b in unit[..i].iter().filter(|b| **b != a) {
                    *apart.entry((a.min(b), a.max(b))).or_default() += 1.0 / (unit.len() - 1) as f64;
                }
            }
        }
        Valued { values, counts: counts.into_iter().collect(), apart: apart.into_iter().collect() }
    }
}

/// Alpha of these items; `None` where all values of every group are equal, so that nobody could have differed.
fn alpha_of<'a>(items: impl Iterator<Item = &'a Valued>) -> Option<f64> {
    let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
    for item in items {
        groups.entry(item.values).or_insert_with(|| Group::new(item.values)).add(item);
    }
    let parts = groups.values().map(Group::disagreement);
    let (observed, expected) = parts.fold((0.0, 0.0), |sums, part| (sums.0 + part.0, sums.1 + part.1));
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// The sums of items with equally many values.
struct Group {
    counts: Vec<f64>,
    /// `o(c, k)` at `[c][k]`, where `c < k`.
    apart: Vec<Vec<f64>>,
}

impl Group {
    fn new(values: usize) -> Group {
        Group { counts: vec![0.0; values], apart: vec![vec![0.0; values]; values] }
    }

    fn add(&mut self, item: &Valued) {
        item.counts.iter().for_each(|&(value, count)| self.counts[value] += count);
        item.apart.iter().for_each(|&((c, k), share)| self.apart[c][k] += share);
    }

    /// The two sums of [`agreement`], with `d` in units of `n` and the second divided by `n - 1`.
    fn disagreement(&self) -> (f64, f64) {
        let n: f64 = self.counts.iter().sum();
        let (mut observed, mut expected) = (0.0, 0.0);
        for c in 0..self.counts.len() {
            let mut between = self.counts[c] / 2.0;
            for k in c + 1..self.counts.len() {
                let distance = ((between + self.counts[k] / 2.0) / n).powi(2);
                observed += self.apart[c][k] * distance;
                expected += self.counts[c] * self.counts[k] * distance / (n - 1.0);
                between += self.counts[k];
            }
        }
        (observed, expected)
    }
}

#[cfg(test)]
mod tests;
