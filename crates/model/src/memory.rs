//! What a decoder holds, in bytes: its buffers, the graph of a recorded pass, a pass without one.
//!
//! The peak of a stage is
//!
//! ```text
//! models + max over phases (sums + kept + temporary) + max over phases temporary
//! ```
//!
//! where *kept* is what a recorded forward leaves in the graph until its backward pass is over,
//! *temporary* the most that one operation holds on top of it for a moment, and *sums* the gradients
//! of earlier micro-batches. Temporaries count twice: the allocator keeps what was freed, and between two
//! tensors that stay, the hole that a temporary leaves is not filled by the next one of another size.
//! That rule was found by measuring; the rest follows from the code, and nothing else is allowed for.
//! Of the copies of weights that products in bf16 need, the large ones are counted: a table's beside its logits, and
//! those that decoding keeps.

use crate::{Activation, Config, HeadKind, Position};
use candle_core::DType;
use instruct_kernels::{BLOCK, HeadLayout, Nonlinearity, memory as kernels};
use kernels::{Held, floats};

/// The buffers of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// What the model is for.
    pub name: &'static str,
    /// Its weights.
    pub parameters: u64,
    /// Its gradient.
    pub gradient: u64,
    /// The optimizer's two moments.
    pub moments: u64,
    /// The averaged weights.
    pub average: u64,
}

impl Buffers {
    /// A model that learns: weights, gradient and two moments, `4 P` numbers, and one more each with an
    /// average.
    pub fn learner(name: &'static str, config: &Config, head: HeadKind, averaged: bool) -> Buffers {
        let bytes = floats(elements(config, head));
        let average = if averaged { bytes } else { 0 };
        Buffers { name, parameters: bytes, gradient: bytes, moments: 2 * bytes, average }
    }

    /// A model that is only read, at `bytes` bytes per parameter. Its gradient takes none: even
    /// where it has a buffer, nothing has ever touched the buffer's pages.
    pub fn frozen(name: &'static str, config: &Config, head: HeadKind, bytes: u64) -> Buffers {
        let parameters = bytes * elements(config, head) as u64;
        Buffers { name, parameters, gradient: 0, moments: 0, average: 0 }
    }

    /// The same model when it decodes in products that round their factors to `compute`: a packed copy of the weights
    /// is then kept until they change.
    pub fn decoding(self, compute: DType) -> Buffers {
        let weights = self.parameters as usize / size_of::<f32>();
        Buffers { parameters: self.parameters + kernels::packed(weights, compute), ..self }
    }

    /// The same model where so many processes each hold their part of moments and average.
    pub fn shared_by(self, processes: usize) -> Buffers {
        let part = |bytes: u64| bytes.div_ceil(processes.max(1) as u64);
        Buffers { moments: part(self.moments), average: part(self.average), ..self }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.parameters + self.gradient + self.moments + self.average
    }
}

/// A part of a stage that holds something for as long as it lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// What is done.
    pub name: &'static str,
    /// Gradients of earlier micro-batches.
    pub sums: u64,
    /// What a recorded forward keeps, or a cache.
    pub kept: u64,
    /// What one operation holds for a moment.
    pub temporary: u64,
}

impl Phase {
    /// What the phase holds at its worst.
    pub fn total(&self) -> u64 {
        self.sums + self.kept + self.temporary
    }
}

/// What a stage will hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Every model of the stage.
    pub models: Vec<Buffers>,
    /// Its phases, of which one at a time runs.
    pub phases: Vec<Phase>,
}

impl Estimate {
    /// The phase that holds most.
    pub fn worst(&self) -> Phase {
        self.phases.iter().max_by_key(|phase| phase.total()).cloned().unwrap_or_default()
    }

    /// What the allocator keeps at the worst moment: the largest temporaries once more.
    pub fn slack(&self) -> u64 {
        self.phases.iter().map(|phase| phase.temporary).max().unwrap_or(0)
    }

    /// The most that the stage holds at once.
    pub fn peak(&self) -> u64 {
        self.models.iter().map(Buffers::total).sum::<u64>() + self.worst().total() + self.slack()
    }
}

/// What reads the hidden states of a pass, and how many rows of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// [`instruct_kernels::token_nll_backward`] of so many predictions, in products that round to this dtype.
    Likelihood(usize, DType),
    /// [`instruct_kernels::token_logprob`] of so many predictions, in products that round to this dtype.
    Logprob(usize, DType),
    /// The scalar head at so many rows.
    Scalar(usize),
    /// [`instruct_kernels::logits`] of so many rows, copied once for each sampler.
    Logits(usize),
}

impl Readout {
    fn rows(self) -> usize {
        match self {
            Readout::Likelihood(rows, _)
            | Readout::Logprob(rows, _)
            | Readout::Scalar(rows)
            | Readout::Logits(rows) => rows,
        }
    }
}

/// Elements of the flat buffer: every parameter starts on a block.
pub fn elements(config: &Config, head: HeadKind) -> usize {
    let lens = config.specs(head).into_iter().map(|(_, shape)| shape.iter().product::<usize>());
    lens.map(|len| len.next_multiple_of(BLOCK)).sum()
}

/// A recorded forward over `tokens` rows, of which the readout's are read
/// ([`Decoder::hidden_at`](crate::Decoder::hidden_at)), and its backward pass.
///
/// Kept are the results of all operations and what they save, until the whole backward pass is over. Its
/// worst moment is one operation's own temporaries beside the gradient of the residual stream, or those
/// of the readout.
pub fn recorded(config: &Config, tokens: usize, dropout: bool, readout: Readout) -> Phase {
    let read = readout.rows();
    let (nodes, readout) = (nodes(config, tokens, read, dropout), self::readout(config, readout));
    let once = entry(config, tokens) + kernels::norm(read, config.width).kept();
    let kept = once + nodes.iter().map(Held::kept).sum::<u64>() + readout.kept();
    let stream = floats(tokens * config.width);
    let backward = nodes.iter().map(|node| node.backward).max().unwrap_or(0) + stream;
    let temporary = backward.max(readout.forward).max(readout.backward) + workspace(config, tokens);
    Phase { kept, temporary, ..Phase::default() }
}

/// A forward over `tokens` rows that records nothing: everything is temporary. The worst moment is
/// inside a branch, beside the residual stream, or at the readout.
pub fn inferred(config: &Config, tokens: usize, readout: Readout) -> Phase {
    let readout = self::readout(config, readout);
    let stream = floats(tokens * config.width);
    let attended = attention(config, tokens, None, false);
    // Its projections are not kept then: two stand at a time.
    let inner = stream + feed_forward(config, tokens).at_once().max(attended.result + attended.forward);
    // Without a graph the readout saves nothing.
    let out = stream + readout.result + readout.forward;
    Phase { temporary: inner.max(out) + workspace(config, tokens), ..Phase::default() }
}

/// Sampling completions of at most `cap` tokens to prompts of at most `prompt`, in so many slots: the cache beside a
/// pass over the prompts that fill them. The cache is freed after, so that to the allocator it is a temporary.
pub fn sampled(config: &Config, slots: usize, prompt: usize, cap: usize) -> Phase {
    let filling = inferred(config, slots * prompt, Readout::Logits(slots));
    let cache = cached(config, slots, prompt.saturating_add(cap).min(config.context));
    Phase { name: "sample", temporary: cache + filling.temporary, ..filling }
}

/// A key-value cache.
pub fn cached(config: &Config, slots: usize, capacity: usize) -> u64 {
    kernels::cache(config.layers, slots, capacity, layout(config))
}

/// Sums of the gradients of earlier micro-batches, at the worst moment of a step of so many leaves, each of so many
/// `micro_batches`: a pairwise tree holds one for each of its levels, and the leaves are added in a tree of their own.
pub fn sums(config: &Config, head: HeadKind, leaves: usize, micro_batches: usize) -> u64 {
    let levels = leaves.max(1).ilog2() + micro_batches.max(1).ilog2();
    u64::from(levels) * floats(elements(config, head))
}

fn entry(config: &Config, n: usize) -> u64 {
    let one = kernels::embedding(n, config.width).kept();
    match config.position {
        // Tokens, positions, and their sum.
        Position::Learned => 2 * one + kernels::add(n, config.width).kept(),
        Position::Rotary(_) => one,
    }
}

/// The nodes of all layers over `n` rows, in their order. What follows the attention of the last layer is computed
/// for the `read` rows alone.
fn nodes(config: &Config, n: usize, read: usize, dropout: bool) -> Vec<Held> {
    let Some(whole) = config.layers.checked_sub(1) else { return Vec::new() };
    let mut nodes = [vec![attention(config, n, None, dropout)], fed(config, n, dropout)].concat().repeat(whole);
    // With parallel residuals both branches of the last layer start from the stream, and the feed-forward branch from
    // the `read` rows of it, gathered.
    nodes.extend(config.parallel_residual.then(|| kernels::gather_rows(n, read, config.width)));
    nodes.push(attention(config, n, Some(read), dropout));
    nodes.extend(fed(config, read, dropout));
    nodes
}

fn attention(config: &Config, n: usize, read: Option<usize>, dropout: bool) -> Held {
    let held = kernels::attention_branch(n, read, config.width, layout(config), config.qk_norm);
    Held { saved: held.saved + at_the_end(config, read.unwrap_or(n), dropout), ..held }
}

/// The feed-forward branch. Where residuals are parallel, Candle adds it to the stream in a node of its own.
fn fed(config: &Config, n: usize, dropout: bool) -> Vec<Held> {
    let held = feed_forward(config, n);
    let mut nodes = vec![Held { saved: held.saved + at_the_end(config, n, dropout), ..held }];
    nodes.extend(config.parallel_residual.then(|| kernels::add(n, config.width)));
    nodes
}

/// What the steps after the last projection of a branch save: those that some families or passes lack.
fn at_the_end(config: &Config, n: usize, dropout: bool) -> u64 {
    let norm = if config.post_norms { kernels::norm_of_result(n, config.width) } else { 0 };
    norm + if dropout { kernels::dropout(n, config.width).saved } else { 0 }
}

fn feed_forward(config: &Config, n: usize) -> Held {
    let (inner, nonlinearity) = match config.activation {
        Activation::SwiGlu => (2 * config.inner, Nonlinearity::SwiGlu),
        Activation::GeluTanh => (config.inner, Nonlinearity::GeluTanh),
        Activation::GeluErf => (config.inner, Nonlinearity::GeluErf),
        Activation::GeGlu => (2 * config.inner, Nonlinearity::GeGlu),
    };
    kernels::feed_forward_branch(n, config.width, inner, nonlinearity)
}

/// The readout of hidden states that were computed for the rows it reads alone, each of which it reads once.
fn readout(config: &Config, readout: Readout) -> Held {
    let (width, vocab) = (config.width, config.vocab);
    let if_capped = |bytes: u64| if config.final_softcap.is_some() { bytes } else { 0 };
    match readout {
        Readout::Likelihood(n, compute) => {
            let held = kernels::token_nll_backward(n, n, width, vocab, compute);
            Held { forward: held.forward + if_capped(kernels::capped(n, vocab, compute)), ..held }
        }
        Readout::Logprob(n, compute) => {
            let held = kernels::token_logprob(n, n, width, vocab, compute);
            Held { backward: held.backward + if_capped(kernels::capped(n, vocab, compute)), ..held }
        }
        Readout::Scalar(n) => kernels::gather_rows(n, n, width),
        Readout::Logits(n) => {
            let once = floats(n * vocab);
            Held { forward: once + if_capped(once), ..kernels::linear(n, width, vocab) }
        }
    }
}

fn workspace(config: &Config, n: usize) -> u64 {
    kernels::workspace(n, config.inner.max(layout(config).qkv_dim()))
}

fn layout(config: &Config) -> HeadLayout {
    HeadLayout { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Dropout, Norm, Pass, Rotary, Scaling};
    use candle_core::{DType, Device};
    use instruct_data::Packed;
    use instruct_kernels::Path;
    use instruct_random::Source;

    fn decoder(config: &Config) -> Decoder {
        let head = HeadKind::LanguageModel;
        let decoder = Decoder::zeros(config.clone(), head, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        decoder.initialise(1).unwrap();
        decoder
    }

    /// The tensors of the recorded graph, counted one by one, are as large as the equations say.
    #[track_caller]
    fn check_graph(config: &Config) {
        let decoder = decoder(config);
        let mut batch = Packed::new();
        for (example, n) in [3, 7, 1].into_iter().enumerate() {
            batch.push(&vec![1; n], example as u64);
        }
        let noise = Dropout { rate: 0.1, source: Source::new(1, "dropout"), step: 0 };
        let (n, read) = (batch.len(), [2, 9, 9, 10]);
        for (pass, dropout) in [(Pass::Train, false), (Pass::TrainWithDropout(noise), true)] {
            let hidden = decoder.hidden_at(&batch, &read, pass).unwrap();
            // The sentinel is one number, and no result.
            let found: usize = hidden.sorted_nodes().iter().map(|node| node.elem_count()).sum::<usize>() - 1;
            let results = nodes(config, n, read.len(), dropout).iter().map(|node| node.result).sum::<u64>();
            let wanted = entry(config, n) + results + kernels::norm(read.len(), config.width).result;
            assert_eq!(floats(found), wanted, "{config:?} {dropout}");
        }
    }

    #[test]
    fn the_graph_holds_what_the_equations_say() {
        let gpt2 = Config::tiny_gpt2(30, 16, 3, 4, 24);
        let rotary = Position::Rotary(Rotary { theta: 1e4, dim: 4, scaling: Scaling::None });
        let llama = Config {
            kv_heads: 2,
            inner: 40,
            norm: Norm::Rms { eps: 1e-5 },
            position: rotary,
            activation: Activation::SwiGlu,
            mlp_bias: false,
            ..gpt2.clone()
        };
        check_graph(&gpt2);
        check_graph(&llama);
        check_graph(&Config { qk_norm: true, ..llama.clone() });
        let gemma = Config {
            norm: Norm::RmsOnePlus { eps: 1e-5 },
            post_norms: true,
            activation: Activation::GeGlu,
            attention_softcap: Some(2.0),
            sliding_window: Some(3),
            full_attention: [1].into(),
            embed_scale: 4.0,
            ..llama.clone()
        };
        check_graph(&gemma);
        check_graph(&Config { parallel_residual: true, activation: Activation::GeluErf, ..llama });
    }

    #[test]
    fn buffers_are_those_of_the_decoder() {
        let config = Config::tiny_gpt2(300, 16, 3, 4, 24);
        let params = decoder(&config).params().len();
        assert_eq!(elements(&config, HeadKind::LanguageModel), params);
        let learner = Buffers::learner("policy", &config, HeadKind::LanguageModel, true);
        assert_eq!(learner.total(), 5 * floats(params));
        assert_eq!(learner.clone().decoding(DType::F32), learner);
        assert_eq!(learner.clone().decoding(DType::BF16).total(), 22 * params as u64);
        assert_eq!(Buffers::frozen("reference", &config, HeadKind::LanguageModel, 2).total(), 2 * params as u64);
    }

    #[test]
    fn what_gemma_adds_is_counted() {
        let plain = Config::tiny_gpt2(300, 16, 3, 4, 24);
        let normed = Config { post_norms: true, ..plain.clone() };
        let capped = Config { final_softcap: Some(2.0), ..plain.clone() };
        let kept = |config: &Config| recorded(config, 10, false, Readout::Likelihood(4, DType::F32)).kept;
        // Two norms a layer, which the last layer computes for the rows that are read.
        let rows = 2 * (2 * 10 + 4);
        assert_eq!(kept(&normed) - kept(&plain), floats(rows * (16 + 2)));
        for (kind, chunk) in [(Readout::Likelihood(4, DType::F32), 4), (Readout::Logits(4), 4)] {
            let forward = |config: &Config| readout(config, kind).forward;
            assert_eq!(forward(&capped) - forward(&plain), floats(chunk * 300), "{kind:?}");
        }
        let backward = |config: &Config| readout(config, Readout::Logprob(400, DType::F32)).backward;
        assert_eq!(backward(&capped) - backward(&plain), floats(256 * 300));
    }

    #[test]
    fn temporaries_count_twice_and_phases_once() {
        let phase = |name, kept, temporary| Phase { name, sums: 1, kept, temporary };
        let phases = vec![phase("sample", 0, 50), phase("update", 100, 20)];
        let estimate = Estimate { models: Vec::new(), phases };
        assert_eq!((estimate.worst().name, estimate.slack(), estimate.peak()), ("update", 50, 171));
        assert_eq!(Estimate::default().peak(), 0);
    }

    #[test]
    fn a_tree_of_micro_batches_holds_a_level_each() {
        let config = Config::tiny_gpt2(30, 16, 1, 4, 24);
        let one = floats(elements(&config, HeadKind::Score));
        let levels = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3)];
        for (parts, level) in levels {
            assert_eq!(sums(&config, HeadKind::Score, 1, parts), level * one, "{parts} micro-batches");
            assert_eq!(sums(&config, HeadKind::Score, parts, 1), level * one, "{parts} leaves");
        }
        assert_eq!(sums(&config, HeadKind::Score, 4, 8), 5 * one);
    }
}
