//! I doubt the others: what this repository is checked, measured, broken and regenerated with.
//!
//! `cargo xtask ci` and its like hand over to this program, so that none of it is in the one that people
//! install. It may know every other crate, and none knows it. [`inputs`] and [`entries`] are public for the
//! tests and the fuzz targets.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//!
//! // Every hostile input, given to the program that people install.
//! let repository = Path::new(".");
//! let program = instruct_checks::program(repository).unwrap();
//! let rows = instruct_checks::inputs::run(&program, repository, Duration::from_secs(600)).unwrap();
//! assert!(rows.iter().all(|row| row.problems.is_empty()));
//! ```

mod bench;
mod ci;
mod circle;
mod cli;
mod copying;
#[cfg(test)]
mod corpus;
mod correctness;
pub mod entries;
mod fixtures;
mod gpu;
pub mod inputs;
mod launcher;
mod process;
mod reference;
mod server;
#[cfg(test)]
mod tidy;
mod torture;

pub use crate::{cli::main, process::program};
