//! The ten use cases: one table says how each task is asked, answered and checked.
//!
//! Prompts are written from the table and read back by it; nothing but the prompt's text reaches
//! the judge. Proportions are those of InstructGPT, table 1.

use super::{
    grammar::{Bindings, Phrases, class, fill, matches, polish, template_tokens, tokens},
    lexicon::lexicon,
};
use instruct_random::Draws;
use std::{collections::BTreeSet, sync::LazyLock};

/// A use case, with its share of the prompts in tenths of a percent [InstructGPT, table 1].
pub(crate) const USE_CASES: [(&str, usize); 10] = [
    ("generation", 456),
    ("open_qa", 124),
    ("brainstorming", 112),
    ("chat", 84),
    ("rewrite", 66),
    ("summarization", 42),
    ("classification", 35),
    ("other", 35),
    ("closed_qa", 26),
    ("extract", 19),
];

/// One kind of task.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) use_case: &'static str,
    /// Share among the kinds of its use case.
    pub(crate) weight: u64,
    /// The text that a prompt speaks of, in place of `@`; empty where there is none.
    pub(crate) passages: &'static [&'static str],
    pub(crate) prompts: &'static [&'static str],
    /// Good answers, without courtesy.
    pub(crate) answers: &'static [&'static str],
    /// The shortest answer that still holds the point.
    pub(crate) curt: &'static str,
    pub(crate) check: Check,
    /// Sentences of a good answer, courtesy not counted.
    pub(crate) sentences: (usize, usize),
    /// Words of a good answer, courtesy not counted.
    pub(crate) words: (usize, usize),
}

/// What makes an answer of a kind correct. Strings are expressions over the prompt's slots; one that
/// begins with `=` is a literal word.
pub(crate) enum Check {
    /// Names the subject and says all of the answer; a word of class `rivals` that is neither makes
    /// it wrong.
    Fact { subject: &'static [&'static str], answer: &'static [&'static str], rivals: &'static str },
    /// Speaks of all of these.
    Compose { need: &'static [&'static str] },
    /// `{count}` different words of `class`; with `fact = (attribute, slot)`, those for which it holds.
    List { class: &'static str, fact: Option<(&'static str, &'static str)>, article: bool },
    /// Says exactly one of the kind's answers.
    Exact,
}

/// A prompt, read back.
pub(crate) struct Task {
    pub(crate) kind: &'static Kind,
    pub(crate) bound: Bindings,
}

/// How one user words things around a request.
#[derive(Clone, Debug)]
pub(crate) struct Quirk {
    pub(crate) lead: usize,
    pub(crate) tail: usize,
    /// Which of a kind's phrasings this user likes.
    pub(crate) phrasing: usize,
}

/// What may stand before a request. "please" only goes before a verb.
pub(crate) const LEADS: [&str; 8] = [
    "",
    "hello.",
    "please",
    "hi there.",
    "i need your help.",
    "i have a request.",
    "here is a small task.",
    "good to see you.",
];
/// What may stand after it.
pub(crate) const TAILS: [&str; 4] = ["", "thanks.", "thank you.", "thank you very much."];
const VERBS: [&str; 17] = [
    "write",
    "tell",
    "make",
    "describe",
    "list",
    "name",
    "give",
    "suggest",
    "put",
    "say",
    "change",
    "summarize",
    "sort",
    "find",
    "plan",
    "help",
    "explain",
];

/// Writes a prompt of `kind` from free draws. `None` when the draws ask for the impossible, such as
/// four sour vegetables.
pub(crate) fn write_prompt(kind: &'static Kind, quirk: &Quirk, draws: &mut Draws) -> Option<String> {
    let choice = if draws.chance(1, 2) { quirk.phrasing } else { draws.below(1 << 20) as usize };
    let (raw, _) = realise(kind, kind.prompts[choice % kind.prompts.len()], draws)?;
    let lead = match LEADS[quirk.lead] {
        "please" if !VERBS.contains(&raw.split(' ').next().unwrap_or_default()) => "",
        lead => lead,
    };
    Some(polish(&format!("{lead} {raw} {}", TAILS[quirk.tail])))
}

/// Writes `request`, a text over the slots of `kind` with `@` for its passage, in lower-case, and the
/// task it stands for. `None` when the draws ask for the impossible.
pub(crate) fn realise(kind: &'static Kind, request: &str, draws: &mut Draws) -> Option<(String, Task)> {
    let passage = draws.pick(kind.passages).copied().unwrap_or_default();
    let mut bound = Bindings::new();
    let raw = fill(&request.replace('@', passage), &[], &mut bound, draws);
    possible(kind, &bound).then_some((raw, Task { kind, bound }))
}

/// Reads a prompt back, greetings and thanks aside. `None` for a prompt that is not of this world.
pub(crate) fn parse(prompt: &str) -> Option<Task> {
    read(prompt).map(|(reader, bound)| Task { kind: reader.kind, bound })
}

/// What a prompt asks, whatever its words: the kind, and what stands in the slots that every wording of it fills.
/// What only some wordings tell, a day or a place beside the point, is no part of it.
pub(crate) fn identity(prompt: &str) -> Option<String> {
    let (reader, bound) = read(prompt)?;
    let filled = bound.iter().filter(|(slot, _)| reader.asked.contains(*slot));
    let filled = filled.map(|(slot, word)| format!(" {slot}={word}"));
    Some(std::iter::once(reader.kind.name.to_owned()).chain(filled).collect())
}

fn read(prompt: &str) -> Option<(&'static Reader, Bindings)> {
    let all = tokens(prompt);
    let text = strip(&all);
    READERS.iter().find_map(|reader| {
        let bound = matches(&reader.template, text)?;
        possible(reader.kind, &bound).then_some((reader, bound))
    })
}

/// The words of the request alone: what makes two prompts the same.
pub(crate) fn request(prompt: &str) -> Vec<String> {
    strip(&tokens(prompt)).to_vec()
}

/// The use case of a prompt, read from its text.
#[cfg(test)]
pub(crate) fn gold_use_case(prompt: &str) -> Option<&'static str> {
    parse(prompt).map(|task| task.kind.use_case)
}

/// A right answer, without courtesy or any other manner, in lower-case.
pub(crate) fn raw_answer(task: &Task, draws: &mut Draws) -> String {
    let form = draws.pick(task.kind.answers).expect("a kind has answers");
    raw_text(task, form, draws)
}

/// The curt answer, in lower-case.
pub(crate) fn raw_curt(task: &Task, draws: &mut Draws) -> String {
    raw_text(task, task.kind.curt, draws)
}

/// The words that a `List` task accepts.
pub(crate) fn valid_members(class: &str, fact: Option<(&str, &str)>, bound: &Bindings) -> Vec<&'static str> {
    match fact {
        None => lexicon().words(class).to_vec(),
        Some((attribute, slot)) => {
            bound.get(slot).map(|value| lexicon().having(class, attribute, value)).unwrap_or_default()
        }
    }
}

/// How many items a `List` task asks for.
pub(crate) fn wanted(bound: &Bindings) -> usize {
    match bound.get("count") {
        Some(&"two") => 2,
        Some(&"three") => 3,
        _ => 4,
    }
}

/// The forms an enumeration takes, for the judge's grammar.
pub(crate) fn list_forms(class: &str, article: bool) -> [String; 2] {
    let item = if article { format!("the {{{class}}}") } else { format!("{{{class}}}") };
    [format!("{item} and {item}"), format!("{item}, {item}, and {item}")]
}

/// A prompt template, ready to match.
struct Reader {
    kind: &'static Kind,
    template: Vec<String>,
    /// The slots that every prompt of this kind over the same passage fills.
    asked: BTreeSet<String>,
}

/// Every prompt template.
static READERS: LazyLock<Vec<Reader>> = LazyLock::new(|| {
    let mut readers = Vec::new();
    for kind in KINDS {
        let passages = if kind.passages.is_empty() { &[""] } else { kind.passages };
        let over = |prompt: &str, passage: &str| template_tokens(&prompt.replace('@', passage));
        for prompt in kind.prompts {
            readers.extend(passages.iter().map(|passage| {
                let wordings = kind.prompts.iter().map(|prompt| slots(&over(prompt, passage)));
                let asked = wordings.reduce(|all, slots| &all & &slots).unwrap_or_default();
                Reader { kind, template: over(prompt, passage), asked }
            }));
        }
    }
    readers
});

fn slots(template: &[String]) -> BTreeSet<String> {
    let slot = |token: &String| Some(token.strip_prefix('{')?.split('.').next()?.to_owned());
    template.iter().filter_map(slot).collect()
}

fn strip(all: &[String]) -> &[String] {
    let mut text = all;
    for lead in LEADS.iter().filter(|lead| !lead.is_empty()) {
        text = text.strip_prefix(tokens(lead).as_slice()).unwrap_or(text);
    }
    for tail in TAILS.iter().filter(|tail| !tail.is_empty()) {
        text = text.strip_suffix(tokens(tail).as_slice()).unwrap_or(text);
    }
    text
}

fn possible(kind: &Kind, bound: &Bindings) -> bool {
    match kind.check {
        Check::List { class, fact, .. } => valid_members(class, fact, bound).len() >= wanted(bound),
        _ => true,
    }
}

fn raw_text(task: &Task, form: &str, draws: &mut Draws) -> String {
    let mut bound = task.bound.clone();
    let form = match task.kind.check {
        Check::List { class, fact, article } if form.contains("{list}") => {
            form.replace("{list}", &enumeration(class, fact, article, &bound, draws))
        }
        _ => form.to_string(),
    };
    fill(&form, PHRASES, &mut bound, draws)
}

fn enumeration(class: &str, fact: Option<(&str, &str)>, article: bool, bound: &Bindings, draws: &mut Draws) -> String {
    let mut items = valid_members(class, fact, bound);
    // What the prompt already holds is no new idea.
    items.retain(|item| bound.values().all(|held| held != item));
    draws.shuffle(&mut items);
    items.truncate(wanted(bound));
    let items: Vec<String> =
        items.iter().map(|item| if article { format!("the {item}") } else { (*item).to_string() }).collect();
    match items.as_slice() {
        [a, b] => format!("{a} and {b}"),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
        [] => String::new(),
    }
}

/// The class behind an expression's slot, for the tests that walk the table.
pub(crate) fn slot_class(expression: &str) -> &str {
    class(expression.split('.').next().unwrap_or(expression))
}

/// Sentences that answers share.
pub(crate) const PHRASES: Phrases = &[
    (
        "animal_open",
        &[
            "once a {trait} {animal} found a {object} near the {place}.",
            "one {time} a {animal} saw a {trait} {object} in the {place}.",
            "a {joy} {animal} lived in the {animal.home} with a {object}.",
            "there was a {animal} who had a {colour} {object}.",
            "long ago a {animal} lost a {object} in the {place}.",
            "a {trait} {animal} wanted a {object} for the {season}.",
        ],
    ),
    (
        "animal_middle",
        &[
            "the {animal} took it to the {place2}.",
            "a {animal2} came by and asked for it.",
            "it was {adj} and {adj2}, but nobody was {woe}.",
            "then the {animal} showed it to {name}.",
            "{name} helped to carry it home.",
            "the {weather} blew it over the {place2}.",
        ],
    ),
    (
        "animal_end",
        &[
            "in the end they were all {joy}.",
            "after that the {animal} slept well.",
            "they shared some {animal.feed} and felt {joy2}.",
            "and so it stayed in the {place3} for ever.",
            "from then on they were friends.",
        ],
    ),
    (
        "person_open",
        &[
            "on {day} {name} went to the {spot}.",
            "{name} was {feeling} and walked to the {spot}.",
            "one {time} {name} came to the {trait} {spot}.",
            "it was {season}, and {name} was at the {spot}.",
            "{name} found a {object} at the {spot}.",
            "long ago {name} worked at the {spot}.",
        ],
    ),
    (
        "person_middle",
        &[
            "there was a {animal} with a {colour} {object2}.",
            "a {job} gave {name} a {food}.",
            "{name2} was there too, and they talked for a long time.",
            "a {adj} {object2} lay on the ground.",
            "the {weather} came, but nobody was {woe}.",
        ],
    ),
    (
        "person_end",
        &[
            "at the end of the day everyone was {joy}.",
            "then it was time to go home.",
            "{name} was {joy} and sang a song.",
            "they ate a {food2} and laughed.",
            "it was a {good} day.",
        ],
    ),
];

const fn fact(subject: &'static [&'static str], answer: &'static [&'static str], rivals: &'static str) -> Check {
    Check::Fact { subject, answer, rivals }
}

const fn items(class: &'static str, attribute: &'static str, slot: &'static str) -> Check {
    Check::List { class, fact: Some((attribute, slot)), article: true }
}

/// One row of the table; `sentences` and `words` close it because they belong together.
const fn kind(
    use_case: &'static str,
    name: &'static str,
    weight: u64,
    passages: &'static [&'static str],
    prompts: &'static [&'static str],
    answers: &'static [&'static str],
    curt: &'static str,
    check: Check,
    sentences: (usize, usize),
    words: (usize, usize),
) -> Kind {
    Kind { name, use_case, weight, passages, prompts, answers, curt, check, sentences, words }
}

/// The table.
#[rustfmt::skip] // one task is one block: its questions, its answers, its check
pub(crate) static KINDS: &[Kind] = &[
    // Generation
    kind("generation", "animal_story", 6, &[],
        &[
            "write a short story about a {animal} and a {object}.",
            "tell me a story about a {animal} with a {object}.",
            "a {animal} and a {object}: write a story about them.",
            "{object} and {animal}: make up a short tale.",
            "i want a little story with a {animal} and a {object}.",
            "make up a tale in which a {animal} has a {object}.",
            "my child likes the {animal}. tell a story with a {object} in it.",
        ],
        &["<animal_open> <animal_middle> <animal_end>", "<animal_open> <animal_end>", "<animal_open> <animal_middle>"],
        "a {animal} had a {object}.",
        Check::Compose { need: &["animal", "object"] }, (2, 4), (11, 36)),
    kind("generation", "person_story", 5, &[],
        &[
            "write a short story about {name} at the {spot}.",
            "tell me what {name} did at the {spot}.",
            "{name} goes to the {spot}: write a story about it.",
            "make up a tale about {name} and the {spot}.",
            "the {spot} and {name}: a little story, please.",
            "i want to hear a story. {name} is at the {spot}.",
        ],
        &["<person_open> <person_middle> <person_end>", "<person_open> <person_end>", "<person_open> <person_middle>"],
        "{name} was at the {spot}.",
        Check::Compose { need: &["name", "spot"] }, (2, 4), (11, 36)),
    kind("generation", "note", 3, &[],
        &[
            "write a note to {name} about the {event}.",
            "help me to invite {name} to the {event}.",
            "{name} should come to the {event}. write a short note.",
            "the {event} is soon. tell {name} in a note.",
        ],
        &[
            "dear {name}, the {event} is on {day}. please bring a {food}.",
            "dear {name}, please come to the {event} on {day}. it will be {good}.",
            "dear {name}, we have a {event} at the {spot}. it starts on {day}, and you are invited.",
            "dear {name}, you are invited to our {event}. it will be a {good} {time} at the {spot}.",
        ],
        "dear {name}, come to the {event}.",
        Check::Compose { need: &["name", "event", "=dear"] }, (2, 3), (10, 28)),
    kind("generation", "description", 3, &[],
        &[
            "describe a {trait} {place} in two sentences.",
            "what does a {trait} {place} look like?",
            "i am in a {trait} {place}. describe it.",
            "a {trait} {place}: tell me what i see there.",
        ],
        &[
            "the {place} is {trait} and {trait2}. a {object} stands near a {colour} {object2}.",
            "it is a {trait} {place} with a {colour} {object}. you can hear a {animal} there.",
            "the {trait} {place} lies near the {place2}. people go there in the {season}.",
            "people come to the {trait} {place} on {day}. they look at the {colour} {object}.",
        ],
        "a {trait} {place}.",
        Check::Compose { need: &["trait", "place"] }, (2, 3), (11, 28)),
    kind("generation", "advert", 3, &[],
        &[
            "write an advert for a {colour} {object}.",
            "help me to sell a {colour} {object}.",
            "my shop has a {colour} {object}. write an advert.",
            "a {colour} {object} is for sale. tell people about it.",
        ],
        &[
            "look at this {colour} {object}. it is made of {object.material} and costs {number} coins.",
            "we sell a {colour} {object}. it is {adj} and very {adj2}. come to the {spot} on {day}.",
            "here is a {colour} {object} for you. it costs only {number} coins at the {spot}.",
            "buy our {colour} {object}. your friends will be {joy} to see it.",
        ],
        "buy a {colour} {object}.",
        Check::Compose { need: &["colour", "object"] }, (2, 4), (10, 30)),
    kind("generation", "plan", 3, &[],
        &[
            "plan a day for {name} and {name2} in the {season}.",
            "what could {name} and {name2} do in the {season}?",
            "{name} and {name2} are free in the {season}. make a plan.",
            "{season} is here. make a plan for {name} and {name2}.",
        ],
        &[
            "in the {season} {name} and {name2} could go to the {spot}. later they could eat a {food}.",
            "{name} and {name2} could visit the {spot} in the {season}. there they could see a {animal}.",
            "on a {season} {time} {name} and {name2} could go to a {event}. after that they could walk to the {place}.",
        ],
        "{name} and {name2} could go to the {spot}.",
        Check::Compose { need: &["name", "name2", "season"] }, (2, 3), (12, 32)),
    // Open questions
    kind("open_qa", "animal_home", 4, &[],
        &[
            "where does a {animal} live?",
            "tell me where a {animal} lives.",
            "what is the home of a {animal}?",
            "a {animal}: where could i see it in the wild?",
        ],
        &["a {animal} lives in the {animal.home}.", "the home of a {animal} is the {animal.home}.", "you can see a {animal} in the {animal.home}."],
        "the {animal.home}.",
        fact(&["animal"], &["animal.home"], "place"), (1, 1), (4, 12)),
    kind("open_qa", "animal_feed", 4, &[],
        &["what does a {animal} eat?", "tell me what a {animal} eats.", "which food does the {animal} like?", "a {animal} is hungry. what does it want?"],
        &["a {animal} eats {animal.feed}.", "the {animal} likes to eat {animal.feed}.", "it is {animal.feed} that a {animal} eats."],
        "{animal.feed}.",
        fact(&["animal"], &["animal.feed"], "feed"), (1, 1), (4, 12)),
    kind("open_qa", "animal_colour", 3, &[],
        &["what colour is a {animal}?", "tell me the colour of a {animal}.", "a {animal}: which colour does it have?"],
        &["a {animal} is {animal.colour}.", "the colour of a {animal} is {animal.colour}."],
        "{animal.colour}.",
        fact(&["animal"], &["animal.colour"], "colour"), (1, 1), (4, 12)),
    kind("open_qa", "animal_legs", 2, &[],
        &["how many legs does a {animal} have?", "tell me how many legs a {animal} has.", "a {animal}: how many legs is that?"],
        &["a {animal} has {animal.legs} legs.", "the {animal} walks on {animal.legs} legs."],
        "{animal.legs}.",
        fact(&["animal"], &["animal.legs"], "number"), (1, 1), (4, 12)),
    kind("open_qa", "job_place", 2, &[],
        &["where does a {job} work?", "tell me where a {job} works.", "at which place would i meet a {job}?"],
        &["a {job} works at the {job.place}.", "you can meet a {job} at the {job.place}."],
        "the {job.place}.",
        fact(&["job"], &["job.place"], "place"), (1, 1), (4, 12)),
    kind("open_qa", "job_deed", 2, &[],
        &["what does a {job} do?", "tell me about the work of a {job}.", "what is the work of the {job}?"],
        &["a {job} {job.deed} {job.product}.", "every day the {job} {job.deed} {job.product}."],
        "{job.product}.",
        fact(&["job"], &["job.deed", "job.product"], "product"), (1, 1), (4, 12)),
    kind("open_qa", "job_tool", 2, &[],
        &["which tool does a {job} use?", "what does a {job} need for work?", "tell me the tool of a {job}."],
        &["a {job} uses a {job.tool}.", "for work a {job} needs a {job.tool}."],
        "a {job.tool}.",
        fact(&["job"], &["job.tool"], "object"), (1, 1), (4, 12)),
    kind("open_qa", "food_taste", 2, &[],
        &["how does a {food} taste?", "tell me the taste of a {food}.", "a {food}: what is its taste?"],
        &["a {food} tastes {food.taste}.", "the taste of a {food} is {food.taste}."],
        "{food.taste}.",
        fact(&["food"], &["food.taste"], "taste"), (1, 1), (4, 12)),
    kind("open_qa", "food_colour", 2, &[],
        &["what colour is a {food}?", "tell me the colour of a {food}.", "a {food}: which colour does it have?"],
        &["a {food} is {food.colour}.", "the colour of a {food} is {food.colour}."],
        "{food.colour}.",
        fact(&["food"], &["food.colour"], "colour"), (1, 1), (4, 12)),
    kind("open_qa", "object_material", 3, &[],
        &["what is a {object} made of?", "tell me what a {object} is made of.", "a {object}: which material is it?"],
        &["a {object} is made of {object.material}.", "the material of a {object} is {object.material}."],
        "{object.material}.",
        fact(&["object"], &["object.material"], "material"), (1, 1), (4, 12)),
    kind("open_qa", "object_room", 3, &[],
        &["where do i find a {object}?", "i look for a {object}. where is it?", "tell me where a {object} belongs."],
        &["you can find a {object} in the {object.room}.", "a {object} belongs in the {object.room}."],
        "the {object.room}.",
        fact(&["object"], &["object.room"], "place"), (1, 1), (4, 12)),
    // Brainstorming
    kind("brainstorming", "animals_home", 3, &[],
        &[
            "list {count} animals that live in the {home}.",
            "name {count} animals of the {home}.",
            "which {count} animals could i see in the {home}?",
            "i am in the {home}. give me {count} animals to look for.",
        ],
        &["{count} animals of the {home} are {list}.", "in the {home} you could see {list}.", "{list} live in the {home}."],
        "{list}.",
        items("animal", "home", "home"), (1, 1), (7, 22)),
    kind("brainstorming", "animals_colour", 2, &[],
        &["list {count} animals that are {colour}.", "name {count} {colour} animals.", "which {count} animals are {colour}?"],
        &["{count} {colour} animals are {list}.", "{list} are {colour}.", "animals that are {colour} are {list}."],
        "{list}.",
        items("animal", "colour", "colour"), (1, 1), (6, 22)),
    kind("brainstorming", "foods_taste", 2, &[],
        &["list {count} foods that taste {taste}.", "name {count} {taste} foods.", "i like {taste} food. give me {count} ideas."],
        &["{count} {taste} foods are {list}.", "{list} taste {taste}.", "foods that taste {taste} are {list}."],
        "{list}.",
        items("food", "taste", "taste"), (1, 1), (6, 22)),
    kind("brainstorming", "foods_colour", 1, &[],
        &["list {count} foods that are {colour}.", "name {count} {colour} foods.", "what could i cook that is {colour}? give me {count} ideas."],
        &["{count} {colour} foods are {list}.", "{list} are {colour}."],
        "{list}.",
        items("food", "colour", "colour"), (1, 1), (6, 22)),
    kind("brainstorming", "things_material", 2, &[],
        &["list {count} things made of {material}.", "name {count} things of {material}.", "i have some {material}. what are {count} things to make?"],
        &["{count} things made of {material} are {list}.", "{list} are made of {material}.", "from {material} you could make {list}."],
        "{list}.",
        items("object", "material", "material"), (1, 1), (7, 22)),
    kind("brainstorming", "things_room", 2, &[],
        &["list {count} things that belong in the {place}.", "name {count} things for the {place}.", "my {place} is empty. give me {count} ideas for it."],
        &["{count} things for the {place} are {list}.", "{list} belong in the {place}.", "in the {place} you could put {list}."],
        "{list}.",
        items("object", "room", "place"), (1, 1), (7, 22)),
    kind("brainstorming", "gifts", 3, &[],
        &[
            "give me {count} ideas for a gift for a {job}.",
            "the {job} has a birthday. suggest {count} gifts.",
            "what are {count} good gifts for a {job}?",
            "my friend is a {job}. name {count} gifts to buy.",
        ],
        &["you could give the {job} {list}.", "{count} gifts for a {job} are {list}.", "good gifts for a {job} are {list}."],
        "{list}.",
        Check::List { class: "object", fact: None, article: true }, (1, 1), (7, 22)),
    kind("brainstorming", "dishes", 3, &[],
        &[
            "give me {count} ideas for food at the {event}.",
            "the {event} is on {day}. suggest {count} foods.",
            "what are {count} foods for a {event}?",
            "name {count} foods to bring to the {event}.",
        ],
        &["for the {event} you could make {list}.", "{count} foods for a {event} are {list}.", "you could bring {list} to the {event}."],
        "{list}.",
        Check::List { class: "food", fact: None, article: true }, (1, 1), (7, 22)),
    kind("brainstorming", "pet_names", 2, &[],
        &["suggest {count} names for my {animal}.", "my {animal} needs a name. give me {count} ideas.", "what could i call a young {animal}? name {count} names."],
        &["you could call the {animal} {list}.", "{count} names for a {animal} are {list}.", "good names for a {animal} are {list}."],
        "{list}.",
        Check::List { class: "name", fact: None, article: false }, (1, 1), (6, 18)),
    // Chat
    kind("chat", "woe", 4, &[],
        &[
            "i feel {woe} today.",
            "i am {woe} this {time}.",
            "my name is {name} and i feel {woe}.",
            "it is {day} and i am {woe}.",
            "i was at the {spot} and now i feel {woe}.",
        ],
        &["i am sorry that you feel {woe}. i hope it gets better soon.", "i am sorry that you are {woe}. would you like to talk about it?", "it is hard to be {woe}. i am sorry to hear it."],
        "i am sorry.",
        fact(&["woe"], &["=sorry"], "reaction"), (2, 3), (9, 26)),
    kind("chat", "joy", 4, &[],
        &[
            "i feel {joy} today.",
            "i am {joy} this {time}.",
            "my name is {name} and i feel {joy}.",
            "it is {day} and i am {joy}.",
            "i was at the {spot} and now i feel {joy}.",
        ],
        &["i am glad that you feel {joy}. enjoy your day.", "i am glad that you are {joy}. it is good to hear.", "how nice to be {joy}. i am glad to hear it."],
        "i am glad.",
        fact(&["joy"], &["=glad"], "reaction"), (2, 3), (9, 26)),
    kind("chat", "loss", 3, &[],
        &["i lost my {object}.", "my {object} is broken.", "someone took my {object} at the {spot}.", "i cannot find my {object} in the {place}."],
        &["i am sorry about your {object}. i hope you get a new one soon.", "i am sorry about your {object}. can someone help you with it?"],
        "i am sorry.",
        fact(&["object"], &["=sorry"], "reaction"), (2, 3), (9, 26)),
    kind("chat", "gain", 3, &[],
        &["i have a new {object}.", "i got a {colour} {object} for my birthday.", "{name} gave me a {object}.", "on {day} i bought a {object} at the {spot}."],
        &["i am glad about your {object}. i hope you like it.", "i am glad that you have a {object}. what will you do with it?"],
        "i am glad.",
        fact(&["object"], &["=glad"], "reaction"), (2, 3), (9, 26)),
    kind("chat", "greeting", 2, &[],
        &["good {time}, my name is {name}.", "good {time}, i am {name}.", "{name} is my name, and good {time} to you."],
        &["good {time}, {name}. it is nice to meet you.", "good {time}, {name}. how are you today?"],
        "good {time}.",
        fact(&["time"], &["name"], "name"), (2, 3), (6, 20)),
    kind("chat", "visit", 2, &[],
        &["i will go to the {spot} on {day}.", "on {day} i visit the {spot}.", "{name} and i will be at the {spot} on {day}."],
        &["i am glad that you will see the {spot}. enjoy your {day}.", "how nice to see the {spot}. i am glad for you."],
        "i am glad.",
        fact(&["spot"], &["=glad"], "reaction"), (2, 3), (9, 26)),
    // Rewriting
    kind("rewrite", "past_animal", 3, &["the {animal} {moves} to the {place}."],
        &["put this in the past tense: @", "@ say this in the past tense.", "change it to the past tense: @"],
        &["the {animal} {moves.past} to the {place}."],
        "{moves.past}.",
        Check::Exact, (1, 1), (5, 9)),
    kind("rewrite", "past_person", 3, &["{name} {takes} the {object}."],
        &["put this in the past tense: @", "@ say this in the past tense.", "change it to the past tense: @"],
        &["{name} {takes.past} the {object}."],
        "{takes.past}.",
        Check::Exact, (1, 1), (4, 8)),
    kind("rewrite", "polite", 2, &["give me the {object}."],
        &["make this polite: @", "@ how do i say this in a polite way?", "say it in a polite way: @"],
        &["could you please give me the {object}?"],
        "the {object}, please.",
        Check::Exact, (1, 1), (6, 9)),
    kind("rewrite", "polite_errand", 2, &["bring the {object} to {name}."],
        &["make this polite: @", "@ how do i say this in a polite way?", "say it in a polite way: @"],
        &["could you please bring the {object} to {name}?"],
        "the {object}, please.",
        Check::Exact, (1, 1), (7, 10)),
    kind("rewrite", "negative_object", 1, &["the {object} is {adj}."],
        &["make this negative: @", "@ change it to the negative."],
        &["the {object} is not {adj}."],
        "not {adj}.",
        Check::Exact, (1, 1), (5, 7)),
    kind("rewrite", "negative_animal", 1, &["the {animal} is {adj}."],
        &["make this negative: @", "@ change it to the negative."],
        &["the {animal} is not {adj}."],
        "not {adj}.",
        Check::Exact, (1, 1), (5, 7)),
    kind("rewrite", "other_name", 2, &["{name} {takes} the {object}."],
        &["change the name to {name2}: @", "@ put {name2} in place of {name}."],
        &["{name2} {takes} the {object}."],
        "{name2}.",
        Check::Exact, (1, 1), (4, 8)),
    // Summaries
    kind("summarization", "errand", 2, &["{name} went to the {spot} on {day}. it was full of people. {name.she} bought a {object} there."],
        &["summarize this: @", "say it in one sentence: @", "@ what happened, in short?"],
        &["{name} bought a {object} at the {spot}.", "on {day} {name} bought a {object} at the {spot}.", "at the {spot} {name} bought a {object}."],
        "{name} bought a {object}.",
        Check::Compose { need: &["name", "object", "spot"] }, (1, 1), (7, 12)),
    kind("summarization", "search", 2, &["a {animal} was {woe}. it had lost its {object}. it looked for it in the {place}."],
        &["summarize this: @", "say it in one sentence: @", "@ what happened, in short?"],
        &["a {animal} looked for its {object} in the {place}.", "a {woe} {animal} looked in the {place} for its {object}."],
        "a {animal} lost a {object}.",
        Check::Compose { need: &["animal", "object", "place"] }, (1, 1), (8, 13)),
    kind("summarization", "meal", 1, &["{name} made a {food}. {name2} made a {food2}. they ate it all at the {spot}."],
        &["summarize this: @", "say it in one sentence: @", "@ what happened, in short?"],
        &["{name} and {name2} ate a {food} and a {food2} at the {spot}.", "at the {spot} {name} and {name2} ate a {food} and a {food2}."],
        "they ate a {food}.",
        Check::Compose { need: &["name", "name2", "food", "food2", "spot"] }, (1, 1), (10, 15)),
    // Classification
    kind("classification", "review_good", 3, &["the {food} was {good}.", "the {food} at the {spot} was {good}.", "the {event} was {good}."],
        &["is this review happy or sad: @", "@ is this review happy or sad?", "sort this review into happy or sad: @"],
        &["this review is happy.", "it is a happy review."],
        "happy.",
        fact(&["=review"], &["=happy"], "feeling"), (1, 1), (4, 12)),
    kind("classification", "review_bad", 3, &["the {food} was {bad}.", "the {food} at the {spot} was {bad}.", "the {event} was {bad}."],
        &["is this review happy or sad: @", "@ is this review happy or sad?", "sort this review into happy or sad: @"],
        &["this review is sad.", "it is a sad review."],
        "sad.",
        fact(&["=review"], &["=sad"], "feeling"), (1, 1), (4, 12)),
    kind("classification", "is_animal", 1, &[],
        &["sort this word into animal, food, or job: {animal}.", "is {animal} an animal, a food, or a job?"],
        &["a {animal} is an animal.", "the word {animal} names an animal."],
        "animal.",
        fact(&["animal"], &["=animal"], "category"), (1, 1), (4, 12)),
    kind("classification", "is_job", 1, &[],
        &["sort this word into animal, food, or job: {job}.", "is {job} an animal, a food, or a job?"],
        &["a {job} is a job.", "the word {job} names a job."],
        "job.",
        fact(&["job"], &["=job"], "category"), (1, 1), (4, 12)),
    kind("classification", "food_kind", 2, &[],
        &["is a {food} a fruit, a vegetable, a dessert, or a snack?", "sort this into fruit, vegetable, dessert, or snack: {food}."],
        &["a {food} is a {food.kind}.", "the {food} is a kind of {food.kind}."],
        "{food.kind}.",
        fact(&["food"], &["food.kind"], "kind"), (1, 1), (4, 12)),
    // Other
    kind("other", "opposite", 4, &[],
        &["what is the opposite of {adj}?", "tell me the opposite of {adj}.", "{adj}: which word is its opposite?"],
        &["the opposite of {adj} is {adj.opposite}.", "{adj.opposite} is the opposite of {adj}."],
        "{adj.opposite}.",
        fact(&["adj"], &["adj.opposite"], "adj"), (1, 1), (4, 12)),
    kind("other", "day_after", 1, &[],
        &["which day comes after {day}?", "today is {day}. which day is tomorrow?"],
        &["{day.next} comes after {day}.", "the day after {day} is {day.next}."],
        "{day.next}.",
        fact(&["day"], &["day.next"], "day"), (1, 1), (4, 12)),
    kind("other", "day_before", 1, &[],
        &["which day comes before {day}?", "today is {day}. which day was yesterday?"],
        &["{day.before} comes before {day}.", "the day before {day} is {day.before}."],
        "{day.before}.",
        fact(&["day"], &["day.before"], "day"), (1, 1), (4, 12)),
    kind("other", "number_after", 1, &[],
        &["which number comes after {few}?", "i count and say {few}. what comes now?"],
        &["{few.next} comes after {few}.", "the number after {few} is {few.next}."],
        "{few.next}.",
        fact(&["few"], &["few.next"], "number"), (1, 1), (4, 12)),
    kind("other", "season_after", 1, &[],
        &["which season comes after {season}?", "it is {season}. which season comes now?"],
        &["{season.next} comes after {season}.", "the season after {season} is {season.next}."],
        "{season.next}.",
        fact(&["season"], &["season.next"], "season"), (1, 1), (4, 12)),
    // Closed questions
    kind("closed_qa", "has_first", 1, &["{name} has a {colour} {object}, and {name2} has a {colour2} {object2}."],
        &["@ what does {name} have?", "read this: @ tell me what {name} has."],
        &["{name} has a {colour} {object}."],
        "a {object}.",
        fact(&["name"], &["object", "colour"], "object"), (1, 1), (5, 9)),
    kind("closed_qa", "has_second", 1, &["{name} has a {colour} {object}, and {name2} has a {colour2} {object2}."],
        &["@ what does {name2} have?", "read this: @ tell me what {name2} has."],
        &["{name2} has a {colour2} {object2}."],
        "a {object2}.",
        fact(&["name2"], &["object2", "colour2"], "object"), (1, 1), (5, 9)),
    kind("closed_qa", "where_first", 1, &["{name} is at the {place}, and {name2} is at the {place2}."],
        &["@ where is {name}?", "read this: @ tell me where {name} is."],
        &["{name} is at the {place}."],
        "the {place}.",
        fact(&["name"], &["place"], "place"), (1, 1), (5, 9)),
    kind("closed_qa", "who_second", 1, &["{name} is at the {place}, and {name2} is at the {place2}."],
        &["@ who is at the {place2}?", "read this: @ tell me who is at the {place2}."],
        &["{name2} is at the {place2}."],
        "{name2}.",
        fact(&["place2"], &["name2"], "name"), (1, 1), (5, 9)),
    // Extraction
    kind("extract", "the_animal", 1, &["on {day} {name} saw a {animal} near the {place}.", "the {animal} and the {job} met at the {place}."],
        &["find the animal in this sentence: @", "@ which animal is named here?"],
        &["the animal is a {animal}.", "the sentence names a {animal}."],
        "{animal}.",
        fact(&["animal"], &["animal"], "animal"), (1, 1), (4, 9)),
    kind("extract", "the_name", 1, &["on {day} {name} saw a {animal} near the {place}.", "a {job} sold the {object} to {name}."],
        &["find the name in this sentence: @", "@ which name stands here?"],
        &["the name is {name}.", "the sentence names {name}."],
        "{name}.",
        fact(&["name"], &["name"], "name"), (1, 1), (4, 9)),
    kind("extract", "the_place", 1, &["on {day} {name} saw a {animal} near the {place}.", "the {animal} and the {job} met at the {place}."],
        &["find the place in this sentence: @", "@ which place is named here?"],
        &["the place is the {place}.", "the sentence names the {place}."],
        "{place}.",
        fact(&["place"], &["place"], "place"), (1, 1), (4, 9)),
    kind("extract", "the_colour", 1, &["{name} has a {colour} {object}.", "a {colour} {object} stands in the {place}."],
        &["find the colour in this sentence: @", "@ which colour is named here?"],
        &["the colour is {colour}.", "the sentence names the colour {colour}."],
        "{colour}.",
        fact(&["colour"], &["colour"], "colour"), (1, 1), (4, 9)),
];
