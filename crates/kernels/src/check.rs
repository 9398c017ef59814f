//! One check for every operation: fused against composed at every level of the processor, gradients
//! against differences of the operation's definition, one thread against several.

use crate::{Params, Path, Result, Spec, bf16::Unit, denormals, embedding, simd::Level};
use candle_core::{DType, Device, Tensor};
use instruct_claims::{holds, relative};
use instruct_random::Source;
use std::{collections::BTreeMap, ops::Index};

/// The inputs of an operation: `x (rows, width)` and parameters, all of them normal draws.
pub(crate) struct Case<'a> {
    /// The operation and what is special about this case.
    pub(crate) op: &'a str,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) x: X,
    pub(crate) parameters: &'a [(&'a str, &'a [usize])],
}

/// How large `x` is; parameters are standard normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum X {
    /// Standard deviation of an ordinary input.
    Normal(f32),
    /// Standard deviation of an input that leads to scores and logits of 1e4 and more.
    Extreme(f32),
    /// Multiples of an eighth, and 128 in every so many columns below a bound. Their products and sums are exact in
    /// `f32`, so that no rounding excuses an error of a softmax over scores of 1.6e4 that lie close together.
    Exact { every: usize, below: usize },
    /// About 1e-40, below the smallest normal number.
    Denormal,
}

/// The `x` and the parameters of a case by name, for a definition in `f64`.
pub(crate) struct Inputs(BTreeMap<String, Vec<f64>>);

impl Index<&str> for Inputs {
    type Output = [f64];

    fn index(&self, name: &str) -> &[f64] {
        &self.0[name]
    }
}

/// The output of an operation and the gradients of `x` and of every parameter, by name, for the
/// loss `sum(probe * output)` with normal draws as probe.
#[derive(Debug, PartialEq)]
struct Outcome {
    output: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

/// Norm of the difference over norm: about ten times the largest that any level of any processor has
/// shown, in outputs and gradients alike.
const TOLERANCE: f64 = 1e-5;

/// The same where factors of products are rounded to bf16: each loses up to 1/512 of itself, and what comes
/// out of two and three such products one after the other some more.
const BF16_TOLERANCE: f64 = 1e-2;

/// The same among denormal numbers, which near 1e-40 have 17 bits.
const DENORMAL_TOLERANCE: f64 = 5e-4;

/// Added to norms where denormals are flushed to zero, so that what is lost may be 5e-36: a normalisation
/// divides by the root of its epsilon, and makes some 4e-36 of the smallest number left, 1.2e-38.
const FLUSHED_FLOOR: f64 = 1e-32;

/// Added to norms: below it a gradient is what is left of terms that cancel (width 1 in a norm).
const FLOOR: f64 = 0.05;

/// Checks, at every level of the processor, that the fused operation agrees with the composed one in
/// double precision, and that its output and gradients are those of `definition`, a plain function
/// of slices, by its central differences; that it does the same on one thread and on three, and that
/// inference computes the same and records nothing.
#[track_caller]
pub(crate) fn check(
    case: &Case,
    op: impl Fn(&Tensor, &Params) -> Result<Tensor> + Sync,
    definition: impl Fn(&Inputs) -> Vec<f64>,
) {
    let oracle = outcome(case, Path::Composed, DType::F64, &op);
    let plain = outcome(case, Path::Composed, DType::F32, &op);
    // Small enough to hide no denormal result.
    let floor = if case.x == X::Denormal { 1e-43 } else { FLOOR };
    let wanted = (case.x != X::Denormal).then(|| Wanted::of(case, &oracle, &definition));
    case.compare("composed in f32", &plain, &oracle, floor);
    for level in Level::available() {
        let [fused, other] =
            [1, 3].map(|threads| on(level, threads, false, || outcome(case, Path::Fused, DType::F32, &op)));
        assert!(fused == other, "{}: on three threads, {level:?}", case.op);
        case.compare(&format!("{level:?}"), &fused, &oracle, floor);
        if case.x == X::Denormal {
            // A number of 1e-38 may have been lost on the way, and what is missing may have grown since.
            let flushed = on(level, 1, true, || outcome(case, Path::Fused, DType::F32, &op));
            case.compare(&format!("flushed, {level:?}"), &flushed, &oracle, FLUSHED_FLOOR);
        }
        if let Some(wanted) = &wanted {
            wanted.compare(case, level, &fused);
        }
    }
    if matches!(case.x, X::Normal(_)) {
        for unit in Unit::available() {
            let [bf16, other] = [1, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(move |_| unit.force());
                pool.build().unwrap().install(|| outcome(case, Path::Fused, DType::BF16, &op))
            });
            assert!(bf16 == other, "{}: on three threads, {unit:?}", case.op);
            case.hold("kernels/bf16", &format!("bf16, {unit:?}"), &bf16, &oracle, FLOOR, BF16_TOLERANCE);
        }
    }
    let fused = outcome(case, Path::Fused, DType::F32, &op);
    for path in [Path::Fused, Path::Composed] {
        let params = parameters(case, path, DType::F32);
        let y = op(&input(case, &params, false), &params).unwrap();
        assert!(!y.track_op(), "{}: {path:?} inference records a graph", case.op);
        let same = path == Path::Composed || numbers(&y) == fused.output;
        assert!(same, "{}: inference computes something else", case.op);
    }
}

impl Case<'_> {
    fn claim(&self) -> &'static str {
        match self.x {
            X::Normal(_) => "kernels/composed",
            X::Extreme(_) | X::Exact { .. } => "kernels/extreme",
            X::Denormal => "kernels/denormal",
        }
    }

    /// Holds output and gradients to the tolerance, recorded as one difference each.
    #[track_caller]
    fn compare(&self, way: &str, found: &Outcome, wanted: &Outcome, floor: f64) {
        let tolerance = if self.x == X::Denormal { DENORMAL_TOLERANCE } else { TOLERANCE };
        self.hold(self.claim(), way, found, wanted, floor, tolerance);
    }

    #[track_caller]
    fn hold(&self, claim: &str, way: &str, found: &Outcome, wanted: &Outcome, floor: f64, tolerance: f64) {
        let Case { op, rows, width, .. } = self;
        let case = |what: &str| format!("{op} {rows}x{width}, {what}, {way}");
        holds(claim, &case("output"), relative(&found.output, &wanted.output, floor), tolerance);
        for ((name, found), (_, wanted)) in found.gradients.iter().zip(&wanted.gradients) {
            holds(claim, &case(&format!("gradient of {name}")), relative(found, wanted, floor), tolerance);
        }
    }
}

/// Runs `f` on a pool of threads that use the instructions of `level`, with denormals flushed to
/// zero or kept.
pub(crate) fn on<R: Send>(level: Level, threads: usize, flushed: bool, f: impl FnOnce() -> R + Send) -> R {
    let start = move |_| {
        level.force();
        if flushed {
            denormals::flush();
        }
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(start).build().unwrap().install(f)
}

fn outcome(case: &Case, path: Path, dtype: DType, op: &impl Fn(&Tensor, &Params) -> Result<Tensor>) -> Outcome {
    let params = parameters(case, path, dtype);
    let y = op(&input(case, &params, true), &params).unwrap();
    params.backward(&probed(&y)).unwrap();
    let gradient = |name: &str| (name.to_owned(), params.grad(name).unwrap());
    Outcome { output: numbers(&y), gradients: params.slots().iter().map(|slot| gradient(&slot.name)).collect() }
}

/// What the definition says: its output, and by name slopes of the loss along some directions.
struct Wanted {
    output: Vec<f64>,
    slopes: Vec<(String, Vec<f64>)>,
}

impl Wanted {
    fn of(case: &Case, oracle: &Outcome, definition: &impl Fn(&Inputs) -> Vec<f64>) -> Wanted {
        let params = parameters(case, Path::Fused, DType::F32);
        let wide = |name: &str| params.read(name).unwrap().into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut inputs = Inputs(params.slots().iter().map(|slot| (slot.name.clone(), wide(&slot.name))).collect());
        let output = definition(&inputs);
        let probe = normals("probe", output.len());
        let loss =
            |inputs: &Inputs| -> f64 { definition(inputs).iter().zip(&probe).map(|(y, p)| y * f64::from(*p)).sum() };
        let mut slopes = Vec::new();
        for (name, gradient) in &oracle.gradients {
            let along = directions(gradient.len()).into_iter().map(|d| slope(&mut inputs, name, &d, &loss)).collect();
            slopes.push((name.clone(), along));
        }
        Wanted { output, slopes }
    }

    #[track_caller]
    fn compare(&self, case: &Case, level: Level, fused: &Outcome) {
        let claim = "kernels/differences";
        let what = |what: &str| format!("{} {}x{}, {what}, {level:?}", case.op, case.rows, case.width);
        holds(claim, &what("output"), relative(&fused.output, &self.output, FLOOR), TOLERANCE);
        for ((name, wanted), (_, gradient)) in self.slopes.iter().zip(&fused.gradients) {
            let along = |d: Vec<f64>| gradient.iter().zip(d).map(|(g, d)| f64::from(*g) * d).sum();
            let found: Vec<f64> = directions(gradient.len()).into_iter().map(along).collect();
            holds(claim, &what(&format!("gradient of {name}")), relative(&found, wanted, FLOOR), TOLERANCE);
        }
    }
}

/// Every single element of a small tensor; else random directions, in which every element has a part.
fn directions(len: usize) -> Vec<Vec<f64>> {
    if len <= 64 {
        return (0..len).map(|i| (0..len).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    }
    let size = (len as f64).sqrt();
    let draws = |i: usize| normals(&format!("direction {i}"), len);
    (0..4).map(|i| draws(i).into_iter().map(|z| f64::from(z) / size).collect()).collect()
}

/// The derivative of the loss along `direction`, by central differences of fourth order: their
/// error is that of a step of 1e-4 to the fourth power.
fn slope(inputs: &mut Inputs, name: &str, direction: &[f64], loss: &impl Fn(&Inputs) -> f64) -> f64 {
    const STEP: f64 = 1e-4;
    let start = inputs[name].to_vec();
    let mut at = |steps: f64| {
        let moved = start.iter().zip(direction).map(|(x, d)| x + steps * STEP * d).collect();
        inputs.0.insert(name.to_owned(), moved);
        loss(inputs)
    };
    let (near, far) = (at(1.0) - at(-1.0), at(2.0) - at(-2.0));
    inputs.0.insert(name.to_owned(), start);
    (8.0 * near - far) / (12.0 * STEP)
}

fn parameters(case: &Case, path: Path, dtype: DType) -> Params {
    let x = [case.rows, case.width];
    let all = case.parameters.iter().copied().chain([("x", &x[..])]);
    let specs = all.map(|(name, shape)| Spec::new(name, shape)).collect();
    let params = Params::zeros(specs, &Device::Cpu, path, dtype).unwrap();
    for slot in params.slots() {
        let eighths = |z: f32| (8.0 * z).round() / 8.0;
        let value = |(i, z): (usize, f32)| match case.x {
            X::Exact { every, below } if i % case.width < below && (i % case.width).is_multiple_of(every) => 128.0,
            X::Exact { .. } => eighths(z),
            X::Normal(spread) | X::Extreme(spread) if slot.name == "x" => spread * z,
            X::Denormal if slot.name == "x" => 1e-40 * z,
            _ => z,
        };
        let values: Vec<f32> = normals(&slot.name, slot.len).into_iter().enumerate().map(value).collect();
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
