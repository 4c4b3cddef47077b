//! Routing rules that hold the closed rules of the look-up table (see [`super::hold`]): how they
//! lie in the kernel, and the talk with it, by netlink.
//!
//! They lie between two landmarks, in the space of preferences right behind those of marked
//! packets:
//!
//! ```text
//! first       from this host, from our TUN device, or marked as ours: go to the end
//! first + 1   the rules, in their order: prohibit, or go to the end
//! first + 2   the end
//! ```
//!
//! There are two such places. What changes is made anew in the place that is free, then the other
//! one is cleared, so at no moment less is held than before. What is there already stays as it is.

use super::names::PACKET_TABLE;
use super::tun::DEVICE;
use super::watch::{exchange, open_netlink};
use crate::host::netlink::{attribute, find, message, string};
use crate::table::marks::MARK_OWN;
use socket2::Socket;
use std::io;
use std::net::IpAddr;

/// The first preference of each of the two places.
const PLACES: [u32; 2] = [PACKET_TABLE + 1, PACKET_TABLE + 4];
/// Preferences of a place.
const PREFERENCES: u32 = 3;

/// What becomes of a packet that a routing rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is refused.
    Prohibit,
    /// Our rules have no more to say about it.
    Leave,
}

/// One rule that holds. "Any" is a prefix of length 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoutingRule {
    /// Only what comes in by it.
    pub(crate) interface: Option<String>,
    /// Address and prefix length.
    pub(crate) source: (IpAddr, u8),
    /// Address and prefix length.
    pub(crate) destination: (IpAddr, u8),
    /// IANA number.
    pub(crate) protocol: u8,
    /// Both ends included; none: all.
    pub(crate) source_ports: Option<(u16, u16)>,
    /// The same of the destination.
    pub(crate) destination_ports: Option<(u16, u16)>,
    /// What becomes of it.
    pub(crate) action: Action,
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct KernelRule {
    preference: u32,
    action: u8,
    goto: Option<u32>,
    /// All of these bits of the mark.
    mark: Option<u32>,
    interface: Option<String>,
    source: Option<(Vec<u8>, u8)>,
    destination: Option<(Vec<u8>, u8)>,
    protocol: Option<u8>,
    source_ports: Option<(u16, u16)>,
    destination_ports: Option<(u16, u16)>,
}

impl KernelRule {
    /// The rule in the place that begins there.
    fn of(rule: &RoutingRule, first: u32) -> KernelRule {
        let prefix = |(address, length): (IpAddr, u8)| {
            let bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            (length > 0).then(|| (masked(bytes, length), length))
        };
        let (action, goto) = match rule.action {
            Action::Prohibit => (FR_ACT_PROHIBIT, None),
            Action::Leave => (FR_ACT_GOTO, Some(first + 2)),
        };
        KernelRule {
            preference: first + 1,
            action,
            goto,
            mark: None,
            interface: rule.interface.clone(),
            source: prefix(rule.source),
            destination: prefix(rule.destination),
            protocol: Some(rule.protocol),
            source_ports: rule.source_ports,
            destination_ports: rule.destination_ports,
        }
    }

    /// Those of other people bear our preferences too, perhaps; they do not bear `protocol kernel`.
    fn parse(body: &[u8]) -> Option<KernelRule> {
        let header = body.get(..FIB_RULE_HEADER)?;
        let attributes = &body[FIB_RULE_HEADER..];
        let number = |kind| {
            find(attributes, kind)
                .and_then(|value| value.try_into().ok())
                .map(u32::from_ne_bytes)
        };
        let ports = |kind| {
            let value: [u8; 4] = find(attributes, kind)?.try_into().ok()?;
            Some((
                u16::from_ne_bytes([value[0], value[1]]),
                u16::from_ne_bytes([value[2], value[3]]),
            ))
        };
        let prefix = |kind, length: u8| Some((find(attributes, kind)?.to_vec(), length));
        let own = find(attributes, FRA_PROTOCOL) == Some(&[libc::RTPROT_KERNEL]);
        own.then(|| KernelRule {
            preference: number(FRA_PRIORITY).unwrap_or(0),
            action: header[7],
            goto: number(FRA_GOTO),
            mark: number(FRA_FWMARK).filter(|mark| *mark != 0 && number(FRA_FWMASK) == Some(*mark)),
            interface: find(attributes, FRA_IIFNAME).map(|name| {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                String::from_utf8_lossy(name).into_owned()
            }),
            source: prefix(FRA_SRC, header[2]),
            destination: prefix(FRA_DST, header[1]),
            protocol: find(attributes, FRA_IP_PROTO).and_then(|value| value.first().copied()),
            source_ports: ports(FRA_SPORT_RANGE),
            destination_ports: ports(FRA_DPORT_RANGE),
        })
    }

    fn emit(&self, v6: bool) -> ([u8; FIB_RULE_HEADER], Vec<u8>) {
        let mut header = [0; FIB_RULE_HEADER];
        header[0] = family(v6);
        header[7] = self.action;
        let mut attributes = Vec::new();
        for (kind, prefix, at) in [(FRA_SRC, &self.source, 2), (FRA_DST, &self.destination, 1)] {
            if let Some((address, length)) = prefix {
                header[at] = *length;
                attribute(&mut attributes, kind, address);
            }
        }
        attribute(
            &mut attributes,
            FRA_PRIORITY,
            &self.preference.to_ne_bytes(),
        );
        attribute(&mut attributes, FRA_PROTOCOL, &[libc::RTPROT_KERNEL]);
        if let Some(name) = &self.interface {
            string(&mut attributes, FRA_IIFNAME, name);
        }
        if let Some(target) = self.goto {
            attribute(&mut attributes, FRA_GOTO, &target.to_ne_bytes());
        }
        if let Some(mark) = self.mark {
            attribute(&mut attributes, FRA_FWMARK, &mark.to_ne_bytes());
            attribute(&mut attributes, FRA_FWMASK, &mark.to_ne_bytes());
        }
        if let Some(protocol) = self.protocol {
            attribute(&mut attributes, FRA_IP_PROTO, &[protocol]);
        }
        for (kind, range) in [
            (FRA_SPORT_RANGE, self.source_ports),
            (FRA_DPORT_RANGE, self.destination_ports),
        ] {
            if let Some((first, last)) = range {
                let [a, b] = [first.to_ne_bytes(), last.to_ne_bytes()];
                attribute(&mut attributes, kind, &[a[0], a[1], b[0], b[1]]);
            }
        }
        (header, attributes)
    }
}

/// All rules of a place that holds these, in the order of the kernel's list.
fn place(rules: &[RoutingRule], first: u32) -> Vec<KernelRule> {
    let past = KernelRule {
        preference: first,
        action: FR_ACT_GOTO,
        goto: Some(first + 2),
        ..KernelRule::default()
    };
    let by = |interface: &str| KernelRule {
        interface: Some(interface.to_owned()),
        ..past.clone()
    };
    // Before it forwards a packet that came out of our device the kernel asks whether its source is
    // plausible, by a look-up with the ends exchanged and the way out as the way in. Only the mark,
    // which our table sets on what comes out of the device, tells that from a packet to be held.
    let asked_back = KernelRule {
        mark: Some(MARK_OWN),
        ..past.clone()
    };
    let mut all = vec![by("lo"), by(DEVICE), asked_back];
    for rule in rules {
        let rule = KernelRule::of(rule, first);
        if !all.contains(&rule) {
            all.push(rule);
        }
    }
    all.push(KernelRule {
        preference: first + 2,
        action: FR_ACT_NOP,
        ..KernelRule::default()
    });
    all
}

/// A talk with the kernel about routing rules. Belongs to the network namespace of the thread that
/// opened it.
#[derive(Debug)]
pub(crate) struct Routing {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Routing {
    /// Opens the way to the kernel.
    pub(crate) fn open() -> io::Result<Routing> {
        Ok(Routing {
            socket: open_netlink(libc::NETLINK_ROUTE)?,
            sequence: 0,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Whether the kernel has these rules of ours and no others.
    pub(crate) fn is_there(&mut self, rules: &[RoutingRule], v6: bool) -> io::Result<bool> {
        let found = self.list(v6)?;
        Ok(match rules {
            [] => found.is_empty(),
            _ => PLACES.iter().any(|first| found == place(rules, *first)),
        })
    }

    /// Puts these rules in force in the place of those that are there, without a gap.
    pub(crate) fn put(&mut self, rules: &[RoutingRule], v6: bool) -> io::Result<()> {
        let found = self.list(v6)?;
        let of = |first: u32| -> Vec<KernelRule> {
            let own = first..first + PREFERENCES;
            found
                .iter()
                .filter(|rule| own.contains(&rule.preference))
                .cloned()
                .collect()
        };
        let is_good = |first: &&u32| of(**first) == place(rules, **first);
        let kept = match (rules, PLACES.iter().find(is_good)) {
            ([], _) => None,
            (_, Some(good)) => Some(*good),
            (_, None) => {
                let free = PLACES
                    .iter()
                    .copied()
                    .min_by_key(|first| of(*first).len())
                    .expect("there are two places");
                self.clear(of(free), v6)?;
                // The end first: until a rule has somewhere to go it says nothing. And the ways
                // past before what they lead past.
                let (mut all, mut made) = (place(rules, free), Vec::new());
                all.rotate_right(1);
                for rule in all {
                    if let Err(error) = self.change(libc::RTM_NEWRULE, &rule, v6) {
                        // Half of it without the rest would be taken for whole by nobody.
                        let _ = self.clear(made, v6);
                        return Err(error);
                    }
                    made.push(rule);
                }
                Some(free)
            }
        };
        for first in PLACES.into_iter().filter(|first| Some(*first) != kept) {
            self.clear(of(first), v6)?;
        }
        Ok(())
    }

    /// What holds goes before the ways past it.
    fn clear(&mut self, mut rules: Vec<KernelRule>, v6: bool) -> io::Result<()> {
        rules.sort_by_key(|rule| (rule.action == FR_ACT_NOP, rule.protocol.is_none()));
        for rule in rules {
            match self.change(libc::RTM_DELRULE, &rule, v6) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn change(&mut self, verb: u16, rule: &KernelRule, v6: bool) -> io::Result<()> {
        let (header, attributes) = rule.emit(v6);
        let new = if verb == libc::RTM_NEWRULE {
            libc::NLM_F_CREATE | libc::NLM_F_EXCL
        } else {
            0
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        message(
            &mut request,
            verb,
            (new | libc::NLM_F_ACK) as u16,
            self.sequence,
            &header,
            &attributes,
        );
        let last = libc::NLMSG_ERROR as u16;
        exchange(
            &self.socket,
            &mut self.buffer,
            &request,
            self.sequence,
            last,
            |_, _| {},
        )
    }

    /// Our rules, in the kernel's order.
    fn list(&mut self, v6: bool) -> io::Result<Vec<KernelRule>> {
        let mut header = [0; FIB_RULE_HEADER];
        header[0] = family(v6);
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        message(
            &mut request,
            libc::RTM_GETRULE,
            libc::NLM_F_DUMP as u16,
            self.sequence,
            &header,
            &[],
        );
        let ours = PLACES[0]..PLACES[1] + PREFERENCES;
        let mut found = Vec::new();
        let on = |kind, body: &[u8]| {
            if kind == libc::RTM_NEWRULE {
                found
                    .extend(KernelRule::parse(body).filter(|rule| ours.contains(&rule.preference)));
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
        Ok(found)
    }
}

fn family(v6: bool) -> u8 {
    (if v6 { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

/// As the kernel keeps it, though it keeps all bits: a rule is found again whatever stands behind
/// its prefix.
fn masked(mut address: Vec<u8>, length: u8) -> Vec<u8> {
    for (index, byte) in address.iter_mut().enumerate() {
        let kept = usize::from(length).saturating_sub(index * 8).min(8);
        *byte &= 0xff_u8.checked_shl(8 - kept as u32).unwrap_or(0);
    }
    address
}

// linux/fib_rules.h, what libc leaves out.
const FIB_RULE_HEADER: usize = 12;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_PROHIBIT: u8 = 8;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(source: &str, destination: &str) -> RoutingRule {
        let prefix = |text: &str| {
            let (address, length) = text.split_once('/').unwrap();
            (address.parse().unwrap(), length.parse().unwrap())
        };
        RoutingRule {
            interface: Some("lan0".into()),
            source: prefix(source),
            destination: prefix(destination),
            protocol: 17,
            source_ports: None,
            destination_ports: Some((53, 80)),
            action: Action::Prohibit,
        }
    }

    #[test]
    fn rules_are_read_as_they_were_written() {
        for (v6, rule) in [
            (false, rule("10.1.2.3/23", "0.0.0.0/0")),
            (true, rule("::/0", "fd71:2::5/61")),
        ] {
            for rule in place(
                &[
                    rule.clone(),
                    RoutingRule {
                        action: Action::Leave,
                        ..rule
                    },
                ],
                PLACES[1],
            ) {
                let (header, attributes) = rule.emit(v6);
                let body = [&header[..], &attributes].concat();
                assert_eq!(KernelRule::parse(&body), Some(rule));
                for cut in 0..body.len() {
                    let _ = KernelRule::parse(&body[..cut]);
                }
            }
        }
    }

    #[test]
    fn bits_behind_a_prefix_do_not_matter() {
        assert_eq!(masked(vec![10, 1, 3, 255], 23), [10, 1, 2, 0]);
        assert_eq!(masked(vec![10, 1, 3, 255], 32), [10, 1, 3, 255]);
        assert_eq!(masked(vec![255; 16], 3)[..2], [0xe0, 0]);
    }
}
