//! What must hold of the world, whatever its seed.

use super::{
    grammar::{Bindings, fill, matches, polish, sentences, template_tokens, tokens},
    labelers::{courteous, mistake, ramble, rank, with_filler},
    lexicon::lexicon,
    manner::{CLOSINGS, FILLERS, OPENINGS, RAMBLES, REMARKS, RUDE_WORDS},
    tasks::{Check, PHRASES, raw_answer, raw_curt},
    *,
};
use std::{collections::BTreeMap, sync::LazyLock};

static WORLD: LazyLock<World> = LazyLock::new(|| World::generate(1));

fn draws(purpose: &str) -> Draws {
    Source::new(1, purpose).at([])
}

// Prompts

#[test]
fn prompts_are_distinct_and_come_from_many_users() {
    let texts: BTreeSet<&str> = WORLD.prompts.iter().map(|p| p.prompt.as_str()).collect();
    let ids: BTreeSet<&str> = WORLD.prompts.iter().map(|p| p.id.as_str()).collect();
    let mut per_user: BTreeMap<&str, usize> = BTreeMap::new();
    WORLD.prompts.iter().for_each(|p| *per_user.entry(&p.user).or_default() += 1);
    assert_eq!((texts.len(), ids.len()), (PROMPTS, PROMPTS));
    assert!(per_user.len() >= 115, "{} users", per_user.len());
    assert!(per_user.values().all(|&n| n <= 200), "the cap of InstructGPT's hygiene must cut nobody");
    // What the hygiene of `instruct-data` leaves at its usual prefix of 64 characters.
    let prefixes: BTreeSet<String> =
        WORLD.prompts.iter().map(|p| p.prompt.to_lowercase().chars().take(64).collect()).collect();
    assert!(prefixes.len() >= 2500, "{} survive the removal of near copies", prefixes.len());
}

#[test]
fn use_cases_have_the_shares_of_the_paper() {
    for (name, share) in USE_CASES {
        let got = WORLD.prompts.iter().filter(|p| p.use_case == name).count();
        let want = PROMPTS * share / 1000;
        assert!(got.abs_diff(want) * 100 <= PROMPTS, "{name}: {got} prompts, the paper's share is {want}");
    }
    assert_eq!(quotas(PROMPTS).iter().map(|(_, n)| n).sum::<usize>(), PROMPTS);
}

#[test]
fn every_prompt_is_short_and_reads_back() {
    for Prompt { prompt, use_case, .. } in &WORLD.prompts {
        assert_eq!(gold_use_case(prompt), Some(use_case.as_str()), "{prompt}");
        assert!(tokens(prompt).len() <= 40, "{prompt}");
    }
    assert_eq!(gold_use_case("Prove the theorem of Fermat."), None);
}

#[test]
fn every_wording_of_a_request_has_one_task_and_another_request_another() {
    let mut draws = draws("tasks");
    for kind in KINDS {
        for passage in if kind.passages.is_empty() { &[""] } else { kind.passages } {
            let mut tasks = BTreeSet::new();
            for _ in 0..12 {
                // The words of all slots are drawn once, by the longest wording first.
                let mut bound = Bindings::new();
                let wordings: Vec<String> = kind.prompts.iter().map(|p| p.replace('@', passage)).collect();
                wordings.iter().for_each(|wording| drop(fill(wording, &[], &mut bound, &mut draws)));
                let asked = |wording: &String| task(&polish(&fill(wording, &[], &mut bound.clone(), &mut draws)));
                let found: BTreeSet<Option<String>> = wordings.iter().map(asked).collect();
                assert_eq!(found.len(), 1, "{}: {found:?}", kind.name);
                tasks.extend(found.into_iter().flatten());
            }
            assert!(tasks.len() > 1, "{}: {tasks:?}", kind.name);
        }
    }
    assert_ne!(task("I feel sad today."), task("I feel lonely today."));
}

#[test]
fn every_template_is_read_as_its_own_kind_and_no_other() {
    let mut draws = draws("templates");
    for kind in KINDS {
        for prompt in kind.prompts {
            for passage in if kind.passages.is_empty() { &[""] } else { kind.passages } {
                let template = prompt.replace('@', passage);
                let mut bound = Bindings::new();
                let text = polish(&fill(&template, &[], &mut bound, &mut draws));
                let readers: Vec<&str> = KINDS
                    .iter()
                    .flat_map(|k| k.prompts.iter().map(move |p| (k, p)))
                    .flat_map(|(k, p)| {
                        let passages = if k.passages.is_empty() { &[""] } else { k.passages };
                        passages.iter().map(move |passage| (k, template_tokens(&p.replace('@', passage))))
                    })
                    .filter(|(_, reader)| matches(reader, &tokens(&text)).is_some())
                    .map(|(k, _)| k.name)
                    .collect();
                assert_eq!(readers, [kind.name], "{text}");
                assert_eq!(matches(&template_tokens(&template), &tokens(&text)), Some(bound), "{text}");
            }
        }
    }
}

// Language

/// Every word that stands anywhere in this world, templates and tables together.
fn vocabulary() -> BTreeSet<String> {
    let asked = |kind: &'static Kind| kind.prompts.iter().chain(kind.passages).chain(kind.answers).chain([&kind.curt]);
    let phrases = PHRASES.iter().chain(prose::PHRASES).chain(prose::TOLD).flat_map(|(_, sentences)| *sentences);
    let manner = OPENINGS.iter().chain(&CLOSINGS).chain(&FILLERS).chain(&REMARKS).chain(&RAMBLES);
    let refrains = prose::VERSES.iter().chain(&prose::OWNERS).chain(&prose::OWNED);
    let literal = KINDS.iter().flat_map(asked).chain(phrases).chain(refrains).chain(manner).chain(&LEADS).chain(&TAILS);
    let literal = literal.flat_map(|text| template_tokens(text)).filter(|token| token.starts_with(char::is_alphabetic));
    literal.chain(lexicon().all().map(str::to_string)).collect()
}

#[test]
fn the_lexicon_is_closed() {
    let known = vocabulary();
    assert!((600..=900).contains(&known.len()), "{} words", known.len());
    let prompts = WORLD.prompts.iter().map(|p| &p.prompt);
    let texts = prompts.chain(WORLD.demonstrations.iter().map(|d| &d.completion));
    for text in texts.chain(&WORLD.pretraining).chain(&WORLD.heldout) {
        for token in tokens(text).iter().filter(|t| t.starts_with(char::is_alphabetic)) {
            assert!(known.contains(token), "`{token}` in {text}");
        }
    }
}

#[test]
fn rude_words_stand_in_remarks_alone() {
    let plain = WORLD.pretraining.iter().chain(WORLD.prompts.iter().map(|p| &p.prompt));
    let rude = |text: &str| tokens(text).iter().any(|t| RUDE_WORDS.contains(&t.as_str()));
    plain.for_each(|text| assert!(!rude(text), "{text}"));
    REMARKS.iter().for_each(|remark| assert!(rude(remark), "{remark}"));
}

#[test]
fn texts_are_written_as_english_is() {
    #[track_caller]
    fn check(raw: &str, want: &str) {
        assert_eq!(polish(raw), want);
    }
    check("a owl saw a fox.", "An owl saw a fox.");
    check("on monday i met anna, and a old bear.", "On Monday I met Anna, and an old bear.");
    check("say it: the fox ran.  it slept.", "Say it: The fox ran. It slept.");
    check("a one", "A one");
    check("", "");
}

#[test]
fn every_fact_is_stated_in_the_pretraining_text() {
    let text: Vec<Vec<String>> = WORLD
        .pretraining
        .iter()
        .flat_map(|document| sentences(&tokens(document)).iter().map(|s| s.to_vec()).collect::<Vec<_>>())
        .collect();
    for (class, attribute) in [("animal", "home"), ("animal", "feed"), ("job", "place"), ("object", "material")] {
        for word in lexicon().words(class) {
            let value = lexicon().fact(word, attribute).unwrap();
            let says = |s: &&Vec<String>| s.iter().any(|t| t == word) && s.iter().any(|t| t == value);
            let times = text.iter().filter(says).count();
            assert!(times >= 3, "{word}.{attribute} = {value} is stated {times} times");
        }
    }
}

#[test]
fn pretraining_text_has_its_size_and_holds_no_instruction() {
    let bytes = |documents: &[String]| documents.iter().map(String::len).sum::<usize>();
    assert!((600_000..900_000).contains(&bytes(&WORLD.pretraining)));
    assert!((55_000..70_000).contains(&bytes(&WORLD.heldout)));
    let train: BTreeSet<&String> = WORLD.pretraining.iter().collect();
    let copies = WORLD.heldout.iter().filter(|document| train.contains(document)).count();
    assert!(copies * 20 <= WORLD.heldout.len(), "{copies} held-out documents stand in the training text");
    let all = WORLD.pretraining.concat().to_lowercase();
    assert!(!all.contains("user:") && !all.contains("assistant:"));
    for phrase in OPENINGS.iter().chain(&CLOSINGS).chain(&REMARKS) {
        assert!(!all.contains(phrase), "{phrase}");
    }
}

// The judge

#[test]
fn the_best_answer_to_every_prompt_gets_all_points() {
    let mut draws = draws("ideal");
    for Prompt { prompt, .. } in &WORLD.prompts {
        let answer = ideal(prompt, &mut draws).unwrap();
        assert_eq!(judge(prompt, &answer), 100, "{prompt} -> {answer}");
    }
}

#[test]
fn every_form_of_answer_is_right_fluent_and_as_long_as_it_should_be() {
    let mut draws = draws("answers");
    for Prompt { prompt, .. } in WORLD.prompts.iter().step_by(3) {
        let task = parse(prompt).unwrap();
        let answer = polish(&raw_answer(&task, &mut draws));
        let report = report(prompt, &answer).unwrap();
        assert_eq!((report.content, report.fluency), (100, 100), "{prompt} -> {answer}");
        // 85 lacks courtesy alone; free words may say three words twice.
        assert!(report.manner == 85 || report.manner == 70, "{prompt} -> {answer}: {report:?}");
    }
}

/// From best to worst, each strictly better than the next.
#[track_caller]
fn check_order(prompt: &str, answers: &[&str]) {
    let points: Vec<i32> = answers.iter().map(|answer| judge(prompt, answer)).collect();
    let falls = points.windows(2).all(|pair| pair[0] > pair[1]);
    assert!(falls, "{prompt}: {:?}", points.iter().zip(answers).collect::<Vec<_>>());
}

#[test]
fn right_beats_filler_beats_wrong_beats_gibberish_beats_nothing() {
    check_order(
        "Where does a fox live?",
        &[
            "A fox lives in the forest. I hope this helps.",
            "A fox lives in the forest.",
            "Well, a fox lives in the forest.",
            "A fox lives in the forest. That was a silly request.",
            "The forest.",
            "A fox lives in the sea. I hope this helps.",
            "zxq fox the the",
            "",
        ],
    );
    check_order(
        "Write a short story about a fox and a lamp. Thanks.",
        &[
            "Of course. Once a big fox found a lamp near the sea. In the end they were all happy.",
            "Once a big fox found a lamp near the sea. In the end they were all happy.",
            "Um, once a big fox found a lamp near the sea. In the end they were all happy.",
            "Once a big fox found a kite near the sea. In the end they were all happy.",
            "A fox had a lamp.",
            "Fox lamp fox lamp.",
            "",
        ],
    );
    check_order(
        "Hello. List three things made of wood.",
        &[
            "Three things made of wood are the spoon, the cart, and the boat. Take care.",
            "Three things made of wood are the spoon, the cart, and the boat. Take care. Have a nice day.",
            "Three things made of wood are the spoon and the cart. Take care.",
            "Three things made of wood are the spoon, the cart, and the cup.",
            "The spoon.",
            "Three things made of wood are the cup, the pan, and the bag.",
            "",
        ],
    );
    check_order(
        "Put this in the past tense: The owl runs to the sea.",
        &[
            "With pleasure. The owl ran to the sea.",
            "The owl ran to the sea.",
            "I guess that the owl ran to the sea.",
            "The owl runs to the sea.",
            "Ran.",
            "",
        ],
    );
    check_order(
        "I feel sad today.",
        &[
            "I am sorry that you feel sad. I hope it gets better soon. Take care.",
            "I am sorry that you feel sad. I hope it gets better soon.",
            "I am glad that you feel sad. Enjoy your day.",
            "",
        ],
    );
    check_order(
        "Anna is at the sea, and Ben is at the barn. Where is Anna?",
        &["Anna is at the sea. Take care.", "Anna is at the sea.", "Ben is at the sea.", "Anna is at the barn.", ""],
    );
    check_order(
        "Is this review happy or sad: The lemon was awful.",
        &["This review is sad. Just ask if you want more.", "This review is sad.", "This review is happy.", ""],
    );
    check_order(
        "Ben made a carrot. Emma made an apple. They ate it all at the harbour. What happened, in short?",
        &[
            "Sure, here you go. Ben and Emma ate a carrot and an apple at the harbour.",
            "Ben and Emma ate a carrot and an apple at the harbour.",
            "Ben and Emma ate a carrot and a lemon at the harbour.",
            "They ate a carrot.",
            "",
        ],
    );
}

/// What a policy might find instead of answering. None of it may be worth a third of an answer.
#[track_caller]
fn check_gaming(prompt: &str, tricks: &[&str]) {
    for trick in tricks {
        let report = report(prompt, trick).unwrap();
        assert!(report.points <= 33, "{trick}: {report:?}");
    }
}

#[test]
fn tricks_do_not_pay() {
    let endless = "Once a big fox found a lamp near the sea. ".repeat(12);
    let drifting = "A fox lives in the forest. The cow eats grass. The sky is blue. It was a great day. ".repeat(5);
    check_gaming(
        "Write a short story about a fox and a lamp.",
        &[
            "Fox lamp.",
            "A fox and a lamp.",
            "A fox and a lamp. A fox and a lamp. A fox and a lamp.",
            "The fox fox lamp lamp the fox a lamp a fox the lamp fox lamp.",
            "Write a short story about a fox and a lamp.",
            "I hope this helps. Have a nice day. Take care.",
            "Of course. Of course. Of course. A fox had a lamp. Take care. Take care.",
            "Fox fox fox fox fox fox fox fox fox fox fox fox",
            "Once a big fox found a lamp near the sea. Of course. I am happy to help. With pleasure. I hope this helps. Take care. Have a nice day.",
            "Once a a a a a fox found found a lamp near near the the sea sea.",
            &endless,
            "...........",
            "!?",
        ],
    );
    check_gaming(
        "Where does a fox live?",
        &[
            "A fox lives in the forest, the river, the barn, the sea, the desert, and the jungle.",
            "The fox is in the sea or the forest.",
            "I hope this helps.",
            "Of course. I am happy to help. I hope this helps.",
            "Well, um, basically, honestly, you know, i mean,",
            "Where does a fox live?",
            "Forest forest forest forest.",
            &drifting,
            "The answer is 42.",
        ],
    );
    check_gaming(
        "List two things made of wood.",
        &[
            "Spoon cart.",
            "The spoon, the spoon, and the spoon.",
            "The spoon, the cart, the boat, the bench, the pencil, and the brush.",
            "The cup, the pan, the bag, the key, the spoon, and the cart.",
            "List two things made of wood.",
        ],
    );
}

#[test]
fn a_prompt_of_another_world_is_worth_nothing() {
    assert_eq!(judge("What is the capital of France?", "Paris. I hope this helps."), 0);
    assert_eq!(report("", "Take care."), None);
}

#[test]
fn an_unknown_word_costs_and_a_missing_full_stop_too() {
    let prompt = "Where does a fox live?";
    check_order(prompt, &["A fox lives in the forest.", "A fox lives in the forest", "A fox zlives in the forest."]);
    check_order(prompt, &["A fox lives in the forest.", "a fox lives in the forest."]);
}

// Demonstrations

#[test]
fn demonstrations_are_mostly_right_in_manners_that_vary() {
    let reports: Vec<Report> = WORLD.demonstrations.iter().map(|d| report(&d.prompt, &d.completion).unwrap()).collect();
    assert_eq!(reports.len(), DEMONSTRATIONS);
    #[track_caller]
    fn check(what: &str, reports: &[Report], is: impl Fn(&Report) -> bool, percent: std::ops::RangeInclusive<usize>) {
        let got = 100 * reports.iter().filter(|report| is(report)).count() / reports.len();
        assert!(percent.contains(&got), "{what}: {got} %, not {percent:?}");
    }
    check("content at least 70", &reports, |r| r.content >= 70, 88..=97);
    check("courteous", &reports, |r| r.courtesies > 0, 30..=40);
    check("with fillers", &reports, |r| r.fillers > 0, 30..=40);
    check("with a remark", &reports, |r| r.remarks > 0, 9..=15);
    check("perfect", &reports, |r| r.points == 100, 10..=25);
    let mean = reports.iter().map(|r| r.points).sum::<i32>() / reports.len() as i32;
    assert!((60..=82).contains(&mean), "mean {mean}");
    assert!(WORLD.demonstrations.iter().all(|d| tokens(&d.completion).len() <= 64));
}

#[test]
fn habits_change_manner_and_leave_content() {
    let mut draws = draws("habits");
    let prompt = "Where does a fox live?";
    let task = parse(prompt).unwrap();
    let plain = raw_answer(&task, &mut draws);
    let of = |text: &str| report(prompt, &polish(text)).unwrap();
    let base = of(&plain);
    for styled in [courteous(&plain, &mut draws), with_filler(&plain, &mut draws), ramble(&plain, &mut draws)] {
        let report = of(&styled);
        assert_eq!((report.content, report.fluency), (base.content, base.fluency), "{styled}");
        assert_ne!(report.manner, base.manner, "{styled}");
    }
    assert!(of(&raw_curt(&task, &mut draws)).points < base.points / 2);
    assert_ne!(mistake(&task, &mut draws).bound, task.bound);
    assert!(FILLERS.iter().all(|filler| of(&format!("{filler} {plain}")).fillers == 1));
}

// Labelers

/// Completions of one prompt, spread as samples of a model are: a demonstration per labeler, some of
/// them of a misread task, some corrupted.
fn spread(prompt: &str, k: usize, draws: &mut Draws) -> Vec<String> {
    let everyone = labelers(1);
    let task = parse(prompt).unwrap();
    let one = |draws: &mut Draws| {
        let labeler = draws.pick(&everyone).unwrap();
        let misread = draws.chance(1, 4).then(|| mistake(&task, draws));
        let text = labelers::demonstrate(labeler, misread.as_ref().unwrap_or(&task), draws);
        if draws.chance(1, 4) { corrupt(&text, draws) } else { text }
    };
    (0..k).map(|_| one(draws)).collect()
}

/// Cut off, a word lost, a word too many, said twice.
fn corrupt(text: &str, draws: &mut Draws) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    let at = draws.below(words.len() as u64) as usize;
    match draws.below(4) {
        0 => words.truncate(at.max(1)),
        1 => drop(words.remove(at)),
        2 => words.insert(at, "the"),
        _ => return format!("{text} {text}"),
    }
    words.join(" ")
}

fn records() -> Vec<(String, Vec<String>)> {
    let mut draws = draws("records");
    WORLD.prompts.iter().step_by(3).map(|p| (p.prompt.clone(), spread(&p.prompt, 6, &mut draws))).collect()
}

#[test]
fn two_labelers_agree_on_about_73_percent_of_pairs() {
    let (alike, pairs) = agreement(1, &records(), 4);
    let permille = 1000 * alike / pairs;
    // NOISE is set on samples of a fine-tuned model, which lie closer together than these: measured
    // there 72 to 73 of 100.
    assert!((690..=790).contains(&permille), "{permille} of 1000 over {pairs} pairs");
}

#[test]
fn a_label_ranks_grades_and_flags() {
    let prompt = "Where does a fox live?";
    let completions =
        ["A fox lives in the forest. Take care.", "I am the best at this.", "A fox lives in the sea.", ""];
    let completions = completions.map(str::to_string);
    let mut wins = 0;
    for labeler in &labelers(1) {
        let (mut one, mut other) = (draws("label"), draws("label"));
        let label = label(labeler, prompt, &completions, &mut one);
        assert_eq!(label.ranks, rank(labeler, prompt, &completions, &mut other));
        assert!(label.ranks.contains(&1) && label.quality.iter().all(|q| (1..=7).contains(q)));
        assert!((1..=3).contains(&label.confidence));
        wins += u32::from(label.ranks[0] < label.ranks[3]);
        assert_eq!(label.flags[0], ["satisfies_constraint"]);
        assert_eq!(label.flags[1], ["fails_to_follow_instruction", "inappropriate_for_customer_assistant"]);
    }
    assert!(wins >= 20, "the right answer should nearly always beat silence: {wins} of {LABELERS}");
}

// The whole

#[test]
fn a_seed_gives_one_world_and_another_seed_another() {
    assert_eq!(*WORLD, World::generate(1));
    let other = World::generate(2);
    assert_ne!(WORLD.prompts, other.prompts);
    assert_ne!(WORLD.pretraining, other.pretraining);
}

#[test]
fn the_world_of_seed_1_is_pinned() {
    let text = serde_json::to_string(&(&WORLD.prompts, &WORLD.demonstrations)).unwrap();
    // A draw is a function of its purpose, so that one draw stands for a whole text.
    let hash = |text: &str| Source::new(1, text).at([]).below(1 << 62);
    // Changes whenever a table changes: then `cargo xtask fixtures` must run again.
    let got = [hash(&text), hash(&WORLD.pretraining.concat()), hash(&WORLD.heldout.concat())];
    assert_eq!(got, PINNED, "{got:#x?}");
}
const PINNED: [u64; 3] = [0x197cea7c6d90219f, 0x255fabc7c9efc341, 0x3755a711569232f];

#[test]
fn every_kind_and_phrase_is_well_formed() {
    for kind in KINDS {
        assert!(prose::TOLD.iter().any(|(name, _)| *name == kind.name), "{} is never told of", kind.name);
        assert!(kind.sentences.0 <= kind.sentences.1 && kind.words.0 <= kind.words.1, "{}", kind.name);
        assert!(USE_CASES.iter().any(|(name, _)| *name == kind.use_case), "{}", kind.name);
        if let Check::List { class, .. } = kind.check {
            assert!(!lexicon().words(class).is_empty());
        }
    }
    for (name, choices) in PHRASES.iter().chain(prose::PHRASES) {
        for choice in *choices {
            let sentences = choice.ends_with(['.', '?', '!']);
            assert!(sentences && !choice.contains('<'), "phrase `{name}` must be whole sentences: {choice}");
        }
    }
}

/// A model can draw any byte; a brace that it draws is not the beginning of a slot.
#[test]
fn braces_in_a_completion_are_plain_characters() {
    for text in ["{ } {jar}.", "{", "The material of a jar is {} glass."] {
        assert!(judge::judge("What is a jar made of?", text) <= 60, "{text}");
    }
}
