//! Keeps freed memory for the next step instead of giving it back to the system.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// Tells mimalloc, in a program whose global allocator it is, to keep what is freed. Call it first thing in `main`.
///
/// By default it gives memory back after some milliseconds, and every step of training then waits for the
/// system to clear the same pages anew. `MIMALLOC_PURGE_DELAY` in the environment has precedence.
pub fn keep_freed_memory() {
    /// Number of the option in mimalloc 2 and 3, which the bindings leave out.
    const PURGE_DELAY: mi_option_t = 15;
    const NEVER: std::ffi::c_long = -1;
    // SAFETY: this sets an option of the allocator, which any thread may do at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set_default(PURGE_DELAY, NEVER)
    };
}
