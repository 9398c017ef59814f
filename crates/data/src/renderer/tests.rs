use super::*;
use crate::{bpe::train_bpe, record::Content};
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
            for (before, span) in renderer.marked(&conversation, reply).unwrap() {
                let covered = before.len()..before.len() + span.len();
                assert_eq!(
                    [before, span].concat(),
                    case.ids[..covered.end],
                    "{name}, {}: {:?}",
                    case.template,
                    case.talk
                );
                found[covered].fill(1);
            }
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

#[test]
fn an_exported_template_gives_the_same_ids() {
    for template in ["User: {prompt}\nAssistant:", "{prompt}\n\n", "'{prompt}' \\ \"", "{prompt}"] {
        check_exported(&plain(template));
        let spm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/replies/always");
        let spm = Tokenizer::from_folder(spm).unwrap();
        check_exported(&Renderer::new(spm, Template::plain(template).unwrap()).unwrap());
    }
    check_exported(&chatml());
}
