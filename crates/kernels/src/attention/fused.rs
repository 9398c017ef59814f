//! Attention on the CPU: one task per group of spans and key head, the backward pass recomputing
//! what the forward pass did not keep.

use super::{Group, check, check_softcap, groups};
use crate::{
    Branch, HeadLayout, Result, Scoring, Span,
    attend::{
        Attend, AttendBackward, Gradient, PutRows, PutTransposed, Query, ScoreNormaliser, Scratch, get_row, seen,
        vectors,
    },
    branch::{Reads, Step},
    op,
    shared::Shared,
    simd::{LANES, Level, Vector},
};
use rayon::prelude::*;
use std::{
    cell::RefCell,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// The fused [`attention`](crate::attention) at a given level.
pub(super) fn attention_at(
    level: Level,
    qkv: Branch,
    spans: &Arc<[Span]>,
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Result<Branch> {
    check_softcap("attention", scoring)?;
    let rows = check("attention", qkv.dims("attention", "qkv")?, layout, window)?;
    let groups = groups(spans, rows)?;
    let tasks = tasks(&groups, layout);
    Ok(qkv.step(rows, Attention { level, groups, tasks, layout, scoring, window, normalisers: OnceLock::new() }))
}

/// (group, key head) pairs, the most work first so that no thread starts it last.
fn tasks(groups: &[Group], layout: HeadLayout) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&group| std::cmp::Reverse(groups[group].pairs()));
    order.into_iter().flat_map(|group| (0..layout.kv_heads).map(move |head| (group, head))).collect()
}

/// The fused operation. The groups' rows are disjoint, and a task touches its own group's rows and
/// its own heads' columns only: no two tasks write the same element.
struct Attention {
    level: Level,
    groups: Vec<Group>,
    tasks: Vec<(usize, usize)>,
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
    /// Of the forward pass, `(n, H)`.
    normalisers: OnceLock<Vec<ScoreNormaliser>>,
}

impl Attention {
    fn work(&self) -> usize {
        self.groups.iter().map(Group::pairs).sum::<usize>() * 2 * self.layout.out_dim()
    }

    /// Attends with the query heads of one key head, in all rows of one group.
    fn attend(
        &self,
        qkv: &[f32],
        group: &Group,
        kv_head: usize,
        out: &Shared<f32>,
        normalisers: &Shared<ScoreNormaliser>,
        scratch: &mut Scratch,
    ) {
        let HeadLayout { heads, head_dim: dim, .. } = self.layout;
        let columns = Columns(self.layout);
        let mut keys = vec![[0.0; LANES]; vectors(group.keys()) * dim];
        let mut values = vec![[0.0; LANES]; group.keys() * vectors(dim)];
        for (first, rows) in group.members() {
            let count = rows.len();
            let row = |i: usize| &qkv[columns.key(rows.start + i, kv_head)];
            self.level.run(PutTransposed { run: &mut keys, first, count, row });
            let row = |i: usize| &qkv[columns.value(rows.start + i, kv_head)];
            self.level.run(PutRows { run: &mut values, first, count, row });

            let places: Vec<(usize, usize)> =
                columns.heads(kv_head).flat_map(|head| rows.clone().map(move |row| (row, head))).collect();
            let query = |&(row, head): &(usize, usize)| Query {
                channels: &qkv[columns.query(row, head)],
                seen: seen(first + row - rows.start, self.window),
            };
            let queries: Vec<Query> = places.iter().map(query).collect();
            // SAFETY: row and head are this task's alone.
            #[allow(unsafe_code)]
            let put = |query: usize, result: &[f32], normaliser: ScoreNormaliser| unsafe {
                let at = places[query].0 * heads + places[query].1;
                out.slice(at * dim, dim).copy_from_slice(result);
                normalisers.slice(at, 1)[0] = normaliser;
            };
            let (keys, values, queries) = (&keys, &values, &queries);
            self.level.run(Attend { dim, scoring: self.scoring, keys, values, queries, put, scratch: &mut *scratch });
        }
    }

    /// The gradients of one key head's columns and of its query heads', in all rows of one group.
    fn attend_backward(
        &self,
        given: &Given,
        group: &Group,
        kv_head: usize,
        grads: &Shared<f32>,
        scratch: &mut Scratch,
    ) {
        let (columns, dim) = (Columns(self.layout), self.layout.head_dim);
        let mut runs = Runs::new(group, dim);
        for (first, rows) in group.members() {
            runs.put_keys(self.level, given.qkv, &columns, first, rows, kv_head);
            for head in columns.heads(kv_head) {
                self.backward_head(given, first, rows, head, &mut runs, grads, scratch);
            }
            // The trunk's sums are complete only after the last branch.
            if first > 0 {
                runs.write_key_grads(&columns, first, rows, kv_head, grads);
            }
        }
        runs.write_key_grads(&columns, 0, &group.trunk, kv_head, grads);
    }

    /// Writes the gradients of one query head in one span, and adds to those of its keys.
    fn backward_head(
        &self,
        given: &Given,
        first: usize,
        rows: &Range<usize>,
        head: usize,
        runs: &mut Runs,
        grads: &Shared<f32>,
        scratch: &mut Scratch,
    ) {
        let HeadLayout { heads, head_dim: dim, .. } = self.layout;
        let (columns, count) = (Columns(self.layout), rows.len());
        let at = |i: usize| (rows.start + i) * heads + head;
        let row = |i: usize| &given.qkv[columns.query(rows.start + i, head)];
        self.level.run(PutRows { run: &mut runs.queries, first: 0, count, row });
        let row = |i: usize| &given.out[at(i) * dim..][..dim];
        self.level.run(PutRows { run: &mut runs.outs, first: 0, count, row });
        let row = |i: usize| &given.out_grad[at(i) * dim..][..dim];
        self.level.run(PutRows { run: &mut runs.out_grads, first: 0, count, row });
        let known = |i: usize| Gradient { seen: seen(first + i, self.window), normaliser: given.normalisers[at(i)] };
        let known: Vec<Gradient> = (0..count).map(known).collect();
        // SAFETY: a row's query columns of this head are this task's alone.
        #[allow(unsafe_code)]
        let put = |i: usize, grad: &[f32]| unsafe {
            grads.slice(columns.query(rows.start + i, head).start, dim).copy_from_slice(grad);
        };
        self.level.run(AttendBackward {
            dim,
            scoring: self.scoring,
            keys: &runs.keys,
            key_rows: &runs.key_rows,
            values: &runs.values,
            queries: &runs.queries,
            outs: &runs.outs,
            grads: &runs.out_grads,
            rows: &known,
            key_grads: &mut runs.key_grads,
            value_grads: &mut runs.value_grads,
            put,
            scratch,
        });
    }
}

/// What one task of the backward pass packs: keys and values of the group, queries of one span.
struct Runs {
    keys: Vec<Vector>,
    key_rows: Vec<Vector>,
    values: Vec<Vector>,
    key_grads: Vec<Vector>,
    value_grads: Vec<Vector>,
    queries: Vec<Vector>,
    outs: Vec<Vector>,
    out_grads: Vec<Vector>,
    dim: usize,
}

impl Runs {
    fn new(group: &Group, dim: usize) -> Runs {
        let run = |len: usize| vec![[0.0; LANES]; len];
        let keys = vectors(group.keys());
        let (transposed, rows) = (keys * dim, keys * LANES * vectors(dim));
        let queries = group.members().map(|(_, rows)| rows.len()).max().unwrap_or(0) * vectors(dim);
        Runs {
            keys: run(transposed),
            key_rows: run(rows),
            values: run(transposed),
            key_grads: run(rows),
            value_grads: run(rows),
            queries: run(queries),
            outs: run(queries),
            out_grads: run(queries),
            dim,
        }
    }

    /// Puts a span's keys and values in their places, with gradients of 0.
    fn put_keys(
        &mut self,
        level: Level,
        qkv: &[f32],
        columns: &Columns,
        first: usize,
        rows: &Range<usize>,
        kv_head: usize,
    ) {
        let count = rows.len();
        let row = |i: usize| &qkv[columns.key(rows.start + i, kv_head)];
        level.run(PutTransposed { run: &mut self.keys, first, count, row });
        level.run(PutRows { run: &mut self.key_rows, first, count, row });
        let row = |i: usize| &qkv[columns.value(rows.start + i, kv_head)];
        level.run(PutTransposed { run: &mut self.values, first, count, row });
        self.key_grads[first * vectors(self.dim)..].fill([0.0; LANES]);
        self.value_grads[first * vectors(self.dim)..].fill([0.0; LANES]);
    }

    fn write_key_grads(
        &self,
        columns: &Columns,
        first: usize,
        rows: &Range<usize>,
        kv_head: usize,
        grads: &Shared<f32>,
    ) {
        for (i, row) in rows.clone().enumerate() {
            // SAFETY: a row's key and value columns of this head are this task's alone.
            #[allow(unsafe_code)]
            let (key, value) = unsafe {
                let key = grads.slice(columns.key(row, kv_head).start, self.dim);
                (key, grads.slice(columns.value(row, kv_head).start, self.dim))
            };
            key.copy_from_slice(get_row(&self.key_grads, first + i, self.dim));
            value.copy_from_slice(get_row(&self.value_grads, first + i, self.dim));
        }
    }
}

/// What the backward pass starts from: the projection, the result, its gradient, and what normalised
/// its scores.
struct Given<'a> {
    qkv: &'a [f32],
    out: &'a [f32],
    out_grad: &'a [f32],
    normalisers: &'a [ScoreNormaliser],
}

impl Step for Attention {
    fn columns(&self) -> usize {
        self.layout.out_dim()
    }

    fn forward(&self, qkv: &[f32], keep: bool) -> candle_core::Result<Vec<f32>> {
        let rows = qkv.len() / self.layout.qkv_dim();
        let mut out = op::zeros(rows * self.layout.out_dim());
        let mut normalisers = vec![ScoreNormaliser::default(); rows * self.layout.heads];
        let (shared, shared_normalisers) = (Shared::new(&mut out), Shared::new(&mut normalisers));
        for_each(self.tasks.par_iter(), self.work(), |&(group, kv_head), scratch| {
            self.attend(qkv, &self.groups[group], kv_head, &shared, &shared_normalisers, scratch);
        });
        if keep {
            // Set at most once, because a recorded operation has one forward pass.
            let _ = self.normalisers.set(normalisers);
        }
        Ok(out)
    }

    fn backward(&self, qkv: &[f32], out: &[f32], out_grad: &[f32]) -> candle_core::Result<Vec<f32>> {
        let Some(normalisers) = self.normalisers.get() else {
            candle_core::bail!("attention: a backward pass before its forward pass");
        };
        let given = Given { qkv, out, out_grad, normalisers };
        let mut grads = op::zeros(qkv.len());
        let shared = Shared::new(&mut grads);
        for_each(self.tasks.par_iter(), self.work(), |&(group, kv_head), scratch| {
            self.attend_backward(&given, &self.groups[group], kv_head, &shared, scratch);
        });
        Ok(grads)
    }

    fn reads(&self) -> Reads {
        Reads::Both
    }
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
