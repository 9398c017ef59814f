//! One pool of threads: the operations here run on rayon's, and Candle's own is kept out of their way.

use crate::flush_denormals_everywhere;
use rayon::Yield;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prepares a process for computing. Call it first thing in `main`, before any thread exists.
///
/// Denormals become zero on this thread and on every thread of the global rayon pool
/// ([`flush_denormals_everywhere`]), and Candle's elementwise operations keep to the calling
/// thread, unless `CANDLE_NUM_THREADS` says otherwise. Candle would start a second pool for them,
/// whose threads wait for each other by spinning: in one profile on two busy cores that took 40 % of
/// a training step of a 1 M parameter model.
///
/// Where other threads run already, or the system does not tell, the variable is left alone.
pub fn settle_threads() {
    const KEY: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(KEY).is_none() && is_only_thread() {
        // SAFETY: no other thread exists, so nothing reads the environment meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var(KEY, "1");
        }
    }
    flush_denormals_everywhere();
}

/// Runs `f`, on a thread of a rayon pool, while the other threads of the pool look for work without going to
/// sleep: for a long run of operations that each take hardly longer than waking a thread. A pass through a
/// decoder is such a run: decoding sixteen sequences at a time with a 4 M parameter model was a sixth faster on two
/// threads, its training some percent.
///
/// On a thread outside every pool it only calls `f`.
pub fn kept_awake<R>(f: impl FnOnce() -> R) -> R {
    while_others(f, look_for_work_until)
}

/// Runs `f` while every other thread of the pool runs `others`, which is told when `f` has ended.
fn while_others<R>(f: impl FnOnce() -> R, others: impl Fn(&AtomicBool) + Sync) -> R {
    /// Tells the others when `f` has ended, however it did.
    struct Ended<'a>(&'a AtomicBool);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let Some(caller) = rayon::current_thread_index() else { return f() };
    let (has_ended, others) = (&AtomicBool::new(false), &others);
    rayon::in_place_scope(|scope| {
        // Every thread gets a task of its own that no other can take, the caller too, at which it looks when it
        // waits for others: that one does nothing.
        scope.spawn_broadcast(move |_, context| {
            if context.index() != caller {
                others(has_ended);
            }
        });
        let _ended = Ended(has_ended);
        f()
    })
}

/// Does the pool's work until `has_ended` is set, or until there has been none for a while.
///
/// A thread may come here while it waits for others in the middle of a task, which it cannot continue before it
/// returns from here. If `f` needed that task, directly or through another thread that does the same, all threads would
/// wait for each other: so no thread waits here for long.
fn look_for_work_until(has_ended: &AtomicBool) {
    /// Looks after which other processes get a chance.
    const PATIENCE: u32 = 256;
    /// Looks in vain after which to return. They take some milliseconds, longer than what `f` does alone between two
    /// operations.
    const LONGEST: u32 = 1 << 14;
    let mut looks = 0;
    while !has_ended.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            looks = 0;
            continue;
        }
        looks += 1;
        if looks == LONGEST {
            return;
        }
        if looks % PATIENCE == 0 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Whether the system says that this process has one thread.
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn everybody_works_and_everybody_is_released() {
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum = |n: u32| (0..n).into_par_iter().with_max_len(1).map(|i| u64::from(i * i)).sum::<u64>();
            let sums = || (0..200).map(sum).sum::<u64>();
            let want: u64 = (0..200u32).flat_map(|n| (0..n).map(|i| u64::from(i * i))).sum();
            assert_eq!(pool.install(|| kept_awake(sums)), want);
            // Several at a time, one inside another, each waiting for the other's thread.
            let both = || rayon::join(|| kept_awake(sums), || kept_awake(|| kept_awake(sums)));
            for _ in 0..50 {
                assert_eq!(pool.install(both), (want, want));
                assert_eq!(pool.install(|| kept_awake(both)), (want, want));
            }
            let panics = || -> u64 { kept_awake(|| panic!("in between")) };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(panics))).is_err());
            assert_eq!(pool.install(sums), want);
        }
        assert_eq!(kept_awake(|| 3), 3);
    }

    #[test]
    fn every_other_thread_gets_a_task() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (here, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let others = |has_ended: &AtomicBool| {
            here.fetch_add(1, Ordering::SeqCst);
            while !has_ended.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            told.fetch_add(1, Ordering::SeqCst);
        };
        // Ends only if both come.
        let wait = || {
            while here.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        };
        pool.install(|| while_others(wait, others));
        assert_eq!((here.into_inner(), told.into_inner()), (2, 2));
    }

    #[test]
    fn nobody_waits_for_long_without_work() {
        // Nothing ever sets the flag.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| look_for_work_until(&AtomicBool::new(false)));
        // Nor does it wait when it has.
        pool.install(|| look_for_work_until(&AtomicBool::new(true)));
    }
}
