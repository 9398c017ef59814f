//! Clean data before training: near-duplicates, users who wrote too much, personal data, splits
//! without common people, and the proof that no split leaks into another (\[IG\] appendix A).

use crate::{
    error::Error,
    leak::{Leak, Shared, Side},
    origin::Origin,
    record::Record,
};
use instruct_random::Source;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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
/// only equal prompts count. \[IG\] gives no length for the "long common prefix"; 64 to 128 suits free
/// prompts, and prompts written from templates need more than the template's length.
pub fn dedup<T: Record>(records: Vec<T>, prefix: usize) -> (Vec<T>, DedupReport) {
    let keys: Vec<Key> = records.iter().map(|record| Key::of(record, prefix)).collect();
    let keeper = keepers(keys.iter().map(|key| key.group));
    let mut members = vec![0u32; keys.len()];
    keeper.iter().for_each(|&first| members[first] += 1);
    let mut report = DedupReport::default();
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for (i, record) in records.into_iter().enumerate() {
        if keys[keeper[i]] != keys[i] {
            report.near += 1;
        } else if members[keeper[i]] > 1 && !seen.insert((keeper[i], record.answer())) {
            // The answers of a record that stands alone need no memory.
            report.repeated += 1;
        } else {
            kept.push(record);
        }
    }
    report.kept = kept.len();
    (kept, report)
}

/// What stands for a prompt where many are compared: the words themselves would take as much memory again as the
/// records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    whole: Fingerprint,
    /// Of what it shares with the prompts that count as the same.
    group: Fingerprint,
}

impl Key {
    /// Prompts are in one group when they are equal once [`normal`], or then begin with the same `prefix` bytes (0 groups equal
    /// ones only).
    fn of<T: Record>(record: &T, prefix: usize) -> Key {
        let subject = normal(&record.subject());
        let whole = subject.as_bytes();
        let group = whole.get(..prefix).filter(|start| !start.is_empty()).unwrap_or(whole);
        Key { whole: fingerprint(whole), group: fingerprint(group) }
    }
}

/// Half of a SHA-256: among a billion texts, two that differ have the same one with a chance of 1 in 10^21.
type Fingerprint = [u8; 16];

fn fingerprint(bytes: &[u8]) -> Fingerprint {
    let hash = Sha256::digest(bytes);
    std::array::from_fn(|i| hash[i])
}

/// Returns for each prompt the lowest index of its group.
fn keepers(groups: impl Iterator<Item = Fingerprint>) -> Vec<usize> {
    let mut first = BTreeMap::new();
    groups.enumerate().map(|(i, group)| *first.entry(group).or_insert(i)).collect()
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

/// At most `most` of the records, chosen by the seed with equal chances, in their original order.
pub fn sample<T: Record>(records: Vec<T>, most: usize, seed: u64) -> Vec<T> {
    if records.len() <= most {
        return records;
    }
    let mut chosen = Source::new(seed, "data/limit").at_name(T::KIND).permutation(records.len());
    chosen.truncate(most);
    chosen.sort_unstable();
    let mut chosen = chosen.into_iter().peekable();
    let numbered = records.into_iter().enumerate();
    numbered.filter_map(|(i, record)| chosen.next_if_eq(&i).map(|_| record)).collect()
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split<T> {
    /// Trained on.
    pub train: Vec<T>,
    /// Chooses checkpoints.
    pub validation: Vec<T>,
    /// Reported.
    pub test: Vec<T>,
}

impl<T> Split<T> {
    /// The records of all sides.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.train.iter().chain(&self.validation).chain(&self.test)
    }
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
        let draw = Source::new(self.seed, kind).at_name(&key).uniform_f64();
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
    group: Fingerprint,
}

impl LeakCheck {
    /// A check that treats prompts with the same first `prefix` bytes as the same prompt; with 0, only
    /// equal prompts.
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
            group: Key::of(record, self.prefix).group,
        }));
        self
    }

    /// Adds the sides of one data set that are not trained on: all that [`LeakCheck::clean`] looks at.
    pub fn add_held_out<T: Record>(&mut self, set: &str, split: &Split<T>) -> &mut LeakCheck {
        self.add(set, Side::Validation, &split.validation);
        self.add(set, Side::Test, &split.test)
    }

    /// The leaks. For each user or prompt that sides share, it pairs the first record of the first of
    /// these sides with the first record of each other side.
    pub fn leaks(&self) -> Vec<Leak> {
        let mut users: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, entry) in self.entries.iter().enumerate() {
            if let Some(user) = &entry.user {
                users.entry(user).or_default().push(i);
            }
        }
        let by_user = users.into_iter().flat_map(|(user, group)| self.between(&group, Shared::User(user.to_owned())));
        let mut prompts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, keeper) in keepers(self.entries.iter().map(|entry| entry.group)).into_iter().enumerate() {
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

    /// Removes from `train` each record that shares a person or a prompt with a held-out record of this
    /// check, and returns the rest and how many were removed. This is the way out when data sets that
    /// overlap were split separately.
    pub fn clean<T: Record>(&self, train: Vec<T>) -> (Vec<T>, usize) {
        let before = train.len();
        let held_out: Vec<&Entry> = self.entries.iter().filter(|entry| entry.side != Side::Train).collect();
        let users: BTreeSet<&str> = held_out.iter().filter_map(|entry| entry.user.as_deref()).collect();
        let groups: BTreeSet<Fingerprint> = held_out.iter().map(|entry| entry.group).collect();
        let leaks = |record: &T| {
            groups.contains(&Key::of(record, self.prefix).group)
                || record.user().is_some_and(|user| users.contains(user))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Content, Conversation, Message, Prompt, Ranking, Role};
    use proptest::prelude::*;

    fn prompt(line: usize, user: Option<&str>, text: &str) -> Prompt {
        let content = Content::Text(text.to_owned());
        let user = user.map(str::to_owned);
        Prompt { id: line.to_string(), content, user, use_case: None, origin: Origin::new("f.jsonl", line) }
    }

    fn prompts(texts: &[&str]) -> Vec<Prompt> {
        texts.iter().zip(1..).map(|(text, line)| prompt(line, None, text)).collect()
    }

    fn lines<T: Record>(records: &[T]) -> Vec<usize> {
        records.iter().map(|record| record.origin().line).collect()
    }

    #[track_caller]
    fn check_dedup(prefix: usize, texts: &[&str], want: &[usize]) {
        let (kept, report) = dedup(prompts(texts), prefix);
        assert_eq!(lines(&kept), want);
        assert_eq!(report.kept + report.repeated + report.near, texts.len());
    }

    #[test]
    fn near_duplicates_leave_the_first() {
        check_dedup(8, &["write a poem", "write a song", "sing"], &[1, 3]);
        check_dedup(9, &["write a poem", "write a song", "sing"], &[1, 2, 3]);
        check_dedup(5, &["abcde", "abcd", "abcdef", "ABCDE  x"], &[1, 2]);
        check_dedup(0, &["Hello  there", "hello there", "hello"], &[1, 3]);
        check_dedup(3, &[], &[]);
    }

    #[test]
    fn answers_to_one_prompt_stay_and_threads_are_read_backwards() {
        let ranking = |line, labeler: &str| Ranking {
            labeler: Some(labeler.to_owned()),
            ..crate::shapes::house::comparison(prompt(line, None, "the same prompt"), ["a".into(), "b".into()])
        };
        let (kept, report) = dedup(vec![ranking(1, "x"), ranking(2, "y"), ranking(3, "x")], 4);
        assert_eq!((lines(&kept), report.repeated, report.near), (vec![1, 2], 1, 0));
        let thread = |line, last: &str| {
            let turns = [(Role::User, "a long and common beginning"), (Role::Assistant, "yes"), (Role::User, last)];
            let messages = turns.into_iter().map(|(role, text)| Message::new(role, text)).collect();
            Prompt { content: Content::Messages(Conversation { messages }), ..prompt(line, None, "") }
        };
        let (kept, _) = dedup(vec![thread(1, "and then?"), thread(2, "but why?")], 6);
        assert_eq!(lines(&kept), [1, 2]);
    }

    proptest! {
        /// Against the definition: chained by a common prefix, the first of each chain stays.
        #[test]
        fn dedup_is_what_it_says(texts in proptest::collection::vec("[ab]{0,5}", 0..12), prefix in 0..4usize) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let like = |a: &str, b: &str| a == b || (prefix > 0 && a.len() >= prefix && b.len() >= prefix && a[..prefix] == b[..prefix]);
            let first = |i: usize| !(0..i).any(|j| like(texts[i], texts[j]));
            let want: Vec<usize> = (0..texts.len()).filter(|&i| first(i)).map(|i| i + 1).collect();
            prop_assert_eq!(lines(&dedup(prompts(&texts), prefix).0), want);
        }

        #[test]
        fn clean_removes_what_leaks_finds(
            train in proptest::collection::vec("[ab]{0,5}", 0..8), test in proptest::collection::vec("[ab]{0,5}", 0..8), prefix in 0..4usize,
        ) {
            let texts = |texts: &[String]| prompts(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let mut held_out = LeakCheck::new(prefix);
            held_out.add("p", Side::Test, &texts(&test));
            let like = |a: &str, b: &str| a == b || (prefix > 0 && a.len() >= prefix && b.len() >= prefix && a[..prefix] == b[..prefix]);
            let want: Vec<usize> = (1..=train.len()).filter(|i| !test.iter().any(|t| like(t, &train[i - 1]))).collect();
            let (kept, removed) = held_out.clean(texts(&train));
            prop_assert_eq!((lines(&kept), removed), (want.clone(), train.len() - want.len()));
            prop_assert!(held_out.add("p", Side::Train, &kept).verify().is_ok());
        }
    }

    #[test]
    fn users_are_capped_by_distinct_prompts() {
        let records = vec![
            prompt(1, Some("u"), "a"),
            prompt(2, Some("u"), "b"),
            prompt(3, Some("u"), "a"),
            prompt(4, Some("u"), "c"),
            prompt(5, Some("v"), "c"),
            prompt(6, None, "d"),
            prompt(7, None, "e"),
        ];
        let (kept, report) = cap_per_user(records, 2);
        assert_eq!(lines(&kept), [1, 2, 3, 5, 6, 7]);
        assert_eq!(report, CapReport { kept: 6, removed: 1, users: 1 });
    }

    #[track_caller]
    fn check_sample(n: usize, most: usize) {
        let records: Vec<Prompt> = (0..n).map(|line| prompt(line, None, "p")).collect();
        let kept = lines(&sample(records.clone(), most, 1));
        assert_eq!(kept.len(), n.min(most));
        assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
        assert_eq!(lines(&sample(records, most, 1)), kept, "a seed chooses the same again");
    }

    #[test]
    fn a_sample_keeps_the_order_and_takes_everything_alike() {
        for (n, most) in [(0, 3), (1, 0), (1, 1), (7, 7), (7, 8), (7, 3), (500, 1), (500, 499)] {
            check_sample(n, most);
        }
        let records: Vec<Prompt> = (0..10).map(|line| prompt(line, None, "p")).collect();
        let mut chosen = [0u32; 10];
        for seed in 0..2_000 {
            lines(&sample(records.clone(), 3, seed)).into_iter().for_each(|line| chosen[line] += 1);
        }
        // 600 each; four standard errors are 82.
        assert!(chosen.iter().all(|n| n.abs_diff(600) < 82), "{chosen:?}");
    }

    #[test]
    fn a_split_follows_people_and_keeps_its_shares() {
        let plan = SplitPlan { seed: 1, validation: 0.1, test: 0.2 };
        let records: Vec<Prompt> = (0..9000)
            .map(|i| prompt(i, (i % 3 > 0).then(|| format!("u{}", i / 3)).as_deref(), &format!("prompt {i}")))
            .collect();
        let split = plan.split(records.clone()).unwrap();
        // 6,000 independent people and prompts; four standard errors are 0.02.
        for (side, share) in [(&split.validation, 0.1), (&split.test, 0.2), (&split.train, 0.7)] {
            let got = side.len() as f64 / 9000.0;
            assert!((got - share).abs() < 0.025, "{got} for {share}");
        }
        assert_eq!(
            LeakCheck::new(0)
                .add("prompts", Side::Train, &split.train)
                .add_held_out("prompts", &split)
                .verify()
                .unwrap(),
            9000
        );
        assert_eq!(plan.split(lookup(&records, 100)).unwrap().test, lookup(&split.test, 100), "adding moves none");
        let other = SplitPlan { seed: 2, ..plan }.split(records).unwrap();
        assert_ne!(other.test, split.test);
        let single = |content: Content| plan.side(&Prompt { content, ..prompt(1, None, "") });
        let message = Conversation { messages: vec![Message::new(Role::User, "How  are you?")] };
        assert_eq!(single(Content::Messages(message)), single(Content::Text("how are YOU?".into())));
    }

    /// One letter a record: what is trained on is `.`, validation `v`, test `t`.
    #[track_caller]
    fn check_sides(records: impl Iterator<Item = Prompt>, want: &str) {
        let plan = SplitPlan { seed: 1, validation: 0.1, test: 0.2 };
        let letter = |record: Prompt| match plan.side(&record) {
            Side::Train => '.',
            Side::Validation => 'v',
            Side::Test => 't',
        };
        assert_eq!(records.map(letter).collect::<String>(), want);
    }

    /// A published result names its split by the seed alone, so no version may move a record.
    #[test]
    fn known_sides_stay() {
        check_sides((0..24).map(|i| prompt(i, Some(&format!("u{i}")), "")), "...ttvttt.t.tt.......vtt");
        check_sides((0..24).map(|i| prompt(i, None, &format!("Prompt  {i}"))), "t.t.v..t.tt.......vt....");
    }

    fn lookup(records: &[Prompt], below: usize) -> Vec<Prompt> {
        records.iter().filter(|r| r.origin.line < below).cloned().collect()
    }

    #[test]
    fn impossible_shares_are_refused() {
        for (validation, test) in [(-0.1, 0.1), (0.5, 0.5), (f64::NAN, 0.0)] {
            assert!(SplitPlan { seed: 0, validation, test }.split(prompts(&["a"])).is_err());
        }
    }

    #[test]
    fn a_leak_names_both_records() {
        let mut check = LeakCheck::new(12);
        check.add("prompts", Side::Train, &[prompt(1, Some("u"), "one"), prompt(2, None, "Tell me about cats")]);
        check.add("rankings", Side::Test, &[prompt(7, Some("u"), "two"), prompt(8, None, "tell me about dogs")]);
        check.add("rankings", Side::Train, &[prompt(9, None, "tell me about dogs")]);
        let message = check.verify().unwrap_err().to_string();
        let want = [
            "2 leaks between splits; split all data sets with one seed, or remove one record of each pair",
            "f.jsonl:1 (prompts, train) and f.jsonl:7 (rankings, test) share user `u`",
            "f.jsonl:2 (prompts, train) and f.jsonl:8 (rankings, test) share the same prompt",
        ];
        assert_eq!(message.lines().map(str::trim).collect::<Vec<_>>(), want);
    }
}
