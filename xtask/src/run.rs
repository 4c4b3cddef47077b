//! Starting programs: Cargo, what the distribution brings, and how they ended.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Programs used at run time, each with the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("sysctl", "procps"),
    ("kill", "procps"),
];

/// Root, and the programs: what the demo and the tests of the program cannot do without.
///
/// # Errors
/// When this is not root, or a missing program cannot be installed.
pub(crate) fn prepare() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1));
    if effective != Some("0") {
        bail!(
            "this makes network namespaces and needs root; run it as root, for example: sudo -E env PATH=\"$PATH\" cargo xtask …\n\
             without root: cargo xtask quick; cargo xtask test --package tpo-mover (or tpo-engine, xtask)"
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

/// Installs packages of the distribution, and says so.
///
/// # Errors
/// When `apt-get` fails.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
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

/// Whether a program is in `PATH` or where the system's own are.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
}

/// The Cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
