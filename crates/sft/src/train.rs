//! The training loop of step 1, and the held-out losses that watch it.

use crate::{
    Error, Example, Result,
    batch::{Item, Micro, pack},
};
use candle_core::DType;
use instruct_kernels::{token_nll, token_nll_backward};
use instruct_model::{Decoder, Dropout, Pass};
use instruct_optim::{
    AdamConfig, AdamW, Compute, GradTree, Groups, Schedule, SpikeWatch, check_gradients, check_loss, problems,
};
use instruct_random::{Passes, Source};
use instruct_runs::{Event, Flow, Listener};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How a decoder is fine-tuned. Defaults are those of the baseline in Ouyang et al. 2022, appendix
/// C.1 (the 1.3B column).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Passes over the demonstrations.
    pub epochs: u64,
    /// Examples per optimizer step, pretraining windows included.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate moves over the steps of the run.
    pub schedule: Schedule,
    /// Residual dropout rate.
    pub dropout: f32,
    /// Share of the examples that are pretraining windows, in `0..1`.
    pub pretraining_share: f64,
    /// Weight of prompt tokens in the loss; 0 trains on completions only.
    pub prompt_weight: f32,
    /// Adam's constants.
    pub adam: AdamConfig,
    /// Standard deviations above its recent values at which a loss or a gradient norm is reported; 0
    /// never reports ([`SpikeWatch`]).
    pub spike_z: f64,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            epochs: 16,
            batch: 32,
            lr: 9.65e-6,
            schedule: Schedule::COSINE,
            dropout: 0.2,
            pretraining_share: 0.0,
            prompt_weight: 0.0,
            adam: AdamConfig::default(),
            spike_z: SpikeWatch::Z,
        }
    }
}

impl Plan {
    /// What is wrong with the plan, each with its key; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let own = problems(&[
            (self.epochs > 0, "`epochs` is 0: nothing would be learned"),
            (self.batch > 0, "`batch` is 0: a step needs an example"),
            (self.lr > 0.0 && self.lr.is_finite(), "`lr` must be above 0"),
            ((0.0..1.0).contains(&self.dropout), "`dropout` must lie in 0..1"),
            ((0.0..1.0).contains(&self.pretraining_share), "`pretraining-share` must lie in 0..1"),
            (
                self.prompt_weight >= 0.0 && self.prompt_weight.is_finite(),
                "`prompt-weight` must be a number, not below 0",
            ),
            (self.spike_z >= 0.0, "`spike-z` must be a number, not below 0"),
        ]);
        [own, self.adam.problems()].concat()
    }
}

/// What a fine-tuning learns from.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Demonstrations.
    pub demonstrations: &'a [Example],
    /// Windows of pretraining text; may be empty when the share is 0.
    pub pretraining: &'a [Vec<u32>],
}

/// Everything that training changes.
pub struct State {
    /// The decoder that learns.
    pub model: Decoder,
    /// Its optimizer.
    pub optimizer: AdamW,
    /// Optimizer steps done.
    pub step: u64,
    /// The recent losses and gradient norms.
    pub spikes: SpikeWatch,
}

impl State {
    /// The state before the first step.
    pub fn new(model: Decoder, plan: &Plan) -> Result<State> {
        let optimizer = AdamW::new(model.params(), plan.adam, Groups::default())?;
        Ok(State { model, optimizer, step: 0, spikes: SpikeWatch::default() })
    }
}

/// Optimizer steps of one epoch and of the whole run.
pub fn steps(plan: &Plan, demonstrations: usize) -> (u64, u64) {
    let per_epoch = (demonstrations + windows_per_epoch(plan, demonstrations)).div_ceil(plan.batch.max(1)) as u64;
    (per_epoch, plan.epochs * per_epoch)
}

/// Fine-tunes from the step that `state` has reached.
///
/// Every epoch is a new order of all demonstrations and of so many pretraining windows that they
/// make up their share. The windows come from passes over all of them, each pass newly shuffled. The
/// weights at the end of each epoch are candidates, from which a reward model chooses.
///
/// Errors: a plan with [`Plan::problems`]; nothing to learn from; a parameter that receives no
/// gradient on the first step; a loss, a gradient or a weight that is not finite. The last boundary's
/// state is then the last one to trust.
pub fn train(
    state: &mut State,
    data: &Data<'_>,
    plan: &Plan,
    compute: Compute,
    on: &mut Listener<'_, State>,
) -> Result<()> {
    let problems = plan.problems();
    if !problems.is_empty() {
        return Err(Error::Plan { problems });
    }
    if data.demonstrations.is_empty() {
        return Err(Error::NoDemonstrations);
    }
    if plan.pretraining_share > 0.0 && data.pretraining.is_empty() {
        return Err(Error::NoPretraining { share: plan.pretraining_share });
    }
    compute.check()?;
    state.optimizer.share(compute.ranks);
    let (per_epoch, total) = steps(plan, data.demonstrations.len());
    let mut epochs = Epochs::new(data, plan, compute.seed);
    while state.step < total {
        let epoch = state.step / per_epoch;
        let items = epochs.items(epoch);
        let at = (state.step % per_epoch) as usize;
        let chunk = items.chunks(plan.batch).nth(at).unwrap_or_default();
        let first = epoch * items.len() as u64 + (at * plan.batch) as u64;
        let step = Step::new(chunk, first, plan, compute);
        let losses = Losses::sum(&gradients(state, &step, plan)?);
        for (name, loss) in [("train/sft/loss", losses.completion), ("train/sft/pretraining_loss", losses.pretraining)]
        {
            check_loss(state.model.params(), name, loss.mean(), state.step + 1)?;
        }
        if state.step == 0 {
            check_gradients(state.model.params(), &[], 1, compute.ranks)?;
        }
        let lr = plan.schedule.lr(plan.lr, state.step, total);
        let report = state.optimizer.step(state.model.params(), lr, compute.ranks)?;
        state.step += 1;
        let mut metrics = vec![("train/sft/loss", losses.completion.mean())];
        if losses.pretraining.weight > 0.0 {
            metrics.push(("train/sft/pretraining_loss", losses.pretraining.mean()));
        }
        metrics.extend([("train/sft/lr", lr), ("train/sft/grad_norm", report.grad_norm)]);
        let curves = [("train/sft/loss", losses.completion.mean()), ("train/sft/grad_norm", report.grad_norm)];
        for message in state.spikes.observe(plan.spike_z, &curves) {
            let _ = on(Event::Warning { step: state.step, message: &message })?;
        }
        let _ = on(Event::Step { step: state.step, total, metrics: &metrics })?;
        if state.step.is_multiple_of(per_epoch) {
            let name = format!("epoch-{:02}", state.step / per_epoch);
            let _ = on(Event::Candidate { name: &name, step: state.step, state })?;
        }
        if on(Event::Boundary { step: state.step, state })? == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// Mean of `-log p(token)` over the completion tokens of `examples`, in nats; no graph, no dropout.
/// `done` hears how many more examples were read, again and again. Ranks share the work.
///
/// Errors: an example longer than the context; those of the operations and of the ranks.
pub fn nll(model: &Decoder, examples: &[Example], compute: Compute<'_>, done: &mut dyn FnMut(usize)) -> Result<f64> {
    let items: Vec<Item> = examples.iter().map(Item::Demonstration).collect();
    mean_nll(model, &items, compute, done)
}

/// Perplexity of windows of plain text: `exp` of the mean of `-log p(token)` over every token but
/// the first of each. `done` hears how many more windows were read, again and again. Ranks share the work.
///
/// Errors: a window longer than the context; those of the operations and of the ranks.
pub fn perplexity(
    model: &Decoder,
    windows: &[Vec<u32>],
    compute: Compute<'_>,
    done: &mut dyn FnMut(usize),
) -> Result<f64> {
    let items: Vec<Item> = windows.iter().map(|window| Item::Pretraining(window)).collect();
    Ok(mean_nll(model, &items, compute, done)?.exp())
}

fn mean_nll(model: &Decoder, items: &[Item<'_>], compute: Compute<'_>, done: &mut dyn FnMut(usize)) -> Result<f64> {
    // Which examples are computed together does not depend on the ranks.
    let micros = pack(items, 0, 0.0, compute.micro_tokens);
    let of_ranks = compute.share(micros.len(), |own| -> Result<_> {
        let mut sums = Vec::with_capacity(own.len());
        for micro in &micros[own] {
            let weight: f32 = micro.weights.iter().sum();
            let hidden = model.predicting(&micro.packed, Pass::Infer)?;
            let (rows, targets) = predictions(micro);
            let loss = token_nll(&hidden, model.unembedding()?, &rows, &targets, &micro.weights)?;
            sums.push((f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?), f64::from(weight)));
            done(micro.examples);
        }
        Ok(sums)
    })?;
    let mut mean = Mean::default();
    of_ranks.into_iter().flatten().for_each(|(sum, weight)| mean.add(sum, weight));
    Ok(mean.mean())
}

/// A sum of losses and of their weights.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, sum: f64, weight: f64) {
        self.sum += sum;
        self.weight += weight;
    }

    fn mean(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    completion: Mean,
    pretraining: Mean,
}

impl Losses {
    /// As ranks exchange them.
    fn numbers(&self) -> [f64; 4] {
        let Losses { completion, pretraining } = self;
        [completion.sum, completion.weight, pretraining.sum, pretraining.weight]
    }

    fn of([sum, weight, of_text, weight_of_text]: [f64; 4]) -> Losses {
        Losses { completion: Mean { sum, weight }, pretraining: Mean { sum: of_text, weight: weight_of_text } }
    }

    /// Those of a step from those of its leaves, in their order.
    fn sum(leaves: &[Losses]) -> Losses {
        let mut sum = Losses::default();
        for Losses { completion, pretraining } in leaves {
            sum.completion.add(completion.sum, completion.weight);
            sum.pretraining.add(pretraining.sum, pretraining.weight);
        }
        sum
    }
}

/// What a step learns from.
struct Step<'a> {
    /// The micro-batches of each leaf.
    leaves: Vec<Vec<Micro>>,
    /// Weight of all predictions of the whole step, which every loss is divided by.
    total: f64,
    compute: Compute<'a>,
}

impl<'a> Step<'a> {
    /// The step over `items`, of which the first is example `first` of the run.
    fn new(items: &[Item<'_>], first: u64, plan: &Plan, compute: Compute<'a>) -> Step<'a> {
        let leaf = |run: Range<usize>| {
            let first = first + run.start as u64;
            pack(&items[run], first, plan.prompt_weight, compute.micro_tokens)
        };
        let leaves: Vec<Vec<Micro>> = compute.deal(items.len()).map(leaf).collect();
        let weights = leaves.iter().flatten().flat_map(|micro| &micro.weights);
        let total = weights.map(|&w| f64::from(w)).sum();
        Step { leaves, total, compute }
    }
}

/// Puts the gradient of the step's mean loss into the model's buffer. Returns the losses of each leaf.
fn gradients(state: &State, step: &Step<'_>, plan: &Plan) -> Result<Vec<Losses>> {
    let seed = step.compute.seed;
    let dropout = Dropout { rate: plan.dropout, source: Source::new(seed, "sft/dropout"), step: state.step };
    let pass = if plan.dropout > 0.0 { Pass::TrainWithDropout(dropout) } else { Pass::Train };
    let params = state.model.params();
    let counted = GradTree::over(params, step.compute, &step.leaves, |tree, leaf| -> Result<_> {
        let mut losses = Losses::default();
        for micro in leaf {
            let scaled: Vec<f32> = micro.weights.iter().map(|w| (f64::from(*w) / step.total) as f32).collect();
            let unembedding = state.model.unembedding()?;
            let hidden = state.model.predicting(&micro.packed, pass)?;
            let (rows, targets) = predictions(micro);
            let loss = token_nll_backward(params, &hidden, unembedding, &rows, &targets, &scaled)?;
            tree.push(params);
            let weight = micro.weights.iter().map(|&w| f64::from(w)).sum();
            let mean = if micro.pretraining { &mut losses.pretraining } else { &mut losses.completion };
            mean.add(f64::from(loss) * step.total, weight);
        }
        Ok(losses.numbers())
    })?;
    Ok(counted.into_iter().map(Losses::of).collect())
}

/// Rows of [`Decoder::predicting`] and the tokens that follow them.
fn predictions(micro: &Micro) -> (Vec<u32>, Vec<u32>) {
    (0..).zip(micro.packed.predictions()).map(|(m, p)| (m, p.target)).unzip()
}

/// Pretraining windows that make up their share of an epoch.
fn windows_per_epoch(plan: &Plan, demonstrations: usize) -> usize {
    (plan.pretraining_share / (1.0 - plan.pretraining_share) * demonstrations as f64).round() as usize
}

/// All examples of each epoch, in its order. Those of the epoch that was asked for last are kept, so that
/// a step costs the same however many there are.
struct Epochs<'a> {
    data: Data<'a>,
    /// Windows in an epoch.
    mixed: usize,
    order: Source,
    windows: Passes,
    kept: Option<(u64, Vec<Item<'a>>)>,
    /// Epochs put together so far.
    #[cfg(test)]
    made: usize,
}

impl<'a> Epochs<'a> {
    fn new(data: &Data<'a>, plan: &Plan, seed: u64) -> Epochs<'a> {
        Epochs {
            data: *data,
            mixed: windows_per_epoch(plan, data.demonstrations.len()),
            order: Source::new(seed, "sft/order"),
            windows: Passes::new(Source::new(seed, "sft/windows"), data.pretraining.len()),
            kept: None,
            #[cfg(test)]
            made: 0,
        }
    }

    fn items(&mut self, epoch: u64) -> &[Item<'a>] {
        let kept = self.kept.take().filter(|(kept, _)| *kept == epoch);
        let kept = kept.unwrap_or_else(|| (epoch, self.ordered(epoch)));
        &self.kept.insert(kept).1
    }

    fn ordered(&mut self, epoch: u64) -> Vec<Item<'a>> {
        #[cfg(test)]
        {
            self.made += 1;
        }
        let Data { demonstrations, pretraining } = self.data;
        let first = epoch * self.mixed as u64;
        let windows = self.windows.places(first..first + self.mixed as u64);
        let item = |&i: &usize| match i.checked_sub(demonstrations.len()) {
            None => Item::Demonstration(&demonstrations[i]),
            Some(i) => Item::Pretraining(&pretraining[windows[i]]),
        };
        self.order.at([epoch]).permutation(demonstrations.len() + self.mixed).iter().map(item).collect()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;
