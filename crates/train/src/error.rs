//! What can go wrong around a training loop, each with the place and the next thing to do.

use std::{error::Error, fmt, io, path::PathBuf};

/// A result of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// An error of any kind, from a closure or listener that this crate calls.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A gradient, weight or loss is NaN or infinite. Checkpoints from before this step are intact.
    #[error(
        "{what} of `{tensor}` is NaN or infinite at step {step}: lower the learning rate, or look at this step's data"
    )]
    NotFinite {
        /// The parameter's name, or the name of the scalar.
        tensor: String,
        /// The optimizer step, counted from 1.
        step: u64,
        /// Which of its numbers: `gradient`, `weight`, `value`.
        what: &'static str,
    },
    /// Parameters that no gradient reached, though nothing says that the loss cannot see them.
    #[error(
        "no gradient reached {} at step {step}: was an operation without a backward pass used, do weights of zero stand behind them, or are they missing from the list of what this loss cannot see?",
        quoted(tensors)
    )]
    NoGradient {
        /// The parameters' names.
        tensors: Vec<String>,
        /// The optimizer step, counted from 1.
        step: u64,
    },
    /// A list of frozen or undecayed parameters names ones that do not exist.
    #[error("there is no parameter named {}: compare the list with the model's parameter names", quoted(names))]
    UnknownTensor {
        /// The names that match nothing.
        names: Vec<String>,
    },
    /// A hyper-parameter is outside the range in which it means something.
    #[error("`{field}` is {value}, which must be {expected}")]
    Hyperparameter {
        /// The field of the configuration.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Saved state belongs to a model with other parameters.
    #[error("{}: {problem}; it belongs to another model or configuration", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb.
        doing: &'static str,
        /// The reason given.
        source: io::Error,
    },
    /// A file's content is not what its name promises.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process works in this run folder.
    #[error("{} is in use by process {holder}: wait until it ends, or choose another folder", path.display())]
    Locked {
        /// The run folder.
        path: PathBuf,
        /// The other process, as it wrote itself into the lock file.
        holder: String,
    },
    /// A new run was asked for in a folder that holds something.
    #[error("{} is not empty: continue the run in it with --resume, or choose another folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A resume was asked for in a folder that holds something else than a run.
    #[error("{} holds files but no config.toml, so it is not a run: choose another folder", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A run was begun with another configuration.
    #[error(
        "{} was begun with another configuration (-: then, +: now); undo the change, choose another folder, or take it over with --adopt\n{}",
        path.display(), difference.join("\n")
    )]
    ConfigDiffers {
        /// The run's `config.toml`.
        path: PathBuf,
        /// Lines `- section.key = then` and `+ section.key = now`.
        difference: Vec<String>,
    },
    /// A name of an artefact or checkpoint cannot be a folder's name.
    #[error(
        "`{name}` cannot name a folder here: use letters, digits, `-` and `_`, and neither `step-` nor `interrupted-` first"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A file system has too little room for the next checkpoint.
    #[error(
        "{} has {available} bytes free and a checkpoint needs about {needed}: free some space, then continue with --resume",
        path.display()
    )]
    NoSpace {
        /// The folder of checkpoints.
        path: PathBuf,
        /// Bytes wanted.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The closure that fills a checkpoint failed; nothing was committed.
    #[error("cannot fill {}: {source}", path.display())]
    Encode {
        /// The folder that would have been committed.
        path: PathBuf,
        /// The closure's error.
        source: BoxError,
    },
    /// The listener of a loop's events failed.
    #[error(transparent)]
    Listener(#[from] BoxError),
    /// The parameters refused.
    #[error(transparent)]
    Kernels(#[from] instruct_kernels::Error),
}

/// A checkpoint or model that cannot be trusted, and why. Resuming passes over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its folder.
    pub folder: PathBuf,
    /// What does not match its manifest.
    pub problem: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is passed over: {}", self.folder.display(), self.problem)
    }
}

/// The first few names, quoted, and how many more there are.
fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => "; free some space, then continue with --resume",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it writable or choose another folder"
        }
        io::ErrorKind::NotFound => "; check the path",
        _ => "",
    }
}
