//! Picks the rows that predict something.

use crate::Result;
use candle_core::Tensor;

/// Rows `rows (M)` of `x (n, C)`: `(M, C)`. A row may be picked several times.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    Ok(x.index_select(&Tensor::new(rows, x.device())?, 0)?)
}
