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
    use crate::check::{Case, check};

    #[test]
    fn rows_picked_twice_add_their_gradients() {
        let case = Case { rows: 9, width: 3, spread: 1.0, parameters: &[] };
        check(&case, |x, _| gather_rows(x, &[8, 0, 8, 8, 2]));
        check(&case, |x, _| gather_rows(x, &[1]));
    }
}
