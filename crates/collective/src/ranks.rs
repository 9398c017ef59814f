//! What every engine shares: the handshake before each call, and calls cut into pieces that a wire carries.

use crate::{
    Collective, Spent,
    error::{Error, Result},
    shard::{BUCKET_BYTES, Rounds, per_rank},
    tree::add_up,
    watch::Watch,
};

/// Who a rank is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) local_rank: usize,
    pub(crate) local_world: usize,
    pub(crate) engine: &'static str,
}

/// What carries numbers between ranks. Callers see to it that lengths are the same on all ranks and that nothing is
/// longer than a bucket.
pub(crate) trait Wire {
    fn place(&self) -> Place;

    fn watch(&self) -> &Watch;

    /// Bytes of a bucket.
    fn bucket(&self) -> usize {
        BUCKET_BYTES
    }

    /// `own` of every rank, in the order of ranks.
    fn gather_words(&self, own: &[u64], all: &mut [u64]) -> Result<()>;

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()>;

    /// Part r of `send`, of as many as there are ranks, goes to rank r; part r of `received` came from rank r.
    fn exchange(&self, send: &[f32], received: &mut [f32]) -> Result<()>;

    /// `own` of every rank, in the order of ranks.
    fn gather_floats(&self, own: &[f32], all: &mut [f32]) -> Result<()>;

    /// Tells why this rank ends, where dropping the wire ends the process before anybody else could.
    #[cfg(any(feature = "nccl", test))]
    fn last_words(&self, _message: &str) {}

    /// Closes the connection in peace.
    fn close(self) -> Result<()>;
}

/// The calls that ranks can meet in.
#[derive(Clone, Copy, Debug)]
enum Call {
    Barrier,
    Broadcast,
    Slots,
    Agree,
    ReduceScatter,
    AllGather,
}

impl Call {
    const ALL: [Call; 6] =
        [Call::Barrier, Call::Broadcast, Call::Slots, Call::Agree, Call::ReduceScatter, Call::AllGather];

    fn name(self) -> &'static str {
        match self {
            Call::Barrier => "barrier",
            Call::Broadcast => "broadcast_bytes",
            Call::Slots => "slots",
            Call::Agree => "agree",
            Call::ReduceScatter => "reduce_scatter",
            Call::AllGather => "all_gather",
        }
    }

    /// A call with what must be the same on all ranks, in words.
    fn described(number: u64, key: u64) -> String {
        let call = usize::try_from(number).ok().and_then(|number| Call::ALL.get(number));
        match call {
            Some(call @ Call::Barrier) => call.name().to_owned(),
            Some(call @ Call::Broadcast) => format!("{} from rank {key}", call.name()),
            Some(call @ Call::Agree) => format!("{} on the subject {key:016x}", call.name()),
            Some(call) => format!("{} of {key} numbers", call.name()),
            None => format!("an unknown call {number}; are the ranks one version of the program?"),
        }
    }
}

/// Meets the other ranks in `call`, which waits for all of them. `key` must be the same on every rank; `own` need not be,
/// and every rank gets all of them.
fn meet(wire: &impl Wire, call: Call, key: u64, own: u64) -> Result<Vec<u64>> {
    let mut all = vec![0; 3 * wire.place().world];
    wire.gather_words(&[call as u64, key, own], &mut all)?;
    sent(wire, 3 * size_of::<u64>());
    let places: Vec<_> = all.chunks_exact(3).map(|words| (words[0], words[1])).collect();
    if places.iter().any(|place| *place != places[0]) {
        return Err(Error::Apart { places: grouped(&places, |&(call, key)| Call::described(call, key)) });
    }
    Ok(all.chunks_exact(3).map(|words| words[2]).collect())
}

/// Counts `bytes` for each of the other ranks.
fn sent(wire: &impl Wire, bytes: usize) {
    wire.watch().sent((wire.place().world - 1) as u64 * bytes as u64);
}

/// Every value with the ranks that have it: `4 on rank 0; 5 on ranks 1, 2`.
fn grouped<T: PartialEq>(values: &[T], words: impl Fn(&T) -> String) -> String {
    /// Ranks named of a group; a message about a thousand of them would not be read.
    const NAMED: usize = 8;
    let mut groups: Vec<(&T, Vec<usize>)> = Vec::new();
    for (rank, value) in values.iter().enumerate() {
        match groups.iter_mut().find(|(of, _)| *of == value) {
            Some((_, ranks)) => ranks.push(rank),
            None => groups.push((value, vec![rank])),
        }
    }
    let named = |ranks: &[usize]| ranks.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let group = |(value, ranks): (&T, Vec<usize>)| {
        let (plural, more) = (if ranks.len() > 1 { "s" } else { "" }, ranks.len().saturating_sub(NAMED));
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} on rank{plural} {}{more}", words(value), named(&ranks))
    };
    groups.into_iter().map(group).collect::<Vec<_>>().join("; ")
}

/// FNV-1a: names become numbers, the same in every process.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl<W: Wire> Collective for W {
    fn rank(&self) -> usize {
        self.place().rank
    }

    fn world(&self) -> usize {
        self.place().world
    }

    fn local_rank(&self) -> usize {
        self.place().local_rank
    }

    fn local_world(&self) -> usize {
        self.place().local_world
    }

    fn engine(&self) -> &'static str {
        self.place().engine
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let inside = self.watch().enter(Call::Broadcast.name());
        let Place { rank, world, .. } = self.place();
        // Looked at after the meeting, so that ranks with a root that exists do not wait for this one.
        let lengths = meet(self, Call::Broadcast, root as u64, bytes.len() as u64)?;
        let length = *lengths.get(root).ok_or(Error::Root { root, last: world - 1 })?;
        bytes.resize(length as usize, 0);
        for piece in bytes.chunks_mut(self.bucket()) {
            self.broadcast(root, piece)?;
            if rank == root {
                sent(self, piece.len());
            }
            inside.goes_on();
        }
        Ok(())
    }

    fn slots(&self, slots: &mut [f64]) -> Result<()> {
        let inside = self.watch().enter(Call::Slots.name());
        meet(self, Call::Slots, slots.len() as u64, 0)?;
        let world = self.place().world;
        let step = per_rank(self.bucket(), size_of::<u64>(), world);
        for (number, piece) in slots.chunks_mut(step).enumerate() {
            // Numbers travel as their bits, so that not even the sign of a zero or a NaN is lost.
            let own: Vec<u64> = piece.iter().map(|slot| slot.to_bits()).collect();
            let mut all = vec![0; world * own.len()];
            self.gather_words(&own, &mut all)?;
            sent(self, size_of_val(own.as_slice()));
            for (at, slot) in piece.iter_mut().enumerate() {
                *slot = only_one(all[at..].iter().step_by(own.len()), number * step + at)?;
            }
            inside.goes_on();
        }
        Ok(())
    }

    fn agree(&self, what: &str, hash: u64) -> Result<()> {
        let _inside = self.watch().enter(Call::Agree.name());
        let hashes = meet(self, Call::Agree, fnv(what), hash)?;
        if hashes.iter().all(|other| *other == hash) {
            return Ok(());
        }
        let values = grouped(&hashes, |hash| format!("{hash:016x}"));
        Err(Error::Disagree { what: what.to_owned(), values })
    }

    fn barrier(&self) -> Result<()> {
        let _inside = self.watch().enter(Call::Barrier.name());
        meet(self, Call::Barrier, 0, 0).map(drop)
    }

    fn reduce_scatter(&self, flat: &mut [f32]) -> Result<()> {
        let inside = self.watch().enter(Call::ReduceScatter.name());
        meet(self, Call::ReduceScatter, flat.len() as u64, 0)?;
        let Place { rank, world, .. } = self.place();
        let rounds = Rounds::new(flat.len(), world, self.bucket());
        let (mut send, mut received) = (vec![0.0; rounds.bucket()], vec![0.0; rounds.bucket()]);
        for (start, step) in rounds.iter() {
            let (send, received) = (&mut send[..world * step], &mut received[..world * step]);
            for (to, part) in send.chunks_exact_mut(step).enumerate() {
                let piece = &flat[rounds.piece(to, start, step)];
                part[..piece.len()].copy_from_slice(piece);
            }
            self.exchange(send, received)?;
            sent(self, step * size_of::<f32>());
            add_up(received, step);
            let own = &mut flat[rounds.piece(rank, start, step)];
            own.copy_from_slice(&received[..own.len()]);
            inside.goes_on();
        }
        Ok(())
    }

    fn all_gather(&self, flat: &mut [f32]) -> Result<()> {
        let inside = self.watch().enter(Call::AllGather.name());
        meet(self, Call::AllGather, flat.len() as u64, 0)?;
        let Place { rank, world, .. } = self.place();
        let rounds = Rounds::new(flat.len(), world, self.bucket());
        let (mut send, mut received) = (vec![0.0; rounds.bucket() / world], vec![0.0; rounds.bucket()]);
        for (start, step) in rounds.iter() {
            let own = &flat[rounds.piece(rank, start, step)];
            send[..own.len()].copy_from_slice(own);
            self.gather_floats(&send[..step], &mut received[..world * step])?;
            sent(self, step * size_of::<f32>());
            for (from, part) in received[..world * step].chunks_exact(step).enumerate() {
                let piece = &mut flat[rounds.piece(from, start, step)];
                piece.copy_from_slice(&part[..piece.len()]);
            }
            inside.goes_on();
        }
        Ok(())
    }

    fn spent(&self) -> Spent {
        self.watch().spent()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        (*self).close()
    }
}

/// The number that one rank set, of all ranks' bits of a slot; a 0.0 has the bits 0.
fn only_one<'a>(bits: impl Iterator<Item = &'a u64>, slot: usize) -> Result<f64> {
    let mut set = bits.enumerate().filter(|(_, bits)| **bits != 0);
    match (set.next(), set.next()) {
        (Some((first, _)), Some((second, _))) => Err(Error::Slot { slot, first, second }),
        (first, _) => Ok(f64::from_bits(first.map_or(0, |(_, bits)| *bits))),
    }
}
