//! A matrix of parameters as the factor of products, in the precision its parameters compute in.

use crate::{
    Param,
    bf16::{self, Left, Right},
    gemm::{self, NARROW},
    matrix::Matrix,
    op::Elements,
    parameters::Sum,
    simd::LANES,
};
use candle_core::DType;
use std::{
    cell::OnceCell,
    sync::{Arc, Mutex, PoisonError},
};

/// Most rows for which packed weights are kept: more than decoding has at a time, few enough that packing would be
/// a large part of the product.
const MOST_KEPT: usize = 128;

/// `W (out, in)` of a linear layer or an unembedding, ready for the three products of training. It may be
/// used for several batches, which share what has to be prepared.
pub(crate) struct Weights<'a> {
    factor: Factor<'a>,
    out: usize,
    input: usize,
}

enum Factor<'a> {
    /// `f32` throughout.
    F32(Elements<'a>),
    /// Factors rounded to bf16, sums in `f32`. What a product needs of the weights is packed when it is
    /// first asked for.
    Bf16 {
        master: Elements<'a>,
        kept: &'a Packed,
        keep: bool,
        forward: OnceCell<Arc<Right>>,
        backward: OnceCell<Right>,
    },
    /// Held in bf16 alone, for inference.
    Held(Arc<Right>),
}

/// Whether a matrix of this shape is multiplied in bf16 if its parameters ask for that. Heads of few
/// outputs are not: they take no time and much depends on them.
pub(crate) fn multiplies_in_bf16(shape: &[usize]) -> bool {
    matches!(shape, [out, input] if *out > NARROW && *input > 0)
}

/// Weights packed for products, made when first asked for and dropped when the weights change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed(Arc<Mutex<Option<Arc<Right>>>>);

impl Packed {
    /// The kept packing, or a new one, which is kept if `keep` is set.
    fn get(&self, keep: bool, make: impl FnOnce() -> Right) -> Arc<Right> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let packed = kept.clone().unwrap_or_else(|| Arc::new(make()));
        if keep {
            *kept = Some(packed.clone());
        }
        packed
    }

    /// Drops what is kept, because the weights have changed.
    pub(crate) fn drop_kept(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<'a> Weights<'a> {
    /// The weights of a matrix, for products with `rows` rows at a time. Decoding multiplies few rows many times,
    /// so what is prepared for few rows is kept.
    pub(crate) fn of(w: &'a Param, rows: usize) -> candle_core::Result<Weights<'a>> {
        let &[out, input] = w.shape() else { candle_core::bail!("{} is no matrix", w.name()) };
        let factor = match (w.held(), w.packed()) {
            (Some(held), _) => Factor::Held(held.clone()),
            (None, Some(kept)) => {
                let (master, keep) = (w.elements()?, rows <= MOST_KEPT);
                Factor::Bf16 { master, kept, keep, forward: OnceCell::new(), backward: OnceCell::new() }
            }
            (None, None) => Factor::F32(w.elements()?),
        };
        Ok(Weights { factor, out, input })
    }

    /// `x Wᵀ` of `x (n, in)`: `(n, out)`, each row with the same bits whatever n. A row begins
    /// [`Weights::stride`] after the one before; what lies between is not to be read.
    pub(crate) fn logits(&self, x: &[f32]) -> Vec<f32> {
        self.product(x, None, self.stride())
    }

    /// What the factors of products are rounded to.
    pub(crate) fn precision(&self) -> DType {
        match self.factor {
            Factor::F32(_) => DType::F32,
            Factor::Bf16 { .. } | Factor::Held(_) => DType::BF16,
        }
    }

    /// From one row of [`Weights::logits`] to the next: whole vectors.
    pub(crate) fn stride(&self) -> usize {
        self.out.next_multiple_of(LANES)
    }

    /// `x Wᵀ + b` of `x (n, in)`: `(n, out)`, each row with the same bits whatever n.
    pub(crate) fn forward(&self, x: &[f32], b: Option<&[f32]>) -> Vec<f32> {
        self.product(x, b, self.out)
    }

    fn product(&self, x: &[f32], b: Option<&[f32]>, stride: usize) -> Vec<f32> {
        let in_bf16 = |w: &Right| bf16::product(&Left::rows_of(self.rows_of_input(x)), w, b, stride);
        match &self.factor {
            Factor::F32(w) => gemm::rows_product(x, Matrix::new(w, self.out, self.input), b, stride),
            Factor::Bf16 { master, kept, keep, forward, .. } => {
                let pack = || Right::rows_of(Matrix::new(master, self.out, self.input));
                in_bf16(forward.get_or_init(|| kept.get(*keep, pack)))
            }
            Factor::Held(w) => in_bf16(w),
        }
    }

    /// `dy W` of `dy (n, out)`: `(n, in)`.
    ///
    /// Errors: weights that are held for inference only.
    pub(crate) fn backward(&self, dy: Matrix) -> candle_core::Result<Vec<f32>> {
        match &self.factor {
            Factor::F32(w) => Ok(gemm::product(dy, Matrix::new(w, self.out, self.input))),
            Factor::Held(_) => candle_core::bail!("weights held in bf16 are for inference"),
            Factor::Bf16 { master, backward, .. } => {
                let w = backward.get_or_init(|| Right::columns_of(Matrix::new(master, self.out, self.input)));
                Ok(bf16::product(&Left::rows_of(dy), w, None, self.input))
            }
        }
    }

    /// `dw += dyᵀ x` of `dy (n, out)` and `x (n, in)`.
    pub(crate) fn add_gradient(&self, dw: &mut Sum, dy: Matrix, x: &[f32]) {
        let (x, (dw, overwrite)) = (self.rows_of_input(x), dw.begin());
        match &self.factor {
            Factor::F32(_) => gemm::add_product(dw, overwrite, dy.t(), x),
            Factor::Bf16 { .. } | Factor::Held(_) => {
                bf16::add_product(dw, overwrite, &Left::columns_of(dy), &Right::columns_of(x));
            }
        }
    }

    fn rows_of_input<'x>(&self, x: &'x [f32]) -> Matrix<'x> {
        Matrix::new(x, x.len() / self.input, self.input)
    }
}
