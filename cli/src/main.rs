//! The one binary `cairn`; everything is in the library beside it.

/// Gives memory back soon after it was used: with glibc's allocator a mount that has moved much data kept
/// hundreds of MiB more than its budget.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages. The services use a little of each of many: they took twice the memory, and
    // a request that touched a new one waited until 2 MiB were cleared, for milliseconds on a virtual machine. Kernels
    // that can not leave them out go on as before.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cairn_cli::main()
}
