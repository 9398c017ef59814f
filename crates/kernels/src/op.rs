//! What every fused operation needs: its inputs as slices, its place in the graph, blocks of rows.

use crate::{Error, Param, Result};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Storage, StorageRef, Tensor};
use rayon::prelude::*;
use std::{
    mem::MaybeUninit,
    ops::{Deref, Range},
};

/// Rows per block. Sums over rows are taken per block and then over blocks in order, so that they
/// do not depend on how many threads there are.
pub(crate) const ROWS: usize = 64;

/// The elements of a contiguous `f32` tensor on the CPU, borrowed for as long as this lives.
pub(crate) struct Elements<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Elements<'_> {
    pub(crate) fn of(tensor: &Tensor) -> candle_core::Result<Elements<'_>> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = match &*storage {
            Storage::Cpu(cpu) => contiguous(cpu, layout)?,
            _ => candle_core::bail!("a fused operation needs its tensors on the CPU"),
        };
        Ok(Elements { storage, range })
    }
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(elements)) => &elements[self.range.clone()],
            _ => unreachable!("checked when it was borrowed"),
        }
    }
}

/// The elements that a fused forward pass receives.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let range = contiguous(storage, layout)?;
    Ok(&storage.as_slice::<f32>()?[range])
}

fn contiguous(storage: &CpuStorage, layout: &Layout) -> candle_core::Result<Range<usize>> {
    storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a fused operation needs its tensors contiguous"),
    }
}

/// Whether an operation without parameters runs fused on `x`.
pub(crate) fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Applies a fused operation, recording it only when its input is tracked.
pub(crate) fn apply<O: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: O) -> Result<Tensor> {
    let x = x.contiguous()?;
    Ok(if x.track_op() { x.apply_op1(op)? } else { x.apply_op1_no_bwd(&op)? })
}

/// The result of a fused forward pass.
pub(crate) fn output(elements: Vec<f32>, shape: impl Into<Shape>) -> candle_core::Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(elements), shape.into()))
}

/// The result of a fused backward pass: a gradient of the shape of `like`.
pub(crate) fn gradient(elements: Vec<f32>, like: &Tensor) -> candle_core::Result<Option<Tensor>> {
    Tensor::from_vec(elements, like.shape(), &Device::Cpu).map(Some)
}

/// Computes `len` elements, in rows of `width`, in parallel: `f(first row, rows)` writes a block of
/// at most [`ROWS`] rows, which is zero before. Also returns what `f` returned, block by block.
pub(crate) fn build_blocks<R: Send>(
    len: usize,
    width: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync + Send,
) -> (Vec<f32>, Vec<R>) {
    let mut out = Vec::with_capacity(len);
    let blocks = out.spare_capacity_mut()[..len].par_chunks_mut((ROWS * width).max(1)).enumerate();
    // Each block is made zero by the thread that writes it, so that it is in that thread's cache by then.
    let results = blocks.map(|(i, rows)| f(i * ROWS, zeroed(rows))).collect();
    // SAFETY: the blocks are all of the first `len` elements, and each was filled.
    #[allow(unsafe_code)]
    unsafe {
        out.set_len(len)
    };
    (out, results)
}

/// Applies `f` to blocks of a multiple of `width` elements, in parallel.
pub(crate) fn for_each_block(x: &mut [f32], width: usize, f: impl Fn(&mut [f32]) + Sync + Send) {
    x.par_chunks_mut((ROWS * width).max(1)).for_each(f);
}

/// `x *= y`, element by element, in parallel. An empty `y` leaves `x` as it is.
pub(crate) fn multiply(x: &mut [f32], y: &[f32]) {
    const LEN: usize = 1 << 14;
    let blocks = x.par_chunks_mut(LEN).zip(y.par_chunks(LEN));
    blocks.for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

/// The same memory, filled with zeros.
fn zeroed(x: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    x.fill(MaybeUninit::new(0.0));
    // SAFETY: every element was just written.
    #[allow(unsafe_code)]
    unsafe {
        x.assume_init_mut()
    }
}

/// `len` zeros, written in parallel.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    build_blocks(len, 256, |_, _| ()).0
}

/// Adds up the rows of `x (n, width)`: `(width)`.
pub(crate) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = x.par_chunks((ROWS * width).max(1)).map(|rows| serial_sums(rows, width)).collect();
    serial_sums(&blocks.concat(), width)
}

fn serial_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    rows.chunks_exact(width.max(1)).for_each(|row| add(&mut sums, row));
    sums
}

/// `sum += x`, element by element.
pub(crate) fn add(sum: &mut [f32], x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}

/// The two dimensions of `x`, or an error that names the operation and the argument.
pub(crate) fn dims2(op: &'static str, argument: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    matrix_dims(op, argument, x.dims())
}

/// The two dimensions of a parameter, or an error that names the operation and the argument.
pub(crate) fn matrix(op: &'static str, argument: &'static str, w: &Param) -> Result<(usize, usize)> {
    matrix_dims(op, argument, w.shape())
}

/// Two dimensions with columns, or an error that names the operation and the argument.
pub(crate) fn matrix_dims(op: &'static str, argument: &'static str, dims: &[usize]) -> Result<(usize, usize)> {
    match *dims {
        [n, width] if width > 0 => Ok((n, width)),
        ref got => Err(Error::Shape { op, argument, expected: "a matrix with columns".to_owned(), got: got.to_vec() }),
    }
}

/// Refuses a shape other than `expected`.
pub(crate) fn check_shape(op: &'static str, argument: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Shape { op, argument, expected: format!("{expected:?}"), got: got.to_vec() })
}

/// Refuses an index that is not below `bound`.
pub(crate) fn check_indices(op: &'static str, argument: &'static str, indices: &[u32], bound: usize) -> Result<()> {
    match indices.iter().position(|&index| index as usize >= bound) {
        Some(at) => Err(Error::Index { op, argument, at, index: indices[at], bound }),
        None => Ok(()),
    }
}

/// The rows of `x (n, width)` that `rows (M)` names: `(M, width)`.
pub(crate) fn gather(x: &[f32], rows: &[u32], width: usize) -> Vec<f32> {
    let mut picked = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        picked.extend_from_slice(&x[row as usize * width..][..width]);
    }
    picked
}

/// `sum[rows[m]] += x[m]`, in the order of m.
pub(crate) fn scatter_add(sum: &mut [f32], rows: &[u32], x: &[f32], width: usize) {
    for (&row, x) in rows.iter().zip(x.chunks_exact(width.max(1))) {
        add(&mut sum[row as usize * width..][..width], x);
    }
}

/// Refuses a number that is not positive and finite.
pub(crate) fn check_positive(op: &'static str, argument: &'static str, got: f32) -> Result<()> {
    if got > 0.0 && got.is_finite() {
        return Ok(());
    }
    Err(Error::Value { op, argument, expected: "positive and finite", got: f64::from(got) })
}
