//! The largest datagram that the path carries (after RFC 8899).
//!
//! Starts from a size that every path carries, asks with padded probes, and falls back when large
//! datagrams vanish while small ones pass. `send` asks for the size and reports what became of
//! probes and of large datagrams; the link reports what the kernel refused. Sizes are bytes of UDP
//! payload.

use std::net::{IpAddr, SocketAddr};

use crate::timer::{Nanos, SECOND};

/// Bytes of a datagram that every path carries: RFC 8200's 1,280 less IPv6 and UDP headers, rounded
/// down; RFC 9000's initial size.
pub(crate) const BASE: usize = 1_200;
/// Bytes of the smallest datagram size: below it the headers would outweigh the payload. A
/// configured segment is raised to it.
const SMALLEST: usize = 256;
/// The sizes that are asked for over IPv4: inside tunnels, PPPoE, Ethernet, jumbo frames of two
/// kinds. Four of the largest still make one batch of 64 kB, which is the kernel's limit for what
/// one call hands over; above that a loss costs more than the headers saved.
const SIZES_V4: [usize; 5] = [1_400, 1_452, 1_472, 8_952, 16_356];
/// The same over IPv6, whose header is 20 bytes longer.
const SIZES_V6: [usize; 5] = [1_380, 1_432, 1_452, 8_932, 16_336];
/// The place of the Ethernet size, which is tried first: nearly every path carries it.
const LIKELY: usize = 2;
/// Probes of one size that may be lost before the path is believed not to carry it.
const TRIES: u32 = 3;
/// Time after the end of the search until a larger size is tried again: paths change.
const RAISE_AFTER: Nanos = 600 * SECOND;
/// Time after a black hole until the search starts again.
const RETRY_AFTER: Nanos = 2 * SECOND;
/// Rounds of lost large datagrams without any that passed, while small ones did: the path has
/// become narrower.
const BLACK_HOLE_ROUNDS: u32 = 3;

/// Bytes of IP and UDP headers in front of a datagram to this address.
fn overhead_to(to: SocketAddr) -> usize {
    if is_v4(to) { 28 } else { 48 }
}

fn is_v4(to: SocketAddr) -> bool {
    match to.ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
    }
}

/// What became of datagrams larger than the base, and of others, in one acknowledgement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SizesSeen {
    pub(crate) large_lost: bool,
    pub(crate) large_arrived: bool,
    pub(crate) small_arrived: bool,
}

/// The search for the path's datagram size.
pub(crate) struct Mtu {
    current: usize,
    /// Bytes of IP and UDP headers in front of each datagram.
    overhead: usize,
    /// Smallest size known not to pass.
    too_large: usize,
    sizes: [usize; 5],
    fixed: Option<usize>,
    /// Size of the probe on its way.
    probing: Option<usize>,
    tries: u32,
    next_probe: Option<Nanos>,
    black_hole: u32,
    falls: u64,
}

impl Mtu {
    pub(crate) fn new(segment: Option<u16>, to: SocketAddr, now: Nanos) -> Mtu {
        let fixed = segment.map(|segment| usize::from(segment).max(SMALLEST));
        Mtu {
            current: fixed.unwrap_or(BASE),
            overhead: overhead_to(to),
            too_large: usize::MAX,
            sizes: if is_v4(to) { SIZES_V4 } else { SIZES_V6 },
            fixed,
            probing: None,
            tries: 0,
            next_probe: fixed.is_none().then_some(now),
            black_hole: 0,
            falls: 0,
        }
    }

    /// The largest datagram to send now.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// Bytes of IP and UDP headers in front of each datagram.
    pub(crate) fn overhead(&self) -> usize {
        self.overhead
    }

    /// What every path carries: for probes that must arrive.
    pub(crate) fn safe(&self) -> usize {
        self.current.min(BASE)
    }

    /// Times that the size fell back.
    pub(crate) fn falls(&self) -> u64 {
        self.falls
    }

    fn candidate(&self) -> Option<usize> {
        let fits = |size: &usize| *size > self.current && *size < self.too_large;
        if let Some(fixed) = self.fixed {
            return Some(fixed).filter(fits);
        }
        let (likely, larger) = self.sizes.split_at(LIKELY + 1);
        likely.iter().rev().chain(larger).copied().find(fits)
    }

    /// When the next probe is due.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.next_probe.filter(|_| self.probing.is_none())
    }

    /// The size of a probe that is due. It then counts as sent.
    pub(crate) fn poll_probe(&mut self, now: Nanos) -> Option<usize> {
        if self.deadline().is_none_or(|due| due > now) {
            return None;
        }
        let Some(size) = self.candidate() else {
            self.too_large = usize::MAX;
            self.next_probe = self.candidate().map(|_| now + RAISE_AFTER);
            return None;
        };
        self.probing = Some(size);
        Some(size)
    }

    /// The probe of this size arrived.
    pub(crate) fn on_probe_acked(&mut self, size: usize, now: Nanos) {
        if size > self.current && size < self.too_large {
            self.current = size;
            self.black_hole = 0;
        }
        if self.probing == Some(size) {
            self.probing = None;
            self.tries = 0;
            self.next_probe = Some(now);
        }
    }

    /// The probe of this size was lost.
    pub(crate) fn on_probe_lost(&mut self, size: usize, now: Nanos) {
        if self.probing != Some(size) {
            return;
        }
        self.probing = None;
        self.tries += 1;
        if self.tries >= TRIES {
            self.tries = 0;
            self.too_large = size;
        }
        self.next_probe = Some(now);
    }

    /// The kernel refused a datagram of this size.
    pub(crate) fn on_too_large(&mut self, size: usize, now: Nanos) {
        if size <= SMALLEST {
            return;
        }
        self.too_large = self.too_large.min(size);
        if self.probing.is_some_and(|probing| probing >= size) {
            self.probing = None;
            self.tries = 0;
            self.next_probe = Some(now);
        }
        if self.current >= size {
            // The base may be refused too, by an interface of less than 1,280: then half of what
            // was refused.
            self.fall_to(
                if size > BASE {
                    BASE
                } else {
                    (size / 2).max(SMALLEST)
                },
                now,
            );
        }
    }

    /// True if this shows a black hole: a path that swallows large datagrams. The size has then
    /// fallen.
    pub(crate) fn on_sizes(&mut self, seen: SizesSeen, now: Nanos) -> bool {
        let SizesSeen {
            large_lost,
            large_arrived,
            small_arrived,
        } = seen;
        if self.current <= BASE || large_arrived {
            self.black_hole = 0;
            return false;
        }
        if large_lost && small_arrived {
            self.black_hole += 1;
        }
        if self.black_hole < BLACK_HOLE_ROUNDS {
            return false;
        }
        self.fall_to(BASE, now + RETRY_AFTER);
        true
    }

    fn fall_to(&mut self, size: usize, next_probe: Nanos) {
        self.current = size;
        self.falls += 1;
        self.black_hole = 0;
        self.probing = None;
        self.tries = 0;
        self.next_probe = Some(next_probe);
    }

    /// The peer is reached at another address. With other headers in front of it the search begins
    /// again from the base.
    pub(crate) fn on_new_address(&mut self, to: SocketAddr, now: Nanos) {
        if overhead_to(to) == self.overhead {
            return;
        }
        let falls = self.falls;
        let segment = self.fixed.map(|fixed| fixed as u16);
        *self = Mtu {
            falls,
            ..Mtu::new(segment, to, now)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(
        mtu: &mut Mtu,
        large_lost: bool,
        large_arrived: bool,
        small_arrived: bool,
        now: Nanos,
    ) -> bool {
        let seen = SizesSeen {
            large_lost,
            large_arrived,
            small_arrived,
        };
        mtu.on_sizes(seen, now)
    }

    /// Lets the search run on a path that carries `path` bytes, each probe of a fitting size
    /// arriving.
    fn search(mtu: &mut Mtu, path: usize, now: Nanos) -> u32 {
        let mut probes = 0;
        while let Some(size) = mtu.poll_probe(now) {
            probes += 1;
            if size <= path {
                mtu.on_probe_acked(size, now)
            } else {
                mtu.on_probe_lost(size, now)
            }
        }
        probes
    }

    #[test]
    fn finds_what_the_path_carries() {
        let v4: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:1".parse().unwrap();
        for (to, path, found) in [
            (v4, 1_472, 1_472),
            (mapped, 1_472, 1_472),
            (v4, 1_471, 1_452),
            (v4, 1_280, 1_200),
            (v4, 9_000, 8_952),
            (v4, 65_507, 16_356),
            (v6, 1_452, 1_452),
            (v6, 1_400, 1_380),
        ] {
            let mut mtu = Mtu::new(None, to, 0);
            assert!(search(&mut mtu, path, 0) < 12);
            assert_eq!(mtu.current(), found);
            assert_eq!(mtu.deadline(), (found < 16_300).then_some(RAISE_AFTER));
            search(&mut mtu, 1_472.max(path), RAISE_AFTER);
            assert!(mtu.current() >= found);
        }
    }

    #[test]
    fn a_black_hole_is_left_and_probed_again() {
        let mut mtu = Mtu::new(None, "192.0.2.1:1".parse().unwrap(), 0);
        search(&mut mtu, 1_472, 0);
        assert!(!sizes(&mut mtu, true, false, true, 1));
        assert!(!sizes(&mut mtu, true, false, true, 2));
        assert!(
            !sizes(&mut mtu, true, true, true, 3),
            "a large one came through"
        );
        assert!(
            !sizes(&mut mtu, true, false, false, 4),
            "nothing came: an outage"
        );
        assert!((0..3).any(|at| sizes(&mut mtu, true, false, true, 5 + at)));
        assert_eq!((mtu.current(), mtu.falls()), (BASE, 1));
        assert!(mtu.poll_probe(6).is_none());
        search(&mut mtu, 1_400, 100 * SECOND);
        assert_eq!(mtu.current(), 1_400);
    }

    #[test]
    fn the_kernels_word_is_taken() {
        let mut mtu = Mtu::new(None, "192.0.2.1:1".parse().unwrap(), 0);
        assert_eq!(mtu.poll_probe(0), Some(1_472));
        mtu.on_too_large(1_472, 0);
        assert_eq!(mtu.poll_probe(0), Some(1_452));
        mtu.on_probe_acked(1_452, 0);
        mtu.on_too_large(1_452, 0);
        assert_eq!(mtu.current(), BASE);
        let mut fixed = Mtu::new(Some(1_400), "192.0.2.1:1".parse().unwrap(), 0);
        assert_eq!((fixed.current(), fixed.poll_probe(0)), (1_400, None));
        fixed.on_too_large(1_400, 0);
        assert_eq!((fixed.current(), search(&mut fixed, 9_000, 0)), (BASE, 0));
    }
}
