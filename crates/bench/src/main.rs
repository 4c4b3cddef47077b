//! The demo, the bench and the lab of tpo, in a program of their own: they make network namespaces
//! and enter them, which the daemon never does.
//!
//! Uses the lab (`tpo-lab`) for hosts and links, and starts the program `tpo` that lies beside this
//! one, as an administrator would: nothing of its code is linked here. The modules stand on floors:
//! each uses those above it in this list, never those below.

mod ending;
mod sys;
mod tools;

mod pair;
mod steady;

mod bench;
mod demo;

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
