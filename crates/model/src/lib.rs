//! instruct-model

mod config;
mod error;

pub use config::{Activation, Config, Family, HeadKind, NamedShape, Norm, Position, Rotary, Scaling};
pub use error::{Error, Result};
