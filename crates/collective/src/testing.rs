//! For tests: ranks that are threads of one process, where everything but the transport is what real ranks run, and the
//! definition of the tree in which sums are added.

use crate::{
    Collective,
    error::{Error, Result},
    ranks::{Place, Wire},
    run::run,
    watch::{Still, Watch},
};
use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Bytes of a bucket here: so few that tests with a handful of blocks go through several.
const BUCKET: usize = 20_000;

/// The sum of parts of equal length, by the definition of the tree: it splits at the largest power of two below their
/// number.
///
/// # Panics
/// Without parts.
///
/// ```
/// use instruct_collective::testing::pairwise;
///
/// // (1e8 + 1) + (1 - 1e8), where 1e8 + 1 is 1e8 in `f32`.
/// assert_eq!(pairwise(&[vec![1e8], vec![1.0], vec![1.0], vec![-1e8]]), [0.0]);
/// ```
pub fn pairwise(parts: &[Vec<f32>]) -> Vec<f32> {
    if let [part] = parts {
        return part.clone();
    }
    assert!(!parts.is_empty(), "no parts have no length");
    let (left, right) = parts.split_at(parts.len().next_power_of_two() / 2);
    pairwise(left).iter().zip(pairwise(right)).map(|(l, r)| l + r).collect()
}

/// Does `work` on `world` ranks and gives what came of each, in the order of ranks; an error or panic as the message
/// that [`run`] gives of it.
///
/// A rank that fails or panics does not leave the others waiting: they get [`Error::Left`].
///
/// ```
/// use instruct_collective::{Error, testing::threads};
///
/// let outcomes = threads(2, |ranks| {
///     let mut squares = [0.0; 2];
///     squares[ranks.rank()] = (ranks.rank() + 3).pow(2) as f64;
///     ranks.slots(&mut squares)?;
///     Ok::<_, Error>(squares)
/// });
/// assert_eq!(outcomes, [Ok([9.0, 16.0]), Ok([9.0, 16.0])]);
/// ```
pub fn threads<T: Send, E: From<Error> + Display>(
    world: usize,
    work: impl Fn(&dyn Collective) -> Result<T, E> + Sync,
) -> Vec<Result<T, String>> {
    threads_over(world, Ok, work)
}

/// As [`threads`], on what `over` makes of each thread.
pub(crate) fn threads_over<T: Send, E: From<Error> + Display, C: Collective + 'static>(
    world: usize,
    over: impl Fn(Thread) -> Result<C> + Sync,
    work: impl Fn(&dyn Collective) -> Result<T, E> + Sync,
) -> Vec<Result<T, String>> {
    let room = Arc::new(Room::new(world));
    let (over, work) = (&over, &work);
    thread::scope(|scope| {
        let rank = |rank| {
            let wire = Thread { rank, room: room.clone(), watch: Watch::new(Arc::new(Still)) };
            scope.spawn(move || ended(|| over(wire), work))
        };
        let started: Vec<_> = (0..world).map(rank).collect();
        let joined = started.into_iter().map(|thread| thread.join());
        joined.map(|outcome| outcome.unwrap_or_else(|_| Err("a rank's thread ended by itself".to_owned()))).collect()
    })
}

fn ended<T, E: From<Error> + Display, C: Collective + 'static>(
    connect: impl FnOnce() -> Result<C>,
    work: impl Fn(&dyn Collective) -> Result<T, E>,
) -> Result<T, String> {
    let said = Mutex::new(String::new());
    let say = |message: &str| message.clone_into(&mut said.lock().unwrap_or_else(PoisonError::into_inner));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let ranks = connect().inspect_err(|error| say(&error.to_string()))?;
        run(Box::new(ranks), &say, work)
    }));
    match outcome {
        Ok(Ok(value)) => Ok(value),
        _ => Err(said.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// One rank's end of the room.
pub(crate) struct Thread {
    rank: usize,
    room: Arc<Room>,
    watch: Watch,
}

/// Where ranks put down what they have and pick up what the others had.
struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What each rank put down in this round.
    parcels: Vec<Option<Parcel>>,
    /// How many ranks picked this round's parcels up.
    taken: usize,
    gone: Vec<bool>,
}

#[derive(Clone)]
enum Parcel {
    Words(Vec<u64>),
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

impl Room {
    fn new(world: usize) -> Room {
        let state = State { parcels: vec![None; world], taken: 0, gone: vec![false; world] };
        Room { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`; a rank that is gone will not make it so, unless it already has.
    fn until(
        &self,
        waiting: usize,
        ready: impl Fn(&State) -> bool,
        needed: impl Fn(&State, usize) -> bool,
    ) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return Ok(state);
            }
            let missing = (0..state.gone.len()).find(|&rank| state.gone[rank] && needed(&state, rank));
            if let Some(rank) = missing {
                return Err(Error::Left { rank, waiting });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives every rank the parcels of all.
    fn swap(&self, rank: usize, own: Parcel) -> Result<Vec<Parcel>> {
        let mut state = self.until(rank, |state| state.parcels[rank].is_none(), |_, _| true)?;
        state.parcels[rank] = Some(own);
        self.changed.notify_all();
        drop(state);
        let all_here = |state: &State| state.parcels.iter().all(Option::is_some);
        let mut state = self.until(rank, all_here, |state, rank| state.parcels[rank].is_none())?;
        let parcels = state.parcels.iter().flatten().cloned().collect();
        state.taken += 1;
        if state.taken == state.parcels.len() {
            state.taken = 0;
            state.parcels.fill(None);
            self.changed.notify_all();
        }
        Ok(parcels)
    }
}

impl Thread {
    /// The words, bytes or floats of all ranks; all put down the same kind, because they met in the same call.
    fn swap<T>(&self, own: Parcel, open: impl Fn(Parcel) -> Option<Vec<T>>) -> Result<Vec<Vec<T>>> {
        Ok(self.room.swap(self.rank, own)?.into_iter().filter_map(open).collect())
    }

    fn floats(&self, own: &[f32]) -> Result<Vec<Vec<f32>>> {
        self.swap(Parcel::Floats(own.to_vec()), |parcel| match parcel {
            Parcel::Floats(floats) => Some(floats),
            _ => None,
        })
    }

    fn bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.swap(Parcel::Bytes(own.to_vec()), |parcel| match parcel {
            Parcel::Bytes(bytes) => Some(bytes),
            _ => None,
        })
    }
}

#[cfg(test)]
impl Thread {
    /// Tells, later and from anywhere, whether this rank has left.
    pub(crate) fn has_left(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let (rank, room) = (self.rank, self.room.clone());
        move || room.lock().gone[rank]
    }
}

impl Wire for Thread {
    fn place(&self) -> Place {
        let world = self.room.lock().gone.len();
        Place { rank: self.rank, world, local_rank: self.rank, local_world: world, engine: "threads" }
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn bucket(&self) -> usize {
        BUCKET
    }

    fn gather_words(&self, own: &[u64], all: &mut [u64]) -> Result<()> {
        let words = self.swap(Parcel::Words(own.to_vec()), |parcel| match parcel {
            Parcel::Words(words) => Some(words),
            _ => None,
        })?;
        all.copy_from_slice(&words.concat());
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let all = self.bytes(bytes)?;
        bytes.copy_from_slice(&all[root]);
        Ok(())
    }

    fn exchange(&self, send: &[f32], received: &mut [f32]) -> Result<()> {
        let all = self.floats(send)?;
        let step = received.len() / all.len();
        for (part, from) in received.chunks_exact_mut(step).zip(&all) {
            part.copy_from_slice(&from[self.rank * step..][..step]);
        }
        Ok(())
    }

    fn gather_floats(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        all.copy_from_slice(&self.floats(own)?.concat());
        Ok(())
    }

    fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Drop for Thread {
    /// However a rank ends, from here on nobody waits for it.
    fn drop(&mut self) {
        self.room.lock().gone[self.rank] = true;
        self.room.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
