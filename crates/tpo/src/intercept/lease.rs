//! The dead-man switch: interception of a peer's traffic holds only while its lease is renewed.
//!
//! A lease is one element for each protocol, with a timeout, of the peer's set in our nft table;
//! the rules look at it for each new connection. Whoever renews it must know that the daemon's
//! loops run and that the peer is up. When the renewals stop, for whatever reason, new connections
//! go their plain way (or are refused) within [`TIMEOUT`].
//!
//! The kernel does not prolong an element that is already there. So a renewal adds, deletes and
//! adds again in one transaction, which the packets see as one change: no connection ever finds the
//! lease absent in between. It goes by raw netlink, since starting an `nft` process twice a second
//! would cost more than the daemon's idle life.

use super::hold;
use super::names::{GROUPS, Standing, TABLE, counter, daemon_set, lease_set};
use super::watch::exchange;
use crate::host::netlink::{
    INET, IP, IP6, NESTED, attribute, find, message, next_message, nft, string,
};
use crate::table::peers::PeerId;
use crate::table::protocols::TCP;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::time::Duration;

/// After this time without renewal new connections are no longer intercepted. Below the three
/// seconds that are promised, with room for a kernel timer tick.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// How often to renew: three renewals may come late before the lease is lost.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);

/// The daemon's hand on all leases. Belongs to the network namespace of the thread that opened it.
pub struct Lease {
    kernel: Kernel,
    protocols: Vec<Vec<u8>>,
}

/// The daemon's word for sources that complete handshakes: the rules let more SYNs of these come.
pub struct KnownSources {
    kernel: Kernel,
}

/// The same for the groups whose packets are copied to us.
pub(crate) struct GroupSets {
    kernel: Kernel,
    v6: bool,
    /// What the sets hold for some time still.
    held: BTreeSet<IpAddr>,
}

/// A talk with the kernel about nftables.
struct Kernel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A change of a set's elements: which verb, with which flags, in tables of which family, its
/// attributes.
type Change = (libc::c_int, libc::c_int, [u8; 4], Vec<u8>);

/// Packets (of new connections) and bytes that a counter of the rules has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// SYNs.
    pub packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

impl Lease {
    /// Opens the way to the kernel. Nothing is leased yet.
    pub fn open() -> io::Result<Lease> {
        Lease::for_protocols(&[])
    }

    /// The same, for TCP and these protocols.
    pub fn for_protocols(packets: &[u8]) -> io::Result<Lease> {
        let mut protocols = vec![vec![TCP]];
        protocols.extend(
            packets
                .iter()
                .filter(|other| **other != TCP)
                .map(|other| vec![*other]),
        );
        Ok(Lease {
            kernel: Kernel::open()?,
            protocols,
        })
    }

    /// For [`TIMEOUT`] from now on, new connections of this peer's rules are intercepted.
    ///
    /// # Errors
    /// `NotFound` when the table or the peer's set is gone: somebody removed our rules.
    pub fn renew(&mut self, peer: PeerId) -> io::Result<()> {
        self.hold(&lease_set(peer), &self.protocols.clone())
    }

    /// The same but for TCP: its new connections are no longer intercepted, from now on.
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub fn renew_without_tcp(&mut self, peer: PeerId) -> io::Result<()> {
        let packets: Vec<_> = self
            .protocols
            .iter()
            .filter(|protocol| **protocol != [TCP])
            .cloned()
            .collect();
        self.hold(&lease_set(peer), &packets)
    }

    /// For [`TIMEOUT`] from now on, answers to packets that came from any of the `peers` peers are
    /// ours.
    pub(crate) fn show_life(&mut self, peers: usize) -> io::Result<()> {
        self.hold(&daemon_set(peers), &self.protocols.clone())
    }

    /// Answers to packets that came from a peer are no longer ours, from now on.
    pub(crate) fn end_life(&mut self, peers: usize) -> io::Result<()> {
        self.drop_set(&daemon_set(peers))
    }

    fn hold(&mut self, set: &str, wanted: &[Vec<u8>]) -> io::Result<()> {
        self.kernel
            .transact(&anew(INET, set, &self.protocols, wanted, TIMEOUT))
    }

    /// New connections of this peer's rules are no longer intercepted, from now on.
    pub fn drop_lease(&mut self, peer: PeerId) -> io::Result<()> {
        self.drop_set(&lease_set(peer))
    }

    fn drop_set(&mut self, set: &str) -> io::Result<()> {
        // Added first, so that the deletion never fails for want of an element.
        self.kernel.transact(&[
            (
                libc::NFT_MSG_NEWSETELEM,
                libc::NLM_F_CREATE,
                INET,
                elements(set, &self.protocols, Some(TIMEOUT)),
            ),
            (
                libc::NFT_MSG_DELSETELEM,
                0,
                INET,
                elements(set, &self.protocols, None),
            ),
        ])
    }

    /// What one of the counters in [`counter`] says.
    pub(crate) fn counter(&mut self, name: &str) -> io::Result<Count> {
        self.kernel.count(TABLE, name)
    }

    /// What the rules have counted, by the names in [`counter`].
    pub fn counters(&mut self) -> io::Result<BTreeMap<&'static str, Count>> {
        counter::ALL
            .into_iter()
            .map(|name| Ok((name, self.kernel.count(TABLE, name)?)))
            .collect()
    }

    /// What single rules let go ([`counter::of_rule`]), by the rule's place.
    pub(crate) fn rule_counters(&mut self) -> io::Result<BTreeMap<usize, Count>> {
        self.kernel.counts_of_rules()
    }

    /// What was held of closed rules; none where nothing is held.
    pub(crate) fn held(&mut self) -> Option<Count> {
        self.kernel.count(hold::TABLE, hold::HELD).ok()
    }
}

impl KnownSources {
    /// Opens the way to the kernel.
    pub fn open() -> io::Result<KnownSources> {
        Ok(KnownSources {
            kernel: Kernel::open()?,
        })
    }

    /// For `time` from now on these sources have this standing.
    ///
    /// # Errors
    /// `NotFound` when the table is gone: somebody removed our rules.
    pub fn add(
        &mut self,
        standing: Standing,
        sources: &[IpAddr],
        time: Duration,
    ) -> io::Result<()> {
        for v6 in [false, true] {
            let keys: Vec<Vec<u8>> = sources
                .iter()
                .filter(|source| source.is_ipv6() == v6)
                .map(key)
                .collect();
            for some in keys.chunks(KEYS_AT_ONCE) {
                self.kernel
                    .transact(&anew(INET, &standing.set(v6), some, some, time))?;
            }
        }
        Ok(())
    }
}

impl GroupSets {
    /// Opens the way to the kernel. Without IPv6 only one of the two sets is there.
    pub(crate) fn open(v6: bool) -> io::Result<GroupSets> {
        Ok(GroupSets {
            kernel: Kernel::open()?,
            v6,
            held: BTreeSet::new(),
        })
    }

    /// For [`TIMEOUT`] from now on, packets to these groups are copied to us, and to no others.
    ///
    /// # Errors
    /// `NotFound` when the tables are gone: somebody removed our rules.
    pub(crate) fn renew(&mut self, groups: impl Iterator<Item = IpAddr>) -> io::Result<()> {
        let groups: BTreeSet<IpAddr> = groups.filter(|group| self.v6 || group.is_ipv4()).collect();
        let mut changes: Vec<Change> = Vec::new();
        for (family, is_v6) in [(IP, false), (IP6, true)] {
            let of = |groups: &BTreeSet<IpAddr>| -> Vec<Vec<u8>> {
                groups
                    .iter()
                    .filter(|group| group.is_ipv6() == is_v6)
                    .map(key)
                    .collect()
            };
            let (now, both) = (
                of(&groups),
                of(&groups.union(&self.held).copied().collect()),
            );
            if both.is_empty() {
                continue;
            }
            changes.extend(anew(family, GROUPS, &both, &now, TIMEOUT));
        }
        self.held = groups;
        if changes.is_empty() {
            Ok(())
        } else {
            self.kernel.transact(&changes)
        }
    }
}

impl Kernel {
    fn open() -> io::Result<Kernel> {
        let netfilter = Protocol::from(libc::NETLINK_NETFILTER);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(netfilter))?;
        // The kernel answers inside the call that asks; waiting means that something is badly
        // wrong.
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Kernel {
            socket,
            sequence: 0,
            buffer: vec![0; 32 * 1024],
        })
    }

    fn counts_of_rules(&mut self) -> io::Result<BTreeMap<usize, Count>> {
        let mut attributes = Vec::new();
        string(&mut attributes, NFTA_OBJ_TABLE, TABLE);
        attribute(
            &mut attributes,
            NFTA_OBJ_TYPE,
            &NFT_OBJECT_COUNTER.to_be_bytes(),
        );
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let dump = libc::NLM_F_DUMP as u16;
        message(
            &mut request,
            nft(libc::NFT_MSG_GETOBJ),
            dump,
            self.sequence,
            &INET,
            &attributes,
        );
        let mut counts = BTreeMap::new();
        let on = |kind, body: &[u8]| {
            let attributes = body.get(INET.len()..).unwrap_or_default();
            let name =
                find(attributes, NFTA_OBJ_NAME).and_then(|name| std::str::from_utf8(name).ok());
            let place = name.and_then(|name| {
                name.trim_end_matches('\0')
                    .strip_prefix(counter::OF_RULE)?
                    .parse()
                    .ok()
            });
            if kind == nft(libc::NFT_MSG_NEWOBJ)
                && let (Some(place), Some(count)) = (place, count_in(attributes))
            {
                counts.insert(place, count);
            }
        };
        exchange(
            &self.socket,
            &mut self.buffer,
            &request,
            self.sequence,
            libc::NLMSG_DONE as u16,
            on,
        )?;
        Ok(counts)
    }

    fn count(&mut self, table: &str, name: &str) -> io::Result<Count> {
        let mut attributes = Vec::new();
        string(&mut attributes, NFTA_OBJ_TABLE, table);
        string(&mut attributes, NFTA_OBJ_NAME, name);
        attribute(
            &mut attributes,
            NFTA_OBJ_TYPE,
            &NFT_OBJECT_COUNTER.to_be_bytes(),
        );
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut request = Vec::new();
        message(
            &mut request,
            nft(libc::NFT_MSG_GETOBJ),
            0,
            sequence,
            &INET,
            &attributes,
        );
        self.send(&request)?;
        let mut found = None;
        self.replies(
            |kind, body| {
                if kind == nft(libc::NFT_MSG_NEWOBJ) {
                    found = count_in(body.get(INET.len()..).unwrap_or_default());
                }
            },
            sequence,
            1,
        )?;
        found.ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidData,
                "the kernel's answer holds no counter",
            )
        })
    }

    /// All of the messages take effect at once, or none.
    fn transact(&mut self, messages: &[Change]) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut request = Vec::with_capacity(512);
        // The batch's own two messages name the subsystem where others have flags for the netfilter
        // family.
        message(
            &mut request,
            libc::NFNL_MSG_BATCH_BEGIN as u16,
            0,
            first,
            &BATCH,
            &[],
        );
        let mut sequence = first;
        for (index, (kind, flags, family, attributes)) in messages.iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            // One acknowledgement is enough: the last one's comes when all have been committed.
            let ack = if index + 1 == messages.len() {
                libc::NLM_F_ACK
            } else {
                0
            };
            message(
                &mut request,
                nft(*kind),
                (flags | ack) as u16,
                sequence,
                family,
                attributes,
            );
        }
        let last = sequence;
        sequence = sequence.wrapping_add(1);
        message(
            &mut request,
            libc::NFNL_MSG_BATCH_END as u16,
            0,
            sequence,
            &BATCH,
            &[],
        );
        self.sequence = sequence;
        self.send(&request)?;
        self.replies(|_, _| {}, first, last.wrapping_sub(first) + 1)
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(request)?;
        assert_eq!(sent, request.len(), "netlink takes a message whole");
        Ok(())
    }

    /// Reads answers to `count` sequence numbers from `first` on, until the last of them has been
    /// answered or one of them has failed. Left-overs of an earlier failure are passed over.
    fn replies(
        &mut self,
        mut on: impl FnMut(u16, &[u8]),
        first: u32,
        count: u32,
    ) -> io::Result<()> {
        loop {
            let length = (&self.socket).read(&mut self.buffer)?;
            let mut rest = &self.buffer[..length];
            while let Some((kind, sequence, body)) = next_message(&mut rest) {
                let place = sequence.wrapping_sub(first);
                if place >= count {
                    continue;
                }
                if kind != libc::NLMSG_ERROR as u16 {
                    on(kind, body);
                } else if let Some(code) = body
                    .first_chunk()
                    .map(|c| i32::from_ne_bytes(*c))
                    .filter(|code| *code != 0)
                {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                if place + 1 == count {
                    return Ok(());
                }
            }
        }
    }
}

/// Takes `before` out of the set and puts `now` into it. The kernel does not prolong an element
/// that is there, so it is taken out first.
fn anew(
    family: [u8; 4],
    set: &str,
    before: &[Vec<u8>],
    now: &[Vec<u8>],
    timeout: Duration,
) -> Vec<Change> {
    let add = |keys: &[Vec<u8>]| {
        (
            libc::NFT_MSG_NEWSETELEM,
            libc::NLM_F_CREATE,
            family,
            elements(set, keys, Some(timeout)),
        )
    };
    // Added first, so that the deletion never fails for want of an element.
    let mut changes = vec![
        add(before),
        (
            libc::NFT_MSG_DELSETELEM,
            0,
            family,
            elements(set, before, None),
        ),
    ];
    if !now.is_empty() {
        changes.push(add(now));
    }
    changes
}

/// An address as the kernel keeps it in a set.
fn key(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Keys that go to the kernel in one change: the list of them is an attribute, which holds 64 kB.
const KEYS_AT_ONCE: usize = 512;

/// What a counter among these attributes of an object says.
fn count_in(attributes: &[u8]) -> Option<Count> {
    let data = find(attributes, NFTA_OBJ_DATA)?;
    let number = |kind| {
        find(data, kind)
            .and_then(|n| n.try_into().ok())
            .map(u64::from_be_bytes)
    };
    Some(Count {
        packets: number(NFTA_COUNTER_PACKETS)?,
        bytes: number(NFTA_COUNTER_BYTES)?,
    })
}

/// The elements of a set (a lease has one for each protocol that is carried), with or without a
/// timeout.
fn elements(set: &str, keys: &[Vec<u8>], timeout: Option<Duration>) -> Vec<u8> {
    let mut list = Vec::new();
    for key in keys {
        let mut value = Vec::new();
        attribute(&mut value, NFTA_DATA_VALUE, key);
        let mut one = Vec::new();
        attribute(&mut one, NESTED | NFTA_SET_ELEM_KEY, &value);
        if let Some(timeout) = timeout {
            let milliseconds = timeout.as_millis() as u64;
            attribute(&mut one, NFTA_SET_ELEM_TIMEOUT, &milliseconds.to_be_bytes());
        }
        attribute(&mut list, NESTED | NFTA_LIST_ELEM, &one);
    }
    let mut all = Vec::new();
    string(&mut all, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    string(&mut all, NFTA_SET_ELEM_LIST_SET, set);
    attribute(&mut all, NESTED | NFTA_SET_ELEM_LIST_ELEMENTS, &list);
    all
}

/// Netfilter header of a batch's begin and end: the subsystem, big endian.
const BATCH: [u8; 4] = [
    libc::AF_UNSPEC as u8,
    0,
    0,
    libc::NFNL_SUBSYS_NFTABLES as u8,
];

// linux/netfilter/nf_tables.h, what libc leaves out.
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_off_as_they_were_put_on() {
        let mut bytes = Vec::new();
        message(
            &mut bytes,
            7,
            0,
            41,
            &INET,
            &elements("alive_3", &[vec![6], vec![17]], Some(TIMEOUT)),
        );
        message(&mut bytes, 8, 0, 42, &BATCH, &[]);
        let mut rest = &bytes[..];
        let (kind, sequence, body) = next_message(&mut rest).unwrap();
        assert_eq!((kind, sequence), (7, 41));
        assert_eq!(
            find(&body[4..], NFTA_SET_ELEM_LIST_SET).unwrap(),
            b"alive_3\0"
        );
        let list = find(&body[4..], NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
        let one = find(list, NFTA_LIST_ELEM).unwrap();
        assert_eq!(
            find(one, NFTA_SET_ELEM_TIMEOUT).unwrap(),
            2000u64.to_be_bytes()
        );
        assert_eq!(next_message(&mut rest).unwrap().1, 42);
        assert!(next_message(&mut rest).is_none());
    }

    #[test]
    fn cut_answers_end_the_walk() {
        let mut bytes = Vec::new();
        message(
            &mut bytes,
            7,
            0,
            41,
            &INET,
            &elements("alive_3", &[vec![6], vec![17]], Some(TIMEOUT)),
        );
        for cut in 0..bytes.len() {
            assert!(next_message(&mut &bytes[..cut]).is_none());
            find(&bytes[..cut], NFTA_SET_ELEM_LIST_ELEMENTS);
        }
        assert!(find(&[0, 0, 0, 0], 1).is_none());
    }
}
