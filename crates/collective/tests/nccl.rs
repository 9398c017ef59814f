//! A world of one over NCCL, where a GPU, NCCL's library and MPI are at hand:
//!
//!     cargo test --release --package instruct-collective --features nccl --test nccl
//!
//! Continuous integration checks its types; no machine has run it so far. With several ranks it is to be started by the
//! launcher, a GPU for each.
#![cfg(feature = "nccl")]

use candle_core::CudaDevice;
use instruct_collective::{Clock, Collective, Host, Mpi, Nccl, span, testing::pairwise};
use std::{
    env, thread,
    time::{Duration, Instant},
};

struct Real(Instant);

impl Clock for Real {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

#[test]
fn gpus_give_the_sums_of_the_tree() {
    let host = Host::new(|name| env::var(name).ok(), Real(Instant::now()), |message| eprintln!("{message}"));
    let mpi = Mpi::connect(&host).unwrap();
    let device = CudaDevice::new_with_stream(mpi.local_rank());
    let mut found = vec![0.0; mpi.world()];
    found[mpi.rank()] = if device.is_ok() { 1.0 } else { 2.0 };
    mpi.slots(&mut found).unwrap();
    let (Ok(device), false) = (device, found.contains(&2.0)) else {
        eprintln!("SKIPPED: there is no GPU for each rank");
        return Box::new(mpi).finish().unwrap();
    };
    let ranks = Box::new(Nccl::over(mpi, &device).unwrap());
    assert_eq!(ranks.engine(), "nccl");
    let numbers = |rank: usize, len: usize| (0..len).map(|i| ((i * 37 + rank * 11) as f32).sin()).collect::<Vec<_>>();
    // The last goes through several buckets.
    for len in [1, 5, 9_000, 20_000_000] {
        let mut flat = numbers(ranks.rank(), len);
        ranks.reduce_scatter(&mut flat).unwrap();
        let own = span(len, ranks.rank(), ranks.world());
        flat[..own.start].fill(f32::NAN);
        flat[own.end..].fill(f32::NAN);
        ranks.all_gather(&mut flat).unwrap();
        let all: Vec<_> = (0..ranks.world()).map(|rank| numbers(rank, len)).collect();
        assert!(flat == pairwise(&all), "{len} numbers");
    }
    ranks.finish().unwrap();
}
