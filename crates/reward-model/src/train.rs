//! The training loop of step 2, and the bias that centres the result.

use crate::{Error, Group, Item, Result, group::ItemBatch, loss::ranking_loss};
use instruct_data::micro_batches;
use instruct_kernels::chain;
use instruct_model::{Decoder, Pass};
use instruct_optim::{
    AdamConfig, AdamW, Compute, GradTree, Groups, Schedule, SpikeWatch, check_gradients_behind, check_loss, problems,
};
use instruct_random::{Passes, Source};
use instruct_runs::{Event, Flow, Listener};
use serde::{Deserialize, Serialize};

/// How a reward model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Passes over the rankings. One: more overfit (Ouyang et al. 2022, section 3.5).
    pub epochs: u64,
    /// Rankings per optimizer step (64 prompts in Ouyang et al. 2022).
    pub batch: usize,
    /// Peak learning rate (9e-6 in Ouyang et al. 2022).
    pub lr: f64,
    /// How the learning rate moves over the steps of the run.
    pub schedule: Schedule,
    /// Adam's constants; betas (0.9, 0.95) in Ouyang et al. 2022.
    pub adam: AdamConfig,
    /// Standard deviations above its recent values at which a loss or a gradient norm is reported; 0
    /// never reports ([`SpikeWatch`]).
    pub spike_z: f64,
}

impl Default for Plan {
    /// The constants of Ouyang et al. 2022.
    fn default() -> Plan {
        Plan {
            epochs: 1,
            batch: 64,
            lr: 9e-6,
            schedule: Schedule::COSINE,
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
            (self.batch > 0, "`batch` is 0: a step needs a ranking"),
            (self.lr > 0.0 && self.lr.is_finite(), "`lr` must be above 0"),
            (self.spike_z >= 0.0, "`spike-z` must be a number, not below 0"),
        ]);
        [own, self.adam.problems()].concat()
    }
}

/// Everything that training changes.
pub struct State {
    /// The reward model.
    pub model: Decoder,
    /// Its optimizer.
    pub optimizer: AdamW,
    /// Optimizer steps done.
    pub step: u64,
    /// The recent losses and gradient norms.
    pub spikes: SpikeWatch,
}

impl State {
    /// The state before the first step. `model` has a scalar head. The head's bias and the final
    /// norm's shift every score alike, which a loss over differences cannot see: they are frozen,
    /// or Adam would turn their rounding noise into full steps.
    pub fn new(model: Decoder, plan: &Plan) -> Result<State> {
        let frozen = invariant(&model);
        let groups = Groups { frozen: &frozen, ..Groups::default() };
        let optimizer = AdamW::new(model.params(), plan.adam, groups)?;
        Ok(State { model, optimizer, step: 0, spikes: SpikeWatch::default() })
    }
}

/// Optimizer steps of a whole run.
pub fn steps(plan: &Plan, groups: &[Group]) -> u64 {
    plan.epochs * usable(groups).len().div_ceil(plan.batch.max(1)) as u64
}

/// Trains on rankings, from the step that `state` has reached.
///
/// Rankings without a pair (all tied, all alike, or one completion) are skipped; the batch loss is the mean
/// over the others, each pair weighing `1 / pairs(group)`.
///
/// Errors: a plan with [`Plan::problems`]; no ranking has a pair; a parameter that receives no
/// gradient on one of the first two steps (behind a head of zeros, on the second); a loss, a gradient
/// or a weight that is not finite. The last boundary's state is then the last one to trust.
pub fn train(
    state: &mut State,
    groups: &[Group],
    plan: &Plan,
    compute: Compute,
    on: &mut Listener<'_, State>,
) -> Result<()> {
    let problems = plan.problems();
    if !problems.is_empty() {
        return Err(Error::Plan { problems });
    }
    let usable = usable(groups);
    if usable.is_empty() {
        return Err(Error::NoPairs { groups: groups.len() });
    }
    compute.check()?;
    state.optimizer.share(compute.ranks);
    let per_epoch = usable.len().div_ceil(plan.batch) as u64;
    let total = plan.epochs * per_epoch;
    let mut order = Passes::new(Source::new(compute.seed, "reward-model/order"), usable.len());
    while state.step < total {
        let epoch = order.pass(state.step / per_epoch);
        let chunk = epoch.chunks(plan.batch).nth((state.step % per_epoch) as usize).unwrap_or_default();
        let batch: Vec<&Group> = chunk.iter().map(|&i| usable[i]).collect();
        let leaves: Vec<&[&Group]> = compute.deal(batch.len()).map(|leaf| &batch[leaf]).collect();
        let sums = Sums::sum(&gradients(&state.model, &leaves, batch.len(), compute)?);
        let params = state.model.params();
        check_loss(params, "train/rm/loss", sums.loss, state.step + 1)?;
        if state.step < 2 {
            check_gradients_behind(params, "score.weight", &invariant(&state.model), state.step + 1, compute.ranks)?;
        }
        let lr = plan.schedule.lr(plan.lr, state.step, total);
        let report = state.optimizer.step(state.model.params(), lr, compute.ranks)?;
        state.step += 1;
        let entries = [
            ("train/rm/loss", sums.loss),
            ("train/rm/accuracy", sums.correct / sums.pairs),
            ("train/rm/margin", sums.margin / sums.pairs),
            ("train/rm/lr", lr),
            ("train/rm/grad_norm", report.grad_norm),
        ];
        for message in state.spikes.observe(plan.spike_z, &[entries[0], entries[4]]) {
            let _ = on(Event::Warning { step: state.step, message: &message })?;
        }
        let _ = on(Event::Step { step: state.step, total, metrics: &entries })?;
        if on(Event::Boundary { step: state.step, state })? == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// Shifts the score's bias so that demonstrations which now score `scores` average 0, and returns the
/// shift.
///
/// A loss over differences leaves the offset free, PPO does not (Ouyang et al. 2022, section 3.5).
///
/// Errors: there is no demonstration.
pub fn center(model: &Decoder, scores: &[f32]) -> Result<f32> {
    if scores.is_empty() {
        return Err(Error::NoDemonstrations);
    }
    let mean = scores.iter().map(|&s| f64::from(s)).sum::<f64>() / scores.len() as f64;
    let bias = model.params().read("score.bias")?;
    model.params().set("score.bias", &[(f64::from(bias[0]) - mean) as f32])?;
    Ok(-mean as f32)
}

/// The parameters of `model` that shift every score alike.
fn invariant(model: &Decoder) -> Vec<&str> {
    let names = model.params().slots().iter().map(|slot| slot.name.as_str());
    names.filter(|name| ["score.bias", "norm.bias"].contains(name)).collect()
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    loss: f64,
    correct: f64,
    margin: f64,
    pairs: f64,
}

impl Sums {
    /// As ranks exchange them.
    fn numbers(&self) -> [f64; 4] {
        [self.loss, self.correct, self.margin, self.pairs]
    }

    fn of([loss, correct, margin, pairs]: [f64; 4]) -> Sums {
        Sums { loss, correct, margin, pairs }
    }

    /// Those of a step from those of its leaves, in their order.
    fn sum(leaves: &[Sums]) -> Sums {
        let mut sum = Sums::default();
        for Sums { loss, correct, margin, pairs } in leaves {
            sum.loss += loss;
            sum.correct += correct;
            sum.margin += margin;
            sum.pairs += pairs;
        }
        sum
    }
}

fn usable(groups: &[Group]) -> Vec<&Group> {
    groups.iter().filter(|group| !group.pairs().is_empty()).collect()
}

/// Puts the gradient of the batch loss over `total` groups, or what these leaves of it contribute, into the model's
/// buffer, micro-batch by micro-batch; a group is never cut. Returns the sums of each leaf.
fn gradients(model: &Decoder, leaves: &[&[&Group]], total: usize, compute: Compute<'_>) -> Result<Vec<Sums>> {
    let counted = GradTree::over(model.params(), compute, leaves, |tree, groups| -> Result<_> {
        let mut sums = Sums::default();
        for run in micro_batches(groups.iter().map(|group| group.tokens()), compute.micro_tokens) {
            let groups_here = &groups[run];
            let mut batch = ItemBatch::default();
            for (example, group) in (0..).zip(groups_here) {
                for completion in &group.completions {
                    batch.push(Item { prompt: &group.prompt, completion }, example);
                }
            }
            let scores = batch.scores(model, Pass::Train)?;
            let gradient = losses(&scores.to_vec1::<f32>()?, groups_here, total as f64, &mut sums);
            model.params().backward(&chain(&scores, &gradient)?)?;
            tree.push(model.params());
        }
        Ok(sums.numbers())
    })?;
    Ok(counted.into_iter().map(Sums::of).collect())
}

fn losses(scores: &[f32], groups: &[&Group], total: f64, sums: &mut Sums) -> Vec<f32> {
    let mut gradient = Vec::with_capacity(scores.len());
    let mut scores = scores;
    for group in groups {
        let (here, rest) = scores.split_at(group.completions.len());
        scores = rest;
        let out = ranking_loss(here, &group.pairs());
        sums.loss += out.loss / total;
        sums.correct += out.correct;
        sums.margin += out.margin;
        sums.pairs += out.pairs as f64;
        gradient.extend(out.gradient.iter().map(|g| (f64::from(*g) / total) as f32));
    }
    gradient
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;
