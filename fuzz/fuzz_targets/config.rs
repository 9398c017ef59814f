//! The configuration of a run with its settings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::config(bytes));
