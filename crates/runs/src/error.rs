//! What can go wrong in a run folder, each with the place and the next thing to do.

use std::{error, fmt, io, path::PathBuf};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of any kind, from a closure or listener that this crate calls.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
    /// A run was begun with other data.
    #[error(
        "{} holds the hashes of the data that this run began with, and it is other data now (-: then, +: now); bring \
         the data back, choose another folder, or take it over with --adopt\n{}",
        path.display(), difference.join("\n")
    )]
    InputsDiffer {
        /// The run's `inputs.json`.
        path: PathBuf,
        /// Lines `- name: hash then` and `+ name: hash now`.
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
    /// A checkpoint's state could not be taken over, of another model or configuration for example.
    #[error("cannot continue from {}: {source}", path.display())]
    Restore {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What the state said.
        source: BoxError,
    },
    /// The processes of a run could not meet.
    #[error("the processes of this run do not meet: {0}")]
    Ranks(#[source] BoxError),
    /// The listener of a loop's events failed.
    #[error(transparent)]
    Listener(#[from] BoxError),
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
