//! How each stage's state becomes the files of a checkpoint, and comes back exactly.

use anyhow::Result;
use instruct_kernels::Params;
use instruct_ppo as ppo;
use instruct_reward_model as reward_model;
use instruct_sft as sft;
use instruct_train::{AdamW, BoxError, Checkpoint, SpikeWatch, read_flat, write_flat};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// A stage's state: buffers in files, the rest as JSON.
pub(crate) trait Saved {
    /// What is not a buffer.
    type Rest: Serialize + for<'a> Deserialize<'a>;

    fn rest(&self) -> Self::Rest;

    /// About how much a checkpoint takes on the disk.
    fn bytes(&self) -> u64;

    /// Writes the buffers into a checkpoint's folder.
    fn save(&self, folder: &Path) -> Result<(), BoxError>;

    /// Reads what [`Saved::save`] wrote, and takes over `rest`.
    fn load(&mut self, folder: &Path, rest: Self::Rest) -> Result<()>;

    /// Continues from a checkpoint.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.load(&checkpoint.folder, checkpoint.state()?)
    }
}

/// What of a fine-tuning or a reward model's training is not a buffer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LearnerRest {
    step: u64,
    watch: SpikeWatch,
}

impl Saved for sft::State {
    type Rest = LearnerRest;

    fn rest(&self) -> LearnerRest {
        LearnerRest { step: self.step, watch: self.watch.clone() }
    }

    fn bytes(&self) -> u64 {
        learner_bytes(self.model.params())
    }

    fn save(&self, folder: &Path) -> Result<(), BoxError> {
        save_learner(self.model.params(), &self.optimizer, folder)
    }

    fn load(&mut self, folder: &Path, rest: LearnerRest) -> Result<()> {
        (self.step, self.watch) = (rest.step, rest.watch);
        load_learner(self.model.params(), &mut self.optimizer, folder)
    }
}

impl Saved for reward_model::State {
    type Rest = LearnerRest;

    fn rest(&self) -> LearnerRest {
        LearnerRest { step: self.step, watch: self.watch.clone() }
    }

    fn bytes(&self) -> u64 {
        learner_bytes(self.model.params())
    }

    fn save(&self, folder: &Path) -> Result<(), BoxError> {
        save_learner(self.model.params(), &self.optimizer, folder)
    }

    fn load(&mut self, folder: &Path, rest: LearnerRest) -> Result<()> {
        (self.step, self.watch) = (rest.step, rest.watch);
        load_learner(self.model.params(), &mut self.optimizer, folder)
    }
}

/// What of a PPO run is not a buffer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PpoRest {
    iteration: u64,
    beta: f64,
    watched: ppo::Watched,
}

impl Saved for ppo::State {
    type Rest = PpoRest;

    fn rest(&self) -> PpoRest {
        PpoRest { iteration: self.iteration, beta: self.beta, watched: self.watched.clone() }
    }

    fn bytes(&self) -> u64 {
        let value = self.value.as_ref().map_or(0, |value| learner_bytes(value.params()));
        let average = self.ema.as_ref().map_or(0, |_| buffer_bytes(self.policy.params()));
        learner_bytes(self.policy.params()) + value + average
    }

    fn save(&self, folder: &Path) -> Result<(), BoxError> {
        save_weights(self.policy.params(), &folder.join("policy.safetensors"))?;
        self.policy_optimizer.save(&folder.join("policy-optimizer.safetensors"))?;
        if let (Some(value), Some(optimizer)) = (&self.value, &self.value_optimizer) {
            save_weights(value.params(), &folder.join("value.safetensors"))?;
            optimizer.save(&folder.join("value-optimizer.safetensors"))?;
        }
        match &self.ema {
            Some(ema) => Ok(ema.save(&folder.join("ema.safetensors"))?),
            None => Ok(()),
        }
    }

    fn load(&mut self, folder: &Path, rest: PpoRest) -> Result<()> {
        load_weights(self.policy.params(), &folder.join("policy.safetensors"))?;
        self.policy_optimizer.load(&folder.join("policy-optimizer.safetensors"))?;
        if let (Some(value), Some(optimizer)) = (&self.value, &mut self.value_optimizer) {
            load_weights(value.params(), &folder.join("value.safetensors"))?;
            optimizer.load(&folder.join("value-optimizer.safetensors"))?;
        }
        if let Some(ema) = &mut self.ema {
            ema.load(&folder.join("ema.safetensors"))?;
        }
        (self.iteration, self.beta, self.watched) = (rest.iteration, rest.beta, rest.watched);
        Ok(())
    }
}

/// One flat buffer.
fn buffer_bytes(params: &Params) -> u64 {
    (params.len() * size_of::<f32>()) as u64
}

/// Weights and Adam's two moments.
fn learner_bytes(params: &Params) -> u64 {
    3 * buffer_bytes(params)
}

/// One model that learns, with its optimizer.
fn save_learner(params: &Params, optimizer: &AdamW, folder: &Path) -> Result<(), BoxError> {
    save_weights(params, &folder.join("weights.safetensors"))?;
    Ok(optimizer.save(&folder.join("optimizer.safetensors"))?)
}

fn load_learner(params: &Params, optimizer: &mut AdamW, folder: &Path) -> Result<()> {
    load_weights(params, &folder.join("weights.safetensors"))?;
    Ok(optimizer.load(&folder.join("optimizer.safetensors"))?)
}

fn save_weights(params: &Params, path: &Path) -> Result<(), BoxError> {
    Ok(params.with_weights(|weights| write_flat(path, &BTreeMap::new(), &[("weights", weights)]))??)
}

fn load_weights(params: &Params, path: &Path) -> Result<()> {
    let flat = read_flat(path)?;
    let Some(saved) = flat.arrays.get("weights").filter(|saved| saved.len() == params.len()) else {
        anyhow::bail!("{}: these weights are not those of this model; delete the checkpoint", path.display());
    };
    params.update(|weights, _| weights.copy_from_slice(saved))?;
    Ok(())
}
