//! One pool of threads: the operations here run on rayon's, and Candle's own is kept out of their way.

use crate::flush_denormals_everywhere;

/// Prepares a process for computing. To be called first thing in `main`, before any thread exists.
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

/// Whether the system says that this process has one thread.
fn is_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}
