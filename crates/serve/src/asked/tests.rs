use super::*;
use serde_json::json;

fn hello() -> Value {
    json!([{ "role": "user", "content": "hello" }])
}

/// A chat with these fields, and a message.
fn with(fields: Value) -> Value {
    let mut body = json!({ "model": "m", "messages": hello() });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[track_caller]
fn refused(parse: fn(&[u8]) -> Result<Asked, Refusal>, body: &Value, param: Option<&str>, part: &str) {
    let refusal = parse(body.to_string().as_bytes()).unwrap_err();
    assert_eq!((refusal.status, refusal.param.as_deref()), (400, param), "{refusal}");
    assert!(refusal.message.contains(part), "{refusal}");
}

/// These fields of a chat change what is asked so.
#[track_caller]
fn taken(fields: Value, change: impl Fn(&mut Asked)) {
    let mut wanted = chat(with(json!({})).to_string().as_bytes()).unwrap();
    change(&mut wanted);
    assert_eq!(chat(with(fields.clone()).to_string().as_bytes()), Ok(wanted), "{fields}");
}

#[test]
fn defaults_are_those_of_the_interface() {
    let asked = chat(with(json!({})).to_string().as_bytes()).unwrap();
    let Asked { model, n, stream, temperature, top_p, top_k, max_tokens, stop, seed, logprobs, ignored, .. } = asked;
    assert_eq!((model.as_deref(), n, stream, temperature, top_p, top_k), (Some("m"), 1, false, 1.0, 1.0, 0));
    assert_eq!((max_tokens, stop, seed, logprobs, ignored), (None, vec![], None, None, vec![]));
    let text = completions(br#"{"prompt": "a"}"#).unwrap();
    assert_eq!((text.model, text.max_tokens), (None, Some(16)));
}

#[test]
fn what_changes_the_text_is_honoured() {
    taken(json!({"temperature": 0, "top_p": 0.5, "top_k": 7}), |a| (a.temperature, a.top_p, a.top_k) = (0.0, 0.5, 7));
    taken(json!({"max_tokens": 5}), |a| a.max_tokens = Some(5));
    taken(json!({"max_completion_tokens": 6, "max_tokens": 5}), |a| a.max_tokens = Some(6));
    taken(json!({"stop": "x"}), |a| a.stop = vec!["x".into()]);
    taken(json!({"stop": ["x", "y"]}), |a| a.stop = vec!["x".into(), "y".into()]);
    taken(json!({"seed": 18446744073709551615u64}), |a| a.seed = Some(u64::MAX));
    taken(json!({"seed": -1}), |a| a.seed = Some(u64::MAX));
    taken(json!({"n": 8, "stream": true}), |a| (a.n, a.stream) = (8, true));
    taken(json!({"stream_options": {"include_usage": true}}), |a| a.include_usage = true);
    taken(json!({"logprobs": true}), |a| a.logprobs = Some(0));
    taken(json!({"logprobs": true, "top_logprobs": 20}), |a| a.logprobs = Some(20));
}

#[test]
fn what_asks_for_nothing_is_harmless() {
    taken(json!({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}), |_| ());
    taken(json!({"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}), |_| ());
    taken(json!({"temperature": null, "tools": null, "stop": null, "seed": null}), |_| ());
    taken(json!({"ignore_eos": false, "min_tokens": 0, "grammar": "", "stop_token_ids": []}), |_| ());
    taken(json!({"modalities": ["text"], "repetition_penalty": 1.0, "min_p": 0}), |_| ());
    taken(json!({"user": "u", "store": false, "metadata": null}), |a| a.ignored = vec!["store".into(), "user".into()]);
}

#[test]
fn what_would_change_the_text_and_is_not_supported_is_refused_by_name() {
    for fields in [
        json!({"tools": [{"type": "function"}]}),
        json!({"functions": [{}]}),
        json!({"tool_choice": "required"}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"logit_bias": {"5": 1}}),
        json!({"presence_penalty": 0.5}),
        json!({"frequency_penalty": -1}),
        json!({"repetition_penalty": 1.1}),
        json!({"min_p": 0.1}),
        json!({"ignore_eos": true}),
        json!({"guided_json": {"type": "object"}}),
        json!({"stop_token_ids": [7]}),
        json!({"audio": {}}),
        json!({"modalities": ["text", "audio"]}),
    ] {
        let name = fields.as_object().unwrap().keys().next().unwrap().clone();
        refused(chat, &with(fields), Some(&name), "is not supported here");
    }
    for fields in [json!({"echo": true}), json!({"suffix": "s"}), json!({"best_of": 2})] {
        let name = fields.as_object().unwrap().keys().next().unwrap().clone();
        let mut body = json!({ "prompt": "a" });
        body[&name] = fields[&name].clone();
        refused(completions, &body, Some(&name), "is not supported here");
    }
}

#[test]
fn values_of_another_kind_or_range_are_refused_by_name() {
    refused(chat, &json!([1]), None, "must be a JSON object");
    refused(chat, &json!({}), Some("messages"), "at least one message");
    refused(chat, &json!({ "messages": [] }), Some("messages"), "at least one message");
    let rows = [
        ("temperature", json!("hot"), "must be a number"),
        ("temperature", json!(2.5), "must lie in 0..=2"),
        ("temperature", json!(-0.1), "must lie in 0..=2"),
        ("top_p", json!(0), "above 0"),
        ("top_p", json!(1.1), "must lie in 0..=1"),
        ("n", json!(0), "must lie in 1..=8"),
        ("n", json!(9), "must lie in 1..=8"),
        ("n", json!(1.5), "a whole number"),
        ("max_tokens", json!(0), "must lie in 1.."),
        ("top_logprobs", json!(21), "must lie in 0..=20"),
        ("top_logprobs", json!(2), "needs `logprobs`"),
        ("stream", json!("yes"), "true or false"),
        ("seed", json!("one"), "a whole number"),
        ("stop", json!([1]), "a string or a list of strings"),
        ("stop", json!(""), "an empty text"),
        ("stop", json!(vec!["x"; 17]), "at most 16"),
        ("model", json!(7), "must be a string"),
    ];
    for (name, value, part) in rows {
        refused(chat, &with(json!({ name: value })), Some(name), part);
    }
}

/// The messages become this conversation, or are refused so.
#[track_caller]
fn check_messages(messages: Value, wanted: Result<&[(&str, &str)], &str>) {
    let found = chat(json!({ "messages": messages }).to_string().as_bytes());
    match (found, wanted) {
        (Ok(Asked { input: Input::Chat(Conversation { messages }), .. }), Ok(wanted)) => {
            let found: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
            assert_eq!(found, wanted);
        }
        (Err(refusal), Err(part)) => assert!(refusal.message.contains(part), "{refusal}"),
        (found, wanted) => panic!("{found:?}, wanted {wanted:?}"),
    }
}

#[test]
fn messages_are_read_as_clients_write_them() {
    let user = |content: Value| json!([{ "role": "user", "content": content }]);
    check_messages(user(json!("a")), Ok(&[("user", "a")]));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]);
    check_messages(user(parts), Ok(&[("user", "a b")]));
    let standing = json!([{"role": "developer", "content": "be brief"}, {"role": "user", "name": "x", "content": "a"}]);
    check_messages(standing, Ok(&[("system", "be brief"), ("user", "a")]));
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": []},
        {"role": "user", "content": "c"}]);
    check_messages(turns, Ok(&[("user", "a"), ("assistant", "b"), ("user", "c")]));
    let silent = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "c"}]);
    let wanted = [("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", ""), ("user", "c")];
    check_messages(silent, Ok(&wanted));
    check_messages(user(json!([{"type": "image_url", "image_url": {}}])), Err("part of type `image_url`"));
    check_messages(user(json!("")), Err("messages[0]` says nothing"));
    check_messages(user(Value::Null), Err("needs `content`"));
    check_messages(json!([{"content": "a"}]), Err("needs a `role`"));
    check_messages(json!([{"role": "owl", "content": "a"}]), Err("unknown role `owl`"));
    check_messages(json!([{"role": "assistant", "content": "a"}]), Err("must end with what the model is to answer"));
    let called = json!([{"role": "assistant", "content": "a", "tool_calls": [{}]}, {"role": "user", "content": "b"}]);
    check_messages(called, Err("has `tool_calls`"));
}

#[test]
fn prompts_are_words_or_ids_one_or_several() {
    let check = |prompt: Value, wanted: Option<Vec<Prompt>>| {
        let found = completions(json!({ "prompt": prompt }).to_string().as_bytes()).ok().map(|asked| asked.input);
        assert_eq!(found, wanted.map(Input::Texts), "{prompt}");
    };
    let text = |text: &str| Prompt::Text(text.into());
    check(json!("a"), Some(vec![text("a")]));
    check(json!(["a", "b"]), Some(vec![text("a"), text("b")]));
    check(json!([1, 2]), Some(vec![Prompt::Ids(vec![1, 2])]));
    check(json!([[1], [2, 3]]), Some(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]));
    for none in [json!(""), json!([]), json!([[]]), json!([""]), json!([-1]), json!(null), json!(vec!["a"; 9])] {
        check(none, None);
    }
}
