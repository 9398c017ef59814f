//! GPT-NeoX and Pythia: partly rotated heads, LayerNorm, biases, attention and MLP side by side.

use serde_json::{Map, Value, json};

use super::{
    Fields, Order, Piece, Table, both,
    gpt2::{activation, activation_name},
    llama::{rotary, write_scaling},
};
use crate::{Activation, Config, Family, Norm, Position};

pub(crate) static GPT_NEOX: Table = Table {
    model_type: "gpt_neox",
    class: "GPTNeoX",
    classifier: None,
    language: "ForCausalLM",
    value_head: "classifier",
    unembedding: "embed_out.weight",
    prefix: "gpt_neox.",
    harmless: &[".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"],
    read,
    write,
    trunk,
};

/// Transformers 5 writes `rope_parameters`, 4 wrote `rotary_pct` and `rotary_emb_base`.
fn read(fields: &Fields) -> Config {
    let width = fields.count("hidden_size");
    let heads = fields.count("num_attention_heads");
    if !width.is_multiple_of(heads.max(1)) {
        fields.refuse("num_attention_heads", &format!("({heads}) does not divide hidden_size ({width})"));
    }
    let attention_bias = fields.flag("attention_bias", true);
    let head_dim = width / heads.max(1);
    Config {
        family: Family::GptNeox,
        inner: fields.count("intermediate_size"),
        norm: Norm::Layer { eps: fields.number("layer_norm_eps", 1e-5) },
        position: Position::Rotary(rotary(fields, head_dim, ("rotary_emb_base", 10_000.0), ("rotary_pct", 0.25))),
        activation: activation(fields, "hidden_act", Activation::GeluErf),
        parallel_residual: fields.flag("use_parallel_residual", true),
        qkv_bias: attention_bias,
        attn_out_bias: attention_bias,
        tied: fields.flag("tie_word_embeddings", false),
        bos: fields.id("bos_token_id"),
        pad: fields.padding(),
        eos: fields.ids("eos_token_id"),
        ..Config::tiny_gpt2(
            fields.count("vocab_size"),
            width,
            fields.count("num_hidden_layers"),
            heads,
            fields.count("max_position_embeddings"),
        )
    }
}

fn write(config: &Config) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |field: &str, value: Value| fields.insert(field.to_owned(), value);
    set("hidden_size", json!(config.width));
    set("num_attention_heads", json!(config.heads));
    set("num_hidden_layers", json!(config.layers));
    set("intermediate_size", json!(config.inner));
    set("max_position_embeddings", json!(config.context));
    set("layer_norm_eps", json!(config.norm.eps()));
    set("hidden_act", json!(activation_name(config.activation)));
    set("use_parallel_residual", json!(config.parallel_residual));
    set("attention_bias", json!(config.qkv_bias));
    // Dropout belongs to a recipe, not to a model; transformers' default would bring 0.1 back.
    for site in ["attention_dropout", "hidden_dropout", "classifier_dropout"] {
        set(site, json!(0.0));
    }
    if let Position::Rotary(rotary) = config.position {
        // Every release reads this spelling.
        set("rotary_emb_base", json!(rotary.theta));
        set("rotary_pct", json!(rotary_factor(rotary.dim, config.head_dim)));
        set("rope_scaling", write_scaling(rotary.scaling));
    }
    fields
}

/// The share of a head that is rotated, such that the product with `head_dim`, cut off, is `dim`.
fn rotary_factor(dim: usize, head_dim: usize) -> f64 {
    let share = dim as f64 / head_dim as f64;
    if (share * head_dim as f64) as usize == dim { share } else { share.next_up() }
}

fn trunk(config: &Config) -> Vec<Piece> {
    let width = config.width;
    let mut pieces = vec![Piece::whole("embed_in.weight", "embed.weight", config.vocab)];
    for layer in 0..config.layers {
        let mut add = |disk: &str, ours: &str, rows: usize, biased: bool, order: Order| {
            let parts = both(&format!("layers.{layer}.{disk}"), &format!("layers.{layer}.{ours}"), rows);
            pieces.extend(parts.into_iter().take(1 + usize::from(biased)).map(|piece| Piece { order, ..piece }));
        };
        let by_head = Order::ByHead { head_dim: config.head_dim };
        add("input_layernorm", "attn_norm", width, true, Order::Same);
        add("attention.query_key_value", "qkv", config.qkv_rows(), config.qkv_bias, by_head);
        add("attention.dense", "attn_out", width, config.attn_out_bias, Order::Same);
        add("post_attention_layernorm", "mlp_norm", width, true, Order::Same);
        add("mlp.dense_h_to_4h", "up", config.inner, config.mlp_bias, Order::Same);
        add("mlp.dense_4h_to_h", "down", width, config.mlp_bias, Order::Same);
    }
    pieces.extend(both("final_layer_norm", "norm", width));
    pieces
}

/// A small decoder of the family, in odd sizes.
#[cfg(test)]
pub(crate) fn example() -> Config {
    use crate::{Rotary, Scaling};
    Config {
        family: Family::GptNeox,
        inner: 29,
        position: Position::Rotary(Rotary { theta: 10_000.0, dim: 4, scaling: Scaling::None }),
        activation: Activation::GeluErf,
        parallel_residual: true,
        tied: false,
        ..Config::tiny_gpt2(37, 21, 2, 3, 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rotary_dimension_reads_back() {
        for head_dim in 1..=512 {
            for dim in 0..=head_dim {
                let read = (head_dim as f64 * rotary_factor(dim, head_dim)) as usize;
                assert_eq!(read, dim, "of {head_dim}");
            }
        }
    }
}
