//! The report of a run in one HTML page: values in, text out.
//!
//! A run folder holds numbers in a dozen files. A page shows them to whoever did not make the run: every result with
//! its interval, every curve with a sentence and a table, answers side by side. It loads nothing from elsewhere, reads
//! well on paper, in the dark, on a telephone and by ear, and says of everything simulated that it is. This crate
//! opens no file: a closure reads, so that a page can be made of a run that still goes on, or of no folder at all.
//!
//! ```
//! use instruct_report::{Run, compare};
//!
//! let results = br#"{ "judge": "people", "win_rate": { "ppo_ptx_vs_sft": {
//!     "mean": 0.7726, "low": 0.7217, "high": 0.8165, "n": 299, "by_group": {} } } }"#;
//! let read = |path: &str| (path == "eval/results.json").then(|| results.to_vec());
//! let run = Run::from_files("first", read)
//!     .with_differences(vec![("ppo.episodes".into(), "12288".into(), "96".into())]);
//! let page = run.page();
//! assert!(page.contains("[72.2, 81.7]") && page.contains("ppo.episodes"));
//! assert!(compare(&[run]).contains("[72.2, 81.7]"));
//! ```
//!
//! [`Run::from_files`] lists what it reads; [`Run::problems`] says what it could not read.

mod card;
mod compare;
mod config;
mod cost;
mod curves;
mod data;
mod escape;
mod figure;
mod forest;
mod frontier;
mod guards;
mod html;
mod journal;
mod page;
mod parts;
mod plot;
mod results;
mod retraining;
mod run;
mod samples;
mod scale;
mod source;
mod table;
mod thin;

pub use crate::{
    compare::compare,
    run::{Difference, Problem, Run},
};
