//! NCCL as the data plane between GPUs, under MPI's control.

use crate::{
    Collective, Mpi,
    error::{Error, Result},
    ranks::{Place, Wire},
    watch::Watch,
};
use candle_core::{
    CudaDevice,
    cuda::cudarc::{
        driver::{CudaStream, DriverError},
        nccl::{
            result::NcclError,
            safe::{Comm, Id, group_end, group_start},
        },
    },
};
use std::{
    ffi::{c_char, c_int},
    fmt,
    sync::Arc,
};

/// The ranks of an MPI job whose flat numbers travel by NCCL, each over a GPU of its own.
///
/// **Type-checked, not run on two GPUs.**
///
/// Master weights and gradients live on the host, so every exchange copies a bucket to the device, has NCCL exchange it
/// there, and copies it back. The sum is the host's tree, as with every engine, so the bits are the same ones. What this
/// buys is NCCL's network between machines; a gradient that never leaves the device would need a kernel that adds in the
/// same tree and a trait over device buffers, and neither is here.
pub struct Nccl {
    // Dropped first: a rank that ends early must end the job before NCCL's own clean-up can wait for anybody.
    mpi: Mpi,
    comm: Comm,
    stream: Arc<CudaStream>,
}

impl Nccl {
    /// Builds a communicator of all ranks over `device`, which no other rank may use: one by
    /// [`local_rank`](Collective::local_rank), or the only one that the launcher lets this rank see.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] when NCCL refuses. `mpi` is gone then, and the job with it, so the message has been handed to
    /// [`Host::say`](crate::Host::say) before. A machine without NCCL's library panics, which ends the job too.
    pub fn over(mpi: Mpi, device: &CudaDevice) -> Result<Nccl> {
        let stream = device.cuda_stream();
        match communicator(&mpi, &stream) {
            Ok(comm) => Ok(Nccl { mpi, comm, stream }),
            Err(error) => {
                mpi.say(&error.to_string());
                Err(error)
            }
        }
    }

    /// Sends what `queue` puts into NCCL's group on its way, from a copy of `send` on the device, and brings
    /// `received` back.
    fn staged(&self, send: &[f32], received: &mut [f32], queue: &Queue<'_>) -> Result<()> {
        let rank = self.mpi.rank();
        let driver = |error| refused_by_driver(rank, error);
        let from = self.stream.clone_htod(send).map_err(driver)?;
        let mut to = self.stream.alloc_zeros::<f32>(received.len()).map_err(driver)?;
        queue(&from, &mut to).map_err(|error| refused(rank, error))?;
        self.stream.memcpy_dtoh(&to, received).map_err(driver)?;
        self.stream.synchronize().map_err(driver)
    }
}

type OnDevice = candle_core::cuda::cudarc::driver::CudaSlice<f32>;
type Queue<'a> = dyn Fn(&OnDevice, &mut OnDevice) -> std::result::Result<(), NcclError> + 'a;

/// Has rank 0 make the name of the communicator, and all ranks join it.
fn communicator(mpi: &Mpi, stream: &Arc<CudaStream>) -> Result<Comm> {
    let rank = mpi.rank();
    let mut name = Vec::new();
    if rank == 0 {
        let id = Id::new().map_err(|error| refused(rank, error))?;
        name = id.internal().iter().map(|&byte| byte.to_ne_bytes()[0]).collect();
    }
    mpi.broadcast_bytes(0, &mut name)?;
    let mut internal = [0; 128];
    for (to, byte) in internal.iter_mut().zip(name) {
        *to = c_char::from_ne_bytes([byte]);
    }
    let _inside = mpi.watch().enter("ncclCommInitRank");
    Comm::from_rank(stream.clone(), rank, mpi.world(), Id::uninit(internal)).map_err(|error| refused(rank, error))
}

fn refused(rank: usize, NcclError(code): NcclError) -> Error {
    Error::Call { call: "NCCL", rank, code: code as c_int, message: format!("{code:?}") }
}

fn refused_by_driver(rank: usize, error: DriverError) -> Error {
    Error::Call { call: "CUDA", rank, code: error.0 as c_int, message: error.to_string() }
}

impl Wire for Nccl {
    fn place(&self) -> Place {
        Place { engine: "nccl", ..self.mpi.place() }
    }

    fn watch(&self) -> &Watch {
        self.mpi.watch()
    }

    fn gather_words(&self, own: &[u64], all: &mut [u64]) -> Result<()> {
        self.mpi.gather_words(own, all)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        self.mpi.broadcast(root, bytes)
    }

    fn exchange(&self, send: &[f32], received: &mut [f32]) -> Result<()> {
        let part = send.len() / self.mpi.world();
        self.staged(send, received, &|from, to| {
            group_start()?;
            for (peer, start) in (0..).zip((0..from.len()).step_by(part)) {
                self.comm.send(&from.slice(start..start + part), peer)?;
                self.comm.recv(&mut to.slice_mut(start..start + part), peer)?;
            }
            group_end().map(drop)
        })
    }

    fn gather_floats(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        self.staged(own, all, &|from, to| self.comm.all_gather(from, to).map(drop))
    }

    fn close(self) -> Result<()> {
        let Nccl { mpi, comm, stream } = self;
        // Dropping the communicator aborts what is still under way.
        stream.synchronize().map_err(|error| refused_by_driver(mpi.rank(), error))?;
        drop(comm);
        mpi.close()
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl").field("mpi", &self.mpi).finish_non_exhaustive()
    }
}
