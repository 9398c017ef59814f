//! GPT-2: learned positions, LayerNorm, GELU, biases, matrices stored `(in, out)`.

use serde_json::{Map, Value, json};

use super::{Fields, Order, Piece, Table, both};
use crate::{Activation, Config, Norm, Position};

pub(crate) static GPT2: Table = Table {
    model_type: "gpt2",
    class: "GPT2",
    classifier: None,
    language: "LMHeadModel",
    value_head: "classifier",
    unembedding: "lm_head.weight",
    prefix: "transformer.",
    harmless: &[".attn.bias", ".attn.masked_bias"],
    read,
    write,
    trunk,
};

fn read(fields: &Fields) -> Config {
    fields.only_flag("scale_attn_weights", true);
    fields.only_flag("scale_attn_by_inverse_layer_idx", false);
    fields.only_flag("add_cross_attention", false);
    let width = fields.count("n_embd");
    let heads = fields.count("n_head");
    if !width.is_multiple_of(heads.max(1)) {
        fields.refuse("n_head", &format!("({heads}) does not divide n_embd ({width})"));
    }
    Config {
        inner: fields.count_opt("n_inner").unwrap_or(width.saturating_mul(4)),
        norm: Norm::Layer { eps: fields.number("layer_norm_epsilon", 1e-5) },
        activation: activation(fields, "activation_function", Activation::GeluTanh),
        tied: fields.flag("tie_word_embeddings", true),
        bos: fields.id("bos_token_id"),
        pad: fields.padding(),
        eos: fields.ids("eos_token_id"),
        ..Config::tiny_gpt2(fields.count("vocab_size"), width, fields.count("n_layer"), heads, context(fields))
    }
}

/// Very old files say `n_ctx` alone.
fn context(fields: &Fields) -> usize {
    fields.count(if fields.has("n_positions") { "n_positions" } else { "n_ctx" })
}

/// Which GELU `field` names; `default` where it is absent.
pub(crate) fn activation(fields: &Fields, field: &str, default: Activation) -> Activation {
    match fields.text(field) {
        None => default,
        Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some("gelu") => Activation::GeluErf,
        Some(other) => {
            fields.refuse(field, &format!("is {other:?}; known are gelu_new, gelu_pytorch_tanh, gelu"));
            default
        }
    }
}

/// Transformers' name of a GELU.
pub(crate) fn activation_name(activation: Activation) -> &'static str {
    if activation == Activation::GeluErf { "gelu" } else { "gelu_new" }
}

fn write(config: &Config) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("n_embd", json!(config.width));
    set("n_head", json!(config.heads));
    set("n_inner", json!(config.inner));
    set("n_layer", json!(config.layers));
    set("n_positions", json!(config.context));
    set("layer_norm_epsilon", json!(config.norm.eps()));
    set("activation_function", json!(activation_name(config.activation)));
    // Dropout belongs to a recipe, not to a model; transformers' defaults would bring 0.1 back.
    for site in ["attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout", "classifier_dropout"] {
        set(site, json!(0.0));
    }
    fields
}

fn trunk(config: &Config) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole("wte.weight", "embed.weight", config.vocab)];
    if config.position == Position::Learned {
        pieces.push(Piece::whole("wpe.weight", "position.weight", config.context));
    }
    for layer in 0..config.layers {
        let disk = |name: &str| format!("h.{layer}.{name}");
        let ours = |name: &str| format!("layers.{layer}.{name}");
        pieces.extend(both(&disk("ln_1"), &ours("attn_norm"), config.width));
        pieces.extend(conv1d(&disk("attn.c_attn"), &ours("qkv"), config.qkv_rows()));
        pieces.extend(conv1d(&disk("attn.c_proj"), &ours("attn_out"), config.width));
        pieces.extend(both(&disk("ln_2"), &ours("mlp_norm"), config.width));
        pieces.extend(conv1d(&disk("mlp.c_fc"), &ours("up"), config.inner));
        pieces.extend(conv1d(&disk("mlp.c_proj"), &ours("down"), config.width));
    }
    pieces.extend(both("ln_f", "norm", config.width));
    pieces
}

fn conv1d(disk: &str, canonical: &str, rows: usize) -> [Piece; 2] {
    let [weight, bias] = both(disk, canonical, rows);
    [Piece { order: Order::Transposed, ..weight }, bias]
}
