//! Generation turned inside out: sequences come and go, and a step draws a token for each that runs.

use crate::{Decoder, Error, Request, Result, Sampling, logit_rows::Rows, sampling::choose};
use instruct_kernels::{self as kernels, CacheRow, KvCache};
use instruct_random::Source;
use rayon::prelude::*;
use std::{collections::VecDeque, sync::Arc};

/// Draws completions for tickets that may arrive and leave at any time.
///
/// A completion depends on its own ticket alone, bit for bit: not on what shares its batch, on when it was submitted, or
/// on what was computed for others and is continued here. So a prompt that several tickets share is computed once, and a
/// ticket whose prompt begins like something that a slot still holds starts from there.
///
/// ```
/// use instruct_model::{Config, Decoder, Engine, HeadKind, Request, Room, Sampling, Ticket};
/// use instruct_kernels::Path;
/// use instruct_random::Source;
/// use candle_core::{DType, Device};
/// use std::sync::Arc;
///
/// # fn main() -> instruct_model::Result<()> {
/// let config = Config::tiny_gpt2(50, 16, 2, 2, 32);
/// let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32)?;
/// decoder.initialise(1)?;
/// let mut engine = Engine::new(&decoder, Room { slots: 4, capacity: 32, chunk: 64 })?;
/// let sampling = Arc::new(Sampling::plain([0].into(), 8));
/// let request = Request { episode: 7, prompt: vec![1, 2, 3] };
/// let ticket = engine.submit(Ticket::new(request, sampling, Source::new(1, "serve")))?;
/// let mut text = Vec::new();
/// while !engine.is_idle() {
///     text.extend(engine.step()?.iter().filter(|emitted| emitted.ticket == ticket).map(|emitted| emitted.drawn.token));
/// }
/// assert!(!text.is_empty() && text.len() <= 8);
/// # Ok(())
/// # }
/// ```
pub struct Engine<'a> {
    decoder: &'a Decoder,
    room: Room,
    cache: KvCache,
    slots: Vec<Slot>,
    waiting: VecDeque<(u64, Ticket)>,
    submitted: u64,
    steps: u64,
    counts: Counts,
}

/// What an engine holds, and how it shares a step between prompts and running sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Sequences decoded at a time, at least one.
    pub slots: usize,
    /// Tokens that a sequence may have, prompt and completion together; the model's context caps it too.
    pub capacity: usize,
    /// Tokens of prompts computed in a step beside sequences that are being continued, at least one: with few, people
    /// who read along wait less for the next token while others arrive. Where nothing is continued a step takes
    /// [`Room::ALONE`] times as many.
    pub chunk: usize,
}

impl Room {
    /// How many chunks of prompts a step computes while no sequence waits for its next token.
    pub const ALONE: usize = 8;

    /// For people and programs who read along: prompts are computed 64 tokens at a time beside answers that are being
    /// written.
    pub fn for_serving(slots: usize, capacity: usize) -> Room {
        Room { slots, capacity, chunk: 64 }
    }

    /// For work that is done when the last sequence is: prompts are computed whole as soon as there is a slot.
    pub fn for_batches(slots: usize, capacity: usize) -> Room {
        Room { slots, capacity, chunk: usize::MAX }
    }
}

/// A completion to draw, in its own way.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// What is continued, and the number that keys the draws.
    pub request: Request,
    /// How its tokens are chosen.
    pub sampling: Arc<Sampling>,
    /// Token `t` takes its draw from `source.at([episode, t])`.
    pub source: Source,
    /// How many of the most probable tokens are told beside each drawn one.
    pub alternatives: usize,
}

impl Ticket {
    /// A ticket that asks for the drawn tokens alone.
    pub fn new(request: Request, sampling: Arc<Sampling>, source: Source) -> Ticket {
        Ticket { request, sampling, source, alternatives: 0 }
    }
}

/// A token of a ticket's completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// The number that [`Engine::submit`] returned.
    pub ticket: u64,
    /// The token.
    pub drawn: Drawn,
    /// Why it is the last one, if it is.
    pub end: Option<End>,
}

/// A drawn token, with what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Its log-probability under the whole softmax at the sampling temperature (at 1 when greedy), before top-k and
    /// top-p, in nats.
    pub logprob: f32,
    /// Entropy of the same softmax, in nats.
    pub entropy: f32,
    /// The most probable tokens with their log-probabilities, highest first (the lowest id among equals); as many as the
    /// ticket asked for.
    pub alternatives: Vec<(u32, f32)>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its last token is a stop token.
    Stop,
    /// It has as many tokens as its sampling allows.
    Cap,
    /// The context, or the engine's capacity, is full.
    Room,
}

/// What an engine has done so far, in tokens, and what it is doing, in sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences in slots.
    pub running: usize,
    /// Tickets without a slot.
    pub waiting: usize,
    /// Tokens that went through the model.
    pub computed: u64,
    /// Tokens of prompts that did not have to, because an earlier sequence began with them.
    pub continued: u64,
    /// Tokens that were drawn.
    pub drawn: u64,
}

/// Tokens from which on another prompt's beginning is worth waiting for and copying: a block of the cache's keys. A
/// prompt that is wholly another's always is.
const WORTHWHILE: usize = 16;

/// A line of the cache.
#[derive(Default)]
struct Slot {
    /// Tokens of the sequence that runs here, the drawn ones included, or of the last one that did.
    text: Vec<u32>,
    /// How many of them have their keys and values in the cache.
    cached: usize,
    running: Option<Running>,
    /// The step in which it was last busy.
    busy: u64,
}

struct Running {
    ticket: u64,
    of: Ticket,
}

impl Slot {
    /// Tokens drawn so far, of the sequence that runs here.
    fn drawn(&self) -> usize {
        self.running.as_ref().map_or(0, |running| self.text.len() - running.of.request.prompt.len())
    }

    fn pending(&self) -> usize {
        if self.running.is_some() { self.text.len() - self.cached } else { 0 }
    }

    /// Of a slot that has a row in a step.
    fn running(&self) -> &Running {
        self.running.as_ref().expect("the rows of a step are those of running sequences")
    }

    /// Takes the sequence out; what is cached of it stays, for others that begin with it.
    fn free(&mut self) -> Option<Running> {
        self.text.truncate(self.cached);
        self.running.take()
    }

    /// The next token of the sequence that runs here, from its logits `(V,)`.
    fn draw(&self, logits: &[f32]) -> Result<Drawn> {
        let Ticket { request, sampling, source, alternatives } = &self.running().of;
        let (episode, token) = (request.episode, self.drawn());
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Error::Logits { episode, token });
        }
        // The probabilities of many tokens of a large vocabulary lie below 2^-24, the grain of an `f32` draw.
        let uniform = source.at([episode, token as u64]).uniform_f64();
        // The arithmetic of the training forward, so that both give the same bits.
        let softmax = kernels::RowSoftmax::new(logits, sampling.scale());
        let token = choose(logits, &softmax, sampling, uniform);
        let logprob = |id: u32| softmax.logprob(logits[id as usize]);
        let alternatives = highest(logits, *alternatives).into_iter().map(|id| (id, logprob(id))).collect();
        Ok(Drawn { token, logprob: logprob(token), entropy: softmax.entropy(), alternatives })
    }
}

/// Where a ticket begins: in this slot, with so many tokens that another slot (or this one) holds.
struct Beginning {
    slot: usize,
    from: usize,
    shared: usize,
}

/// The rows of a step.
#[derive(Default)]
struct Step {
    ids: Vec<u32>,
    places: Vec<CacheRow>,
    /// Rows whose logits are read, and the slots that they belong to.
    read: Vec<u32>,
    drawing: Vec<usize>,
}

impl<'a> Engine<'a> {
    /// An engine without work. The cache's memory is taken by the first step.
    ///
    /// Errors: the decoder has no language head.
    pub fn new(decoder: &'a Decoder, room: Room) -> Result<Engine<'a>> {
        decoder.unembedding()?;
        let capacity = room.capacity.min(decoder.config().context);
        let room = Room { slots: room.slots.max(1), capacity, chunk: room.chunk.max(1) };
        Ok(Engine {
            decoder,
            room,
            cache: decoder.cache(room.slots, capacity)?,
            slots: (0..room.slots).map(|_| Slot::default()).collect(),
            waiting: VecDeque::new(),
            submitted: 0,
            steps: 0,
            counts: Counts::default(),
        })
    }

    /// Takes a ticket and returns its number: the first is 0, and each is one more.
    ///
    /// Errors: an empty prompt, or one that leaves no room; a temperature or a top-p outside its range.
    pub fn submit(&mut self, ticket: Ticket) -> Result<u64> {
        ticket.sampling.check()?;
        let Request { episode, ref prompt } = ticket.request;
        let refuse = |problem| Err(Error::Request { episode, problem });
        match prompt.len() {
            0 => return refuse("the prompt is empty"),
            n if n >= self.decoder.config().context => {
                return refuse("the prompt leaves no room in the context; shorten it");
            }
            n if n > self.room.capacity => {
                return refuse("the prompt is longer than a sequence may be here; shorten it");
            }
            _ => {}
        }
        let number = self.submitted;
        self.submitted += 1;
        self.waiting.push_back((number, ticket));
        Ok(number)
    }

    /// Gives up a ticket; false if it has ended already.
    pub fn cancel(&mut self, ticket: u64) -> bool {
        if let Some(at) = self.waiting.iter().position(|(number, _)| *number == ticket) {
            self.waiting.remove(at);
            return true;
        }
        let runs = |slot: &&mut Slot| slot.running.as_ref().is_some_and(|running| running.ticket == ticket);
        self.slots.iter_mut().find(runs).and_then(Slot::free).is_some()
    }

    /// Whether no ticket runs or waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(|slot| slot.running.is_none())
    }

    /// What it has done and is doing.
    pub fn counts(&self) -> Counts {
        let running = self.slots.iter().filter(|slot| slot.running.is_some()).count();
        Counts { running, waiting: self.waiting.len(), ..self.counts }
    }

    /// One pass through the model: the next token of every sequence whose prompt has been computed, in the order of the
    /// slots. Nothing, where all of them are still at their prompts, or none is there.
    ///
    /// Errors: an id outside the vocabulary; logits that are not finite. The engine is of no use after one.
    pub fn step(&mut self) -> Result<Vec<Emitted>> {
        self.steps += 1;
        self.admit()?;
        let Step { ids, places, mut read, drawing } = self.rows();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        if read.is_empty() {
            read.push(0);
        }
        let hidden = self.decoder.extend(&ids, &places, &read, &mut self.cache)?;
        self.counts.computed += ids.len() as u64;
        for CacheRow { slot, position } in places {
            (self.slots[slot].cached, self.slots[slot].busy) = (position + 1, self.steps);
        }
        if drawing.is_empty() {
            return Ok(Vec::new());
        }
        let logits = Rows::of(&kernels::logits(&hidden, self.decoder.unembedding()?)?)?;
        let slots = &self.slots;
        let draw = |(i, &slot): (usize, &usize)| slots[slot].draw(&logits.get(i)?);
        let drawn: Vec<Drawn> = drawing.par_iter().enumerate().map(draw).collect::<Result<_>>()?;
        self.counts.drawn += drawn.len() as u64;
        Ok(drawing.into_iter().zip(drawn).map(|(slot, drawn)| self.emit(slot, drawn)).collect())
    }

    /// Gives free slots to waiting tickets, first come, first served. One whose prompt begins like that of a sequence
    /// which is still at it waits, because soon it can begin further on.
    fn admit(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.waiting.len() && self.slots.iter().any(|slot| slot.running.is_none()) {
            let Some(Beginning { slot, from, shared }) = self.beginning(&self.waiting[at].1.request.prompt) else {
                at += 1;
                continue;
            };
            let Some((ticket, of)) = self.waiting.remove(at) else { break };
            if from != slot {
                self.cache.copy_prefix(from, slot, shared)?;
            }
            self.counts.continued += shared as u64;
            let text = of.request.prompt.clone();
            self.slots[slot] = Slot { text, cached: shared, running: Some(Running { ticket, of }), busy: self.steps };
        }
        Ok(())
    }

    /// Where a prompt begins, given that some slot is free; `None` where it should wait for another's.
    fn beginning(&self, prompt: &[u32]) -> Option<Beginning> {
        // The last token is always computed, because its row gives the first logits.
        let most = prompt.len() - 1;
        let common = |text: &[u32]| text.iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
        let worth = |shared: usize| if shared >= WORTHWHILE || shared == most { shared } else { 0 };
        let ready = |slot: &Slot| worth(common(&slot.text[..slot.cached]));
        let coming = |slot: &Slot| if slot.pending() > 1 { worth(common(&slot.text)) } else { 0 };
        // The last of equals: a free one before one that runs, so that nothing is copied.
        let key = |&(_, slot): &(usize, &Slot)| (ready(slot), slot.running.is_none());
        let (from, best) = self.slots.iter().enumerate().max_by_key(key)?;
        let shared = ready(best);
        if self.slots.iter().map(coming).max()? > shared {
            return None;
        }
        if shared > 0 && best.running.is_none() {
            return Some(Beginning { slot: from, from, shared });
        }
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.running.is_none());
        let (slot, _) = free.min_by_key(|(_, slot)| slot.busy)?;
        Some(Beginning { slot, from: if shared > 0 { from } else { slot }, shared })
    }

    /// The rows of the next step: a token of every sequence that is being continued, and as much of the prompts as there
    /// is room for, those first that came first.
    fn rows(&self) -> Step {
        let is_continued = |slot: &Slot| slot.drawn() > 0;
        let chunks = if self.slots.iter().any(is_continued) { 1 } else { Room::ALONE };
        let mut budget = self.room.chunk.saturating_mul(chunks);
        let mut order: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.slots[slot].pending() > 0).collect();
        order.sort_by_key(|&slot| self.slots[slot].running.as_ref().map(|running| running.ticket));
        let mut step = Step::default();
        let mut taken: Vec<(usize, usize)> = Vec::with_capacity(order.len());
        for slot in order {
            let pending = self.slots[slot].pending();
            let take = if is_continued(&self.slots[slot]) { pending } else { pending.min(budget) };
            budget -= if is_continued(&self.slots[slot]) { 0 } else { take };
            taken.push((slot, take));
        }
        taken.sort_unstable();
        for (slot, take) in taken.into_iter().filter(|(_, take)| *take > 0) {
            let Slot { text, cached, .. } = &self.slots[slot];
            step.ids.extend(&text[*cached..cached + take]);
            step.places.extend((*cached..cached + take).map(|position| CacheRow { slot, position }));
            if cached + take == text.len() {
                step.read.push(step.ids.len() as u32 - 1);
                step.drawing.push(slot);
            }
        }
        step
    }

    /// Adds a token to the sequence of a slot, and frees the slot if it is the last.
    fn emit(&mut self, slot: usize, drawn: Drawn) -> Emitted {
        let slot = &mut self.slots[slot];
        slot.text.push(drawn.token);
        let count = slot.drawn();
        let Running { ticket, of } = slot.running();
        let (ticket, sampling) = (*ticket, &of.sampling);
        let end = if sampling.stop.contains(&drawn.token) {
            Some(End::Stop)
        } else if count >= sampling.max_new_tokens {
            Some(End::Cap)
        } else {
            (slot.text.len() >= self.room.capacity).then_some(End::Room)
        };
        if end.is_some() {
            slot.free();
        }
        Emitted { ticket, drawn, end }
    }
}

/// The ids of the `n` highest logits, highest first, the lowest id first among equals.
fn highest(logits: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids
}
