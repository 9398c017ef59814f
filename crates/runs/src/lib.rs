//! I survive: a run that is killed at any instant continues, and ends with the same bytes.
//!
//! Everything that a run changes is one of three things. *State* is flat `f32` arrays and a little JSON
//! ([`Saved`]), committed whole or not at all. *Journals* are lines, cut on resume to where the
//! checkpoint was made. *Observation* leaves a loop as an [`Event`]: the loop itself opens no file,
//! prints nothing and reads no clock. Several processes that do the same work may share a run: one of them writes, and
//! the others wait for it ([`Ranks`]). This crate knows no model and no tensor, so any loop can use it.
//!
//! ```
//! use instruct_runs::{ArrayReader, ArrayWriter, BoxError, Event, Flow, Listener, Recorder, Result, RunDir, Saved, Start};
//!
//! /// What a loop learns, here a sum of numbers.
//! struct Sum {
//!     step: u64,
//!     weights: Vec<f32>,
//! }
//!
//! impl Saved for Sum {
//!     type Rest = u64;
//!     fn rest(&self) -> u64 {
//!         self.step
//!     }
//!     fn save(&self, files: &mut ArrayWriter<'_>) -> Result<(), BoxError> {
//!         Ok(files.write("weights", &[].into(), [("weights", self.weights.as_slice())])?)
//!     }
//!     fn load(&mut self, step: u64, files: &ArrayReader<'_>) -> Result<(), BoxError> {
//!         (self.step, self.weights) = (step, files.read("weights")?.take("weights")?);
//!         Ok(())
//!     }
//! }
//!
//! /// A loop: it changes its state, and says what happens.
//! fn add_up(sum: &mut Sum, total: u64, on: &mut Listener<'_, Sum>) -> Result<()> {
//!     while sum.step < total {
//!         sum.weights[0] += sum.step as f32;
//!         sum.step += 1;
//!         on(Event::Step { step: sum.step, total, metrics: &[("sum", f64::from(sum.weights[0]))] })?;
//!         if on(Event::Boundary { step: sum.step, state: sum })? == Flow::Stop {
//!             break;
//!         }
//!     }
//!     Ok(())
//! }
//!
//! /// The loop in a run folder, stopped after so many steps.
//! fn run(path: &std::path::Path, until: u64) -> Result<f32> {
//!     let run = RunDir::open(path, Start::Resume, "seed = 1\n", &"what machine this is")?;
//!     let mut sum = Sum { step: 0, weights: vec![0.0] };
//!     let mut recorder = Recorder::new(run.artefact("sum")?, 4, &mut sum)?;
//!     add_up(&mut sum, 10, &mut |event| {
//!         let stop = matches!(event, Event::Boundary { step, .. } if step >= until);
//!         recorder.record(&event, stop)
//!     })?;
//!     Ok(sum.weights[0])
//! }
//!
//! let folder = tempfile::tempdir().unwrap();
//! assert_eq!(run(folder.path(), 3).unwrap(), 3.0); // 0 + 1 + 2
//! assert_eq!(run(folder.path(), 99).unwrap(), 45.0); // continued, not begun again
//! ```

mod artefact;
mod disk;
mod error;
mod events;
mod flat;
mod manifest;
mod ranks;
mod recorder;
mod run_dir;
mod saved;

pub use crate::{
    artefact::{Artefact, Checkpoint},
    error::{BoxError, Damaged, Error, Result},
    events::{Edge, Event, Flow, Listener, Metrics, phase},
    flat::{Flat, read_flat, write_flat},
    manifest::sha256,
    ranks::{Ranks, Take},
    recorder::Recorder,
    run_dir::{RunDir, Start},
    saved::{Array, ArrayReader, ArrayWriter, Saved},
};
