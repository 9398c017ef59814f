//! The operations once more, as their papers write them: plain `f64` functions of slices that share
//! nothing with the fused nor with the composed ones. Central differences of these are the gradients
//! that tests expect.

use crate::{HeadLayout, Nonlinearity, Scoring, Span};

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The rows of a matrix that `rows` names.
pub(crate) fn rows(x: &[f64], rows: &[u32], width: usize) -> Vec<f64> {
    rows.iter().flat_map(|&row| x[row as usize * width..][..width].to_vec()).collect()
}

/// `x wᵀ + b`.
pub(crate) fn linear(x: &[f64], w: &[f64], b: Option<&[f64]>, input: usize) -> Vec<f64> {
    let outputs = |x| w.chunks(input).enumerate().map(move |(i, w)| dot(x, w) + b.map_or(0.0, |b| b[i]));
    x.chunks(input).flat_map(outputs).collect()
}

/// Layer norm, with a bias; without one RMS norm.
pub(crate) fn norm(x: &[f64], gain: &[f64], bias: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| {
        let count = x.len() as f64;
        let mean = if bias.is_some() { x.iter().sum::<f64>() / count } else { 0.0 };
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        let unit = x.iter().map(|x| (x - mean) / (variance + eps).sqrt());
        unit.enumerate().map(|(i, u)| gain[i] * u + bias.map_or(0.0, |b| b[i])).collect::<Vec<f64>>()
    };
    x.chunks(gain.len()).flat_map(row).collect()
}

/// The gain whose parameter this is, where it is stored less 1.
pub(crate) fn one_plus(stored: &[f64]) -> Vec<f64> {
    stored.iter().map(|w| 1.0 + w).collect()
}

/// RMS norm of the query heads and of the key heads.
pub(crate) fn head_norm(qkv: &[f64], q_gain: &[f64], k_gain: &[f64], eps: f64, layout: HeadLayout) -> Vec<f64> {
    let HeadLayout { heads, kv_heads, head_dim } = layout;
    let normed = |(i, x): (usize, &[f64])| match i % (heads + 2 * kv_heads) {
        head if head < heads => norm(x, q_gain, None, eps),
        head if head < heads + kv_heads => norm(x, k_gain, None, eps),
        _ => x.to_vec(),
    };
    qkv.chunks(head_dim).enumerate().flat_map(normed).collect()
}

/// Rotation pair by pair, channel i with channel i + rotary_dim / 2.
pub(crate) fn rope(qkv: &[f64], positions: &[u32], rotary_dim: usize, theta: f64, layout: HeadLayout) -> Vec<f64> {
    let mut out = qkv.to_vec();
    for (row, position) in out.chunks_exact_mut(layout.qkv_dim()).zip(positions) {
        for head in 0..layout.heads + layout.kv_heads {
            for i in 0..rotary_dim / 2 {
                let (a, b) = (head * layout.head_dim + i, head * layout.head_dim + i + rotary_dim / 2);
                let angle = f64::from(*position) * theta.powf(-2.0 * i as f64 / rotary_dim as f64);
                let (x, y) = (row[a], row[b]);
                (row[a], row[b]) = (x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin());
            }
        }
    }
    out
}

/// The error function by its series of positive terms (Abramowitz and Stegun, 7.1.6).
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    // Beyond 6 it is 1 to the last digit, and the series would need more terms.
    if x.abs() > 6.0 { x.signum() } else { 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn activation(kind: Nonlinearity, x: &[f64], width: usize) -> Vec<f64> {
    let gelu_tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + inner.tanh())
    };
    let each = |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(*x)).collect();
    let gated = |f: &dyn Fn(f64) -> f64| {
        let row = |x: &[f64]| {
            let (gate, up) = x.split_at(width / 2);
            gate.iter().zip(up).map(|(gate, up)| f(*gate) * up).collect::<Vec<f64>>()
        };
        x.chunks(width).flat_map(row).collect()
    };
    match kind {
        Nonlinearity::GeluTanh => each(&gelu_tanh),
        Nonlinearity::GeluErf => each(&|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))),
        Nonlinearity::SwiGlu => gated(&|x| x * sigmoid(x)),
        Nonlinearity::GeGlu => gated(&gelu_tanh),
    }
}

/// `cap tanh(x / cap)`.
pub(crate) fn softcap(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// The logarithms of the softmax of one row of logits.
pub(crate) fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = greatest + logits.iter().map(|z| (z - greatest).exp()).sum::<f64>().ln();
    logits.iter().map(|z| z - log_sum).collect()
}

/// For each prediction its log-probability under `softmax(cap(hidden[row] wᵀ) / temperature)`.
pub(crate) fn logprobs(
    (hidden, w, cap): (&[f64], &[f64], Option<f64>),
    width: usize,
    picked: &[u32],
    targets: &[u32],
    temperature: f64,
) -> Vec<f64> {
    let logprob = |(&row, &target): (&u32, &u32)| {
        let logits = linear(&hidden[row as usize * width..][..width], w, None, width);
        log_softmax(&logits.iter().map(|z| softcap(*z, cap) / temperature).collect::<Vec<f64>>())[target as usize]
    };
    picked.iter().zip(targets).map(logprob).collect()
}

/// Causal attention, one row and head at a time.
pub(crate) fn attention(
    qkv: &[f64],
    spans: &[Span],
    layout: HeadLayout,
    scoring: Scoring,
    window: Option<usize>,
) -> Vec<f64> {
    let HeadLayout { heads, kv_heads, head_dim: dim } = layout;
    let part = |row: usize, head: usize| &qkv[row * layout.qkv_dim() + head * dim..][..dim];
    let score = |product: f64| softcap(f64::from(scoring.scale) * product, scoring.softcap.map(f64::from));
    let mut out = Vec::new();
    for span in spans {
        let keys: Vec<usize> = span.prefix.clone().into_iter().flatten().chain(span.rows.clone()).collect();
        for (row, head) in span.rows.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let kv_head = head / (heads / kv_heads);
            let last = keys.iter().position(|key| *key == row).unwrap();
            let keys = &keys[window.map_or(0, |window| (last + 1).saturating_sub(window))..=last];
            let scores: Vec<f64> =
                keys.iter().map(|key| score(dot(part(row, head), part(*key, heads + kv_head)))).collect();
            let weights = log_softmax(&scores);
            let value = |d: usize| -> f64 {
                let terms = keys.iter().zip(&weights);
                terms.map(|(key, w)| w.exp() * part(*key, heads + kv_heads + kv_head)[d]).sum()
            };
            out.extend((0..dim).map(value));
        }
    }
    out
}
