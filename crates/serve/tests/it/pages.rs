//! The pages in a real browser, against a real server.

use crate::{Memory, Server, Setting, TOKEN, task};
use instruct_browser::{Browser, axe};
use instruct_serve::File;
use serde_json::{Value, json};
use std::{fs, path::Path};

const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\"> \u{202e}reversed";

/// A browser, or the reason why the test is skipped.
fn started() -> Option<Browser> {
    Browser::start().map_err(|reason| println!("skipped: {reason}")).ok()
}

/// Nothing in the page as it stands keeps a person out who hears it, or sees little, as far as a program can tell; and no
/// style of another thing has got hold of the names of keys.
fn open_to_all(browser: &mut Browser, what: &str) {
    let wide =
        "[...document.querySelectorAll('kbd')].filter((key) => key.offsetWidth > 90).map((key) => key.innerText)";
    assert_eq!(browser.eval(wide), json!([]), "{what}: the name of a key is as wide as a key");
    let Some(axe) = axe() else { return println!("skipped: axe-core is not here; INSTRUCT_AXE names its axe.min.js") };
    assert_eq!(browser.barriers(&axe), [""; 0], "{what}");
}

fn said(browser: &mut Browser, words: &str) {
    browser.wait_for(&format!("document.getElementById('said').textContent.startsWith({words:?})"));
}

/// Waits until so many events are in the log: a page that asks for them would be slowed down as a person is.
fn until(memory: &Memory, events: usize) {
    let comes = (0..6_000).any(|_| {
        let is_there = memory.lines(File::Log).len() >= events;
        std::thread::sleep(std::time::Duration::from_millis(if is_there { 0 } else { 10 }));
        is_there
    });
    assert!(comes, "{:?}", memory.lines(File::Log));
}

/// Opens a page with the link that a person was given.
fn open(browser: &mut Browser, server: &Server, page: &str) {
    browser.open(&format!("http://{}/{page}#token={TOKEN}", server.at));
    browser.wait_for("document.querySelector('nav a[aria-current]') && location.hash === ''");
}

/// Asks a question in the chat, and waits for the whole answer.
fn ask(browser: &mut Browser, server: &Server) {
    open(browser, server, "chat");
    browser.wait_for("document.activeElement.id === 'message'");
    browser.text("Why is the sky blue?");
    browser.key("Enter");
    said(browser, "The answer is complete.");
}

/// Nothing was stopped by the policy, nothing threw, and nothing was asked of another server.
fn clean(browser: &mut Browser, server: &Server) {
    // Whoever comes without a link is told so, and a browser writes that down.
    let is_wanted = |error: &String| error.contains("401") && error.contains("/api/session");
    let errors: Vec<String> = browser.console_errors().into_iter().filter(|error| !is_wanted(error)).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let base = format!("http://{}/", server.at);
    let elsewhere: Vec<String> = browser.requests().into_iter().filter(|at| !at.starts_with(&base)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// Rates each of the answers and puts all three into ranks, with keys alone.
fn rank(browser: &mut Browser) {
    for (answer, quality) in [("Answer A", "5"), ("Answer B", "1"), ("Answer C", "6")] {
        let title = "document.getElementById('answer-title')?.innerText";
        browser.wait_for(&format!("{title}?.startsWith('{answer}') && document.activeElement !== document.body"));
        open_to_all(browser, answer);
        browser.key(quality);
        browser.key("Enter");
    }
    browser.wait_for("document.querySelector('.board')");
    ["1", "j", "3", "j", "1"].iter().for_each(|key| browser.key(key));
    open_to_all(browser, "all answers in ranks");
}

#[test]
fn a_person_ranks_with_keys_alone_and_nothing_is_lost_or_doubled() {
    let Some(mut browser) = started() else { return };
    browser.window(1_280, 800, 1.0, false);
    let memory = Memory::with(&[
        task("Name a fruit.", &["An apple.", "Fruit.", HOSTILE]),
        task("Name a bird.", &["A wren.", "A crow.", "An owl."]),
    ]);
    let setting = Setting { memory: memory.clone(), ..Setting::default() };
    let server = Server::start(&setting);
    open(&mut browser, &server, "rank");
    rank(&mut browser);
    // Twice in a row is once: the second is about the next task, where that is there already.
    browser.key("Enter");
    browser.key("Enter");
    browser.wait_for("/^(Saved|No quality)/.test(document.getElementById('said').textContent)");
    let log = memory.lines(File::Log);
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!((&log[0]["ranks"], &log[0]["quality"]), (&json!([1, 3, 1]), &json!([5, 1, 6])));
    assert_eq!((&log[0]["by"], log[0]["key"].as_str().map(str::len)), (&json!("ann"), Some(32)));
    let record: Value = serde_json::from_str(server.get("/api/export.jsonl").body.lines().next().unwrap()).unwrap();
    assert_eq!(record["id"], log[0]["key"]);
    assert_ne!(browser.eval("document.title"), "owned");
    clean(&mut browser, &server);
    // The server goes away while somebody works: the page keeps the work and says so.
    rank(&mut browser);
    // With the pointer: the second answer joins the first, and comes back.
    let chip = |letter: char| format!(".chip[aria-label^='Answer {letter}']");
    let order = |browser: &mut Browser| browser.eval("document.querySelector('.order').innerText");
    browser.drag(&chip('B'), ".shelf[data-rank='1']");
    assert_eq!(order(&mut browser), "A, B and C (a tie).");
    browser.drag(&chip('B'), ".shelf[data-rank='3']");
    assert_eq!(order(&mut browser), "A and C (a tie), then B.");
    let port = server.at.port();
    server.stop();
    browser.key("Enter");
    browser.wait_for(
        "document.querySelector('#trouble p')?.textContent.includes('kept in this browser; Enter tries again')",
    );
    assert_eq!(memory.lines(File::Log).len(), 1);
    let server = Server::start(&Setting { port, ..setting });
    browser.key("Enter");
    until(&memory, 2);
    let log = memory.lines(File::Log);
    assert_eq!((log.len(), &log[1]["ranks"]), (2, &json!([1, 3, 1])));
    drop(server);
}

#[test]
fn what_a_person_began_outlives_a_reload_and_what_was_said_is_taken_back() {
    let Some(mut browser) = started() else { return };
    browser.window(1_280, 800, 1.0, false);
    let memory =
        Memory::with(&[task("Name a fruit.", &["An apple.", "Fruit."]), task("Name a bird.", &["A wren.", "A crow."])]);
    let server = Server::start(&Setting { memory: memory.clone(), ..Setting::default() });
    let alone = |letter: char| {
        format!(
            "document.getElementById('answer-title')?.innerText.startsWith('Answer {letter}') && \
             document.activeElement !== document.body && !document.getElementById('work').inert"
        )
    };
    open(&mut browser, &server, "rank");
    browser.wait_for(&alone('A'));
    ["w", "o"].iter().for_each(|key| browser.key(key));
    said(&mut browser, "2 flags.");
    ["4", "Enter"].iter().for_each(|key| browser.key(key));
    browser.wait_for(&alone('B'));
    let draft = "Object.entries(localStorage).filter(([name]) => name.includes(':draft:')).map(([, kept]) => kept)";
    let key = browser.eval(&format!("JSON.parse({draft}[0]).draft.key"));
    browser.open(&format!("http://{}/rank", server.at));
    browser.wait_for(&alone('B'));
    ["2", "Enter"].iter().for_each(|key| browser.key(key));
    browser.wait_for("document.querySelector('.board')");
    ["b", "y", "y", "y", "n"].iter().for_each(|key| browser.key(key));
    browser.wait_for("document.activeElement.id === 'note'");
    browser.text("Both are rude.");
    ["Escape", "Enter"].iter().for_each(|key| browser.key(key));
    said(&mut browser, "Saved");
    let log = memory.lines(File::Log);
    assert_eq!(log.len(), 1, "{log:?}");
    let ranking = &log[0];
    assert_eq!(
        (&ranking["key"], &ranking["kind"]),
        (&key, &json!("ranking")),
        "the draft's key, from before the reload"
    );
    assert_eq!(ranking["flags"], json!([["wrong-instruction", "opinion"], []]));
    assert_eq!((&ranking["quality"], &ranking["ranks"]), (&json!([4, 2]), &json!([1, 1])));
    assert_eq!(
        (&ranking["all_bad"], &ranking["confidence"], &ranking["note"]),
        (&json!(true), &json!(3), &json!("Both are rude."))
    );
    // Taken back it comes again as it was left, after the task that was begun meanwhile; that one is skipped.
    browser.wait_for(&alone('A'));
    browser.key("z");
    said(&mut browser, "Taken back");
    browser.wait_for(&alone('A'));
    browser.key("s");
    browser.wait_for("document.querySelector('dialog[open]')");
    ["2", "Enter"].iter().for_each(|key| browser.key(key));
    said(&mut browser, "Saved");
    browser.wait_for("document.querySelector('.board') && document.getElementById('note').value === 'Both are rude.'");
    let log = memory.lines(File::Log);
    assert_eq!((&log[1]["kind"], &log[1]["retracts"]), (&json!("retract"), &key));
    assert_eq!((&log[2]["kind"], &log[2]["reason"]), (&json!("skip"), &json!("unsafe")));
    assert!(log.len() == 3 && log[2]["task"] != ranking["task"], "{log:?}");
    let redone = browser.eval(&format!("JSON.parse({draft}[0]).draft.key"));
    assert!(redone.is_string() && redone != key, "a second submission has a name of its own");
    clean(&mut browser, &server);
}

#[test]
fn a_person_edits_an_answer_and_writes_one() {
    let Some(mut browser) = started() else { return };
    browser.window(1_280, 800, 1.0, false);
    let memory = Memory::default();
    let server = Server::start(&Setting { memory: memory.clone(), ..Setting::default() });
    ask(&mut browser, &server);
    ["Escape", "d"].iter().for_each(|key| browser.key(key));
    until(&memory, 1);
    browser.key("e");
    browser.wait_for("document.activeElement.matches('.editor textarea')");
    open_to_all(&mut browser, "an edit");
    browser.text("Better so. ");
    browser.key("Ctrl+Enter");
    until(&memory, 2);
    browser.wait_for("document.getElementById('turns').innerText.includes('edited by you')");
    let (answers, log) = (memory.lines(File::Answers), memory.lines(File::Log));
    assert_eq!((&log[0]["kind"], &log[0]["up"]), (&json!("thumb"), &json!(false)));
    assert_eq!((&log[1]["kind"], &log[1]["answer"]), (&json!("edit"), &answers[0]["id"]));
    assert!(log[1]["text"].as_str().unwrap().contains("Better so. "), "{log:?}");
    open(&mut browser, &server, "demonstrate");
    browser.wait_for("document.activeElement.id === 'own-prompt'");
    browser.text("Name a colour.");
    browser.key("Tab");
    browser.wait_for("document.activeElement.id === 'answer'");
    browser.text("Red.");
    browser.key("Ctrl+Enter");
    until(&memory, 3);
    let log = memory.lines(File::Log);
    assert_eq!((&log[2]["kind"], &log[2]["text"]), (&json!("demonstration"), &json!("Red.")));
    assert_eq!(log[2]["messages"], json!([{ "role": "user", "content": "Name a colour." }]));
    clean(&mut browser, &server);
}

#[test]
fn a_person_chats_and_says_what_the_answer_is_worth() {
    let Some(mut browser) = started() else { return };
    browser.window(1_280, 800, 1.0, false);
    let memory = Memory::default();
    let server = Server::start(&Setting { memory: memory.clone(), ..Setting::default() });
    ask(&mut browser, &server);
    open_to_all(&mut browser, "an answer");
    browser.key("Escape");
    browser.key("u");
    said(&mut browser, "Saved.");
    let (answer, thumb) = (&memory.lines(File::Answers)[0], &memory.lines(File::Log)[0]);
    assert_eq!((&thumb["kind"], &thumb["up"], &thumb["answer"]), (&json!("thumb"), &json!(true), &answer["id"]));
    assert_eq!(answer["messages"], json!([{ "role": "user", "content": "Why is the sky blue?" }]));
    // Another two, side by side.
    browser.key("r");
    browser.wait_for("document.getElementById('said').textContent.startsWith('Both answers are complete')");
    open_to_all(&mut browser, "two answers side by side");
    browser.key("ArrowRight");
    said(&mut browser, "Saved.");
    let log = memory.lines(File::Log);
    assert_eq!((&log[1]["kind"], &log[1]["choice"]), (&json!("pair"), &json!("right")));
    assert_eq!(memory.lines(File::Answers).len(), 3);
    clean(&mut browser, &server);
}

#[test]
fn every_page_opens_for_a_person_and_none_without_a_link() {
    let Some(mut browser) = started() else { return };
    let server = Server::start(&Setting::default());
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    fs::create_dir_all(&pictures).unwrap();
    browser.window(360, 740, 1.0, true);
    browser.open(&format!("http://{}/rank", server.at));
    browser.wait_for("document.body.innerText.includes('link')");
    for (page, is_shown) in [
        ("chat", "!document.getElementById('composer').hidden"),
        ("rank", "!document.getElementById('nothing').hidden"),
        ("demonstrate", "!document.getElementById('work').hidden"),
        ("guidelines", "document.getElementById('guidelines').innerText.includes('Be kind')"),
        ("people", "!document.getElementById('people').hidden"),
    ] {
        open(&mut browser, &server, page);
        browser.wait_for(is_shown);
        assert_eq!(browser.eval("document.getElementById('trouble').innerText"), "", "{page}");
        // A phone, a desk, and a desk at 200 % zoom, in the light and in the dark: where a person can look at them.
        for (width, height, scale) in [(360, 740, 1.0), (1_280, 800, 1.0), (640, 400, 2.0)] {
            for dark in [false, true] {
                let path = pictures.join(format!("{page}-{width}-{}.png", if dark { "dark" } else { "light" }));
                browser.screenshot(&path, width, height, scale, dark);
                assert!(fs::read(&path).unwrap().starts_with(b"\x89PNG"), "{}", path.display());
                // By what was asked for: a phone draws a page that does not fit smaller, and widens its window by that.
                let fits = browser.eval(&format!("document.documentElement.scrollWidth <= {width}"));
                assert_eq!(fits, true, "{page} scrolls sideways in {width} pixels");
                open_to_all(&mut browser, &path.display().to_string());
            }
        }
    }
    clean(&mut browser, &server);
}
