//! How much was done, and what agreement and position are measured from.

use crate::{answer, event, fold, ranking, retract, skip, task, wanting, writing};
use instruct_feedback::*;

#[test]
fn what_each_labeler_did_that_counts() {
    let timed = |key: &str, by: &str, task: &str, seconds: u64| {
        let said = format!("'kind':'ranking','task':'{task}','shown':[1,0],'ranks':[1,2],'seconds':{seconds}");
        event(key, 1, by, &said)
    };
    let events = vec![
        timed("k1", "ann", "t1", 10),
        timed("k2", "ann", "t2", 31),
        timed("k3", "ann", "t3", 90),
        timed("k4", "ann", "t3", 20), // replaces k3
        timed("k5", "bob", "t1", 7),
        timed("k6", "bob", "t2", 500),
        retract("k7", 2, "bob", "k6"),
        skip("k8", 2, "bob", "t3"),
        event("k9", 2, "bob", "'kind':'thumb','answer':'b1','up':true"),
        event("l1", 2, "bob", "'kind':'edit','answer':'b1','text':'a','seconds':8"),
        event("l2", 2, "bob", "'kind':'pair','answers':['b1','b2'],'choice':'tie','seconds':9"),
        event("l3", 2, "bob", "'kind':'demonstration','task':'w1','text':'a','seconds':12"),
        skip("l4", 2, "eve", "t2"),
    ];
    let answers = vec![answer("b1", "bob", "Hi", "a"), answer("b2", "bob", "Hi", "b")];
    let tasks = vec![task("t1", 2), task("t2", 2), task("t3", 2), writing("w1"), writing("w2")];
    let state = State::of(wanting(1), Collected { tasks, answers, events }).unwrap();
    let found = progress(&state);
    assert_eq!(found.tasks, Tasks { total: 5, done: 4, left: 1, skipped: 0 });
    assert_eq!((found.extra, found.replaced, found.retracted), (1, 1, 1));
    let line = |at: usize| serde_json::to_string(&found.labelers[at]).unwrap();
    let zero = r#""pairs":0,"thumbs":0,"edits":0,"demonstrations":0,"#;
    assert_eq!(line(0), format!(r#"{{"id":"ann","rankings":3,{zero}"skips":0,"seconds_median":20.0}}"#));
    let bob =
        r#"{"id":"bob","rankings":1,"pairs":1,"thumbs":1,"edits":1,"demonstrations":1,"skips":1,"seconds_median":8.5}"#;
    assert_eq!(line(1), bob);
    assert_eq!(line(2), format!(r#"{{"id":"eve","rankings":0,{zero}"skips":1,"seconds_median":null}}"#));
    assert_eq!(progress(&State::new(Settings::default())), Progress::default());
}

#[test]
fn groups_are_in_the_order_of_the_task_and_what_was_shown_in_that_of_the_page() {
    let turned = "'kind':'ranking','task':'t1','shown':[2,0,1],'ranks':[1,2,3],'seconds':1";
    let mut gold = task("gold", 2);
    gold.gold = Some(vec![1, 2]);
    let events = vec![
        event("k1", 1, "bob", turned),
        ranking("k2", 2, "ann", "t1", &[1, 2, 2]),
        ranking("k3", 3, "ann", "t2", &[1, 2]),
        ranking("k4", 4, "ann", "gold", &[1, 2]),
        ranking("k5", 5, "bob", "gold", &[1, 2]),
        skip("k6", 6, "bob", "t2"),
    ];
    let state = fold(vec![task("t1", 3), task("t2", 2), gold], Vec::new(), events);
    let own = |labeler: &str, ranks: &[u32]| (labeler.to_owned(), ranks.to_vec());
    assert_eq!(groups(&state), [[own("ann", &[1, 2, 2]), own("bob", &[2, 3, 1])]]);
    assert_eq!(shown_ranks(&state), [vec![1, 2, 2], vec![1, 2, 3], vec![1, 2], vec![1, 2], vec![1, 2]]);
}

#[test]
fn gold_tasks_tell_who_knows() {
    let known = |id: &str, ranks: &[u32]| Task { gold: Some(ranks.to_vec()), ..task(id, ranks.len()) };
    let tasks = vec![known("g1", &[1, 2, 3]), known("g2", &[2, 2, 1]), task("t1", 3)];
    let events = vec![
        ranking("k1", 1, "ann", "g1", &[1, 2, 3]),
        ranking("k2", 1, "ann", "g2", &[3, 1, 2]),
        ranking("k3", 1, "bob", "g1", &[2, 1, 1]),
        ranking("k4", 1, "eve", "t1", &[2, 1, 1]),
    ];
    let found = gold(&fold(tasks, Vec::new(), events));
    // Ann: three of three, then one of the two pairs that the known ranks order. Bob: none of the two he ordered.
    assert_eq!(found["ann"], Gold { tasks: 2, pairs: 5, right: 4 });
    assert_eq!(found["bob"], Gold { tasks: 1, pairs: 2, right: 0 });
    assert_eq!(found.len(), 2);
}
