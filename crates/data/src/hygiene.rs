//! Clean data before training: near-duplicates, users who wrote too much, personal data, splits
//! without common people, and the proof that no split leaks into another (\[IG\] appendix A).

use crate::{
    error::{Error, Origin},
    record::Record,
};
use instruct_random::Source;
use std::collections::{BTreeMap, BTreeSet};

/// What a step kept and what it removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DedupReport {
    /// Records kept.
    pub kept: usize,
    /// Records removed because an earlier one has the same prompt and the same answer.
    pub repeated: usize,
    /// Records removed because an earlier, different prompt begins with the same `prefix`
    /// bytes.
    pub near: usize,
}

/// Removes records whose prompt shares its first `prefix` bytes (after lower-casing and collapsing
/// white space) with the prompt of an earlier record, and records that say the same twice.
///
/// Several answers to *one* prompt stay: they are what rankings and demonstrations are made of.
/// Conversations are compared from their newest turn backwards ([`Record::subject`]). With `prefix` 0
/// only equal prompts count. \[IG\] gives
/// no length for the "long common prefix"; 64 to 128 suits free prompts, and prompts written from
/// templates need more than the template's length.
pub fn dedup<T: Record>(records: Vec<T>, prefix: usize) -> (Vec<T>, DedupReport) {
    let keys: Vec<String> = records.iter().map(|record| normal(&record.subject())).collect();
    let keeper = keepers(&keys, prefix);
    let mut report = DedupReport::default();
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for (i, record) in records.into_iter().enumerate() {
        if keys[keeper[i]] != keys[i] {
            report.near += 1;
        } else if !seen.insert((keeper[i], record.answer())) {
            report.repeated += 1;
        } else {
            kept.push(record);
        }
    }
    report.kept = kept.len();
    (kept, report)
}

/// For each key the first index among those it is chained to by common prefixes of `prefix` bytes.
/// Between two sorted keys with a common prefix every key has it, so neighbours decide.
fn keepers(keys: &[String], prefix: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| keys[a].cmp(&keys[b]).then(a.cmp(&b)));
    let mut keeper = vec![0; keys.len()];
    for group in order.chunk_by(|&a, &b| alike(&keys[a], &keys[b], prefix)) {
        let first = group.iter().copied().min().unwrap_or_default();
        group.iter().for_each(|&i| keeper[i] = first);
    }
    keeper
}

fn alike(a: &str, b: &str, prefix: usize) -> bool {
    let start = a.as_bytes().get(..prefix).filter(|start| !start.is_empty());
    a == b || start.is_some_and(|start| b.as_bytes().starts_with(start))
}

/// Lower case, with every run of white space as one space.
fn normal(text: &str) -> String {
    text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// What [`cap_per_user`] kept and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapReport {
    /// Records kept.
    pub kept: usize,
    /// Records removed.
    pub removed: usize,
    /// Users who had more than the cap.
    pub users: usize,
}

/// Keeps the records of each user's first `cap` distinct prompts (\[IG\]: 200). Records without a
/// user are kept.
pub fn cap_per_user<T: Record>(records: Vec<T>, cap: usize) -> (Vec<T>, CapReport) {
    let mut prompts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut over = BTreeSet::new();
    let before = records.len();
    let within = |record: &T| {
        let Some(user) = record.user() else { return true };
        let known = prompts.entry(user.to_owned()).or_default();
        let subject = record.subject();
        let within = known.contains(&subject) || known.len() < cap;
        if within {
            known.insert(subject);
        } else {
            over.insert(user.to_owned());
        }
        within
    };
    let kept: Vec<T> = records.into_iter().filter(within).collect();
    let report = CapReport { kept: kept.len(), removed: before - kept.len(), users: over.len() };
    (kept, report)
}

/// Which side of a split a record is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Trained on.
    Train,
    /// Chooses checkpoints.
    Validation,
    /// Reported.
    Test,
}

impl Side {
    /// `train`, `validation` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Train => "train",
            Side::Validation => "validation",
            Side::Test => "test",
        }
    }
}

/// How to split: a seed and two shares; the rest is for training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitPlan {
    /// Another seed gives another split.
    pub seed: u64,
    /// Share of the users (prompts, where there are none) held out for validation, in `[0, 1)`.
    pub validation: f64,
    /// Share held out for the test.
    pub test: f64,
}

/// Records on their sides, in their original order.
#[derive(Clone, Debug, PartialEq)]
pub struct Split<T> {
    /// Trained on.
    pub train: Vec<T>,
    /// Chooses checkpoints.
    pub validation: Vec<T>,
    /// Reported.
    pub test: Vec<T>,
}

impl SplitPlan {
    /// The side of a record: a function of the seed and of its user (of its prompt, where it has
    /// none) alone. So the same person is on the same side in every data set, and adding records
    /// moves none. The shares hold in expectation, not exactly.
    pub fn side<T: Record>(&self, record: &T) -> Side {
        let (kind, key) = match record.user() {
            Some(user) => ("split by user", user.to_owned()),
            None => ("split by prompt", normal(&record.subject())),
        };
        let draw = Source::new(self.seed, kind).at([fnv1a(key.as_bytes())]).uniform_f64();
        if draw < self.test {
            Side::Test
        } else if draw < self.test + self.validation {
            Side::Validation
        } else {
            Side::Train
        }
    }

    /// Splits `records` by [`SplitPlan::side`].
    ///
    /// # Errors
    /// [`Error::Fractions`] when the shares are negative or leave nothing to train on.
    pub fn split<T: Record>(&self, records: Vec<T>) -> Result<Split<T>, Error> {
        let held_out = self.validation + self.test;
        if !(self.validation >= 0.0 && self.test >= 0.0 && held_out < 1.0) {
            return Err(Error::Fractions { validation: self.validation, test: self.test });
        }
        let mut split = Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() };
        for record in records {
            match self.side(&record) {
                Side::Train => split.train.push(record),
                Side::Validation => split.validation.push(record),
                Side::Test => split.test.push(record),
            }
        }
        Ok(split)
    }
}

/// The 64-bit FNV-1a hash: the same on every platform and in every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Two records on two sides that share a person or a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The two records: side, data set, file and line.
    pub records: [(Side, String, Origin); 2],
    /// What they share.
    pub shared: Shared,
}

/// What two sides of a split share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shared {
    /// A user.
    User(String),
    /// A prompt, or its first bytes up to the check's threshold.
    Prompt,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [(side, set, origin), (other_side, other_set, other)] = &self.records;
        let (side, other_side) = (side.as_str(), other_side.as_str());
        let shared = match &self.shared {
            Shared::User(user) => format!("user `{user}`"),
            Shared::Prompt => "the same prompt".to_owned(),
        };
        write!(f, "{origin} ({set}, {side}) and {other} ({other_set}, {other_side}) share {shared}")
    }
}

/// The message of [`Error::Leaks`].
pub(crate) fn list_leaks(leaks: &[Leak]) -> String {
    let shown = crate::error::Problems::SHOWN;
    let lines: String = leaks.iter().take(shown).map(|leak| format!("\n  {leak}")).collect();
    let rest = if leaks.len() > shown { format!("\n  and {} more", leaks.len() - shown) } else { String::new() };
    let advice = "split all data sets with one seed, or remove one record of each pair";
    format!("{} leaks between splits; {advice}{lines}{rest}", leaks.len())
}

/// Looks for people and prompts that stand on two sides, over any number of data sets. Runs before
/// training.
#[derive(Clone, Debug, Default)]
pub struct LeakCheck {
    prefix: usize,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    side: Side,
    set: String,
    origin: Origin,
    user: Option<String>,
    subject: String,
}

impl LeakCheck {
    /// A check that takes prompts with the same first `prefix` bytes for the same; 0 asks for equal
    /// ones only.
    pub fn new(prefix: usize) -> LeakCheck {
        LeakCheck { prefix, entries: Vec::new() }
    }

    /// Adds one side of one data set.
    pub fn add<T: Record>(&mut self, set: &str, side: Side, records: &[T]) -> &mut LeakCheck {
        self.entries.extend(records.iter().map(|record| Entry {
            side,
            set: set.to_owned(),
            origin: record.origin().clone(),
            user: record.user().map(str::to_owned),
            subject: normal(&record.subject()),
        }));
        self
    }

    /// Adds all sides of one data set.
    pub fn add_split<T: Record>(&mut self, set: &str, split: &Split<T>) -> &mut LeakCheck {
        self.add(set, Side::Train, &split.train);
        self.add(set, Side::Validation, &split.validation);
        self.add(set, Side::Test, &split.test)
    }

    /// The leaks: for each shared user and prompt, the first record of each side, pairwise against
    /// the first of all.
    pub fn leaks(&self) -> Vec<Leak> {
        let mut users: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, entry) in self.entries.iter().enumerate() {
            if let Some(user) = &entry.user {
                users.entry(user).or_default().push(i);
            }
        }
        let by_user = users.into_iter().flat_map(|(user, group)| self.between(&group, Shared::User(user.to_owned())));
        let subjects: Vec<String> = self.entries.iter().map(|entry| entry.subject.clone()).collect();
        let mut prompts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, keeper) in keepers(&subjects, self.prefix).into_iter().enumerate() {
            prompts.entry(keeper).or_default().push(i);
        }
        let by_prompt = prompts.into_values().flat_map(|group| self.between(&group, Shared::Prompt));
        by_user.chain(by_prompt).collect()
    }

    /// `Ok` with the number of records checked, or [`Error::Leaks`] that names both records of every
    /// leak.
    pub fn verify(&self) -> Result<usize, Error> {
        let leaks = self.leaks();
        if leaks.is_empty() { Ok(self.entries.len()) } else { Err(Error::Leaks(leaks)) }
    }

    /// Removes from `train` what shares a person or a prompt with a held-out record of this check,
    /// and says how many: the way out when data sets that overlap were split apart.
    pub fn clean<T: Record>(&self, train: Vec<T>) -> (Vec<T>, usize) {
        let before = train.len();
        let held_out: Vec<&Entry> = self.entries.iter().filter(|entry| entry.side != Side::Train).collect();
        let users: BTreeSet<&str> = held_out.iter().filter_map(|entry| entry.user.as_deref()).collect();
        let subjects: BTreeSet<String> = held_out.iter().map(|entry| entry.subject.clone()).collect();
        let leaks = |record: &T| {
            let subject = normal(&record.subject());
            // The neighbours in sorted order share the longest prefixes there are.
            let after = subjects.range(subject.clone()..).next();
            let before = subjects.range(..subject.clone()).next_back();
            let known = after.into_iter().chain(before).any(|other| alike(other, &subject, self.prefix));
            known || record.user().is_some_and(|user| users.contains(user))
        };
        let kept: Vec<T> = train.into_iter().filter(|record| !leaks(record)).collect();
        let removed = before - kept.len();
        (kept, removed)
    }

    fn between(&self, group: &[usize], shared: Shared) -> Vec<Leak> {
        let mut first: BTreeMap<Side, &Entry> = BTreeMap::new();
        for &i in group {
            first.entry(self.entries[i].side).or_insert(&self.entries[i]);
        }
        let place = |entry: &Entry| (entry.side, entry.set.clone(), entry.origin.clone());
        let mut sides = first.into_values();
        let Some(one) = sides.next() else { return Vec::new() };
        sides.map(|other| Leak { records: [place(one), place(other)], shared: shared.clone() }).collect()
    }
}
