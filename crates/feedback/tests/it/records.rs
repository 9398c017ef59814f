//! What becomes what, line by line, and back through the reader of records.

use crate::{answer, event, fold, ranking, retract, skip, task, writing};
use instruct_data::{Demonstration, Limits, Message, Prompt, Ranking, Record, Role, read};
use instruct_feedback::*;
use std::collections::BTreeMap;

/// Two tasks and four answers: `a1` and `a2` to one prompt, `a3` to another, `a4` without consent.
fn records_of(events: Vec<Event>, options: &Options) -> Records {
    let mut gold = task("gold", 2);
    gold.gold = Some(vec![1, 2]);
    let mut known = task("t1", 3);
    (known.user, known.use_case) = (Some("user-1".to_owned()), Some("open_qa".to_owned()));
    let mut a4 = answer("a4", "ann", "Hi", "Secret");
    a4.consent = false;
    let mut a3 = answer("a3", "ann", "Bye", "See you");
    a3.messages.insert(0, Message::new(Role::System, "Be kind."));
    let answers = vec![answer("a1", "ann", "Hi", "Hello"), answer("a2", "ann", "Hi", "Good day"), a3, a4];
    records(&fold(vec![known, gold, task("t2", 2), writing("w1")], answers, events), options)
}

/// Rankings, demonstrations and prompts as lines, and what was left out.
#[track_caller]
fn check(events: &[Event], want: [&[&str]; 3], left_out: &[(Why, usize)]) {
    let made = records_of(events.to_vec(), &Options::default());
    check_lines(&made, want);
    assert_eq!(made.left_out, left_out.iter().copied().collect::<BTreeMap<_, _>>());
    reads_back(&made);
}

#[track_caller]
fn check_lines(made: &Records, want: [&[&str]; 3]) {
    assert_eq!(lines(&made.rankings), want[0]);
    assert_eq!(lines(&made.demonstrations), want[1]);
    assert_eq!(lines(&made.prompts), want[2]);
}

fn lines<T: Record>(records: &[T]) -> Vec<String> {
    records.iter().map(Record::to_line).collect()
}

/// Writes the records out and reads them as any file of records.
#[track_caller]
pub(crate) fn reads_back(made: &Records) {
    let folder = tempfile::tempdir().unwrap();
    reads_back_as::<Ranking>(folder.path(), "rankings.jsonl", &made.rankings);
    reads_back_as::<Demonstration>(folder.path(), "demonstrations.jsonl", &made.demonstrations);
    reads_back_as::<Prompt>(folder.path(), "prompts.jsonl", &made.prompts);
}

#[track_caller]
fn reads_back_as<T: Record + PartialEq + std::fmt::Debug>(folder: &std::path::Path, name: &str, records: &[T]) {
    if records.is_empty() {
        return;
    }
    let path = folder.join(name);
    std::fs::write(&path, lines(records).join("\n")).unwrap();
    let found = read::<T>(&[&path], &Limits::default()).unwrap();
    assert!(found.remarks.is_empty() && found.skipped.is_empty(), "{:?}", found.remarks);
    assert_eq!(lines(&found.records), lines(records));
    for (record, found) in records.iter().zip(&found.records) {
        let (here, there) = (record.origin(), found.origin());
        assert_eq!((here.path.file_name(), here.line), (there.path.file_name(), there.line));
    }
}

#[test]
fn a_ranking_is_a_ranking_in_the_order_of_the_task() {
    let said = "'kind':'ranking','task':'t1','shown':[2,0,1],'ranks':[2,7,2],'quality':[3,4,5],\
        'flags':[['sexual','hallucination'],[],[]],'confidence':4,'note':'hm','seconds':9";
    let want = r#"{"id":"k1","prompt":"prompt of t1","user":"user-1","use_case":"open_qa","completions":["c0","c1","c2"],"ranks":[2,1,1],"labeler":"ann","confidence":4.0,"quality":[4,5,3],"flags":[[],[],["sexual","hallucination"]]}"#;
    check(&[event("k1", 1, "ann", said)], [&[want], &[], &[]], &[]);
    // A quality that is not there for all is not there.
    let part = "'kind':'ranking','task':'t2','shown':[1,0],'ranks':[1,2],'quality':[3,null],'seconds':9";
    let want = r#"{"id":"k1","prompt":"prompt of t2","completions":["c0","c1"],"ranks":[2,1],"labeler":"bob","flags":[[],[]]}"#;
    check(&[event("k1", 1, "bob", part)], [&[want], &[], &[]], &[]);
}

#[test]
fn three_labelers_are_three_records_by_time() {
    let events = [
        ranking("a1", 9, "ann", "t2", &[1, 2]),
        ranking("k1", 1, "bob", "t2", &[2, 1]),
        ranking("k2", 1, "eve", "t2", &[1, 1]),
    ];
    let line = |key: &str, labeler: &str, ranks: &str| {
        format!(
            r#"{{"id":"{key}","prompt":"prompt of t2","completions":["c0","c1"],"ranks":{ranks},"labeler":"{labeler}","flags":[[],[]]}}"#
        )
    };
    let want = [line("k1", "bob", "[2,1]"), line("k2", "eve", "[1,1]"), line("a1", "ann", "[1,2]")];
    check(&events, [&want.each_ref().map(String::as_str), &[], &[]], &[]);
}

#[test]
fn all_bad_is_all_tied_and_flagged() {
    let said =
        "'kind':'ranking','task':'t2','shown':[1,0],'ranks':[3,3],'all_bad':true,'flags':[['violent'],[]],'seconds':9";
    let want = r#"{"id":"k1","prompt":"prompt of t2","completions":["c0","c1"],"ranks":[1,1],"labeler":"ann","flags":[["all-bad"],["violent","all-bad"]]}"#;
    check(&[event("k1", 1, "ann", said)], [&[want], &[], &[]], &[]);
}

#[test]
fn two_answers_side_by_side_are_a_ranking_of_two() {
    #[track_caller]
    fn check_choice(choice: &str, ranks: &str, flags: &str) {
        let said = format!("'kind':'pair','answers':['a2','a1'],'choice':'{choice}','seconds':9");
        let want = format!(
            r#"{{"id":"k1","prompt":"Hi","user":"ann","completions":["Good day","Hello"],"ranks":{ranks},"labeler":"ann"{flags}}}"#
        );
        check(&[event("k1", 1, "ann", &said)], [&[&want], &[], &[]], &[]);
    }
    check_choice("left", "[1,2]", "");
    check_choice("right", "[2,1]", "");
    check_choice("tie", "[1,1]", "");
    check_choice("bad", "[1,1]", r#","flags":[["all-bad"],["all-bad"]]"#);
    let secret = "'kind':'pair','answers':['a1','a4'],'choice':'left','seconds':9";
    check(&[event("k1", 1, "ann", secret)], [&[], &[], &[]], &[(Why::NoConsent, 1)]);
}

#[test]
fn an_edit_is_a_demonstration_and_a_pair() {
    let edit = |answer: &str, text: &str| {
        event("k1", 1, "ann", &format!("'kind':'edit','answer':'{answer}','text':'{text}','seconds':9"))
    };
    let pair = r#"{"id":"k1","messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Bye"}],"user":"ann","completions":["Farewell","See you"],"ranks":[1,2],"labeler":"ann","flags":[["edited"],[]]}"#;
    let demonstration = r#"{"id":"k1","messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"Bye"}],"user":"ann","completion":"Farewell"}"#;
    check(&[edit("a3", "Farewell")], [&[pair], &[demonstration], &[]], &[]);
    // Each can be left out.
    let with = |edits_as_demonstrations, edits_as_pairs| {
        records_of(vec![edit("a3", "Farewell")], &Options { edits_as_demonstrations, edits_as_pairs })
    };
    check_lines(&with(true, false), [&[], &[demonstration], &[]]);
    check_lines(&with(false, true), [&[pair], &[], &[]]);
    check_lines(&with(false, false), [&[], &[], &[]]);
    // Who changes nothing shows what is good, and prefers nothing.
    let same = r#"{"id":"k1","prompt":"Hi","user":"ann","completion":"Hello"}"#;
    check(&[edit("a1", "Hello")], [&[], &[same], &[]], &[(Why::Unchanged, 1)]);
    check(&[edit("a4", "Open")], [&[], &[], &[]], &[(Why::NoConsent, 1)]);
}

#[test]
fn a_demonstration_is_one() {
    let events = [
        event("k1", 1, "bob", "'kind':'demonstration','task':'w1','text':'Yes.','seconds':9"),
        event(
            "k2",
            2,
            "bob",
            "'kind':'demonstration','messages':[{'role':'user','content':'Why?'}],'text':'So.','seconds':9",
        ),
    ];
    let of_task = r#"{"id":"k1","prompt":"prompt of w1","completion":"Yes."}"#;
    let own = r#"{"id":"k2","prompt":"Why?","user":"bob","completion":"So."}"#;
    check(&events, [&[], &[of_task, own], &[]], &[]);
}

#[test]
fn a_lone_thumb_is_a_prompt_that_waits_those_with_a_thumb_down_first() {
    let thumb = |key: &str, at, answer: &str, up| {
        event(key, at, "ann", &format!("'kind':'thumb','answer':'{answer}','up':{up}"))
    };
    let hi = |key: &str| format!(r#"{{"id":"{key}","prompt":"Hi","user":"ann"}}"#);
    let bye = |key: &str| {
        let messages = r#"[{"role":"system","content":"Be kind."},{"role":"user","content":"Bye"}]"#;
        format!(r#"{{"id":"{key}","messages":{messages},"user":"ann"}}"#)
    };
    let (up, down) = (thumb("k1", 1, "a1", true), thumb("k3", 3, "a3", false));
    check(std::slice::from_ref(&up), [&[], &[], &[&hi("k1")]], &[]);
    check(&[up.clone(), down.clone()], [&[], &[], &[&bye("k3"), &hi("k1")]], &[]);
    // Two answers to one prompt are one prompt; one thumb down is enough.
    let three = [up.clone(), thumb("k2", 2, "a2", false), thumb("k3", 3, "a3", true)];
    check(&three, [&[], &[], &[&hi("k1"), &bye("k3")]], &[]);
    check(&[thumb("k4", 4, "a4", false)], [&[], &[], &[]], &[(Why::NoConsent, 1)]);
    // Once it is compared it need not wait.
    let pair = event("k5", 5, "ann", "'kind':'pair','answers':['a2','a1'],'choice':'tie','seconds':9");
    let made = records_of(vec![up.clone(), pair.clone()], &Options::default());
    assert_eq!((made.prompts.len(), made.rankings.len(), made.thumbs.len()), (0, 1, 1));
    assert!(!made.thumbs[0].alone, "its answer is in a pair");
    let taken_back = records_of(vec![up.clone(), pair, retract("k6", 6, "ann", "k5")], &Options::default());
    assert_eq!((taken_back.prompts.len(), taken_back.rankings.len()), (1, 0));
    // Nor when it is in the ranking queue.
    let asked = Task { messages: vec![Message::new(Role::User, "Hi")], ..task("t9", 2) };
    let state = fold(vec![asked], vec![answer("a1", "ann", "Hi", "Hello")], vec![up.clone()]);
    let made = records(&state, &Options::default());
    assert_eq!((made.prompts.len(), made.thumbs.len()), (0, 1));
    // The rows of the reward model's report.
    let made = records_of(vec![up, down], &Options::default());
    let rows: Vec<String> = made.thumbs.iter().map(|rated| serde_json::to_string(rated).unwrap()).collect();
    let first = r#"{"id":"k1","prompt":"Hi","completion":"Hello","up":true,"labeler":"ann"}"#;
    assert_eq!((rows[0].as_str(), rows.len(), made.thumbs[1].up), (first, 2, false));
}

#[test]
fn skips_gold_and_what_was_taken_back_give_no_record() {
    let gone = [ranking("k1", 1, "ann", "t2", &[1, 2]), retract("u1", 2, "ann", "k1")];
    check(&gone, [&[], &[], &[]], &[]);
    check(&[skip("k1", 1, "ann", "t1")], [&[], &[], &[]], &[]);
    check(&[ranking("k1", 1, "ann", "gold", &[1, 2])], [&[], &[], &[]], &[(Why::Gold, 1)]);
}

#[test]
fn what_compares_models_on_held_out_prompts_is_never_trained_on() {
    let asked = task("t-1", 2);
    let apart = asked.clone().held_out();
    assert_eq!((apart.id.as_str(), apart.held_out), ("h-1", true));
    let (read, torn) = read_tasks((asked.line() + &apart.line()).as_bytes()).unwrap();
    assert_eq!((read, torn), (vec![asked.clone(), apart.clone()], None));
    let said = [ranking("k1", 1, "ann", "t-1", &[1, 2]), ranking("k2", 2, "ann", "h-1", &[1, 2])];
    let made = records(&fold(vec![asked, apart], Vec::new(), said.to_vec()), &Options::default());
    assert_eq!(made.rankings.iter().map(|record| record.prompt.id.as_str()).collect::<Vec<_>>(), ["k1"]);
    assert_eq!(made.left_out, [(Why::HeldOut, 1)].into());
}

#[test]
fn what_no_record_may_hold_is_left_out_and_counted() {
    let odd = |id: &str, prompt: &str, text: &str| answer(id, "ann", prompt, text);
    let mut ends = answer("o4", "ann", "Hi", "Hello");
    ends.messages.push(Message::new(Role::Assistant, "Yes?"));
    let answers =
        vec![odd("o1", " ", "Hello"), odd("o2", "Hi", "a\0b"), odd("o3", "H\0i", "Hello"), ends, odd("o5", "Hi", "")];
    let events = answers.iter().enumerate().flat_map(|(i, answer)| {
        let id = &answer.id;
        let edit = format!("'kind':'edit','answer':'{id}','text':'Better','seconds':9");
        let thumb = format!("'kind':'thumb','answer':'{id}','up':true");
        [event(&format!("e{i}"), 1, "ann", &edit), event(&format!("k{i}"), 2, "ann", &thumb)]
    });
    let state = fold(Vec::new(), answers.clone(), events.collect());
    let made = records(&state, &Options::default());
    reads_back(&made);
    let pairs_alone = records(&state, &Options { edits_as_demonstrations: false, edits_as_pairs: true });
    assert_eq!((lines(&pairs_alone.rankings), pairs_alone.left_out), (lines(&made.rankings), made.left_out.clone()));
    // A NUL in the answer spoils what holds the answer, and an empty answer spoils nothing.
    let ids = |lines: Vec<String>| lines.iter().map(|line| line[7..9].to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(lines(&made.demonstrations)), ["e1", "e4"]);
    assert_eq!(ids(lines(&made.rankings)), ["e4"]);
    assert_eq!(made.thumbs.iter().map(|rated| rated.id.as_str()).collect::<Vec<_>>(), ["k4"]);
    assert_eq!(made.left_out, [(Why::Unusable, 8)].into());
}
