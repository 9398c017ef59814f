//! Hidden states, logits, loss, every gradient and greedy text against transformers, on both ways
//! through the operations.

use std::{collections::BTreeMap, path::Path as FilePath};

use candle_core::{DType, Device};
use instruct_claims::{holds, relative, worst};
use instruct_data::Packed;
use instruct_kernels::{self as kernels, Path};
use instruct_model::{Checkpoint, Decoder, Pass, Request, Sampling, generate};
use instruct_random::Source;

use crate::{Golden, fixtures, sequences, tensors};

/// How the golden sequences share the batch. Every layout must give the same numbers.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Every sequence a segment of its own.
    Whole,
    /// Each sequence of more than 4 tokens split into a prefix of 4 and its continuation.
    Continued,
    /// The last two sequences, which begin with the same 4 tokens, as two completions of one prefix.
    Shared,
}

/// Tokens of a prefix.
const PREFIX: usize = 4;

/// The batch, and per sequence the flat row of each of its tokens. Of a shared prefix there is one
/// copy, whose predictions weigh as much as those of the two it stands for.
fn pack(sequences: &[Vec<u32>], weight: f32, layout: Layout) -> (Packed, Vec<Vec<u32>>) {
    let (mut batch, mut rows) = (Packed::new(), Vec::<Vec<u32>>::new());
    let last = sequences.len() - 1;
    let (mut prefix, mut prefix_rows) = (0, Vec::new());
    for (example, sequence) in sequences.iter().enumerate() {
        let (cut, copies) = match layout {
            Layout::Continued => (sequence.len().min(PREFIX), 1.0),
            Layout::Shared if example + 1 >= last => (PREFIX, 2.0),
            _ => (sequence.len(), 1.0),
        };
        let new_rows = |batch: &Packed, n| (batch.len() - n..batch.len()).map(|row| row as u32);
        if !(matches!(layout, Layout::Shared) && example == last) {
            prefix = batch.segments().len();
            batch.push_text(&sequence[..cut], example as u64, copies * weight);
            prefix_rows = new_rows(&batch, cut).collect();
        }
        let mut own = prefix_rows.clone();
        if cut < sequence.len() {
            batch.push_completion(prefix, &sequence[cut..], example as u64, weight);
            own.extend(new_rows(&batch, sequence.len() - cut));
        }
        rows.push(own);
    }
    (batch, rows)
}

/// The golden gradients under our names, through the very reader of checkpoints.
fn gradients(case: &FilePath, golden: &Golden) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = golden
        .iter()
        .filter_map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let name = name.strip_prefix("grad.")?;
            // Transformers calls it so in memory alone.
            let neox = name == "lm_head.weight" && golden.contains_key("grad.gpt_neox.embed_in.weight");
            Some((if neox { "embed_out.weight" } else { name }, shape.clone(), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(folder.path()).unwrap().tensors().unwrap()
}

#[track_caller]
fn check(case: &str) {
    let folder = fixtures().join(case);
    let golden = tensors(&folder.join("golden.safetensors"));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let wanted = gradients(&folder, &golden);
    // In f64 every operation is composed; in f32 those without parameters are fused on either path.
    for (path, dtype) in [(Path::Composed, DType::F64), (Path::Composed, DType::F32), (Path::Fused, DType::F32)] {
        let load = || Decoder::from_checkpoint(&checkpoint, &Device::Cpu, path, dtype).unwrap();
        for layout in [Layout::Whole, Layout::Continued, Layout::Shared] {
            let (decoder, label) = (load(), format!("{case} {path:?} {dtype:?} {layout:?}"));
            compare_outputs(&decoder, &golden, layout, &label);
            compare_gradients(&decoder, &golden, &wanted, layout, &label);
            if path == Path::Fused {
                decode(&decoder, &golden, layout, &label);
            }
        }
        continue_greedily(&load(), &golden, &format!("{case} {path:?} {dtype:?}"));
    }
    compare_bf16(&checkpoint, &golden, &wanted, case);
}

/// Products of bf16 factors against the reference in `f32`: how far rounding carries through these
/// layers, and decoding, which still gives the bits of the forward over whole sequences. Weights held in bf16
/// make the very same products where the others round them each time.
#[track_caller]
fn compare_bf16(checkpoint: &Checkpoint, golden: &Golden, wanted: &BTreeMap<String, Vec<f32>>, case: &str) {
    let decoder = Decoder::from_checkpoint(checkpoint, &Device::Cpu, Path::Fused, DType::BF16).unwrap();
    let label = format!("{case}, bf16");
    let (batch, rows) = pack(&sequences(golden), 1.0 / golden["logprobs"].1.len() as f32, Layout::Shared);
    let targets: Vec<u32> = batch.predictions().iter().map(|p| p.target).collect();
    let weights: Vec<f32> = batch.predictions().iter().map(|p| p.weight).collect();
    let places: Vec<u32> = (0..targets.len() as u32).collect();
    let hidden = decoder.predicting(&batch, Pass::Train).unwrap();
    let loss = kernels::token_nll(&hidden, decoder.unembedding().unwrap(), &places, &targets, &weights).unwrap();
    holds("networks/bf16-loss", &label, worst(&crate::numbers(&loss), &golden["loss"].1), 1e-2);
    decoder.params().backward(&loss).unwrap();
    let found = wanted.keys().flat_map(|name| decoder.params().grad(name).unwrap()).collect::<Vec<f32>>();
    let all = wanted.values().flatten().copied().collect::<Vec<f32>>();
    holds("networks/bf16-gradients", &label, relative(&found, &all, 0.0), 5e-2);

    decode(&decoder, golden, Layout::Shared, &label);
    let held = decoder.held_in_bf16().unwrap();
    let whole = held.hidden(&batch, Pass::Infer).unwrap();
    let ordered = kernels::gather_rows(&whole, &rows.concat()).unwrap();
    let logits = crate::numbers(&kernels::logits(&ordered, held.unembedding().unwrap()).unwrap());
    holds("networks/bf16-held", &label, relative(&logits, &golden["logits"].1, 0.0), 3e-2);
    let refused = held.params().backward(
        &kernels::logits(&held.hidden(&batch, Pass::Train).unwrap(), held.unembedding().unwrap())
            .unwrap()
            .sum_all()
            .unwrap(),
    );
    assert!(refused.unwrap_err().to_string().contains("held in bf16"), "{label}");
}

#[track_caller]
fn compare_outputs(decoder: &Decoder, golden: &Golden, layout: Layout, label: &str) {
    let sequences = sequences(golden);
    let (batch, rows) = pack(&sequences, 0.0, layout);
    let unembedding = decoder.unembedding().unwrap();
    let flat = |tensor: candle_core::Tensor| crate::numbers(&tensor);

    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap();
    let ordered = kernels::gather_rows(&hidden, &rows.concat()).unwrap();
    holds("networks/hidden", label, worst(&flat(ordered.clone()), &golden["hidden"].1), 1e-4);
    let logits = flat(kernels::logits(&ordered, unembedding).unwrap());
    holds("networks/logits", label, worst(&logits, &golden["logits"].1), 1e-4);

    let before: Vec<u32> = rows.iter().flat_map(|rows| &rows[..rows.len() - 1]).copied().collect();
    let targets: Vec<u32> = sequences.iter().flat_map(|sequence| &sequence[1..]).copied().collect();
    let logprobs = kernels::token_logprob(&hidden, unembedding, &before, &targets, 1.0).unwrap();
    let logprobs = crate::numbers(&logprobs.narrow(1, 0, 1).unwrap());
    holds("networks/logprobs", label, worst(&logprobs, &golden["logprobs"].1), 1e-4);
}

#[track_caller]
fn compare_gradients(
    decoder: &Decoder,
    golden: &Golden,
    wanted: &BTreeMap<String, Vec<f32>>,
    layout: Layout,
    label: &str,
) {
    let weight = 1.0 / golden["logprobs"].1.len() as f32;
    let (batch, _) = pack(&sequences(golden), weight, layout);
    let column = |read: fn(&instruct_data::Prediction) -> u32| batch.predictions().iter().map(read).collect::<Vec<_>>();
    let (rows, targets) = (column(|p| p.row), column(|p| p.target));
    let weights: Vec<f32> = batch.predictions().iter().map(|p| p.weight).collect();
    let hidden = decoder.hidden(&batch, Pass::Train).unwrap();
    let loss = kernels::token_nll(&hidden, decoder.unembedding().unwrap(), &rows, &targets, &weights).unwrap();
    holds("networks/loss", label, worst(&crate::numbers(&loss), &golden["loss"].1), 1e-5);

    decoder.params().backward(&loss).unwrap();
    // A floor serves parameters that the loss cannot see, whose gradient is rounding: a bias of keys
    // without rotation, when a family keeps it apart.
    let off = |(name, wanted): (&String, &Vec<f32>)| {
        let floor = if wanted.iter().all(|g| g.abs() < 1e-7) { 1e-3 } else { 0.0 };
        (relative(&decoder.params().grad(name).unwrap(), wanted, floor), name.clone())
    };
    let (difference, name) = wanted.iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    holds("networks/gradients", &format!("{label} {name}"), difference, 1e-3);
}

/// Decoding token by token through the cache gives the bits of the forward over whole sequences.
#[track_caller]
fn decode(decoder: &Decoder, golden: &Golden, layout: Layout, label: &str) {
    let sequences = sequences(golden);
    let (batch, rows) = pack(&sequences, 0.0, layout);
    let hidden = decoder.hidden(&batch, Pass::Infer).unwrap().to_vec2::<f32>().unwrap();
    let mut cache = decoder.cache(sequences.len(), 16).unwrap();
    let mut difference = 0.0;
    for (slot, (sequence, rows)) in sequences.iter().zip(&rows).enumerate() {
        for (position, (&id, &row)) in sequence.iter().zip(rows).enumerate() {
            let at = [kernels::CacheRow { slot, position }];
            let decoded = decoder.extend(&[id], &at, &[0], &mut cache).unwrap().to_vec2::<f32>().unwrap();
            difference = f64::max(difference, worst(&decoded[0], &hidden[row as usize]));
        }
    }
    holds("generation/cache", label, difference, 0.0);
}

/// The most probable tokens, of all prompts in one batch, are transformers'.
#[track_caller]
fn continue_greedily(decoder: &Decoder, golden: &Golden, label: &str) {
    let prompts = crate::split(golden, "prompts", "prompt_lengths");
    let requests: Vec<Request> = (0..).zip(prompts).map(|(episode, prompt)| Request { episode, prompt }).collect();
    let sampling = Sampling { temperature: 0.0, ..Sampling::plain(decoder.config().eos.clone(), 12) };
    let found = generate(decoder, &requests, &sampling, Source::new(1, "greedy")).unwrap();
    let wanted = crate::split(golden, "greedy", "greedy_lengths");
    let others =
        found.iter().zip(&wanted).map(|(found, wanted)| crate::other_tokens(&found.ids, wanted)).sum::<usize>();
    holds("generation/greedy", label, others as f64, 0.0);
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
fn gpt2_heads_of_seven() {
    check("gpt2-odd-heads");
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
fn llama_stretched_by_yarn() {
    check("llama-yarn");
}

#[test]
fn llama_a_key_for_every_query() {
    check("llama-1-to-1");
}

#[test]
fn llama_one_key_for_eight_queries() {
    check("llama-8-to-1");
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

#[test]
fn neox_attention_and_mlp_in_parallel() {
    check("neox-parallel");
}

#[test]
fn neox_attention_before_mlp() {
    check("neox-sequential");
}

#[test]
fn smollm3_layers_without_positions() {
    check("smollm3");
}

#[test]
fn qwen2_some_layers_with_a_window() {
    check("qwen2-mixed");
}

#[test]
fn gemma2_caps_and_norms_after_each_half() {
    check("gemma2");
}

#[test]
fn gemma3_two_rotations_and_two_kinds_of_layer() {
    check("gemma3");
}
