//! What programs and pages ask, answered.

use crate::{MODEL, Memory, Server, Setting, TOKEN, task};
use instruct_model::{Request, Sampling, generate};
use instruct_random::Source;
use instruct_serve::{File, digest};
use serde_json::{Value, json};
use std::thread;

fn chat(words: &str, seed: u64, more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": words }], "seed": seed, "max_tokens": 30 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// What `instruct generate` would say: the choices of a prompt are episodes of one source.
fn generated(words: &str, seed: u64, choices: u64, temperature: f32) -> Vec<(String, bool)> {
    let (decoder, renderer) = &*MODEL;
    let conversation = instruct_data::Content::Text(words.to_owned()).conversation();
    let prompt = renderer.ask(conversation).unwrap().ids().to_vec();
    let requests: Vec<Request> = (0..choices).map(|episode| Request { episode, prompt: prompt.clone() }).collect();
    let sampling = Sampling { temperature, ..Sampling::plain(renderer.stops().clone(), 30) };
    let drawn = generate(decoder, &requests, &sampling, Source::new(seed, "generate")).unwrap();
    // White space around an answer is no part of it.
    let text = |ids: &[u32]| renderer.tokenizer().decode(ids).unwrap().trim().to_owned();
    drawn.iter().map(|drawn| (text(&drawn.ids), drawn.ended_by_eos)).collect()
}

/// The texts and ends of the choices of a stream.
fn streamed(events: &[Value]) -> Vec<(String, String)> {
    let mut choices = vec![(String::new(), String::new()); 8];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let (text, end) = &mut choices[choice["index"].as_u64().unwrap() as usize];
        assert_eq!(end, "", "a choice goes on after its end");
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        end.push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    choices.retain(|(_, end)| !end.is_empty());
    choices
}

/// Thirty-two clients at once, streamed and whole, one choice and three: each is told what `generate` would say.
#[test]
fn the_same_seed_says_the_same_whatever_the_load() {
    let server = Server::start(&Setting { slots: 5, ..Setting::default() });
    let client = |i: u64| {
        let (words, seed, n) =
            (["Name a colour.", "Why?", "Is the sky naïve? 🙂"][i as usize % 3], i % 7, 1 + 2 * (i % 2));
        let temperature = if i.is_multiple_of(5) { 0.0 } else { 1.0 };
        let wanted = generated(words, seed, n, temperature);
        let body = chat(words, seed, json!({ "n": n, "stream": i % 4 < 2, "temperature": temperature }));
        let answer = server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let found = if i % 4 < 2 {
            streamed(&answer.events())
        } else {
            let whole = answer.json();
            assert_eq!(whole["instruct"]["seed"], seed);
            let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
            let end = |choice: &Value| choice["finish_reason"].as_str().unwrap().to_owned();
            whole["choices"].as_array().unwrap().iter().map(|choice| (text(choice), end(choice))).collect()
        };
        let end = |ended: bool| if ended { "stop" } else { "length" }.to_owned();
        assert_eq!(found, wanted.into_iter().map(|(text, ended)| (text, end(ended))).collect::<Vec<_>>(), "client {i}");
    };
    thread::scope(|scope| {
        for i in 0..32 {
            scope.spawn(move || client(i));
        }
    });
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("instruct_requests_total 32") && metrics.contains("instruct_sequences_running 0"),
        "{metrics}"
    );
}

#[test]
fn a_seed_that_the_server_drew_repeats_its_answer() {
    let server = Server::start(&Setting::default());
    let body = json!({ "messages": [{ "role": "user", "content": "Why?" }], "max_tokens": 20 });
    let [first, second] = [(); 2].map(|()| server.post("/v1/chat/completions", &body).json());
    assert_ne!(first["instruct"]["seed"], second["instruct"]["seed"]);
    let again =
        server.post("/v1/chat/completions", &chat("Why?", first["instruct"]["seed"].as_u64().unwrap(), json!({})));
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text(&again.json()).starts_with(&text(&first)));
}

#[test]
fn a_text_that_ends_an_answer_is_no_part_of_it() {
    let server = Server::start(&Setting::default());
    let [(whole, _)] = generated("Why?", 3, 1, 1.0).try_into().unwrap();
    let middle: String = whole.chars().skip(8).take(3).collect();
    let wanted = whole.split(&middle).next().unwrap().trim();
    for stream in [false, true] {
        let answer =
            server.post("/v1/chat/completions", &chat("Why?", 3, json!({ "stop": [middle], "stream": stream })));
        let found = if stream {
            streamed(&answer.events()).remove(0)
        } else {
            let choice = &answer.json()["choices"][0];
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&choice["message"]["content"]), text(&choice["finish_reason"]))
        };
        assert_eq!(found, (wanted.to_owned(), "stop".to_owned()), "{whole:?} cut at {middle:?}, streamed: {stream}");
    }
}

#[test]
fn texts_and_ids_are_continued_as_they_are_with_their_probabilities() {
    let server = Server::start(&Setting::default());
    let ids = MODEL.1.tokenizer().encode_prompt("The sky").unwrap();
    let more = json!({ "seed": 4, "max_tokens": 3, "logprobs": 2, "n": 2 });
    let ask = |prompt: Value| {
        let mut body = more.clone();
        body["prompt"] = prompt;
        server.post("/v1/completions", &body).json()
    };
    let (words, numbers) = (ask(json!("The sky")), ask(json!(ids)));
    assert_eq!(words["choices"], numbers["choices"]);
    assert_eq!(words["usage"]["prompt_tokens"], ids.len());
    let choice = &words["choices"][1];
    assert_eq!((&choice["index"], choice["logprobs"]["tokens"].as_array().unwrap().len()), (&json!(1), 3));
    assert!(choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().all(|l| l.as_f64().unwrap() < 0.0));
    let two = ask(json!(["The sky", "Grass"]));
    assert_eq!(two["choices"].as_array().unwrap().len(), 4);
    assert_eq!(two["choices"][0]["text"], words["choices"][0]["text"]);
    let error = ask(json!([9_999])).to_string();
    assert!(error.contains("the model has no token 9999"), "{error}");
}

/// The status of these requests, and a part of what they are told.
#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let server = Server::start(&Setting { keys: Some(vec![digest("k3y")]), ..Setting::default() });
    let (host, body) = (server.at, chat("Why?", 1, json!({})).to_string());
    let with_key = "Authorization: Bearer k3y\r\n";
    let rows = [
        (server.get("/nowhere"), 404, "there is nothing at /nowhere"),
        (server.get("/api/feedback"), 405, "another method"),
        (server.send(&format!("DELETE /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n")), 405, "another method"),
        (server.send("GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 403, "is not called so"),
        (server.post_with("/v1/chat/completions", "", &body), 401, "wants an API key"),
        (server.post_with("/v1/chat/completions", "Authorization: Bearer wrong\r\n", &body), 401, "wants an API key"),
        (server.post_with("/v1/chat/completions", "Origin: http://evil.example\r\n", &body), 403, "other origins"),
        (server.post_with("/v1/chat/completions", with_key, "{"), 400, "no JSON"),
        (server.post_with("/v1/chat/completions", with_key, &"x".repeat(2 << 20)), 413, "longer than"),
        (
            server.post_with("/v1/chat/completions", with_key, &chat(&"long ".repeat(200), 1, json!({})).to_string()),
            400,
            "fit here",
        ),
        (
            server.post_with("/v1/chat/completions", with_key, &chat("a", 1, json!({"model": "gpt"})).to_string()),
            404,
            "no model `gpt`",
        ),
        (server.post_with("/get_reward", with_key, r#"{"query": []}"#), 400, "at least one text"),
        (server.post_as("wrong", "/api/task/next", &json!({"kind": "rank"})), 401, "no session"),
        (server.post_as(TOKEN, "/api/task/next", &json!({"kind": "x"})), 400, "`rank` or `demonstrate`"),
        (server.post("/api/session", &json!({"token": "wrong"})), 401, "not known here"),
        (
            server.send(&format!("POST /get_reward HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}")),
            415,
            "must be JSON",
        ),
    ];
    for (answer, status, part) in rows {
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(answer.status == status && message.contains(part), "wanted {status}, {part:?}: {answer:?}");
        assert!(answer.head.contains("content-security-policy: default-src 'none'"), "{answer:?}");
    }
    let scored = server.post_with("/get_reward", with_key, r#"{"query": ["ab", "abc"]}"#).json();
    assert_eq!((&scored["rewards"], &scored["scores"]), (&json!([2.0, 3.0]), &json!([2.0, 3.0])));
    // A labeler's cookie is as good as a key.
    assert_eq!(server.post_as(TOKEN, "/v1/chat/completions", &chat("Why?", 1, json!({}))).status, 200);
}

#[test]
fn more_answers_than_there_is_ever_room_for_are_refused_and_as_many_as_there_is_are_written() {
    let server = Server::start(&Setting { slots: 1, queue: 3, ..Setting::default() });
    let ask = |n: u64| server.post("/v1/chat/completions", &chat("Why?", 1, json!({ "n": n })));
    assert_eq!(ask(4).json()["choices"].as_array().map(Vec::len), Some(4));
    assert_eq!((ask(5).status, &ask(5).json()["error"]["param"]), (400, &json!("n")));
}

#[test]
fn what_a_person_says_is_kept_once_and_outlives_the_server() {
    let memory = Memory::with(&[task("Name a fruit.", &["An apple.", "Fruit.", "<b>No</b>"])]);
    let setting = Setting { memory: memory.clone(), ..Setting::default() };
    let server = Server::start(&setting);
    let opened = server.post("/api/session", &json!({ "token": TOKEN }));
    assert_eq!(opened.json(), json!({ "labeler": "ann", "role": "admin", "consent": true, "model": "tiny" }));
    assert!(opened.head.contains("=t0ken; HttpOnly; SameSite=Strict"), "{opened:?}");
    let next = server.post_as(TOKEN, "/api/task/next", &json!({ "kind": "rank" })).json();
    assert_eq!((&next["left"], next["completions"].as_array().unwrap().len()), (&json!(1), 3));
    assert!(!next.to_string().contains("model-"), "who wrote what stays here: {next}");
    assert_eq!(server.post_as(TOKEN, "/api/task/next", &json!({ "kind": "rank" })).json(), next);
    let shown: Vec<u64> = next["completions"].as_array().unwrap().iter().map(|c| c["slot"].as_u64().unwrap()).collect();
    let ranking = json!({ "key": "k1", "kind": "ranking", "task": next["task"], "shown": shown, "ranks": [1, 2, 1],
        "quality": [7, 1, 6], "flags": [[], ["hallucination"], []], "confidence": 3, "note": "n", "seconds": 12 });
    for _ in 0..2 {
        assert_eq!(server.post_as(TOKEN, "/api/feedback", &ranking).json(), json!({ "saved": "k1" }));
    }
    let mut other = ranking.clone();
    other["ranks"] = json!([1, 1, 1]);
    assert_eq!(server.post_as(TOKEN, "/api/feedback", &other).status, 409);
    other["ranks"] = json!([1, 2]);
    other["key"] = json!("k9");
    let refused = server.post_as(TOKEN, "/api/feedback", &other);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("ranks")));
    // An answer of the chat, and a thumb for it.
    let answer = server.post_as(TOKEN, "/v1/chat/completions", &chat("Why?", 1, json!({}))).json();
    let thumb =
        json!({ "key": "k2", "kind": "thumb", "answer": answer["instruct"]["answers"][0], "up": true, "note": "" });
    assert_eq!(server.post_as("b0b", "/api/feedback", &thumb).status, 404, "bob did not ask for it");
    assert_eq!(server.post_as(TOKEN, "/api/feedback", &thumb).status, 200);
    // A program's answers are nobody's.
    server.post("/v1/chat/completions", &chat("Why?", 1, json!({})));
    assert_eq!((memory.lines(File::Log).len(), memory.lines(File::Answers).len()), (2, 1));
    assert_eq!(memory.lines(File::Answers)[0]["text"], answer["choices"][0]["message"]["content"]);
    server.stop();
    let server = Server::start(&setting);
    let progress = server.get("/api/progress").json();
    assert_eq!((&progress["tasks"]["total"], &progress["labelers"][0]["rankings"]), (&json!(1), &json!(1)));
    assert_eq!(server.post_as(TOKEN, "/api/feedback", &ranking).json(), json!({ "saved": "k1" }));
    let export = server.get("/api/export.jsonl").body;
    let record: Value = serde_json::from_str(export.lines().next().unwrap()).unwrap();
    assert_eq!((export.lines().count(), &record["id"]), (1, &json!("k1")));
    let retract = json!({ "key": "k3", "retracts": "k1" });
    assert_eq!(server.post_as("b0b", "/api/retract", &retract).status, 403);
    assert_eq!(server.post_as(TOKEN, "/api/retract", &retract).json(), json!({ "saved": "k3" }));
    assert_eq!(server.get("/api/export.jsonl").body, "");
    assert_eq!(server.post_as(TOKEN, "/api/task/next", &json!({ "kind": "rank" })).json()["task"], next["task"]);
}

#[test]
fn a_labeler_sees_what_is_his_own_and_takes_nothing_out() {
    let server = Server::start(&Setting::default());
    let as_bob = |path: &str| {
        server.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: instruct-{}=b0b\r\n\r\n",
            server.at,
            server.at.port()
        ))
    };
    assert_eq!(as_bob("/api/session").json()["role"], "labeler");
    assert_eq!(as_bob("/api/export.jsonl").status, 403);
    assert_eq!(as_bob("/api/progress").json()["labelers"], json!([]));
    assert_eq!(as_bob("/api/guidelines").json()["markdown"], "# Be kind");
    assert_eq!(server.send(&format!("GET /api/progress HTTP/1.1\r\nHost: {}\r\n\r\n", server.at)).status, 401);
}

/// Scores that are being worked out are counted, since they go on when a client has gone.
#[test]
fn no_more_texts_are_scored_at_a_time_than_there_is_room_for() {
    let setting = Setting::default();
    let server = Server::start(&setting);
    let held = setting.held.lock().unwrap();
    let (tell, telling) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..9 {
            let (server, tell) = (&server, tell.clone());
            scope.spawn(move || tell.send(server.post("/get_reward", &json!({ "query": ["ab"] }))).unwrap());
        }
        let told = || telling.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        let first = told();
        assert_eq!(first.status, 429, "eight wait and one is sent away: {first:?}");
        assert!(first.head.contains("retry-after: 1"), "{first:?}");
        drop(held);
        let rest: Vec<u16> = (0..8).map(|_| told().status).collect();
        assert_eq!(rest, [200; 8]);
    });
    assert_eq!(server.post("/get_reward", &json!({ "query": ["ab"] })).status, 200);
}

#[test]
fn whoever_reads_more_than_a_person_is_slowed_down() {
    let server = Server::start(&Setting::default());
    let read = || server.get("/api/guidelines").status;
    assert!((0..240).all(|_| read() == 200));
    assert_eq!(read(), 429);
}
