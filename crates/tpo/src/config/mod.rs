//! The configuration: what a person writes ([`mod@file`]), what it means ([`checked`]), and a file
//! to begin with ([`sample`]).
//!
//! A file is checked as a whole: every mistake is reported at once, each with its line, the key,
//! what was found and what would do. Nothing past this module sees text: names are indices, rates
//! are bytes per second, paths are complete.

mod check;
pub mod checked;
pub(crate) mod file;
pub(crate) mod finding;
pub mod keys;
pub mod sample;
pub(crate) mod shadow;
pub(crate) mod value;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tpo_mover::{Identity, PreSharedKey};

use crate::table::peers::ByPeer;

pub use checked::Checked;
pub use finding::{Findings, Level};

/// Where the configuration is when `--config` does not say.
pub(crate) const DEFAULT_FILE: &str = "/etc/tpo/tpo.toml";

/// The secrets that a configuration names.
pub(crate) struct Keys {
    /// Who we are.
    pub(crate) identity: Arc<Identity>,
    /// What we share with each peer beside the keys, in the order of the peers.
    pub(crate) pre_shared: ByPeer<Option<Arc<PreSharedKey>>>,
}

/// The largest configuration file that is read. 10,000 rules with comments are about 2 MB; more
/// than this is not a configuration.
const MAX_FILE: u64 = 64 << 20;

/// Reads and checks a configuration file. The findings of a good file hold warnings and notes only.
pub(crate) fn load(path: &Path) -> Result<(Checked, Findings), Findings> {
    let text = read(path).map_err(|why| {
        Findings::about_file(path, why, "a readable file; `tpo init` prints a sample")
    })?;
    parse(&text, path)
}

/// Checks a configuration that has been read from `path` (or will be put there: nothing is opened).
pub fn parse(text: &str, path: &Path) -> Result<(Checked, Findings), Findings> {
    let mut findings = Findings::new(path);
    match check::check(text, path, &mut findings) {
        Some(checked) if !findings.has_errors() => Ok((checked, findings)),
        _ => Err(findings),
    }
}

/// What a good configuration means on a host with these addresses: notes only.
pub fn on_host(checked: &Checked, own: &[IpAddr]) -> Findings {
    let mut findings = Findings::new(&checked.file);
    check::note_own(checked, own, &mut findings);
    findings
}

/// Reads the private key that the configuration names. Refuses a file that others can read or
/// write, as ssh does, and a peer that has our own key.
pub(crate) fn load_identity(checked: &Checked, findings: &mut Findings) -> Option<Arc<Identity>> {
    let (line, key) = (checked.tpo.private_key_line, "[tpo] private_key_file");
    // Before it is read: who can write it has chosen the key.
    if let Some(mode) = keys::open_to_others(&checked.tpo.private_key_file) {
        let file = checked.tpo.private_key_file.display();
        let found =
            format!("{file} can be read or written by others (mode {mode:04o}) and is not used");
        findings.error(line, key, found, format!("chmod 600 {file}"));
        return None;
    }
    let identity = match keys::read(&checked.tpo.private_key_file) {
        Ok(identity) => identity,
        Err(error) => {
            let would_do = format!(
                "a key made by `tpo keygen --out {}`",
                checked.tpo.private_key_file.display()
            );
            findings.error(line, key, format!("{error:#}"), would_do);
            return None;
        }
    };
    let own = identity.public_key();
    for peer in checked.peers.iter().filter(|peer| peer.public_key == own) {
        findings.error(
            peer.line,
            "[[peer]] public_key",
            format!("the key of peer \"{}\" is our own", peer.name),
            "the key that `tpo keygen` printed at the peer",
        );
    }
    (!findings.has_errors()).then(|| Arc::new(identity))
}

/// Reads the pre-shared keys that the configuration names, in the order of the peers. A file that
/// others can read is refused: what they know protects nothing.
pub(crate) fn load_pre_shared(
    checked: &Checked,
    findings: &mut Findings,
) -> Option<ByPeer<Option<Arc<PreSharedKey>>>> {
    const KEY: &str = "[[peer]] pre_shared_key_file";
    let mut keys = ByPeer::default();
    for peer in &checked.peers {
        let Some((file, line)) = &peer.pre_shared_key_file else {
            keys.push(None);
            continue;
        };
        match keys::read_pre_shared(file) {
            Ok(key) => keys.push(Some(Arc::new(key))),
            Err(error) => {
                let would_do = format!(
                    "a key made by `tpo keygen --pre-shared {}`, the same at both ends",
                    file.display()
                );
                findings.error(*line, KEY, format!("{error:#}"), would_do);
            }
        }
        if let Some(mode) = keys::open_to_others(file) {
            let found = format!(
                "{} can be read or written by others (mode {mode:04o})",
                file.display()
            );
            findings.error(*line, KEY, found, format!("chmod 600 {}", file.display()));
        }
        if keys::hold_the_same(file, &checked.tpo.private_key_file) {
            let found = format!(
                "{} holds the same as the private key, and the peer would get a copy",
                file.display()
            );
            findings.error(
                *line,
                KEY,
                found,
                "a key of its own, made by `tpo keygen --pre-shared FILE`".to_owned(),
            );
        }
    }
    (!findings.has_errors()).then_some(keys)
}

/// Where the control socket is according to a file that may be wrong in every other respect:
/// somebody who has just broken the configuration still wants to see what the running daemon does.
/// `None` when the file cannot be read.
pub(crate) fn control_socket(path: &Path) -> Option<PathBuf> {
    let text = read(path).ok()?;
    Some(check::control_socket(&text, path))
}

fn read(path: &Path) -> Result<String, String> {
    let describe = |error: std::io::Error| format!("cannot be read ({error})");
    let length = std::fs::metadata(path).map_err(describe)?.len();
    if length > MAX_FILE {
        return Err(format!(
            "{length} bytes long, more than the {MAX_FILE} that a configuration may have"
        ));
    }
    let bytes = std::fs::read(path).map_err(describe)?;
    String::from_utf8(bytes).map_err(|error| {
        format!(
            "not UTF-8 text at byte {}",
            error.utf8_error().valid_up_to()
        )
    })
}

/// The fuzz target of the configuration: any text, checked as a whole. Neither panics nor opens a
/// file.
pub fn fuzz_config(text: &str) {
    let path = Path::new("/etc/tpo/tpo.toml");
    match parse(text, path) {
        Ok((checked, findings)) => assert!(!findings.has_errors() && !checked.peers.is_empty()),
        Err(findings) => assert!(findings.has_errors() && !findings.to_string().is_empty()),
    }
    let _ = check::control_socket(text, path);
}
