//! xtask
mod world;
fn main() {}
