//! Training runs that torch computed, read for the tests of the stages to follow.
//!
//! `fixtures/reference/traces.py` wrote them: inputs, metrics of every step, and weights at the end. A test
//! trains on the inputs of a [`Trace`] and hands it what it found.
//!
//! ```no_run
//! use instruct_golden::{Trace, recorder, start};
//! use instruct_runs::{Event, Flow};
//!
//! let (trace, model) = (Trace::open("sft"), start());
//! let mut seen = Vec::new();
//! let mut on = recorder::<()>(&mut seen);
//! // A stage's loop calls `on` with every event and changes the model.
//! assert!(matches!(on(Event::Step { step: 1, total: 1, metrics: &[] }), Ok(Flow::Continue)));
//! drop(on);
//! trace.check_metrics(&seen);
//! trace.check_weights(&model, "end");
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot read its reference says where")]

use candle_core::{DType, Device, Tensor};
use instruct_claims::holds;
use instruct_kernels::Path as KernelPath;
use instruct_model::{Checkpoint, Decoder, HeadKind};
use instruct_runs::{Event, Flow};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// One trace: inputs, metrics of every step, weights at the end.
pub struct Trace {
    name: String,
    folder: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

fn reference() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/reference")
}

fn open(folder: PathBuf) -> Decoder {
    let checkpoint = Checkpoint::open(folder).unwrap();
    Decoder::from_checkpoint(&checkpoint, &Device::Cpu, KernelPath::Fused, DType::F32).unwrap()
}

/// The decoder that every trace starts from.
pub fn start() -> Decoder {
    open(reference().join("gpt2-tied"))
}

/// The same trunk with a scalar head of these weights and no bias.
pub fn scalar_start(kind: HeadKind, weight: &[f32]) -> Decoder {
    let model = start().with_head(kind, 0).unwrap();
    model.params().set("score.weight", weight).unwrap();
    model.params().set("score.bias", &[0.0]).unwrap();
    model
}

impl Trace {
    /// Reads the trace of this name.
    ///
    /// # Panics
    /// When there is none; so does everything here that finds a difference.
    pub fn open(name: &str) -> Trace {
        let folder = reference().join("traces").join(name);
        let tensors = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
        Trace { name: name.to_owned(), folder, tensors: tensors.into_iter().collect() }
    }

    /// The metrics of `steps` that the trace knows nothing of.
    pub fn unknown(&self, steps: &[Vec<(&'static str, f64)>]) -> Vec<&'static str> {
        let names: BTreeSet<&str> = steps.iter().flatten().map(|(name, _)| *name).collect();
        names.into_iter().filter(|name| !self.tensors.contains_key(&format!("metric.{name}"))).collect()
    }

    /// The numbers of one input, flat.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Lists of token ids, or of ranks.
    pub fn lists(&self, name: &str) -> Vec<Vec<u32>> {
        let integers = |name: &str| self.tensors[name].to_vec1::<i64>().unwrap();
        let mut flat = integers(name).into_iter().map(|x| x as u32);
        integers(&format!("{name}.lengths")).iter().map(|&n| flat.by_ref().take(n as usize).collect()).collect()
    }

    /// Every metric of the trace against those of the steps, to 1e-4 of its size. NaN stands for a
    /// metric that a step does not have.
    #[track_caller]
    pub fn check_metrics(&self, steps: &[Vec<(&'static str, f64)>]) {
        let golden = self.tensors.keys().filter_map(|key| Some((key, key.strip_prefix("metric.")?)));
        for (key, name) in golden {
            let wanted = self.floats(key);
            assert_eq!(wanted.len(), steps.len(), "{name}: steps");
            for (step, (metrics, &wanted)) in steps.iter().zip(&wanted).enumerate() {
                match metrics.iter().find(|(found, _)| *found == name).map(|(_, value)| *value) {
                    Some(found) => {
                        let (off, size) = ((found - f64::from(wanted)).abs(), f64::from(wanted.abs()));
                        // What is left of sums that cancel is held to 1e-7.
                        let case = format!("{} {name}, step {step}", self.name);
                        holds("traces/metrics", &case, off / (size + 1e-3), 1e-4);
                    }
                    None => assert!(wanted.is_nan(), "step {step} has no {name}"),
                }
            }
        }
    }

    /// The trunk's parameters against a model of the trace: within 1e-4 of their norm, and within a
    /// hundredth of how far they came, parameter by parameter.
    #[track_caller]
    pub fn check_weights(&self, found: &Decoder, model: &str) {
        let (begin, wanted) = (start(), open(self.folder.join(model)));
        let qkv = |name: &str| name.ends_with("qkv.bias");
        for slot in wanted.params().slots() {
            let read = |decoder: &Decoder| {
                let mut values = decoder.params().read(&slot.name).unwrap();
                // Without rotation the softmax does not see a key's bias: its gradient is rounding
                // noise, and Adam makes steps of any noise.
                if qkv(&slot.name) {
                    let third = values.len() / 3;
                    values.drain(third..2 * third);
                }
                values
            };
            let (found, begin, wanted) = (read(found), read(&begin), read(&wanted));
            let off = distance(&found, &wanted);
            let size = distance(&wanted, &vec![0.0; wanted.len()]);
            let came = distance(&wanted, &begin);
            let case = format!("{} {model}, {}", self.name, slot.name);
            holds("traces/weights", &case, off / size.max(1e-3), 1e-4);
            holds("traces/movement", &case, off / (came + 1e-5), 1e-2);
        }
    }
}

impl Trace {
    /// A scalar head's tensor against one of the trace.
    #[track_caller]
    pub fn check_head(&self, found: &Decoder, name: &str, wanted: &str) {
        let off = distance(&found.params().read(name).unwrap(), &self.floats(wanted));
        holds("traces/heads", &format!("{} {name}", self.name), off, 1e-5);
    }
}

/// A listener that keeps the metrics of every step.
pub fn recorder<S>(
    seen: &mut Vec<Vec<(&'static str, f64)>>,
) -> impl FnMut(Event<'_, S>) -> instruct_runs::Result<Flow> {
    |event| {
        if let Event::Step { metrics, .. } = event {
            seen.push(metrics.to_vec());
        }
        Ok(Flow::Continue)
    }
}

/// Euclidean distance.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}
