//! Picks the rows that predict something.

use crate::{
    Result,
    op::{self, Elements},
};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

/// Rows `rows (M)` of `x (n, C)`: `(M, C)`. A row may be picked several times; its gradients add.
///
/// Errors: `x` is not a matrix; a row that is not below n.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (n, width) = op::dims2("gather_rows", "x", x)?;
    op::check_indices("gather_rows", "rows", rows, n)?;
    if op::is_fused(x) {
        return op::apply(x, Gather { rows: rows.into(), width });
    }
    Ok(x.index_select(&Tensor::new(rows, x.device())?, 0)?)
}

struct Gather {
    rows: Box<[u32]>,
    width: usize,
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        op::output(op::gather(op::elements(x, layout)?, &self.rows, self.width), (self.rows.len(), self.width))
    }

    fn bwd(&self, x: &Tensor, _picked: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let mut dx = vec![0.0; x.elem_count()];
        op::scatter_add(&mut dx, &self.rows, &Elements::of(&grad)?, self.width);
        op::gradient(dx, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, X, check},
        definitions,
    };

    #[track_caller]
    fn row(x: X, rows: usize, width: usize, picked: &[u32]) {
        let case = Case { op: &format!("gather_rows of {}", picked.len()), rows, width, x, parameters: &[] };
        check(&case, |x, _| gather_rows(x, picked), |v| definitions::rows(&v["x"], picked, width));
    }

    #[test]
    fn rows_picked_twice_add_their_gradients() {
        row(X::Normal(1.0), 9, 3, &[8, 0, 8, 8, 2]);
        row(X::Normal(1.0), 9, 3, &[1]);
        row(X::Normal(1.0), 200, 33, &(0..500).map(|i| i * i % 199).collect::<Vec<u32>>());
        row(X::Extreme(1e4), 9, 3, &[8, 0, 8]);
        row(X::Denormal, 9, 3, &[8, 0, 8]);
    }
}
