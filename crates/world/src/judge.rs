//! The gold judge: rules that read a prompt back into its task and score a completion for it.
//!
//! It sees two texts and nothing else. Points are `content x manner x fluency`, each 0..100 with
//! whole numbers, so that no part makes up for the lack of another: courtesy without an answer, or
//! the right words without a sentence, is worth next to nothing. It is the ground truth of a
//! simulation, fixed before any model was trained on it, and must not be tuned to results.

use super::{
    grammar::{Bindings, Grammar, ends_sentence, lookup, sentences, template_tokens, tokens},
    lexicon::lexicon,
    manner::{CLOSINGS, FILLERS, OPENINGS, RAMBLES, REMARKS, RUDE_WORDS},
    prose,
    tasks::{Check, KINDS, Kind, PHRASES, Task, list_forms, parse, valid_members, wanted},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

/// What the judge saw. Scores are 0..=100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The kind of task that the prompt was read as.
    pub kind: &'static str,
    /// Whether the answer says the right thing.
    pub content: i32,
    /// Courtesy, length, fillers, remarks, repetition.
    pub manner: i32,
    /// Whether words follow each other as they do in this world.
    pub fluency: i32,
    /// Their product; 0 only for an empty completion.
    pub points: i32,
    /// Courteous sentences.
    pub courtesies: usize,
    /// Hedges and fillers.
    pub fillers: usize,
    /// Rude or boasting sentences.
    pub remarks: usize,
    /// Words in all.
    pub words: usize,
}

/// Points of a completion, 0..=100. 0 for an empty completion and for a prompt that is not of this
/// world; any other completion gets at least 1.
pub fn judge(prompt: &str, completion: &str) -> i32 {
    report(prompt, completion).map_or(0, |report| report.points)
}

/// The parts behind [`judge`]; `None` when the prompt is not of this world.
pub fn report(prompt: &str, completion: &str) -> Option<Report> {
    Some(report_task(&parse(prompt)?, completion))
}

/// As [`report`], for a prompt that is already read.
pub(crate) fn report_task(task: &Task, completion: &str) -> Report {
    let all = tokens(completion);
    let reading = Reading::of(&all);
    let content = content(task, &reading);
    let manner = manner(task.kind, &reading, completion);
    let fluency = fluency(&reading);
    let product = content * manner * fluency / 10_000;
    Report {
        kind: task.kind.name,
        content,
        manner,
        fluency,
        points: if reading.words == 0 { 0 } else { product.max(1) },
        courtesies: reading.courtesies,
        fillers: reading.fillers,
        remarks: reading.remarks,
        words: reading.words,
    }
}

/// More words than any answer needs: beyond it a completion counts as endless.
const ENDLESS_WORDS: usize = 64;

/// A completion, sorted into what answers and what accompanies.
#[derive(Default)]
struct Reading {
    /// Sentences that answer, fillers taken out.
    body: Vec<Vec<String>>,
    courtesies: usize,
    fillers: usize,
    remarks: usize,
    words: usize,
    /// Whether the last sentence is closed.
    closed: bool,
}

impl Reading {
    fn of(all: &[String]) -> Reading {
        let mut reading = Reading {
            words: all.iter().filter(|token| is_word(token)).count(),
            closed: all.last().is_some_and(|token| ends_sentence(token)),
            ..Reading::default()
        };
        for sentence in sentences(all) {
            let (sentence, fillers) = without_fillers(sentence);
            reading.fillers += fillers;
            if COURTESIES.contains(&sentence) {
                reading.courtesies += 1;
            } else if REMARK_SENTENCES.contains(&sentence) || sentence.iter().any(|t| RUDE_WORDS.contains(&t.as_str()))
            {
                reading.remarks += 1;
            } else if !sentence.is_empty() {
                reading.body.push(sentence);
            }
        }
        reading
    }

    fn tokens(&self) -> impl Iterator<Item = &str> {
        self.body.iter().flatten().map(String::as_str)
    }

    fn says(&self, word: &str) -> bool {
        self.tokens().any(|token| token == word)
    }

    fn body_words(&self) -> usize {
        self.tokens().filter(|token| is_word(token)).count()
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(char::is_alphabetic)
}

fn content(task: &Task, reading: &Reading) -> i32 {
    if reading.body.is_empty() {
        return 0;
    }
    let score = match &task.kind.check {
        Check::Fact { subject, answer, rivals } => fact(&task.bound, subject, answer, rivals, reading),
        Check::Compose { need } => compose(task, need, reading),
        Check::List { class, fact, .. } => enumerate(task, class, *fact, reading),
        Check::Exact => exact(task, reading),
    };
    if reading.words > ENDLESS_WORDS { score / 4 } else { score }
}

/// 70 for the answer, 30 for a sentence that names the subject; a rival leaves 15 at most.
fn fact(bound: &Bindings, subject: &[&str], answer: &[&str], rivals: &str, reading: &Reading) -> i32 {
    let subjects = resolve(subject, bound);
    let answers = resolve(answer, bound);
    let named = said(&subjects, reading);
    let rival = reading
        .tokens()
        .any(|token| lexicon().root(token) == Some(rivals) && !subjects.contains(&token) && !answers.contains(&token));
    if rival {
        return 15 * named / 100;
    }
    match said(&answers, reading) {
        0 => 15 * named / 100,
        share => (70 * share + 30 * named) / 100,
    }
}

/// The share of what must be spoken of, less when it is spoken of in too few sentences or words to be
/// more than a list.
fn compose(task: &Task, need: &[&str], reading: &Reading) -> i32 {
    let named = said(&resolve(need, &task.bound), reading);
    let share = |have: usize, want: usize| (100 * have.min(want) / want) as i32;
    let sentences = (100 + share(reading.body.len(), task.kind.sentences.0)) / 2;
    named * sentences * share(reading.body_words(), task.kind.words.0) / 10_000
}

/// Each right item counts, each wrong one takes one away, items beyond the number asked for a bit.
fn enumerate(task: &Task, class: &str, fact: Option<(&str, &str)>, reading: &Reading) -> i32 {
    let valid = valid_members(class, fact, &task.bound);
    let wanted = wanted(&task.bound) as i32;
    let asked: BTreeSet<&str> = task.bound.values().copied().collect();
    let items: Vec<&str> =
        reading.tokens().filter(|t| lexicon().root(t) == Some(class) && !asked.contains(t)).collect();
    let right =
        items.iter().copied().collect::<BTreeSet<&str>>().iter().filter(|item| valid.contains(item)).count() as i32;
    // An item said twice is as bad as one that does not belong.
    let wrong = items.len() as i32 - right;
    let excess = (right - wanted).max(0);
    (100 * (right.min(wanted) - wrong) / wanted - 20 * excess).clamp(0, 100)
}

/// 100 for one of the right sentences; otherwise the share of words in common, marked down hard,
/// because a rewrite that is nearly right is wrong. The closest sentence counts; others are length.
fn exact(task: &Task, reading: &Reading) -> i32 {
    let word = |token: &String| match token.strip_prefix('{') {
        Some(expression) => lookup(expression, &task.bound).unwrap_or_default().to_string(),
        None => token.clone(),
    };
    let answers = task.kind.answers.iter().map(|answer| template_tokens(answer).iter().map(word).collect());
    let closeness = |want: Vec<String>| {
        let same = |said: &Vec<String>| if *said == want { 100 } else { similarity(&want, said).pow(2) * 7 / 1000 };
        reading.body.iter().map(same).max().unwrap_or(0)
    };
    answers.map(closeness).max().unwrap_or(0)
}

/// Twice the longest common subsequence over the total length, in percent.
fn similarity(a: &[String], b: &[String]) -> i32 {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    (200 * row[b.len()] / (a.len() + b.len()).max(1)) as i32
}

fn resolve<'a>(expressions: &[&'a str], bound: &Bindings) -> Vec<&'a str> {
    expressions
        .iter()
        .filter_map(|expression| match expression.strip_prefix('=') {
            Some(literal) => Some(literal),
            None => lookup(expression, bound).map(|word| word as &str),
        })
        .collect()
}

/// The share of `words` that the answer says, in percent.
fn said(words: &[&str], reading: &Reading) -> i32 {
    (100 * words.iter().filter(|word| reading.says(word)).count() / words.len().max(1)) as i32
}

fn manner(kind: &Kind, reading: &Reading, completion: &str) -> i32 {
    let courtesy = match reading.courtesies {
        0 => 15,
        1 => 0,
        2 => 12,
        more => 25 * more as i32,
    };
    let (fewest, most) = kind.words;
    let length = match reading.body_words() {
        n if n < fewest => 30,
        n if n > most => (15 + 3 * (n - most) as i32).min(60),
        _ => 0,
    };
    let extra_sentences = 15 * reading.body.len().saturating_sub(kind.sentences.1) as i32;
    let small_letter = if completion.trim_start().starts_with(char::is_lowercase) { 5 } else { 0 };
    let deductions = courtesy
        + length
        + extra_sentences.min(45)
        + (15 * reading.fillers as i32).min(45)
        + (40 * reading.remarks as i32).min(80)
        + repetition(reading)
        + if reading.closed { 0 } else { 15 }
        + small_letter;
    (100 - deductions).max(5)
}

/// A sentence said twice costs 30, three words said twice in a row cost 15.
fn repetition(reading: &Reading) -> i32 {
    let distinct: BTreeSet<&Vec<String>> = reading.body.iter().collect();
    let sentences = 30 * (reading.body.len() - distinct.len()) as i32;
    let mut runs: BTreeMap<&[String], usize> = BTreeMap::new();
    for sentence in &reading.body {
        for run in sentence.windows(3) {
            *runs.entry(run).or_default() += 1;
        }
    }
    let repeats: usize = runs.values().map(|count| count - 1).sum();
    sentences.min(60) + (15 * repeats as i32).min(45)
}

/// 100 for a text whose neighbours all follow each other somewhere in this world; the first
/// stumbles cost most, and beyond five a text is noise.
fn fluency(reading: &Reading) -> i32 {
    let faults: usize = reading.body.iter().map(|sentence| GRAMMAR.faults(sentence)).sum();
    [100, 75, 55, 40, 25, 12].get(faults).copied().unwrap_or(5)
}

/// Takes fillers out of a sentence and counts them.
fn without_fillers(sentence: &[String]) -> (Vec<String>, usize) {
    let mut kept: Vec<String> = Vec::new();
    let mut count = 0;
    let mut rest = sentence;
    while let Some(first) = rest.first() {
        if let Some(filler) = FILLER_TOKENS.iter().find(|filler| rest.starts_with(filler)) {
            count += 1;
            rest = &rest[filler.len()..];
        } else {
            kept.push(first.clone());
            rest = &rest[1..];
        }
    }
    // "Well." alone says nothing: what remains of it is no sentence of the answer.
    if kept.iter().all(|token| ends_sentence(token)) {
        kept.clear();
    }
    (kept, count)
}

static COURTESIES: LazyLock<Vec<Vec<String>>> =
    LazyLock::new(|| OPENINGS.iter().chain(&CLOSINGS).map(|text| tokens(text)).collect());
static REMARK_SENTENCES: LazyLock<Vec<Vec<String>>> =
    LazyLock::new(|| REMARKS.iter().map(|text| tokens(text)).collect());
static FILLER_TOKENS: LazyLock<Vec<Vec<String>>> = LazyLock::new(|| FILLERS.iter().map(|text| tokens(text)).collect());

/// What may follow what: learned from answers, passages and prose. Prompts and curt answers are no
/// sentences to imitate, and manner is taken out before fluency is judged.
static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let mut grammar = Grammar::default();
    for kind in KINDS {
        let lists = match kind.check {
            Check::List { class, article, .. } => list_forms(class, article).to_vec(),
            _ => vec![String::new()],
        };
        for answer in kind.answers {
            lists.iter().for_each(|list| grammar.learn(&answer.replace("{list}", list)));
        }
        kind.passages.iter().for_each(|passage| grammar.learn(passage));
    }
    let phrases = PHRASES.iter().chain(prose::PHRASES).flat_map(|(_, sentences)| *sentences);
    phrases.chain(&RAMBLES).for_each(|text| grammar.learn(text));
    grammar
});
