//! One check for every operation: fused against composed, gradients against differences, one
//! thread against several.

use crate::{Params, Path, Result, Spec, embedding};
use candle_core::{DType, Device, Tensor};
use instruct_random::Source;

/// The inputs of an operation: `x (rows, width)` and parameters, all of them normal draws.
pub(crate) struct Case<'a> {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// Standard deviation of `x`.
    pub(crate) spread: f32,
    pub(crate) parameters: &'a [(&'a str, &'a [usize])],
}

/// The output of an operation and the gradients of `x` and of every parameter, by name, for the
/// loss `sum(probe * output)` with normal draws as probe.
#[derive(Debug, PartialEq)]
struct Outcome {
    output: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

/// Checks that the fused path agrees with the composed one in double precision (output within
/// 1e-5, gradients within 1e-4, relative), with central differences on small cases, that it does
/// the same on one thread and on three, and that inference computes the same and records nothing.
#[track_caller]
pub(crate) fn check(case: &Case, op: impl Fn(&Tensor, &Params) -> Result<Tensor> + Sync) {
    let fused = outcome(case, Path::Fused, DType::F32, &op);
    for dtype in [DType::F64, DType::F32] {
        let oracle = outcome(case, Path::Composed, dtype, &op);
        assert_close("output", &fused.output, &oracle.output, 1e-5);
        for ((name, got), (_, expected)) in fused.gradients.iter().zip(&oracle.gradients) {
            assert_close(&format!("gradient of {name}"), got, expected, 1e-4);
        }
    }
    if case.rows * case.width <= 64 {
        check_differences(case, &fused, &op);
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| outcome(case, Path::Fused, DType::F32, &op)) == fused, "on {threads} threads");
    }
    for path in [Path::Fused, Path::Composed] {
        let params = parameters(case, path, DType::F32);
        let y = op(&input(case, &params, false), &params).unwrap();
        assert!(!y.track_op(), "{path:?} inference records a graph");
        assert_close("inference", &numbers(&y), &fused.output, 1e-5);
    }
}

fn outcome(case: &Case, path: Path, dtype: DType, op: &impl Fn(&Tensor, &Params) -> Result<Tensor>) -> Outcome {
    let params = parameters(case, path, dtype);
    let y = op(&input(case, &params, true), &params).unwrap();
    params.backward(&probed(&y)).unwrap();
    let gradient = |name: &str| (name.to_owned(), params.grad(name).unwrap());
    Outcome { output: numbers(&y), gradients: params.slots().iter().map(|slot| gradient(&slot.name)).collect() }
}

/// Moves single numbers up and down on the composed path in double precision.
#[track_caller]
fn check_differences(case: &Case, fused: &Outcome, op: &impl Fn(&Tensor, &Params) -> Result<Tensor>) {
    let params = parameters(case, Path::Composed, DType::F64);
    let loss = || {
        let y = op(&input(case, &params, false), &params).unwrap();
        probed(&y).to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    };
    for (name, got) in &fused.gradients {
        let values = params.read(name).unwrap();
        let slope = |i: usize| {
            let at = |step: f32| {
                let mut moved = values.clone();
                moved[i] += step * case.spread.clamp(1e-3, 1.0);
                params.set(name, &moved).unwrap();
                (f64::from(moved[i]), loss())
            };
            let ((low, before), (high, after)) = (at(-1e-3), at(1e-3));
            params.set(name, &values).unwrap();
            ((after - before) / (high - low)) as f32
        };
        let expected: Vec<f32> = (0..values.len()).map(slope).collect();
        assert_close(&format!("differences in {name}"), got, &expected, 1e-3);
    }
}

fn parameters(case: &Case, path: Path, dtype: DType) -> Params {
    let x = [case.rows, case.width];
    let all = case.parameters.iter().copied().chain([("x", &x[..])]);
    let specs = all.map(|(name, shape)| Spec::new(name, shape)).collect();
    let params = Params::zeros(specs, &Device::Cpu, path, dtype).unwrap();
    for slot in params.slots() {
        let spread = if slot.name == "x" { case.spread } else { 1.0 };
        let values: Vec<f32> = normals(&slot.name, slot.len).iter().map(|z| z * spread).collect();
        params.set(&slot.name, &values).unwrap();
    }
    params
}

/// `x`, looked up from the parameter of that name, so that its gradient is a parameter's.
fn input(case: &Case, params: &Params, tracked: bool) -> Tensor {
    let ids: Vec<u32> = (0..case.rows as u32).collect();
    embedding(&ids, &params.get("x").unwrap(), tracked.then(|| params.sentinel())).unwrap()
}

fn probed(y: &Tensor) -> Tensor {
    let probe = Tensor::from_vec(normals("probe", y.elem_count()), y.shape(), &Device::Cpu).unwrap();
    (y * probe.to_dtype(y.dtype()).unwrap()).unwrap().sum_all().unwrap()
}

/// Standard normal draws that belong to this name.
pub(crate) fn normals(name: &str, len: usize) -> Vec<f32> {
    let mut draws = Source::new(11, name).at([0]);
    (0..len).map(|_| draws.normal()).collect()
}

/// All elements of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares relative to the number itself, to the mean magnitude, and to a floor for tensors that
/// should be zero.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let typical = expected.iter().map(|x| x.abs()).sum::<f32>() / expected.len().max(1) as f32;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let allowed = tolerance * (expected.abs() + typical + 0.01);
        assert!((got - expected).abs() <= allowed, "{what}[{i}]: {got}, expected {expected}");
    }
}
