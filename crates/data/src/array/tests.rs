use super::*;
use proptest::prelude::*;
use std::io::BufReader;

type Seen = Vec<(usize, Result<Value, Problem>)>;

const LIMITS: fn() -> Limits = || Limits { values: 6, ..Limits::default() };

/// What `elements` sees of a text that comes `buffer` bytes at a time.
fn seen(text: &str, limits: &Limits, buffer: usize) -> (Seen, u64) {
    let reader = Box::new(BufReader::with_capacity(buffer, std::io::Cursor::new(text.to_owned().into_bytes())));
    let (mut seen, mut passed) = (Vec::new(), 0);
    elements_of(reader, Path::new("f.json"), limits, &mut |line, bytes, value| {
        passed += bytes;
        seen.push((line, value));
        ControlFlow::Continue(())
    })
    .unwrap();
    (seen, passed)
}

/// The same of a text that is held whole: every element is parsed where it starts, and the parser says where
/// it ends.
fn slow(text: &str, most: usize) -> Seen {
    let place = |at: usize| {
        let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        Place { line: 1 + text[..at].matches('\n').count(), before: at - start }
    };
    let space = |at: usize| text.len() - text[at..].trim_ascii_start().len();
    let mut seen = Vec::new();
    let refuse = |seen: &mut Seen, at: usize, what| seen.push((place(at).line, Err(place(at).expected(what))));
    let mut at = space(0);
    let mut opening = '[';
    loop {
        at = space(at);
        if opening == ',' && text[at..].starts_with(']') {
            at = space(at + 1);
            if at < text.len() {
                refuse(&mut seen, at, "nothing after the array");
            }
            return seen;
        }
        if !text[at..].starts_with(opening) {
            refuse(&mut seen, at, "`,` or `]`");
            return seen;
        }
        at = space(at + 1);
        let first = std::mem::replace(&mut opening, ',') == '[';
        if first && text[at..].starts_with(']') {
            continue;
        }
        if at == text.len() {
            refuse(&mut seen, at, "a value");
            return seen;
        }
        let (length, value) = json::prefix(&text[at..], most);
        match value {
            Ok(value) => seen.push((place(at).line, Ok(value))),
            Err(error) => {
                let before = if error.line() == 1 { place(at).before } else { 0 };
                let problem = json::malformed(&error, before + error.column());
                seen.push((place(at).line + error.line() - 1, Err(problem)));
                return seen;
            }
        }
        at += length;
    }
}

#[track_caller]
fn check(text: &str) {
    let want = slow(text, LIMITS().values);
    for buffer in [1, 2, 3, 7, 8_192] {
        assert_eq!(seen(text, &LIMITS(), buffer).0, want, "{buffer}: {text:?}");
    }
}

#[test]
fn elements_are_those_of_the_whole_text() {
    check("[]");
    check(" \n[ ] \n");
    check("[1, \"a\", null,\n {\"a\": [1, {}]}\n]\n");
    check(r#"["a,]}{[\"", "\\", {"b]": "\\\"]"}]"#);
    check("[1, 2");
    check("[1, 2,");
    check("[1, 2,]");
    check("[,1]");
    check("[}");
    check("[{]}");
    check("[1}, 2]");
    check("[1 2]");
    check("[{\"a\": 1}\n {\"a\": 2}]");
    check("[tru, 1]");
    check("[1e, 1]");
    check("[\"a");
    check("[\"a\nb\", 1]");
    // The parser takes four bytes behind `\u`, a quotation mark among them.
    check(r#"["\u",u"#);
    check(r#"["\u", "abcd", 1]"#);
    check(r#"["\u12", 1]"#);
    check(r#"["\u12\", 1]"#);
    check(r#"["\uD83D\uDE00\\u", 1]"#);
    check("[{\"a: 1}, {\"b\": 2}]");
    check("[{\"a\": 1, \"a\": 2}]");
    check("[[1, 2, 3, 4, 5, 6, 7], 1]");
    check("[1] x");
    check("[1]\n\n ]");
    check("");
}

#[track_caller]
fn check_limit(text: &str, want: &[&str]) {
    let limits = Limits { line: 8, ..Limits::default() };
    for buffer in [1, 3, 8_192] {
        let (seen, _) = seen(text, &limits, buffer);
        let said = seen.iter().map(|(line, value)| match value {
            Ok(value) => format!("{line} {value}"),
            Err(problem) => format!("{line} {problem}"),
        });
        assert_eq!(said.collect::<Vec<_>>(), want, "{buffer}: {text:?}");
    }
}

#[test]
fn an_element_has_a_limit_and_the_array_has_none() {
    let long = "the element of the array is longer than 8 bytes; split it";
    check_limit("[\"123456\",\n\"123456\"]", &["1 \"123456\"", "2 \"123456\""]);
    check_limit("[1,\n\"1234567\"]", &["1 1", &format!("2 {long}")]);
    check_limit("[\n\"12345678", &[&format!("2 {long}")]);
    check_limit("[1       , 2]", &["1 1", "1 2"]);
    check_limit("[1        , 2]", &[&format!("1 {long}")]);
    check_limit("[\"12345\u{E4}\u{E4}\"]", &[&format!("1 {long}")]);
    check_limit(
        "[{] 123456]",
        &["1 malformed JSON at column 3 (key must be a string); each line must be one JSON value"],
    );
    let many = format!("[{}1]", "1,\n".repeat(10_000));
    assert_eq!(seen(&many, &Limits { line: 8, ..Limits::default() }, 64).0.len(), 10_001);
}

#[test]
fn every_byte_of_a_sound_file_is_told_of_but_those_that_end_it() {
    let text = "\u{FEFF}[ {\"a\": 1},\n 2 , [3] ]\n";
    assert_eq!(seen(text, &LIMITS(), 4).1, text.rfind(']').unwrap() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_as_when_it_is_whole(text in "[\\[\\]{},:\"a1e \n\\\\u]{0,40}", buffer in 1..9usize) {
        for text in [format!("[{text}"), format!("[1,{{\"a\":{text}}}]")] {
            prop_assert_eq!(seen(&text, &LIMITS(), buffer).0, slow(&text, LIMITS().values));
        }
    }
}
