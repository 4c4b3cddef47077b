//! Addresses that are no host of a site: what a prefix of an `[[accept]]` does not mean, however
//! wide it is. Pure.
//!
//! Some addresses of IPv6 hold one of IPv4, to which a translator or a tunnel on the way delivers
//! the packet. What is said of an IPv4 address holds for each of them. (The mapped and the
//! compatible form do not come this far: they are no [key](tpo_engine::StreamKey) of a flow.)

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tpo_engine::Prefix;

/// Whatever is in one of some prefixes: a look at each length that occurs, however many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// By whether it is IPv4, and length.
    by_length: BTreeMap<(bool, u8), HashSet<IpAddr>>,
    any: bool,
}

impl Prefixes {
    /// Whether the address is in one of them.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let of_family = self
            .by_length
            .iter()
            .filter(|((is_ipv4, _), _)| *is_ipv4 == address.is_ipv4());
        self.any
            || of_family
                .into_iter()
                .any(|((_, length), known)| known.contains(&masked(address, *length)))
    }

    /// Each of them, in no order but that shorter ones come first.
    pub fn iter(&self) -> impl Iterator<Item = Prefix> {
        let known = self.by_length.iter().flat_map(|((_, length), known)| {
            known.iter().map(|address| Prefix {
                address: *address,
                length: *length,
            })
        });
        self.any.then_some(Prefix::ANY).into_iter().chain(known)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any && self.by_length.is_empty()
    }
}

impl FromIterator<Prefix> for Prefixes {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Prefixes {
        let mut all = Prefixes::default();
        for prefix in prefixes {
            match prefix.is_any() {
                true => all.any = true,
                false => {
                    all.by_length
                        .entry((prefix.address.is_ipv4(), prefix.length))
                        .or_default()
                        .insert(prefix.address);
                }
            }
        }
        all
    }
}

/// The address with all bits behind the prefix set to zero.
pub(crate) fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(length.min(32)))
                .unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(length.min(128)))
                .unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// Whether a group may leave its LAN at all: not the one that is for neighbours alone.
pub(crate) fn is_routed(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.is_multicast() && group.octets()[..3] != [224, 0, 0],
        // Scope 2 and less: interface, link.
        IpAddr::V6(group) => group.is_multicast() && group.octets()[1] & 15 > 2,
    }
}

/// Whether every address of the prefix is [special](is_special).
pub(crate) fn is_special_only(prefix: Prefix) -> bool {
    let parts: [(IpAddr, u8); 7] = [
        (Ipv4Addr::UNSPECIFIED.into(), 8),
        (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        (Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        (Ipv4Addr::new(224, 0, 0, 0).into(), 3),
        // `::` and `::1`.
        (Ipv6Addr::UNSPECIFIED.into(), 127),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    ];
    parts.iter().any(|(address, length)| {
        let part = Prefix {
            address: *address,
            length: *length,
        };
        prefix.length >= *length
            && prefix.address.is_ipv4() == address.is_ipv4()
            && part.contains(prefix.address)
    })
}

/// Whether the address, or an IPv4 address in it, has this property.
pub(crate) fn any_form(address: IpAddr, has: impl Fn(IpAddr) -> bool) -> bool {
    let inner = match address {
        IpAddr::V4(_) => [None; MOST_INSIDE],
        IpAddr::V6(v6) => embedded(v6),
    };
    has(address) || inner.into_iter().flatten().any(|v4| has(v4.into()))
}

/// Whether it means this host, its link or many hosts, or nobody: loopback, link-local, multicast,
/// broadcast and reserved addresses, and those of "this network".
pub(crate) fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            // 0.0.0.0/8 (RFC 1122), 224.0.0.0/4 (groups), 240.0.0.0/4 (RFC 1112), and with the last
            // one the broadcast address.
            first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
        }
    }
}

/// The most IPv4 addresses that one of IPv6 may hold: the local prefix of translators does not say
/// where in it they are.
const MOST_INSIDE: usize = 5;

/// The IPv4 addresses in one of IPv6.
fn embedded(v6: Ipv6Addr) -> [Option<Ipv4Addr>; MOST_INSIDE] {
    let o = v6.octets();
    let at = |places: [usize; 4]| Some(Ipv4Addr::from(places.map(|place| o[place])));
    let last = at([12, 13, 14, 15]);
    match v6.segments() {
        // 6to4 (RFC 3056).
        [0x2002, ..] => [at([2, 3, 4, 5]), isatap(v6), None, None, None],
        // Teredo (RFC 4380): its server, and the client's address with all bits turned.
        [0x2001, 0, ..] => [
            at([4, 5, 6, 7]),
            last.map(|v4| Ipv4Addr::from_bits(!v4.to_bits())),
            None,
            None,
            None,
        ],
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [last, None, None, None, None],
        // NAT64's local prefix (RFC 8215), cut by whoever uses it into prefixes of 48, 56, 64 or 96
        // bits. Where a shorter one would be read out of the zeros of a longer one, it is not
        // meant.
        [0x64, 0xff9b, 1, ..] => {
            let [a, b, c] = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12]]
                .map(|places| at(places).filter(|v4| v4.octets()[0] != 0));
            [last, a, b, c, isatap(v6)]
        }
        // IPv4-translated addresses of SIIT (RFC 2765).
        [0, 0, 0, 0, 0xffff, 0, ..] => [last, None, None, None, None],
        _ => [isatap(v6), None, None, None, None],
    }
}

/// ISATAP (RFC 5214), under any prefix.
fn isatap(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let o = v6.octets();
    matches!(o[8..12], [0 | 2, 0, 0x5e, 0xfe]).then(|| Ipv4Addr::new(o[12], o[13], o[14], o[15]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_no_hosts() {
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "ff05::9",
            "fe80::1",
            "febf::1",
        ] {
            assert!(is_special(special.parse().unwrap()), "{special}");
        }
        for usual in [
            "10.0.0.1",
            "1.0.0.1",
            "126.0.0.1",
            "128.0.0.1",
            "169.253.1.1",
            "223.255.255.255",
            "fec0::1",
            "fd00::1",
            "2001:db8::1",
        ] {
            assert!(!is_special(usual.parse().unwrap()), "{usual}");
        }
    }

    #[test]
    fn a_prefix_of_special_addresses_alone_is_told_from_a_wide_one() {
        for (text, alone) in [
            ("127.0.0.0/8", true),
            ("127.0.0.1", true),
            ("169.254.0.0/16", true),
            ("224.0.0.0/3", true),
            ("239.1.1.1", true),
            ("::1", true),
            ("fe80::/10", true),
            ("ff05::/16", true),
            ("any", false),
            ("0.0.0.0/0", false),
            ("0.0.0.0/1", false),
            ("169.254.0.0/15", false),
            ("::/126", false),
            ("10.0.0.0/8", false),
        ] {
            assert_eq!(is_special_only(text.parse().unwrap()), alone, "{text}");
        }
    }

    #[test]
    fn many_prefixes_are_one_set() {
        let set = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse::<Prefix>().unwrap())
                .collect::<Prefixes>()
        };
        let some = set(&["10.1.0.0/16", "10.2.2.0/24", "10.2.3.0/24", "fd00:1::/32"]);
        for (address, inside) in [
            ("10.1.9.9", true),
            ("10.2.2.9", true),
            ("10.2.4.1", false),
            ("fd00:1::9", true),
            ("fd00:2::9", false),
        ] {
            assert_eq!(some.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(!set(&["0.0.0.0/0"]).contains("fd00::1".parse().unwrap()));
        assert!(
            set(&["any"]).contains("fd00::1".parse().unwrap())
                && set(&["any"]).contains("10.1.1.1".parse().unwrap())
        );
        assert!(set(&[]).is_empty() && !some.is_empty());
        assert_eq!(some.iter().count(), 4);
    }

    #[test]
    fn what_holds_for_an_ipv4_address_holds_inside_ipv6() {
        for loopback in [
            "2002:7f00:1::1",
            "2002:7f00:1::5efe:a01:203",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "64:ff9b:1:7f00:0:100::",
            "64:ff9b:1:7f:0:1::",
            "64:ff9b:1:0:7f:0:100:0",
            "2001:0:7f00:1::",
            // All bits of 127.0.0.1 turned.
            "2001:0:102:304::80ff:fffe",
            "fd00::5efe:7f00:1",
            "fd00::200:5efe:7f00:1",
            "::ffff:0:7f00:1",
        ] {
            assert!(
                any_form(loopback.parse().unwrap(), is_special),
                "{loopback}"
            );
        }
        for usual in [
            "2002:a01:203::1",
            "64:ff9b::a01:203",
            "64:ff9b:1::a01:203",
            "64:ff9b:1:a01:2:300:a01:203",
            "fd00::5efe:a01:203",
            "fd00::7f00:1",
        ] {
            assert!(!any_form(usual.parse().unwrap(), is_special), "{usual}");
        }
        let own: IpAddr = "10.1.2.3".parse().unwrap();
        assert!(any_form(
            "2002:a01:203::1".parse().unwrap(),
            |address| address == own
        ));
    }
}
