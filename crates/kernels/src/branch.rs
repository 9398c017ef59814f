//! A branch of the residual stream: operations one after the other that are one node of the graph.
//!
//! Candle keeps the result of every node until the backward pass is over, and at every edge it fills a
//! tensor with zeros and adds the gradient to it. Within a branch neither happens: only what a backward
//! pass reads is kept, the result of a norm or a nonlinearity is computed a second time instead, and
//! gradients are handed on.

use crate::{
    Result,
    op::{self, Elements},
};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::{borrow::Cow, sync::OnceLock};

/// Operations under way on a tensor `x`, to be taken [`alone`](Branch::alone) or
/// [`added`](Branch::added) to it. Its methods are the functions of this crate that have their names.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use instruct_kernels::{Branch, Params, Path, Spec, layer_norm, linear};
///
/// let specs = vec![Spec::new("gain", [2]), Spec::new("bias", [2]), Spec::new("w", [2, 2])];
/// let params = Params::zeros(specs, &Device::Cpu, Path::Fused, DType::F32)?;
/// params.set("gain", &[1., 2.])?;
/// params.set("w", &[1., 2., 3., 4.])?;
/// let [gain, bias, w] = ["gain", "bias", "w"].map(|name| params.get(name).unwrap());
///
/// let x = Tensor::new(&[[1f32, -1.], [2., 0.]], &Device::Cpu)?;
/// let y = Branch::of(&x).layer_norm(&gain, &bias, 1e-5)?.linear(&w, None)?.added()?;
/// let apart = (&x + linear(&layer_norm(&x, &gain, &bias, 1e-5)?, &w, None)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, apart.to_vec2::<f32>()?);
/// # Ok::<(), instruct_kernels::Error>(())
/// ```
///
/// Weights must not change between the forward and the backward pass, as for every operation here.
#[must_use]
pub struct Branch {
    /// Where it left the stream, and what it is added to.
    stream: Tensor,
    /// The rows of the stream that go on, when not all of them do.
    rows: Option<Box<[u32]>>,
    /// What `steps` start from: the stream, unless something was computed apart.
    from: Tensor,
    is_from_stream: bool,
    steps: Vec<Box<dyn Step>>,
    /// The shape of the steps' result.
    shape: (usize, usize),
}

impl Branch {
    /// A branch without operations.
    pub fn of(x: &Tensor) -> Branch {
        let (stream, from) = (x.clone(), x.clone());
        Branch { stream, rows: None, from, is_from_stream: true, steps: Vec::new(), shape: (0, 0) }
    }

    /// The result of the operations.
    pub fn alone(self) -> Result<Tensor> {
        chained(&self.from, self.steps, self.shape, None)
    }

    /// The result of the operations, added to the rows of `x` that it belongs to.
    ///
    /// Errors: another shape than those rows have.
    pub fn added(self) -> Result<Tensor> {
        let (n, width) = op::dims2("added", "x", &self.stream)?;
        let n = self.rows.as_ref().map_or(n, |rows| rows.len());
        let found = self.dims("added", "branch")?;
        op::check_shape("added", "branch", &[found.0, found.1], &[n, width])?;
        let Branch { stream, rows, from, is_from_stream, steps, shape } = self;
        if is_from_stream && !steps.is_empty() {
            return chained(&from, steps, shape, Some(Skip { rows, width }));
        }
        let computed = chained(&from, steps, shape, None)?;
        let stream = match rows {
            Some(rows) => crate::gather_rows(&stream, &rows)?,
            None => stream,
        };
        Ok((stream + computed)?)
    }

    /// Continues with `f` of the result so far, outside the branch: for operations that have no fused form.
    pub fn map(self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Branch> {
        let from = f(&chained(&self.from, self.steps, self.shape, None)?)?;
        Ok(Branch { from, is_from_stream: false, steps: Vec::new(), ..self })
    }

    /// Continues with some rows only. A row may be named several times.
    ///
    /// Errors: as [`gather_rows`](crate::gather_rows).
    pub fn at(self, rows: &[u32]) -> Result<Branch> {
        let branch = self.gather_rows(rows)?;
        // Rows of rows are translated to rows of the stream.
        let rows = match &branch.rows {
            Some(earlier) => rows.iter().map(|&row| earlier[row as usize]).collect(),
            None => rows.into(),
        };
        Ok(Branch { rows: Some(rows), ..branch })
    }

    pub(crate) fn dims(&self, op: &'static str, argument: &'static str) -> Result<(usize, usize)> {
        if self.steps.is_empty() {
            return op::dims2(op, argument, &self.from);
        }
        op::matrix_dims(op, argument, &[self.shape.0, self.shape.1])
    }

    /// Whether an operation without parameters runs fused here.
    pub(crate) fn is_fused(&self) -> bool {
        op::is_fused(&self.from)
    }

    /// Continues with a fused operation whose result has this many rows.
    pub(crate) fn step(mut self, rows: usize, step: impl Step + 'static) -> Branch {
        self.shape = (rows, step.columns());
        self.steps.push(Box::new(step));
        self
    }
}

/// A differentiable operation on slices of whole rows.
pub(crate) trait Step: Send + Sync {
    /// Columns of the result.
    fn columns(&self) -> usize;

    /// The result. With `keep` there will be a backward pass.
    fn forward(&self, x: &[f32], keep: bool) -> candle_core::Result<Vec<f32>>;

    /// The gradient of `x`; those of parameters are added to theirs. `x` and the result `y` are empty
    /// unless they are read.
    fn backward(&self, x: &[f32], y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>>;

    /// What the backward pass reads.
    fn reads(&self) -> Reads;

    /// Whether the result is computed a second time rather than kept. Such a step reads its input.
    fn is_cheap(&self) -> bool {
        false
    }
}

/// What a backward pass reads besides the gradient of the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    Nothing,
    Input,
    Both,
}

/// Applies the steps to `x`. The operation is recorded only when `x` is tracked.
fn chained(x: &Tensor, steps: Vec<Box<dyn Step>>, shape: (usize, usize), skip: Option<Skip>) -> Result<Tensor> {
    if steps.is_empty() {
        return Ok(x.clone());
    }
    let x = x.contiguous()?;
    let chain = Chain { steps, shape, skip, keep: x.track_op(), kept: OnceLock::new() };
    Ok(if chain.keep { x.apply_op1(chain)? } else { x.apply_op1_no_bwd(&chain)? })
}

/// What the result is added to: all rows of the stream, or some.
struct Skip {
    rows: Option<Box<[u32]>>,
    width: usize,
}

struct Chain {
    steps: Vec<Box<dyn Step>>,
    /// The shape of the result.
    shape: (usize, usize),
    skip: Option<Skip>,
    keep: bool,
    /// The result of each step, empty where no backward pass reads it.
    kept: OnceLock<Vec<Vec<f32>>>,
}

impl Chain {
    /// Whether the result of this step outlives the forward pass. That of the last is in the graph, unless
    /// something was added to it.
    fn is_kept(&self, step: usize) -> bool {
        let is_read = match self.steps.get(step + 1) {
            Some(next) => next.reads() != Reads::Nothing,
            None => false,
        };
        let is_in_graph = step + 1 == self.steps.len() && self.skip.is_none();
        let reads_itself = self.steps[step].reads() == Reads::Both && !is_in_graph;
        self.keep && (reads_itself || is_read && !self.steps[step].is_cheap())
    }

    /// What the backward pass of this step reads of its input.
    fn input<'a>(&'a self, x: &'a [f32], step: usize) -> candle_core::Result<Cow<'a, [f32]>> {
        if self.steps[step].reads() == Reads::Nothing {
            return Ok(Cow::Borrowed(&[]));
        }
        let Some(before) = step.checked_sub(1) else { return Ok(Cow::Borrowed(x)) };
        if self.is_kept(before) {
            return Ok(Cow::Borrowed(self.kept.get().map_or(&[], |kept| &kept[before])));
        }
        Ok(Cow::Owned(self.steps[before].forward(&self.input(x, before)?, false)?))
    }
}

impl CustomOp1 for Chain {
    fn name(&self) -> &'static str {
        "branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = op::elements(x, layout)?;
        let (mut kept, mut last) = (Vec::new(), None::<Vec<f32>>);
        for (i, step) in self.steps.iter().enumerate() {
            let next = step.forward(last.as_deref().unwrap_or(x), self.keep)?;
            if let Some(last) = last.replace(next) {
                kept.push(if self.is_kept(i - 1) { last } else { Vec::new() });
            }
        }
        let Some(mut y) = last else { candle_core::bail!("a branch without operations") };
        if self.is_kept(self.steps.len() - 1) {
            kept.push(y.clone());
        }
        match &self.skip {
            Some(Skip { rows: None, .. }) => add_all(&mut y, x),
            Some(Skip { rows: Some(rows), width }) => add_all(&mut y, &op::gather(x, rows, *width)),
            None => {}
        }
        // Set at most once, because an operation has one forward pass.
        let _ = self.kept.set(kept);
        op::output(y, self.shape)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (like, dy) = (x, dy.contiguous()?);
        let (x, y, dy) = (Elements::of(x)?, Elements::of(y)?, Elements::of(&dy)?);
        let mut gradient = None::<Vec<f32>>;
        for (i, step) in self.steps.iter().enumerate().rev() {
            let result = match self.kept.get().and_then(|kept| kept.get(i)) {
                Some(kept) => kept,
                None => &*y,
            };
            gradient = Some(step.backward(&self.input(&x, i)?, result, gradient.as_deref().unwrap_or(&dy))?);
        }
        let Some(mut gradient) = gradient else { return Ok(None) };
        match &self.skip {
            Some(Skip { rows: None, .. }) => add_all(&mut gradient, &dy),
            Some(Skip { rows: Some(rows), width }) => {
                let mut skipped = op::zeros(gradient.len());
                op::scatter_add(&mut skipped, rows, &dy, *width);
                add_all(&mut gradient, &skipped);
            }
            None => {}
        }
        op::gradient(gradient, like)
    }
}

/// `sum += x`, in parallel.
fn add_all(sum: &mut [f32], x: &[f32]) {
    const LEN: usize = 1 << 14;
    sum.par_chunks_mut(LEN).zip(x.par_chunks(LEN)).for_each(|(sum, x)| op::add(sum, x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use crate::{
        FeedForward, Gain, HeadLayout, Nonlinearity, Params, Path, Rope, Span, Spec, attention, check::normals,
        check::numbers, dropout, embedding, gather_rows, geglu, gelu_erf, gelu_tanh, head_norm, layer_norm, linear,
        rms_norm, rope, swiglu,
    };
    use candle_core::{DType, Device};
    use instruct_random::Source;
    use std::sync::Arc;

    const N: usize = 70;
    const WIDTH: usize = 24;
    const LAYOUT: HeadLayout = HeadLayout { heads: 4, kv_heads: 2, head_dim: 6 };

    fn params(path: Path, dtype: DType) -> Params {
        let qkv = LAYOUT.qkv_dim();
        let shapes: [(&str, &[usize]); 13] = [
            ("x", &[N, WIDTH]),
            ("gain", &[WIDTH]),
            ("bias", &[WIDTH]),
            ("qkv", &[qkv, WIDTH]),
            ("qkv_bias", &[qkv]),
            ("q", &[6]),
            ("k", &[6]),
            ("out", &[WIDTH, WIDTH]),
            ("up", &[4 * WIDTH, WIDTH]),
            ("up_bias", &[4 * WIDTH]),
            ("down", &[WIDTH, 4 * WIDTH]),
            ("gated_down", &[WIDTH, 2 * WIDTH]),
            ("down_bias", &[WIDTH]),
        ];
        let specs = shapes.map(|(name, shape)| Spec::new(name, shape)).into();
        let params = Params::zeros(specs, &Device::Cpu, path, dtype).unwrap();
        for slot in params.slots() {
            params.set(&slot.name, &normals(&slot.name, slot.len)).unwrap();
        }
        params
    }

    /// The bits of the result and of all gradients.
    fn outcome(params: &Params, is_tracked: bool, f: &impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<u32>, Vec<u32>) {
        let ids: Vec<u32> = (0..N as u32).collect();
        let x = embedding(&ids, &params.get("x").unwrap(), is_tracked.then(|| params.sentinel())).unwrap();
        let y = f(&x).unwrap();
        assert_eq!(y.track_op(), is_tracked);
        params.zero_grad();
        if is_tracked {
            let probe = Tensor::from_vec(normals("probe", y.elem_count()), y.shape(), &Device::Cpu).unwrap();
            let probe = probe.to_dtype(y.dtype()).unwrap();
            params.backward(&(&y * probe).unwrap().sum_all().unwrap()).unwrap();
        }
        // A zero of either sign is a zero.
        let bits = |x: &[f32]| x.iter().map(|x| (x + 0.0).to_bits()).collect();
        (bits(&numbers(&y)), params.with_grads(|grads| bits(grads)).unwrap())
    }

    /// A branch has the very bits of its operations one by one: result, gradients and inference.
    #[track_caller]
    fn check(branch: impl Fn(Branch, &Params) -> Result<Tensor>, apart: impl Fn(&Tensor, &Params) -> Result<Tensor>) {
        for (path, dtype) in [(Path::Fused, DType::F32), (Path::Fused, DType::BF16), (Path::Composed, DType::F32)] {
            let params = params(path, dtype);
            let found = outcome(&params, true, &|x| branch(Branch::of(x), &params));
            let wanted = outcome(&params, true, &|x| apart(x, &params));
            assert!(found.1.iter().any(|&bits| bits != 0), "{path:?}: a gradient");
            assert!(found == wanted, "{path:?} {dtype:?}");
            let (inferred, _) = outcome(&params, false, &|x| branch(Branch::of(x), &params));
            assert!(inferred == found.0, "{path:?} {dtype:?}: inference");
        }
    }

    fn spans() -> Arc<[Span]> {
        let span = |rows, prefix| Span { rows, prefix };
        [span(0..30, None), span(30..37, Some(0..30)), span(37..50, Some(0..30)), span(50..70, None)].into()
    }

    #[test]
    fn attention_half_of_a_block() {
        let rope_table = Arc::new(Rope::new(4, 100, 1e4, None).unwrap());
        let (table, positions): (_, Vec<u32>) = (&rope_table, (0..N as u32).collect());
        let keys: Vec<_> = (0..N as u64).map(|i| (Source::new(1, "dropout"), [i, 0, 0])).collect();
        let rows = [69, 3, 3, 40];
        for (some, p) in [(false, 0.0), (false, 0.3), (true, 0.0), (true, 0.3)] {
            let branch = |branch: Branch, params: &Params| {
                let get = |name| params.get(name).unwrap();
                let qkv = branch.rms_norm(&get("gain"), 1e-5)?.linear(&get("qkv"), Some(&get("qkv_bias")))?;
                let qkv = qkv.head_norm(&get("q"), &get("k"), 1e-6, LAYOUT)?.rope(&positions, table, LAYOUT)?;
                let mut attended = qkv.attention(&spans(), LAYOUT, 0.4, Some(9))?;
                if some {
                    attended = attended.at(&rows)?;
                }
                let keys = if some { &keys[..rows.len()] } else { &keys };
                attended.linear(&get("out"), None)?.dropout(p, keys)?.added()
            };
            let apart = |x: &Tensor, params: &Params| {
                let get = |name| params.get(name).unwrap();
                let mut x = x.clone();
                let qkv = linear(&rms_norm(&x, &get("gain"), 1e-5)?, &get("qkv"), Some(&get("qkv_bias")))?;
                let qkv = head_norm(&qkv, &get("q"), &get("k"), 1e-6, LAYOUT)?;
                let mut attended = attention(&rope(&qkv, &positions, table, LAYOUT)?, &spans(), LAYOUT, 0.4, Some(9))?;
                if some {
                    (attended, x) = (gather_rows(&attended, &rows)?, gather_rows(&x, &rows)?);
                }
                let keys = if some { &keys[..rows.len()] } else { &keys };
                Ok((x + dropout(&linear(&attended, &get("out"), None)?, p, keys)?)?)
            };
            check(branch, apart);
        }
    }

    /// Gemma norms what a branch adds, too, with gains that are stored less 1, and caps its scores.
    #[test]
    fn a_branch_may_end_in_a_norm() {
        let scoring = crate::Scoring { scale: 0.4, softcap: Some(0.6) };
        let branch = |branch: Branch, params: &Params| {
            let get = |name| Gain::one_plus(&params.get(name).unwrap());
            let qkv = branch.rms_norm(get("gain"), 1e-5)?.linear(&params.get("qkv").unwrap(), None)?;
            let attended =
                qkv.head_norm(get("q"), get("k"), 1e-6, LAYOUT)?.attention(&spans(), LAYOUT, scoring, None)?;
            let out = attended.at(&[69, 3, 3])?.linear(&params.get("out").unwrap(), None)?;
            out.rms_norm(get("down_bias"), 1e-5)?.added()
        };
        let apart = |x: &Tensor, params: &Params| {
            let get = |name| Gain::one_plus(&params.get(name).unwrap());
            let qkv = linear(&rms_norm(x, get("gain"), 1e-5)?, &params.get("qkv").unwrap(), None)?;
            let qkv = head_norm(&qkv, get("q"), get("k"), 1e-6, LAYOUT)?;
            let attended = gather_rows(&attention(&qkv, &spans(), LAYOUT, scoring, None)?, &[69, 3, 3])?;
            let out = linear(&attended, &params.get("out").unwrap(), None)?;
            Ok((gather_rows(x, &[69, 3, 3])? + rms_norm(&out, get("down_bias"), 1e-5)?)?)
        };
        check(branch, apart);
    }

    #[test]
    fn feed_forward_half_of_a_block() {
        type Function = fn(&Tensor) -> Result<Tensor>;
        let functions: [(_, Function, _); 4] = [
            (Nonlinearity::GeluTanh, gelu_tanh, "down"),
            (Nonlinearity::GeluErf, gelu_erf, "down"),
            (Nonlinearity::SwiGlu, swiglu, "gated_down"),
            (Nonlinearity::GeGlu, geglu, "gated_down"),
        ];
        for (nonlinearity, function, down) in functions {
            let layer = |params: &Params| {
                let get = |name| params.get(name).unwrap();
                let (up_bias, down_bias) = (Some(get("up_bias")), Some(get("down_bias")));
                FeedForward { up: get("up"), up_bias, nonlinearity, down: get(down), down_bias }
            };
            let normed = |branch: Branch, params: &Params| {
                let get = |name| params.get(name).unwrap();
                branch.layer_norm(&get("gain"), &get("bias"), 1e-5)?.feed_forward(&layer(params))
            };
            let apart = |x: &Tensor, params: &Params| {
                let get = |name| params.get(name).unwrap();
                let up = linear(&layer_norm(x, &get("gain"), &get("bias"), 1e-5)?, &get("up"), Some(&get("up_bias")))?;
                linear(&function(&up)?, &get(down), Some(&get("down_bias")))
            };
            check(|branch, params| normed(branch, params)?.added(), |x, params| Ok((x + apart(x, params)?)?));
            check(|branch, params| normed(branch, params)?.alone(), apart);
        }
    }

    #[test]
    fn attention_may_be_the_last_and_anything_the_middle() {
        let attended = |qkv: Branch| qkv.attention(&spans(), LAYOUT, 0.4, None);
        let qkv = |branch: Branch, params: &Params| branch.linear(&params.get("qkv").unwrap(), None);
        let apart = |x: &Tensor, params: &Params| {
            Ok((x + attention(&linear(x, &params.get("qkv").unwrap(), None)?, &spans(), LAYOUT, 0.4, None)?)?)
        };
        check(|branch, params| attended(qkv(branch, params)?)?.added(), apart);
        let through = |branch: Branch, params: &Params| {
            attended(qkv(branch, params)?.map(|qkv| Ok((qkv * 2.0)?))?)?.map(|y| Ok((y * 0.5)?))?.added()
        };
        check(through, |x, params| {
            let qkv = (linear(x, &params.get("qkv").unwrap(), None)? * 2.0)?;
            Ok((x + (attention(&qkv, &spans(), LAYOUT, 0.4, None)? * 0.5)?)?)
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = params(Path::Fused, DType::F32);
        let x = Tensor::zeros((N, WIDTH), DType::F32, &Device::Cpu).unwrap();
        let qkv = Branch::of(&x).linear(&params.get("qkv").unwrap(), None).unwrap();
        let error = qkv.added().unwrap_err().to_string();
        assert!(error.contains("added"), "{error}");
        assert!(Branch::of(&x).at(&[N as u32]).is_err());
        assert!(Branch::of(&x).at(&[5, 7]).unwrap().at(&[2]).is_err());
        assert!(Branch::of(&x).map(|x| Ok(x.narrow(0, 0, 3)?)).unwrap().added().is_err());
        assert_eq!(numbers(&Branch::of(&x).alone().unwrap()), numbers(&x));
        // A result without columns is refused where it is read.
        let shapes: [(&str, &[usize]); 2] = [("none", &[0, WIDTH]), ("of none", &[3, 0])];
        let params = shapes.map(|(name, shape)| Spec::new(name, shape)).into();
        let params = Params::zeros(params, &Device::Cpu, Path::Fused, DType::F32).unwrap();
        let none = Branch::of(&x).linear(&params.get("none").unwrap(), None).unwrap();
        assert!(none.linear(&params.get("of none").unwrap(), None).is_err());
    }

    #[test]
    fn rows_of_rows_are_rows_of_the_stream() {
        check(
            |branch, params| branch.at(&[5, 7, 7])?.linear(&params.get("out").unwrap(), None)?.at(&[2, 0])?.added(),
            |x, params| {
                let mapped = linear(&gather_rows(x, &[5, 7, 7])?, &params.get("out").unwrap(), None)?;
                Ok((gather_rows(x, &[7, 5])? + gather_rows(&mapped, &[2, 0])?)?)
            },
        );
    }

    /// What a chain keeps besides what its steps save for themselves is what is said of it.
    #[track_caller]
    fn check_kept(branch: Branch, wanted: u64) {
        let Branch { from, steps, shape, rows, .. } = branch;
        let skip = Some(Skip { rows, width: WIDTH });
        let chain = Chain { steps, shape, skip, keep: true, kept: OnceLock::new() };
        let (storage, layout) = from.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { panic!("on the CPU") };
        chain.cpu_fwd(storage, layout).unwrap();
        let kept: usize = chain.kept.get().unwrap().iter().map(Vec::len).sum();
        assert_eq!(memory::floats(kept), wanted);
    }

    #[test]
    fn a_branch_keeps_what_the_equations_say() {
        let params = params(Path::Fused, DType::F32);
        let get = |name| params.get(name).unwrap();
        let x = Tensor::zeros((N, WIDTH), DType::F32, &Device::Cpu).unwrap();
        let table = Arc::new(Rope::new(4, 100, 1e4, None).unwrap());
        let positions: Vec<u32> = (0..N as u32).collect();
        let rows = [69, 3];
        for (is_normed, is_rotated, read) in
            [(false, false, None), (false, true, None), (true, false, None), (true, true, Some(rows.len()))]
        {
            let normed = Branch::of(&x).layer_norm(&get("gain"), &get("bias"), 1e-5).unwrap();
            let mut branch = normed.linear(&get("qkv"), None).unwrap();
            if is_normed {
                branch = branch.head_norm(&get("q"), &get("k"), 1e-6, LAYOUT).unwrap();
            }
            if is_rotated {
                branch = branch.rope(&positions, &table, LAYOUT).unwrap();
            }
            branch = branch.attention(&spans(), LAYOUT, 0.4, None).unwrap();
            if read.is_some() {
                branch = branch.at(&rows).unwrap();
            }
            let held = memory::attention_branch(N, read, WIDTH, LAYOUT, is_normed);
            let own = memory::norm(N, WIDTH).saved + memory::attention(N, LAYOUT).saved;
            check_kept(branch.linear(&get("out"), None).unwrap(), held.saved - own);
        }
        // A norm at the end reads what comes out of the projection.
        let normed = Branch::of(&x).layer_norm(&get("gain"), &get("bias"), 1e-5).unwrap().linear(&get("out"), None);
        let own = memory::norm(N, WIDTH).saved;
        check_kept(normed.unwrap().rms_norm(&get("gain"), 1e-5).unwrap(), memory::norm_of_result(N, WIDTH) - own);
        let layer = FeedForward {
            up: get("up"),
            up_bias: None,
            nonlinearity: Nonlinearity::GeluTanh,
            down: get("down"),
            down_bias: None,
        };
        let held = memory::feed_forward_branch(N, WIDTH, 4 * WIDTH, layer.nonlinearity);
        let own = memory::norm(N, WIDTH).saved;
        let branch = Branch::of(&x).layer_norm(&get("gain"), &get("bias"), 1e-5).unwrap();
        check_kept(branch.feed_forward(&layer).unwrap(), held.saved - own);
    }
}
