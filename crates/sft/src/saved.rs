//! How a fine-tuning's state is saved and continued.

use crate::State;
use instruct_optim::{SpikeWatch, load_learner, save_learner};
use instruct_runs::{ArrayReader, ArrayWriter, BoxError, Saved};
use serde::{Deserialize, Serialize};

/// What of a fine-tuning is not an array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rest {
    step: u64,
    #[serde(rename = "watch")]
    spikes: SpikeWatch,
}

const NAMES: [&str; 2] = ["weights", "optimizer"];

impl Saved for State {
    type Rest = Rest;

    fn rest(&self) -> Rest {
        Rest { step: self.step, spikes: self.spikes.clone() }
    }

    fn save(&self, files: &mut ArrayWriter<'_>) -> Result<(), BoxError> {
        save_learner(self.model.params(), &self.optimizer, NAMES, &mut |name, text, flats| {
            let arrays = flats.iter().map(|&(name, flat)| (name, (flat.read(), flat.dealt())));
            Ok::<_, BoxError>(files.write(name, text, arrays)?)
        })
    }

    fn load(&mut self, rest: Rest, files: &ArrayReader<'_>) -> Result<(), BoxError> {
        let mut read = |name: &str| Ok::<_, BoxError>(files.read(name)?.into_parts());
        load_learner(self.model.params(), &mut self.optimizer, NAMES, &mut read)?;
        (self.step, self.spikes) = (rest.step, rest.spikes);
        Ok(())
    }
}
