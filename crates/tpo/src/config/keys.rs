//! Keys on disk: `tpo keygen`, and reading the private key and pre-shared keys at start.
//!
//! A key file holds the key as text in its first line. It is created with its final mode, 0600, so
//! there is no moment at which others can read it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tpo_mover::{Identity, PreSharedKey};
use zeroize::Zeroizing;

/// Longer than any key file that we write; a wrong file name should not read a disk.
const LONGEST: u64 = 4_096;

/// Makes a new key and writes it to a new file. An existing file is replaced only with `force`, and
/// then in one step.
pub(crate) fn generate(out: &Path, force: bool) -> anyhow::Result<Identity> {
    let identity = Identity::generate();
    write(out, &identity.private_text(), force)?;
    Ok(identity)
}

/// Makes a new pre-shared key and writes it to a new file, likewise.
pub(crate) fn generate_pre_shared(out: &Path, force: bool) -> anyhow::Result<()> {
    write(out, &PreSharedKey::generate().text(), force)
}

fn write(out: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    if force {
        let beside = aside(out)?;
        // A left-over of a run that was killed between creating and renaming.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", beside.display()));
            }
            _ => {}
        }
        write_new(&beside, text)?;
        fs::rename(&beside, out)
            .with_context(|| format!("cannot put {} in place", out.display()))?;
        Ok(())
    } else {
        write_new(out, text)
    }
}

/// Reads a private key file.
pub fn read(file: &Path) -> anyhow::Result<Identity> {
    Identity::from_private_text(&read_text(file)?)
        .with_context(|| format!("{} holds no private key", file.display()))
}

/// Reads the file of a pre-shared key: base64, as `tpo keygen --pre-shared` writes it, or hex.
pub(crate) fn read_pre_shared(file: &Path) -> anyhow::Result<PreSharedKey> {
    PreSharedKey::from_text(&read_text(file)?)
        .with_context(|| format!("{} holds no pre-shared key", file.display()))
}

fn read_text(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let metadata =
        fs::metadata(file).with_context(|| format!("{} cannot be read", file.display()))?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        bail!("{} is not a key file", file.display());
    }
    // Read into its place in one go: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(LONGEST as usize));
    fs::File::open(file)
        .and_then(|opened| opened.take(LONGEST).read_to_string(&mut text))
        .with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(text)
}

/// Whether two key files hold the same text.
pub(crate) fn hold_the_same(one: &Path, other: &Path) -> bool {
    let read = |file: &Path| fs::read(file).map(Zeroizing::new);
    matches!((read(one), read(other)), (Ok(one), Ok(other)) if one.trim_ascii() == other.trim_ascii())
}

/// The mode of a file that others than its owner may read or write.
pub(crate) fn open_to_others(file: &Path) -> Option<u32> {
    let mode = fs::metadata(file).ok()?.permissions().mode() & 0o7777;
    (mode & 0o077 != 0).then_some(mode)
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    // O_EXCL: neither an existing key nor what a link points at is ever written to.
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = match created {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!(
                "{} exists already; --force replaces it (its peers must then be given the new public or pre-shared key)",
                path.display()
            )
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot create {}", path.display()));
        }
    };
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The name under which a file is made before it replaces another one.
fn aside(path: &Path) -> anyhow::Result<PathBuf> {
    let mut name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?
        .to_owned();
    name.push(".new");
    Ok(path.with_file_name(name))
}
