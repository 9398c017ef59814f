//! The pieces that others have published, against `fixtures/reference/pieces.py`: torch in float64 for
//! ours, TRL 1.12 for what it does otherwise. Where the two differ, a test states both values.

use crate::{KlControl, MissingEos, gae, policy_loss, rewards, value_loss, whiten};
use candle_core::{DType, Device, Tensor, safetensors};
use instruct_claims::{holds, worst};
use instruct_rollout::{k1, k2, k3};
use std::{collections::BTreeMap, path::Path};

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn open() -> Golden {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference/pieces/golden.safetensors");
        Golden(safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect())
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        self.0[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|x| x as f32).collect()
    }

    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.0[name].to_dtype(DType::F32).unwrap().to_vec2().unwrap()
    }

    fn lengths(&self, name: &str) -> Vec<usize> {
        self.f64(name).into_iter().map(|n| n as usize).collect()
    }
}

/// The two values that differ by design, to the digits that docs/correctness.md gives.
#[track_caller]
fn both(ours: f32, wanted: f32, theirs: f32, expected: f32) {
    assert!((ours - wanted).abs() < 5e-5 && (theirs - expected).abs() < 5e-5, "{ours} and {theirs}");
}

#[test]
fn advantages_are_those_of_both_definitions() {
    let golden = Golden::open();
    let lengths = golden.lengths("gae.lengths");
    let discounts = golden.rows("gae.discounts");
    for rule in ["forward", "returns"] {
        for (discount, wanted) in discounts.iter().zip(golden.rows(&format!("gae.{rule}"))) {
            let (rewards, values) = (golden.f32("gae.rewards"), golden.f32("gae.values"));
            let (mut found, mut start) = (Vec::new(), 0);
            for n in &lengths {
                let episode = start..start + n;
                found.extend(gae(&rewards[episode.clone()], &values[episode], discount[0], discount[1]));
                start += n;
            }
            holds(
                "pieces/gae",
                &format!("{rule} view, gamma {}, lambda {}", discount[0], discount[1]),
                worst(&found, &wanted),
                2e-5,
            );
        }
    }
}

fn whitened(input: &[f32], keep_mean: bool) -> Vec<f32> {
    let mut values = input.to_vec();
    whiten(&mut values, 1e-8, keep_mean);
    values
}

#[test]
fn whitening_divides_by_n_where_trl_divides_by_n_less_1() {
    let golden = Golden::open();
    let input = golden.f32("whiten.input");
    for (keep, ours, trl) in [(false, "whiten.biased", "trl.whiten"), (true, "whiten.biased.kept", "trl.whiten.kept")] {
        let found = whitened(&input, keep);
        holds("pieces/whitening", ours, worst(&found, &golden.f64(ours)), 1e-6);
        // sqrt(9 / 8) apart, on both sides of the mean: 1.0607.
        let mean = if keep { golden.f64("whiten.input").iter().sum::<f64>() / 9.0 } else { 0.0 };
        let theirs = golden.f64(trl).into_iter().map(|x| (x - mean) * (9.0f64 / 8.0).sqrt() + mean);
        holds("pieces/whitening-trl", trl, worst(&found, &theirs.collect::<Vec<f64>>()), 1e-6);
        if !keep {
            both(found[0], 0.9139, golden.f32(trl)[0], 0.8616);
        }
    }
}

#[test]
fn divergence_is_estimated_as_published() {
    let golden = Golden::open();
    let (logp, logq) = (golden.f32("kl.logp"), golden.f32("kl.logq"));
    let exact = golden.f64("kl.exact")[0];
    let each = |estimator: fn(f32, f32) -> f64| logp.iter().zip(&logq).map(|(&p, &q)| estimator(p, q)).collect();
    let estimates: [(&str, Vec<f64>); 3] = [("kl.k1", each(k1)), ("kl.k2", each(k2)), ("kl.k3", each(k3))];
    for (name, found) in estimates {
        holds("pieces/divergence", name, worst(&found, &golden.f64(name)), 1e-12);
        let mean: f64 = found.iter().zip(&logp).map(|(k, &p)| k * f64::from(p).exp()).sum();
        if name == "kl.k2" {
            assert!((mean - exact).abs() > 0.01, "k2 is biased");
        } else {
            holds("pieces/divergence-unbiased", name, (mean - exact).abs(), 1e-6);
        }
    }
}

#[test]
fn the_price_follows_the_controller() {
    let golden = Golden::open();
    let control = KlControl::Adaptive { initial: 0.15, target: 6.0, horizon: 10_000.0 };
    let mut beta = control.initial();
    let mut next = |&kl: &f64| {
        beta = control.next(beta, kl, 64);
        beta
    };
    let found: Vec<f64> = golden.f64("price.kl").iter().map(&mut next).collect();
    holds("pieces/controller", "50 batches", worst(&found, &golden.f64("price.beta")), 1e-12);
}

/// Rewards and advantages of one padded row of the batch of `placement`.
fn episode(golden: &Golden, row: usize) -> (Vec<f32>, Vec<f32>) {
    let n = golden.lengths("place.lengths")[row];
    let of = |name: &str| golden.rows(name)[row][..n].to_vec();
    // The completion that fills the whole width was cut by the cap.
    let score = MissingEos::Replace(-1.0).apply(golden.f32("place.scores")[row], n < 7);
    let rewards = rewards(&of("place.logprobs"), &of("place.reference"), score, 0.1);
    let advantages = gae(&rewards, &of("place.values"), 1.0, 0.95);
    (rewards, advantages)
}

#[test]
fn the_score_stands_at_the_last_action_where_trl_puts_it_one_later() {
    let golden = Golden::open();
    let lengths = golden.lengths("place.lengths");
    let (ours, trl) = (golden.rows("place.rewards"), golden.rows("trl.place.rewards"));
    let mut start = 0;
    for (row, &n) in lengths.iter().enumerate() {
        let (rewards, advantages) = episode(&golden, row);
        let case = format!("completion of {n} tokens");
        holds("pieces/placement", &case, worst(&rewards, &ours[row][..n]), 1e-6);
        let wanted = &golden.f64("place.advantages")[start..start + n];
        holds("pieces/placement-advantages", &case, worst(&advantages, wanted), 1e-5);
        start += n;
        if n < 7 {
            // TRL: the EOS action earns its divergence alone, and the place after it the score.
            let score = golden.f32("place.scores")[row];
            let shifted = [rewards[n - 1] - score, score];
            holds("pieces/placement-trl", &case, worst(&shifted, &trl[row][n - 1..=n]), 1e-6);
            if row == 0 {
                both(rewards[n - 1], -0.2236, trl[row][n - 1], -0.0891);
            }
        }
    }
}

#[test]
fn a_missing_eos_replaces_the_score_where_trl_subtracts_from_it() {
    let golden = Golden::open();
    let (n, row) = (7, 1);
    let score = golden.f32("place.scores")[row];
    let of = |name: &str| golden.rows(name)[row].clone();
    let last = |rule: MissingEos| {
        let seen = rule.apply(score, false);
        rewards(&of("place.logprobs"), &of("place.reference"), seen, 0.1)[n - 1]
    };
    let trl = golden.rows("trl.place.rewards")[row][n - 1];
    holds("pieces/missing-eos-trl", "penalty of 1", f64::from((last(MissingEos::Penalty(1.0)) - trl).abs()), 1e-6);
    both(last(MissingEos::Replace(-1.0)), -1.0894, trl, -0.9250);
}

#[test]
fn losses_and_their_gradients_are_those_of_autograd() {
    let golden = Golden::open();
    let (new, old) = (golden.f32("loss.new"), golden.f32("loss.old"));
    let policy = policy_loss(&new, &old, &golden.f32("loss.advantage"), 0.2, 64.0);
    let value = value_loss(&new, &old, &golden.f32("loss.target"), 0.2, 64.0);
    for (name, loss, gradient) in [("policy", policy.loss, policy.gradient), ("value", value.loss, value.gradient)] {
        holds("pieces/losses", name, (loss - golden.f64(&format!("loss.{name}"))[0]).abs(), 1e-6);
        let wanted = golden.f64(&format!("loss.{name}.gradient"));
        holds("pieces/loss-gradients", name, worst(&gradient, &wanted), 1e-7);
    }
}
