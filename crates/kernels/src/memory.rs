//! What the fused operations hold, in bytes, as equations of their sizes: nothing here allocates.
//!
//! Each function stands for the operation of the same name and counts tensors of `n` rows in `f32`. What
//! is below a hundredth of those (ids, softmax sums of heads, moments of a few bytes a row) is counted
//! where that is easy, and left out otherwise.

use crate::{HeadLayout, Nonlinearity, attend::vectors, simd::LANES};
use candle_core::DType;

/// Bytes of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its result, in the graph for as long as that lives.
    pub result: u64,
    /// What a recorded forward keeps for the backward pass besides input and result.
    pub saved: u64,
    /// What the forward pass holds for a moment, besides result and saved.
    pub forward: u64,
    /// What the backward pass holds for a moment: the gradient that comes in, what is computed again,
    /// and the gradient that goes out, three times, because Candle adds it to a tensor of zeros.
    pub backward: u64,
}

impl Held {
    /// What stays when the pass is recorded.
    pub fn kept(&self) -> u64 {
        self.result + self.saved
    }

    /// What the forward pass holds at most.
    pub fn at_once(&self) -> u64 {
        self.result + self.saved + self.forward
    }
}

/// Bytes of this many `f32`.
pub fn floats(count: usize) -> u64 {
    4 * count as u64
}

/// [`crate::embedding`] of width C; its gradient goes straight into the table's.
pub fn embedding(n: usize, width: usize) -> Held {
    Held { result: floats(n * width), backward: floats(n * width), ..Held::default() }
}

/// The sum of two tensors of width C: its gradient is handed to both, each by way of zeros.
pub fn add(n: usize, width: usize) -> Held {
    Held { result: floats(n * width), backward: floats(4 * n * width), ..Held::default() }
}

/// [`crate::layer_norm`] and [`crate::rms_norm`] over width C: two moments a row are saved.
pub fn norm(n: usize, width: usize) -> Held {
    Held { saved: floats(2 * n), ..map(n, width, width) }
}

/// What an RMS norm at the end of a branch of width C adds to what the branch saves: what it reads, and two moments a
/// row.
pub fn norm_of_result(n: usize, width: usize) -> u64 {
    floats(n * width) + norm(n, width).saved
}

/// [`crate::linear()`] from `input` to `output` columns.
pub fn linear(n: usize, input: usize, output: usize) -> Held {
    map(n, input, output)
}

/// [`crate::attention`]: two numbers of the softmax are saved for each row and head. The runs that a
/// thread packs are those of one head, and are left out.
pub fn attention(n: usize, layout: HeadLayout) -> Held {
    Held { saved: floats(2 * n * layout.heads), ..map(n, layout.qkv_dim(), layout.out_dim()) }
}

/// [`crate::feed_forward`] of width C whose first half has `inner` rows: what goes into the
/// nonlinearity is saved; what comes out of it is computed twice, and its gradient once.
pub fn feed_forward(n: usize, width: usize, inner: usize, nonlinearity: Nonlinearity) -> Held {
    let gated = nonlinearity.output(inner);
    let outside = map(n, width, width);
    Held {
        saved: floats(n * inner),
        forward: floats(n * gated),
        // Gradients in and out, and that of the activations beside them or beside that of what went in.
        backward: outside.backward.max(floats(n * (2 * width + gated + gated.max(inner)))),
        ..outside
    }
}

/// A branch of norm, projection, norms of heads, rotation, [`crate::attention`] and projection back, added to
/// the stream. After the attention it goes on with `read` of the rows, or all. It keeps what a norm of heads, the
/// attention and the projection back read, and the attention's result.
pub fn attention_branch(n: usize, read: Option<usize>, width: usize, layout: HeadLayout, has_head_norms: bool) -> Held {
    let (projected, attended) = (floats(n * layout.qkv_dim()), floats(n * layout.out_dim()));
    let picked = read.map_or(0, |read| floats(read * layout.out_dim()));
    let own = norm(n, width).saved + attention(n, layout).saved;
    Held {
        result: floats(read.unwrap_or(n) * width),
        saved: own + projected * (1 + u64::from(has_head_norms)) + attended + picked,
        // A projection before its rotation and after it, beside the norm's result.
        forward: floats(n * width) + 2 * projected,
        // Two gradients of the projection on their way, the norm's result once more, and a gradient that
        // Candle adds to a tensor of zeros.
        backward: 2 * projected + floats(4 * n * width),
    }
}

/// A branch of norm and [`feed_forward`], added to the stream. The norm's result stands beside it, and is
/// computed once more for the backward pass.
pub fn feed_forward_branch(n: usize, width: usize, inner: usize, nonlinearity: Nonlinearity) -> Held {
    let (layer, normed) = (feed_forward(n, width, inner, nonlinearity), floats(n * width));
    Held {
        saved: norm(n, width).saved + layer.saved,
        forward: layer.forward + normed,
        backward: layer.backward + normed,
        ..layer
    }
}

/// [`crate::dropout`]: one key for each row.
pub fn dropout(n: usize, width: usize) -> Held {
    Held { saved: (n * size_of::<crate::DropKey>()) as u64, ..map(n, width, width) }
}

/// [`crate::gather_rows`] of `picked` rows.
pub fn gather_rows(n: usize, picked: usize, width: usize) -> Held {
    let gathered = floats(picked * width);
    Held { result: gathered, backward: gathered + floats(3 * n * width), ..Held::default() }
}

/// [`crate::token_nll_backward`] of `predictions` out of `n` rows, with a table `(V, C)`: the gradient of the
/// hidden states is known before the backward pass begins; one chunk of logits is held at a time. Products
/// round their factors to `compute`.
pub fn token_nll_backward(n: usize, predictions: usize, width: usize, vocabulary: usize, compute: DType) -> Held {
    Held {
        result: 4,
        saved: floats(n * width),
        forward: chunk(predictions, width, vocabulary, compute) + 2 * packed(width * vocabulary, compute),
        backward: floats(3 * n * width),
    }
}

/// [`crate::token_logprob`] of `predictions` out of `n` rows: the backward pass computes the logits
/// again, one chunk at a time, and adds to the table's gradient where it lies. Products round their
/// factors to `compute`.
pub fn token_logprob(n: usize, predictions: usize, width: usize, vocabulary: usize, compute: DType) -> Held {
    let (chunk, table) = (chunk(predictions, width, vocabulary, compute), packed(width * vocabulary, compute));
    let backward = (floats(n * width) + chunk + 2 * table).max(floats(3 * n * width));
    Held { result: floats(2 * predictions), saved: 0, forward: chunk + table, backward }
}

/// What the soft cap of an unembedding adds to either of the two above for a moment: its slopes beside a chunk of logits.
pub fn capped(predictions: usize, vocabulary: usize, compute: DType) -> u64 {
    floats(predictions.min(crate::logprob::chunk(vocabulary, compute)) * vocabulary)
}

/// Bytes of this many weights, packed for one kind of product: 0 unless products round their factors to bf16.
pub fn packed(weights: usize, compute: DType) -> u64 {
    if compute == DType::BF16 { 2 * weights as u64 } else { 0 }
}

/// What a product packs meanwhile: the `gemm` crate copies panels of one operand, 512 deep, as
/// much of it as it believes to fit in the last cache.
pub fn workspace(rows: usize, columns: usize) -> u64 {
    const DEPTH: usize = 512;
    const LAST_CACHE: u64 = 32 << 20;
    floats(DEPTH * rows.max(columns)).min(LAST_CACHE)
}

/// A [`crate::KvCache`]: keys and values of `slots` sequences of `capacity` tokens in every layer,
/// rounded up to whole vectors.
pub fn cache(layers: usize, slots: usize, capacity: usize, layout: HeadLayout) -> u64 {
    let HeadLayout { kv_heads, head_dim, .. } = layout;
    let per_head = LANES * (vectors(capacity) * head_dim + capacity * vectors(head_dim));
    floats(layers * slots * kv_heads * per_head)
}

/// Hidden rows, logits, and the gradient of the rows of one chunk.
fn chunk(predictions: usize, width: usize, vocabulary: usize, compute: DType) -> u64 {
    floats(predictions.min(crate::logprob::chunk(vocabulary, compute)) * (vocabulary + 2 * width))
}

/// An operation from `input` to `output` columns that saves nothing.
fn map(n: usize, input: usize, output: usize) -> Held {
    Held { result: floats(n * output), backward: floats(n * (output + 3 * input)), ..Held::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_tensors_are_those_of_the_feed_forward_layer() {
        let n = 10;
        let gelu = feed_forward(n, 8, 32, Nonlinearity::GeluTanh);
        assert_eq!((gelu.result, gelu.saved, gelu.forward), (floats(80), floats(320), floats(320)));
        assert_eq!(gelu.backward, floats(10 * (16 + 64)));
        // Gate and up together are twice as wide as what comes out.
        let gated = feed_forward(n, 8, 40, Nonlinearity::SwiGlu);
        assert_eq!((gated.saved, gated.forward, gated.backward), (floats(400), floats(200), floats(10 * (16 + 60))));
    }

    #[test]
    fn logits_are_never_held_beyond_a_chunk() {
        let forward = |n, vocabulary, compute| token_logprob(5_000, n, 64, vocabulary, compute).forward;
        assert_eq!(forward(4_000, 50_000, DType::F32), floats(128 * (50_000 + 128)));
        assert_eq!(forward(4_000, 10_000, DType::F32), floats(256 * (10_000 + 128)));
        assert_eq!(forward(10, 50_000, DType::F32), floats(10 * (50_000 + 128)));
        // And the table, at half the size.
        assert_eq!(forward(4_000, 50_000, DType::BF16), floats(512 * (50_000 + 128) + 32 * 50_000));
        assert_eq!(token_nll_backward(5_000, 10, 64, 50_000, DType::F32).saved, floats(5_000 * 64));
    }

    #[test]
    fn a_cache_is_rounded_up_to_whole_vectors() {
        let layout = HeadLayout { heads: 4, kv_heads: 2, head_dim: 20 };
        // 17 tokens take two vectors of keys per channel, 20 channels two vectors of values per token.
        assert_eq!(cache(3, 5, 17, layout), floats(3 * 5 * 2 * 16 * (2 * 20 + 17 * 2)));
    }
}
