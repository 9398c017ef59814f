//! Training against slow readings of its definition.

use super::*;
use candle_core::Device;
use instruct_collective::{
    Collective, Solo,
    testing::{pairwise, threads},
};
use instruct_data::Packed;
use instruct_kernels::{Flat, Params, Path, gather_rows, logits};
use instruct_model::{Config, HeadKind};
use instruct_runs::{RunDir, Start};
use std::{cell::RefCell, collections::BTreeSet};

const VOCAB: usize = 23;

fn model() -> Decoder {
    let config = Config::tiny_gpt2(VOCAB, 16, 2, 2, 24);
    let model = Decoder::zeros(config, HeadKind::LanguageModel, &Device::Cpu, Path::Fused, DType::F32).unwrap();
    model.initialise(1).unwrap();
    model
}

/// A model with opinions: every parameter some way from its initial value.
fn opinionated() -> Decoder {
    let model = model();
    let mut draws = Source::new(2, "noise").at([]);
    let slots: Vec<_> = model.params().slots().iter().map(|slot| slot.range()).collect();
    let noise = |weights: &mut [f32], _: &mut [f32]| {
        slots.iter().for_each(|slot| weights[slot.clone()].iter_mut().for_each(|w| *w += 0.2 * draws.normal()));
    };
    model.params().update(noise).unwrap();
    model
}

/// `n` token ids, none of them the end.
fn ids(seed: usize, n: usize) -> Vec<u32> {
    let mut draws = Source::new(seed as u64, "ids").at([]);
    (0..n).map(|_| 1 + draws.below(VOCAB as u64 - 1) as u32).collect()
}

fn demonstrations(n: usize) -> Vec<Example> {
    let completion = |i| ids(100 + i, i % 5).into_iter().chain([0]).collect();
    (0..n).map(|i| Example { prompt: ids(i, 1 + i % 6), completion: completion(i) }).collect()
}

fn windows(n: usize) -> Vec<Vec<u32>> {
    (0..n).map(|i| ids(200 + i, 5 + i % 4)).collect()
}

fn plan() -> Plan {
    Plan { epochs: 1, batch: 4, lr: 0.01, dropout: 0.0, ..Plan::default() }
}

fn compute() -> Compute<'static> {
    Compute { micro_tokens: 20, ..Compute::default() }
}

/// `-log p` of every token of `text` from `first` on, in `f64` from the logits of one sequence.
fn slow_nll(model: &Decoder, text: &[u32], first: usize) -> Vec<f64> {
    let mut batch = Packed::new();
    batch.push(text, 0);
    let hidden = model.hidden(&batch, Pass::Infer).unwrap();
    let all: Vec<u32> = (0..text.len() as u32).collect();
    let rows = logits(&gather_rows(&hidden, &all).unwrap(), model.unembedding().unwrap()).unwrap();
    let rows = rows.to_vec2::<f32>().unwrap();
    let of = |t: usize| {
        let sum: f64 = rows[t - 1].iter().map(|&z| f64::from(z).exp()).sum();
        sum.ln() - f64::from(rows[t - 1][text[t] as usize])
    };
    (first.max(1)..text.len()).map(of).collect()
}

fn slow_nlls(model: &Decoder, examples: &[Example]) -> Vec<f64> {
    let of = |e: &Example| slow_nll(model, &[e.prompt.clone(), e.completion.clone()].concat(), e.prompt.len());
    examples.iter().flat_map(of).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[track_caller]
fn close(found: f64, wanted: f64, tolerance: f64) {
    assert!((found - wanted).abs() <= tolerance * wanted.abs(), "{found}, wanted {wanted}");
}

/// Every metric of a run by name, in order.
fn metrics(state: &mut State, data: &Data<'_>, plan: &Plan) -> Vec<(&'static str, f64)> {
    metrics_of(state, data, plan, compute())
}

fn metrics_of(state: &mut State, data: &Data<'_>, plan: &Plan, compute: Compute) -> Vec<(&'static str, f64)> {
    let seen = RefCell::new(Vec::new());
    let mut on = |event: Event<'_, State>| {
        if let Event::Step { metrics, .. } = event {
            seen.borrow_mut().extend_from_slice(metrics);
        }
        Ok(Flow::Continue)
    };
    train(state, data, plan, compute, &mut on).unwrap();
    seen.into_inner()
}

fn named(metrics: &[(&'static str, f64)], name: &str) -> Vec<f64> {
    metrics.iter().filter(|(n, _)| *n == name).map(|(_, value)| *value).collect()
}

#[test]
fn held_out_losses_are_what_the_logits_say() {
    let (model, examples, windows) = (opinionated(), demonstrations(17), windows(9));
    let wanted = mean(&slow_nlls(&model, &examples));
    let text: Vec<f64> = windows.iter().flat_map(|w| slow_nll(&model, w, 1)).collect();
    for micro_tokens in [1, 30, 4_096] {
        close(
            nll(&model, &examples, Compute { micro_tokens, ..Compute::default() }, &mut |_| ()).unwrap(),
            wanted,
            1e-6,
        );
        close(
            perplexity(&model, &windows, Compute { micro_tokens, ..Compute::default() }, &mut |_| ()).unwrap(),
            mean(&text).exp(),
            1e-5,
        );
    }
    let untrained = self::model();
    let uniform = (VOCAB as f64).ln();
    let off = (nll(&untrained, &examples, Compute::default(), &mut |_| ()).unwrap() / uniform - 1.0).abs();
    instruct_claims::holds("known/sft-loss", "a new GPT-2 over 23 tokens", off, 0.01);
    close(perplexity(&untrained, &windows, Compute::default(), &mut |_| ()).unwrap(), VOCAB as f64, 0.03);
}

#[test]
fn the_first_step_reports_the_losses_of_its_batch_apart() {
    let (examples, windows) = (demonstrations(12), windows(3));
    let data = Data { demonstrations: &examples, pretraining: &windows };
    let text: Vec<f64> = windows.iter().flat_map(|w| slow_nll(&opinionated(), w, 1)).collect();
    let share = Plan { batch: 15, pretraining_share: 0.2, ..plan() };
    let seen = metrics(&mut State::new(opinionated(), &share).unwrap(), &data, &share);
    close(named(&seen, "train/sft/loss")[0], mean(&slow_nlls(&opinionated(), &examples)), 1e-5);
    close(named(&seen, "train/sft/pretraining_loss")[0], mean(&text), 1e-5);
    close(named(&seen, "train/sft/lr")[0], share.lr, 1e-9);
    let none = Plan { batch: 12, ..plan() };
    let seen = metrics(&mut State::new(opinionated(), &none).unwrap(), &data, &none);
    assert!(named(&seen, "train/sft/pretraining_loss").is_empty());
}

/// What a step leaves in a copy of `model`, and its losses by leaf.
fn gradient_of(model: &Decoder, step: &Step<'_>, plan: &Plan) -> (Decoder, Vec<Losses>) {
    let state = State::new(model.deep_copy().unwrap(), plan).unwrap();
    let losses = gradients(&state, step, plan).unwrap();
    (state.model, losses)
}

fn gradient(model: &Decoder, items: &[Item<'_>], plan: &Plan, [micro_tokens, leaves]: [usize; 2]) -> Vec<f32> {
    let step = Step::new(items, 0, plan, Compute { micro_tokens, leaves, ..Compute::default() });
    gradient_of(model, &step, plan).0.params().with_grads(|grads| grads.to_vec()).unwrap()
}

#[track_caller]
fn near(found: &[f32], wanted: &[f32], tolerance: f64, label: &str) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
    let size = norm(&mut wanted.iter().copied());
    assert!(size > 0.0 && off <= tolerance * size, "{label}: off by {off} of {size}");
}

/// The gradient of the mean over all tokens, written out: one sequence at a time, one denominator.
fn slow_gradient(model: &Decoder, items: &[Item<'_>], prompt_weight: f32) -> Vec<f32> {
    let model = model.deep_copy().unwrap();
    let texts = items.iter().map(|item| match item {
        Item::Demonstration(e) => ([e.prompt.clone(), e.completion.clone()].concat(), e.prompt.len()),
        Item::Pretraining(window) => (window.to_vec(), 0),
    });
    let texts: Vec<(Vec<u32>, usize)> = texts.collect();
    let weight = |t: usize, prompt: usize| if t < prompt { prompt_weight } else { 1.0 };
    let weights = |(text, prompt): &(Vec<u32>, usize)| (1..text.len()).map(|t| weight(t, *prompt)).collect();
    let all: Vec<Vec<f32>> = texts.iter().map(weights).collect();
    let total: f32 = all.iter().flatten().sum();
    for ((text, _), weights) in texts.iter().zip(all) {
        let mut batch = Packed::new();
        batch.push(text, 0);
        let hidden = model.hidden(&batch, Pass::Train).unwrap();
        let rows: Vec<u32> = (0..text.len() as u32 - 1).collect();
        let weights: Vec<f32> = weights.iter().map(|w| w / total).collect();
        let loss = token_nll(&hidden, model.unembedding().unwrap(), &rows, &text[1..], &weights).unwrap();
        model.params().backward(&loss).unwrap();
    }
    model.params().with_grads(|grads| grads.to_vec()).unwrap()
}

#[test]
fn the_gradient_does_not_see_the_micro_batches() {
    let (model, examples, windows) = (opinionated(), demonstrations(13), windows(4));
    let mut items: Vec<Item> = examples.iter().map(Item::Demonstration).collect();
    items.extend(windows.iter().map(|window| Item::Pretraining(window)));
    for (prompt_weight, dropout) in [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2)] {
        let plan = Plan { prompt_weight, dropout, ..plan() };
        let whole = gradient(&model, &items, &plan, [100_000, 1]);
        for cut in [[1, 1], [7, 1], [25, 1], [60, 1], [1, 4], [25, 4], [100_000, 4], [25, 40]] {
            near(&gradient(&model, &items, &plan, cut), &whole, 1e-6, "micro-batches");
        }
        if dropout == 0.0 {
            near(&whole, &slow_gradient(&model, &items, prompt_weight), 1e-5, "definition");
        }
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// The gradient has the bits of the backward passes of all micro-batches, each on a model of its own, added as the
/// definition says; and so it has when some leaves are computed on one model and the others on another.
#[track_caller]
fn check_leaves(leaves: usize) {
    let (model, examples, windows) = (opinionated(), demonstrations(9), windows(3));
    let mut items: Vec<Item> = examples.iter().map(Item::Demonstration).collect();
    items.extend(windows.iter().map(|window| Item::Pretraining(window)));
    let (plan, compute) = (Plan { dropout: 0.2, ..plan() }, Compute { leaves, ..compute() });
    let mut step = Step::new(&items, 30, &plan, compute);
    let numbers = |model: &Decoder| model.params().with_grads(|grads| grads.to_vec()).unwrap();
    let (whole, losses) = gradient_of(&model, &step, &plan);

    let alone = |micro: &Micro| {
        let Micro { packed, weights, pretraining, examples } = micro;
        let micro =
            Micro { packed: packed.clone(), weights: weights.clone(), pretraining: *pretraining, examples: *examples };
        numbers(&gradient_of(&model, &Step { leaves: vec![vec![micro]], total: step.total, compute }, &plan).0)
    };
    let of_leaf = |leaf: &Vec<Micro>| match leaf.is_empty() {
        true => vec![0.0; model.params().len()],
        false => pairwise(&leaf.iter().map(alone).collect::<Vec<_>>()),
    };
    let by_hand: Vec<Vec<f32>> = step.leaves.iter().map(of_leaf).collect();
    assert_eq!(bits(&numbers(&whole)), bits(&pairwise(&by_hand)), "{leaves} leaves");
    assert!(leaves > 1 || step.leaves[0].len() > 2, "nothing to add up");

    if leaves.is_multiple_of(2) {
        let second = Step { leaves: step.leaves.split_off(leaves / 2), total: step.total, compute };
        let halves = [step, second].map(|half| gradient_of(&model, &half, &plan));
        let sum = model.deep_copy().unwrap();
        let add = |tree: &mut GradTree, half: &Decoder| {
            let mut gradient = Flat::default();
            half.params().swap_grad(&mut gradient);
            sum.params().swap_grad(&mut gradient);
            tree.push(sum.params());
            Ok::<_, Error>([])
        };
        GradTree::over(sum.params(), compute, halves.iter().map(|(model, _)| model), add).unwrap();
        assert_eq!(bits(&numbers(&sum)), bits(&numbers(&whole)), "{leaves} leaves in halves");
        let joined: Vec<Losses> = halves.iter().flat_map(|(_, losses)| losses.iter().copied()).collect();
        let sums = |of: &[Losses]| [Losses::sum(of)].map(|l| [l.completion, l.pretraining].map(|m| (m.sum, m.weight)));
        assert_eq!(sums(&joined), sums(&losses));
    }
}

#[test]
fn a_gradient_has_the_same_bits_whoever_computes_its_leaves() {
    [1, 2, 3, 4, 16].into_iter().for_each(check_leaves);
}

/// The examples of an epoch under seed 1, by the definition: every order is drawn where it is needed.
fn slow_items<'a>(data: &Data<'a>, mixed: usize, epoch: u64) -> Vec<Item<'a>> {
    let (demonstrations, pretraining) = (data.demonstrations, data.pretraining);
    let window = |i: usize| {
        let place = epoch as usize * mixed + i;
        let pass = (place / pretraining.len()) as u64;
        let order = Source::new(1, "sft/windows").at([pass]).permutation(pretraining.len());
        Item::Pretraining(&pretraining[order[place % pretraining.len()]])
    };
    let items: Vec<Item> = demonstrations.iter().map(Item::Demonstration).chain((0..mixed).map(window)).collect();
    let order = Source::new(1, "sft/order").at([epoch]).permutation(items.len());
    order.into_iter().map(|i| items[i]).collect()
}

/// One epoch of `n` demonstrations at this share holds so many windows, each taken in turn.
#[track_caller]
fn check_mix(n: usize, share: f64, windows_wanted: usize) {
    let (examples, windows) = (demonstrations(n), windows(7));
    let data = Data { demonstrations: &examples, pretraining: &windows };
    let plan = Plan { pretraining_share: share, ..plan() };
    assert_eq!(steps(&Plan { epochs: 3, ..plan.clone() }, n).1, 3 * (n + windows_wanted).div_ceil(4) as u64);
    let mut epochs = Epochs::new(&data, &plan, 1);
    let mut used = vec![0usize; 7];
    let mut orders = BTreeSet::new();
    for epoch in 0..5 {
        let items = epochs.items(epoch);
        assert_eq!(items.len(), n + windows_wanted);
        let at = |item: &Item| match item {
            Item::Demonstration(e) => examples.iter().position(|x| std::ptr::eq(x, *e)).unwrap(),
            Item::Pretraining(w) => n + windows.iter().position(|x| std::ptr::eq(&x[..], *w)).unwrap(),
        };
        let order: Vec<usize> = items.iter().map(at).collect();
        order.iter().filter(|&&i| i >= n).for_each(|i| used[i - n] += 1);
        let mut sorted: Vec<usize> = order.iter().copied().filter(|&i| i < n).collect();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..n).collect::<Vec<_>>(), "every demonstration once");
        orders.insert(order);
        let said = |items: &[Item]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>();
        assert_eq!(said(Epochs::new(&data, &plan, 1).items(epoch)), said(items), "as after a resume");
        let slow = slow_items(&data, windows_wanted, epoch);
        assert_eq!(said(items), said(&slow), "as drawn anew");
        epochs.items(epoch);
        assert_eq!(epochs.made as u64, epoch + 1, "an epoch is put together once");
    }
    assert_eq!(orders.len(), 5, "every epoch has an order of its own");
    assert_eq!(used.iter().sum::<usize>(), 5 * windows_wanted);
    assert!(used.iter().max().unwrap() - used.iter().min().unwrap() <= 1, "windows take turns: {used:?}");
    let again = |seed| Vec::from_iter(Epochs::new(&data, &plan, seed).items(0).iter().map(|item| format!("{item:?}")));
    assert_eq!(again(1), again(1));
    assert_ne!(again(1), again(2));
}

#[test]
fn the_mix_has_its_share_in_every_epoch() {
    check_mix(20, 0.0, 0);
    check_mix(18, 0.1, 2);
    check_mix(20, 0.1, 2);
    check_mix(10, 0.5, 10);
    check_mix(5, 0.75, 15);
}

#[test]
fn one_batch_can_be_learned_by_heart() {
    let examples = demonstrations(4);
    let data = Data { demonstrations: &examples, pretraining: &[] };
    let plan = Plan { epochs: 80, ..plan() };
    let mut state = State::new(model(), &plan).unwrap();
    metrics(&mut state, &data, &plan);
    let after = nll(&state.model, &examples, Compute::default(), &mut |_| ()).unwrap();
    assert!(after < 0.05, "{after}");
}

#[test]
fn prompts_are_learned_only_when_asked() {
    let examples = demonstrations(6);
    let texts: Vec<Vec<u32>> = examples.iter().map(|e| e.prompt.clone()).filter(|p| p.len() > 1).collect();
    let data = Data { demonstrations: &examples, pretraining: &[] };
    let after = |prompt_weight| {
        let plan = Plan { epochs: 40, prompt_weight, ..plan() };
        let mut state = State::new(model(), &plan).unwrap();
        metrics(&mut state, &data, &plan);
        perplexity(&state.model, &texts, Compute::default(), &mut |_| ()).unwrap()
    };
    let (without, with) = (after(0.0), after(1.0));
    assert!(without > 10.0 && with < 3.0, "{without} {with}");
}

#[test]
fn every_epoch_leaves_one_candidate() {
    let examples = demonstrations(10);
    let data = Data { demonstrations: &examples, pretraining: &[] };
    let plan = Plan { epochs: 3, ..plan() };
    let mut state = State::new(model(), &plan).unwrap();
    let mut events = Vec::new();
    let mut on = |event: Event<'_, State>| {
        match event {
            Event::Candidate { name, step, state } => {
                assert_eq!(state.step, step);
                events.push(format!("{name} {step}"));
            }
            Event::Boundary { step, .. } => events.push(step.to_string()),
            _ => {}
        }
        Ok(Flow::Continue)
    };
    train(&mut state, &data, &plan, compute(), &mut on).unwrap();
    let wanted = ["1", "2", "epoch-01 3", "3", "4", "5", "epoch-02 6", "6", "7", "8", "epoch-03 9", "9"];
    assert_eq!(events, wanted);
}

fn weights(params: &Params) -> Vec<u32> {
    params.with_weights(|w| w.iter().map(|x| x.to_bits()).collect()).unwrap()
}

#[test]
fn a_run_cut_anywhere_ends_with_the_same_bits() {
    [1, 4].into_iter().for_each(check_resume);
}

#[track_caller]
fn check_resume(leaves: usize) {
    let compute = Compute { leaves, ..compute() };
    let (examples, windows) = (demonstrations(9), windows(3));
    let data = Data { demonstrations: &examples, pretraining: &windows };
    let plan = Plan { epochs: 2, pretraining_share: 0.1, dropout: 0.2, ..plan() };
    let folder = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(folder.path(), Start::Fresh, "", &0).unwrap();
    let moments = |state: &State| {
        let (text, arrays) = state.optimizer.state();
        (text, arrays.map(|(_, moment)| bits(&moment.read())))
    };
    let mut whole = State::new(model(), &plan).unwrap();
    metrics_of(&mut whole, &data, &plan, compute);
    assert_eq!(whole.step, 6);
    for cut in 1..6 {
        let mut first = State::new(model(), &plan).unwrap();
        let mut stop = |event: Event<'_, State>| match event {
            Event::Boundary { step, .. } if step == cut => Ok(Flow::Stop),
            _ => Ok(Flow::Continue),
        };
        train(&mut first, &data, &plan, compute, &mut stop).unwrap();
        assert_eq!(first.step, cut);
        let mut artefact = run_dir.artefact(&format!("cut-{cut}")).unwrap();
        artefact.save(first.step, &first).unwrap();
        let mut second = State::new(model(), &plan).unwrap();
        artefact.restore(&mut second).unwrap();
        assert_eq!(second.step, cut);
        metrics_of(&mut second, &data, &plan, compute);
        assert_eq!(weights(second.model.params()), weights(whole.model.params()), "cut after step {cut}");
        assert_eq!(moments(&second), moments(&whole), "cut after step {cut}");
        metrics_of(&mut second, &data, &plan, compute);
        assert_eq!(second.step, 6, "a finished run has nothing left to do");
    }
}

#[track_caller]
fn refused(model: Decoder, data: Data<'_>, plan: &Plan, message: &str) {
    let mut state = State::new(model, plan).unwrap();
    let found = train(&mut state, &data, plan, compute(), &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
    assert_eq!(state.step, 0);
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let examples = demonstrations(3);
    let data = Data { demonstrations: &examples, pretraining: &[] };
    refused(model(), Data { demonstrations: &[], pretraining: &[] }, &plan(), "there are no demonstrations");
    let mixed = Plan { pretraining_share: 0.1, ..plan() };
    refused(model(), data, &mixed, "a share of 0.1 pretraining examples");
    let long = [Example { prompt: ids(1, 20), completion: ids(2, 5) }];
    let too_long = Data { demonstrations: &long, ..data };
    refused(model(), too_long, &plan(), "25 tokens does not fit a context of 24");
    refused(model().with_head(HeadKind::Score, 1).unwrap(), data, &plan(), "this needs a language head");
    let dead = model();
    dead.params().set("layers.0.attn_out.weight", &[0.0; 256]).unwrap();
    refused(dead, data, &plan(), "layers.0.qkv.weight");
    let broken = model();
    broken.params().set("norm.bias", &[f32::NAN; 16]).unwrap();
    refused(broken, data, &plan(), "NaN or infinite");
}

#[test]
fn a_plan_that_cannot_train_is_refused_before_the_first_step() {
    #[track_caller]
    fn check(plan: Plan, key: &str) {
        let mut state = State::new(model(), &plan).unwrap();
        let demonstrations = demonstrations(3);
        let data = Data { demonstrations: &demonstrations, pretraining: &windows(2) };
        let error = train(&mut state, &data, &plan, compute(), &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
        assert!(error.contains(key), "`{key}` is not in: {error}");
    }
    check(Plan { epochs: 0, ..plan() }, "`epochs`");
    check(Plan { batch: 0, ..plan() }, "`batch`");
    check(Plan { lr: f64::NAN, ..plan() }, "`lr`");
    check(Plan { dropout: 1.0, ..plan() }, "`dropout`");
    check(Plan { pretraining_share: 1.0, ..plan() }, "`pretraining-share`");
    check(Plan { prompt_weight: -0.5, ..plan() }, "`prompt-weight`");
    let adam = AdamConfig { eps: 0.0, ..AdamConfig::default() };
    assert!(Plan { adam, ..plan() }.problems().concat().contains("`adam.eps` is 0"));
}

#[test]
fn ranks_that_share_the_leaves_end_with_the_bits_of_one() {
    let (examples, windows) = (demonstrations(9), windows(3));
    let data = Data { demonstrations: &examples, pretraining: &windows };
    let plan = Plan { epochs: 2, pretraining_share: 0.1, dropout: 0.2, ..plan() };
    let trained = |ranks: &dyn Collective| {
        let mut state = State::new(model(), &plan).unwrap();
        let seen = metrics_of(&mut state, &data, &plan, Compute { leaves: 4, ranks, ..compute() });
        let seen: Vec<u64> = seen.into_iter().map(|(_, value)| value.to_bits()).collect();
        (weights(state.model.params()), seen)
    };
    let alone = trained(&Solo);
    for world in [2, 4] {
        for outcome in threads(world, |ranks| Ok::<_, instruct_collective::Error>(trained(ranks))) {
            assert!(outcome == Ok(alone.clone()), "{world} ranks");
        }
    }
    let refused = threads(3, |ranks| {
        let mut state = State::new(model(), &plan).unwrap();
        let compute = Compute { leaves: 4, ranks, ..compute() };
        Ok::<_, instruct_collective::Error>(
            train(&mut state, &data, &plan, compute, &mut |_| Ok(Flow::Continue)).is_err(),
        )
    });
    assert_eq!(refused, vec![Ok(true); 3], "four leaves are no subtree each of three ranks");
}
