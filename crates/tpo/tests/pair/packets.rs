//! Packets, all that is not TCP: UDP, ICMP and other protocols, with the clients' own addresses,
//! and their plain way when nobody carries them.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::Host;

use crate::site::{Options, Pair, V4, V6, exchange, wait_for};

pub(crate) const PORT: u16 = 5_300;
/// Of experiments (RFC 3692).
const OTHER: i32 = 253;

const RULES: &str = r#"
[[rule]]
protocol = "udp"
source = "10.10.1.0/24"
destination = "10.10.2.0/24"
destination_ports = "5300-5399"
peer = "b"

[[rule]]
protocol = "udp"
source = "fd10:1::/64"
destination = "fd10:2::/64"
destination_ports = "5300-5399"
peer = "b"
delivery = "reliable"

[[rule]]
protocol = "icmp"
source = "any"
destination = "any"
peer = "b"

[[rule]]
protocol = 253
source = "any"
destination = "any"
peer = "b"
"#;

const ACCEPTS: &str = r#"
[[accept]]
peer = "a"
protocol = "udp"
destination = "any"

# A service of the TPO's own host.
[[accept]]
peer = "a"
protocol = "udp"
destination = "10.10.2.1"

[[accept]]
peer = "a"
protocol = "icmp"
destination = "any"

[[accept]]
peer = "a"
protocol = 253
destination = "10.10.2.0/24"
"#;

pub(crate) fn options() -> Options {
    Options {
        sections: [RULES, ACCEPTS],
        ..Options::default()
    }
}

pub(crate) fn address(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

fn any(host: &str) -> &'static str {
    if host.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    }
}

pub(crate) fn udp(pair: &Pair, host: Host, at: SocketAddr) -> UdpSocket {
    let socket = pair.lab.inside(host, || UdpSocket::bind(at)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

pub(crate) fn echo(server: &UdpSocket) -> SocketAddr {
    let mut bytes = vec![0; 65_536];
    let (length, from) = server.recv_from(&mut bytes).expect("a datagram arrives");
    server.send_to(&bytes[..length], from).unwrap();
    from
}

/// Flows of this protocol that the daemon shows, with their bytes each way.
pub(crate) fn flows(pair: &Pair, host: Host, protocol: u64) -> Vec<(u64, u64)> {
    let count = |flow: &serde_json::Value, key: &str| {
        flow[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no {key} in {flow}"))
    };
    let flows = pair.flows(host);
    let ours = flows
        .iter()
        .filter(|flow| flow["protocol"].as_u64() == Some(protocol));
    ours.map(|flow| (count(flow, "sent"), count(flow, "received")))
        .collect()
}

#[test]
fn udp_crosses_with_the_clients_address_whatever_its_size() {
    let pair = Pair::start(&options());
    for (host, count) in [(V4, 1), (V6, 2)] {
        let server = udp(&pair, Host::Server, address(host, PORT));
        let client = udp(&pair, Host::Client, any(host).parse().unwrap());
        pair.lab
            .inside(Host::Client, || client.connect(address(host, PORT)))
            .unwrap();
        for size in [0, 1, 200, 1_472, 8_000, 40_000, 65_000] {
            let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            client.send(&sent).unwrap();
            let from = echo(&server);
            assert_eq!(
                from,
                client.local_addr().unwrap(),
                "the server sees the client's own address and port"
            );
            let mut came = vec![0; 65_536];
            let length = client.recv(&mut came).expect("the answer arrives");
            assert!(came[..length] == sent, "{size} bytes came back as {length}");
        }
        let seen = flows(&pair, Host::A, 17);
        assert_eq!(seen.len(), count, "one flow for each client");
        assert!(
            seen.iter()
                .all(|(sent, received)| *sent > 110_000 && *received > 110_000),
            "{seen:?}"
        );
        assert_eq!(flows(&pair, Host::B, 17).len(), count);
        // What no rule names takes its plain way.
        let server = udp(&pair, Host::Server, address(host, 5_400));
        client
            .send_to(b"plain", address(host, 5_400))
            .unwrap_or_else(|_| {
                // A connected socket of IPv6 takes no other address on every kernel.
                let other = udp(&pair, Host::Client, any(host).parse().unwrap());
                other.send_to(b"plain", address(host, 5_400)).unwrap()
            });
        server.recv(&mut [0; 10]).expect("a datagram arrives");
        assert_eq!(flows(&pair, Host::A, 17).len(), count);
    }
}

#[test]
fn a_closed_port_is_told_to_the_client() {
    let pair = Pair::start(&options());
    for host in [V4, V6] {
        let client = udp(&pair, Host::Client, any(host).parse().unwrap());
        pair.lab
            .inside(Host::Client, || client.connect(address(host, PORT + 1)))
            .unwrap();
        client.send(b"is anybody there?").unwrap();
        let error = client.recv(&mut [0; 10]).expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
}

/// An application on the TPO's own host, and a service on the far one's: both speak from their own
/// addresses.
#[test]
fn the_hosts_of_the_tpos_take_part() {
    let pair = Pair::start(&options());
    let server = udp(&pair, Host::B, address("10.10.2.1", PORT));
    for (host, from) in [(Host::Client, "10.10.1.2"), (Host::A, "10.10.1.1")] {
        let client = udp(&pair, host, address(from, 0));
        pair.lab
            .inside(host, || client.connect(address("10.10.2.1", PORT)))
            .unwrap();
        client.send(b"who is there?").unwrap();
        assert_eq!(echo(&server), client.local_addr().unwrap());
        client.recv(&mut [0; 20]).expect("the answer arrives");
    }
    let seen = flows(&pair, Host::A, 17);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen.iter().all(|(sent, received)| sent == received),
        "{seen:?}"
    );
}

/// A raw socket, which the standard library's type serves as well: it has no other part in it than
/// sending and receiving.
fn raw(pair: &Pair, host: Host, v6: bool, protocol: i32) -> UdpSocket {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = pair
        .lab
        .inside(host, || {
            Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))
        })
        .expect("a raw socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.into()
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 2_000];
    let (length, from) = socket.recv_from(&mut bytes).expect("a packet arrives");
    bytes.truncate(length);
    (bytes, from)
}

/// An echo request without a checksum of its own for IPv6, where the kernel computes it.
fn request(v6: bool, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(payload);
    if !v6 {
        let mut sum: u32 = packet
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)))
            .sum();
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        packet[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    packet
}

/// Sends an echo request and gives its answer's time.
fn ping(socket: &UdpSocket, to: SocketAddr, v6: bool, sequence: u16) -> Duration {
    let sent = request(v6, 77, sequence, b"how far is it?");
    let start = Instant::now();
    socket.send_to(&sent, to).unwrap();
    loop {
        let (packet, from) = receive(socket);
        let icmp = if v6 { &packet[..] } else { &packet[20..] };
        if icmp[0] == if v6 { 129 } else { 0 } && icmp[4..] == sent[4..] {
            assert_eq!(from.ip(), to.ip());
            return start.elapsed();
        }
    }
}

#[test]
fn ping_shows_the_true_round_trip() {
    let pair = Pair::start(&options());
    for host in [V4, V6] {
        let v6 = host == V6;
        let socket = raw(&pair, Host::Client, v6, if v6 { 58 } else { 1 });
        let mut times: Vec<Duration> = (1..=20)
            .map(|sequence| ping(&socket, address(host, 0), v6, sequence))
            .collect();
        times.sort();
        assert!(times[0] >= Duration::from_millis(40), "{times:?}");
        assert!(times[10] < Duration::from_millis(50), "{times:?}");
    }
    let seen = flows(&pair, Host::A, 1);
    assert_eq!(seen.len(), 2, "one exchange for each");
    assert!(
        seen.iter()
            .all(|(sent, received)| *sent > 600 && sent == received),
        "{seen:?}"
    );
}

/// Both TPOs are hops like any router, and the server answers itself.
#[test]
fn traceroute_sees_every_hop() {
    let pair = Pair::start(&options());
    let icmp = raw(&pair, Host::Client, false, 1);
    let client = udp(&pair, Host::Client, any(V4).parse().unwrap());
    for (hops, from, kind) in [(1, "10.10.1.1", 11), (2, "10.9.0.2", 11), (3, V4, 3)] {
        client.set_ttl(hops).unwrap();
        // A port of its own for each, as traceroute does.
        let to = address(V4, PORT + 10 + hops as u16);
        client.send_to(b"how far?", to).unwrap();
        let (packet, router) = receive(&icmp);
        assert_eq!(
            (router.ip(), packet[20]),
            (from.parse().unwrap(), kind),
            "after {hops} hops"
        );
        // It quotes what the client sent.
        assert_eq!(
            packet[28 + 20..][..4],
            [
                client.local_addr().unwrap().port().to_be_bytes(),
                to.port().to_be_bytes()
            ]
            .concat()
        );
    }
    assert!(
        !flows(&pair, Host::A, 17).is_empty(),
        "the far hops were seen through the pair"
    );
}

#[test]
fn a_removed_way_into_the_device_is_found_and_restored() {
    let pair = Pair::start(&options());
    let server = udp(&pair, Host::Server, address(V4, PORT));
    let packet_flows = |client: &UdpSocket| {
        client.send_to(b"still there?", address(V4, PORT)).unwrap();
        echo(&server);
        client
            .recv(&mut [0; 20])
            .expect("the answer arrives, by whichever way");
        flows(&pair, Host::A, 17).len()
    };
    let client = || udp(&pair, Host::Client, any(V4).parse().unwrap());
    assert_eq!(packet_flows(&client()), 1);
    for removed in [
        &["rule", "del", "pref", "479"][..],
        &["route", "flush", "table", "479"],
    ] {
        assert!(
            pair.lab
                .command(Host::A, "ip")
                .args(removed)
                .status()
                .unwrap()
                .success()
        );
        let before = packet_flows(&client());
        wait_for("the way into the device", || {
            packet_flows(&client()) > before
        });
    }
}

/// What the sender asks of the network arrives with the packet, both ways.
#[test]
fn the_traffic_class_crosses() {
    let pair = Pair::start(&options());
    let server = udp(&pair, Host::Server, address(V4, PORT));
    let client = udp(&pair, Host::Client, any(V4).parse().unwrap());
    let hears = raw(&pair, Host::Server, false, 17);
    let heard_back = raw(&pair, Host::Client, false, 17);
    // Expedited forwarding (RFC 3246), with ECN(0) and without.
    for class in [0xb8, 0xb8 | 2, 1] {
        for socket in [&client, &server] {
            socket2::SockRef::from(socket).set_tos_v4(class).unwrap();
        }
        client.send_to(b"which class?", address(V4, PORT)).unwrap();
        echo(&server);
        client.recv(&mut [0; 20]).expect("the answer arrives");
        for (socket, from) in [(&hears, "10.10.1.2"), (&heard_back, V4)] {
            let (packet, source) = receive(socket);
            assert_eq!(
                (u32::from(packet[1]), source.ip().to_string().as_str()),
                (class, from)
            );
        }
    }
}

/// A far link takes only shorter packets: its router says so, and the client's kernel cuts them
/// from then on.
#[test]
fn fragmentation_needed_is_told_to_the_client() {
    let pair = Pair::start(&options());
    let ip = |host, arguments: &[&str]| {
        assert!(
            pair.lab
                .command(host, "ip")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        )
    };
    ip(Host::B, &["link", "set", "lan0", "mtu", "1300"]);
    ip(Host::Server, &["link", "set", "eth0", "mtu", "1300"]);
    for host in [V4, V6] {
        let server = udp(&pair, Host::Server, address(host, PORT));
        let client = udp(&pair, Host::Client, any(host).parse().unwrap());
        pair.lab
            .inside(Host::Client, || client.connect(address(host, PORT)))
            .unwrap();
        // The kernel's usual way: packets must not be cut, unless it knows better.
        client.send(&[1; 1_400]).unwrap();
        wait_for("the client's kernel to know", || {
            // A packet too large for the path as it is known now is refused, or cut.
            client.send(&[1; 1_400]).is_err() || server.recv(&mut [0; 2_000]).is_ok()
        });
        let route = pair
            .lab
            .command(Host::Client, "ip")
            .args(["route", "get", host])
            .output()
            .unwrap();
        let route = String::from_utf8(route.stdout).unwrap();
        assert!(route.contains("mtu 1300"), "{route}");
        client.send(&[1; 1_400]).unwrap();
        while echo(&server) != client.local_addr().unwrap() {}
    }
}

/// Tunnels of others: GRE with packets inside. What `tpo flows` tells of it is true.
#[test]
fn gre_crosses_and_its_figures_are_told() {
    let sections = [
        "[[rule]]\nprotocol = 47\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"\npeer = \"b\"\n",
        "[[accept]]\npeer = \"a\"\nprotocol = 47\ndestination = \"10.10.2.0/24\"\n",
    ];
    let pair = Pair::start(&Options {
        sections,
        ..Options::default()
    });
    let (server, client) = (
        raw(&pair, Host::Server, false, 47),
        raw(&pair, Host::Client, false, 47),
    );
    // No flags, version 0, IPv4 inside (RFC 2784).
    let tunnelled = |number: u16| {
        let mut packet = vec![0, 0, 8, 0];
        packet.extend(request(false, 9, number, &[7; 1_300]));
        packet
    };
    for number in 0..200 {
        let sent = tunnelled(number);
        client.send_to(&sent, address(V4, 0)).unwrap();
        let (packet, from) = receive(&server);
        assert_eq!(
            (&packet[20..], from.ip()),
            (&sent[..], "10.10.1.2".parse().unwrap())
        );
        server.send_to(&sent, from).unwrap();
        assert_eq!(receive(&client).0[20..], sent);
    }
    let seen = pair.flows(Host::A);
    assert_eq!(seen.len(), 1, "all of it in one flow: {seen:?}");
    let number = |key: &str| {
        seen[0][key]
            .as_f64()
            .unwrap_or_else(|| panic!("no {key} in {seen:?}"))
    };
    assert_eq!(
        (
            number("packets_sent"),
            number("packets_received"),
            number("lost_percent")
        ),
        (200.0, 200.0, 0.0)
    );
    assert!((20.0..30.0).contains(&number("delay_ms")), "{seen:?}");
}

/// An association of SCTP, which this kernel may not know: whole packets with its own addresses,
/// ports and all.
#[test]
fn sctp_crosses_whole() {
    let sections = [
        "[[rule]]\nprotocol = 132\nsource = \"any\"\ndestination = \"any\"\npeer = \"b\"\n",
        "[[accept]]\npeer = \"a\"\nprotocol = 132\ndestination = \"any\"\n",
    ];
    let pair = Pair::start(&Options {
        sections,
        ..Options::default()
    });
    for (host, v6) in [(V4, false), (V6, true)] {
        let (server, client) = (
            raw(&pair, Host::Server, v6, 132),
            raw(&pair, Host::Client, v6, 132),
        );
        // Ports, tag, a checksum that nobody on the way looks at; then one chunk: INIT, INIT ACK,
        // DATA (RFC 9260, section 3).
        for (kind, length) in [(1_u8, 20_u16), (2, 300), (0, 1_300)] {
            let mut sent = [2_905_u16.to_be_bytes(), 36_412_u16.to_be_bytes()].concat();
            sent.extend([7, 7, 7, kind, 1, 2, 3, 4, kind, 0]);
            sent.extend(length.to_be_bytes());
            sent.resize(12 + usize::from(length), kind);
            let ours = if v6 { "fd10:1::2" } else { "10.10.1.2" };
            for (from, source, to, destination) in [
                (&client, ours, &server, host),
                (&server, host, &client, ours),
            ] {
                from.send_to(&sent, address(destination, 0)).unwrap();
                let (packet, seen) = receive(to);
                assert_eq!(packet[if v6 { 0 } else { 20 }..], sent);
                assert_eq!(seen.ip().to_string(), source);
            }
        }
    }
    let seen = flows(&pair, Host::A, 132);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen.iter()
            .all(|(sent, received)| *sent > 1_600 && sent == received),
        "{seen:?}"
    );
}

#[test]
fn any_other_protocol_crosses_whole() {
    let pair = Pair::start(&options());
    let server = raw(&pair, Host::Server, false, OTHER);
    let client = raw(&pair, Host::Client, false, OTHER);
    for size in [0, 500, 1_400] {
        let sent = vec![size as u8; size];
        client.send_to(&sent, address(V4, 0)).unwrap();
        let (packet, from) = receive(&server);
        assert_eq!(
            (&packet[20..], from.ip()),
            (&sent[..], "10.10.1.2".parse().unwrap())
        );
        server.send_to(&sent, from).unwrap();
        let (packet, from) = receive(&client);
        assert_eq!((&packet[20..], from.ip()), (&sent[..], V4.parse().unwrap()));
    }
    assert_eq!(flows(&pair, Host::B, OTHER as u64).len(), 1);
}

/// Many short flows, as a resolver has them: all are answered, and nothing is left of them
/// afterwards. `TPO_FLOWS` asks for more.
#[test]
fn many_short_flows_leave_nothing_behind() {
    // That many have a question under way.
    const TOGETHER: u32 = 200;
    let pair = Pair::start(&Options {
        tpo: "idle = \"2s\"\nidle_both = \"2s\"",
        ..options()
    });
    let flows_wanted: u32 =
        std::env::var("TPO_FLOWS").map_or(8_000, |count| count.parse().expect("a number"));
    let memory = |host| memory(&pair, host);
    let before = [Host::A, Host::B].map(memory);
    let mut early = before;
    let server = udp(&pair, Host::Server, address(V4, PORT));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        scope.spawn(|| {
            server
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            let mut bytes = [0; 100];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut bytes) {
                    server.send_to(&bytes[..length], from).unwrap();
                }
            }
        });
        let mut answered = 0;
        let rounds = flows_wanted.div_ceil(TOGETHER);
        for round in 0..rounds {
            if round == rounds / 10 {
                early = [Host::A, Host::B].map(memory);
            }
            // A port of its own each.
            let clients: Vec<UdpSocket> = (0..TOGETHER)
                .map(|_| udp(&pair, Host::Client, any(V4).parse().unwrap()))
                .collect();
            for client in &clients {
                client.send_to(b"where is it?", address(V4, PORT)).unwrap();
            }
            answered += clients
                .iter()
                .filter(|client| client.recv(&mut [0; 20]).is_ok())
                .count();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(
            answered as u32 >= flows_wanted - flows_wanted / 1_000,
            "{answered} of {flows_wanted} were answered"
        );
        [Host::A, Host::B].map(memory)
    });
    for host in [Host::A, Host::B] {
        wait_for("the flows to end", || flows(&pair, host, 17).is_empty());
    }
    let after = [Host::A, Host::B].map(memory);
    println!("kB before, with {flows_wanted} flows, after: {before:?} {most:?} {after:?}");
    assert!(
        after
            .iter()
            .zip(before)
            .all(|(after, before)| *after < before + 30_000),
        "{before:?} {most:?} {after:?}"
    );
    if std::env::var_os("TPO_FLOWS").is_some() {
        // What compression has learned is given back after one minute without a buffer, and after
        // another one at the other side.
        std::thread::sleep(Duration::from_secs(190));
        let rested = [Host::A, Host::B].map(memory);
        println!("kB after a tenth of them {early:?}, three minutes after the last {rested:?}");
        // Buffers that were used once stay, however few flows there were; twenty bytes of each flow
        // would be too much.
        let least = u64::from(flows_wanted) / 50;
        assert!(
            rested
                .iter()
                .zip(early)
                .all(|(rested, early)| *rested < early + least),
            "{early:?} {rested:?}"
        );
    }
}

/// A packet of IPv4 and UDP from whomever it says.
fn spoofed(from: std::net::SocketAddrV4, to: std::net::SocketAddrV4) -> Vec<u8> {
    let payload = b"nobody";
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    (packet[8], packet[9]) = (64, 17);
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    // No checksum (RFC 768); the kernel fills in the header's length, number and checksum.
    packet[24..26].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    packet.extend(payload);
    packet
}

/// Resident memory of a daemon, kB.
fn memory(pair: &Pair, host: Host) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pair.process(host))).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// More sources than there is room for, none of which exists: whoever was there before goes on, and
/// memory has a bound.
#[test]
fn a_flood_of_spoofed_sources_does_not_touch_who_was_there() {
    const SOURCES: u32 = 180_000;
    // Without the dictionaries, which are not the flows'.
    let pair = Pair::start(&Options {
        tpo: "idle = \"20s\"",
        peer: "compress = \"off\"",
        ..options()
    });
    let listener = pair.listen(V4);
    let (tcp, far) = pair.joined(&listener);
    let server = udp(&pair, Host::Server, address(V4, PORT));
    // Hears the flood and says nothing.
    let _deaf = udp(&pair, Host::Server, address(V4, PORT + 1));
    let client = udp(&pair, Host::Client, any(V4).parse().unwrap());
    pair.lab
        .inside(Host::Client, || client.connect(address(V4, PORT)))
        .unwrap();
    let asks = |count: &mut u32| {
        client.send(b"still there?").unwrap();
        echo(&server);
        client.recv(&mut [0; 20]).expect("the answer arrives");
        *count += 1;
    };
    let mut answered = 0;
    asks(&mut answered);
    let before = [Host::A, Host::B].map(|host| memory(&pair, host));
    let raw = pair
        .lab
        .inside(Host::Client, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))
        })
        .unwrap();
    let to = std::net::SocketAddrV4::new(V4.parse().unwrap(), PORT + 1);
    let done = std::sync::atomic::AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..SOURCES {
                // 10.10.1.3 to 10.10.1.250, a thousand ports each.
                let host = std::net::Ipv4Addr::new(10, 10, 1, 3 + (number % 248) as u8);
                let from = std::net::SocketAddrV4::new(host, 2_000 + (number / 248) as u16);
                // A full queue of the device is the flood's loss.
                let _ = raw.send_to(&spoofed(from, to), &SocketAddr::from(to).into());
                if number % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            asks(&mut answered);
            exchange(&tcp, &far, 9, 2_000);
        }
        [Host::A, Host::B].map(|host| memory(&pair, host))
    });
    let refused = pair.status(Host::A)["peers"][0]["drops"]["packet flows refused"]
        .as_u64()
        .unwrap_or(0);
    let passed = pair.status(Host::A)["passed"].to_string();
    assert!(passed.contains("flow limit"), "{passed}");
    println!("{answered} answered, {refused} refused, kB before and with it: {before:?} {most:?}");
    assert!(
        answered > 50 && refused > 10_000,
        "{answered} answered, {refused} refused"
    );
    assert!(
        most.iter()
            .zip(before)
            .all(|(most, before)| *most < before + 150_000),
        "{before:?} {most:?}"
    );
    let start = Instant::now();
    let after = loop {
        std::thread::sleep(Duration::from_secs(1));
        asks(&mut answered);
        let after = [Host::A, Host::B].map(|host| memory(&pair, host));
        if after
            .iter()
            .zip(before)
            .all(|(after, before)| *after < before + 40_000)
        {
            break after;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "memory is not given back: {before:?} {most:?} {after:?}"
        );
    };
    println!("kB {:?} afterwards: {after:?}", start.elapsed());
}

/// Both daemons are killed in the middle of a flow of packets: it goes on over the plain way, and
/// through the pair when they are there again.
#[test]
fn packets_take_their_plain_way_when_nobody_carries_them() {
    let mut pair = Pair::start(&options());
    let server = udp(&pair, Host::Server, address(V4, PORT));
    let client = udp(&pair, Host::Client, any(V4).parse().unwrap());
    pair.lab
        .inside(Host::Client, || client.connect(address(V4, PORT)))
        .unwrap();
    let asks = |client: &UdpSocket| {
        client.send(b"still there?").unwrap();
        echo(&server);
        client.recv(&mut [0; 20]).expect("the answer arrives");
    };
    asks(&client);
    assert_eq!(flows(&pair, Host::A, 17).len(), 1);
    pair.kill(Host::A);
    pair.kill(Host::B);
    asks(&client);
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    wait_for("the flow through the pair", || {
        asks(&client);
        flows(&pair, Host::A, 17).len() == 1
    });
    // One daemon alone, ended in order: what it had taken takes its plain way too.
    pair.end(Host::B);
    wait_for("the plain way", || {
        client.send(b"still there?").unwrap();
        server
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        server.recv(&mut [0; 20]).is_ok()
    });
}
