//! A reward model's bias, which transformers' `...ForSequenceClassification` has no place for.
//!
//! Where the final norm has a bias `n` (LayerNorm families), the score `w . (h + n) + b` equals
//! `w . (h + n')` with `n' = n + b w / |w|^2`, the smallest change of `n` that does it; `n'` goes
//! to disk. Elsewhere the folder's score is ours less `b`. In both cases `config.json` records `b`,
//! and with it `n`, under `instruct`, so that reading our own folder gives back exactly the
//! parameters that were written. A folder whose norm was changed since (trained on by others) no
//! longer equals the folding of what was recorded; then the file wins and `b` is 0.

use serde_json::{Value, json};

/// The recorded bias and, where it was folded, the norm's bias without it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) score_bias: f32,
    pub(crate) norm_bias: Option<Vec<f32>>,
}

impl Recorded {
    /// The value of `config.json`'s key `instruct`.
    pub(crate) fn to_json(&self) -> Value {
        match &self.norm_bias {
            Some(bias) => json!({ "norm_bias": bias, "score_bias": self.score_bias }),
            None => json!({ "score_bias": self.score_bias }),
        }
    }

    /// Reads that value back; anything else is as if nothing had been recorded.
    pub(crate) fn from_json(value: &Value) -> Option<Recorded> {
        let score_bias = value.get("score_bias")?.as_f64()? as f32;
        let floats = |list: &Vec<Value>| list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<_>>();
        let norm_bias = value.get("norm_bias").and_then(Value::as_array).and_then(floats);
        Some(Recorded { score_bias, norm_bias })
    }
}

/// `n + b w / |w|^2`, in `f64`; `None` where a zero head leaves no direction to fold along.
pub(crate) fn folded(norm_bias: &[f32], score_bias: f32, score_weight: &[f32]) -> Option<Vec<f32>> {
    let square: f64 = score_weight.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    if square == 0.0 {
        return None;
    }
    let step = f64::from(score_bias) / square;
    Some(norm_bias.iter().zip(score_weight).map(|(&n, &w)| (f64::from(n) + step * f64::from(w)) as f32).collect())
}
