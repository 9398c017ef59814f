//! The loop of step 3: sample, score, compare, estimate, update; everything observable leaves it
//! as an event.

use crate::{
    Critic, Error, Metrics, Plan, Result,
    experience::Experience,
    guards::{self, GuardMemory},
    update::{Minibatch, UpdateStats},
};
use instruct_collective::Collective;
use instruct_data::{Packed, micro_batches};
use instruct_model::{Decoder, HeadKind, Sampling};
use instruct_optim::{
    AdamW, Compute, Ema, Groups, check_finite, check_gradients, check_gradients_behind, check_weights,
};
use instruct_random::{Passes, Source};
use instruct_rollout::{Compared, Decode, Prompted, Readings, Sampled, Score, Scored, values};
use instruct_runs::{Event, Flow, Listener, Metrics as _, phase};
use std::{collections::BTreeSet, ops::Range};

/// Everything that a run changes. Saved and restored, it continues bit for bit: draws are keyed by
/// episode and iteration, so there is no generator to save.
pub struct State {
    /// The policy that learns.
    pub policy: Decoder,
    /// The critic, when it is a model of its own.
    pub value: Option<Decoder>,
    /// The policy's optimizer.
    pub policy_optimizer: AdamW,
    /// The critic's optimizer, when it is a model of its own.
    pub value_optimizer: Option<AdamW>,
    /// The averaged policy, when the plan keeps one.
    pub ema: Option<Ema>,
    /// Price per nat of divergence in the next iteration.
    pub beta: f64,
    /// Iterations done.
    pub iteration: u64,
    /// What the guards remember.
    pub guards: GuardMemory,
}

/// What a run reads and never changes.
pub struct Task<'a> {
    /// The policy at the start of step 3, frozen. A copy in storage of its own.
    pub reference: &'a Decoder,
    /// Token ids of every prompt.
    pub prompts: &'a [Vec<u32>],
    /// Windows of pretraining text for the mix; may be empty when the mix is off.
    pub pretraining: &'a [Vec<u32>],
    /// What a completion is worth. Each rank asks for all episodes: a scorer may compare them.
    pub score: Score<'a>,
    /// Completion tokens to text, for scorers and samples.
    pub decode: Decode<'a>,
    /// Ids that end a completion.
    pub stop: BTreeSet<u32>,
    /// Keys every draw of the run, bounds what is computed at a time, and shares it among ranks.
    pub compute: Compute<'a>,
}

impl State {
    /// The state before the first iteration. `value` is the critic's start, a copy of the reward
    /// model, when the plan wants a separate one.
    ///
    /// Errors: the plan and the critic do not match.
    pub fn new(policy: Decoder, value: Option<Decoder>, plan: &Plan) -> Result<State> {
        match (plan.critic, &value, policy.head()) {
            (Critic::Separate { .. }, Some(value), _) if !value.head().is_scalar() => {
                return Err(Error::Critic("the value model has no scalar head"));
            }
            (Critic::Separate { .. }, None, _) => return Err(Error::Critic("a separate critic needs a value model")),
            (Critic::Head { .. }, Some(_), _) => return Err(Error::Critic("a value head needs no value model")),
            (Critic::Head { .. }, None, head) if head != HeadKind::LanguageModelWithValue => {
                return Err(Error::Critic("the policy has no value head"));
            }
            _ => {}
        }
        Ok(State {
            policy_optimizer: AdamW::new(policy.params(), plan.adam, Groups::default())?,
            value_optimizer: value
                .as_ref()
                .map(|value| AdamW::new(value.params(), plan.adam, Groups::default()))
                .transpose()?,
            ema: (plan.ema > 0.0).then(|| Ema::new(policy.params(), plan.ema)).transpose()?,
            beta: plan.kl.initial(),
            iteration: 0,
            guards: GuardMemory::default(),
            policy,
            value,
        })
    }

    /// Keeps of optimizers and average what this rank updates. [`train`] does it too; a state that is to be continued
    /// from a checkpoint then never holds more.
    pub fn share(&mut self, ranks: &dyn Collective) {
        self.policy_optimizer.share(ranks);
        self.value_optimizer.iter_mut().for_each(|optimizer| optimizer.share(ranks));
        self.ema.iter_mut().for_each(|ema| ema.share(ranks));
    }
}

/// In which order a run uses what it reads. It follows from the seed, so it is no part of the state.
struct Orders {
    prompts: Passes,
    ptx: Passes,
}

impl Orders {
    fn new(task: &Task<'_>) -> Orders {
        let seed = task.compute.seed;
        let prompts = Passes::new(Source::new(seed, "ppo/prompts"), task.prompts.len());
        let ptx = Passes::new(Source::new(seed, "ppo/ptx"), task.pretraining.len());
        Orders { prompts, ptx }
    }
}

/// Runs the iterations that `state` has not done yet.
///
/// Errors: see [`Error`]. A guard stops the run inside an iteration, and the last boundary's state is
/// then the last one to trust; a listener's error stops it after the iteration that raised it.
pub fn train(state: &mut State, task: &Task<'_>, plan: &Plan, on: &mut Listener<'_, State>) -> Result<()> {
    check(task, plan)?;
    state.share(task.compute.ranks);
    let mut orders = Orders::new(task);
    while state.iteration < plan.iterations() {
        let (rollout, metrics) = iterate(state, task, plan, &mut orders, on)?;
        state.iteration += 1;
        for row in samples(&rollout, task)? {
            let _ = on(Event::Sample { step: state.iteration, row: &row })?;
        }
        let (step, total) = (state.iteration, plan.iterations());
        for message in state.guards.spikes.observe(plan.guards.spike_z, &metrics.spiking()) {
            let _ = on(Event::Warning { step, message: &message })?;
        }
        let _ = on(Event::Step { step, total, metrics: &metrics.entries() })?;
        if let Some(name) = plan.candidate(step) {
            let _ = on(Event::Candidate { name: &name, step, state })?;
        }
        if on(Event::Boundary { step: state.iteration, state })? == Flow::Stop {
            break;
        }
    }
    Ok(())
}

fn check(task: &Task<'_>, plan: &Plan) -> Result<()> {
    let problems = plan.problems();
    if !problems.is_empty() {
        return Err(Error::Plan { problems });
    }
    if task.prompts.is_empty() {
        return Err(Error::NoPrompts);
    }
    if plan.gamma_ptx > 0.0 && task.pretraining.is_empty() {
        return Err(Error::NoPretraining { gamma: plan.gamma_ptx });
    }
    Ok(task.compute.check()?)
}

/// One iteration: sample, score, learn.
fn iterate(
    state: &mut State,
    task: &Task<'_>,
    plan: &Plan,
    orders: &mut Orders,
    on: &mut Listener<'_, State>,
) -> Result<(Compared, Metrics)> {
    let sampled = phase(on, "time/sample", |_| sample(state, task, plan, orders));
    // Weights that are no numbers give no logits to draw from, and are the cause.
    let sampled = sampled.or_else(|error| blame(state, task).and(Err(error)))?;
    let stop = task.stop.iter().copied();
    let counted = state.guards.sampled(&plan.guards, &sampled.episodes, plan.max_new_tokens, stop);
    guards::at(state.iteration, counted)?;
    let scored = phase(on, "time/score", |_| Ok::<_, Error>(sampled.score(task.score)?))?;
    guards::at(state.iteration, state.guards.scored(&plan.guards, &scored, plan.missing_eos))?;
    learn(state, task, plan, scored, orders, on)
}

/// One completion for each episode of the iteration, drawn without truncation.
fn sample(state: &State, task: &Task<'_>, plan: &Plan, orders: &mut Orders) -> Result<Sampled> {
    let sampling =
        Sampling { temperature: plan.temperature, ..Sampling::plain(task.stop.clone(), plan.max_new_tokens) };
    let source = Source::new(task.compute.seed, "ppo/sampling");
    let requests = requests(task, plan, state.iteration, orders);
    let of_ranks = task.compute.share(requests.len(), |own| -> Result<_> {
        Ok(Sampled::draw(
            &state.policy,
            &requests[own],
            &sampling,
            task.compute.slots,
            source,
            task.decode,
            &mut |_| (),
        )?)
    })?;
    Ok(Sampled::join(of_ranks))
}

/// The part of an iteration that follows from its episodes and their scores.
fn learn(
    state: &mut State,
    task: &Task<'_>,
    plan: &Plan,
    scored: Scored,
    orders: &mut Orders,
    on: &mut Listener<'_, State>,
) -> Result<(Compared, Metrics)> {
    let (readings, values) = phase(on, "time/logprob", |_| read(state, task, plan, &scored))?;
    let experience = Experience::new(scored.compared(readings), values, plan, state.beta);
    let mut metrics = Metrics::of_experience(&experience, plan, state.beta);
    for (name, value) in [("objective/kl", metrics.kl), ("ppo/returns/mean", metrics.returns_mean)] {
        finite(state, task, name, value)?;
    }
    let episodes = experience.rollout.episodes.len();
    guards::at(state.iteration, guards::compared(&plan.guards, metrics.kl, metrics.policy_entropy, episodes))?;
    phase(on, "time/update", |_| update(state, task, plan, &experience, orders, &mut metrics))?;
    state.beta = plan.kl.next(state.beta, metrics.kl, plan.batch);
    Ok((experience.rollout, metrics))
}

/// What policy, reference and critic say of every token. The ranks share the episodes.
fn read(state: &State, task: &Task<'_>, plan: &Plan, scored: &Scored) -> Result<(Readings, Vec<f32>)> {
    let micro_tokens = task.compute.micro_tokens;
    let critic = state.value.as_ref().unwrap_or(&state.policy);
    let of_ranks = task.compute.share(scored.episodes.len(), |own| -> Result<_> {
        let own = scored.part(own);
        let readings = own.read(&state.policy, task.reference, plan.temperature, micro_tokens)?;
        Ok((readings, values(critic, &own.episodes, micro_tokens)?))
    })?;
    let (readings, values): (Vec<_>, Vec<_>) = of_ranks.into_iter().unzip();
    Ok((Readings::join(readings), values.concat()))
}

/// The prompts of one iteration.
fn requests(task: &Task<'_>, plan: &Plan, iteration: u64, orders: &mut Orders) -> Vec<Prompted> {
    let first = iteration * plan.batch as u64;
    let episodes = first..first + plan.batch as u64;
    let groups = orders.prompts.places(episodes.clone());
    episodes.zip(groups).map(|(episode, group)| Prompted::new(episode, group, &task.prompts[group])).collect()
}

fn update(
    state: &mut State,
    task: &Task<'_>,
    plan: &Plan,
    experience: &Experience,
    orders: &mut Orders,
    metrics: &mut Metrics,
) -> Result<()> {
    let steps = plan.steps_per_iteration();
    let shuffle = Source::new(task.compute.seed, "ppo/minibatches");
    metrics.lr = plan.schedule.lr(plan.policy_lr, state.iteration, plan.iterations());
    let mut step = 0;
    for inner in 0..plan.inner_epochs as u64 {
        let order = shuffle.at([state.iteration, inner]).permutation(plan.batch);
        for episodes in order.chunks(plan.minibatch) {
            let minibatch = Minibatch::new(experience, episodes, plan, task.compute);
            let ptx = ptx_batches(task, plan, state.iteration * steps as u64 + step, orders);
            let mut stats = policy_gradients(state, task, plan, &minibatch, &ptx)?;
            if step == 0 {
                guards::at(state.iteration, guards::first_ratio(&plan.guards, stats.ratio_deviation))?;
                metrics.ratio_first_minibatch = stats.ratio_deviation;
            }
            let grad_norm = minibatch_step(state, task, plan, &minibatch, &mut stats, metrics.lr)?;
            metrics.add(&stats, grad_norm, steps);
            step += 1;
        }
    }
    Ok(())
}

fn policy_gradients(
    state: &State,
    task: &Task<'_>,
    plan: &Plan,
    minibatch: &Minibatch<'_>,
    ptx: &[Vec<Packed>],
) -> Result<UpdateStats> {
    let head = match plan.critic {
        Critic::Head { coefficient } => Some(coefficient),
        Critic::Separate { .. } => None,
    };
    let stats = minibatch.policy_gradients(&state.policy, plan, head, ptx)?;
    let losses = [
        ("ppo/loss/policy", stats.policy_loss),
        ("ppo/loss/ptx", stats.ptx_loss),
        ("ppo/loss/value", stats.value_loss),
    ];
    losses.into_iter().try_for_each(|(name, loss)| finite(state, task, name, loss))?;
    if minibatch.teaches(head.is_some(), ptx) && state.policy_optimizer.is_idle() {
        let checked = check_gradients(state.policy.params(), &[], 1, task.compute.ranks);
        checked.map_err(|error| of_model("policy", state, error))?;
    }
    Ok(stats)
}

/// Refuses a number that is none, and blames the first weight of the first model that explains it.
fn finite(state: &State, task: &Task<'_>, name: &str, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    blame(state, task)?;
    let blamed = check_finite(name, value, state.policy_optimizer.steps() + 1);
    blamed.map(|_| ()).map_err(|source| Error::NotFinite { iteration: state.iteration + 1, source })
}

/// Names the first weight that is no number.
fn blame(state: &State, task: &Task<'_>) -> Result<()> {
    let step = state.policy_optimizer.steps() + 1;
    let models =
        [("policy", Some(&state.policy)), ("value", state.value.as_ref()), ("reference", Some(task.reference))];
    for (model, decoder) in models {
        if let Some(decoder) = decoder {
            check_weights(decoder.params(), step).map_err(|error| of_model(model, state, error))?;
        }
    }
    Ok(())
}

/// Puts the model before the name of a tensor, since several have the same names.
fn of_model(model: &str, state: &State, error: instruct_optim::Error) -> Error {
    let named = |tensor: String| format!("{model}/{tensor}");
    let source = match error {
        instruct_optim::Error::NotFinite { tensor, step, what } => {
            instruct_optim::Error::NotFinite { tensor: named(tensor), step, what }
        }
        instruct_optim::Error::NoGradient { tensors, step } => {
            instruct_optim::Error::NoGradient { tensors: tensors.into_iter().map(named).collect(), step }
        }
        other => return other.into(),
    };
    Error::NotFinite { iteration: state.iteration + 1, source }
}

/// Steps the policy along its gradients, then a separate critic along its own. Returns the norm of the
/// policy's gradient.
fn minibatch_step(
    state: &mut State,
    task: &Task<'_>,
    plan: &Plan,
    minibatch: &Minibatch<'_>,
    stats: &mut UpdateStats,
    lr: f64,
) -> Result<f64> {
    let stepped = state.policy_optimizer.step(state.policy.params(), lr, task.compute.ranks);
    let report = stepped.map_err(|error| of_model("policy", state, error))?;
    if let Some(ema) = &mut state.ema {
        ema.update(state.policy.params())?;
    }
    if let (Critic::Separate { lr, coefficient }, Some(value)) = (plan.critic, &state.value) {
        // Policy and critic learn in turns, so their gradients need not exist at the same time.
        state.policy.params().hand_over_grad(value.params());
        minibatch.value_gradients(value, plan, coefficient, stats)?;
        finite(state, task, "ppo/loss/value", stats.value_loss)?;
        let right = stats.value_loss == 0.0;
        let lr = plan.schedule.lr(lr, state.iteration, plan.iterations());
        let stepped = value_step(state, right, lr, task.compute.ranks);
        stepped.map_err(|error| of_model("value", state, error))?;
    }
    Ok(report.grad_norm)
}

/// A step of a critic of its own. One that is `right` about every token has no gradient to check.
fn value_step(state: &mut State, right: bool, lr: f64, ranks: &dyn Collective) -> Result<(), instruct_optim::Error> {
    let (Some(value), Some(optimizer)) = (&state.value, &mut state.value_optimizer) else { return Ok(()) };
    if !right && (optimizer.steps() < 2 || optimizer.is_idle()) {
        check_gradients_behind(value.params(), "score.weight", &[], optimizer.steps() + 1, ranks)?;
    }
    optimizer.step(value.params(), lr, ranks)?;
    value.params().hand_over_grad(state.policy.params());
    Ok(())
}

/// The pretraining windows of one optimizer step, as the micro-batches of each leaf.
fn ptx_batches(task: &Task<'_>, plan: &Plan, step: u64, orders: &mut Orders) -> Vec<Vec<Packed>> {
    let count = if plan.gamma_ptx == 0.0 { 0 } else { (plan.minibatch * plan.ptx_examples) as u64 };
    let examples = step * count..(step + 1) * count;
    let order = orders.ptx.places(examples.clone());
    let windows: Vec<(u64, &[u32])> = examples.zip(order.into_iter().map(|i| task.pretraining[i].as_slice())).collect();
    let batch = |windows: &[(u64, &[u32])]| {
        let mut batch = Packed::new();
        for &(example, window) in windows {
            batch.push_text(window, example, 1.0);
        }
        batch
    };
    let leaf = |leaf: Range<usize>| {
        let windows = &windows[leaf];
        let runs = micro_batches(windows.iter().map(|(_, window)| window.len()), task.compute.micro_tokens);
        runs.into_iter().map(|run| batch(&windows[run])).collect()
    };
    task.compute.deal(windows.len()).map(leaf).collect()
}

/// The rows of `samples.jsonl`: what was said to whom, and what it was worth.
fn samples(rollout: &Compared, task: &Task<'_>) -> Result<Vec<serde_json::Value>> {
    let rows = rollout.episodes.iter().zip(&rollout.scores).zip(rollout.kl());
    let row = |((episode, score), kl): ((&instruct_rollout::Episode, &f32), f64)| {
        let prompt = (task.decode)(&episode.prompt);
        let prompt = prompt.map_err(|source| instruct_rollout::Error::Decode { episode: episode.id, source })?;
        Ok(serde_json::json!({
            "episode": episode.id,
            "group": episode.group,
            "prompt": prompt,
            "completion": episode.text,
            "tokens": episode.completion.len(),
            "ended_by_eos": episode.ended_by_eos,
            "score": score,
            "kl": kl,
        }))
    };
    rows.map(row).collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trace;
