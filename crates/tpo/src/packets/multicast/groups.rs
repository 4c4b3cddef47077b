//! Who wants which group: what peers ask us for, what we may ask them for, and the message in which
//! they are asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use tpo_engine::PacketKey;

use super::igmp::{self, IGMP};
use super::{neighbours, site};
use crate::table::address::is_routed;
use crate::table::peers::PeerId;

/// Groups that one peer may ask for.
pub(crate) const MOST_GROUPS: usize = 1_024;
/// What is wanted is told this often: what a peer does not repeat for some time is forgotten.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(10);
const FORGET: Duration = Duration::from_secs(45);

/// First byte of the message (docs/wire.md, section 5).
const MEMBERSHIP: u8 = 3;
const MEMBERSHIP_OF_OTHERS: u8 = 4;

/// For whom groups are asked. What a hub asks for others is served from the peer's own LANs and
/// never asked on: two hubs that want a group for each other would want it without end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum For {
    /// Listeners in the asker's own LANs.
    Itself = 0,
    /// Peers of the asker, which is their hub.
    Others = 1,
}

impl For {
    /// Both, in the order of their numbers.
    pub(crate) const BOTH: [For; 2] = [For::Itself, For::Others];
}

/// The flow in which a TPO tells what it wants: IGMP's number and the address to which hosts
/// report.
pub(crate) fn membership_key() -> PacketKey {
    let any: IpAddr = [0, 0, 0, 0].into();
    let reports: IpAddr = [224, 0, 0, 22].into();
    let key = PacketKey::new(IGMP, SocketAddr::new(any, 0), SocketAddr::new(reports, 0));
    key.expect("two addresses of IPv4, and IGMP is not TCP")
}

/// Appends the message that names all groups wanted for these; `number` counts up with each.
pub(crate) fn emit_membership(whom: For, groups: &[IpAddr], number: u32, out: &mut Vec<u8>) {
    let groups = &groups[..groups.len().min(MOST_GROUPS)];
    let v4 = groups.iter().filter(|group| group.is_ipv4()).count() as u16;
    out.push(match whom {
        For::Itself => MEMBERSHIP,
        For::Others => MEMBERSHIP_OF_OTHERS,
    });
    out.extend(number.to_be_bytes());
    out.extend(v4.to_be_bytes());
    for family in [false, true] {
        for group in groups.iter().filter(|group| group.is_ipv6() == family) {
            match group {
                IpAddr::V4(group) => out.extend(group.octets()),
                IpAddr::V6(group) => out.extend(group.octets()),
            }
        }
    }
}

/// Reads it: for whom, its number and the groups.
pub(crate) fn parse_membership(bytes: &[u8]) -> Option<(For, u32, Vec<IpAddr>)> {
    let (&[kind, a, b, c, d, high, low], rest) = bytes.split_first_chunk()?;
    let whom = match kind {
        MEMBERSHIP => For::Itself,
        MEMBERSHIP_OF_OTHERS => For::Others,
        _ => return None,
    };
    let v4 = usize::from(u16::from_be_bytes([high, low])) * 4;
    let (v4, v6) = (rest.get(..v4)?, rest.get(v4..)?);
    let (four, []) = v4.as_chunks::<4>() else {
        return None;
    };
    let (six, []) = v6.as_chunks::<16>() else {
        return None;
    };
    if four.len() + six.len() > MOST_GROUPS {
        return None;
    }
    let groups = four
        .iter()
        .map(|group| IpAddr::from(*group))
        .chain(six.iter().map(|group| IpAddr::from(*group)));
    let groups: Vec<IpAddr> = groups.collect();
    groups.iter().all(|group| is_routed(*group)).then_some((
        whom,
        u32::from_be_bytes([a, b, c, d]),
        groups,
    ))
}

/// What the peers ask us for.
#[derive(Debug, Default)]
pub(crate) struct Wanted(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    by_peer: BTreeMap<(PeerId, For), (Vec<IpAddr>, Instant)>,
    /// Each peer once: what it asks for itself says more.
    by_group: HashMap<IpAddr, Vec<(PeerId, For)>>,
}

impl State {
    /// All that this peer asks for, for these; as sorted, each once.
    fn set(&mut self, peer: PeerId, whom: For, groups: Option<(Vec<IpAddr>, Instant)>) -> bool {
        let empty = Vec::new();
        let before = self
            .by_peer
            .remove(&(peer, whom))
            .map_or_else(Vec::new, |(before, _)| before);
        let now = groups.as_ref().map_or(&empty, |(groups, _)| groups);
        let changed = before != *now;
        // A change costs as much as this peer asked for and asks for, not as much as all ask for.
        let mut touched = if changed { now.clone() } else { Vec::new() };
        if let Some(groups) = groups {
            self.by_peer.insert((peer, whom), groups);
        }
        if changed {
            touched.extend(before);
        }
        for group in touched {
            self.arrange(peer, group);
        }
        changed
    }

    /// This peer's place among those that ask for a group.
    fn arrange(&mut self, peer: PeerId, group: IpAddr) {
        let asks = |whom: &For| {
            let groups = self.by_peer.get(&(peer, *whom));
            groups.is_some_and(|(groups, _)| groups.binary_search(&group).is_ok())
        };
        let whom = For::BOTH.into_iter().find(asks);
        let peers = self.by_group.entry(group).or_default();
        let place = peers.binary_search_by_key(&peer, |(peer, _)| *peer);
        match (place, whom) {
            (Ok(at), Some(whom)) => peers[at].1 = whom,
            (Ok(at), None) => drop(peers.remove(at)),
            (Err(at), Some(whom)) => peers.insert(at, (peer, whom)),
            (Err(_), None) => {}
        }
        if peers.is_empty() {
            self.by_group.remove(&group);
        }
    }
}

impl Wanted {
    /// All that this peer asks for, for these. Whether that is something new.
    pub(crate) fn set(
        &self,
        peer: PeerId,
        whom: For,
        mut groups: Vec<IpAddr>,
        now: Instant,
    ) -> bool {
        groups.sort_unstable();
        groups.dedup();
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .set(peer, whom, Some((groups, now)))
    }

    /// Forgets what was not repeated for too long, or all of one peer.
    pub(crate) fn forget(&self, gone: Option<PeerId>, now: Instant) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_over = |(peer, _): &(PeerId, For), at: Instant| {
            now.saturating_duration_since(at) >= FORGET || gone == Some(*peer)
        };
        let over = state
            .by_peer
            .iter()
            .filter(|(who, (_, at))| is_over(who, *at))
            .map(|(who, _)| *who);
        for (peer, whom) in over.collect::<Vec<_>>() {
            state.set(peer, whom, None);
        }
    }

    /// Who asks for this group, and for whom.
    pub(crate) fn each(&self, group: IpAddr, mut each: impl FnMut(PeerId, For)) {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state
            .by_group
            .get(&group)
            .into_iter()
            .flatten()
            .for_each(|(peer, whom)| each(*peer, *whom));
    }

    /// All that this peer asks for.
    pub(crate) fn of(&self, peer: PeerId) -> Vec<IpAddr> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = For::BOTH
            .iter()
            .filter_map(|whom| state.by_peer.get(&(peer, *whom)));
        own.flat_map(|(groups, _)| groups.iter().copied()).collect()
    }

    /// Every group that a peer asks for, which peer, and for whom.
    pub(crate) fn all(&self) -> BTreeMap<IpAddr, Vec<(PeerId, For)>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state
            .by_group
            .iter()
            .map(|(group, peers)| (*group, peers.clone()))
            .collect()
    }
}

/// Who asks, for whomever.
pub(crate) fn peers_of(askers: &[(PeerId, For)]) -> Vec<PeerId> {
    let mut peers: Vec<PeerId> = askers.iter().map(|(peer, _)| *peer).collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// Of the groups that peers ask for as many as may be taken: each peer has the first of its own
/// before another has its second, so that one that asks for many does not push out the few of
/// another.
pub(crate) fn fair_share(
    asked: impl IntoIterator<Item = (IpAddr, Vec<PeerId>)>,
    most: usize,
) -> BTreeSet<IpAddr> {
    let mut so_far: HashMap<PeerId, usize> = HashMap::new();
    let mut in_turn: Vec<(usize, IpAddr)> = Vec::new();
    for (group, peers) in asked {
        let turns = peers.iter().map(|peer| {
            let of_peer = so_far.entry(*peer).or_default();
            *of_peer += 1;
            *of_peer
        });
        // All that ask for it have it once one of them has.
        in_turn.extend(
            turns
                .collect::<Vec<_>>()
                .into_iter()
                .min()
                .map(|turn| (turn, group)),
        );
    }
    in_turn.sort_unstable();
    in_turn.truncate(most);
    in_turn.into_iter().map(|(_, group)| group).collect()
}

/// On which of our LANs each group is listened to, and which LANs are left to another TPO for what
/// a peer brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listeners {
    /// LANs by group.
    pub(crate) groups: BTreeMap<IpAddr, Vec<usize>>,
    /// LAN and peer.
    pub(crate) left: BTreeSet<(usize, PeerId)>,
}

impl Listeners {
    /// The LANs to which we bring what this peer sends to the group.
    pub(crate) fn lans(&self, group: IpAddr, peer: PeerId) -> impl Iterator<Item = usize> {
        let lans = self.groups.get(&group).into_iter().flatten().copied();
        lans.filter(move |lan| !self.left.contains(&(*lan, peer)))
    }
}

/// Where what comes from peers goes out.
#[derive(Debug, Default)]
pub(crate) struct Joined(RwLock<Listeners>);

impl Joined {
    /// As it is now.
    pub(crate) fn set(&self, listeners: Listeners) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = listeners;
    }

    /// The LANs to which another TPO brings what this peer sends.
    pub(crate) fn left(&self, peer: PeerId) -> Vec<usize> {
        let listeners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        listeners
            .left
            .iter()
            .filter(|(_, of)| *of == peer)
            .map(|(lan, _)| *lan)
            .collect()
    }

    /// The LANs to which we bring what this peer sends to the group.
    pub(crate) fn each(&self, group: IpAddr, peer: PeerId, each: impl FnMut(usize)) {
        let listeners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        listeners.lans(group, peer).for_each(each);
    }
}

/// Entry for the fuzz target: what is understood is written again as the same.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some((whom, number, groups)) = parse_membership(bytes) {
        let mut again = Vec::new();
        emit_membership(whom, &groups, number, &mut again);
        assert_eq!(again, bytes);
    }
    if let Some(sites) = site::parse(bytes) {
        let own = Ipv4Addr::LOCALHOST;
        assert_eq!(
            igmp::read(&neighbours::emit(own, &sites)),
            Some(igmp::Heard::Serves { from: own, sites })
        );
    }
    // What any host of a LAN may send.
    for heard in [
        igmp::read(bytes),
        igmp::read_body(false, bytes),
        igmp::read_body(true, bytes),
    ] {
        if let Some(igmp::Heard::Members { joined, left }) = heard {
            assert!(joined.iter().chain(&left).all(|group| is_routed(*group)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|group| group.parse().unwrap()).collect()
    }

    #[test]
    fn a_membership_crosses() {
        for list in [
            &[][..],
            &["239.1.1.1"],
            &["ff05::1"],
            &["239.1.1.1", "239.1.1.2", "ff0e::7"],
        ] {
            for whom in For::BOTH {
                let mut bytes = Vec::new();
                emit_membership(whom, &groups(list), 0x0102_0304, &mut bytes);
                assert_eq!(
                    parse_membership(&bytes),
                    Some((whom, 0x0102_0304, groups(list)))
                );
                for cut in 0..bytes.len() {
                    assert_ne!(
                        parse_membership(&bytes[..cut]),
                        Some((whom, 0x0102_0304, groups(list)))
                    );
                }
            }
        }
    }

    #[test]
    fn who_asks_for_many_groups_does_not_push_out_anothers_few() {
        let greedy = (0..2_000u32).map(|n| {
            (
                IpAddr::from(Ipv4Addr::from(0xef00_0000 + n)),
                vec![PeerId::new(0)],
            )
        });
        let few = ["239.200.0.1", "239.200.0.2", "ff0e::9"];
        let all = || {
            greedy.clone().chain(
                groups(&few)
                    .into_iter()
                    .map(|group| (group, vec![PeerId::new(0), PeerId::new(1)])),
            )
        };
        let taken = fair_share(all(), MOST_GROUPS);
        assert_eq!(taken.len(), MOST_GROUPS);
        assert!(
            groups(&few).iter().all(|group| taken.contains(group)),
            "the other peer has its own"
        );
        assert_eq!(
            fair_share(all(), 5_000).len(),
            2_003,
            "all that are asked for, where there is room"
        );
        assert!(fair_share(all(), 0).is_empty());
    }

    #[test]
    fn what_is_no_routed_group_is_refused() {
        let mut bytes = Vec::new();
        emit_membership(
            For::Itself,
            &groups(&["239.1.1.1", "224.0.0.251"]),
            1,
            &mut bytes,
        );
        assert_eq!(parse_membership(&bytes), None);
        assert_eq!(parse_membership(&[3, 0, 0, 0, 1, 0xff, 0xff]), None);
        assert_eq!(
            parse_membership(&[5, 0, 0, 0, 1, 0, 0]),
            None,
            "another message"
        );
        let many: Vec<IpAddr> = (0..MOST_GROUPS as u32 + 9)
            .map(|number| (0xef01_0000 + number).to_be_bytes().into())
            .collect();
        bytes.clear();
        emit_membership(For::Others, &many, 1, &mut bytes);
        assert_eq!(parse_membership(&bytes).unwrap().2.len(), MOST_GROUPS);
    }

    #[test]
    fn what_is_not_repeated_is_forgotten() {
        let (wanted, start) = (Wanted::default(), Instant::now());
        assert!(wanted.set(PeerId::new(3), For::Itself, groups(&["239.1.1.1"]), start));
        assert!(!wanted.set(PeerId::new(3), For::Itself, groups(&["239.1.1.1"]), start));
        let later = start + Duration::from_secs(10);
        assert!(wanted.set(
            PeerId::new(4),
            For::Others,
            groups(&["239.1.1.1", "239.1.1.2"]),
            later
        ));
        assert!(wanted.set(PeerId::new(4), For::Itself, groups(&["239.1.1.1"]), later));
        let who = |group: &str| {
            let mut who = Vec::new();
            wanted.each(group.parse().unwrap(), |peer, whom| {
                who.push((peer.number(), whom))
            });
            who
        };
        assert_eq!(
            who("239.1.1.1"),
            [(3, For::Itself), (4, For::Itself)],
            "each peer once"
        );
        assert_eq!(who("239.1.1.2"), [(4, For::Others)]);
        assert_eq!(who("239.1.1.3"), []);
        wanted.forget(None, start + FORGET);
        assert_eq!(who("239.1.1.1"), [(4, For::Itself)]);
        wanted.forget(Some(PeerId::new(4)), start + FORGET);
        assert!(wanted.all().is_empty());
    }
}
