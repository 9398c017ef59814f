//! Dropout whose mask is a function of where each row stands, not of a generator's state.

use crate::{
    Branch, Error, Result,
    branch::{Reads, Step},
    op,
};
use candle_core::{Device, Tensor};
use instruct_random::Source;

/// Where the mask of one row comes from: a source (one seed and purpose) and three coordinates, such
/// as example, token and site.
pub type DropKey = (Source, [u64; 3]);

/// Zeroes each element of `x (n, C)` with probability `p` and multiplies the others by
/// `1 / (1 - p)` (Srivastava et al. 2014, in the inverted form): the same shape.
///
/// Row `i` draws its mask, channel by channel, from `keys[i]`, so that it does not depend on what
/// else is in the batch. `p` counts in steps of 2^-16, and the multiplier follows the step. `p = 0`
/// is the identity.
///
/// Errors: `p` outside `[0, 1)`; not one key per row.
pub fn dropout(x: &Tensor, p: f32, keys: &[DropKey]) -> Result<Tensor> {
    Branch::of(x).dropout(p, keys)?.alone()
}

impl Branch {
    /// [`dropout()`].
    pub fn dropout(self, p: f32, keys: &[DropKey]) -> Result<Branch> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::Value { op: "dropout", argument: "p", expected: "in [0, 1)", got: f64::from(p) });
        }
        if p == 0.0 {
            return Ok(self);
        }
        let (n, width) = self.dims("dropout", "x")?;
        op::check_shape("dropout", "keys", &[keys.len()], &[n])?;
        let mask = Mask::new(p, keys, width);
        if self.is_fused() { Ok(self.step(n, mask)) } else { self.map(|x| composed(x, &mask)) }
    }
}

fn composed(x: &Tensor, mask: &Mask) -> Result<Tensor> {
    let scales = mask.applied_to(&vec![1.0; x.elem_count()]);
    Ok((x * Tensor::from_vec(scales, x.shape(), &Device::Cpu)?.to_device(x.device())?.to_dtype(x.dtype())?)?)
}

struct Mask {
    keys: Box<[DropKey]>,
    width: usize,
    /// A draw of 16 bits below this drops its element.
    threshold: u32,
    scale: f32,
}

impl Mask {
    fn new(p: f32, keys: &[DropKey], width: usize) -> Mask {
        // At least one draw in 65,536 must keep its element, or the multiplier would be infinite.
        let threshold = (p * 65536.0).round().min(65535.0);
        Mask { keys: keys.into(), width, threshold: threshold as u32, scale: 65536.0 / (65536.0 - threshold) }
    }

    /// `x` times the mask: forward and backward alike.
    fn applied_to(&self, x: &[f32]) -> Vec<f32> {
        let (y, _) = op::build_blocks(x.len(), self.width, |first, y| {
            let mut draws = vec![0; self.width.div_ceil(2)];
            let rows = y.chunks_exact_mut(self.width).zip(x[first * self.width..].chunks_exact(self.width));
            for ((y, x), (source, at)) in rows.zip(&self.keys[first..]) {
                source.at(*at).fill(&mut draws);
                // Half a draw decides a channel, because drawing takes most of the time here.
                for ((y, x), draw) in y.chunks_mut(2).zip(x.chunks(2)).zip(&draws) {
                    let halves = [draw & 0xFFFF, draw >> 16];
                    for ((y, x), half) in y.iter_mut().zip(x).zip(halves) {
                        *y = if half < self.threshold { 0.0 } else { x * self.scale };
                    }
                }
            }
        });
        y
    }
}

impl Step for Mask {
    fn columns(&self) -> usize {
        self.width
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        Ok(self.applied_to(x))
    }

    /// The mask is drawn a second time, which is cheaper than keeping it for every layer.
    fn backward(&self, _x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        Ok(self.applied_to(dy))
    }

    fn reads(&self) -> Reads {
        Reads::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Case, X, check, numbers};
    use candle_core::DType;

    fn keys(rows: std::ops::Range<u64>) -> Vec<DropKey> {
        rows.map(|row| (Source::new(3, "dropout"), [row, 1, 2])).collect()
    }

    /// Two channels share a draw of 32 bits, the even one its lower half.
    fn definition(x: &[f64], width: usize, p: f64) -> Vec<f64> {
        let steps = (p * 65536.0).round();
        let rows = x.chunks(width).zip(keys(0..x.len() as u64));
        let row = |(x, (source, at)): (&[f64], DropKey)| {
            let mut draws = source.at(at);
            let halves: Vec<u32> = (0..width).map(|_| draws.u32()).flat_map(|u| [u % 65536, u / 65536]).collect();
            let kept = |half: u32| if f64::from(half) < steps { 0.0 } else { 65536.0 / (65536.0 - steps) };
            x.iter().zip(halves).map(|(x, half)| x * kept(half)).collect::<Vec<f64>>()
        };
        rows.flat_map(row).collect()
    }

    #[track_caller]
    fn row(x: X, rows: usize, width: usize, p: f32) {
        let case = Case { op: &format!("dropout of {p}"), rows, width, x, parameters: &[] };
        check(&case, |x, _| dropout(x, p, &keys(0..rows as u64)), |v| definition(&v["x"], width, f64::from(p)));
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1, 0.5);
        row(X::Normal(1.0), 3, 17, 0.2);
        row(X::Normal(1.0), 130, 5, 0.9);
        row(X::Normal(1.0), 4, 4, 0.0);
        row(X::Extreme(1e4), 5, 13, 0.1);
        row(X::Denormal, 5, 13, 0.1);
    }

    #[test]
    fn a_row_keeps_its_mask_in_any_company() {
        let x = Tensor::ones((100, 64), DType::F32, &Device::Cpu).unwrap();
        let whole = numbers(&dropout(&x, 0.3, &keys(0..100)).unwrap());
        let part = numbers(&dropout(&x.narrow(0, 0, 7).unwrap(), 0.3, &keys(70..77)).unwrap());
        assert_eq!(part, whole[70 * 64..77 * 64]);
        // Four standard errors of the mean of 6,400 draws that are 0 or 1 / 0.7.
        let mean = whole.iter().sum::<f32>() / 6400.0;
        assert!((mean - 1.0).abs() < 4.0 * (0.3f32 / 0.7).sqrt() / 80.0, "{mean}");
    }

    #[test]
    fn a_probability_of_one_is_refused() {
        let x = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
        let message = dropout(&x, 1.0, &keys(0..1)).unwrap_err().to_string();
        assert_eq!(message, "dropout: p must be in [0, 1), got 1");
    }
}
