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
        let place = (labeler.to_owned(), kind);
        let task = match self.leases.get(&place) {
            Some(lease) => lease.task.clone(),
            None => self.best_for(labeler, kind)?.id.clone(),
        };
        let until = now.saturating_add(self.settings.lease);
        self.leases.insert(place, Lease { task: task.clone(), until });
        let (order_seed, order) = self.order(labeler, &task);
        Some(Assigned { task, order, order_seed, lease: self.settings.lease })
    }

    /// How many tasks of a kind a labeler has done, and how many are left for that person.
    pub fn queue(&self, labeler: &str, kind: TaskKind) -> Queue {
        let of_kind = || self.tasks.iter().filter(|task| task.kind == kind);
        let done = |task: &&Task| self.has_answered(labeler, &task.id);
        Queue {
            done: of_kind().filter(done).count(),
            left: of_kind().filter(|task| self.is_for(labeler, task) && !self.is_full(task)).count(),
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

    fn best_for(&self, labeler: &str, kind: TaskKind) -> Option<&Task> {
        let open = self.tasks.iter().filter(|task| task.kind == kind && self.is_for(labeler, task));
        let free = open.filter_map(|task| {
            let labels = self.labels(task) + self.held_by_others(labeler, task);
            match self.wanted(task) {
                // Whoever has not seen it is its first labeler.
                None => Some((0, task)),
                Some(wanted) => (labels < wanted).then_some((labels, task)),
            }
        });
        // The first of the least, so that tasks come in their order.
        free.min_by_key(|(labels, task)| (!self.took_back(labeler, task), *labels)).map(|(_, task)| task)
    }

    /// Whether a labeler has not yet done the task or skipped it, and others have not all skipped it.
    fn is_for(&self, labeler: &str, task: &Task) -> bool {
        let skipped = Subject::Skipped(task.id.clone());
        !self.has_answered(labeler, &task.id)
            && self.said_by(&skipped, labeler).flatten().is_none()
            && !self.is_skipped(task)
    }

    fn has_answered(&self, labeler: &str, task: &str) -> bool {
        self.said_by(&Subject::Answered(task.to_owned()), labeler).flatten().is_some()
    }

    fn took_back(&self, labeler: &str, task: &Task) -> bool {
        self.said_by(&Subject::Answered(task.id.clone()), labeler) == Some(None)
    }

    /// Labels that a task has.
    pub(crate) fn labels(&self, task: &Task) -> usize {
        self.said_on(&Subject::Answered(task.id.clone())).count()
    }

    /// Whether a task has all the labels that it wants.
    pub(crate) fn is_full(&self, task: &Task) -> bool {
        self.wanted(task).is_some_and(|wanted| self.labels(task) >= wanted)
    }

    /// Whether as many people skipped a task as it wants labelers. Whoever did it all the same does not count.
    pub(crate) fn is_skipped(&self, task: &Task) -> bool {
        let skips = self.said_on(&Subject::Skipped(task.id.clone()));
        let skips = skips.filter(|(labeler, _)| !self.has_answered(labeler, &task.id)).count();
        self.wanted(task).is_some_and(|wanted| skips >= wanted)
    }

    fn held_by_others(&self, labeler: &str, task: &Task) -> usize {
        self.leases.iter().filter(|((holder, _), lease)| holder != labeler && lease.task == task.id).count()
    }

    /// The order in which a labeler sees the completions of a task, and the seed that it is drawn with.
    fn order(&self, labeler: &str, task: &str) -> (u64, Vec<usize>) {
        // Names have no spaces, so this one stands for no other two.
        let name = format!("{labeler} {task}");
        let seed = Source::new(self.settings.seed, "feedback: order seed").at_name(&name).u64() >> 11;
        let completions = self.task(task).map_or(0, |task| task.completions.len());
        (seed, Source::new(seed, "feedback: order").at([]).permutation(completions))
    }
}
