//! The thread that draws: it alone holds the engine, and what others want reaches it as messages.

use crate::Refusal;
use instruct_kernels::kept_awake;
use instruct_model::{Counts, Decoder, Drawn, Emitted, End, Engine, Room, Ticket};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Hands tickets to the thread and hears what it draws.
#[derive(Clone)]
pub(crate) struct Talk {
    orders: mpsc::Sender<Order>,
    open: Arc<AtomicUsize>,
    most: usize,
    counts: Arc<Mutex<Counts>>,
}

/// A token of one choice of a request, or why there will be none.
pub(crate) type Heard = Result<Piece, String>;

/// A token of one choice of a request.
pub(crate) struct Piece {
    pub(crate) choice: usize,
    pub(crate) drawn: Drawn,
    pub(crate) end: Option<End>,
}

/// What is drawn for one request. Whoever drops it gives the request up.
///
/// It holds at most as many tokens as the request may have, because the thread never waits for its readers.
pub(crate) struct Stream {
    pieces: UnboundedReceiver<Heard>,
    orders: mpsc::Sender<Order>,
    request: u64,
}

impl Stream {
    /// The next token of any choice; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.pieces.recv().await
    }

    /// Gives up one choice.
    pub(crate) fn cancel(&self, choice: usize) {
        // Without the thread there is nothing to give up.
        let _ = self.orders.send(Order::Cancel { request: self.request, choice });
    }
}

enum Order {
    Draw { request: u64, tickets: Vec<Ticket>, to: UnboundedSender<Heard> },
    Cancel { request: u64, choice: usize },
}

/// Whose ticket it is.
struct Owner {
    request: u64,
    choice: usize,
    to: UnboundedSender<Heard>,
}

impl Talk {
    /// Starts the thread. It ends when all that could speak to it are gone and everything has been drawn. So many tickets
    /// may wait for a slot.
    pub(crate) fn start(decoder: Arc<Decoder>, room: Room, queue: usize) -> (Talk, thread::JoinHandle<()>) {
        let (orders, receiver) = mpsc::channel();
        let open = Arc::new(AtomicUsize::new(0));
        let counts = Arc::new(Mutex::new(Counts::default()));
        let drawing = Drawing { decoder, room, open: open.clone(), counts: counts.clone() };
        let thread = thread::spawn(move || drawing.run(receiver));
        (Talk { orders, open, most: room.slots + queue, counts }, thread)
    }

    /// Takes the tickets of a request, one for each choice.
    ///
    /// Errors: more than may wait do so already; the thread is gone.
    pub(crate) fn draw(&self, request: u64, tickets: Vec<Ticket>) -> Result<Stream, Refusal> {
        let more = tickets.len();
        if more > self.most {
            let message = format!("{more} answers at once are more than this server ever has room for ({})", self.most);
            return Err(Refusal::of_field("n", message));
        }
        let fits = |open: usize| (open + more <= self.most).then_some(open + more);
        if self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            return Err(Refusal::busy("as many answers are being written as this server has room for; try again"));
        }
        let (to, pieces) = unbounded_channel();
        let sent = self.orders.send(Order::Draw { request, tickets, to });
        if sent.is_err() {
            self.open.fetch_sub(more, Ordering::AcqRel);
            return Err(Refusal::new(500, "the model's thread has ended; start the server again"));
        }
        Ok(Stream { pieces, orders: self.orders.clone(), request })
    }

    /// What the engine has done and is doing.
    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread works with.
struct Drawing {
    decoder: Arc<Decoder>,
    room: Room,
    open: Arc<AtomicUsize>,
    counts: Arc<Mutex<Counts>>,
}

impl Drawing {
    fn run(&self, mut orders: mpsc::Receiver<Order>) {
        let mut owners = BTreeMap::new();
        // An engine is of no use after an error, such as logits that are no numbers: whoever waits is told, and the
        // others that come find a new one.
        while let Ok(mut engine) = Engine::new(&self.decoder, self.room) {
            let Err(why) = self.draw(&mut engine, &mut orders, &mut owners) else { return };
            for (_, Owner { to, .. }) in std::mem::take(&mut owners) {
                self.open.fetch_sub(1, Ordering::AcqRel);
                let _ = to.send(Err(why.clone()));
            }
        }
    }

    /// Until nobody can ask for more.
    fn draw(
        &self,
        engine: &mut Engine<'_>,
        orders: &mut mpsc::Receiver<Order>,
        owners: &mut BTreeMap<u64, Owner>,
    ) -> Result<(), String> {
        while let Ok(order) = orders.recv() {
            self.take(order, engine, owners);
            let (engine, orders, owners) = (&mut *engine, &mut *orders, &mut *owners);
            // On a thread of the pool, which is left when there is nothing to do, so that it can serve others.
            rayon::scope(move |_| self.draw_all(engine, orders, owners))?;
        }
        Ok(())
    }

    /// Until all that was asked for is drawn.
    fn draw_all(
        &self,
        engine: &mut Engine<'_>,
        orders: &mut mpsc::Receiver<Order>,
        owners: &mut BTreeMap<u64, Owner>,
    ) -> Result<(), String> {
        while !engine.is_idle() {
            while let Ok(order) = orders.try_recv() {
                self.take(order, engine, owners);
            }
            self.give_up_the_unheard(engine, owners);
            let emitted = kept_awake(|| engine.step()).map_err(|error| error.to_string())?;
            // Before anybody is told, so that whoever has the last piece of an answer counts it no more; and after,
            // because those who are gone are given up then.
            self.count(engine);
            emitted.into_iter().for_each(|emitted| self.tell(emitted, engine, owners));
            self.count(engine);
        }
        Ok(())
    }

    fn count(&self, engine: &Engine<'_>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = engine.counts();
    }

    fn take(&self, order: Order, engine: &mut Engine<'_>, owners: &mut BTreeMap<u64, Owner>) {
        match order {
            Order::Draw { request, tickets, to } => {
                for (choice, ticket) in tickets.into_iter().enumerate() {
                    match engine.submit(ticket) {
                        Ok(ticket) => drop(owners.insert(ticket, Owner { request, choice, to: to.clone() })),
                        Err(why) => {
                            self.open.fetch_sub(1, Ordering::AcqRel);
                            let _ = to.send(Err(why.to_string()));
                        }
                    }
                }
            }
            Order::Cancel { request, choice } => {
                let is_it = |owner: &Owner| (owner.request, owner.choice) == (request, choice);
                let ticket = owners.iter().find(|(_, owner)| is_it(owner)).map(|(ticket, _)| *ticket);
                ticket.into_iter().for_each(|ticket| self.give_up(ticket, engine, owners));
            }
        }
    }

    fn tell(&self, emitted: Emitted, engine: &mut Engine<'_>, owners: &mut BTreeMap<u64, Owner>) {
        let Emitted { ticket, drawn, end } = emitted;
        let Some(Owner { choice, to, .. }) = owners.get(&ticket) else { return };
        if end.is_some() {
            // First, so that whoever has an answer may ask for the next.
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
        let is_gone = to.send(Ok(Piece { choice: *choice, drawn, end })).is_err();
        if end.is_some() {
            owners.remove(&ticket);
        } else if is_gone {
            self.give_up(ticket, engine, owners);
        }
    }

    /// Frees what nobody waits for any more, also in the queue.
    fn give_up_the_unheard(&self, engine: &mut Engine<'_>, owners: &mut BTreeMap<u64, Owner>) {
        let gone: Vec<u64> =
            owners.iter().filter(|(_, owner)| owner.to.is_closed()).map(|(ticket, _)| *ticket).collect();
        gone.into_iter().for_each(|ticket| self.give_up(ticket, engine, owners));
    }

    fn give_up(&self, ticket: u64, engine: &mut Engine<'_>, owners: &mut BTreeMap<u64, Owner>) {
        engine.cancel(ticket);
        if owners.remove(&ticket).is_some() {
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use instruct_kernels::Path;
    use instruct_model::{Config, HeadKind, Request, Sampling};
    use instruct_random::Source;

    /// So many tickets of twenty tokens, which no stop ends.
    fn tickets(n: u64) -> Vec<Ticket> {
        let sampling = Arc::new(Sampling::plain([].into(), 20));
        let request = |episode| Request { episode, prompt: vec![1, 2] };
        (0..n).map(|episode| Ticket::new(request(episode), sampling.clone(), Source::new(1, "talk"))).collect()
    }

    /// Who hands in tickets for one slot and eight places in the queue, and the other end, at which nothing happens yet.
    fn talk() -> (Talk, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel();
        let (open, counts) = Default::default();
        (Talk { orders, open, most: 9, counts }, receiver)
    }

    #[test]
    fn more_than_may_wait_is_told_to_come_again() {
        let (talk, receiver) = talk();
        let status = |n: u64| talk.draw(n, tickets(n)).err().map(|refusal| (refusal.status, refusal.retry_after));
        assert_eq!(status(10), Some((400, None)), "there is never so much room");
        assert_eq!(status(7), None);
        assert_eq!(status(3), Some((429, Some(1))));
        assert_eq!(status(2), None);
        assert_eq!(status(1), Some((429, Some(1))));
        talk.open.store(0, Ordering::Release);
        drop(receiver);
        assert_eq!((status(1), talk.open.load(Ordering::Acquire)), (Some((500, None)), 0));
    }

    /// Of those who have gone nothing is drawn, also where they still waited; the others get all of theirs.
    #[test]
    fn who_has_gone_frees_slot_and_queue() {
        let config = Config::tiny_gpt2(50, 16, 1, 2, 32);
        let decoder = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        decoder.initialise(1).unwrap();
        let (talk, receiver) = talk();
        drop(talk.draw(1, tickets(5)).unwrap_or_else(|refusal| panic!("{refusal}")));
        let mut stays = talk.draw(2, tickets(1)).unwrap_or_else(|refusal| panic!("{refusal}"));
        let (open, counts) = (talk.open.clone(), talk.counts.clone());
        let room = Room { slots: 1, capacity: 32, chunk: 64 };
        let drawing = Drawing { decoder: Arc::new(decoder), room, open: open.clone(), counts };
        let Stream { pieces, orders, .. } = &mut stays;
        // With nobody left who could ask, the thread ends when all is drawn.
        *orders = mpsc::channel().0;
        let counted = talk.counts.clone();
        drop(talk);
        drawing.run(receiver);
        let heard = std::iter::from_fn(|| pieces.try_recv().ok()).filter(|heard| heard.is_ok()).count();
        assert_eq!((heard, open.load(Ordering::Acquire)), (20, 0));
        assert_eq!(counted.lock().unwrap().drawn, 20, "the five were given up before anything was drawn for them");
    }
}
