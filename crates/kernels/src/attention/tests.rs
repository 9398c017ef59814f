//! Attention against a slow double in `f64`, at every level of the processor and composed.

use super::{Columns, attention, attention_composed, fused::attention_at};
use crate::{
    Branch, HeadLayout, Params, Result, Scoring, Span,
    check::{self, X},
    definitions,
    simd::Level,
};
use candle_core::{DType, Device, Tensor, Var};
use instruct_random::Source;
use proptest::prelude::*;
use std::{ops::Range, sync::Arc};

/// A batch and how to attend over it.
#[derive(Clone, Debug)]
struct Case {
    spans: Vec<Span>,
    layout: HeadLayout,
    window: Option<usize>,
    /// Standard size of the projections: 1 for ordinary scores, 100 for scores of 1e4.
    size: f32,
    softcap: Option<f32>,
}

impl Case {
    /// Groups are given by lengths: the trunk's, then its branches'.
    fn new(groups: &[&[usize]], (heads, kv_heads, head_dim): (usize, usize, usize), window: Option<usize>) -> Case {
        let (mut spans, mut end) = (Vec::new(), 0);
        for lengths in groups {
            let trunk = end..end + lengths[0];
            for (i, length) in lengths.iter().enumerate() {
                spans.push(Span { rows: end..end + length, prefix: (i > 0).then(|| trunk.clone()) });
                end += length;
            }
        }
        Case { spans, layout: HeadLayout { heads, kv_heads, head_dim }, window, size: 1.0, softcap: None }
    }

    fn rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.rows.end)
    }

    fn scoring(&self) -> Scoring {
        Scoring { scale: 1.0 / (self.layout.head_dim as f32).sqrt(), softcap: self.softcap }
    }

    fn numbers(&self, seed: u64, width: usize) -> Vec<f32> {
        let mut draws = Source::new(seed, "attention test").at([]);
        (0..self.rows() * width).map(|_| self.size * (draws.uniform() * 2.0 - 1.0)).collect()
    }

    fn qkv(&self) -> Vec<f32> {
        self.numbers(1, self.layout.qkv_dim())
    }

    fn out_grad(&self) -> Vec<f32> {
        Case { size: 1.0, ..self.clone() }.numbers(2, self.layout.out_dim())
    }

    fn spans(&self) -> Arc<[Span]> {
        self.spans.clone().into()
    }
}

/// The output and the gradient of the projections, in `f64`, as the formulas are written.
fn oracle(case: &Case) -> (Vec<f64>, Vec<f64>) {
    let HeadLayout { heads, kv_heads, head_dim: dim } = case.layout;
    let Scoring { scale, softcap } = case.scoring();
    let (columns, scale, cap) = (Columns(case.layout), f64::from(scale), softcap.map(f64::from));
    let widen = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
    let (qkv, out_grad) = (widen(case.qkv()), widen(case.out_grad()));
    let (mut out, mut grad) = (vec![0.0; out_grad.len()], vec![0.0; qkv.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for span in &case.spans {
        let keys: Vec<usize> = span.prefix.clone().into_iter().flatten().chain(span.rows.clone()).collect();
        for (row, head) in span.rows.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let kv_head = head / (heads / kv_heads);
            let last = keys.iter().position(|key| *key == row).unwrap();
            let first = case.window.map_or(0, |window| (last + 1).saturating_sub(window));
            let keys = &keys[first..=last];
            let (q, at) = (columns.query(row, head), (row * heads + head) * dim);
            let scores: Vec<f64> =
                keys.iter().map(|key| scale * dot(&qkv[q.clone()], &qkv[columns.key(*key, kv_head)])).collect();
            let scores: Vec<f64> = scores.into_iter().map(|score| definitions::softcap(score, cap)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|score| (score - max).exp() / sum).collect();
            let out_grad = &out_grad[at..at + dim];
            let p_grad: Vec<f64> = keys.iter().map(|key| dot(out_grad, &qkv[columns.value(*key, kv_head)])).collect();
            let mean = dot(&p, &p_grad);
            for (i, key) in keys.iter().enumerate() {
                let bend = cap.map_or(1.0, |cap| 1.0 - (scores[i] / cap).powi(2));
                let slope = scale * bend * p[i] * (p_grad[i] - mean);
                for d in 0..dim {
                    out[at + d] += p[i] * qkv[columns.value(*key, kv_head).start + d];
                    grad[columns.value(*key, kv_head).start + d] += p[i] * out_grad[d];
                    grad[q.start + d] += slope * qkv[columns.key(*key, kv_head).start + d];
                    grad[columns.key(*key, kv_head).start + d] += slope * qkv[q.start + d];
                }
            }
        }
    }
    (out, grad)
}

/// The output and the gradient of one way to compute attention.
fn run(case: &Case, dtype: DType, attend: impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<f64>, Vec<f64>) {
    let tensor = |x: Vec<f32>, width: usize| {
        Tensor::from_vec(x, (case.rows(), width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let qkv = Var::from_tensor(&tensor(case.qkv(), case.layout.qkv_dim())).unwrap();
    let out = attend(&qkv).unwrap();
    let loss = (&out * tensor(case.out_grad(), case.layout.out_dim())).unwrap().sum_all().unwrap();
    let grad = loss.backward().unwrap().remove(&qkv).unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (wide(&out), wide(&grad))
}

#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let size = want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max: f64, x| if x > max || x.is_nan() { x } else { max });
    assert!(worst <= tolerance * size + 1e-30, "{what}: off by {worst:.3e}, largest {size:.3e}");
}

/// Every way gives the oracle's output and gradient, relative to the largest element.
#[track_caller]
fn check_to(case: &Case, forward: f64, backward: f64) {
    let (out, grad) = oracle(case);
    let (spans, layout, scoring, window) = (case.spans(), case.layout, case.scoring(), case.window);
    for level in Level::available() {
        let got =
            run(case, DType::F32, |qkv| attention_at(level, Branch::of(qkv), &spans, layout, scoring, window)?.alone());
        close(&format!("{level:?} output"), &got.0, &out, forward);
        close(&format!("{level:?} gradient"), &got.1, &grad, backward);
    }
    for (dtype, factor) in [(DType::F32, 1.0), (DType::F64, 1e-5)] {
        let got = run(case, dtype, |qkv| attention_composed(qkv, &spans, layout, scoring, window));
        close(&format!("composed {dtype:?} output"), &got.0, &out, forward * factor);
        close(&format!("composed {dtype:?} gradient"), &got.1, &grad, backward * factor);
    }
}

#[track_caller]
fn check(groups: &[&[usize]], heads: (usize, usize, usize), window: Option<usize>) {
    for softcap in [None, Some(0.4)] {
        check_to(&Case { softcap, ..Case::new(groups, heads, window) }, 1e-5, 1e-4);
    }
}

#[test]
fn odd_sizes() {
    for dim in [1, 7, 16, 32, 48, 64, 80] {
        for length in [1, 2, 5, 15, 16, 17, 33, 64, 130] {
            check(&[&[length]], (2, 2, dim), None);
        }
    }
}

#[test]
fn every_length() {
    let lengths: Vec<usize> = (1..=70).collect();
    check(&lengths.iter().map(std::slice::from_ref).collect::<Vec<_>>(), (1, 1, 8), None);
}

#[test]
fn shared_prefixes() {
    check(&[&[5, 3, 7, 1]], (2, 2, 16), None);
    check(&[&[1, 1]], (1, 1, 7), None);
    check(&[&[40, 30, 2, 33], &[9], &[17, 64, 1]], (4, 2, 32), None);
}

#[test]
fn grouped_queries() {
    check(&[&[37], &[20, 9, 31]], (3, 1, 16), None);
    check(&[&[37], &[20, 9, 31]], (8, 1, 32), None);
    check(&[&[37], &[20, 9, 31]], (6, 3, 20), None);
}

#[test]
fn windows() {
    for window in [1, 3, 16, 17, 40, 1000] {
        check(&[&[130], &[20, 9, 31]], (2, 1, 16), Some(window));
    }
}

#[test]
fn extreme_scores() {
    // Scores of 1e4 carry an error of 1e-3, which is a relative error of the probabilities.
    let case = Case { size: 100.0, ..Case::new(&[&[60], &[20, 9, 31]], (2, 2, 32), None) };
    check_to(&case, 2e-3, 2e-2);
    // Beyond their cap they are all alike.
    check_to(&Case { softcap: Some(50.0), ..case }, 2e-3, 2e-2);
    let case = Case { size: 1e4, ..Case::new(&[&[50]], (1, 1, 1), None) };
    let (out, _) = run(&case, DType::F32, |x| attention(x, &case.spans(), case.layout, case.scoring(), None));
    assert!(out.iter().all(|x| x.is_finite()));
}

#[test]
fn a_saturated_softmax_picks_its_key() {
    // One key per row outweighs all others by e^1000: the output is that key's value, exactly.
    let case = Case::new(&[&[40]], (1, 1, 4), None);
    let mut qkv = vec![0.0; 40 * 12];
    for row in 0..40 {
        qkv[row * 12] = 1.0;
        qkv[row * 12 + 4] = if row == 3 { 2000.0 } else { 0.0 };
        qkv[row * 12 + 8] = row as f32;
    }
    let qkv = Tensor::from_vec(qkv, (40, 12), &Device::Cpu).unwrap();
    for level in Level::available() {
        let out = attention_at(level, Branch::of(&qkv), &case.spans(), case.layout, 0.5.into(), None)
            .unwrap()
            .alone()
            .unwrap();
        let out: Vec<Vec<f32>> = out.to_vec2().unwrap();
        assert!(out[3..].iter().all(|row| row[0] == 3.0), "{level:?}: {out:?}");
    }
}

#[test]
fn bf16_is_close() {
    let case = Case::new(&[&[20, 9, 31], &[12]], (4, 2, 16), Some(25));
    let (out, grad) = oracle(&case);
    let got = run(&case, DType::BF16, |x| attention(x, &case.spans(), case.layout, case.scoring(), case.window));
    close("output", &got.0, &out, 2e-2);
    close("gradient", &got.1, &grad, 2e-2);
}

/// Composed in double precision and by central differences of the definition, recorded.
#[track_caller]
fn row(x: X, groups: &[&[usize]], heads: (usize, usize, usize), window: Option<usize>) {
    let Case { spans, layout, .. } = Case::new(groups, heads, window);
    let (rows, spans) = (groups.concat().iter().sum(), Arc::from(spans));
    // A power of two, which leaves exact scores exact.
    let scale = 1.0 / (layout.head_dim as f32).sqrt().log2().round().exp2();
    for softcap in [None, Some(0.75)] {
        let scoring = Scoring { scale, softcap };
        let op = &format!("attention {groups:?}, {heads:?} heads, window {window:?}, cap {softcap:?}");
        let case = check::Case { op, rows, width: layout.qkv_dim(), x, parameters: &[] };
        let op = |x: &Tensor, _: &Params| attention(x, &spans, layout, scoring, window);
        check::check(&case, op, |v| definitions::attention(&v["x"], &spans, layout, scoring, window));
    }
}

#[test]
fn fused_and_composed_agree() {
    row(X::Normal(1.0), &[&[1]], (1, 1, 1), None);
    row(X::Normal(1.0), &[&[1], &[1], &[5], &[1]], (2, 1, 7), None);
    row(X::Normal(1.0), &[&[0], &[4], &[0], &[3, 0, 2], &[0]], (2, 2, 3), None);
    row(X::Normal(1.0), &[&[6, 4, 3]], (2, 1, 3), Some(5));
    row(X::Normal(1.0), &[&[5, 1, 1, 3], &[1, 1]], (3, 1, 9), None);
    row(X::Normal(1.0), &[&[37], &[20, 9, 31]], (6, 3, 20), Some(17));
    row(X::Normal(1.0), &[&[733]], (2, 1, 16), None);
    row(X::Normal(1.0), &[&[701, 40, 1], &[1]], (2, 2, 8), Some(600));
    // The first channel of every query and key is large, values are not.
    row(X::Exact { every: 16, below: 6 * 16 }, &[&[60], &[20, 9, 31], &[1]], (4, 2, 16), None);
    row(X::Exact { every: 4, below: 4 * 4 }, &[&[60], &[20, 9, 31]], (2, 2, 4), Some(7));
    row(X::Denormal, &[&[33], &[20, 9, 31], &[1]], (4, 2, 7), None);
}

fn bits(x: &Tensor) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<f32>> = x.to_vec2().unwrap();
    rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn sharing_a_prefix_changes_no_bit() {
    let heads = (4, 2, 24);
    let shared = Case::new(&[&[19, 30, 5], &[3]], heads, Some(21));
    let alone = Case::new(&[&[49], &[24]], heads, Some(21));
    let qkv = Tensor::from_vec(shared.qkv(), (57, shared.layout.qkv_dim()), &Device::Cpu).unwrap();
    let rows: Vec<u32> = (0..49).chain(0..19).chain(49..54).collect();
    let copied = qkv.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
    for level in Level::available() {
        let run = |case: &Case, qkv: &Tensor| {
            let branch = Branch::of(qkv);
            let out = attention_at(level, branch, &case.spans(), case.layout, case.scoring(), case.window).unwrap();
            bits(&out.alone().unwrap())
        };
        let (shared, alone) = (run(&shared, &qkv), run(&alone, &copied));
        assert_eq!(shared[..49], alone[..49], "{level:?}");
        assert_eq!(shared[49..54], alone[68..], "{level:?}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = Case::new(&[&[19, 30, 5], &[60], &[33, 20], &[90]], (4, 2, 24), None);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&case, DType::F32, |x| attention(x, &case.spans(), case.layout, case.scoring(), None)))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn wrong_arguments_are_refused() {
    let case = Case::new(&[&[4, 2]], (2, 1, 4), None);
    let qkv = Tensor::zeros((6, 16), DType::F32, &Device::Cpu).unwrap();
    let refused = |spans: Vec<Span>, layout: HeadLayout, window: Option<usize>, message: &str| {
        let error = attention(&qkv, &spans.into(), layout, 1.0, window).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let span = |rows: Range<usize>, prefix: Option<Range<usize>>| Span { rows, prefix };
    let layout = case.layout;
    refused(vec![span(0..4, None), span(5..6, None)], layout, None, "one after the other from row 0 on, got [5, 6]");
    refused(vec![span(0..4, None), span(3..6, None)], layout, None, "one after the other");
    refused(vec![span(0..4, None)], layout, None, "to cover all 6 rows, got [0, 4]");
    refused(vec![span(0..4, None), span(4..6, Some(0..3))], layout, None, "earlier spans without one, got [0, 3]");
    refused(vec![span(0..0, None), span(0..6, Some(0..0))], layout, None, "earlier spans without one");
    refused(case.spans.clone(), layout, Some(0), "window must be at least 1");
    refused(case.spans.clone(), HeadLayout { heads: 3, kv_heads: 2, head_dim: 2 }, None, "H a multiple of Hkv");
    refused(case.spans, HeadLayout { head_dim: 8, ..layout }, None, "qkv must be [6, 32], got [6, 16]");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_layout(
        groups in prop::collection::vec(prop::collection::vec(1usize..40, 1..4), 1..4),
        kv_heads in 1usize..3,
        group in 1usize..4,
        dim in 1usize..40,
        window in prop::option::of(1usize..50),
    ) {
        let groups: Vec<&[usize]> = groups.iter().map(Vec::as_slice).collect();
        check(&groups, (kv_heads * group, kv_heads, dim), window);
    }
}
