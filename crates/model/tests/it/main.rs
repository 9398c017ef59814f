//! What transformers, minGPT, llama2.c and llama.cpp say, and what slow readings of the
//! definitions say, against this crate.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests; clippy sees only what #[test] marks"
)]

mod checkpoint;
mod decoder;
mod engine;
mod generation;
mod gguf;
mod outgoing;
mod reference;
mod shared;

use candle_core::{DType, Device};
use instruct_model::{Activation, Config, Decoder, Family, HeadKind, Norm, Position, Rotary, Scaling};
use instruct_random::Source;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A description with the padding of another: what is written always has one.
fn padded_as(config: &Config, other: &Config) -> Config {
    Config { pad: other.pad, ..config.clone() }
}

/// The golden values' folder.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference")
}

/// The cases in it.
const CASES: [&str; 17] = [
    "gpt2-tied",
    "gpt2-untied",
    "gpt2-odd-heads",
    "llama-untied",
    "llama3-tied",
    "llama-1-to-1",
    "llama-8-to-1",
    "mistral",
    "qwen2-tied",
    "qwen3",
    "neox-parallel",
    "neox-sequential",
    "llama-yarn",
    "smollm3",
    "qwen2-mixed",
    "gemma2",
    "gemma3",
];

/// Tensors by name, with their shapes.
type Golden = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The sequences of token ids that stand one after the other in `ids`.
fn split(golden: &Golden, ids: &str, lengths: &str) -> Vec<Vec<u32>> {
    let mut ids = golden[ids].1.iter().map(|&id| id as u32);
    golden[lengths].1.iter().map(|&length| ids.by_ref().take(length as usize).collect()).collect()
}

/// The golden sequences.
fn sequences(golden: &Golden) -> Vec<Vec<u32>> {
    split(golden, "input_ids", "lengths")
}

/// Number of places at which two texts differ, one of them having ended included.
fn other_tokens(found: &[u32], wanted: &[u32]) -> usize {
    let differ = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
    differ + found.len().abs_diff(wanted.len())
}

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

/// The file that the script `get-smollm2.sh` fetches, or `None` with a note.
fn smollm2() -> Option<PathBuf> {
    let cache = std::env::var("XDG_CACHE_HOME").or(std::env::var("HOME").map(|home| format!("{home}/.cache")));
    let file = PathBuf::from(cache.unwrap_or_default()).join("instruct/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if file.exists() {
        return Some(file);
    }
    println!("skipped: SmolLM2 has not been fetched");
    None
}

/// All tensors of one safetensors file, F32 and I64 alike as `f32`, with their shapes.
fn tensors(file: &Path) -> Golden {
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

/// All elements of a tensor of any float dtype.
fn numbers(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
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

/// Small descriptions that between them have every part a decoder can have, odd sizes throughout.
fn families() -> [Config; 6] {
    let gpt2 = Config::tiny_gpt2(53, 18, 2, 3, 32);
    let rotary = |dim| Position::Rotary(Rotary { theta: 1e4, dim, scaling: Scaling::None });
    let mistral = Config {
        family: Family::Mistral,
        kv_heads: 2,
        heads: 4,
        head_dim: 6,
        inner: 22,
        norm: Norm::Rms { eps: 1e-5 },
        position: rotary(6),
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        tied: false,
        sliding_window: Some(5),
        ..gpt2.clone()
    };
    let qwen = Config {
        family: Family::Qwen3,
        kv_heads: 1,
        position: rotary(4),
        qkv_bias: true,
        tied: true,
        qk_norm: true,
        sliding_window: None,
        ..mistral.clone()
    };
    let neox = Config {
        family: Family::GptNeox,
        position: rotary(4),
        activation: Activation::GeluErf,
        parallel_residual: true,
        tied: false,
        ..gpt2.clone()
    };
    let gemma = Config {
        family: Family::Gemma2,
        embed_scale: 18f64.sqrt(),
        norm: Norm::RmsOnePlus { eps: 1e-5 },
        post_norms: true,
        activation: Activation::GeGlu,
        tied: true,
        query_scalar: Some(5.0),
        attention_softcap: Some(1.5),
        final_softcap: Some(4.0),
        full_attention: [1].into(),
        ..mistral.clone()
    };
    let mixed = Config {
        family: Family::Gemma3,
        layers: 3,
        tied: false,
        qk_norm: true,
        query_scalar: None,
        attention_softcap: None,
        final_softcap: None,
        unrotated: [2].into(),
        local_rotary: Some(Rotary { theta: 50.0, dim: 6, scaling: Scaling::Linear { factor: 2.0 } }),
        ..gemma.clone()
    };
    [gpt2, mistral, qwen, neox, gemma, mixed]
}

/// A decoder in which every parameter matters: gains around 1, everything else around 0.
fn random(config: &Config, head: HeadKind, path: instruct_kernels::Path) -> Decoder {
    random_in(config, head, path, DType::F32)
}

fn random_in(config: &Config, head: HeadKind, path: instruct_kernels::Path, compute: DType) -> Decoder {
    let decoder = Decoder::zeros(config.clone(), head, &Device::Cpu, path, compute).unwrap();
    for slot in decoder.params().slots() {
        let mut draws = Source::new(1, &slot.name).at([]);
        let adds_one = matches!(config.norm, Norm::RmsOnePlus { .. });
        let centre = if slot.name.ends_with("norm.weight") && !adds_one { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..slot.len).map(|_| centre + 0.3 * draws.normal()).collect();
        decoder.params().set(&slot.name, &values).unwrap();
    }
    decoder
}

/// `n` token ids below 53, different for every `seed`.
fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut draws = Source::new(seed, "ids").at([]);
    (0..n).map(|_| draws.below(53) as u32).collect()
}
