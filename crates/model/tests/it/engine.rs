//! The engine against `generate` of one request at a time.

use crate::{families, ids, random};
use instruct_claims::holds;
use instruct_kernels::Path;
use instruct_model::{Completion, Decoder, Emitted, End, Engine, HeadKind, Request, Room, Sampling, Ticket, generate};
use instruct_random::{Draws, Source};
use std::{collections::BTreeMap, sync::Arc};

const STOP: [u32; 2] = [3, 17];

fn source() -> Source {
    Source::new(9, "engine")
}

fn sampling(max_new_tokens: usize) -> Sampling {
    Sampling { temperature: 0.9, ..Sampling::plain(STOP.into(), max_new_tokens) }
}

fn ticket(episode: u64, prompt: &[u32], sampling: &Sampling) -> Ticket {
    Ticket::new(Request { episode, prompt: prompt.to_vec() }, Arc::new(sampling.clone()), source())
}

/// What a ticket's completion is when nothing else is computed.
fn alone(decoder: &Decoder, ticket: &Ticket) -> Completion {
    generate(decoder, std::slice::from_ref(&ticket.request), &ticket.sampling, ticket.source).unwrap().remove(0)
}

/// Tokens and log-probabilities of a completion, and how it ended.
type Written = (Vec<u32>, Vec<f32>, Option<End>);

/// What has been drawn for each ticket.
#[derive(Default)]
struct Heard(BTreeMap<u64, Written>);

impl Heard {
    fn hear(&mut self, emitted: Vec<Emitted>) {
        for Emitted { ticket, drawn, end } in emitted {
            let (ids, logprobs, ended) = self.0.entry(ticket).or_default();
            assert_eq!(*ended, None, "ticket {ticket} goes on after its end");
            ids.push(drawn.token);
            logprobs.push(drawn.logprob);
            *ended = end;
        }
    }

    fn of(&self, ticket: u64) -> &Written {
        &self.0[&ticket]
    }

    /// Whether this ticket's completion is, to the last bit, the one of the ticket alone.
    fn is_same(&self, decoder: &Decoder, number: u64, ticket: &Ticket) -> bool {
        let Completion { ids, logprobs, ended_by_eos, .. } = alone(decoder, ticket);
        let (found, found_logprobs, end) = self.of(number);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        (found, *end == Some(End::Stop)) == (&ids, ended_by_eos) && bits(found_logprobs) == bits(&logprobs)
    }

    #[track_caller]
    fn check(&self, decoder: &Decoder, number: u64, ticket: &Ticket) {
        assert!(self.is_same(decoder, number, ticket), "ticket {number}: {:?}", self.of(number));
    }
}

fn finish(engine: &mut Engine<'_>, heard: &mut Heard) {
    while !engine.is_idle() {
        heard.hear(engine.step().unwrap());
    }
}

/// A prompt of 1 to 24 tokens, which often begins like another.
fn prompt(draws: &mut Draws) -> Vec<u32> {
    let (kind, length) = (draws.below(3), 1 + draws.below(24) as usize);
    let mut prompt = ids(kind, 24);
    prompt.truncate(length);
    if draws.below(2) == 0 {
        prompt.push(20 + draws.below(9) as u32);
    }
    prompt
}

/// Tickets that come and go by chance, with settings of their own, say what they say alone.
#[test]
fn a_ticket_says_the_same_whatever_comes_and_goes() {
    for config in families() {
        let decoder = random(&config, HeadKind::LanguageModel, Path::Fused);
        let mut cancelled = 0;
        for schedule in 0..6 {
            let mut draws = Source::new(schedule, "schedule").at([]);
            let room = Room { slots: 1 + draws.below(5) as usize, capacity: 32, chunk: 1 + draws.below(9) as usize };
            let mut engine = Engine::new(&decoder, room).unwrap();
            let (mut heard, mut tickets) = (Heard::default(), BTreeMap::new());
            for moment in 0..60 {
                for _ in 0..draws.below(3) {
                    let mut own = sampling(1 + draws.below(9) as usize);
                    own.temperature = draws.below(3) as f32 / 2.0;
                    let ticket = ticket(draws.below(40), &prompt(&mut draws), &own);
                    tickets.insert(engine.submit(ticket.clone()).unwrap(), ticket);
                }
                if draws.below(4) == 0 && !tickets.is_empty() {
                    let number = draws.below(tickets.len() as u64);
                    if engine.cancel(number) {
                        cancelled += 1;
                        tickets.get_mut(&number).unwrap().alternatives = 99;
                    }
                    assert!(!engine.cancel(number), "moment {moment}: cancelled or ended, it is gone");
                }
                heard.hear(engine.step().unwrap());
            }
            finish(&mut engine, &mut heard);
            let kept: Vec<_> = tickets.iter().filter(|(_, ticket)| ticket.alternatives == 0).collect();
            assert!(kept.len() > 20, "{} tickets", kept.len());
            let others = kept.iter().filter(|(number, ticket)| !heard.is_same(&decoder, **number, ticket)).count();
            holds("generation/any-batch", &format!("{:?}, schedule {schedule}", config.family), others as f64, 0.0);
        }
        assert!(cancelled > 10, "{cancelled} cancelled");
    }
}

fn decoder() -> Decoder {
    let [config, ..] = families();
    random(&config, HeadKind::LanguageModel, Path::Fused)
}

/// So many samples of one prompt: its tokens but the last go through the model once.
#[track_caller]
fn check_shared(samples: u64, length: usize, slots: usize) {
    let decoder = decoder();
    let mut engine = Engine::new(&decoder, Room { slots, capacity: 32, chunk: 64 }).unwrap();
    let tickets: Vec<Ticket> = (0..samples).map(|episode| ticket(episode, &ids(5, length), &sampling(4))).collect();
    for ticket in &tickets {
        engine.submit(ticket.clone()).unwrap();
    }
    let mut heard = Heard::default();
    finish(&mut engine, &mut heard);
    let drawn: usize = heard.0.values().map(|(ids, ..)| ids.len()).sum();
    let counts = engine.counts();
    // Each draws its first token from a row of its own, and its last goes through no model.
    assert_eq!(counts.computed as usize, (length - 1) + drawn, "{samples} samples of {length} tokens in {slots} slots");
    assert_eq!((counts.drawn as usize, counts.running, counts.waiting), (drawn, 0, 0));
    assert_eq!(counts.continued, (samples - 1) * (length as u64 - 1));
    (0..).zip(&tickets).for_each(|(number, ticket)| heard.check(&decoder, number, ticket));
}

#[test]
fn a_prompt_that_samples_share_is_computed_once() {
    check_shared(1, 20, 1);
    check_shared(8, 20, 8);
    check_shared(8, 20, 3);
    check_shared(8, 2, 8);
    check_shared(3, 1, 2);
    check_shared(5, 27, 1);
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    let decoder = decoder();
    let mut engine = Engine::new(&decoder, Room { slots: 2, capacity: 32, chunk: 64 }).unwrap();
    let mut heard = Heard::default();
    let mut text = ids(5, 17);
    let first = engine.submit(ticket(1, &text, &sampling(3))).unwrap();
    finish(&mut engine, &mut heard);
    // Somebody else has a turn, in the slot that was never used.
    engine.submit(ticket(2, &ids(8, 12), &sampling(3))).unwrap();
    finish(&mut engine, &mut heard);
    text.extend(&heard.of(first).0);
    text.extend([30, 31]);
    let before = engine.counts();
    let second = ticket(3, &text, &sampling(1));
    let number = engine.submit(second.clone()).unwrap();
    finish(&mut engine, &mut heard);
    // The last token of the first answer was drawn and never computed.
    assert_eq!(engine.counts().computed - before.computed, 3);
    heard.check(&decoder, number, &second);
}

/// While one is read along, another's long prompt takes no more than a chunk of each step.
#[test]
fn prompts_enter_in_chunks_beside_sequences_that_are_continued() {
    let decoder = decoder();
    let mut engine = Engine::new(&decoder, Room { slots: 3, capacity: 32, chunk: 2 }).unwrap();
    let reader = Sampling { stop: [].into(), ..sampling(20) };
    let read = engine.submit(ticket(1, &ids(5, 3), &reader)).unwrap();
    let first = engine.step().unwrap();
    assert_eq!(first.len(), 1);
    let late = ticket(2, &ids(6, 9), &sampling(2));
    let number = engine.submit(late.clone()).unwrap();
    let mut heard = Heard::default();
    for step in 0..4 {
        let before = engine.counts().computed;
        let emitted = engine.step().unwrap();
        assert!(emitted.iter().all(|emitted| emitted.ticket == read) && emitted.len() == 1, "step {step}");
        assert_eq!(engine.counts().computed - before, 3);
    }
    let both = engine.step().unwrap();
    assert_eq!(both.iter().map(|emitted| emitted.ticket).collect::<Vec<_>>(), [read, number]);
    heard.hear(both.into_iter().filter(|emitted| emitted.ticket == number).collect());
    while !engine.is_idle() {
        heard.hear(engine.step().unwrap().into_iter().filter(|emitted| emitted.ticket == number).collect());
    }
    heard.check(&decoder, number, &late);
    // With nobody reading, eight chunks are a step.
    let mut engine = Engine::new(&decoder, Room { slots: 3, capacity: 32, chunk: 2 }).unwrap();
    engine.submit(ticket(1, &ids(5, 20), &reader)).unwrap();
    assert!(engine.step().unwrap().is_empty());
    assert_eq!(engine.counts().computed, 16);
    assert_eq!(engine.step().unwrap().len(), 1);
}

#[test]
fn the_most_probable_tokens_are_told_with_their_probabilities() {
    let decoder = decoder();
    let mut engine = Engine::new(&decoder, Room { slots: 2, capacity: 32, chunk: 64 }).unwrap();
    let greedy = Sampling { temperature: 0.0, ..sampling(5) };
    for alternatives in [0, 1, 5, 53, 1_000] {
        let ticket = Ticket { alternatives, ..ticket(4, &ids(5, 6), &greedy) };
        engine.submit(ticket).unwrap();
        while !engine.is_idle() {
            for Emitted { drawn, .. } in engine.step().unwrap() {
                assert_eq!(drawn.alternatives.len(), alternatives.min(53));
                assert!(drawn.alternatives.is_sorted_by(|a, b| a.1 > b.1 || a.1 == b.1 && a.0 < b.0));
                if let Some(&(token, logprob)) = drawn.alternatives.first() {
                    assert_eq!((token, logprob.to_bits()), (drawn.token, drawn.logprob.to_bits()));
                }
                if alternatives > 53 {
                    let sum: f32 = drawn.alternatives.iter().map(|(_, logprob)| logprob.exp()).sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
                }
            }
        }
    }
}

#[test]
fn what_an_engine_cannot_take_is_refused_and_disturbs_nobody() {
    let decoder = decoder();
    let mut engine = Engine::new(&decoder, Room { slots: 0, capacity: 9, chunk: 0 }).unwrap();
    let first = ticket(1, &ids(5, 8), &sampling(12));
    assert_eq!(engine.submit(first.clone()).unwrap(), 0);
    let mut refused = |ticket: Ticket, message: &str| {
        let found = engine.submit(ticket).unwrap_err().to_string();
        assert!(found.contains(message), "{found}");
    };
    refused(ticket(2, &[], &sampling(1)), "episode 2: the prompt is empty");
    refused(ticket(2, &ids(5, 10), &sampling(1)), "the prompt is longer than a sequence may be here");
    refused(ticket(2, &ids(5, 32), &sampling(1)), "the prompt leaves no room in the context");
    refused(ticket(2, &[1], &Sampling { top_p: 0.0, ..sampling(1) }), "top-p must be above 0");
    let mut heard = Heard::default();
    finish(&mut engine, &mut heard);
    let (ids, _, end) = heard.of(0);
    let short = Ticket { sampling: Arc::new(sampling(1)), ..first };
    assert_eq!((ids, *end), (&alone(&decoder, &short).ids, Some(End::Room)));
    assert!(engine.step().unwrap().is_empty() && !engine.cancel(0) && !engine.cancel(7));
    let score = random(&families()[0], HeadKind::Score, Path::Fused);
    assert!(Engine::new(&score, Room::for_batches(1, 8)).is_err());
}
