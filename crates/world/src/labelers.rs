//! Simulated labelers: they see the gold points through noise and a taste of their own.
//!
//! Two of them prefer the same one of two completions about 73 % of the time, as InstructGPT's did
//! (72.6 +- 1.5 %); [`agreement`] measures it and `NOISE` is what sets it.

use super::{
    grammar::{Bindings, fill, polish},
    judge::{Report, report},
    lexicon::lexicon,
    manner::{CLOSINGS, FILLERS, OPENINGS, RAMBLES, REMARKS},
    tasks::{Task, raw_answer, raw_curt, slot_class},
};
use instruct_random::{Draws, Source};

/// Half-width of each of the four uniform draws whose sum is a labeler's noise, in points. Their
/// sum has a standard deviation of about 1.15 times this.
pub(crate) const NOISE: i32 = 18;

/// Two completions whose perceived points differ by no more than this are tied.
const TIE: i32 = 3;

/// How many labelers there are.
pub(crate) const LABELERS: usize = 24;

/// One simulated labeler: a name, a taste when ranking, habits when writing.
#[derive(Clone, Debug)]
pub struct Labeler {
    /// `labeler-01` and so on.
    pub name: String,
    taste: Taste,
    habits: Habits,
}

/// Points that a labeler adds for style, beyond what the gold judge gives.
#[derive(Clone, Debug)]
struct Taste {
    /// For any courteous sentence.
    courtesy: i32,
    /// For each filler, up to two; often negative.
    filler: i32,
    /// For each ten words beyond twenty, and against each ten below.
    length: i32,
}

/// How often, in percent, a labeler's demonstrations show each manner.
#[derive(Clone, Debug)]
struct Habits {
    courtesy: u64,
    filler: u64,
    remark: u64,
    curt: u64,
    ramble: u64,
    mistake: u64,
}

/// What one labeler says about the completions of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// 1 is best; equal ranks are ties; no rank is left out.
    pub ranks: Vec<u32>,
    /// Overall quality, 1..=7 [InstructGPT, table 3].
    pub quality: Vec<u8>,
    /// Flags of each completion, named as in table 3 of InstructGPT.
    pub flags: Vec<Vec<&'static str>>,
    /// 1 (close) to 3 (clear): how far apart the best and the worst seemed.
    pub confidence: u8,
}

/// The labelers of a world.
pub fn labelers(seed: u64) -> Vec<Labeler> {
    (0..LABELERS as u64).map(|i| Labeler::draw(i, &mut Source::new(seed, "world: labelers").at([i]))).collect()
}

impl Labeler {
    fn draw(index: u64, draws: &mut Draws) -> Labeler {
        let mut between = |low: i32, high: i32| low + draws.below((high - low + 1) as u64) as i32;
        let taste = Taste { courtesy: between(-4, 8), filler: between(-6, 2), length: between(-4, 4) };
        let mut percent = |low: i32, high: i32| between(low, high) as u64;
        let habits = Habits {
            courtesy: percent(10, 60),
            filler: percent(10, 60),
            remark: percent(4, 20),
            curt: percent(0, 12),
            ramble: percent(0, 16),
            mistake: percent(0, 6),
        };
        Labeler { name: format!("labeler-{:02}", index + 1), taste, habits }
    }
}

/// Ranks the completions of one prompt: 1 is best, equal is a tie.
pub(crate) fn rank(labeler: &Labeler, prompt: &str, completions: &[String], draws: &mut Draws) -> Vec<u32> {
    ranks(&perceived(labeler, &reports(prompt, completions), draws))
}

/// Ranks, grades and flags the completions of one prompt. Draws as `rank` does, so that both give
/// the same ranks from the same draws.
pub fn label(labeler: &Labeler, prompt: &str, completions: &[String], draws: &mut Draws) -> Label {
    let reports = reports(prompt, completions);
    let perceived = perceived(labeler, &reports, draws);
    let spread = perceived.iter().max().unwrap_or(&0) - perceived.iter().min().unwrap_or(&0);
    Label {
        ranks: ranks(&perceived),
        quality: perceived.iter().map(|&points| (1 + points.clamp(0, 99) * 7 / 100) as u8).collect(),
        flags: reports.iter().map(|report| report.as_ref().map_or_else(Vec::new, flags)).collect(),
        confidence: (1 + spread / 35).clamp(1, 3) as u8,
    }
}

/// Of the pairs that two labelers both order, how many they order alike: `(alike, pairs)`. Every
/// record, a prompt with its completions, is ranked by `per_record` labelers.
pub fn agreement(seed: u64, records: &[(String, Vec<String>)], per_record: usize) -> (u64, u64) {
    let everyone = labelers(seed);
    let (mut alike, mut pairs) = (0, 0);
    for (r, (prompt, completions)) in records.iter().enumerate() {
        let rankings: Vec<Vec<u32>> = Source::new(seed, "world: agreement")
            .at([r as u64])
            .permutation(LABELERS)
            .into_iter()
            .take(per_record)
            .map(|i| {
                let mut draws = Source::new(seed, "world: agreement noise").at([r as u64, i as u64]);
                rank(&everyone[i], prompt, completions, &mut draws)
            })
            .collect();
        for (i, one) in rankings.iter().enumerate() {
            for other in &rankings[i + 1..] {
                let (a, n) = common_order(one, other);
                alike += a;
                pairs += n;
            }
        }
    }
    (alike, pairs)
}

/// `(pairs ordered alike, pairs ordered by both)`.
fn common_order(one: &[u32], other: &[u32]) -> (u64, u64) {
    let (mut alike, mut pairs) = (0, 0);
    for i in 0..one.len() {
        for j in i + 1..one.len() {
            let (a, b) = (one[i].cmp(&one[j]), other[i].cmp(&other[j]));
            if a.is_ne() && b.is_ne() {
                pairs += 1;
                alike += u64::from(a == b);
            }
        }
    }
    (alike, pairs)
}

fn reports(prompt: &str, completions: &[String]) -> Vec<Option<Report>> {
    completions.iter().map(|completion| report(prompt, completion)).collect()
}

fn perceived(labeler: &Labeler, reports: &[Option<Report>], draws: &mut Draws) -> Vec<i32> {
    reports
        .iter()
        .map(|report| {
            let noise: i32 = (0..4).map(|_| draws.below(2 * NOISE as u64 + 1) as i32 - NOISE).sum();
            report.as_ref().map_or(0, |report| report.points + labeler.taste.of(report)) + noise
        })
        .collect()
}

impl Taste {
    fn of(&self, report: &Report) -> i32 {
        self.courtesy * report.courtesies.min(1) as i32
            + self.filler * report.fillers.min(2) as i32
            + self.length * (report.words as i32 - 20).clamp(-20, 20) / 10
    }
}

/// Dense ranks, best first. A completion ties with the best of the rank before it, not with the
/// last, so that a chain of near-ties does not make one rank of everything.
fn ranks(perceived: &[i32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..perceived.len()).collect();
    order.sort_by_key(|&i| -perceived[i]);
    let mut ranks = vec![0; perceived.len()];
    let (mut rank, mut leader) = (0, i32::MAX);
    for i in order {
        if rank == 0 || leader - perceived[i] > TIE {
            rank += 1;
            leader = perceived[i];
        }
        ranks[i] = rank;
    }
    ranks
}

fn flags(report: &Report) -> Vec<&'static str> {
    let mut flags = Vec::new();
    if report.content < 40 {
        flags.push("fails_to_follow_instruction");
    }
    if report.remarks > 0 {
        flags.push("inappropriate_for_customer_assistant");
    }
    if report.content >= 90 {
        flags.push("satisfies_constraint");
    }
    flags
}

/// A demonstration as this labeler writes it: nearly always right, in a manner that varies.
pub(crate) fn demonstrate(labeler: &Labeler, task: &Task, draws: &mut Draws) -> String {
    let habits = &labeler.habits;
    let mistaken = draws.chance(habits.mistake, 100).then(|| mistake(task, draws));
    let task = mistaken.as_ref().unwrap_or(task);
    let mut text = if draws.chance(habits.curt, 100) { raw_curt(task, draws) } else { raw_answer(task, draws) };
    if draws.chance(habits.ramble, 100) {
        text = ramble(&text, draws);
    }
    if draws.chance(habits.filler, 100) {
        text = with_filler(&text, draws);
    }
    if draws.chance(habits.remark, 100) {
        text = format!("{text} {}", choose(&REMARKS, draws));
    }
    if draws.chance(habits.courtesy, 100) {
        text = courteous(&text, draws);
    }
    polish(&text)
}

/// The best answer that the judge knows: right, plain, and courteous once.
#[cfg(test)]
pub(crate) fn ideal(task: &Task, draws: &mut Draws) -> String {
    loop {
        let text = polish(&courteous(&raw_answer(task, draws), draws));
        // Free words can repeat three in a row by chance; such an answer is drawn anew.
        if super::judge::report_task(task, &text).points == 100 {
            return text;
        }
    }
}

/// One courteous sentence, before or after.
pub(crate) fn courteous(text: &str, draws: &mut Draws) -> String {
    if draws.chance(1, 2) {
        format!("{} {text}", choose(&OPENINGS, draws))
    } else {
        format!("{text} {}", choose(&CLOSINGS, draws))
    }
}

/// A filler before one of the sentences.
pub(crate) fn with_filler(text: &str, draws: &mut Draws) -> String {
    let sentences: Vec<&str> = text.split_inclusive(". ").collect();
    let at = draws.below(sentences.len() as u64) as usize;
    let filler = choose(&FILLERS, draws);
    sentences
        .iter()
        .enumerate()
        .map(|(i, sentence)| if i == at { format!("{filler} {sentence}") } else { (*sentence).to_string() })
        .collect()
}

/// A sentence or two that nobody asked for.
pub(crate) fn ramble(text: &str, draws: &mut Draws) -> String {
    let extra = 1 + draws.below(2) as usize;
    let chosen: Vec<usize> = draws.permutation(RAMBLES.len()).into_iter().take(extra).collect();
    chosen
        .into_iter()
        .fold(text.to_string(), |text, i| format!("{text} {}", fill(RAMBLES[i], &[], &mut Bindings::new(), draws)))
}

/// The task with one word misread: another animal, another place.
pub(crate) fn mistake(task: &Task, draws: &mut Draws) -> Task {
    let mut bound = task.bound.clone();
    let slots: Vec<String> = bound.keys().cloned().collect();
    if let Some(slot) = draws.pick(&slots) {
        let others: Vec<&'static str> =
            lexicon().words(slot_class(slot)).iter().copied().filter(|word| *word != bound[slot]).collect();
        if let Some(&word) = draws.pick(&others) {
            bound.insert(slot.clone(), word);
        }
    }
    Task { kind: task.kind, bound }
}

fn choose<'a>(texts: &[&'a str], draws: &mut Draws) -> &'a str {
    draws.pick(texts).copied().unwrap_or_default()
}
