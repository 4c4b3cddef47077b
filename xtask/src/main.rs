//! The two commands of the README, `cargo xtask demo` and `cargo xtask test`, and the checks that
//! `.ci/run` adds to the second.
//!
//! Both work on a fresh Debian with rustc and a C compiler: programs that are missing are installed
//! from the distribution, and said so.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// Programs used at run time, each with the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("sysctl", "procps"),
    ("kill", "procps"),
];

const UNIT: &str = "packaging/tpo.service";

/// What `systemd-analyze security` may find of the unit at most, in tenths; docs/security.md says
/// what is left and why.
const EXPOSURE: &str = "20";

const USAGE: &str = "usage: cargo xtask demo | test | check
  demo   build tpo and tpo-bench, make two sites and a bad WAN between them on this machine, and compare transfers without and with tpo
  test   run all tests (needs root: they make network namespaces of their own and remove them)
  check  formatting, clippy with warnings as errors, documentation, the exposure of the systemd unit; together with test this is what .ci/run does";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match (arguments.next().as_deref(), arguments.collect::<Vec<_>>()) {
        (Some("demo"), rest) => demo(&rest),
        (Some("test"), rest) => test(&rest),
        (Some("check"), rest) if rest.is_empty() => check(),
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
    run(cargo().args([
        "build",
        "--release",
        "--package",
        "tpo",
        "--package",
        "tpo-bench",
    ]))?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    run(Command::new(Path::new(&target).join("release/tpo-bench"))
        .arg("demo")
        .args(rest))
}

fn test(rest: &[String]) -> Result<()> {
    prepare()?;
    run(cargo().args(["test", "--workspace"]).args(rest))
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
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
    ]))
}

/// Root, and the programs: what the tests and the demo cannot do without.
fn prepare() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1));
    if effective != Some("0") {
        bail!(
            "this makes network namespaces and needs root; run it as root, for example: sudo -E env PATH=\"$PATH\" cargo xtask …"
        );
    }
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(packages: &[&str]) -> Result<()> {
    println!(
        "xtask: installing from the distribution: {}",
        packages.join(" ")
    );
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments);
        command
    };
    run(&mut apt(&["update", "-qq"]))?;
    run(apt(&["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
}

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
