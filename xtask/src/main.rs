//! `instruct`: the command line of the workspace.

use std::process::ExitCode;

// Of the programs alone: a library leaves the allocator to whoever links it, a sanitizer for example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    xtask::main()
}
