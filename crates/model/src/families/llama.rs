//! Llama and its near relatives: RMSNorm, rotary positions, grouped queries, SwiGLU. Mistral adds
//! a sliding window, Qwen2 a QKV bias, Qwen3 QK-norm, SmolLM3 layers without positions.

use std::{collections::BTreeSet, ops::Range};

use serde_json::{Map, Value, json};

use super::{Fields, Piece, Table};
use crate::{Activation, Config, Family, Norm, Position, Rotary, Scaling, config::MOST_LAYERS};

pub(crate) static LLAMA: Table = Table {
    model_type: "llama",
    class: "Llama",
    classifier: None,
    language: "ForCausalLM",
    value_head: "score",
    unembedding: "lm_head.weight",
    prefix: "model.",
    harmless: &["rotary_emb.inv_freq"],
    read: |fields| with_biases(fields, read(fields, Family::Llama, USUAL)),
    write: write_biases,
    trunk,
};

pub(crate) static MISTRAL: Table = Table {
    model_type: "mistral",
    class: "Mistral",
    read: |fields| Config {
        // Transformers takes 4096 when the field is absent, and full attention when it is null.
        sliding_window: fields.count_opt("sliding_window").or((!fields.has("sliding_window")).then_some(4096)),
        ..read(fields, Family::Mistral, USUAL)
    },
    write: |config| {
        let mut fields = write(config);
        fields.insert("sliding_window".to_owned(), json!(config.sliding_window));
        fields
    },
    ..LLAMA
};

pub(crate) static QWEN2: Table = Table {
    model_type: "qwen2",
    class: "Qwen2",
    read: |fields| with_qwen_windows(fields, Config { qkv_bias: true, ..read(fields, Family::Qwen2, USUAL) }),
    write: write_qwen,
    ..LLAMA
};

pub(crate) static QWEN3: Table = Table {
    model_type: "qwen3",
    class: "Qwen3",
    read: |fields| {
        let config = Config {
            qkv_bias: fields.flag("attention_bias", false),
            attn_out_bias: fields.flag("attention_bias", false),
            qk_norm: true,
            ..read(fields, Family::Qwen3, Absent { head_dim: Some(128), ..USUAL })
        };
        with_qwen_windows(fields, config)
    },
    write: |config| {
        let mut fields = write_qwen(config);
        fields.insert("attention_bias".to_owned(), json!(config.qkv_bias));
        fields
    },
    ..LLAMA
};

pub(crate) static SMOLLM3: Table = Table {
    model_type: "smollm3",
    class: "SmolLM3",
    read: |fields| {
        let config = read(fields, Family::SmolLm3, Absent { theta: 2e6, tied: true, ..USUAL });
        with_smollm3_layers(fields, with_biases(fields, config))
    },
    write: |config| {
        let mut fields = write_biases(config);
        let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
        let rotates = |layer| u8::from(config.rotary(layer).is_some());
        set("no_rope_layers", (0..config.layers).map(rotates).collect());
        set("use_sliding_window", json!(config.sliding_window.is_some()));
        set("sliding_window", json!(config.sliding_window));
        set("layer_types", write_layer_types(config));
        fields
    },
    ..LLAMA
};

/// What the absence of a field means, where the families differ in it.
#[derive(Clone, Copy)]
struct Absent {
    /// Without it the quotient of width and heads.
    head_dim: Option<usize>,
    theta: f64,
    tied: bool,
}

const USUAL: Absent = Absent { head_dim: None, theta: 10_000.0, tied: false };

/// What the families of this file share.
fn read(fields: &Fields, family: Family, absent: Absent) -> Config {
    let width = fields.count("hidden_size");
    let heads = fields.count("num_attention_heads");
    let head_dim = fields.count_opt("head_dim").or(absent.head_dim).unwrap_or_else(|| {
        if !width.is_multiple_of(heads.max(1)) {
            fields.refuse("num_attention_heads", &format!("({heads}) does not divide hidden_size ({width})"));
        }
        width / heads.max(1)
    });
    if !matches!(fields.text("hidden_act").unwrap_or("silu"), "silu" | "swish") {
        fields.refuse("hidden_act", "is not silu, the only gate of this family");
    }
    let rotary = rotary(fields, head_dim, ("rope_theta", absent.theta), ("partial_rotary_factor", 1.0));
    if rotary.dim != head_dim {
        // Transformers ignores the field in these families, so the weights' author did not mean it.
        fields.refuse("partial_rotary_factor", "is not 1; this family rotates whole heads");
    }
    let context = fields.count("max_position_embeddings");
    Config {
        family,
        kv_heads: fields.count_opt("num_key_value_heads").unwrap_or(heads),
        head_dim,
        inner: fields.count("intermediate_size"),
        norm: Norm::Rms { eps: fields.number("rms_norm_eps", 1e-6) },
        position: Position::Rotary(rotary),
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        tied: fields.flag("tie_word_embeddings", absent.tied),
        bos: fields.id("bos_token_id"),
        pad: fields.padding(),
        eos: fields.ids("eos_token_id"),
        ..Config::tiny_gpt2(fields.count("vocab_size"), width, fields.count("num_hidden_layers"), heads, context)
    }
}

fn with_biases(fields: &Fields, config: Config) -> Config {
    let bias = fields.flag("attention_bias", false);
    Config { qkv_bias: bias, attn_out_bias: bias, mlp_bias: fields.flag("mlp_bias", false), ..config }
}

fn write_biases(config: &Config) -> Map<String, Value> {
    let mut fields = write(config);
    fields.insert("attention_bias".to_owned(), json!(config.qkv_bias));
    fields.insert("mlp_bias".to_owned(), json!(config.mlp_bias));
    fields
}

/// Transformers 5 writes `rope_parameters`; 4 wrote fields of the families' own names, here with
/// their defaults, beside `rope_scaling`.
pub(crate) fn rotary(fields: &Fields, head_dim: usize, theta: (&str, f64), partial: (&str, f64)) -> Rotary {
    let parameters = fields.object("rope_parameters");
    let number = |name: &str, (older, default): (&str, f64)| match &parameters {
        Some(inner) if inner.has(name) => inner.number(name, default),
        _ => fields.number(older, default),
    };
    Rotary {
        theta: number("rope_theta", theta),
        // Cut off, not rounded, as transformers does.
        dim: (head_dim as f64 * number("partial_rotary_factor", partial)) as usize,
        scaling: parameters
            .as_ref()
            .or(fields.object("rope_scaling").as_ref())
            .map_or(Scaling::None, |inner| scaling(inner, fields)),
    }
}

/// What the object that names a scaling says; `outer` is the file around it.
pub(super) fn scaling(fields: &Fields, outer: &Fields) -> Scaling {
    let field = if fields.has("rope_type") { "rope_type" } else { "type" };
    match fields.text(field).unwrap_or("default") {
        // Transformers stretches by `dynamic` only what is longer than the context, and nothing here is.
        "default" | "dynamic" => Scaling::None,
        "linear" => Scaling::Linear { factor: fields.required_number("factor") },
        "llama3" => Scaling::Llama3 {
            factor: fields.required_number("factor"),
            low_freq_factor: fields.required_number("low_freq_factor"),
            high_freq_factor: fields.required_number("high_freq_factor"),
            original_context: fields.required_number("original_max_position_embeddings"),
        },
        "yarn" => yarn(fields, outer),
        other => {
            fields.refuse(field, &format!("is {other:?}; known are default, linear, dynamic, yarn, llama3"));
            Scaling::None
        }
    }
}

/// YaRN with transformers' defaults (`_compute_yarn_parameters`). Its `mscale` and `mscale_all_dim` do nothing but
/// make the attention factor, which is what we keep.
fn yarn(fields: &Fields, outer: &Fields) -> Scaling {
    let context = outer.number("max_position_embeddings", 1.0);
    let original_context =
        outer.number("original_max_position_embeddings", fields.number("original_max_position_embeddings", context));
    let stretch = context / original_context;
    let factor = if fields.has("factor") { fields.number("factor", stretch) } else { fields.required_number("factor") };
    let set = |field: &str, default: f64| Some(fields.number(field, default)).filter(|&x| x != 0.0);
    let usual = match (set("mscale", 0.0), set("mscale_all_dim", 0.0)) {
        (Some(mscale), Some(all)) => yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all),
        _ => yarn_magnitude(factor, 1.0),
    };
    Scaling::Yarn {
        factor,
        beta_fast: set("beta_fast", 0.0).unwrap_or(32.0),
        beta_slow: set("beta_slow", 0.0).unwrap_or(1.0),
        truncate: fields.flag("truncate", true),
        original_context,
        attention_factor: fields.number("attention_factor", usual),
    }
}

/// `0.1 mscale ln(factor) + 1`, and 1 where nothing is stretched (Peng et al. 2023, arXiv 2309.00071, section 3.4).
pub(crate) fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Qwen slides only when told to, and then in the layers that `layer_types` names, or from
/// `max_window_layers` on.
fn with_qwen_windows(fields: &Fields, config: Config) -> Config {
    let from = fields.count_opt("max_window_layers").unwrap_or(28);
    let window = fields.flag("use_sliding_window", false).then(|| fields.count_opt("sliding_window").unwrap_or(4096));
    with_windows(fields, config, window, |layer| layer >= from)
}

/// The description with a window in the layers that `layer_types` calls sliding, or in those that
/// `slides` where the field is absent.
pub(super) fn with_windows(
    fields: &Fields,
    config: Config,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Config {
    let Some(window) = window else { return config };
    let full: BTreeSet<usize> = match layer_types(fields, config.layers) {
        Some(types) => (0..).zip(types).filter(|(_, slides)| !slides).map(|(layer, _)| layer).collect(),
        // A file may claim any number of layers.
        None => (0..config.layers.min(MOST_LAYERS)).filter(|&layer| !slides(layer)).collect(),
    };
    // Without a layer that slides nobody reads the window.
    if full.len() == config.layers {
        return config;
    }
    Config { sliding_window: Some(window), full_attention: full, ..config }
}

/// For each layer, whether `layer_types` says that it slides. `None` where the field is absent.
fn layer_types(fields: &Fields, layers: usize) -> Option<Vec<bool>> {
    let types = fields.list("layer_types")?;
    if types.len() != layers {
        fields.refuse("layer_types", &format!("lists {} layers of {layers}", types.len()));
        return None;
    }
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => true,
        Some("full_attention") => false,
        _ => {
            fields.refuse("layer_types", &format!("lists {kind}; known are full_attention, sliding_attention"));
            false
        }
    };
    Some(types.iter().map(slides).collect())
}

/// What [`layer_types`] reads.
pub(super) fn write_layer_types(config: &Config) -> Value {
    let name = |layer| if config.window(layer).is_some() { "sliding_attention" } else { "full_attention" };
    (0..config.layers).map(name).collect()
}

/// SmolLM3 rotates nothing where `no_rope_layers` says 0, or in the last of every
/// `no_rope_layer_interval` layers.
fn with_smollm3_layers(fields: &Fields, config: Config) -> Config {
    let unrotated = match fields.list("no_rope_layers") {
        Some(flags) if flags.len() < config.layers => {
            fields.refuse("no_rope_layers", &format!("lists {} layers of {}", flags.len(), config.layers));
            BTreeSet::new()
        }
        Some(flags) => {
            let flags = (0..config.layers).zip(flags);
            flags.filter(|(_, flag)| is_zero(fields, flag)).map(|(layer, _)| layer).collect()
        }
        None => {
            let interval = interval(fields, "no_rope_layer_interval", NO_ROPE_INTERVAL);
            every(interval, config.layers)
        }
    };
    let window = fields.flag("use_sliding_window", false).then(|| fields.count_opt("sliding_window")).flatten();
    let slides = |layer: usize| unrotated.contains(&layer);
    let config = with_windows(fields, config, window, slides);
    Config { unrotated, ..config }
}

/// Every fourth layer of SmolLM3 rotates nothing, unless its `config.json` says otherwise.
const NO_ROPE_INTERVAL: usize = 4;

/// The layers of SmolLM3 that rotate nothing, where a file does not list them.
pub(crate) fn unrotated(layers: usize) -> BTreeSet<usize> {
    every(NO_ROPE_INTERVAL, layers)
}

/// After how many layers one of the other kind comes.
pub(super) fn interval(fields: &Fields, field: &str, default: usize) -> usize {
    let interval = fields.count_opt(field).unwrap_or(default);
    if interval == 0 {
        fields.refuse(field, &format!("is 0; leave it out for {default}"));
    }
    interval
}

/// The last of every `interval` layers.
pub(crate) fn every(interval: usize, layers: usize) -> BTreeSet<usize> {
    (0..layers.min(MOST_LAYERS)).filter(|layer| (layer + 1).is_multiple_of(interval)).collect()
}

/// Whether an entry of `no_rope_layers` is the one that stands for a layer without a rotation.
fn is_zero(fields: &Fields, flag: &Value) -> bool {
    match flag.as_u64().or(flag.as_bool().map(u64::from)) {
        Some(0) => true,
        Some(1) => false,
        _ => {
            fields.refuse("no_rope_layers", &format!("lists {flag}; known are 0 and 1"));
            false
        }
    }
}

fn write_qwen(config: &Config) -> Map<String, Value> {
    let mut fields = write(config);
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("use_sliding_window", json!(config.sliding_window.is_some()));
    set("sliding_window", json!(config.sliding_window));
    // Older releases know this field alone, and read from it where sliding begins.
    let first = (0..config.layers).find(|&layer| config.window(layer).is_some());
    set("max_window_layers", json!(first.unwrap_or(config.layers)));
    if !config.full_attention.is_empty() {
        set("layer_types", write_layer_types(config));
    }
    fields
}

pub(super) fn write(config: &Config) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("hidden_size", json!(config.width));
    set("num_attention_heads", json!(config.heads));
    set("num_key_value_heads", json!(config.kv_heads));
    set("head_dim", json!(config.head_dim));
    set("num_hidden_layers", json!(config.layers));
    set("intermediate_size", json!(config.inner));
    set("max_position_embeddings", json!(config.context));
    set("rms_norm_eps", json!(config.norm.eps()));
    set("hidden_act", json!("silu"));
    set("attention_dropout", json!(0.0));
    if let Position::Rotary(rotary) = config.position {
        set("rope_theta", json!(rotary.theta));
        set("rope_scaling", write_scaling(rotary.scaling));
    }
    fields
}

pub(crate) fn write_scaling(scaling: Scaling) -> Value {
    match scaling {
        Scaling::None => Value::Null,
        Scaling::Linear { factor } => json!({ "factor": factor, "rope_type": "linear" }),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "factor": factor,
            "high_freq_factor": high_freq_factor,
            "low_freq_factor": low_freq_factor,
            "original_max_position_embeddings": original_context as u64,
            "rope_type": "llama3",
        }),
        Scaling::Yarn { factor, beta_fast, beta_slow, truncate, original_context, attention_factor } => json!({
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "factor": factor,
            "original_max_position_embeddings": original_context as u64,
            "rope_type": "yarn",
            "truncate": truncate,
        }),
    }
}

pub(super) fn trunk(config: &Config) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole("embed_tokens.weight", "embed.weight", config.vocab)];
    for layer in 0..config.layers {
        layer_pieces(config, layer, &mut pieces);
    }
    pieces.push(Piece::whole("norm.weight", "norm.weight", config.width));
    pieces
}

fn layer_pieces(config: &Config, layer: usize, pieces: &mut Vec<Piece>) {
    let mut add = |disk: &str, ours: &str, rows: Range<usize>, biased: bool| {
        for part in if biased { &["weight", "bias"][..] } else { &["weight"] } {
            let (disk, canonical) = (format!("layers.{layer}.{disk}.{part}"), format!("layers.{layer}.{ours}.{part}"));
            pieces.push(Piece { rows: rows.clone(), ..Piece::whole(disk, canonical, 0) });
        }
    };
    let &Config { width, inner, head_dim, .. } = config;
    let [queries, keys, values] = qkv_rows(config);
    add("input_layernorm", "attn_norm", 0..width, false);
    add("self_attn.q_proj", "qkv", queries, config.qkv_bias);
    add("self_attn.k_proj", "qkv", keys, config.qkv_bias);
    add("self_attn.v_proj", "qkv", values, config.qkv_bias);
    if config.qk_norm {
        add("self_attn.q_norm", "q_norm", 0..head_dim, false);
        add("self_attn.k_norm", "k_norm", 0..head_dim, false);
    }
    add("self_attn.o_proj", "attn_out", 0..width, config.attn_out_bias);
    if config.post_norms {
        add("post_attention_layernorm", "attn_post_norm", 0..width, false);
        add("pre_feedforward_layernorm", "mlp_norm", 0..width, false);
        add("post_feedforward_layernorm", "mlp_post_norm", 0..width, false);
    } else {
        add("post_attention_layernorm", "mlp_norm", 0..width, false);
    }
    add("mlp.gate_proj", "gate_up", 0..inner, config.mlp_bias);
    add("mlp.up_proj", "gate_up", inner..2 * inner, config.mlp_bias);
    add("mlp.down_proj", "down", 0..width, config.mlp_bias);
}

/// Rows of queries, keys and values in `layers.{i}.qkv`.
pub(crate) fn qkv_rows(config: &Config) -> [Range<usize>; 3] {
    let keys = config.heads * config.head_dim;
    let values = keys + config.kv_heads * config.head_dim;
    [0..keys, keys..values, values..config.qkv_rows()]
}

/// A small decoder of each family, in odd sizes.
#[cfg(test)]
pub(crate) fn example(family: Family) -> Config {
    let head_dim = if family == Family::Qwen3 { 6 } else { 4 };
    Config {
        family,
        kv_heads: 2,
        head_dim,
        inner: 29,
        norm: Norm::Rms { eps: 1e-6 },
        position: Position::Rotary(Rotary { theta: 10_000.0, dim: head_dim, scaling: Scaling::None }),
        activation: Activation::SwiGlu,
        qkv_bias: family == Family::Qwen2,
        attn_out_bias: false,
        mlp_bias: false,
        tied: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
        sliding_window: (family == Family::Mistral).then_some(3),
        unrotated: if family == Family::SmolLm3 { [1].into() } else { BTreeSet::new() },
        bos: Some(1),
        eos: [2, 5].into(),
        pad: Some(0),
        ..Config::tiny_gpt2(37, 24, 2, 6, 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use instruct_claims::holds;
    use instruct_kernels::{HeadLayout, rope};
    use std::{cell::RefCell, path::Path, sync::Arc};

    /// The frequency of every pair and the attention factor, from where (1, 0) comes to lie at positions 0 and 1.
    fn turned(rotary: &Rotary) -> (Vec<f64>, f64) {
        let pairs = rotary.dim / 2;
        let layout = HeadLayout { heads: 1, kv_heads: 1, head_dim: rotary.dim };
        let first: Vec<f32> = (0..3 * rotary.dim).map(|i| if i < pairs { 1.0 } else { 0.0 }).collect();
        let x = Tensor::from_vec([first.clone(), first].concat(), (2, 3 * rotary.dim), &Device::Cpu).unwrap();
        let table = Arc::new(crate::decoder::rope(rotary, 2).unwrap());
        let y = rope(&x, &[0, 1], &table, layout).unwrap().to_vec2::<f32>().unwrap();
        let angle = |i: usize| f64::from(y[1][pairs + i]).atan2(f64::from(y[1][i]));
        ((0..pairs).map(angle).collect(), f64::from(y[0][0]))
    }

    /// The rotation that a `config.json` describes.
    fn read(fields: &Map<String, Value>) -> Config {
        let problems = RefCell::default();
        let table = super::super::by_model_type(fields["model_type"].as_str().unwrap()).unwrap();
        let config = table.config(&Fields::new(fields, &problems));
        assert!(problems.borrow().is_empty(), "{problems:?}");
        config
    }

    fn rotary_of(config: &Config) -> Rotary {
        match config.position {
            Position::Rotary(rotary) => rotary,
            Position::Learned => panic!("learned positions"),
        }
    }

    #[test]
    fn scalings_of_published_folders_are_those_of_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/rotations");
        let configs = std::fs::read(folder.join("configs.json")).unwrap();
        let configs: Map<String, Value> = serde_json::from_slice(&configs).unwrap();
        let golden = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(golden.len(), 2 * configs.len());
        for (name, fields) in &configs {
            let config = read(fields.as_object().unwrap());
            let wanted = golden[&format!("{name}.inv_freq")].to_vec1::<f32>().unwrap();
            let factor = golden[&format!("{name}.attention_factor")].to_scalar::<f32>().unwrap();
            let (found, magnified) = turned(&rotary_of(&config));
            assert_eq!(found.len(), wanted.len(), "{name}");
            let apart = found.iter().zip(&wanted).map(|(f, &w)| (f / f64::from(w) - 1.0).abs()).fold(0.0, f64::max);
            holds("networks/rotations", name, apart, 1e-5);
            holds(
                "networks/rotations",
                &format!("{name}, attention factor"),
                (magnified / f64::from(factor) - 1.0).abs(),
                1e-5,
            );
            // What is written reads back as the same rotation.
            let mut written = super::super::table(config.family).fields(&config);
            written.insert("model_type".to_owned(), fields["model_type"].clone());
            written.insert("vocab_size".to_owned(), json!(config.vocab));
            assert_eq!(rotary_of(&read(&written)), rotary_of(&config), "{name}");
        }
    }
}
