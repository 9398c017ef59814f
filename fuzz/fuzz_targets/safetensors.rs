//! A file of weights: the header and what it says of the tensors.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::safetensors(bytes));
