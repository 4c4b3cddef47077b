//! Who lives behind each peer by our own rules: whom an accept means that does not say `source`.

use std::sync::Arc;

use tpo_engine::Prefix;

use crate::config::checked::{Accept, Rule};
use crate::table::address::Prefixes;
use crate::table::peers::{ByPeer, PeerId};

/// Prefixes that a note names: 8, a line to read and not a list of ten thousand.
const MOST_NAMED: usize = 8;

/// Who lives behind each peer by our own rules: what we send to it. IPv4 and IPv6 apart, and
/// together.
pub(super) struct Behind(ByPeer<[Clients; 3]>);

/// Whom an accept means that does not say `source`.
pub(super) struct Clients {
    pub(super) sources: Arc<Prefixes>,
    /// The same for people: the first ones in the order of the rules, and how many more.
    pub(super) named: String,
}

impl Clients {
    fn of(destinations: impl Iterator<Item = Prefix> + Clone) -> Clients {
        let sources: Prefixes = destinations.clone().collect();
        let mut first: Vec<Prefix> = Vec::new();
        for prefix in destinations {
            if first.len() < MOST_NAMED && !first.contains(&prefix) {
                first.push(prefix);
            }
        }
        let mut named = first
            .iter()
            .map(Prefix::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let more = sources.iter().count() - first.len();
        if more > 0 {
            named += &format!(" and {more} more");
        }
        Clients {
            sources: Arc::new(sources),
            named,
        }
    }
}

impl Behind {
    /// Whom the enabled rules mean.
    pub(super) fn new(rules: &[Rule], peers: usize) -> Behind {
        let mut all = ByPeer::new(peers, |_| Vec::new());
        for rule in rules
            .iter()
            .filter(|rule| rule.enabled && !rule.is_for_many())
        {
            rule.carriers
                .peers
                .iter()
                .for_each(|peer| all[*peer].push(rule.matches.destination));
        }
        let sets = |prefixes: Vec<Prefix>| {
            let all = prefixes.iter().copied();
            let of =
                |v4: bool| move |prefix: &Prefix| prefix.is_any() || prefix.address.is_ipv4() == v4;
            [
                Clients::of(all.clone().filter(of(true))),
                Clients::of(all.clone().filter(of(false))),
                Clients::of(all),
            ]
        };
        Behind(all.into_iter().map(sets).collect())
    }

    /// Who may want to reach this.
    pub(super) fn of(&self, peer: PeerId, destination: Prefix) -> &Clients {
        let [v4, v6, both] = &self.0[peer];
        match (destination.is_any(), destination.address.is_ipv4()) {
            (true, _) => both,
            (false, true) => v4,
            (false, false) => v6,
        }
    }

    /// Whom the rules mean, if this accept leaves that to them.
    pub(super) fn followed_by(&self, accept: &Accept) -> Option<&Clients> {
        let clients = self.of(accept.peer, accept.destination);
        // What is written is never shared.
        Arc::ptr_eq(&clients.sources, &accept.sources).then_some(clients)
    }
}
