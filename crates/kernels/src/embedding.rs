//! Looks up rows of a table: where a sequence enters the graph.

use crate::{
    Param, Path, Result,
    op::{self, Elements},
    wide::select_rows,
};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};

/// Rows `ids (n)` of `table (V, C)`: `(n, C)`. Learned positions are looked up in the same way.
///
/// With a `sentinel` ([`crate::Params::sentinel`]) the result is tracked, and so is everything
/// computed from it; without one nothing downstream is recorded, which is inference.
///
/// Errors: a table that is not a matrix; an id that is not below V.
pub fn embedding(ids: &[u32], table: &Param, sentinel: Option<&Tensor>) -> Result<Tensor> {
    scaled_embedding(ids, table, 1.0, sentinel)
}

/// [`embedding`] times `scale`, which is rounded to the dtype of the table, as transformers rounds Gemma's root of C.
///
/// Errors: as [`embedding`].
pub fn scaled_embedding(ids: &[u32], table: &Param, scale: f64, sentinel: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = op::matrix("embedding", "table", table)?;
    op::check_indices("embedding", "ids", ids, rows)?;
    if table.path() == Path::Composed {
        return composed(ids, table, scale, sentinel.is_some());
    }
    let lookup = Lookup { ids: ids.into(), table: table.clone(), scale: scale as f32, width };
    Ok(match sentinel {
        Some(sentinel) => sentinel.apply_op1(lookup)?,
        None => Tensor::from_vec(lookup.rows()?, (ids.len(), width), &Device::Cpu)?,
    })
}

fn composed(ids: &[u32], table: &Param, scale: f64, tracked: bool) -> Result<Tensor> {
    let table = table.value(tracked)?;
    let rows = select_rows(table, Tensor::new(ids, table.device())?, table.dtype())?;
    if scale == 1.0 {
        return Ok(rows);
    }
    // Candle multiplies by a number of the tensor's dtype, except in bf16 on a GPU.
    let scale = Tensor::new(scale, table.device())?.to_dtype(table.dtype())?;
    Ok(rows.broadcast_mul(&scale)?)
}

/// Its argument in the graph is the sentinel, since the table itself is untracked.
struct Lookup {
    ids: Box<[u32]>,
    table: Param,
    scale: f32,
    width: usize,
}

impl Lookup {
    fn rows(&self) -> candle_core::Result<Vec<f32>> {
        let rows = match self.table.held() {
            Some(held) => self.ids.iter().flat_map(|&id| held.row(id as usize)).collect(),
            None => op::gather(&self.table.elements()?, &self.ids, self.width),
        };
        Ok(self.scaled(rows))
    }

    fn scaled(&self, mut rows: Vec<f32>) -> Vec<f32> {
        if self.scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= self.scale);
        }
        rows
    }
}

impl CustomOp1 for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, _sentinel: &CpuStorage, _layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        op::output(self.rows()?, (self.ids.len(), self.width))
    }

    /// Adds each row's gradient to its row of the table, in the order of the batch. The sentinel is
    /// a leaf that nobody updates, so it may go without a gradient.
    fn bwd(&self, _sentinel: &Tensor, _rows: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let grad = Elements::of(&grad)?;
        let scaled = (self.scale != 1.0).then(|| self.scaled(grad.to_vec()));
        let grad = scaled.as_deref().unwrap_or(&grad);
        self.table.accumulate(|table| op::scatter_add(table.numbers(), &self.ids, grad, self.width));
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Case, X, check},
        definitions,
        op::dims2,
    };

    #[track_caller]
    fn row(x: X, ids: &[u32], vocabulary: usize, width: usize) {
        let parameters = [("table", &[vocabulary, width][..])];
        let case = Case { op: "embedding", rows: ids.len(), width, x, parameters: &parameters };
        let op = |x: &Tensor, p: &crate::Params| {
            assert_eq!(dims2("test", "x", x)?, (ids.len(), width));
            // Only a tracked input asks for a tracked table.
            let sentinel = x.track_op().then(|| p.sentinel());
            Ok((x + embedding(ids, &p.get("table")?, sentinel)?)?)
        };
        check(&case, op, |v| {
            let looked_up = definitions::rows(&v["table"], ids, width);
            v["x"].iter().zip(looked_up).map(|(x, y)| x + y).collect()
        });
        // The root of three is no number of either dtype.
        let scale = 3f64.sqrt();
        let op = |x: &Tensor, p: &crate::Params| {
            let sentinel = x.track_op().then(|| p.sentinel());
            Ok((x + scaled_embedding(ids, &p.get("table")?, scale, sentinel)?)?)
        };
        check(&Case { op: "scaled_embedding", ..case }, op, |v| {
            let looked_up = definitions::rows(&v["table"], ids, width);
            v["x"].iter().zip(looked_up).map(|(x, y)| x + scale * y).collect()
        });
    }

    #[test]
    fn repeated_ids_add_their_gradients() {
        row(X::Normal(1.0), &[3, 0, 3, 1, 3, 0, 3], 4, 5);
        row(X::Normal(1.0), &[0], 1, 1);
        row(X::Normal(1.0), &(0..300).map(|i| i * i % 17).collect::<Vec<u32>>(), 19, 33);
        row(X::Extreme(1e4), &[2, 2, 0], 3, 7);
        row(X::Denormal, &[2, 2, 0], 3, 7);
    }

    #[test]
    fn an_id_outside_the_table_is_named() {
        let specs = vec![crate::Spec::new("table", [4, 5])];
        let params = crate::Params::zeros(specs, &Device::Cpu, Path::Fused, candle_core::DType::F32).unwrap();
        let message = embedding(&[0, 4], &params.get("table").unwrap(), None).unwrap_err().to_string();
        assert_eq!(message, "embedding: ids[1] is 4, but there are only 4");
    }
}
