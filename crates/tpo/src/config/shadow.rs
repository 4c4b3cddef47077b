//! Rules that can never match because an earlier one takes everything first.
//!
//! Comparing every rule with every earlier one would make the check of 10,000 rules slow. Instead
//! the earlier rules are found by their exact pair of prefixes: whatever covers a rule has shorter
//! (or equal) prefixes with the same leading bits, and only the pairs of lengths that occur in the
//! file have to be tried.

use std::collections::HashMap;
use std::net::IpAddr;

use super::checked::Rule;
use crate::table::address::masked;
use tpo_engine::Prefix;

/// Pairs (rule, earlier rule that covers it), by index. Rules that are switched off neither cover
/// nor are covered.
pub(crate) fn shadowed(rules: &[Rule]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut lengths: Vec<(Bits, Bits)> = Vec::new();
    let mut earlier: HashMap<(Key, Key), Vec<usize>> = HashMap::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.enabled) {
        let (source, destination) = (rule.matches.source, rule.matches.destination);
        let covering = lengths
            .iter()
            .filter_map(|(source_bits, destination_bits)| {
                Some((
                    cut(source, *source_bits)?,
                    cut(destination, *destination_bits)?,
                ))
            })
            .filter_map(|keys| earlier.get(&keys))
            .flatten()
            .copied()
            .find(|at| covers_ports(&rules[*at], rule));
        match covering {
            Some(by) => found.push((index, by)),
            // A rule that is covered need not be kept: what covers it covers all that it would
            // cover.
            None => {
                let bits = (bits(source), bits(destination));
                if !lengths.contains(&bits) {
                    lengths.push(bits);
                }
                earlier
                    .entry((Key::of(source), Key::of(destination)))
                    .or_default()
                    .push(index);
            }
        }
    }
    found
}

/// Family and length of a prefix; `None` for "any", which is of both families.
type Bits = Option<(bool, u8)>;

/// A prefix as the key of a map; `None` for "any".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(Option<(IpAddr, u8)>);

impl Key {
    fn of(prefix: Prefix) -> Key {
        Key((!prefix.is_any()).then_some((prefix.address, prefix.length)))
    }
}

fn bits(prefix: Prefix) -> Bits {
    (!prefix.is_any()).then_some((prefix.address.is_ipv4(), prefix.length))
}

/// The prefix of these bits that covers the given one, if there is one.
fn cut(prefix: Prefix, to: Bits) -> Option<Key> {
    let Some((is_ipv4, length)) = to else {
        return Some(Key(None));
    };
    let (own_is_ipv4, own_length) = bits(prefix)?;
    (own_is_ipv4 == is_ipv4 && own_length >= length)
        .then(|| Key(Some((masked(prefix.address, length), length))))
}

fn covers_ports(earlier: &Rule, later: &Rule) -> bool {
    let (earlier, later) = (&earlier.matches, &later.matches);
    let inside = |outer: &std::ops::RangeInclusive<u16>, inner: &std::ops::RangeInclusive<u16>| {
        outer.start() <= inner.start() && inner.end() <= outer.end()
    };
    earlier.protocol == later.protocol
        && inside(&earlier.source_ports, &later.source_ports)
        && inside(&earlier.destination_ports, &later.destination_ports)
}
