//! Logits, loss and every gradient against transformers, on both ways through the operations.

use std::{collections::BTreeMap, path::Path as FilePath};

use candle_core::{DType, Device};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{Checkpoint, Decoder, Pass};

use crate::{fixtures, tensors};

type Golden = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// How the golden sequences share the batch. Every layout must give the same numbers.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Every sequence a segment of its own.
    Whole,
    /// Each sequence of more than 4 tokens split into a prefix of 4 and its continuation.
    Continued,
}

/// The batch, and the flat row of every golden row.
fn pack(golden: &Golden, weight: f32, layout: Layout) -> (Packed, Vec<u32>) {
    let ids: Vec<u32> = golden["input_ids"].1.iter().map(|&id| id as u32).collect();
    let (mut batch, mut start) = (Packed::new(), 0);
    for (example, &length) in golden["lengths"].1.iter().enumerate() {
        let sequence = &ids[start..start + length as usize];
        start += sequence.len();
        let cut = match layout {
            Layout::Continued if sequence.len() > 4 => 4,
            _ => sequence.len(),
        };
        let prefix = batch.segments().len();
        batch.push_text(&sequence[..cut], example as u64, weight);
        if cut < sequence.len() {
            batch.push_completion(prefix, &sequence[cut..], example as u64, weight);
        }
    }
    (batch, (0..ids.len() as u32).collect())
}

/// The golden gradients under our names, through the very reader of checkpoints.
fn gradients(case: &FilePath, golden: &Golden) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = golden
        .iter()
        .filter_map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            name.strip_prefix("grad.").map(|name| (name, shape.clone(), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(folder.path()).unwrap().tensors().unwrap()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

#[track_caller]
fn check(case: &str) {
    let folder = fixtures().join(case);
    let golden = tensors(&folder.join("golden.safetensors"));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let wanted = gradients(&folder, &golden);
    for path in [Path::Composed, Path::Fused] {
        for layout in [Layout::Whole, Layout::Continued] {
            let decoder = Decoder::from_checkpoint(&checkpoint, &Device::Cpu, path, DType::F32).unwrap();
            compare(&decoder, &golden, &wanted, layout, &format!("{case} {path:?} {layout:?}"));
            if path == Path::Fused {
                decode(&decoder, &golden, layout, case);
            }
        }
    }
}

/// Decoding token by token through the cache gives the bits of the forward over whole sequences.
#[track_caller]
fn decode(decoder: &Decoder, golden: &Golden, layout: Layout, case: &str) {
    let (batch, _) = pack(golden, 0.0, layout);
    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap().to_vec2::<f32>().unwrap();
    let slots = golden["lengths"].1.len();
    let mut cache = decoder.cache(slots, 16).unwrap();
    let mut slot = 0;
    for (row, (&id, &position)) in batch.ids().iter().zip(batch.positions()).enumerate() {
        slot += usize::from(row > 0 && position == 0);
        let at = [kernels::CacheRow { slot, position: position as usize }];
        let decoded = decoder.extend(&[id], &at, &mut cache).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(decoded[0], hidden[row], "{case} {layout:?}: row {row}");
    }
}

#[track_caller]
fn compare(decoder: &Decoder, golden: &Golden, wanted: &BTreeMap<String, Vec<f32>>, layout: Layout, label: &str) {
    let weight = 1.0 / golden["logprobs"].1.len() as f32;
    let (batch, rows) = pack(golden, weight, layout);
    let unembedding = decoder.unembedding().unwrap();

    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
    let logits = kernels::logits(&kernels::gather_rows(&hidden, &rows).unwrap(), unembedding).unwrap();
    let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let worst = logits.iter().zip(&golden["logits"].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(logits.len() == golden["logits"].1.len() && worst < 1e-4, "{label}: logits differ by {worst}");

    let column = |read: fn(&instruct_data::Prediction) -> u32| batch.predictions().iter().map(read).collect::<Vec<_>>();
    let (rows, targets) = (column(|p| p.row), column(|p| p.target));
    let logprobs = kernels::token_logprob(&hidden, unembedding, &rows, &targets, 1.0).unwrap();
    let logprobs = logprobs.to_vec2::<f32>().unwrap();
    let worst = logprobs.iter().zip(&golden["logprobs"].1).map(|(a, b)| (a[0] - b).abs()).fold(0.0, f32::max);
    assert!(logprobs.len() == rows.len() && worst < 1e-4, "{label}: log-probabilities differ by {worst}");

    let hidden = decoder.hidden(&batch, Pass::Train).unwrap();
    let weights: Vec<f32> = batch.predictions().iter().map(|p| p.weight).collect();
    let loss = kernels::token_nll(&hidden, unembedding, &rows, &targets, &weights).unwrap();
    let off = (loss.to_scalar::<f32>().unwrap() - golden["loss"].1[0]).abs();
    assert!(off < 1e-5, "{label}: the loss differs by {off}");

    decoder.params().backward(&loss).unwrap();
    for (name, wanted) in wanted {
        let found = decoder.params().grad(name).unwrap();
        let difference = norm(found.iter().zip(wanted).map(|(a, b)| a - b));
        let size = norm(wanted.iter().copied());
        // The floor serves parameters that the loss cannot see: a key bias without rotation.
        assert!(difference < 1e-3 * size + 1e-6, "{label}: gradient of {name} is off by {difference} of {size}");
    }
}

#[test]
fn gpt2_tied() {
    check("gpt2-tied");
}

#[test]
fn gpt2_untied_with_exact_gelu() {
    check("gpt2-untied");
}

#[test]
fn llama_untied_grouped_queries_from_shards() {
    check("llama-untied");
}

#[test]
fn llama3_tied_stretched_rotation() {
    check("llama3-tied");
}

#[test]
fn mistral_window_shorter_than_the_sequences() {
    check("mistral");
}

#[test]
fn qwen2_tied_qkv_bias() {
    check("qwen2-tied");
}

#[test]
fn qwen3_qk_norm() {
    check("qwen3");
}
