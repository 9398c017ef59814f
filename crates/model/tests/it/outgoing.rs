//! Folders for `fixtures/reference/roundtrip.py`, which loads them in transformers and compares.
//! Run by hand: `INSTRUCT_OUT=folder cargo test -p instruct-model -- --ignored folders_for_transformers`.

use std::{fs, path::Path as FilePath};

use candle_core::{DType, Device};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{Checkpoint, Decoder, HeadKind, Pass, Precision};
use serde_json::json;

use crate::{CASES, fixtures, tensors};

/// Every case under every head, with what this crate computes from the weights as they read back.
#[test]
#[ignore = "writes folders for a script; see the module"]
fn folders_for_transformers() {
    let out = std::env::var("INSTRUCT_OUT").expect("INSTRUCT_OUT names the folder to write");
    for case in CASES {
        let original = Checkpoint::open(fixtures().join(case)).unwrap();
        let trunk = Decoder::from_checkpoint(&original, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        for head in [HeadKind::LanguageModel, HeadKind::Score, HeadKind::Value] {
            let decoder = trunk.with_head(head, 5).unwrap();
            if head != HeadKind::LanguageModel {
                decoder.params().set("score.bias", &[1.25]).unwrap();
            }
            for precision in [Precision::F32, Precision::Bf16] {
                let folder = FilePath::new(&out).join(format!("{case}-{head:?}-{precision:?}"));
                decoder.save(&folder, precision).unwrap();
                let again = Checkpoint::open(&folder).unwrap();
                let again = Decoder::from_checkpoint(&again, &Device::Cpu, Path::Fused, DType::F32).unwrap();
                fs::write(folder.join("expected.json"), expected(&again, case).to_string()).unwrap();
            }
        }
    }
}

/// Per sequence: its ids, and the logits, values per row, or one score.
fn expected(decoder: &Decoder, case: &str) -> serde_json::Value {
    let golden = tensors(&fixtures().join(case).join("golden.safetensors"));
    let mut ids = golden["input_ids"].1.iter().map(|&id| id as u32);
    let sequences: Vec<Vec<u32>> =
        golden["lengths"].1.iter().map(|&length| ids.by_ref().take(length as usize).collect()).collect();
    let outputs: Vec<Vec<f32>> = sequences.iter().map(|sequence| output(decoder, sequence)).collect();
    json!({ "sequences": sequences, "outputs": outputs })
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
