//! What a decoder is: one description that every family's `config.json` maps to and back.

use std::collections::BTreeSet;

use instruct_random::Source;

use crate::{Error, Result};

/// The description of one decoder. Widths and counts are in elements; `V` stands for `vocab`,
/// `C` for `width`, `H` for `heads`, `D` for `head_dim`, `I` for `inner` below.
///
/// All families share the pre-norm residual block `x += attention(norm(x)); x += mlp(norm(x))`, or
/// its parallel form, so only what differs stands here.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family's names and `config.json` the model is read and written with.
    pub family: Family,
    /// Number of token ids, `V`.
    pub vocab: usize,
    /// Width of the residual stream, `C`.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped-query attention, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Elements per head, `D`. `heads * head_dim` need not equal `width` (Qwen3).
    pub head_dim: usize,
    /// Width of the MLP, `I`.
    pub inner: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// What the embedding is multiplied by before the first block: 1, or the root of `C` (Gemma).
    pub embed_scale: f64,
    /// Normalisation before attention, before the MLP and after the last block.
    pub norm: Norm,
    /// Whether what attention and MLP add is normalised, too, `x += norm'(attention(norm(x)))` (Gemma 2:
    /// arXiv 2408.00118, section 2).
    pub post_norms: bool,
    /// How positions enter.
    pub position: Position,
    /// What stands between the MLP's two products.
    pub activation: Activation,
    /// Whether the MLP reads what attention reads, `x += attention(norm(x)) + mlp(norm'(x))`, not
    /// what attention has added to (GPT-J, GPT-NeoX: Black et al. 2022, arXiv 2204.06745, section 2.1).
    pub parallel_residual: bool,
    /// Whether `layers.{i}.qkv` has a bias.
    pub qkv_bias: bool,
    /// Whether `layers.{i}.attn_out` has a bias.
    pub attn_out_bias: bool,
    /// Whether `layers.{i}.up` (or `gate_up`) and `layers.{i}.down` have biases.
    pub mlp_bias: bool,
    /// Whether the language head is the embedding itself.
    pub tied: bool,
    /// Whether queries and keys are RMS-normalised per head before the rotation (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Attention logits are divided by the root of this number; `None` is `D`.
    pub query_scalar: Option<f64>,
    /// With `Some(c)` attention logits z become `c tanh(z / c)` (Gemma 2).
    pub attention_softcap: Option<f64>,
    /// The same of token logits.
    pub final_softcap: Option<f64>,
    /// With `Some(w)` a token attends to itself and the `w - 1` tokens before it (Mistral), in every
    /// layer but those of `full_attention`.
    pub sliding_window: Option<usize>,
    /// Layers that attend to all earlier tokens although others have a window (Gemma, Qwen).
    pub full_attention: BTreeSet<usize>,
    /// Layers that rotate nothing, so that they see no positions (SmolLM3: Yang et al. 2025, arXiv
    /// 2501.18795).
    pub unrotated: BTreeSet<usize>,
    /// The rotation of layers with a window, where it is another than that of `position` (Gemma 3).
    pub local_rotary: Option<Rotary>,
    /// The id that begins a sequence, where the model has one.
    pub bos: Option<u32>,
    /// The ids that end a completion. A set: chat models stop at several.
    pub eos: BTreeSet<u32>,
    /// The id that programs which pad fill batches with. Nothing here pads. Where there is none, one that neither
    /// begins nor ends a text is written.
    pub pad: Option<u32>,
}

/// A family of decoders: a table of names, one file each under `src/families/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// GPT-2: learned positions, LayerNorm, GELU, biases everywhere.
    Gpt2,
    /// GPT-NeoX and Pythia: rotary positions in part of each head, LayerNorm, GELU, biases,
    /// attention and MLP in parallel.
    GptNeox,
    /// Llama 1 to 3, SmolLM2 and everything written as `LlamaForCausalLM`.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with a QKV bias.
    Qwen2,
    /// Qwen3: Llama with QK-norm and a head dimension of its own.
    Qwen3,
    /// SmolLM3: Llama with layers that see no positions.
    SmolLm3,
    /// Gemma 2: a scaled embedding, norms around attention and MLP, GeGLU, a window in every other layer, soft caps.
    Gemma2,
    /// The text models of Gemma 3: Gemma 2 with QK-norm in the place of caps, and two rotations.
    Gemma3,
}

/// The normalisation of a decoder. Its `eps` is added to the variance (or mean square).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// LayerNorm with gain and bias.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
    /// RMSNorm with gain alone.
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// RMSNorm whose gain is 1 plus the parameter (Gemma). Files hold the parameter, and it starts at 0.
    RmsOnePlus {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// What is added to the variance or the mean square.
    pub fn eps(&self) -> f64 {
        let (Norm::Layer { eps } | Norm::Rms { eps } | Norm::RmsOnePlus { eps }) = *self;
        eps
    }
}

/// How positions enter a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// A learned row per position is added to the embedding.
    Learned,
    /// Queries and keys are rotated (Su et al. 2021).
    Rotary(Rotary),
}

/// Rotary positions in the half-split convention: element `i` is paired with `i + dim / 2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading elements of each head that are rotated; even, at most `head_dim`.
    pub dim: usize,
    /// How the frequencies are stretched to a longer context.
    pub scaling: Scaling,
}

/// Context extension of rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1's rule: wavelengths beyond `original_context / low_freq_factor` are stretched by
    /// `factor`, those below `original_context / high_freq_factor` kept, those between blended.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Where stretching in full begins.
        low_freq_factor: f64,
        /// Where stretching ends.
        high_freq_factor: f64,
        /// Context length before the extension.
        original_context: f64,
    },
    /// YaRN ([`instruct_kernels::RopeScaling::Yarn`]): pairs that turn often within the original context are kept,
    /// those that hardly turn are stretched by `factor`, and attention is sharpened.
    Yarn {
        /// The stretch of the pairs that turn least.
        factor: f64,
        /// Pairs that turn more often than this are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this are stretched fully.
        beta_slow: f64,
        /// Whether the two bounds are widened to whole pairs.
        truncate: bool,
        /// Context length before the extension.
        original_context: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// What stands between the MLP's two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU with the tanh approximation (GPT-2's `gelu_new`).
    GeluTanh,
    /// GELU with the error function.
    GeluErf,
    /// `silu(gate) * up` (Shazeer 2020).
    SwiGlu,
    /// `gelu(gate) * up` with the tanh approximation.
    GeGlu,
}

impl Activation {
    /// Whether a gate multiplies the first product, which then has `2 I` rows.
    pub fn is_gated(self) -> bool {
        matches!(self, Activation::SwiGlu | Activation::GeGlu)
    }
}

/// What reads the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Token logits, `(V,)` per row.
    LanguageModel,
    /// One scalar at the last token: a reward model.
    Score,
    /// One scalar per token: a value model.
    Value,
    /// Token logits and one scalar per token from the same trunk: a policy with a value head.
    LanguageModelWithValue,
}

impl HeadKind {
    /// Whether it gives token logits.
    pub fn is_language(self) -> bool {
        matches!(self, HeadKind::LanguageModel | HeadKind::LanguageModelWithValue)
    }

    /// Whether it gives scalars.
    pub fn is_scalar(self) -> bool {
        self != HeadKind::LanguageModel
    }
}

/// Numbers in a table of rotations: a million positions of 128 elements, 512 MiB. Weights are as large
/// as their file, and nothing but this bounds the table.
const ROTARY_TABLE: usize = 1 << 27;

/// The most blocks that a decoder may have.
pub(crate) const MOST_LAYERS: usize = 1 << 10;

/// Name and shape of one parameter.
pub type NamedShape = (String, Vec<usize>);

impl Config {
    /// A small GPT-2 with a tied head, an MLP of `4 * width` and no special tokens.
    pub fn tiny_gpt2(vocab: usize, width: usize, layers: usize, heads: usize, context: usize) -> Config {
        Config {
            family: Family::Gpt2,
            vocab,
            width,
            layers,
            heads,
            kv_heads: heads,
            head_dim: width / heads.max(1),
            inner: width.saturating_mul(4),
            context,
            embed_scale: 1.0,
            norm: Norm::Layer { eps: 1e-5 },
            post_norms: false,
            position: Position::Learned,
            activation: Activation::GeluTanh,
            parallel_residual: false,
            qkv_bias: true,
            attn_out_bias: true,
            mlp_bias: true,
            tied: true,
            qk_norm: false,
            query_scalar: None,
            attention_softcap: None,
            final_softcap: None,
            sliding_window: None,
            full_attention: BTreeSet::new(),
            unrotated: BTreeSet::new(),
            local_rotary: None,
            bos: None,
            eos: BTreeSet::new(),
            pad: None,
        }
    }

    /// Rows of `layers.{i}.qkv`: `(H + 2 * kv_heads) * D`.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The scale of attention logits, `1/sqrt(D)` unless [`Config::query_scalar`] says otherwise.
    pub fn attention_scale(&self) -> f64 {
        1.0 / self.query_scalar.unwrap_or(self.head_dim as f64).sqrt()
    }

    /// The window of a layer, see [`Config::sliding_window`]; `None` where it attends to all earlier tokens.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| !self.full_attention.contains(&layer))
    }

    /// The rotation of a layer; `None` where it sees no positions, or learned ones.
    pub fn rotary(&self, layer: usize) -> Option<Rotary> {
        match self.position {
            Position::Rotary(rotary) if !self.unrotated.contains(&layer) => {
                Some(self.local_rotary.filter(|_| self.window(layer).is_some()).unwrap_or(rotary))
            }
            _ => None,
        }
    }

    /// Name and shape of every parameter of the decoder with this head, sorted by name. Matrices
    /// are stored `(out, in)`; the qkv rows are queries, keys, values, the `gate_up` rows gate, up.
    pub fn specs(&self, head: HeadKind) -> Vec<NamedShape> {
        let mut specs = vec![("embed.weight".to_owned(), vec![self.vocab, self.width])];
        if self.position == Position::Learned {
            specs.push(("position.weight".to_owned(), vec![self.context, self.width]));
        }
        for layer in 0..self.layers {
            self.layer_specs(&format!("layers.{layer}"), &mut specs);
        }
        self.norm_specs("norm", &mut specs);
        if head.is_language() && !self.tied {
            specs.push(("lm_head.weight".to_owned(), vec![self.vocab, self.width]));
        }
        if head.is_scalar() {
            linear("score", 1, self.width, true, &mut specs);
        }
        specs.sort();
        specs
    }

    fn layer_specs(&self, layer: &str, specs: &mut Vec<NamedShape>) {
        let attended = self.heads * self.head_dim;
        self.norm_specs(&format!("{layer}.attn_norm"), specs);
        linear(&format!("{layer}.qkv"), self.qkv_rows(), self.width, self.qkv_bias, specs);
        if self.qk_norm {
            specs.push((format!("{layer}.q_norm.weight"), vec![self.head_dim]));
            specs.push((format!("{layer}.k_norm.weight"), vec![self.head_dim]));
        }
        linear(&format!("{layer}.attn_out"), self.width, attended, self.attn_out_bias, specs);
        self.norm_specs(&format!("{layer}.mlp_norm"), specs);
        if self.post_norms {
            self.norm_specs(&format!("{layer}.attn_post_norm"), specs);
            self.norm_specs(&format!("{layer}.mlp_post_norm"), specs);
        }
        let (up, rows) = if self.activation.is_gated() { ("gate_up", 2 * self.inner) } else { ("up", self.inner) };
        linear(&format!("{layer}.{up}"), rows, self.width, self.mlp_bias, specs);
        linear(&format!("{layer}.down"), self.width, self.inner, self.mlp_bias, specs);
    }

    fn norm_specs(&self, name: &str, specs: &mut Vec<NamedShape>) {
        specs.push((format!("{name}.weight"), vec![self.width]));
        if matches!(self.norm, Norm::Layer { .. }) {
            specs.push((format!("{name}.bias"), vec![self.width]));
        }
    }

    /// Number of parameters with this head.
    pub fn parameters(&self, head: HeadKind) -> usize {
        self.specs(head).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`Error::Config`] that lists every field in disagreement, not just the first.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        for (field, value, most) in self.counts() {
            require((1..=most).contains(&value), format!("{field} is {value}; it must lie in 1..={most}"));
        }
        let Config { heads, kv_heads, head_dim, vocab, .. } = *self;
        require(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            format!("kv_heads ({kv_heads}) does not divide heads ({heads})"),
        );
        require(
            !matches!(self.family, Family::Gpt2 | Family::GptNeox) || heads.saturating_mul(head_dim) == self.width,
            format!(
                "heads ({heads}) times head_dim ({head_dim}) is not the width ({}), as in {:?}",
                self.width, self.family
            ),
        );
        let eps = self.norm.eps();
        require(eps > 0.0 && eps < 1.0, format!("norm eps is {eps}; it must lie between 0 and 1"));
        require(self.sliding_window != Some(0), "sliding_window is 0; leave it out for full attention".to_owned());
        for (field, layers) in [("full_attention", &self.full_attention), ("unrotated", &self.unrotated)] {
            let beyond = layers.last().filter(|last| **last >= self.layers);
            require(
                beyond.is_none(),
                format!("{field} names layer {} of {}", beyond.copied().unwrap_or_default(), self.layers),
            );
        }
        require(
            self.full_attention.is_empty() || self.sliding_window.is_some() && self.full_attention.len() < self.layers,
            "full_attention names layers, but no other layer has a window".to_owned(),
        );
        require(
            self.unrotated.is_empty() || self.position != Position::Learned,
            "unrotated names layers of a model whose positions are learned".to_owned(),
        );
        for id in self.bos.iter().chain(&self.eos) {
            require((*id as usize) < vocab, format!("special token {id} lies outside the vocabulary of {vocab}"));
        }
        require(
            self.local_rotary.is_none() || self.position != Position::Learned && self.sliding_window.is_some(),
            "local_rotary is set, but no layer has both a rotation and a window".to_owned(),
        );
        for (field, number) in [
            ("embed_scale", Some(self.embed_scale)),
            ("query_scalar", self.query_scalar),
            ("attention_softcap", self.attention_softcap),
            ("final_softcap", self.final_softcap),
        ] {
            // As an f32 it must be neither 0 nor infinite.
            let sound = number.is_none_or(|number| (1e-6..=1e12).contains(&number));
            require(sound, format!("{field} is {}; it must lie between 1e-6 and 1e12", number.unwrap_or(0.0)));
        }
        for Rotary { theta, dim, scaling } in self.rotations() {
            require(
                dim > 0 && dim <= head_dim && dim.is_multiple_of(2),
                format!("rotary dim {dim} must be even and at most head_dim ({head_dim})"),
            );
            require(
                self.context.saturating_mul(dim) <= ROTARY_TABLE,
                format!("context ({}) times rotary dim ({dim}) exceeds {ROTARY_TABLE}", self.context),
            );
            require(theta.is_finite() && theta > 1.0, format!("rotary theta is {theta}; it must exceed 1"));
            require(
                scaling.is_sound(),
                format!("rotary scaling {scaling:?} needs positive factors, low below high, slow below fast"),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Config { problems }) }
    }

    /// The rotation of `position` and the local one, as far as there are any.
    fn rotations(&self) -> impl Iterator<Item = Rotary> {
        let whole = if let Position::Rotary(rotary) = self.position { Some(rotary) } else { None };
        whole.into_iter().chain(self.local_rotary)
    }

    /// Every count with the most it may be: above every published model, and low enough that no
    /// product of them overflows and that a lying file cannot ask for endless parameters.
    fn counts(&self) -> [(&'static str, usize, usize); 8] {
        [
            ("vocab", self.vocab, 1 << 24),
            ("width", self.width, 1 << 20),
            ("layers", self.layers, MOST_LAYERS),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 14),
            ("inner", self.inner, 1 << 24),
            ("context", self.context, 1 << 28),
        ]
    }

    /// Fills `values` with the initial values of the parameter `name`, drawn from a stream of its own, so
    /// that they do not depend on which other parameters exist.
    ///
    /// GPT-2's rule (Radford et al. 2019): matrices N(0, 0.02), those that write into the residual
    /// stream divided by `sqrt(2 * layers)`, gains 1 (parameters that 1 is added to 0), biases 0. A scalar head is N(0, 1/(C + 1))
    /// in the sense of standard deviation `1/sqrt(C + 1)` (Ziegler et al. 2019).
    pub fn initial(&self, name: &str, seed: u64, values: &mut [f32]) {
        let deviation = match name {
            _ if name.ends_with(".bias") => return values.fill(0.0),
            _ if name.ends_with("norm.weight") => {
                return values.fill(if matches!(self.norm, Norm::RmsOnePlus { .. }) { 0.0 } else { 1.0 });
            }
            "score.weight" => 1.0 / (self.width as f64 + 1.0).sqrt(),
            _ if name.ends_with(".attn_out.weight") || name.ends_with(".down.weight") => {
                0.02 / (2.0 * self.layers as f64).sqrt()
            }
            _ => 0.02,
        };
        let mut draws = Source::new(seed, &format!("initial {name}")).at([]);
        values.fill_with(|| deviation as f32 * draws.normal());
    }
}

impl Scaling {
    fn is_sound(&self) -> bool {
        match *self {
            Scaling::None => true,
            Scaling::Linear { factor } => factor.is_finite() && factor > 0.0,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                factor.is_finite()
                    && factor > 0.0
                    && low_freq_factor > 0.0
                    && high_freq_factor > low_freq_factor
                    && original_context > 0.0
            }
            Scaling::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor, .. } => {
                let positive = |x: f64| x.is_finite() && x > 0.0;
                [factor, beta_slow, original_context, attention_factor].into_iter().all(positive)
                    && beta_fast.is_finite()
                    && beta_fast >= beta_slow
            }
        }
    }
}

fn linear(name: &str, out: usize, inputs: usize, bias: bool, specs: &mut Vec<NamedShape>) {
    specs.push((format!("{name}.weight"), vec![out, inputs]));
    if bias {
        specs.push((format!("{name}.bias"), vec![out]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Config {
        Config::tiny_gpt2(50, 16, 3, 4, 32)
    }

    /// `change` makes the description unsound in as many ways as there are `expected` lines.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: &[&str]) {
        let mut config = tiny();
        change(&mut config);
        let problems = match config.validate() {
            Ok(()) => Vec::new(),
            Err(Error::Config { problems }) => problems,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "no {part:?} in {problem:?}");
        }
    }

    #[test]
    fn unsound_descriptions_are_refused_by_field() {
        let rotary = |theta, dim, scaling| Position::Rotary(Rotary { theta, dim, scaling });
        check(|_| {}, &[]);
        check(|c| (c.vocab, c.context) = (0, 0), &["vocab is 0", "context is 0"]);
        check(|c| c.layers = usize::MAX, &["layers is"]);
        check(|c| c.kv_heads = 3, &["kv_heads (3) does not divide heads (4)"]);
        check(|c| c.width = 17, &["is not the width (17)"]);
        check(|c| c.norm = Norm::Layer { eps: 0.0 }, &["norm eps is 0"]);
        check(|c| c.sliding_window = Some(0), &["sliding_window is 0"]);
        check(|c| (c.bos, c.eos) = (Some(50), [49, 51].into()), &["special token 50", "special token 51"]);
        check(|c| c.position = rotary(1e4, 4, Scaling::None), &[]);
        check(|c| c.position = rotary(1e4, 3, Scaling::None), &["rotary dim 3"]);
        check(|c| c.position = rotary(1e4, 6, Scaling::None), &["rotary dim 6"]);
        check(|c| c.position = rotary(f64::NAN, 4, Scaling::None), &["rotary theta is NaN"]);
        check(|c| c.position = rotary(1e4, 4, Scaling::Linear { factor: 0.0 }), &["rotary scaling"]);
        let yarn = |beta_fast, attention_factor| Scaling::Yarn {
            factor: 4.0,
            beta_fast,
            beta_slow: 1.0,
            truncate: true,
            original_context: 8.0,
            attention_factor,
        };
        check(|c| c.position = rotary(1e4, 4, yarn(32.0, 1.1)), &[]);
        check(|c| c.position = rotary(1e4, 4, yarn(0.5, 1.1)), &["slow below fast"]);
        check(|c| c.position = rotary(1e4, 4, yarn(32.0, f64::NAN)), &["positive factors"]);
    }

    #[test]
    fn parameters_are_counted_as_openai_counts_them() {
        let gpt2 = Config::tiny_gpt2(50257, 768, 12, 12, 1024);
        assert_eq!(gpt2.parameters(HeadKind::LanguageModel), 124_439_808);
        assert_eq!(gpt2.parameters(HeadKind::Score), 124_439_808 + 769);
        assert_eq!(Config { tied: false, ..gpt2 }.parameters(HeadKind::LanguageModel), 124_439_808 + 50257 * 768);
    }

    fn initial(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
        let mut values = vec![f32::NAN; shape.iter().product()];
        tiny().initial(name, seed, &mut values);
        values
    }

    /// Mean 0 and the given deviation, within five standard errors of the estimate.
    #[track_caller]
    fn deviates(name: &str, shape: &[usize], deviation: f64) {
        let values = initial(name, shape, 7);
        let n = values.len() as f64;
        let square: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 * deviation / n.sqrt(), "{name}: mean {mean}");
        assert!((square.sqrt() / deviation - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{name}: {}", square.sqrt());
    }

    #[test]
    fn initial_values_follow_gpt2() {
        deviates("embed.weight", &[500, 16], 0.02);
        deviates("layers.0.qkv.weight", &[480, 16], 0.02);
        deviates("layers.2.attn_out.weight", &[160, 64], 0.02 / 6f64.sqrt());
        deviates("layers.2.down.weight", &[160, 64], 0.02 / 6f64.sqrt());
        deviates("score.weight", &[10, 1600], 1.0 / 17f64.sqrt());
        assert_eq!(initial("layers.1.attn_norm.weight", &[3], 7), [1.0; 3]);
        assert_eq!(initial("layers.1.q_norm.weight", &[3], 7), [1.0; 3]);
        assert_eq!(initial("norm.bias", &[3], 7), [0.0; 3]);
        let draw = |name, seed| initial(name, &[4, 4], seed);
        assert_eq!(draw("layers.0.up.weight", 7), draw("layers.0.up.weight", 7));
        assert_ne!(draw("layers.0.up.weight", 7), draw("layers.0.up.weight", 8));
        assert_ne!(draw("layers.0.up.weight", 7), draw("layers.1.up.weight", 7));
    }
}
