//! What can go wrong with a model, each with where it happened and what to do next.

use crate::HeadKind;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The numbers of a decoder description disagree.
    #[error("the decoder's description does not hold together:{}", bullets(problems))]
    Config {
        /// One line per field in disagreement.
        problems: Vec<String>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(next))]
    Io {
        /// What was tried: `read`, `write`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What to do next; may be empty.
        next: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file was read but is not what it should be.
    #[error("{}: {problem}{}", path.display(), hint(next))]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, naming the field where there is one.
        problem: String,
        /// What to do next; may be empty.
        next: &'static str,
    },
    /// A text file of a checkpoint is too large, or no text.
    #[error(transparent)]
    File(instruct_data::Error),
    /// The tensors of a checkpoint are not those its description calls for.
    #[error(
        "{}: the tensors do not match the decoder that the configuration describes:{}\n\
         check that configuration and weights come from the same model",
        path.display(),
        bullets(problems)
    )]
    Tensors {
        /// The checkpoint.
        path: PathBuf,
        /// One line per missing, unexpected or misshaped tensor.
        problems: Vec<String>,
    },
    /// A sequence does not fit the model.
    #[error("a sequence of {tokens} tokens does not fit a context of {context}; shorten the prompt or the completion")]
    Context {
        /// Its length.
        tokens: usize,
        /// The most the model can hold.
        context: usize,
    },
    /// An operation needs another head than the decoder has.
    #[error("this needs {wanted}, but the decoder's head is {head:?}")]
    WrongHead {
        /// The head needed.
        wanted: &'static str,
        /// The head there is.
        head: HeadKind,
    },
    /// The values of a matrix that is held in bf16 were asked for, or were to be replaced.
    #[error("{name} is held in bf16, for inference alone; open the model again and use that one")]
    HeldInBf16 {
        /// The parameter.
        name: String,
    },
    /// A model gave logits from which no token can be drawn.
    #[error(
        "episode {episode}, token {token}: the logits are not finite, so that no token can be drawn from them; \
         compute in f32, or use weights from before the training failed"
    )]
    Logits {
        /// The episode.
        episode: u64,
        /// The number of the token that was to be drawn, from 0.
        token: usize,
    },
    /// A request that cannot be generated.
    #[error("episode {episode}: {problem}")]
    Request {
        /// The episode asked for.
        episode: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Tokens cannot be chosen in this way.
    #[error("{problem}")]
    Sampling {
        /// What is wrong with the settings.
        problem: &'static str,
    },
    /// A fused operation failed.
    #[error(transparent)]
    Kernel(#[from] instruct_kernels::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
        next: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io { action, path, next, source }
    }

    pub(crate) fn format(path: &Path, problem: impl Into<String>, next: &'static str) -> Error {
        Error::Format { path: path.to_owned(), problem: problem.into(), next }
    }
}

/// Lines that a message lists before it counts the rest.
const SHOWN: usize = 20;

fn bullets(lines: &[String]) -> String {
    let mut text: String = lines.iter().take(SHOWN).map(|line| format!("\n  - {line}")).collect();
    if lines.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", lines.len() - SHOWN));
    }
    text
}

fn hint(next: &str) -> String {
    if next.is_empty() { String::new() } else { format!("; {next}") }
}
