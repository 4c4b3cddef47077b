//! The plain way: which packets of what is no TCP may take it, and what did, by rule and reason.
//!
//! Whoever gives a packet back to the kernel ([`crate::packets::reader`], the lanes) asks here
//! first. What a closed rule names is not given back, whatever else the packet looked like: an
//! answer without its flow, an error, a piece of something. What the kernel's own rules let go,
//! before it came to us, is counted there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tpo_engine::{FlowKey, Policy};

use crate::ip::Parsed;
use crate::status::Reason;

/// Why a packet would take its plain way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The peer cannot have it: no session, or it refused the flow.
    PeerDown,
    /// No room for another flow.
    FlowLimit,
    /// It belongs to no flow.
    NoFlow,
}

impl Cause {
    /// All of them, in the order of the counters.
    pub(crate) const ALL: [Cause; 3] = [Cause::PeerDown, Cause::FlowLimit, Cause::NoFlow];

    /// The reason that `tpo status` tells.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Cause::PeerDown => Reason::PeerDown,
            Cause::FlowLimit => Reason::FlowLimit,
            Cause::NoFlow => Reason::NoFlow,
        }
    }
}

type Counts = [AtomicU64; Cause::ALL.len()];

/// What all who give packets back share.
#[derive(Debug)]
pub(crate) struct Plain {
    policy: Policy,
    /// In the order of the policy's rules.
    closed: Vec<bool>,
    /// The same.
    went: Vec<Counts>,
    /// What no rule names.
    unruled: Counts,
    /// Kept back: a closed rule names it.
    pub(crate) kept: AtomicU64,
    /// What holds the closed rules in the kernel is not whole.
    pub(crate) hold_lost: AtomicBool,
}

impl Plain {
    /// The look-up table, and for each of its rules whether it is closed.
    pub(crate) fn new(policy: Policy, closed: Vec<bool>) -> Plain {
        let went = closed.iter().map(|_| Counts::default()).collect();
        let (unruled, kept, hold_lost) = Default::default();
        Plain {
            policy,
            closed,
            went,
            unruled,
            kept,
            hold_lost,
        }
    }

    /// Whether a packet may take its plain way, which it then does: it is counted. `None`: one that
    /// nobody understands.
    pub(crate) fn may_go(&self, seen: Option<&Parsed>, cause: Cause) -> bool {
        let rule = match seen {
            Some(seen) => self.rule_of(seen),
            None => self.closed.iter().position(|closed| *closed),
        };
        match rule {
            Some(rule) if self.closed[rule] => {
                self.kept.fetch_add(1, Ordering::Relaxed);
                false
            }
            rule => {
                self.count(rule, cause);
                true
            }
        }
    }

    /// One of this flow has taken its plain way.
    pub(crate) fn went(&self, key: &FlowKey, cause: Cause) {
        self.count(
            self.policy.find_with_number(key).map(|(rule, _)| rule),
            cause,
        );
    }

    fn count(&self, rule: Option<usize>, cause: Cause) {
        rule.map_or(&self.unruled, |rule| &self.went[rule])[cause as usize]
            .fetch_add(1, Ordering::Relaxed);
    }

    /// The rule that names it. Of several that may be meant (of an error both directions, of a
    /// later piece all ports) a closed one.
    fn rule_of(&self, seen: &Parsed) -> Option<usize> {
        let find = |key: &FlowKey| self.policy.find_with_number(key).map(|(rule, _)| rule);
        let is_closed = |rule: &usize| self.closed[*rule];
        let key = &seen.key;
        if seen.fragment.is_some_and(|fragment| !fragment.is_first)
            && (key.source.port(), key.destination.port()) == (0, 0)
        {
            let may_name = |(number, rule): (usize, &tpo_engine::Rule)| {
                let ends = rule.source.contains(key.source.ip())
                    && rule.destination.contains(key.destination.ip());
                (self.closed[number] && rule.protocol == key.protocol && ends).then_some(number)
            };
            return self
                .policy
                .rules()
                .iter()
                .enumerate()
                .find_map(may_name)
                .or_else(|| find(key));
        }
        match seen.is_error {
            true => find(key)
                .filter(is_closed)
                .or_else(|| find(&key.turned()).filter(is_closed)),
            false => find(key),
        }
    }

    /// What went, by the number of the rule in the policy (none: no rule names it) and reason; what
    /// never came up is left out.
    pub(crate) fn counts(&self) -> Vec<(Option<usize>, Reason, u64)> {
        let ruled = self
            .went
            .iter()
            .enumerate()
            .map(|(rule, counts)| (Some(rule), counts));
        let all = ruled.chain([(None, &self.unruled)]);
        let each = all.flat_map(|(rule, counts)| {
            Cause::ALL.map(|cause| {
                (
                    rule,
                    cause.reason(),
                    counts[cause as usize].load(Ordering::Relaxed),
                )
            })
        });
        each.filter(|(.., count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::{self, Head};
    use crate::packets::udp;
    use crate::table::protocols::{ICMP, UDP};
    use tpo_engine::{Class, Delivery, PacketKey};

    fn plain() -> Plain {
        let rule = |protocol, ports| tpo_engine::Rule {
            protocol,
            source: "10.1.0.0/16".parse().unwrap(),
            source_ports: 1..=65_535,
            destination: "10.2.0.0/16".parse().unwrap(),
            destination_ports: ports,
            carriers: tpo_engine::CarriersId::new(0),
            treatment: Class::Normal.into(),
            delivery: Delivery::Timely,
        };
        let rules = vec![
            rule(UDP, 53..=53),
            rule(UDP, 1..=65_535),
            rule(ICMP, 1..=65_535),
        ];
        Plain::new(Policy::new(rules), vec![false, true, true])
    }

    fn udp(from: &str, to: &str) -> Vec<u8> {
        let key = PacketKey::new(UDP, from.parse().unwrap(), to.parse().unwrap()).unwrap();
        let mut bytes = Vec::new();
        assert!(udp::emit(
            &key,
            Head {
                hops: 64,
                ..Default::default()
            },
            b"secret",
            7,
            &mut bytes
        ));
        bytes
    }

    /// What an ICMP error about the packet would be, from its destination.
    fn error_about(packet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0];
        bytes.extend_from_slice(&packet[16..20]);
        bytes.extend_from_slice(&packet[12..16]);
        bytes.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(packet);
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[test]
    fn what_a_closed_rule_names_is_kept_whatever_it_looks_like() {
        let plain = plain();
        let check = |bytes: &[u8], goes: bool| {
            let seen = ip::parse(bytes);
            for cause in Cause::ALL {
                assert_eq!(
                    plain.may_go(seen.as_ref(), cause),
                    goes,
                    "{seen:?} {cause:?}"
                );
            }
        };
        check(&udp("10.1.0.1:5000", "10.2.0.1:53"), true);
        check(&udp("10.1.0.1:5000", "10.2.0.1:54"), false);
        check(&udp("10.3.0.1:5000", "10.2.0.1:54"), true);
        // Errors show what they are about, to either side.
        check(&error_about(&udp("10.1.0.1:5000", "10.2.0.1:54")), false);
        check(&error_about(&udp("10.2.0.1:54", "10.1.0.1:5000")), false);
        check(&error_about(&udp("10.3.0.1:54", "10.1.0.1:5000")), true);
        // A later piece tells no ports: it may be of the closed rule.
        let mut piece = udp("10.1.0.1:5000", "10.2.0.1:53");
        piece[7] = 9;
        check(&piece, false);
        // Nobody knows.
        check(&[0x60, 0, 0], false);
        let of_rule_0 = plain
            .counts()
            .into_iter()
            .filter(|(rule, ..)| *rule == Some(0))
            .collect::<Vec<_>>();
        let once = |reason| (Some(0), reason, 1);
        assert_eq!(
            of_rule_0,
            [Reason::PeerDown, Reason::FlowLimit, Reason::NoFlow].map(once)
        );
        assert_eq!(plain.kept.load(Ordering::Relaxed), 15);
    }

    #[test]
    fn without_closed_rules_everything_may_go() {
        let plain = Plain::new(Policy::new(Vec::new()), Vec::new());
        assert!(plain.may_go(None, Cause::NoFlow));
        assert_eq!(plain.counts(), [(None, Reason::NoFlow, 1)]);
    }
}
