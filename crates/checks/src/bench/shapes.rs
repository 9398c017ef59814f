//! The models that are measured, with random weights: speed does not depend on what they have learned.

use anyhow::Result;
use instruct_model::{Activation, Config, Family, Norm, Position, Rotary, Scaling};
use std::fmt;

/// A model to measure, and how much of it one step handles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// As on the command line.
    pub(super) name: String,
    pub(super) config: Config,
    /// Sequences of 128 tokens in a step of SFT.
    pub(super) sequences: usize,
    /// Rankings of four with prompts of 64 tokens in a step of the reward model.
    pub(super) rankings: usize,
    /// Rankings of nine with prompts of 192 tokens.
    pub(super) long_rankings: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Reads a shape's name, or four numbers.
///
/// Errors: neither; a width that the heads do not divide.
pub(super) fn parse(text: &str) -> Result<Shape, String> {
    let of = |config: Config, sequences, rankings, long_rankings| {
        Ok(Shape { name: text.to_owned(), config, sequences, rankings, long_rankings })
    };
    match text {
        "tiny" => of(gpt2(4, 256, 4, 4_096), 16, 16, 16),
        // The peer keeps every activation: sixteen rankings of nine would take it 100 GB.
        "gpt2" => of(gpt2(12, 768, 12, 50_257), 8, 4, 2),
        "smollm2" => of(smollm2(), 8, 4, 2),
        _ => {
            let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
            let Ok(&[layers, width, heads, vocab]) = numbers.as_deref() else {
                return Err("not tiny, gpt2, smollm2 or LAYERS,WIDTH,HEADS,VOCABULARY".to_owned());
            };
            let config = gpt2(layers, width, heads, vocab);
            config.validate().map_err(|error| error.to_string())?;
            of(config, 16, 16, 16)
        }
    }
}

fn gpt2(layers: usize, width: usize, heads: usize, vocab: usize) -> Config {
    Config::tiny_gpt2(vocab, width, layers, heads, 1_024)
}

/// SmolLM2-135M.
fn smollm2() -> Config {
    Config {
        family: Family::Llama,
        kv_heads: 3,
        inner: 1_536,
        context: 2_048,
        norm: Norm::Rms { eps: 1e-5 },
        position: Position::Rotary(Rotary { theta: 1e5, dim: 64, scaling: Scaling::None }),
        activation: Activation::SwiGlu,
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        ..gpt2(30, 576, 9, 49_152)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instruct_model::HeadKind;

    #[test]
    fn names_and_numbers_are_shapes() {
        let parameters = |text| parse(text).unwrap().config.parameters(HeadKind::LanguageModel);
        assert_eq!(parameters("gpt2"), 124_439_808);
        assert_eq!(parameters("smollm2"), 134_515_008);
        assert_eq!(parameters("12,768,12,50257"), parameters("gpt2"));
        for text in ["", "huge", "1,2,3", "4,250,3,100", "4,256,x,4,4096"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
