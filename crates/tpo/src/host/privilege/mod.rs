//! What the running daemon may do: its work, and little else. An attacker who takes it over by a
//! fault of ours gets no more.
//!
//! [`crate::daemon`] does first what root alone may do (the device's file, the rules and routes,
//! the control socket, the state folder), then calls [`confine`], while it still is one thread, and
//! only then starts the threads that read what peers, strangers and hosts of the LAN send. From
//! there on:
//!
//! * it is a user of its own ([`Who`]), with three capabilities, in its programs too, and no way to
//!   more;
//! * [`calls`]: only the system calls that it and its programs make;
//! * [`files`]: only the files that they open: not its own configuration, nor its key, once these
//!   are read;
//! * no core file, and nobody but root reads its memory.
//!
//! What must be done again later needs nothing of root: a device is made anew by the file of the
//! first one, its settings and the leases are netlink, rules and routes need CAP_NET_ADMIN. Nothing
//! is read again: a new key or configuration is a new start.

pub(crate) mod calls;
pub(crate) mod files;

use std::fmt;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use tracing::{info, warn};

use crate::sys;

/// What the daemon needs for as long as it lives: its rules, routes, leases and marks (NET_ADMIN);
/// transparent sockets and those that hear a LAN's groups (NET_RAW); connecting from a client's
/// port below 1024 (NET_BIND_SERVICE).
pub(crate) const KEPT: [Capability; 3] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
];

/// The user that it becomes where nothing else is said and there is one of this name.
pub(crate) const USER: &str = "tpo";

/// The number that it becomes where there is none: user and group. Nobody's: between the ranges
/// that systemd and Debian use (systemd's UIDS-GIDS says of 60578 to 61183 that they are unused).
pub const NUMBER: u32 = 60_780;

/// How long a thread of ours that has just been joined may still be seen.
const LINGERS: Duration = Duration::from_millis(200);

/// As whom it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// As who started it.
    Same,
    /// As this user from now on.
    Other {
        /// Its number.
        user: u32,
        /// Its group's.
        group: u32,
        /// How the administrator knows it.
        name: String,
    },
}

impl Who {
    /// Whom the configuration, this host and the user who started us make of it.
    ///
    /// # Errors
    /// When the configured user does not exist.
    pub(crate) fn choose(configured: Option<&str>) -> Result<Who> {
        Who::choose_as(sys::effective_user(), configured, |name| {
            Ok(sys::user_by_name(name)?)
        })
    }

    fn choose_as(
        starter: u32,
        configured: Option<&str>,
        find: impl Fn(&str) -> Result<Option<(u32, u32)>>,
    ) -> Result<Who> {
        let found = find(configured.unwrap_or(USER)).context("look for the user as whom to run")?;
        let (user, group, name) = match (found, configured) {
            (Some((user, group)), name) => (user, group, name.unwrap_or(USER).to_owned()),
            (None, None) => (NUMBER, NUMBER, NUMBER.to_string()),
            (None, Some(name)) => bail!(
                "[tpo] user: there is no user \"{name}\"; make it (useradd --system --no-create-home {name}), or leave user out"
            ),
        };
        match (starter, configured) {
            (0, _) if user != 0 => Ok(Who::Other { user, group, name }),
            (0, _) => Ok(Who::Same),
            (starter, Some(name)) if starter != user => {
                warn!(
                    user = name,
                    "[tpo] user counts only when root starts tpo: it stays user {starter}"
                );
                Ok(Who::Same)
            }
            _ => Ok(Who::Same),
        }
    }

    /// Makes a file or folder this user's.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn own(&self, path: &Path) -> Result<()> {
        let Who::Other { user, group, .. } = self else {
            return Ok(());
        };
        lchown(path, Some(*user), Some(*group))
            .with_context(|| format!("give {} to {self}", path.display()))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Same => write!(f, "user {}", sys::effective_user()),
            Who::Other { name, .. } => write!(f, "user {name}"),
        }
    }
}

/// Before any secret is read: no core file, and nobody else reads our memory.
///
/// # Errors
/// Never on a kernel that works.
pub(crate) fn keep_secrets() -> Result<()> {
    sys::forbid_core_dumps()
        .and_then(|()| sys::hide_memory())
        .context("forbid core files")
}

/// Gives up for good what the daemon does not need. `folders` are those in which it makes, replaces
/// and removes files.
///
/// # Errors
/// When something is refused that every kernel grants, or when threads run already. What this
/// kernel cannot hold becomes a warning.
pub(crate) fn confine(who: &Who, folders: &[PathBuf]) -> Result<()> {
    one_thread()?;
    become_less(who)?;
    sys::refuse_new_privileges().context("refuse new privileges")?;
    // The change of the user took it back.
    sys::hide_memory().context("forbid core files")?;
    let files = files::restrict(folders);
    let calls = calls::restrict();
    for (what, outcome) in [
        ("files (landlock)", &files),
        ("system calls (seccomp)", &calls),
    ] {
        if let Err(error) = outcome {
            warn!(%error, "this kernel does not confine tpo's {what}; the rest holds");
        }
    }
    let held = caps::read(None, CapSet::Permitted).context("read our capabilities")?;
    let mut held: Vec<String> = held.iter().map(ToString::to_string).collect();
    held.sort();
    info!(who = %Who::Same, capabilities = %held.join(","), files = files.is_ok(), calls = calls.is_ok(), "confined");
    Ok(())
}

/// The rights of the kernel are a thread's: one that runs already would keep its own.
fn one_thread() -> Result<()> {
    let start = Instant::now();
    loop {
        // Without /proc nobody can tell, and the order in `daemon` is what it is.
        let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
            return Ok(());
        };
        match threads.count() {
            0 | 1 => return Ok(()),
            // The kernel forgets a thread a moment after it has been joined.
            _ if start.elapsed() < LINGERS => std::thread::sleep(Duration::from_millis(1)),
            threads => {
                bail!("{threads} threads run before tpo is confined, which is a fault of tpo")
            }
        }
    }
}

/// The user, and the capabilities in all five sets.
fn become_less(who: &Who) -> Result<()> {
    let held = caps::read(None, CapSet::Permitted).context("read our capabilities")?;
    let kept: CapsHashSet = KEPT
        .into_iter()
        .filter(|capability| held.contains(capability))
        .collect();
    let beyond = caps::read(None, CapSet::Bounding).context("read our capabilities")?;
    let beyond = beyond
        .into_iter()
        .filter(|capability| !KEPT.contains(capability));
    for capability in beyond {
        if let Err(error) = caps::drop(None, CapSet::Bounding, capability) {
            // Without CAP_SETPCAP; without new privileges it is out of reach anyhow.
            info!(%error, %capability, "capabilities out of reach stay in the bounding set");
            break;
        }
    }
    if let Who::Other { user, group, .. } = who {
        caps::securebits::set_keepcaps(true).context("keep capabilities")?;
        match sys::become_user(*user, *group) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                // A container's root that was not given CAP_SETUID.
                warn!(%error, "cannot become {who}: tpo stays {}, with the capabilities that it needs", Who::Same);
            }
            done => done.with_context(|| format!("become {who}"))?,
        }
    }
    // The effective ones are a part of the permitted ones, so they go first; then nothing is left
    // to inherit that is not permitted.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        // A service manager's filter may refuse a change where there is nothing left to change.
        if caps::read(None, set).context("read our capabilities")? != kept {
            caps::set(None, set, &kept).context("give up capabilities")?;
        }
    }
    // So that `nft` and `ip` have them.
    for capability in kept {
        caps::raise(None, CapSet::Ambient, capability)
            .context("pass capabilities on to the programs that tpo calls")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_the_configured_user_or_tpo_or_nobodys_number() {
        let known = |name: &str| {
            Ok(match name {
                "root" => Some((0, 0)),
                "tpo" => Some((990, 980)),
                "carrier" => Some((700, 701)),
                _ => None,
            })
        };
        let other = |user, group, name: &str| Who::Other {
            user,
            group,
            name: name.into(),
        };
        let choose = |starter, configured| Who::choose_as(starter, configured, known).unwrap();
        assert_eq!(choose(0, None), other(990, 980, "tpo"));
        assert_eq!(choose(0, Some("carrier")), other(700, 701, "carrier"));
        assert_eq!(choose(0, Some("root")), Who::Same);
        assert_eq!(choose(1000, None), Who::Same);
        assert_eq!(choose(1000, Some("carrier")), Who::Same);
        assert_eq!(
            Who::choose_as(0, None, |_| Ok(None)).unwrap(),
            other(NUMBER, NUMBER, "60780")
        );
        let error = Who::choose_as(0, Some("nosuch"), known).unwrap_err();
        assert!(
            error.to_string().contains("there is no user \"nosuch\""),
            "{error}"
        );
    }
}
