//! The binary: see the library of the same name.

fn main() -> std::process::ExitCode {
    tpo::cli::main()
}
