//! `checks`: the chores of the repository.

use std::process::ExitCode;

// Of the programs alone: a library leaves the allocator to whoever links it, a sanitizer for example.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    instruct_checks::main()
}
