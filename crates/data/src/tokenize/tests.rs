use super::*;
use crate::{
    bpe::train_bpe,
    origin::Origin,
    packed::Packed,
    read::{read, tests::shared},
    record::{Conversation, Message, Role},
    shapes::house::comparison,
    template::Template,
};

fn tokenizer() -> Tokenizer {
    train_bpe(["aa bb aa bb"], 259, &["<e>"]).unwrap()
}

fn prompt(line: usize, text: &str) -> Prompt {
    let content = Content::Text(text.to_owned());
    Prompt { id: line.to_string(), content, user: None, use_case: None, origin: Origin::new("f.jsonl", line) }
}

struct Case {
    renderer: Renderer,
}

impl Case {
    fn new() -> Case {
        Case { renderer: Renderer::new(tokenizer(), Template::plain("Q:{prompt}\nA:").unwrap()).unwrap() }
    }

    /// Caps in bytes, nearly: this tokenizer knows two merges.
    fn encoder(&self, prompt: usize, completion: usize, overlong: Overlong) -> Encoder<'_> {
        Encoder { renderer: &self.renderer, caps: Caps { prompt, completion }, overlong, loss: Loss::Last }
    }

    fn read(&self, ids: &[u32]) -> String {
        self.renderer.tokenizer().decode(ids).unwrap()
    }
}

#[test]
fn a_demonstration_is_a_prompt_and_a_completion_that_ends() {
    let case = Case::new();
    let encoder = case.encoder(64, 64, Overlong::Refuse);
    let record = Demonstration { prompt: prompt(1, "x"), completion: "  yes".to_owned() };
    let (tokens, report) = encoder.demonstrations(&[record]).unwrap();
    let DemonstrationTokens { record: 0, prompt, completion } = &tokens[0] else { panic!("{tokens:?}") };
    assert_eq!(case.read(prompt), "Q:x\nA:");
    assert_eq!(case.read(completion), " yes");
    assert_eq!(completion.last(), Some(&case.renderer.end()));
    assert_eq!(report, EncodeReport { kept: 1, ..EncodeReport::default() });
    let mut batch = Packed::new();
    batch.push_pair(prompt, completion, 0, 1.0);
    assert_eq!(batch.predictions().last().map(|p| p.target), Some(case.renderer.end()), "EOS is in the loss");
}

#[test]
fn prompts_beyond_the_cap_are_refused_dropped_or_cut() {
    let case = Case::new();
    let text = "line one\nline two\n\nline three";
    let long = [prompt(1, "short"), prompt(2, text), prompt(3, "one very long line without an end")];
    let refused = case.encoder(24, 9, Overlong::Refuse).prompts(&long).unwrap_err().to_string();
    assert_eq!(refused.lines().count(), 3, "{refused}");
    assert!(refused.contains("f.jsonl:2: field `prompt` is 34 tokens long, the limit is 24; shorten it"), "{refused}");
    let (kept, report) = case.encoder(24, 9, Overlong::Drop).prompts(&long).unwrap();
    assert_eq!(kept.iter().map(|p| p.record).collect::<Vec<_>>(), [0]);
    assert_eq!((report.kept, report.long_prompts, report.cut), (1, 2, 0));
    let (kept, report) = case.encoder(24, 9, Overlong::CutPrompt).prompts(&long).unwrap();
    assert_eq!((report.kept, report.long_prompts, report.cut), (2, 1, 1));
    assert_eq!(case.read(&kept[1].prompt), "Q:line one\nline two\nA:");
    let messages = vec![Message::new(Role::User, text)];
    let talk = Prompt { content: Content::Messages(Conversation { messages }), ..prompt(4, "") };
    let (_, report) = case.encoder(24, 9, Overlong::CutPrompt).prompts(&[talk]).unwrap();
    assert_eq!((report.kept, report.long_prompts), (0, 1), "conversations are not cut");
}

#[test]
fn completions_beyond_the_cap_leave_their_group() {
    let case = Case::new();
    let ranking = |line, completions: &[&str], ranks: &[u32]| Ranking {
        completions: completions.iter().map(|&c| c.to_owned()).collect(),
        ranks: ranks.to_vec(),
        ..comparison(prompt(line, "x"), Default::default())
    };
    let records =
        [ranking(1, &["yes", "", "much too long"], &[2, 3, 1]), ranking(2, &["much too long", "no"], &[1, 2])];
    let (kept, report) = case.encoder(64, 6, Overlong::Drop).rankings(&records).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0].ranks[..], &kept[0].kept[..]), (&[2, 3][..], &[0, 1][..]));
    assert_eq!(kept[0].completions[1], [case.renderer.end()], "silence is EOS alone");
    assert_eq!((report.kept, report.long_completions, report.incomplete), (1, 2, 1));
    let refused = case.encoder(64, 6, Overlong::Refuse).rankings(&records).unwrap_err().to_string();
    assert!(refused.contains("f.jsonl:1: field `completions[2]` is "), "{refused}");
}

#[test]
fn equal_completions_are_counted_pair_by_pair() {
    let case = Case::new();
    let completions = ["yes", "no", " yes"].map(str::to_owned).into();
    let ranking = Ranking { completions, ranks: vec![1, 2, 3], ..comparison(prompt(1, "x"), Default::default()) };
    let (kept, report) = case.encoder(64, 64, Overlong::Refuse).rankings(&[ranking]).unwrap();
    assert_eq!((kept[0].completions.len(), report.equal_pairs), (3, 1), "the template strips the space");
}

#[test]
fn messages_that_a_template_does_not_write_are_counted_once_a_record() {
    let deaf = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}|\
        {% endgeneration %}{% elif m.role != 'tool' %}{{ m.content }}|{% endif %}{% endfor %}";
    let talk = |role: &str| {
        let turns = [(Role::User, "a"), (Role::named(role).unwrap(), "4"), (Role::Assistant, "b"), (Role::User, "c")];
        let messages = turns.into_iter().map(|(role, said)| Message::new(role, said)).collect();
        let prompt = Prompt { content: Content::Messages(Conversation { messages }), ..prompt(1, "") };
        Demonstration { prompt, completion: "d".to_owned() }
    };
    let renderer = Renderer::new(tokenizer(), Template::chat(deaf, &tokenizer()).unwrap()).unwrap();
    let caps = Caps { prompt: 64, completion: 64 };
    for loss in [Loss::All, Loss::Generation] {
        let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Refuse, loss };
        let (kept, report) = encoder.demonstrations(&[talk("tool"), talk("developer")]).unwrap();
        assert_eq!((kept.len(), report.unwritten), (4, 1), "{loss:?}");
    }
}

#[test]
fn records_that_spell_special_tokens_are_words_and_counted() {
    let case = Case::new();
    let records = [prompt(1, "what is <e>?"), prompt(2, "what is e?")];
    let (kept, report) = case.encoder(64, 64, Overlong::Refuse).prompts(&records).unwrap();
    assert_eq!((kept.len(), report.kept, report.special_tokens), (2, 2, 1));
    assert!(!kept[0].prompt.contains(&case.renderer.end()), "the model is not told that a text ends");
    assert_eq!(case.read(&kept[0].prompt), "Q:what is <e>?\nA:");
    let record = Demonstration { prompt: prompt(3, "x"), completion: "<e> is a mark".to_owned() };
    let (kept, report) = case.encoder(64, 64, Overlong::Refuse).demonstrations(&[record]).unwrap();
    assert_eq!((case.read(&kept[0].completion).as_str(), report.special_tokens), (" <e> is a mark", 1));
}

/// Several pieces at once say what the records say one by one.
#[test]
fn many_records_are_encoded_as_each_alone() {
    let case = Case::new();
    let text = |i: usize| format!("{}{i}", ["", "a line\n", "<e> ", "much too long "][i % 4].repeat(1 + i % 3));
    let records: Vec<Prompt> = (0..5 * PIECE + 7).map(|i| prompt(i, &text(i))).collect();
    let encoder = case.encoder(20, 20, Overlong::CutPrompt);
    let (tokens, report) = encoder.prompts(&records).unwrap();
    let (mut alone, mut counted) = (Vec::new(), EncodeReport::default());
    for (record, own) in records.iter().enumerate() {
        let (tokens, report) = encoder.prompts(std::slice::from_ref(own)).unwrap();
        alone.extend(tokens.into_iter().map(|tokens| PromptTokens { record, ..tokens }));
        counted.add(&report);
    }
    assert_eq!((tokens, report), (alone, counted));
    assert!(report.cut > 0 && report.long_prompts > 0 && report.special_tokens > 0, "{report:?}");

    let refused = case.encoder(20, 20, Overlong::Refuse).prompts(&records).unwrap_err();
    let Error::Problems(Problems(problems)) = refused else { panic!("{refused}") };
    let lines: Vec<usize> = problems.iter().map(|problem| problem.origin.line).collect();
    assert!(lines.len() > 2 && lines.is_sorted(), "{lines:?}");
}

/// Of two records that the template refuses the first is named, whichever is encoded first.
#[test]
fn the_first_error_is_that_of_the_first_record() {
    let template = "{% if messages[0].content is string and 'bad' in messages[0].content %}\
        {{ raise_exception(messages[0].content) }}{% endif %}{{ messages[0].content }}";
    let renderer = Renderer::new(tokenizer(), Template::chat(template, &tokenizer()).unwrap()).unwrap();
    let (caps, loss) = (Caps { prompt: 64, completion: 64 }, Loss::Last);
    let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Drop, loss };
    let text = |i: usize| {
        if [3 * PIECE - 1, 3 * PIECE + 1, 5 * PIECE].contains(&i) { format!("bad {i}") } else { i.to_string() }
    };
    let records: Vec<Prompt> = (0..6 * PIECE).map(|i| prompt(i, &text(i))).collect();
    let message = encoder.prompts(&records).unwrap_err().to_string();
    assert!(message.contains(&format!("bad {}", 3 * PIECE - 1)), "{message}");
}

#[test]
fn text_becomes_windows_with_eos_between_documents() {
    let tokenizer = tokenizer();
    let text = |text: &str| PretrainText { text: text.to_owned(), origin: Origin::new("t.txt", 1) };
    let (windows, left_over) = text_windows(&tokenizer, &[text("xyz"), text("uv")], 3).unwrap();
    let eos = tokenizer.eos();
    assert_eq!((windows.len(), left_over), (2, 1));
    assert_eq!(windows[1][0], eos);
    assert_eq!(tokenizer.decode(&windows.concat()).unwrap(), "xyzuv");
    assert_eq!(Caps::halves(9), Caps { prompt: 4, completion: 5 });
}

#[test]
fn the_shared_data_fits_gpt2s_context() {
    let (Some(gpt2), Some(oasst)) = (shared("tokenizers/gpt2"), shared("data/oasst1-en100/en_100_tree.jsonl")) else {
        return;
    };
    let tokenizer = Tokenizer::from_folder(gpt2).unwrap();
    let renderer = Renderer::new(tokenizer, Template::plain("User: {prompt}\n\nAssistant:").unwrap()).unwrap();
    let encoder = Encoder { renderer: &renderer, caps: Caps::halves(1024), overlong: Overlong::Drop, loss: Loss::Last };
    let rankings = read::<Ranking>(&[oasst], &crate::Limits::default()).unwrap().records;
    let (kept, report) = encoder.rankings(&rankings).unwrap();
    assert!(kept.len() > 150 && report.special_tokens == 0, "{report:?}");
    for tokens in &kept {
        let eos = renderer.end();
        assert!(tokens.completions.iter().all(|c| c.last() == Some(&eos) && !c[..c.len() - 1].contains(&eos)));
        assert!(tokens.prompt.len() <= 512 && tokens.completions.iter().all(|c| c.len() <= 512));
    }
}

#[test]
fn every_reply_of_a_conversation_is_a_demonstration_when_all_are_taught() {
    let case = Case::new();
    let said =
        [(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c"), (Role::Assistant, "d"), (Role::User, "e")];
    let messages = said.map(|(role, text)| Message::new(role, text)).to_vec();
    let talk = Prompt { content: Content::Messages(Conversation { messages }), ..prompt(1, "") };
    let records = [Demonstration { prompt: talk, completion: "f".to_owned() }];
    let read = |loss| {
        let (tokens, _) = Encoder { loss, ..case.encoder(64, 64, Overlong::Refuse) }.demonstrations(&records).unwrap();
        tokens.iter().map(|t| (case.read(&t.prompt), case.read(&t.completion))).collect::<Vec<_>>()
    };
    let pair = |prompt: &str, completion: &str| (prompt.to_owned(), completion.to_owned());
    let last = pair("Q:a\nA: b\nQ:c\nA: d\nQ:e\nA:", " f");
    assert_eq!(read(Loss::All), [pair("Q:a\nA:", " b"), pair("Q:a\nA: b\nQ:c\nA:", " d"), last.clone()]);
    assert_eq!(read(Loss::Last), [last]);
}

#[test]
fn what_a_template_marks_is_taught_behind_what_stands_before_it() {
    let tokenizer = train_bpe(["aa bb aa bb"], 260, &["<e>", "<m>"]).unwrap();
    let template = "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A:' }}{% generation %}\
        {{ m['content'] + '<m>' }}{% endgeneration %}{% else %}{{ 'Q:' + m['content'] }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ 'A:' }}{% endif %}";
    let template = Template::chat(template, &tokenizer).unwrap();
    let renderer = Renderer::new(tokenizer, template).unwrap();
    let said = [(Role::User, "<m>?"), (Role::Assistant, "no <m>"), (Role::User, "c")];
    let messages = said.map(|(role, text)| Message::new(role, text)).to_vec();
    let talk = Prompt { content: Content::Messages(Conversation { messages }), ..prompt(1, "") };
    let records = [Demonstration { prompt: talk, completion: "d".to_owned() }];
    let caps = Caps { prompt: 64, completion: 64 };
    let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Refuse, loss: Loss::Generation };
    let (tokens, report) = encoder.demonstrations(&records).unwrap();
    let read = |ids: &[u32]| renderer.tokenizer().decode_with_specials(ids).unwrap();
    let read: Vec<_> = tokens.iter().map(|t| (read(&t.prompt), read(&t.completion))).collect();
    let pair = |prompt: &str, span: &str| (prompt.to_owned(), span.to_owned());
    assert_eq!(read, [pair("Q:<m>?A:", "no <m><m>"), pair("Q:<m>?A:no <m><m>Q:cA:", "d<m>")]);
    assert_eq!((report.kept, report.special_tokens), (2, 1));
    let marks = |ids: &[u32]| ids.iter().filter(|&&id| id == renderer.end()).count();
    let counts: Vec<_> = tokens.iter().map(|t| (marks(&t.prompt), marks(&t.completion))).collect();
    assert_eq!(counts, [(0, 1), (1, 1)], "people's words are none");
    for (prompt, completion, wanted) in
        [(10, 64, (1, 0)), (64, 4, (0, 1)), (64, 64, (0, 0)), (10, 4, (1, 1)), (1, 1, (2, 0))]
    {
        let short = Encoder { caps: Caps { prompt, completion }, overlong: Overlong::Drop, ..encoder };
        let report = short.demonstrations(&records).unwrap().1;
        assert_eq!((report.long_prompts, report.long_completions), wanted, "{prompt}, {completion}");
        assert_eq!(report.kept + wanted.0 + wanted.1, 2);
    }
    let plain = Case::new();
    let refused = Encoder { loss: Loss::Generation, ..plain.encoder(64, 64, Overlong::Refuse) };
    let refused = refused.demonstrations(&records).unwrap_err().to_string();
    assert!(refused.contains("set `model.loss` to `last` or `all`"), "{refused}");
}

/// What is said of spans that end without a stop id, in these conversations of a question and its answer.
#[track_caller]
fn check_ends(template: &str, answers: &[&str], want: (usize, bool)) {
    let tokenizer = train_bpe(["aa bb aa bb"], 260, &["<e>", "<m>"]).unwrap();
    let template = Template::chat(template, &tokenizer).unwrap();
    let renderer = Renderer::new(tokenizer, template).unwrap();
    let caps = Caps { prompt: 64, completion: 64 };
    let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Refuse, loss: Loss::Generation };
    let record = |answer: &&str| Demonstration { prompt: prompt(1, "Hi"), completion: (*answer).to_owned() };
    let (_, report) = encoder.demonstrations(&answers.iter().map(record).collect::<Vec<_>>()).unwrap();
    assert_eq!((report.unended, report.teaches_no_end()), want);
}

#[test]
fn spans_that_teach_no_end_are_counted() {
    let around = "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}\
        END{% endgeneration %}AFTER{% else %}{{ 'Q:' + m['content'] }}{% endif %}{% endfor %}";
    let with = |end: &str, after: &str| around.replace("END", end).replace("AFTER", after);
    check_ends(&with("<m>", ""), &["yes", "no"], (0, false));
    check_ends(&with("", "<m>"), &["yes", "no"], (2, true));
    let some = "{% if m['content'] == 'yes' %}<m>{% endif %}";
    check_ends(&with(some, "{% if m['content'] != 'yes' %}<m>{% endif %}"), &["yes", "no", "so"], (2, false));
    check_ends(&with("<m>", ""), &[], (0, false));
}

#[test]
fn a_prompt_without_a_token_is_counted() {
    let renderer = Renderer::new(tokenizer(), Template::plain("{prompt}").unwrap()).unwrap();
    let caps = Caps { prompt: 8, completion: 8 };
    let encoder = Encoder { renderer: &renderer, caps, overlong: Overlong::Drop, loss: Loss::Last };
    let (kept, report) = encoder.prompts(&[prompt(1, ""), prompt(2, "a")]).unwrap();
    assert_eq!((kept.len(), report.kept, report.empty_prompts, report.long_prompts), (1, 1, 1, 0));
    let refused = Encoder { overlong: Overlong::Refuse, ..encoder }.prompts(&[prompt(1, "")]).unwrap_err();
    assert!(refused.to_string().contains("f.jsonl:1"), "{refused}");
}
