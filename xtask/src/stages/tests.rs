//! Faults in the real loops, under the real listener and on a real disk: a guard names the cause and
//! the step, and from the newest checkpoint the run ends as if nothing had happened.

use super::*;
use candle_core::{DType, Device, Tensor};
use instruct_kernels::{Param, Params, Path as KernelPath};
use instruct_model::Config as Description;
use instruct_ppo::{Guards, KlControl, MissingEos};
use instruct_reward_model::Group;
use instruct_runs::{Event, Flow, Listener, Start};
use instruct_sft::Example;
use std::collections::BTreeSet;

const VOCAB: usize = 12;

/// Where a run is when the fault strikes, and between which steps it saves.
const SOUND: u64 = 4;
const EVERY: u64 = 2;

/// What is wrong in a process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A parameter of a model is overwritten with this before the process goes on.
    Weight(&'static str, &'static str, f32),
    /// All of a model's matrices are.
    Matrices(&'static str, f32),
    /// An element of a gradient is.
    Gradient(&'static str, &'static str, f32),
    /// The learning rate is.
    Rate(f64),
    /// Every episode scores this.
    Score(f32),
    /// The policy moves after it has sampled.
    Moved,
    /// No stop id can be drawn.
    Endless,
}

/// A stage's loop, with what is wrong.
type Train<'a, S> = dyn Fn(&mut S, Fault, &mut Listener<'_, S>) -> Result<()> + 'a;

/// A stage: its first state, its loop (with what is wrong), and its learners by name.
struct Stage<'a, S> {
    new: &'a dyn Fn() -> S,
    train: &'a Train<'a, S>,
    models: &'a dyn Fn(&S) -> Vec<(&'static str, &Decoder)>,
}

/// How one process ended, with every warning that came.
struct Ended<S> {
    state: S,
    result: Result<()>,
    warnings: Vec<String>,
    /// The step of the newest checkpoint, as a new process finds it.
    left: Option<u64>,
}

impl<S: Saved> Stage<'_, S> {
    /// One process: opens the folder, restores, trains until step `until` or to the end.
    fn process(&self, folder: &Path, fault: Fault, until: u64) -> Ended<S> {
        let mut state = (self.new)();
        let mut warnings = Vec::new();
        let result = {
            let run = RunDir::open(folder, Start::Resume, "", &"").unwrap();
            let mut listener = StageListener::new(run.artefact("stage").unwrap(), EVERY, &mut state).unwrap();
            self.poison(&state, fault);
            let mut on = |event: Event<'_, S>| {
                let step = match &event {
                    Event::Boundary { step, .. } => *step,
                    Event::Warning { step, message } => {
                        warnings.push(format!("{step}: {message}"));
                        0
                    }
                    _ => 0,
                };
                let flow = listener.handle(event, &mut |_, _, _, _| Ok(()))?;
                Ok(if step == until { Flow::Stop } else { flow })
            };
            let result = if until == 0 { Ok(()) } else { (self.train)(&mut state, fault, &mut on) };
            result.map_err(|error| listener.stopped(folder, error))
        };
        let run = RunDir::open(folder, Start::Resume, "", &"").unwrap();
        let left = run.artefact("stage").unwrap().checkpoint().map(|checkpoint| checkpoint.step);
        Ended { state, result, warnings, left }
    }

    fn poison(&self, state: &S, fault: Fault) {
        let models = (self.models)(state);
        let params = |model: &str| models.iter().find(|(name, _)| *name == model).unwrap().1.params();
        let slots = |params: &Params| params.slots().to_vec();
        match fault {
            Fault::Weight(model, tensor, value) => {
                let slot = slots(params(model)).into_iter().find(|slot| slot.name == tensor).unwrap();
                params(model).set(tensor, &vec![value; slot.len]).unwrap();
            }
            Fault::Matrices(model, value) => {
                for slot in slots(params(model)).into_iter().filter(|slot| slot.shape.len() == 2) {
                    params(model).set(&slot.name, &vec![value; slot.len]).unwrap();
                }
            }
            Fault::Gradient(model, tensor, value) => {
                let slot = slots(params(model)).into_iter().find(|slot| slot.name == tensor).unwrap();
                params(model).with_grads(|grads| grads[slot.offset] = value).unwrap();
            }
            _ => {}
        }
    }

    fn weights(&self, state: &S) -> Vec<Vec<f32>> {
        let models = (self.models)(state);
        models.iter().map(|(_, model)| model.params().with_weights(<[f32]>::to_vec).unwrap()).collect()
    }

    /// Runs soundly to step `sound`, then with the fault, which must stop it with this message and
    /// leave the checkpoint of step `sound`; then soundly to the end, which must be that of a run that
    /// never met the fault.
    #[track_caller]
    fn stops(&self, sound: u64, fault: Fault, parts: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        self.process(folder.path(), Fault::None, sound).result.unwrap();
        let stopped = self.process(folder.path(), fault, u64::MAX);
        let message = stopped.result.expect_err("the fault went unnoticed").to_string();
        let left = match sound {
            0 => "no checkpoint of this stage was due".to_owned(),
            _ => format!("the newest whole checkpoint is that of step {sound}"),
        };
        for part in parts.iter().chain(&[&*left, "--resume"]) {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        assert_eq!(stopped.left, Some(sound).filter(|&step| step > 0));
        let ended = self.process(folder.path(), Fault::None, u64::MAX);
        ended.result.unwrap();
        let whole = self.process(tempfile::tempdir().unwrap().path(), Fault::None, u64::MAX);
        whole.result.unwrap();
        assert!(self.weights(&ended.state) == self.weights(&whole.state), "it ended elsewhere");
    }
}

/// A decoder in which every parameter matters.
fn model(head: HeadKind, seed: u64, path: KernelPath) -> Decoder {
    let config = Description::tiny_gpt2(VOCAB, 16, 2, 2, 24);
    let model = Decoder::zeros(config, head, &Device::Cpu, path, DType::F32).unwrap();
    for slot in model.params().slots() {
        let centre = if slot.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut draws = Source::new(seed, &slot.name).at([]);
        let values: Vec<f32> = (0..slot.len).map(|_| centre + 0.2 * draws.normal()).collect();
        model.params().set(&slot.name, &values).unwrap();
    }
    model
}

fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut draws = Source::new(seed, "ids").at([]);
    (0..n).map(|_| 1 + draws.below(VOCAB as u64 - 1) as u32).collect()
}

fn rate(fault: Fault, sound: f64) -> f64 {
    if let Fault::Rate(rate) = fault { rate } else { sound }
}

fn train_sft(state: &mut sft::State, fault: Fault, on: &mut Listener<'_, sft::State>) -> Result<()> {
    let completion = |i| ids(100 + i, (i % 5) as usize).into_iter().chain([0]).collect();
    let examples: Vec<Example> =
        (0..12).map(|i| Example { prompt: ids(i, 1 + i as usize % 6), completion: completion(i) }).collect();
    let windows: Vec<Vec<u32>> = (0..3).map(|i| ids(200 + i, 6)).collect();
    let plan = sft::Plan { lr: rate(fault, 0.01), ..sft_plan() };
    Ok(sft::train(state, &sft::Data { demonstrations: &examples, pretraining: &windows }, &plan, compute(20), on)?)
}

fn compute(micro_tokens: usize) -> Compute<'static> {
    Compute { micro_tokens, ..Compute::default() }
}

fn sft_plan() -> sft::Plan {
    sft::Plan { epochs: 5, batch: 4, pretraining_share: 0.2, ..sft::Plan::default() }
}

/// Twenty steps of supervised fine-tuning.
fn with_sft(test: impl FnOnce(&Stage<'_, sft::State>)) {
    let new = || sft::State::new(model(HeadKind::LanguageModel, 1, KernelPath::Fused), &sft_plan()).unwrap();
    test(&Stage { new: &new, train: &train_sft, models: &|state| vec![("model", &state.model)] });
}

fn reward_plan(fault: Fault) -> reward_model::Plan {
    reward_model::Plan { epochs: 4, batch: 2, lr: rate(fault, 0.01), ..reward_model::Plan::default() }
}

fn train_reward_model(
    state: &mut reward_model::State,
    fault: Fault,
    on: &mut Listener<'_, reward_model::State>,
) -> Result<()> {
    let group = |seed: u64| Group {
        prompt: ids(seed, 1 + seed as usize % 5),
        completions: (0..3).map(|k| ids(100 * seed + k, 1 + (seed + 3 * k) as usize % 7)).collect(),
        ranks: vec![2, 1, 3],
    };
    let groups: Vec<Group> = (1..7).map(group).collect();
    Ok(reward_model::train(state, &groups, &reward_plan(fault), compute(40), on)?)
}

/// Twelve steps of the reward model.
fn with_reward_model(test: impl FnOnce(&Stage<'_, reward_model::State>)) {
    let new =
        || reward_model::State::new(model(HeadKind::Score, 1, KernelPath::Fused), &reward_plan(Fault::None)).unwrap();
    test(&Stage { new: &new, train: &train_reward_model, models: &|state| vec![("model", &state.model)] });
}

fn ppo_plan() -> ppo::Plan {
    ppo::Plan {
        episodes: 64,
        batch: 8,
        minibatch: 4,
        max_new_tokens: 6,
        policy_lr: 0.003,
        critic: Critic::Separate { lr: 0.01, coefficient: 1.0 },
        kl: KlControl::Fixed { beta: 0.2 },
        gamma_ptx: 1.0,
        ptx_examples: 1,
        guards: Guards {
            max_kl: 5.0,
            negative_kl: 5.0,
            capped_iterations: 2,
            constant_iterations: 2,
            ..Guards::default()
        },
        ..ppo::Plan::preset(ppo::Preset::InstructGpt)
    }
}

/// Overwrites a parameter where it computes, which nothing but a fault does.
fn overwrite(param: &Param, value: f32) {
    let tensor = param.tensor().unwrap();
    let values = Tensor::full(value, tensor.shape(), &Device::Cpu).unwrap();
    tensor.slice_set(&values, 0, 0).unwrap();
}

fn train_ppo(
    state: &mut ppo::State,
    reference: &Decoder,
    plan: &ppo::Plan,
    fault: Fault,
    on: &mut Listener<'_, ppo::State>,
) -> Result<()> {
    let prompts: Vec<Vec<u32>> = (0..5).map(|i| ids(300 + i, 1 + i as usize)).collect();
    let windows: Vec<Vec<u32>> = (0..4).map(|i| ids(400 + i, 6)).collect();
    let gain = state.policy.params().get("norm.weight")?;
    let score = |episodes: &[Episode]| {
        if fault == Fault::Moved {
            overwrite(&gain, -3.0);
        }
        let sevens = |e: &Episode| e.completion.iter().filter(|&&id| id == 7).count() as f32 + 0.01 * e.id as f32;
        let score = |e: &Episode| if let Fault::Score(score) = fault { score } else { sevens(e) };
        Ok(episodes.iter().map(score).collect())
    };
    let stop: BTreeSet<u32> = [if fault == Fault::Endless { VOCAB as u32 } else { 0 }].into();
    let plan = ppo::Plan { policy_lr: rate(fault, plan.policy_lr), ..plan.clone() };
    let decode = &|_: &[u32]| Ok(String::new());
    let (pretraining, compute) = (&windows, compute(40));
    let task = ppo::Task { reference, prompts: &prompts, pretraining, score: &score, decode, stop, compute };
    Ok(ppo::train(state, &task, &plan, on)?)
}

/// Eight iterations of PPO, of two minibatches each, by this plan and path.
fn with_ppo(plan: &ppo::Plan, path: KernelPath, test: impl FnOnce(&Stage<'_, ppo::State>)) {
    let new = || {
        let value = model(HeadKind::Value, 3, path);
        ppo::State::new(model(HeadKind::LanguageModel, 1, path), Some(value), plan).unwrap()
    };
    let reference = model(HeadKind::LanguageModel, 1, path);
    test(&Stage {
        new: &new,
        train: &|state, fault, on| train_ppo(state, &reference, plan, fault, on),
        models: &|state| vec![("policy", &state.policy), ("value", state.value.as_ref().unwrap())],
    });
}

const GAIN: &str = "layers.0.mlp_norm.weight";
const MATRIX: &str = "layers.1.qkv.weight";

#[test]
fn a_weight_that_is_no_number_is_named() {
    let fault = |model| Fault::Weight(model, GAIN, f32::NAN);
    let weight = format!("weight of `{GAIN}` is NaN or infinite at step 5");
    with_sft(|stage| stage.stops(SOUND, fault("model"), &[&weight]));
    with_reward_model(|stage| stage.stops(SOUND, fault("model"), &[&weight]));
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        for model in ["policy", "value"] {
            let weight = format!("iteration 5: weight of `{model}/{GAIN}` is NaN or infinite at step 9");
            stage.stops(SOUND, fault(model), &[&weight]);
        }
    });
}

#[test]
fn a_gradient_that_is_no_number_is_named() {
    let fault = |model| Fault::Gradient(model, MATRIX, f32::INFINITY);
    let gradient = format!("gradient of `{MATRIX}` is NaN or infinite at step 5");
    with_sft(|stage| stage.stops(SOUND, fault("model"), &[&gradient]));
    with_reward_model(|stage| stage.stops(SOUND, fault("model"), &[&gradient]));
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        for model in ["policy", "value"] {
            let gradient = format!("iteration 5: gradient of `{model}/{MATRIX}` is NaN or infinite at step 9");
            stage.stops(SOUND, fault(model), &[&gradient]);
        }
    });
}

/// Weights so large that products overflow, and finite themselves: nothing but the loss is to blame.
#[test]
fn a_loss_that_is_no_number_is_named() {
    let fault = |model| Fault::Matrices(model, 1e30);
    with_sft(|stage| stage.stops(SOUND, fault("model"), &["value of `train/sft/loss` is NaN or infinite at step 5"]));
    with_reward_model(|stage| {
        stage.stops(SOUND, fault("model"), &["value of `train/rm/loss` is NaN or infinite at step 5"]);
    });
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        stage.stops(SOUND, fault("value"), &["iteration 5: value of `ppo/returns/mean` is NaN or infinite at step 9"]);
    });
}

#[test]
fn a_rate_that_throws_the_weights_out_of_range_is_named() {
    let fault = Fault::Rate(1e39);
    let overflow = "weight of `embed.weight` is NaN or infinite at step 5";
    with_sft(|stage| stage.stops(SOUND, fault, &[overflow, "lower the learning rate"]));
    with_reward_model(|stage| stage.stops(SOUND, fault, &[overflow, "lower the learning rate"]));
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        stage.stops(SOUND, fault, &["iteration 5: weight of `policy/embed.weight` is NaN or infinite at step 9"]);
    });
}

#[test]
fn a_parameter_that_nothing_reaches_is_named() {
    let fault = |model| Fault::Weight(model, "layers.1.attn_out.weight", 0.0);
    let dead = ["no gradient reached", "`layers.1.qkv.weight`", "at step 1"];
    with_sft(|stage| stage.stops(0, fault("model"), &dead));
    with_reward_model(|stage| stage.stops(0, fault("model"), &dead));
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        for model in ["policy", "value"] {
            let dead = ["iteration 1: no gradient reached", &format!("`{model}/layers.1.qkv.weight`"), "at step 1"];
            stage.stops(0, fault(model), &dead);
        }
    });
}

#[test]
fn a_policy_that_moved_since_it_sampled_is_named() {
    let plan = ppo_plan();
    with_ppo(&plan, KernelPath::Fused, |stage| {
        stage.stops(SOUND, Fault::Moved, &["iteration 5: on the first minibatch a ratio differs from 1"]);
    });
    // Where old log-probabilities are computed again, the ratio cannot tell and the divergence can.
    with_ppo(&plan, KernelPath::Composed, |stage| {
        stage.stops(SOUND, Fault::Moved, &["iteration 5: the summed KL of 8 episodes is -", "`guards.negative-kl`"]);
    });
}

#[test]
fn a_policy_that_runs_away_is_named() {
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        stage.stops(SOUND, Fault::Rate(0.6), &["iteration 6: the policy is", "`guards.max-kl` is 5"]);
    });
}

#[test]
fn a_policy_that_says_one_thing_is_named() {
    let plan = ppo_plan();
    let plan = ppo::Plan { guards: Guards { max_kl: 0.0, ..plan.guards }, ..plan };
    with_ppo(&plan, KernelPath::Fused, |stage| {
        let collapsed = Fault::Weight("policy", "norm.weight", 1e3);
        stage.stops(SOUND, collapsed, &["iteration 5: the policy's entropy is", "`guards.min-entropy`"]);
    });
}

/// What a guard sees only when a checkpoint has it too: the advice to remove that one helps.
#[test]
fn the_checkpoint_before_the_newest_is_a_way_back() {
    let plan = ppo_plan();
    let plan = ppo::Plan { guards: Guards { max_kl: 0.0, ..plan.guards }, ..plan };
    let folder = tempfile::tempdir().unwrap();
    with_ppo(&plan, KernelPath::Fused, |stage| {
        stage.process(folder.path(), Fault::None, SOUND).result.unwrap();
        for fault in [Fault::Rate(3.0), Fault::None] {
            let stopped = stage.process(folder.path(), fault, u64::MAX);
            let message = stopped.result.unwrap_err().to_string();
            assert!(message.contains("iteration 7: the policy's entropy") && message.contains("step 6"), "{message}");
            assert_eq!(stopped.left, Some(6));
        }
        std::fs::remove_dir_all(folder.path().join("stage/checkpoints/step-000006")).unwrap();
        let ended = stage.process(folder.path(), Fault::None, u64::MAX);
        ended.result.unwrap();
        let whole = stage.process(tempfile::tempdir().unwrap().path(), Fault::None, u64::MAX);
        assert!(stage.weights(&ended.state) == stage.weights(&whole.state));
    });
}

#[test]
fn completions_that_never_end_are_named() {
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        stage.stops(SOUND, Fault::Endless, &["iteration 6: for 2 iterations no completion has ended", "6 tokens"]);
    });
}

#[test]
fn scores_that_never_vary_are_named() {
    with_ppo(&ppo_plan(), KernelPath::Fused, |stage| {
        let constant = "iteration 6: for 2 iterations every episode has scored 0.5";
        stage.stops(SOUND, Fault::Score(0.5), &[constant]);
        stage.stops(SOUND, Fault::Score(f32::NAN), &["episode 32 scored NaN"]);
    });
    // What training sees counts: a fixed score for all that ran into the cap is no reward either.
    let plan = ppo_plan();
    let guards = Guards { capped_iterations: 0, ..plan.guards };
    let plan = ppo::Plan { missing_eos: MissingEos::Replace(-1.0), guards, ..plan };
    with_ppo(&plan, KernelPath::Fused, |stage| {
        stage.stops(SOUND, Fault::Endless, &["iteration 6: for 2 iterations every episode has scored -1"]);
    });
}

/// A jump is reported at its step, by a process that did not see the values before it, and nothing stops.
#[test]
fn a_jump_of_a_loss_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    with_sft(|stage| {
        let before = stage.process(folder.path(), Fault::None, 14);
        before.result.unwrap();
        assert_eq!(before.warnings, [""; 0]);
        let jumped = stage.process(folder.path(), Fault::Weight("model", "norm.weight", 30.0), u64::MAX);
        jumped.result.unwrap();
        let warned = |part: &str| jumped.warnings.iter().any(|warning| warning.contains(part));
        assert!(warned("15: `train/sft/loss`") && warned("15: `train/sft/grad_norm`"), "{:?}", jumped.warnings);
        assert_eq!(jumped.left, Some(20));
    });
}
