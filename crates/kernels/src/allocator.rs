//! Keeps freed memory for the next step instead of giving it back to the system, but for models.

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_set_default, mi_option_t};
use std::ffi::c_long;

/// Number of the option in mimalloc 2 and 3, which the bindings leave out.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: c_long = -1;
const AT_ONCE: c_long = 0;

/// Tells mimalloc, in a program whose global allocator it is, to keep what is freed. Call it first thing in `main`.
///
/// By default it gives memory back after some milliseconds, and every step of training then waits for the
/// system to clear the same pages anew. `MIMALLOC_PURGE_DELAY` in the environment has precedence.
pub fn keep_freed_memory() {
    // SAFETY: this sets an option of the allocator, which any thread may do at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set_default(PURGE_DELAY, NEVER)
    };
}

/// Does `work`, and gives back to the system what it frees: for work that closes or copies models, whose buffers
/// are so large that what comes next does not fit where they were.
pub fn give_freed_memory_back<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: these read and set an option of the allocator, which any thread may do at any time. Other threads
    // that free meanwhile give back more than they need to, which is slower and nothing else.
    #[allow(unsafe_code)]
    let set = |value: c_long| unsafe {
        let before = mi_option_get(PURGE_DELAY);
        mi_option_set(PURGE_DELAY, value);
        before
    };
    let before = set(AT_ONCE);
    let result = work();
    set(before);
    result
}
