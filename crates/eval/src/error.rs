//! What can be wrong with the numbers.

/// Why an estimate cannot be made. `what` names the argument.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Nothing to estimate from.
    #[error("`{what}` is empty: there is nothing to estimate from")]
    Empty {
        /// The argument.
        what: &'static str,
    },
    /// Two arguments that belong together differ in length.
    #[error("`{what}` has {got} values where {want} belong to it")]
    Length {
        /// The argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it should have.
        want: usize,
    },
    /// A NaN or an infinity: an average over it would hide it.
    #[error("`{what}` holds {value} at index {index}: look for a model that diverged or an empty completion")]
    NotFinite {
        /// The argument.
        what: &'static str,
        /// Where it stands.
        index: usize,
        /// What stands there.
        value: f64,
    },
    /// One person's opinion of one item twice: it would count as two people who agree.
    #[error("`{labeler}` stands twice in item {item}: a person has one opinion of it")]
    Repeated {
        /// Who.
        labeler: String,
        /// The item's index.
        item: usize,
    },
    /// A number outside its range.
    #[error("`{what}` is {got}, it must be {want}")]
    Range {
        /// The argument.
        what: &'static str,
        /// What it is.
        got: usize,
        /// What it may be, in words.
        want: &'static str,
    },
}

/// Refuses an empty slice and any value that is not finite.
pub(crate) fn finite(what: &'static str, values: &[f64]) -> Result<(), Error> {
    if values.is_empty() {
        return Err(Error::Empty { what });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}

/// Refuses a length other than `want`.
pub(crate) fn length(what: &'static str, got: usize, want: usize) -> Result<(), Error> {
    if got == want { Ok(()) } else { Err(Error::Length { what, got, want }) }
}
