//! Files of records: JSONL, JSON arrays, text, each plain or compressed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::records(bytes));
