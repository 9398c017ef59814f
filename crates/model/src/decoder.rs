//! The decoder: one forward pass, driven by its description, that every family shares.

use crate::{Activation, Config, Error, HeadKind, Norm, Position, Result, Rotary, Scaling};
use candle_core::{DType, Device, Tensor};
use instruct_data::Packed;
use instruct_kernels::{
    self as kernels, Branch, CacheRow, DropKey, FeedForward, Gain, HeadLayout, KvCache, Nonlinearity, Param, Params,
    Path, Rope, RopeScaling, Scoring, Span, Spec, Unembedding,
};
use instruct_random::Source;
use std::sync::Arc;

/// A decoder with one head. Its parameters are the canonical names of [`Config::specs`] in one
/// flat buffer.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    head: HeadKind,
    params: Params,
    embed: Param,
    position: Option<Param>,
    blocks: Vec<Block>,
    norm: NormParams,
    unembed: Option<Unembedding>,
    scalar: Option<Affine>,
}

/// Whether a forward pass is to be differentiated, and with what noise.
#[derive(Clone, Copy, Debug)]
pub enum Pass {
    /// No graph is recorded.
    Infer,
    /// Recorded; dropout off, as in the reward model and in PPO.
    Train,
    /// Recorded, with residual dropout, as in supervised fine-tuning.
    TrainWithDropout(Dropout),
}

/// Residual dropout: on the outputs of attention and MLP (Radford et al. 2019; rate 0.2 in Ouyang
/// et al. 2022). Masks are drawn per `(step, example, position)`, layer and site.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability of zeroing one element.
    pub rate: f32,
    /// Where the masks come from.
    pub source: Source,
    /// The optimizer step, so that every step draws anew.
    pub step: u64,
}

#[derive(Debug)]
struct Block {
    window: Option<usize>,
    rope: Option<Arc<Rope>>,
    attn_norm: NormParams,
    qkv: Affine,
    head_norms: Option<(Gain, Gain)>,
    attn_out: Affine,
    attn_post_norm: Option<NormParams>,
    mlp_norm: NormParams,
    mlp: FeedForward,
    mlp_post_norm: Option<NormParams>,
}

#[derive(Debug)]
struct Affine {
    weight: Param,
    bias: Option<Param>,
}

#[derive(Debug)]
enum NormParams {
    Layer { gain: Param, bias: Param, eps: f64 },
    Rms { gain: Gain, eps: f64 },
}

impl Decoder {
    /// A decoder whose parameters are all zero, to be filled by [`Decoder::initialise`] or from a
    /// checkpoint. [`Params::zeros`] says what `compute` means.
    ///
    /// Errors: the description does not hold together; the path does not exist on the device.
    pub fn zeros(config: Config, head: HeadKind, device: &Device, path: Path, compute: DType) -> Result<Decoder> {
        config.validate()?;
        let specs = config.specs(head).into_iter().map(|(name, shape)| Spec::new(name, shape)).collect();
        Decoder::over(config, head, Params::zeros(specs, device, path, compute)?)
    }

    /// Fills every parameter with its initial value ([`Config::initial`]).
    pub fn initialise(&self, seed: u64) -> Result<()> {
        Ok(self.params.fill(|slot, values| self.config.initial(&slot.name, seed, values))?)
    }

    /// The same weights in storage of their own: a reference policy, or an average that starts here.
    pub fn deep_copy(&self) -> Result<Decoder> {
        Decoder::over(self.config.clone(), self.head, self.params.deep_copy()?)
    }

    /// The same decoder for inference alone, its matrices held in bf16
    /// ([`instruct_kernels::Params::held_in_bf16`]): a reference policy or a reward model at half the memory.
    ///
    /// Errors: the composed path.
    pub fn held_in_bf16(&self) -> Result<Decoder> {
        Decoder::over(self.config.clone(), self.head, self.params.held_in_bf16()?)
    }

    /// The same trunk under another head, whose own parameters take their initial values: how a
    /// reward model starts from a language model, and a value model from a reward model (where the
    /// scalar head is kept too).
    ///
    /// Errors: a decoder whose matrices are held in bf16, from which they cannot be read.
    pub fn with_head(&self, head: HeadKind, seed: u64) -> Result<Decoder> {
        let other =
            Decoder::zeros(self.config.clone(), head, self.params.device(), self.params.path(), self.params.compute())?;
        for slot in other.params.slots() {
            self.has(&slot.name)?;
        }
        other.params.fill(|slot, values| match self.params.read(&slot.name) {
            Ok(known) => values.copy_from_slice(&known),
            Err(_) => other.config.initial(&slot.name, seed, values),
        })?;
        Ok(other)
    }

    /// Takes over every weight that `other` has under the same name. A head that only one of them has is left out.
    ///
    /// Errors: a shape that differs; a parameter that `other` lacks and that belongs to no such head; matrices of
    /// either that are held in bf16.
    pub fn copy_from(&self, other: &Decoder) -> Result<()> {
        for (name, _) in self.config.specs(self.head) {
            self.has(&name)?;
            if other.has(&name)? {
                self.params.set(&name, &other.params.read(&name)?)?;
            }
        }
        Ok(())
    }

    /// Whether a parameter is here to be read and set; it is not where it belongs to a head that this decoder does
    /// not have.
    ///
    /// Errors: any other parameter that is absent, and one that is held in bf16.
    fn has(&self, name: &str) -> Result<bool> {
        let of_another_head = match name {
            "lm_head.weight" => !self.head.is_language(),
            "score.weight" | "score.bias" => !self.head.is_scalar(),
            _ => false,
        };
        if of_another_head || self.params.slots().iter().any(|slot| slot.name == name) {
            return Ok(!of_another_head);
        }
        self.params.get(name)?;
        Err(Error::HeldInBf16 { name: name.to_owned() })
    }

    fn over(config: Config, head: HeadKind, params: Params) -> Result<Decoder> {
        let get = |name: &str| params.get(name);
        let mut ropes = Ropes::default();
        let block = |i| Block::over(&config, &params, i, ropes.get(config.rotary(i), config.context)?);
        let blocks = (0..config.layers).map(block).collect::<Result<_>>()?;
        Ok(Decoder {
            embed: get("embed.weight")?,
            position: (config.position == Position::Learned).then(|| get("position.weight")).transpose()?,
            blocks,
            norm: NormParams::over(&config, &params, "norm")?,
            unembed: head.is_language().then(|| unembedding(&config, &params)).transpose()?,
            scalar: head.is_scalar().then(|| Affine::over(&params, "score", true)).transpose()?,
            config,
            head,
            params,
        })
    }

    /// What this decoder is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What reads its hidden states.
    pub fn head(&self) -> HeadKind {
        self.head
    }

    /// Its parameters, for optimizers, averages and checkpoints.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Hidden states after the final norm, `(N, C)`, of a packed batch of `N` tokens.
    ///
    /// Errors: a sequence longer than the context, a token outside the vocabulary.
    pub fn hidden(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        self.hidden_of(batch, None, pass)
    }

    /// [`Decoder::hidden`] of some rows only, `(R, C)`: the very same numbers in less time. In the last block the
    /// other rows matter only through their keys and values, so the rest of that block is computed for these rows
    /// alone: a reward model reads one row of a sequence, a policy its completion. A row may be named several times.
    ///
    /// Errors: as [`Decoder::hidden`]; a row outside the batch.
    pub fn hidden_at(&self, batch: &Packed, rows: &[u32], pass: Pass) -> Result<Tensor> {
        self.hidden_of(batch, Some(rows), pass)
    }

    /// [`Decoder::hidden_at`] of the rows that predict, `(M, C)`: row m belongs to the batch's prediction m.
    ///
    /// Errors: as [`Decoder::hidden`].
    pub fn predicting(&self, batch: &Packed, pass: Pass) -> Result<Tensor> {
        let rows: Vec<u32> = batch.predictions().iter().map(|prediction| prediction.row).collect();
        self.hidden_at(batch, &rows, pass)
    }

    fn hidden_of(&self, batch: &Packed, wanted: Option<&[u32]>, pass: Pass) -> Result<Tensor> {
        self.check_context(batch.positions())?;
        let sentinel = (!matches!(pass, Pass::Infer)).then(|| self.params.sentinel());
        let spans: Arc<[Span]> = spans(batch).into();
        let scoring = self.scoring();
        let keys = DropKeys::new(batch, pass);
        kernels::kept_awake(|| {
            let x = self.enter(batch.ids(), batch.positions(), sentinel)?;
            self.blocks(x, batch.positions(), wanted, keys, &mut |layer, qkv| {
                Ok(qkv.attention(&spans, self.layout(), scoring, self.blocks[layer].window)?)
            })
        })
    }

    /// Hidden states after the final norm, `(R, C)`, of the rows `read (R)` of `n` new tokens, which belong
    /// to sequences whose earlier keys and values are in `cache`. Those of the new tokens are added to it.
    ///
    /// Errors: as [`Decoder::hidden_at`]; places that the cache does not have.
    pub fn extend(&self, ids: &[u32], rows: &[CacheRow], read: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let positions: Vec<u32> = rows.iter().map(|row| row.position as u32).collect();
        self.check_context(&positions)?;
        // Before anything is written to the cache.
        if let Some(at) = read.iter().position(|&row| row as usize >= ids.len()) {
            let (index, bound) = (read[at], ids.len());
            return Err(kernels::Error::Index { op: "extend", argument: "read", at, index, bound }.into());
        }
        let scoring = self.scoring();
        let x = self.enter(ids, &positions, None)?;
        let some = read.iter().copied().ne(0..ids.len() as u32).then_some(read);
        self.blocks(x, &positions, some, DropKeys::none(), &mut |layer, qkv| {
            let window = self.blocks[layer].window;
            Ok(qkv.map(|qkv| kernels::cached_attention(qkv, layer, cache, rows, scoring, window))?)
        })
    }

    /// A key-value cache for `slots` sequences of at most `capacity` tokens.
    pub fn cache(&self, slots: usize, capacity: usize) -> Result<KvCache> {
        Ok(KvCache::new(self.config.layers, slots, capacity, self.layout(), self.params.device())?)
    }

    /// The unembedding `(V, C)` and its soft cap, for the losses of [`instruct_kernels`] and for decoding.
    ///
    /// Errors: the head is a scalar one.
    pub fn unembedding(&self) -> Result<&Unembedding> {
        self.unembed.as_ref().ok_or(Error::WrongHead { wanted: "a language head", head: self.head })
    }

    /// The scalar head at some rows of the hidden states: `hidden (N, C)`, `rows (R)` to `(R,)`.
    ///
    /// Errors: the head is a language one.
    pub fn scalars(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let head = self.scalar.as_ref().ok_or(Error::WrongHead { wanted: "a scalar head", head: self.head })?;
        let read = kernels::gather_rows(hidden, rows)?;
        Ok(head.forward(Branch::of(&read))?.alone()?.flatten_all()?)
    }

    fn layout(&self) -> HeadLayout {
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        HeadLayout { heads, kv_heads, head_dim }
    }

    fn scoring(&self) -> Scoring {
        let softcap = self.config.attention_softcap.map(|cap| cap as f32);
        Scoring { scale: self.config.attention_scale() as f32, softcap }
    }

    fn check_context(&self, positions: &[u32]) -> Result<()> {
        match positions.iter().max() {
            Some(&last) if last as usize >= self.config.context => {
                Err(Error::Context { tokens: last as usize + 1, context: self.config.context })
            }
            _ => Ok(()),
        }
    }

    fn enter(&self, ids: &[u32], positions: &[u32], sentinel: Option<&Tensor>) -> Result<Tensor> {
        let x = kernels::scaled_embedding(ids, &self.embed, self.config.embed_scale, sentinel)?;
        match &self.position {
            Some(table) => Ok((x + kernels::embedding(positions, table, sentinel)?)?),
            None => Ok(x),
        }
    }

    fn blocks(
        &self,
        mut x: Tensor,
        positions: &[u32],
        wanted: Option<&[u32]>,
        mut keys: DropKeys,
        attend: &mut dyn FnMut(usize, Branch) -> Result<Branch>,
    ) -> Result<Tensor> {
        for (i, block) in self.blocks.iter().enumerate() {
            let site = 2 * i as u64;
            let mut entered = self.config.parallel_residual.then(|| x.clone());
            let mut attended = attend(i, self.project(block, &x, positions)?)?;
            if let Some(rows) = wanted.filter(|_| i + 1 == self.blocks.len()) {
                attended = attended.at(rows)?;
                keys = keys.at(rows);
                entered = entered.map(|x| kernels::gather_rows(&x, rows)).transpose()?;
            }
            let attended = normed(&block.attn_post_norm, block.attn_out.forward(attended)?)?;
            x = keys.drop(attended, site)?.added()?;
            let fed = |read: &Tensor| {
                let fed = block.mlp_norm.forward(Branch::of(read))?.feed_forward(&block.mlp)?;
                keys.drop(normed(&block.mlp_post_norm, fed)?, site + 1)
            };
            x = match entered {
                Some(entered) => (x + fed(&entered)?.alone()?)?,
                None => fed(&x)?.added()?,
            };
        }
        Ok(self.norm.forward(Branch::of(&x))?.alone()?)
    }

    /// Queries, keys and values of a block.
    fn project(&self, block: &Block, x: &Tensor, positions: &[u32]) -> Result<Branch> {
        let mut qkv = block.qkv.forward(block.attn_norm.forward(Branch::of(x))?)?;
        if let Some((q, k)) = &block.head_norms {
            qkv = qkv.head_norm(q, k, self.config.norm.eps(), self.layout())?;
        }
        match &block.rope {
            Some(rope) => Ok(qkv.rope(positions, rope, self.layout())?),
            None => Ok(qkv),
        }
    }
}

impl Block {
    fn over(config: &Config, params: &Params, i: usize, rope: Option<Arc<Rope>>) -> Result<Block> {
        let name = |part: &str| format!("layers.{i}.{part}");
        let (up, nonlinearity) = match config.activation {
            Activation::SwiGlu => ("gate_up", Nonlinearity::SwiGlu),
            Activation::GeluTanh => ("up", Nonlinearity::GeluTanh),
            Activation::GeluErf => ("up", Nonlinearity::GeluErf),
            Activation::GeGlu => ("gate_up", Nonlinearity::GeGlu),
        };
        let up = Affine::over(params, &name(up), config.mlp_bias)?;
        let down = Affine::over(params, &name("down"), config.mlp_bias)?;
        let head_norms =
            || -> Result<_> { Ok((gain(config, params, &name("q_norm"))?, gain(config, params, &name("k_norm"))?)) };
        let post_norm =
            |part: &str| config.post_norms.then(|| NormParams::over(config, params, &name(part))).transpose();
        Ok(Block {
            window: config.window(i),
            rope,
            attn_norm: NormParams::over(config, params, &name("attn_norm"))?,
            qkv: Affine::over(params, &name("qkv"), config.qkv_bias)?,
            head_norms: config.qk_norm.then(head_norms).transpose()?,
            attn_out: Affine::over(params, &name("attn_out"), config.attn_out_bias)?,
            attn_post_norm: post_norm("attn_post_norm")?,
            mlp_norm: NormParams::over(config, params, &name("mlp_norm"))?,
            mlp: FeedForward { up: up.weight, up_bias: up.bias, nonlinearity, down: down.weight, down_bias: down.bias },
            mlp_post_norm: post_norm("mlp_post_norm")?,
        })
    }
}

impl Affine {
    fn over(params: &Params, name: &str, bias: bool) -> Result<Affine> {
        let weight = params.get(&format!("{name}.weight"))?;
        let bias = bias.then(|| params.get(&format!("{name}.bias"))).transpose()?;
        Ok(Affine { weight, bias })
    }

    fn forward(&self, x: Branch) -> Result<Branch> {
        Ok(x.linear(&self.weight, self.bias.as_ref())?)
    }
}

impl NormParams {
    fn over(config: &Config, params: &Params, name: &str) -> Result<NormParams> {
        Ok(match config.norm {
            Norm::Layer { eps } => {
                let [gain, bias] = ["weight", "bias"].map(|part| params.get(&format!("{name}.{part}")));
                NormParams::Layer { gain: gain?, bias: bias?, eps }
            }
            Norm::Rms { eps } | Norm::RmsOnePlus { eps } => NormParams::Rms { gain: gain(config, params, name)?, eps },
        })
    }

    fn forward(&self, x: Branch) -> Result<Branch> {
        Ok(match self {
            NormParams::Layer { gain, bias, eps } => x.layer_norm(gain, bias, *eps)?,
            NormParams::Rms { gain, eps } => x.rms_norm(gain, *eps)?,
        })
    }
}

/// The gain of the RMS norm of this name.
fn gain(config: &Config, params: &Params, name: &str) -> Result<Gain> {
    let param = params.get(&format!("{name}.weight"))?;
    Ok(if matches!(config.norm, Norm::RmsOnePlus { .. }) { Gain::one_plus(&param) } else { Gain::from(&param) })
}

/// The branch after a norm that some families lack.
fn normed(norm: &Option<NormParams>, branch: Branch) -> Result<Branch> {
    match norm {
        Some(norm) => norm.forward(branch),
        None => Ok(branch),
    }
}

fn unembedding(config: &Config, params: &Params) -> Result<Unembedding> {
    let table = params.get(if config.tied { "embed.weight" } else { "lm_head.weight" })?;
    Ok(Unembedding { table, softcap: config.final_softcap.map(|cap| cap as f32) })
}

/// The dropout keys of a batch's rows, without the site.
struct DropKeys {
    dropout: Option<Dropout>,
    rows: Vec<[u64; 3]>,
}

impl DropKeys {
    fn none() -> DropKeys {
        DropKeys { dropout: None, rows: Vec::new() }
    }

    fn new(batch: &Packed, pass: Pass) -> DropKeys {
        let Pass::TrainWithDropout(dropout) = pass else { return DropKeys::none() };
        let row = |segment: &instruct_data::Segment| {
            let example = segment.example;
            batch.positions()[segment.tokens.clone()].iter().map(move |&p| [dropout.step, example, u64::from(p)])
        };
        let rows = batch.segments().iter().flat_map(row).collect::<Vec<_>>();
        DropKeys { dropout: Some(dropout), rows }
    }

    /// The keys of these rows.
    fn at(self, rows: &[u32]) -> DropKeys {
        if self.dropout.is_none() {
            return self;
        }
        DropKeys { rows: rows.iter().map(|&row| self.rows[row as usize]).collect(), ..self }
    }

    fn drop(&self, x: Branch, site: u64) -> Result<Branch> {
        let Some(Dropout { rate, source, .. }) = self.dropout else { return Ok(x) };
        let source = source.fork(site);
        let keys: Vec<DropKey> = self.rows.iter().map(|&at| (source, at)).collect();
        Ok(x.dropout(rate, &keys)?)
    }
}

/// One table for all layers that rotate alike.
#[derive(Default)]
struct Ropes(Vec<(Rotary, Arc<Rope>)>);

impl Ropes {
    fn get(&mut self, rotary: Option<Rotary>, context: usize) -> Result<Option<Arc<Rope>>> {
        let Some(rotary) = rotary else { return Ok(None) };
        if let Some((_, table)) = self.0.iter().find(|(known, _)| *known == rotary) {
            return Ok(Some(table.clone()));
        }
        let table = Arc::new(rope(&rotary, context)?);
        self.0.push((rotary, table.clone()));
        Ok(Some(table))
    }
}

pub(crate) fn rope(rotary: &Rotary, context: usize) -> Result<Rope> {
    Ok(Rope::new(rotary.dim, context, rotary.theta, rope_scaling(rotary.scaling))?)
}

/// The scaling as the kernels know it.
pub(crate) fn rope_scaling(scaling: Scaling) -> Option<RopeScaling> {
    match scaling {
        Scaling::None => None,
        Scaling::Linear { factor } => Some(RopeScaling::Linear { factor }),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max: original_context as usize,
        }),
        Scaling::Yarn { factor, beta_fast, beta_slow, truncate, original_context, attention_factor } => {
            let original_max = original_context as usize;
            Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max, attention_factor })
        }
    }
}

fn spans(batch: &Packed) -> Vec<Span> {
    let segments = batch.segments();
    let prefix = |index: usize| segments[index].tokens.clone();
    segments.iter().map(|s| Span { rows: s.tokens.clone(), prefix: s.prefix.map(prefix) }).collect()
}
