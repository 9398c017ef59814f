//! The composed path on a device, compared with the composed path in `f64` on the CPU. The tests of this crate run on
//! the CPU; this is how a program checks the same operations on a GPU.

use crate::{
    CacheRow, DropKey, FeedForward, Gain, HeadLayout, KvCache, Nonlinearity, Params, Path, Result, Rope, Scoring, Span,
    Spec, Unembedding, attention, cached_attention, dropout, embedding, feed_forward, gather_rows, geglu, gelu_erf,
    gelu_tanh, head_norm, layer_norm, linear, rms_norm, rope, scaled_embedding, swiglu, token_logprob, token_nll,
    wide::wide,
};
use candle_core::{DType, Device, Tensor};
use instruct_random::Source;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// One operation on a device, compared with the same operation in `f64` on the CPU.
#[derive(Debug)]
pub struct Comparison {
    /// The operation, as its function is called.
    pub operation: &'static str,
    /// What is special about this case.
    pub case: &'static str,
    /// The dtype on the device.
    pub dtype: DType,
    /// The largest difference that still holds.
    pub tolerance: f64,
    /// The differences, or the words of the error or panic with which the operation failed.
    pub found: Result<Differences, String>,
}

/// Relative differences: the norm of the difference, divided by the norm of what was wanted plus 0.05. A difference
/// is infinite where a result is not a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Differences {
    /// That of the result.
    pub output: f64,
    /// The largest of those of the gradients.
    pub gradient: f64,
    /// The argument or parameter whose gradient that is.
    pub parameter: String,
}

impl Comparison {
    /// Whether the operation ran and no difference is above the tolerance.
    pub fn holds(&self) -> bool {
        self.found.as_ref().is_ok_and(|found| found.output <= self.tolerance && found.gradient <= self.tolerance)
    }
}

/// Runs every operation of this crate on [`Path::Composed`] on `device`, forward and backward, in `f32` and in bf16,
/// and compares results and gradients with those in `f64` on the CPU. The inputs are small and always the same. It
/// takes less than a second on a CPU, where operations without parameters run fused in `f32`.
///
/// When an operation fails, its comparison says how, and the next operation is tried. (After a fault within a kernel
/// of a GPU every later call fails there, so the first failure is the one to look at.)
///
/// ```
/// let comparisons = instruct_kernels::compare_on(&candle_core::Device::Cpu);
/// let failed: Vec<_> = comparisons.iter().filter(|comparison| !comparison.holds()).collect();
/// assert!(failed.is_empty(), "{failed:#?}");
/// ```
pub fn compare_on(device: &Device) -> Vec<Comparison> {
    cases().iter().flat_map(|case| [DType::F32, DType::BF16].map(|dtype| case.compare(device, dtype))).collect()
}

/// An operation and the shapes of its parameters; `x` is the name of what it is a function of.
struct Case {
    operation: &'static str,
    case: &'static str,
    shapes: Shapes,
    run: Run,
}

type Shapes = &'static [(&'static str, &'static [usize])];
type Run = fn(&Params) -> Result<Tensor>;

/// The result, and the gradient of every parameter.
struct Outcome {
    output: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

impl Case {
    fn compare(&self, device: &Device, dtype: DType) -> Comparison {
        // Inputs are numbers that bf16 holds, so that only results are rounded. On the CPU differences in bf16 were up
        // to 6e-3, in f32 up to 5e-7.
        let tolerance = if dtype == DType::BF16 { 2e-2 } else { 1e-5 };
        let both = || Ok((self.outcome(device, dtype)?, self.outcome(&Device::Cpu, DType::F64)?));
        let found = match catch_unwind(AssertUnwindSafe(both)) {
            Ok(Ok((found, wanted))) => Ok(found.differences(&wanted)),
            Ok(Err(error)) => Err(crate::Error::to_string(&error)),
            Err(panic) => Err(panicked(&*panic)),
        };
        Comparison { operation: self.operation, case: self.case, dtype, tolerance, found }
    }

    fn outcome(&self, device: &Device, dtype: DType) -> Result<Outcome> {
        let specs = self.shapes.iter().map(|(name, shape)| Spec::new(*name, *shape)).collect();
        let params = Params::zeros(specs, device, Path::Composed, dtype)?;
        for slot in params.slots() {
            params.set(&slot.name, &normals(&slot.name, slot.len)?)?;
        }
        let y = (self.run)(&params)?.to_dtype(wide(dtype))?;
        let probe = Tensor::from_vec(normals("probe", y.elem_count())?, y.shape(), device)?.to_dtype(y.dtype())?;
        params.backward(&(&y * probe)?.sum_all()?)?;
        let gradient = |name: &str| Ok((name.to_owned(), params.grad(name)?));
        let gradients = params.slots().iter().map(|slot| gradient(&slot.name)).collect::<Result<_>>()?;
        Ok(Outcome { output: y.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, gradients })
    }
}

impl Outcome {
    fn differences(&self, wanted: &Outcome) -> Differences {
        let pairs = self.gradients.iter().zip(&wanted.gradients);
        let gradients = pairs.map(|((name, found), (_, wanted))| (relative(found, wanted), name));
        let (gradient, parameter) = gradients.max_by(|a, b| a.0.total_cmp(&b.0)).map_or((0.0, ""), |(g, p)| (g, p));
        Differences { output: relative(&self.output, &wanted.output), gradient, parameter: parameter.to_owned() }
    }
}

/// Normal draws that belong to this name, rounded to bf16.
fn normals(name: &str, len: usize) -> Result<Vec<f32>> {
    let mut draws = Source::new(13, name).at([0]);
    let exact: Vec<f32> = (0..len).map(|_| draws.normal()).collect();
    Ok(Tensor::from_vec(exact, len, &Device::Cpu)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.to_vec1()?)
}

fn panicked(payload: &dyn Any) -> String {
    let words = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    format!("a panic: {}", words.unwrap_or("without words"))
}

fn relative(found: &[f32], wanted: &[f32]) -> f64 {
    let double = |x: &f32| f64::from(*x);
    let off: f64 = found.iter().zip(wanted).map(|(a, b)| (double(a) - double(b)).powi(2)).sum();
    let size: f64 = wanted.iter().map(|b| double(b).powi(2)).sum();
    let relative = off.sqrt() / (size.sqrt() + 0.05);
    if found.len() == wanted.len() && !relative.is_nan() { relative } else { f64::INFINITY }
}

const ROWS: usize = 40;
const LAYOUT: HeadLayout = HeadLayout { heads: 4, kv_heads: 2, head_dim: 8 };
/// [`HeadLayout::qkv_dim`] of the layout.
const QKV: usize = 64;
const EPS: f64 = 1e-5;

/// What the operation is a function of, tracked.
fn x(params: &Params) -> Result<Tensor> {
    Ok(params.get("x")?.value(true)?.clone())
}

/// Some number below `bound` for each of `len` places, several of them the same.
fn indices(len: usize, bound: usize) -> Vec<u32> {
    (0..len).map(|i| (i * i % bound) as u32).collect()
}

/// A prompt with three completions, one of them without a token, and a sequence of its own: [`ROWS`] rows.
fn spans() -> Arc<[Span]> {
    let span = |rows, prefix| Span { rows, prefix };
    [span(0..9, None), span(9..17, Some(0..9)), span(17..17, Some(0..9)), span(17..20, Some(0..9)), span(20..40, None)]
        .into()
}

/// One sequence in a cache, decoded five tokens at a time. What is in a cache has no gradient.
fn decode(params: &Params) -> Result<Tensor> {
    let qkv = x(params)?.detach();
    let mut cache = KvCache::new(1, 1, ROWS, LAYOUT, params.device())?;
    let step = |first: usize| {
        let rows: Vec<CacheRow> = (first..first + 5).map(|position| CacheRow { slot: 0, position }).collect();
        cached_attention(&qkv.narrow(0, first, 5)?, 0, &mut cache, &rows, 0.3, None)
    };
    Ok(Tensor::cat(&(0..ROWS).step_by(5).map(step).collect::<Result<Vec<_>>>()?, 0)?)
}

fn layer(p: &Params, nonlinearity: Nonlinearity) -> Result<FeedForward> {
    let bias = |name| p.get(name).map(Some);
    let (up_bias, down_bias) = (bias("up_bias")?, bias("down_bias")?);
    Ok(FeedForward { up: p.get("up")?, up_bias, nonlinearity, down: p.get("down")?, down_bias })
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |operation, case, shapes: Shapes, run: Run| cases.push(Case { operation, case, shapes, run });
    add("embedding", "50 rows", &[("table", &[50, 24])], |p| {
        embedding(&indices(ROWS, 50), &p.get("table")?, Some(p.sentinel()))
    });
    add("embedding", "one row 4,096 times", &[("table", &[3, 24])], |p| {
        embedding(&[1; 4096], &p.get("table")?, Some(p.sentinel()))
    });
    add("scaled_embedding", "", &[("table", &[50, 24])], |p| {
        scaled_embedding(&indices(ROWS, 50), &p.get("table")?, 24f64.sqrt(), Some(p.sentinel()))
    });
    add("gather_rows", "some several times", &[("x", &[ROWS, 24])], |p| gather_rows(&x(p)?, &indices(70, ROWS)));
    add("gather_rows", "one row 4,096 times", &[("x", &[3, 24])], |p| gather_rows(&x(p)?, &[1; 4096]));
    add("linear", "with a bias", &[("x", &[ROWS, 24]), ("w", &[40, 24]), ("b", &[40])], |p| {
        linear(&x(p)?, &p.get("w")?, Some(&p.get("b")?))
    });
    add("linear", "without a bias", &[("x", &[ROWS, 24]), ("w", &[7, 24])], |p| linear(&x(p)?, &p.get("w")?, None));
    add("layer_norm", "", &[("x", &[ROWS, 24]), ("gain", &[24]), ("bias", &[24])], |p| {
        layer_norm(&x(p)?, &p.get("gain")?, &p.get("bias")?, EPS)
    });
    add("rms_norm", "", &[("x", &[ROWS, 24]), ("gain", &[24])], |p| rms_norm(&x(p)?, &p.get("gain")?, EPS));
    add("rms_norm", "1 + gain", &[("x", &[ROWS, 24]), ("gain", &[24])], |p| {
        rms_norm(&x(p)?, Gain::one_plus(&p.get("gain")?), EPS)
    });
    add("head_norm", "", &[("x", &[ROWS, QKV]), ("q", &[8]), ("k", &[8])], |p| {
        head_norm(&x(p)?, &p.get("q")?, &p.get("k")?, EPS, LAYOUT)
    });
    add("rope", "half of a head", &[("x", &[ROWS, QKV])], |p| {
        rope(&x(p)?, &indices(ROWS, 3000), &Arc::new(Rope::new(4, 3000, 1e4, None)?), LAYOUT)
    });
    add("rope", "all of a head", &[("x", &[ROWS, QKV])], |p| {
        rope(&x(p)?, &indices(ROWS, 3000), &Arc::new(Rope::new(8, 3000, 1e4, None)?), LAYOUT)
    });
    add("attention", "a shared prefix", &[("x", &[ROWS, QKV])], |p| attention(&x(p)?, &spans(), LAYOUT, 0.3, None));
    add("attention", "a window", &[("x", &[ROWS, QKV])], |p| attention(&x(p)?, &spans(), LAYOUT, 0.3, Some(5)));
    add("cached_attention", "", &[("x", &[ROWS, QKV])], decode);
    add("attention", "capped", &[("x", &[ROWS, QKV])], |p| {
        attention(&x(p)?, &spans(), LAYOUT, Scoring { scale: 0.3, softcap: Some(0.5) }, None)
    });
    add("gelu_tanh", "", &[("x", &[ROWS, 24])], |p| gelu_tanh(&x(p)?));
    add("gelu_erf", "", &[("x", &[ROWS, 24])], |p| gelu_erf(&x(p)?));
    add("swiglu", "", &[("x", &[ROWS, 24])], |p| swiglu(&x(p)?));
    add("geglu", "", &[("x", &[ROWS, 24])], |p| geglu(&x(p)?));
    let shapes: Shapes =
        &[("x", &[ROWS, 24]), ("up", &[48, 24]), ("up_bias", &[48]), ("down", &[24, 48]), ("down_bias", &[24])];
    add("feed_forward", "GELU", shapes, |p| feed_forward(&x(p)?, &layer(p, Nonlinearity::GeluTanh)?));
    add("dropout", "", &[("x", &[ROWS, 24])], |p| {
        let keys: Vec<DropKey> = (0..ROWS as u64).map(|row| (Source::new(3, "dropout"), [row, 1, 2])).collect();
        dropout(&x(p)?, 0.3, &keys)
    });
    add("token_logprob", "temperature 0.7", &[("x", &[ROWS, 24]), ("w", &[300, 24])], |p| {
        token_logprob(&x(p)?, &p.get("w")?, &indices(70, ROWS), &indices(70, 300), 0.7)
    });
    add("token_nll", "", &[("x", &[ROWS, 24]), ("w", &[300, 24])], |p| {
        token_nll(&x(p)?, &p.get("w")?, &indices(70, ROWS), &indices(70, 300), &normals("weights", 70)?)
    });
    add("token_nll", "capped", &[("x", &[ROWS, 24]), ("w", &[300, 24])], |p| {
        let w = Unembedding { table: p.get("w")?, softcap: Some(3.0) };
        token_nll(&x(p)?, w, &indices(70, ROWS), &indices(70, 300), &normals("weights", 70)?)
    });
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let comparisons = compare_on(&Device::Cpu);
        assert_eq!(comparisons.len(), 2 * cases().len());
        for comparison in comparisons {
            assert!(comparison.holds(), "{comparison:?}");
        }
    }

    /// A failure is told in words and does not hold, nor do infinite differences.
    #[test]
    fn failures_are_told() {
        let check = |run: Run, message: &str| {
            let case = Case { operation: "none", case: "", shapes: &[("x", &[2, 3])], run };
            let comparison = case.compare(&Device::Cpu, DType::F32);
            assert!(!comparison.holds());
            let found = format!("{:?}", comparison.found);
            assert!(found.contains(message), "{found}");
        };
        check(|p| gather_rows(&x(p)?, &[2]), "gather_rows: rows[0] is 2");
        check(|p| gather_rows(&x(p)?, &indices(p.len(), 0)), "divisor of zero");
        check(|p| Ok((x(p)? / 0.0)?), "output: inf");
    }
}
