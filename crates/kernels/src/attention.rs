//! Causal attention over packed sequences, some of which share a prefix.

use crate::{
    Error, HeadLayout, Result, Span,
    attend::{
        Attend, AttendBackward, Gradient, PutRows, PutTransposed, Query, Scratch, Softmax, get_row, seen, vectors,
    },
    op,
    simd::{LANES, Level, Vector},
};
use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    marker::PhantomData,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Causal softmax attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1) of every span of
/// a packed batch: `qkv (n, (H + 2 Hkv) D)` to `(n, H D)`, differentiable.
///
/// A row sees all of its span's prefix, then its span up to itself; with a `window` w only the last
/// w of those, itself included (Mistral, arXiv 2310.06825, section 2). Query head h reads key head
/// `h / (H / Hkv)` (Ainslie et al. 2023, arXiv 2305.13245). On the CPU in `f32` a row's result is
/// the same to the last bit whatever shares its batch, whether its prefix is shared or not, and in
/// [`cached_attention`](crate::cached_attention).
///
/// Spans lie one after the other and cover all n rows; a prefix is a whole earlier span that has
/// none itself. Anything else is refused.
pub fn attention(
    qkv: &Tensor,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    if op::is_fused(qkv) {
        attention_at(Level::best(), qkv, spans, layout, scale, window)
    } else {
        attention_composed(qkv, spans, layout, scale, window)
    }
}

/// [`attention`] from plain Candle operations, on any device and in any float dtype (scores in
/// `f32` at least): the oracle of the fused one, and the way on a GPU.
pub fn attention_composed(
    qkv: &Tensor,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let rows = check("attention", qkv, layout, window)?;
    let groups = groups(spans, rows)?;
    let sequence = |prefix: &Range<usize>, own: &Range<usize>| Sequence {
        rows: own.clone().map(|row| row as u32).collect(),
        positions: (0..own.len()).map(|i| prefix.len() + i).collect(),
        keys: prefix.clone().chain(own.clone()).map(|row| row as u32).collect(),
    };
    let sequences: Vec<Sequence> = groups
        .iter()
        .flat_map(|group| {
            let branches = group.branches.iter().map(|own| sequence(&group.trunk, own));
            std::iter::once(sequence(&(0..0), &group.trunk)).chain(branches)
        })
        .collect();
    let Split { q, k, v } = Split::of(qkv, layout)?;
    compose(&q, &k, &v, sequences, layout, scale, window)
}

/// The fused [`attention`] at a given level.
fn attention_at(
    level: Level,
    qkv: &Tensor,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let rows = check("attention", qkv, layout, window)?;
    let groups = groups(spans, rows)?;
    op::apply(
        qkv,
        Attention { level, tasks: tasks(&groups, layout), groups, layout, scale, window, softmax: OnceLock::new() },
    )
}

/// Refuses a projection or a window that does not fit; returns the number of rows.
pub(crate) fn check(op: &'static str, qkv: &Tensor, layout: HeadLayout, window: Option<usize>) -> Result<usize> {
    check_layout(op, layout)?;
    if window == Some(0) {
        return Err(Error::Value { op, argument: "window", expected: "at least 1", got: 0.0 });
    }
    let (rows, _) = op::dims2(op, "qkv", qkv)?;
    op::check_shape(op, "qkv", qkv.dims(), &[rows, layout.qkv_dim()])?;
    Ok(rows)
}

/// Refuses heads that cannot be dealt out.
pub(crate) fn check_layout(op: &'static str, layout: HeadLayout) -> Result<()> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    if head_dim > 0 && kv_heads > 0 && heads > 0 && heads % kv_heads == 0 {
        return Ok(());
    }
    let expected = "(H, Hkv, D), none of them 0 and H a multiple of Hkv".to_owned();
    Err(Error::Shape { op, argument: "layout", expected, got: vec![heads, kv_heads, head_dim] })
}

/// A span without a prefix and the spans that continue it. Groups have no row in common, so that
/// one task can add up the gradients of a shared prefix in a fixed order.
#[derive(Debug)]
struct Group {
    trunk: Range<usize>,
    branches: Vec<Range<usize>>,
}

impl Group {
    /// Keys that the longest member sees.
    fn keys(&self) -> usize {
        self.trunk.len() + self.branches.iter().map(Range::len).max().unwrap_or(0)
    }

    /// Pairs of rows and the keys they see: the work, up to a factor.
    fn pairs(&self) -> usize {
        let pairs = |prefix: usize, own: usize| own * (2 * prefix + own + 1) / 2;
        let branches = self.branches.iter().map(|own| pairs(self.trunk.len(), own.len()));
        pairs(0, self.trunk.len()) + branches.sum::<usize>()
    }
}

fn groups(spans: &[Span], rows: usize) -> Result<Vec<Group>> {
    let refuse = |expected: &str, range: &Range<usize>| Error::Shape {
        op: "attention",
        argument: "spans",
        expected: expected.to_owned(),
        got: vec![range.start, range.end],
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut trunks = BTreeMap::new();
    let mut end = 0;
    for span in spans {
        if span.rows.start != end || span.rows.end < end {
            return Err(refuse("one after the other from row 0 on", &span.rows));
        }
        end = span.rows.end;
        match &span.prefix {
            None => {
                trunks.insert(span.rows.start, groups.len());
                groups.push(Group { trunk: span.rows.clone(), branches: Vec::new() });
            }
            Some(prefix) => {
                let group = trunks.get(&prefix.start).map(|&group| &mut groups[group]);
                match group.filter(|group| group.trunk == *prefix && !prefix.is_empty()) {
                    Some(group) => group.branches.push(span.rows.clone()),
                    None => return Err(refuse("with prefixes that are earlier spans without one", prefix)),
                }
            }
        }
    }
    if end != rows {
        return Err(refuse(&format!("to cover all {rows} rows"), &(0..end)));
    }
    Ok(groups)
}

/// (group, key head) pairs, the most work first so that no thread starts it last.
fn tasks(groups: &[Group], layout: HeadLayout) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&group| std::cmp::Reverse(groups[group].pairs()));
    order.into_iter().flat_map(|group| (0..layout.kv_heads).map(move |head| (group, head))).collect()
}

/// Products below which starting other threads costs more than it saves.
const SERIAL_BELOW: usize = 1 << 18;

/// Runs `f` on every item with this thread's scratch, in parallel when `work` products are worth it.
pub(crate) fn for_each<T: Send>(
    items: impl IndexedParallelIterator<Item = T>,
    work: usize,
    f: impl Fn(T, &mut Scratch) + Sync,
) {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    let run = |item| SCRATCH.with_borrow_mut(|scratch| f(item, scratch));
    let min = if work < SERIAL_BELOW { items.len() } else { 1 };
    items.with_min_len(min.max(1)).with_max_len(min.max(1)).for_each(run);
}

/// Elements that tasks write concurrently, each task its own.
pub(crate) struct Shared<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// SAFETY: the only access is `slice`, whose callers promise that no two threads meet.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(elements: &'a mut [T]) -> Shared<'a, T> {
        Shared(elements.as_mut_ptr(), elements.len(), PhantomData)
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    ///
    /// While the slice lives, nobody else asks for any of its elements.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(len <= self.1 && start <= self.1 - len, "a slice outside the shared elements");
        // SAFETY: inside the borrowed elements by the assertion, and unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// The fused operation. The groups' rows are disjoint, and a task touches its own group's rows and
/// its own heads' columns only: no two tasks write the same element.
struct Attention {
    level: Level,
    groups: Vec<Group>,
    tasks: Vec<(usize, usize)>,
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
    /// Of the forward pass, `(n, H)`.
    softmax: OnceLock<Vec<Softmax>>,
}

/// Where a row of the projection keeps each head, as ranges of the flat elements.
pub(crate) struct Columns(pub(crate) HeadLayout);

impl Columns {
    pub(crate) fn query(&self, row: usize, head: usize) -> Range<usize> {
        self.at(row, head)
    }

    pub(crate) fn key(&self, row: usize, kv_head: usize) -> Range<usize> {
        self.at(row, self.0.heads + kv_head)
    }

    pub(crate) fn value(&self, row: usize, kv_head: usize) -> Range<usize> {
        self.at(row, self.0.heads + self.0.kv_heads + kv_head)
    }

    /// The query heads that read key head `kv_head`.
    pub(crate) fn heads(&self, kv_head: usize) -> Range<usize> {
        let group = self.0.heads / self.0.kv_heads;
        kv_head * group..(kv_head + 1) * group
    }

    fn at(&self, row: usize, head: usize) -> Range<usize> {
        let start = row * self.0.qkv_dim() + head * self.0.head_dim;
        start..start + self.0.head_dim
    }
}

impl Attention {
    fn work(&self) -> usize {
        self.groups.iter().map(Group::pairs).sum::<usize>() * 2 * self.layout.out_dim()
    }

    fn forward(
        &self,
        qkv: &[f32],
        group: &Group,
        kv_head: usize,
        out: &Shared<f32>,
        softmax: &Shared<Softmax>,
        scratch: &mut Scratch,
    ) {
        let HeadLayout { heads, head_dim: dim, .. } = self.layout;
        let columns = Columns(self.layout);
        let mut keys = vec![[0.0; LANES]; vectors(group.keys()) * dim];
        let mut values = vec![[0.0; LANES]; group.keys() * vectors(dim)];
        let mut member = |before: usize, rows: &Range<usize>| {
            let (first, count) = (before, rows.len());
            let row = |i: usize| &qkv[columns.key(rows.start + i, kv_head)];
            self.level.run(PutTransposed { run: &mut keys, first, count, row });
            let row = |i: usize| &qkv[columns.value(rows.start + i, kv_head)];
            self.level.run(PutRows { run: &mut values, first, count, row });
            let places: Vec<(usize, usize)> =
                columns.heads(kv_head).flat_map(|head| rows.clone().map(move |row| (row, head))).collect();
            let queries: Vec<Query> = places
                .iter()
                .map(|&(row, head)| Query {
                    channels: &qkv[columns.query(row, head)],
                    seen: seen(before + row - rows.start, self.window),
                })
                .collect();
            // SAFETY: row and head are this task's alone.
            #[allow(unsafe_code)]
            let put = |query: usize, result: &[f32], normal: Softmax| unsafe {
                let at = places[query].0 * heads + places[query].1;
                out.slice(at * dim, dim).copy_from_slice(result);
                softmax.slice(at, 1)[0] = normal;
            };
            let (keys, values, queries) = (&keys, &values, &queries);
            self.level.run(Attend { dim, scale: self.scale, keys, values, queries, put, scratch: &mut *scratch });
        };
        member(0, &group.trunk);
        group.branches.iter().for_each(|rows| member(group.trunk.len(), rows));
    }

    fn backward(&self, given: &Given, group: &Group, kv_head: usize, grads: &Shared<f32>, scratch: &mut Scratch) {
        let HeadLayout { heads, head_dim: dim, .. } = self.layout;
        let (columns, width, count) = (Columns(self.layout), vectors(dim), group.keys());
        let run = |len: usize| vec![[0.0f32; LANES]; len];
        let (mut keys, mut values) = (run(vectors(count) * dim), run(vectors(count) * dim));
        let (mut key_rows, padded) = (run(count * width), vectors(count) * LANES * width);
        let (mut key_grads, mut value_grads) = (run(padded), run(padded));
        let longest = group.branches.iter().map(Range::len).fold(group.trunk.len(), usize::max);
        let (mut queries, mut outs, mut out_grads) = (run(longest * width), run(longest * width), run(longest * width));

        // SAFETY: a row's key and value columns of this head are this task's alone.
        #[allow(unsafe_code)]
        let write = |rows: &Range<usize>, before: usize, key_grads: &[Vector], value_grads: &[Vector]| unsafe {
            for (i, row) in rows.clone().enumerate() {
                let key = grads.slice(columns.key(row, kv_head).start, dim);
                key.copy_from_slice(get_row(key_grads, before + i, dim));
                let value = grads.slice(columns.value(row, kv_head).start, dim);
                value.copy_from_slice(get_row(value_grads, before + i, dim));
            }
        };
        let mut member = |before: usize, rows: &Range<usize>| {
            let (first, count) = (before, rows.len());
            let row = |i: usize| &given.qkv[columns.key(rows.start + i, kv_head)];
            self.level.run(PutTransposed { run: &mut keys, first, count, row });
            self.level.run(PutRows { run: &mut key_rows, first, count, row });
            let row = |i: usize| &given.qkv[columns.value(rows.start + i, kv_head)];
            self.level.run(PutTransposed { run: &mut values, first, count, row });
            key_grads[before * width..].fill([0.0; LANES]);
            value_grads[before * width..].fill([0.0; LANES]);
            for head in columns.heads(kv_head) {
                let at = |row: usize| row * heads + head;
                let row = |i: usize| &given.qkv[columns.query(rows.start + i, head)];
                self.level.run(PutRows { run: &mut queries, first: 0, count, row });
                let row = |i: usize| &given.out[at(rows.start + i) * dim..][..dim];
                self.level.run(PutRows { run: &mut outs, first: 0, count, row });
                let row = |i: usize| &given.out_grad[at(rows.start + i) * dim..][..dim];
                self.level.run(PutRows { run: &mut out_grads, first: 0, count, row });
                let known =
                    |(i, row)| Gradient { seen: seen(before + i, self.window), softmax: given.softmax[at(row)] };
                let gradients: Vec<Gradient> = rows.clone().enumerate().map(known).collect();
                // SAFETY: a row's query columns of this head are this task's alone.
                #[allow(unsafe_code)]
                let put = |i: usize, grad: &[f32]| unsafe {
                    grads.slice(columns.query(rows.start + i, head).start, dim).copy_from_slice(grad);
                };
                self.level.run(AttendBackward {
                    dim,
                    scale: self.scale,
                    keys: &keys,
                    key_rows: &key_rows,
                    values: &values,
                    queries: &queries,
                    outs: &outs,
                    grads: &out_grads,
                    rows: &gradients,
                    key_grads: &mut key_grads,
                    value_grads: &mut value_grads,
                    put,
                    scratch: &mut *scratch,
                });
            }
            if before > 0 {
                write(rows, before, &key_grads, &value_grads);
            }
        };
        member(0, &group.trunk);
        group.branches.iter().for_each(|rows| member(group.trunk.len(), rows));
        write(&group.trunk, 0, &key_grads, &value_grads);
    }
}

/// What the backward pass starts from: the projection, the result, its gradient, its softmax.
struct Given<'a> {
    qkv: &'a [f32],
    out: &'a [f32],
    out_grad: &'a [f32],
    softmax: &'a [Softmax],
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let qkv = op::elements(storage, layout)?;
        let (rows, _) = layout.shape().dims2()?;
        let mut out = vec![0.0; rows * self.layout.out_dim()];
        let mut softmax = vec![Softmax::default(); rows * self.layout.heads];
        let (shared, normal) = (Shared::new(&mut out), Shared::new(&mut softmax));
        for_each(self.tasks.par_iter(), self.work(), |&(group, kv_head), scratch| {
            self.forward(qkv, &self.groups[group], kv_head, &shared, &normal, scratch);
        });
        // A graph may be replayed: the numbers are the same, so the first ones may stay.
        let _ = self.softmax.set(softmax);
        op::output(out, (rows, self.layout.out_dim()))
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(softmax) = self.softmax.get() else {
            candle_core::bail!("attention: a backward pass before its forward pass");
        };
        let (like, grad) = (qkv, grad.contiguous()?);
        let (qkv, out, out_grad) = (op::Elements::of(qkv)?, op::Elements::of(out)?, op::Elements::of(&grad)?);
        let given = Given { qkv: &qkv, out: &out, out_grad: &out_grad, softmax };
        let mut grads = vec![0.0; qkv.len()];
        let shared = Shared::new(&mut grads);
        for_each(self.tasks.par_iter(), self.work(), |&(group, kv_head), scratch| {
            self.backward(&given, &self.groups[group], kv_head, &shared, scratch);
        });
        op::gradient(grads, like)
    }
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
const BLOCK_SCORES: usize = 1 << 26;

/// Attention of `q (n, H D)` over `k, v (m, Hkv D)` by plain operations: sequences of like length
/// are gathered into padded blocks, and their rows scattered back.
pub(crate) fn compose(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mut sequences: Vec<Sequence>,
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    sequences.retain(|sequence| !sequence.rows.is_empty());
    sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.keys.len()));
    let (mut parts, mut places) = (Vec::new(), vec![0u32; q.dim(0)?]);
    let (mut left, mut rows) = (sequences.as_slice(), 0);
    while let Some(longest) = left.first() {
        let queries = |block: &[Sequence]| block.iter().map(|s| s.rows.len()).max().unwrap_or(0);
        let scores = |block: &[Sequence]| block.len() * queries(block) * longest.keys.len() * layout.heads;
        let mut count = 1;
        while count < left.len() && scores(&left[..count + 1]) <= BLOCK_SCORES {
            count += 1;
        }
        let (block, rest) = left.split_at(count);
        let padded = queries(block);
        for sequence in block {
            sequence.rows.iter().enumerate().for_each(|(i, row)| places[*row as usize] = (rows + i) as u32);
            rows += padded;
        }
        parts.push(compose_block(q, k, v, block, layout, scale, window)?);
        left = rest;
    }
    if parts.is_empty() {
        return Ok(q.clone());
    }
    Ok(Tensor::cat(&parts, 0)?.index_select(&Tensor::from_vec(places, q.dim(0)?, q.device())?, 0)?)
}

/// One padded block of S sequences: `(S Tq, H D)`.
fn compose_block(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &[Sequence],
    layout: HeadLayout,
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    let count = sequences.len();
    let group = heads / kv_heads;
    let longest = |of: &dyn Fn(&Sequence) -> usize| sequences.iter().map(of).max().unwrap_or(0);
    let (queries, keys) = (longest(&|s| s.rows.len()), longest(&|s| s.keys.len()));
    // Padding repeats row 0 of the source: it is masked as a key and never read as a query.
    let gather = |source: &Tensor, len: usize, heads: usize, rows: &dyn Fn(&Sequence) -> &[u32]| {
        let padded = sequences.iter().flat_map(|s| (0..len).map(move |i| rows(s).get(i).copied().unwrap_or(0)));
        let indices = Tensor::from_vec(padded.collect::<Vec<u32>>(), count * len, source.device())?;
        source.index_select(&indices, 0)?.reshape((count, len, heads, head_dim))?.transpose(1, 2)?.contiguous()
    };
    let q = gather(q, queries, heads, &|s| &s.rows)?.reshape((count, kv_heads, group * queries, head_dim))?;
    let k = gather(k, keys, kv_heads, &|s| &s.keys)?;
    let v = gather(v, keys, kv_heads, &|s| &s.keys)?;

    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mask = mask(sequences, queries, keys, window, q.device())?.to_dtype(dtype)?;
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)?.to_dtype(dtype)? * f64::from(scale))?;
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

#[cfg(test)]
mod tests;
