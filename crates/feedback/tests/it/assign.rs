//! Who is asked what next: rows, draws, and a slow second implementation under random work.

use crate::{event, ranking, retract, skip, task, wanting, writing};
use instruct_feedback::*;
use instruct_random::Source;
use proptest::prelude::*;
use std::collections::BTreeSet;

const LEASE: u64 = 1800;

fn state(labelers: usize, tasks: usize) -> State {
    let tasks = (0..tasks).map(|i| task(&format!("t{i}"), 3)).collect();
    State::of(wanting(labelers), Collected { tasks, ..Collected::default() }).unwrap()
}

fn next(state: &mut State, labeler: &str, now: u64) -> Option<String> {
    state.next(labeler, TaskKind::Rank, now).map(|assigned| assigned.task)
}

fn answer_with(state: &mut State, key: &str, labeler: &str, task: &str) {
    assert_eq!(state.apply(ranking(key, 1, labeler, task, &[1, 2, 3])), Ok(Applied::Saved));
}

#[track_caller]
fn check(got: Option<String>, want: &str) {
    assert_eq!(got.as_deref(), Some(want).filter(|want| !want.is_empty()));
}

#[test]
fn a_task_is_kept_until_its_lease_is_over() {
    let mut state = state(1, 2);
    check(next(&mut state, "ann", 0), "t0");
    check(next(&mut state, "bob", 0), "t1");
    check(next(&mut state, "eve", 0), "");
    assert_eq!(state.queue("eve", TaskKind::Rank), Queue { done: 0, left: 2 });
    // Asking again renews it.
    check(next(&mut state, "ann", LEASE - 1), "t0");
    check(next(&mut state, "eve", LEASE - 1), "");
    check(next(&mut state, "eve", LEASE), "t1");
    check(next(&mut state, "bob", LEASE), "");
    // Work that comes after all is kept, and counted as more than was wanted.
    answer_with(&mut state, "k1", "eve", "t1");
    answer_with(&mut state, "k2", "bob", "t1");
    assert_eq!((progress(&state).extra, groups(&state).len()), (1, 1));
    check(next(&mut state, "eve", LEASE + 1), "");
    check(next(&mut state, "ann", LEASE + 1), "t0");
    answer_with(&mut state, "k3", "ann", "t0");
    check(next(&mut state, "ann", LEASE + 1), "");
    assert_eq!(state.queue("ann", TaskKind::Rank), Queue { done: 1, left: 0 });
}

#[test]
fn the_least_labelled_comes_first_and_never_twice() {
    let mut state = state(3, 3);
    for (key, labeler, task) in [("k1", "ann", "t0"), ("k2", "bob", "t0"), ("k3", "ann", "t1")] {
        answer_with(&mut state, key, labeler, task);
    }
    check(next(&mut state, "ann", 0), "t2");
    answer_with(&mut state, "k4", "ann", "t2");
    check(next(&mut state, "ann", 0), "");
    // t0 has two labels, t1 and t2 have one each.
    check(next(&mut state, "eve", 0), "t1");
    check(next(&mut state, "bob", 0), "t2");
    // With what the others hold, t1 and t2 have two as well.
    check(next(&mut state, "ian", 0), "t0");
    check(next(&mut state, "una", 0), "t1");
    check(next(&mut state, "kim", 0), "t2");
    check(next(&mut state, "joe", 0), "");
}

#[test]
fn a_skipped_task_goes_to_others_and_then_leaves() {
    let mut state = state(2, 1);
    check(next(&mut state, "ann", 0), "t0");
    state.apply(skip("s1", 1, "ann", "t0")).unwrap();
    check(next(&mut state, "ann", 1), "");
    check(next(&mut state, "bob", 1), "t0");
    assert_eq!(progress(&state).tasks, Tasks { total: 1, done: 0, left: 1, skipped: 0 });
    state.apply(skip("s2", 2, "bob", "t0")).unwrap();
    check(next(&mut state, "eve", 2), "");
    assert_eq!(progress(&state).tasks, Tasks { total: 1, done: 0, left: 0, skipped: 1 });
    assert_eq!(state.queue("eve", TaskKind::Rank), Queue { done: 0, left: 0 });
    // Taking a skip back brings it back, and doing it all the same counts as done.
    state.apply(retract("u1", 3, "bob", "s2")).unwrap();
    check(next(&mut state, "eve", 3), "t0");
    answer_with(&mut state, "k1", "ann", "t0");
    assert_eq!(state.queue("ann", TaskKind::Rank), Queue { done: 1, left: 0 });
    answer_with(&mut state, "k2", "eve", "t0");
    assert_eq!(progress(&state).tasks, Tasks { total: 1, done: 1, left: 0, skipped: 0 });
}

#[test]
fn what_is_taken_back_comes_back_first() {
    let mut state = state(1, 3);
    for (key, task) in [("k0", "t0"), ("k1", "t1")] {
        check(next(&mut state, "ann", 0), task);
        answer_with(&mut state, key, "ann", task);
    }
    check(next(&mut state, "bob", 0), "t2");
    state.apply(retract("u1", 1, "ann", "k1")).unwrap();
    check(next(&mut state, "ann", 1), "t1");
    check(next(&mut state, "eve", 1), "");
    let assigned = state.next("ann", TaskKind::Rank, 1 + LEASE).unwrap();
    assert_eq!(assigned.task, "t1");
}

#[test]
fn gold_tasks_go_to_everybody_once() {
    let mut gold = task("g", 3);
    gold.gold = Some(vec![1, 2, 3]);
    let tasks = vec![task("t0", 3), gold];
    let mut state = State::of(wanting(1), Collected { tasks: tasks.clone(), ..Collected::default() }).unwrap();
    answer_with(&mut state, "k1", "ann", "g");
    answer_with(&mut state, "k2", "bob", "g");
    check(next(&mut state, "ann", 0), "t0");
    check(next(&mut state, "eve", 0), "g");
    check(next(&mut state, "ian", 0), "g");
    check(next(&mut state, "bob", 0), "");
    assert_eq!(progress(&state).tasks, Tasks { total: 2, done: 1, left: 1, skipped: 0 });
    assert_eq!(progress(&state).extra, 0);
    // A task that wants three has one label, the gold one has two.
    let mut state = State::of(wanting(3), Collected { tasks, ..Collected::default() }).unwrap();
    for (key, labeler, task) in [("k1", "ann", "t0"), ("k2", "ann", "g"), ("k3", "bob", "g")] {
        answer_with(&mut state, key, labeler, task);
    }
    check(next(&mut state, "eve", 0), "g");
    check(next(&mut state, "bob", 0), "t0");
}

#[test]
fn kinds_have_queues_of_their_own() {
    let tasks = vec![task("t0", 2), writing("w0"), writing("w1")];
    let mut state = State::of(wanting(3), Collected { tasks, ..Collected::default() }).unwrap();
    let demonstrate = |state: &mut State, labeler: &str| state.next(labeler, TaskKind::Demonstrate, 0);
    let assigned = demonstrate(&mut state, "ann").unwrap();
    assert_eq!((assigned.task.as_str(), assigned.order), ("w0", vec![]));
    check(next(&mut state, "ann", 0), "t0");
    // One demonstration is enough.
    assert_eq!(demonstrate(&mut state, "bob").map(|assigned| assigned.task).as_deref(), Some("w1"));
    assert_eq!(demonstrate(&mut state, "eve"), None);
    let text = "'kind':'demonstration','task':'w0','text':'a','seconds':1";
    state.apply(event("k1", 1, "ann", text)).unwrap();
    assert_eq!(demonstrate(&mut state, "ann"), None);
    check(next(&mut state, "ann", 0), "t0");
    assert_eq!(state.queue("ann", TaskKind::Demonstrate), Queue { done: 1, left: 1 });
    assert_eq!(state.queue("ann", TaskKind::Rank), Queue { done: 0, left: 1 });
}

#[test]
fn each_labeler_sees_an_order_of_his_own_again_and_again() {
    let first = state(3, 1);
    let mut seen = BTreeSet::new();
    let mut at_top = [0u32; 3];
    for i in 0..600 {
        let labeler = format!("labeler-{i}");
        let assigned = first.clone().next(&labeler, TaskKind::Rank, 0).unwrap();
        // The same after a restart, at another time, and from the seed alone.
        assert_eq!(assigned, first.clone().next(&labeler, TaskKind::Rank, 99).unwrap());
        let again = Source::new(assigned.order_seed, "feedback: order").at([]).permutation(3);
        assert!(assigned.order == again && assigned.order_seed < 1 << 53 && assigned.lease == LEASE);
        at_top[assigned.order[0]] += 1;
        seen.insert(assigned.order);
    }
    assert_eq!(seen.len(), 6);
    // 200 each, with a standard error of 11.5.
    assert!(at_top.iter().all(|count| (150..250).contains(count)), "{at_top:?}");
    let mut other = State::new(Settings { seed: 1, ..wanting(3) });
    other.add_task(task("t0", 3)).unwrap();
    let seed = |state: &State| state.clone().next("ann", TaskKind::Rank, 0).unwrap().order_seed;
    assert_ne!(seed(&first), seed(&other));
}

#[test]
fn a_fifth_goes_to_three_and_stays_when_tasks_are_added() {
    let mut state = State::new(Settings::default());
    let mut before = Vec::new();
    for i in 0..2000 {
        let new = task(&format!("t{i}"), 2);
        state.add_task(new.clone()).unwrap();
        before.push((new.clone(), state.wanted(&new)));
    }
    assert!(before.iter().all(|(task, wanted)| state.wanted(task) == *wanted));
    let several = before.iter().filter(|(_, wanted)| *wanted == Some(3)).count();
    assert!(before.iter().all(|(_, wanted)| [Some(1), Some(3)].contains(wanted)));
    // 400, with a standard error of 18.
    assert!((330..470).contains(&several), "{several}");
    let other = State::new(Settings { seed: 1, ..Settings::default() });
    assert!(before.iter().any(|(task, wanted)| other.wanted(task) != *wanted));
    assert_eq!(state.wanted(&writing("w")), Some(1));
    let nobody = State::new(Settings { overlap_labelers: 0, overlap_percent: 100, ..Settings::default() });
    assert_eq!(nobody.wanted(&task("t", 2)), Some(1), "a task that nobody may do is none");
}

/// What happens, by labelers 0 to 3.
#[derive(Clone, Debug)]
enum Happens {
    Asks(usize),
    /// Answers the task that was last given to him or her, in time or not.
    Answers(usize),
    Skips(usize),
    TakesBack(usize),
    Passes(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0usize..4).prop_map(Happens::Asks),
        4 => (0usize..4).prop_map(Happens::Answers),
        1 => (0usize..4).prop_map(Happens::Skips),
        1 => (0usize..4).prop_map(Happens::TakesBack),
        1 => (0u64..LEASE + 500).prop_map(Happens::Passes),
    ]
}

/// Lists of what happened, from which the next task is found again and again from the start.
#[derive(Default)]
struct Slow {
    /// `(labeler, task, key, counts)`.
    answered: Vec<(usize, usize, String, bool)>,
    skipped: Vec<(usize, usize)>,
    leases: Vec<(usize, usize, u64)>,
}

impl Slow {
    fn labels(&self, task: usize) -> BTreeSet<usize> {
        self.answered.iter().filter(|a| a.1 == task && a.3).map(|a| a.0).collect()
    }

    fn next(&self, labeler: usize, wants: &[usize], now: u64) -> Option<usize> {
        let live: Vec<_> = self.leases.iter().filter(|(_, _, until)| now < *until).collect();
        if let Some((_, task, _)) = live.iter().find(|(holder, _, _)| *holder == labeler) {
            return Some(*task);
        }
        let mut best: Option<(bool, usize, usize)> = None;
        for (task, wanted) in wants.iter().enumerate() {
            let labels = self.labels(task);
            let skippers: BTreeSet<usize> = self.skipped.iter().filter(|s| s.1 == task).map(|s| s.0).collect();
            let given_up = skippers.difference(&labels).count() >= *wanted;
            let load =
                labels.len() + live.iter().filter(|(holder, held, _)| *held == task && *holder != labeler).count();
            if labels.contains(&labeler) || skippers.contains(&labeler) || given_up || load >= *wanted {
                continue;
            }
            let took_back = self.answered.iter().any(|a| a.0 == labeler && a.1 == task);
            let candidate = (!took_back, load, task);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
        best.map(|(_, _, task)| task)
    }
}

proptest! {
    #[test]
    fn the_next_task_is_that_of_the_slow_one(script in prop::collection::vec(happens(), 0..120)) {
        let settings = Settings { overlap_percent: 50, overlap_labelers: 2, ..Settings::default() };
        let tasks: Vec<Task> = (0..6).map(|i| task(&format!("t{i}"), 2)).collect();
        let mut state = State::of(settings, Collected { tasks: tasks.clone(), ..Collected::default() }).unwrap();
        let wants: Vec<usize> = tasks.iter().map(|task| state.wanted(task).unwrap()).collect();
        prop_assert!(wants.contains(&1) && wants.contains(&2));
        let mut slow = Slow::default();
        let (mut now, mut given) = (0, [None; 4]);
        for (step, what) in script.into_iter().enumerate() {
            let key = format!("k{step}");
            let name = |labeler: usize| format!("labeler-{labeler}");
            match what {
                Happens::Passes(seconds) => now += seconds,
                Happens::Asks(labeler) => {
                    let want = slow.next(labeler, &wants, now);
                    let got = state.next(&name(labeler), TaskKind::Rank, now);
                    prop_assert_eq!(got.map(|assigned| assigned.task), want.map(|task| format!("t{task}")));
                    slow.leases.retain(|(holder, _, _)| *holder != labeler);
                    slow.leases.extend(want.map(|task| (labeler, task, now + LEASE)));
                    given[labeler] = want.or(given[labeler]);
                }
                Happens::Answers(labeler) => {
                    let Some(task) = given[labeler] else { continue };
                    state.apply(ranking(&key, now, &name(labeler), &format!("t{task}"), &[1, 2])).unwrap();
                    slow.answered.push((labeler, task, key, true));
                    slow.leases.retain(|(holder, held, _)| (*holder, *held) != (labeler, task));
                }
                Happens::Skips(labeler) => {
                    let Some(task) = given[labeler] else { continue };
                    state.apply(skip(&key, now, &name(labeler), &format!("t{task}"))).unwrap();
                    slow.skipped.push((labeler, task));
                    slow.leases.retain(|(holder, held, _)| (*holder, *held) != (labeler, task));
                }
                Happens::TakesBack(labeler) => {
                    let Some(last) = slow.answered.iter_mut().rev().find(|a| a.0 == labeler && a.3) else { continue };
                    last.3 = false;
                    state.apply(retract(&key, now, &name(labeler), &last.2)).unwrap();
                }
            }
            for (index, task) in tasks.iter().enumerate() {
                let labels = progress_of(&state, &task.id);
                prop_assert_eq!(labels, slow.labels(index).len());
            }
        }
    }
}

/// Labelers whose ranking of a task counts.
fn progress_of(state: &State, task: &str) -> usize {
    let of = |event: &&&Event| matches!(&event.said, Said::Ranking(ranked) if ranked.task == task);
    state.counting().iter().filter(of).count()
}

#[test]
fn people_who_work_in_time_give_each_task_what_it_wants_and_no_more() {
    let tasks: Vec<Task> = (0..40).map(|i| task(&format!("t{i}"), 3)).collect();
    let mut state = State::of(Settings::default(), Collected { tasks, ..Collected::default() }).unwrap();
    let mut draws = Source::new(1, "people").at([]);
    let (mut now, mut key) = (0, 0);
    while (0..5).any(|labeler| state.clone().next(&format!("labeler-{labeler}"), TaskKind::Rank, now).is_some()) {
        now += draws.below(100);
        let labeler = format!("labeler-{}", draws.below(5));
        let Some(task) = next(&mut state, &labeler, now) else { continue };
        if draws.chance(2, 3) {
            key += 1;
            answer_with(&mut state, &format!("k{key}"), &labeler, &task);
        }
    }
    let found = progress(&state);
    assert_eq!((found.tasks, found.extra), (Tasks { total: 40, done: 40, left: 0, skipped: 0 }, 0));
}
