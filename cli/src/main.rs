//! The one binary `cairn`; everything is in the library beside it.

/// Gives memory back soon after it was used: with glibc's allocator a mount that has moved much data kept
/// hundreds of MiB more than its budget.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cairn_cli::main()
}
