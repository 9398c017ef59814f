//! A person is forgotten.

use crate::{answer, counting, event, ranking, retract, skip, task, writing};
use instruct_feedback::*;

#[test]
fn what_a_person_wrote_goes_and_the_rest_stays_usable() {
    let of_ann = |task: Task| Task { user: Some("ann".to_owned()), ..task };
    let thumb =
        |key: &str, by: &str, answer: &str| event(key, 2, by, &format!("'kind':'thumb','answer':'{answer}','up':true"));
    let collected = Collected {
        tasks: vec![task("t1", 2), of_ann(task("t2", 2)), of_ann(writing("w1"))],
        answers: vec![answer("a1", "ann", "Hi", "Hello"), answer("b1", "bob", "Hi", "Hello")],
        events: vec![
            ranking("k1", 1, "ann", "t1", &[1, 2]),
            ranking("k2", 1, "bob", "t1", &[1, 2]),
            ranking("k3", 1, "bob", "t2", &[1, 2]), // of her prompt
            skip("k4", 1, "bob", "t2"),
            event("k5", 1, "bob", "'kind':'demonstration','task':'w1','text':'a','seconds':1"),
            thumb("k6", "ann", "a1"),
            thumb("k7", "bob", "b1"),
            retract("k8", 3, "ann", "k1"),
            retract("k9", 3, "bob", "k3"), // of what goes
            retract("l1", 3, "bob", "k7"),
        ],
    };
    let whole = collected.clone();
    let found = forget("ann", collected);
    assert_eq!((found.tasks, found.answers), (2, 1));
    assert_eq!(found.keys, ["k1", "k3", "k4", "k5", "k6", "k8", "k9"]);
    let left: Vec<&str> = found.remain.events.iter().map(|event| event.key.as_str()).collect();
    assert_eq!(left, ["k2", "k7", "l1"]);
    assert_eq!((found.remain.tasks.len(), found.remain.answers.len()), (1, 1));
    let text: String = found.remain.events.iter().map(Event::line).collect();
    assert!(!text.contains("ann"));
    // What remains is folded as before.
    let state = State::of(Settings::default(), found.remain.clone()).unwrap();
    assert_eq!(counting(&state), ["k2"]);
    // Forgetting twice, and whom nobody knows, changes nothing.
    let again = forget("ann", found.remain.clone());
    assert_eq!((again.remain, again.keys.len()), (found.remain, 0));
    assert_eq!(forget("eve", whole.clone()).remain, whole);
}
