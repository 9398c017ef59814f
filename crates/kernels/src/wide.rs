//! Sums of the composed path, in `f32` at least.
//!
//! When many results read one row or one vector, its gradient is a sum of as many terms. Candle adds them up in
//! the dtype of the graph. Numbers in bf16 have eight bits of precision, so such a sum stops growing at about 256
//! times its term: the gradient of a frequent token would be far too small. The functions here compute what Candle's
//! own compute, but add up gradients in `f32` and round once. In `f32` and `f64` they are Candle's own.

use crate::Result;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, D, DType, Layout, Shape, Storage, Tensor,
    backend::BackendStorage,
    op::{Add, Mul},
};

/// The dtype for sums of numbers of `dtype`: bf16 and f16 would lose their small terms.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn is_wide(x: &Tensor) -> bool {
    x.dtype() == wide(x.dtype())
}

/// `x` in the dtype for sums if it is tracked. Its gradient then adds up in that dtype over all operations that read the
/// result.
pub(crate) fn for_sums(x: &Tensor) -> Result<Tensor> {
    Ok(if x.track_op() { x.to_dtype(wide(x.dtype()))? } else { x.clone() })
}

/// The rows of `x (n, C)` that `rows (M)`, of type `u32`, names: `(M, C)` in `dtype`.
pub(crate) fn select_rows(x: &Tensor, rows: Tensor, dtype: DType) -> Result<Tensor> {
    if !x.track_op() || wide(dtype) == dtype {
        return Ok(x.index_select(&rows, 0)?.to_dtype(dtype)?);
    }
    Ok(x.apply_op1(SelectRows { rows, dtype })?)
}

/// An operation of its own rather than casts around Candle's: these would have the same gradient, but would keep a copy
/// of the table in `f32`, 154 MB for GPT-2, in the graph.
struct SelectRows {
    rows: Tensor,
    /// Of the result.
    dtype: DType,
}

impl SelectRows {
    fn forward<S: BackendStorage>(&self, x: &S, layout: &Layout, rows: &S) -> candle_core::Result<(S, Shape)> {
        let shape = Shape::from((self.rows.elem_count(), layout.dim(D::Minus1)?));
        let selected = x.index_select(rows, layout, self.rows.layout(), 0)?;
        let selected = if selected.dtype() == self.dtype {
            selected
        } else {
            selected.to_dtype(&Layout::contiguous(&shape), self.dtype)?
        };
        Ok((selected, shape))
    }
}

impl CustomOp1 for SelectRows {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match &*self.rows.storage_and_layout().0 {
            Storage::Cpu(rows) => self.forward(x, layout, rows),
            _ => candle_core::bail!("select-rows: the rows' numbers are on another device"),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        match &*self.rows.storage_and_layout().0 {
            Storage::Cuda(rows) => self.forward(x, layout, rows),
            _ => candle_core::bail!("select-rows: the rows' numbers are on another device"),
        }
    }

    fn bwd(&self, x: &Tensor, _selected: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let sums = Tensor::zeros(x.shape(), wide(x.dtype()), x.device())?;
        // In place: `index_add` would copy the sums first.
        let rows = self.rows.unsqueeze(1)?.broadcast_as(grad.shape())?.contiguous()?;
        sums.scatter_add_set(&rows, &grad.to_dtype(sums.dtype())?.contiguous()?, 0)?;
        sums.to_dtype(x.dtype()).map(Some)
    }
}

/// `x` of any shape `(.., C)` plus `vector (C)`.
pub(crate) fn add_vector(x: &Tensor, vector: &Tensor) -> Result<Tensor> {
    if !x.track_op() || is_wide(x) {
        return Ok(x.broadcast_add(vector)?);
    }
    Ok(x.apply_op2(vector, WithVector::Sum)?)
}

/// `x` of any shape `(.., C)` times `vector (C)`, element by element.
pub(crate) fn multiply_by_vector(x: &Tensor, vector: &Tensor) -> Result<Tensor> {
    if !x.track_op() || is_wide(x) {
        return Ok(x.broadcast_mul(vector)?);
    }
    Ok(x.apply_op2(vector, WithVector::Product)?)
}

/// Every row of a tensor with one vector.
#[derive(Clone, Copy)]
enum WithVector {
    Sum,
    Product,
}

impl WithVector {
    /// What Candle computes of the tensor and a view of the vector as large.
    fn forward<S: BackendStorage>(self, x: &S, layout: &Layout, v: &S, of: &Layout) -> candle_core::Result<(S, Shape)> {
        let (shape, of) = (layout.shape().clone(), of.broadcast_as(layout.shape())?);
        let y = match self {
            WithVector::Sum => x.binary_impl::<Add>(v, layout, &of)?,
            WithVector::Product => x.binary_impl::<Mul>(v, layout, &of)?,
        };
        Ok((y, shape))
    }
}

impl CustomOp2 for WithVector {
    fn name(&self) -> &'static str {
        "with-vector"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        vector: &CpuStorage,
        of: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(x, layout, vector, of)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        vector: &CudaStorage,
        of: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.forward(x, layout, vector, of)
    }

    fn bwd(
        &self,
        x: &Tensor,
        vector: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(match self {
            WithVector::Sum => (Some(grad.clone()), Some(row_sum(grad)?)),
            WithVector::Product => (Some(grad.broadcast_mul(&vector.detach())?), Some(row_sum(&(grad * x.detach())?)?)),
        })
    }
}

/// The sum over all rows of `x (.., C)`: `(C)`. As a product with ones it adds in `f32` in every dtype and on every
/// device, as the gradient of a weight does, and needs no copy of `x` in `f32`.
fn row_sum(x: &Tensor) -> candle_core::Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let rows = x.elem_count().checked_div(width).unwrap_or(0);
    Tensor::ones((1, rows), x.dtype(), x.device())?.matmul(&x.reshape((rows, width))?)?.squeeze(0)
}

#[cfg(test)]
mod tests {
    use crate::{
        Branch, Gain, HeadLayout, Params, Path, Result, Scoring, Span, Spec, attention,
        attention::{Sequence, Split, compose_in_blocks},
        check::{normals, numbers},
        embedding, gather_rows, head_norm, layer_norm, linear, rms_norm, token_logprob, token_nll,
    };
    use candle_core::{DType, Device, Tensor};
    use std::sync::Arc;

    /// Terms of the same size and sign.
    const TERMS: usize = 4096;

    /// The parameter `x`, of which every element is 1 or -1 by turns.
    fn params(shape: &[usize], others: &[(&str, &[usize])]) -> Params {
        let all = others.iter().copied().chain([("x", shape)]);
        let specs = all.map(|(name, shape)| Spec::new(name, shape)).collect();
        let params = Params::zeros(specs, &Device::Cpu, Path::Composed, DType::BF16).unwrap();
        params.fill(|_, values| (0..).zip(values).for_each(|(i, x)| *x = [1.0, -1.0][i % 2])).unwrap();
        params
    }

    /// In bf16 the gradient of the first elements of the parameter `name` is `wanted`, where the loss is the sum
    /// of what `op` returns for the given parameters and `rows` of the parameter `x`.
    #[track_caller]
    fn check(
        (name, wanted): (&str, &[f32]),
        rows: &[u32],
        params: &Params,
        op: impl Fn(&Tensor, &Params) -> Result<Tensor>,
    ) {
        let x = embedding(rows, &params.get("x").unwrap(), Some(params.sentinel())).unwrap();
        let y = op(&x, params).unwrap();
        params.zero_grad();
        params.backward(&y.to_dtype(DType::F32).unwrap().sum_all().unwrap()).unwrap();
        for (found, wanted) in params.grad(name).unwrap().iter().zip(wanted) {
            assert!((found - wanted).abs() <= 0.01 * wanted.abs(), "{name}: {found:?}, not {wanted:?}");
        }
    }

    const N: f32 = TERMS as f32;
    const ONE_HEAD: HeadLayout = HeadLayout { heads: 1, kv_heads: 1, head_dim: 2 };

    #[test]
    fn rows_that_many_read_add_in_f32() {
        let often = [1; TERMS];
        check(("x", &[0.0, 0.0, N, N]), &often, &params(&[3, 2], &[]), |x, _| Ok(x.clone()));
        let params = params(&[2, 1], &[("w", &[2, 1])]);
        check(("x", &[0.0, N]), &[0, 1], &params, |x, _| gather_rows(x, &often));
        check(("x", &[0.0, 2.0 * N]), &[0, 1], &params, |x, _| Branch::of(x).at(&often)?.added());
        // Logits of nearly 0 have slopes of 1/2 and -1/2, which the weights 1 and -1 add up to 1.
        params.set("x", &[1e-9, 1e-9]).unwrap();
        let (targets, weights) = ([0; TERMS], [-1.0; TERMS]);
        check(("x", &[0.0, N]), &[0, 1], &params, |x, p| {
            Ok(token_logprob(x, &p.get("w")?, &often, &targets, 1.0)?.narrow(1, 0, 1)?)
        });
        check(("x", &[0.0, N]), &[0, 1], &params, |x, p| token_nll(x, &p.get("w")?, &often, &targets, &weights));
    }

    #[test]
    fn vectors_that_many_rows_read_add_in_f32() {
        let often = [0; TERMS];
        let vectors: [(&str, &[usize]); 3] = [("gain", &[2]), ("bias", &[2]), ("w", &[2, 2])];
        let params = params(&[1, 2], &vectors);
        let get = |name| params.get(name).unwrap();
        check(("bias", &[N, N]), &often, &params, |x, _| linear(x, &get("w"), Some(&get("bias"))));
        check(("gain", &[N, -N]), &often, &params, |x, _| layer_norm(x, &get("gain"), &get("bias"), 1e-5));
        check(("bias", &[N, N]), &often, &params, |x, _| layer_norm(x, &get("gain"), &get("bias"), 1e-5));
        check(("gain", &[N, -N]), &often, &params, |x, _| rms_norm(x, &get("gain"), 1e-5));
    }

    #[test]
    fn gains_of_heads_add_in_f32() {
        let params = params(&[1, 6], &[("q", &[2]), ("k", &[2])]);
        let op = |x: &Tensor, p: &Params| head_norm(x, &p.get("q")?, &p.get("k")?, 1e-6, ONE_HEAD);
        check(("q", &[N, -N]), &[0; TERMS], &params, op);
        check(("k", &[N, -N]), &[0; TERMS], &params, op);
    }

    /// A prompt of one token and completions of one token each. A completion's query is 1 and all keys are 0, so that
    /// half of its weight falls on the prompt, whose value is 1 and not -1.
    #[test]
    fn a_shared_prefix_adds_in_f32() {
        let params = params(&[2, 6], &[]);
        params.set("x", &[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0]).unwrap();
        let rows: Vec<u32> = (0..=TERMS).map(|row| row.min(1) as u32).collect();
        let wanted = [0.0, 0.0, N, N, N / 2.0 + 1.0, N / 2.0 + 1.0];
        let completion = |row: usize| Span { rows: row..row + 1, prefix: (row > 0).then_some(0..1) };
        let spans: Arc<[Span]> = (0..=TERMS).map(completion).collect();
        check(("x", &wanted), &rows, &params, |x, _| attention(x, &spans, ONE_HEAD, 1.0, None));
        // Every completion in a block of its own.
        let sequence = |row: u32| {
            let keys = if row == 0 { vec![0] } else { vec![0, row] };
            Sequence { rows: vec![row], positions: vec![keys.len() - 1], keys }
        };
        check(("x", &wanted), &rows, &params, |x, _| {
            let Split { q, k, v } = Split::of(x, ONE_HEAD)?;
            compose_in_blocks(1, &q, &k, &v, (0..=TERMS as u32).map(sequence).collect(), ONE_HEAD, 1.0.into(), None)
        });
    }

    /// Inference is plain Candle.
    #[test]
    fn results_have_the_bits_of_inference() {
        const LAYOUT: HeadLayout = HeadLayout { heads: 2, kv_heads: 1, head_dim: 6 };
        let params = params(&[50, 24], &[("gain", &[24]), ("bias", &[24]), ("w", &[24, 24]), ("head", &[6])]);
        params.fill(|slot, values| values.copy_from_slice(&normals(&slot.name, slot.len))).unwrap();
        let spans: Arc<[Span]> =
            [(0..40, None), (40..50, Some(0..40)), (50..70, None)].map(|(rows, prefix)| Span { rows, prefix }).into();
        let rows: Vec<u32> = (0..70).map(|i| i * i % 50).collect();
        let check = |op: &dyn Fn(&Tensor, &Params) -> Result<Tensor>| {
            let result =
                |sentinel| op(&embedding(&rows, &params.get("x").unwrap(), sentinel).unwrap(), &params).unwrap();
            let (recorded, inferred) = (result(Some(params.sentinel())), result(None));
            assert!(recorded.track_op() && !inferred.track_op());
            assert_eq!(numbers(&recorded), numbers(&inferred));
        };
        check(&|x, _| gather_rows(x, &rows));
        check(&|x, p| linear(x, &p.get("w")?, Some(&p.get("bias")?)));
        check(&|x, p| layer_norm(x, &p.get("gain")?, &p.get("bias")?, 1e-5));
        check(&|x, p| rms_norm(x, &p.get("gain")?, 1e-5));
        check(&|x, p| rms_norm(x, Gain::one_plus(&p.get("gain")?), 1e-5));
        check(&|x, p| head_norm(x, &p.get("head")?, &p.get("head")?, 1e-5, LAYOUT));
        check(&|x, _| attention(x, &spans, LAYOUT, 0.4, Some(9)));
        let capped = Scoring { scale: 0.4, softcap: Some(0.7) };
        check(&|x, _| attention(x, &spans, LAYOUT, capped, None));
        check(&|x, p| token_logprob(x, &p.get("w")?, &rows, &rows.iter().map(|row| row % 24).collect::<Vec<_>>(), 0.7));
    }

    #[test]
    fn no_rows_sum_to_nothing() {
        let params = params(&[1, 2], &[("gain", &[2]), ("bias", &[2])]);
        let norm = |x: &Tensor, p: &Params| layer_norm(x, &p.get("gain")?, &p.get("bias")?, 1e-5);
        for name in ["x", "gain", "bias"] {
            check((name, &[0.0, 0.0]), &[], &params, norm);
        }
    }
}
