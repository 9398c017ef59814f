//! The table that turns hidden states into logits, and the soft cap that may bend them.

use crate::{
    Branch, Param, Result,
    branch::{Reads, Step},
    norm::{load, store},
    op,
    simd::{Kernel, LANES, Lanes, Level},
};
use candle_core::Tensor;

/// What makes logits of hidden states: products with a table `(V, C)`, with a soft cap c bent to
/// `c tanh(product / c)` (Gemma 2, arXiv 2408.00118, section 2).
#[derive(Clone, Debug)]
pub struct Unembedding {
    /// `(V, C)`.
    pub table: Param,
    /// What no logit exceeds; above 0.
    pub softcap: Option<f32>,
}

/// Unembeds every row: `hidden (n, C)` to `(n, V)`. Meant for decoding, where the next token is drawn
/// from all of them; losses use [`crate::token_nll`] and [`crate::token_logprob`].
///
/// Errors: shapes that do not fit each other; a cap that is not positive.
pub fn logits(hidden: &Tensor, w: impl Into<Unembedding>) -> Result<Tensor> {
    let w = w.into();
    w.check("logits", op::dims2("logits", "hidden", hidden)?.1)?;
    let products = Branch::of(hidden).linear(&w.table, None)?;
    match w.softcap {
        Some(cap) => products.softcap(cap)?.alone(),
        None => products.alone(),
    }
}

/// The slope of the soft cap at each of these capped numbers.
pub(crate) fn slopes(capped: &[f32], cap: f32) -> Vec<f32> {
    let slope = |first: usize, y: &mut [f32]| {
        Level::best().run(Slopes { capped: &capped[first * WIDTH..][..y.len()], y, cap });
    };
    op::build_blocks(capped.len(), WIDTH, slope).0
}

impl Unembedding {
    /// Refuses a table that does not take hidden states of this width, or a cap that is not positive; returns V.
    pub(crate) fn check(&self, op: &'static str, width: usize) -> Result<usize> {
        let (vocabulary, _) = op::matrix(op, "w", &self.table)?;
        op::check_shape(op, "w", self.table.shape(), &[vocabulary, width])?;
        self.softcap.map_or(Ok(()), |cap| op::check_positive(op, "softcap", cap))?;
        Ok(vocabulary)
    }

    /// Bends products into logits, in place.
    pub(crate) fn cap(&self, products: &mut [f32]) {
        if let Some(cap) = self.softcap {
            op::for_each_block(products, WIDTH, |block| Level::best().run(Cap { x: block, cap }));
        }
    }

    /// [`Unembedding::cap`] from plain Candle operations.
    pub(crate) fn capped(&self, products: Tensor) -> Result<Tensor> {
        self.softcap.map_or(Ok(products.clone()), |cap| composed(&products, cap))
    }
}

impl From<&Param> for Unembedding {
    fn from(table: &Param) -> Unembedding {
        Unembedding { table: table.clone(), softcap: None }
    }
}

impl From<&Unembedding> for Unembedding {
    fn from(unembedding: &Unembedding) -> Unembedding {
        unembedding.clone()
    }
}

impl Branch {
    /// `cap tanh(x / cap)`, element by element.
    fn softcap(self, cap: f32) -> Result<Branch> {
        let (rows, width) = self.dims("softcap", "x")?;
        if self.is_fused() {
            return Ok(self.step(rows, SoftCap { cap, width }));
        }
        self.map(|x| composed(x, cap))
    }
}

fn composed(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(((x / cap)?.tanh()? * cap)?)
}

struct SoftCap {
    cap: f32,
    width: usize,
}

impl Step for SoftCap {
    fn columns(&self) -> usize {
        self.width
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        let mut y = x.to_vec();
        op::for_each_block(&mut y, WIDTH, |block| Level::best().run(Cap { x: block, cap: self.cap }));
        Ok(y)
    }

    fn backward(&self, _x: &[f32], y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let mut dx = slopes(y, self.cap);
        op::multiply(&mut dx, dy);
        Ok(dx)
    }

    fn reads(&self) -> Reads {
        Reads::Both
    }
}

/// Elements of a block where rows have no meaning.
const WIDTH: usize = 64;

struct Cap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let cap = lanes.splat(self.cap);
        for at in (0..self.x.len()).step_by(LANES) {
            store(lanes, lanes.softcap(load(lanes, self.x, at, 0.0), cap), self.x, at);
        }
    }
}

struct Slopes<'a> {
    capped: &'a [f32],
    y: &'a mut [f32],
    cap: f32,
}

impl Kernel for Slopes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let cap = lanes.splat(self.cap);
        for at in (0..self.y.len()).step_by(LANES) {
            store(lanes, lanes.softcap_slope(load(lanes, self.capped, at, 0.0), cap), self.y, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Params,
        check::{Case, X, check},
        definitions,
    };

    #[track_caller]
    fn row(x: X, rows: usize, width: usize, vocabulary: usize) {
        // A cap that bends these logits and hides few of them: where it is steep, the error of a product counts.
        let size = if let X::Extreme(size) = x { size } else { 1.0 };
        for softcap in [None, Some(2.5 * size)] {
            let parameters = [("w", &[vocabulary, width][..])];
            let op = &format!("logits of {vocabulary}, cap {softcap:?}");
            let case = Case { op, rows, width, x, parameters: &parameters };
            let op = |x: &Tensor, p: &Params| logits(x, Unembedding { table: p.get("w")?, softcap });
            check(&case, op, |v| {
                let products = definitions::linear(&v["x"], &v["w"], None, width);
                products.into_iter().map(|x| definitions::softcap(x, softcap.map(f64::from))).collect()
            });
        }
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 0, 4, 700);
        row(X::Normal(1.0), 1, 1, 1);
        row(X::Normal(1.0), 3, 4, 40);
        row(X::Normal(0.2), 65, 33, 129);
        row(X::Extreme(1e4), 7, 17, 33);
        row(X::Denormal, 7, 17, 33);
    }

    #[test]
    fn a_cap_of_zero_is_refused() {
        let cpu = &candle_core::Device::Cpu;
        let specs = vec![crate::Spec::new("w", [4, 3])];
        let params = Params::zeros(specs, cpu, crate::Path::Fused, candle_core::DType::F32).unwrap();
        let w = Unembedding { table: params.get("w").unwrap(), softcap: Some(0.0) };
        let hidden = Tensor::zeros((2, 3), candle_core::DType::F32, cpu).unwrap();
        let message = logits(&hidden, &w).unwrap_err().to_string();
        assert!(message.contains("softcap"), "{message}");
    }
}
