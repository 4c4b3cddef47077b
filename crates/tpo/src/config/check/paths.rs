//! Paths of the configuration: relative ones are meant beside the file.

use std::path::{Path, PathBuf};

use crate::config::file::Written;
use crate::config::value;

/// Bytes of the control socket's path: 103. The kernel takes 107, and a new socket is made under a
/// name that is 4 bytes longer before it takes its place.
const LONGEST_CONTROL: usize = 103;

/// A path of the configuration is relative to the configuration's own folder.
pub(super) fn beside(file: &Path, written: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(written)
}

/// Reads the path of the control socket, complete.
pub(super) fn control_path(file: &Path) -> impl Fn(&Written<'_>) -> Result<PathBuf, String> {
    move |written| {
        let path = beside(file, &value::path(written)?);
        let too_long = || {
            format!(
                "a path of at most {LONGEST_CONTROL} bytes (the kernel's limit for a socket); complete it is {}",
                path.display()
            )
        };
        if path.as_os_str().len() > LONGEST_CONTROL {
            Err(too_long())
        } else {
            Ok(path)
        }
    }
}
