//! The files of a tokenizer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::tokenizer(bytes));
