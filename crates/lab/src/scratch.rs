//! A folder for what a run writes: keys, configurations, sockets, downloads.
//!
//! The folder for temporary files is everybody's. So the name cannot be guessed, a folder that is
//! there already is never used, and nobody else may look into ours.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, RandomState};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Names that are tried, 16, before an error. Each has 64 random bits, so a second one is needed
/// only while another program makes such folders without end.
const TRIES: usize = 16;

/// The folder. Dropping it removes it with all that is in it, also while a failure unwinds.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new folder whose name begins with `prefix`, in the system's folder for temporary files.
    /// Its mode is 0700.
    pub fn new(prefix: &str) -> Result<Scratch> {
        Scratch::within(&std::env::temp_dir(), prefix, random)
    }

    /// Fails rather than to use what is there: `mkdir` makes a folder or reports what has the name,
    /// and follows no link.
    fn within(folder: &Path, prefix: &str, mut random: impl FnMut() -> u64) -> Result<Scratch> {
        for _ in 0..TRIES {
            let path = folder.join(format!("{prefix}-{:016x}", random()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Scratch { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Error::new(
                        error.kind(),
                        format!("make {}: {error}", path.display()),
                    ));
                }
            }
        }
        let said = format!(
            "all {TRIES} names tried for a folder in {} are taken",
            folder.display()
        );
        Err(Error::new(ErrorKind::AlreadyExists, said))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of what is called `name` in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left who could be told; what stays is readable by us alone.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Each `RandomState` has keys that begin with the system's randomness.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn it_is_ours_alone_and_goes_with_its_value() {
        let scratch = Scratch::new("tpo-scratch").unwrap();
        let (path, other) = (
            scratch.path().to_owned(),
            Scratch::new("tpo-scratch").unwrap(),
        );
        assert_ne!(path, other.path(), "no name comes twice");
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert!(
            found.is_dir() && found.mode() & 0o777 == 0o700,
            "{:o}",
            found.mode()
        );
        std::fs::write(scratch.join("key"), "secret").unwrap();
        let failed = std::panic::catch_unwind(move || {
            let _scratch = scratch;
            panic!("a failure, which the test wants");
        });
        assert!(failed.is_err() && !path.exists(), "removed on failure too");
    }

    #[test]
    fn what_another_user_has_prepared_is_not_used() {
        let home = Scratch::new("tpo-scratch").unwrap();
        let trap = Scratch::new("tpo-scratch").unwrap();
        std::fs::create_dir(home.join("x-0000000000000000")).unwrap();
        symlink(trap.path(), home.join("x-0000000000000001")).unwrap();
        symlink(home.join("nowhere"), home.join("x-0000000000000002")).unwrap();
        let mut numbers = 0..;
        let made = Scratch::within(home.path(), "x", || numbers.next().unwrap()).unwrap();
        assert_eq!(made.path(), home.join("x-0000000000000003"));
        assert!(
            Scratch::within(home.path(), "x", || 1).is_err(),
            "and if there is no other name, nothing is"
        );
        drop(made);
        assert!(
            home.join("x-0000000000000000").exists()
                && trap.path().exists()
                && !home.join("nowhere").exists()
        );
    }
}
