//! Shares: what one peer, or one LAN, takes of descriptors and memory is not another's, and where
//! there is no room left connections take their plain way before any is accepted and reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tpo_lab::{Host, Place};

use crate::mesh::{Mesh, PORT, Plan, rules_and_accepts};
use crate::site::{Options, Pair, SOON, V4, accept, wait_for};

/// Few enough for a test: 160 of them are for flows, the lease goes with 120 and comes back below
/// 100.
const FILES: u32 = 300;
const WAN: &str = "rate=200mbit delay=5ms";

const UDP_RULE: &str = "
[[rule]]
protocol = \"udp\"
source = \"10.10.1.0/24\"
destination = \"10.10.2.0/24\"
peer = \"b\"
";
const UDP_ACCEPT: &str = "
[[accept]]
peer = \"a\"
protocol = \"udp\"
source = \"10.10.1.0/24\"
destination = \"10.10.2.0/24\"
";

/// What became of connections that were opened one after the other.
#[derive(Default)]
struct Opened {
    /// Both ends of those that work.
    work: Vec<(TcpStream, TcpStream)>,
    refused: usize,
    reset: usize,
}

/// Opens `count` connections, each with a byte that has to arrive.
fn open(pair: &Pair, listener: &TcpListener, count: usize) -> Opened {
    let mut opened = Opened::default();
    for _ in 0..count {
        match pair.try_connect(listener.local_addr().unwrap()) {
            Ok(client) if (&client).write_all(b"x").is_ok() => match arrived(listener, &client) {
                Some(server) => opened.work.push((client, server)),
                None => opened.reset += 1,
            },
            Ok(_) => opened.reset += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => opened.refused += 1,
            Err(error) => panic!("{error}\n{}", pair.logs()),
        }
    }
    opened
}

/// The server's end, or none when the client's is reset.
fn arrived(listener: &TcpListener, client: &TcpStream) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let start = Instant::now();
    loop {
        if let Ok((mut server, from)) = listener.accept() {
            server.set_nonblocking(false).unwrap();
            server.set_read_timeout(Some(SOON)).unwrap();
            if from != client.local_addr().unwrap() {
                // The server's end of one that was reset.
                continue;
            }
            server.read_exact(&mut [0]).ok()?;
            client.set_nonblocking(false).unwrap();
            return Some(server);
        }
        match client.peek(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return None,
        }
        assert!(start.elapsed() < SOON, "neither arrived nor reset");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn lease(pair: &Pair) -> serde_json::Value {
    pair.status(Host::A)["intercept"]["leases"][0].clone()
}

fn streams(pair: &Pair) -> usize {
    pair.flows(Host::A)
        .iter()
        .filter(|flow| flow["protocol"] == 6)
        .count()
}

fn carries_udp(pair: &Pair) -> bool {
    let server = pair
        .lab
        .inside(Host::Server, || UdpSocket::bind((V4, 0)).unwrap());
    let client = pair
        .lab
        .inside(Host::Client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    server.set_read_timeout(Some(SOON)).unwrap();
    client
        .send_to(b"datagram", server.local_addr().unwrap())
        .unwrap();
    server
        .recv_from(&mut [0; 100])
        .expect("the datagram arrives");
    let port = client.local_addr().unwrap().port();
    let own = |flow: &serde_json::Value| {
        flow["client"]
            .as_str()
            .is_some_and(|at| at.ends_with(&format!(":{port}")))
    };
    pair.flows(Host::A)
        .iter()
        .any(|flow| flow["protocol"] == 17 && own(flow))
}

#[test]
fn without_descriptors_connections_take_their_plain_way_and_come_back() {
    let pair = Pair::start(&Options {
        wan: WAN,
        files: [Some(FILES), None],
        sections: [UDP_RULE, UDP_ACCEPT],
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let mut opened = open(&pair, &listener, 300);
    assert_eq!(
        (opened.work.len(), opened.refused, opened.reset),
        (300, 0, 0),
        "each connection works\n{}",
        pair.logs()
    );
    let carried = streams(&pair);
    assert!(
        (100..=160).contains(&carried),
        "{carried} of them are carried"
    );
    let shown = lease(&pair);
    assert_eq!(shown["held"], false, "{shown}");
    assert!(
        shown["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("descriptors")),
        "{shown}"
    );
    assert!(carries_udp(&pair), "packets need no descriptors");
    // Those that were carried go on, and when some of them have ended there is room again.
    for (client, server) in &mut opened.work {
        client.write_all(b"y").unwrap();
        server.read_exact(&mut [0]).unwrap();
    }
    opened.work.drain(..60);
    wait_for("the lease", || lease(&pair)["held"] == true);
    let before = streams(&pair);
    let more = open(&pair, &listener, 3);
    assert_eq!(
        (more.work.len(), streams(&pair)),
        (3, before + 3),
        "carried again\n{}",
        pair.logs()
    );
    let times = pair
        .logs()
        .matches("no room: its flows use nearly its whole share")
        .count();
    assert!(
        (1..=3).contains(&times),
        "told {times} times, not once for each connection\n{}",
        pair.logs()
    );
}

#[test]
fn without_descriptors_a_closed_rule_refuses() {
    let pair = Pair::start(&Options {
        wan: WAN,
        rule: "on_failure = \"closed\"",
        files: [Some(FILES), None],
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let opened = open(&pair, &listener, 320);
    assert_eq!(
        opened.reset,
        0,
        "none is accepted and then reset\n{}",
        pair.logs()
    );
    assert_eq!(
        opened.work.len(),
        streams(&pair),
        "all that work are carried"
    );
    assert!(
        opened.work.len() >= 100 && opened.refused >= 150,
        "{} work, {} refused",
        opened.work.len(),
        opened.refused
    );
}

#[test]
fn what_the_far_side_has_no_room_for_takes_its_plain_way() {
    let pair = Pair::start(&Options {
        wan: WAN,
        files: [None, Some(FILES)],
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let opened = open(&pair, &listener, 250);
    // One of each try, a second, two, four apart.
    assert!(
        opened.reset <= 5,
        "{} were reset\n{}",
        opened.reset,
        pair.logs()
    );
    assert_eq!(opened.work.len() + opened.reset, 250);
    let carried = streams(&pair);
    assert!(
        (60..=120).contains(&carried),
        "{carried} of them are carried"
    );
}

/// A download of `bytes` bytes from a server that sends as long as it can. Both ends are kept.
fn download(pair: &Pair, listener: &TcpListener, bytes: usize) -> (TcpStream, TcpStream, Duration) {
    let start = Instant::now();
    let (mut client, server) = pair.joined(listener);
    server
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut sender = server.try_clone().unwrap();
    // Ends when the reading end is gone.
    std::thread::spawn(move || while sender.write_all(&[7; 1 << 16]).is_ok() {});
    let mut left = bytes;
    let mut chunk = vec![0; 1 << 16];
    while left > 0 {
        let most = left.min(chunk.len());
        match client.read(&mut chunk[..most]) {
            Ok(read @ 1..) => left -= read,
            other => panic!(
                "{left} of {bytes} bytes before the end: {other:?}\n{}",
                pair.logs()
            ),
        }
    }
    (client, server, start.elapsed())
}

#[test]
fn thirty_stopped_downloads_leave_the_others_their_rate() {
    const STOPPED: usize = 30;
    const BYTES: usize = 30_000_000;
    let pair = Pair::start(&Options {
        wan: "rate=200mbit delay=10ms",
        tpo: "memory = \"64MiB\"",
        peer: "compress = \"off\"",
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let measure = || {
        (0..3)
            .map(|_| download(&pair, &listener, BYTES).2)
            .min()
            .unwrap()
    };
    let alone = measure();
    let mut stopped: Vec<_> = (0..STOPPED)
        .map(|_| download(&pair, &listener, 4_000_000))
        .collect();
    let waits = |pair: &Pair| {
        let flows = pair.flows(Host::A);
        flows
            .iter()
            .filter(|flow| {
                flow["waiting"]
                    .as_u64()
                    .is_some_and(|bytes| bytes > 100_000)
            })
            .count()
    };
    assert!(
        waits(&pair) >= STOPPED - 2,
        "they wait at the near side: {:?}",
        pair.flows(Host::A)
    );
    let beside = measure();
    println!(
        "alone {alone:?}, beside {STOPPED} stopped ones {beside:?}; memory {}",
        pair.status(Host::A)["memory"]
    );
    // One at a time has the link; the kernel's buffers and two busy cores are some of the
    // difference.
    assert!(
        beside < alone * 3 / 2,
        "alone {alone:?}, beside {STOPPED} stopped ones {beside:?}"
    );
    // None of them was reset: they go on where they stopped.
    for (client, ..) in &mut stopped {
        client
            .read_exact(&mut vec![0; 1_000_000])
            .unwrap_or_else(|error| panic!("{error}\n{}", pair.logs()));
    }
}

/// Site 1 is the exit of two peers, and may have few descriptors: 872 are for flows, 218 of its own
/// for each peer; 164 half-open connects at most for one.
fn two_peers() -> Mesh {
    Mesh::start_with(
        &Plan {
            link: WAN,
            sites: 3,
            joined: |one, other| one == 1 || other == 1,
            peer: |_, _| String::new(),
            calls: |_, _| true,
            sections: |site| match site {
                1 => rules_and_accepts(1, 2, 2) + &rules_and_accepts(1, 3, 3),
                _ => rules_and_accepts(site, 1, 1),
            },
        },
        Some((1, 1_024)),
    )
}

fn listen(mesh: &Mesh) -> TcpListener {
    mesh.sites.inside(Place::Host(1), || {
        TcpListener::bind((Place::Host(1).v4(), PORT)).unwrap()
    })
}

/// A connection with a byte that arrives.
fn try_one(
    mesh: &Mesh,
    from: usize,
    listener: &TcpListener,
) -> std::io::Result<(TcpStream, TcpStream)> {
    let to = listener.local_addr().unwrap();
    let mut client = mesh
        .sites
        .inside(Place::Host(from), || TcpStream::connect_timeout(&to, SOON))?;
    client.write_all(b"x")?;
    client.set_read_timeout(Some(SOON))?;
    let own = client.local_addr()?;
    loop {
        let (mut server, from) = accept(listener);
        if from == own {
            server.read_exact(&mut [0])?;
            return Ok((client, server));
        }
    }
}

/// Connects without an answer at the first gateway. `ss` walks the sockets while the daemon closes
/// and opens some, and may count both the old and the new ones: only what it says twice is true of
/// one moment.
fn half_open(mesh: &Mesh) -> usize {
    let count = || {
        let output = mesh
            .sites
            .command(Place::Gateway(1), "ss")
            .args(["-Htn", "state", "syn-sent"])
            .output()
            .unwrap();
        let mut sockets: Vec<_> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        sockets.sort();
        sockets
    };
    let mut before = count();
    loop {
        let now = count();
        if now == before {
            return now.len();
        }
        before = now;
    }
}

#[test]
fn a_peer_that_calls_where_nobody_answers_keeps_no_other_from_connecting() {
    let mesh = two_peers();
    // Frames for it go to nobody.
    let neighbour = [
        "neigh",
        "add",
        "10.10.1.99",
        "lladdr",
        "02:00:00:00:00:99",
        "dev",
        "lan0",
        "nud",
        "permanent",
    ];
    assert!(
        mesh.sites
            .command(Place::Gateway(1), "ip")
            .args(neighbour)
            .status()
            .unwrap()
            .success()
    );
    mesh.wait_up();
    let listener = listen(&mesh);
    let nowhere: SocketAddr = "10.10.1.99:80".parse().unwrap();
    let mut calls = Vec::new();
    let mut most = 0;
    for round in 0..15 {
        mesh.sites.inside(Place::Host(2), || {
            for _ in 0..100 {
                calls
                    .push(TcpStream::connect_timeout(&nowhere, SOON).expect("its own TPO answers"));
            }
        });
        most = most.max(half_open(&mesh));
        for from in [2, 3] {
            let joined = try_one(&mesh, from, &listener);
            assert!(
                joined.is_ok(),
                "round {round}, site {from}: {joined:?}\n{}",
                mesh.logs()
            );
        }
    }
    assert!(
        (100..=164).contains(&most),
        "{most} connects without an answer at a time"
    );
    let status = mesh.ask(1, "status");
    let peers = status["peers"].as_array().unwrap();
    let given_up = |name: &str| {
        let peer = peers.iter().find(|peer| peer["name"] == name).unwrap();
        peer["drops"]["connects given up"].as_u64().unwrap_or(0)
    };
    assert!(
        given_up("s2") > 1_000 && given_up("s3") == 0,
        "{} and {}",
        given_up("s2"),
        given_up("s3")
    );
}

#[test]
fn a_peer_that_holds_many_connections_leaves_the_others_their_part() {
    let mesh = two_peers();
    mesh.wait_up();
    let listener = listen(&mesh);
    let mut held = Vec::new();
    let mut reset = 0;
    for _ in 0..900 {
        match try_connect_or_reset(&mesh, 2, &listener) {
            Some(both) => held.push(both),
            None => reset += 1,
        }
    }
    // The exit refuses what is beyond the peer's share, whereupon its connections take their plain
    // way.
    assert!(reset <= 8, "{reset} were reset\n{}", mesh.logs());
    let others: Vec<_> = (0..150)
        .map(|_| try_one(&mesh, 3, &listener).expect("the other peer has its part"))
        .collect();
    let flows = mesh.ask(3, "flows").as_array().unwrap().len();
    assert_eq!(
        (others.len(), flows),
        (150, 150),
        "all of them are carried\n{}",
        mesh.logs()
    );
}

fn try_connect_or_reset(
    mesh: &Mesh,
    from: usize,
    listener: &TcpListener,
) -> Option<(TcpStream, TcpStream)> {
    let to = listener.local_addr().unwrap();
    let client = mesh
        .sites
        .inside(Place::Host(from), || TcpStream::connect_timeout(&to, SOON))
        .ok()?;
    (&client).write_all(b"x").ok()?;
    let server = arrived(listener, &client)?;
    Some((client, server))
}
