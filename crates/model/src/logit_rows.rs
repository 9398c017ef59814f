//! Logits, row by row, for threads that each choose a token.

use crate::Result;
use candle_core::{DType, Tensor};
use std::borrow::Cow;

/// The rows of a matrix in `f32`, for the threads of a pool.
///
/// These threads must not ask a GPU for a row: there each thread has a stream of its own, which does not
/// wait for the one that computes the matrix. Candle would also copy the whole matrix for every row.
pub(crate) enum Rows {
    /// A matrix on the CPU: a row is copied by the thread that reads it.
    OnCpu(Tensor),
    /// A matrix of another device, copied as a whole.
    Copied(Vec<Vec<f32>>),
}

impl Rows {
    /// The rows of `matrix (n, V)`. Where it is not on the CPU this waits for it, on the thread that computes it.
    pub(crate) fn of(matrix: &Tensor) -> Result<Rows> {
        if matrix.device().is_cpu() {
            return Ok(Rows::OnCpu(matrix.to_dtype(DType::F32)?));
        }
        Rows::copied(matrix)
    }

    /// The rows of `matrix (n, V)`, copied to the host at once.
    fn copied(matrix: &Tensor) -> Result<Rows> {
        Ok(Rows::Copied(matrix.to_dtype(DType::F32)?.to_vec2()?))
    }

    /// Row `i`, `(V)`.
    pub(crate) fn get(&self, i: usize) -> Result<Cow<'_, [f32]>> {
        match self {
            Rows::OnCpu(matrix) => Ok(matrix.get(i)?.to_vec1()?.into()),
            Rows::Copied(rows) => Ok(rows[i].as_slice().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copied matrix has the rows of one that is read where it lies.
    #[test]
    fn rows_are_the_same_copied_and_where_they_lie() {
        let check = |matrix: &Tensor, wanted: &[[f32; 3]]| {
            for rows in [Rows::of(matrix).unwrap(), Rows::copied(matrix).unwrap()] {
                for (i, wanted) in wanted.iter().enumerate() {
                    assert_eq!(*rows.get(i).unwrap(), *wanted, "row {i} of {matrix}");
                }
            }
        };
        let (rows, cpu) = ([[0.5f32, -1.25, 3.0], [7.0, 0.0, f32::NEG_INFINITY]], &candle_core::Device::Cpu);
        let matrix = Tensor::new(&rows, cpu).unwrap();
        assert!(matches!(Rows::of(&matrix).unwrap(), Rows::OnCpu(_)));
        check(&matrix, &rows);
        check(&matrix.to_dtype(DType::BF16).unwrap(), &rows);
        check(&matrix.narrow(0, 1, 1).unwrap(), &rows[1..]);
        check(&Tensor::new(&[[0.5f32, 7.0], [-1.25, 0.0], [3.0, f32::NEG_INFINITY]], cpu).unwrap().t().unwrap(), &rows);
    }
}
