//! Guards: what stops a run, or warns, before it wastes hours.

use crate::{Error, Result, blocks::square_sums};
use instruct_collective::Collective;
use instruct_kernels::{Flat, Params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Refuses an accumulated gradient in which a parameter outside `allow` is zero everywhere.
///
/// To be called once, between the first backward pass and the first optimizer step. `allow` names
/// what the loss cannot see (a reward model's head bias and final-norm
/// bias, everything behind a zero head at step 0) and what is frozen. Candle's fused operations end
/// the graph without an error, and the loss still falls; nothing but this check would notice. Of a gradient that
/// [`crate::GradTree::over`] left, each of `ranks` looks at its own span.
///
/// Errors: [`Error::NoGradient`] with all such parameters and `step`, the one about to be taken; those of the ranks.
pub fn check_gradients(params: &Params, allow: &[&str], step: u64, ranks: &dyn Collective) -> Result<()> {
    let sums = params.gradient(|gradient| square_sums(gradient, ranks))?;
    let slots = params.slots().iter().filter(|slot| !allow.contains(&slot.name.as_str()));
    let dead = slots.filter(|slot| sums[slot.blocks()].iter().all(|&sum| sum == 0.0));
    let dead: Vec<String> = dead.map(|slot| slot.name.clone()).collect();
    if dead.is_empty() { Ok(()) } else { Err(Error::NoGradient { tensors: dead, step }) }
}

/// As [`check_gradients`], for a model that is read through the scalar head `head`: a head of zeros
/// hides everything behind it from the first step's loss, so nothing is refused while it is one. To
/// be called before each of the first two steps.
///
/// Errors: those of [`check_gradients`]; there is no parameter of this name.
pub fn check_gradients_behind(
    params: &Params,
    head: &str,
    allow: &[&str],
    step: u64,
    ranks: &dyn Collective,
) -> Result<()> {
    if params.read(head)?.iter().all(|&w| w == 0.0) { Ok(()) } else { check_gradients(params, allow, step, ranks) }
}

/// What is wrong with a plan: of its checks, each `(whether it is fine, what is wrong otherwise)`,
/// those that are not.
pub fn problems(checks: &[(bool, &str)]) -> Vec<String> {
    checks.iter().filter(|(fine, _)| !fine).map(|(_, problem)| (*problem).to_owned()).collect()
}

/// Refuses weights that are not finite, before step `step`: those of a broken file, for example.
///
/// Errors: [`Error::NotFinite`] with the first such tensor.
pub fn check_weights(params: &Params, step: u64) -> Result<()> {
    let sums = params.weights(Flat::square_sums)?;
    let broken = params.slots().iter().find(|slot| sums[slot.blocks()].iter().any(|sum| !sum.is_finite()));
    broken.map_or(Ok(()), |slot| Err(Error::NotFinite { tensor: slot.name.clone(), step, what: "weight" }))
}

/// Passes a finite scalar (a loss, a score) through and refuses any other.
///
/// Errors: [`Error::NotFinite`] with `name`.
pub fn check_finite(name: &str, value: f64, step: u64) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::NotFinite { tensor: name.to_owned(), step, what: "value" })
}

/// As [`check_finite`] for a loss of `params`: what is blamed is the first weight that is not finite,
/// and the loss itself only when there is none.
///
/// Errors: [`Error::NotFinite`].
pub fn check_loss(params: &Params, name: &str, value: f64, step: u64) -> Result<f64> {
    if !value.is_finite() {
        check_weights(params, step)?;
    }
    check_finite(name, value, step)
}

/// Watches several curves of one stage for [`Spikes`]. It is part of the stage's state, so that a
/// resumed run warns where the uninterrupted one does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpikeWatch {
    curves: BTreeMap<String, Spikes>,
}

impl SpikeWatch {
    /// Standard deviations above the recent mean that make a spike; ours.
    pub const Z: f64 = 6.0;

    /// Takes in the next value of every curve, and returns a sentence for each that jumped more than
    /// `z` standard deviations above its recent values. `z` 0 turns the watch off.
    pub fn observe(&mut self, z: f64, curves: &[(&str, f64)]) -> Vec<String> {
        if z == 0.0 {
            return Vec::new();
        }
        let mut sentences = Vec::new();
        for &(name, value) in curves {
            if let Some(Spike { value, mean, z }) = self.curves.entry(name.to_owned()).or_default().observe(value, z) {
                sentences.push(format!(
                    "`{name}` is {value:.4}, {z:.1} standard deviations above its recent mean of {mean:.4}: look at \
                     this step's data, and lower the learning rate if many follow"
                ));
            }
        }
        sentences
    }
}

/// Notices when a curve jumps far above its recent values.
///
/// Only upwards: a loss that falls suddenly is not a problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spikes {
    recent: VecDeque<f64>,
}

/// A value far above the recent ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// The value.
    pub value: f64,
    /// Mean of the values before it.
    pub mean: f64,
    /// Its distance from the mean, in standard deviations.
    pub z: f64,
}

impl Spikes {
    /// Values that are remembered. 50 is ours: long enough for a spread, short enough to follow
    /// a falling loss.
    const WINDOW: usize = 50;

    /// Values that must have been seen before any can be a spike; ours.
    const WARM_UP: usize = 10;

    /// Least spread, relative to the mean, so that a flat curve's rounding is no spike; ours.
    const FLOOR: f64 = 0.01;

    /// Takes in the next value, and reports it when it is more than `threshold` standard deviations
    /// above the mean. Those that are not finite are left to [`check_finite`].
    pub fn observe(&mut self, value: f64, threshold: f64) -> Option<Spike> {
        if !value.is_finite() {
            return None;
        }
        let spike = self.compare(value).filter(|spike| spike.z > threshold);
        if self.recent.len() == Self::WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(value);
        spike
    }

    fn compare(&self, value: f64) -> Option<Spike> {
        if self.recent.len() < Self::WARM_UP {
            return None;
        }
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / n;
        let variance = self.recent.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let spread = variance.sqrt().max(Self::FLOOR * mean.abs()).max(f64::MIN_POSITIVE);
        Some(Spike { value, mean, z: (value - mean) / spread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::params;
    use instruct_collective::Solo;

    #[test]
    fn dead_parameters_are_named() {
        let params = params(&[("alive", &[2]), ("dead", &[3]), ("deader", &[1]), ("unseen", &[2])]);
        params.with_grads(|g| g[1] = 1e-30).unwrap();
        match check_gradients(&params, &["unseen"], 7, &Solo) {
            Err(Error::NoGradient { tensors, step: 7 }) => assert_eq!(tensors, ["dead", "deader"]),
            other => panic!("{other:?}"),
        }
        check_gradients(&params, &["unseen", "dead", "deader"], 7, &Solo).unwrap();
    }

    #[test]
    fn broken_weights_and_losses_are_named() {
        let params = params(&[("a", &[2]), ("b", &[3])]);
        check_weights(&params, 0).unwrap();
        params.set("b", &[0.0, f32::NAN, 0.0]).unwrap();
        let message = check_weights(&params, 4).unwrap_err().to_string();
        assert!(message.contains("`b`") && message.contains("step 4"), "{message}");
        // A loss is blamed only when no weight explains it.
        assert_eq!(check_loss(&params, "loss", 1.5, 4).unwrap(), 1.5);
        let blamed = |params| check_loss(params, "loss", f64::INFINITY, 4).unwrap_err().to_string();
        assert!(blamed(&params).contains("weight of `b`"));
        params.set("b", &[0.0; 3]).unwrap();
        assert!(blamed(&params).contains("value of `loss`"));
        assert_eq!(check_finite("loss", 1.5, 0).unwrap(), 1.5);
        assert!(check_finite("loss", f64::NAN, 0).unwrap_err().to_string().contains("`loss`"));
    }

    #[track_caller]
    fn check_spikes(values: impl IntoIterator<Item = f64>, want: &[usize]) {
        let mut spikes = Spikes::default();
        let found =
            values.into_iter().enumerate().filter_map(|(i, value)| spikes.observe(value, SpikeWatch::Z).map(|_| i));
        assert_eq!(found.collect::<Vec<_>>(), want);
    }

    #[test]
    fn spikes_are_jumps_upwards_after_a_warm_up() {
        let noisy = |i: usize| 2.0 + 0.1 * (i as f64 * 1.7).sin();
        check_spikes((0..200).map(noisy), &[]);
        check_spikes((0..200).map(|i| if i == 120 { 9.0 } else { noisy(i) }), &[120]);
        check_spikes((0..200).map(|i| if i == 5 { 9.0 } else { noisy(i) }), &[]);
        check_spikes((0..200).map(|i| if i == 120 { -9.0 } else { noisy(i) }), &[]);
        check_spikes((0..200).map(|i| 5.0 / (1.0 + i as f64)), &[]);
        check_spikes((0..40).map(|i| if i < 30 { 1.0 } else { 1.001 }), &[]);
        check_spikes((0..40).map(|i| if i == 20 { f64::NAN } else { 1.0 }), &[]);
        check_spikes((0..40).map(|i| if i == 30 { 1e-9 } else { 0.0 }), &[30]);
    }

    #[test]
    fn a_watch_survives_the_disk() {
        let mut watch = SpikeWatch::default();
        let curves = |i: i32| [("loss", f64::from(i).sqrt()), ("norm", 1.0 / f64::from(i + 1))];
        (0..70).for_each(|i| assert!(watch.observe(SpikeWatch::Z, &curves(i)).is_empty()));
        let text = serde_json::to_string(&watch).unwrap();
        let mut again: SpikeWatch = serde_json::from_str(&text).unwrap();
        assert_eq!(again, watch);
        let warned = again.observe(SpikeWatch::Z, &[("loss", 8.0), ("norm", 1.0)]);
        assert!(warned.len() == 1 && warned[0].contains("`norm` is 1.0000"), "{warned:?}");
        assert!(watch.observe(0.0, &[("norm", 1e9)]).is_empty(), "0 turns it off");
    }
}
