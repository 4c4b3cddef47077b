//! Strangers: hosts of the LAN and of the WAN that know addresses and ports of the tunnel, perhaps
//! both public keys, and no private one.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::Host;

use crate::site::{Options, Pair, V4, accept, exchange, wait_for};

const PORT: u16 = 47_800;
const LAN_OF_A: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
const WAN_OF_A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const WAN_OF_B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);

/// The Internet carries no addresses of LANs: what the tunnel sends from one of them is lost.
const NO_LAN_ON_THE_WAN: &[&[&str]] = &[&[
    "nft",
    "add table ip wan; \
     add chain ip wan in { type filter hook prerouting priority -400; policy accept; }; \
     add rule ip wan in iifname wan0 udp dport 47800 ip saddr 10.10.0.0/16 counter drop; \
     add rule ip wan in iifname wan0 udp sport 47800 ip saddr 10.10.0.0/16 counter drop",
]];

/// A host that writes IP packets as it likes.
struct Forger(Socket);

impl Forger {
    fn at(pair: &Pair, host: Host) -> Forger {
        let socket = pair.lab.inside(host, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap()
        });
        socket.set_header_included_v4(true).unwrap();
        socket.set_send_buffer_size(1 << 20).unwrap();
        Forger(socket)
    }

    /// A packet with this payload; what does not fit into a queue is lost, as on any network.
    fn send(&self, protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) {
        let packet = ip(protocol, from, to, payload);
        let _ = self
            .0
            .send_to(&packet, &SocketAddr::from(SocketAddrV4::new(to, 0)).into());
    }

    fn send_udp(&self, from: Ipv4Addr, to: Ipv4Addr, datagram: &[u8]) {
        self.send(17, from, to, &udp(datagram));
    }
}

/// Header and payload; the kernel fills in the checksum and the identification.
fn ip(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend_from_slice(payload);
    packet
}

/// From the tunnel's port to the tunnel's port, without a checksum, which IPv4 leaves to the
/// sender.
fn udp(datagram: &[u8]) -> Vec<u8> {
    let length = 8 + datagram.len() as u16;
    let mut packet = [
        PORT.to_be_bytes(),
        PORT.to_be_bytes(),
        length.to_be_bytes(),
        [0; 2],
    ]
    .concat();
    packet.extend_from_slice(datagram);
    packet
}

/// An ICMP error of this kind about a datagram of A to B that began so.
fn icmp(kind: [u8; 2], rest: [u8; 4], began: &[u8]) -> Vec<u8> {
    let quoted = ip(17, WAN_OF_A, WAN_OF_B, &udp(began));
    let mut message = [&[kind[0], kind[1], 0, 0], &rest[..], &quoted].concat();
    let sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// A datagram of each kind that can be made without any key; `round` makes them differ.
fn forgeries(round: u32) -> Vec<Vec<u8>> {
    let mut dice = fastrand::Rng::with_seed(round.into());
    let mut noise = |first: &[u8], length: usize| {
        let mut datagram: Vec<u8> = (0..length).map(|_| dice.u8(..)).collect();
        datagram[..first.len()].copy_from_slice(first);
        datagram
    };
    let low = round.to_be_bytes();
    vec![
        // Handshake fragment and retry of nobody.
        noise(&[0x10, 1], 1_200),
        noise(&[0x20, 1], 53),
        // Session datagrams of the first peer, of another one, and of no slot.
        noise(&[0x40, 0, low[2] & 0x0f, low[3]], 200),
        noise(&[0x40, 0, low[2] & 0x0f, low[3]], 24),
        noise(&[0x4f, 0, 0x10 | low[2] & 0x0f, low[3]], 24),
        noise(&[0x45], 1_400),
        noise(&[], 40),
    ]
}

/// What B has said to A in handshakes, heard at A's WAN interface: anybody on the path may have it,
/// and it passes every test but that of a private key.
fn recorded_calls(pair: &mut Pair) -> Vec<Vec<u8>> {
    let all = Protocol::from(i32::from(3u16.to_be()));
    let mut wire = pair.lab.inside(Host::A, || {
        Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap()
    });
    wire.set_nonblocking(true).unwrap();
    pair.run(Host::B);
    let mut calls = Vec::new();
    wait_for("calls of B", || {
        let mut packet = [0; 2_048];
        while let Ok(length) = wire.read(&mut packet) {
            if length > 28
                && packet[9] == 17
                && packet[12..16] == WAN_OF_B.octets()
                && packet[28] == 0x10
            {
                calls.push(packet[28..length].to_vec());
            }
        }
        calls.len() >= 2
    });
    pair.kill(Host::B);
    calls
}

/// Runs `attack` in two threads until `meanwhile` is over; each call of it is one round.
fn under_attack(attack: impl Fn(u32) + Sync, meanwhile: impl FnOnce()) {
    let over = AtomicBool::new(false);
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (attack, over) = (&attack, &over);
            scope.spawn(move || {
                (first..)
                    .step_by(2)
                    .take_while(|_| !over.load(Ordering::Relaxed))
                    .for_each(attack);
            });
        }
        let _end = End(&over);
        meanwhile();
    });
}

#[test]
fn forged_datagrams_of_every_kind_keep_no_tunnel_from_coming_up() {
    // With B's calls there are datagrams with a right guard; without them A's own attempt must find
    // its way.
    for endpoints in [["10.9.0.2:47800", "10.9.0.1:47800"], ["10.9.0.2:47800", ""]] {
        let mut pair = Pair::new(&Options {
            endpoints,
            prepare: NO_LAN_ON_THE_WAN,
            ..Options::default()
        });
        let calls = if endpoints[1].is_empty() {
            Vec::new()
        } else {
            recorded_calls(&mut pair)
        };
        comes_up_among_forgeries(pair, &calls);
    }
}

fn comes_up_among_forgeries(mut pair: Pair, calls: &[Vec<u8>]) {
    let forger = Forger::at(&pair, Host::Client);
    let listener = pair.listen(V4);
    let attack = |round: u32| {
        // The last word is always one at the wrong address.
        for to in [WAN_OF_A, LAN_OF_A] {
            // One that has a right guard, and one that names the right pair of keys.
            if round.is_multiple_of(16) && !calls.is_empty() {
                let call = &calls[round as usize / 16 % calls.len()];
                forger.send_udp(WAN_OF_B, to, call);
                let mut damaged = call.clone();
                damaged[100] ^= 1;
                forger.send_udp(WAN_OF_B, to, &damaged);
            }
            for from in [WAN_OF_B, CLIENT] {
                for datagram in forgeries(round) {
                    forger.send_udp(from, to, &datagram);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    under_attack(attack, || {
        // It has begun before anybody runs.
        std::thread::sleep(Duration::from_millis(200));
        pair.run(Host::A);
        std::thread::sleep(Duration::from_millis(500));
        pair.run(Host::B);
        pair.wait_up();
        let (client, server) = pair.joined(&listener);
        exchange(&client, &server, 1, 200_000);
        // The session is lost at one side, then at the other.
        for (seed, host) in [(2, Host::A), (3, Host::B)] {
            pair.kill(host);
            std::thread::sleep(Duration::from_millis(300));
            pair.run(host);
            pair.wait_up();
            let (client, server) = pair.joined(&listener);
            exchange(&client, &server, seed, 200_000);
        }
    });
}

#[test]
fn forged_icmp_errors_end_no_session_and_shrink_no_datagram() {
    // Many probes are lost, so that a hint which is not examined is believed soon.
    let wan = "rate=200mbit delay=20ms loss=5%";
    let pair = Pair::start(&Options {
        wan,
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server, 1, 3_000_000);
    let peer = |pair: &Pair| pair.status(Host::A)["peers"][0].clone();
    let segment = || peer(&pair)["segment"].as_u64().unwrap();
    wait_for("the path to be measured", || segment() > 1_300);
    let (before, size) = (peer(&pair), segment());
    let forger = Forger::at(&pair, Host::Client);
    let attack = |round: u32| {
        let mut dice = fastrand::Rng::with_seed(round.into());
        for _ in 0..16 {
            // As if of the session: only index, number and sealed bytes are guessed.
            let mut began: Vec<u8> = (0..64).map(|_| dice.u8(..)).collect();
            began[0] = 0x40;
            for (kind, rest) in [([3, 3], [0; 4]), ([3, 4], [0, 0, 2, 64]), ([3, 1], [0; 4])] {
                forger.send(1, CLIENT, LAN_OF_A, &icmp(kind, rest, &began));
                forger.send(1, WAN_OF_B, WAN_OF_A, &icmp(kind, rest, &began));
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    under_attack(attack, || {
        let end = Instant::now() + Duration::from_secs(4);
        for seed in 2.. {
            exchange(&client, &server, seed, 100_000);
            exchange(&server, &client, seed, 100_000);
            if Instant::now() > end {
                break;
            }
        }
        assert!(segment() >= size, "{} instead of {size}", segment());
    });
    let after = peer(&pair);
    for what in ["completed", "failed"] {
        assert_eq!(
            after["handshake"][what], before["handshake"][what],
            "the session is the same: {after}"
        );
    }
    assert!(
        after["drops"]["icmp unproved"].as_u64() > Some(1_000),
        "they were heard, and counted: {after}"
    );
    let logs = pair.logs();
    assert!(
        !logs.contains("peer silent") && !logs.contains("peer gone"),
        "{logs}"
    );
}

#[test]
fn noise_at_the_port_resets_no_connection() {
    const CONNECTIONS: usize = 200;
    let mut pair = Pair::new(&Options::default());
    // These cost the most: their guard is right.
    let calls = recorded_calls(&mut pair);
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    let pair = pair;
    let listener = pair.listen(V4);
    let strangers = |kind: &str| {
        pair.status(Host::A)["strangers"][kind]
            .as_u64()
            .unwrap_or(0)
    };
    // By segmentation offload one system call sends a whole batch, as an attacker's fast machine
    // would.
    let socket = |segment: u16| {
        let socket = pair
            .lab
            .inside(Host::Client, || UdpSocket::bind((CLIENT, 0)).unwrap());
        tpo_lab::set_udp_segment(&socket, segment).unwrap();
        socket.connect((LAN_OF_A, PORT)).unwrap();
        socket
    };
    let all = |round, length: usize| {
        forgeries(round)
            .into_iter()
            .filter(move |noise| noise.len() == length)
    };
    let batch = |length: usize, more: &[Vec<u8>]| {
        let mut kinds = (0..).flat_map(|round| all(round, length).chain(more.to_vec()));
        (
            socket(length as u16),
            kinds
                .by_ref()
                .take(60_000 / length.max(1_000))
                .flatten()
                .collect::<Vec<u8>>(),
        )
    };
    let calls: Vec<Vec<u8>> = calls
        .into_iter()
        .filter(|call| call.len() == 1_200)
        .collect();
    assert!(!calls.is_empty(), "first flights are padded to this length");
    let batches = [
        batch(24, &[]),
        batch(40, &[]),
        batch(200, &[]),
        batch(1_200, &calls),
    ];
    let attack = |_| {
        for (socket, batch) in &batches {
            // What does not fit into a queue is lost, as on any network.
            let _ = socket.send(batch);
        }
    };
    under_attack(attack, || {
        wait_for("the noise to be heard", || {
            let kinds = pair.status(Host::A)["strangers"].clone();
            kinds
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(_, count)| count.as_u64())
                .sum::<u64>()
                > 10_000
        });
        let to = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..CONNECTIONS / 8)
                            .map(|_| pair.connect(to))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let servers: Vec<_> = (0..CONNECTIONS).map(|_| accept(&listener)).collect();
            for client in clients
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
            {
                let from = client.local_addr().unwrap();
                let (server, _) = servers
                    .iter()
                    .find(|(_, peer)| *peer == from)
                    .expect("each arrives as itself");
                exchange(&client, server, u64::from(from.port()), 1_000);
                exchange(server, &client, u64::from(from.port()), 1_000);
            }
        });
    });
    let status = pair.status(Host::A);
    for kind in [
        "noise",
        "unknown session",
        "other keys",
        "too many handshakes",
    ] {
        assert!(strangers(kind) > 1_000, "{kind}: {status}");
    }
    assert!(
        status["passed"]
            .as_array()
            .unwrap()
            .iter()
            .all(|passed| passed["reason"] != "flow limit"),
        "{status}"
    );
    assert_eq!(
        status["peers"][0]["handshake"]["completed"], 1,
        "the session did not notice: {status}"
    );
}

#[test]
fn status_believes_no_stranger() {
    for (endpoint, expected) in [("10.9.0.2:47800", true), ("", false)] {
        let mut pair = Pair::new(&Options {
            endpoints: [endpoint, "10.9.0.1:47800"],
            ..Options::default()
        });
        pair.run(Host::A);
        wait_for("the daemon", || pair.answers(Host::A));
        let reason = |pair: &Pair| {
            pair.status(Host::A)["peers"][0]["reason"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let heard = |count| {
            wait_for("the datagram", || {
                pair.status(Host::A)["strangers"]["other keys"]
                    .as_u64()
                    .unwrap_or(0)
                    >= count
            });
        };
        let mut foreign = vec![7; 1_200];
        foreign[..2].copy_from_slice(&[0x10, 1]);
        // Of a host of the LAN: only a peer that may call from anywhere could be it.
        Forger::at(&pair, Host::Client).send_udp(CLIENT, LAN_OF_A, &foreign);
        heard(1);
        let said = reason(&pair);
        assert_eq!(
            said.contains("came from 10.10.1.2:47800"),
            !expected,
            "{said}"
        );
        assert_eq!(
            said.contains("compare the public keys"),
            !expected,
            "{said}"
        );
        // From where the peer is expected.
        Forger::at(&pair, Host::B).send_udp(WAN_OF_B, WAN_OF_A, &foreign);
        heard(2);
        let said = reason(&pair);
        assert!(
            said.contains("came from 10.9.0.2:47800 ") && said.contains(" s ago"),
            "{said}"
        );
        assert!(
            said.contains("compare the public keys") && said.contains("anybody can send one"),
            "{said}"
        );
        // Floods make one line of the log.
        for _ in 0..1_000 {
            Forger::at(&pair, Host::Client).send_udp(CLIENT, LAN_OF_A, &foreign);
        }
        heard(500);
        assert_eq!(
            pair.logs().matches("for other keys").count(),
            1,
            "{}",
            pair.logs()
        );
        pair.run(Host::B);
        pair.wait_up();
        assert_eq!(reason(&pair), "");
    }
}
