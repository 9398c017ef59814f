//! What a loop needs besides its recipe.

use serde::{Deserialize, Serialize};

/// How a run of a recipe is computed: it decides bits and memory, never what is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Compute {
    /// Keys every draw of the run.
    pub seed: u64,
    /// Tokens computed at a time, about: a micro-batch holds at least one example. Another number
    /// changes memory and, since gradients add in another order, last bits.
    pub micro_tokens: usize,
}

impl Default for Compute {
    /// Seed 1, 4,096 tokens at a time.
    fn default() -> Compute {
        Compute { seed: 1, micro_tokens: 4_096 }
    }
}
