//! The commands of the house: `cargo xtask demo`, the tests, and the checks.
//!
//! What needs root works on a fresh Debian with rustc and a C compiler: programs that are missing
//! are installed from the distribution, and said so.

mod run;
mod tests_of;
mod tidy;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use run::{cargo, install, is_installed, prepare, run};

const UNIT: &str = "packaging/tpo.service";

/// What `systemd-analyze security` may find of the unit at most, in tenths; docs/security.md says
/// what is left and why.
const EXPOSURE: &str = "20";

const USAGE: &str = "usage: cargo xtask COMMAND
  demo              build tpo and tpo-bench, make two sites and a bad WAN between them on this machine, and compare transfers
                    without and with tpo (needs root)
  quick             formatting, clippy, the pure crates' tests with a part of the seeds: what to run while writing; no root
  test [ARGUMENTS]  run all tests, or with -p PACKAGE those of one; other arguments are those of cargo test. Needs root, but for
                    tpo-mover, tpo-engine and xtask: the others make network namespaces of their own and remove them
  world TEST SEED   run one seed of a world test, as its failure prints it
  long [ARGUMENTS]  the worlds with ten times their seeds: for a night; no root
  check             formatting, clippy with warnings as errors, tidy, documentation, the exposure of the systemd unit;
                    together with test this is what .ci/run does
  tidy [--stats]    the shape of the sources, ARCHITECTURE.md against what is there, the rules for dependencies; with figures
  deny              the rules for dependencies with security advisories, by cargo-deny; needs it, and a network";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match words.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let outcome = match (command, rest) {
        ("demo", rest) => demo(rest),
        ("quick", []) => quick(),
        ("test", rest) => tests_of::test(rest),
        ("world", [test, seed]) => tests_of::world(&tidy::root(), test, seed),
        ("long", rest) => tests_of::long(rest),
        ("check", []) => check(),
        ("tidy", []) => tidy::run(false),
        ("tidy", [stats]) if stats == "--stats" => tidy::run(true),
        ("deny", []) => deny(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(rest: &[String]) -> Result<()> {
    prepare()?;
    let packages = ["--package", "tpo", "--package", "tpo-bench"];
    run(cargo().args(["build", "--release"]).args(packages))?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    run(Command::new(Path::new(&target).join("release/tpo-bench"))
        .arg("demo")
        .args(rest))
}

fn quick() -> Result<()> {
    format_and_clippy()?;
    tests_of::quick()
}

fn check() -> Result<()> {
    format_and_clippy()?;
    tidy::run(false)?;
    run(cargo()
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    if !is_installed("systemd-analyze") {
        install(&["systemd"])?;
    }
    // The words of the table go to the log of the run: what each item is that is left.
    run(Command::new("systemd-analyze").args([
        "security",
        "--no-pager",
        "--offline=true",
        "--threshold",
        EXPOSURE,
        UNIT,
    ]))?;
    println!(
        "check: security advisories need a database from the network and are not looked at here: cargo xtask deny"
    );
    Ok(())
}

fn format_and_clippy() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo()
        .args(["clippy", "--workspace", "--all-targets", "--"])
        .args(["-D", "warnings"]))
}

/// Licences, sources and bans by our own check; advisories by `cargo-deny` from its database.
fn deny() -> Result<()> {
    tidy::dependencies()?;
    let cargo_deny = is_installed("cargo-deny");
    if !cargo_deny {
        anyhow::bail!(
            "security advisories are looked up by cargo-deny, which is not in PATH; would do: cargo install --locked cargo-deny (some minutes)"
        );
    }
    run(cargo().args(["deny", "check"]))
}
