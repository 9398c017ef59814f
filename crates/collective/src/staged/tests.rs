//! The order of calls, the name of the job and errors, over lanes that are threads. What the lanes refuse here, NCCL
//! would answer with an error or by waiting for ever.

use super::{Lanes, Name, Staged, joined};
use crate::{
    Collective,
    error::{Error, Result},
    span,
    testing::{pairwise, threads, threads_over},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

/// What is on its way between ranks.
#[derive(Default)]
struct Board {
    parcels: Mutex<Parcels>,
    changed: Condvar,
}

#[derive(Default)]
struct Parcels {
    /// What a rank sent to another, in order.
    sent: BTreeMap<(usize, usize), VecDeque<Vec<f32>>>,
    /// Somebody has left, and nobody gets anything more.
    closed: bool,
}

impl Board {
    fn put(&self, from: usize, to: usize, numbers: Vec<f32>) {
        self.parcels.lock().unwrap().sent.entry((from, to)).or_default().push_back(numbers);
        self.changed.notify_all();
    }

    fn take(&self, from: usize, to: usize) -> Result<Vec<f32>> {
        let mut parcels = self.parcels.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(numbers) = parcels.sent.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
                return Ok(numbers);
            }
            if parcels.closed {
                return Err(Error::Left { rank: from, waiting: to });
            }
            parcels = self.changed.wait(parcels).unwrap();
        }
    }
}

/// One rank's end of the board; it notes its calls, and refuses one of them when told so.
struct Fake {
    board: Arc<Board>,
    rank: usize,
    world: usize,
    calls: Arc<Mutex<Vec<String>>>,
    /// The rank that is refused, and what.
    refused: Option<(usize, &'static str)>,
    /// What the open group has been asked: sends, and the parts that wait for what comes.
    group: Mutex<Option<Group>>,
    /// Whether what keeps the ranks together has let go of this one.
    control_left: Box<dyn Fn() -> bool + Send + Sync>,
}

#[derive(Default)]
struct Group {
    sends: Vec<(usize, Vec<f32>)>,
    receives: Vec<(usize, Filled, Range<usize>)>,
}

/// Numbers on a device: a buffer can be filled later by whoever holds the other end.
type Filled = Arc<Mutex<Vec<f32>>>;

impl Fake {
    fn call(&self, name: &'static str, detail: &str) -> Result<()> {
        self.calls.lock().unwrap().push(format!("{name}{detail}"));
        if self.refused == Some((self.rank, name)) {
            return Err(refusal(self.rank, name));
        }
        Ok(())
    }

    /// Asks something of the open group; there must be one.
    fn asked(&self, ask: impl FnOnce(&mut Group)) -> Result<()> {
        let mut group = self.group.lock().unwrap();
        group.as_mut().map(ask).ok_or_else(|| refusal(self.rank, "outside a group"))
    }
}

fn refusal(rank: usize, call: &'static str) -> Error {
    Error::Call { call, rank, code: 5, message: "refused".to_owned() }
}

impl Lanes for Fake {
    type Buffer = Filled;

    fn put(&self, host: &[f32]) -> Result<Filled> {
        self.call("put", "")?;
        Ok(Filled::new(host.to_vec().into()))
    }

    fn room(&self, len: usize) -> Result<Filled> {
        self.call("room", "")?;
        Ok(Filled::new(vec![f32::NAN; len].into()))
    }

    fn begin(&self) -> Result<()> {
        self.call("begin", "")?;
        *self.group.lock().unwrap() = Some(Group::default());
        Ok(())
    }

    fn send(&self, from: &Filled, part: Range<usize>, peer: usize) -> Result<()> {
        self.call("send", &format!(" {peer}"))?;
        let numbers = from.lock().unwrap()[part].to_vec();
        self.asked(|group| group.sends.push((peer, numbers)))
    }

    fn receive(&self, to: &mut Filled, part: Range<usize>, peer: usize) -> Result<()> {
        self.call("receive", &format!(" {peer}"))?;
        self.asked(|group| group.receives.push((peer, to.clone(), part)))
    }

    fn end(&self) -> Result<()> {
        self.call("end", "")?;
        let group = self.group.lock().unwrap().take().ok_or_else(|| refusal(self.rank, "outside a group"))?;
        for (peer, numbers) in group.sends {
            self.board.put(self.rank, peer, numbers);
        }
        for (peer, to, part) in group.receives {
            to.lock().unwrap()[part].copy_from_slice(&self.board.take(peer, self.rank)?);
        }
        Ok(())
    }

    fn gather(&self, own: &Filled, all: &mut Filled) -> Result<()> {
        self.call("gather", "")?;
        let own = own.lock().unwrap().clone();
        (0..self.world).for_each(|peer| self.board.put(self.rank, peer, own.clone()));
        let parts = (0..self.world).map(|peer| self.board.take(peer, self.rank)).collect::<Result<Vec<_>>>()?;
        *all.lock().unwrap() = parts.concat();
        Ok(())
    }

    fn get(&self, from: &Filled, host: &mut [f32]) -> Result<()> {
        self.call("get", "")?;
        host.copy_from_slice(&from.lock().unwrap());
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.call("close", "")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let order = if (self.control_left)() { "after" } else { "before" };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(format!("left {order} control"));
        self.board.parcels.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.board.changed.notify_all();
    }
}

/// A name that only the first rank knows, with bytes of both signs.
fn name() -> Name {
    std::array::from_fn(|i| (i as u8).wrapping_mul(37))
}

/// Does `work` on ranks of which `refused` one is refused a call, and gives what came of each and what rank 0 called.
fn over_lanes<T: Send>(
    world: usize,
    refused: Option<(usize, &'static str)>,
    work: impl Fn(&dyn Collective) -> Result<T> + Sync,
) -> (Vec<Result<T, String>>, Vec<String>) {
    let board = Arc::new(Board::default());
    let calls: Vec<Arc<Mutex<Vec<String>>>> = (0..world).map(|_| Arc::default()).collect();
    let outcomes = threads_over(
        world,
        |control| {
            let control_left = Box::new(control.has_left());
            let make = || if refused == Some((0, "name")) { Err(refusal(0, "name")) } else { Ok(name()) };
            let lanes = joined(&control, make, |given, place| {
                assert_eq!((given, place.world), (name(), world), "every rank has the first one's name");
                let rank = place.rank;
                let (board, calls) = (board.clone(), calls[rank].clone());
                let fake = Fake { board, rank, world, calls, refused, group: Mutex::default(), control_left };
                fake.call("enter", "").map(|()| fake)
            })?;
            Ok(Staged { control, lanes })
        },
        work,
    );
    let first = calls[0].lock().unwrap().clone();
    (outcomes, first)
}

/// A rank's numbers, some of which no order of adding keeps.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + rank * 11) as f32).sin() * 10f32.powi((i + rank) as i32 % 9 - 4)).collect()
}

fn summed(ranks: &dyn Collective, len: usize) -> Result<Vec<f32>> {
    let mut flat = numbers(ranks.rank(), len);
    ranks.reduce_scatter(&mut flat)?;
    let own = span(len, ranks.rank(), ranks.world());
    flat[..own.start].fill(f32::NAN);
    flat[own.end..].fill(f32::NAN);
    ranks.all_gather(&mut flat)?;
    Ok(flat)
}

#[test]
fn devices_give_the_sums_of_the_tree() {
    for world in [1, 2, 3, 4] {
        // The last two go through several buckets.
        for len in [1, 5, 9_000, 30_000] {
            let want = pairwise(&(0..world).map(|rank| numbers(rank, len)).collect::<Vec<_>>());
            let (outcomes, _) = over_lanes(world, None, |ranks| summed(ranks, len));
            assert_eq!(outcomes, vec![Ok(want.clone()); world], "{world} ranks, {len} numbers");
            assert_eq!(threads(world, |ranks| summed(ranks, len)), outcomes);
        }
    }
}

#[test]
fn parts_travel_in_one_group_and_are_fetched_when_it_has_ended() {
    let (outcomes, calls) = over_lanes(2, None, |ranks| summed(ranks, 10));
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let exchange = ["put", "room", "begin", "send 0", "receive 0", "send 1", "receive 1", "end", "get"];
    let gather = ["put", "room", "gather", "get"];
    assert_eq!(calls, [&["enter"][..], &exchange, &gather, &["close", "left before control"]].concat());
}

#[test]
fn what_one_rank_is_refused_ends_all() {
    let calls = ["name", "enter", "put", "room", "begin", "send", "receive", "end", "gather", "get", "close"];
    for call in calls {
        for rank in 0..if call == "name" { 1 } else { 2 } {
            let (outcomes, calls) = over_lanes(2, Some((rank, call)), |ranks| summed(ranks, 10));
            let said = outcomes[rank].as_ref().unwrap_err();
            assert!(said.contains(&format!("{call} failed on rank {rank}: refused (code 5)")), "{said}");
            // Else cleaning up could wait for a rank that waits for this one.
            let left = calls.last().map(String::as_str);
            assert!(
                rank == 1 || ["name", "enter"].contains(&call) || left == Some("left after control"),
                "{call}: {left:?}"
            );
            // Whoever is refused the last call has given the other all that it waits for.
            if call != "close" {
                let other = outcomes[1 - rank].as_ref().unwrap_err();
                assert!(other.contains(&format!("rank {rank} has left")), "{call}: {other}");
            }
        }
    }
}
