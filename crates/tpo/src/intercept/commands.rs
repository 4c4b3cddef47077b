//! Runs `nft` and `ip`, and turns what they say into errors for the administrator.

use super::error::InstallError;
use crate::host::program::{self, Said};

/// Gives a text to `nft -f`.
pub(super) fn load(text: &str) -> Result<(), InstallError> {
    let output = run("nft", &["-f", "-"].map(str::to_owned), text)?;
    verdict(&output, "load the nftables rules")
}

/// Runs the program to its end.
pub(super) fn run(
    program: &'static str,
    arguments: &[String],
    input: &str,
) -> Result<Said, InstallError> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(program::run(program, &arguments, input)?)
}

/// What the program said, as an error if it failed.
pub(super) fn verdict(output: &Said, what: &'static str) -> Result<(), InstallError> {
    if output.status.success() {
        return Ok(());
    }
    // The rules are long, and nft repeats the line at fault: the beginning says it.
    let said: String = said(output)
        .lines()
        .take(3)
        .map(|line| line.chars().take(200).collect::<String>() + " ")
        .collect();
    let said = said.trim().to_owned();
    match said.contains("Operation not permitted") {
        true => Err(InstallError::NotPermitted { what, said }),
        false => Err(InstallError::Refused { what, said }),
    }
}

/// What the program wrote to standard error.
pub(super) fn said(output: &Said) -> String {
    String::from_utf8_lossy(&output.err).into_owned()
}
