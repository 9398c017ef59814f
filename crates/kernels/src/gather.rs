//! Picks the rows that predict something.

use crate::{
    Branch, Result,
    branch::{Reads, Step},
    op,
    wide::select_rows,
};
use candle_core::Tensor;

/// Rows `rows (M)` of `x (n, C)`: `(M, C)`. A row may be picked several times; its gradients add.
///
/// Errors: `x` is not a matrix; a row that is not below n.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    Branch::of(x).gather_rows(rows)?.alone()
}

impl Branch {
    pub(crate) fn gather_rows(self, rows: &[u32]) -> Result<Branch> {
        let (n, width) = self.dims("gather_rows", "x")?;
        op::check_indices("gather_rows", "rows", rows, n)?;
        if self.is_fused() {
            return Ok(self.step(rows.len(), Gather { rows: rows.into(), n, width }));
        }
        self.map(|x| select_rows(x, Tensor::new(rows, x.device())?, x.dtype()))
    }
}

struct Gather {
    rows: Box<[u32]>,
    /// Rows to choose from.
    n: usize,
    width: usize,
}

impl Step for Gather {
    fn columns(&self) -> usize {
        self.width
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        Ok(op::gather(x, &self.rows, self.width))
    }

    fn backward(&self, _x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let mut dx = op::zeros(self.n * self.width);
        op::scatter_add(&mut dx, &self.rows, dy, self.width);
        Ok(dx)
    }

    fn reads(&self) -> Reads {
        Reads::Nothing
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
