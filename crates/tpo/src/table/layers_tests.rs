//! Layers against a naive model: the rules tried one after the other.

use super::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A small generator of our own: the same seed gives the same rules for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    /// Few different addresses, so that rules and packets meet often.
    fn address(&mut self, v4: bool) -> IpAddr {
        let (a, b, c) = (
            self.below(3) as u32,
            self.below(4) as u32,
            self.below(8) as u32,
        );
        let low = (10 << 24) | (a << 16) | (b << 8) | c;
        match v4 {
            true => IpAddr::V4(Ipv4Addr::from(low)),
            false => IpAddr::V6(Ipv6Addr::from((0xfd_u128 << 120) | u128::from(low))),
        }
    }

    fn prefix(&mut self, v4: bool) -> (IpAddr, u8) {
        let lengths: &[u8] = if v4 {
            &[0, 8, 16, 20, 24, 29, 31, 32]
        } else {
            &[0, 8, 100, 112, 120, 127, 128]
        };
        (
            self.address(v4),
            lengths[self.below(lengths.len() as u64) as usize],
        )
    }

    fn ports(&mut self) -> RangeInclusive<u16> {
        match self.below(3) {
            0 => 0..=u16::MAX,
            1 => {
                let port = self.below(6) as u16;
                port..=port
            }
            _ => {
                let (a, b) = (self.below(6) as u16, self.below(6) as u16);
                a.min(b)..=a.max(b)
            }
        }
    }

    fn rule(&mut self) -> RuleSpec {
        let v4 = self.below(2) == 0;
        RuleSpec {
            protocol: 6,
            source: self.prefix(v4),
            source_ports: self.ports(),
            destination: self.prefix(v4),
            destination_ports: self.ports(),
            carriers: CarriersId::new(self.below(4) as usize),
            on_failure: if self.below(2) == 0 {
                OnFailure::Open
            } else {
                OnFailure::Closed
            },
            enabled: self.below(8) != 0,
        }
    }
}

use std::ops::RangeInclusive;

fn naive(rules: &[RuleSpec], source: SocketAddr, destination: SocketAddr) -> Option<Verdict> {
    let within = |(prefix, length): (IpAddr, u8), address: IpAddr| match (prefix, address) {
        (IpAddr::V4(p), IpAddr::V4(a)) => {
            length == 0 || p.to_bits() >> (32 - length) == a.to_bits() >> (32 - length)
        }
        (IpAddr::V6(p), IpAddr::V6(a)) => {
            length == 0 || p.to_bits() >> (128 - length) == a.to_bits() >> (128 - length)
        }
        _ => false,
    };
    let rule = rules.iter().find(|r| {
        r.enabled
            && within(r.source, source.ip())
            && within(r.destination, destination.ip())
            && r.source_ports.contains(&source.port())
            && r.destination_ports.contains(&destination.port())
    })?;
    Some(Verdict {
        carriers: rule.carriers,
        on_failure: rule.on_failure,
    })
}

fn rule(source: &str, destination: &str, ports: RangeInclusive<u16>, peer: usize) -> RuleSpec {
    let prefix = |text: &str| {
        let (address, length) = text.split_once('/').unwrap();
        (address.parse().unwrap(), length.parse().unwrap())
    };
    RuleSpec {
        protocol: 6,
        source: prefix(source),
        source_ports: 0..=u16::MAX,
        destination: prefix(destination),
        destination_ports: ports,
        carriers: CarriersId::new(peer),
        on_failure: OnFailure::Open,
        enabled: true,
    }
}

#[test]
fn layers_find_what_the_list_finds() {
    let mut hits = 0;
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let count = 1 + dice.below(40) as usize;
        let rules: Vec<RuleSpec> = (0..count).map(|_| dice.rule()).collect();
        let layers = Layers::new(&rules).unwrap();
        for family in [&layers.v4, &layers.v6] {
            for layer in &family.layers {
                for (i, a) in layer.iter().enumerate() {
                    assert!(
                        layer[i + 1..].iter().all(|b| !a.overlaps(b)),
                        "seed {seed}: overlap inside a layer"
                    );
                }
            }
        }
        for _ in 0..500 {
            let v4 = dice.below(2) == 0;
            let source = SocketAddr::new(dice.address(v4), dice.below(7) as u16);
            let destination = SocketAddr::new(dice.address(v4), dice.below(7) as u16);
            let expected = naive(&rules, source, destination);
            assert_eq!(
                layers.find(source, destination),
                expected,
                "seed {seed}: {source} -> {destination}"
            );
            hits += usize::from(expected.is_some());
        }
    }
    assert!(
        hits > 20_000,
        "the packets must meet the rules to test anything, only {hits} did"
    );
}

#[test]
fn special_cases_before_all_the_rest_are_two_layers() {
    let mut rules: Vec<RuleSpec> = (0..200)
        .map(|i| rule("10.0.0.0/8", &format!("10.1.{i}.0/24"), 80..=80, 0))
        .collect();
    rules.push(rule("0.0.0.0/0", "10.0.0.0/8", 0..=u16::MAX, 1));
    let layers = Layers::new(&rules).unwrap();
    assert_eq!(
        layers.v4.layers.iter().map(Vec::len).collect::<Vec<_>>(),
        [200, 1]
    );
    assert!(layers.v6.layers.is_empty());
}

#[test]
fn a_covered_rule_is_left_out() {
    let rules = [
        rule("10.0.0.0/8", "10.2.0.0/16", 0..=u16::MAX, 0),
        rule("10.1.0.0/16", "10.2.3.0/24", 80..=90, 1),
    ];
    let layers = Layers::new(&rules).unwrap();
    assert_eq!((layers.v4.layers.len(), layers.v4.covered), (1, 1));
}

#[test]
fn any_takes_the_family_of_the_other_side() {
    let layers = Layers::new(&[rule("0.0.0.0/0", "fd10:2::/64", 0..=u16::MAX, 0)]).unwrap();
    assert_eq!(layers.v4.layers.len(), 0);
    assert!(
        layers
            .find(
                "[fd10:1::2]:1".parse().unwrap(),
                "[fd10:2::2]:80".parse().unwrap()
            )
            .is_some()
    );
    assert!(
        layers
            .find(
                "10.0.0.1:1".parse().unwrap(),
                "10.0.0.2:80".parse().unwrap()
            )
            .is_none()
    );
}

#[test]
fn wrong_rules_are_named() {
    let good = rule("10.0.0.0/8", "10.2.0.0/16", 1..=2, 0);
    let check =
        |bad: RuleSpec, error| assert_eq!(Layers::new(&[good.clone(), bad]).unwrap_err(), error);
    check(
        rule("10.0.0.0/8", "fd00::/8", 1..=2, 0),
        RuleError::MixedFamilies(1),
    );
    check(
        rule("10.0.0.0/33", "10.0.0.0/8", 1..=2, 0),
        RuleError::PrefixLength(1),
    );
    #[expect(clippy::reversed_empty_ranges)]
    check(
        rule("10.0.0.0/8", "10.0.0.0/8", 2..=1, 0),
        RuleError::EmptyPorts(1),
    );
}

#[test]
fn destinations_are_merged() {
    let rules = ["10.1.0.0/24", "10.1.1.0/24", "10.1.0.8/30", "10.3.0.0/16"]
        .map(|d| rule("0.0.0.0/0", d, 80..=80, 0));
    let merged = Layers::new(&rules).unwrap().v4.destinations();
    let address = |text: &str| bits(text.parse().unwrap());
    assert_eq!(
        merged,
        [
            (address("10.1.0.0"), address("10.1.1.255")),
            (address("10.3.0.0"), address("10.3.255.255"))
        ]
    );
}
