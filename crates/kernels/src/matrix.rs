//! A matrix over a slice, as the factor of a product.

/// A matrix of rows that lie side by side or apart, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) elements: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `(rows, columns)` in row-major order, over a slice of exactly that many elements.
    pub(crate) fn new(elements: &'a [f32], rows: usize, columns: usize) -> Matrix<'a> {
        Matrix::apart(elements, rows, columns, columns)
    }

    /// `(rows, columns)`, where each row begins `stride` after the one before: `(rows, stride)` elements.
    pub(crate) fn apart(elements: &'a [f32], rows: usize, columns: usize, stride: usize) -> Matrix<'a> {
        assert!(columns <= stride && elements.len() == rows * stride, "a {rows} x {columns} matrix, {stride} apart");
        Matrix { elements, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Matrix<'a> {
        let Matrix { elements, rows, columns, row_stride, column_stride } = self;
        Matrix { elements, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// A row of a matrix that is not transposed; empty past the last.
    pub(crate) fn row(self, row: usize) -> &'a [f32] {
        debug_assert_eq!(self.column_stride, 1, "the rows of a transpose do not lie in one piece");
        if row < self.rows { &self.elements[row * self.row_stride..][..self.columns] } else { &[] }
    }
}
