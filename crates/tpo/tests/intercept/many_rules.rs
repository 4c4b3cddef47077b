//! Ten thousand rules in the kernel.

use crate::net::{self, Answer, Daemon, Net, PORT, PORT_OTHER, Place, V4, ask, rule, table};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tpo::table::layers::Layers;
use tpo::table::{OnFailure, RuleSpec};

/// Random rules over 10.80.0.0/12, all of whose addresses the server has; some inside others.
fn many_rules(count: usize, dice: &mut net::Dice) -> Vec<RuleSpec> {
    let one = |dice: &mut net::Dice| {
        let address = Ipv4Addr::from((10 << 24) | (80 << 16) | dice.below(1 << 20) as u32);
        let length = [32, 32, 32, 30, 29, 28, 24][dice.below(7) as usize];
        let low = dice.below(100) as u16 * 100;
        let ports = if dice.below(2) == 0 {
            0..=u16::MAX
        } else {
            low..=low + 4_000
        };
        let peer = dice.below(3) as usize;
        RuleSpec {
            destination: (address.into(), length),
            destination_ports: ports,
            on_failure: if peer == 2 {
                OnFailure::Closed
            } else {
                OnFailure::Open
            },
            ..rule(V4, 0, peer)
        }
    };
    (0..count).map(|_| one(dice)).collect()
}

#[test]
fn ten_thousand_rules() {
    let net = Net::up();
    net.ip(Place::Tpo, "route add 10.80.0.0/12 via 10.71.2.2");
    net.ip(Place::Server, "route add local 10.80.0.0/12 dev lo");
    let mut dice = net::Dice(7);
    let rules = many_rules(10_000, &mut dice);
    let start = Instant::now();
    let layers = Layers::new(&rules).unwrap();
    let layered = start.elapsed();
    let sizes: Vec<usize> = layers.v4.layers.iter().map(Vec::len).collect();
    println!(
        "layers of 10,000 rules: {sizes:?}, {} covered, in {layered:?}",
        layers.v4.covered
    );
    assert!(sizes.len() > 1 && sizes.len() < 30);

    // The cost of setting up a connection that no rule names, without rules and with 10,000: to a
    // destination that none names at all, and to one whose rules name other ports, which has to go
    // through all layers.
    let unruled = V4.server_at(PORT);
    let client = SocketAddr::new(V4.client, 40_000);
    let all = rules
        .iter()
        .map(|rule| SocketAddr::new(rule.destination.0, PORT));
    let missed = all
        .into_iter()
        .find(|to| layers.find(client, *to).is_none())
        .expect("some rule names other ports");
    let start = Instant::now();
    let daemon = Daemon::start(&net, table(Vec::new(), 3));
    println!("start without rules: {:?}", start.elapsed());
    let without = [unruled, missed].map(|to| net.connect_time(to));
    drop(daemon);
    let start = Instant::now();
    let daemon = Daemon::start(&net, table(rules.clone(), 3));
    let loaded = start.elapsed();
    println!("start with 10,000 rules: {loaded:?}");
    assert!(
        loaded < Duration::from_secs(3),
        "10,000 rules took {loaded:?}"
    );
    let with = [unruled, missed].map(|to| net.connect_time(to));
    println!(
        "connect [destination not named, named at other ports]: {without:?} without rules, {with:?} with 10,000"
    );
    for (with, without) in with.into_iter().zip(without) {
        // "Costs little more": a gross bound, since other tests run beside this one.
        assert!(
            with < without * 3 + Duration::from_micros(500),
            "{with:?} against {without:?}"
        );
    }

    // The kernel finds what the layers find: peer 0 has its lease, 1 fails open, 2 fails closed.
    daemon.keep(0);
    let mut seen = [0; 4];
    for index in 0..300 {
        let IpAddr::V4(address) = rules[dice.below(10_000) as usize].destination.0 else {
            unreachable!()
        };
        let destination = SocketAddr::new(
            Ipv4Addr::from(address.to_bits() ^ dice.below(2) as u32).into(),
            [PORT, PORT_OTHER][index % 2],
        );
        let (answer, from) = ask(&net, Place::Client, destination);
        let client = SocketAddr::new(V4.client, from.map_or(40_000, |f| f.port()));
        match layers
            .find(client, destination)
            .map(|v| v.carriers.number())
        {
            None => seen[3] += usize::from(answer == Answer::Server { client }),
            Some(0) => {
                seen[0] += usize::from(
                    answer
                        == Answer::Tpo {
                            client,
                            destination,
                        },
                )
            }
            Some(1) => seen[1] += usize::from(answer == Answer::Server { client }),
            Some(_) => seen[2] += usize::from(answer == Answer::Refused),
        }
        assert_eq!(
            seen.iter().sum::<usize>(),
            index + 1,
            "{client} -> {destination}: {answer:?}"
        );
    }
    assert!(
        seen.iter().all(|n| *n > 0),
        "every outcome must occur: {seen:?}"
    );
}
