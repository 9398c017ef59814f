//! Training and scoring against slow readings of equation 1.

use super::*;
use crate::scores;
use candle_core::{DType, Device};

use instruct_collective::{
    Collective, Solo,
    testing::{pairwise, threads},
};
use instruct_data::Packed;
use instruct_kernels::{Flat, Path};
use instruct_model::{Config, HeadKind};
use instruct_runs::{RunDir, Start};
use std::cell::RefCell;

const VOCAB: usize = 23;

/// A reward model in which every parameter matters.
fn model(path: Path) -> Decoder {
    let config = Config::tiny_gpt2(VOCAB, 16, 2, 2, 24);
    let model = Decoder::zeros(config, HeadKind::Score, &Device::Cpu, path, DType::F32).unwrap();
    for slot in model.params().slots() {
        let centre = if slot.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut draws = Source::new(1, &slot.name).at([]);
        let values: Vec<f32> = (0..slot.len).map(|_| centre + 0.2 * draws.normal()).collect();
        model.params().set(&slot.name, &values).unwrap();
    }
    model
}

fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut draws = Source::new(seed, "ids").at([]);
    (0..n).map(|_| draws.below(VOCAB as u64) as u32).collect()
}

fn group(seed: u64, ranks: &[u32]) -> Group {
    let completion = |k: usize| ids(100 * seed + k as u64, 1 + (seed as usize + 3 * k) % 7);
    Group {
        prompt: ids(seed, 1 + seed as usize % 5),
        completions: (0..ranks.len()).map(completion).collect(),
        ranks: ranks.to_vec(),
    }
}

/// Rankings of 2 to 9 completions, some with ties.
fn groups() -> Vec<Group> {
    let ranks: [&[u32]; 6] =
        [&[2, 1], &[1, 2, 3, 4], &[3, 1, 1, 2], &[9, 8, 7, 6, 5, 4, 3, 2, 1], &[1, 2, 2, 2, 2], &[2, 3, 1]];
    (1..).zip(ranks).map(|(seed, ranks)| group(seed, ranks)).collect()
}

fn plan() -> Plan {
    Plan { lr: 0.01, ..Plan::default() }
}

fn compute() -> Compute<'static> {
    Compute { micro_tokens: 40, ..Compute::default() }
}

/// The score of one completion, alone and without a shared prompt.
fn slow_score(model: &Decoder, prompt: &[u32], completion: &[u32]) -> f32 {
    let mut batch = Packed::new();
    batch.push(&[prompt, completion].concat(), 0);
    let hidden = model.hidden(&batch, Pass::Infer).unwrap();
    model.scalars(&hidden, &[batch.last_row(0)]).unwrap().to_vec1::<f32>().unwrap()[0]
}

/// Loss, accuracy and margin, pair by pair.
fn slow_sums(model: &Decoder, groups: &[Group]) -> [f64; 3] {
    let (mut loss, mut correct, mut margin, mut count) = (0.0, 0.0, 0.0, 0.0);
    for group in groups {
        let score = |k: usize| f64::from(slow_score(model, &group.prompt, &group.completions[k]));
        let (mut sum, mut n) = (0.0, 0.0);
        for winner in 0..group.ranks.len() {
            for loser in 0..group.ranks.len() {
                if group.ranks[winner] < group.ranks[loser] {
                    let difference = score(winner) - score(loser);
                    sum += (1.0 + (-difference).exp()).ln();
                    n += 1.0;
                    correct += f64::from(difference > 0.0);
                    margin += difference;
                }
            }
        }
        loss += sum / n / groups.len() as f64;
        count += n;
    }
    [loss, correct / count, margin / count]
}

/// The metrics of the first step.
fn first_step(groups: &[Group], plan: &Plan, micro_tokens: usize) -> Vec<(&'static str, f64)> {
    let seen = RefCell::new(Vec::new());
    let mut on = |event: Event<'_, State>| {
        if let Event::Step { step: 1, metrics, .. } = event {
            seen.borrow_mut().extend_from_slice(metrics);
        }
        Ok(Flow::Continue)
    };
    train(
        &mut State::new(model(Path::Fused), plan).unwrap(),
        groups,
        plan,
        Compute { micro_tokens, ..compute() },
        &mut on,
    )
    .unwrap();
    seen.into_inner()
}

#[test]
fn equal_completions_teach_nothing_and_stop_nothing() {
    let same = Group { completions: vec![ids(7, 3); 2], ..group(1, &[1, 2]) };
    // The first of three is the second's equal and ranked above it: two pairs remain of three.
    let some = Group { completions: vec![ids(7, 3), ids(7, 3), ids(8, 4)], ..group(1, &[1, 2, 3]) };
    let apart = Group { completions: vec![ids(7, 3), ids(8, 4)], ..group(1, &[1, 2]) };
    assert_eq!((same.pairs().len(), some.pairs()), (0, vec![(0, 2), (1, 2)]));
    let loss = |groups: &[Group]| first_step(groups, &plan(), 10_000)[0].1;
    assert!((loss(&[same.clone(), some]) - loss(std::slice::from_ref(&apart))).abs() < 1e-6);
    let nothing =
        train(&mut State::new(model(Path::Fused), &plan()).unwrap(), &[same], &plan(), compute(), &mut |_| {
            Ok(Flow::Continue)
        });
    assert!(matches!(nothing, Err(Error::NoPairs { groups: 1 })));
}

#[test]
fn the_loss_of_a_step_is_equation_1_pair_by_pair() {
    let all = groups();
    let alone: Vec<&[Group]> = all.chunks(1).collect();
    for groups in alone.into_iter().chain([&all[..], &all[..2], &all[2..4]]) {
        for micro_tokens in [1, 60, 10_000] {
            let seen = first_step(groups, &plan(), micro_tokens);
            for ((name, found), wanted) in seen.iter().zip(slow_sums(&model(Path::Fused), groups)) {
                assert!((found - wanted).abs() < 1e-6, "{name}: {found}, wanted {wanted}");
            }
        }
    }
}

#[test]
fn groups_weigh_the_same_whatever_their_size() {
    let all = groups();
    let loss = |groups: &[Group]| first_step(groups, &plan(), 40)[0].1;
    let apart: Vec<f64> = all.chunks(1).map(loss).collect();
    assert!((loss(&all) - apart.iter().sum::<f64>() / 6.0).abs() < 1e-9, "{apart:?}");
}

#[test]
fn a_head_of_zeros_loses_ln_2() {
    let model = model(Path::Fused);
    model.params().set("score.weight", &[0.0; 16]).unwrap();
    let groups = groups();
    let sums = gradients(&model, &[&groups.iter().collect::<Vec<_>>()], groups.len(), compute()).unwrap()[0];
    let off = (sums.loss - std::f64::consts::LN_2).abs();
    instruct_claims::holds("known/reward-model-loss", "rankings of 2 to 9 with ties", off, 1e-9);
    assert_eq!((sums.correct, sums.margin), (sums.pairs / 2.0, 0.0));
}

/// What some leaves of a step of `total` groups leave in a model, and their sums.
fn gradient_of(leaves: &[&[Group]], total: usize, micro_tokens: usize) -> (Decoder, Vec<Sums>) {
    let model = model(Path::Fused);
    let leaves: Vec<Vec<&Group>> = leaves.iter().map(|leaf| leaf.iter().collect()).collect();
    let leaves: Vec<&[&Group]> = leaves.iter().map(Vec::as_slice).collect();
    let sums = gradients(&model, &leaves, total, Compute { micro_tokens, ..compute() }).unwrap();
    (model, sums)
}

fn numbers(model: &Decoder) -> Vec<f32> {
    model.params().with_grads(|grads| grads.to_vec()).unwrap()
}

fn dealt(groups: &[Group], leaves: usize) -> Vec<&[Group]> {
    Compute { leaves, ..compute() }.deal(groups.len()).map(|leaf| &groups[leaf]).collect()
}

fn gradient(groups: &[Group], micro_tokens: usize) -> Vec<f32> {
    numbers(&gradient_of(&[groups], groups.len(), micro_tokens).0)
}

/// The gradient of equation 1 by Candle, one pair of unshared sequences at a time.
fn slow_gradient(groups: &[Group]) -> Vec<f32> {
    let model = model(Path::Composed);
    for group in groups {
        let pairs = group.pairs();
        for &(winner, loser) in &pairs {
            let mut batch = Packed::new();
            for k in [winner, loser] {
                batch.push(&[&group.prompt[..], &group.completions[k]].concat(), 0);
            }
            let hidden = model.hidden(&batch, Pass::Train).unwrap();
            let scores = model.scalars(&hidden, &[batch.last_row(0), batch.last_row(1)]).unwrap();
            let difference = (scores.get(1).unwrap() - scores.get(0).unwrap()).unwrap();
            let loss = (difference.exp().unwrap() + 1.0).unwrap().log().unwrap();
            let weight = 1.0 / (pairs.len() * groups.len()) as f64;
            model.params().backward(&(loss * weight).unwrap()).unwrap();
        }
    }
    model.params().with_grads(|grads| grads.to_vec()).unwrap()
}

/// Within `tolerance` of each other, parameter by parameter; what the loss cannot see is noise.
#[track_caller]
fn near(found: &[f32], wanted: &[f32], tolerance: f64) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for slot in model(Path::Fused).params().slots() {
        let (found, wanted) = (&found[slot.range()], &wanted[slot.range()]);
        let off = norm(&mut found.iter().zip(wanted).map(|(a, b)| a - b));
        let size = norm(&mut wanted.iter().copied());
        if ["score.bias", "norm.bias"].contains(&&*slot.name) {
            assert!(size < 1e-6, "{} is seen by a loss over differences: {size}", slot.name);
        } else {
            assert!(size > 0.0 && off <= tolerance * size, "{}: off by {off} of {size}", slot.name);
        }
    }
}

#[test]
fn the_gradient_is_that_of_equation_1_whatever_the_micro_batches() {
    let groups = groups();
    let whole = gradient(&groups, 10_000);
    near(&whole, &slow_gradient(&groups), 1e-4);
    for micro_tokens in [1, 30, 90] {
        near(&gradient(&groups, micro_tokens), &whole, 1e-6);
    }
    for leaves in [2, 4, 20] {
        near(&numbers(&gradient_of(&dealt(&groups, leaves), groups.len(), 30).0), &whole, 1e-6);
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// The gradient has the bits of the backward passes of all micro-batches, each on a model of its own, added as the
/// definition says; and so it has when some leaves are computed on one model and the others on another.
#[track_caller]
fn check_leaves(leaves: usize) {
    let groups = groups();
    let dealt = dealt(&groups, leaves);
    let (whole, sums) = gradient_of(&dealt, groups.len(), 40);
    let of_leaf = |leaf: &&[Group]| {
        let runs = micro_batches(leaf.iter().map(Group::tokens), 40);
        let alone = |run| numbers(&gradient_of(&[&leaf[run]], groups.len(), 10_000).0);
        let parts: Vec<Vec<f32>> = runs.into_iter().map(alone).collect();
        if parts.is_empty() { vec![0.0; whole.params().len()] } else { pairwise(&parts) }
    };
    let by_hand: Vec<Vec<f32>> = dealt.iter().map(of_leaf).collect();
    assert_eq!(bits(&numbers(&whole)), bits(&pairwise(&by_hand)), "{leaves} leaves");

    if leaves.is_multiple_of(2) {
        let halves: Vec<(Decoder, Vec<Sums>)> =
            dealt.chunks(leaves / 2).map(|own| gradient_of(own, groups.len(), 40)).collect();
        let sum = model(Path::Fused);
        let add = |tree: &mut GradTree, half: &Decoder| {
            let mut gradient = Flat::default();
            half.params().swap_grad(&mut gradient);
            sum.params().swap_grad(&mut gradient);
            tree.push(sum.params());
            Ok::<_, Error>([])
        };
        GradTree::over(sum.params(), compute(), halves.iter().map(|(model, _)| model), add).unwrap();
        assert_eq!(bits(&numbers(&sum)), bits(&numbers(&whole)), "{leaves} leaves in halves");
        let joined: Vec<Sums> = halves.iter().flat_map(|(_, sums)| sums.iter().copied()).collect();
        assert_eq!(Sums::sum(&joined), Sums::sum(&sums));
    }
}

#[test]
fn a_gradient_has_the_same_bits_whoever_computes_its_leaves() {
    [1, 2, 3, 4, 8].into_iter().for_each(check_leaves);
}

fn run(state: &mut State, groups: &[Group], plan: &Plan) {
    run_of(state, groups, plan, compute());
}

fn run_of(state: &mut State, groups: &[Group], plan: &Plan, compute: Compute) {
    train(state, groups, plan, compute, &mut |_| Ok(Flow::Continue)).unwrap();
}

fn weights(model: &Decoder) -> Vec<u32> {
    model.params().with_weights(|w| w.iter().map(|x| x.to_bits()).collect()).unwrap()
}

#[test]
fn rankings_without_a_pair_change_nothing() {
    let plan = Plan { batch: 4, epochs: 2, ..plan() };
    let with = groups();
    let mut padded = vec![group(20, &[1]), group(21, &[2, 2, 2])];
    padded.extend(groups());
    padded.insert(4, group(22, &[]));
    assert_eq!((steps(&plan, &with), steps(&plan, &padded)), (4, 4));
    let after = |groups: &[Group]| {
        let mut state = State::new(model(Path::Fused), &plan).unwrap();
        run(&mut state, groups, &plan);
        weights(&state.model)
    };
    assert!(after(&with) == after(&padded));
}

#[test]
fn eight_pairs_can_be_ordered() {
    let groups: Vec<Group> = (1..9).map(|seed| group(seed, if seed % 2 == 0 { &[1, 2] } else { &[2, 1] })).collect();
    let plan = Plan { epochs: 40, ..plan() };
    let mut state = State::new(model(Path::Fused), &plan).unwrap();
    assert!(slow_sums(&state.model, &groups)[1] < 1.0, "nothing to learn");
    run(&mut state, &groups, &plan);
    let [loss, accuracy, _] = slow_sums(&state.model, &groups);
    assert!(accuracy == 1.0 && loss < 0.2, "{accuracy} {loss}");
}

#[test]
fn what_a_difference_cannot_see_stays_as_it_is() {
    let plan = Plan { epochs: 3, ..plan() };
    let mut state = State::new(model(Path::Fused), &plan).unwrap();
    let before = state.model.deep_copy().unwrap();
    run(&mut state, &groups(), &plan);
    for slot in before.params().slots() {
        let frozen = ["score.bias", "norm.bias"].contains(&&*slot.name);
        let (old, new) = (before.params().read(&slot.name).unwrap(), state.model.params().read(&slot.name).unwrap());
        assert_eq!(old == new, frozen, "{}", slot.name);
    }
}

fn items(groups: &[Group]) -> Vec<Item<'_>> {
    let of = |group| {
        let Group { prompt, completions, .. }: &Group = group;
        completions.iter().map(|completion| Item { prompt, completion })
    };
    groups.iter().flat_map(of).collect()
}

#[test]
fn a_score_does_not_see_its_company() {
    let (model, groups) = (model(Path::Fused), groups());
    let mut items = items(&groups);
    items.push(Item { prompt: &groups[0].prompt, completion: &[] });
    items.insert(3, Item { prompt: &groups[5].prompt, completion: &[] });
    for round in 0..4 {
        let wanted: Vec<f32> = items.iter().map(|item| slow_score(&model, item.prompt, item.completion)).collect();
        for micro_tokens in [1, 17, 64, 10_000] {
            assert_eq!(scores(&model, &items, micro_tokens).unwrap(), wanted, "{micro_tokens} tokens at a time");
        }
        Source::new(round, "order").at([]).shuffle(&mut items);
    }
    assert!(scores(&model, &[], 64).unwrap().is_empty());
}

#[test]
fn demonstrations_average_nothing_after_centring() {
    let (model, groups) = (model(Path::Fused), groups());
    model.params().set("score.bias", &[0.7]).unwrap();
    let (demonstrations, before) = (items(&groups), model.deep_copy().unwrap());
    let mean = |model: &Decoder| {
        let scores = scores(model, &demonstrations, 50).unwrap();
        scores.iter().sum::<f32>() / scores.len() as f32
    };
    let shift = center(&model, &scores(&model, &demonstrations, 50).unwrap()).unwrap();
    assert!(mean(&before).abs() > 0.1 && (shift + mean(&before)).abs() < 1e-5, "{shift}");
    assert!(mean(&model).abs() < 1e-5, "{}", mean(&model));
    for slot in before.params().slots().iter().filter(|slot| slot.name != "score.bias") {
        assert_eq!(before.params().read(&slot.name).unwrap(), model.params().read(&slot.name).unwrap());
    }
    assert!(
        center(&model, &scores(&model, &demonstrations, 50).unwrap()).unwrap().abs() < 1e-5,
        "the second time there is nothing to do"
    );
    assert!(matches!(center(&model, &[]), Err(Error::NoDemonstrations)));
}

#[test]
fn a_run_cut_anywhere_ends_with_the_same_bits() {
    [1, 4].into_iter().for_each(check_resume);
}

#[track_caller]
fn check_resume(leaves: usize) {
    let compute = Compute { leaves, ..compute() };
    let (groups, plan) = (groups(), Plan { epochs: 2, batch: 2, ..plan() });
    let folder = tempfile::tempdir().unwrap();
    let run_dir = RunDir::open(folder.path(), Start::Fresh, "", &0).unwrap();
    let moments = |state: &State| {
        let (text, arrays) = state.optimizer.state();
        (text, arrays.map(|(_, moment)| bits(&moment.read())))
    };
    let mut whole = State::new(model(Path::Fused), &plan).unwrap();
    run_of(&mut whole, &groups, &plan, compute);
    assert_eq!(whole.step, 6);
    for cut in 1..6 {
        let mut first = State::new(model(Path::Fused), &plan).unwrap();
        let mut stop = |event: Event<'_, State>| match event {
            Event::Boundary { step, .. } if step == cut => Ok(Flow::Stop),
            _ => Ok(Flow::Continue),
        };
        train(&mut first, &groups, &plan, compute, &mut stop).unwrap();
        let mut artefact = run_dir.artefact(&format!("cut-{cut}")).unwrap();
        artefact.save(first.step, &first).unwrap();
        let mut second = State::new(model(Path::Fused), &plan).unwrap();
        artefact.restore(&mut second).unwrap();
        assert_eq!(second.step, cut);
        run_of(&mut second, &groups, &plan, compute);
        assert!(weights(&second.model) == weights(&whole.model), "cut after step {cut}");
        assert!(moments(&second) == moments(&whole), "cut after step {cut}");
    }
}

#[track_caller]
fn refused(model: Decoder, groups: &[Group], message: &str) {
    let mut state = State::new(model, &plan()).unwrap();
    let found = train(&mut state, groups, &plan(), compute(), &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
    assert!(found.contains(message), "{found:?} does not say {message:?}");
    assert_eq!(state.step, 0);
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let model = || model(Path::Fused);
    refused(model(), &[], "none of 0 rankings");
    refused(model(), &[group(1, &[1, 1]), group(2, &[1])], "none of 2 rankings");
    let long = Group { prompt: ids(1, 24), ..group(1, &[1, 2]) };
    refused(model(), &[long], "does not fit a context of 24");
    refused(model().with_head(HeadKind::LanguageModel, 1).unwrap(), &groups(), "this needs a scalar head");
    let dead = model();
    dead.params().set("layers.0.attn_out.weight", &[0.0; 16 * 16]).unwrap();
    refused(dead, &groups(), "no gradient reached");
    let broken = model();
    broken.params().set("score.weight", &[f32::NAN; 16]).unwrap();
    refused(broken, &groups(), "NaN or infinite");
}

#[test]
fn a_plan_that_cannot_train_is_refused_before_the_first_step() {
    #[track_caller]
    fn check(plan: Plan, key: &str) {
        let mut state = State::new(model(Path::Fused), &plan).unwrap();
        let error =
            train(&mut state, &groups(), &plan, compute(), &mut |_| Ok(Flow::Continue)).unwrap_err().to_string();
        assert!(error.contains(key), "`{key}` is not in: {error}");
    }
    check(Plan { epochs: 0, ..plan() }, "`epochs`");
    check(Plan { batch: 0, ..plan() }, "`batch`");
    check(Plan { lr: -1.0, ..plan() }, "`lr`");
    let adam = AdamConfig { eps: 0.0, ..AdamConfig::default() };
    assert!(Plan { adam, ..plan() }.problems().concat().contains("`adam.eps` is 0"));
}

#[test]
fn behind_a_head_of_zeros_the_trunk_learns_from_the_second_step_on() {
    let model = model(Path::Fused);
    model.params().set("score.weight", &[0.0; 16]).unwrap();
    let before = model.params().read("embed.weight").unwrap();
    for (epochs, moved) in [(1, false), (2, true)] {
        let plan = Plan { epochs, ..plan() };
        let mut state = State::new(model.deep_copy().unwrap(), &plan).unwrap();
        train(&mut state, &groups(), &plan, compute(), &mut |_| Ok(Flow::Continue)).unwrap();
        assert_eq!(state.model.params().read("embed.weight").unwrap() != before, moved, "{epochs} steps");
    }
}

#[test]
fn ranks_that_share_the_leaves_end_with_the_bits_of_one() {
    let (groups, plan) = (groups(), Plan { epochs: 2, batch: 3, ..plan() });
    let trained = |ranks: &dyn Collective| {
        let mut state = State::new(model(Path::Fused), &plan).unwrap();
        run_of(&mut state, &groups, &plan, Compute { leaves: 4, ranks, ..compute() });
        weights(&state.model)
    };
    let alone = trained(&Solo);
    for world in [2, 4] {
        // Of the last rank's leaves some have no ranking.
        for outcome in threads(world, |ranks| Ok::<_, instruct_collective::Error>(trained(ranks))) {
            assert!(outcome == Ok(alone.clone()), "{world} ranks");
        }
    }
}
