//! What people say, through the program: a server that is killed under its clients, links, and taking back.

use crate::xtask;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
};

const TEMPLATE: [&str; 2] = ["--template", "User: {prompt}\nAssistant:"];

fn base() -> String {
    format!("{}/../fixtures/base", env!("CARGO_MANIFEST_DIR"))
}

/// A server that has said where it is.
struct Server {
    child: Child,
    at: String,
    token: String,
    /// What it said when it began.
    said: Vec<String>,
}

impl Server {
    fn start(folder: &Path) -> Server {
        Server::of(folder, &[&[base().as_str()][..], &TEMPLATE].concat())
    }

    /// Serves a run, or a model with its template.
    fn of(folder: &Path, target: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_instruct"))
            .args(["serve", "--feedback", "feedback", "--port", "0", "--slots", "2"])
            .args(target)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let said: Vec<String> = lines.take_while(|line| !line.contains("Ctrl-C")).collect();
        let link = said.iter().find_map(|line| Some(line.split_once("for you:")?.1.trim()));
        let link = link.expect("a server on this machine prints a link");
        let (at, token) = link.split_once("/chat#token=").unwrap();
        let (at, token) = (at.trim_start_matches("http://").to_owned(), token.to_owned());
        Server { child, at, token, said }
    }

    /// The body of the answer to a POST, unless the server is gone.
    fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let (host, token, body) = (&self.at, &self.token, body.to_string());
        let mut stream = TcpStream::connect(host).ok()?;
        let port = host.rsplit_once(':')?.1;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nCookie: instruct-{port}={token}\r\n");
        let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all((head + &rest).as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if head.starts_with("HTTP/1.1 429") {
            // Faster than any person: on a quick disk so many are saved before the server is killed.
            return None;
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(body).ok()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn log(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("feedback/log.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Clients write without a pause; whatever they were told is saved is there once, and nothing is there in part.
#[test]
fn what_people_were_told_is_saved_outlives_a_server_that_is_killed() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let saved = Mutex::new(Vec::new());
    let deaths: usize = std::env::var("INSTRUCT_DEATHS").map_or(4, |deaths| deaths.parse().unwrap());
    for round in 0..deaths {
        let server = Server::start(folder);
        thread::scope(|scope| {
            let (server, saved) = (&server, &saved);
            let clients: Vec<_> = (0..32)
                .map(|client| {
                    scope.spawn(move || {
                        for number in 0.. {
                            let key = format!("k-{round}-{client}-{number}");
                            let said = json!({ "key": key, "kind": "demonstration", "text": "A word.", "seconds": 1,
                                "messages": [{ "role": "user", "content": format!("{key} \u{2028} \"quoted\"") }] });
                            match server.post("/api/feedback", &said) {
                                Some(answer) => saved.lock().unwrap().push(answer["saved"].clone()),
                                None => break,
                            }
                        }
                    })
                })
                .collect();
            // By what was saved, not by the clock.
            while saved.lock().unwrap().len() < 25 * (round + 1) && clients.iter().any(|client| !client.is_finished()) {
                thread::yield_now();
            }
            assert!(crate::signal("KILL", server.child.id()));
        });
        server.kill();
    }
    let saved = saved.into_inner().unwrap();
    let server = Server::start(folder);
    let again = json!({ "key": saved[0], "kind": "demonstration", "text": "A word.", "seconds": 1,
        "messages": [{ "role": "user", "content": format!("{} \u{2028} \"quoted\"", saved[0].as_str().unwrap()) }] });
    assert_eq!(server.post("/api/feedback", &again).unwrap()["saved"], saved[0]);
    server.kill();
    let log = log(folder);
    for key in &saved {
        assert_eq!(log.iter().filter(|event| event["key"] == *key).count(), 1, "{key} of {} saved", saved.len());
    }
    assert!(saved.len() >= 25 * deaths && log.len() >= saved.len());
    println!(
        "{deaths} deaths under 32 clients: {} saved by their word, {} in the log, none lost or doubled",
        saved.len(),
        log.len()
    );
}

#[test]
fn tasks_are_made_links_are_given_and_what_a_person_wrote_is_removed() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let prompts: String = (0..3)
        .map(|i| format!("{{\"id\": \"p{i}\", \"prompt\": \"Name colour {i}.\", \"user\": \"u{i}\"}}\n"))
        .collect();
    fs::write(folder.join("prompts.jsonl"), prompts).unwrap();
    let run = |arguments: &[&str]| {
        let output = xtask(folder, arguments);
        let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    let base = base();
    let common = ["tasks", "--feedback", "feedback", "--prompts", "prompts.jsonl", "--max-new-tokens", "8"];
    let tasks = |more: &[&str]| run(&[&common[..], &TEMPLATE, more].concat());
    let made = tasks(&["--model", &base, "-k", "3"]);
    assert!(made.contains("3 tasks added"), "{made}");
    let again = tasks(&["--model", &base, "-k", "3"]);
    assert!(again.contains("0 tasks added") && again.contains("3 were there already"), "{again}");
    assert!(tasks(&[]).contains("3 tasks added"), "answers to be written");
    let lines = fs::read_to_string(folder.join("feedback/tasks.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 6);
    let one = xtask(folder, &[&common[..], &TEMPLATE, &["--model", &base, "-k", "1"]].concat());
    assert!(String::from_utf8(one.stderr).unwrap().contains("leaves nothing to rank"));

    let server = Server::start(folder);
    let to_rank = format!("  3 to rank:    http://{}/rank#token={}", server.at, server.token);
    assert!(server.said.contains(&to_rank), "{:?}", server.said);
    server.kill();

    let link = run(&["feedback", "link", "feedback", "ann", "--url", "https://models.example/"]);
    assert!(link.contains("https://models.example/chat#token="), "{link}");
    assert!(xtask(folder, &["feedback", "link", "feedback", "a b"]).status.code() == Some(2));
    let event = |key: &str, by: &str| {
        json!({ "v": 1, "key": key, "at": 1, "by": by, "kind": "demonstration", "text": "Red.", "seconds": 3,
            "messages": [{ "role": "user", "content": "Name a colour." }] })
    };
    let events = [event("k1", "ann"), event("k2", "bob")].map(|event| format!("{event}\n")).concat();
    fs::write(folder.join("feedback/log.jsonl"), events).unwrap();
    let shown = run(&["feedback", "show", "feedback"]);
    assert!(shown.contains("ann") && shown.contains("2 demonstrations"), "{shown}");
    fs::create_dir_all(folder.join("runs/circle/2")).unwrap();
    let trained = json!({ "from": "runs/1", "feedback": ["feedback"], "log_sha256": "", "rankings": "r",
        "keys": ["k1", "k9"], "new": [] });
    fs::write(folder.join("runs/circle/2/retrained.json"), trained.to_string()).unwrap();
    let forgot = run(&["feedback", "forget", "feedback", "ann"]);
    assert!(forgot.contains("ann's link opens nothing any more"), "{forgot}");
    assert!(
        forgot.contains("removed of ann: 1 events") && forgot.contains("runs/circle/2 was made with 1 of these"),
        "{forgot}"
    );
    assert_eq!(log(folder).iter().map(|event| event["by"].clone()).collect::<Vec<_>>(), ["bob"]);
    assert!(run(&["feedback", "forget", "feedback", "ann"]).contains("has written nothing here"));
}

#[test]
fn an_address_that_others_reach_wants_keys_or_people() {
    let place = tempfile::tempdir().unwrap();
    let base = base();
    let open = xtask(place.path(), &[&["serve", &base, "--listen", "0.0.0.0", "--port", "0"][..], &TEMPLATE].concat());
    let said = String::from_utf8(open.stderr).unwrap();
    assert!(open.status.code() == Some(2) && said.contains("give --api-keys"), "{said}");
    fs::write(place.path().join("keys.txt"), "\n").unwrap();
    let none = xtask(place.path(), &[&["serve", &base, "--api-keys", "keys.txt"][..], &TEMPLATE].concat());
    assert!(String::from_utf8(none.stderr).unwrap().contains("there is no key"));
    let missing = xtask(place.path(), &["serve", "nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
}

/// What was said trains the next run, once: taken back it is gone from the run after that, and no other command goes on
/// with what the gate decides about.
#[test]
fn what_people_said_trains_the_next_run_until_they_take_it_back() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let smoke = crate::smoke();
    let run = |arguments: &[&str]| {
        let output = xtask(folder, arguments);
        let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        (output.status.success(), said)
    };
    // Reward models that hardly learn order alike, so the gate lets all of them through.
    let fixture = format!("{}/../fixtures/rankings.jsonl", env!("CARGO_MANIFEST_DIR"));
    let few: String = fs::read_to_string(fixture).unwrap().lines().take(50).flat_map(|line| [line, "\n"]).collect();
    fs::write(folder.join("rankings.jsonl"), few).unwrap();
    let begin = ["pipeline", "--config", &smoke, "--run", "first", "--set", "data.rankings=[\"rankings.jsonl\"]"];
    let rates = ["--set", "reward-model.lr=1e-12"];
    let (done, said) = run(&[&begin[..], &crate::TINY, &rates].concat());
    assert!(done, "{said}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "second"]);
    assert!(!done && said.contains("cannot find"), "{said}");
    // Any of its models is served, with its reward model.
    for (artefact, target) in [("ppo-ptx", &["first"][..]), ("sft-baseline", &["first", "--artefact", "sft-baseline"])]
    {
        let server = Server::of(folder, target);
        let asked = json!({ "model": artefact, "prompt": "Name a colour.", "max_tokens": 4, "seed": 1 });
        let answer = server.post("/v1/completions", &asked).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"].as_u64().map(|tokens| tokens > 0), Some(true), "{answer}");
        let scored = server.post("/get_reward", &json!({ "query": ["User: Hello.\nAssistant: Hi.", "Hi."] })).unwrap();
        let scores: Vec<f64> = scored["rewards"].as_array().unwrap().iter().map(|of| of.as_f64().unwrap()).collect();
        assert!(scores.len() == 2 && scores[0] != scores[1], "{scored}");
        server.kill();
    }
    fs::create_dir(folder.join("first/feedback")).unwrap();
    // Two rankings of tasks that nobody else has, by people of their own.
    let tasks: Vec<Value> = (0..2)
        .map(|i| {
            json!({ "v": 1, "id": format!("t-{i}"), "kind": "rank", "user": format!("user-{i}"),
            "messages": [{ "role": "user", "content": format!("Name number {i}.") }],
            "completions": [{ "text": "One.", "models": ["a"] }, { "text": "Two.", "models": ["b"] }] })
        })
        .collect();
    let ranking = |i: usize| {
        json!({ "v": 1, "key": format!("k{i}"), "at": 1, "by": "ann", "kind": "ranking", "task": format!("t-{i}"),
            "shown": [0, 1], "ranks": [1, 2], "seconds": 3 })
    };
    let retract = json!({ "v": 1, "key": "k9", "at": 2, "by": "ann", "kind": "retract", "retracts": "k0" });
    let demonstration = json!({ "v": 1, "key": "k6", "at": 2, "by": "bob", "kind": "demonstration", "text": "Red.",
        "messages": [{ "role": "user", "content": "Name a colour." }], "seconds": 3 });
    let append = |name: &str, lines: &[Value]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut file = fs::OpenOptions::new().append(true).create(true).open(folder.join("first/feedback").join(name));
        std::io::Write::write_all(file.as_mut().unwrap(), text.as_bytes()).unwrap();
    };
    append("tasks.jsonl", &tasks);
    append("log.jsonl", &[ranking(0), ranking(1)]);
    let keys = |run: &str| {
        let text = fs::read(folder.join(run).join("retrained.json")).unwrap();
        let retrained: Value = serde_json::from_slice(&text).unwrap();
        (retrained["keys"].clone(), retrained["new"].clone())
    };
    let begun = run(&["retrain", "--from", "first", "--run", "second", "--continue", "--judge", "people"]);
    let (done, said) = begun;
    assert!(done, "{said}");
    assert!(said.contains("gate of the new reward model: passed"), "{said}");
    assert!(said.contains("what people said makes 2 rankings") && said.contains("of 2 new rankings"), "{said}");
    assert_eq!(keys("second"), (json!(["k0", "k1"]), json!(["k0", "k1"])));
    let outcome = |run: &str, file: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(run).join("eval").join(file)).unwrap()).unwrap()
    };
    assert_eq!(outcome("second", "gate.json")["passed"], true, "{said}");
    let page = fs::read_to_string(folder.join("second/report.html")).unwrap();
    assert!(page.contains("People are asked which policy is better, and have said nothing yet."));
    assert!(page.contains("ppo-ptx is finished") && !page.contains("ppo has not begun"));
    assert!(said.contains("prefers the new policy: ") && said.contains("that is no verdict"), "{said}");
    assert_eq!(outcome("second", "preferred.json")["win_rate"]["n"], 5);
    // People are asked blind which policy answers better; what they say of one comparison is the verdict on it.
    assert!(said.contains("0 comparisons are judged") && said.contains("instruct serve second --feedback"), "{said}");
    assert!(!folder.join("second/eval/retrained.json").exists());
    let asked = outcome("second", "asked.json");
    let compared = asked["comparisons"].as_array().unwrap().iter().find(|of| of["task"].is_string());
    let compared = compared.expect("new and old policy differ in no answer");
    let tasks = fs::read_to_string(folder.join("first/feedback/tasks.jsonl")).unwrap();
    let mut tasks = tasks.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let task = tasks.find(|task| task["id"] == compared["task"]).unwrap();
    let ranks = [0, 1].map(|slot| if task["completions"][slot]["text"] == compared["new"] { 1 } else { 2 });
    let verdict = json!({ "v": 1, "key": "k5", "at": 1, "by": "ann", "kind": "ranking", "task": task["id"],
        "shown": [0, 1], "ranks": ranks, "seconds": 3 });
    append("log.jsonl", &[verdict]);
    let (done, said) = run(&["retrain", "--from", "first", "--run", "second", "--resume"]);
    assert!(done && said.contains("people: 1 comparisons are judged"), "{said}");
    let judged = outcome("second", "retrained.json");
    assert_eq!(
        (&judged["judge"], judged["new_points"].as_array().unwrap().contains(&json!(1.0))),
        (&json!("people"), true)
    );
    // Nothing is done again, and another command does not go round the gate.
    assert!(!said.contains("new rankings") && !said.contains("gate of the new reward model"), "{said}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "second", "--resume", "--fine-tune"]);
    assert!(!done && said.contains("began without --fine-tune"), "{said}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "second", "--resume", "--set", "ppo.kl.beta=0.7"]);
    assert!(!done && said.contains("began with other values than --set asks for"), "{said}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "second", "--resume", "--set", "ppo.batch=8"]);
    assert!(done, "{said}");
    let (done, said) = run(&["pipeline", "--run", "second", "--resume"]);
    assert!(!done && said.contains("behind a gate"), "{said}");
    // Taken back, it is in no later run; what was said to compare two policies is no record at all. A demonstration
    // trains the first step, where that is done anew.
    append("log.jsonl", &[retract, demonstration]);
    // A thumb trains nothing: it measures the reward models, and its prompt can be asked again.
    let answer = |id: &str, words: &str| {
        json!({ "v": 1, "id": id, "model": "m", "messages": [{ "role": "user", "content": format!("{words}?") }],
            "text": words, "seed": 1, "labeler": "ann", "consent": true })
    };
    let thumb = |key: &str, id: &str, up: bool| json!({ "v": 1, "key": key, "at": 3, "by": "ann", "kind": "thumb", "answer": id, "up": up, "note": "" });
    append("answers.jsonl", &[answer("a-1", "Good"), answer("a-2", "Bad")]);
    append("log.jsonl", &[thumb("k7", "a-1", true), thumb("k8", "a-2", false)]);
    let asking = ["tasks", "--feedback", "first/feedback", "--thumbs", "--model", "first/ppo-ptx/model"];
    let (done, said) = run(&[&asking[..], &["--max-new-tokens", "8", "--slots", "3"]].concat());
    assert!(done && said.contains("2 prompts of answers with a thumb"), "{said}");
    let asked = fs::read_to_string(folder.join("first/feedback/tasks.jsonl")).unwrap();
    let place = |words: &str| asked.find(&format!("\"content\":\"{words}\""));
    assert!(place("Bad?").is_some() && place("Bad?") < place("Good?"), "{asked}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "third", "--set", "data.validation=0.5"]);
    assert!(!done && said.contains("`data.validation` cannot be set here"), "{said}");
    let (done, said) = run(&["retrain", "--from", "first", "--run", "third", "--set", "ppo.kl.beta=0.7"]);
    assert!(fs::read_to_string(folder.join("third/config.toml")).unwrap().contains("beta = 0.7"));
    assert!(done && said.contains("1 demonstrations are not used"), "{said}");
    assert_eq!(keys("third"), (json!(["k1"]), json!(["k1"])), "{said}");
    // One goes on with the policy and the value model, the other begins where its reference is.
    let taught = |run: &str| {
        let checkpoints = fs::read_dir(folder.join(run).join("ppo-ptx/checkpoints")).unwrap();
        let steps = checkpoints.filter_map(|entry| {
            let bytes = fs::read(entry.unwrap().path().join("value-optimizer.safetensors")).ok()?;
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
            header["__metadata__"]["steps"].as_str()?.parse::<u64>().ok()
        });
        steps.max().unwrap()
    };
    assert!(taught("first") > 0 && taught("third") == taught("first"));
    assert_eq!(taught("second"), 2 * taught("first"));
    let first_kl = |run: &str| {
        let metrics = fs::read_to_string(folder.join(run).join("ppo-ptx/metrics.jsonl")).unwrap();
        let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        first["objective/kl_k3"].as_f64().unwrap()
    };
    assert!(first_kl("second") > 0.0 && first_kl("third") < 1e-9, "{} {}", first_kl("second"), first_kl("third"));
    assert!(said.contains("the new policy wins against the old one:") && said.contains("by simulation"), "{said}");
    let shares =
        said.split_once("thumbs, 1 up and 1 down: up scores above down in ").unwrap().1.lines().next().unwrap();
    let (new, old) = shares.split_once(" of pairs by the new reward model, ").unwrap();
    assert!(["0.0 %", "100.0 %"].contains(&new) && old.ends_with(" by the old one"), "{shares}");
    // Its page has the card of its reward model and the answers of both, and nothing that watches waits any more.
    let (done, said) = run(&["watch", "third"]);
    assert!(done && said.contains("the run is finished"), "{said}");
    let page = fs::read_to_string(folder.join("third/report.html")).unwrap();
    for part in ["The reward model on held-out rankings", "held-out prompts new got more points"] {
        assert!(page.contains(part), "{part}");
    }
    // Neither is it in one after a run that was trained on it, for which the rest is not new.
    fs::create_dir(folder.join("second/feedback")).unwrap();
    // (Another trunk orders otherwise, so whether its gate passes is chance.)
    let (_, said) = run(&["retrain", "--from", "second", "--run", "fourth", "--fine-tune"]);
    assert_eq!(keys("fourth"), (json!(["k1"]), json!([])), "{said}");
    let text = fs::read(folder.join("fourth/retrained.json")).unwrap();
    let retrained: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(retrained["demonstrated"], json!(["k6"]));
    let read = |file: &str| fs::read(folder.join(file)).unwrap();
    assert!(read("first/sft-init/model/model.safetensors") == read("third/sft-init/model/model.safetensors"));
    assert!(read("first/sft-baseline/metrics.jsonl") != read("fourth/sft-baseline/metrics.jsonl"));
    // Whoever wants to be forgotten is so in what any run was given, wherever that lies.
    let (done, said) = run(&["feedback", "forget", "first/feedback", "bob", "--runs", "."]);
    assert!(done && said.contains("./fourth was made with 1 of these") && !said.contains("./third was"), "{said}");
    let frozen = fs::read_dir(folder.join("second/feedback/frozen")).unwrap().map(|entry| entry.unwrap().path());
    assert!(frozen.into_iter().all(|path| !fs::read_to_string(path).unwrap().contains("k6")));
    let (done, said) = run(&["retrain", "--from", "fourth", "--run", "fifth", "--feedback", "first/feedback"]);
    assert!(!done && (said.contains("--fine-tune does that anew") || said.contains("finish the run first")), "{said}");
}
