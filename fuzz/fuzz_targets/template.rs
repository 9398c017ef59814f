//! Chat templates and plain ones.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::template(bytes));
