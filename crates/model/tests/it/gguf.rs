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
    Checkpoint, Config, Decoder, Family, HeadKind, Position, Precision, Request, Rotary, Sampling, Scaling, generate,
    save,
};
use instruct_random::Source;
use sha2::{Digest, Sha256};

use crate::{fixtures, padded_as, tensors};

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
    let stretch = rotary(config).and_then(|rotary| match rotary.scaling {
        Scaling::Llama3 { factor, original_context, .. } => Some(factors(&rotary, factor, original_context)),
        _ => None,
    });
    let stretch = stretch.map(|factors| ("rope_freqs.weight".to_owned(), (vec![factors.len()], factors)));
    weights.flat_map(|file| tensors(&file)).map(convert).chain(stretch).collect()
}

fn rotary(config: &Config) -> Option<Rotary> {
    match config.position {
        Position::Rotary(rotary) => Some(rotary),
        Position::Learned => None,
    }
}

/// What the converter writes for Llama 3's rule with a low factor of 1 and a high one of 4, pair after pair.
fn factors(rotary: &Rotary, factor: f64, context: f64) -> Vec<f32> {
    let of = |i: usize| {
        let wavelength = std::f64::consts::TAU * rotary.theta.powf(2.0 * i as f64 / rotary.dim as f64);
        match context / wavelength {
            turns if turns > 4.0 => 1.0,
            turns if turns < 1.0 => factor,
            turns => 1.0 / ((1.0 - (turns - 1.0) / 3.0) / factor + (turns - 1.0) / 3.0),
        }
    };
    (0..rotary.dim / 2).map(|i| of(i) as f32).collect()
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
    if let Some(rotary) = rotary(config) {
        add("rope.freq_base", Value::F32(rotary.theta as f32));
        match rotary.scaling {
            Scaling::Linear { factor } => {
                add("rope.scaling.type", Value::String("linear".to_owned()));
                add("rope.scaling.factor", Value::F32(factor as f32));
            }
            Scaling::Yarn { factor, beta_fast, beta_slow, original_context, .. } => {
                add("rope.scaling.type", Value::String("yarn".to_owned()));
                add("rope.scaling.factor", Value::F32(factor as f32));
                add("rope.scaling.original_context_length", number(original_context as usize));
                add("rope.scaling.yarn_beta_fast", Value::F32(beta_fast as f32));
                add("rope.scaling.yarn_beta_slow", Value::F32(beta_slow as f32));
            }
            _ => {}
        }
    }
    if let Some(local) = config.local_rotary.filter(|local| local.theta != 10_000.0) {
        add("rope.freq_base_swa", Value::F32(local.theta as f32));
    }
    if let Some(first) = config.full_attention.first().filter(|&&first| first == 2) {
        add("attention.sliding_window_pattern", number(first + 1));
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
    // These files name no padding, of which every written folder has one.
    let expected = Config { norm: imported.config().norm, pad: None, ..original.config().clone() };
    assert_eq!(imported.config(), &expected, "{architecture} {dtype:?}");
    for (name, values) in original.tensors().unwrap() {
        let found = imported.tensor(&name).unwrap();
        let worst = found.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == values.len() && worst <= tolerance, "{architecture} {dtype:?} {name}: {worst}");
        let share = if worst > 0.0 { f64::from(worst / tolerance) } else { 0.0 };
        holds("round-trips/gguf", &format!("{architecture} in {dtype:?}"), share, 1.0);
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
    check(&fixtures().join("llama3-tied"), "llama", GgmlDType::F32, 0.0);
    check(&fixtures().join("llama-yarn"), "llama", GgmlDType::F32, 0.0);
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
    check_changed("gemma3", "gemma3", 1e-7, |_| ());
    check_changed("gemma3", "gemma3", 1e-7, |config| {
        (config.sliding_window, config.full_attention, config.local_rotary) = (None, [].into(), None);
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

/// Writes the Qwen2 case after a change, opens it and reads all of it.
fn opened(change: impl FnOnce(&mut Vec<(String, Value)>, &mut Named)) -> instruct_model::Result<Checkpoint> {
    let folder = fixtures().join("qwen2-tied");
    let config = Checkpoint::open(&folder).unwrap().config().clone();
    let (mut keys, mut named) = (metadata(&config, "qwen2"), converted(&folder, &config));
    change(&mut keys, &mut named);
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    write(&file, &keys, &named, GgmlDType::F32);
    let checkpoint = Checkpoint::open(&file)?;
    checkpoint.tensors().map(|_| checkpoint)
}

/// Expects a message with all of `expected` about the Qwen2 case after a change.
#[track_caller]
fn refuses(change: impl FnOnce(&mut Vec<(String, Value)>, &mut Named), expected: &[&str]) {
    let message = match opened(change) {
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
    let longrope = Value::String("longrope".into());
    refuses(set("qwen2.rope.scaling.type", longrope), &["\"longrope\"", "linear and yarn", "Hugging Face folder"]);
    refuses(set("qwen2.rope.dimension_count", Value::U32(2)), &["rope.dimension_count is 2, not the head dimension 4"]);
    refuses(set("qwen2.rope.scaling.attn_factor", Value::F32(1.5)), &["scaling.attn_factor is 1.5", "yarn alone"]);
    refuses(set("split.count", Value::U16(3)), &["part 1 of a model in 3 files", "llama-gguf-split --merge"]);
    refuses(set("qwen2.rope.scale_linear", Value::F32(-2.0)), &["rotary scaling Linear { factor: -2.0 }"]);
    refuses(set("qwen2.attention.head_count", Value::I32(-2)), &["attention.head_count is an integer, not a count"]);
    refuses(set("tokenizer.ggml.bos_token_id", Value::U32(53)), &["special token 53"]);
    refuses(
        set("tokenizer.ggml.tokens", Value::Array(vec![Value::U8(1)])),
        &["tokenizer.ggml.tokens is a list of numbers, not a list of texts"],
    );
    refuses(|keys, _| keys.retain(|(key, _)| key != "qwen2.embedding_length"), &["lacks qwen2.embedding_length"]);
    refuses(|_, named| drop(named.remove("token_embd.weight")), &["missing: token_embd.weight"]);
    let table = |factors: Vec<f32>| {
        move |_: &mut Vec<(String, Value)>, named: &mut Named| {
            named.insert("rope_freqs.weight".to_owned(), (vec![factors.len()], factors));
        }
    };
    refuses(table(vec![3.0, 2.0]), &["rope_freqs.weight holds factors of another stretch", "Hugging Face folder"]);
    refuses(table(vec![1.0, 2.0, 4.0]), &["rope_freqs.weight is [3], not [2]"]);
    refuses(table(vec![f32::NAN, 2.0]), &["rope_freqs.weight holds NaN at element 0"]);
    let twice = |keys: &mut Vec<(String, Value)>, named: &mut Named| {
        set("qwen2.rope.scale_linear", Value::F32(2.0))(keys, named);
        table(vec![1.0, 8.0])(keys, named);
    };
    refuses(twice, &["rope_freqs.weight stands beside a stretch by qwen2.rope.scaling"]);
    let yarn = |name: &str, value: Value| {
        let key = format!("qwen2.rope.scaling.{name}");
        move |keys: &mut Vec<(String, Value)>, named: &mut Named| {
            set("qwen2.rope.scaling.type", Value::String("yarn".to_owned()))(keys, named);
            set("qwen2.rope.scaling.factor", Value::F32(4.0))(keys, named);
            set(&key, value)(keys, named);
        }
    };
    refuses(yarn("yarn_ext_factor", Value::F32(0.5)), &["yarn_ext_factor is 0.5; only the usual 1 is computed"]);
    refuses(yarn("yarn_attn_factor", Value::F32(1.0)), &["yarn_attn_factor is 1; only the usual 1.13"]);
}

/// The keys of a stretch with the defaults of llama.cpp.
#[test]
fn stretches_are_read_from_every_key() {
    let text = |text: &str| Value::String(text.to_owned());
    let check = |entries: &[(&str, Value)], wanted: Scaling| {
        let change = |keys: &mut Vec<(String, Value)>, named: &mut Named| {
            for (key, value) in entries {
                set(&format!("qwen2.rope.{key}"), value.clone())(keys, named);
            }
        };
        let found = rotary(opened(change).unwrap().config()).unwrap().scaling;
        assert_eq!(found, wanted, "{entries:?}");
    };
    let float = Value::F32;
    check(&[("scale_linear", float(4.0))], Scaling::Linear { factor: 4.0 });
    check(&[("scaling.factor", float(4.0))], Scaling::Linear { factor: 4.0 });
    check(&[("scaling.factor", float(2.0)), ("scale_linear", float(4.0))], Scaling::Linear { factor: 2.0 });
    check(&[("scaling.factor", float(0.0))], Scaling::None);
    check(&[("scaling.type", text("linear"))], Scaling::None);
    check(&[("scaling.type", text("none")), ("scaling.factor", float(4.0))], Scaling::None);
    let yarn = |entries: &[(&str, Value)], change: &dyn Fn(&mut Scaling)| {
        let magnitude = 0.1 * 4f64.ln() + 1.0;
        let mut wanted = Scaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_context: 32.0,
            attention_factor: magnitude,
        };
        change(&mut wanted);
        check(&[&[("scaling.type", text("yarn")), ("scaling.factor", float(4.0))], entries].concat(), wanted);
    };
    yarn(&[], &|_| ());
    let usual = float(1.138_629_4);
    yarn(&[("scaling.yarn_ext_factor", float(1.0)), ("scaling.yarn_attn_factor", usual)], &|_| ());
    yarn(&[("scaling.yarn_ext_factor", float(-1.0)), ("scaling.yarn_beta_slow", float(-1.0))], &|_| ());
    yarn(&[("scaling.original_context_length", Value::U32(8))], &|scaling| {
        let Scaling::Yarn { original_context, .. } = scaling else { return };
        *original_context = 8.0;
    });
    yarn(&[("scaling.yarn_beta_fast", float(16.0)), ("scaling.yarn_beta_slow", float(2.0))], &|scaling| {
        let Scaling::Yarn { beta_fast, beta_slow, .. } = scaling else { return };
        (*beta_fast, *beta_slow) = (16.0, 2.0);
    });
    yarn(&[("scaling.yarn_log_multiplier", float(0.5)), ("scaling.attn_factor", float(2.0))], &|scaling| {
        let Scaling::Yarn { attention_factor, .. } = scaling else { return };
        *attention_factor *= 2.0 / (0.05 * 4f64.ln() + 1.0);
    });
}

/// A stretch that only a table tells goes out in the words of `config.json`.
#[test]
fn a_table_of_factors_is_exported() {
    let table = |_: &mut Vec<(String, Value)>, named: &mut Named| {
        let rotary = Rotary { theta: 1e4, dim: 4, scaling: Scaling::None };
        named.insert("rope_freqs.weight".to_owned(), (vec![2], factors(&rotary, 32.0, 16.0)));
    };
    let checkpoint = opened(table).unwrap();
    let wanted = Scaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16.0 };
    assert_eq!(rotary(checkpoint.config()).unwrap().scaling, wanted);
    let folder = tempfile::tempdir().unwrap();
    let weights = |name: &str| {
        Ok(vec![
            0.5;
            checkpoint
                .config()
                .specs(HeadKind::LanguageModel)
                .into_iter()
                .find(|(known, _)| known == name)
                .unwrap()
                .1
                .iter()
                .product()
        ])
    };
    save(folder.path(), checkpoint.config(), HeadKind::LanguageModel, &weights, Precision::F32).unwrap();
    assert_eq!(padded_as(Checkpoint::open(folder.path()).unwrap().config(), checkpoint.config()), *checkpoint.config());
}

/// Kinds of quantisation that are not read have names, and the file is not at fault.
#[test]
fn other_quantisations_are_named() {
    let folder = fixtures().join("qwen2-tied");
    let config = Checkpoint::open(&folder).unwrap().config().clone();
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.gguf");
    write(&file, &metadata(&config, "qwen2"), &converted(&folder, &config), GgmlDType::F32);
    let original = fs::read(&file).unwrap();
    // Name, number of dimensions, two dimensions, kind.
    let name = b"blk.0.attn_q.weight";
    let at = original.windows(name.len()).position(|bytes| bytes == name).unwrap() + name.len() + 4 + 16;
    for (number, kind) in
        [(20u32, "of the kind IQ4_NL"), (23, "of the kind IQ4_XS"), (39, "MXFP4"), (77, "unknown kind 77")]
    {
        let mut bytes = original.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        fs::write(&file, bytes).unwrap();
        let message = Checkpoint::open(&file).unwrap_err().to_string();
        for part in [kind, "blk.0.attn_q.weight", "Q4_K", "use a file of these kinds", "model.gguf"] {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
        assert!(!message.contains("download"), "{message}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let name = "blk.1.ffn_up.weight";
        let change = |_: &mut Vec<(String, Value)>, named: &mut Named| named.get_mut(name).unwrap().1[5] = broken;
        refuses(change, &[&format!("{name} holds {broken} at element 5"), "make the file again"]);
    }
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
