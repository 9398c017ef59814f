//! Files of lines: what is read, what is torn, what is an error.

use crate::{answer, event, ranking, retract, skip, task, writing};
use instruct_feedback::*;

fn log() -> Vec<Event> {
    vec![
        ranking("k1", 1, "ann", "t1", &[1, 2]),
        skip("k2", 2, "bob", "t1"),
        event("k3", 3, "ann", "'kind':'edit','answer':'a1','text':'zwölf\\n\\u2028\\u0085 😀','seconds':1"),
        retract("k4", 4, "ann", "k1"),
    ]
}

fn bytes(events: &[Event]) -> Vec<u8> {
    events.iter().map(Event::line).collect::<String>().into_bytes()
}

#[test]
fn a_log_cut_at_any_byte_loses_the_torn_event_alone_and_goes_on() {
    let events = log();
    let whole = bytes(&events);
    assert_eq!(read_log(&whole).unwrap(), (events.clone(), None));
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
    for cut in 0..whole.len() {
        let sound = ends.iter().filter(|end| **end <= cut).count();
        let offset = if sound == 0 { 0 } else { ends[sound - 1] };
        let torn = (offset < cut).then(|| Torn { offset, bytes: cut - offset });
        assert_eq!(read_log(&whole[..cut]).unwrap(), (events[..sound].to_vec(), torn), "cut at {cut}");
        // The caller cuts, and appends what was not acknowledged.
        let repaired = [&whole[..torn.map_or(cut, |torn| torn.offset)], &bytes(&events[sound..])].concat();
        assert_eq!(repaired, whole);
    }
}

#[test]
fn an_end_that_is_no_json_is_torn_and_a_middle_is_an_error() {
    #[track_caller]
    fn check(before: &str, after: &[u8], want: Result<Option<usize>, &str>) {
        let file = [before.as_bytes(), after].concat();
        match (read_log(&file), want) {
            (Ok((events, torn)), Ok(bytes)) => {
                assert_eq!(torn, bytes.map(|bytes| Torn { offset: before.len(), bytes }));
                assert_eq!(events.len(), before.lines().count());
            }
            (Err(error), Err(want)) => assert_eq!(error.to_string(), want),
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
    let line = log()[0].line();
    let two = line.clone() + &log()[1].line();
    check("", b"", Ok(None));
    check(&two, b"", Ok(None));
    check(&two, b"{\"v\":1,\"key\"", Ok(Some(12)));
    check(&two, b"{\"v\":1,\"key\"\n", Ok(Some(13)));
    // What a file system may leave after a power cut.
    check(&two, &[0; 512], Ok(Some(512)));
    check(&two, b"\xFF\xFE\n", Ok(Some(3)));
    check(&two, b"\n", Ok(Some(1)));
    let after = |broken: &str| [broken.as_bytes(), line.as_bytes()].concat();
    check(&two, &after("{\"v\":1,\"key\"\n"), Err("line 3: not JSON at byte 12: EOF while parsing an object"));
    check("", &after("\n"), Err("line 1: not JSON at byte 0: EOF while parsing a value"));
    // Whole JSON is not torn, whatever it says.
    check(&line, b"{}\n", Err("line 2: `v`: missing"));
    check(&line, b"[]\n", Err("line 2: expected an object, found an array"));
    check(&line, b"{\"v\":1,\"v\":1}\n", Err("line 2: key `v` occurs twice"));
    check(&line, b"{\"v\":1,\"key\":\"k\",\"at\":1,\"by\":\"ann\"}\n", Err("line 2: `kind`: missing"));
    check(&line, b"{\"v\":0}\n", Err("line 2: `v`: 0 must be 1"));
    // Of a newer line nothing is guessed.
    let newer = "line 2: written by a newer version of this program (lines of version 2; this one reads up to 1)";
    check(&line, b"{\"v\":2,\"mood\":\"good\"}\n", Err(newer));
    let unknown = line.replace("\"seconds\":10", "\"seconds\":10,\"mood\":\"good\"");
    check(&line, unknown.as_bytes(), Err("line 2: `mood`: no such field"));
}

#[test]
fn tasks_and_answers_read_back() {
    let mut gold = task("t2", 3);
    gold.gold = Some(vec![1, 3, 2]);
    gold.user = Some("user-1".to_owned());
    gold.use_case = Some("open_qa".to_owned());
    gold.completions[2].models.push("sft".to_owned());
    gold.completions[0].text.clear();
    let tasks = vec![task("t1", 2), gold, writing("t3")];
    let lines: String = tasks.iter().map(Task::line).collect();
    assert_eq!(read_tasks(lines.as_bytes()).unwrap(), (tasks, None));
    let first = r#"{"v":1,"id":"t1","kind":"rank","messages":[{"role":"user","content":"prompt of t1"}],"completions":[{"text":"c0","models":["ppo"]},{"text":"c1","models":["ppo"]}]}"#;
    assert_eq!(lines.lines().next(), Some(first));

    // Whatever was served reads back, sound or not.
    let mut odd = answer("a2", "bob", " ", "\0\u{202E}");
    odd.consent = false;
    odd.messages.push(instruct_data::Message::new(instruct_data::Role::Assistant, ""));
    let answers = vec![answer("a1", "ann", "Hi", "Hello\nthere"), odd];
    let lines: String = answers.iter().map(Answer::line).collect();
    assert_eq!(read_answers(lines.as_bytes()).unwrap(), (answers, None));
    let first = r#"{"v":1,"id":"a1","model":"ppo","messages":[{"role":"user","content":"Hi"}],"text":"Hello\nthere","seed":18446744073709551615,"labeler":"ann","consent":true}"#;
    assert_eq!(lines.lines().next(), Some(first));
}

#[test]
fn tasks_that_cannot_be_asked_are_refused() {
    #[track_caller]
    fn check(change: impl Fn(&mut Task), want: &str) {
        let mut changed = task("t1", 2);
        change(&mut changed);
        let error = read_tasks(changed.line().as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("line 1: {want}"));
        let refusal = State::new(Settings::default()).add_task(changed).unwrap_err();
        assert_eq!(refusal.to_string(), want);
    }
    check(|task| task.completions.truncate(1), "`completions`: 1 values, where two or more belong");
    check(|task| task.kind = TaskKind::Demonstrate, "`completions`: 2 values, where none belong");
    check(|task| task.gold = Some(vec![1]), "`gold`: 1 values, where 2 belong");
    check(|task| task.messages.clear(), "`messages`: empty");
    check(|task| task.messages[0].content.clear(), "`messages[0].content`: empty");
    let ids = "1 to 64 letters, digits, dots, underscores and hyphens";
    check(|task| task.id = "../t".to_owned(), &format!("`id`: `../t` must be {ids}"));
    let mut gold = writing("t1");
    gold.gold = Some(Vec::new());
    assert!(State::new(Settings::default()).add_task(gold).is_err(), "nothing can be right of what is yet to write");
}
