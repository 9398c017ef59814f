//! GGUF files as llama.cpp's converters write them: quantised weights become `f32`, metadata the
//! description, and the tokenizer comes out as plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use candle_core::{Device, quantized::gguf_file::TensorInfo};

use super::{
    Checkpoint, Expected, Store,
    gguf_head::{DAMAGED, Head, Value},
    gguf_rope::ROPE_FREQS,
};
use crate::{
    Activation, Config, Error, Family, HeadKind, Norm, Position, Result, Rotary, Scaling,
    families::{Order, Piece, every, qkv_rows, query_scalar, unrotated},
};
use instruct_data::GgufTokenizer;

/// Opens a GGUF file of architecture `llama` (Mistral's too), `qwen2`, `qwen3`, `smollm3`,
/// `gemma2`, `gemma3` or `gpt2`.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let mut gguf = Gguf::open(path)?;
    gguf.is_whole()?;
    let tokenizer = gguf.tokenizer()?;
    let config = Config { eos: tokenizer.stops(), ..gguf.config()? };
    config.validate().map_err(|why| Error::format(path, why.to_string(), DAMAGED))?;
    let pieces = Expected {
        config: &config,
        head: HeadKind::LanguageModel,
        pieces: pieces(&config),
        prefix: "",
        harmless: &|name| name == ROPE_FREQS && config.position != Position::Learned,
        unembedding: UNEMBEDDING,
    }
    .resolve(&gguf)?;
    if tokenizer.tokens.len() > config.vocab {
        let problem = format!(
            "tokenizer.ggml.tokens has {} entries, and {EMBEDDING} {} rows",
            tokenizer.tokens.len(),
            config.vocab
        );
        return Err(Error::format(path, problem, "convert the model again"));
    }
    let tokenizer = Some(tokenizer);
    let head = HeadKind::LanguageModel;
    Ok(Checkpoint { config, head, tokenizer, pieces, store: Box::new(gguf), given: BTreeMap::new() })
}

const EMBEDDING: &str = "token_embd.weight";
const UNEMBEDDING: &str = "output.weight";
pub(super) const OTHER: &str = "use the model's Hugging Face folder instead";

/// A file whose head has been read.
#[derive(Debug)]
pub(super) struct Gguf {
    pub(super) path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    data: u64,
}

impl Gguf {
    fn open(path: &Path) -> Result<Gguf> {
        let file = super::open_file(path, super::NEXT)?;
        let Head { metadata, tensors, data } = Head::read(path, file)?;
        Ok(Gguf { path: path.to_owned(), metadata, tensors, data })
    }

    /// What the metadata describes, but for the ids that end a completion.
    fn config(&self) -> Result<Config> {
        let architecture = self.text("general.architecture")?.unwrap_or_default();
        let family = match architecture.as_str() {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "smollm3" => Family::SmolLm3,
            "gemma2" => Family::Gemma2,
            "gemma3" => Family::Gemma3,
            "gpt2" => Family::Gpt2,
            other => {
                let problem = format!(
                    "general.architecture is {other:?}; known are llama, qwen2, qwen3, smollm3, gemma2, gemma3, gpt2"
                );
                return Err(Error::format(&self.path, problem, "use a model of a known family"));
            }
        };
        match family {
            Family::Gpt2 => self.gpt2(),
            Family::Gemma2 | Family::Gemma3 => self.gemma(&architecture, family),
            _ => self.llama(&architecture, family),
        }
    }

    /// Refuses a part of a model that was split over several files.
    fn is_whole(&self) -> Result<()> {
        match self.optional_count("split.count")? {
            Some(parts) if parts > 1 => {
                let part = self.optional_count("split.no")?.unwrap_or(0).saturating_add(1);
                let problem = format!("this is part {part} of a model in {parts} files (split.count)");
                Err(Error::format(&self.path, problem, "join them with llama-gguf-split --merge, and give the result"))
            }
            _ => Ok(()),
        }
    }

    /// What the head says of a tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    fn gpt2(&self) -> Result<Config> {
        let width = self.count("gpt2.embedding_length")?;
        let heads = self.count("gpt2.attention.head_count")?;
        let (layers, context) = (self.count("gpt2.block_count")?, self.count("gpt2.context_length")?);
        Ok(Config {
            inner: self.count("gpt2.feed_forward_length")?,
            norm: Norm::Layer { eps: self.number("gpt2.attention.layer_norm_epsilon")?.unwrap_or(1e-5) },
            tied: self.tied()?,
            bos: self.id("bos")?,
            pad: self.id("padding")?,
            ..Config::tiny_gpt2(self.vocab()?, width, layers, heads, context)
        })
    }

    fn llama(&self, architecture: &str, family: Family) -> Result<Config> {
        let key = |name: &str| format!("{architecture}.{name}");
        let width = self.count(&key("embedding_length"))?;
        let heads = self.count(&key("attention.head_count"))?;
        let (layers, context) = (self.count(&key("block_count"))?, self.count(&key("context_length"))?);
        let head_dim = self.optional_count(&key("attention.key_length"))?.unwrap_or(width / heads.max(1));
        let kv_heads = self.optional_count(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let window = self.optional_count(&key("attention.sliding_window"))?.filter(|&w| w > 0);
        Ok(Config {
            // Mistral's files say llama; only its window tells them apart.
            family: if family == Family::Llama && window.is_some() { Family::Mistral } else { family },
            kv_heads,
            head_dim,
            inner: self.count(&key("feed_forward_length"))?,
            norm: Norm::Rms { eps: self.number(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-6) },
            position: Position::Rotary(self.rotary(architecture, head_dim, context)?),
            activation: Activation::SwiGlu,
            qkv_bias: self.tensors.contains_key("blk.0.attn_q.bias"),
            attn_out_bias: self.tensors.contains_key("blk.0.attn_output.bias"),
            mlp_bias: self.tensors.contains_key("blk.0.ffn_up.bias"),
            tied: self.tied()?,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            sliding_window: window,
            unrotated: if family == Family::SmolLm3 { unrotated(layers) } else { BTreeSet::new() },
            bos: self.id("bos")?,
            pad: self.id("padding")?,
            ..Config::tiny_gpt2(self.vocab()?, width, layers, heads, context)
        })
    }

    /// What is not in these files llama.cpp knows by the architecture: the layers without a window, the rotation of
    /// those with one, and, by the number of layers, by what the largest of each generation scales its queries. A file
    /// of Gemma 3 without a window means that no layer has one.
    fn gemma(&self, architecture: &str, family: Family) -> Result<Config> {
        let config = self.llama(architecture, family)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let number = |name: &str| self.number(&key(name));
        let (period, largest) = if family == Family::Gemma2 { (2, 46) } else { (6, 62) };
        let per_head = config.width / config.heads.max(1);
        let scalar = if config.layers == largest { per_head } else { config.head_dim };
        let (attention, last) = (number("attn_logit_softcapping")?, number("final_logit_softcapping")?);
        let caps = match family {
            Family::Gemma2 => (attention.or(Some(50.0)), last.or(Some(30.0))),
            _ => (attention, last),
        };
        let period = self.optional_count(&key("attention.sliding_window_pattern"))?.unwrap_or(period);
        let usual = (family == Family::Gemma2).then_some(4096);
        let window = config.sliding_window.or(usual).filter(|_| period != 1);
        let theta = number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let local = Rotary { theta, dim: config.head_dim, scaling: Scaling::None };
        Ok(Config {
            embed_scale: (config.width as f64).sqrt(),
            norm: Norm::RmsOnePlus { eps: config.norm.eps() },
            post_norms: true,
            activation: Activation::GeGlu,
            query_scalar: query_scalar(scalar as f64, config.head_dim),
            attention_softcap: caps.0,
            final_softcap: caps.1,
            sliding_window: window,
            full_attention: window.map_or(BTreeSet::new(), |_| every(period, config.layers)),
            local_rotary: window.filter(|_| family == Family::Gemma3).map(|_| local),
            ..config
        })
    }

    /// Converters that quantise a tied head on its own leave two tensors that differ: then the
    /// model that the file holds is an untied one.
    fn tied(&self) -> Result<bool> {
        let (Some(head), Some(embedding)) = (self.tensors.get(UNEMBEDDING), self.tensors.get(EMBEDDING)) else {
            return Ok(true);
        };
        let alike = head.ggml_dtype == embedding.ggml_dtype && head.shape == embedding.shape;
        Ok(alike && self.read(UNEMBEDDING)? == self.read(EMBEDDING)?)
    }

    /// Rows of the embedding; the file's own count of tokens may be padded or absent.
    fn vocab(&self) -> Result<usize> {
        let rows = self.tensors.get(EMBEDDING).and_then(|info| info.shape.dims().first().copied());
        rows.ok_or_else(|| Error::Tensors { path: self.path.clone(), problems: vec![format!("missing: {EMBEDDING}")] })
    }

    /// Takes the tokenizer out of the metadata. Its lists are long, and nothing else asks for them.
    fn tokenizer(&mut self) -> Result<GgufTokenizer> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let flag = |value: &Value| if let Value::Bool(flag) = *value { Some(flag) } else { None };
        Ok(GgufTokenizer {
            path: self.path.clone(),
            tokens: self.texts(&key("tokens"))?,
            token_types: self.numbers(&key("token_type"))?.into_iter().map(|n| n as i32).collect(),
            scores: self.numbers(&key("scores"))?.into_iter().map(|n| n as f32).collect(),
            merges: self.texts(&key("merges"))?,
            model: self.text(&key("model"))?.unwrap_or_default(),
            pre: self.text(&key("pre"))?,
            bos: self.id("bos")?,
            eos: self.id("eos")?,
            eot: self.id("eot")?,
            eom: self.id("eom")?,
            unknown: self.id("unknown")?,
            padding: self.id("padding")?,
            add_bos: self.field(&key("add_bos_token"), "true or false", flag)?,
            add_space_prefix: self.field(&key("add_space_prefix"), "true or false", flag)?,
            chat_template: self.text("tokenizer.chat_template")?,
        })
    }

    fn id(&self, role: &str) -> Result<Option<u32>> {
        let id = |value: &Value| if let Value::Integer(id) = *value { u32::try_from(id).ok() } else { None };
        self.field(&format!("tokenizer.ggml.{role}_token_id"), "a token id", id)
    }

    fn count(&self, key: &str) -> Result<usize> {
        let missing = || Error::format(&self.path, format!("the metadata lacks {key}"), OTHER);
        self.optional_count(key)?.ok_or_else(missing)
    }

    pub(super) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let whole = |value: &Value| number(value).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as usize);
        self.field(key, "a count", whole)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.field(key, "a number", number)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        self.field(key, "a text", |value| if let Value::Text(text) = value { Some(text.clone()) } else { None })
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>> {
        match self.metadata.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Texts(texts)) => Ok(texts),
            Some(other) => Err(self.wrong(key, &other, "a list of texts")),
        }
    }

    fn numbers(&mut self, key: &str) -> Result<Vec<f64>> {
        match self.metadata.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Numbers(numbers)) => Ok(numbers),
            Some(other) => Err(self.wrong(key, &other, "a list of numbers")),
        }
    }

    fn field<T>(&self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, value, kind))
    }

    fn wrong(&self, key: &str, value: &Value, kind: &str) -> Error {
        Error::format(&self.path, format!("{key} is {}, not {kind}", value.kind()), DAMAGED)
    }
}

impl Store for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn listing(&self) -> BTreeMap<&str, std::result::Result<&[usize], String>> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), Ok(info.shape.dims()))).collect()
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let fail = |why| Error::format(&self.path, format!("{name}: {}", first_line(&why)), DAMAGED);
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::Tensors { path: self.path.clone(), problems: vec![format!("missing: {name}")] })?;
        let mut file = File::open(&self.path).map_err(Error::io("read", &self.path, super::NEXT))?;
        super::finite(&self.path, name, dequantised(info, &mut file, self.data).map_err(fail)?)
    }
}

fn dequantised(info: &TensorInfo, file: &mut File, data: u64) -> candle_core::Result<Vec<f32>> {
    info.read(file, data, &Device::Cpu)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// Candle's messages may carry a backtrace below their first line.
fn first_line(why: &candle_core::Error) -> String {
    why.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Any number of the metadata; converters differ in its width and sign.
fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::Integer(n) => Some(n as f64),
        Value::Float(x) => Some(x),
        _ => None,
    }
}

/// Every tensor that llama.cpp's converter writes for this decoder.
fn pieces(config: &Config) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole(EMBEDDING, "embed.weight", config.vocab)];
    if config.position == Position::Learned {
        pieces.push(Piece::whole("position_embd.weight", "position.weight", config.context));
    }
    for layer in 0..config.layers {
        layer_pieces(config, layer, &mut pieces);
    }
    let layer_norm = matches!(config.norm, Norm::Layer { .. });
    pieces.extend(parts(layer_norm).iter().map(|part| Piece {
        order: norm_order(config),
        ..Piece::whole(format!("output_norm.{part}"), format!("norm.{part}"), config.width)
    }));
    if !config.tied {
        pieces.push(Piece::whole(UNEMBEDDING, "lm_head.weight", config.vocab));
    }
    pieces
}

fn layer_pieces(config: &Config, layer: usize, pieces: &mut Vec<Piece>) {
    let mut add = |disk: &str, ours: &str, rows: Range<usize>, biased: bool, order: Order| {
        pieces.extend(parts(biased).iter().map(|part| Piece {
            disk: format!("blk.{layer}.{disk}.{part}"),
            canonical: format!("layers.{layer}.{ours}.{part}"),
            rows: rows.clone(),
            order,
        }));
    };
    let &Config { width, inner, head_dim, qkv_bias, mlp_bias, .. } = config;
    let layer_norm = matches!(config.norm, Norm::Layer { .. });
    let norm = norm_order(config);
    add("attn_norm", "attn_norm", 0..width, layer_norm, norm);
    add("ffn_norm", "mlp_norm", 0..width, layer_norm, norm);
    if config.post_norms {
        add("post_attention_norm", "attn_post_norm", 0..width, layer_norm, norm);
        add("post_ffw_norm", "mlp_post_norm", 0..width, layer_norm, norm);
    }
    add("attn_output", "attn_out", 0..width, config.attn_out_bias, Order::Same);
    add("ffn_down", "down", 0..width, mlp_bias, Order::Same);
    if config.family == Family::Gpt2 {
        add("attn_qkv", "qkv", 0..config.qkv_rows(), qkv_bias, Order::Same);
        add("ffn_up", "up", 0..inner, mlp_bias, Order::Same);
        return;
    }
    // The converter interleaves Llama's halves for a rotation of neighbours, and leaves Qwen's.
    let rotated = match config.family {
        Family::Llama | Family::Mistral | Family::SmolLm3 => Order::Interleaved { head_dim },
        _ => Order::Same,
    };
    let [queries, keys, values] = qkv_rows(config);
    add("attn_q", "qkv", queries, qkv_bias, rotated);
    add("attn_k", "qkv", keys, qkv_bias, rotated);
    add("attn_v", "qkv", values, qkv_bias, Order::Same);
    if config.qk_norm {
        add("attn_q_norm", "q_norm", 0..head_dim, false, norm);
        add("attn_k_norm", "k_norm", 0..head_dim, false, norm);
    }
    add("ffn_gate", "gate_up", 0..inner, mlp_bias, Order::Same);
    add("ffn_up", "gate_up", inner..2 * inner, mlp_bias, Order::Same);
}

/// The converter adds the 1 that Gemma's gains are stored without.
fn norm_order(config: &Config) -> Order {
    if matches!(config.norm, Norm::RmsOnePlus { .. }) { Order::OnePlus } else { Order::Same }
}

fn parts(biased: bool) -> &'static [&'static str] {
    if biased { &["weight", "bias"] } else { &["weight"] }
}
