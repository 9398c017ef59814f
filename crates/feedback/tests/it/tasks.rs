//! Tasks of prompts and sampled completions.

use crate::{completion, task};
use instruct_data::{Content, Conversation, Message, Origin, Prompt, Role};
use instruct_feedback::*;
use std::collections::{BTreeMap, BTreeSet};

fn prompt(id: &str, text: &str) -> Prompt {
    Prompt {
        id: id.to_owned(),
        content: Content::Text(text.to_owned()),
        user: Some("user-7".to_owned()),
        use_case: Some("chat".to_owned()),
        origin: Origin::new("prompts.jsonl", 1),
    }
}

fn sampled(text: &str, completions: &[(&str, &str)]) -> Sampled {
    let own = |(model, text): &(&str, &str)| ((*model).to_owned(), (*text).to_owned());
    Sampled { prompt: prompt("p", text), completions: completions.iter().map(own).collect() }
}

#[test]
fn equal_texts_are_one_completion() {
    let asked = sampled("Hi", &[("ppo", "a"), ("sft", "b"), ("sft", "a"), ("ppo", "a"), ("ppo", "")]);
    let made = tasks_from(&[asked], 1).unwrap();
    let [task] = made.tasks.as_slice() else { panic!("{made:?}") };
    let models: BTreeMap<&str, &Vec<String>> =
        task.completions.iter().map(|completion| (completion.text.as_str(), &completion.models)).collect();
    let want = [("", vec!["ppo"]), ("a", vec!["ppo", "sft"]), ("b", vec!["sft"])];
    assert_eq!(
        models
            .into_iter()
            .map(|(text, models)| (text, models.iter().map(String::as_str).collect()))
            .collect::<Vec<_>>(),
        want
    );
    assert_eq!(task.messages, [Message::new(Role::User, "Hi")]);
    assert_eq!(
        (task.user.as_deref(), task.use_case.as_deref(), task.kind),
        (Some("user-7"), Some("chat"), TaskKind::Rank)
    );
}

#[test]
fn what_gives_no_task_is_counted() {
    let all = [
        sampled("one", &[("ppo", "a"), ("sft", "b")]),
        sampled("same", &[("ppo", "a"), ("sft", "a")]),
        sampled("none", &[]),
        // The same completions by others, in another order.
        sampled("one", &[("base", "b"), ("sft", "a")]),
        sampled("one", &[("ppo", "a"), ("sft", "c")]),
        sampled("nul", &[("ppo", "a"), ("sft", "b\0"), ("base", "c")]),
    ];
    let made = tasks_from(&all, 1).unwrap();
    assert_eq!((made.too_few, made.repeated, made.unusable), (vec![1, 2], vec![3], 1));
    assert_eq!(made.tasks.iter().map(|task| task.completions.len()).collect::<Vec<_>>(), [2, 2, 2]);
    let names: BTreeSet<&str> = made.tasks.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(names.len(), 3);
    let texts: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    let many: Vec<(&str, &str)> = texts.iter().map(|text| ("ppo", text.as_str())).collect();
    let fault = tasks_from(&[sampled("many", &many)], 1).unwrap_err();
    assert_eq!(fault.to_string(), "`completions of `p``: 17 values, where at most 16 belong");
    assert_eq!(tasks_from(&[sampled("many", &many[..16])], 1).unwrap().tasks.len(), 1);
}

#[test]
fn names_follow_the_content_and_numbers_the_seed() {
    let completions = [("ppo", "a"), ("sft", "b"), ("base", "c"), ("gpt", "d")];
    let mut turned = completions;
    turned.reverse();
    let one =
        |completions: &[(&str, &str)], seed| tasks_from(&[sampled("Hi", completions)], seed).unwrap().tasks.remove(0);
    let first = one(&completions, 1);
    assert_eq!(first, one(&turned, 1), "the order of sampling leaves no trace");
    assert!(first.id.starts_with("t-") && first.id.len() == 18, "{}", first.id);
    let numbers: BTreeSet<Vec<String>> = (0..100)
        .map(|seed| {
            let task = one(&completions, seed);
            assert_eq!(task.id, first.id);
            task.completions.into_iter().map(|completion| completion.text).collect()
        })
        .collect();
    // 24 orders, of which 100 draws leave few unseen: none of a slot tells the model.
    assert!(numbers.len() > 18, "{}", numbers.len());
    // A message of the user is a text; more is a conversation.
    let system = vec![Message::new(Role::System, "Be kind."), Message::new(Role::User, "Hi")];
    let mut asked = sampled("Hi", &completions);
    asked.prompt.content = Content::Messages(Conversation { messages: system.clone() });
    let other = tasks_from(&[asked], 1).unwrap().tasks.remove(0);
    assert!(other.id != first.id && other.messages == system);
}

#[test]
fn demonstrations_have_no_completions() {
    let task = Task::demonstrate(&prompt("p", "Hi"));
    assert_eq!((task.kind, task.completions.len(), task.messages.len()), (TaskKind::Demonstrate, 0, 1));
    assert_eq!(State::new(Settings::default()).add_task(task), Ok(Applied::Saved));
}

#[test]
fn an_answer_that_names_a_model_is_noticed() {
    #[track_caller]
    fn check(text: &str, models: [&str; 2], want: bool) {
        let mut task = task("t", 2);
        task.completions = vec![completion(text, models[0]), completion("other", models[1])];
        assert_eq!(task.names_model(0), want, "{text}");
        assert!(!task.names_model(2));
    }
    check("I am SmolLM2, a small model.", ["SmolLM2-135M-Instruct", "x"], true);
    check("i am smollm.", ["SmolLM2-135M-Instruct", "x"], true);
    check("Llamas eat grass.", ["Llama-3-8B", "x"], false);
    check("I am Llama.", ["ppo-ptx", "Llama-3-8B"], true);
    check("As PPO-PTX, I think so.", ["ppo-ptx", "x"], true);
    check("A ppo is a policy.", ["ppo-ptx", "x"], false);
    check("", ["ppo-ptx", "x"], false);
    check("An axis.", ["x", "x"], false);
}
