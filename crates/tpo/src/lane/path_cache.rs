//! What is known of the path to a peer, kept over a restart: one small file in the directory that
//! the service manager gives (`StateDirectory=` of systemd). Without one nothing is kept, and the
//! path is found out anew.
//!
//! The daemon reads it before it starts a lane; the lane writes it now and then, and at its end. It
//! holds no secret. A file that cannot be read is as good as none.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::host::privilege::Who;

/// Bytes of the largest file that is read: a file of ours is far smaller, a larger one is not ours.
const LONGEST: u64 = 4_096;
/// Bytes per second, 1 Tbit/s: no path that we know carries more.
const FASTEST: u64 = 125_000_000_000;

/// Where one peer's path is remembered.
pub(crate) struct PathCache {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Written {
    /// Bytes per second.
    bandwidth: u64,
    round_trip_us: u64,
    /// Seconds since 1970.
    at: u64,
}

impl PathCache {
    /// The file of this peer in `folder`. Names of peers hold no slashes.
    pub(crate) fn new(folder: &Path, peer: &str) -> PathCache {
        PathCache {
            file: folder.join(format!("{peer}.path")),
        }
    }

    /// The cache of this peer, if the service manager gives a place for it.
    pub(crate) fn of_service(peer: &str) -> Option<PathCache> {
        Some(PathCache::new(&folder()?, peer))
    }

    /// What was written last, if it is a path at all.
    pub(crate) fn load(&self) -> Option<tpo_mover::RememberedPath> {
        if fs::metadata(&self.file).ok()?.len() > LONGEST {
            return None;
        }
        let written: Written = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        if !(1..=FASTEST).contains(&written.bandwidth) {
            return None;
        }
        // A clock that went back makes the cache old, not young.
        let age = seconds_now()
            .checked_sub(written.at)
            .map_or(Duration::MAX, Duration::from_secs);
        Some(tpo_mover::RememberedPath {
            bandwidth: written.bandwidth,
            round_trip: Duration::from_micros(written.round_trip_us),
            age: age.min(2 * tpo_mover::RememberedPath::LONGEST_AGE),
        })
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn save(&self, path: &tpo_mover::RememberedPath) -> io::Result<()> {
        let written = Written {
            bandwidth: path.bandwidth,
            round_trip_us: u64::try_from(path.round_trip.as_micros()).unwrap_or(u64::MAX),
            at: seconds_now().saturating_sub(path.age.as_secs()),
        };
        let new = self.file.with_extension("new");
        fs::write(
            &new,
            serde_json::to_vec(&written).map_err(io::Error::other)?,
        )?;
        fs::rename(&new, &self.file)
    }
}

/// The folder that the service manager gives, if it does.
pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os("STATE_DIRECTORY")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
}

/// Makes the folder this user's, with what is in it of ours, if it still is root's.
///
/// # Errors
/// Of the file system.
pub(crate) fn give(folder: &Path, who: &Who) -> anyhow::Result<()> {
    // In one that has been given away, whoever has it could have put anything under our names.
    if fs::metadata(folder)?.uid() != 0 {
        return Ok(());
    }
    let ours = |path: &PathBuf| {
        path.extension()
            .is_some_and(|kind| kind == "path" || kind == "new")
    };
    for path in fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(ours)
    {
        who.own(&path)?;
    }
    who.own(folder)
}

fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_nonsense_is_not() {
        let folder = tpo_lab::Scratch::new("tpo-cache").unwrap();
        let cache = PathCache::new(folder.path(), "lyon");
        assert_eq!(cache.load(), None);
        let path = tpo_mover::RememberedPath {
            bandwidth: 12_500_000,
            round_trip: Duration::from_millis(600),
            age: Duration::from_secs(90),
        };
        cache.save(&path).unwrap();
        let loaded = cache.load().unwrap();
        assert_eq!(
            (loaded.bandwidth, loaded.round_trip),
            (path.bandwidth, path.round_trip)
        );
        assert!((90..95).contains(&loaded.age.as_secs()));
        let long = vec![b'1'; 5_000];
        let fast = b"{\"bandwidth\":125000000001,\"round_trip_us\":1,\"at\":1}";
        let none = b"{\"bandwidth\":0,\"round_trip_us\":1,\"at\":1}";
        for wrong in [
            &b""[..],
            b"{}",
            fast,
            none,
            b"{\"bandwidth\":-1,\"round_trip_us\":1,\"at\":1}",
            &long,
        ] {
            fs::write(folder.join("lyon.path"), wrong).unwrap();
            assert_eq!(cache.load(), None, "{}", String::from_utf8_lossy(wrong));
        }
        // From the future: the clock was wrong then or is now.
        fs::write(
            folder.join("lyon.path"),
            b"{\"bandwidth\":1,\"round_trip_us\":1,\"at\":99999999999}",
        )
        .unwrap();
        assert!(cache.load().unwrap().age > tpo_mover::RememberedPath::LONGEST_AGE);
    }
}
