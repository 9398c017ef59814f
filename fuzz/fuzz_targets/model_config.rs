//! config.json and generation_config.json of a model folder.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::model_config(bytes));
