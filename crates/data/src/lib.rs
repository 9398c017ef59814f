//! instruct-data
mod packed;
pub use crate::packed::{Packed, Prediction, Segment};
