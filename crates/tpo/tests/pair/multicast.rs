//! Multicast between sites: one copy for each site that listens, from the original source, and
//! nothing for the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use tpo_lab::{Place, Sites};

use crate::mesh::{Mesh, Plan};
use crate::site::wait_for;

const PORT: u16 = 5_004;
const V4: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 1);
/// One that site 3 asks for without a listener.
const PINNED: Ipv4Addr = Ipv4Addr::new(239, 2, 2, 2);

fn mesh(link: &str) -> Mesh {
    Mesh::start(&Plan {
        link,
        sites: 4,
        joined: |one, other| one == 1 || other == 1,
        peer: |_, _| String::new(),
        calls: |_, _| true,
        sections: |site| {
            let lan = "[multicast]\ninterfaces = [\"lan0\"]\n\n";
            let peers = r#"["s2", "s3", "s4"]"#;
            match site {
                1 => format!(
                    "{lan}[[rule]]\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"\npeer = {peers}\n\n\
                     [[rule]]\nprotocol = \"udp\"\nsource = \"fd10:1::/64\"\ndestination = \"ff05::/16\"\npeer = {peers}\n\n\
                     [[accept]]\npeer = \"s2\"\nprotocol = \"udp\"\nsource = \"10.10.0.0/16\"\ndestination = \"239.0.0.0/8\"\n"
                ),
                _ => {
                    let pinned = if site == 3 { "pinned = true" } else { "" };
                    format!(
                        "{lan}[[accept]]\npeer = \"s1\"\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.1.0.0/16\"\n\n\
                         [[accept]]\npeer = \"s1\"\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"{PINNED}\"\n{pinned}\n\n\
                         [[accept]]\npeer = \"s1\"\nprotocol = \"udp\"\nsource = \"fd10:1::/64\"\ndestination = \"ff05::/16\"\n\n\
                         [[rule]]\nprotocol = \"udp\"\nsource = \"any\"\ndestination = \"239.0.0.0/8\"\npeer = \"s1\"\n"
                    )
                }
            }
        },
    })
}

fn index(sites: &Sites, site: usize) -> u32 {
    let output = sites
        .command(Place::Host(site), "ip")
        .args(["-o", "link", "show", "dev", "eth0"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(':')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// A host's membership, which ends with the socket.
fn listen(sites: &Sites, site: usize, group: IpAddr) -> UdpSocket {
    let index = index(sites, site);
    let socket = sites.inside(Place::Host(site), || {
        let domain = if group.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(group, PORT).into()).unwrap();
        match group {
            IpAddr::V4(group) => socket
                .join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))
                .unwrap(),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, index).unwrap(),
        }
        socket.set_recv_buffer_size(4 << 20).unwrap();
        UdpSocket::from(socket)
    });
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
}

/// A sender at site 1 with this hop limit.
fn sender(sites: &Sites, v6: bool, hops: u32) -> UdpSocket {
    let index = index(sites, 1);
    sites.inside(Place::Host(1), || {
        let (domain, at) = match v6 {
            false => (Domain::IPV4, SocketAddr::new(Place::Host(1).v4(), 0)),
            true => (Domain::IPV6, SocketAddr::new(Place::Host(1).v6(), 0)),
        };
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        socket.bind(&at.into()).unwrap();
        if v6 {
            socket.set_multicast_if_v6(index).unwrap();
            socket.set_multicast_hops_v6(hops).unwrap();
        } else {
            socket.set_multicast_ttl_v4(hops).unwrap();
        }
        socket.into()
    })
}

/// What does not shrink, so that bytes on the WAN can be counted.
fn noise<const SIZE: usize>() -> [u8; SIZE] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut dice = fastrand::Rng::with_seed(NEXT.fetch_add(1, Ordering::Relaxed));
    std::array::from_fn(|_| dice.u8(..))
}

/// Everything that waits.
fn drain(socket: &UdpSocket) -> usize {
    let mut bytes = [0; 2_000];
    std::iter::from_fn(|| socket.recv_from(&mut bytes).ok()).count()
}

/// Sends until everybody has heard something: the sites have asked for the group.
fn wait_heard(from: &UdpSocket, to: IpAddr, listeners: &[&UdpSocket]) {
    wait_for("the group to arrive", || {
        from.send_to(b"is anybody there?", (to, PORT)).unwrap();
        listeners
            .iter()
            .all(|socket| socket.recv(&mut [0; 100]).is_ok())
    });
    // What is still under way.
    std::thread::sleep(Duration::from_millis(300));
    listeners.iter().for_each(|socket| {
        drain(socket);
    });
}

#[test]
fn a_stream_reaches_the_sites_that_listen_and_no_other() {
    let link = "rate=50mbit delay=15ms loss=1%";
    let mesh = mesh(link);
    mesh.wait_up();
    let sites = &mesh.sites;
    let group = IpAddr::from(V4);
    let from = sender(sites, false, 8);
    // Site 1 listens too, and asks site 2, which may send: what came from site 1 must not come
    // back.
    let _one = listen(sites, 1, group);
    let (two, three) = (listen(sites, 2, group), listen(sites, 3, group));
    wait_heard(&from, group, &[&two, &three]);
    let bytes = |site: usize| sites.stats(site).1.offered_bytes;
    let (away, before, back) = (
        sites.stats(1).0.offered_packets,
        [2, 3, 4].map(bytes),
        bytes(1),
    );
    // 1,200 bytes, 500 of them a second.
    const COUNT: usize = 2_000;
    let (sites_two, sites_three) = std::thread::scope(|scope| {
        let hear = |socket: &UdpSocket| {
            let mut seen = vec![false; COUNT];
            let mut bytes = [0; 2_000];
            let end = Instant::now() + Duration::from_secs(6);
            while Instant::now() < end {
                let Ok((length, source)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                assert_eq!(
                    (length, source),
                    (1_200, from.local_addr().unwrap()),
                    "the original source"
                );
                let number = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
                assert!(!std::mem::replace(&mut seen[number], true), "once each");
            }
            seen.iter().filter(|seen| **seen).count()
        };
        let (two, three) = (&two, &three);
        let hearing = (
            scope.spawn(move || hear(two)),
            scope.spawn(move || hear(three)),
        );
        let start = Instant::now();
        for number in 0..COUNT {
            let mut packet: [u8; 1_200] = noise();
            packet[..4].copy_from_slice(&(number as u32).to_be_bytes());
            from.send_to(&packet, (group, PORT)).unwrap();
            std::thread::sleep(
                (start + Duration::from_millis(2) * number as u32)
                    .saturating_duration_since(Instant::now()),
            );
        }
        (hearing.0.join().unwrap(), hearing.1.join().unwrap())
    });
    assert!(
        sites_two >= COUNT * 999 / 1_000 && sites_three >= COUNT * 999 / 1_000,
        "{sites_two} and {sites_three}"
    );
    let after = [2, 3, 4].map(bytes);
    let came: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    let ideal = (COUNT * 1_228) as u64;
    println!(
        "of {ideal} bytes in the LAN, to sites 2, 3 and 4: {came:?}; packets from site 1: {}",
        sites.stats(1).0.offered_packets - away
    );
    for bytes in &came[..2] {
        assert!(
            (ideal..ideal * 13 / 10).contains(bytes),
            "once, with headers and repairs: {bytes} of {ideal}"
        );
    }
    assert!(
        came[2] < 30_000,
        "a site without members gets nothing: {came:?}"
    );
    let back = bytes(1) - back;
    assert!(
        back < ideal / 10,
        "only acknowledgements come back: {back} bytes"
    );
    // The last member leaves.
    let left = Instant::now();
    drop(three);
    wait_for("the group to end at site 3", || {
        let before = bytes(3);
        for _ in 0..50 {
            from.send_to(&noise::<1_200>(), (group, PORT)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        bytes(3) - before < 5_000
    });
    let took = left.elapsed();
    println!("nothing goes to site 3 any more {took:?} after its last member left");
    assert!(took < Duration::from_secs(5), "{took:?}");
    wait_heard(&from, group, &[&two]);
}

/// Two boxes in one LAN of listeners, both with the sender's site as a peer: each packet comes
/// once, and when the box that brings it is gone the other does.
#[test]
fn two_tpos_of_one_lan_bring_a_group_once() {
    let mut mesh = mesh("rate=50mbit delay=5ms");
    mesh.wait_up();
    mesh.sites.join_lans(2, 3).unwrap();
    let group = IpAddr::from(V4);
    let from = sender(&mesh.sites, false, 8);
    let listeners = [2, 3].map(|site| listen(&mesh.sites, site, group));
    wait_heard(&from, group, &listeners.each_ref());
    // Which of them brings it is settled within some seconds.
    let asked = |mesh: &Mesh, site: usize| {
        mesh.ask(site, "status")["peers"][0]["groups_asked_there"].to_string()
    };
    wait_for("one of the two to leave it to the other", || {
        asked(&mesh, 2).contains("239.1.1.1") && !asked(&mesh, 3).contains("239.1.1.1")
    });
    let stream = |count: usize| {
        for _ in 0..count {
            from.send_to(&noise::<1_000>(), (group, PORT)).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        listeners.each_ref().map(drain)
    };
    let left = |site: usize| mesh.ask(site, "status")["peers"][0]["lans_left"].to_string();
    assert_eq!(
        (left(2), left(3)),
        ("[]".into(), r#"["lan0"]"#.into()),
        "status says so"
    );
    // What was under way when it was settled.
    stream(1);
    assert_eq!(stream(200), [200, 200], "once each");
    mesh.kill(2);
    let start = Instant::now();
    wait_for("the other one to bring it", || stream(10) == [10, 10]);
    println!(
        "{:?} after the end of one the other brings it",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    mesh.run(2);
    mesh.wait_up();
    wait_for("the first one to bring it again", || {
        asked(&mesh, 2).contains("239.1.1.1") && !asked(&mesh, 3).contains("239.1.1.1")
    });
    stream(1);
    assert_eq!(stream(200), [200, 200], "once each");
}

/// A hundred sites listen to one: each gets everything once, and what comes back is a small part of
/// what goes out.
#[test]
fn a_hundred_sites_hear_one_sender() {
    const SITES: usize = 101;
    const COUNT: usize = 500;
    let mesh = Mesh::start(&Plan {
        link: "rate=200mbit delay=10ms loss=0.5%",
        sites: SITES,
        joined: |one, other| one == 1 || other == 1,
        peer: |_, _| String::new(),
        calls: |_, peer| peer == 1,
        sections: |site| {
            let lan = "[multicast]\ninterfaces = [\"lan0\"]\n\n";
            if site > 1 {
                return format!(
                    "{lan}[[accept]]\npeer = \"s1\"\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"\n"
                );
            }
            let peers: Vec<String> = (2..=SITES).map(|peer| format!("\"s{peer}\"")).collect();
            let from =
                "protocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"";
            format!("{lan}[[rule]]\n{from}\npeer = [{}]\n", peers.join(", "))
        },
    });
    mesh.wait_up();
    let sites = &mesh.sites;
    let from = sender(sites, false, 8);
    let listeners: Vec<UdpSocket> = (2..=SITES)
        .map(|site| listen(sites, site, V4.into()))
        .collect();
    // There are many to look at, and what has come waits there.
    listeners.iter().for_each(|socket| {
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap()
    });
    wait_heard(&from, V4.into(), &listeners.iter().collect::<Vec<_>>());
    let before = sites.stats(1);
    let start = Instant::now();
    for number in 0..COUNT {
        let mut packet: [u8; 1_000] = noise();
        packet[..4].copy_from_slice(&(number as u32).to_be_bytes());
        from.send_to(&packet, (V4, PORT)).unwrap();
        let next = start + Duration::from_millis(20) * (number as u32 + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    std::thread::sleep(Duration::from_millis(500));
    let (away, back) = sites.stats(1);
    let (away, back) = (
        away.offered_bytes - before.0.offered_bytes,
        back.offered_bytes - before.1.offered_bytes,
    );
    let arrived: Vec<usize> = listeners
        .iter()
        .map(|socket| {
            let mut seen = vec![false; COUNT];
            let mut bytes = [0; 2_000];
            while let Ok((_, source)) = socket.recv_from(&mut bytes) {
                assert_eq!(source, from.local_addr().unwrap(), "the original source");
                let number = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
                assert!(!std::mem::replace(&mut seen[number], true), "once each");
            }
            seen.iter().filter(|seen| **seen).count()
        })
        .collect();
    let (all, least) = (arrived.iter().sum::<usize>(), arrived.iter().min().unwrap());
    println!(
        "{all} of {} arrive, at least {least} of {COUNT} at each; {away} bytes leave, {back} come back",
        COUNT * listeners.len()
    );
    assert!(
        all * 1_000 >= COUNT * listeners.len() * 999,
        "{all}: {arrived:?}"
    );
    // A packet each 20 ms is a lone one: most have a copy that is due a little later.
    assert!(
        away < (COUNT * listeners.len() * 1_028 * 2) as u64,
        "once to each, with headers, repairs and parity: {away}"
    );
    assert!(back < away / 10, "{back} bytes of feedback for {away}");
}

/// Sites 1, 3 and 4, which know only the hub; it has no LAN that takes part.
fn star() -> Mesh {
    const HUB: usize = 2;
    Mesh::start(&Plan {
        link: "rate=50mbit delay=5ms",
        sites: 4,
        joined: |one, other| one == HUB || other == HUB,
        peer: |_, _| String::new(),
        calls: |_, peer| peer == HUB,
        sections: |site| {
            match site {
            HUB => "[[accept]]\npeer = \"s1\"\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"\n\n\
                    [[rule]]\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"\npeer = [\"s3\", \"s4\"]\n\
                    transit = true\n"
                .into(),
            1 => "[multicast]\ninterfaces = [\"lan0\"]\n\n\
                  [[rule]]\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.0.0.0/8\"\npeer = \"s2\"\n"
                .into(),
            _ => "[multicast]\ninterfaces = [\"lan0\"]\n\n\
                  [[accept]]\npeer = \"s2\"\nprotocol = \"udp\"\nsource = \"10.10.0.0/16\"\ndestination = \"239.0.0.0/8\"\n"
                .into(),
        }
        },
    })
}

/// What the daemon at this site is asked for by its peers.
fn asked_of(mesh: &Mesh, site: usize) -> usize {
    let status = mesh.ask(site, "status");
    let peers = status["peers"].as_array().unwrap();
    peers
        .iter()
        .map(|peer| peer["groups_asked_here"].as_array().unwrap().len())
        .sum()
}

#[test]
fn a_group_passes_the_hub_to_those_who_listen() {
    let mesh = star();
    mesh.wait_up();
    let sites = &mesh.sites;
    let from = sender(sites, false, 8);
    let listener = listen(sites, 3, V4.into());
    wait_heard(&from, V4.into(), &[&listener]);
    let bytes = |site: usize| sites.stats(site).1.offered_bytes;
    let (sent, before) = (sites.stats(1).0.offered_bytes, [2, 3, 4].map(bytes));
    const COUNT: usize = 200;
    for number in 0..COUNT {
        let mut packet: [u8; 1_000] = noise();
        packet[..8].copy_from_slice(&(number as u64).to_be_bytes());
        from.send_to(&packet, (V4, PORT)).unwrap();
        let (length, source) = listener
            .recv_from(&mut [0; 2_000])
            .expect("it arrives, and none before it twice");
        assert_eq!(
            (length, source),
            (1_000, from.local_addr().unwrap()),
            "the original source"
        );
    }
    assert_eq!(drain(&listener), 0, "once each");
    let ideal = (COUNT * 1_028) as u64;
    let (sent, after) = (sites.stats(1).0.offered_bytes - sent, [2, 3, 4].map(bytes));
    let came: Vec<u64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    println!(
        "of {ideal} bytes in the LAN {sent} leave site 1, to the hub and to sites 3 and 4 come {came:?}"
    );
    // With what protects single messages against loss.
    assert!(
        sent < ideal * 5 / 2 && came[1] < ideal * 5 / 2,
        "one copy on each leg: {sent} and {came:?}"
    );
    assert!(came[2] < 20_000, "nobody listens at site 4: {came:?}");
    // The hub is a hop like the two at the ends.
    for (hops, arrives) in [(3, false), (4, true)] {
        from.set_multicast_ttl_v4(hops).unwrap();
        from.send_to(b"how far?", (V4, PORT)).unwrap();
        assert_eq!(
            listener.recv(&mut [0; 100]).is_ok(),
            arrives,
            "a hop limit of {hops}"
        );
    }
    from.set_multicast_ttl_v4(8).unwrap();
    let left = Instant::now();
    drop(listener);
    wait_for("nobody to ask any more", || {
        asked_of(&mesh, 1) + asked_of(&mesh, 2) == 0
    });
    println!(
        "site 1 is not asked any more {:?} after the last member left",
        left.elapsed()
    );
    assert!(
        left.elapsed() < Duration::from_secs(5),
        "{:?}",
        left.elapsed()
    );
    // A site that comes later is served too, and the others are as before.
    let later = listen(sites, 4, V4.into());
    wait_heard(&from, V4.into(), &[&later]);
}

/// Three hubs, each of both others: each site hears once what two ways could bring, and no hub goes
/// on asking for another one's listeners without end.
#[test]
fn hubs_in_a_ring_bring_nothing_twice() {
    let mesh = Mesh::start(&Plan {
        link: "rate=50mbit delay=5ms",
        sites: 3,
        joined: |_, _| true,
        peer: |_, _| String::new(),
        calls: |_, _| true,
        sections: |site| {
            let others = [site % 3 + 1, (site + 1) % 3 + 1];
            let accepts = others.map(|other| {
                format!("[[accept]]\npeer = \"s{other}\"\nprotocol = \"udp\"\nsource = \"10.10.0.0/16\"\ndestination = \"239.0.0.0/8\"\n\n")
            });
            format!(
                "[multicast]\ninterfaces = [\"lan0\"]\n\n[[rule]]\nprotocol = \"udp\"\nsource = \"10.10.0.0/16\"\n\
                 destination = \"239.0.0.0/8\"\npeer = [\"s{}\", \"s{}\"]\ntransit = true\n\n{}",
                others[0],
                others[1],
                accepts.concat()
            )
        },
    });
    mesh.wait_up();
    let sites = &mesh.sites;
    let from = sender(sites, false, 16);
    let listeners = [2, 3].map(|site| listen(sites, site, V4.into()));
    wait_heard(&from, V4.into(), &[&listeners[0], &listeners[1]]);
    for _ in 0..100 {
        from.send_to(&noise::<1_000>(), (V4, PORT)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(listeners.each_ref().map(drain), [100, 100], "once each");
    // One listener is left, then none: then nothing is asked for.
    let [two, three] = listeners;
    drop(two);
    wait_heard(&from, V4.into(), &[&three]);
    drop(three);
    wait_for("nobody to ask any more", || {
        (1..=3).all(|site| asked_of(&mesh, site) == 0)
    });
}

#[test]
fn a_group_of_ipv6_and_long_packets_cross() {
    let mesh = mesh("rate=50mbit delay=5ms");
    mesh.wait_up();
    let sites = &mesh.sites;
    for (group, source) in [
        (IpAddr::from(V4), Place::Host(1).v4()),
        (IpAddr::from(V6), Place::Host(1).v6()),
    ] {
        let from = sender(sites, group.is_ipv6(), 8);
        let listener = listen(sites, 2, group);
        wait_heard(&from, group, &[&listener]);
        for size in [0, 1, 1_400, 4_000, 20_000] {
            let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            from.send_to(&sent, (group, PORT)).unwrap();
            let mut came = vec![0; 65_536];
            let (length, seen) = listener
                .recv_from(&mut came)
                .unwrap_or_else(|error| panic!("{size} bytes to {group}: {error}"));
            assert_eq!((&came[..length], seen.ip()), (&sent[..], source));
        }
    }
}

/// An application on the TPO's own host, at both ends.
#[test]
fn the_hosts_of_the_tpos_take_part_in_groups() {
    let mesh = mesh("rate=50mbit delay=5ms");
    mesh.wait_up();
    let sites = &mesh.sites;
    let member = |place: Place| {
        let socket = sites.inside(place, || {
            let socket = UdpSocket::bind((V4, PORT)).unwrap();
            let IpAddr::V4(own) = place.v4() else {
                unreachable!("it was asked for")
            };
            socket.join_multicast_v4(&V4, &own).unwrap();
            socket
        });
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        socket
    };
    let listener = member(Place::Gateway(2));
    let outside = sender(sites, false, 8);
    wait_heard(&outside, V4.into(), &[&listener]);
    let own = sites.inside(Place::Gateway(1), || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket
            .bind(&SocketAddr::new(Place::Gateway(1).v4(), 0).into())
            .unwrap();
        let IpAddr::V4(at) = Place::Gateway(1).v4() else {
            unreachable!("it was asked for")
        };
        socket.set_multicast_if_v4(&at).unwrap();
        socket.set_multicast_ttl_v4(8).unwrap();
        UdpSocket::from(socket)
    });
    own.send_to(b"from the TPO's own host", (V4, PORT)).unwrap();
    let (length, from) = listener.recv_from(&mut [0; 100]).expect("it arrives");
    assert_eq!((length, from), (23, own.local_addr().unwrap()));
}

/// The tables that copy groups are removed from outside: they are there again soon.
#[test]
fn removed_tables_of_groups_are_restored() {
    let mesh = mesh("rate=50mbit delay=5ms");
    mesh.wait_up();
    let sites = &mesh.sites;
    let from = sender(sites, false, 8);
    let listener = listen(sites, 2, V4.into());
    wait_heard(&from, V4.into(), &[&listener]);
    assert!(
        sites
            .command(Place::Gateway(1), "nft")
            .args(["delete", "table", "ip", "tpo"])
            .status()
            .unwrap()
            .success()
    );
    wait_heard(&from, V4.into(), &[&listener]);
}

#[test]
fn hop_limits_pins_and_foreign_groups_are_respected() {
    let mesh = mesh("rate=50mbit delay=5ms");
    mesh.wait_up();
    let sites = &mesh.sites;
    let from = sender(sites, false, 3);
    let listener = listen(sites, 2, V4.into());
    wait_heard(&from, V4.into(), &[&listener]);
    for (hops, arrives) in [(1, false), (2, false), (3, true)] {
        from.set_multicast_ttl_v4(hops).unwrap();
        from.send_to(b"how far?", (V4, PORT)).unwrap();
        assert_eq!(
            listener.recv(&mut [0; 100]).is_ok(),
            arrives,
            "a hop limit of {hops}"
        );
    }
    from.set_multicast_ttl_v4(8).unwrap();
    let bytes = |site: usize| sites.stats(site).1.offered_bytes;
    let send = |group: Ipv4Addr| {
        let before = [2, 3, 4].map(bytes);
        for _ in 0..100 {
            from.send_to(&noise::<1_000>(), (group, PORT)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(100));
        [0, 1, 2].map(|at| bytes(at + 2) - before[at] > 90_000)
    };
    // Asked for by site 3, where nobody listens.
    assert_eq!(send(PINNED), [false, true, false]);
    // No accept lets it come, whoever listens.
    let _listener = listen(sites, 4, [239, 9, 9, 9].into());
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(send([239, 9, 9, 9].into()), [false; 3]);
}
