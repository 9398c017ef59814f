//! GGUF: files written the way llama.cpp's converter does give the model of the folder they came from.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{
    DType, Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use instruct_claims::holds;
use instruct_kernels::Path::Fused;
use instruct_model::{
    Checkpoint, Config, Decoder, Family, HeadKind, Position, Precision, Request, Sampling, Scaling, generate, save,
};
use instruct_random::Source;
use sha2::{Digest, Sha256};

use crate::{fixtures, tensors};

type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// `weights.reshape(heads, 2, rows / heads / 2, columns).swapaxes(1, 2)`, as in the converter.
fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (columns, half) = (values.len() / rows, rows / heads / 2);
    let mut out = Vec::new();
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let row = (head * 2 + side) * half + pair;
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

const LLAMA_NAMES: [(&str, &str); 14] = [
    ("model.embed_tokens", "token_embd"),
    ("model.layers.", "blk."),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.down_proj", "ffn_down"),
];
const GEMMA_NAMES: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const GPT2_NAMES: [(&str, &str); 11] = [
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.h.", "blk."),
    ("lm_head", "output"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

fn rename(name: &str, table: &[(&str, &str)]) -> String {
    let renamed = table.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours));
    renamed.replace("mlp.up_proj", "ffn_up")
}

/// A folder's tensors as the converter would write them.
fn converted(folder: &Path, config: &Config) -> Named {
    let transpose = |shape: &[usize], values: &[f32]| {
        let (rows, columns) = (shape[0], shape[1]);
        (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect::<Vec<f32>>()
    };
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|f| {
        f.file_name().unwrap().to_str().unwrap().starts_with("model") && f.extension().unwrap() == "safetensors"
    });
    let convert = |(name, (mut shape, mut values)): (String, (Vec<usize>, Vec<f32>))| {
        if config.family == Family::Gpt2 {
            if name.contains(".c_") && name.ends_with("weight") {
                values = transpose(&shape, &values);
                shape.reverse();
            }
            return (rename(&name, &GPT2_NAMES), (shape, values));
        }
        let permuted = matches!(config.family, Family::Llama | Family::Mistral | Family::SmolLm3);
        if permuted && name.contains("q_proj") {
            values = permute(&values, shape[0], config.heads);
        }
        if permuted && name.contains("k_proj") {
            values = permute(&values, shape[0], config.kv_heads);
        }
        let is_gemma = matches!(config.family, Family::Gemma2 | Family::Gemma3);
        if is_gemma && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|gain| *gain += 1.0);
        }
        let name = if is_gemma { rename(&name, &GEMMA_NAMES) } else { name };
        (rename(&name, &LLAMA_NAMES), (shape, values))
    };
    weights.flat_map(|file| tensors(&file)).map(convert).collect()
}

fn metadata(config: &Config, architecture: &str) -> Vec<(String, Value)> {
    let number = |n: usize| Value::U32(n as u32);
    let mut list = vec![
        ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("smollm".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(vec![Value::String("a".into()), Value::String("b".into())])),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(vec![Value::I32(3), Value::I32(1)])),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(vec![Value::String("a b".into())])),
        ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false)),
        ("tokenizer.chat_template".to_owned(), Value::String("{{ messages }}".to_owned())),
    ];
    let ids = [("bos", config.bos), ("eos", config.eos.first().copied()), ("eot", config.eos.last().copied())];
    list.extend(
        ids.into_iter().filter_map(|(role, id)| Some((format!("tokenizer.ggml.{role}_token_id"), Value::U32(id?)))),
    );
    let mut add = |key: &str, value: Value| list.push((format!("{architecture}.{key}"), value));
    add("context_length", number(config.context));
    add("embedding_length", number(config.width));
    add("block_count", number(config.layers));
    add("feed_forward_length", number(config.inner));
    add("attention.head_count", number(config.heads));
    if config.family == Family::Gpt2 {
        add("attention.layer_norm_epsilon", Value::F32(1e-5));
        return list;
    }
    add("attention.head_count_kv", number(config.kv_heads));
    add("attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    add("attention.key_length", number(config.head_dim));
    add("rope.dimension_count", number(config.head_dim));
    if let Position::Rotary(rotary) = config.position {
        add("rope.freq_base", Value::F32(rotary.theta as f32));
        if let Scaling::Linear { factor } = rotary.scaling {
            add("rope.scaling.type", Value::String("linear".to_owned()));
            add("rope.scaling.factor", Value::F32(factor as f32));
        }
    }
    let caps = [("attn", config.attention_softcap), ("final", config.final_softcap)];
    for (name, cap) in caps.into_iter().filter_map(|(name, cap)| Some((name, cap?))) {
        add(&format!("{name}_logit_softcapping"), Value::F32(cap as f32));
    }
    if let Some(window) = config.sliding_window {
        add("attention.sliding_window", number(window));
    }
    list
}

fn write(file: &Path, metadata: &[(String, Value)], tensors: &Named, dtype: GgmlDType) {
    let quantised: Vec<(&str, QTensor)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap();
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            (name.as_str(), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut fs::File::create(file).unwrap(), &metadata, &tensors).unwrap();
}

/// The file gives the folder's model: every weight within `tolerance`, the description but for eps,
/// which GGUF keeps as `f32`.
#[track_caller]
fn check(folder: &Path, architecture: &str, dtype: GgmlDType, tolerance: f32) {
    let original = Checkpoint::open(folder).unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    write(&file, &metadata(original.config(), architecture), &converted(folder, original.config()), dtype);
    let imported = Checkpoint::open(&file).unwrap();
    let expected = Config { norm: imported.config().norm, ..original.config().clone() };
    assert_eq!(imported.config(), &expected, "{architecture} {dtype:?}");
    for (name, values) in original.tensors().unwrap() {
        let found = imported.tensor(&name).unwrap();
        let worst = found.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == values.len() && worst <= tolerance, "{architecture} {dtype:?} {name}: {worst}");
    }
    let tokenizer = imported.tokenizer().unwrap();
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!(
        (&tokenizer.tokens[..], &tokenizer.token_types[..]),
        (&["a".to_owned(), "b".to_owned()][..], &[3, 1][..])
    );
    assert_eq!((&tokenizer.merges[..], tokenizer.add_bos), (&["a b".to_owned()][..], Some(false)));
}

#[test]
fn converted_files_give_the_folders_model() {
    check(&fixtures().join("llama-untied"), "llama", GgmlDType::F32, 0.0);
    check(&fixtures().join("mistral"), "llama", GgmlDType::F32, 0.0);
    check(&fixtures().join("qwen2-tied"), "qwen2", GgmlDType::F32, 0.0);
    check(&fixtures().join("qwen3"), "qwen3", GgmlDType::F32, 0.0);
    check(&fixtures().join("gpt2-tied"), "gpt2", GgmlDType::F16, 2e-3);
}

/// A case with a description that llama.cpp would take, for what the metadata do not say.
#[track_caller]
fn check_changed(case: &str, architecture: &str, tolerance: f32, change: impl FnOnce(&mut Config)) {
    let original = Checkpoint::open(fixtures().join(case)).unwrap();
    let mut config = original.config().clone();
    change(&mut config);
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &config, HeadKind::LanguageModel, &|name| original.tensor(name), Precision::F32).unwrap();
    check(folder.path(), architecture, GgmlDType::F32, tolerance);
}

#[test]
fn what_gguf_leaves_to_the_architecture_is_known() {
    check_changed("smollm3", "smollm3", 0.0, |config| {
        (config.sliding_window, config.full_attention, config.unrotated) = (None, [].into(), [3].into());
    });
    // 1 plus a gain is rounded.
    check_changed("gemma2", "gemma2", 1e-7, |config| config.query_scalar = None);
    check_changed("gemma2", "gemma2", 1e-7, |config| {
        (config.query_scalar, config.attention_softcap, config.final_softcap) = (None, Some(50.0), Some(30.0));
    });
    check_changed("gemma3", "gemma3", 1e-7, |config| {
        config.full_attention = [5].into();
        if let Some(local) = &mut config.local_rotary {
            local.theta = 10_000.0;
        }
    });
}

/// Widths in whole quantisation blocks, values up to about 3 deviations of 0.02.
#[test]
fn quantised_weights_become_floats() {
    let mut config = Checkpoint::open(fixtures().join("llama-untied")).unwrap().config().clone();
    (config.width, config.heads, config.kv_heads, config.head_dim, config.inner) = (256, 4, 2, 64, 256);
    (config.layers, config.vocab) = (1, 40);
    if let instruct_model::Position::Rotary(rotary) = &mut config.position {
        rotary.dim = 64;
    }
    let folder = tempfile::tempdir().unwrap();
    let specs: BTreeMap<_, _> = config.specs(HeadKind::LanguageModel).into_iter().collect();
    let get = |name: &str| {
        let mut values = vec![0.0; specs[name].iter().product()];
        config.initial(name, 3, &mut values);
        Ok(values)
    };
    save(folder.path(), &config, HeadKind::LanguageModel, &get, Precision::F32).unwrap();
    check(folder.path(), "llama", GgmlDType::BF16, 5e-4);
    check(folder.path(), "llama", GgmlDType::Q8_0, 5e-4);
    check(folder.path(), "llama", GgmlDType::Q4_0, 0.011);
    check(folder.path(), "llama", GgmlDType::Q4_1, 0.011);
    check(folder.path(), "llama", GgmlDType::Q5_0, 6e-3);
    check(folder.path(), "llama", GgmlDType::Q2K, 0.05);
    check(folder.path(), "llama", GgmlDType::Q3K, 0.02);
    check(folder.path(), "llama", GgmlDType::Q4K, 0.011);
    check(folder.path(), "llama", GgmlDType::Q5K, 6e-3);
    check(folder.path(), "llama", GgmlDType::Q6K, 3e-3);
}

/// Writes the Qwen2 case after a change and expects a message with all of `expected`.
#[track_caller]
fn refuses(change: impl FnOnce(&mut Vec<(String, Value)>, &mut Named), expected: &[&str]) {
    let folder = fixtures().join("qwen2-tied");
    let config = Checkpoint::open(&folder).unwrap().config().clone();
    let (mut keys, mut named) = (metadata(&config, "qwen2"), converted(&folder, &config));
    change(&mut keys, &mut named);
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    write(&file, &keys, &named, GgmlDType::F32);
    let message = match Checkpoint::open(&file) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    };
    for part in expected.iter().chain(&["model.gguf"]) {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

fn set(key: &str, value: Value) -> impl FnOnce(&mut Vec<(String, Value)>, &mut Named) {
    let key = key.to_owned();
    move |keys, _| {
        keys.retain(|(known, _)| *known != key);
        keys.insert(0, (key, value));
    }
}

#[test]
fn foreign_and_lying_files_are_refused() {
    refuses(set("general.architecture", Value::String("mamba".into())), &["\"mamba\"", "llama, qwen2"]);
    refuses(set("general.alignment", Value::U32(0)), &["general.alignment is 0"]);
    refuses(set("qwen2.block_count", Value::String("three".into())), &["qwen2.block_count is a text, not a count"]);
    refuses(set("qwen2.block_count", Value::U32(u32::MAX)), &["layers is 4294967295"]);
    refuses(set("qwen2.block_count", Value::U32(4)), &["missing: blk.3.attn_q.weight"]);
    refuses(set("qwen2.block_count", Value::U32(2)), &["unexpected: blk.2.attn_q.weight"]);
    refuses(set("qwen2.rope.scaling.type", Value::String("yarn".into())), &["\"yarn\"", "Hugging Face folder"]);
    refuses(set("qwen2.attention.head_count", Value::I32(-2)), &["attention.head_count is an integer, not a count"]);
    refuses(set("tokenizer.ggml.bos_token_id", Value::U32(53)), &["special token 53"]);
    refuses(
        set("tokenizer.ggml.tokens", Value::Array(vec![Value::U8(1)])),
        &["tokenizer.ggml.tokens is a list of numbers, not a list of texts"],
    );
    refuses(|keys, _| keys.retain(|(key, _)| key != "qwen2.embedding_length"), &["lacks qwen2.embedding_length"]);
    refuses(|_, named| drop(named.remove("token_embd.weight")), &["missing: token_embd.weight"]);
    let factors = (vec![2], vec![1.0, 8.0]);
    refuses(|_, named| drop(named.insert("rope_freqs.weight".to_owned(), factors)), &["unexpected: rope_freqs.weight"]);
}

#[test]
fn cut_and_flipped_files_neither_panic_nor_exhaust_memory() {
    let folder = fixtures().join("qwen2-tied");
    let config = Checkpoint::open(&folder).unwrap().config().clone();
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    write(&file, &metadata(&config, "qwen2"), &converted(&folder, &config), GgmlDType::F32);
    let original = fs::read(&file).unwrap();
    let opens = || Checkpoint::open(&file).and_then(|checkpoint| checkpoint.tensors());
    for at in (0..original.len()).step_by(original.len() / 60) {
        fs::write(&file, &original[..at]).unwrap();
        assert!(opens().is_err(), "cut at {at}");
    }
    for at in (0..3000).step_by(3) {
        for flip in [0x01, 0x80] {
            let mut bytes = original.clone();
            bytes[at] ^= flip;
            fs::write(&file, bytes).unwrap();
            let _ = opens();
        }
    }
}

/// The greedy text of a file, of all prompts in one batch, is what transformers made of it.
#[track_caller]
fn check_greedy(file: &Path, case: &str) {
    let golden = fs::read(fixtures().join(format!("gguf/{case}.json"))).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let found: String = Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, golden["sha256"], "{case} is not the file that transformers read: run `cargo xtask reference`");
    let checkpoint = Checkpoint::open(file).unwrap();
    let decoder = Decoder::from_checkpoint(&checkpoint, &Device::Cpu, Fused, DType::F32).unwrap();
    let ids = |prompt: &serde_json::Value, field: &str| -> Vec<u32> {
        prompt[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompts = golden["prompts"].as_array().unwrap();
    let request = |(episode, prompt)| Request { episode, prompt: ids(prompt, "ids") };
    let requests: Vec<Request> = (0..).zip(prompts).map(request).collect();
    let sampling = Sampling { temperature: 0.0, ..Sampling::plain(decoder.config().eos.clone(), 24) };
    let completions = generate(&decoder, &requests, &sampling, Source::new(1, "greedy")).unwrap();
    let others: usize =
        completions.iter().zip(prompts).map(|(c, prompt)| crate::other_tokens(&c.ids, &ids(prompt, "greedy"))).sum();
    holds(&format!("generation/gguf-greedy-{case}"), case, others as f64, 0.0);

    let texts = prompts.iter().filter_map(|prompt| Some((prompt["text"].as_str()?, ids(prompt, "ids"))));
    for (text, ids) in texts {
        let tokenizer = instruct_data::Tokenizer::from_gguf(checkpoint.tokenizer().unwrap()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn a_quantised_file_says_what_transformers_makes_it_say() {
    check_greedy(&fixtures().join("gguf/tiny.gguf"), "tiny");
}

/// The same of the file that the script `get-smollm2.sh` fetches, where it has run.
#[test]
fn smollm2_says_what_transformers_makes_it_say() {
    if let Some(file) = crate::smollm2() {
        check_greedy(&file, "smollm2");
    }
}
