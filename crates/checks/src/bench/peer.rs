//! The other side: torch, transformers and TRL in processes of their own (peer.py).

use super::{Job, Turn, parse_turn};
use crate::process::python_environment;
use anyhow::{Context, Result, bail};
use instruct_model::Family;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

/// TRL 1.12 is the last release whose PPO lies in `trl.experimental.ppo`.
const PACKAGES: [&str; 4] = ["torch==2.15.0", "transformers==5.23.0", "trl==1.12.0", "datasets"];

/// A Python that has the packages, and the script that it runs.
pub(super) struct Peer {
    python: PathBuf,
    script: tempfile::NamedTempFile,
}

impl Peer {
    /// The given Python, or one in an environment that is made when it is not there yet.
    pub(super) fn find(python: Option<&Path>) -> Result<Peer> {
        let script = tempfile::Builder::new().suffix(".py").tempfile()?;
        std::fs::write(script.path(), include_str!("peer.py"))?;
        let place = Path::new("target/bench-environment");
        let made = || python_environment(place, PACKAGES.map(str::to_owned).into_iter());
        let python = python.map_or_else(made, |python| Ok(python.to_owned()))?;
        Ok(Peer { python, script })
    }

    /// Versions of its packages.
    pub(super) fn versions(&self) -> Result<BTreeMap<String, String>> {
        let output = Command::new(&self.python).arg(self.script.path()).arg("versions").output()?;
        if !output.status.success() {
            bail!("the peer does not start:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("the peer's versions")
    }

    /// One turn with as many threads as we use.
    pub(super) fn turn(&self, Job { stage, shape, sizes, settings, steps }: Job<'_>) -> Result<Turn> {
        let config = &shape.config;
        let family = if config.family == Family::Gpt2 { "gpt2" } else { "llama" };
        let mut process = Command::new(&self.python);
        process.arg(self.script.path()).args([stage.to_string(), family.to_owned()]);
        process.args(
            [config.layers, config.width, config.heads, config.kv_heads, config.inner, config.vocab]
                .map(|n| n.to_string()),
        );
        process.args([sizes.prompts, sizes.k, sizes.prompt, sizes.completion, steps].map(|n| n.to_string()));
        process.args([rayon::current_num_threads().to_string(), settings.precision.to_string()]);
        parse_turn(&mut process)
    }
}
