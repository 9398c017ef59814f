//! How much was done, by whom, and what is known of how well.

use crate::{
    event::{Event, Ranked, Said},
    state::{State, Subject},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How much was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Tasks of both kinds.
    pub tasks: Tasks,
    /// What each labeler has done that counts, by name.
    pub labelers: Vec<Labeled>,
    /// Labels beyond those that their tasks want: work that came after its lease was over. They count like others.
    pub extra: usize,
    /// Events that count no more because their author said something else of the same thing later.
    pub replaced: usize,
    /// Events that were taken back.
    pub retracted: usize,
}

/// Tasks, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tasks {
    /// All of them.
    pub total: usize,
    /// Those with all the labels that they want. A gold task wants one here.
    pub done: usize,
    /// Those that people are still asked for.
    pub left: usize,
    /// Those that nobody is asked for, because too many skipped them.
    pub skipped: usize,
}

/// What a labeler has done that counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Labeled {
    /// The labeler.
    pub id: String,
    /// Tasks ranked.
    pub rankings: usize,
    /// Answers compared side by side.
    pub pairs: usize,
    /// Thumbs.
    pub thumbs: usize,
    /// Answers edited.
    pub edits: usize,
    /// Answers written.
    pub demonstrations: usize,
    /// Tasks left to others.
    pub skips: usize,
    /// Median seconds of a ranking, a pair, an edit or a demonstration; of thumbs and skips none are known.
    pub seconds_median: Option<f64>,
}

/// How a labeler did on tasks whose ranks are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gold {
    /// Such tasks that the labeler ranked.
    pub tasks: usize,
    /// Pairs of completions that the labeler and the known ranks both order.
    pub pairs: usize,
    /// Those of them that the labeler orders as the known ranks do.
    pub right: usize,
}

/// How much was done, by whom and how fast.
pub fn progress(state: &State) -> Progress {
    let mut by: BTreeMap<&str, (Labeled, Vec<u64>)> = BTreeMap::new();
    let counting = state.counting();
    for event in &counting {
        let (labeled, seconds) = by.entry(&event.by).or_default();
        labeled.count(event);
        seconds.extend(event.seconds());
    }
    let labeled = |(id, (labeled, seconds)): (&str, (Labeled, Vec<u64>))| Labeled {
        id: id.to_owned(),
        seconds_median: median(seconds),
        ..labeled
    };
    let said = || state.events().iter().filter(|event| !matches!(event.said, Said::Retract { .. }));
    let retracted = said().filter(|event| state.is_retracted(event)).count();
    Progress {
        tasks: tasks(state),
        labelers: by.into_iter().map(labeled).collect(),
        extra: (0..state.tasks.len()).map(|task| extra(state, task)).sum(),
        replaced: said().count() - retracted - counting.len(),
        retracted,
    }
}

/// The rankings of every task that two people or more have ranked, as `(labeler, ranks)` in the order of the task's
/// completions: what `instruct_eval::agreement` takes. Gold tasks are left out, for they were chosen to be clear.
pub fn groups(state: &State) -> Vec<Vec<(String, Vec<u32>)>> {
    let ungraded = (0..state.tasks.len()).filter(|task| state.tasks[*task].gold.is_none());
    let groups = ungraded.map(|task| {
        let one = |(labeler, ranked): (&str, &Ranked)| (labeler.to_owned(), ranked.by_slot(&ranked.ranks));
        rankings(state, task).map(one).collect::<Vec<_>>()
    });
    groups.filter(|group| group.len() > 1).collect()
}

/// The ranks of every ranking in the order of the page: what `instruct_eval::position_bias` takes.
pub fn shown_ranks(state: &State) -> Vec<Vec<u32>> {
    let all = (0..state.tasks.len()).flat_map(|task| rankings(state, task));
    all.map(|(_, ranked)| ranked.ranks.clone()).collect()
}

/// How each labeler did on the gold tasks.
pub fn gold(state: &State) -> BTreeMap<String, Gold> {
    let mut found: BTreeMap<String, Gold> = BTreeMap::new();
    for (task, gold) in state.tasks.iter().enumerate().filter_map(|(place, task)| Some((place, task.gold.as_ref()?))) {
        for (labeler, ranked) in rankings(state, task) {
            let ranks = ranked.by_slot(&ranked.ranks);
            let (pairs, right) = compare(&ranks, gold);
            let sum = found.entry(labeler.to_owned()).or_default();
            *sum = Gold { tasks: sum.tasks + 1, pairs: sum.pairs + pairs, right: sum.right + right };
        }
    }
    found
}

/// Pairs that both order, and those that both order alike.
fn compare(ranks: &[u32], gold: &[u32]) -> (usize, usize) {
    let pairs = (0..ranks.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let orders = pairs.map(|(i, j)| (ranks[i].cmp(&ranks[j]), gold[i].cmp(&gold[j])));
    let strict = orders.filter(|(a, b)| a.is_ne() && b.is_ne());
    strict.fold((0, 0), |(pairs, right), (a, b)| (pairs + 1, right + usize::from(a == b)))
}

/// The rankings of the task at this place that count, by labeler.
fn rankings(state: &State, task: usize) -> impl Iterator<Item = (&str, &Ranked)> {
    state.said_on(&Subject::Answered(task)).filter_map(|(labeler, event)| match &event.said {
        Said::Ranking(ranked) => Some((labeler, ranked)),
        _ => None,
    })
}

fn tasks(state: &State) -> Tasks {
    let total = state.tasks.len();
    let is_tested = |task: usize| state.tasks[task].gold.is_some() && state.labels(task) > 0;
    let is_done = |task: &usize| state.is_full(*task) || is_tested(*task);
    let done = (0..total).filter(is_done).count();
    let skipped = (0..total).filter(|task| !is_done(task) && state.is_skipped(*task)).count();
    Tasks { total, done, left: total - done - skipped, skipped }
}

fn extra(state: &State, task: usize) -> usize {
    state.wants[task].map_or(0, |wanted| state.labels(task).saturating_sub(wanted))
}

impl Labeled {
    fn count(&mut self, event: &Event) {
        let counter = match event.said {
            Said::Ranking(_) => &mut self.rankings,
            Said::Pair(_) => &mut self.pairs,
            Said::Thumb(_) => &mut self.thumbs,
            Said::Edit(_) => &mut self.edits,
            Said::Demonstration(_) => &mut self.demonstrations,
            Said::Skip(_) => &mut self.skips,
            Said::Retract { .. } => return,
        };
        *counter += 1;
    }
}

fn median(mut seconds: Vec<u64>) -> Option<f64> {
    seconds.sort_unstable();
    let half = seconds.len() / 2;
    let middle = *seconds.get(half)? as f64;
    if seconds.len() % 2 == 1 { Some(middle) } else { Some((seconds[half - 1] as f64 + middle) / 2.0) }
}
