//! What the fuzz targets call. The functions are tested on the committed inputs by the main
//! workspace too, which includes the same file.

/// The configuration's parser lives in a binary, which no other crate can list. The file names
/// nothing else of that binary, so it is read here as a module: no second parser, and no library
/// whose only user would be this crate.
#[allow(dead_code)]
#[path = "../../xtask/src/config.rs"]
mod config;

pub mod entries;
