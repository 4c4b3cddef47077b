//! The programs that the demo and the bench call: `nft`, `ip`, and the `tpo` that they measure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// What a lab is made with: the program, how it is asked for its version, and the package that
/// brings it.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("nft", "--version", "nftables"), ("ip", "-V", "iproute2")];

/// Looks whether the programs are there.
///
/// # Errors
/// When one cannot be started; the message names the package that brings it.
pub(crate) fn check_tools() -> Result<()> {
    for (program, version, package) in PROGRAMS {
        let mut command = Command::new(program);
        command.arg(version).stdout(Stdio::null());
        let status = command
            .status()
            .with_context(|| format!("start {program}; the package {package} brings it"))?;
        ensure!(status.success(), "{program} {version} ended with {status}");
    }
    Ok(())
}

/// The program tpo: the one that is named, else the one in the folder of this program.
///
/// # Errors
/// When there is none; the message says what would do.
pub(crate) fn find_tpo(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return named
            .canonicalize()
            .with_context(|| format!("--tpo {}", named.display()));
    }
    let own = std::env::current_exe().context("find this program")?;
    let beside = own.with_file_name("tpo");
    if !beside.is_file() {
        bail!(
            "no tpo at {}; would do: build it (cargo build --package tpo, with --release if this one was), or name one with --tpo",
            beside.display()
        );
    }
    Ok(beside)
}
