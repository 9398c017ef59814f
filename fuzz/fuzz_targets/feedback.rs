//! What people say: bodies of requests, and the files that keep it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::feedback(bytes));
