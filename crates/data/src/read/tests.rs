use super::*;
use crate::{
    origin::Origin,
    record::{Content, Demonstration, PretrainText, Prompt, Ranking, Role, pairs},
};
use proptest::prelude::*;
use std::{io::Write, path::PathBuf};

/// A file of the shared folder, which `INSTRUCT_SHARED` names or which stands beside the workspace.
/// Returns `None`, and prints that the test is skipped, where there is no such file.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INSTRUCT_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent; set INSTRUCT_SHARED", path.display());
    None
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read_bytes<T: Record>(name: &str, bytes: &[u8]) -> Result<Read<T>, String> {
    let (folder, path) = file(name, bytes);
    let prefix = format!("{}/", folder.path().display());
    read(&[path], &Limits::default()).map_err(|e| e.to_string().replace(&prefix, ""))
}

/// Each line of `want` is one problem, in order.
#[track_caller]
fn check_refused<T: Record + std::fmt::Debug>(name: &str, bytes: impl AsRef<[u8]>, want: &[&str]) {
    let message = read_bytes::<T>(name, bytes.as_ref()).unwrap_err();
    let got: Vec<&str> = message.lines().skip(1).map(str::trim).collect();
    assert_eq!(got, want, "{message}");
}

#[track_caller]
fn check_line<T: Record + std::fmt::Debug>(line: &str, want: &str) {
    check_refused::<T>("f.jsonl", line, &[&format!("f.jsonl:1: {want}")]);
}

#[track_caller]
fn check_ranks(ranks: &str, accepted: bool) {
    let line = format!(r#"{{"prompt":"p","completions":["a","b","c","d"],"ranks":{ranks}}}"#);
    let read = read_bytes::<Ranking>("f.jsonl", line.as_bytes());
    assert_eq!(read.is_ok(), accepted, "{ranks}: {read:?}");
}

#[test]
fn every_unusable_line_says_what_and_where() {
    check_line::<Prompt>(
        r#"{"prompt": }"#,
        "malformed JSON at column 12 (expected value); each line must be one JSON value",
    );
    check_line::<Prompt>(
        r#"{"id":1,"prompt":"a","id":2}"#,
        "malformed JSON at column 25 (key `id` occurs twice); each line must be one JSON value",
    );
    check_line::<Prompt>(
        r#"{"prompt":"a"} x"#,
        "malformed JSON at column 16 (trailing characters); each line must be one JSON value",
    );
    check_refused::<Prompt>(
        "f.jsonl",
        b"{\"prompt\":\"a\xFF\"}",
        &["f.jsonl:1: invalid UTF-8 at byte 13; save the file as UTF-8"],
    );
    check_refused::<Prompt>("f.jsonl", b"\xFF\xFE{\0}\0", &["f.jsonl:1: the file is UTF-16; save it as UTF-8"]);
    check_line::<Prompt>("{\"prompt\":\"a\0\"}", "holds a NUL character; remove it");
    check_line::<Prompt>(r#"{"prompt":"a\u0000b"}"#, "field `prompt` holds a NUL character; remove it");
    check_line::<Prompt>("", "the file holds no record; give it at least one line");
    check_line::<Prompt>("\n \r\n", "the file holds no record; give it at least one line");
    check_line::<Prompt>(
        r#"{"question":"a","answer":"b"}"#,
        "no known record has this shape (keys `answer`, `question`); see the record formats of instruct-data's `read`",
    );
    check_line::<Prompt>(
        "17",
        "no known record has this shape (an integer); see the record formats of instruct-data's `read`",
    );
    check_line::<Ranking>(r#"{"text":"a"}"#, "a text file holds no rankings; name another file for rankings");
}

#[test]
fn every_unusable_field_says_what_and_where() {
    check_line::<Prompt>(r#"{"id":"a","prompt":null}"#, "field `prompt` is missing; add it");
    check_line::<Demonstration>(r#"{"completion":"a"}"#, "field `prompt` is missing; add it");
    check_line::<Ranking>(r#"{"completions":["a","b"],"ranks":[1,2]}"#, "field `prompt` is missing; add it");
    check_line::<Prompt>(r#"{"prompt":" "}"#, "field `prompt` is empty; fill it or remove the record");
    check_line::<Prompt>(
        r#"{"prompt":3}"#,
        "field `prompt` is an integer; it must be a string or an array of messages",
    );
    check_line::<Prompt>(r#"{"prompt":"a","user":["u"]}"#, "field `user` is an array; it must be a string");
    check_line::<Prompt>(r#"{"messages":[]}"#, "field `messages` is empty; fill it or remove the record");
    check_line::<Prompt>(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"bot","content":"b"}]}"#,
        "field `messages[1].role` is `bot`; it must be `system`, `user` or `assistant`, or a further voice that templates know: \
         `tool`, `developer`, `function`, `ipython`, `observation`, `environment`, `context`",
    );
    check_line::<Prompt>(
        r#"{"messages":[{"role":"system","content":"a"}]}"#,
        "field `messages` must end with the user; cut or complete the conversation",
    );
    check_line::<Prompt>(r#"{"messages":[{"role":"user"}]}"#, "field `messages[0].content` is missing; add it");
    check_line::<Prompt>(r#"{"messages":["hi"]}"#, "field `messages[0]` is a string; it must be an object");
    check_line::<Demonstration>(r#"{"prompt":"a"}"#, "field `completion` is missing; add it");
    check_line::<Demonstration>(
        r#"{"prompt":"a","completion":""}"#,
        "field `completion` is empty; fill it or remove the record",
    );
    check_line::<Demonstration>(
        r#"{"prompt":"a","completion":[{"role":"user","content":"b"}]}"#,
        "field `completion` is an array; it must be a string or one message of the assistant",
    );
    check_line::<Demonstration>(
        r#"{"messages":[{"role":"user","content":"a"}]}"#,
        "field `messages` must end with the assistant; cut or complete the conversation",
    );
    check_line::<PretrainText>(r#"{"text":7}"#, "field `text` is an integer; it must be a string");
}

#[test]
fn every_unusable_ranking_says_what_and_where() {
    let ranked = |rest: &str| format!(r#"{{"prompt":"p","completions":["a","b"],{rest}}}"#);
    let check = |rest: &str, want: &str| check_line::<Ranking>(&ranked(rest), want);
    check(r#""ranks":[1,2,3]"#, "field `ranks` has 3 entries for 2 completions; give one for each");
    check(r#""ranks":[1,1.5]"#, "field `ranks[1]` is a fraction; it must be an integer");
    check(r#""labeler":"l""#, "field `ranks` is missing; add it");
    let advice = "ranks start at 1 and count up, ties either as 1,2,2,3 or as 1,2,2,4";
    check(r#""ranks":[0,1]"#, &format!("field `ranks` holds [0, 1]; {advice}"));
    check(r#""ranks":[3,1]"#, &format!("field `ranks` holds [1, 3]; {advice}"));
    check(r#""ranks":[1,2],"confidence":"high""#, "field `confidence` is a string; it must be a number");
    check(r#""ranks":[1,2],"quality":[7,8]"#, "field `quality[1]` is 8; it must be between 1 and 7");
    check(r#""ranks":[1,2],"quality":[7]"#, "field `quality` has 1 entries for 2 completions; give one for each");
    check(r#""ranks":[1,2],"flags":["x",[]]"#, "field `flags[0]` is a string; it must be an array of strings");
    check_line::<Ranking>(
        r#"{"prompt":"p","completions":["a"],"ranks":[1]}"#,
        "field `completions` is one completion; it must be two or more",
    );
    check_line::<Ranking>(
        r#"{"prompt":"p","completions":["a",2],"ranks":[1,2]}"#,
        "field `completions[1]` is an integer; it must be a string",
    );
    check_line::<Ranking>(r#"{"prompt":"p","chosen":"a"}"#, "field `rejected` is missing; add it");
    check_line::<Ranking>(r#"{"chosen":[{"role":"assistant","content":"b"}]}"#, "field `rejected` is missing; add it");
    check_line::<Ranking>(
        r#"{"chosen":"no transcript","rejected":"\n\nHuman: a\n\nAssistant: b"}"#,
        "field `chosen` must end with the assistant; cut or complete the conversation",
    );
    check_line::<Ranking>(
        r#"{"idx":1,"instruction":"i","input":"","response1":"a","response2":"b","annotator1":3,"annotator2":1,"annotator3":0}"#,
        "field `annotator1` is 3; it must be 0 (tie), 1 or 2",
    );
}

#[test]
fn ranks_count_up_densely_or_as_in_competitions() {
    check_ranks("[1,2,3,4]", true);
    check_ranks("[4,2,1,3]", true);
    check_ranks("[1,1,1,1]", true);
    check_ranks("[1,2,2,3]", true);
    check_ranks("[1,2,2,4]", true);
    check_ranks("[1,1,3,3]", true);
    check_ranks("[1,1,2,2]", true);
    check_ranks("[2,2,2,2]", false);
    check_ranks("[1,2,3,5]", false);
    check_ranks("[1,1,2,4]", false);
    check_ranks("[1,1,3,4]", true);
    check_ranks("[1,2,3,-4]", false);
}

#[test]
fn all_problems_are_found_before_anything_is_refused() {
    let bytes = "{\"id\":\"a\",\"prompt\":\"x\"}\r\n{\r\n\n{\"id\":[],\"prompt\":\"\",\"user\":{}}\n{\"id\":\"a\",\"prompt\":\"y\"}\n";
    check_refused::<Prompt>(
        "f.jsonl",
        bytes,
        &[
            "f.jsonl:2: malformed JSON at column 1 (EOF while parsing an object); each line must be one JSON value",
            "f.jsonl:4: field `prompt` is empty; fill it or remove the record",
            "f.jsonl:4: field `id` is an array; it must be a string",
            "f.jsonl:4: field `user` is an object; it must be a string",
            "f.jsonl:5: field `id` names another prompt at f.jsonl:1; give each prompt an id of its own",
        ],
    );
    check_refused::<Prompt>(
        "f.jsonl",
        "{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"a\",\"prompt\":\"x\"}\n",
        &["f.jsonl:2: field `id` repeats the record at f.jsonl:1; remove one of them"],
    );
    let many = "{}x\n".repeat(30);
    let message = read_bytes::<Prompt>("f.jsonl", many.as_bytes()).unwrap_err();
    assert!(message.starts_with("30 problems in the data\n"), "{message}");
    assert!(message.ends_with("and 10 more"), "{message}");
    assert_eq!(message.lines().count(), 22);
}

#[test]
fn problems_of_all_files_come_together() {
    let (_one, bad) = file("bad.jsonl", b"{");
    let (_two, good) = file("good.jsonl", br#"{"prompt":"a"}"#);
    let (_three, worse) = file("worse.jsonl", b"{}\n{}");
    match read::<Prompt>(&[&bad, &good, &worse], &Limits::default()) {
        Err(Error::Problems(Problems(all))) => {
            let places: Vec<_> = all.iter().map(|e| (&*e.origin.path, e.origin.line)).collect();
            assert_eq!(places, [(bad.as_path(), 1), (worse.as_path(), 1), (worse.as_path(), 2)]);
        }
        other => panic!("{other:?}"),
    }
    let missing = read::<Prompt>(&["nowhere/f.jsonl"], &Limits::default()).unwrap_err().to_string();
    assert!(
        missing.starts_with("nowhere/f.jsonl: ") && missing.ends_with("check the path and its permissions"),
        "{missing}"
    );
}

/// `cat` leaves the mark of each file that a Windows editor saved at the start of a line.
#[test]
fn byte_order_marks_before_lines_say_nothing() {
    let texts = |name: &str, text: &str| -> Vec<(usize, String)> {
        let records = read_bytes::<PretrainText>(name, text.as_bytes()).unwrap().records;
        records.into_iter().map(|record| (record.origin.line, record.text)).collect()
    };
    let (a, b) = ("a\u{FEFF}b".to_owned(), "\u{FEFF}c".to_owned());
    let lines = "\u{FEFF}{\"text\":\"a\u{FEFF}b\"}\n\u{FEFF}\r\n\u{FEFF}\u{FEFF}{\"text\":\"\u{FEFF}c\"}\r\n";
    assert_eq!(texts("f.jsonl", lines), [(1, a), (3, b)], "a mark inside a string stays");
    let wiki = "\u{FEFF} = A = \n\n x\u{FEFF}y \n\u{FEFF} = B = \n";
    let articles = [(1, " = A = \n\n x\u{FEFF}y \n".to_owned()), (4, " = B = \n".to_owned())];
    assert_eq!(texts("f.txt", wiki), articles);
    // Only the start of a file tells that it is UTF-16.
    check_refused::<Prompt>(
        "f.jsonl",
        b"{\"prompt\":\"a\"}\n\xFF\xFE{\0}\0",
        &["f.jsonl:2: invalid UTF-8 at byte 1; save the file as UTF-8"],
    );
}

#[test]
fn arrays_keep_their_line_numbers() {
    let bytes = "\u{FEFF}[\n {\"prompt\":\"a\"},\n\n {\"prompt\":\n  \"b\"}\n ,{\"prompt\":1}]\n";
    check_refused::<Prompt>(
        "f.json",
        bytes,
        &["f.json:6: field `prompt` is an integer; it must be a string or an array of messages"],
    );
    check_refused::<Prompt>("f.json", " [ ] ", &["f.json:1: the file holds no record; give it at least one line"]);
    check_refused::<Prompt>(
        "f.json",
        "[{\"prompt\":\"a\"}\n {\"prompt\":\"b\"}]",
        &["f.json:2: malformed JSON at column 2 (expected `,` or `]`); each line must be one JSON value"],
    );
    check_refused::<Prompt>(
        "f.json",
        "[{\"prompt\":\"a\"}] x",
        &["f.json:1: malformed JSON at column 18 (expected nothing after the array); each line must be one JSON value"],
    );
    check_refused::<Prompt>(
        "f.json",
        "[{\"prompt\":\"a\"},\n",
        &["f.json:2: malformed JSON at column 1 (expected a value); each line must be one JSON value"],
    );
}

#[test]
fn compressed_files_are_recognised_by_their_bytes() {
    let plain = br#"{"prompt":"hello"}"#;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(plain).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(&plain[..], 3).unwrap();
    for (name, bytes) in [
        ("a.jsonl", plain.to_vec()),
        ("a.jsonl.gz", gz.clone()),
        ("a.jsonl.zst", zst.clone()),
        ("no-extension", gz.clone()),
        ("no-extension", zst.clone()),
    ] {
        let read = read_bytes::<Prompt>(name, &bytes).unwrap();
        assert_eq!(read.records[0].content, Content::Text("hello".to_owned()));
        assert_eq!(read.records[0].id, format!("{}-1", name.split('.').next().unwrap()));
    }
    for (name, bytes) in [
        ("a.gz", plain.to_vec()),
        ("a.zst", plain.to_vec()),
        ("a.gz", gz[..gz.len() - 9].to_vec()),
        ("a.zst", zst[..zst.len() - 2].to_vec()),
    ] {
        let message = read_bytes::<Prompt>(name, &bytes).unwrap_err();
        assert!(message.starts_with(name) && message.ends_with("fetch the file again"), "{message}");
    }
}

#[test]
fn limits_hold_before_memory_is_spent() {
    let limits = Limits { line: 64, whole: 80, file: 4096, ratio: 1 << 20, ..Limits::default() };
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(b'\n'), 1 << 24), 3).unwrap();
    let (_folder, path) = file("bomb.zst", &bomb);
    let refused = read::<Prompt>(&[path], &limits).unwrap_err();
    assert!(matches!(refused, Error::TooLarge { limit: 4096, .. }), "{refused}");
    let long = format!("{{\"prompt\":\"{}\"}}\n{{\"prompt\":\"b\"}}", "a".repeat(100));
    let (_folder, path) = file("long.jsonl", long.as_bytes());
    let message = read::<Prompt>(&[path], &limits).unwrap_err().to_string();
    assert!(message.contains("long.jsonl:1: the line is longer than 64 bytes; split the record"), "{message}");
    assert!(message.starts_with("1 problem in the data"), "the second line is usable: {message}");
    let (_folder, path) = file("long.txt", long.as_bytes());
    let message = read::<PretrainText>(&[path], &limits).unwrap_err().to_string();
    assert!(message.ends_with("long.txt:1: the document is longer than 80 bytes; split it"), "{message}");
}

#[test]
fn no_limit_is_a_limit_too() {
    let most = usize::MAX;
    let limits = Limits { line: most, values: most, spread: most, whole: most, file: u64::MAX, ..Limits::default() };
    for (name, bytes) in [("r.jsonl", "{\"text\":\"a\"}\n"), ("r.json", "[{\"text\":\"a\"}]"), ("r.txt", "a")] {
        let (_folder, path) = file(name, bytes.as_bytes());
        assert_eq!(read::<PretrainText>(&[path], &limits).unwrap().records[0].text, "a", "{name}");
    }
}

/// One record of every shape of TRL's, next to what it means.
#[test]
fn shapes_of_others_become_the_houses() {
    let ranking = |line: &str| read_bytes::<Ranking>("f.jsonl", line.as_bytes()).unwrap().records.remove(0);
    let plain = ranking(r#"{"prompt":"p","chosen":"good","rejected":"bad"}"#);
    assert_eq!((plain.completions.join("|").as_str(), plain.ranks.as_slice()), ("good|bad", &[1, 2][..]));
    let conversational = ranking(
        r#"{"prompt":[{"role":"user","content":"p"}],"chosen":[{"role":"assistant","content":"good"}],"rejected":[{"role":"assistant","content":"bad"}]}"#,
    );
    assert_eq!(conversational.prompt.content.texts(), ["p"]);
    assert_eq!(conversational.completions, plain.completions);
    let implicit = ranking(
        r#"{"chosen":[{"role":"user","content":"p"},{"role":"assistant","content":"good"}],"rejected":[{"role":"user","content":"p"},{"role":"assistant","content":"bad"}]}"#,
    );
    assert_eq!(implicit.prompt.content, conversational.prompt.content);
    assert_eq!(implicit.completions, plain.completions);

    let demonstration = |line: &str| read_bytes::<Demonstration>("f.jsonl", line.as_bytes()).unwrap().records.remove(0);
    let messages = demonstration(
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"p"},{"role":"assistant","content":"c"}]}"#,
    );
    assert_eq!((messages.prompt.content.texts(), messages.completion.as_str()), (vec!["s", "p"], "c"));
    let conversational = demonstration(
        r#"{"prompt":[{"role":"user","content":"p"}],"completion":[{"role":"assistant","content":"c"}]}"#,
    );
    assert_eq!((conversational.prompt.content.texts(), conversational.completion.as_str()), (vec!["p"], "c"));
    let prompt = read_bytes::<Prompt>("q.jsonl", br#"{"question_id":8,"category":"math","turns":["1+1?","why?"]}"#);
    let prompt = prompt.unwrap().records.remove(0);
    assert_eq!(
        (prompt.id.as_str(), prompt.use_case.as_deref(), prompt.content.texts()),
        ("8", Some("math"), vec!["1+1?"])
    );
}

/// What a record becomes, as a line of the house format without the id. `case` is its row in
/// docs/compatibility.md.
#[track_caller]
fn check_shape<T: Record + std::fmt::Debug>(case: &str, line: &str, want: &str) {
    let records =
        read_bytes::<T>("f.jsonl", line.as_bytes()).unwrap_or_else(|problem| panic!("{line}: {problem}")).records;
    let lines: Vec<String> = records.iter().map(|record| record.to_line().replace(r#""id":"f-1","#, "")).collect();
    let differing = lines.iter().filter(|line| *line != want).count() + lines.len().abs_diff(1);
    instruct_claims::holds("text/records", case, differing as f64, 0.0);
    assert_eq!(lines, [want], "{case}: {line}");
}

#[test]
fn preferences_are_read_in_every_form_that_trl_has() {
    let check = check_shape::<Ranking>;
    // As in TRL's `extract_prompt` (commit 00cc012): the space goes with the completions.
    let blue = r#"{"prompt":"The sky is","completions":[" blue."," green."],"ranks":[1,2]}"#;
    check(
        "TRL texts without a prompt, the space to the completions",
        r#"{"chosen":"The sky is blue.","rejected":"The sky is green."}"#,
        blue,
    );
    check(
        "TRL one text begins the other",
        r#"{"chosen":"One, two","rejected":"One, two, three"}"#,
        r#"{"prompt":"One, tw","completions":["o","o, three"],"ranks":[1,2]}"#,
    );
    check_line::<Ranking>(
        r#"{"chosen":"Yes","rejected":"No"}"#,
        "field `chosen` begins otherwise than `rejected`, so the record has no prompt; add `prompt`",
    );
    let talk = |last: &str| format!(r#"[{{"role":"user","content":"Q?"}},{{"role":"assistant","content":"{last}"}}]"#);
    let want = r#"{"messages":[{"role":"user","content":"Q?"}],"completions":["a","b"],"ranks":[1,2]}"#;
    let (a, b) = (talk("a"), talk("b"));
    check("TRL conversations without a prompt", &format!(r#"{{"chosen":{a},"rejected":{b}}}"#), want);
    // The prompt as a text beside whole conversations, as UltraFeedback has it.
    check("TRL a text beside whole conversations", &format!(r#"{{"prompt":"Q?","chosen":{a},"rejected":{b}}}"#), want);
    let messages = r#""prompt":[{"role":"user","content":"Q?"}]"#;
    check("TRL messages beside whole conversations", &format!(r#"{{{messages},"chosen":{a},"rejected":{b}}}"#), want);
    let one = |said: &str| format!(r#"[{{"role":"assistant","content":"{said}"}}]"#);
    check(
        "TRL messages, and one message on each side",
        &format!(r#"{{{messages},"chosen":{},"rejected":{}}}"#, one("a"), one("b")),
        want,
    );
    check(
        "TRL texts",
        r#"{"prompt":"p","chosen":"a","rejected":"b"}"#,
        r#"{"prompt":"p","completions":["a","b"],"ranks":[1,2]}"#,
    );
    check_line::<Ranking>(
        &format!(r#"{{"prompt":"P?","chosen":{a},"rejected":{b}}}"#),
        "field `chosen` is a conversation without the words of `prompt`; make them agree, or remove one",
    );
    // A column `turns` that counts, and ranks as pandas writes them.
    check(
        "distilabel a column `turns` that counts",
        r#"{"turns":1,"prompt":"p","chosen":"a","rejected":"b"}"#,
        r#"{"prompt":"p","completions":["a","b"],"ranks":[1,2]}"#,
    );
    check(
        "rankings with ranks as fractions and blank fields",
        r#"{"prompt":"p","completions":["a","b"],"ranks":[2.0,1.0],"user":"","use_case":" ","labeler":"","quality":[]}"#,
        r#"{"prompt":"p","completions":["a","b"],"ranks":[2,1]}"#,
    );
    check(
        "ShareGPT preferences",
        r#"{"conversations":[{"from":"human","value":"Q?"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#,
        want,
    );
}

#[test]
fn what_stands_beside_a_prompt_becomes_part_of_it() {
    let check = check_shape::<Demonstration>;
    check(
        "Alpaca with input and output",
        r#"{"instruction":"Translate.","input":"a dog","output":"un chien"}"#,
        r#"{"prompt":"Translate.\na dog","completion":"un chien"}"#,
    );
    check(
        "Dolly with context and response",
        r#"{"instruction":"Say.","context":"It rains.","response":"Rain."}"#,
        r#"{"prompt":"Say.\nIt rains.","completion":"Rain."}"#,
    );
    check(
        "Alpaca with system and history",
        r#"{"prompt":"c","system":"s","history":[["a","b"]],"completion":"d"}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":"d"}"#,
    );
    // An empty system message stays: a template may write it.
    check(
        "messages with an empty system message",
        r#"{"messages":[{"role":"system","content":""},{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"system","content":""},{"role":"user","content":"a"}],"completion":"b"}"#,
    );
    check(
        "ShareGPT conversations",
        r#"{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"}],"completion":"b"}"#,
    );
    check(
        "messages with content in parts and a tool's turn",
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"tool","content":"4"},{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"role":"tool","content":"4"}],"completion":"b"}"#,
    );
    let refused = "changes what is answered and is not read; write it as text, or remove it";
    check_line::<Demonstration>(
        r#"{"prompt":"a","completion":"b","images":["x.png"]}"#,
        &format!("field `images` {refused}"),
    );
    check_line::<Demonstration>(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","tool_calls":[{}]}]}"#,
        &format!("field `messages[1].tool_calls` {refused}"),
    );
    check_line::<Demonstration>(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"history":[["x","y"]]}"#,
        "field `history` has no place beside `messages`; write it as a message there, or remove it",
    );
}

#[track_caller]
fn check_remarks<T: Record + std::fmt::Debug>(lines: &str, want: &str) {
    let read = read_bytes::<T>("f.jsonl", lines.as_bytes()).unwrap();
    let remarks: Vec<String> = read.remarks.iter().map(ToString::to_string).collect();
    assert!(remarks.len() == 1 && remarks[0].ends_with(&format!("f.jsonl: {want}")), "{remarks:?}");
}

#[test]
fn nothing_is_left_out_without_a_word() {
    let line = r#"{"prompt":"a","completion":"b","score":1,"source":"x","tools":[],"model":null}"#;
    check_remarks::<Demonstration>(&format!("{line}\n{line}"), "not used: 2 `score`, 2 `source`");
    check_remarks::<Prompt>(r#"{"turns":["a","b","c"]}"#, "not used: 2 later turns of questions");
    check_remarks::<Demonstration>(
        r#"{"messages":[{"role":"user","content":"a","name":"x"},{"role":"assistant","content":"b","name":"y"}]}"#,
        "not used: 2 `messages[].name`",
    );
    // What is said twice is used once.
    check_remarks::<Demonstration>(
        r#"{"prompt":"a","instruction":"b","completion":"c","output":"d","system":"e","system_prompt":"f"}"#,
        "part of the prompt: 1 `system`; not used: 1 `instruction`, 1 `output`, 1 `system_prompt`",
    );
    check_remarks::<Demonstration>(
        r#"{"prompt":"a","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        "not used: 1 `prompt`",
    );
    check_remarks::<Ranking>(
        r#"{"prompt":"a","chosen":"b","rejected":"c","labeler":"l","response":"b"}"#,
        "not used: 1 `labeler`, 1 `response`",
    );
    check_remarks::<Demonstration>(
        r#"{"prompt":"a","system":"s","history":[["x","y"]],"input":"i","completion":"b"}"#,
        "part of the prompt: 1 `history`, 1 `input`, 1 `system`",
    );
    check_remarks::<Ranking>(
        r#"{"chosen":"\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: c","rejected":"\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: d"}"#,
        "not used: 1 empty turns of transcripts",
    );
    // A transcript has no place for further words.
    check_line::<Ranking>(
        r#"{"system":"s","chosen":"\n\nHuman: a\n\nAssistant: b","rejected":"\n\nHuman: a\n\nAssistant: c"}"#,
        "field `system` changes what is answered and is not read; write it as text, or remove it",
    );
}

#[test]
fn transcripts_keep_what_stands_before_their_first_mark() {
    let check = check_shape::<Ranking>;
    let three = |system: &str| {
        format!(
            r#"{{"messages":[{system}{{"role":"user","content":"a"}},{{"role":"assistant","content":"b"}},{{"role":"user","content":"c"}}],"completions":["d","e"],"ranks":[1,2]}}"#
        )
    };
    // Trimmed, as sets are that went through a table.
    check(
        "hh-rlhf trimmed",
        r#"{"chosen":"Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d","rejected":"Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"}"#,
        &three(""),
    );
    check(
        "hh-rlhf words before the first turn",
        r#"{"chosen":"Be kind.\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d","rejected":"Be kind.\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"}"#,
        &three(r#"{"role":"system","content":"Be kind."},"#),
    );
    check(
        "hh-rlhf transcripts",
        r#"{"chosen":"\n\nHuman: a\n\nAssistant: b","rejected":"\n\nHuman: a\n\nAssistant:"}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"completions":["b",""],"ranks":[1,2]}"#,
    );
    let last = r#"{"chosen":"\n\nHuman: a\n\nAssistant: b\n\nHuman: bye","rejected":"\n\nHuman: a\n\nAssistant: c"}"#;
    let read = read_bytes::<Ranking>("f.jsonl", last.as_bytes()).unwrap();
    assert!(read.records.is_empty());
    assert!(
        read.skipped[0]
            .to_string()
            .ends_with("field `chosen` must end with the assistant; cut or complete the conversation")
    );
}

#[test]
fn trees_and_lists_of_tasks_become_records() {
    check_shape::<Ranking>(
        "OASST trees",
        r#"{"message_tree_id":"t","prompt":{"message_id":"m","role":"prompter","text":"a","replies":[
        {"message_id":"x","role":"assistant","text":"b","rank":1},{"message_id":"y","role":"assistant","text":"c","rank":0}]}}"#
            .replace('\n', "")
            .as_str(),
        r#"{"id":"m","messages":[{"role":"user","content":"a"}],"user":"t","completions":["b","c"],"ranks":[2,1]}"#,
    );
    check_shape::<Demonstration>(
        "self-instruct tasks",
        r#"{"id":"s","instruction":"a","instances":[{"input":"b","output":"c"}]}"#,
        r#"{"id":"s","prompt":"a\n\nb","completion":"c"}"#,
    );
    check_shape::<Prompt>(
        "questions the first turn",
        r#"{"question_id":8,"category":"math","turns":["1+1?","why?"]}"#,
        r#"{"id":"8","prompt":"1+1?","use_case":"math"}"#,
    );
    check_shape::<Prompt>("JSON strings", r#""a""#, r#"{"prompt":"a"}"#);
    let pandalm = r#"{"idx":3,"instruction":"a","input":"","response1":"b","response2":"c","annotator1":2,"annotator2":2,"annotator3":2}"#;
    let read = read_bytes::<Ranking>("f.jsonl", pandalm.as_bytes()).unwrap().records;
    let voted = |name: &str| (Some(name.to_owned()), vec![2, 1]);
    let votes: Vec<_> = read.into_iter().map(|ranking| (ranking.labeler, ranking.ranks)).collect();
    let differing = votes != ["annotator1", "annotator2", "annotator3"].map(voted);
    instruct_claims::holds("text/records", "PandaLM a record for each annotator", f64::from(u8::from(differing)), 0.0);
}

#[test]
fn ids_may_begin_anew_in_every_file() {
    let one = file("one.jsonl", br#"{"id":0,"prompt":"a"}"#);
    let two = file("two.jsonl", br#"{"id":0,"prompt":"b"}"#);
    assert_eq!(read::<Prompt>(&[one.1, two.1], &Limits::default()).unwrap().records.len(), 2);
}

#[test]
fn transcripts_that_disagree_are_left_out_and_reported() {
    let one = r#"{"chosen":"\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: e","rejected":"\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:"}"#;
    let two = r#"{"chosen":"\n\nHuman: a\n\nAssistant: b","rejected":"\n\nHuman: A\n\nAssistant: c"}"#;
    let read = read_bytes::<Ranking>("hh.jsonl", format!("{one}\n{two}\n").as_bytes()).unwrap();
    let turns: Vec<(Role, &str)> = match &read.records[0].prompt.content {
        Content::Messages(talk) => talk.messages.iter().map(|m| (m.role.clone(), m.content.as_str())).collect(),
        Content::Text(_) => panic!("a transcript is a conversation"),
    };
    assert_eq!(turns, [(Role::User, "a"), (Role::Assistant, "b\n\nc"), (Role::User, "d")]);
    assert_eq!(read.records[0].completions, ["e", ""]);
    assert_eq!(read.skipped.len(), 1);
    let reason = "hh.jsonl:2: field `rejected` does not continue the same prompt as `chosen`; remove the record";
    assert!(read.skipped[0].to_string().ends_with(reason), "{}", read.skipped[0]);
}

#[test]
fn plain_text_is_one_document_or_one_per_article() {
    let texts = |text: &str| -> Vec<(usize, String)> {
        let read = read_bytes::<PretrainText>("t.txt", text.as_bytes()).unwrap();
        read.records.into_iter().map(|r| (r.origin.line, r.text)).collect()
    };
    assert_eq!(texts("a\n= b =\nc\n"), [(1, "a\n= b =\nc\n".to_owned())]);
    assert_eq!(
        texts(" \n = A = \n \n x \n = = s = = \n y\n = B = \n z"),
        [(2, " = A = \n \n x \n = = s = = \n y\n".to_owned()), (7, " = B = \n z".to_owned())]
    );
}

/// What a limit bounds is one document, not the file.
#[test]
fn a_document_has_a_limit_and_the_file_has_none() {
    let limits = Limits { whole: 40, ..Limits::default() };
    let article = |n: usize| format!(" = Title {n} = \n{}\n", "x".repeat(20));
    let texts = |text: &str| {
        let (_folder, path) = file("t.txt", text.as_bytes());
        let read = read::<PretrainText>(&[path], &limits).map_err(|error| error.to_string())?;
        Ok::<_, String>(Vec::from_iter(read.records.into_iter().map(|record| (record.origin.line, record.text))))
    };
    let many: String = (0..1_000).map(article).collect();
    assert_eq!(texts(&many), Ok((0..1_000).map(|n| (1 + 2 * n, article(n))).collect()));
    for long in [format!("{}y\nand more of it", article(7)), format!("{}{}", article(7), "y".repeat(50))] {
        let message = texts(&format!("{}{long}", article(1))).unwrap_err();
        assert!(message.ends_with("t.txt:3: the document is longer than 40 bytes; split it"), "{message}");
    }
}

#[test]
fn the_shared_data_has_the_documented_counts() {
    let limits = Limits::default();
    if let Some(path) = shared("data/oasst1-en100/en_100_tree.jsonl") {
        let read = super::read::<Ranking>(&[&path], &limits).unwrap();
        let replies: usize = read.records.iter().map(|r| r.completions.len()).sum();
        let pairs: usize = read.records.iter().map(|r| pairs(&r.ranks).len()).sum();
        assert_eq!((read.records.len(), replies, pairs, read.skipped.len()), (212, 641, 754, 0));
        let longest_first = |r: &&Ranking| {
            let longest = (0..r.ranks.len()).max_by_key(|&i| r.completions[i].len());
            longest.is_some_and(|i| r.ranks[i] == 1)
        };
        let share = read.records.iter().filter(longest_first).count() as f64 / 212.0;
        assert!((share - 0.59).abs() < 0.01, "the longest reply is first in {share}");
        let demonstrations = super::read::<Demonstration>(&[&path], &limits).unwrap().records;
        assert!(demonstrations.len() > 200 && demonstrations.len() <= 212, "{}", demonstrations.len());
        let prompts = super::read::<Prompt>(&[&path], &limits).unwrap().records;
        let trees: std::collections::BTreeSet<_> = prompts.iter().map(|p| p.user.clone()).collect();
        assert_eq!((prompts.len(), trees.len()), (480, 100));
    }
    if let Some(path) = shared("data/pandalm/testset-v1.json") {
        let read = super::read::<Ranking>(&[&path], &limits).unwrap().records;
        let ties = read.iter().filter(|r| pairs(&r.ranks).is_empty()).count();
        let prompts: std::collections::BTreeSet<String> = read.iter().map(|r| r.subject()).collect();
        assert_eq!((read.len(), ties, prompts.len()), (999 * 3, 326, 170));
        assert!(read.iter().all(|r| r.prompt.use_case.is_some() && r.labeler.is_some()));
    }
    if let Some(path) = shared("data/hh-rlhf/harmless-base.test.jsonl.gz") {
        let read = super::read::<Ranking>(&[&path], &limits).unwrap();
        assert_eq!((read.records.len(), read.skipped.len()), (2307, 5));
        let lines: Vec<usize> = read.skipped.iter().map(|e| e.origin.line).collect();
        assert_eq!(lines, [1255, 1689, 1951, 1953, 2037]);
    }
    if let Some(path) = shared("data/self-instruct/seed_tasks.jsonl") {
        assert_eq!(super::read::<Demonstration>(&[path], &limits).unwrap().records.len(), 175);
    }
    for (path, count) in [
        ("data/koala/koala_test_set.jsonl", 180),
        ("data/fastchat-questions/mt_bench.question.jsonl", 80),
        ("data/oasst1-en100/en_100_text.jsonl", 100),
        ("data/oasst1-en100/prompt_lottery_en_250_text.jsonl", 250),
    ] {
        if let Some(path) = shared(path) {
            assert_eq!(super::read::<Prompt>(&[path], &limits).unwrap().records.len(), count);
        }
    }
    if let Some(path) = shared("data/text/wikitext-2/valid.txt") {
        let texts = super::read::<PretrainText>(&[&path], &limits).unwrap().records;
        assert_eq!(texts.len(), 60);
        let total: usize = texts.iter().map(|t| t.text.len()).sum();
        // All but the blank line before the first title.
        assert_eq!(total as u64 + 2, std::fs::metadata(path).unwrap().len());
    }
}

/// Records of these ids, prompts and answers, each on a line of its own.
fn answered(parts: &[(u8, u8, u8)]) -> Vec<Demonstration> {
    let one = |(line, &(id, prompt, answer)): (usize, &(u8, u8, u8))| {
        let content = Content::Text(prompt.to_string());
        let origin = Origin::new("f.jsonl", line);
        let prompt = Prompt { id: format!("id {id}"), content, user: None, use_case: None, origin };
        Demonstration { prompt, completion: answer.to_string() }
    };
    (1..).zip(parts).map(one).collect()
}

/// The definition: every record is compared with all before it that have its id.
fn slow_repeats(records: &[Demonstration]) -> Vec<RecordError> {
    let found = records.iter().enumerate().filter_map(|(i, record)| {
        let earlier = || records[..i].iter().filter(|other| other.prompt.id == record.prompt.id);
        let other_prompt = earlier().find(|other| other.subject() != record.subject());
        let first = other_prompt.or(earlier().find(|other| other.answer() == record.answer()))?;
        let problem = Problem::Duplicate { first: first.origin().clone(), conflicting: other_prompt.is_some() };
        Some(RecordError { origin: record.origin().clone(), field: Some("id".to_owned()), problem })
    });
    found.collect()
}

/// To compare every two of these records would take 20 billion comparisons of texts.
#[test]
fn many_records_of_one_id_are_compared_in_little_time() {
    let mut records = answered(&vec![(1, 1, 0); 200_000]);
    for (record, n) in records.iter_mut().zip(0..) {
        record.completion = format!("{n}");
    }
    assert_eq!(repeats(&records, usize::MAX), []);
}

proptest! {
    #[test]
    fn repeats_are_what_comparing_all_finds(parts in proptest::collection::vec((0u8..2, 0u8..3, 0u8..3), 0..12)) {
        let records = answered(&parts);
        let all = slow_repeats(&records);
        prop_assert_eq!(&repeats(&records, 2), &all[..all.len().min(2)]);
        prop_assert_eq!(repeats(&records, usize::MAX), all);
    }

    /// What is written is what is read.
    #[test]
    fn lines_round_trip(
        text in "[^\0]{0,20}[a-z]", user in proptest::option::of("[a-z]{1,5}"), first in "[^\0]{0,9}",
        confidence in proptest::option::of(0.0f32..1.0), quality in proptest::option::of(1u8..8), labeled: bool,
    ) {
        let (_folder, path) = file("r.jsonl", b"");
        let origin = Origin::new(&path, 1);
        let prompt = Prompt { id: "i".to_owned(), content: Content::Text(text), user, use_case: None, origin };
        let ranking = Ranking {
            prompt,
            completions: vec![first, "b".to_owned()],
            ranks: vec![2, 1],
            labeler: labeled.then(|| "l".to_owned()),
            confidence,
            quality: quality.map(|q| vec![q, 8 - q]),
            flags: labeled.then(|| vec![vec!["hallucination".to_owned()], Vec::new()]),
        };
        std::fs::write(&path, ranking.to_line()).unwrap();
        prop_assert_eq!(super::read::<Ranking>(&[&path], &Limits::default()).unwrap().records, [ranking]);
    }

    /// No bytes make the reader panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, array in "[\\[\\]{},:\"a1 \n\\\\u]{0,40}") {
        let _ = read_bytes::<Ranking>("f.jsonl", &bytes);
        let _ = read_bytes::<Prompt>("f.json", format!("[{array}").as_bytes());
        let _ = read_bytes::<PretrainText>("f.txt", &bytes);
    }
}
