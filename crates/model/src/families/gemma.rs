//! Gemma 2 and the text models of Gemma 3: a scaled embedding, gains stored less 1, norms around attention and MLP,
//! GeGLU, and layers with a window beside layers without. Gemma 2 caps its logits; Gemma 3 norms queries and keys
//! instead, and rotates them by another base where there is a window.

use serde_json::{Map, Value, json};

use super::{
    Fields, Table,
    llama::{self, LLAMA, interval, rotary, scaling, with_windows, write_layer_types},
};
use crate::{Activation, Config, Family, Norm, Position, Rotary, Scaling};

pub(crate) static GEMMA2: Table = Table {
    model_type: "gemma2",
    class: "Gemma2",
    read: |fields| {
        let config = read(fields, Family::Gemma2, (Some(50.0), Some(30.0)));
        let whole = rotary(fields, config.head_dim, ("rope_theta", 10_000.0), ("partial_rotary_factor", 1.0));
        let config = Config { position: Position::Rotary(whole), ..config };
        with_windows(fields, config, window(fields), |layer| layer.is_multiple_of(2))
    },
    write,
    ..LLAMA
};

pub(crate) static GEMMA3: Table = Table {
    model_type: "gemma3_text",
    class: "Gemma3",
    classifier: Some("Gemma3Text"),
    read: |fields| {
        let config = Config { qk_norm: true, ..read(fields, Family::Gemma3, (None, None)) };
        let (whole, local) = rotaries(fields, config.head_dim);
        let config = Config { position: Position::Rotary(whole), ..config };
        let period = interval(fields, "sliding_window_pattern", 6);
        let slides = |layer: usize| !(layer + 1).is_multiple_of(period);
        let window = window(fields);
        if window.is_none() {
            fields.refuse("sliding_window", "is null; give the window of the layers with a rotation of their own");
        }
        let config = with_windows(fields, config, window, slides);
        Config { local_rotary: config.sliding_window.map(|_| local), ..config }
    },
    write: |config| {
        let mut fields = write(config);
        if let Some(local) = config.local_rotary {
            fields.insert("rope_local_base_freq".to_owned(), json!(local.theta));
        }
        // Without a layer that slides any window will do.
        fields.insert("sliding_window".to_owned(), json!(config.sliding_window.unwrap_or(config.context)));
        fields
    },
    ..LLAMA
};

/// What both share, with the soft caps of attention and of token logits that a file without the fields means.
fn read(fields: &Fields, family: Family, (attention, last): (Option<f64>, Option<f64>)) -> Config {
    fields.only_flag("use_bidirectional_attention", false);
    if !matches!(fields.text("hidden_activation"), None | Some("gelu_pytorch_tanh")) {
        fields.refuse("hidden_activation", "is not gelu_pytorch_tanh, the only gate of this family");
    }
    let (width, heads) = (fields.count("hidden_size"), fields.count("num_attention_heads"));
    let head_dim = fields.count_opt("head_dim").unwrap_or(256);
    let bias = fields.flag("attention_bias", false);
    let (layers, context) = (fields.count("num_hidden_layers"), fields.count("max_position_embeddings"));
    Config {
        family,
        kv_heads: fields.count_opt("num_key_value_heads").unwrap_or(4),
        head_dim,
        inner: fields.count("intermediate_size"),
        embed_scale: (width as f64).sqrt(),
        norm: Norm::RmsOnePlus { eps: fields.number("rms_norm_eps", 1e-6) },
        post_norms: true,
        activation: Activation::GeGlu,
        qkv_bias: bias,
        attn_out_bias: bias,
        mlp_bias: false,
        tied: fields.flag("tie_word_embeddings", true),
        query_scalar: query_scalar(fields.number("query_pre_attn_scalar", 256.0), head_dim),
        attention_softcap: softcap(fields, "attn_logit_softcapping", attention),
        final_softcap: softcap(fields, "final_logit_softcapping", last),
        bos: fields.id("bos_token_id"),
        pad: fields.padding(),
        eos: fields.ids("eos_token_id"),
        ..Config::tiny_gpt2(fields.count("vocab_size"), width, layers, heads, context)
    }
}

/// [`Config::query_scalar`] where logits are divided by the root of `scalar`.
pub(crate) fn query_scalar(scalar: f64, head_dim: usize) -> Option<f64> {
    Some(scalar).filter(|scalar| *scalar != head_dim as f64)
}

/// A cap that null leaves out; `default` where the field is absent.
fn softcap(fields: &Fields, field: &str, default: Option<f64>) -> Option<f64> {
    if fields.has(field) { fields.get(field).map(|_| fields.number(field, 1.0)) } else { default }
}

/// Transformers takes 4096 when the field is absent.
fn window(fields: &Fields) -> Option<usize> {
    fields.count_opt("sliding_window").or((!fields.has("sliding_window")).then_some(4096))
}

/// The rotation of Gemma 3's layers without a window, and of those with one. Transformers 5 writes one object of
/// `rope_parameters` for each of the two kinds; 4 wrote three fields.
fn rotaries(fields: &Fields, dim: usize) -> (Rotary, Rotary) {
    let parameters = fields.object("rope_parameters");
    let of = |kind: &str| parameters.as_ref().and_then(|parameters| parameters.object(kind));
    let (whole, local) = (of("full_attention"), of("sliding_attention"));
    let theta = |inner: &Option<Fields>, older: &str, default: f64| match inner {
        Some(inner) if inner.has("rope_theta") => inner.number("rope_theta", default),
        _ => fields.number(older, default),
    };
    if local.as_ref().map_or(Scaling::None, |inner| scaling(inner, fields)) != Scaling::None {
        fields.refuse("rope_parameters.sliding_attention", "is stretched, which this family knows of the others alone");
    }
    let stretched =
        whole.as_ref().or(fields.object("rope_scaling").as_ref()).map_or(Scaling::None, |inner| scaling(inner, fields));
    (
        Rotary { theta: theta(&whole, "rope_theta", 1e6), dim, scaling: stretched },
        Rotary { theta: theta(&local, "rope_local_base_freq", 10_000.0), dim, scaling: Scaling::None },
    )
}

fn write(config: &Config) -> Map<String, Value> {
    let mut fields = llama::write(config);
    fields.remove("hidden_act");
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("hidden_activation", json!("gelu_pytorch_tanh"));
    set("attention_bias", json!(config.qkv_bias));
    let scalar = config.query_scalar.unwrap_or(config.head_dim as f64);
    // Transformers takes whole numbers alone.
    set("query_pre_attn_scalar", if scalar.fract() == 0.0 { json!(scalar as u64) } else { json!(scalar) });
    set("attn_logit_softcapping", json!(config.attention_softcap));
    set("final_logit_softcapping", json!(config.final_softcap));
    set("sliding_window", json!(config.sliding_window));
    set("layer_types", write_layer_types(config));
    fields
}

/// A small decoder of each of the two, in odd sizes.
#[cfg(test)]
pub(crate) fn example(family: Family) -> Config {
    let rotary = |theta| Rotary { theta, dim: 6, scaling: Scaling::None };
    Config {
        family,
        kv_heads: 1,
        head_dim: 6,
        inner: 29,
        embed_scale: 24f64.sqrt(),
        norm: Norm::RmsOnePlus { eps: 1e-6 },
        post_norms: true,
        position: Position::Rotary(rotary(1e6)),
        activation: Activation::GeGlu,
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        qk_norm: family == Family::Gemma3,
        query_scalar: Some(7.0),
        attention_softcap: (family == Family::Gemma2).then_some(2.0),
        final_softcap: (family == Family::Gemma2).then_some(3.0),
        sliding_window: Some(3),
        full_attention: [1].into(),
        local_rotary: (family == Family::Gemma3).then(|| rotary(1e4)),
        ..Config::tiny_gpt2(37, 24, 2, 4, 32)
    }
}
