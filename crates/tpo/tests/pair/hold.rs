//! Closed rules hold: a thousand packets a second of each kind, and not one in the clear, whatever
//! happens to the daemon, its device, its table.
//!
//! What counts is what leaves A's WAN interface with the client's own addresses. What holds this
//! host's own traffic is asked at the end.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::site::{Options, Pair, tpo, wait_for};
use tpo_lab::Host;

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 2);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 2);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd10, 2, 0, 0, 0, 0, 0, 2);
/// Packets of each kind in a second.
const RATE: u64 = 1_000;
const PORT: u16 = 9_000;
const GRE: u8 = 47;

/// What the client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Udp4,
    Udp6,
    /// With a header of options for the destination, as `ip6gre` puts before its packets.
    Udp6Options,
    /// In two pieces.
    Udp4Cut,
    Ping4,
    Ping6,
    Gre4,
    Gre6Options,
    /// Its header of options says that it is longer than the packet: nobody can say what is behind
    /// it.
    Torn6,
    Syn4,
    Syn6,
}

const KINDS: [Kind; 11] = [
    Kind::Udp4,
    Kind::Udp6,
    Kind::Udp6Options,
    Kind::Udp4Cut,
    Kind::Ping4,
    Kind::Ping6,
    Kind::Gre4,
    Kind::Gre6Options,
    Kind::Torn6,
    Kind::Syn4,
    Kind::Syn6,
];

/// All the packets, from the client, until it is dropped.
struct Noise {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
    start: Instant,
}

impl Noise {
    fn start(pair: &Pair) -> Noise {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let senders: Vec<Sender> = pair.lab.inside(Host::Client, || {
            KINDS.iter().map(|kind| Sender::open(*kind)).collect()
        });
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                let due = start.elapsed().as_millis() as u64 * RATE / 1_000;
                // A machine that was busy elsewhere does not make up for everything at once.
                for number in sent.max(due.saturating_sub(50))..due {
                    senders.iter().for_each(|sender| sender.send(number));
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        Noise {
            stop,
            thread: Some(thread),
            start,
        }
    }

    /// Ends it; it must have been the noise that was promised, or what was not seen means nothing.
    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.take().unwrap().join().unwrap();
        let rate = sent as f64 / self.start.elapsed().as_secs_f64();
        assert!(
            rate > RATE as f64 / 4.0,
            "only {rate:.0} packets/s of each kind were sent: this machine is too busy"
        );
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sender {
    kind: Kind,
    socket: Socket,
}

impl Sender {
    fn open(kind: Kind) -> Sender {
        let (domain, kind_of, protocol) = match kind {
            Kind::Udp4 | Kind::Udp4Cut => (Domain::IPV4, Type::DGRAM, libc::IPPROTO_UDP),
            Kind::Udp6 | Kind::Udp6Options => (Domain::IPV6, Type::DGRAM, libc::IPPROTO_UDP),
            Kind::Ping4 => (Domain::IPV4, Type::RAW, libc::IPPROTO_ICMP),
            Kind::Ping6 => (Domain::IPV6, Type::RAW, libc::IPPROTO_ICMPV6),
            Kind::Gre4 => (Domain::IPV4, Type::RAW, libc::IPPROTO_GRE),
            Kind::Gre6Options => (Domain::IPV6, Type::RAW, libc::IPPROTO_GRE),
            Kind::Torn6 => (Domain::IPV6, Type::RAW, libc::IPPROTO_DSTOPTS),
            Kind::Syn4 => (Domain::IPV4, Type::RAW, libc::IPPROTO_TCP),
            Kind::Syn6 => (Domain::IPV6, Type::RAW, libc::IPPROTO_TCP),
        };
        let socket = Socket::new(domain, kind_of, Some(Protocol::from(protocol))).unwrap();
        socket.set_nonblocking(true).unwrap();
        if matches!(kind, Kind::Udp6Options | Kind::Gre6Options) {
            // The limit of encapsulation (RFC 2473), padded.
            let options = [0_u8, 0, 4, 1, 4, 1, 1, 0];
            // SAFETY: the descriptor is open, and the pointer and length are those of `options`.
            let done = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_DSTOPTS,
                    options.as_ptr().cast(),
                    options.len() as libc::socklen_t,
                )
            };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
        Sender { kind, socket }
    }

    fn send(&self, number: u64) {
        let v6 = |port| SockAddr::from(SocketAddr::from((SERVER_V6, port)));
        let v4 = |port| SockAddr::from(SocketAddr::from((SERVER_V4, port)));
        let word = (number as u16).to_be_bytes();
        let (bytes, to) = match self.kind {
            Kind::Udp4 => (b"secret".to_vec(), v4(PORT)),
            Kind::Udp4Cut => (vec![b's'; 2_000], v4(PORT)),
            Kind::Udp6 => (b"secret".to_vec(), v6(PORT)),
            Kind::Udp6Options => (b"secret".to_vec(), v6(PORT + 1)),
            Kind::Ping4 => {
                let mut echo = vec![8, 0, 0, 0, 7, 7, word[0], word[1]];
                let sum = checksum(&echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                (echo, v4(0))
            }
            Kind::Ping6 => (vec![128, 0, 0, 0, 7, 7, word[0], word[1]], v6(0)),
            Kind::Gre4 => (vec![0, 0, 0x08, 0, 1, 2, 3, 4], v4(0)),
            Kind::Gre6Options => (vec![0, 0, 0x08, 0, 1, 2, 3, 4], v6(0)),
            Kind::Torn6 => (vec![libc::IPPROTO_UDP as u8, 255, 1, 4, 0, 0, 0, 0], v6(0)),
            Kind::Syn4 => (syn(&CLIENT_V4.octets(), &SERVER_V4.octets(), number), v4(0)),
            Kind::Syn6 => (syn(&CLIENT_V6.octets(), &SERVER_V6.octets(), number), v6(0)),
        };
        // What is refused comes back as an error of the next send.
        let _ = self.socket.send_to(&bytes, &to);
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// A TCP header that opens a connection to a port where nobody listens.
fn syn(from: &[u8], to: &[u8], number: u64) -> Vec<u8> {
    let port = 20_000 + (number % 20_000) as u16;
    let mut header = Vec::with_capacity(20);
    header.extend(port.to_be_bytes());
    header.extend(PORT.to_be_bytes());
    header.extend((number as u32).to_be_bytes());
    header.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[from, to, &[0, 6, 0, 20], &header].concat());
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Hears what leaves or reaches one interface.
struct Ear {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<Kind, u64>>,
}

impl Ear {
    fn open(pair: &Pair, host: Host, interface: &str) -> Ear {
        let socket = pair.lab.inside(host, || packet_socket(interface));
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut counts = BTreeMap::new();
            let mut bytes = [0; 2_048];
            while !ended.load(Ordering::Relaxed) {
                // SAFETY: the descriptor is open, and the pointer and length are those of `bytes`.
                let length = unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        bytes.as_mut_ptr().cast(),
                        bytes.len(),
                        0,
                    )
                };
                if let Some(kind) = usize::try_from(length)
                    .ok()
                    .and_then(|length| kind_of(&bytes[..length]))
                {
                    *counts.entry(kind).or_default() += 1;
                }
            }
            counts
        });
        Ear { stop, thread }
    }

    fn heard(self) -> BTreeMap<Kind, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// All IP packets of an interface, without the header of the link.
fn packet_socket(interface: &str) -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain numbers.
    // Deaf until it is bound, or it would hear all interfaces.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor has just been made and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the name ends with a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert!(index > 0, "no {interface}");
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a whole sockaddr_ll that outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    let (buffer, patience) = (
        8_i32 << 20,
        libc::timeval {
            tv_sec: 0,
            tv_usec: 50_000,
        },
    );
    // SAFETY: the pointers and lengths are those of live values of the types that the options take.
    unsafe {
        let fd = socket.as_raw_fd();
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            4,
        );
        let length = size_of::<libc::timeval>() as libc::socklen_t;
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            length,
        );
    }
    socket
}

/// Which of ours a packet is: by addresses, protocol, options, port.
fn kind_of(packet: &[u8]) -> Option<Kind> {
    match packet.first()? >> 4 {
        4 => {
            let ours = packet.get(12..16)? == CLIENT_V4.octets()
                && packet.get(16..20)? == SERVER_V4.octets();
            let cut =
                u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 || packet.len() > 1_400;
            ours.then_some(())?;
            match i32::from(packet[9]) {
                libc::IPPROTO_UDP if cut => Some(Kind::Udp4Cut),
                libc::IPPROTO_UDP => Some(Kind::Udp4),
                libc::IPPROTO_ICMP => Some(Kind::Ping4),
                libc::IPPROTO_GRE => Some(Kind::Gre4),
                libc::IPPROTO_TCP => Some(Kind::Syn4),
                _ => None,
            }
        }
        6 => {
            let ours = packet.get(8..24)? == CLIENT_V6.octets()
                && packet.get(24..40)? == SERVER_V6.octets();
            ours.then_some(())?;
            match (i32::from(packet[6]), packet.get(40)?) {
                (libc::IPPROTO_UDP, _) => Some(Kind::Udp6),
                (libc::IPPROTO_DSTOPTS, _) if packet.get(41) == Some(&255) => Some(Kind::Torn6),
                (libc::IPPROTO_DSTOPTS, &GRE) => Some(Kind::Gre6Options),
                (libc::IPPROTO_DSTOPTS, _) => Some(Kind::Udp6Options),
                (libc::IPPROTO_ICMPV6, _) => Some(Kind::Ping6),
                (libc::IPPROTO_TCP, _) => Some(Kind::Syn6),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What routing rules can tell apart: not a connection that opens from one that is open.
fn told_by_routing(mut heard: BTreeMap<Kind, u64>) -> BTreeMap<Kind, u64> {
    heard.retain(|kind, _| !matches!(kind, Kind::Syn4 | Kind::Syn6));
    heard
}

/// Rules of A for all but TCP, closed, and what B lets in.
const RULES: &str = "
[[rule]]
protocol = \"udp\"
source = \"10.10.1.0/24\"
destination = \"10.10.2.0/24\"
destination_ports = \"8000-9999\"
peer = \"b\"
on_failure = \"closed\"
[[rule]]
protocol = \"udp\"
source = \"fd10:1::/64\"
destination = \"fd10:2::/64\"
peer = \"b\"
on_failure = \"closed\"
[[rule]]
protocol = \"icmp\"
source = \"any\"
destination = \"10.10.2.0/24\"
peer = \"b\"
on_failure = \"closed\"
[[rule]]
protocol = \"icmp\"
source = \"any\"
destination = \"fd10:2::/64\"
peer = \"b\"
on_failure = \"closed\"
[[rule]]
protocol = 47
source = \"10.10.1.0/24\"
destination = \"10.10.2.0/24\"
peer = \"b\"
on_failure = \"closed\"
[[rule]]
protocol = 47
source = \"fd10:1::/64\"
destination = \"fd10:2::/64\"
peer = \"b\"
on_failure = \"closed\"
";
const ACCEPTS: &str = "
[[accept]]
peer = \"a\"
source = \"any\"
destination = \"any\"
protocol = \"udp\"
[[accept]]
peer = \"a\"
source = \"any\"
destination = \"any\"
protocol = \"icmp\"
[[accept]]
peer = \"a\"
source = \"any\"
destination = \"any\"
protocol = 47
";

fn closed() -> Options {
    Options {
        wan: "rate=200mbit delay=5ms",
        rule: "on_failure = \"closed\"",
        sections: [RULES, ACCEPTS],
        ..Options::default()
    }
}

/// What the client's packets do while something happens: what left A in the clear.
fn clear_while(pair: &mut Pair, what: impl FnOnce(&mut Pair)) -> BTreeMap<Kind, u64> {
    let ear = Ear::open(pair, Host::A, "wan0");
    let noise = Noise::start(pair);
    std::thread::sleep(Duration::from_millis(300));
    what(pair);
    noise.end();
    ear.heard()
}

fn at_a(pair: &Pair, command: &[&str]) {
    let status = pair
        .lab
        .command(Host::A, command[0])
        .args(&command[1..])
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}");
}

const NOTHING: BTreeMap<Kind, u64> = BTreeMap::new();

/// All kinds reach the server through the tunnel: what was not seen in the clear was sent all the
/// same. Connections show it by being answered.
fn all_arrive(pair: &mut Pair) {
    let ear = Ear::open(pair, Host::Server, "eth0");
    let clear = clear_while(pair, |_| std::thread::sleep(Duration::from_millis(1_000)));
    assert_eq!(
        clear,
        NOTHING,
        "in the clear while all is well\n{}",
        pair.logs()
    );
    let heard = ear.heard();
    for kind in KINDS
        .into_iter()
        .filter(|kind| !matches!(kind, Kind::Syn4 | Kind::Syn6 | Kind::Torn6))
    {
        assert!(
            heard.get(&kind).is_some_and(|count| *count > 50),
            "{kind:?} does not arrive: {heard:?}\n{}",
            pair.logs()
        );
    }
    let listener = pair.listen(crate::site::V4);
    wait_for("a connection through the tunnel", || {
        pair.is_accelerated(listener.local_addr().unwrap())
    });
}

/// Before the kernel forwards an answer out of the device it asks whether its source is plausible:
/// by routing rules, among them those that hold the question.
#[test]
fn answers_come_back_whatever_check_of_sources_the_host_makes() {
    let pair = Pair::start(&closed());
    let udp = |host, to: SocketAddr| {
        let socket = pair
            .lab
            .inside(host, || std::net::UdpSocket::bind(to).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket
    };
    let at: SocketAddr = (SERVER_V4, PORT).into();
    let (server, client) = (
        udp(Host::Server, at),
        udp(Host::Client, (CLIENT_V4, 0).into()),
    );
    let mut bytes = [0; 64];
    for check in ["0", "1", "2"] {
        for host in [Host::A, Host::B] {
            let set = format!("net.ipv4.conf.all.rp_filter={check}");
            assert!(
                pair.lab
                    .command(host, "sysctl")
                    .args(["-qw", &set])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        client.send_to(b"is it there?", at).unwrap();
        let (length, from) = server
            .recv_from(&mut bytes)
            .unwrap_or_else(|error| panic!("{check}: {error}"));
        server.send_to(&bytes[..length], from).unwrap();
        let answer = client
            .recv(&mut bytes)
            .unwrap_or_else(|error| panic!("{check}: {error}\n{}", pair.logs()));
        assert_eq!(&bytes[..answer], b"is it there?");
        let took = pair.lab.inside(Host::Client, || {
            tpo_lab::ping(SERVER_V4.into(), Duration::from_secs(2))
        });
        took.unwrap_or_else(|error| panic!("{check}: ping: {error}"));
        // An error comes back too.
        let nobody = udp(Host::Client, (CLIENT_V4, 0).into());
        pair.lab
            .inside(Host::Client, || nobody.connect((SERVER_V4, PORT + 1)))
            .unwrap();
        nobody.send(b"is anybody there?").unwrap();
        assert_eq!(
            nobody.recv(&mut bytes).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{check}"
        );
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_in_the_clear_nor_does_its_next_start() {
    let mut pair = Pair::start(&closed());
    all_arrive(&mut pair);
    let clear = clear_while(&mut pair, |pair| {
        pair.kill(Host::A);
        std::thread::sleep(Duration::from_millis(3_000));
        pair.run(Host::A);
        pair.wait_up();
    });
    assert_eq!(clear, NOTHING, "{}", pair.logs());
    all_arrive(&mut pair);
}

#[test]
fn a_stopped_daemon_leaves_nothing_in_the_clear() {
    let mut pair = Pair::start(&closed());
    let clear = clear_while(&mut pair, |pair| {
        pair.signal(Host::A, "-STOP");
        std::thread::sleep(Duration::from_millis(3_000));
        pair.signal(Host::A, "-CONT");
        std::thread::sleep(Duration::from_millis(500));
    });
    assert_eq!(clear, NOTHING, "{}", pair.logs());
    pair.wait_up();
    all_arrive(&mut pair);
}

#[test]
fn a_dead_peer_leaves_nothing_in_the_clear() {
    let mut pair = Pair::start(&closed());
    let clear = clear_while(&mut pair, |pair| {
        pair.kill(Host::B);
        std::thread::sleep(Duration::from_millis(3_000));
    });
    assert_eq!(clear, NOTHING, "{}", pair.logs());
}

#[test]
fn without_its_device_or_its_table_nothing_is_in_the_clear() {
    let mut pair = Pair::start(&closed());
    let clear = clear_while(&mut pair, |pair| {
        at_a(pair, &["nft", "delete", "table", "inet", "tpo"]);
        std::thread::sleep(Duration::from_millis(2_000));
    });
    assert_eq!(clear, NOTHING, "the table was deleted\n{}", pair.logs());
    all_arrive(&mut pair);
    let clear = clear_while(&mut pair, |pair| {
        at_a(pair, &["nft", "flush", "table", "inet", "tpo"]);
        std::thread::sleep(Duration::from_millis(2_000));
    });
    assert_eq!(clear, NOTHING, "the table was flushed\n{}", pair.logs());
    let clear = clear_while(&mut pair, |pair| {
        at_a(pair, &["ip", "link", "del", "tpo0"]);
        std::thread::sleep(Duration::from_millis(3_000));
    });
    assert_eq!(clear, NOTHING, "the device was deleted\n{}", pair.logs());
}

/// A client that has not heard the end of its connection goes on sending segments of it, a thousand
/// a second.
struct Segments {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Segments {
    fn start(pair: &Pair, connection: &std::net::TcpStream) -> Segments {
        let (from, to) = (
            connection.local_addr().unwrap(),
            connection.peer_addr().unwrap(),
        );
        let domain = if from.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = pair.lab.inside(Host::Client, || {
            Socket::new(domain, Type::RAW, Some(Protocol::TCP)).unwrap()
        });
        let octets = |ip: std::net::IpAddr| match ip {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // ACK and PSH; a number far behind the window, so that it is no part of the stream.
        let mut segment = Vec::new();
        segment.extend(from.port().to_be_bytes());
        segment.extend(to.port().to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(b"secret");
        let sum = checksum(
            &[
                &octets(from.ip())[..],
                &octets(to.ip()),
                &[0, 6, 0, 26],
                &segment,
            ]
            .concat(),
        );
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        let (stop, to) = (
            Arc::new(AtomicBool::new(false)),
            SockAddr::from(SocketAddr::new(to.ip(), 0)),
        );
        let ended = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(&segment, &to).is_ok());
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        Segments { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.join().unwrap() > 100, "segments were sent");
    }
}

#[test]
fn what_a_connection_has_under_way_is_not_in_the_clear() {
    let mut pair = Pair::start(&closed());
    for address in [crate::site::V4, crate::site::V6] {
        let listener = pair.listen(address);
        let (client, server) = pair.joined(&listener);
        let bytes = Arc::new(AtomicU64::new(0));
        let (moved, reader) = (bytes.clone(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut chunk = vec![0; 1 << 16];
            while (&reader).read(&mut chunk).is_ok_and(|length| length > 0) {
                moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        let writer = client.try_clone().unwrap();
        let sending =
            std::thread::spawn(move || while (&writer).write_all(&[7; 1 << 16]).is_ok() {});
        let moves = |what: &str| {
            let before = bytes.load(Ordering::Relaxed);
            wait_for(what, || bytes.load(Ordering::Relaxed) > before + (1 << 20));
        };
        moves("bytes to move");
        let segments = Segments::start(&pair, &client);
        let ear = Ear::open(&pair, Host::A, "wan0");
        at_a(&pair, &["nft", "delete", "table", "inet", "tpo"]);
        std::thread::sleep(Duration::from_millis(2_000));
        moves("bytes to move again: the connection lives");
        pair.kill(Host::A);
        sending.join().unwrap();
        std::thread::sleep(Duration::from_millis(1_000));
        segments.end();
        assert_eq!(
            ear.heard(),
            NOTHING,
            "segments of a connection that was carried\n{}",
            pair.logs()
        );
        pair.run(Host::A);
        pair.wait_up();
    }
}

/// Every table of nftables, and every routing rule but the kernel's own three.
const FLUSHES: [&[&[&str]]; 2] = [
    &[&["nft", "flush", "ruleset"]],
    &[
        &["ip", "-4", "rule", "flush"],
        &["ip", "-4", "rule", "add", "pref", "32766", "lookup", "main"],
        &["ip", "-6", "rule", "flush"],
        &["ip", "-6", "rule", "add", "pref", "32766", "lookup", "main"],
    ],
];

#[test]
fn a_flush_of_either_kind_leaves_no_packet_in_the_clear() {
    let mut pair = Pair::start(&closed());
    for flush in FLUSHES {
        let clear = clear_while(&mut pair, |pair| {
            flush.iter().for_each(|command| at_a(pair, command));
            std::thread::sleep(Duration::from_millis(2_500));
        });
        println!("{flush:?}: in the clear: {clear:?}");
        let rest: u64 = clear.values().sum();
        assert_eq!(
            told_by_routing(clear),
            NOTHING,
            "{flush:?}\n{}",
            pair.logs()
        );
        // Until the table is back. On a busy machine that may take a moment longer than the second
        // that it should.
        assert!(
            rest < 3 * 2 * RATE,
            "{rest} in the clear after {flush:?}\n{}",
            pair.logs()
        );
        wait_for("everything to be there again", || {
            pair.status(Host::A)["intercept"]["installed"] == true
        });
        all_arrive(&mut pair);
    }
}

#[test]
fn held_closed_also_tcp_is_held_through_a_flush_and_a_stop_until_it_is_switched_off() {
    // Strict about sources: a question of the kernel about a source must not meet what holds.
    let prepare: &[&[&str]] = &[&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"]];
    let options = Options {
        tpo: "hold_closed = true",
        prepare,
        ..closed()
    };
    let mut pair = Pair::new(&options);
    let untouched = installed(&pair);
    // Before the first start.
    hold(&pair);
    let clear = clear_while(&mut pair, |_| {
        std::thread::sleep(Duration::from_millis(500))
    });
    assert_eq!(clear, NOTHING, "before the first start");
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    all_arrive(&mut pair);
    for flush in FLUSHES {
        let clear = clear_while(&mut pair, |pair| {
            flush.iter().for_each(|command| at_a(pair, command));
            std::thread::sleep(Duration::from_millis(2_500));
        });
        assert_eq!(clear, NOTHING, "{flush:?}\n{}", pair.logs());
    }
    let clear = clear_while(&mut pair, |pair| {
        pair.end(Host::A);
        std::thread::sleep(Duration::from_millis(500));
        pair.run(Host::A);
        pair.wait_up();
        pair.end(Host::A);
    });
    assert_eq!(
        clear,
        NOTHING,
        "while it was stopped, started and stopped\n{}",
        pair.logs()
    );
    assert_ne!(installed(&pair), untouched, "what holds is there");
    off(&pair, true);
    // What `ip rule flush` has taken of the kernel's own is not ours to put back.
    at_a(
        &pair,
        &[
            "ip", "-4", "rule", "add", "pref", "32767", "lookup", "default",
        ],
    );
    assert_eq!(installed(&pair), untouched, "all is as before");
    let clear = clear_while(&mut pair, |_| {
        std::thread::sleep(Duration::from_millis(500))
    });
    assert!(
        KINDS.into_iter().all(|kind| clear.contains_key(&kind)),
        "switched off, everything goes: {clear:?}"
    );
}

#[test]
fn off_is_for_what_a_dead_daemon_has_left_and_refuses_while_one_lives() {
    let mut pair = Pair::new(&closed());
    let untouched = installed(&pair);
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    off(&pair, false);
    pair.kill(Host::A);
    // What a service manager does after a crash: closed rules hold, and nothing else is left.
    let clear = clear_while(&mut pair, |pair| {
        off_with(pair, &["--keep-closed"], true);
        std::thread::sleep(Duration::from_millis(500));
    });
    assert_eq!(clear, NOTHING);
    let left = installed(&pair);
    assert!(
        left.contains("table inet tpo_hold") && !left.contains("table inet tpo {"),
        "{left}"
    );
    off(&pair, true);
    assert_eq!(installed(&pair), untouched);
    // An orderly stop needs no help.
    pair.run(Host::A);
    pair.wait_up();
    pair.end(Host::A);
    assert_eq!(installed(&pair), untouched);
}

#[test]
fn applications_of_this_host_are_held_too() {
    let mut pair = Pair::start(&Options {
        sections: [LOCAL_RULE, ACCEPTS],
        ..closed()
    });
    let own = "10.9.0.1:0";
    let socket = pair
        .lab
        .inside(Host::A, || std::net::UdpSocket::bind(own).unwrap());
    let say = |what: &[u8]| {
        for _ in 0..100 {
            // A refusal comes back as an error.
            let _ = socket.send_to(what, (SERVER_V4, PORT));
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let server = pair.lab.inside(Host::Server, || {
        std::net::UdpSocket::bind((SERVER_V4, PORT)).unwrap()
    });
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let arrived = || std::iter::from_fn(|| server.recv(&mut [0; 16]).ok()).count();
    say(b"through it");
    assert!(
        arrived() > 50,
        "while all is well it goes through the tunnel\n{}",
        pair.logs()
    );
    pair.kill(Host::A);
    say(b"just after");
    assert_eq!(arrived(), 0, "the device is gone, the lease not yet");
    at_a(&pair, &["nft", "delete", "table", "inet", "tpo"]);
    say(b"and without the table");
    assert_eq!(arrived(), 0);
    let connecting = pair.lab.inside(Host::A, || {
        std::net::TcpStream::connect_timeout(
            &SocketAddr::from((SERVER_V4, PORT)),
            Duration::from_secs(2),
        )
    });
    assert_eq!(
        connecting.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    off(&pair, true);
    say(b"in the clear");
    assert!(arrived() > 50, "switched off, it goes");
}

const LOCAL_RULE: &str = "
[[rule]]
protocol = \"udp\"
source = \"10.9.0.1\"
destination = \"10.10.2.0/24\"
peer = \"b\"
on_failure = \"closed\"
";

#[test]
fn what_went_in_the_clear_is_counted_by_rule_and_reason() {
    let open: &str = "
[[rule]]
protocol = \"udp\"
source = \"10.10.1.0/24\"
destination = \"10.10.2.0/24\"
destination_ports = 9000
peer = \"b\"
";
    let mut pair = Pair::new(&Options {
        sections: [open, ACCEPTS],
        ..Options::default()
    });
    // Nobody is there to carry anything.
    pair.run(Host::A);
    wait_for("the rules", || {
        let asked = tpo()
            .args(["status", "--config"])
            .arg(pair.config(Host::A))
            .output()
            .unwrap();
        asked.status.success()
    });
    let socket = pair.lab.inside(Host::Client, || {
        std::net::UdpSocket::bind((CLIENT_V4, 0)).unwrap()
    });
    for _ in 0..5 {
        socket.send_to(b"plain", (SERVER_V4, PORT)).unwrap();
    }
    let listener = pair.listen(crate::site::V4);
    drop(pair.connect(listener.local_addr().unwrap()));
    let status = pair.status(Host::A);
    let plain = status["plain"].as_array().unwrap();
    let count = |names: &str| {
        let of = |entry: &&serde_json::Value| entry["names"].as_str().unwrap().starts_with(names);
        plain.iter().find(of).map_or((0, 0), |entry| {
            (
                entry["count"].as_u64().unwrap(),
                entry["number"].as_u64().unwrap(),
            )
        })
    };
    assert_eq!(
        count("udp from 10.10.1.0/24 to 10.10.2.0/24 port 9000"),
        (5, 2),
        "{plain:?}"
    );
    assert_eq!(
        count("tcp from 10.10.1.0/24 to 10.10.2.0/24"),
        (1, 2),
        "{plain:?}"
    );
    let shown = tpo()
        .args(["status", "--config"])
        .arg(pair.config(Host::A))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("went in the clear"));
}

/// Everything that could have been installed at A.
fn installed(pair: &Pair) -> String {
    let commands: [&[&str]; 4] = [
        &["nft", "list", "ruleset"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
    ];
    let said = commands.map(|command| {
        pair.lab
            .command(Host::A, command[0])
            .args(&command[1..])
            .output()
            .unwrap()
            .stdout
    });
    String::from_utf8(said.concat()).unwrap()
}

fn hold(pair: &Pair) {
    let binary = env!("CARGO_BIN_EXE_tpo");
    let status = pair
        .lab
        .command(Host::A, binary)
        .args(["hold", "--config"])
        .arg(pair.config(Host::A))
        .status()
        .unwrap();
    assert!(status.success());
}

/// `tpo off`, and whether it did.
fn off(pair: &Pair, does: bool) {
    off_with(pair, &[], does);
}

fn off_with(pair: &Pair, arguments: &[&str], does: bool) {
    let mut command = pair.lab.command(Host::A, env!("CARGO_BIN_EXE_tpo"));
    let output = command
        .arg("off")
        .args(arguments)
        .arg("--config")
        .arg(pair.config(Host::A))
        .output()
        .unwrap();
    assert_eq!(
        output.status.success(),
        does,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
