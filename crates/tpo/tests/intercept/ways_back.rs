//! Answers to packets that came out of the TUN device.

use crate::net::{Daemon, Net, PORT, PORT_OTHER, Place, V4, rules_for, table};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tpo::intercept::lease::Lease;
use tpo::intercept::names::counter;
use tpo::ip;
use tpo::packets::udp;
use tpo::table::bounds::Bounds;
use tpo::table::peers::PeerId;
use tpo::table::protocols::UDP;
use tpo::table::{OnFailure, Table};
use tpo_engine::PacketKey;

/// The far edge of UDP: packets come out of the TUN device, and their answers go into it.
struct FarEdge<'a> {
    daemon: &'a Daemon<'a>,
    lease: Lease,
    renewed: Instant,
    answered: u32,
}

impl FarEdge<'_> {
    /// The far client of a flow of this number speaks to the server's port.
    fn speak(&mut self, flow: u32, port: u16) {
        let source = SocketAddr::new(
            Ipv4Addr::from((10 << 24) | (80 << 16) | (flow >> 8)).into(),
            1_024 + (flow & 0xff) as u16,
        );
        let key = PacketKey::new(UDP, source, V4.server_at(port)).unwrap();
        let mut bytes = Vec::new();
        let head = ip::Head {
            hops: 64,
            ..ip::Head::default()
        };
        assert!(udp::emit(&key, head, &flow.to_be_bytes(), 0, &mut bytes));
        self.daemon.tun().write(&bytes).unwrap();
        self.hear();
    }

    /// Takes the answers that have come, and holds the lease of answers, which is the one behind
    /// the peers'.
    fn hear(&mut self) {
        if self.renewed.elapsed() > Duration::from_millis(500) {
            self.lease.renew(PeerId::new(1)).unwrap();
            self.renewed = Instant::now();
        }
        let mut buffer = [0; 2_048];
        while let Some(bytes) = self.daemon.tun().read(&mut buffer).unwrap() {
            let from_server = |seen: &ip::Parsed| seen.key.source == V4.server_at(PORT);
            self.answered += u32::from(ip::parse(bytes).as_ref().is_some_and(from_server));
        }
    }

    /// Until this many answers have come, or no more come.
    fn hear_all(&mut self, of: u32) -> u32 {
        let start = Instant::now();
        while self.answered < of && start.elapsed() < Duration::from_secs(1) {
            self.hear();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.answered
    }
}

#[test]
fn ways_back_leave_with_their_flows() {
    // The limits are a sixtieth of what they are by default, and so are the rates: 2,000 flows of
    // which each lives 3 s once it was answered, and 1 s before.
    const FLOWS: usize = 2_000;
    let net = Net::up();
    net.ip(Place::Tpo, "route add 10.80.0.0/12 via 10.71.1.2");
    let echo = net.inside(Place::Server, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
    });
    let silent = net.inside(Place::Server, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT_OTHER)).unwrap()
    });
    let answering = echo.try_clone().unwrap();
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        // An empty one ends it.
        while let Ok((length, from)) = answering.recv_from(&mut buffer) {
            if length == 0 {
                break;
            }
            let _ = answering.send_to(&buffer[..length], from);
        }
    });
    let table = Table {
        packets: vec![1, 17, 58],
        packets_rest: Duration::from_secs(3),
        bounds: Bounds {
            flows: FLOWS,
            rest_one_way: Duration::from_secs(1),
            ..Bounds::default()
        },
        ..table(rules_for(PORT, OnFailure::Open), 1)
    };
    let daemon = Daemon::start(&net, table);
    let mut lease = net.inside(Place::Tpo, || Lease::for_protocols(&[17]).unwrap());
    lease.renew(PeerId::new(1)).unwrap();
    let mut edge = FarEdge {
        daemon: &daemon,
        lease,
        renewed: Instant::now(),
        answered: 0,
    };
    // Three times as many as have room, 400 a second that are answered and 400 that are not: what
    // has ended makes room.
    for flow in 0..3 * FLOWS as u32 {
        // Never several at once to catch up: the echo's socket would lose some of them.
        std::thread::sleep(Duration::from_micros(2_500));
        edge.speak(flow, PORT);
        edge.speak(flow, PORT_OTHER);
    }
    assert_eq!(
        edge.hear_all(3 * FLOWS as u32),
        3 * FLOWS as u32,
        "every one of them is answered"
    );
    assert_eq!(daemon.counters()[counter::WAYS_FULL].packets, 0);
    // More at once than have room: that is counted, and those that were answered keep their way.
    edge.answered = 0;
    let known = 3 * FLOWS as u32 - 1;
    for flow in 100_000..100_000 + 2 * FLOWS as u32 {
        edge.speak(flow, PORT_OTHER);
        if flow % 200 == 0 {
            edge.speak(known, PORT);
        }
    }
    assert_eq!(
        edge.hear_all(20),
        20,
        "a flow of both ways is not disturbed"
    );
    let full = daemon.counters()[counter::WAYS_FULL].packets;
    assert!(full >= FLOWS as u64 / 2, "{full}");
    net.inside(Place::Server, || {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(&[], echo.local_addr().unwrap())
            .unwrap()
    });
    server.join().unwrap();
    drop(silent);
}
