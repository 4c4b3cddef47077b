//! What a peer may reach, and who it may be: each refusal beside the same thing granted, so that
//! none of them holds for want of trying.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::Host;
use tpo_mover::Identity;

use crate::liar::{DATA, Liar, TIMELY, icmp, plain, whole};
use crate::site::{Options, Pair, wait_for};

/// B grants UDP, ICMP and TCP towards its LAN, and everything towards "any" to the clients of
/// 10.10.8.0/24.
const ACCEPTS: &str = r#"
[[accept]]
peer = "a"
protocol = "udp"
destination = "10.10.2.0/24"

[[accept]]
peer = "a"
protocol = "icmp"
destination = "10.10.2.0/24"

[[accept]]
peer = "a"
source = "any"
destination = "any"

[[accept]]
peer = "a"
protocol = "udp"
source = "10.10.8.0/24"
destination = "any"
"#;

fn pair() -> Pair {
    let mut pair = Pair::new(&Options {
        accept: "destination_ports = 5300",
        peer: "compress = \"off\"",
        sections: ["", ACCEPTS],
        ..Options::default()
    });
    pair.run(Host::B);
    pair
}

fn drops(pair: &Pair, kind: &str) -> u64 {
    pair.status(Host::B)["peers"][0]["drops"][kind]
        .as_u64()
        .unwrap_or(0)
}

fn is_called(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_ok()
}

fn tcp(pair: &Pair, host: Host, at: &str) -> TcpListener {
    pair.lab.inside(host, || TcpListener::bind(at)).unwrap()
}

fn udp(pair: &Pair, host: Host, at: &str) -> UdpSocket {
    let socket = pair.lab.inside(host, || UdpSocket::bind(at)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket
}

fn hears(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = [0; 2_000];
    socket
        .recv(&mut bytes)
        .ok()
        .map(|length| bytes[..length].to_vec())
}

/// A server that would answer for TCP whatever protocol a stream names.
#[test]
fn an_accept_for_icmp_gives_no_tcp() {
    let pair = pair();
    let mut liar = Liar::instead_of_a(&pair);
    let listener = tcp(&pair, Host::Server, "10.10.2.2:5300");
    for protocol in [1, 17, 47, 0] {
        liar.open(
            DATA,
            protocol,
            "10.10.1.2:4000",
            "10.10.2.2:5300",
            b"let me in",
        );
    }
    liar.listen(Duration::from_millis(500));
    assert!(
        !is_called(&listener),
        "a stream that is not TCP was connected\n{}",
        pair.logs()
    );
    wait_for("four to be counted", || {
        drops(&pair, "flows of a wrong protocol") == 4
    });
    liar.open(
        TIMELY,
        6,
        "10.10.1.2:4000",
        "10.10.2.2:5300",
        &whole(6, "10.10.1.2", "10.10.2.2", &[0; 40]),
    );
    wait_for("packets of TCP to be counted", || {
        drops(&pair, "flows of a wrong protocol") == 5
    });
    // The same as a stream of TCP.
    liar.open(DATA, 6, "10.10.1.2:4001", "10.10.2.2:5300", b"good morning");
    liar.listen(Duration::from_millis(500));
    assert!(is_called(&listener), "{}", pair.logs());
}

/// With "any" at both ends of an accept: services of B itself hear nothing, in whatever form they
/// are called.
#[test]
fn the_far_gateway_is_not_reached_by_any_name_of_its_own() {
    let pair = pair();
    let mut liar = Liar::instead_of_a(&pair);
    let own = [
        tcp(&pair, Host::B, "127.0.0.1:5400"),
        tcp(&pair, Host::B, "[::1]:5400"),
        tcp(&pair, Host::B, "10.10.2.1:5400"),
        tcp(&pair, Host::B, "10.9.0.2:5400"),
        tcp(&pair, Host::B, "[fd10:2::1]:5400"),
    ];
    for (source, destination) in [
        ("[::ffff:127.0.0.1]:4000", "[::ffff:127.0.0.1]:5400"),
        ("[::ffff:10.10.1.2]:4000", "[::ffff:10.10.2.1]:5400"),
        ("[fd10:1::2]:4000", "[::ffff:127.0.0.1]:5400"),
        ("[::127.0.0.1]:4000", "[::127.0.0.1]:5400"),
        ("10.10.1.2:4000", "127.0.0.1:5400"),
        ("10.10.1.2:4000", "10.10.2.1:5400"),
        ("10.10.1.2:4000", "10.9.0.2:5400"),
        ("127.0.0.1:4000", "10.10.2.1:5400"),
        ("[fd10:1::2]:4000", "[::1]:5400"),
        ("[fd10:1::2]:4000", "[fd10:2::1]:5400"),
    ] {
        liar.open(DATA, 6, source, destination, b"it is me");
    }
    liar.listen(Duration::from_millis(500));
    for listener in &own {
        assert!(!is_called(listener), "{listener:?}\n{}", pair.logs());
    }
    assert_eq!(drops(&pair, "addresses in a wrong form"), 4);
    // A host of the LAN is reached by the same accept.
    let server = tcp(&pair, Host::Server, "10.10.2.2:5400");
    liar.open(DATA, 6, "10.10.1.2:4001", "10.10.2.2:5400", b"good morning");
    liar.listen(Duration::from_millis(500));
    assert!(is_called(&server), "{}", pair.logs());
    // Nor is one of its services by a source that only it has, or that is no host: B's own address,
    // as its kernel would take it for its own.
    for source in [
        "10.10.2.1:4002",
        "127.0.0.1:4002",
        "169.254.7.7:4002",
        "224.0.0.9:4002",
    ] {
        liar.open(DATA, 6, source, "10.10.2.2:5400", b"it is me");
    }
    liar.listen(Duration::from_millis(500));
    assert!(!is_called(&server));
}

/// An address that becomes the gateway's own while a flow to it lives: a router took over from
/// another.
#[test]
fn an_address_that_the_gateway_gets_is_its_own_at_once() {
    let pair = pair();
    let mut liar = Liar::instead_of_a(&pair);
    let ip = |what: &str| {
        let arguments = ["address", what, "10.10.2.77/24", "dev", "lan0"];
        assert!(
            pair.lab
                .command(Host::B, "ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
    };
    let server = udp(&pair, Host::Server, "10.10.2.2:5300");
    liar.open(
        TIMELY,
        17,
        "10.10.8.2:4000",
        "10.10.2.2:5300",
        &plain(b"to a host"),
    );
    assert_eq!(
        hears(&server),
        Some(b"to a host".to_vec()),
        "{}",
        pair.logs()
    );
    let flow = liar.open(
        TIMELY,
        17,
        "10.10.8.2:4000",
        "10.10.2.77:5300",
        &plain(b"to nobody"),
    );
    ip("add");
    let own = udp(&pair, Host::B, "0.0.0.0:5300");
    let listener = tcp(&pair, Host::B, "10.10.2.77:5400");
    // The kernel's news are on their way.
    std::thread::sleep(Duration::from_millis(500));
    for number in 1..10 {
        liar.say(
            TIMELY,
            flow,
            number,
            Some((17, "10.10.8.2:4000", "10.10.2.77:5300")),
            &plain(b"to whom?"),
        );
    }
    liar.open(
        TIMELY,
        17,
        "10.10.8.2:4001",
        "10.10.2.77:5300",
        &plain(b"to whom?"),
    );
    // Its network's broadcast address is this host's too.
    liar.open(
        TIMELY,
        17,
        "10.10.8.2:4001",
        "10.10.2.255:5300",
        &plain(b"to whom?"),
    );
    liar.open(DATA, 6, "10.10.1.2:4000", "10.10.2.77:5400", b"to whom?");
    liar.listen(Duration::from_millis(300));
    assert_eq!(hears(&own), None, "{}", pair.logs());
    assert!(!is_called(&listener));
}

#[test]
fn of_icmp_only_echoes_and_errors_of_flows_arrive() {
    let pair = pair();
    let mut liar = Liar::instead_of_a(&pair);
    let server = pair.lab.inside(Host::Server, || {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap()
    });
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let server = UdpSocket::from(server);
    let heard = || hears(&server).map(|packet| packet[20]);
    let (from, to) = ("10.10.1.2:7", "10.10.2.2:7");
    let echo = |kind| {
        whole(
            1,
            "10.10.1.2",
            "10.10.2.2",
            &icmp(kind, &[0, 7, 0, 1, 1, 2, 3, 4]),
        )
    };
    let flow = liar.open(TIMELY, 1, from, to, &echo(8));
    assert_eq!(heard(), Some(8), "{}", pair.logs());
    while heard().is_some() {}
    // Redirect, router advertisement, timestamp, address mask, source quench, in the flow and as
    // one of their own.
    let banned = [5, 9, 10, 13, 17, 4];
    for (number, kind) in (1..).zip(banned) {
        let packet = whole(1, "10.10.1.2", "10.10.2.2", &icmp(kind, &[0; 40]));
        liar.say(TIMELY, flow, number, Some((1, from, to)), &packet);
        liar.open(TIMELY, 1, "10.10.1.2:0", "10.10.2.2:0", &packet);
    }
    assert_eq!(heard(), None);
    wait_for("all of them to be counted", || {
        drops(&pair, "ICMP neither echo nor error") == 2 * banned.len() as u64
    });
    // An error about a packet that the server never sent in a flow of this peer.
    let foreign = drops(&pair, "packets foreign");
    let about = |id: u8| {
        whole(
            1,
            "10.10.2.2",
            "10.10.1.2",
            &icmp(0, &[0, id, 0, 1, 1, 2, 3, 4]),
        )[1..]
            .to_vec()
    };
    let error = |id: u8| {
        whole(
            1,
            "10.10.1.2",
            "10.10.2.2",
            &icmp(3, &[&[0; 4][..], &about(id)].concat()),
        )
    };
    liar.say(TIMELY, flow, 20, Some((1, from, to)), &error(8));
    assert_eq!(heard(), None);
    wait_for("it to be counted", || {
        drops(&pair, "packets foreign") == foreign + 1
    });
    // Of this flow it is told.
    liar.say(TIMELY, flow, 21, Some((1, from, to)), &error(7));
    assert_eq!(heard(), Some(3), "{}", pair.logs());
}

/// A host of the LAN may ask for the time, redirect and announce as ever: nothing of that is taken,
/// though echoes with the same host are.
#[test]
fn other_icmp_of_a_lan_takes_its_plain_way() {
    let pair = Pair::start(&crate::packets::options());
    let raw = |host| {
        let socket = pair.lab.inside(host, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap()
        });
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        UdpSocket::from(socket)
    };
    let (client, server) = (raw(Host::Client), raw(Host::Server));
    let next =
        |socket: &UdpSocket, kind: u8| while hears(socket).expect("it arrives")[20] != kind {};
    let taken = || {
        let output = pair
            .lab
            .command(Host::B, "nft")
            .args([
                "-j",
                "list",
                "counter",
                "inet",
                "tpo",
                "intercepted_packets",
            ])
            .output()
            .unwrap();
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counters = all["nftables"].as_array().unwrap().iter();
        counters
            .filter_map(|one| one["counter"]["packets"].as_u64())
            .next()
            .expect("the counter")
    };
    client
        .send_to(&icmp(8, &[0, 9, 0, 1]), "10.10.2.2:0")
        .unwrap();
    next(&client, 0);
    let before = taken();
    assert!(before > 0, "the answer was taken at B");
    for number in 0..5 {
        server
            .send_to(
                &icmp(13, &[0, 0, 0, number, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
                "10.10.1.2:0",
            )
            .unwrap();
        next(&client, 13);
    }
    assert_eq!(taken(), before, "what is no echo and no error is not taken");
    // And our own device takes no advice.
    for (setting, value) in [
        ("ipv4/conf/tpo0/accept_redirects", "0"),
        ("ipv4/conf/tpo0/accept_source_route", "0"),
        ("ipv6/conf/tpo0/accept_ra", "0"),
        ("ipv6/conf/tpo0/accept_redirects", "0"),
    ] {
        let output = pair
            .lab
            .command(Host::B, "cat")
            .arg(format!("/proc/sys/net/{setting}"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            value,
            "{setting}"
        );
    }
}

/// Where `source` is left out, a peer's clients are those to whom B's own rules send.
#[test]
fn a_peer_is_nobody_but_who_lives_behind_it() {
    let pair = pair();
    let mut liar = Liar::instead_of_a(&pair);
    let server = udp(&pair, Host::Server, "10.10.2.2:5300");
    for source in [
        "10.10.9.9:53",
        "10.10.2.9:53",
        "10.10.2.1:53",
        "192.0.2.1:53",
        "127.0.0.1:53",
        "10.9.0.2:53",
    ] {
        liar.open(TIMELY, 17, source, "10.10.2.2:5300", &plain(b"who am I?"));
    }
    assert_eq!(hears(&server), None, "{}", pair.logs());
    liar.open(
        TIMELY,
        17,
        "10.10.1.2:53",
        "10.10.2.2:5300",
        &plain(b"good morning"),
    );
    assert_eq!(
        hears(&server),
        Some(b"good morning".to_vec()),
        "{}",
        pair.logs()
    );
    // And its answers are the peer's.
    server
        .send_to(b"a good one to you", "10.10.1.2:53")
        .unwrap();
    liar.listen(Duration::from_millis(500));
    assert!(liar.has_heard(b"a good one to you"));
}

/// Two peers, both granted the same clients by hand: who has a flow keeps it, and an address that
/// our rules send to one is not the other's.
#[test]
fn a_second_peer_takes_over_nobodys_answers() {
    let mut pair = Pair::new(&Options {
        peer: "compress = \"off\"",
        ..Options::default()
    });
    let other = Identity::generate();
    let sections = format!(
        r#"
[[peer]]
name = "c"
public_key = "{key}"
compress = "off"

[[rule]]
protocol = "udp"
source = "10.10.2.0/24"
destination = "10.10.1.0/24"
peer = "a"

[[accept]]
peer = "a"
protocol = "udp"
source = "any"
destination = "any"

[[accept]]
peer = "c"
protocol = "udp"
source = "any"
destination = "any"
"#,
        key = other.public_key()
    );
    let config = pair.config(Host::B);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + &sections).unwrap();
    pair.run(Host::B);
    let mut first = Liar::instead_of_a(&pair);
    let mut second = Liar::new(&pair, other, "10.9.0.1:47801");
    let server = udp(&pair, Host::Server, "10.10.2.2:5300");
    let owned = || {
        pair.status(Host::B)["peers"][1]["drops"]["flows that another peer owns"]
            .as_u64()
            .unwrap_or(0)
    };

    // A flow that the first one has.
    first.open(
        TIMELY,
        17,
        "10.10.8.8:700",
        "10.10.2.2:5300",
        &plain(b"mine"),
    );
    assert_eq!(hears(&server), Some(b"mine".to_vec()), "{}", pair.logs());
    second.open(
        TIMELY,
        17,
        "10.10.8.8:700",
        "10.10.2.2:5300",
        &plain(b"no, mine"),
    );
    assert_eq!(hears(&server), None, "{}", pair.logs());
    wait_for("it to be counted", || owned() == 1);
    server
        .send_to(b"an answer to its owner", "10.10.8.8:700")
        .unwrap();
    second.listen(Duration::from_millis(300));
    first.listen(Duration::from_millis(300));
    assert!(
        first.has_heard(b"an answer to its owner"),
        "{}",
        pair.logs()
    );
    assert!(!second.has_heard(b"an answer to its owner"));

    // Who is behind the first one by our own rule, before and after it was spoken to.
    second.open(
        TIMELY,
        17,
        "10.10.1.2:800",
        "10.10.2.2:5300",
        &plain(b"it is me"),
    );
    assert_eq!(hears(&server), None, "{}", pair.logs());
    server
        .send_to(b"a word to the client", "10.10.1.2:800")
        .unwrap();
    first.listen(Duration::from_millis(500));
    second.open(
        TIMELY,
        17,
        "10.10.1.2:800",
        "10.10.2.2:5300",
        &plain(b"it is me"),
    );
    server
        .send_to(b"another word to it", "10.10.1.2:800")
        .unwrap();
    first.listen(Duration::from_millis(300));
    second.listen(Duration::from_millis(300));
    assert!(
        first.has_heard(b"a word to the client") && first.has_heard(b"another word to it"),
        "{}",
        pair.logs()
    );
    assert!(!second.has_heard(b"a word to the client") && !second.has_heard(b"another word to it"));

    // What is nobody else's is the second one's, as it was granted.
    second.open(
        TIMELY,
        17,
        "10.10.7.7:900",
        "10.10.2.2:5300",
        &plain(b"mine alone"),
    );
    assert_eq!(
        hears(&server),
        Some(b"mine alone".to_vec()),
        "{}",
        pair.logs()
    );
}
