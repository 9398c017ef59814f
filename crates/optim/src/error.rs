//! What can go wrong in an optimizer step, each with the tensor and the next thing to do.

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
    #[error("{what} {problem}; the state belongs to another model or configuration")]
    Layout {
        /// What was to be restored: `weights`, `optimizer`, `average`.
        what: &'static str,
        /// What differs.
        problem: String,
    },
    /// Ranks cannot share the leaves of a step in whole subtrees.
    #[error(
        "{leaves} leaves cannot be shared by {ranks} ranks: `model.leaves` must be {ranks} times a power of two, for \
         example {ranks}"
    )]
    Leaves {
        /// `leaves` of [`crate::Compute`].
        leaves: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// The ranks could not exchange what they have.
    #[error(transparent)]
    Ranks(#[from] instruct_collective::Error),
    /// What a rank made of its share cannot be sent, or cannot be read by another.
    #[error("a rank's share of the work cannot be exchanged: {0}; are the ranks one version of the program?")]
    Shared(#[source] postcard::Error),
    /// The parameters refused.
    #[error(transparent)]
    Kernels(#[from] instruct_kernels::Error),
}

/// The first few names, quoted, and how many more there are.
fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
