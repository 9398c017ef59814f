//! Freed memory is for the next step, not for the system.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// Tells mimalloc, for a program whose global allocator it is, to keep what is freed. To be called
/// first thing in `main`.
///
/// By default it gives memory back after some milliseconds, and every step of training then waits for the
/// system to clear the same pages anew. `MIMALLOC_PURGE_DELAY` in the environment has precedence.
pub fn keep_freed_memory() {
    /// Number of the option in mimalloc 2 and 3, which the bindings leave out.
    const PURGE_DELAY: mi_option_t = 15;
    const NEVER: std::ffi::c_long = -1;
    // SAFETY: sets a number of the allocator, which it may do at any time and on any thread.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set_default(PURGE_DELAY, NEVER)
    };
}
