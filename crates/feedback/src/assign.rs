//! Who is asked what next.

use crate::{
    state::{Lease, State, Subject},
    task::{Task, TaskKind},
};
use instruct_random::Source;

/// A task for a labeler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Its name, for [`State::task`].
    pub task: String,
    /// The slots of its completions in the order in which this labeler sees them.
    pub order: Vec<usize>,
    /// The draw behind the order: `Source::new(order_seed, "feedback: order").at([])` permutes the slots so. Below
    /// 2^53, so that JavaScript can hold it.
    pub order_seed: u64,
    /// For how long the task is kept for the labeler, in seconds from now.
    pub lease: u64,
}

/// How far a labeler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Tasks that this labeler has done.
    pub done: usize,
    /// Tasks that this labeler may still be asked for, those included that others hold at the moment.
    pub left: usize,
}

impl State {
    /// The task that a labeler is to do next, which is then kept for that person until [`Assigned::lease`] is over.
    /// `now` is in seconds since 1970.
    ///
    /// Whoever holds a task and has not done it gets the same again, in the same order, so that a page can be
    /// reloaded. Else it is a task that this person took back, for whoever takes back wants to do better; else the
    /// one with the fewest labels, those counted that others are working on; else the first. Nobody gets a task
    /// twice, nor one that he or she has skipped, nor one that has all the labels that it wants or is being given
    /// them. A task that as many people skipped as it wants labelers is asked of nobody any more.
    pub fn next(&mut self, labeler: &str, kind: TaskKind, now: u64) -> Option<Assigned> {
        self.leases.retain(|_, lease| now < lease.until);
        let holder = (labeler.to_owned(), kind);
        let task = match self.leases.get(&holder) {
            Some(lease) => lease.task,
            None => self.best_for(labeler, kind)?,
        };
        let until = now.saturating_add(self.settings.lease);
        self.leases.insert(holder, Lease { task, until });
        let (order_seed, order) = self.order(labeler, &self.tasks[task]);
        Some(Assigned { task: self.tasks[task].id.clone(), order, order_seed, lease: self.settings.lease })
    }

    /// How many tasks of a kind a labeler has done, and how many are left for that person.
    pub fn queue(&self, labeler: &str, kind: TaskKind) -> Queue {
        Queue {
            done: self.of_kind(kind).filter(|task| self.has_answered(labeler, *task)).count(),
            left: self.of_kind(kind).filter(|task| self.is_for(labeler, *task) && !self.is_full(*task)).count(),
        }
    }

    /// How many labelers a task wants; `None` of a gold task, which wants all of them. The draw depends on the task's
    /// name alone, so it stays when tasks are added.
    pub fn wanted(&self, task: &Task) -> Option<usize> {
        if task.gold.is_some() {
            return None;
        }
        let mut draw = Source::new(self.settings.seed, "feedback: overlap").at_name(&task.id);
        let several = task.kind == TaskKind::Rank && draw.chance(self.settings.overlap_percent, 100);
        Some(if several { self.settings.overlap_labelers.max(1) } else { 1 })
    }

    /// Places of the tasks of a kind.
    fn of_kind(&self, kind: TaskKind) -> impl Iterator<Item = usize> {
        (0..self.tasks.len()).filter(move |task| self.tasks[*task].kind == kind)
    }

    fn best_for(&self, labeler: &str, kind: TaskKind) -> Option<usize> {
        // By others: whoever holds a task of this kind gets that one.
        let mut held = vec![0; self.tasks.len()];
        self.leases.values().for_each(|lease| held[lease.task] += 1);
        let open = self.of_kind(kind).filter(|task| self.is_for(labeler, *task));
        let free = open.filter_map(|task| {
            let labels = self.labels(task) + held[task];
            match self.wants[task] {
                // Whoever has not seen it is its first labeler.
                None => Some((0, task)),
                Some(wanted) => (labels < wanted).then_some((labels, task)),
            }
        });
        // Of equals the first, so that tasks come in their order.
        free.min_by_key(|(labels, task)| (!self.took_back(labeler, *task), *labels)).map(|(_, task)| task)
    }

    /// Whether a labeler has not yet done the task or skipped it, and others have not all skipped it.
    fn is_for(&self, labeler: &str, task: usize) -> bool {
        !self.has_answered(labeler, task)
            && self.said_by(&Subject::Skipped(task), labeler).flatten().is_none()
            && !self.is_skipped(task)
    }

    fn has_answered(&self, labeler: &str, task: usize) -> bool {
        self.said_by(&Subject::Answered(task), labeler).flatten().is_some()
    }

    fn took_back(&self, labeler: &str, task: usize) -> bool {
        self.said_by(&Subject::Answered(task), labeler) == Some(None)
    }

    /// Labels that the task at this place has.
    pub(crate) fn labels(&self, task: usize) -> usize {
        self.said_on(&Subject::Answered(task)).count()
    }

    /// Whether a task has all the labels that it wants.
    pub(crate) fn is_full(&self, task: usize) -> bool {
        self.wants[task].is_some_and(|wanted| self.labels(task) >= wanted)
    }

    /// Whether as many people skipped a task as it wants labelers. Whoever did it all the same does not count.
    pub(crate) fn is_skipped(&self, task: usize) -> bool {
        let skips = self.said_on(&Subject::Skipped(task));
        let skips = skips.filter(|(labeler, _)| !self.has_answered(labeler, task)).count();
        self.wants[task].is_some_and(|wanted| skips >= wanted)
    }

    /// The order in which a labeler sees the completions of a task, and the seed that it is drawn with.
    fn order(&self, labeler: &str, task: &Task) -> (u64, Vec<usize>) {
        // Names have no spaces, so this one stands for no other two.
        let name = format!("{labeler} {}", task.id);
        let seed = Source::new(self.settings.seed, "feedback: order seed").at_name(&name).u64() >> 11;
        (seed, Source::new(seed, "feedback: order").at([]).permutation(task.completions.len()))
    }
}
