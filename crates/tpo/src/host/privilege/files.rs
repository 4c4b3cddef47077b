//! Which files the daemon and its programs may open from now on (landlock). Descriptors that are
//! open already stay as they are.
//!
//! The configuration and the key are not among them: they have been read.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};

use crate::host::program;

/// What is asked for; an older kernel holds what it knows of it.
const VERSION: ABI = ABI::V6;

/// Where the libraries of the programs are, and the loader that starts them.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
];

/// What the programs and the C library read: names of routing tables and protocols, where the
/// libraries are, how many processors there are, what networks and interfaces this host has.
const READ: [&str; 10] = [
    "/etc/iproute2",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/nix/store",
    "/proc",
    "/sys/devices/system/cpu",
    "/usr/local/lib",
    "/usr/share/iproute2",
];

/// The settings of a device that is made anew.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Confines the calling thread, and all threads and programs that it starts.
///
/// # Errors
/// When this kernel has no landlock, or none that is switched on.
pub(crate) fn restrict(folders: &[PathBuf]) -> Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let files: BitFlags<AccessFs> =
        change | AccessFs::ReadDir | AccessFs::MakeReg | AccessFs::MakeSock | AccessFs::RemoveFile;
    let programs: Vec<PathBuf> = program::PROGRAMS
        .iter()
        .filter_map(|(program, _)| program::place(program))
        .collect();
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?
        .add_rules(path_beneath_rules(READ, read))?
        .add_rules(path_beneath_rules(LIBRARIES, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules(
            programs,
            AccessFs::ReadFile | AccessFs::Execute,
        ))?
        .add_rules(path_beneath_rules(["/dev/null", SETTINGS], change))?
        .add_rules(path_beneath_rules(
            folders.iter().map(|folder| or_here(folder)),
            files,
        ))?;
    match ruleset.restrict_self().context("restrict_self")?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => bail!("no landlock in this kernel"),
    }
}

/// The folder of a name without one.
fn or_here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Says to a run of this very test that it is the child, and in which folder.
    const INSIDE: &str = "TPO_TEST_FOLDER";

    /// In the child: what it can do once it is confined.
    fn inside(folder: &Path) {
        let before = std::fs::File::open("/etc/passwd").unwrap();
        restrict(&[folder.to_path_buf()]).unwrap();
        let refused = |error: std::io::Error| {
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        };
        assert!(
            std::io::read_to_string(before).unwrap().contains("root"),
            "what was open stays so"
        );
        for path in ["/etc/passwd", "/etc/hostname", "/root", "/tmp", "/var/lib"] {
            let opened = std::fs::File::open(path);
            assert!(
                opened
                    .as_ref()
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied),
                "{path}: {opened:?}"
            );
        }
        std::fs::write(std::env::temp_dir().join("tpo-outside"), "x")
            .map_err(refused)
            .unwrap_err();
        std::fs::write(folder.join("new"), "x").unwrap();
        std::fs::rename(folder.join("new"), folder.join("paris.path")).unwrap();
        assert_eq!(
            std::fs::read_to_string(folder.join("paris.path")).unwrap(),
            "x"
        );
        std::fs::remove_file(folder.join("paris.path")).unwrap();
        std::fs::read_to_string("/proc/self/net/if_inet6").unwrap();
        let start = |program: &str| {
            Command::new(program)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .arg("-V")
                .status()
        };
        for (program, _) in program::PROGRAMS {
            assert!(
                start(program::place(program).unwrap().to_str().unwrap())
                    .unwrap()
                    .success(),
                "{program}"
            );
        }
        for program in ["/bin/sh", "/usr/bin/env", "/usr/sbin/sysctl"] {
            start(program).map(drop).map_err(refused).unwrap_err();
        }
    }

    #[test]
    fn only_its_own_files_and_programs_are_left() {
        if let Some(folder) = std::env::var_os(INSIDE) {
            return inside(Path::new(&folder));
        }
        let folder = std::env::temp_dir().join(format!("tpo-files-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Landlock holds for the thread that asks for it and what it starts: the child's own.
        command
            .args([
                "--exact",
                "host::privilege::files::tests::only_its_own_files_and_programs_are_left",
            ])
            .env(INSIDE, &folder);
        let output = command.output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }
}
