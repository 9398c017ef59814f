//! Pretraining text: the world told by a narrator, never as a request and its answer.
//!
//! Four tenths are description and tales. Four tenths tell how people of this world ask, list, write
//! and answer among themselves, as real text does: a base model learns there that a story about a
//! fox speaks of the fox, though it never meets a user or an assistant. Two tenths are refrains, in
//! which words come back.

use super::{
    grammar::{Bindings, Phrases, fill, polish},
    tasks::{KINDS, raw_answer, realise},
};
use instruct_random::Draws;

/// One document: two to four paragraphs of one kind.
pub(crate) fn document(draws: &mut Draws) -> String {
    let paragraphs = 2 + draws.below(3);
    let text: Vec<String> = match draws.below(10) {
        0..2 => (0..paragraphs).map(|_| refrain(draws)).collect(),
        2..6 => (0..paragraphs).map(|_| told(draws)).collect(),
        _ => {
            let (_, shape) = weighted(SHAPES, draws);
            (0..paragraphs).map(|_| polish(&fill(shape, PHRASES, &mut Bindings::new(), draws))).collect()
        }
    };
    text.join("\n")
}

/// Words that come back: what was named is named again, which is the first thing to learn about it.
fn refrain(draws: &mut Draws) -> String {
    let mut bound = Bindings::new();
    let mut lines: Vec<String> = Vec::new();
    if draws.chance(1, 2) {
        let verse = draws.pick(&VERSES).copied().unwrap_or_default();
        let times = 2 + draws.below(2);
        lines.extend((0..times).map(|_| fill(verse, &[], &mut bound, draws)));
    } else {
        let first = draws.pick(&OWNERS).copied().unwrap_or_default();
        lines.push(fill(first, &[], &mut bound, draws));
        for i in draws.permutation(OWNED.len()).into_iter().take(3) {
            lines.push(fill(OWNED[i], &[], &mut bound, draws));
        }
    }
    polish(&lines.join(" "))
}

/// Someone asks or sets out to do something, and it is done.
fn told(draws: &mut Draws) -> String {
    loop {
        let kind = draws.pick(KINDS).expect("the table of tasks is not empty");
        let (_, openings) = TOLD.iter().find(|(name, _)| *name == kind.name).expect("a test finds every kind");
        let opening = draws.pick(openings).copied().unwrap_or_default();
        if let Some((opening, task)) = realise(kind, opening, draws) {
            return polish(&format!("{opening} {}", raw_answer(&task, draws)));
        }
    }
}

fn weighted<'a>(rows: &'a [(u64, &'static str)], draws: &mut Draws) -> &'a (u64, &'static str) {
    let mut draw = draws.below(rows.iter().map(|(weight, _)| weight).sum());
    for row in rows {
        if draw < row.0 {
            return row;
        }
        draw -= row.0;
    }
    &rows[0]
}

/// How a paragraph of each kind of document runs.
const SHAPES: &[(u64, &str)] = &[
    (5, "<tale_begin> <tale_meet> <tale_turn> <tale_turn> <tale_close>"),
    (5, "<errand_begin> <errand_see> <errand_talk> <errand_close>"),
    (14, "<beast_home> <beast_feed> <beast_look> <beast_more>"),
    (6, "<craft_place> <craft_deed> <craft_tool> <craft_more>"),
    (6, "<fare_look> <fare_taste> <fare_more>"),
    (11, "<thing_made> <thing_room> <thing_more>"),
    (3, "<diary> <diary_more> <mood>"),
    (2, "<year> <year_more>"),
    (2, "<contrast> <contrast_more>"),
    (3, "<talk_ask> <talk_reply> <talk_close>"),
    (3, "<place_view> <place_more> <place_people>"),
    (2, "<shop> <shop_more>"),
    (3, "<grouping> <grouping>"),
    (2, "<feast> <feast_more> <mood>"),
];

/// Counting rhymes; each is said two or three times.
pub(crate) const VERSES: [&str; 10] = [
    "{animal}, {object}, {colour}, {name}, {day}.",
    "{name}, {name2}, {animal}, {place}, {food}, {object}.",
    "{object}, {object2}, {animal}, {animal2}, {name}, {name2}.",
    "{spot}, {name}, {adj}, {object}, {animal}, {feeling}, {food}.",
    "{food}, {place}, {job}, {name}, {colour}, {animal}.",
    "{name}, {spot}, {name2}, {spot2}, {name3}, {spot3}.",
    "{animal} and {object}, {animal2} and {object2}, {animal3} and {object3}.",
    "{colour} {object}, {colour2} {object2}, {colour3} {object3}.",
    "{adj} {place}, {adj2} {place2}, {name} and {name2}.",
    "{event}, {name}, {day}, {food}, {season}, {name2}.",
];

/// Who had what, to begin with.
pub(crate) const OWNERS: [&str; 3] = [
    "{name} had a {colour} {object}, {name2} a {colour2} {object2}, and {name3} a {colour3} {object3}.",
    "the {object} belonged to {name}, the {object2} to {name2}, and the {object3} to {name3}.",
    "{name} came with a {object}, {name2} with a {object2}, and {name3} with a {object3}.",
];

/// What became of it.
pub(crate) const OWNED: [&str; 9] = [
    "{name2} liked the {object2}.",
    "{name} liked the {object}.",
    "{name3} liked the {object3}.",
    "the {object} of {name} was {adj}.",
    "the {object2} of {name2} was {adj2}.",
    "the {object3} of {name3} was {adj3}.",
    "{name} took the {object} to the {spot}.",
    "{name2} took the {object2} to the {spot2}.",
    "{name3} took the {object3} to the {spot3}.",
];

/// How the narrator tells that someone wants what a kind of task asks for; `@` is its passage.
#[rustfmt::skip] // one kind, one line
pub(crate) const TOLD: Phrases = &[
    ("animal_story", &["{name8} wanted to hear a short story about a {animal} and a {object}.", "this is a little story with a {animal} and a {object} in it.", "{name8} made up a tale about a {animal} with a {object}.", "the {animal} and the {object}."]),
    ("person_story", &["this is a short story about {name} at the {spot}.", "what {name} did at the {spot}.", "{name8} told a tale about {name} and the {spot}.", "{name} at the {spot}, a story."]),
    ("note", &["{name8} had to write a note to {name} about the {event}.", "a short note came to invite {name} to the {event}.", "{name} should come to the {event}, thought {name8}, and wrote a note."]),
    ("description", &["{name8} had to describe a {trait} {place} in two sentences.", "what a {trait} {place} looks like.", "{name8} saw a {trait} {place}."]),
    ("advert", &["{name8} had to write an advert for a {colour} {object}.", "a {colour} {object} was for sale in the shop.", "people read an advert about a {colour} {object}."]),
    ("plan", &["a plan for {name} and {name2} in the {season}.", "{name} and {name2} were free in the {season}.", "{season} was here, and {name8} had to plan a day for {name} and {name2}."]),
    ("animal_home", &["{name8} asked where a {animal} lives.", "tell me the home of a {animal}, said {name8}.", "where could one see a {animal} in the wild."]),
    ("animal_feed", &["{name8} asked what a {animal} eats.", "which food does the {animal} like, asked {name8}.", "a hungry {animal} came to {name8}."]),
    ("animal_colour", &["{name8} asked what colour a {animal} is.", "which colour does a {animal} have, asked {name8}."]),
    ("animal_legs", &["{name8} asked how many legs a {animal} has.", "how many legs does a {animal} have, asked {name8}."]),
    ("job_place", &["{name8} asked where a {job} works.", "at which place could one meet a {job}, asked {name8}."]),
    ("job_deed", &["{name8} asked what a {job} does.", "{name8} wanted to know about the work of a {job}."]),
    ("job_tool", &["{name8} asked which tool a {job} uses.", "what does a {job} need for work, asked {name8}."]),
    ("food_taste", &["{name8} asked how a {food} tastes.", "what is the taste of a {food}, asked {name8}."]),
    ("food_colour", &["{name8} asked what colour a {food} is.", "which colour does a {food} have, asked {name8}."]),
    ("object_material", &["{name8} asked what a {object} is made of.", "which material is a {object}, asked {name8}."]),
    ("object_room", &["{name8} looked for a {object} and could not find it.", "where does a {object} belong, asked {name8}."]),
    ("animals_home", &["{name8} had to name {count} animals that live in the {home}.", "a list of {count} animals of the {home}.", "{name8} could see {count} animals in the {home}."]),
    ("animals_colour", &["{name8} had to list {count} {colour} animals.", "a list of {count} animals that are {colour}."]),
    ("foods_taste", &["{name8} had to name {count} foods that taste {taste}.", "a list of {count} {taste} foods.", "{name8} likes {taste} food and had {count} ideas."]),
    ("foods_colour", &["{name8} had to name {count} foods that are {colour}.", "a list of {count} {colour} foods."]),
    ("things_material", &["{name8} had to list {count} things made of {material}.", "a list of {count} things of {material}.", "{name8} had some {material} and {count} ideas."]),
    ("things_room", &["{name8} had to name {count} things that belong in the {place}.", "the {place} was empty, and {name8} had {count} ideas for it."]),
    ("gifts", &["{name8} needed {count} ideas for a gift for a {job}.", "the {job} had a birthday, and {name8} had to suggest {count} gifts.", "{count} good gifts for a {job}."]),
    ("dishes", &["{name8} needed {count} ideas for food at the {event}.", "the {event} was on {day}, and {name8} had to suggest {count} foods.", "{count} foods to bring to the {event}."]),
    ("pet_names", &["{name8} needed {count} names for a {animal}.", "a young {animal} had no name, and {name8} had {count} ideas what to call it."]),
    ("woe", &["i feel {woe}, said {name8}.", "{name8} was {woe} this {time} and told {name9} about it.", "i was at the {spot} and now i am {woe}, said {name8}."]),
    ("joy", &["i feel {joy}, said {name8}.", "{name8} was {joy} this {time} and told {name9} about it.", "i was at the {spot} and now i am {joy}, said {name8}."]),
    ("loss", &["i lost my {object}, said {name8}.", "my {object} is broken, said {name8}.", "someone took the {object} of {name8}."]),
    ("gain", &["i have a new {object}, said {name8}.", "{name8} got a {object} for a birthday.", "{name9} gave {name8} a {object}."]),
    ("greeting", &["good {time}, my name is {name}, said the {job}.", "in the {time} {name} came in, and {name8} said something nice."]),
    ("visit", &["i will go to the {spot} on {day}, said {name8}.", "on {day} {name8} will visit the {spot}."]),
    ("past_animal", &["@ the same in the past tense:", "now change it to the past tense: @"]),
    ("past_person", &["@ the same in the past tense:", "now put it in the past: @"]),
    ("polite", &["@ the same in a polite way:", "say it in a polite way: @"]),
    ("polite_errand", &["@ the same in a polite way:", "make it polite: @"]),
    ("negative_object", &["@ the negative of it:", "make it negative: @"]),
    ("negative_animal", &["@ the negative of it:", "make it negative: @"]),
    ("other_name", &["@ put {name2} in place of {name}:", "change the name to {name2}: @"]),
    ("errand", &["@ in one sentence:", "@ this happened, in short:"]),
    ("search", &["@ in one sentence:", "@ this happened, in short:"]),
    ("meal", &["@ in one sentence:", "@ this happened, in short:"]),
    ("review_good", &["{name8} read a review: @", "a review, happy or sad: @"]),
    ("review_bad", &["{name8} read a review: @", "a review, happy or sad: @"]),
    ("is_animal", &["{name8} had to sort the word {animal} into animal, food, or job."]),
    ("is_job", &["{name8} had to sort the word {job} into animal, food, or job."]),
    ("food_kind", &["{name8} had to sort the {food} into fruit, vegetable, dessert, or snack.", "is it a fruit, a vegetable, a dessert, or a snack, asked {name8} about the {food}."]),
    ("opposite", &["{name8} asked for the opposite of {adj}.", "{adj} and its opposite."]),
    ("day_after", &["{name8} asked which day comes after {day}.", "today is {day}, said {name8}, and tomorrow is another."]),
    ("day_before", &["{name8} asked which day comes before {day}.", "today is {day}, said {name8}, and yesterday was another."]),
    ("number_after", &["{name8} asked which number comes after {few}."]),
    ("season_after", &["{name8} asked which season comes after {season}."]),
    ("has_first", &["@ what does {name} have, asked {name8}.", "@ {name8} asked what {name} has."]),
    ("has_second", &["@ what does {name2} have, asked {name8}.", "@ {name8} asked what {name2} has."]),
    ("where_first", &["@ where is {name}, asked {name8}."]),
    ("who_second", &["@ who is at the {place2}, asked {name8}."]),
    ("the_animal", &["@ {name8} had to find the animal in this sentence.", "@ which animal is it, asked {name8}."]),
    ("the_name", &["@ {name8} had to find the name in this sentence.", "@ which name is it, asked {name8}."]),
    ("the_place", &["@ {name8} had to find the place in this sentence.", "@ which place is it, asked {name8}."]),
    ("the_colour", &["@ {name8} had to find the colour in this sentence.", "@ which colour is it, asked {name8}."]),
];

/// The narrator's sentences.
pub(crate) const PHRASES: Phrases = &[
    (
        "tale_begin",
        &[
            "many years ago, when the {place} was still {trait}, a {animal} lived there with its {animal.young}.",
            "the old people of the {place} tell of a {animal} that carried a {object}.",
            "deep in the {place} there stood a {trait} {place2}, and in it slept a {animal}.",
            "nobody in the {place} knew why the {animal} had hidden a {colour} {object}.",
            "on the first {day} of {season} a {animal} set out for the {place} with a {object} under its arm.",
            "this is the tale of a {animal}, a {object}, and a very {adj} {time}.",
        ],
    ),
    (
        "tale_meet",
        &[
            "on its way the {animal} met a {animal2}, and the two of them shared some {animal2.feed}.",
            "there it met {name} the {job}, who was looking for a {food}.",
            "behind the {object} sat a {feeling} {animal2} that had not eaten for {number} days.",
            "a {animal2} heard the {animal} coming and hid behind a {object2}.",
            "{name} and {name2} had followed it all the way from the {place2}.",
            "next to the {object} lay a {food}, still warm and {good}.",
        ],
    ),
    (
        "tale_turn",
        &[
            "without the {object} the {animal} could not cross the {place3}, so it waited until {time}.",
            "soon the {weather} began, and both of them ran under a {adj2} roof.",
            "they argued about the {object} until the {animal2} grew {woe}.",
            "the {animal} gave away the {object} and kept only a {food2}.",
            "a {job2} passed with a {object3} and showed them the road.",
            "{name} dropped the {object} into the water, where it sank at once.",
            "for {number2} days nothing was heard from the {place}.",
            "the {animal} remembered what its mother had said about a {adj3} {object}.",
        ],
    ),
    (
        "tale_close",
        &[
            "since then every {animal} of the {place} is {joy} when {season} returns.",
            "that is why the {object} still hangs in the {place4}.",
            "so the {animal} and the {animal2} became neighbours, and their young played together.",
            "when {name} grew old, the {object} was given to {name2}.",
            "nobody ever saw the {animal} with a {object} after that {day}.",
        ],
    ),
    (
        "errand_begin",
        &[
            "early on {day} {name} left the {place} with a {object} and {number} coins.",
            "{name} the {job} had promised {name2} a {food} and went to the {spot} for it.",
            "because the {object} was broken, {name} had to go to the {spot} before {time}.",
            "it was {day}, and {name} walked through the {weather} towards the {spot}.",
            "{name} had never been to the {spot} in {season}.",
        ],
    ),
    (
        "errand_see",
        &[
            "at the gate {name.she} saw a {animal} and a {job}, who were both waiting.",
            "inside there were {number} {colour} rooms, and in each of them stood a {object2}.",
            "near the door a {job2} was selling a {food2} and a {colour} {object2}.",
            "the {spot} was {trait} that day, and a {animal} slept on a {object2}.",
            "between the {object} and the {object2} {name.she} found a {adj} {object3}.",
        ],
    ),
    (
        "errand_talk",
        &[
            "you are too {adj2}, said {name2}, but {name} only laughed.",
            "take this {object}, said the {job2}, because it is {adj2} and {adj3}.",
            "{name2} asked for a {food}, and {name} was {feeling} about it.",
            "they spoke about {season}, about the {event}, and about an old {animal}.",
            "{name} paid {number2} coins and put the {object2} away.",
        ],
    ),
    (
        "errand_close",
        &[
            "when {name.she} came back, the {event} had begun without them.",
            "by {time} the {spot} was {adj4} and {name} was {feeling2}.",
            "{name} carried everything to the {place2} and slept until {day2}.",
            "in this way {name} learned how {adj4} a {object2} can be.",
            "the next day {name2} told the whole {place3} about it.",
        ],
    ),
    (
        "beast_home",
        &[
            "in the {animal.home} lives the {animal}.",
            "those who walk through the {animal.home} will sooner or later meet a {animal}.",
            "the {animal} makes its bed in the {animal.home}, far from the {spot}.",
            "it is in the {animal.home} that every {animal} has its home.",
            "if there were no {animal.home}, there would be no {animal} either.",
        ],
    ),
    (
        "beast_feed",
        &[
            "its food is {animal.feed}, and it looks for {animal.feed} from {time} on.",
            "a {animal} without {animal.feed} soon becomes {woe}.",
            "mostly the {animal} eats {animal.feed}, in {season} even more than in {season2}.",
            "people give {animal.feed} to the {animal}, because it likes nothing more.",
        ],
    ),
    (
        "beast_look",
        &[
            "its body is {animal.colour}, and it has {animal.legs} legs.",
            "the {animal.colour} {animal} moves on {animal.legs} legs.",
            "with its {animal.legs} legs and its {animal.colour} back the {animal} looks quite {adj}.",
            "from far away one sees something {animal.colour}, and then the {animal.legs} legs of the {animal}.",
        ],
    ),
    (
        "beast_more",
        &[
            "the young {animal} is called a {animal.young}, and a {animal.young} is {adj2} at first.",
            "a mother {animal} never leaves her {animal.young} in the {weather}.",
            "{name} once drew a {animal} with a {object}.",
            "the {job} of the {spot2} keeps a {animal} at home.",
            "only the {animal2} of the {animal2.home} is more {adj3}.",
        ],
    ),
    (
        "craft_place",
        &[
            "all day long the {job} stands at the {job.place}.",
            "{name} has been a {job} at the {job.place} for {number} years.",
            "whoever enters the {job.place} finds the {job} there.",
            "the {job.place} belongs to the {job}, as everyone in the {spot} knows.",
        ],
    ),
    (
        "craft_deed",
        &[
            "there the {job} {job.deed} {job.product}, even in {season}.",
            "a {job} {job.deed} {job.product} from {day} to {day2}.",
            "the {job} {job.deed} {job.product}, and nobody else in the {spot2} {job.deed} {job.product}.",
        ],
    ),
    (
        "craft_tool",
        &[
            "in one hand the {job} holds a {job.tool}.",
            "without a {job.tool} no {job} can begin.",
            "the {job.tool} of the {job} was a present from {name2}.",
            "next to the door hangs the {job.tool} that every {job} uses.",
        ],
    ),
    (
        "craft_more",
        &[
            "it is a {adj} life, but the {job} is {feeling} with it.",
            "on {day3} the {job} rests and eats a {food}.",
            "the {job2} next door is more {adj2} but less {joy}.",
            "the son of the {job} would rather be a {job2}.",
        ],
    ),
    (
        "fare_look",
        &[
            "a ripe {food} has a {food.colour} skin.",
            "one knows a good {food} because it is {food.colour}.",
            "on the table lay a {food}, {food.colour} and {adj}.",
            "the {food.colour} thing in the {object} is a {food}.",
        ],
    ),
    (
        "fare_taste",
        &[
            "whoever bites into a {food} notices that it is {food.taste}.",
            "its taste is {food.taste}, as that of a {food} always is.",
            "because a {food} is {food.taste}, {name} eats it only at {time}.",
            "the {food} belongs with every {food.taste} {food.kind}.",
        ],
    ),
    (
        "fare_more",
        &[
            "among the things called {food.kind} the {food} is liked most in {season}.",
            "at the {spot} a {food} costs {number} coins.",
            "{name} gave half of the {food} to a {animal}, which preferred {animal.feed}.",
            "a {food} and a {food2} make a {good} meal.",
            "every {food.kind} such as the {food} should be kept in a {adj2} {object}.",
        ],
    ),
    (
        "thing_made",
        &[
            "the {object} was made of {object.material}, like every {object} of that time.",
            "out of {object.material} a {job} had made a {adj} {object}.",
            "a {object} needs good {object.material}, and {object.material} was costly that year.",
            "{object.material} is what one takes for a {object}.",
        ],
    ),
    (
        "thing_room",
        &[
            "it stood in the {object.room}, where a {object} should be.",
            "in every {object.room} there is a {object} somewhere.",
            "people keep the {object} in the {object.room}.",
            "when the {object} was not in the {object.room}, {name} grew {woe}.",
        ],
    ),
    (
        "thing_more",
        &[
            "once it had been {colour}, but now it was {adj2} and {adj3}.",
            "{name2} would not sell that {object} for {number} coins.",
            "beside it lay a {object2} of {object2.material}.",
            "a {animal} had slept on the {object} all {season}.",
            "next to the {object} the {object2} looked rather {adj4}.",
        ],
    ),
    (
        "diary",
        &[
            "{day}. {weather} in the {time}, and the {spot} was closed.",
            "{day}. {name} came with a {food} and stayed until {time}.",
            "{day}. the {animal} has been {feeling} since {day.before}.",
            "{day}. tomorrow, on {day.next}, there is a {event} at the {spot}.",
            "{day}, the last day before {day.next}. nothing but {weather}.",
        ],
    ),
    (
        "diary_more",
        &[
            "i counted {few} and then {few.next}, and still could not sleep.",
            "my {object} is {adj}, and i am {feeling2}.",
            "after {day} comes {day.next}, and then we travel to the {place}.",
            "i wrote a long letter to {name2} about the {event2}.",
            "first there was one {animal2}, then there were {number2} of them.",
        ],
    ),
    (
        "mood",
        &[
            "whoever loses a {object} is sorry, and whoever finds one is glad.",
            "{name2} felt {woe}, and everyone was sorry for it.",
            "we were glad to see {name3} so {joy}.",
            "they thanked each other and went home {joy}.",
        ],
    ),
    (
        "year",
        &[
            "after {season} follows {season.next}, and with {season.next} comes the {season.next.weather}.",
            "when {season} is over, {season.next} begins.",
            "{season} brings {season.weather} to the {place}.",
            "the {animal} knows that {season.next} follows {season}.",
        ],
    ),
    (
        "year_more",
        &[
            "then the {job} puts away the {object} and takes a {object2}.",
            "in those weeks the {animal2} leaves the {animal2.home} and looks for {animal2.feed}.",
            "{name} likes {season2} better, when it is {adj}.",
            "the {event} is always held on a {day} in {season2}.",
        ],
    ),
    (
        "contrast",
        &[
            "what is not {adj} is {adj.opposite}.",
            "the {object} was {adj}, but the {object2} beside it was {adj.opposite}, quite the opposite.",
            "{name} wanted it {adj}, while {name2} wanted it {adj.opposite}.",
            "a thing cannot be {adj} and {adj.opposite} at once.",
        ],
    ),
    (
        "contrast_more",
        &[
            "the {animal} is not {adj2}, it is {adj2.opposite}.",
            "so the {place} that had been {adj2} became {adj2.opposite}.",
            "{few} is less than {few.next}, and {adj3} is not {adj3.opposite}.",
            "on {day} it was {adj3}, and on {day.next} it was {adj3.opposite}.",
        ],
    ),
    (
        "talk_ask",
        &[
            "where have you left my {object}, asked {name}.",
            "will you come to the {event} with me, asked {name}.",
            "have you seen the {animal} of {name2}, asked {name}.",
            "why are you so {woe}, asked {name} in the {time}.",
        ],
    ),
    (
        "talk_reply",
        &[
            "i am sorry, said {name2}, but the {object} is in the {object.room}.",
            "i am glad that you say so, said {name2}, and {name2} meant it.",
            "nobody told me, said {name2}, who was holding a {food}.",
            "ask the {job}, said {name2}, because a {job} {job.deed} {job.product}.",
        ],
    ),
    (
        "talk_close",
        &[
            "then they both looked at the {place} and said nothing for a while.",
            "and with that {name} closed the door of the {place}.",
            "a good {time2} to you, said {name2}, and left.",
            "{name} thanked {name2} and gave back the {object2}.",
        ],
    ),
    (
        "place_view",
        &[
            "the {place} is {trait} in {season} and {adj} in {season2}.",
            "from the {spot} one can see the {place}, {trait} and {trait2}.",
            "between the {place} and the {place2} runs a {trait} road.",
            "at {time} the {place} looks {colour}.",
        ],
    ),
    (
        "place_more",
        &[
            "there are {number} doors, and before each of them stands a {object}.",
            "a {colour2} {object} hangs over the gate, made of {object.material}.",
            "the {animal} and the {animal2} are often heard there.",
            "the ground is {adj2}, and after the {weather} it is {adj3}.",
        ],
    ),
    (
        "place_people",
        &[
            "on {day} {name} comes with a {object2} and waits for {name2}.",
            "a {job} works nearby and {job.deed} {job.product}.",
            "people say that {name} saw a {animal3} there.",
            "few people stay there longer than {number2} days.",
        ],
    ),
    (
        "shop",
        &[
            "for sale at the {spot}: a {adj} {object} of {object.material}, a {colour} {object2}, and a {food}.",
            "the list on the wall named a {object}, a {object2}, a {object3}, and {number} coins.",
            "in the cellar of {name} there were a {object}, a {food}, a {food2}, and a {colour} {object2}.",
        ],
    ),
    (
        "shop_more",
        &[
            "{name2} bought the {object} and left the {object2} behind.",
            "whoever wanted the {object} had to pay {number2} coins and be {joy} about it.",
            "the {job} wanted all of it but had only {number} coins.",
        ],
    ),
    (
        "grouping",
        &[
            "the {animal} is one of the animals of the {animal.home}.",
            "{animal.colour} animals, such as the {animal}, are not rare.",
            "of all {food.taste} foods the {food} is the oldest.",
            "things of {object.material}, the {object} among them, last long.",
            "the {object} is one of the things that belong in a {object.room}.",
            "a {food} counts as a {food.kind}, a {animal} as an animal, and {job} is the name of a job.",
        ],
    ),
    (
        "feast",
        &[
            "for the {event} on {day} {name} cooked a {food} and {name2} brought a {food2}.",
            "everyone in the {spot} was invited to the {event}, even the {job}.",
            "the {event} began at {time} with a {food} for each guest.",
            "dear friends, wrote {name}, the {event} will be held at the {spot}.",
        ],
    ),
    (
        "feast_more",
        &[
            "the {food3} was {good}, but the {food2} was {bad}.",
            "happy guests praised the {good} food, and a sad one found it {bad}.",
            "{name3} gave a {object} to {name}, who was {joy} about the gift.",
            "afterwards they {moves.past} to the {place} and {takes.past} a {object2}.",
            "the {animal} ran away and {moves.past} to the {place}, as it always {moves}.",
            "{name4} {takes.past} a {object3}, as {name4} {takes} one every year.",
        ],
    ),
];
