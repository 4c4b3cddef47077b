//! `[[peer]]`: the far TPOs, and how rules and accepts find them by name.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use tpo_engine::Compress;
use tpo_mover::Congestion;

use super::paths::beside;
use super::tpo::IDLES;
use crate::config::checked::Peer;
use crate::config::file::{File, Section, Written};
use crate::config::finding::Findings;
use crate::config::value;
use crate::table::peers::{ByPeer, PeerId};

/// `disconnect_after` when nothing is said: 60 s, longer than the pause between two requests of
/// somebody who works. A handshake costs a round trip and some milliseconds of CPU time.
const DISCONNECT_AFTER: Duration = Duration::from_secs(60);
/// Peers: 4,096, because a session index has 12 bits for the peer.
const MOST_PEERS: usize = 4_096;
/// `loss_tolerance` when nothing is said: 5 %; more than that is rarely a path's own.
const LOSS_TOLERANCE: f64 = 0.05;
/// `loss_tolerance`: above 25 % a rate that ignores loss would fill any queue with copies.
const LOSS_TOLERANCES: RangeInclusive<f64> = 0.0..=0.25;

/// The peers, and how rules and accepts find them. A name stays known even when the rest of its
/// section is wrong, so that one mistake does not make a hundred.
pub(super) struct Peers {
    pub(super) list: ByPeer<Peer>,
    by_name: HashMap<String, PeerId>,
}

impl Peers {
    /// The peer that a rule or an accept names.
    pub(super) fn find(&self, written: &Written<'_>) -> Result<PeerId, String> {
        match written {
            Written::Text(name) => self.by_name.get(*name).copied().ok_or_else(|| self.names()),
            _ => Err(self.names()),
        }
    }

    /// One peer, or a list of different ones.
    pub(super) fn find_some(&self, written: &Written<'_>) -> Result<Vec<PeerId>, String> {
        let Written::List(list) = written else {
            return Ok(vec![self.find(written)?]);
        };
        let found = list
            .iter()
            .map(|one| self.find(one))
            .collect::<Result<Vec<PeerId>, String>>()?;
        let twice = found
            .iter()
            .enumerate()
            .any(|(at, peer)| found[..at].contains(peer));
        if found.is_empty() || twice {
            return Err(format!(
                "one peer, or a list of different ones; {}",
                self.names()
            ));
        }
        Ok(found)
    }

    /// What would do where a peer must be named.
    pub(super) fn names(&self) -> String {
        const SHOWN: usize = 8;
        let mut names: Vec<String> = self
            .by_name
            .keys()
            .map(|name| format!("\"{name}\""))
            .collect();
        names.sort();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        match names.is_empty() {
            true => "the name of a [[peer]]".into(),
            false => format!("the name of a [[peer]]: {}{more}", names.join(", ")),
        }
    }
}

/// All `[[peer]]` sections.
pub(super) fn check_peers(file: &File<'_>, path: &Path, findings: &mut Findings) -> Peers {
    let sections = file.sections("peer", findings);
    let mut peers = Peers {
        list: ByPeer::default(),
        by_name: HashMap::new(),
    };
    match sections.len() {
        0 => findings.error(
            0,
            "[[peer]]",
            "missing",
            "at least one section [[peer]]: a TPO works in pairs",
        ),
        too_many if too_many > MOST_PEERS => {
            findings.error(
                0,
                "[[peer]]",
                format!("{too_many} sections"),
                format!("at most {MOST_PEERS}"),
            );
        }
        _ => {}
    }
    let mut lines_of_keys: HashMap<[u8; 32], usize> = HashMap::new();
    for section in sections {
        let line_of_name = section.line_of("name");
        let (line_of_key, key_of_key) = (section.line_of("public_key"), section.key("public_key"));
        let (name, peer) = check_peer(section, path, findings);
        if let Some(name) = name
            && peers
                .by_name
                .insert(name.clone(), PeerId::new(peers.list.len()))
                .is_some()
        {
            findings.error(
                line_of_name,
                "[[peer]] name",
                format!("found \"{name}\" a second time"),
                "a name of its own for each peer",
            );
        }
        let Some(peer) = peer else { continue };
        if let Some(first) = lines_of_keys.insert(*peer.public_key.as_bytes(), line_of_key) {
            let found = format!("found the key of line {first} again");
            findings.error(
                line_of_key,
                key_of_key,
                found,
                "a key of its own for each peer",
            );
        }
        peers.list.push(peer);
    }
    peers
}

fn check_peer(
    mut section: Section<'_>,
    path: &Path,
    findings: &mut Findings,
) -> (Option<String>, Option<Peer>) {
    const CONGESTIONS: &[(&str, Congestion)] = &[
        ("auto", Congestion::Auto),
        ("fixed", Congestion::Fixed),
        ("cubic", Congestion::Cubic),
        ("scavenger", Congestion::Scavenger),
    ];
    let name = section.require(
        "name",
        "a name for the peer, such as \"lyon\"",
        value::name,
        findings,
    );
    let public_key = section.require(
        "public_key",
        "what `tpo keygen` printed at the peer",
        value::public_key,
        findings,
    );
    let line_of_pre_shared = section.line_of("pre_shared_key_file");
    let pre_shared = section.read("pre_shared_key_file", value::path, findings);
    let endpoint = section.read("endpoint", value::socket_address, findings);
    let connects = value::one_of(&[("always", false), ("on-demand", true)]);
    let on_demand = section.read_or("connect", connects, false, findings);
    let after = section.read_or(
        "disconnect_after",
        value::duration(IDLES),
        DISCONNECT_AFTER,
        findings,
    );
    let rate = section.read("rate", value::rate, findings);
    let congestions = value::one_of(CONGESTIONS);
    let congestion = section.read_or("congestion", congestions, Congestion::Auto, findings);
    let tolerances = value::share(LOSS_TOLERANCES);
    let loss_tolerance = section.read_or("loss_tolerance", tolerances, LOSS_TOLERANCE, findings);
    let compress = section.read_or("compress", value::compress, Compress::default(), findings);
    let line = section.line;
    if congestion == Congestion::Fixed && section.line_of("rate") == line {
        findings.error(
            line,
            section.key("rate"),
            "missing",
            "a rate such as \"100mbit\": congestion = \"fixed\" sends at that rate",
        );
    }
    if on_demand && endpoint.is_none() {
        let would_do = "an endpoint too: who is called on demand must be known where";
        findings.error(
            section.line_of("connect"),
            section.key("connect"),
            "found \"on-demand\"",
            would_do,
        );
    }
    section.finish(findings);
    let peer = name.clone().zip(public_key).map(|(name, public_key)| Peer {
        name,
        public_key,
        pre_shared_key_file: pre_shared.map(|file| (beside(path, &file), line_of_pre_shared)),
        endpoint,
        on_demand: on_demand.then_some(after),
        rate,
        congestion,
        compress,
        loss_tolerance,
        line,
    });
    (name, peer)
}
