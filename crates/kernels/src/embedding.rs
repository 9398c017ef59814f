//! Looks up rows of a table: where a sequence enters the graph.

use crate::{Param, Result};
use candle_core::Tensor;

/// Rows `ids (n)` of `table (V, C)`: `(n, C)`.
///
/// With a `sentinel` ([`crate::Params::sentinel`]) the result is tracked, and so is everything
/// computed from it; without one nothing downstream is recorded.
pub fn embedding(ids: &[u32], table: &Param, sentinel: Option<&Tensor>) -> Result<Tensor> {
    let ids = Tensor::new(ids, table.tensor().device())?;
    Ok(table.value(sentinel.is_some()).index_select(&ids, 0)?)
}
