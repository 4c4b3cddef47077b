//! Other TPOs in the same LAN: two boxes of one site, of which one brings each group. Pure: told
//! what was heard and what time it is.
//!
//! Each says once a second from which sites it can bring groups, in an IGMP message of a type for
//! experiments (RFC 3228; docs/wire.md, section 5). Of those that name the same site the one with
//! the lowest address on that LAN goes on, the others leave the LAN to it. One that falls silent,
//! or whose peer does, is followed within some seconds.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::igmp;
use super::site::{self, Site};

/// Time, 1 s, between two messages.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(1);
/// A TPO that has said nothing for this time, 3.5 s, is gone.
const FORGET: Duration = Duration::from_millis(3_500);
/// All routers of a LAN.
pub(crate) const ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 2);
/// Neighbours of one LAN, 64 at most: more than these are not heard.
const MOST_NEIGHBOURS: usize = 64;

/// What a TPO says, as a whole IP packet.
pub(crate) fn emit(own: Ipv4Addr, sites: &[Site]) -> Vec<u8> {
    igmp::packet_v4(own, ROUTERS, site::body(sites))
}

/// Of all LANs.
#[derive(Debug)]
pub(crate) struct Neighbours(Vec<HashMap<Ipv4Addr, (Vec<Site>, Instant)>>);

impl Neighbours {
    /// Of `lans` LANs.
    pub(crate) fn new(lans: usize) -> Neighbours {
        Neighbours((0..lans).map(|_| HashMap::new()).collect())
    }

    /// One of them said this.
    pub(crate) fn hear(&mut self, lan: usize, from: Ipv4Addr, sites: Vec<Site>, now: Instant) {
        let lan = &mut self.0[lan];
        if lan.len() < MOST_NEIGHBOURS || lan.contains_key(&from) {
            lan.insert(from, (sites, now));
        }
    }

    /// Forgets those that are gone.
    pub(crate) fn turn(&mut self, now: Instant) {
        for lan in &mut self.0 {
            lan.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < FORGET);
        }
    }

    /// Whether another one brings to this LAN what comes from this site, instead of us at this
    /// address.
    pub(crate) fn brings(&self, lan: usize, own: Ipv4Addr, site: &Site) -> bool {
        self.0[lan]
            .iter()
            .any(|(from, (sites, _))| *from < own && sites.contains(site))
    }
}

#[cfg(test)]
mod tests {
    use super::super::igmp::{Heard, read};
    use super::super::site::{KIND, parse};
    use super::*;

    const ONE: Site = *b"site one";
    const TWO: Site = *b"site two";

    #[test]
    fn what_is_said_is_understood() {
        for sites in [&[][..], &[ONE], &[ONE, TWO]] {
            let own = Ipv4Addr::new(10, 1, 1, 5);
            let packet = emit(own, sites);
            assert_eq!(
                read(&packet),
                Some(Heard::Serves {
                    from: own,
                    sites: sites.to_vec()
                })
            );
            for cut in 0..packet.len() {
                assert_eq!(read(&packet[..cut]), None);
            }
        }
        assert_eq!(
            parse(&[KIND, 0, 0, 0, b't', b'p', b'o', b'2']),
            None,
            "somebody else's"
        );
        assert_eq!(
            parse(&[KIND, 0, 0, 0, b't', b'p', b'o', b'1', 7]),
            None,
            "half a site"
        );
    }

    #[test]
    fn the_lowest_address_brings_while_it_says_so() {
        let (mut neighbours, start) = (Neighbours::new(2), Instant::now());
        let address = |last: u8| Ipv4Addr::new(10, 1, 1, last);
        neighbours.hear(0, address(2), vec![ONE], start);
        assert!(neighbours.brings(0, address(3), &ONE), "the lower one");
        assert!(!neighbours.brings(0, address(1), &ONE), "we are lower");
        assert!(!neighbours.brings(0, address(2), &ONE), "our own word");
        assert!(!neighbours.brings(0, address(3), &TWO), "another site");
        assert!(!neighbours.brings(1, address(3), &ONE), "another LAN");
        // Its peer is gone.
        neighbours.hear(0, address(2), vec![], start);
        assert!(!neighbours.brings(0, address(3), &ONE));
        neighbours.hear(0, address(2), vec![ONE], start);
        neighbours.turn(start + FORGET / 2);
        assert!(neighbours.brings(0, address(3), &ONE));
        neighbours.turn(start + FORGET);
        assert!(!neighbours.brings(0, address(3), &ONE), "it is silent");
    }

    #[test]
    fn neighbours_are_bounded() {
        let (mut neighbours, now) = (Neighbours::new(1), Instant::now());
        for number in 0..1_000_u32 {
            neighbours.hear(0, Ipv4Addr::from(0x0a00_0000 + number), vec![ONE], now);
        }
        assert_eq!(neighbours.0[0].len(), MOST_NEIGHBOURS);
        assert!(emit(Ipv4Addr::LOCALHOST, &[ONE; 1_000]).len() < 1_200);
    }
}
