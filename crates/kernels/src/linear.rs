//! The linear layer, whose every row is the same whatever rows stand beside it.

use crate::{
    Branch, Param, Path, Result,
    branch::{Reads, Step},
    matrix::Matrix,
    op,
    weights::Weights,
    wide::add_vector,
};
use candle_core::Tensor;

/// `x Wᵀ + b`: `x (n, in)`, `w (out, in)`, `b (out)` to `(n, out)`.
///
/// On the fused path a row of the result has the same bits whatever `n` is and whatever the other
/// rows hold: what is decoded one token at a time is what the training forward computes.
///
/// Errors: shapes that do not fit each other.
pub fn linear(x: &Tensor, w: &Param, b: Option<&Param>) -> Result<Tensor> {
    Branch::of(x).linear(w, b)?.alone()
}

impl Branch {
    /// [`linear()`].
    pub fn linear(self, w: &Param, b: Option<&Param>) -> Result<Branch> {
        let (rows, input) = self.dims("linear", "x")?;
        let output = w.shape().first().copied().unwrap_or(0);
        op::check_shape("linear", "w", w.shape(), &[output, input])?;
        if let Some(b) = b {
            op::check_shape("linear", "b", b.shape(), &[output])?;
        }
        match w.path() {
            Path::Fused => Ok(self.step(rows, Linear { w: w.clone(), b: b.cloned(), input, output })),
            Path::Composed => self.map(|x| composed(x, w, b)),
        }
    }
}

fn composed(x: &Tensor, w: &Param, b: Option<&Param>) -> Result<Tensor> {
    let tracked = x.track_op();
    let product = x.matmul(&w.value(tracked)?.t()?)?;
    match b {
        Some(b) => add_vector(&product, b.value(tracked)?),
        None => Ok(product),
    }
}

struct Linear {
    w: Param,
    b: Option<Param>,
    input: usize,
    output: usize,
}

impl Step for Linear {
    fn columns(&self) -> usize {
        self.output
    }

    fn forward(&self, x: &[f32], _keep: bool) -> candle_core::Result<Vec<f32>> {
        let b = self.b.as_ref().map(Param::elements).transpose()?;
        Ok(Weights::of(&self.w, x.len() / self.input)?.forward(x, b.as_deref()))
    }

    fn backward(&self, x: &[f32], _y: &[f32], dy: &[f32]) -> candle_core::Result<Vec<f32>> {
        let Linear { w, b, input, output } = self;
        let rows = x.len() / input;
        let (weights, gradient) = (Weights::of(w, rows)?, Matrix::new(dy, rows, *output));
        w.accumulate(|dw| weights.add_gradient(dw, gradient, x));
        if let Some(b) = b {
            let sums = op::column_sums(dy, *output);
            b.accumulate(|db| op::add(db.numbers(), &sums));
        }
        weights.backward(gradient)
    }

    fn reads(&self) -> Reads {
        Reads::Input
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
    fn row(x: X, rows: usize, input: usize, output: usize) {
        let parameters = [("w", &[output, input][..]), ("b", &[output])];
        let op = &format!("linear to {output}");
        let case = Case { op, rows, width: input, x, parameters: &parameters };
        let biased = |x: &Tensor, p: &crate::Params| linear(x, &p.get("w")?, Some(&p.get("b")?));
        check(&case, biased, |v| definitions::linear(&v["x"], &v["w"], Some(&v["b"]), input));
        let op = &format!("linear to {output} without a bias");
        let case = Case { op, parameters: &parameters[..1], ..case };
        check(&case, |x, p| linear(x, &p.get("w")?, None), |v| definitions::linear(&v["x"], &v["w"], None, input));
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 0, 4, 700);
        row(X::Normal(1.0), 1, 1, 1);
        row(X::Normal(1.0), 1, 5, 3);
        row(X::Normal(1.0), 3, 4, 40);
        row(X::Normal(1.0), 7, 17, 33);
        row(X::Normal(1.0), 8, 16, 64);
        row(X::Normal(1.0), 65, 33, 129);
        row(X::Normal(1.0), 200, 600, 31);
        row(X::Normal(1.0), 130, 48, 1);
        row(X::Extreme(1e4), 7, 17, 33);
        row(X::Denormal, 7, 17, 33);
        row(X::Denormal, 9, 5, 3);
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let case = [crate::Spec::new("w", [4, 3]), crate::Spec::new("b", [5])];
        let cpu = &candle_core::Device::Cpu;
        let params = crate::Params::zeros(case.to_vec(), cpu, Path::Fused, candle_core::DType::F32).unwrap();
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, cpu).unwrap();
        let (w, b) = (params.get("w").unwrap(), params.get("b").unwrap());
        let message = linear(&x, &w, Some(&b)).unwrap_err().to_string();
        assert_eq!(message, "linear: b must be [4], got [5]");
        let message = linear(&x.t().unwrap(), &w, None).unwrap_err().to_string();
        assert_eq!(message, "linear: w must be [4, 2], got [4, 3]");
    }
}
