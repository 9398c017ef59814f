//! A GGUF file: metadata, tensors, tokenizer, chat template.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| instruct_fuzz::entries::gguf(bytes));
