//! MPI as the engine: raw calls, each with its code checked.
//!
//! The safe calls of the crate `mpi` throw return codes away and count on an MPI that ends the job at an error; and what
//! it does when a rank unwinds is to wait in `MPI_Finalize` for ranks that wait elsewhere. So there is little of it here.

use crate::{
    collective::Say,
    error::{Error, Result},
    launch::Host,
    ranks::{Place, Wire},
    run::FAILED,
    watch::Watch,
};
use ::mpi::{
    Threading,
    environment::Universe,
    ffi,
    topology::{Communicator, SimpleCommunicator},
    traits::{AsRaw, Equivalence},
};
use std::{
    ffi::{c_char, c_int},
    fmt,
    marker::PhantomData,
    mem::ManuallyDrop,
    sync::Arc,
    thread,
};

/// The ranks of an MPI job.
///
/// It stays on the thread that connected, the only one that may call MPI. Dropped without
/// [`finish`](crate::Collective::finish), it ends the job with [`FAILED`].
pub struct Mpi {
    world: SimpleCommunicator,
    place: Place,
    watch: Arc<Watch>,
    say: Arc<Say>,
    /// Never dropped: that would wait for the other ranks even while this one unwinds.
    _universe: ManuallyDrop<Universe>,
    /// Not to be sent to another thread, with any MPI; in some a communicator is a plain number.
    _here: PhantomData<*const ()>,
}

impl Mpi {
    /// Starts MPI, and the watchdog before it. A world of one is not refused here; [`connect`](crate::connect) does that.
    ///
    /// # Errors
    ///
    /// [`Error::Started`] the second time in a process; [`Error::Call`] when MPI answers with an error code. Without the
    /// means to start at all, MPI itself prints why and ends the process.
    pub fn connect(host: &Host) -> Result<Mpi> {
        let watch = Arc::new(Watch::new(host.clock.clone()));
        guard(&watch, host);
        let inside = watch.enter("MPI_Init_thread");
        let (universe, provided) = ::mpi::initialize_with_threading(Threading::Funneled).ok_or(Error::Started)?;
        let universe = ManuallyDrop::new(universe);
        if provided < Threading::Funneled {
            let message = "this MPI allows no other thread in the process; take one built with threads".to_owned();
            return Err(Error::Call { call: "MPI_Init_thread", rank: 0, code: 0, message });
        }
        let world = universe.world();
        return_errors(&world)?;
        let place = place(&world)?;
        watch.introduce(place.rank, place.world);
        drop(inside);
        Ok(Mpi { world, place, watch, say: host.say.clone(), _universe: universe, _here: PhantomData })
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        check(call, self.place.rank, code)
    }

    /// The number of elements of each rank's part, and a proof that all parts are as long as they are said to be.
    fn part<T>(&self, part: &[T], whole: &[T]) -> c_int {
        assert_eq!(part.len() * self.place.world, whole.len(), "a part for every rank");
        count(whole.len());
        count(part.len())
    }
}

/// Starts the thread that ends the process when a call waits too long.
fn guard(watch: &Arc<Watch>, host: &Host) {
    let (watch, limit, say) = (watch.clone(), host.limit, host.say.clone());
    thread::spawn(move || watch.guard(limit, &*say, leave));
}

/// Ends the process at once. An ordinary exit would first run MPI's clean-up, and `MPI_Abort` would be a second thread
/// inside MPI; the launcher notices that a rank is gone and ends the others.
fn leave(code: i32) {
    // SAFETY: `_exit` takes any number, touches no memory of ours and does not return.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

/// Has MPI return errors instead of ending the job without a word of ours.
fn return_errors(world: &SimpleCommunicator) -> Result<()> {
    // SAFETY: MPI is initialised, since there is a world, and the handler is MPI's own constant.
    #[allow(unsafe_code)]
    let code = unsafe { ffi::MPI_Comm_set_errhandler(world.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
    check("MPI_Comm_set_errhandler", 0, code)
}

fn place(world: &SimpleCommunicator) -> Result<Place> {
    let raw = world.as_raw();
    let rank = rank_in(raw, 0)?;
    let size = size_of_group(raw, rank)?;
    // Ranks that share memory, in the order of their ranks: the same whatever the launcher.
    let machine = world.split_shared(world.rank());
    let (local_rank, local_world) = (rank_in(machine.as_raw(), rank)?, size_of_group(machine.as_raw(), rank)?);
    Ok(Place { rank, world: size, local_rank, local_world, engine: "mpi" })
}

/// The rank of this process in a communicator; `reporter` is the rank that an error names.
fn rank_in(communicator: ffi::MPI_Comm, reporter: usize) -> Result<usize> {
    // SAFETY: MPI is initialised, since there is a communicator, and writes one number, which outlives the call.
    #[allow(unsafe_code)]
    asked("MPI_Comm_rank", reporter, |rank| unsafe { ffi::MPI_Comm_rank(communicator, rank) })
}

/// How many ranks a communicator has; `reporter` as above.
fn size_of_group(communicator: ffi::MPI_Comm, reporter: usize) -> Result<usize> {
    // SAFETY: MPI is initialised, since there is a communicator, and writes one number, which outlives the call.
    #[allow(unsafe_code)]
    asked("MPI_Comm_size", reporter, |size| unsafe { ffi::MPI_Comm_size(communicator, size) })
}

/// The number that `call` answers.
fn asked(call: &'static str, rank: usize, answer: impl FnOnce(&mut c_int) -> c_int) -> Result<usize> {
    let mut number: c_int = 0;
    check(call, rank, answer(&mut number))?;
    let negative = |_| Error::Call { call, rank, code: 0, message: format!("the answer is {number}") };
    usize::try_from(number).map_err(negative)
}

/// An error unless `code` says that `call` succeeded.
fn check(call: &'static str, rank: usize, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int { Ok(()) } else { Err(Error::Call { call, rank, code, message: words(code) }) }
}

/// What MPI says of one of its codes.
fn words(code: c_int) -> String {
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: the buffer has the length that MPI promises not to exceed, and the end of the text besides.
    #[allow(unsafe_code)]
    let code = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    if code != ffi::MPI_SUCCESS as c_int {
        return "MPI has no words for it".to_owned();
    }
    text.truncate(usize::try_from(length).unwrap_or_default());
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// A length as MPI counts.
fn count(length: usize) -> c_int {
    c_int::try_from(length).expect("no piece is longer than a bucket, which is far below 2^31 elements")
}

impl Wire for Mpi {
    fn place(&self) -> Place {
        self.place
    }

    fn watch(&self) -> &Watch {
        &self.watch
    }

    fn gather_words(&self, own: &[u64], all: &mut [u64]) -> Result<()> {
        let (count, kind) = (self.part(own, all), u64::equivalent_datatype().as_raw());
        let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: `from` has `count` words and `to` that many for each rank, as `part` asserts; both outlive the call.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::MPI_Allgather(from, count, kind, to, count, kind, self.world.as_raw()) };
        self.check("MPI_Allgather", code)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let (length, kind, root) = (count(bytes.len()), u8::equivalent_datatype().as_raw(), count(root));
        // SAFETY: the buffer has `length` bytes, which MPI reads on the root and writes elsewhere; it outlives the call.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::MPI_Bcast(bytes.as_mut_ptr().cast(), length, kind, root, self.world.as_raw()) };
        self.check("MPI_Bcast", code)
    }

    fn exchange(&self, send: &[f32], received: &mut [f32]) -> Result<()> {
        assert_eq!(send.len(), received.len(), "as much comes as goes");
        let part = send.len() / self.place.world;
        let (count, kind) = (self.part(&send[..part], received), f32::equivalent_datatype().as_raw());
        let (from, to) = (send.as_ptr().cast(), received.as_mut_ptr().cast());
        // SAFETY: `from` and `to` both have `count` floats for each rank, as asserted above; both outlive the call.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::MPI_Alltoall(from, count, kind, to, count, kind, self.world.as_raw()) };
        self.check("MPI_Alltoall", code)
    }

    fn gather_floats(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        let (count, kind) = (self.part(own, all), f32::equivalent_datatype().as_raw());
        let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: `from` has `count` floats and `to` that many for each rank, as `part` asserts; both outlive the call.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::MPI_Allgather(from, count, kind, to, count, kind, self.world.as_raw()) };
        self.check("MPI_Allgather", code)
    }

    #[cfg(any(feature = "nccl", test))]
    fn last_words(&self, message: &str) {
        (self.say)(&format!("rank {} of {}: {message}", self.place.rank, self.place.world));
    }

    fn close(self) -> Result<()> {
        // From here on it is not the job that ends but this rank's part in it, so `drop` must not run.
        let mpi = ManuallyDrop::new(self);
        let _inside = mpi.watch.enter("MPI_Finalize");
        // SAFETY: MPI is initialised and not finalised, since only this function finalises it and it consumes the one
        // `Mpi` of the process; nothing calls MPI afterwards, because the communicator goes with it.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::MPI_Finalize() };
        mpi.watch.close();
        // `MPI_Error_string` may no longer be called.
        if code == ffi::MPI_SUCCESS as c_int {
            return Ok(());
        }
        let message = "the ranks could not be closed in order".to_owned();
        Err(Error::Call { call: "MPI_Finalize", rank: mpi.place.rank, code, message })
    }
}

impl Drop for Mpi {
    /// A rank that ends early ends the job: the others would wait for it for ever.
    fn drop(&mut self) {
        let Place { rank, world, .. } = self.place;
        (self.say)(&format!("rank {rank} of {world} ends before the work is done, and the whole job with it"));
        self.watch.linger();
        self.world.abort(FAILED)
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi").field("place", &self.place).finish_non_exhaustive()
    }
}
