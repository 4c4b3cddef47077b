//! First match wins, in a kernel whose sets know no order. Pure.
//!
//! Ten thousand rules cannot be tried one after the other for each packet, so they become elements
//! of nft verdict maps, which find the element that holds a packet in about a microsecond. But
//! elements of one map must not overlap. So the rules are spread over layers: a rule's layer is one
//! more than the highest layer of the earlier rules that it overlaps. Inside a layer nothing
//! overlaps; and of all rules that match a packet (they overlap pairwise, in that packet), the
//! first has the lowest layer. Layers that are tried in order therefore find the first match. Real
//! tables need few layers: "these special cases, then all the rest" is two.

use super::{OnFailure, RuleSpec};
use crate::table::protocols::TCP;
use std::net::{IpAddr, SocketAddr};
use tpo_engine::CarriersId;

/// More rules are refused: the comparison of each with each, at the start, takes 0.1 s for 10,000
/// of them and grows with the square.
pub(crate) const MAX_RULES: usize = 32_768;

/// Which carriers get a packet, and what becomes of it when they cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// Who carries it.
    pub carriers: CarriersId,
    /// What becomes of it while none of them has a lease.
    pub(crate) on_failure: OnFailure,
}

/// The addresses and ports that one rule names: a box with four sides. All bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// First and last source address, v4 as its 32 bits.
    pub(crate) source: (u128, u128),
    /// First and last source port.
    pub(crate) source_ports: (u16, u16),
    /// First and last destination address.
    pub(crate) destination: (u128, u128),
    /// First and last destination port.
    pub(crate) destination_ports: (u16, u16),
    /// What the rule says.
    pub(crate) verdict: Verdict,
    /// Its place among the rules.
    pub(crate) rule: usize,
}

/// The rules of one address family, spread over layers.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// Tried in order; inside one, no two elements overlap.
    pub layers: Vec<Vec<Element>>,
    /// Rules that one earlier rule covers entirely: they can never match.
    pub covered: usize,
}

impl Family {
    /// The destinations that some rule names, as ranges that neither overlap nor touch.
    pub(crate) fn destinations(&self) -> Vec<(u128, u128)> {
        let mut all: Vec<(u128, u128)> = self
            .layers
            .iter()
            .flatten()
            .map(|element| element.destination)
            .collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => merged.push((first, last)),
            }
        }
        merged
    }
}

/// The whole look-up table, v4 and v6 apart.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Rules for IPv4.
    pub v4: Family,
    /// Rules for IPv6.
    pub(crate) v6: Family,
}

/// A rule that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// More than [`MAX_RULES`].
    #[error("{0} rules, but at most {MAX_RULES} are possible; join prefixes or port ranges")]
    TooMany(usize),
    /// One side is IPv4, the other IPv6, and neither is "any".
    #[error(
        "rule {0}: source and destination are of different address families; no packet can match, use one family for both"
    )]
    MixedFamilies(usize),
    /// The prefix is longer than the address.
    #[error("rule {0}: the prefix length is larger than the address (32 for IPv4, 128 for IPv6)")]
    PrefixLength(usize),
    /// The range's end lies before its start.
    #[error("rule {0}: a port range ends before it starts")]
    EmptyPorts(usize),
    /// Not the name of an interface.
    #[error(
        "interface {0:?}: not a name that Linux gives to interfaces (1 to 15 letters, digits, '.', '-', '_')"
    )]
    Interface(String),
}

impl Layers {
    /// Spreads the enabled rules over layers. Errors name the rule by its index.
    pub fn new(rules: &[RuleSpec]) -> Result<Layers, RuleError> {
        Layers::of(rules, TCP)
    }

    /// The same of the rules of one protocol.
    pub(crate) fn of(rules: &[RuleSpec], protocol: u8) -> Result<Layers, RuleError> {
        if rules.len() > MAX_RULES {
            return Err(RuleError::TooMany(rules.len()));
        }
        let mut v4 = Builder::default();
        let mut v6 = Builder::default();
        for (index, rule) in rules.iter().enumerate() {
            let (element, is_v4) = element(index, rule)?;
            match (rule.enabled && rule.protocol == protocol, is_v4) {
                (false, _) => {}
                (true, true) => v4.add(element),
                (true, false) => v6.add(element),
            }
        }
        Ok(Layers {
            v4: v4.family,
            v6: v6.family,
        })
    }

    /// What the kernel will find for a new connection: the same layers, tried in the same order.
    pub fn find(&self, source: SocketAddr, destination: SocketAddr) -> Option<Verdict> {
        let family = match (source, destination) {
            (SocketAddr::V4(_), SocketAddr::V4(_)) => &self.v4,
            (SocketAddr::V6(_), SocketAddr::V6(_)) => &self.v6,
            (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => {
                return None;
            }
        };
        family
            .layers
            .iter()
            .find_map(|layer| layer.iter().find(|e| e.holds(source, destination)))
            .map(|e| e.verdict)
    }
}

impl Element {
    pub(crate) fn overlaps(&self, other: &Element) -> bool {
        // The destination first: it tells most rules apart.
        meet(self.destination, other.destination)
            && meet(self.source, other.source)
            && meet(self.destination_ports, other.destination_ports)
            && meet(self.source_ports, other.source_ports)
    }

    fn covers(&self, other: &Element) -> bool {
        inside(self.destination, other.destination)
            && inside(self.source, other.source)
            && inside(self.destination_ports, other.destination_ports)
            && inside(self.source_ports, other.source_ports)
    }

    fn holds(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let (s, d) = (bits(source.ip()), bits(destination.ip()));
        inside(self.source, (s, s))
            && inside(self.destination, (d, d))
            && inside(self.source_ports, (source.port(), source.port()))
            && inside(
                self.destination_ports,
                (destination.port(), destination.port()),
            )
    }
}

/// One family's rules so far, each with its layer.
#[derive(Default)]
struct Builder {
    placed: Vec<(Element, usize)>,
    family: Family,
}

impl Builder {
    fn add(&mut self, element: Element) {
        let mut layer = 0;
        for (earlier, at) in &self.placed {
            if earlier.overlaps(&element) {
                if earlier.covers(&element) {
                    self.family.covered += 1;
                    return;
                }
                layer = layer.max(at + 1);
            }
        }
        if layer == self.family.layers.len() {
            self.family.layers.push(Vec::new());
        }
        self.family.layers[layer].push(element);
        self.placed.push((element, layer));
    }
}

/// The rule as a box, and whether it is one of IPv4.
pub(crate) fn element(index: usize, rule: &RuleSpec) -> Result<(Element, bool), RuleError> {
    let (source, destination) = (rule.source, rule.destination);
    let is_v4 = match (source.0.is_ipv4(), destination.0.is_ipv4()) {
        (same, other) if same == other => same,
        (source_is_v4, _) if destination.1 == 0 => source_is_v4,
        (_, destination_is_v4) if source.1 == 0 => destination_is_v4,
        _ => return Err(RuleError::MixedFamilies(index)),
    };
    let width = if is_v4 { 32 } else { 128 };
    let range = |(address, length): (IpAddr, u8)| match length {
        0 => Ok((0, u128::MAX >> (128 - width))),
        _ if u32::from(length) > width => Err(RuleError::PrefixLength(index)),
        _ => {
            let host = (u128::MAX >> (128 - width))
                .checked_shr(u32::from(length))
                .unwrap_or(0);
            Ok((bits(address) & !host, bits(address) | host))
        }
    };
    let ports = |ports: &std::ops::RangeInclusive<u16>| match ports.is_empty() {
        true => Err(RuleError::EmptyPorts(index)),
        false => Ok((*ports.start(), *ports.end())),
    };
    let verdict = Verdict {
        carriers: rule.carriers,
        on_failure: rule.on_failure,
    };
    let element = Element {
        source: range(source)?,
        source_ports: ports(&rule.source_ports)?,
        destination: range(destination)?,
        destination_ports: ports(&rule.destination_ports)?,
        verdict,
        rule: index,
    };
    Ok((element, is_v4))
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn meet<T: PartialOrd>(a: (T, T), b: (T, T)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

fn inside<T: PartialOrd>(outer: (T, T), inner: (T, T)) -> bool {
    outer.0 <= inner.0 && inner.1 <= outer.1
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
