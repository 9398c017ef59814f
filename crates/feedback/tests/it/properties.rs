//! What holds whatever people do.

use crate::{answer, event, records::reads_back, skip, task, wanting, writing};
use instruct_feedback::*;
use instruct_random::Source;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const PEOPLE: [&str; 3] = ["ann", "bob", "eve"];

fn tasks() -> Vec<Task> {
    let mut gold = task("gold", 2);
    gold.gold = Some(vec![1, 2]);
    vec![task("t1", 2), task("t2", 3), writing("w1"), gold]
}

/// Three answers for each person: two to one prompt, and one without consent.
fn answers() -> Vec<Answer> {
    let of = |by: &&str| {
        let name = |i: usize| format!("{by}-{i}");
        let secret = Answer { consent: false, ..answer(&name(2), by, "Bye", "Secret") };
        [answer(&name(0), by, "Hi", "Hello"), answer(&name(1), by, "Hi", "Good day"), secret]
    };
    PEOPLE.iter().flat_map(of).collect()
}

/// What one person does, told by numbers: who, what, with which numbers, how much later.
type Act = (usize, u8, u32, u64);

fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec((0usize..3, 0u8..10, any::<u32>(), 0u64..3), 0..40)
}

/// The acts as events, in the order in which they happened.
fn events(acts: &[Act]) -> Vec<Event> {
    let mut at = 1_000;
    let mut made: Vec<Event> = Vec::new();
    for (index, &(who, what, number, later)) in acts.iter().enumerate() {
        at += later;
        let by = PEOPLE[who];
        // Keys do not come in the order of time.
        let key = format!("{:x}-{index}", (index as u32).wrapping_mul(2_654_435_761));
        let said = |fields: &str| event(&key, at, by, fields);
        let rank = |task: &str, k: u32| {
            let shown = Source::new(u64::from(number), "shown").at([]).permutation(k as usize);
            let ranks: Vec<u32> = (0..k).map(|i| 1 + (number >> (3 * i)) % 4).collect();
            said(&format!("'kind':'ranking','task':'{task}','shown':{shown:?},'ranks':{ranks:?},'seconds':{number}"))
        };
        let own: Vec<&Event> =
            made.iter().filter(|event| event.by == by && !matches!(event.said, Said::Retract { .. })).collect();
        made.push(match what {
            0 => rank("t1", 2),
            1 => rank("t2", 3),
            2 => rank("gold", 2),
            3 => skip(&key, at, by, ["t1", "t2", "w1"][number as usize % 3]),
            4 => said(&format!("'kind':'thumb','answer':'{by}-{}','up':{}", number % 3, number % 2 == 0)),
            5 => {
                let choice = Choice::ALL[number as usize % 4].as_str();
                let right = 1 - number % 2;
                let sides = format!("'answers':['{by}-{}','{by}-{right}']", number % 2);
                said(&format!("'kind':'pair',{sides},'choice':'{choice}','seconds':1"))
            }
            6 => {
                let answer = format!("{by}-{}", number % 3);
                said(&format!("'kind':'edit','answer':'{answer}','text':'better {number}','seconds':1"))
            }
            7 => said(&format!("'kind':'demonstration','task':'w1','text':'written {number}','seconds':1")),
            8 => {
                let messages = "'messages':[{'role':'user','content':'Why?'}]";
                said(&format!("'kind':'demonstration',{messages},'text':'so {number}','seconds':1"))
            }
            _ if own.is_empty() => skip(&key, at, by, "t1"),
            _ => said(&format!("'retracts':'{}'", own[number as usize % own.len()].key)),
        });
    }
    made
}

fn state_of(events: &[Event]) -> State {
    let collected = Collected { tasks: tasks(), answers: answers(), events: events.to_vec() };
    State::of(wanting(2), collected).unwrap()
}

/// Everything that is read from a state.
fn outcome(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    (records(state, &Options::default()), progress(state), groups(state), shown_ranks(state), gold(state))
}

/// The same events, each person's in order, but those of different people mixed anew.
fn mixed(events: &[Event], seed: u64) -> Vec<Event> {
    let mut draws = Source::new(seed, "mix").at([]);
    let mut queues: Vec<Vec<Event>> =
        PEOPLE.iter().map(|by| events.iter().rev().filter(|event| event.by == *by).cloned().collect()).collect();
    let mut mixed = Vec::new();
    while mixed.len() < events.len() {
        mixed.extend(queues[draws.below(3) as usize].pop());
    }
    mixed
}

/// What counts, found slowly: an event that nobody retracts, now or later, and after which the same person says
/// nothing of the same thing that is not retracted.
fn counting_slowly(events: &[Event]) -> BTreeSet<String> {
    let retracted = |event: &Event| {
        let of = |other: &Event| matches!(&other.said, Said::Retract { retracts } if *retracts == event.key);
        events.iter().any(|other| other.by == event.by && of(other))
    };
    let thing = |event: &Event| match &event.said {
        Said::Ranking(ranked) => Some(format!("ranking {}", ranked.task)),
        Said::Skip(skipped) => Some(format!("skip {}", skipped.task)),
        Said::Demonstration(Demonstrated { to: To::Task(task), .. }) => Some(format!("ranking {task}")),
        Said::Demonstration(_) => Some(format!("own {}", event.key)),
        Said::Thumb(thumb) => Some(format!("thumb {}", thumb.answer)),
        Said::Pair(paired) => Some(format!("pair {:?}", paired.answers.iter().collect::<BTreeSet<_>>())),
        Said::Edit(edited) => Some(format!("edit {}", edited.answer)),
        Said::Retract { .. } => None,
    };
    let mut last = BTreeMap::new();
    for event in events.iter().filter(|event| !retracted(event)) {
        if let Some(thing) = thing(event) {
            last.insert((event.by.clone(), thing), event.key.clone());
        }
    }
    last.into_values().collect()
}

proptest! {
    #[test]
    fn the_order_of_different_people_changes_nothing(acts in acts(), seed in any::<u64>()) {
        let events = events(&acts);
        prop_assert_eq!(outcome(&state_of(&mixed(&events, seed))), outcome(&state_of(&events)));
    }

    #[test]
    fn a_retraction_wins_wherever_it_stands(acts in acts()) {
        let events = events(&acts);
        let (retractions, others): (Vec<Event>, Vec<Event>) =
            events.iter().cloned().partition(|event| matches!(event.said, Said::Retract { .. }));
        let want = outcome(&state_of(&events));
        prop_assert_eq!(outcome(&state_of(&[retractions.clone(), others.clone()].concat())), want);
        prop_assert_eq!(outcome(&state_of(&[others, retractions].concat())), outcome(&state_of(&events)));
    }

    #[test]
    fn a_prefix_and_the_rest_are_the_whole(acts in acts(), cut in 0usize..40, labeler in 0usize..3) {
        let events = events(&acts);
        let cut = cut.min(events.len());
        let log: String = events.iter().map(Event::line).collect();
        let prefix: String = events[..cut].iter().map(Event::line).collect();
        let mut state = state_of(&read_log(prefix.as_bytes()).unwrap().0);
        for event in &read_log(log.as_bytes()).unwrap().0[cut..] {
            prop_assert_eq!(state.check(event), Ok(Applied::Saved));
            prop_assert_eq!(state.apply(event.clone()), Ok(Applied::Saved));
        }
        prop_assert_eq!(&state, &state_of(&events));
        // Who was asked what on the way does not matter to what was said.
        let mut asked = state_of(&[]);
        for event in &events {
            asked.next(PEOPLE[labeler], TaskKind::Rank, event.at);
            asked.apply(event.clone()).unwrap();
        }
        prop_assert_eq!(outcome(&asked), outcome(&state));
    }

    #[test]
    fn a_log_cut_anywhere_loses_the_torn_event_alone(acts in acts(), cut in any::<prop::sample::Index>()) {
        let events = events(&acts);
        let log: String = events.iter().map(Event::line).collect();
        let cut = cut.index(log.len() + 1);
        let (found, torn) = read_log(&log.as_bytes()[..cut]).unwrap();
        let whole = log[..cut].matches('\n').count();
        prop_assert_eq!(&found[..], &events[..whole]);
        let end = torn.map_or(cut, |torn| torn.offset);
        prop_assert_eq!(end, log[..cut].rfind('\n').map_or(0, |at| at + 1));
        state_of(&found);
    }

    #[test]
    fn keys_never_double(acts in acts(), repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..10)) {
        let events = events(&acts);
        let mut state = state_of(&[]);
        for event in &events {
            prop_assert_eq!(state.apply(event.clone()), Ok(Applied::Saved));
            for index in &repeats {
                let again = state.events()[index.index(state.events().len())].clone();
                prop_assert_eq!(state.apply(Event { at: again.at + 5, ..again }), Ok(Applied::Repeated));
            }
        }
        prop_assert_eq!(&state, &state_of(&events));
        let made = records(&state, &Options::default());
        let ids = made.rankings.iter().map(|ranking| &ranking.prompt.id);
        prop_assert_eq!(ids.clone().collect::<BTreeSet<_>>().len(), ids.count());
    }

    #[test]
    fn what_counts_is_what_the_slow_one_finds_and_reads_back(acts in acts()) {
        let events = events(&acts);
        let state = state_of(&events);
        let counting: BTreeSet<String> = state.counting().iter().map(|event| event.key.clone()).collect();
        prop_assert_eq!(counting, counting_slowly(&events));
        let done = progress(&state);
        let said = events.iter().filter(|event| !matches!(event.said, Said::Retract { .. })).count();
        prop_assert_eq!(state.counting().len() + done.replaced + done.retracted, said);
        reads_back(&records(&state, &Options::default()));
    }

    #[test]
    fn who_is_forgotten_has_left_nothing(acts in acts()) {
        let events = events(&acts);
        let mut found = forget("ann", Collected { tasks: tasks(), answers: answers(), events: events.clone() });
        prop_assert_eq!(found.keys.len() + found.remain.events.len(), events.len());
        prop_assert!(found.remain.events.iter().all(|event| event.by != "ann"));
        // Nobody else's words went: none of them is about hers here.
        let others: Vec<Event> = events.into_iter().filter(|event| event.by != "ann").collect();
        prop_assert_eq!(&found.remain.events, &others);
        found.remain.tasks = tasks();
        State::of(wanting(2), found.remain).unwrap();
    }
}
