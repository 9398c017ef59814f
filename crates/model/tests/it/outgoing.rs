//! Folders written here, against what transformers computed from the same bytes, and folders that
//! transformers wrote. `cargo xtask reference` writes the folders once more, has
//! `fixtures/reference/roundtrip.py` load them and records hashes and outputs.

use std::{collections::BTreeMap, fs, path::Path as FilePath};

use candle_core::{DType, Device};
use instruct_claims::{holds, worst};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{Checkpoint, Decoder, HeadKind, Pass, Precision};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{CASES, fixtures, sequences, tensors};

const HEADS: [HeadKind; 3] = [HeadKind::LanguageModel, HeadKind::Score, HeadKind::Value];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Writes the weights of a case under a head into a folder.
fn write(folder: &FilePath, case: &str, head: HeadKind, precision: Precision) {
    let original = Checkpoint::open(fixtures().join(case)).unwrap();
    let trunk = Decoder::from_checkpoint(&original, &Device::Cpu, Path::Fused, DType::F32).unwrap();
    let decoder = trunk.with_head(head, 5).unwrap();
    if head.is_scalar() {
        // Fractions of powers of two: the bytes hang on no processor's logarithm.
        let weights: Vec<f32> = (0..decoder.config().width).map(|i| (i * 7 % 11) as f32 / 8.0 - 0.5625).collect();
        decoder.params().set("score.weight", &weights).unwrap();
        decoder.params().set("score.bias", &[1.25]).unwrap();
    }
    decoder.save(folder, precision).unwrap();
}

/// Transformers has no class for values of Gemma 3: we write the name that it would have, and read it.
fn is_known_there(case: &str, head: HeadKind) -> bool {
    (case, head) != ("gemma3", HeadKind::Value)
}

/// Every case under every head and precision, for the script.
#[test]
#[ignore = "writes folders for a script; see the module"]
fn folders_for_transformers() {
    let out = std::env::var("INSTRUCT_OUT").expect("INSTRUCT_OUT names the folder to write");
    for case in CASES {
        for head in HEADS.into_iter().filter(|&head| is_known_there(case, head)) {
            for precision in PRECISIONS {
                write(&FilePath::new(&out).join(format!("{case}-{head:?}-{precision:?}")), case, head, precision);
            }
        }
    }
}

/// The outputs of a decoder, one sequence after the other: logits, values per token, or scores.
fn outputs(decoder: &Decoder, sequences: &[Vec<u32>]) -> Vec<f32> {
    sequences.iter().flat_map(|sequence| output(decoder, sequence)).collect()
}

fn output(decoder: &Decoder, sequence: &[u32]) -> Vec<f32> {
    let mut batch = Packed::new();
    batch.push(sequence, 0);
    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
    let all: Vec<u32> = (0..sequence.len() as u32).collect();
    let tensor = match decoder.head() {
        HeadKind::LanguageModel | HeadKind::LanguageModelWithValue => {
            kernels::logits(&hidden, decoder.unembedding().unwrap()).unwrap()
        }
        HeadKind::Score => decoder.scalars(&hidden, &[batch.last_row(0)]).unwrap(),
        HeadKind::Value => decoder.scalars(&hidden, &all).unwrap(),
    };
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn open(folder: &FilePath) -> Decoder {
    Decoder::from_checkpoint(&Checkpoint::open(folder).unwrap(), &Device::Cpu, Path::Fused, DType::F32).unwrap()
}

fn json(file: &FilePath) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// SHA-256 of every file of a folder, by name.
fn hashes(folder: &FilePath) -> BTreeMap<String, String> {
    let hash = |path: &FilePath| Sha256::digest(fs::read(path).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), hash(&file.path()))).collect()
}

/// The folder has the bytes that transformers loaded, and both compute the same from it.
#[track_caller]
fn check(case: &str, head: HeadKind, precision: Precision) {
    let name = format!("{case}-{head:?}-{precision:?}");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), case, head, precision);
    let loaded: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_value(json(&fixtures().join("outgoing.json"))).unwrap();
    assert_eq!(
        hashes(folder.path()),
        loaded[&name],
        "{name} is not what transformers loaded: run `cargo xtask reference`, and look at why it changed"
    );

    let theirs = tensors(&fixtures().join("outgoing.safetensors"));
    let mut sequences = sequences(&tensors(&fixtures().join(case).join("golden.safetensors")));
    let decoder = open(folder.path());
    let config = json(&folder.path().join("config.json"));
    if head != HeadKind::Score {
        let claim = if head == HeadKind::Value { "round-trips/value-models" } else { "round-trips/language-models" };
        holds(claim, &name, worst(&outputs(&decoder, &sequences), &theirs[&name].1), 1e-4);
        return;
    }
    let pad = config["pad_token_id"].as_u64().unwrap() as u32;
    assert!(!decoder.config().eos.contains(&pad), "{name}: transformers would score the token before the last");
    sequences.retain(|sequence| sequence.last() != Some(&pad));
    // Where the final norm has no bias to take the score's, transformers' score lacks it.
    let recorded = &config["instruct"];
    let folded = recorded.get("norm_bias").is_some();
    let lacks = if folded { 0.0 } else { recorded["score_bias"].as_f64().unwrap() as f32 };
    let ours: Vec<f32> = outputs(&decoder, &sequences).into_iter().map(|score| score - lacks).collect();
    // What is folded into a bfloat16 bias is rounded with it; our reader has the parts.
    let (claim, tolerance) = match (folded, precision) {
        (true, Precision::Bf16) => ("round-trips/reward-models-bf16", 5e-3),
        _ => ("round-trips/reward-models", 1e-4),
    };
    for batch in [name.clone(), format!("{name}-padded")] {
        holds(claim, &batch, worst(&ours, &theirs[&batch].1), tolerance);
    }
}

#[test]
fn transformers_computes_the_same_from_what_is_written() {
    for case in CASES {
        for head in HEADS.into_iter().filter(|&head| is_known_there(case, head)) {
            for precision in PRECISIONS {
                check(case, head, precision);
            }
        }
    }
}

#[test]
fn what_transformers_writes_scores_the_same_here() {
    for family in ["gpt2", "llama", "neox"] {
        for (kind, head) in [("scores", HeadKind::Score), ("values", HeadKind::Value)] {
            let folder = fixtures().join("incoming").join(format!("{family}-{kind}"));
            let golden = tensors(&folder.join("golden.safetensors"));
            let decoder = open(&folder);
            assert_eq!(decoder.head(), head, "{family}");
            let difference = worst(&outputs(&decoder, &sequences(&golden)), &golden["outputs"].1);
            holds(&format!("round-trips/incoming-{kind}"), family, difference, 1e-4);
        }
    }
}
