//! One daemon in a network namespace: a lock file that other users can neither make, hold nor open.
//!
//! The kernel releases the lock however its holder ends. The file bears the number of the
//! namespace, because `/run` is the same for the namespaces of one host. Processes that share a
//! namespace but not `/run` (containers with the host's network) do not see each other here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where lock files lie. Only root makes folders in `/run`; a service manager may make this one for
/// the service's user.
const FOLDER: &str = "/run/tpo";
/// Attempts to lock the file that has the name, 16: each further one means that a daemon ended just
/// then.
const TRIES: usize = 16;
/// Files of other namespaces that one start looks at, 1,024 at most, so that it takes milliseconds.
const MOST_SWEPT: usize = 1_024;
/// Wait, 100 ms, before a lock that is held is tried once more: the sweep of another start, which
/// may hold it for a moment, takes less.
const SWEEP: Duration = Duration::from_millis(100);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process has it.
    #[error("another process has the lock")]
    Taken,
    /// The file could not be made or locked.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The lock, held until it is dropped. The descriptor is closed in children that are executed.
#[derive(Debug)]
pub(crate) struct Lock {
    file: PathBuf,
    held: File,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace. Must come before privileges are
    /// dropped: the folder may be root's.
    ///
    /// # Errors
    /// [`LockError::Taken`] if another process has it; else what keeps us from it.
    pub(crate) fn take() -> Result<Lock, LockError> {
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        let folder = Path::new(FOLDER);
        for wait in [SWEEP, Duration::ZERO] {
            if let Some(lock) = Lock::within(folder, namespace)? {
                sweep(folder, namespace);
                return Ok(lock);
            }
            // A daemon of another namespace that is just starting may have looked at our file.
            std::thread::sleep(wait);
        }
        Err(LockError::Taken)
    }

    /// `None`: another process has it.
    fn within(folder: &Path, namespace: u64) -> io::Result<Option<Lock>> {
        let file = folder.join(format!("netns-{namespace}.lock"));
        for _ in 0..TRIES {
            match DirBuilder::new().mode(0o755).create(folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => ours_alone(folder)?,
            }
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW);
            let held = options.open(&file)?;
            if !crate::sys::try_lock(&held)? {
                return Ok(None);
            }
            // Its last holder removes the file: then this one has the lock of a file without a
            // name, and others make another.
            let lock = Lock {
                file: file.clone(),
                held,
            };
            if lock.has_its_name()? {
                return Ok(Some(lock));
            }
        }
        Err(io::Error::other(format!(
            "{} is made anew again and again",
            file.display()
        )))
    }

    /// Whether the file that is locked is the one that has the name.
    fn has_its_name(&self) -> io::Result<bool> {
        let (mine, named) = (self.held.metadata()?, std::fs::symlink_metadata(&self.file));
        Ok(named.is_ok_and(|named| (named.dev(), named.ino()) == (mine.dev(), mine.ino())))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the lock is released. A file that stays, because we may no longer remove it, is as
        // good for the next daemon. One that was made anew may be another daemon's.
        if self.has_its_name().unwrap_or(false) {
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

/// Removes the files that no daemon holds: a daemon that became another user could not remove its
/// own, and a killed one did not. Otherwise one would stay for each namespace that ever was.
fn sweep(folder: &Path, own: u64) {
    let Ok(files) = std::fs::read_dir(folder) else {
        return;
    };
    let number = |name: &str| {
        name.strip_prefix("netns-")?
            .strip_suffix(".lock")?
            .parse()
            .ok()
    };
    let namespaces = files
        .flatten()
        .filter_map(|file| number(file.file_name().to_str()?));
    for namespace in namespaces
        .filter(|namespace| *namespace != own)
        .take(MOST_SWEPT)
    {
        // A file whose lock can be had has no holder; the dropped lock takes its file along.
        drop(Lock::within(folder, namespace));
    }
}

/// In a folder that others may write to they could put a lock of theirs in the place of ours.
fn ours_alone(folder: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(folder)?;
    let owners = [0, crate::sys::effective_user()];
    match found.is_dir() && owners.contains(&found.uid()) && found.mode() & 0o022 == 0 {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{}: found {} of user {}, mode {:o}; would do: a folder of root's or our own that nobody else may write to",
            folder.display(),
            if found.is_dir() {
                "a folder"
            } else {
                "no folder"
            },
            found.uid(),
            found.mode() & 0o7777,
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tpo_lab::Scratch;

    use super::*;

    #[test]
    fn it_is_held_once_for_each_namespace_and_leaves_no_file() {
        let home = Scratch::new("tpo-lock").unwrap();
        let folder = home.join("tpo");
        let take = |namespace| Lock::within(&folder, namespace).unwrap();
        let first = take(1).expect("nobody has it");
        assert!(take(1).is_none());
        let other = take(2).expect("another namespace");
        assert_eq!(
            fs::metadata(folder.join("netns-1.lock")).unwrap().mode() & 0o777,
            0o600
        );
        drop(first);
        let again = take(1).expect("free again");
        drop((again, other));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        // What a killed daemon leaves.
        fs::write(folder.join("netns-1.lock"), "").unwrap();
        assert!(take(1).is_some());
    }

    #[test]
    fn a_lock_of_a_file_that_has_lost_its_name_is_none() {
        let home = Scratch::new("tpo-lock").unwrap();
        let folder = home.join("tpo");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Some(lock) = Lock::within(&folder, 1).unwrap() {
                            let alone = File::options()
                                .write(true)
                                .create_new(true)
                                .open(folder.join("alone"));
                            alone.expect("one holder at a time");
                            fs::remove_file(folder.join("alone")).unwrap();
                            drop(lock);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn files_that_nobody_holds_are_swept_and_others_stay() {
        let home = Scratch::new("tpo-lock").unwrap();
        let folder = home.join("tpo");
        let own = Lock::within(&folder, 1).unwrap().expect("nobody has it");
        let another = Lock::within(&folder, 2).unwrap().expect("nobody has it");
        for name in ["netns-3.lock", "netns-4.lock", "netns-x.lock", "tpo.sock"] {
            fs::write(folder.join(name), "").unwrap();
        }
        sweep(&folder, 1);
        let mut left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["netns-1.lock", "netns-2.lock", "netns-x.lock", "tpo.sock"]
        );
        assert!(Lock::within(&folder, 2).unwrap().is_none());
        drop((own, another));
    }

    /// A service manager removes its folder under /run with all that lies in it.
    #[test]
    fn who_has_lost_the_name_leaves_the_file_of_another() {
        let home = Scratch::new("tpo-lock").unwrap();
        let folder = home.join("tpo");
        let first = Lock::within(&folder, 1).unwrap().expect("nobody has it");
        fs::remove_dir_all(&folder).unwrap();
        let second = Lock::within(&folder, 1)
            .unwrap()
            .expect("a file of its own");
        drop(first);
        assert!(
            Lock::within(&folder, 1).unwrap().is_none(),
            "the second one's file is there"
        );
        drop(second);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    /// A unit that does not start would end with the folder, and with the lock of a daemon that
    /// runs.
    #[test]
    fn the_unit_keeps_the_folder() {
        let unit = include_str!("../../../../packaging/tpo.service");
        let folder = Path::new(FOLDER).strip_prefix("/run").unwrap().display();
        let has = |wanted: String| unit.lines().any(|line| line == wanted);
        assert!(
            has(format!("RuntimeDirectory={folder}")) && has("RuntimeDirectoryPreserve=yes".into())
        );
    }

    #[test]
    fn what_others_could_have_made_is_not_trusted() {
        let home = Scratch::new("tpo-lock").unwrap();
        let folder = home.join("tpo");
        let refusal = || {
            Lock::within(&folder, 1)
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        fs::create_dir(&folder).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            assert!(refusal().contains("nobody else may write"), "{mode:o}");
        }
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        fs::write(home.join("precious"), "precious").unwrap();
        symlink(home.join("precious"), folder.join("netns-1.lock")).unwrap();
        assert_eq!(
            Lock::within(&folder, 1).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
        fs::rename(&folder, home.join("elsewhere")).unwrap();
        symlink(home.join("elsewhere"), &folder).unwrap();
        assert!(refusal().contains("no folder"));
        assert_eq!(
            fs::read_to_string(home.join("precious")).unwrap(),
            "precious"
        );
    }
}
