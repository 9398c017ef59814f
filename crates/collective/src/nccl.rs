//! NCCL as the data plane between GPUs, under MPI's control.

use crate::{
    Mpi,
    error::{Error, Result},
    ranks::Wire,
    staged::{Lanes, Staged, joined},
};
use candle_core::{
    CudaDevice,
    cuda::cudarc::{
        driver::{CudaSlice, CudaStream, DriverError},
        nccl::{
            result::NcclError,
            safe::{Comm, Id, group_end, group_start},
        },
    },
};
use std::{
    ffi::{c_char, c_int},
    fmt,
    ops::Range,
    sync::Arc,
};

/// The ranks of an MPI job whose flat numbers travel by NCCL, each over a GPU of its own.
///
/// **Type-checked; no GPU has run it.** That calls come in order, that ranks join under one name and that an error on
/// one ends all is tested with a stand-in for NCCL.
///
/// Master weights and gradients live on the host, so every exchange copies a bucket to the device, has NCCL exchange it
/// there, and copies it back. The sum is the host's tree, as with every engine, so the bits are the same ones. What this
/// buys is NCCL's network between machines; a gradient that never leaves the device would need a kernel that adds in the
/// same tree and a trait over device buffers, and neither is here.
pub type Nccl = Staged<Mpi, Gpu>;

impl Nccl {
    /// Builds a communicator of all ranks over `device`, which no other rank may use: one by
    /// [`local_rank`](crate::Collective::local_rank), or the only one that the launcher lets this rank see.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] when NCCL refuses. `mpi` is gone then, and the job with it, so the message has been handed to
    /// [`Host::say`](crate::Host::say) before. Where NCCL's library is missing the program does not start.
    pub fn over(mpi: Mpi, device: &CudaDevice) -> Result<Nccl> {
        let rank = mpi.place().rank;
        let gpu = joined(
            &mpi,
            || Ok(Id::new().map_err(|error| refused(rank, error))?.internal().map(|byte| byte.to_ne_bytes()[0])),
            |name, place| {
                let (id, stream) = (Id::uninit(name.map(|byte| c_char::from_ne_bytes([byte]))), device.cuda_stream());
                let comm = Comm::from_rank(stream.clone(), place.rank, place.world, id);
                Ok(Gpu { rank, comm: comm.map_err(|error| refused(rank, error))?, stream })
            },
        );
        match gpu {
            Ok(lanes) => Ok(Staged { control: mpi, lanes }),
            Err(error) => {
                mpi.last_words(&error.to_string());
                Err(error)
            }
        }
    }
}

/// A rank's GPU, with its place among those of all ranks.
pub struct Gpu {
    rank: usize,
    comm: Comm,
    stream: Arc<CudaStream>,
}

impl Gpu {
    fn nccl<T>(&self, outcome: Result<T, NcclError>) -> Result<()> {
        outcome.map(drop).map_err(|error| refused(self.rank, error))
    }

    fn driver<T>(&self, outcome: Result<T, DriverError>) -> Result<T> {
        outcome.map_err(|error| refused_by_driver(self.rank, error))
    }
}

fn refused(rank: usize, NcclError(code): NcclError) -> Error {
    Error::Call { call: "NCCL", rank, code: code as c_int, message: format!("{code:?}") }
}

fn refused_by_driver(rank: usize, error: DriverError) -> Error {
    Error::Call { call: "CUDA", rank, code: error.0 as c_int, message: error.to_string() }
}

impl Lanes for Gpu {
    type Buffer = CudaSlice<f32>;

    fn put(&self, host: &[f32]) -> Result<Self::Buffer> {
        self.driver(self.stream.clone_htod(host))
    }

    fn room(&self, len: usize) -> Result<Self::Buffer> {
        self.driver(self.stream.alloc_zeros(len))
    }

    fn begin(&self) -> Result<()> {
        self.nccl(group_start())
    }

    fn send(&self, from: &Self::Buffer, part: Range<usize>, peer: usize) -> Result<()> {
        self.nccl(self.comm.send(&from.slice(part), peer as i32))
    }

    fn receive(&self, to: &mut Self::Buffer, part: Range<usize>, peer: usize) -> Result<()> {
        self.nccl(self.comm.recv(&mut to.slice_mut(part), peer as i32))
    }

    fn end(&self) -> Result<()> {
        self.nccl(group_end())
    }

    fn gather(&self, own: &Self::Buffer, all: &mut Self::Buffer) -> Result<()> {
        self.nccl(self.comm.all_gather(own, all))
    }

    fn get(&self, from: &Self::Buffer, host: &mut [f32]) -> Result<()> {
        self.driver(self.stream.memcpy_dtoh(from, host))?;
        self.driver(self.stream.synchronize())
    }

    fn close(&self) -> Result<()> {
        // Dropping the communicator afterwards aborts what is still under way.
        self.driver(self.stream.synchronize())
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("rank", &self.rank).finish_non_exhaustive()
    }
}
