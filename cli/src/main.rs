//! The one binary `cairn`; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    cairn_cli::main()
}
