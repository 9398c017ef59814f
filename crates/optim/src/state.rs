//! Learned state on its way to a disk and back: what it belongs to, and whether it fits.

use crate::{AdamW, Error, Result};
use instruct_kernels::{Flat, Params, Slot};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Text that is saved beside arrays, by key.
pub type Text = BTreeMap<String, String>;

/// Arrays that were saved, by name.
pub type Arrays = BTreeMap<String, Vec<f32>>;

/// Takes one file of state: its name, text, and arrays by name, of which each rank may hold its own span.
pub type Write<'a, E> = dyn FnMut(&str, &Text, &[(&str, &Flat)]) -> Result<(), E> + 'a;

/// Returns what was taken under a name.
pub type Read<'a, E> = dyn FnMut(&str) -> Result<(Text, Arrays), E> + 'a;

/// Hands a model that learns to `write`, file by file: its weights under the first name, what its optimizer
/// remembers under the second. `write` takes a name, text and arrays.
///
/// Errors: those of the parameters and of `write`.
pub fn save_learner<E: From<Error>>(
    params: &Params,
    optimizer: &AdamW,
    [weights_name, optimizer_name]: [&str; 2],
    write: &mut Write<'_, E>,
) -> Result<(), E> {
    let written = params.weights(|weights| write(weights_name, &Text::new(), &[("weights", weights)]));
    written.map_err(Error::from)??;
    let (text, moments) = optimizer.state();
    write(optimizer_name, &text, &moments)
}

/// Continues a model that learns from what [`save_learner`] handed over; `read` returns the text and the
/// arrays of a name.
///
/// Errors: state of other parameters; those of `read`.
pub fn load_learner<E: From<Error>>(
    params: &Params,
    optimizer: &mut AdamW,
    [weights_name, optimizer_name]: [&str; 2],
    read: &mut Read<'_, E>,
) -> Result<(), E> {
    let (_, mut weights) = read(weights_name)?;
    let absent = Error::Layout { what: "weights", problem: "have no array `weights`".to_owned() };
    restore_weights(params, &weights.remove("weights").ok_or(absent)?)?;
    let (text, arrays) = read(optimizer_name)?;
    Ok(optimizer.restore(&text, arrays)?)
}

/// Overwrites the weights of `params` with `saved`, laid out as [`Params::weights`] lends them.
///
/// Errors: another number of weights; nothing is written then.
fn restore_weights(params: &Params, saved: &[f32]) -> Result<()> {
    expect_len("weights", saved.len(), params.len())?;
    Ok(params.step(|weights, _| weights.write(saved))?)
}

/// A hash of every parameter's name, shape and place.
pub(crate) fn layout(slots: &[Slot]) -> String {
    let mut hasher = Sha256::new();
    for slot in slots {
        hasher.update(format!("{} {:?} {}\n", slot.name, slot.shape, slot.offset));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses the state `what` of parameters that are laid out otherwise.
pub(crate) fn expect_layout(what: &'static str, text: &Text, slots: &[Slot]) -> Result<()> {
    if text.get("layout").is_some_and(|saved| *saved == layout(slots)) {
        return Ok(());
    }
    let problem = "is of parameters with other names or shapes than the model's".to_owned();
    Err(Error::Layout { what, problem })
}

/// Removes and returns the array `name` of `len` numbers.
pub(crate) fn take(what: &'static str, arrays: &mut Arrays, name: &str, len: usize) -> Result<Vec<f32>> {
    let problem = || format!("has no array `{name}`");
    let array = arrays.remove(name).ok_or_else(|| Error::Layout { what, problem: problem() })?;
    expect_len(what, array.len(), len)?;
    Ok(array)
}

fn expect_len(what: &'static str, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::Layout { what, problem: format!("has {found} numbers where the parameters have {wanted}") })
}
