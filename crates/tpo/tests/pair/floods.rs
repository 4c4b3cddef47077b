//! Floods of SYNs: what one host of the LAN sends does not end TCP for the others.
//!
//! `TPO_FLOOD_SECONDS=20` makes the floods longer than a test that runs with all others should be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::Host;

use super::site::{Options, Pair, SOON, V4, V6, wait_for};

/// SYNs per second of a flood.
const FLOOD: u64 = 10_000;
/// Connections of the other hosts, while it lasts.
const CONNECTIONS: usize = 200;
/// Hosts of the LAN that are no flooders: half of them have connected before it begins.
const OTHERS: u8 = 20;
/// Nobody listens there: what of a flood gets through is refused.
const FLOODED_PORT: u16 = 9_999;

/// A whole round trip is 10 ms, so that the plain way is not slow. The floods come from networks of
/// which nobody answers.
fn options(on_failure: &'static str) -> Options {
    let sections = match on_failure {
        "open" => {
            "\n[[rule]]\nprotocol = \"tcp\"\nsource = \"10.66.0.0/16\"\ndestination = \"10.10.2.0/24\"\npeer = \"b\"\n\
             \n[[rule]]\nprotocol = \"tcp\"\nsource = \"fd66::/32\"\ndestination = \"fd10:2::/64\"\npeer = \"b\"\n"
        }
        _ => {
            "\n[[rule]]\nprotocol = \"tcp\"\nsource = \"10.66.0.0/16\"\ndestination = \"10.10.2.0/24\"\npeer = \"b\"\non_failure = \"closed\"\n\
             \n[[rule]]\nprotocol = \"tcp\"\nsource = \"fd66::/32\"\ndestination = \"fd10:2::/64\"\npeer = \"b\"\non_failure = \"closed\"\n"
        }
    };
    Options {
        wan: "rate=200mbit delay=5ms",
        sections: [sections, ""],
        ..Options::default()
    }
}

fn seconds() -> u64 {
    std::env::var("TPO_FLOOD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5)
}

/// From where a flood comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    OneHost,
    /// Any address of 10.66.0.0/16.
    MadeUp,
    /// Any address of one /64.
    OneSite,
    /// A host of eight addresses of one /64.
    ManyAddresses,
    /// The address of the gateway itself, of IPv4 or IPv6.
    Gateway {
        v6: bool,
    },
}

impl From {
    fn source(self, dice: &mut fastrand::Rng) -> IpAddr {
        match self {
            From::OneHost => Ipv4Addr::new(10, 66, 0, 1).into(),
            From::MadeUp => Ipv4Addr::from(0x0a42_0000 | dice.u32(..1 << 16)).into(),
            From::OneSite => Ipv6Addr::from((0xfd66_u128 << 112) | u128::from(dice.u64(..))).into(),
            From::ManyAddresses => From::address(dice.u16(..8)),
            From::Gateway { v6: false } => Ipv4Addr::new(10, 10, 1, 1).into(),
            From::Gateway { v6: true } => Ipv6Addr::new(0xfd10, 1, 0, 0, 0, 0, 0, 1).into(),
        }
    }
}

impl From {
    /// One of the addresses of the host of many.
    fn address(number: u16) -> IpAddr {
        Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 1 + number).into()
    }

    fn is_v6(self) -> bool {
        matches!(
            self,
            From::OneSite | From::ManyAddresses | From::Gateway { v6: true }
        )
    }
}

/// A pure SYN as it is on the wire.
fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let (mut packet, mut pseudo) = (Vec::with_capacity(60), Vec::with_capacity(60));
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills in the checksum and the number.
            packet.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
        }
        _ => unreachable!("both are of one family"),
    }
    packet.extend(&pseudo);
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    let sum: u32 = pseudo
        .chunks(2)
        .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// Sends SYNs from the client's place until `stop`. Nobody there answers what comes back.
fn flood(from: From, server: IpAddr, stop: &AtomicBool, sent: &AtomicU64) {
    let domain = if server.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let mut dice = fastrand::Rng::with_seed(7);
    let (start, to) = (Instant::now(), SocketAddr::new(server, FLOODED_PORT));
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        // After a long pause it does not catch up, or a slow machine would see bursts of seconds.
        let due = (start.elapsed().as_micros() as u64 * FLOOD / 1_000_000).min(count + FLOOD / 5);
        for _ in count..due {
            let source = SocketAddr::new(from.source(&mut dice), dice.u16(1_024..));
            let packet = syn(source, to, dice.u32(..));
            // A full queue of the device loses some, as on any wire.
            if raw
                .send_to(&packet, &SocketAddr::new(server, 0).into())
                .is_ok()
            {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        count = start.elapsed().as_micros() as u64 * FLOOD / 1_000_000;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Connects from another host's address, in the namespace of this thread.
fn connect(host: u8, to: SocketAddr) -> (Duration, u32) {
    use std::io::Read as _;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::new(Ipv4Addr::new(10, 10, 1, 100 + host).into(), 0).into())
        .unwrap();
    let start = Instant::now();
    socket
        .connect_timeout(&to.into(), SOON)
        .unwrap_or_else(|error| panic!("{host}: {error}"));
    let took = start.elapsed();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut byte = [0];
    stream
        .read_exact(&mut byte)
        .unwrap_or_else(|error| panic!("host {host} hears nothing of the server: {error}"));
    (took, repeated(&stream))
}

struct World {
    pair: Pair,
    listener: std::net::TcpListener,
}

/// What the connections of others came to.
#[derive(Debug)]
struct Outcome {
    p95: Duration,
    /// SYNs and other segments that had to be sent again by the clients.
    repeated: u32,
    accelerated: u64,
}

impl World {
    fn new(options: &Options) -> World {
        let pair = Pair::new(options);
        let run = |host, line: &str| {
            let status = pair
                .lab
                .command(host, "sh")
                .args(["-c", line])
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{line}");
        };
        run(
            Host::A,
            "ip route add 10.66.0.0/16 via 10.10.1.2 && ip -6 route add fd66::/32 via fd10:1::2",
        );
        for host in 0..OTHERS {
            run(
                Host::Client,
                &format!("ip addr add 10.10.1.{}/24 dev eth0", 100 + host),
            );
        }
        // What leaves A for the WAN as it came, and the resets that A sends to those who flood.
        run(
            Host::A,
            "nft -f - <<'END'
table inet seen {
  counter clear { }
  counter resets { }
  chain out {
    type filter hook postrouting priority 300;
    oifname != \"lan0\" tcp dport 9999 counter name clear
    oifname \"lan0\" tcp flags & (rst | ack) == (rst | ack) tcp sport 9999 counter name resets
  }
}
END",
        );
        let mut pair = pair;
        pair.run(Host::A);
        pair.run(Host::B);
        pair.wait_up();
        let listener = pair.listen(V4);
        let serving = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            use std::io::Write as _;
            // Ends when the listener is shut down.
            while let Ok((mut stream, _)) = serving.accept() {
                let _ = stream.write_all(b"!");
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut std::io::sink()));
            }
        });
        World { pair, listener }
    }

    fn count(&self, counter: &str) -> u64 {
        let output = self
            .pair
            .lab
            .command(Host::A, "nft")
            .args(["list", "counter", "inet", "seen", counter])
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let (_, rest) = text
            .split_once("packets ")
            .unwrap_or_else(|| panic!("{text}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn says(&self, host: Host, line: &str) -> String {
        let output = self
            .pair
            .lab
            .command(host, "sh")
            .args(["-c", line])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn flows(&self) -> u64 {
        self.pair.status(Host::A)["peers"][0]["flows_total"]
            .as_u64()
            .unwrap()
    }

    fn passed(&self, reason: &str) -> u64 {
        let status = self.pair.status(Host::A);
        let passed = status["passed"].as_array().unwrap();
        passed
            .iter()
            .find(|one| one["reason"] == reason)
            .map_or(0, |one| one["count"].as_u64().unwrap())
    }

    /// One connection of the other host of this number: the time until it was connected, once the
    /// server has been heard too.
    fn connect(&self, host: u8) -> (Duration, u32) {
        let to = self.listener.local_addr().unwrap();
        self.pair.lab.inside(Host::Client, || connect(host, to))
    }

    /// The connections of the first `hosts` of the other hosts, spread over the time.
    fn others(&self, hosts: u8, time: Duration) -> Outcome {
        let (start, before) = (Instant::now(), self.flows());
        let mut times = Vec::new();
        let mut again = 0;
        for number in 0..CONNECTIONS {
            let at = time * number as u32 / CONNECTIONS as u32;
            std::thread::sleep(at.saturating_sub(start.elapsed()));
            let (took, repeated) = self.connect((number % usize::from(hosts)) as u8);
            times.push(took);
            again += repeated;
        }
        times.sort();
        Outcome {
            p95: times[CONNECTIONS * 95 / 100],
            repeated: again,
            accelerated: self.flows() - before,
        }
    }

    /// The same of all other hosts, during a flood; and how many SYNs it had, in which time.
    fn others_in_a_flood(&self, from: From, time: Duration) -> (Outcome, u64, Duration) {
        let server = if from.is_v6() { V6 } else { V4 }.parse().unwrap();
        let (stop, sent, start) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                self.pair
                    .lab
                    .inside(Host::Client, || flood(from, server, &stop, &sent))
            });
            // By now the queue of one listening socket would be full.
            std::thread::sleep(Duration::from_secs(1));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.others(OTHERS, time)
            }));
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (outcome, sent.into_inner(), start.elapsed())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
    }
}

/// Segments that this end has sent again, its SYN among them.
fn repeated(stream: &TcpStream) -> u32 {
    // SAFETY: all zeros are a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let place = (&raw mut info).cast();
    // SAFETY: the place is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            place,
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// Floods `time` long: all connections of others work, none of them asks twice, and they take
/// hardly longer.
fn a_flood_ends_nobodys_connections(from: From, on_failure: &'static str) {
    let world = World::new(&options(on_failure));
    let time = Duration::from_secs(seconds());
    // Half of the hosts have connected before, as the hosts of a LAN have.
    let calm = world.others(OTHERS / 2, Duration::from_secs(2));
    let (busy, sent, took) = world.others_in_a_flood(from, time);
    let (clear, resets, passed) = (
        world.count("clear"),
        world.count("resets"),
        world.passed("flood"),
    );
    println!(
        "{from:?} {on_failure}: {sent} SYNs, {passed} not taken, {clear} in the clear, {resets} resets; others: {busy:?}, without the flood {calm:?}"
    );
    // A burst and a rate are taken, of one source less than of made-up ones. Nothing else.
    let (burst, rate) = if from == From::MadeUp {
        (4_000, 4_000)
    } else {
        (1_000, 500)
    };
    let most = burst + rate * (took.as_secs() + 1);
    assert!(
        sent > 2 * most || from == From::MadeUp && sent > most,
        "{sent} SYNs are no flood"
    );
    assert!(
        passed + most >= sent,
        "{passed} of {sent} are not taken, {most} at most should be"
    );
    assert_eq!(busy.repeated, 0, "{busy:?}");
    match from {
        // A host that has never connected before cannot be told from a made-up address: until it
        // has had one connection accelerated, some take their plain way.
        From::MadeUp => assert!(busy.accelerated >= CONNECTIONS as u64 * 3 / 4, "{busy:?}"),
        _ => assert_eq!(busy.accelerated, CONNECTIONS as u64, "{busy:?}"),
    }
    assert!(
        busy.p95 < calm.p95 + Duration::from_millis(50),
        "{busy:?} beside {calm:?}"
    );
    match on_failure {
        // Its plain way: refused by the server itself.
        "open" => assert!(clear > passed / 2, "{clear} of {passed}"),
        // Neither in the clear, nor turned upon those whose address was made up.
        _ => {
            assert_eq!((clear, resets), (0, 0));
            // Of connections that never opened nothing is remembered as carried.
            let carried = world.says(Host::A, "nft list set inet tpo_hold carried_v4");
            assert!(
                carried.contains("carried_v4") && !carried.contains("10.66."),
                "{}",
                carried.len()
            );
        }
    }
    let leases = &world.pair.status(Host::A)["intercept"]["leases"][0];
    assert_eq!(leases["held"], true, "{leases}");
}

#[test]
fn a_flood_of_one_host_ends_nobodys_connections() {
    a_flood_ends_nobodys_connections(From::OneHost, "open");
}

#[test]
fn a_flood_from_made_up_addresses_ends_nobodys_connections() {
    a_flood_ends_nobodys_connections(From::MadeUp, "open");
}

#[test]
fn a_flood_from_all_addresses_of_a_site_ends_nobodys_connections() {
    a_flood_ends_nobodys_connections(From::OneSite, "open");
}

#[test]
fn of_a_flood_of_a_closed_rule_nothing_leaves_and_nothing_is_sent_back() {
    a_flood_ends_nobodys_connections(From::MadeUp, "closed");
}

#[test]
fn a_flood_that_bears_the_gateways_own_address_is_bounded_too() {
    let world = World::new(&options("open"));
    world.others(OTHERS, Duration::from_secs(2));
    for v6 in [false, true] {
        let before = world.passed("flood");
        let (busy, sent, took) =
            world.others_in_a_flood(From::Gateway { v6 }, Duration::from_secs(3));
        let passed = world.passed("flood") - before;
        let most = 1_000 + 500 * (took.as_secs() + 1);
        assert!(sent > 2 * most, "{sent} SYNs are no flood");
        assert!(
            passed + most >= sent,
            "{passed} of {sent} are not taken, {most} at most should be"
        );
        assert_eq!(
            (busy.accelerated, busy.repeated),
            (CONNECTIONS as u64, 0),
            "{busy:?}"
        );
    }
}

#[test]
fn one_host_of_many_known_addresses_leaves_room_for_others() {
    // Four known sources may send what all together may, and a /64 three quarters of that.
    let options = Options {
        intercept: "syn_rate_per_source = 300\nsyn_rate = 1600",
        ..options("open")
    };
    let world = World::new(&options);
    world.others(OTHERS, Duration::from_secs(2));
    let to = SocketAddr::new(V6.parse().unwrap(), FLOODED_PORT);
    for address in (0..8).map(From::address) {
        world.says(
            Host::Client,
            &format!("ip addr add {address}/128 dev eth0 nodad"),
        );
        world.pair.lab.inside(Host::Client, || {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
            socket.connect_timeout(&to.into(), SOON).unwrap();
        });
        wait_for("the address to be known", || {
            world
                .says(Host::A, "nft list set inet tpo known_v6")
                .contains(&address.to_string())
        });
        // From now on nobody answers there.
        world.says(Host::Client, &format!("ip addr del {address}/128 dev eth0"));
    }
    let (busy, sent, took) =
        world.others_in_a_flood(From::ManyAddresses, Duration::from_secs(seconds()));
    assert!(sent > 2_400 * took.as_secs(), "{sent} SYNs are no flood");
    assert_eq!(
        (busy.accelerated, busy.repeated),
        (CONNECTIONS as u64, 0),
        "{busy:?}"
    );
}

#[test]
fn known_hosts_are_known_again_after_the_table_was_made_anew() {
    let world = World::new(&options("open"));
    let known = || {
        world
            .says(Host::A, "nft list set inet tpo known_v4")
            .contains("10.10.1.100")
    };
    // The repair falls anywhere between two looks of the gate.
    for _ in 0..5 {
        world.connect(0);
        wait_for("the host to be known", known);
        world.says(Host::A, "nft delete table inet tpo");
        wait_for("the table", || {
            !world.says(Host::A, "nft list table inet tpo").is_empty()
        });
        assert!(!known(), "the table is another one");
        wait_for("the lease", || {
            world.pair.status(Host::A)["intercept"]["leases"][0]["held"] == true
        });
        // The gate looks twice a second.
        std::thread::sleep(Duration::from_millis(600));
    }
}

#[test]
fn while_the_listeners_queues_are_full_tcp_is_let_go() {
    let options = Options {
        intercept: "syn_rate_per_source = 1000000\nsyn_rate = 1000000",
        // 64 sockets of 64 each.
        prepare: &[&["sh", "-c", "echo 64 > /proc/sys/net/core/somaxconn"]],
        ..options("open")
    };
    let world = World::new(&options);
    let lease = || world.pair.status(Host::A)["intercept"]["leases"][0].clone();
    assert_eq!(lease()["held"], true);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let server = V4.parse().unwrap();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            world
                .pair
                .lab
                .inside(Host::Client, || flood(From::MadeUp, server, &stop, &sent))
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the lease to go", || lease()["held"] == false);
            let found = lease();
            assert!(
                found["reason"]
                    .as_str()
                    .unwrap()
                    .contains("flood of new connections"),
                "{found}"
            );
            // The plain way, without a repetition: the queues that are full are not asked.
            let before = world.flows();
            let repeated: u32 = (0..OTHERS).map(|host| world.connect(host).1).sum();
            assert_eq!((repeated, world.flows()), (0, before));
        }));
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    wait_for("the lease to come back", || lease()["held"] == true);
    let before = world.flows();
    for host in 0..OTHERS {
        world.connect(host);
    }
    assert_eq!(world.flows(), before + u64::from(OTHERS));
    let logs = world.pair.logs();
    let said = |what: &str| logs.matches(what).count();
    assert_eq!(
        (
            said("has filled the listeners' queues"),
            said("TCP connections are taken again")
        ),
        (1, 1),
        "{logs}"
    );
}

#[test]
fn many_connections_of_one_host_that_completes_them_are_no_flood() {
    const THREADS: u64 = 16;
    const EACH: u64 = 300;
    let world = World::new(&options("open"));
    let to = world.listener.local_addr().unwrap();
    let (before, start) = (world.flows(), Instant::now());
    // As fast as this machine can, from the first one on.
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                world.pair.lab.inside(Host::Client, || {
                    (0..EACH).for_each(|_| assert_eq!(connect(0, to).1, 0))
                })
            });
        }
    });
    println!(
        "{:.0} connections per second",
        (THREADS * EACH) as f64 / start.elapsed().as_secs_f64()
    );
    assert_eq!(
        (world.flows() - before, world.passed("flood")),
        (THREADS * EACH, 0)
    );
}
