//! Keys and values of the tokens decoded so far, and attention over them.

use crate::{
    Error, HeadLayout, Result, Scoring,
    attend::{Attend, PutRows, Query, put_transposed, seen, vectors},
    attention::{Columns, Sequence, Split, check, check_layout, check_softcap, compose, for_each},
    op,
    shared::Shared,
    simd::{LANES, Level, Vector},
};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Writes the key and value of each row of `qkv (n, (H + 2 Hkv) D)` into the cache of `layer`, then
/// attends, as [`attention`](crate::attention) does: `(n, H D)`, not differentiable.
///
/// Row i sees positions `0..=position` of its slot, or the last `window` of those. Rows of one slot
/// come in increasing order of position and leave no gap; a row sees the earlier rows of the same
/// call, so that a whole prompt can be passed at once. On the CPU in `f32` each row is to the last
/// bit what `attention` computes for it, however the rows are dealt out over calls.
pub fn cached_attention(
    qkv: &Tensor,
    layer: usize,
    cache: &mut KvCache,
    rows: &[CacheRow],
    scoring: impl Into<Scoring>,
    window: Option<usize>,
) -> Result<Tensor> {
    let scoring = scoring.into();
    check_softcap("cached_attention", scoring)?;
    let n = check("cached_attention", op::dims2("cached_attention", "qkv", qkv)?, cache.layout, window)?;
    op::check_shape("cached_attention", "rows", &[rows.len()], &[n])?;
    cache.claim(layer, rows)?;
    let (qkv, layout, capacity) = (qkv.detach().contiguous()?, cache.layout, cache.capacity);
    match cache.storage_for(&qkv)? {
        Storage::Fused(layers) => attend(&mut layers[layer], &qkv, rows, layout, scoring, window),
        Storage::Composed(layers) => layers[layer].attend(&qkv, rows, capacity, layout, scoring, window),
    }
}

/// Keys and values of `slots` sequences of up to `capacity` tokens, in every layer. A slot is used
/// again by writing its position 0 again.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    slots: usize,
    capacity: usize,
    layout: HeadLayout,
    /// Positions written, `(layers, slots)`.
    filled: Vec<usize>,
    fused: bool,
    /// Allocated by the first rows, because only they know the dtype.
    storage: Option<Storage>,
}

/// Where one row's key and value go, and what it attends to: positions `0..=position` of `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// The sequence.
    pub slot: usize,
    /// The row's position in its sequence.
    pub position: usize,
}

impl KvCache {
    /// An empty cache. The memory, `2 layers slots capacity Hkv D` numbers, is taken by the first
    /// [`cached_attention`]. Refuses a layout whose H is not a multiple of Hkv.
    pub fn new(layers: usize, slots: usize, capacity: usize, layout: HeadLayout, device: &Device) -> Result<KvCache> {
        check_layout("KvCache", layout)?;
        let filled = vec![0; layers * slots];
        Ok(KvCache { layers, slots, capacity, layout, filled, fused: device.is_cpu(), storage: None })
    }

    /// The same cache on plain Candle operations: the oracle, on the CPU too. Before first use.
    pub fn composed(self) -> KvCache {
        KvCache { fused: false, storage: None, ..self }
    }

    /// Sequences held.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens that a sequence may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Copies positions `0..len` of one slot to another in every layer, so that several completions
    /// share the computation of their prompt. The target then continues at position `len`.
    pub fn copy_prefix(&mut self, from_slot: usize, to_slot: usize, len: usize) -> Result<()> {
        op::check_indices("copy_prefix", "slots", &[from_slot as u32, to_slot as u32], self.slots)?;
        for layer in 0..self.layers {
            let filled = self.filled[layer * self.slots + from_slot];
            if len > filled {
                return Err(refuse("copy_prefix", "len", format!("at most the {filled} positions written"), len));
            }
            self.filled[layer * self.slots + to_slot] = len;
        }
        if from_slot == to_slot || len == 0 {
            return Ok(());
        }
        match &mut self.storage {
            None => {}
            Some(Storage::Fused(layers)) => {
                let dim = self.layout.head_dim;
                layers.iter_mut().for_each(|layer| layer.copy(from_slot, to_slot, len, dim));
            }
            Some(Storage::Composed(layers)) => {
                for layer in layers {
                    layer.copy(from_slot * self.capacity, to_slot * self.capacity, len)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses rows outside the cache or beyond a gap, and marks the others as written.
    fn claim(&mut self, layer: usize, rows: &[CacheRow]) -> Result<()> {
        let op = "cached_attention";
        op::check_indices(op, "layer", &[layer as u32], self.layers)?;
        let mut last = BTreeMap::new();
        // A refused call writes nothing, so it marks nothing.
        let mut claimed = self.filled[layer * self.slots..][..self.slots].to_vec();
        for row in rows {
            op::check_indices(op, "slot", &[row.slot as u32], self.slots)?;
            op::check_indices(op, "position", &[row.position as u32], self.capacity)?;
            let filled = &mut claimed[row.slot];
            if row.position > *filled || last.insert(row.slot, row.position).is_some_and(|last| last >= row.position) {
                let expected = format!("increasing, and at most {filled} (slot {}'s next)", row.slot);
                return Err(refuse(op, "position", expected, row.position));
            }
            *filled = row.position + 1;
        }
        self.filled[layer * self.slots..][..self.slots].copy_from_slice(&claimed);
        Ok(())
    }

    /// The storage, allocated for rows like `qkv` when there is none yet.
    fn storage_for(&mut self, qkv: &Tensor) -> Result<&mut Storage> {
        let storage = match self.storage.take() {
            Some(storage) => storage,
            None if self.fused && qkv.dtype() == DType::F32 => {
                let layer = || Fused::new(self.slots, self.capacity, self.layout);
                Storage::Fused((0..self.layers).map(|_| layer()).collect())
            }
            None => {
                let rows = self.slots * self.capacity;
                let layer = || Composed::new(rows, self.layout.kv_heads * self.layout.head_dim, qkv);
                Storage::Composed((0..self.layers).map(|_| layer()).collect::<Result<_>>()?)
            }
        };
        Ok(self.storage.insert(storage))
    }
}

fn refuse(op: &'static str, argument: &'static str, expected: String, got: usize) -> Error {
    Error::Shape { op, argument, expected, got: vec![got] }
}

#[derive(Debug)]
enum Storage {
    Fused(Vec<Fused>),
    Composed(Vec<Composed>),
}

/// One layer's keys and values, packed as the kernel reads them: slot by slot, head by head.
#[derive(Debug)]
struct Fused {
    /// Transposed keys, `keys_len` vectors per head.
    keys: Vec<Vector>,
    /// Rows of values, `values_len` vectors per head.
    values: Vec<Vector>,
    keys_len: usize,
    values_len: usize,
    kv_heads: usize,
}

impl Fused {
    fn new(slots: usize, capacity: usize, layout: HeadLayout) -> Fused {
        let HeadLayout { kv_heads, head_dim, .. } = layout;
        let (keys_len, values_len) = (vectors(capacity) * head_dim, capacity * vectors(head_dim));
        let run = |len: usize| vec![[0.0; LANES]; slots * kv_heads * len];
        Fused { keys: run(keys_len), values: run(values_len), keys_len, values_len, kv_heads }
    }

    /// Puts the keys and values of `rows` in their places, one task per slot and key head, each with its own part.
    fn write(&mut self, qkv: &[f32], rows: &[CacheRow], by_slot: &BTreeMap<usize, Vec<usize>>, layout: HeadLayout) {
        let kv_heads = self.kv_heads;
        let keys = self.keys.chunks_exact_mut(self.keys_len.max(1));
        let parts = keys.zip(self.values.chunks_exact_mut(self.values_len.max(1))).enumerate();
        let of_rows = |(i, (keys, values))| Some((by_slot.get(&(i / kv_heads))?, i % kv_heads, keys, values));
        let mut tasks: Vec<_> = parts.filter_map(of_rows).collect();
        let work = rows.len() * layout.qkv_dim();
        for_each(tasks.par_iter_mut(), work, |(own, kv_head, keys, values), _| {
            let columns = Columns(layout);
            for &row in own.iter() {
                let (first, value) = (rows[row].position, &qkv[columns.value(row, *kv_head)]);
                put_transposed(keys, first, &qkv[columns.key(row, *kv_head)]);
                Level::best().run(PutRows { run: values, first, count: 1, row: |_| value });
            }
        });
    }

    /// Keys and values of one key head of a slot.
    fn head(&self, slot: usize, kv_head: usize) -> (&[Vector], &[Vector]) {
        let at = slot * self.kv_heads + kv_head;
        (&self.keys[at * self.keys_len..][..self.keys_len], &self.values[at * self.values_len..][..self.values_len])
    }

    /// Copies whole blocks of sixteen keys: those beyond `len` are as good as unwritten.
    fn copy(&mut self, from_slot: usize, to_slot: usize, len: usize, dim: usize) {
        let copy = |run: &mut [Vector], of: usize, len: usize| {
            for head in 0..self.kv_heads {
                let [from, to] = [from_slot, to_slot].map(|slot| (slot * self.kv_heads + head) * of);
                run.copy_within(from..from + len, to);
            }
        };
        copy(&mut self.keys, self.keys_len, vectors(len) * dim);
        copy(&mut self.values, self.values_len, len * vectors(dim));
    }
}

/// Query rows of one slot and key head that a task attends for: a long prompt becomes many tasks, so that it keeps all
/// threads busy, however few its key heads are.
const TASK_ROWS: usize = 32;

/// Writes, one task per slot and key head, then attends, one task per run of a slot's rows and key head.
fn attend(
    cache: &mut Fused,
    qkv: &Tensor,
    rows: &[CacheRow],
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Result<Tensor> {
    let qkv = op::Elements::of(qkv)?;
    let by_slot = by_slot(rows);
    cache.write(&qkv, rows, &by_slot, layout);
    let HeadLayout { heads, kv_heads, head_dim: dim } = layout;
    let runs = by_slot.iter().flat_map(|(&slot, own)| own.chunks(TASK_ROWS).map(move |own| (slot, own)));
    let tasks: Vec<(usize, &[usize], usize)> =
        runs.flat_map(|(slot, own)| (0..kv_heads).map(move |kv_head| (slot, own, kv_head))).collect();
    let work: usize = rows.iter().map(|row| 2 * row.position * layout.out_dim()).sum();
    let mut out = vec![0.0; rows.len() * layout.out_dim()];
    let shared = Shared::new(&mut out);
    for_each(tasks.par_iter(), work, |&(slot, own, kv_head), scratch| {
        let columns = Columns(layout);
        let (keys, values) = cache.head(slot, kv_head);
        let places: Vec<(usize, usize)> =
            columns.heads(kv_head).flat_map(|head| own.iter().map(move |&row| (row, head))).collect();
        let query = |&(row, head): &(usize, usize)| Query {
            channels: &qkv[columns.query(row, head)],
            seen: seen(rows[row].position, window),
        };
        let queries: Vec<Query> = places.iter().map(query).collect();
        // SAFETY: a row belongs to one run, and a query head to one key head, so to one task alone.
        #[allow(unsafe_code)]
        let put = |query: usize, result: &[f32], _| unsafe {
            let (row, head) = places[query];
            shared.slice((row * heads + head) * dim, dim).copy_from_slice(result);
        };
        Level::best().run(Attend { dim, scoring, keys, values, queries: &queries, put, scratch });
    });
    Ok(Tensor::from_vec(out, (rows.len(), layout.out_dim()), &Device::Cpu)?)
}

/// Each slot's rows, in order.
fn by_slot(rows: &[CacheRow]) -> BTreeMap<usize, Vec<usize>> {
    let mut by_slot: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        by_slot.entry(row.slot).or_default().push(i);
    }
    by_slot
}

/// One layer's keys and values as tensors `(slots capacity, Hkv D)`.
#[derive(Debug)]
struct Composed {
    keys: Tensor,
    values: Tensor,
}

impl Composed {
    fn new(rows: usize, width: usize, like: &Tensor) -> Result<Composed> {
        let zeros = || Tensor::zeros((rows, width), like.dtype(), like.device());
        Ok(Composed { keys: zeros()?, values: zeros()? })
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        for tensor in [&self.keys, &self.values] {
            tensor.slice_set(&tensor.narrow(0, from, len)?.copy()?, 0, to)?;
        }
        Ok(())
    }

    fn attend(
        &mut self,
        qkv: &Tensor,
        rows: &[CacheRow],
        capacity: usize,
        layout: HeadLayout,
        scoring: Scoring,
        window: Option<usize>,
    ) -> Result<Tensor> {
        let Split { q, k, v } = Split::of(qkv, layout)?;
        let places: Vec<u32> = rows.iter().map(|row| (row.slot * capacity + row.position) as u32).collect();
        let places = Tensor::from_vec(places, (rows.len(), 1), qkv.device())?.broadcast_as(k.shape())?.contiguous()?;
        self.keys.scatter_set(&places, &k, 0)?;
        self.values.scatter_set(&places, &v, 0)?;
        let sequences = by_slot(rows).into_iter().map(|(slot, own)| {
            let positions: Vec<usize> = own.iter().map(|&row| rows[row].position).collect();
            let start = slot * capacity;
            let keys = start..=start + positions.last().copied().unwrap_or(0);
            let rows = own.into_iter().map(|row| row as u32).collect();
            Sequence { rows, positions, keys: keys.map(|key| key as u32).collect() }
        });
        compose(&q, &self.keys, &self.values, sequences.collect(), layout, scoring, window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Span, attention,
        check::{numbers, on},
        definitions,
    };
    use instruct_claims::{holds, relative};
    use instruct_random::Source;
    use std::sync::Arc;

    fn projections(rows: usize, layout: HeadLayout) -> Tensor {
        let mut draws = Source::new(7, "decode test").at([]);
        let x: Vec<f32> = (0..rows * layout.qkv_dim()).map(|_| draws.normal()).collect();
        Tensor::from_vec(x, (rows, layout.qkv_dim()), &Device::Cpu).unwrap()
    }

    fn bits(x: &Tensor) -> Vec<Vec<u32>> {
        let rows: Vec<Vec<f32>> = x.to_vec2().unwrap();
        rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
    }

    const SCALE: f32 = 0.17;

    /// Sequences of these lengths, decoded `step` tokens at a time side by side, against the
    /// training forward over all of them: the same bits fused, the same numbers composed and as
    /// defined, at every level of the processor.
    #[track_caller]
    fn check(
        (claim, size): (&str, f32),
        lengths: &[usize],
        step: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        window: Option<usize>,
    ) {
        // A cap that bends these scores, and none.
        for softcap in [None, Some(0.7)] {
            check_scoring(
                (claim, size),
                lengths,
                step,
                (heads, kv_heads, head_dim),
                window,
                Scoring { scale: SCALE, softcap },
            );
        }
    }

    #[track_caller]
    fn check_scoring(
        (claim, size): (&str, f32),
        lengths: &[usize],
        step: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        window: Option<usize>,
        scoring: Scoring,
    ) {
        let layout = HeadLayout { heads, kv_heads, head_dim };
        let starts: Vec<usize> = (0..lengths.len()).map(|i| lengths[..i].iter().sum()).collect();
        let spans: Arc<[Span]> =
            starts.iter().zip(lengths).map(|(&start, len)| Span { rows: start..start + len, prefix: None }).collect();
        let qkv = (projections(lengths.iter().sum(), layout) * f64::from(size)).unwrap();
        let wide: Vec<f64> = numbers(&qkv).into_iter().map(f64::from).collect();
        let defined = definitions::attention(&wide, &spans, layout, scoring, window);
        let composed =
            decode(&qkv.to_dtype(DType::F64).unwrap(), lengths, step, layout, scoring, window, KvCache::composed);
        let case = format!(
            "cached_attention {lengths:?} by {step}, {heads}:{kv_heads} of {head_dim}, {window:?}, cap {:?}",
            scoring.softcap
        );
        let (floor, tolerance) = if size < 1.0 { (1e-43, 5e-4) } else { (0.05, 1e-5) };
        for level in Level::available() {
            on(level, 2, false, || {
                let decoded = decode(&qkv, lengths, step, layout, scoring, window, |cache| cache);
                let trained = numbers(&attention(&qkv, &spans, layout, scoring, window).unwrap());
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
                assert_eq!(bits(&decoded), bits(&trained), "{case}, {level:?}");
                holds(claim, &format!("{case}, {level:?}"), relative(&decoded, &composed, floor), tolerance);
                holds(claim, &format!("{case}, defined, {level:?}"), relative(&decoded, &defined, floor), tolerance);
            });
        }
    }

    /// What each row's attention is, in the order of the sequences.
    fn decode(
        qkv: &Tensor,
        lengths: &[usize],
        step: usize,
        layout: HeadLayout,
        scoring: Scoring,
        window: Option<usize>,
        kind: impl Fn(KvCache) -> KvCache,
    ) -> Vec<f32> {
        let starts: Vec<usize> = (0..lengths.len()).map(|i| lengths[..i].iter().sum()).collect();
        let capacity = *lengths.iter().max().unwrap();
        let mut cache = kind(KvCache::new(2, lengths.len(), capacity, layout, &Device::Cpu).unwrap());
        let mut out = vec![0.0; qkv.dim(0).unwrap() * layout.out_dim()];
        for first in (0..capacity).step_by(step) {
            let own =
                |slot: usize| (first..lengths[slot].min(first + step)).map(move |position| CacheRow { slot, position });
            let rows: Vec<CacheRow> = (0..lengths.len()).flat_map(own).collect();
            let flat: Vec<u32> = rows.iter().map(|row| (starts[row.slot] + row.position) as u32).collect();
            let picked = qkv.index_select(&Tensor::new(&*flat, &Device::Cpu).unwrap(), 0).unwrap();
            let decoded = numbers(&cached_attention(&picked, 1, &mut cache, &rows, scoring, window).unwrap());
            for (row, decoded) in flat.iter().zip(decoded.chunks(layout.out_dim())) {
                out[*row as usize * layout.out_dim()..][..layout.out_dim()].copy_from_slice(decoded);
            }
        }
        out
    }

    #[test]
    fn decoding_is_the_training_forward() {
        const ORDINARY: (&str, f32) = ("kernels/composed", 1.0);
        check(ORDINARY, &[1, 1], 1, (1, 1, 1), None);
        check(ORDINARY, &[40, 1, 17, 33], 1, (2, 2, 16), None);
        check(ORDINARY, &[20, 70], 7, (8, 1, 24), None);
        check(ORDINARY, &[70, 9], 1000, (6, 3, 7), None);
        check(ORDINARY, &[70, 33], 1, (3, 1, 64), Some(19));
        check(ORDINARY, &[70, 33], 11, (2, 1, 32), Some(16));
        check(ORDINARY, &[733, 1], 90, (2, 1, 16), None);
        check(ORDINARY, &[300, 97], 257, (2, 2, 16), Some(40));
        check(("kernels/denormal", 1e-40), &[40, 1, 17], 3, (2, 1, 7), None);
    }

    /// Scores of 1e4 that are exact in `f32`: what differs is the softmax alone.
    #[test]
    fn scores_of_ten_thousand_cancel_exactly() {
        // One channel of queries and keys is 128 everywhere, the other a few eighths.
        let layout = HeadLayout { heads: 1, kv_heads: 1, head_dim: 2 };
        let (rows, width) = (40, layout.qkv_dim());
        let value = |i: usize| if [0, 2].contains(&(i % width)) { 128.0 } else { ((i * i) % 37) as f32 / 8.0 - 2.0 };
        let values = (0..rows * width).map(value).collect();
        let qkv = Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap();
        let wide: Vec<f64> = numbers(&qkv).into_iter().map(f64::from).collect();
        let spans = [Span { rows: 0..rows, prefix: None }];
        let defined = definitions::attention(&wide, &spans, layout, 1.0.into(), None);
        for level in Level::available() {
            let decoded = on(level, 1, false, || {
                let mut cache = KvCache::new(1, 1, rows, layout, &Device::Cpu).unwrap();
                let places: Vec<CacheRow> = (0..rows).map(|position| CacheRow { slot: 0, position }).collect();
                numbers(&cached_attention(&qkv, 0, &mut cache, &places, 1.0, None).unwrap())
            });
            let case = format!("cached_attention 40 keys, {level:?}");
            holds("kernels/extreme", &case, relative(&decoded, &defined, 0.0), 1e-5);
        }
    }

    #[test]
    fn a_copied_prefix_continues_like_its_origin() {
        let layout = HeadLayout { heads: 4, kv_heads: 2, head_dim: 20 };
        let qkv = projections(24, layout);
        for cache in [|cache: KvCache| cache, KvCache::composed] {
            let mut cache = cache(KvCache::new(1, 3, 40, layout, &Device::Cpu).unwrap());
            let extend = |cache: &mut KvCache, slot: usize, rows: std::ops::Range<usize>| {
                let part = qkv.narrow(0, rows.start, rows.len()).unwrap();
                let rows: Vec<CacheRow> = rows.map(|position| CacheRow { slot, position }).collect();
                bits(&cached_attention(&part, 0, cache, &rows, SCALE, None).unwrap())
            };
            // Slot 2 holds an older, longer sequence.
            extend(&mut cache, 2, 0..24);
            extend(&mut cache, 0, 0..20);
            cache.copy_prefix(0, 2, 19).unwrap();
            assert_eq!(extend(&mut cache, 2, 19..24)[1..], extend(&mut cache, 0, 20..24)[..]);
        }
    }

    #[test]
    fn gaps_and_places_outside_are_refused() {
        let layout = HeadLayout { heads: 1, kv_heads: 1, head_dim: 4 };
        let mut cache = KvCache::new(1, 2, 3, layout, &Device::Cpu).unwrap();
        let mut refused = |layer: usize, rows: &[(usize, usize)], message: &str| {
            let rows: Vec<CacheRow> = rows.iter().map(|&(slot, position)| CacheRow { slot, position }).collect();
            let qkv = Tensor::zeros((2, 12), DType::F32, &Device::Cpu).unwrap();
            let error = cached_attention(&qkv, layer, &mut cache, &rows, SCALE, None).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused(1, &[(0, 0), (0, 1)], "layer[0] is 1");
        refused(0, &[(0, 0)], "rows must be [2], got [1]");
        refused(0, &[(2, 0), (0, 1)], "slot[0] is 2");
        refused(0, &[(0, 3), (0, 1)], "position[0] is 3");
        refused(0, &[(0, 1), (0, 2)], "position must be increasing, and at most 0 (slot 0's next), got [1]");
        refused(0, &[(1, 0), (1, 0)], "increasing");
        let error = cache.copy_prefix(1, 0, 3).unwrap_err().to_string();
        assert!(error.contains("at most the 0 positions written"), "a refused call has written nothing: {error}");
    }
}
