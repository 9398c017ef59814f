//! The fold: what is taken, what counts, what is refused.

use crate::{answer, counting, event, fold, ranking, retract, skip, task, writing};
use instruct_feedback::*;

fn state() -> State {
    let answers = vec![
        answer("a1", "ann", "Hi", "Hello"),
        answer("a2", "ann", "Hi", "Good day"),
        answer("a3", "ann", "Bye", "See you"),
        answer("b1", "bob", "Hi", "Hello"),
    ];
    fold(vec![task("t1", 2), task("t2", 3), writing("w1")], answers, Vec::new())
}

#[test]
fn a_key_is_one_event() {
    let mut state = state();
    let first = ranking("k1", 1, "ann", "t1", &[1, 2]);
    assert_eq!(state.check(&first), Ok(Applied::Saved));
    assert_eq!(state.apply(first.clone()), Ok(Applied::Saved));
    let before = state.clone();
    // The same again, whenever it comes.
    assert_eq!(state.apply(Event { at: 99, ..first.clone() }), Ok(Applied::Repeated));
    // Another body, another person, another kind.
    let used = Err(Refusal::Used { id: "k1".to_owned() });
    assert_eq!(state.apply(ranking("k1", 1, "ann", "t1", &[2, 1])), used);
    assert_eq!(state.apply(ranking("k1", 1, "bob", "t1", &[1, 2])), used);
    assert_eq!(state.apply(retract("k1", 1, "ann", "k0")), used);
    assert_eq!(state, before, "what is refused or repeated changes nothing");
    // What was retracted is still the same event.
    state.apply(retract("k2", 2, "ann", "k1")).unwrap();
    assert_eq!(state.apply(first), Ok(Applied::Repeated));
    assert_eq!(counting(&state), [""; 0]);
}

#[test]
fn what_cannot_be_taken_says_why() {
    #[track_caller]
    fn check(event: Event, want: &str) {
        let mut state = state();
        state.apply(ranking("old", 1, "bob", "t1", &[1, 2])).unwrap();
        state.apply(retract("gone", 2, "bob", "old")).unwrap();
        let before = state.clone();
        assert_eq!(state.check(&event).unwrap_err().to_string(), want);
        assert_eq!(state.apply(event).unwrap_err().to_string(), want);
        assert_eq!(state, before);
    }
    check(ranking("k", 3, "ann", "t9", &[1, 2]), "there is no task `t9`");
    check(ranking("k", 3, "ann", "w1", &[1, 2]), "the task `w1` wants `demonstrate`");
    check(ranking("k", 3, "ann", "t2", &[1, 2]), "`shown`: 2 values, where 3 belong");
    check(ranking("k", 3, "ann", "t1", &[1, 2, 3]), "`shown`: 3 values, where 2 belong");
    check(skip("k", 3, "ann", "t9"), "there is no task `t9`");
    let written = "'kind':'demonstration','task':'t1','text':'a','seconds':1";
    check(event("k", 3, "ann", written), "the task `t1` wants `rank`");
    let thumb = |answer: &str| event("k", 3, "ann", &format!("'kind':'thumb','answer':'{answer}','up':true"));
    check(thumb("a9"), "there is no answer `a9`");
    check(thumb("b1"), "there is no answer `b1`");
    check(event("k", 3, "ann", "'kind':'edit','answer':'b1','text':'a','seconds':1"), "there is no answer `b1`");
    let pair = |other: &str| {
        event("k", 3, "ann", &format!("'kind':'pair','answers':['a1','{other}'],'choice':'tie','seconds':1"))
    };
    check(pair("b1"), "there is no answer `b1`");
    check(pair("a3"), "`a1` and `a3` answer different prompts");
    check(retract("k", 3, "ann", "old"), "`old` is somebody else's");
    check(retract("k", 3, "bob", "gone"), "`gone` is a retraction; say again what it took back");
    // What a program could hand in.
    let ids = "1 to 64 letters, digits, dots, underscores and hyphens";
    check(Event { key: "\n".to_owned(), ..thumb("a1") }, &format!("`key`: `\n` must be {ids}"));
    check(Event { by: String::new(), ..thumb("a1") }, &format!("`by`: `` must be {ids}"));
    let itself = Event { said: Said::Retract { retracts: "k".to_owned() }, ..thumb("a1") };
    check(itself, "`retracts`: k stands there twice");
    let mut short = ranking("k", 3, "ann", "t1", &[1, 2]);
    let Said::Ranking(ranked) = &mut short.said else { unreachable!() };
    ranked.flags.pop();
    check(short, "`flags`: 1 values, where 2 belong");
}

#[test]
fn names_stand_for_one_task_and_one_answer() {
    let mut state = state();
    assert_eq!(state.add_task(task("t1", 2)), Ok(Applied::Repeated));
    assert_eq!(state.add_task(task("t1", 3)), Err(Refusal::Used { id: "t1".to_owned() }));
    assert_eq!(state.add_answer(answer("a1", "ann", "Hi", "Hello")), Ok(Applied::Repeated));
    let other = answer("a1", "ann", "Hi", "hello");
    assert_eq!(state.add_answer(other), Err(Refusal::Used { id: "a1".to_owned() }));
    assert!(state.add_answer(answer("a 1", "ann", "Hi", "Hello")).is_err());
    assert!(state.add_answer(answer("a5", "", "Hi", "Hello")).is_err());
    assert_eq!((state.task("t2").map(|task| task.completions.len()), state.task("t5")), (Some(3), None));
    assert_eq!((state.answer("b1").map(|answer| answer.labeler.as_str()), state.answer("b5")), (Some("bob"), None));
}

#[test]
fn the_last_that_is_not_retracted_counts() {
    #[track_caller]
    fn check(events: &[Event], want: &[&str]) {
        let mut state = state();
        events.iter().for_each(|event| assert_eq!(state.apply(event.clone()), Ok(Applied::Saved)));
        assert_eq!(counting(&state), want);
    }
    let (first, second) = (ranking("k1", 1, "ann", "t1", &[1, 2]), ranking("k2", 2, "ann", "t1", &[2, 1]));
    let undo = |key: &str, of: &str| retract(key, 9, "ann", of);
    check(std::slice::from_ref(&first), &["k1"]);
    check(&[first.clone(), second.clone()], &["k2"]);
    // The log's order decides, not the clock, which may have been set back.
    check(&[second.clone(), first.clone()], &["k1"]);
    check(&[first.clone(), second.clone(), undo("u1", "k2")], &["k1"]);
    check(&[first.clone(), second.clone(), undo("u1", "k1")], &["k2"]);
    check(&[first.clone(), undo("u1", "k1"), second.clone()], &["k2"]);
    check(&[first.clone(), second.clone(), undo("u1", "k2"), undo("u2", "k1")], &[]);
    // A retraction that overtakes what it takes back, and one that comes twice.
    check(&[undo("u1", "k1"), first.clone()], &[]);
    check(&[undo("u1", "k1"), first.clone(), undo("u2", "k1")], &[]);
    // Somebody else's takes nothing back, even if it came before anybody knew whose the key would be.
    check(&[retract("u1", 1, "bob", "k1"), first.clone()], &["k1"]);
    // Others, and other things, stand beside each other.
    check(
        &[first.clone(), ranking("k3", 3, "bob", "t1", &[1, 1]), ranking("k4", 4, "ann", "t2", &[1, 1, 2])],
        &["k1", "k3", "k4"],
    );
    // A skip does not unsay a ranking.
    check(&[first, skip("k5", 5, "ann", "t1")], &["k1", "k5"]);
    let pair = |key: &str, at, left: &str, right: &str| {
        event(key, at, "ann", &format!("'kind':'pair','answers':['{left}','{right}'],'choice':'left','seconds':1"))
    };
    check(&[pair("p1", 1, "a1", "a2"), pair("p2", 2, "a2", "a1")], &["p2"]);
    let own = |key: &str, at| {
        let messages = "'messages':[{'role':'user','content':'Hi'}]";
        event(key, at, "ann", &format!("'kind':'demonstration',{messages},'text':'a','seconds':1"))
    };
    check(&[own("d1", 1), own("d2", 2)], &["d1", "d2"]);
    let thumb = |key: &str, up| event(key, 1, "ann", &format!("'kind':'thumb','answer':'a1','up':{up}"));
    check(&[thumb("z1", true), thumb("y1", false)], &["y1"]);
}

#[test]
fn a_line_that_the_fold_refuses_is_named() {
    #[track_caller]
    fn check(collected: Collected, want: &str) {
        assert_eq!(State::of(Settings::default(), collected).unwrap_err().to_string(), want);
    }
    let tasks = vec![task("t1", 2), task("t1", 3)];
    check(Collected { tasks, ..Collected::default() }, "tasks, line 2: `t1` is already used for something else");
    let answers = vec![answer("a1", "ann", "a", "b"), answer("a1", "ann", "a", "c")];
    check(Collected { answers, ..Collected::default() }, "answers, line 2: `a1` is already used for something else");
    let events = vec![ranking("k", 1, "ann", "t1", &[1, 2])];
    check(Collected { events, ..Collected::default() }, "log, line 1: there is no task `t1`");
}
