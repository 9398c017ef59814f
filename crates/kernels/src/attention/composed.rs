//! Attention from plain Candle operations: gathered into padded blocks, masked, scattered back.

use super::{check, check_softcap, groups};
use crate::{
    HeadLayout, Result, Scoring, Span,
    attend::seen,
    op,
    wide::{for_sums, select_rows, wide},
};
use candle_core::{D, Device, Tensor};
use std::{ops::Range, sync::Arc};

/// [`attention`](crate::attention) from plain Candle operations, on any device and in any float
/// dtype (scores in `f32` at least): the oracle of the fused one, and the way on a GPU.
pub fn attention_composed(
    qkv: &Tensor,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scoring: impl Into<Scoring>,
    window: Option<usize>,
) -> Result<Tensor> {
    let scoring = scoring.into();
    check_softcap("attention", scoring)?;
    let rows = check("attention", op::dims2("attention", "qkv", qkv)?, layout, window)?;
    let mut sequences = Vec::new();
    for group in groups(spans, rows)? {
        sequences.extend(group.members().map(|(before, rows)| Sequence {
            rows: rows.clone().map(|row| row as u32).collect(),
            positions: (before..before + rows.len()).collect(),
            keys: group.trunk.clone().take(before).chain(rows.clone()).map(|row| row as u32).collect(),
        }));
    }
    let Split { q, k, v } = Split::of(qkv, layout)?;
    compose(&q, &k, &v, sequences, layout, scoring, window)
}

/// The three parts of a projection.
pub(crate) struct Split {
    /// `(n, H D)`
    pub(crate) q: Tensor,
    /// `(n, Hkv D)`
    pub(crate) k: Tensor,
    /// `(n, Hkv D)`
    pub(crate) v: Tensor,
}

impl Split {
    pub(crate) fn of(qkv: &Tensor, layout: HeadLayout) -> Result<Split> {
        let (q, kv) = (layout.out_dim(), layout.kv_heads * layout.head_dim);
        let part = |start: usize, len: usize| qkv.narrow(1, start, len)?.contiguous();
        Ok(Split { q: part(0, q)?, k: part(q, kv)?, v: part(q + kv, kv)? })
    }
}

/// Rows that attend to the same keys, each up to its own position among them.
pub(crate) struct Sequence {
    /// Rows of the queries.
    pub(crate) rows: Vec<u32>,
    /// Each row's position.
    pub(crate) positions: Vec<usize>,
    /// Rows of the keys, by position.
    pub(crate) keys: Vec<u32>,
}

/// Scores in one padded block, so that many short sequences share few operations and a few long
/// ones do not fill the memory.
const MOST_SCORES: usize = 1 << 24;

/// Attention of `q (n, H D)` over `k, v (m, Hkv D)` by plain operations: sequences of like length
/// are gathered into padded blocks, and their rows scattered back.
pub(crate) fn compose(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: Vec<Sequence>,
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Result<Tensor> {
    compose_in_blocks(MOST_SCORES, q, k, v, sequences, layout, scoring, window)
}

/// [`compose`] with at most `most` scores in a block, or those of one sequence.
pub(crate) fn compose_in_blocks(
    most: usize,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mut sequences: Vec<Sequence>,
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Result<Tensor> {
    // The gradients of a prefix add up over the sequences that continue it, which may lie in several blocks.
    let (k, v) = (for_sums(k)?, for_sums(v)?);
    sequences.retain(|sequence| !sequence.rows.is_empty());
    sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.keys.len()));
    let (mut parts, mut places) = (Vec::new(), vec![0u32; q.dim(0)?]);
    let (mut left, mut rows) = (sequences.as_slice(), 0);
    while let Some(longest) = left.first() {
        let queries = |block: &[Sequence]| block.iter().map(|s| s.rows.len()).max().unwrap_or(0);
        let scores = |block: &[Sequence]| block.len() * queries(block) * longest.keys.len() * layout.heads;
        let mut count = 1;
        while count < left.len() && scores(&left[..count + 1]) <= most {
            count += 1;
        }
        let (block, rest) = left.split_at(count);
        let padded = queries(block);
        for sequence in block {
            sequence.rows.iter().enumerate().for_each(|(i, row)| places[*row as usize] = (rows + i) as u32);
            rows += padded;
        }
        parts.push(compose_block(q, &k, &v, block, layout, scoring, window)?);
        left = rest;
    }
    if parts.is_empty() {
        return Ok(q.clone());
    }
    // Every row is read once, so its gradient is no sum.
    Ok(Tensor::cat(&parts, 0)?.index_select(&Tensor::from_vec(places, q.dim(0)?, q.device())?, 0)?)
}

/// One padded block of S sequences, of keys and values in the dtype of the queries or in a wider one: `(S Tq, H D)`.
fn compose_block(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &[Sequence],
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Result<Tensor> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    let count = sequences.len();
    let group = heads / kv_heads;
    let longest = |of: &dyn Fn(&Sequence) -> usize| sequences.iter().map(of).max().unwrap_or(0);
    let (queries, keys) = (longest(&|s| s.rows.len()), longest(&|s| s.keys.len()));
    // Padding repeats row 0 of the source: it is masked as a key and never read as a query.
    let gather = |source: &Tensor, len: usize, heads: usize, rows: &dyn Fn(&Sequence) -> &[u32]| -> Result<Tensor> {
        let padded = sequences.iter().flat_map(|s| (0..len).map(move |i| rows(s).get(i).copied().unwrap_or(0)));
        let indices = Tensor::from_vec(padded.collect::<Vec<u32>>(), count * len, source.device())?;
        let rows = select_rows(source, indices, q.dtype())?;
        Ok(rows.reshape((count, len, heads, head_dim))?.transpose(1, 2)?.contiguous()?)
    };
    let q = gather(q, queries, heads, &|s| &s.rows)?.reshape((count, kv_heads, group * queries, head_dim))?;
    let k = gather(k, keys, kv_heads, &|s| &s.keys)?;
    let v = gather(v, keys, kv_heads, &|s| &s.keys)?;

    let dtype = wide(q.dtype());
    let mask = mask(sequences, queries, keys, window, q.device())?.to_dtype(dtype)?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)?.to_dtype(dtype)? * f64::from(scoring.scale))?;
    let scores = match scoring.softcap.map(f64::from) {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let scores = scores.reshape((count, kv_heads, group, queries, keys))?.broadcast_add(&mask)?;
    // The maximum cancels in the quotient: without its own gradient the backward pass is shorter.
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
    let out = weights.reshape((count, kv_heads, group * queries, keys))?.matmul(&v)?;
    let out = out.reshape((count, heads, queries, head_dim))?.transpose(1, 2)?;
    Ok(out.reshape((count * queries, heads * head_dim))?)
}

/// `(S, 1, 1, Tq, Tk)`: 0 where the query sees the key, minus infinity elsewhere. Padded queries
/// see the first key, because a row of minus infinities has no softmax.
fn mask(sequences: &[Sequence], queries: usize, keys: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let positions = |of: &dyn Fn(Range<usize>) -> usize| {
        let of = |s: &Sequence, i| s.positions.get(i).map_or(0, |&position| of(seen(position, window)) as u32);
        let padded: Vec<u32> = sequences.iter().flat_map(|s| (0..queries).map(move |i| of(s, i))).collect();
        Tensor::from_vec(padded, (sequences.len(), 1, 1, queries, 1), device)
    };
    let shape = (sequences.len(), 1, 1, queries, keys);
    let keys = Tensor::arange(0, keys as u32, device)?;
    let mut sees = keys.broadcast_le(&positions(&|seen| seen.end - 1)?)?;
    if window.is_some() {
        sees = (sees * keys.broadcast_ge(&positions(&|seen| seen.start)?)?)?;
    }
    let [zero, hidden] = [0f32, f32::NEG_INFINITY].map(|x| Tensor::new(x, device)?.broadcast_as(shape));
    Ok(sees.where_cond(&zero?, &hidden?)?)
}
