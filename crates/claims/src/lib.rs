//! A claim of correctness: a difference from an independent reference that a test holds to a
//! tolerance, and that is written down as it was measured.
//!
//! ```
//! use instruct_claims::{holds, relative, worst};
//! fn check(found: &[f32], wanted: &[f32]) {
//!     holds("networks/logits", "gpt2-tied", worst(found, wanted), 1e-4);
//!     holds("networks/gradients", "gpt2-tied embed.weight", relative(found, wanted, 1e-3), 1e-3);
//! }
//! ```
//!
//! A test says what it compares through [`holds`]; `cargo xtask correctness` runs the tests, gathers
//! what they measured and writes `docs/correctness.md` from it. The table cannot then name a
//! difference that no test found, nor a tolerance that no test holds.

use std::{fmt::Write as _, fs::OpenOptions, io::Write as _, panic::Location};

/// The environment variable that names the file which measurements are appended to. Without it a
/// claim is asserted and nothing is written.
pub const FILE: &str = "INSTRUCT_MEASURED";

/// Asserts that `difference` is at most `tolerance`, and records both.
///
/// `claim` is the name of a row of `docs/correctness.md` (`networks/logits`), `case` what was
/// compared this time (`gpt2-tied`). Of all cases of a claim the row shows the worst. A relative
/// difference is divided by its size before it comes here, so that one number says how much of the
/// tolerance was used.
///
/// # Panics
/// When the difference is larger, or not a number; when the file of measurements cannot be written.
#[track_caller]
pub fn holds(claim: &str, case: &str, difference: f64, tolerance: f64) {
    if let Some(file) = std::env::var_os(FILE) {
        let at = Location::caller();
        let mut line = String::new();
        let _ = writeln!(line, "{claim}\t{case}\t{difference:e}\t{tolerance:e}\t{}", at.file());
        let appended = OpenOptions::new().create(true).append(true).open(&file);
        // One write per line, so that the lines of several test processes do not mix.
        let written = appended.and_then(|mut out| out.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    refuse_more(claim, case, difference, tolerance);
}

#[track_caller]
fn refuse_more(claim: &str, case: &str, difference: f64, tolerance: f64) {
    assert!(difference <= tolerance, "{claim}, {case}: differs by {difference:e}, more than {tolerance:e}");
}

/// The greatest absolute difference of two slices; infinite where their lengths differ or a value
/// is not a number.
pub fn worst<A: Copy + Into<f64>, B: Copy + Into<f64>>(found: &[A], wanted: &[B]) -> f64 {
    let pairs = found.iter().zip(wanted);
    let largest = pairs.map(|(&a, &b)| (a.into() - b.into()).abs()).fold(0.0, larger);
    if found.len() == wanted.len() { largest } else { f64::INFINITY }
}

/// The norm of the difference of two slices over the norm of `wanted` plus `floor`; infinite where
/// their lengths differ or a value is not a number. The floor serves values that are nothing but
/// rounding.
pub fn relative<A: Copy + Into<f64>, B: Copy + Into<f64>>(found: &[A], wanted: &[B], floor: f64) -> f64 {
    let off: f64 = found.iter().zip(wanted).map(|(&a, &b)| (a.into() - b.into()).powi(2)).sum();
    let size: f64 = wanted.iter().map(|&b| b.into().powi(2)).sum();
    if found.len() == wanted.len() { larger(0.0, off.sqrt() / (size.sqrt() + floor)) } else { f64::INFINITY }
}

/// The larger of both, where what is not a number counts as infinite: `f64::max` would drop it.
fn larger(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(difference: f64, passes: bool) {
        let held = std::panic::catch_unwind(|| refuse_more("claims/itself", "an example", difference, 0.1)).is_ok();
        assert_eq!(held, passes, "{difference}");
    }

    #[test]
    fn only_small_differences_hold() {
        check(0.0, true);
        check(0.1, true);
        check(0.11, false);
        check(f64::NAN, false);
        check(f64::INFINITY, false);
    }

    #[test]
    fn differences_are_those_of_the_definition() {
        assert_eq!(worst(&[1.0f32, 2.0], &[1.0f64, 4.5]), 2.5);
        assert_eq!(worst(&[1.0f32, f32::NAN], &[1.0f32, 2.0]), f64::INFINITY);
        assert_eq!(worst(&[1.0f32], &[1.0f32, 2.0]), f64::INFINITY);
        assert_eq!(relative(&[3.0f32, 0.0], &[3.0f32, 4.0], 3.0), 0.5);
        assert_eq!(relative(&[f32::NAN], &[1.0f32], 0.0), f64::INFINITY);
        assert_eq!(relative::<f32, f32>(&[], &[], 1.0), 0.0);
    }
}
