//! Whole iterations and single steps against slow readings of their definitions.

use super::*;
use crate::{Alarm, Guards, KlControl, MissingEos, WhitenScope};
use candle_core::{DType, Device, Tensor};
use instruct_claims::holds;
use instruct_collective::{
    Collective, Solo,
    testing::{pairwise, threads},
};
use instruct_kernels::{Path, gather_rows, logits, token_logprob, token_nll};
use instruct_model::{Config, Pass};
use instruct_optim::Schedule;
use instruct_rollout::Episode;
use instruct_runs::{Artefact, Checkpoint, Event, Flow, RunDir, Start};
use std::collections::BTreeMap;

type Metric = BTreeMap<&'static str, f64>;

const VOCAB: usize = 12;

/// A decoder in which every parameter matters; `seed` says which.
fn model(head: HeadKind, seed: u64, path: Path) -> Decoder {
    let model = Decoder::zeros(Config::tiny_gpt2(VOCAB, 16, 2, 2, 24), head, &Device::Cpu, path, DType::F32).unwrap();
    for slot in model.params().slots() {
        let centre = if slot.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut draws = Source::new(seed, &slot.name).at([]);
        let values: Vec<f32> = (0..slot.len).map(|_| centre + 0.2 * draws.normal()).collect();
        model.params().set(&slot.name, &values).unwrap();
    }
    model
}

fn prompts() -> Vec<Vec<u32>> {
    (0..5).map(|i| (0..=i).map(|j| 1 + (3 * i + 5 * j) % 11).collect()).collect()
}

fn windows() -> Vec<Vec<u32>> {
    (0..4).map(|i| (0..5 + i).map(|j| (2 + i + 7 * j) % 12).collect()).collect()
}

type Scores = Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;

/// Sevens are good, length is not, and some prompts are luckier than others.
fn sevens(episodes: &[Episode]) -> Scores {
    let of = |e: &Episode| {
        let sevens = e.completion.iter().filter(|&&id| id == 7).count();
        sevens as f32 - 0.3 * e.completion.len() as f32 + 0.1 * e.group as f32
    };
    Ok(episodes.iter().map(of).collect())
}

fn spell(ids: &[u32]) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    Ok(ids.iter().map(|id| format!("{id} ")).collect())
}

fn plan() -> Plan {
    Plan {
        episodes: 24,
        batch: 8,
        minibatch: 8,
        max_new_tokens: 6,
        policy_lr: 0.01,
        critic: Critic::Separate { lr: 0.01, coefficient: 1.0 },
        gamma_ptx: 0.0,
        ..Plan::preset(crate::Preset::InstructGpt)
    }
}

fn with_head(plan: Plan) -> Plan {
    Plan { critic: Critic::Head { coefficient: 0.1 }, ..plan }
}

fn state(plan: &Plan) -> State {
    match plan.critic {
        Critic::Separate { .. } => {
            let value = model(HeadKind::Value, 3, Path::Fused);
            State::new(model(HeadKind::LanguageModel, 1, Path::Fused), Some(value), plan).unwrap()
        }
        Critic::Head { .. } => State::new(model(HeadKind::LanguageModelWithValue, 1, Path::Fused), None, plan).unwrap(),
    }
}

/// Runs to the end and returns every iteration's metrics and every sample.
fn run(
    state: &mut State,
    reference: &Decoder,
    plan: &Plan,
    micro_tokens: usize,
) -> (Vec<Metric>, Vec<serde_json::Value>) {
    let (mut steps, mut samples) = (Vec::new(), Vec::new());
    let (prompts, windows) = (prompts(), windows());
    let compute = Compute { micro_tokens, ..Compute::default() };
    let task = Task { compute, ..task(reference, &prompts, &windows) };
    let mut on = |event: Event<'_, State>| {
        match event {
            Event::Step { metrics, .. } => steps.push(metrics.iter().copied().collect()),
            Event::Sample { row, .. } => samples.push(row.clone()),
            _ => {}
        }
        Ok(Flow::Continue)
    };
    train(state, &task, plan, &mut on).unwrap();
    (steps, samples)
}

fn task<'a>(reference: &'a Decoder, prompts: &'a [Vec<u32>], pretraining: &'a [Vec<u32>]) -> Task<'a> {
    let (stop, compute) = ([0].into(), Compute { micro_tokens: 40, ..Compute::default() });
    Task { reference, prompts, pretraining, score: &sevens, decode: &spell, stop, compute }
}

#[track_caller]
fn check_start(plan: &Plan, micro_tokens: usize) {
    let mut state = state(plan);
    let reference = state.policy.deep_copy().unwrap();
    let (steps, _) = run(&mut state, &reference, plan, micro_tokens);
    assert_eq!(steps.len(), 3);
    for name in ["objective/kl", "objective/kl_k3"] {
        holds("known/kl-at-start", name, steps[0][name].abs(), 0.0);
        assert_ne!(steps[1][name], 0.0, "{name} after it");
    }
    for step in &steps {
        holds("known/first-ratio", "largest distance from 1", step["ppo/policy/ratio_first_minibatch"], 0.0);
        assert_eq!(step["ppo/sampling_gap"], 0.0);
    }
    if plan.steps_per_iteration() == 1 {
        // As in the published trace's first epoch: ratio 1, approxkl 0, a policy loss of rounding.
        for step in &steps {
            for name in ["ppo/policy/approxkl", "ppo/policy/clipfrac"] {
                holds("known/first-epoch", name, step[name], 0.0);
            }
            holds("known/first-epoch-ratio", "mean ratio", (step["ppo/policy/ratio"] - 1.0).abs(), 1e-12);
            holds("known/first-epoch-loss", "whitened advantages", step["ppo/loss/policy"].abs(), 1e-6);
        }
    } else {
        assert!(steps[0]["ppo/policy/approxkl"] > 0.0, "later minibatches meet another policy");
    }
}

#[test]
fn at_the_start_the_policy_is_its_reference_and_what_sampled() {
    for micro_tokens in [1, 40, 10_000] {
        check_start(&plan(), micro_tokens);
    }
    check_start(&with_head(plan()), 40);
    check_start(&Plan { temperature: 0.7, ..plan() }, 40);
    check_start(&Plan { minibatch: 2, inner_epochs: 3, ..plan() }, 40);
    check_start(&Plan { gamma_ptx: 1.0, ptx_examples: 1, ..plan() }, 40);
}

/// Log-softmax of every row of one sequence, in `f64`.
fn slow_rows(model: &Decoder, text: &[u32], temperature: f64) -> Vec<Vec<f64>> {
    let mut batch = Packed::new();
    batch.push(text, 0);
    let hidden = model.hidden(&batch, Pass::Infer).unwrap();
    let rows: Vec<u32> = (0..text.len() as u32).collect();
    let logits = logits(&gather_rows(&hidden, &rows).unwrap(), model.unembedding().unwrap()).unwrap();
    let log_softmax = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|&z| (f64::from(z) / temperature).exp()).sum();
        row.iter().map(|&z| f64::from(z) / temperature - sum.ln()).collect()
    };
    logits.to_vec2::<f32>().unwrap().iter().map(log_softmax).collect()
}

fn slow_values(model: &Decoder, text: &[u32]) -> Vec<f64> {
    let mut batch = Packed::new();
    batch.push(text, 0);
    let hidden = model.hidden(&batch, Pass::Infer).unwrap();
    let rows: Vec<u32> = (0..text.len() as u32).collect();
    model.scalars(&hidden, &rows).unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn variance(values: &[f64]) -> f64 {
    mean(&values.iter().map(|x| (x - mean(values)).powi(2)).collect::<Vec<_>>())
}

/// The metrics of the first iteration, from what was said and from the definitions of the method,
/// one episode at a time.
fn slow_iteration(state: &State, reference: &Decoder, plan: &Plan, samples: &[serde_json::Value]) -> Metric {
    let (prompts, beta, temperature) = (prompts(), plan.kl.initial(), f64::from(plan.temperature));
    let (gamma, lambda) = (f64::from(plan.gamma), f64::from(plan.lambda));
    let mut out = Metric::new();
    let mut add = |name, value: f64| *out.entry(name).or_insert(0.0) += value / samples.len() as f64;
    let (mut rewards, mut values, mut entropies): (Vec<Vec<f64>>, Vec<Vec<f64>>, Vec<f64>) = Default::default();
    for sample in samples {
        let prompt = &prompts[sample["group"].as_u64().unwrap() as usize];
        let said: Vec<u32> =
            sample["completion"].as_str().unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect();
        let text = [&prompt[..], &said].concat();
        let (new, old) = (slow_rows(&state.policy, &text, temperature), slow_rows(reference, &text, temperature));
        let all = slow_values(state.value.as_ref().unwrap_or(&state.policy), &text);
        let (score, ended) = (sample["score"].as_f64().unwrap(), sample["ended_by_eos"].as_bool().unwrap());
        assert_eq!(ended, said.last() == Some(&0));
        let seen = match plan.missing_eos {
            MissingEos::Replace(fixed) if !ended => f64::from(fixed),
            MissingEos::Penalty(penalty) if !ended => score - f64::from(penalty),
            _ => score,
        };
        let (mut reward, mut value) = (Vec::new(), Vec::new());
        for (t, &id) in said.iter().enumerate() {
            let row = prompt.len() + t - 1;
            let (p, q) = (new[row][id as usize], old[row][id as usize]);
            add("objective/kl", p - q);
            add("objective/kl_k3", (q - p).exp() - 1.0 - (q - p));
            reward.push(-beta * (p - q) + if t + 1 == said.len() { seen } else { 0.0 });
            value.push(all[row]);
            entropies.push(-new[row].iter().map(|l| l.exp() * l).sum::<f64>());
            add("objective/entropy", *entropies.last().unwrap());
            add("objective/rlhf_reward", -beta * (p - q));
        }
        add("objective/scores", score);
        add("objective/rlhf_reward", seen);
        add("ppo/response_tokens", said.len() as f64);
        add("ppo/val/num_eos_tokens", f64::from(u8::from(ended)) * samples.len() as f64);
        rewards.push(reward);
        values.push(value);
    }
    let flat = rewards.concat();
    if plan.whiten_rewards {
        let (centre, scale) = (mean(&flat), (variance(&flat) + f64::from(plan.whiten_eps)).sqrt());
        rewards.iter_mut().flatten().for_each(|r| *r = (*r - centre) / scale + centre);
    }
    let mut advantages = Vec::new();
    for (reward, value) in rewards.iter().zip(&values) {
        let delta = |t: usize| reward[t] + gamma * value.get(t + 1).copied().unwrap_or(0.0) - value[t];
        let sum = |t: usize| (t..reward.len()).map(|u| (gamma * lambda).powi((u - t) as i32) * delta(u)).sum();
        advantages.extend((0..reward.len()).map(sum).collect::<Vec<f64>>());
    }
    let returns: Vec<f64> = advantages.iter().zip(values.concat()).map(|(a, v)| a + v).collect();
    out.insert("objective/kl_coef", beta);
    out.insert("ppo/policy/entropy", mean(&entropies));
    out.insert("ppo/policy/ratio", 1.0);
    out.insert("ppo/returns/mean", mean(&returns));
    out.insert("ppo/returns/var", variance(&returns));
    out.insert("ppo/val/explained_variance", 1.0 - variance(&advantages) / variance(&returns));
    out.insert("ppo/val/clipfrac", 0.0);
    out.insert("ppo/loss/value", 0.5 * mean(&advantages.iter().map(|a| a * a).collect::<Vec<_>>()));
    let whitened = plan.whiten_advantages != WhitenScope::Off;
    out.insert("ppo/loss/policy", if whitened { 0.0 } else { -mean(&advantages) });
    let text = |w: &Vec<u32>| {
        let rows = slow_rows(&state.policy, w, 1.0);
        (1..w.len()).map(|t| -rows[t - 1][w[t] as usize]).collect::<Vec<_>>()
    };
    let ptx: Vec<f64> = windows().iter().flat_map(text).collect();
    out.insert("ppo/loss/ptx", if plan.gamma_ptx > 0.0 { mean(&ptx) } else { 0.0 });
    out
}

/// A reward that is 0 for everybody, from a policy that is its own reference and a critic of zeros.
#[track_caller]
fn check_idle(plan: &Plan) {
    let mut state = state(plan);
    let reference = state.policy.deep_copy().unwrap();
    let zeros = |model: &Decoder| {
        let head = model.params().slots().iter().filter(|slot| slot.name.starts_with("score."));
        head.for_each(|slot| model.params().set(&slot.name, &vec![0.0; slot.len]).unwrap());
    };
    state.value.as_ref().map_or_else(|| zeros(&state.policy), zeros);
    let start = state.policy.params().with_weights(|weights| weights.to_vec()).unwrap();
    let nothing = |episodes: &[Episode]| -> Scores { Ok(vec![0.0; episodes.len()]) };
    let (prompts, windows) = (prompts(), windows());
    let idle = Task { score: &nothing, ..task(&reference, &prompts, &windows) };
    train(&mut state, &idle, plan, &mut |_| Ok(Flow::Continue)).unwrap();
    assert!(state.policy_optimizer.is_idle());
    assert_eq!(state.policy.params().with_weights(|weights| weights.to_vec()).unwrap(), start);
    // Once rewards differ, it learns.
    let plan = &Plan { episodes: plan.episodes + plan.batch as u64, ..plan.clone() };
    train(&mut state, &task(&reference, &prompts, &windows), plan, &mut |_| Ok(Flow::Continue)).unwrap();
    assert!(!state.policy_optimizer.is_idle());
}

#[test]
fn a_reward_that_is_the_same_for_all_is_no_dead_parameter() {
    for plan in [plan(), with_head(plan())] {
        check_idle(&Plan { adam: instruct_optim::AdamConfig { weight_decay: 0.0, ..plan.adam }, ..plan });
    }
}

#[track_caller]
fn check_iteration(plan: Plan) {
    let plan = Plan { episodes: 8, ..plan };
    let reference = model(HeadKind::LanguageModel, 2, Path::Fused);
    let mut trained = state(&plan);
    let (steps, samples) = run(&mut trained, &reference, &plan, 40);
    let wanted = slow_iteration(&state(&plan), &reference, &plan, &samples);
    assert!(samples.iter().any(|s| s["ended_by_eos"] == true) && samples.iter().any(|s| s["ended_by_eos"] == false));
    for (name, wanted) in wanted {
        let found = steps[0][name];
        assert!((found - wanted).abs() <= 2e-5 + 2e-5 * wanted.abs(), "{name}: {found}, wanted {wanted}");
    }
}

#[test]
fn an_iteration_measures_what_the_definitions_say() {
    check_iteration(plan());
    check_iteration(with_head(plan()));
    check_iteration(Plan { whiten_advantages: WhitenScope::Off, ..plan() });
    check_iteration(Plan { whiten_advantages: WhitenScope::Off, gamma: 0.9, lambda: 0.6, ..with_head(plan()) });
    check_iteration(Plan { whiten_rewards: true, whiten_advantages: WhitenScope::Off, ..plan() });
    check_iteration(Plan { missing_eos: MissingEos::Replace(-1.0), temperature: 0.8, ..plan() });
    check_iteration(Plan { missing_eos: MissingEos::Penalty(2.0), kl: KlControl::Fixed { beta: 0.3 }, ..plan() });
    // Eight examples are the four windows twice.
    check_iteration(Plan { gamma_ptx: 2.0, ptx_examples: 1, ..plan() });
}

/// What the policy of [`state`] learns from in its first iteration, at a price of 0.1 per nat.
fn experience(plan: &Plan) -> Experience {
    let (state, reference) = (state(plan), model(HeadKind::LanguageModel, 2, Path::Fused));
    let (prompts, windows) = (prompts(), windows());
    let task = task(&reference, &prompts, &windows);
    let scored = sample(&state, &task, plan, &mut Orders::new(&task)).unwrap().score(task.score).unwrap();
    let rollout = scored.compare(&state.policy, &reference, plan.temperature, 40).unwrap();
    let values = values(state.value.as_ref().unwrap_or(&state.policy), &rollout.episodes, 40).unwrap();
    Experience::new(rollout, values, plan, 0.1)
}

/// `decoder` some way off, as after a few steps, on another path.
fn moved(decoder: &Decoder, path: Path) -> Decoder {
    let other = model(decoder.head(), 1, path);
    for slot in decoder.params().slots() {
        let mut draws = Source::new(8, &slot.name).at([]);
        let mut values = decoder.params().read(&slot.name).unwrap();
        values.iter_mut().for_each(|x| *x += 0.03 * draws.normal());
        other.params().set(&slot.name, &values).unwrap();
    }
    other
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// `0.5 * mean max((v - R)^2, (clip(v) - R)^2)`, by Candle.
fn slow_value_loss(values: &Tensor, old: &[f32], returns: &[f32], clip: f64) -> candle_core::Result<Tensor> {
    let clipped = (tensor(old) + (values - tensor(old))?.clamp(-clip, clip)?)?;
    let squares = (values - tensor(returns))?.sqr()?.maximum(&(clipped - tensor(returns))?.sqr()?)?;
    squares.mean_all()? * 0.5
}

fn grads(model: &Decoder) -> Vec<f32> {
    model.params().with_grads(|grads| grads.to_vec()).unwrap()
}

#[track_caller]
fn near(model: &Decoder, found: &[f32], wanted: &[f32], tolerance: f64) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for slot in model.params().slots() {
        let (found, wanted) = (&found[slot.range()], &wanted[slot.range()]);
        let off = norm(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
        let size = norm(&mut wanted.iter().copied());
        assert!(size > 0.0 && off <= tolerance * size, "{}: off by {off} of {size}", slot.name);
    }
}

/// The gradients of one minibatch are those of the losses written out in Candle, over one batch.
#[track_caller]
fn check_step(plan: Plan) {
    let experience = experience(&plan);
    let rollout = &experience.rollout;
    let episodes = [5, 2, 7, 0, 3, 1, 6];
    let start = state(&plan);
    let [policy, slow] = [Path::Fused, Path::Composed].map(|path| moved(&start.policy, path));
    let ptx = if plan.gamma_ptx > 0.0 { windows() } else { Vec::new() };

    let mut advantages = rollout.pick(&experience.advantages, &episodes);
    if plan.whiten_advantages == WhitenScope::Minibatch {
        crate::whiten(&mut advantages, plan.whiten_eps, false);
    }
    let pick = |values: &[f32]| rollout.pick(values, &episodes);
    let (old, values, returns) = (pick(&rollout.old), pick(&experience.values), pick(&experience.returns));
    let batch = experience.pack(&episodes);
    let (rows, targets) = columns(&batch);
    let mut wanted = UpdateStats::default();
    let scalar = |x: &Tensor| f64::from(x.to_scalar::<f32>().unwrap());

    let hidden = slow.hidden(&batch, Pass::Train).unwrap();
    let unembedding = slow.unembedding().unwrap();
    let logprobs = token_logprob(&hidden, unembedding, &rows, &targets, plan.temperature).unwrap();
    let logprobs = logprobs.narrow(1, 0, 1).unwrap().flatten_all().unwrap();
    let ratio = (&logprobs - tensor(&old)).unwrap().exp().unwrap();
    let free = (&ratio * tensor(&advantages)).unwrap().neg().unwrap();
    let (low, high) = (1.0 - f64::from(plan.clip), 1.0 + f64::from(plan.clip));
    let clipped = (ratio.clamp(low, high).unwrap() * tensor(&advantages)).unwrap().neg().unwrap();
    let mut loss = free.maximum(&clipped).unwrap().mean_all().unwrap();
    wanted.policy_loss = scalar(&loss);
    wanted.ratio = scalar(&ratio.mean_all().unwrap());
    wanted.approxkl = 0.5 * scalar(&(logprobs - tensor(&old)).unwrap().sqr().unwrap().mean_all().unwrap());
    if let Critic::Head { coefficient } = plan.critic {
        let found = slow.scalars(&hidden, &rows).unwrap();
        let value_loss = slow_value_loss(&found, &values, &returns, f64::from(plan.value_clip)).unwrap();
        wanted.value_loss = scalar(&value_loss);
        loss = (loss + (value_loss * coefficient).unwrap()).unwrap();
    }
    if plan.gamma_ptx > 0.0 {
        let batch = texts(&ptx);
        let (rows, targets) = columns(&batch);
        let weights = vec![1.0 / rows.len() as f32; rows.len()];
        let hidden = slow.hidden(&batch, Pass::Train).unwrap();
        let ptx_loss = token_nll(&hidden, unembedding, &rows, &targets, &weights).unwrap();
        wanted.ptx_loss = scalar(&ptx_loss);
        loss = (loss + (ptx_loss * plan.gamma_ptx).unwrap()).unwrap();
    }
    slow.params().backward(&loss).unwrap();

    let slow_value = start.value.as_ref().map(|value| moved(value, Path::Composed));
    if let Some(value) = &slow_value {
        let found = value.scalars(&value.hidden(&batch, Pass::Train).unwrap(), &rows).unwrap();
        let value_loss = slow_value_loss(&found, &values, &returns, f64::from(plan.value_clip)).unwrap();
        wanted.value_loss = scalar(&value_loss);
        value.params().backward(&(value_loss * 0.5).unwrap()).unwrap();
    }
    for (micro_tokens, leaves) in [(1, 1), (30, 1), (1_000, 1), (30, 2), (1_000, 4), (30, 20)] {
        let compute = Compute { micro_tokens, leaves, ..Compute::default() };
        let minibatch = Minibatch::new(&experience, &episodes, &plan, compute);
        let ptx_batches = mixed(&ptx, compute);
        let head = slow_value.is_none().then_some(0.1);
        policy.params().zero_grad();
        let mut stats = minibatch.policy_gradients(&policy, &plan, head, &ptx_batches).unwrap();
        near(&policy, &grads(&policy), &grads(&slow), 1e-4);
        if let (Some(start), Some(slow)) = (&start.value, &slow_value) {
            let value = moved(start, Path::Fused);
            minibatch.value_gradients(&value, &plan, 0.5, &mut stats).unwrap();
            near(&value, &grads(&value), &grads(slow), 1e-4);
        }
        let of = |s: &UpdateStats| [s.policy_loss, s.value_loss, s.ptx_loss, s.approxkl, s.ratio];
        for (found, wanted) in of(&stats).into_iter().zip(of(&wanted)) {
            assert!((found - wanted).abs() <= 1e-5 + 1e-5 * wanted.abs(), "{stats:?}, wanted {wanted:?}");
        }
        assert!(stats.clipfrac > 0.0 && stats.clipfrac < 1.0 && stats.value_clipfrac > 0.0, "{stats:?}");
        // What this test does on purpose must not happen in a run unnoticed.
        let noticed = guards::first_ratio(&plan.guards, stats.ratio_deviation);
        assert!(matches!(noticed, Err(Alarm::Ratio { .. })));
    }
}

/// The windows of each leaf, up to three together.
fn mixed(windows: &[Vec<u32>], compute: Compute) -> Vec<Vec<Packed>> {
    compute.deal(windows.len()).map(|leaf| windows[leaf].chunks(3).map(texts).collect()).collect()
}

fn texts(windows: &[Vec<u32>]) -> Packed {
    let mut batch = Packed::new();
    for (example, window) in (0..).zip(windows) {
        batch.push_text(window, example, 1.0);
    }
    batch
}

fn columns(batch: &Packed) -> (Vec<u32>, Vec<u32>) {
    batch.predictions().iter().map(|p| (p.row, p.target)).unzip()
}

#[test]
fn a_step_follows_the_losses_as_written_out_with_the_mix_in_the_same_buffer() {
    let tight = Plan { clip: 0.05, value_clip: 0.05, ..plan() };
    let mixed = Plan { gamma_ptx: 3.0, ptx_examples: 1, ..tight.clone() };
    check_step(tight.clone());
    check_step(mixed.clone());
    check_step(with_head(tight.clone()));
    check_step(with_head(mixed.clone()));
    check_step(Plan { whiten_advantages: WhitenScope::Minibatch, temperature: 0.7, ..mixed });
    check_step(Plan { whiten_advantages: WhitenScope::Off, ..tight });
}

/// The gradients have the bits of the backward passes of all micro-batches, each leaf's apart, added as the definition
/// says; with one leaf, of all micro-batches of episodes and after them all of windows.
#[track_caller]
fn check_leaves(leaves: usize) {
    let plan = Plan { gamma_ptx: 3.0, ptx_examples: 1, ..plan() };
    let (experience, start, episodes) = (experience(&plan), state(&plan), [5, 2, 7, 0, 3, 1, 6]);
    let compute = Compute { micro_tokens: 20, leaves, ..Compute::default() };
    let mut minibatch = Minibatch::new(&experience, &episodes, &plan, compute);
    let (windows, value) = (windows(), start.value.as_ref().unwrap());
    let ptx = mixed(&windows, compute);
    let (policy, mut stats) = (start.policy.deep_copy().unwrap(), UpdateStats::default());
    let found = [
        minibatch.policy_gradients(&policy, &plan, None, &ptx).map(|_| grads(&policy)).unwrap(),
        minibatch.value_gradients(value, &plan, 0.5, &mut stats).map(|_| grads(value)).unwrap(),
    ];
    let ptx_tokens: usize = ptx.iter().flatten().map(|batch| batch.predictions().len()).sum();
    let mut by_hand = [Vec::new(), Vec::new()];
    for (leaf, ptx) in std::mem::take(&mut minibatch.leaves).into_iter().zip(&ptx) {
        let (mut policies, mut values) = (Vec::new(), Vec::new());
        for micro in leaf {
            minibatch.leaves = vec![vec![micro]];
            let (policy, value) = (policy.deep_copy().unwrap(), value.deep_copy().unwrap());
            minibatch.policy_gradients(&policy, &plan, None, &[vec![]]).unwrap();
            minibatch.value_gradients(&value, &plan, 0.5, &mut stats).unwrap();
            policies.push(grads(&policy));
            values.push(grads(&value));
        }
        for batch in ptx {
            let policy = policy.deep_copy().unwrap();
            crate::update::ptx_micro(&policy, batch, plan.gamma_ptx, ptx_tokens).unwrap();
            policies.push(grads(&policy));
        }
        for (parts, (of_leaf, model)) in by_hand.iter_mut().zip([(policies, &policy), (values, value)]) {
            let zeros = || vec![0.0; model.params().len()];
            parts.push(if of_leaf.is_empty() { zeros() } else { pairwise(&of_leaf) });
        }
    }
    let bits = |gradient: &[f32]| gradient.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (found, parts) in found.iter().zip(by_hand) {
        assert_eq!(bits(found), bits(&pairwise(&parts)), "{leaves} leaves");
    }
}

#[test]
fn a_gradient_is_the_sum_of_its_leaves() {
    [1, 2, 4, 9].into_iter().for_each(check_leaves);
}

#[test]
fn whitening_has_the_scope_of_the_plan() {
    let moments = |x: &[f32]| {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        (mean(&x).abs() < 1e-5, (variance(&x) - 1.0).abs() < 1e-4)
    };
    for scope in [WhitenScope::Batch, WhitenScope::Minibatch, WhitenScope::Off] {
        let plan = Plan { whiten_advantages: scope, ..plan() };
        let experience = experience(&plan);
        assert_eq!(moments(&experience.advantages).1, scope == WhitenScope::Batch, "{scope:?}");
        for episodes in [[0, 1, 2], [5, 7, 3]] {
            let compute = Compute { micro_tokens: 40, ..Compute::default() };
            let minibatch = Minibatch::new(&experience, &episodes, &plan, compute);
            let white = moments(&minibatch.advantages) == (true, true);
            assert_eq!(white, scope == WhitenScope::Minibatch, "{scope:?}");
        }
        let returns = experience.returns.clone();
        assert_eq!(returns, self::experience(&Plan { whiten_advantages: WhitenScope::Off, ..plan }).returns);
    }
}

/// What every token of an episode that scored 2 earns without a critic and without a discount.
#[track_caller]
fn check_missing_eos(rule: MissingEos, ended_by_eos: bool, wanted: f32) {
    let (prompt, completion) = (vec![1], vec![4, 5, if ended_by_eos { 0 } else { 6 }]);
    let episode = Episode { id: 0, group: 0, prompt, completion, text: String::new(), ended_by_eos };
    let (old, reference, tokens) = (vec![-1.0; 3], vec![-1.0; 3], std::iter::once(0..3).collect());
    let rollout =
        Compared { episodes: vec![episode], scores: vec![2.0], tokens, old, reference, ..Compared::default() };
    let plan = Plan { missing_eos: rule, lambda: 1.0, whiten_advantages: WhitenScope::Off, ..plan() };
    assert_eq!(Experience::new(rollout, vec![0.0; 3], &plan, 0.1).advantages, [wanted; 3]);
}

#[test]
fn a_completion_that_never_stopped_is_worth_what_the_plan_says() {
    for rule in [MissingEos::Off, MissingEos::Replace(-1.0), MissingEos::Penalty(0.5)] {
        check_missing_eos(rule, true, 2.0);
    }
    check_missing_eos(MissingEos::Off, false, 2.0);
    check_missing_eos(MissingEos::Replace(-1.0), false, -1.0);
    check_missing_eos(MissingEos::Penalty(0.5), false, 1.5);
}

#[test]
fn a_value_head_of_zeros_learns_what_everything_is_worth() {
    let critic = Critic::Head { coefficient: 1.0 };
    // Its scores never vary.
    let guards = Guards { constant_iterations: 0, ..Guards::default() };
    let plan = Plan { episodes: 240, critic, guards, schedule: Schedule::CONSTANT, ..plan() };
    let mut state = state(&plan);
    state.policy.params().set("score.weight", &[0.0; 16]).unwrap();
    state.policy.params().set("score.bias", &[0.0]).unwrap();
    let (prompts, reference) = (prompts(), state.policy.deep_copy().unwrap());
    let task = Task { score: &|episodes| Ok(vec![1.0; episodes.len()]), ..task(&reference, &prompts, &[]) };
    let mut losses = Vec::new();
    let mut on = |event: Event<'_, State>| {
        if let Event::Step { metrics, .. } = event {
            losses.push(metrics.iter().find(|(name, _)| *name == "ppo/loss/value").unwrap().1);
        }
        Ok(Flow::Continue)
    };
    train(&mut state, &task, &plan, &mut on).unwrap();
    // Whatever is said is worth 1, so nothing but the head can lower this loss.
    assert!(losses[0] > 0.3 && losses[29] < 0.05 * losses[0], "{losses:?}");
    assert!(state.policy.params().read("score.weight").unwrap().iter().all(|w| *w != 0.0));
}

#[test]
fn an_adaptive_price_follows_the_divergence() {
    let kl = KlControl::Adaptive { initial: 0.2, target: 0.05, horizon: 40.0 };
    let plan = Plan { kl, policy_lr: 0.03, episodes: 64, schedule: Schedule::CONSTANT, ..plan() };
    let mut state = state(&plan);
    let reference = state.policy.deep_copy().unwrap();
    let (steps, _) = run(&mut state, &reference, &plan, 40);
    let mut beta: f64 = 0.2;
    for step in &steps {
        assert_eq!(step["objective/kl_coef"], beta);
        beta *= 1.0 + (step["objective/kl"] / 0.05 - 1.0).clamp(-0.2, 0.2) * 8.0 / 40.0;
    }
    assert!((state.beta - beta).abs() < 1e-12);
    assert!(steps[1]["objective/kl_coef"] < 0.2, "no divergence yet: cheaper");
    assert!(steps.iter().any(|step| step["objective/kl"] > 0.05), "the policy never moved: {steps:?}");
}

fn weights(model: &Decoder) -> Vec<f32> {
    model.params().with_weights(|weights| weights.to_vec()).unwrap()
}

#[test]
fn the_average_moves_with_every_step() {
    let plan = Plan { ema: 0.6, minibatch: 8, ..plan() };
    let mut state = state(&plan);
    let (prompts, reference) = (prompts(), state.policy.deep_copy().unwrap());
    let mut wanted = weights(&state.policy);
    let mut on = |event: Event<'_, State>| {
        if let Event::Boundary { state, .. } = event {
            wanted.iter_mut().zip(weights(&state.policy)).for_each(|(a, w)| *a = 0.6 * *a + 0.4 * w);
        }
        Ok(Flow::Continue)
    };
    train(&mut state, &task(&reference, &prompts, &[]), &plan, &mut on).unwrap();
    let average = state.ema.as_ref().unwrap().average();
    assert!(average.read().iter().zip(&wanted).all(|(a, w)| (a - w).abs() < 1e-6));
    assert_ne!(*average.read(), weights(&state.policy));
    assert!(self::state(&Plan { ema: 0.0, ..plan }).ema.is_none());
}

/// Saves a state through an artefact, and returns every file of its checkpoint.
fn saved(artefact: &mut Artefact, state: &State) -> BTreeMap<String, Vec<u8>> {
    let folder = artefact.save(state.iteration, state).unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let named =
        |path: std::path::PathBuf| (path.file_name().unwrap().display().to_string(), std::fs::read(path).unwrap());
    // The manifest knows how long the journals are, which nobody writes here.
    files.map(named).filter(|(name, _)| name != "manifest.json").collect()
}

#[test]
fn another_runs_critic_goes_on_with_what_its_optimizer_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::open(folder.path(), Start::Fresh, "", &0).unwrap();
    let (plan, prompts) = (plan(), prompts());
    let mut old = state(&plan);
    let reference = old.policy.deep_copy().unwrap();
    train(&mut old, &task(&reference, &prompts, &[]), &plan, &mut |_| Ok(Flow::Continue)).unwrap();
    let files = saved(&mut run.artefact("old").unwrap(), &old);
    let mut new = state(&plan);
    let policy = weights(&new.policy);
    new.take_critic(&Checkpoint::newest(&folder.path().join("old")).unwrap().unwrap().arrays()).unwrap();
    let taken = saved(&mut run.artefact("new").unwrap(), &new);
    for file in ["value.safetensors", "value-optimizer.safetensors"] {
        assert!(taken[file] == files[file], "{file}");
    }
    assert_eq!((weights(&new.policy), new.iteration, new.policy_optimizer.steps()), (policy, 0, 0));
    assert!(weights(old.value.as_ref().unwrap()) != weights(state(&plan).value.as_ref().unwrap()));
    // A critic that is a head of the policy has no files of its own.
    let plan = with_head(plan);
    let (mut head, before) = (state(&plan), state(&plan));
    head.take_critic(&Checkpoint::newest(&folder.path().join("old")).unwrap().unwrap().arrays()).unwrap();
    assert_eq!(weights(&head.policy), weights(&before.policy));
}

#[track_caller]
fn check_resume(plan: Plan, leaves: usize) {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::open(folder.path(), Start::Fresh, "", &0).unwrap();
    let mut whole = state(&plan);
    let (prompts, windows, reference) = (prompts(), windows(), whole.policy.deep_copy().unwrap());
    let task = task(&reference, &prompts, &windows);
    let task = Task { compute: Compute { leaves, ..task.compute }, ..task };
    train(&mut whole, &task, &plan, &mut |_| Ok(Flow::Continue)).unwrap();
    let wanted = saved(&mut run.artefact("whole").unwrap(), &whole);
    assert!(wanted.len() >= 3, "{:?}", wanted.keys());
    for cut in 1..3 {
        let name = format!("cut-{cut}");
        let mut first = state(&plan);
        let mut stop = |event: Event<'_, State>| match event {
            Event::Boundary { step, .. } if step == cut => Ok(Flow::Stop),
            _ => Ok(Flow::Continue),
        };
        train(&mut first, &task, &plan, &mut stop).unwrap();
        assert!(saved(&mut run.artefact(&name).unwrap(), &first) != wanted);
        let mut second = state(&plan);
        let mut artefact = run.artefact(&name).unwrap();
        artefact.restore(&mut second).unwrap();
        assert_eq!(second.iteration, cut);
        train(&mut second, &task, &plan, &mut |_| Ok(Flow::Continue)).unwrap();
        assert!(saved(&mut artefact, &second) == wanted, "cut after iteration {cut}");
    }
}

#[test]
fn a_run_cut_anywhere_ends_with_the_same_bits() {
    let plan = Plan { minibatch: 4, inner_epochs: 2, gamma_ptx: 1.0, ptx_examples: 1, ..plan() };
    for leaves in [1, 4] {
        check_resume(plan.clone(), leaves);
    }
    let kl = KlControl::Adaptive { initial: 0.1, target: 0.1, horizon: 50.0 };
    check_resume(with_head(Plan { kl, ema: 0.0, ..plan }), 1);
}

/// A run whose task and plan were changed stops with a message.
#[track_caller]
fn refused(change: impl Fn(&mut Task<'_>, &mut Plan), message: &str) {
    let (prompts, windows, mut plan) = (prompts(), windows(), plan());
    let mut state = state(&plan);
    let reference = state.policy.deep_copy().unwrap();
    let mut task = task(&reference, &prompts, &windows);
    change(&mut task, &mut plan);
    let found = train(&mut state, &task, &plan, &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
    assert_eq!((state.iteration, state.policy_optimizer.steps()), (0, 0));
}

fn fifth(episodes: &[Episode], value: f32) -> Scores {
    Ok(episodes.iter().map(|e| if e.id == 5 { value } else { 0.0 }).collect())
}

#[test]
fn what_cannot_run_is_refused() {
    refused(|task, _| task.score = &|_| Ok(vec![1.0; 7]), "returned 7 scores for 8 episodes");
    refused(|task, _| task.score = &|_| Ok(vec![1.0; 9]), "returned 9 scores for 8 episodes");
    refused(|task, _| task.score = &|e| fifth(e, f32::NAN), "episode 5 scored NaN");
    refused(|task, _| task.score = &|e| fifth(e, f32::INFINITY), "episode 5 scored inf");
    refused(|task, _| task.score = &|_| Err("no judge".into()), "the scoring function failed: no judge");
    refused(|task, _| task.prompts = &[], "there are no prompts");
    let mix = |plan: &mut Plan| (plan.gamma_ptx, plan.ptx_examples) = (27.8, 1);
    let none = |task: &mut Task<'_>, plan: &mut Plan| (task.pretraining, _) = (&[], mix(plan));
    refused(none, "gamma-ptx is 27.8 but there is no pretraining window");
    refused(|_, plan| plan.minibatch = 3, "`minibatch` does not divide `batch`");
    refused(|_, plan| plan.temperature = 0.0, "`temperature` must be above 0");
}

#[test]
fn a_ratio_that_is_not_one_stops_before_the_step() {
    let (prompts, windows, plan) = (prompts(), windows(), plan());
    let (mut state, mut experience) = (state(&plan), experience(&plan));
    experience.rollout.old.iter_mut().for_each(|logprob| *logprob += 0.01);
    let reference = state.policy.deep_copy().unwrap();
    let task = task(&reference, &prompts, &windows);
    let error =
        update(&mut state, &task, &plan, &experience, &mut Orders::new(&task), &mut Metrics::default()).unwrap_err();
    assert!(matches!(error, Error::Guard { iteration: 1, alarm: Alarm::Ratio { .. } }), "{error}");
    assert_eq!(state.policy_optimizer.steps(), 0);
}

#[test]
fn a_critic_that_nothing_reaches_is_refused() {
    let (prompts, windows, plan) = (prompts(), windows(), plan());
    let mut state = state(&plan);
    state.value.as_ref().unwrap().params().set("layers.0.attn_out.weight", &[0.0; 16 * 16]).unwrap();
    let reference = state.policy.deep_copy().unwrap();
    let task = task(&reference, &prompts, &windows);
    let error = train(&mut state, &task, &plan, &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
    assert!(error.contains("no gradient reached"), "{error}");
}

#[track_caller]
fn mismatched(policy: HeadKind, value: Option<HeadKind>, plan: &Plan, message: &str) {
    let model = |head| model(head, 1, Path::Fused);
    let found = State::new(model(policy), value.map(model), plan).err().unwrap().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
}

#[test]
fn a_critic_that_is_not_the_plans_is_refused() {
    let (separate, head) = (plan(), with_head(plan()));
    mismatched(HeadKind::LanguageModel, None, &separate, "a separate critic needs a value model");
    mismatched(HeadKind::LanguageModel, Some(HeadKind::LanguageModel), &separate, "has no scalar head");
    mismatched(HeadKind::LanguageModel, None, &head, "the policy has no value head");
    mismatched(HeadKind::LanguageModelWithValue, Some(HeadKind::Value), &head, "a value head needs no value model");
}

/// Sampling, the training forward and a reference held in bf16 round alike, wide enough that matrices are
/// multiplied in bf16.
#[test]
fn in_bf16_the_first_ratio_is_one_and_a_reference_may_be_held_in_it() {
    let config = Config::tiny_gpt2(53, 48, 2, 3, 32);
    let make = |head| {
        let model = Decoder::zeros(config.clone(), head, &Device::Cpu, Path::Fused, DType::BF16).unwrap();
        model.initialise(4).unwrap();
        model
    };
    let plan = Plan { minibatch: 4, gamma_ptx: 1.0, ..plan() };
    let (policy, value) = (make(HeadKind::LanguageModel), make(HeadKind::Value));
    let reference = policy.held_in_bf16().unwrap();
    let mut state = State::new(policy, Some(value), &plan).unwrap();
    let before = state.policy.params().with_weights(<[f32]>::to_vec).unwrap();
    let (steps, _) = run(&mut state, &reference, &plan, 40);
    for step in &steps {
        assert_eq!(step["ppo/policy/ratio_first_minibatch"], 0.0);
        assert_eq!(step["ppo/sampling_gap"], 0.0);
    }
    // The policy looks up its embedding in f32 and the reference the rounded one, so they are not quite one.
    assert!(steps[0]["objective/kl"].abs() < 0.01, "{}", steps[0]["objective/kl"]);
    assert_ne!(state.policy.params().with_weights(<[f32]>::to_vec).unwrap(), before);
}

#[test]
fn ranks_that_share_the_leaves_end_with_the_bits_of_one() {
    let plan = Plan { minibatch: 4, inner_epochs: 2, gamma_ptx: 1.0, ptx_examples: 1, ema: 0.9, ..plan() };
    let trained = |ranks: &dyn Collective| {
        let mut state = state(&plan);
        let (prompts, windows, reference) = (prompts(), windows(), state.policy.deep_copy().unwrap());
        let task = task(&reference, &prompts, &windows);
        let task = Task { compute: Compute { leaves: 4, ranks, ..task.compute }, ..task };
        let mut seen = Vec::new();
        train(&mut state, &task, &plan, &mut |event| {
            if let Event::Step { metrics, .. } = event {
                seen.extend(metrics.iter().map(|(_, value)| value.to_bits()));
            }
            Ok(Flow::Continue)
        })
        .unwrap();
        let bits = |model: &Decoder| {
            model.params().with_weights(|w| w.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()).unwrap()
        };
        (bits(&state.policy), state.value.as_ref().map(bits), seen)
    };
    let alone = trained(&Solo);
    for world in [2, 4] {
        for outcome in threads(world, |ranks| Ok::<_, instruct_collective::Error>(trained(ranks))) {
            assert!(outcome == Ok(alone.clone()), "{world} ranks");
        }
    }
}
