//! What real clients send (recorded by `clients.py` with openai 3.57.0, curl and litellm 1.110.2), answered.

use crate::{Server, Setting};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("clients.json");

#[test]
fn what_real_clients_send_is_answered_in_the_shape_that_they_read() {
    let server = Server::start(&Setting::default());
    let recorded: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    for row in &recorded {
        let (client, body) = (row["client"].as_str().unwrap(), &row["body"]);
        let answer = server.post(row["path"].as_str().unwrap(), body);
        assert_eq!(answer.status, 200, "{client}: {answer:?}");
        let choices = if body["stream"] == true {
            let events = answer.events();
            let usage = events.last().unwrap()["usage"]["completion_tokens"].as_u64();
            assert_eq!(usage.is_some(), body["stream_options"]["include_usage"] == true, "{client}");
            assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"), "{client}");
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant", "{client}");
            1
        } else {
            let whole = answer.json();
            assert!(whole["usage"]["total_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64(), "{client}");
            whole["choices"].as_array().unwrap().len() as u64
        };
        let prompts = body["prompt"].as_array().map_or(1, Vec::len) as u64;
        assert_eq!(choices, prompts * body["n"].as_u64().unwrap_or(1), "{client}");
        let ignored = answer.head.lines().find_map(|line| line.strip_prefix("x-ignored: "));
        assert_eq!(ignored, (client == "openai").then_some("store, user"), "{client}");
    }
    let first = server.post("/v1/chat/completions", &recorded[0]["body"]).json();
    let told = &first["choices"][1]["logprobs"]["content"][0];
    assert_eq!(told["top_logprobs"].as_array().map(Vec::len), Some(2), "{first}");
    assert_eq!(told["bytes"], json!(told["token"].as_str().unwrap().as_bytes()));
}
