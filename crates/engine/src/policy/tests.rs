//! The table against a walk over all rules.

use std::net::Ipv4Addr;

use super::*;
use crate::Class;

fn rule(source: &str, destination: &str, destination_ports: RangeInclusive<u16>) -> Rule {
    Rule {
        protocol: 6,
        source: source.parse().unwrap(),
        source_ports: 0..=u16::MAX,
        destination: destination.parse().unwrap(),
        destination_ports,
        carriers: CarriersId::new(0),
        treatment: Class::Normal.into(),
        delivery: Delivery::Timely,
    }
}

fn key(source: &str, destination: &str) -> FlowKey {
    FlowKey {
        protocol: 6,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn walk(rules: &[Rule], key: &FlowKey) -> Option<usize> {
    rules.iter().position(|rule| rule.matches(key))
}

fn check(policy: &Policy, key: &FlowKey) {
    let expected = walk(policy.rules(), key).map(|number| &policy.rules()[number]);
    let found = policy.find(key);
    assert!(
        found.map(std::ptr::from_ref) == expected.map(std::ptr::from_ref),
        "{key:?}: {found:?}, not {expected:?}"
    );
}

/// What the seeded rules are made of: many lengths or few, many ports or few.
#[derive(Debug, Clone, Copy)]
struct Taste {
    rules: usize,
    /// How many different addresses there are: few make prefixes nest and repeat.
    addresses: u32,
    lengths: &'static [u8],
    source_ports: bool,
    /// Largest port.
    ports: u16,
}

const ALL_LENGTHS: &[u8] = &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
    26, 27, 28, 29, 30, 31, 32,
];

fn address(random: &mut fastrand::Rng, taste: &Taste) -> IpAddr {
    let word = random.u32(0..taste.addresses).wrapping_mul(0x9e37_79b9);
    if random.u8(0..4) == 0 {
        IpAddr::V6(
            (0x2001_0db8_u128 << 96 | u128::from(word) << 64 | u128::from(random.u8(0..3))).into(),
        )
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(word))
    }
}

fn prefix(random: &mut fastrand::Rng, taste: &Taste) -> Prefix {
    if random.u8(0..20) == 0 {
        return Prefix::ANY;
    }
    let address = address(random, taste);
    let length = taste.lengths[random.usize(0..taste.lengths.len())];
    let length = if address.is_ipv4() {
        length
    } else {
        32 + length
    };
    Prefix {
        address: masked(address, length),
        length,
    }
}

fn ports(random: &mut fastrand::Rng, taste: &Taste) -> RangeInclusive<u16> {
    match random.u8(0..3) {
        0 => {
            let port = random.u16(0..=taste.ports);
            port..=port
        }
        1 => 0..=u16::MAX,
        _ => {
            let (a, b) = (random.u16(0..=taste.ports), random.u16(0..=taste.ports));
            a.min(b)..=a.max(b)
        }
    }
}

fn rules(random: &mut fastrand::Rng, taste: &Taste) -> Vec<Rule> {
    (0..taste.rules)
        .map(|peer| Rule {
            protocol: if random.u8(0..5) == 0 { 17 } else { 6 },
            source: prefix(random, taste),
            source_ports: if taste.source_ports {
                ports(random, taste)
            } else {
                0..=u16::MAX
            },
            destination: prefix(random, taste),
            destination_ports: ports(random, taste),
            carriers: CarriersId::new(peer),
            treatment: Class::Normal.into(),
            delivery: Delivery::Timely,
        })
        .collect()
}

fn packet(random: &mut fastrand::Rng, taste: &Taste) -> FlowKey {
    let mut end = || SocketAddr::new(address(random, taste), random.u16(0..=taste.ports));
    FlowKey {
        source: end(),
        destination: end(),
        protocol: if random.u8(0..5) == 0 { 17 } else { 6 },
    }
}

#[test]
fn finds_what_a_walk_finds() {
    for seed in 0..400 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let taste = Taste {
            rules: [1, 10, 100, 400][random.usize(0..4)],
            addresses: [1, 5, 100][random.usize(0..3)],
            lengths: [ALL_LENGTHS, &[8, 16, 24], &[0, 32], &[24]][random.usize(0..4)],
            source_ports: random.bool(),
            ports: [3, 100, u16::MAX][random.usize(0..3)],
        };
        let policy = Policy::new(rules(random, &taste));
        for _ in 0..200 {
            check(&policy, &packet(random, &taste));
        }
    }
}

#[test]
fn ten_thousand_rules_are_found_as_by_a_walk() {
    let tastes = [
        Taste {
            rules: 10_000,
            addresses: 5000,
            lengths: &[8, 16, 24, 32],
            source_ports: false,
            ports: u16::MAX,
        },
        Taste {
            rules: 10_000,
            addresses: 300,
            lengths: ALL_LENGTHS,
            source_ports: true,
            ports: 2000,
        },
        Taste {
            rules: 10_000,
            addresses: 1,
            lengths: &[32],
            source_ports: true,
            ports: u16::MAX,
        },
    ];
    for (seed, taste) in tastes.iter().enumerate() {
        let random = &mut fastrand::Rng::with_seed(seed as u64);
        let policy = Policy::new(rules(random, taste));
        for _ in 0..1000 {
            check(&policy, &packet(random, taste));
        }
    }
}

/// The time of a look-up, for people: `cargo test --release -p tpo-engine policy -- --ignored
/// --nocapture`.
#[test]
#[ignore = "measures, asserts nothing about time"]
#[allow(clippy::disallowed_methods)]
fn measure() {
    let tastes = [
        (
            "10,000 /24 to /24",
            Taste {
                rules: 10_000,
                addresses: 5000,
                lengths: &[24],
                source_ports: false,
                ports: u16::MAX,
            },
        ),
        (
            "lengths 8-32 by 8",
            Taste {
                rules: 10_000,
                addresses: 5000,
                lengths: &[8, 16, 24, 32],
                source_ports: false,
                ports: u16::MAX,
            },
        ),
        (
            "all lengths, nested",
            Taste {
                rules: 10_000,
                addresses: 300,
                lengths: ALL_LENGTHS,
                source_ports: true,
                ports: 2000,
            },
        ),
        (
            "one pair, all ports",
            Taste {
                rules: 10_000,
                addresses: 1,
                lengths: &[32],
                source_ports: true,
                ports: u16::MAX,
            },
        ),
    ];
    for (name, taste) in tastes {
        let random = &mut fastrand::Rng::with_seed(1);
        let policy = Policy::new(rules(random, &taste));
        let packets: Vec<FlowKey> = (0..10_000).map(|_| packet(random, &taste)).collect();
        let start = std::time::Instant::now();
        let found = packets
            .iter()
            .filter(|key| policy.find(key).is_some())
            .count();
        let each = start.elapsed() / packets.len() as u32;
        println!(
            "{name:<22} {each:>8.0?} each, {found} of {} found",
            packets.len()
        );
    }
}

#[test]
fn the_first_rule_wins() {
    let policy = Policy::new(vec![
        rule("10.0.0.0/8", "10.2.0.0/16", 22..=22),
        rule("any", "10.2.0.0/16", 0..=u16::MAX),
        rule("10.1.0.0/16", "10.2.3.4", 443..=443),
        rule("0.0.0.0/0", "0.0.0.0/0", 53..=53),
        rule("fd10:1::/32", "::/0", 80..=90),
    ]);
    let find = |source: &str, destination: &str| {
        let rule = policy.find(&key(source, destination))?;
        policy
            .rules()
            .iter()
            .position(|other| std::ptr::eq(rule, other))
    };
    assert_eq!(find("10.1.1.1:5", "10.2.3.4:22"), Some(0));
    assert_eq!(
        find("10.1.1.1:5", "10.2.3.4:443"),
        Some(1),
        "the more exact rule comes later"
    );
    assert_eq!(find("9.9.9.9:5", "8.8.8.8:53"), Some(3));
    assert_eq!(find("9.9.9.9:5", "8.8.8.8:54"), None);
    assert_eq!(find("[fd10:1::7]:5", "[2001:db8::1]:90"), Some(4));
    assert_eq!(
        find("[fd10:1::7]:5", "[2001:db8::1]:53"),
        None,
        "0.0.0.0/0 is IPv4 only"
    );
    let udp = FlowKey {
        protocol: 17,
        ..key("10.1.1.1:5", "10.2.3.4:22")
    };
    assert_eq!(policy.find(&udp), None);
}

#[test]
fn prefixes_have_a_text() {
    for text in [
        "10.0.0.0/8",
        "any",
        "0.0.0.0/0",
        "192.0.2.7/32",
        "fd10:1::/32",
    ] {
        assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
    }
    assert_eq!("192.0.2.7".parse::<Prefix>().unwrap().length, 32);
    assert!(
        "any"
            .parse::<Prefix>()
            .unwrap()
            .contains("10.0.0.1".parse().unwrap())
    );
    let error = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
    assert_eq!(
        error("10.1.2.3/8"),
        "10.1.2.3/8 has bits behind the prefix; did you mean 10.0.0.0/8?"
    );
    assert_eq!(
        error("10.0.0.0/33"),
        "`33` is not a prefix length; for this address it is a number from 0 to 32"
    );
    assert_eq!(
        error("lyon/8"),
        "`lyon/8` is not an IP address; write an address, an address/length or `any`"
    );
}
