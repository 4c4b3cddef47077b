//! A peer with real keys that says anything: a mover of its own in the place of a daemon, and the
//! packet driver's buffers written by hand.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tpo_lab::Host;
use tpo_mover::{Config, Event, Identity, Mover};

use crate::site::{Pair, SOON};

/// Function types of messages.
pub(crate) const DATA: u8 = 1;
pub(crate) const TIMELY: u8 = 5;

/// One that speaks from host A.
pub(crate) struct Liar {
    mover: Mover,
    socket: UdpSocket,
    /// Of the flow opened last.
    flow: u32,
    connected: bool,
    /// All payloads that came.
    heard: Vec<Vec<u8>>,
}

impl Liar {
    /// In the place of the daemon of A.
    pub(crate) fn instead_of_a(pair: &Pair) -> Liar {
        let identity = tpo::config::keys::read(&beside(pair, "a.key")).unwrap();
        Liar::new(pair, identity, "10.9.0.1:47800")
    }

    /// A peer that calls from A's address, at a port of its own.
    pub(crate) fn new(pair: &Pair, identity: Identity, from: &str) -> Liar {
        let socket = pair.lab.inside(Host::A, || UdpSocket::bind(from)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        let at = tpo::config::keys::read(&beside(pair, "b.key"))
            .unwrap()
            .public_key();
        let flow: u32 = if identity.public_key() > at {
            1 << 31
        } else {
            0
        };
        let mut config = Config::new(Arc::new(identity), at, 0, tpo::sys::random_seed().unwrap());
        config.endpoint = Some("10.9.0.2:47800".parse().unwrap());
        let mut liar = Liar {
            mover: Mover::new(config, Instant::now()),
            socket,
            flow,
            connected: false,
            heard: Vec::new(),
        };
        let start = Instant::now();
        while !liar.connected {
            assert!(
                start.elapsed() < SOON,
                "the far side does not answer\n{}",
                pair.logs()
            );
            liar.listen(Duration::from_millis(20));
        }
        liar
    }

    /// Lives for a while.
    pub(crate) fn listen(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let (mut out, mut bytes) = (Vec::new(), [0; 2_048]);
        loop {
            let now = Instant::now();
            if self.mover.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.mover.handle_timeout(now);
            }
            out.clear();
            while let Some(transmit) = self.mover.poll_transmit(&mut out, now) {
                for datagram in out.chunks(transmit.segment_size) {
                    // Lost or not, as datagrams are.
                    let _ = self.socket.send_to(datagram, transmit.to);
                }
                out.clear();
            }
            if now >= until {
                return;
            }
            if let Ok((length, from)) = self.socket.recv_from(&mut bytes) {
                self.mover
                    .handle_datagram(from, &mut bytes[..length], Instant::now());
            }
            while let Some(event) = self.mover.poll_event() {
                self.connected |= matches!(event, Event::Connected { .. });
            }
            while let Some(payload) = self.mover.poll_payload() {
                self.heard.push(payload);
            }
        }
    }

    /// Opens a flow by a message of this function type and protocol, in a buffer of its own; gives
    /// its number.
    pub(crate) fn open(
        &mut self,
        function: u8,
        protocol: u8,
        source: &str,
        destination: &str,
        data: &[u8],
    ) -> u32 {
        self.flow += 1;
        self.say(
            function,
            self.flow,
            0,
            Some((protocol, source, destination)),
            data,
        );
        self.flow
    }

    /// One message, in the full form where addresses are given.
    pub(crate) fn say(
        &mut self,
        function: u8,
        flow: u32,
        number: u32,
        key: Option<(u8, &str, &str)>,
        data: &[u8],
    ) {
        let mut message = vec![1, 16, function, 0];
        message.extend(flow.to_be_bytes());
        message.extend(number.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        if let Some((protocol, source, destination)) = key {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            message.extend([protocol, 0]);
            message.extend(source.port().to_be_bytes());
            message.extend(destination.port().to_be_bytes());
            message.extend([2, 0]);
            for end in [source, destination] {
                match end.ip() {
                    IpAddr::V4(v4) => message.extend(v4.octets()),
                    IpAddr::V6(v6) => message.extend(v6.octets()),
                }
            }
            message[1] = message.len() as u8;
        }
        message.extend(data);
        let mut payload = vec![1, 0, 0, 1];
        payload.extend((message.len() as u32).to_be_bytes());
        payload.extend(message);
        self.mover
            .send(payload, true, Instant::now())
            .expect("room for a payload");
        self.listen(Duration::from_millis(50));
    }

    /// Says this payload when there is room for it; whether there was.
    pub(crate) fn blurt(&mut self, payload: Vec<u8>) -> bool {
        self.mover.send(payload, false, Instant::now()).is_ok()
    }

    /// Whether these bytes have come.
    pub(crate) fn has_heard(&self, bytes: &[u8]) -> bool {
        self.heard
            .iter()
            .any(|payload| payload.windows(bytes.len()).any(|some| some == bytes))
    }
}

fn beside(pair: &Pair, file: &str) -> std::path::PathBuf {
    pair.config(Host::B)
        .parent()
        .unwrap_or(Path::new(""))
        .join(file)
}

/// A UDP payload in the form in which it crosses: 64 hops, nothing else.
pub(crate) fn plain(payload: &[u8]) -> Vec<u8> {
    [&[1, 0, 64, 0][..], payload].concat()
}

/// A whole IPv4 packet in the form in which it crosses.
pub(crate) fn whole(protocol: u8, source: &str, destination: &str, body: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut packet = vec![0x45, 0];
    packet.extend((20 + body.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(octets(source));
    packet.extend(octets(destination));
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(body);
    [&[0][..], &packet].concat()
}

/// A message of ICMP: type and code, and all behind the checksum.
pub(crate) fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], rest].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}
