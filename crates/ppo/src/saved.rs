//! How a PPO run's state is saved and continued.

use crate::{GuardMemory, State};
use instruct_kernels::Flat;
use instruct_optim::{Text, load_learner, save_learner};
use instruct_runs::{ArrayReader, ArrayWriter, BoxError, Saved};
use serde::{Deserialize, Serialize};

/// What of a PPO run is not an array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rest {
    iteration: u64,
    beta: f64,
    #[serde(rename = "watched")]
    guards: GuardMemory,
}

impl Saved for State {
    type Rest = Rest;

    fn rest(&self) -> Rest {
        Rest { iteration: self.iteration, beta: self.beta, guards: self.guards.clone() }
    }

    fn save(&self, files: &mut ArrayWriter<'_>) -> Result<(), BoxError> {
        let mut write = |name: &str, text: &Text, flats: &[(&str, &Flat)]| {
            let arrays = flats.iter().map(|&(name, flat)| (name, (flat.read(), flat.dealt())));
            Ok::<_, BoxError>(files.write(name, text, arrays)?)
        };
        save_learner(self.policy.params(), &self.policy_optimizer, POLICY, &mut write)?;
        if let (Some(value), Some(optimizer)) = (&self.value, &self.value_optimizer) {
            save_learner(value.params(), optimizer, VALUE, &mut write)?;
        }
        if let Some(ema) = &self.ema {
            let (text, average) = ema.state();
            write("ema", &text, &average)?;
        }
        Ok(())
    }

    fn load(&mut self, rest: Rest, files: &ArrayReader<'_>) -> Result<(), BoxError> {
        let mut read = |name: &str| Ok::<_, BoxError>(files.read(name)?.into_parts());
        load_learner(self.policy.params(), &mut self.policy_optimizer, POLICY, &mut read)?;
        if let (Some(value), Some(optimizer)) = (&self.value, &mut self.value_optimizer) {
            load_learner(value.params(), optimizer, VALUE, &mut read)?;
        }
        if let Some(ema) = &mut self.ema {
            let (text, arrays) = read("ema")?;
            ema.restore(&text, arrays)?;
        }
        (self.iteration, self.beta, self.guards) = (rest.iteration, rest.beta, rest.guards);
        Ok(())
    }
}

impl State {
    /// Takes over the value model of another run, and what its optimizer remembers, from a checkpoint of that run. PPO
    /// that goes on with a trained policy wants it: advantages under a value model that is still to learn pull such a
    /// policy back first. Where the plan has no value model of its own, nothing is taken.
    ///
    /// Errors: a checkpoint without a value model, or with one of another shape; files that cannot be read.
    pub fn take_critic(&mut self, files: &ArrayReader<'_>) -> Result<(), BoxError> {
        let (Some(value), Some(optimizer)) = (&self.value, &mut self.value_optimizer) else { return Ok(()) };
        let mut read = |name: &str| Ok::<_, BoxError>(files.read(name)?.into_parts());
        load_learner(value.params(), optimizer, VALUE, &mut read)
    }
}

const POLICY: [&str; 2] = ["policy", "policy-optimizer"];
const VALUE: [&str; 2] = ["value", "value-optimizer"];
