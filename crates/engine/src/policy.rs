//! The look-up table (claims 4 and 5): source prefix, source ports, destination prefix, destination
//! ports, protocol → rule. The first rule that matches wins.
//!
//! A table of ten thousand rules is asked for each new flow, so it is not walked. All addresses
//! live in one space of 128 bits, IPv4 in its mapped part. For each end the prefixes that contain
//! the address are found by one hash look-up for each length that occurs; each pair of a source and
//! a destination prefix that some rules share leads to a small list, and inside a long one the
//! ports lead on by a segment tree. Whatever can only hold later rules than the best so far is
//! passed over.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use crate::{Delivery, FlowKey, PrefixError, Treatment, hash::ConfiguredMap};

/// A set of addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The first address of the set.
    pub address: IpAddr,
    /// How many bits are shared: at most 32 for IPv4, 128 for IPv6.
    pub length: u8,
}

impl Prefix {
    /// Every address of both families, written `any`. `::/0` is the same; IPv4 alone is
    /// `0.0.0.0/0`.
    pub const ANY: Prefix = Prefix {
        address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        length: 0,
    };

    /// Whether it has every address of both families.
    pub fn is_any(&self) -> bool {
        *self == Prefix::ANY
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (length, bits) = self.in_one_space();
        mask(bits_of(address), length) == bits
    }

    /// Length and bits in the space of 128 bits.
    fn in_one_space(&self) -> (u8, u128) {
        let length = if self.address.is_ipv4() {
            self.length + 96
        } else {
            self.length
        };
        (length, mask(bits_of(self.address), length))
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        if text == "any" {
            return Ok(Prefix::ANY);
        }
        let (address, length) = text
            .split_once('/')
            .map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| PrefixError::Address(text.to_owned()))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => max,
            Some(length) => match length.parse() {
                Ok(number) if number <= max => number,
                _ => {
                    return Err(PrefixError::Length {
                        found: length.to_owned(),
                        max,
                    });
                }
            },
        };
        let masked = masked(address, length);
        if masked == address {
            Ok(Prefix { address, length })
        } else {
            Err(PrefixError::HostBits {
                address,
                length,
                masked,
            })
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            f.write_str("any")
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

/// Names the carriers of a rule: the peers of which one carries each of the rule's flows. Who they
/// are, the program knows; it is not the number of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CarriersId(usize);

impl CarriersId {
    /// The carriers with this number in the program's list of them.
    pub const fn new(number: usize) -> CarriersId {
        CarriersId(number)
    }

    /// The number in the program's list.
    pub const fn number(self) -> usize {
        self.0
    }
}

/// A line of the look-up table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// IANA protocol number.
    pub protocol: u8,
    /// Whose flows.
    pub source: Prefix,
    /// From which ports.
    pub source_ports: RangeInclusive<u16>,
    /// To whom.
    pub destination: Prefix,
    /// To which ports.
    pub destination_ports: RangeInclusive<u16>,
    /// Who carries them.
    pub carriers: CarriersId,
    /// How they are treated.
    pub treatment: Treatment,
    /// How their packets are carried; means nothing to TCP.
    pub delivery: Delivery,
}

impl Rule {
    /// Whether a flow is one of those that the rule names.
    pub fn matches(&self, key: &FlowKey) -> bool {
        self.protocol == key.protocol
            && self.source.contains(key.source.ip())
            && self.destination.contains(key.destination.ip())
            && self.source_ports.contains(&key.source.port())
            && self.destination_ports.contains(&key.destination.port())
    }
}

/// The look-up table.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    sources: Prefixes,
    destinations: Prefixes,
    /// By source prefix, destination prefix and protocol.
    buckets: ConfiguredMap<(u32, u32, u8), Bucket>,
}

impl Policy {
    /// A table of these rules, the first one first.
    pub fn new(rules: Vec<Rule>) -> Policy {
        let (mut sources, mut destinations) = (Prefixes::default(), Prefixes::default());
        let mut lines: ConfiguredMap<(u32, u32, u8), Vec<Line>> = ConfiguredMap::default();
        for (number, rule) in (0_u32..).zip(&rules) {
            let source = sources.add(&rule.source, number);
            let destination = destinations.add(&rule.destination, number);
            let line = Line {
                rule: number,
                ports: [
                    PortRange::new(&rule.source_ports),
                    PortRange::new(&rule.destination_ports),
                ],
            };
            sources.join(source, destinations.known[destination as usize].length);
            lines
                .entry((source, destination, rule.protocol))
                .or_default()
                .push(line);
        }
        let buckets = lines
            .into_iter()
            .map(|(key, lines)| (key, Bucket::new(lines)))
            .collect();
        Policy {
            rules,
            sources,
            destinations,
            buckets,
        }
    }

    /// The first rule that names this flow.
    pub fn find(&self, key: &FlowKey) -> Option<&Rule> {
        Some(self.find_with_number(key)?.1)
    }

    /// The same, with its place among the rules.
    pub fn find_with_number(&self, key: &FlowKey) -> Option<(usize, &Rule)> {
        let sources = self.sources.find(key.source);
        let destinations = self.destinations.find(key.destination);
        let ports = [key.source.port(), key.destination.port()];
        let mut best = NONE;
        for &(first, source) in sources.sorted() {
            if first >= best {
                break;
            }
            let from = &self.sources.known[source as usize];
            for &(first, destination) in destinations.sorted() {
                if first >= best {
                    break;
                }
                if !from.may_meet(self.destinations.known[destination as usize].length) {
                    continue;
                }
                if let Some(bucket) = self.buckets.get(&(source, destination, key.protocol)) {
                    best = bucket.find(ports, best);
                }
            }
        }
        Some((best as usize, self.rules.get(best as usize)?))
    }

    /// All rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// No rule: behind all others.
const NONE: u32 = u32::MAX;

// --- prefixes
// -------------------------------------------------------------------------------------------------

/// The different prefixes of one end of all rules.
#[derive(Debug, Default)]
struct Prefixes {
    /// Lengths that occur, in the space of 128 bits: those that IPv4 addresses and IPv6 addresses
    /// can match.
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
    ids: ConfiguredMap<(u8, u128), u32>,
    known: Vec<Known>,
}

/// What is known of a prefix; its number is its place in the list.
#[derive(Debug)]
struct Known {
    length: u8,
    /// The first rule that uses it.
    first: u32,
    /// Of a source: lengths of the destination prefixes that rules name beside it, a bit for each.
    partners: u128,
}

impl Known {
    /// Whether a rule might name it beside a destination prefix of this length. Lengths 0 and 1
    /// share a bit.
    fn may_meet(&self, length: u8) -> bool {
        self.partners & length_bit(length) != 0
    }
}

fn length_bit(length: u8) -> u128 {
    1 << length.saturating_sub(1)
}

/// The prefixes that contain an address, no more than there are lengths: the first rule that uses
/// each, and its number. In the order of the rules, so that the search may stop at the best one so
/// far.
struct Found {
    known: [(u32, u32); 129],
    count: usize,
}

impl Found {
    fn sorted(&self) -> &[(u32, u32)] {
        &self.known[..self.count]
    }
}

impl Prefixes {
    fn add(&mut self, prefix: &Prefix, rule: u32) -> u32 {
        let (length, bits) = prefix.in_one_space();
        if prefix.address.is_ipv4() || length == 0 {
            self.lengths_v4.insert(length);
        }
        if prefix.address.is_ipv6() {
            self.lengths_v6.insert(length);
        }
        let next = u32::try_from(self.known.len()).expect("rules are counted in 32 bits");
        let id = *self.ids.entry((length, bits)).or_insert(next);
        if id == next {
            self.known.push(Known {
                length,
                first: rule,
                partners: 0,
            });
        }
        id
    }

    /// Notes that a rule names this prefix beside a destination prefix of that length.
    fn join(&mut self, id: u32, length: u8) {
        self.known[id as usize].partners |= length_bit(length);
    }

    fn find(&self, address: SocketAddr) -> Found {
        let mut found = Found {
            known: [(0, 0); 129],
            count: 0,
        };
        let bits = bits_of(address.ip());
        let lengths = if bits >> 32 == MAPPED {
            &self.lengths_v4
        } else {
            &self.lengths_v6
        };
        for length in lengths {
            if let Some(id) = self.ids.get(&(*length, mask(bits, *length))) {
                found.known[found.count] = (self.known[*id as usize].first, *id);
                found.count += 1;
            }
        }
        found.known[..found.count].sort_unstable();
        found
    }
}

/// The upper 96 bits of mapped IPv4 addresses.
const MAPPED: u128 = 0xffff;

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => MAPPED << 32 | u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn mask(bits: u128, length: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => IpAddr::V6(mask(address.to_bits(), length).into()),
    }
}

// --- ports
// -------------------------------------------------------------------------------------------------

/// A rule inside a bucket: what is left to compare.
#[derive(Debug, Clone, Copy)]
struct Line {
    rule: u32,
    /// Of the source, of the destination.
    ports: [PortRange; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    fn new(range: &RangeInclusive<u16>) -> PortRange {
        PortRange {
            first: *range.start(),
            last: *range.end(),
        }
    }

    fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// The rules of one pair of prefixes and one protocol, in their order.
#[derive(Debug)]
enum Bucket {
    Few(Vec<Line>),
    Many(PortTree),
}

/// Lines of a bucket up to which it is walked: 24. To walk these costs about as much as the tree's
/// steps.
const FEW: usize = 24;

impl Bucket {
    fn new(lines: Vec<Line>) -> Bucket {
        if lines.len() <= FEW {
            Bucket::Few(lines)
        } else {
            Bucket::Many(PortTree::new(lines))
        }
    }

    /// The first rule that matches, or `best` if that comes before.
    fn find(&self, ports: [u16; 2], best: u32) -> u32 {
        match self {
            Bucket::Few(lines) => {
                let matches = |line: &&Line| {
                    line.ports[0].contains(ports[0]) && line.ports[1].contains(ports[1])
                };
                lines
                    .iter()
                    .find(matches)
                    .map_or(best, |line| best.min(line.rule))
            }
            Bucket::Many(tree) => tree.find(ports, best),
        }
    }
}

/// A segment tree over the ports of that end whose ranges differ more: each line hangs at the few
/// nodes that make up its range, a port visits the nodes from its leaf to the root.
#[derive(Debug)]
struct PortTree {
    /// 0: over source ports, 1: over destination ports.
    axis: usize,
    /// First port of each leaf.
    leaves: Vec<u16>,
    /// Node i has the children 2i and 2i + 1; leaf k is node `leaves.len() + k`.
    nodes: Vec<Vec<Line>>,
}

impl PortTree {
    fn new(lines: Vec<Line>) -> PortTree {
        let different = |axis: usize| {
            lines
                .iter()
                .map(|line| line.ports[axis])
                .collect::<BTreeSet<_>>()
                .len()
        };
        let axis = usize::from(different(1) >= different(0));
        let mut starts = BTreeSet::from([0]);
        for line in &lines {
            starts.insert(line.ports[axis].first);
            starts.extend(line.ports[axis].last.checked_add(1));
        }
        let leaves: Vec<u16> = starts.into_iter().collect();
        let mut tree = PortTree {
            axis,
            nodes: vec![Vec::new(); 2 * leaves.len()],
            leaves,
        };
        for line in lines {
            tree.hang(line);
        }
        tree
    }

    fn hang(&mut self, line: Line) {
        let range = line.ports[self.axis];
        if range.first > range.last {
            return;
        }
        let count = self.leaves.len();
        let (mut from, mut to) = (
            self.leaf(range.first) + count,
            self.leaf(range.last) + count + 1,
        );
        while from < to {
            if from % 2 == 1 {
                self.hang_at(from, line);
                from += 1;
            }
            if to % 2 == 1 {
                to -= 1;
                self.hang_at(to, line);
            }
            (from, to) = (from / 2, to / 2);
        }
    }

    /// Behind a line that takes all ports of the other end nothing can match any more.
    fn hang_at(&mut self, node: usize, line: Line) {
        let other = 1 - self.axis;
        let covered = self.nodes[node].iter().any(|line| {
            line.ports[other]
                == PortRange {
                    first: 0,
                    last: u16::MAX,
                }
        });
        let repeated = self.nodes[node]
            .last()
            .is_some_and(|last| last.ports[other] == line.ports[other]);
        if !covered && !repeated {
            self.nodes[node].push(line);
        }
    }

    fn leaf(&self, port: u16) -> usize {
        self.leaves.partition_point(|first| *first <= port) - 1
    }

    fn find(&self, ports: [u16; 2], mut best: u32) -> u32 {
        let other = 1 - self.axis;
        let mut node = self.leaf(ports[self.axis]) + self.leaves.len();
        while node > 0 {
            let lines = self.nodes[node].iter().take_while(|line| line.rule < best);
            if let Some(line) = lines
                .into_iter()
                .find(|line| line.ports[other].contains(ports[other]))
            {
                best = line.rule;
            }
            node /= 2;
        }
        best
    }
}

#[cfg(test)]
mod tests;
