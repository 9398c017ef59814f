//! I simulate people: a small closed English in which users ask, labelers write and rank, and a judge
//! knows the truth, all generated from a seed.
//!
//! Nothing here was written, ranked or judged by a person, and whatever uses it must say so. What it is
//! good for is a ground truth: a method that raises the judge's points works; how good a model is, it
//! cannot say. Everything is whole numbers and text, so that the files made from it can be compared byte
//! for byte on any machine. One table (`tasks`) says how each task is asked, answered and checked; one
//! lexicon says what is true.
//!
//! ```
//! use instruct_random::Source;
//! use instruct_world::{World, judge, label, labelers};
//!
//! let world = World::generate(1);
//! let demonstration = &world.demonstrations[0];
//! let good = demonstration.completion.clone();
//! assert!(judge(&demonstration.prompt, &good) > judge(&demonstration.prompt, "I do not know."));
//!
//! // A simulated labeler sees the judge's points through noise and a taste of their own.
//! let completions = [good, "I do not know.".to_owned()];
//! let mut draws = Source::new(1, "an example").at([]);
//! let seen = label(&labelers(1)[0], &demonstration.prompt, &completions, &mut draws);
//! assert_eq!(seen.ranks.len(), 2);
//! ```

mod grammar;
mod judge;
mod labelers;
mod lexicon;
mod manner;
mod prose;
mod tasks;

pub use self::{
    judge::{Report, judge, report},
    labelers::{Label, Labeler, agreement, label, labelers},
};

use self::{
    labelers::LABELERS,
    tasks::{KINDS, Kind, LEADS, Quirk, TAILS, USE_CASES, parse, write_prompt},
};
use instruct_random::{Draws, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Distinct prompts in a world.
const PROMPTS: usize = 2600;
/// Users who wrote them.
const USERS: usize = 120;
/// Prompts that a labeler answered.
const DEMONSTRATIONS: usize = 2200;
/// Bytes of pretraining text, at least; the last document is not cut.
const PRETRAINING_BYTES: usize = 800_000;
/// Bytes of held-out pretraining text, at least.
const HELDOUT_BYTES: usize = 60_000;

/// A prompt record, as `fixtures/prompts.jsonl` holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// `prompt-0001` and so on.
    pub id: String,
    /// What the user wrote.
    pub prompt: String,
    /// Who wrote it; splits are by user.
    pub user: String,
    /// One of the ten use cases.
    pub use_case: String,
}

/// A demonstration record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demonstration {
    /// The prompt's id with `demonstration` in front.
    pub id: String,
    /// The prompt's text.
    pub prompt: String,
    /// What the labeler wrote.
    pub completion: String,
    /// The prompt's user.
    pub user: String,
    /// The prompt's use case.
    pub use_case: String,
    /// Who wrote the completion.
    pub labeler: String,
}

/// Everything that is generated without a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Distinct prompts of many users.
    pub prompts: Vec<Prompt>,
    /// Answers to some of them, by simulated labelers.
    pub demonstrations: Vec<Demonstration>,
    /// Documents to pretrain on.
    pub pretraining: Vec<String>,
    /// Documents to measure the alignment tax on.
    pub heldout: Vec<String>,
}

impl World {
    /// The world of a seed. A pure function in whole numbers: the same on every machine.
    pub fn generate(seed: u64) -> World {
        let prompts = prompts(seed);
        let demonstrations = demonstrations(seed, &prompts);
        World {
            demonstrations,
            prompts,
            pretraining: documents(&Source::new(seed, "world: pretraining"), PRETRAINING_BYTES),
            heldout: documents(&Source::new(seed, "world: held-out text"), HELDOUT_BYTES),
        }
    }
}

/// The task that a prompt asks for, whatever its words: the name of its kind, and what fills the slots that every
/// phrasing of the request fills, so that two phrasings of one request have one task. A pure function of the
/// text. `None` for a prompt that is not of this world.
///
/// ```
/// use instruct_world::task;
///
/// assert_eq!(task("What is the opposite of big?"), task("Hello. Tell me the opposite of big. Thanks."));
/// assert_eq!(task("I feel sad today."), task("It is Monday and I am sad."));
/// assert_ne!(task("What is the opposite of big?"), task("What is the opposite of new?"));
/// assert_eq!(task("Prove the theorem of Fermat."), None);
/// ```
pub fn task(prompt: &str) -> Option<String> {
    tasks::identity(prompt)
}

/// Text to make the base from: so much prose of the same narrator that no document needs to be read
/// often. `pretraining` is a sample of its kind that is small enough to commit.
pub fn base_text(seed: u64, bytes: usize) -> Vec<String> {
    documents(&Source::new(seed, "world: base text"), bytes)
}

/// The use case of a prompt, read from its text; `None` for a prompt that is not of this world.
#[cfg(test)]
fn gold_use_case(prompt: &str) -> Option<&'static str> {
    tasks::gold_use_case(prompt)
}

/// The best answer that the judge knows, worth 100 points; `None` for a prompt that is not of this
/// world.
#[cfg(test)]
fn ideal(prompt: &str, draws: &mut Draws) -> Option<String> {
    parse(prompt).map(|task| labelers::ideal(&task, draws))
}

/// How many of `total` prompts each use case gets: whole shares, then the largest remainders.
fn quotas(total: usize) -> Vec<(&'static str, usize)> {
    let sum: usize = USE_CASES.iter().map(|(_, share)| share).sum();
    let mut quotas: Vec<(&str, usize)> = USE_CASES.iter().map(|&(name, share)| (name, total * share / sum)).collect();
    let mut by_remainder: Vec<usize> = (0..USE_CASES.len()).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(total * USE_CASES[i].1 % sum));
    let missing = total - quotas.iter().map(|(_, count)| count).sum::<usize>();
    for i in by_remainder.into_iter().take(missing) {
        quotas[i].1 += 1;
    }
    quotas
}

fn prompts(seed: u64) -> Vec<Prompt> {
    let users: Vec<(Quirk, u64)> = (0..USERS as u64).map(|i| user(seed, i)).collect();
    // A user of weight w stands w times in this list, so that a uniform pick is a weighted one.
    let seats: Vec<usize> = (0..USERS).flat_map(|i| std::iter::repeat_n(i, users[i].1 as usize)).collect();
    let mut cases: Vec<&str> = quotas(PROMPTS).into_iter().flat_map(|(name, n)| std::iter::repeat_n(name, n)).collect();
    Source::new(seed, "world: order").at([]).shuffle(&mut cases);
    let mut seen = BTreeSet::new();
    let source = Source::new(seed, "world: prompts");
    cases
        .into_iter()
        .enumerate()
        .map(|(i, use_case)| {
            let mut draws = source.at([i as u64]);
            let writer = seats[draws.below(seats.len() as u64) as usize];
            let text = new_prompt(use_case, &users[writer].0, &mut seen, &mut draws);
            Prompt {
                id: format!("prompt-{:04}", i + 1),
                prompt: text,
                user: format!("user-{:03}", writer + 1),
                use_case: use_case.to_string(),
            }
        })
        .collect()
}

/// A user's quirks and how much they write (1..=9, most little).
fn user(seed: u64, index: u64) -> (Quirk, u64) {
    let mut draws = Source::new(seed, "world: users").at([index]);
    let plain = draws.chance(1, 3);
    let mut pick = |n: usize| if plain { 0 } else { draws.below(n as u64) as usize };
    let quirk = Quirk { lead: pick(LEADS.len()), tail: pick(TAILS.len()), phrasing: 0 };
    let phrasing = draws.below(5040) as usize;
    (Quirk { phrasing, ..quirk }, 1 + draws.below(3) * draws.below(5))
}

/// A prompt whose request nobody has made yet in the same words, greetings and thanks aside.
fn new_prompt(use_case: &str, quirk: &Quirk, seen: &mut BTreeSet<Vec<String>>, draws: &mut Draws) -> String {
    let kinds: Vec<&'static Kind> = KINDS
        .iter()
        .filter(|k| k.use_case == use_case)
        .flat_map(|k| std::iter::repeat_n(k, k.weight as usize))
        .collect();
    loop {
        let kind = draws.pick(&kinds).copied().expect("every use case has kinds");
        let Some(text) = write_prompt(kind, quirk, draws) else { continue };
        if seen.insert(tasks::request(&text)) {
            return text;
        }
    }
}

fn demonstrations(seed: u64, prompts: &[Prompt]) -> Vec<Demonstration> {
    let labelers = labelers(seed);
    let mut chosen = Source::new(seed, "world: which are demonstrated").at([]).permutation(prompts.len());
    chosen.truncate(DEMONSTRATIONS);
    chosen.sort_unstable();
    let source = Source::new(seed, "world: demonstrations");
    chosen
        .into_iter()
        .map(|i| {
            let mut draws = source.at([i as u64]);
            let labeler = &labelers[draws.below(LABELERS as u64) as usize];
            let Prompt { id, prompt, user, use_case } = prompts[i].clone();
            let task = parse(&prompt).expect("the world reads its own prompts; a test parses all of them");
            Demonstration {
                id: id.replace("prompt", "demonstration"),
                completion: labelers::demonstrate(labeler, &task, &mut draws),
                prompt,
                user,
                use_case,
                labeler: labeler.name.clone(),
            }
        })
        .collect()
}

fn documents(source: &Source, bytes: usize) -> Vec<String> {
    let mut documents = Vec::new();
    let mut total = 0;
    while total < bytes {
        let document = prose::document(&mut source.at([documents.len() as u64]));
        total += document.len();
        documents.push(document);
    }
    documents
}

#[cfg(test)]
mod tests;
