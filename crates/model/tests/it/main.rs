//! What transformers, minGPT, llama2.c and llama.cpp say, against this crate.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests; clippy sees only what #[test] marks"
)]

mod checkpoint;
mod gguf;
mod outgoing;
mod reference;
mod shared;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The golden values' folder.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference")
}

/// The cases in it.
const CASES: [&str; 7] = ["gpt2-tied", "gpt2-untied", "llama-untied", "llama3-tied", "mistral", "qwen2-tied", "qwen3"];

/// A file of material that is not in the repository, or `None` with a note.
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var("INSTRUCT_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(root).join(path);
    if file.exists() {
        return Some(file);
    }
    println!("skipped: {} is absent; INSTRUCT_SHARED names the folder that holds it", file.display());
    None
}

/// All tensors of one safetensors file, F32 and I64 alike as `f32`, with their shapes.
fn tensors(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: safetensors::tensor::TensorView| match view.dtype() {
        safetensors::Dtype::I64 => {
            view.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect::<Vec<f32>>()
        }
        safetensors::Dtype::BF16 => {
            view.data().as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
        }
        _ => floats(view.data()),
    };
    parsed.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), read(view)))).collect()
}

/// Little-endian `f32`.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// Copies the files of a folder.
fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
