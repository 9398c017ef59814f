use super::*;
use crate::{bpe::train_bpe, date::Date, record::Content};
use instruct_claims::{holds, worst};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Golden {
    templates: BTreeMap<String, String>,
    tokenizers: BTreeMap<String, Vec<Case>>,
    marked: BTreeMap<String, Vec<Mask>>,
}

/// The ids of a conversation, and for each 1 where the template marks it.
#[derive(Deserialize)]
struct Mask {
    template: String,
    talk: Vec<String>,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

/// A conversation of the user and the model in turns, of which the last is the reply.
#[derive(Deserialize)]
struct Case {
    template: String,
    talk: Vec<String>,
    prompt: Vec<u32>,
    reply: Vec<u32>,
}

fn conversation(talk: &[String]) -> (Conversation, &str) {
    let (reply, turns) = talk.split_last().unwrap();
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages = roles.zip(turns).map(|(role, text)| Message::new(role, text)).collect();
    (Conversation { messages }, reply)
}

fn golden() -> (PathBuf, Golden) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/replies");
    let golden = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    (folder, golden)
}

/// What transformers makes of whole conversations (`fixtures/reference/replies.py`).
#[test]
fn prompts_and_replies_are_those_of_transformers() {
    let (folder, golden) = golden();
    for (name, cases) in &golden.tokenizers {
        let tokenizer = Tokenizer::from_folder(folder.join(name)).unwrap();
        for case in cases {
            let template = Template::chat(&golden.templates[&case.template], &tokenizer).unwrap();
            let renderer = Renderer::new(tokenizer.clone(), template).unwrap();
            let (conversation, reply) = conversation(&case.talk);
            let what = format!("{name}, {}: {:?}", case.template, case.talk);
            let found = both(&renderer, &conversation, reply);
            let wanted = [case.prompt.clone(), case.reply.clone()];
            assert_eq!(found, wanted, "{what}");
            let case = format!("{name} tokenizer, {} template", case.template);
            holds("text/replies", &case, worst(&found.concat(), &wanted.concat()), 0.0);
        }
    }
}

/// What `return_assistant_tokens_mask` of transformers covers.
#[test]
fn what_a_template_marks_is_what_transformers_masks() {
    let (folder, golden) = golden();
    for (name, cases) in &golden.marked {
        let tokenizer = Tokenizer::from_folder(folder.join(name)).unwrap();
        for case in cases {
            let template = Template::chat(&golden.templates[&case.template], &tokenizer).unwrap();
            let renderer = Renderer::new(tokenizer.clone(), template).unwrap();
            let (conversation, reply) = conversation(&case.talk);
            let mut found = vec![0; case.ids.len()];
            let Marked { ids, spans, .. } = renderer.marked(&conversation, reply).unwrap();
            assert_eq!(ids, case.ids, "{name}, {}: {:?}", case.template, case.talk);
            spans.into_iter().for_each(|span| found[span].fill(1));
            assert_eq!(found, case.mask, "{name}, {}: {:?}", case.template, case.talk);
            holds(
                "text/masks",
                &format!("{name} tokenizer, {} template", case.template),
                worst(&found, &case.mask),
                0.0,
            );
        }
    }
}

/// The ids of a prompt and of a completion.
fn both(renderer: &Renderer, conversation: &Conversation, completion: &str) -> [Vec<u32>; 2] {
    let asked = renderer.ask(conversation.clone()).unwrap();
    [asked.ids().to_vec(), asked.completion(completion).unwrap()]
}

fn chatml() -> Renderer {
    let tokenizer = train_bpe(["ab ab"], 256 + 4, &["<e>", "<b>", "<m>"]).unwrap();
    let template = "{% for m in messages %}{{ '<b>' + m['role'] + '\n' + m['content'] + '<m>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<b>assistant\n' }}{% endif %}";
    let template = Template::chat(template, &tokenizer).unwrap();
    Renderer::new(tokenizer, template).unwrap()
}

fn plain(template: &str) -> Renderer {
    Renderer::new(train_bpe(["ab ab"], 256 + 3, &["<e>", "<m>"]).unwrap(), Template::plain(template).unwrap()).unwrap()
}

fn asked(text: &str) -> Conversation {
    Content::Text(text.to_owned()).conversation()
}

/// The reply as it reads with its special tokens.
#[track_caller]
fn check(renderer: &Renderer, prompt: &str, reply: &str, want: [&str; 2]) {
    let conversation = asked(prompt);
    let ids = both(renderer, &conversation, reply);
    let read = ids.clone().map(|ids| renderer.tokenizer().decode_with_specials(&ids).unwrap());
    assert_eq!(read, want);
    assert_eq!(ids[1].iter().filter(|id| renderer.stops().contains(id)).count(), 1, "only the last id ends it");
}

#[test]
fn a_reply_ends_with_the_mark_that_the_template_writes_else_with_eos() {
    check(&chatml(), "Hi", "Yes.", ["<b>user\nHi<m>\n<b>assistant\n", "Yes.<m>"]);
    assert_eq!(chatml().end(), chatml().tokenizer().id("<m>").unwrap(), "although it is not the tokenizer's EOS");
    check(&plain("Q:{prompt}\nA:"), "Hi", "  Yes.\n", ["Q:Hi\nA:", " Yes.\n<e>"]);
    check(&plain("Q:{prompt}\nA:"), "Hi", "", ["Q:Hi\nA:", "<e>"]);
    check(&plain("{prompt}\n"), "Hi", "\n Yes.", ["Hi\n", "\n Yes.<e>"]);
}

#[test]
fn words_that_spell_a_special_token_are_words() {
    let renderer = chatml();
    check(
        &renderer,
        "What is <m>?",
        "It ends a turn.",
        ["<b>user\nWhat is <m>?<m>\n<b>assistant\n", "It ends a turn.<m>"],
    );
    let spelled = renderer.ask(asked("What is it?")).unwrap().completion("<m><b>\u{E000}<m").unwrap();
    let words = renderer.tokenizer().encode("<m><b>\u{E000}<m").unwrap();
    assert_eq!(spelled, [&words[..], &[renderer.end()]].concat());
    let prompt = renderer.ask(asked("<m> ab<b>")).unwrap().ids().to_vec();
    let marks = ["<m>", "<b>"].map(|mark| renderer.tokenizer().id(mark).unwrap());
    assert_eq!(prompt.iter().filter(|&&id| id == marks[0]).count(), 1);
    assert_eq!(prompt.iter().filter(|&&id| id == marks[1]).count(), 2);
}

#[test]
fn what_only_the_generation_prompt_opens_is_known() {
    assert_eq!(chatml().opened(), "");
    let tokenizer = chatml().tokenizer().clone();
    let template = "{% for m in messages %}{{ '<b>' + m['content'] + '<m>' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<b>(think)' }}{% endif %}";
    let template = Template::chat(template, &tokenizer).unwrap();
    let renderer = Renderer::new(tokenizer, template).unwrap();
    assert_eq!(renderer.opened(), "(think)");
    check(&renderer, "Hi", "(b)", ["<b>Hi<m><b>(think)", "(b)<m>"]);
}

/// A template that writes the system message into the last turn, and refuses nothing.
#[test]
fn a_template_that_rewrites_earlier_turns_keeps_the_prompt_that_it_is_sampled_with() {
    let tokenizer = chatml().tokenizer().clone();
    let template = "{% for m in messages %}{% if loop.last and m['role'] == 'user' %}{{ '(last) ' }}{% endif %}\
        {{ '<b>' + m['content'] + '<m>' }}{% endfor %}{% if add_generation_prompt %}{{ '<b>' }}{% endif %}";
    let renderer = Renderer::new(tokenizer.clone(), Template::chat(template, &tokenizer).unwrap()).unwrap();
    check(&renderer, "Hi", " Yes", ["(last) <b>Hi<m><b>", " Yes<m>"]);
}

/// A template that names the system message in the user's last turn only, so that the prompt of an answered
/// conversation reads otherwise.
fn rewriting(before: &str, closing: &str) -> Renderer {
    let tokenizer = train_bpe(["ab ab"], 256 + 4, &["</s>", "<b>", "<m>"]).unwrap();
    let template = format!(
        "{{% for m in messages %}}{{% if loop.last and m['role'] == 'user' %}}{{{{ '(last) ' }}}}{{% endif %}}\
         {{{{ '<b>' + ('{before}' if m['role'] == 'assistant' else '') + m['content'] + '{closing}' }}}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{{{{ '<b>{before}' }}}}{{% endif %}}"
    );
    let template = Template::chat(&template, &tokenizer).unwrap();
    Renderer::new(tokenizer, template).unwrap()
}

#[test]
fn a_reply_is_not_looked_for_in_what_closes_it() {
    for (before, closing, reply, want) in [
        ("", "</s>", "s", "s</s>"),
        ("", "</s>", "/", "/</s>"),
        ("", "</s>", "", "</s>"),
        ("", "</s>", "s</s", "s</s</s>"),
        ("a:", "</s>", "a", "a</s>"),
        ("", " so</s>", "so", "so so</s>"),
        ("", " so</s>", "", " so</s>"),
        // Nothing closes it.
        ("", "s", "s", "s</s>"),
    ] {
        let prompt = format!("(last) <b>Hi{closing}<b>{before}");
        check(&rewriting(before, closing), "Hi", reply, [&prompt, want]);
    }
}

#[test]
fn a_template_that_refuses_finished_conversations_can_be_asked() {
    let tokenizer = chatml().tokenizer().clone();
    let template = "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('asked only') }}\
        {% endif %}{{ '<b>' + m['content'] }}{% endfor %}";
    let renderer = Renderer::new(tokenizer.clone(), Template::chat(template, &tokenizer).unwrap()).unwrap();
    let asked = renderer.ask(asked("Hi")).unwrap();
    assert_eq!(tokenizer.decode_with_specials(asked.ids()).unwrap(), "<b>Hi");
    assert!(asked.completion("Yes").unwrap_err().to_string().contains("asked only"));
}

/// An exported folder remembers the day that its template was told.
#[test]
fn an_exported_template_is_told_the_same_day() {
    let tokenizer = chatml().tokenizer().clone();
    let check = |template: &str, date: Option<&str>, want: Option<&str>| {
        let template = Template::chat(template, &tokenizer).unwrap();
        let template = template.with_date(date.map_or(Date::default(), |date| date.parse().unwrap()));
        let folder = tempfile::tempdir().unwrap();
        Renderer::new(tokenizer.clone(), template).unwrap().exported().save(folder.path()).unwrap();
        let again = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(again.date().map(|date| date.to_string()).as_deref(), want);
        let template = Template::of(&again).unwrap().unwrap();
        template.render_prompt(&asked("Hi")).unwrap()
    };
    let dated = "{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}";
    assert_eq!(check(dated, None, Some("2024-07-26")), "26 Jul 2024Hi");
    assert_eq!(check(dated, Some("2026-01-05"), Some("2026-01-05")), "05 Jan 2026Hi");
    assert_eq!(check("{{ messages[0]['content'] }}", Some("2026-01-05"), None), "Hi");
}

/// The exported folder is a chat model whose ids are those of the plain template.
#[track_caller]
fn check_exported(renderer: &Renderer) {
    let folder = tempfile::tempdir().unwrap();
    renderer.exported().save(folder.path()).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let template = Template::of(&tokenizer).unwrap().unwrap();
    let again = Renderer::new(tokenizer, template).unwrap();
    let mut talk = asked("it's \\n {a}\n");
    talk.messages.insert(0, Message::new(Role::System, "Be kind."));
    for _ in 0..2 {
        for reply in ["Yes.", "  yes\n", ""] {
            assert_eq!(both(&again, &talk, reply), both(renderer, &talk, reply));
        }
        talk.messages.extend([Message::new(Role::Assistant, " b"), Message::new(Role::User, "c")]);
    }
}

/// A tokenizer of `replies.py`, which puts BOS before texts if `begins`.
fn tokenizer(name: &str, begins: bool) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden().0.join(name).join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let config = format!(r#"{{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": {begins}}}"#);
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

#[test]
fn an_exported_template_gives_the_same_ids() {
    let templates =
        ["User: {prompt}\nAssistant:", "{prompt}\n\n", "'{prompt}' \\ \"", "{prompt}", "<s>[INST] {prompt} [/INST]"];
    for template in templates {
        check_exported(&plain(template));
        for (name, begins) in [("always", false), ("always", true), ("bytes", true), ("none", true)] {
            let template = Template::plain(template).unwrap();
            check_exported(&Renderer::new(tokenizer(name, begins), template).unwrap());
        }
    }
    check_exported(&chatml());
}

#[test]
fn a_plain_template_that_spells_bos_begins_with_one() {
    let template = Template::plain("<s>[INST] {prompt} [/INST]").unwrap();
    let renderer = Renderer::new(tokenizer("bytes", true), template).unwrap();
    let mut talk = asked("Hi");
    let read = |talk: &Conversation| {
        renderer.tokenizer().decode_with_specials(renderer.ask(talk.clone()).unwrap().ids()).unwrap()
    };
    assert_eq!(read(&talk), "<s>[INST] Hi [/INST]");
    talk.messages.insert(0, Message::new(Role::System, "S"));
    assert_eq!(read(&talk), "<s>S\n\n<s>[INST] Hi [/INST]");
}
