//! Log-probabilities of given tokens, without the logits of a whole batch ever being held.
//!
//! The head is the largest product of a small model: its logits, kept for the backward pass, would
//! outweigh everything else. Here predictions go through it in chunks, whose logits are turned into
//! log-probabilities (and, where the loss is known, into gradients), and are gone.

use crate::{
    Params, Path, Result, Unembedding,
    matrix::Matrix,
    norm::{load, store},
    op::{self, Elements},
    simd::{Kernel, LANES, Lanes, Level},
    unembedding,
    weights::Weights,
    wide::{select_rows, wide},
};
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

/// For each prediction m, the log-probability of `targets[m]` under
/// `softmax(hidden[rows[m]] Wᵀ / temperature)` and the entropy of that distribution.
///
/// `hidden (N, C)`, `w (V, C)`, `rows` and `targets (M)`; the result is `(M, 2)`: column 0 the
/// log-probability, column 1 the entropy, both in nats. The gradient flows through column 0 only:
/// the entropy is reported, not optimised (Ouyang et al. 2022 have no entropy bonus). Several
/// predictions may read one row.
///
/// W is an [`Unembedding`], whose cap, if it has one, bends the products before the temperature divides them.
///
/// Errors: shapes that do not fit each other; an index out of range; a temperature or a cap that is not
/// positive.
pub fn token_logprob(
    hidden: &Tensor,
    w: impl Into<Unembedding>,
    rows: &[u32],
    targets: &[u32],
    temperature: f32,
) -> Result<Tensor> {
    let head = Head::new("token_logprob", hidden, w.into(), rows, targets, temperature)?;
    match head.w.table.path() {
        Path::Fused => op::apply(hidden, TokenLogprob(head)),
        Path::Composed => head.composed(hidden),
    }
}

/// `sum over m of weights[m] * -log p(targets[m])` under `softmax(hidden[rows[m]] Wᵀ)`: a scalar.
///
/// `hidden (N, C)`, `w (V, C)`; `rows`, `targets` and `weights (M)`. Where this is the whole loss,
/// [`token_nll_backward`] spares a quarter of the head's work.
///
/// Errors: shapes that do not fit each other; an index out of range.
pub fn token_nll(
    hidden: &Tensor,
    w: impl Into<Unembedding>,
    rows: &[u32],
    targets: &[u32],
    weights: &[f32],
) -> Result<Tensor> {
    let head = Head::new("token_nll", hidden, w.into(), rows, targets, 1.0)?;
    op::check_shape("token_nll", "weights", &[weights.len()], &[rows.len()])?;
    if head.w.table.path() == Path::Fused {
        return op::apply(hidden, TokenNll { head, weights: weights.into() });
    }
    let log_probabilities = head.composed(hidden)?.narrow(1, 0, 1)?.squeeze(1)?;
    let weights = Tensor::new(weights, hidden.device())?.to_dtype(log_probabilities.dtype())?;
    Ok((log_probabilities * weights)?.sum_all()?.neg()?)
}

/// [`token_nll`] and the backward pass from it in one call: adds every gradient to those of `params`, of
/// which the table of `w` is one, and returns the loss.
///
/// The slope at the end of a graph is known to be 1, so a chunk of logits turns into gradients at once, and the
/// table's are added where they belong. (If the loss were a tensor that somebody may yet scale, they would have to be
/// computed later from new logits, or wait in a second buffer of the table's size, 154 MB for GPT-2.)
///
/// Where `hidden` is not tracked everything is inference: this returns the loss and adds no gradient.
///
/// Errors: those of [`token_nll`]; a table held in bf16 alone.
pub fn token_nll_backward(
    params: &Params,
    hidden: &Tensor,
    w: impl Into<Unembedding>,
    rows: &[u32],
    targets: &[u32],
    weights: &[f32],
) -> Result<f32> {
    let w = w.into();
    if w.table.path() == Path::Composed || !hidden.track_op() {
        let loss = token_nll(hidden, w, rows, targets, weights)?;
        params.backward(&loss)?;
        return Ok(loss.to_dtype(DType::F32)?.to_scalar()?);
    }
    let head = Head::new("token_nll", hidden, w, rows, targets, 1.0)?;
    op::check_shape("token_nll", "weights", &[weights.len()], &[rows.len()])?;
    let (dhidden, logprobs) = head.gradient(&Elements::of(hidden)?, |m| weights[m])?;
    params.backward(&op::apply(hidden, Slope(dhidden))?)?;
    Ok(weighted(weights, &logprobs))
}

/// `softmax(logits / temperature)` of one row, by the arithmetic of [`token_logprob`]: a sampler that
/// records what it drew with this records the very bits that training will recompute.
#[derive(Clone, Debug)]
pub struct RowSoftmax {
    numerators: Vec<f32>,
    sums: LogitSums,
    scale: f32,
}

impl RowSoftmax {
    /// The softmax of `logits (V)`; the temperature is above 0.
    pub fn new(logits: &[f32], temperature: f32) -> RowSoftmax {
        let (mut numerators, scale) = (logits.to_vec(), 1.0 / temperature);
        let sums = Level::best().run(ExponentiateLogits { row: &mut numerators, scale });
        RowSoftmax { numerators, sums, scale }
    }

    /// Probabilities times one common factor, `exp((logit - greatest) / temperature)`: `(V)`.
    pub fn numerators(&self) -> &[f32] {
        &self.numerators
    }

    /// Log-probability of the token with this logit, in nats.
    pub fn logprob(&self, logit: f32) -> f32 {
        self.sums.logprob(logit, self.scale)
    }

    /// Entropy of the distribution, in nats.
    pub fn entropy(&self) -> f32 {
        self.sums.entropy()
    }
}

/// Predictions per chunk: enough for the products to run at full speed, few enough that the logits of a vocabulary of
/// 2,048 words take 2 MiB and those of GPT-2's 25 MiB. Every chunk reads the table twice, or three times where its
/// logits are computed again, and reads and writes the table's gradient. In bf16, where products take little time, that
/// is most of the work, and larger chunks are worth their 100 MiB.
pub(crate) fn chunk(vocabulary: usize, precision: DType) -> usize {
    match precision {
        _ if vocabulary <= 1 << 14 => 256,
        DType::BF16 => 512,
        _ => 128,
    }
}

/// The unembedding, and what is asked of it.
struct Head {
    w: Unembedding,
    rows: Box<[u32]>,
    targets: Box<[u32]>,
    /// One over the temperature.
    scale: f32,
    width: usize,
    vocabulary: usize,
}

/// One chunk of predictions, its hidden rows gathered.
struct Chunk {
    first: usize,
    hidden: Vec<f32>,
    /// Rows of the vocabulary, [`Weights::stride`] apart.
    logits: Vec<f32>,
    stride: usize,
}

impl Head {
    fn new(
        op: &'static str,
        hidden: &Tensor,
        w: Unembedding,
        rows: &[u32],
        targets: &[u32],
        temperature: f32,
    ) -> Result<Head> {
        let (n, width) = op::dims2(op, "hidden", hidden)?;
        let vocabulary = w.check(op, width)?;
        op::check_shape(op, "targets", &[targets.len()], &[rows.len()])?;
        op::check_indices(op, "rows", rows, n)?;
        op::check_indices(op, "targets", targets, vocabulary)?;
        op::check_positive(op, "temperature", temperature)?;
        let (rows, targets) = (rows.into(), targets.into());
        Ok(Head { w, rows, targets, scale: 1.0 / temperature, width, vocabulary })
    }

    /// [`token_logprob`] from plain Candle operations.
    fn composed(&self, hidden: &Tensor) -> Result<Tensor> {
        let device = hidden.device();
        let picked = select_rows(hidden, Tensor::new(&*self.rows, device)?, hidden.dtype())?;
        let logits = picked.matmul(&self.w.table.value(hidden.track_op())?.t()?)?;
        let logits = self.w.capped(logits.to_dtype(wide(logits.dtype()))?)?;
        // The greatest comes off before the temperature rounds what is large.
        let greatest = logits.detach().max_keepdim(D::Minus1)?;
        let logits = (logits.broadcast_sub(&greatest)? * f64::from(self.scale))?;
        let log_probabilities = logits.broadcast_sub(&logits.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
        let targets = Tensor::new(&*self.targets, device)?.unsqueeze(1)?;
        let detached = log_probabilities.detach();
        let entropy = (detached.exp()? * &detached)?.sum_keepdim(1)?.neg()?;
        Ok(Tensor::cat(&[log_probabilities.gather(&targets, 1)?, entropy], 1)?)
    }

    /// Goes through the predictions chunk by chunk, first to last.
    fn for_each_chunk(
        &self,
        hidden: &[f32],
        w: &Weights,
        mut f: impl FnMut(Chunk) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let most = chunk(self.vocabulary, w.precision());
        for (i, rows) in self.rows.chunks(most).enumerate() {
            let hidden = op::gather(hidden, rows, self.width);
            let mut logits = w.logits(&hidden);
            self.w.cap(&mut logits);
            f(Chunk { first: i * most, hidden, logits, stride: w.stride() })?;
        }
        Ok(())
    }

    /// Turns the logits of a chunk into softmax numerators and returns, for each prediction,
    /// `f(prediction, numerators, sums, log-probability)`.
    fn softmax<R: Send>(&self, chunk: &mut Chunk, f: impl Fn(usize, &mut [f32], LogitSums, f32) -> R + Sync) -> Vec<R> {
        let rows = chunk.logits.par_chunks_exact_mut(chunk.stride).enumerate();
        rows.map(|(i, row)| {
            let (m, row) = (chunk.first + i, &mut row[..self.vocabulary]);
            let logit = row[self.targets[m] as usize];
            let sums = Level::best().run(ExponentiateLogits { row, scale: self.scale });
            f(m, row, sums, sums.logprob(logit, self.scale))
        })
        .collect()
    }

    /// Turns softmax numerators into `slope * d(-log-probability) / d(logits)`, that is
    /// `slope * scale * (softmax - onehot(target))`.
    fn differentiate(&self, m: usize, row: &mut [f32], sums: LogitSums, slope: f32) {
        let slope = slope * self.scale;
        Level::best().run(Scale { row, factor: slope / sums.sum });
        row[self.targets[m] as usize] -= slope;
    }

    /// The slopes of the logits' cap, row by row as they stand; empty without a cap. The softmax takes the place of
    /// the logits, and these cannot be had from it.
    fn cap_slopes(&self, logits: &[f32]) -> Vec<f32> {
        self.w.softcap.map_or(Vec::new(), |cap| unembedding::slopes(logits, cap))
    }

    /// Log-probability and entropy of each prediction.
    fn logprobs(&self, hidden: &[f32]) -> candle_core::Result<Vec<[f32; 2]>> {
        let w = self.weights()?;
        let mut out = Vec::with_capacity(self.rows.len());
        self.for_each_chunk(hidden, &w, |mut chunk| {
            out.extend(self.softmax(&mut chunk, |_, _, sums, logprob| [logprob, sums.entropy()]));
            Ok(())
        })?;
        Ok(out)
    }

    /// The gradient of `sum over m of slope(m) * -log p(targets[m])`: adds the table's, and returns that of
    /// the hidden states, `(N, C)`, beside the log-probabilities.
    fn gradient(
        &self,
        hidden: &[f32],
        slope: impl Fn(usize) -> f32 + Sync,
    ) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        let w = self.weights()?;
        let (mut dhidden, mut logprobs) = (op::zeros(hidden.len()), Vec::with_capacity(self.rows.len()));
        let accumulated = self.w.table.accumulate(|dw| {
            self.for_each_chunk(hidden, &w, |mut chunk| {
                let bends = self.cap_slopes(&chunk.logits);
                logprobs.extend(self.softmax(&mut chunk, |m, row, sums, logprob| {
                    self.differentiate(m, row, sums, slope(m));
                    logprob
                }));
                op::multiply(&mut chunk.logits, &bends);
                let rows = &self.rows[chunk.first..][..chunk.hidden.len() / self.width];
                let gradients = Matrix::apart(&chunk.logits, rows.len(), self.vocabulary, chunk.stride);
                op::scatter_add(&mut dhidden, rows, &w.backward(gradients)?, self.width);
                w.add_gradient(dw, gradients, &chunk.hidden);
                Ok(())
            })
        });
        accumulated.ok_or_else(|| candle_core::Error::msg("weights held in bf16 are for inference"))??;
        Ok((dhidden, logprobs))
    }

    fn weights(&self) -> candle_core::Result<Weights<'_>> {
        Weights::of(&self.w.table, self.rows.len())
    }
}

struct TokenLogprob(Head);

impl CustomOp1 for TokenLogprob {
    fn name(&self) -> &'static str {
        "token-logprob"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let pairs = self.0.logprobs(op::elements(hidden, layout)?)?;
        op::output(pairs.into_flattened(), (self.0.rows.len(), 2))
    }

    /// Computes the logits again, because keeping them for every prediction is what this avoids. (Those of a
    /// single chunk could be kept. That was tried: a minibatch of PPO on the shape of GPT-2 was not visibly faster, and
    /// the allocator held 400 MB more, because the gaps between its allocations lay elsewhere.)
    fn bwd(&self, hidden: &Tensor, _out: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let grad = Elements::of(&grad)?;
        let (grad, _): (&[[f32; 2]], _) = grad.as_chunks();
        let (dhidden, _) = self.0.gradient(&Elements::of(hidden)?, |m| -grad[m][0])?;
        op::gradient(dhidden, hidden)
    }
}

struct TokenNll {
    head: Head,
    weights: Box<[f32]>,
}

impl CustomOp1 for TokenNll {
    fn name(&self) -> &'static str {
        "token-nll"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let pairs = self.head.logprobs(op::elements(hidden, layout)?)?;
        let logprobs: Vec<f32> = pairs.into_iter().map(|[logprob, _]| logprob).collect();
        op::output(vec![weighted(&self.weights, &logprobs)], ())
    }

    fn bwd(&self, hidden: &Tensor, _loss: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let slope = grad.to_scalar::<f32>()?;
        let (dhidden, _) = self.head.gradient(&Elements::of(hidden)?, |m| slope * self.weights[m])?;
        op::gradient(dhidden, hidden)
    }
}

/// `- sum of weight * log-probability`, in double precision, so that the loss does not depend on how many
/// predictions share it.
fn weighted(weights: &[f32], logprobs: &[f32]) -> f32 {
    let products = weights.iter().zip(logprobs).map(|(weight, logprob)| f64::from(*weight) * f64::from(*logprob));
    -products.sum::<f64>() as f32
}

/// The end of a graph whose gradient is known already: a scalar, always 0, with this slope.
struct Slope(Vec<f32>);

impl CustomOp1 for Slope {
    fn name(&self) -> &'static str {
        "slope"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        op::output(vec![0.0], ())
    }

    fn bwd(&self, x: &Tensor, _zero: &Tensor, _one: &Tensor) -> candle_core::Result<Option<Tensor>> {
        op::gradient(self.0.clone(), x)
    }
}

/// What a pass over a row of logits z leaves, with s the scale: the greatest z, the sum of
/// `exp(s (z - greatest))`, and the sum of that times `s (z - greatest)`.
#[derive(Clone, Copy, Debug)]
struct LogitSums {
    greatest: f32,
    sum: f32,
    weighted: f32,
}

impl LogitSums {
    /// Exact for logits of any size, since the greatest is taken off before anything is rounded.
    fn logprob(self, logit: f32, scale: f32) -> f32 {
        (logit - self.greatest) * scale - self.sum.ln()
    }

    /// `- sum p log p = log(sum) - weighted / sum`.
    fn entropy(self) -> f32 {
        self.sum.ln() - self.weighted / self.sum
    }
}

/// Replaces a row of logits by `exp(s (z - greatest))`.
struct ExponentiateLogits<'a> {
    row: &'a mut [f32],
    scale: f32,
}

impl Kernel for ExponentiateLogits<'_> {
    type Output = LogitSums;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> LogitSums {
        let ExponentiateLogits { row, scale } = self;
        let scale = lanes.splat(scale);
        let mut greatest = lanes.splat(f32::NEG_INFINITY);
        for at in (0..row.len()).step_by(LANES) {
            greatest = lanes.max(greatest, load(lanes, row, at, f32::NEG_INFINITY));
        }
        let greatest = lanes.greatest(greatest);
        let (mut sum, mut weighted) = (lanes.splat(0.0), lanes.splat(0.0));
        for at in (0..row.len()).step_by(LANES) {
            // Scaled only now: at 1e4 a scaled logit is rounded to a thousandth, the difference is exact.
            let z = lanes.sub(load(lanes, row, at, f32::NEG_INFINITY), lanes.splat(greatest));
            // Below -1000 the exponential is 0, and minus infinity times it would not be a number.
            let z = lanes.max(lanes.splat(-1000.0), lanes.mul(z, scale));
            let e = lanes.exp(z);
            sum = lanes.add(sum, e);
            weighted = lanes.mul_add(e, z, weighted);
            store(lanes, e, row, at);
        }
        LogitSums { greatest, sum: lanes.sum(sum), weighted: lanes.sum(weighted) }
    }
}

/// Multiplies a row.
struct Scale<'a> {
    row: &'a mut [f32],
    factor: f32,
}

impl Kernel for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let factor = lanes.splat(self.factor);
        for at in (0..self.row.len()).step_by(LANES) {
            store(lanes, lanes.mul(load(lanes, self.row, at, 0.0), factor), self.row, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Params, Spec,
        check::{Case, X, check, normals, numbers},
        definitions, logits,
    };
    use candle_core::{DType, Device};
    use instruct_claims::{holds, relative};
    use instruct_random::Source;

    #[track_caller]
    fn row(x: X, rows: usize, width: usize, vocabulary: usize, predictions: usize) {
        // A cap that bends ordinary logits, and none. Differences over the largest table take long.
        for softcap in [None, Some(1.5)].into_iter().take(if vocabulary < 1000 { 2 } else { 1 }) {
            row_with_cap(x, rows, width, vocabulary, predictions, softcap);
        }
    }

    #[track_caller]
    fn row_with_cap(x: X, rows: usize, width: usize, vocabulary: usize, predictions: usize, softcap: Option<f32>) {
        let cap = softcap.map(f64::from);
        let capped = |p: &Params| Ok::<_, crate::Error>(Unembedding { table: p.get("w")?, softcap });
        let mut draws = Source::new(5, "predictions").at([predictions as u64]);
        let mut below = |n: usize| (0..predictions).map(|_| draws.below(n as u64) as u32).collect::<Vec<u32>>();
        let (picked, targets) = (below(rows), below(vocabulary));
        let weights = normals("weights", predictions);
        let sizes = format!("of {vocabulary}, {predictions} predictions, cap {softcap:?}");
        let shape = [vocabulary, width];
        let parameters = [("w", &shape[..])];
        let op = &format!("token_nll {sizes}");
        let case = Case { op, rows, width, x, parameters: &parameters };
        check(
            &case,
            |x, p| token_nll(x, capped(p)?, &picked, &targets, &weights),
            |v| {
                let logprobs = definitions::logprobs((&v["x"], &v["w"], cap), width, &picked, &targets, 1.0);
                vec![-logprobs.iter().zip(&weights).map(|(l, w)| l * f64::from(*w)).sum::<f64>()]
            },
        );
        for temperature in [1.0, 0.7] {
            let op = &format!("token_logprob {sizes}, temperature {temperature}");
            check(
                &Case { op, ..case },
                // Differences would see the entropy, whose gradient is deliberately missing.
                |x, p| Ok(token_logprob(x, capped(p)?, &picked, &targets, temperature)?.narrow(1, 0, 1)?),
                |v| {
                    definitions::logprobs(
                        (&v["x"], &v["w"], cap),
                        width,
                        &picked,
                        &targets,
                        1.0 / f64::from(1.0 / temperature),
                    )
                },
            );
        }
    }

    #[test]
    fn fused_and_composed_agree() {
        row(X::Normal(1.0), 1, 1, 1, 1);
        row(X::Normal(1.0), 1, 3, 2, 1);
        row(X::Normal(1.0), 3, 5, 7, 4);
        row(X::Normal(1.0), 4, 8, 40, 9);
        row(X::Normal(0.5), 40, 17, 33, 70);
        row(X::Normal(0.3), 30, 48, 130, 600);
        row(X::Normal(0.3), 4, 3, 17_000, 130);
        row(X::Extreme(1e4), 5, 16, 50, 20);
        row(X::Exact { every: 16, below: 16 }, 5, 16, 50, 20);
        row(X::Denormal, 5, 16, 50, 20);
    }

    /// The table that embeds also unembeds: one parameter, used twice, whose gradients add.
    #[test]
    fn a_tied_table_receives_both_gradients() {
        let (rows, targets, weights) = ([0, 2, 2, 6], [3, 0, 10, 3], [0.5, -1.0, 0.25, 2.0]);
        let ids = [1, 3, 3, 10, 0, 1, 3];
        let parameters = [("w", &[11, 5][..])];
        let case = Case { op: "tied token_nll", rows: 7, width: 5, x: X::Normal(1.0), parameters: &parameters };
        let op = |x: &Tensor, p: &Params| {
            let w = p.get("w")?;
            let embedded = crate::embedding(&ids, &w, x.track_op().then(|| p.sentinel()))?;
            token_nll(&(x + embedded)?, &w, &rows, &targets, &weights)
        };
        check(&case, op, |v| {
            let embedded = definitions::rows(&v["w"], &ids, 5);
            let hidden: Vec<f64> = v["x"].iter().zip(embedded).map(|(x, y)| x + y).collect();
            let logprobs = definitions::logprobs((&hidden, &v["w"], None), 5, &rows, &targets, 1.0);
            vec![-logprobs.iter().zip(weights).map(|(l, w)| l * f64::from(w)).sum::<f64>()]
        });
    }

    /// Over several chunks, with a table that also embeds.
    #[test]
    fn a_loss_that_ends_its_graph_has_the_gradients_of_one_that_may_go_on() {
        let (vocabulary, width, rows) = (300, 48, 600);
        let ids: Vec<u32> = (0..rows).map(|i| i * 11 % 300).collect();
        let (picked, targets): (Vec<u32>, Vec<u32>) = (0..rows).map(|i| (i * 7 % rows, i * 13 % 300)).unzip();
        let weights = normals("weights", rows as usize);
        for (path, softcap) in [Path::Fused, Path::Composed].map(|path| [(path, None), (path, Some(4.0))]).concat() {
            let both = [false, true].map(|at_once| {
                let spec = Spec::new("w", [vocabulary, width]);
                let params = Params::zeros(vec![spec], &Device::Cpu, path, DType::F32).unwrap();
                params.set("w", &normals("w", vocabulary * width)).unwrap();
                let w = params.get("w").unwrap();
                let hidden = crate::embedding(&ids, &w, Some(params.sentinel())).unwrap();
                let w = Unembedding { table: w, softcap };
                let loss = if at_once {
                    token_nll_backward(&params, &hidden, &w, &picked, &targets, &weights).unwrap()
                } else {
                    let loss = token_nll(&hidden, &w, &picked, &targets, &weights).unwrap();
                    params.backward(&loss).unwrap();
                    loss.to_scalar().unwrap()
                };
                (loss, params.grad("w").unwrap())
            });
            assert!(both[0].0 != 0.0 && both[0].1.iter().all(|g| *g != 0.0), "{path:?}: a gradient everywhere");
            assert_eq!(both[0], both[1], "{path:?}");
        }
    }

    fn fused(w: &[f32], vocabulary: usize) -> (Params, crate::Param) {
        let spec = Spec::new("w", [vocabulary, w.len() / vocabulary]);
        let params = Params::zeros(vec![spec], &Device::Cpu, Path::Fused, DType::F32).unwrap();
        params.set("w", w).unwrap();
        let w = params.get("w").unwrap();
        (params, w)
    }

    #[test]
    fn extreme_logits_are_exact() {
        let (_params, w) = fused(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 3);
        let hidden = candle_core::Var::new(&[[1e4f32, -1e4]], &Device::Cpu).unwrap();
        let out = token_logprob(&hidden, &w, &[0, 0, 0], &[0, 1, 2], 1.0).unwrap();
        assert_eq!(numbers(&out), [0.0, 0.0, -2e4, 0.0, -1e4, 0.0]);
        let loss = token_nll(&hidden, &w, &[0, 0, 0], &[0, 1, 2], &[1.0; 3]).unwrap();
        assert_eq!(numbers(&loss), [3e4]);
        // The two surprising targets pull with their whole weight, the third has nothing to say.
        assert_eq!(numbers(loss.backward().unwrap().get(&hidden).unwrap()), [1.0, -2.0]);
    }

    #[test]
    fn a_loss_that_nobody_records_adds_no_gradient() {
        for path in [Path::Fused, Path::Composed] {
            let params = Params::zeros(vec![Spec::new("w", [3, 2])], &Device::Cpu, path, DType::F32).unwrap();
            params.set("w", &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]).unwrap();
            let (w, hidden) = (params.get("w").unwrap(), Tensor::new(&[[1f32, 2.0]], &Device::Cpu).unwrap());
            let loss = token_nll_backward(&params, &hidden, &w, &[0], &[1], &[1.0]).unwrap();
            assert_eq!([loss], numbers(&token_nll(&hidden, &w, &[0], &[1], &[1.0]).unwrap())[..]);
            assert!(params.with_grads(|grads| grads.iter().all(|g| *g == 0.0)).unwrap(), "{path:?}");
        }
    }

    #[test]
    fn close_logits_of_any_size_keep_their_distance() {
        let (_params, w) = fused(&[1.0, 0.0, 1.0, 1.0], 2);
        let hidden = Tensor::new(&[[16_384f32, 0.125]], &Device::Cpu).unwrap();
        let out = token_logprob(&hidden, &w, &[0, 0], &[0, 1], 0.7).unwrap();
        let wanted = definitions::log_softmax(&[16_384.0 / 0.7, 16_384.125 / 0.7]);
        let found: Vec<f32> = numbers(&out).into_iter().step_by(2).collect();
        holds("kernels/extreme", "token_logprob of 2 logits, temperature 0.7", relative(&found, &wanted, 0.0), 1e-5);
    }

    #[test]
    fn entropy_is_that_of_the_definition() {
        let (_params, w) = fused(&normals("w", 37 * 8), 37);
        let hidden = Tensor::from_vec(normals("hidden", 5 * 8), (5, 8), &Device::Cpu).unwrap();
        let (rows, targets) = ([4, 0, 1, 1], [36, 0, 3, 3]);
        let got = token_logprob(&hidden, &w, &rows, &targets, 1.3).unwrap();
        let got = got.to_vec2::<f32>().unwrap();
        let all = logits(&hidden, &w).unwrap().to_vec2::<f32>().unwrap();
        let wanted = rows.into_iter().zip(targets).flat_map(|(row, target)| {
            let z: Vec<f64> = all[row as usize].iter().map(|z| f64::from(*z) / 1.3).collect();
            let log_p = definitions::log_softmax(&z);
            [log_p[target as usize], -log_p.iter().map(|l| l.exp() * l).sum::<f64>()]
        });
        let wanted: Vec<f64> = wanted.collect();
        let difference = relative(&got.concat(), &wanted, 0.0);
        holds("kernels/composed", "token_logprob of 37, log-probability and entropy", difference, 1e-5);
    }

    /// What a sampler records one token at a time is what training recomputes in one batch.
    #[test]
    fn sampled_and_recomputed_log_probabilities_are_the_same_bits() {
        let (vocabulary, width) = (300, 48);
        let (_params, w) = fused(&normals("w", vocabulary * width), vocabulary);
        let hidden = Tensor::from_vec(normals("hidden", 600 * width), (600, width), &Device::Cpu).unwrap();
        let rows: Vec<u32> = (0..600).collect();
        let targets: Vec<u32> = rows.iter().map(|row| row * 7 % 300).collect();
        for softcap in [None, Some(5.0)] {
            let w = Unembedding { table: w.clone(), softcap };
            let batch = token_logprob(&hidden, &w, &rows, &targets, 0.9).unwrap().to_vec2::<f32>().unwrap();
            for row in [0, 1, 255, 256, 511, 512, 599] {
                let alone = logits(&hidden.narrow(0, row, 1).unwrap(), &w).unwrap();
                let alone = numbers(&alone);
                let softmax = RowSoftmax::new(&alone, 0.9);
                let found = [softmax.logprob(alone[targets[row] as usize]), softmax.entropy()];
                assert_eq!(found.map(f32::to_bits), [batch[row][0], batch[row][1]].map(f32::to_bits));
            }
        }
    }
}
