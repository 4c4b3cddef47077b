//! What keeps interception from being installed or repaired, in words for the administrator.

use std::io::{self, ErrorKind};

use crate::host::lock::LockError;
use crate::host::program::ProgramError;
use crate::table::layers::RuleError;

/// What went wrong while installing.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The look-up table cannot be used.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// `nft` or `ip` could not be run to its end.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel did not let us.
    #[error("no permission to {what}: tpo needs root or the capability CAP_NET_ADMIN ({said})")]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// The tool's own words.
        said: String,
    },
    /// The tool or the kernel refused for another reason.
    #[error("could not {what}: {said}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The tool's own words.
        said: String,
    },
    /// There is one table in a network namespace, so there can be one daemon.
    #[error("another tpo intercepts in this network namespace already; stop it first")]
    AlreadyRunning,
}

impl From<LockError> for InstallError {
    fn from(error: LockError) -> InstallError {
        let LockError::Io(error) = error else {
            return InstallError::AlreadyRunning;
        };
        InstallError::of_io("lock this network namespace for us", &error)
    }
}

impl InstallError {
    /// The kernel did not answer a question about the rules.
    pub(super) fn unseen(error: &io::Error) -> InstallError {
        InstallError::of_io("ask the kernel for the interception rules", error)
    }

    fn of_io(what: &'static str, error: &io::Error) -> InstallError {
        let said = error.to_string();
        match error.kind() {
            ErrorKind::PermissionDenied => InstallError::NotPermitted { what, said },
            _ => InstallError::Refused { what, said },
        }
    }
}
