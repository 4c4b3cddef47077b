//! Which groups the hosts of our LANs listen to, as a multicast router knows it (RFC 3376 section
//! 6, RFC 3810 section 7): they say so when they join, and when they are asked. Pure: told what was
//! heard and what time it is.
//!
//! Who asks is elected among the routers of a LAN: the one with the lowest address. Where there is
//! none but us, we ask.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::igmp::Heard;

/// How often everybody is asked (RFC 3376 section 8.2).
const QUERY_EVERY: Duration = Duration::from_secs(125);
/// At the beginning twice (RFC 3376 section 8.6).
const SECOND_QUERY: Duration = Duration::from_secs(31);
/// Hosts have this long to answer; at the beginning there is nothing yet that they would all answer
/// at once.
const ANSWER: Duration = Duration::from_secs(10);
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// A group without a word from a member has none after this time (RFC 3376 section 8.4).
const LISTENS: Duration = Duration::from_secs(260);
/// After a member has left, whoever remains says so within this time: asked twice, a second to
/// answer.
const LEFT: Duration = Duration::from_millis(2_500);
const LAST_MEMBER: Duration = Duration::from_secs(1);
/// A router that asks is gone after this time (RFC 3376 section 8.5).
const OTHER: Duration = Duration::from_secs(255);
/// Groups of one LAN: whoever invents more is not heard.
const MOST_GROUPS: usize = 1_024;

/// A question to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// On which LAN.
    pub(crate) lan: usize,
    /// From which of our addresses there.
    pub(crate) own: IpAddr,
    /// About this group, or any.
    pub(crate) group: Option<IpAddr>,
    /// Time for answers.
    pub(crate) within: Duration,
}

/// Of one family on one LAN.
#[derive(Debug)]
struct Asking {
    own: Option<IpAddr>,
    /// Until when another router's word counts.
    other: Option<Instant>,
    next: Option<Instant>,
    first: bool,
}

#[derive(Debug)]
struct Lan {
    /// Until when each group has a member.
    groups: HashMap<IpAddr, Instant>,
    asking: [Asking; 2],
    /// When to ask about a group that a host has left.
    specific: Vec<(Instant, IpAddr)>,
}

/// Of all LANs.
#[derive(Debug)]
pub(crate) struct Members {
    lans: Vec<Lan>,
    asks: bool,
    /// Reports of groups beyond the bound.
    pub(crate) refused: u64,
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

impl Members {
    /// Of `lans` LANs. `asks`: whether we ask, if no other router does.
    pub(crate) fn new(lans: usize, asks: bool) -> Members {
        let asking = || Asking {
            own: None,
            other: None,
            next: None,
            first: true,
        };
        let lan = |_| Lan {
            groups: HashMap::new(),
            asking: [asking(), asking()],
            specific: Vec::new(),
        };
        Members {
            lans: (0..lans).map(lan).collect(),
            asks,
            refused: 0,
        }
    }

    /// Our addresses on a LAN, IPv4 and link-local IPv6, as they are now.
    pub(crate) fn set_own(&mut self, lan: usize, own: [Option<IpAddr>; 2], now: Instant) {
        for (asking, own) in self.lans[lan].asking.iter_mut().zip(own) {
            if asking.own != own {
                *asking = Asking {
                    own,
                    other: None,
                    next: Some(now),
                    first: true,
                };
            }
        }
    }

    /// Our IPv4 address on a LAN.
    pub(crate) fn own_v4(&self, lan: usize) -> Option<Ipv4Addr> {
        match self.lans[lan].asking[0].own {
            Some(IpAddr::V4(own)) => Some(own),
            _ => None,
        }
    }

    /// A host or router of the LAN said something.
    pub(crate) fn hear(&mut self, lan: usize, heard: Heard, now: Instant) {
        let place = &mut self.lans[lan];
        match heard {
            Heard::Query { from } => {
                let asking = &mut place.asking[family(from)];
                // The unspecified address, which is a switch's, takes no part in the election.
                if !from.is_unspecified() && asking.own.is_none_or(|own| from < own) {
                    asking.other = Some(now + OTHER);
                }
            }
            // Of neighbours, who are no members.
            Heard::Serves { .. } => {}
            Heard::Members { joined, left } => {
                for group in joined {
                    self.listens(lan, group, now + LISTENS);
                }
                let place = &mut self.lans[lan];
                for group in left {
                    let Some(until) = place.groups.get_mut(&group) else {
                        continue;
                    };
                    if *until > now + LEFT {
                        *until = now + LEFT;
                        place
                            .specific
                            .extend([(now, group), (now + LAST_MEMBER, group)]);
                    }
                }
            }
        }
    }

    /// This host itself is a member, for as long as it goes on being told.
    pub(crate) fn hear_own(&mut self, lan: usize, group: IpAddr, now: Instant) {
        let until = now + LEFT;
        if self.lans[lan]
            .groups
            .get(&group)
            .is_none_or(|known| *known < until)
        {
            self.listens(lan, group, until);
        }
    }

    fn listens(&mut self, lan: usize, group: IpAddr, until: Instant) {
        let groups = &mut self.lans[lan].groups;
        if groups.len() >= MOST_GROUPS && !groups.contains_key(&group) {
            self.refused += 1;
            return;
        }
        groups.insert(group, until);
    }

    /// Forgets what is over and appends what must be asked now.
    pub(crate) fn turn(&mut self, now: Instant, queries: &mut Vec<Query>) {
        for (lan, place) in self.lans.iter_mut().enumerate() {
            place.groups.retain(|_, until| *until > now);
            for asking in &mut place.asking {
                asking.other = asking.other.filter(|until| *until > now);
                let (Some(own), Some(_)) = (asking.own, asking.next.filter(|next| *next <= now))
                else {
                    continue;
                };
                if asking.other.is_none() && self.asks {
                    let within = if asking.first { FIRST_ANSWER } else { ANSWER };
                    queries.push(Query {
                        lan,
                        own,
                        group: None,
                        within,
                    });
                }
                asking.next = Some(
                    now + if asking.first {
                        SECOND_QUERY
                    } else {
                        QUERY_EVERY
                    },
                );
                asking.first = false;
            }
            let Lan {
                asking,
                specific,
                groups,
            } = place;
            specific.retain(|(at, group)| {
                if *at > now {
                    return true;
                }
                let Asking { own, other, .. } = &asking[family(*group)];
                // Whoever is elected asks. One who has heard that a member remains need not.
                let is_open = groups.get(group).is_some_and(|until| *until <= now + LEFT);
                if let (Some(own), None, true, true) = (own, other, self.asks, is_open) {
                    queries.push(Query {
                        lan,
                        own: *own,
                        group: Some(*group),
                        within: LAST_MEMBER,
                    });
                }
                false
            });
        }
    }

    /// Every group that has a member, and on which LANs.
    pub(crate) fn groups(&self) -> BTreeMap<IpAddr, Vec<usize>> {
        let mut all: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        for (lan, place) in self.lans.iter().enumerate() {
            for group in place.groups.keys() {
                all.entry(*group).or_default().push(lan);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "10.1.1.5";
    const GROUP: &str = "239.1.1.1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn members(now: Instant) -> Members {
        let mut members = Members::new(1, true);
        members.set_own(0, [Some(address(OWN)), None], now);
        members
    }

    fn asked(members: &mut Members, now: Instant) -> Vec<Option<IpAddr>> {
        let mut queries = Vec::new();
        members.turn(now, &mut queries);
        queries.into_iter().map(|query| query.group).collect()
    }

    fn joins(group: &str) -> Heard {
        Heard::Members {
            joined: vec![address(group)],
            left: vec![],
        }
    }

    fn leaves(group: &str) -> Heard {
        Heard::Members {
            joined: vec![],
            left: vec![address(group)],
        }
    }

    #[test]
    fn a_group_lives_while_somebody_says_so() {
        let start = Instant::now();
        let mut members = members(start);
        assert_eq!(
            asked(&mut members, start),
            [None],
            "everybody is asked at the beginning"
        );
        members.hear(0, joins(GROUP), start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        asked(&mut members, at(250));
        assert_eq!(
            members.groups(),
            BTreeMap::from([(address(GROUP), vec![0])])
        );
        asked(&mut members, at(260));
        assert!(members.groups().is_empty());
    }

    #[test]
    fn after_a_leave_those_who_remain_are_asked_for() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut members = members(start);
        asked(&mut members, start);
        members.hear(0, joins(GROUP), start);
        members.hear(0, leaves(GROUP), at(100));
        assert_eq!(asked(&mut members, at(100)), [Some(address(GROUP))]);
        assert_eq!(
            asked(&mut members, at(1_100)),
            [Some(address(GROUP))],
            "twice"
        );
        members.hear(0, joins(GROUP), at(1_500));
        asked(&mut members, at(10_000));
        assert_eq!(members.groups().len(), 1, "one remains");
        members.hear(0, leaves(GROUP), at(20_000));
        asked(&mut members, at(22_500));
        assert!(members.groups().is_empty(), "none remains");
    }

    #[test]
    fn the_lowest_address_asks() {
        let start = Instant::now();
        let mut members = members(start);
        for (from, asks) in [("10.1.1.9", true), ("0.0.0.0", true), ("10.1.1.2", false)] {
            members.set_own(0, [None, None], start);
            members.set_own(0, [Some(address(OWN)), None], start);
            members.hear(
                0,
                Heard::Query {
                    from: address(from),
                },
                start,
            );
            assert_eq!(
                !asked(&mut members, start).is_empty(),
                asks,
                "beside {from}"
            );
        }
        // It is gone.
        let mut later = start + Duration::from_secs(31);
        assert!(asked(&mut members, later).is_empty());
        later += Duration::from_secs(250);
        assert_eq!(asked(&mut members, later), [None]);
    }

    #[test]
    fn groups_are_bounded() {
        let start = Instant::now();
        let mut members = members(start);
        for number in 0..5_000_u32 {
            members.hear(
                0,
                joins(&std::net::Ipv4Addr::from(0xef01_0000 + number).to_string()),
                start,
            );
        }
        assert_eq!(
            (members.groups().len(), members.refused),
            (1_024, 5_000 - 1_024)
        );
    }
}
