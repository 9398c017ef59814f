//! I wire the three steps: configuration and files in, a run folder out.
//!
//! This crate is what the program `instruct` consists of: it reads a [`config::Config`], prepares the
//! data, runs each stage as an artefact of the run folder, evaluates, and shows a person what happens. It
//! is the only crate that prints and reads the clock. Whatever could be used without a run folder lies in
//! a crate of its own below it.
//!
//! ```
//! use xtask::config::Config;
//!
//! // What `--set` does; an unknown key is told the nearest one.
//! let config = Config::load("[ppo]\nbatch = 64\nminibatch = 64", "example", &["seed=7".into()]).unwrap();
//! assert_eq!((config.seed, config.ppo.batch), (7, 64));
//! let problem = Config::load("sead = 1", "example", &[]).unwrap_err().to_string();
//! assert!(problem.contains("did you mean `seed`"), "{problem}");
//! ```

mod asked;
mod cli;
mod commands;
mod compare;
pub mod config;
mod desk;
mod embedded;
mod evaluate;
mod frontier;
mod inputs;
mod kept;
mod listener;
pub mod machine;
pub mod memory;
mod models;
pub mod prepare;
mod progress;
mod ranks;
mod rewards;
mod shared;
mod stages;
pub mod terminal;
mod until;

pub use crate::{
    cli::{exit, main},
    commands::{
        pretrain::{END, Recipe, fresh, pretrain},
        write_whole,
    },
    ranks::on_ranks,
    stages::save_model,
};
