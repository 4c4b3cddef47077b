//! Reads the sections of a configuration into what they mean ([`Checked`]), by subject. What is
//! wrong becomes findings, all of them at once.

mod accepts;
mod behind;
mod ends;
mod paths;
mod peers;
mod rules;
mod tpo;
mod whole;

use std::path::{Path, PathBuf};

use crate::config::checked::{CONTROL, Checked};
use crate::config::file::File;
use crate::config::finding::{Findings, Level};
use crate::config::value;
use accepts::check_accepts;
use behind::Behind;
use paths::beside;
use peers::check_peers;
use rules::{check_rules, number_carriers};
use tpo::{check_intercept, check_multicast, check_tpo, default_on_failure};
use whole::check_together;

pub(super) use whole::note_own;

/// Reads everything out of the text. What is wrong becomes findings; `None` when nothing usable
/// remains.
pub(super) fn check(text: &str, path: &Path, findings: &mut Findings) -> Option<Checked> {
    let file = File::parse(text, findings);
    let before = findings.count(Level::Error);
    let peers = check_peers(&file, path, findings);
    let on_failure = default_on_failure(&file);
    let mut rules = check_rules(&file, &peers, on_failure, findings);
    let carriers = number_carriers(&mut rules, peers.list.len());
    // Where a peer or a rule is wrong nobody knows what was to be sent to whom.
    let behind =
        (findings.count(Level::Error) == before).then(|| Behind::new(&rules, peers.list.len()));
    let accepts = check_accepts(&file, &peers, behind.as_ref(), findings);
    let intercept = check_intercept(&file, findings);
    let multicast = check_multicast(&file, findings);
    let tpo = check_tpo(&file, path, findings);
    file.finish(
        &["tpo", "intercept", "multicast", "peer", "rule", "accept"],
        findings,
    );
    let checked = Checked {
        file: path.to_owned(),
        tpo: tpo?,
        intercept,
        multicast,
        peers: peers.list,
        rules,
        carriers,
        accepts,
    };
    if !findings.has_errors() {
        check_together(&checked, behind.as_ref(), findings);
    }
    Some(checked)
}

/// The control socket alone, from a text that may be wrong in every other respect.
pub(super) fn control_socket(text: &str, path: &Path) -> PathBuf {
    let mut ignored = Findings::new(path);
    let file = File::parse(text, &mut ignored);
    let written = file
        .section("tpo", &mut ignored)
        .and_then(|mut tpo| tpo.read("control", value::path, &mut ignored));
    beside(path, &written.unwrap_or_else(|| CONTROL.into()))
}
