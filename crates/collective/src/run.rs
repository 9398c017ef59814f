//! Work on a rank whose failure nobody is left waiting for.

use crate::{Collective, Error, Solo};
use std::{
    any::Any,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// The exit code of a job that a rank ended because of an error or panic, as that of a panic.
pub const FAILED: i32 = 101;

/// Does `work` on this rank, waits for the others and finishes.
///
/// When `work` fails or panics, `say` gets the message with the number of the rank, and then the collective is dropped:
/// on the engines of real ranks that ends the job for all of them with [`FAILED`], a
/// second later so that launchers pass the message on, and this function does not return.
/// Errors are written with `{:#}`, which is the whole chain of causes where they have one. A [`Solo`] has nobody who
/// waits, so its errors and panics pass through without a word, and a program's usual way of telling them goes on.
///
/// # Errors
///
/// Those of `work`, and those of [`Collective::barrier`] and [`Collective::finish`] after it.
///
/// ```
/// use instruct_collective::{Error, Solo, run};
///
/// let world = run(Box::new(Solo), &|message| eprintln!("{message}"), |ranks| Ok::<_, Error>(ranks.world()));
/// assert_eq!(world, Ok(1));
/// ```
pub fn run<T, E: From<Error> + Display>(
    ranks: Box<dyn Collective>,
    say: &dyn Fn(&str),
    work: impl FnOnce(&dyn Collective) -> Result<T, E>,
) -> Result<T, E> {
    let alone = ranks.engine() == Solo::ENGINE;
    let who = format!("rank {} of {}", ranks.rank(), ranks.world());
    let tell = |message: &str| {
        if !alone {
            say(&format!("{who}: {message}"))
        }
    };
    // What a panic may have left half done is not looked at again: the rank ends.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let value = work(&*ranks)?;
        // A rank that finished early would leave the others waiting; here they meet, and whoever is elsewhere learns it.
        ranks.barrier()?;
        Ok(value)
    }));
    match outcome {
        Ok(Ok(value)) => ranks.finish().map(|()| value).map_err(|error| {
            tell(&error.to_string());
            E::from(error)
        }),
        Ok(Err(error)) => {
            tell(&format!("{error:#}"));
            drop(ranks);
            Err(error)
        }
        Err(panic) => {
            tell(&format!("panicked: {}", words(&*panic)));
            drop(ranks);
            resume_unwind(panic)
        }
    }
}

/// What a panic said, where it said something.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solo_fails_without_a_word_of_ours() {
        let say = |message: &str| panic!("said {message}");
        let error = Error::Root { root: 3, last: 0 };
        let outcome = run(Box::new(Solo), &say, |ranks| ranks.broadcast_bytes(3, &mut Vec::new()));
        assert_eq!(outcome, Err(error));
        let panic = catch_unwind(|| run(Box::new(Solo), &say, |_| -> Result<(), Error> { panic!("at work") }));
        assert_eq!(words(&*panic.unwrap_err()), "at work");
    }
}
