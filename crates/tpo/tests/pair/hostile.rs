//! Hostile datagrams and peers that ask for what they may not have.

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::Host;

use crate::liar::Liar;
use crate::site::{Options, Pair, V4, exchange, expect_reset, wait_for};

const PORT: u16 = 47_800;
const TO_B: &str = "10.9.0.2:47800";

#[test]
fn noise_of_strangers_gets_no_answer_and_a_counter() {
    let pair = Pair::start(&Options::default());
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    let stranger = pair
        .lab
        .inside(Host::Client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    stranger
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    for first in 0..=255u8 {
        for length in [1, 7, 8, 24, 63, 64, 400, 1_200] {
            let mut datagram = vec![first.wrapping_mul(37); length];
            datagram[0] = first;
            stranger.send_to(&datagram, TO_B).unwrap();
        }
    }
    let answer = stranger.recv_from(&mut [0; 2_048]);
    assert!(answer.is_err(), "a stranger was answered: {answer:?}");
    let strangers = pair.status(Host::B)["strangers"].clone();
    assert!(
        strangers.as_object().is_some_and(|kinds| kinds
            .values()
            .filter_map(|n| n.as_u64())
            .sum::<u64>()
            > 0),
        "{strangers}"
    );
    // The flows of the pair did not notice.
    exchange(&client, &server, 8, 1_000_000);
}

/// Hears everything that A sends to B.
struct Eavesdropper(Socket);

impl Eavesdropper {
    fn new(pair: &Pair) -> Eavesdropper {
        // All protocols (ETH_P_ALL), in network byte order; datagram sockets hear packets from the
        // IP header on.
        let all = Protocol::from(i32::from(3u16.to_be()));
        let socket = pair.lab.inside(Host::A, || {
            Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap()
        });
        socket.set_nonblocking(true).unwrap();
        socket.set_recv_buffer_size(4 << 20).unwrap();
        Eavesdropper(socket)
    }

    /// The UDP payloads heard since the last call whose first byte is one of these, without batches
    /// that the host sends as one packet.
    fn heard(&mut self, first: std::ops::RangeInclusive<u8>) -> Vec<Vec<u8>> {
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        let mut packet = [0; 1 << 16];
        while let Ok(length) = self.0.read(&mut packet) {
            let packet = &packet[..length];
            if length < 29
                || packet[0] != 0x45
                || packet[9] != 17
                || packet[12..20] != [10, 9, 0, 1, 10, 9, 0, 2]
            {
                continue;
            }
            if length <= 1_500
                && packet[20..24] == [PORT.to_be_bytes(), PORT.to_be_bytes()].concat()
            {
                datagrams.push(packet[28..].to_vec());
            }
        }
        datagrams.retain(|datagram| first.contains(&datagram[0]));
        datagrams
    }
}

/// Sends as A, without A's daemon: from the same address and port.
fn send_as_a(socket: &Socket, datagram: &[u8]) {
    let to: SocketAddr = TO_B.parse().unwrap();
    // Ports, length, and no checksum, which IPv4 leaves to the sender.
    let mut packet = [
        PORT.to_be_bytes(),
        PORT.to_be_bytes(),
        (8 + datagram.len() as u16).to_be_bytes(),
        [0; 2],
    ]
    .concat();
    packet.extend_from_slice(datagram);
    assert_eq!(socket.send_to(&packet, &to.into()).unwrap(), packet.len());
}

fn drops_at_b(pair: &Pair, kind: &str) -> u64 {
    pair.status(Host::B)["peers"][0]["drops"][kind]
        .as_u64()
        .unwrap_or(0)
}

#[test]
fn genuine_datagrams_replayed_or_changed_do_nothing_but_count() {
    let mut pair = Pair::new(&Options::default());
    let mut eavesdropper = Eavesdropper::new(&pair);
    pair.run(Host::B);
    pair.run(Host::A);
    pair.wait_up();
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    let handshakes = eavesdropper.heard(0x10..=0x10);
    assert!(!handshakes.is_empty(), "A took no part in the handshake");
    // Little at a time, so that each datagram is a packet of its own.
    for seed in 0..30 {
        exchange(&client, &server, seed, 300);
        exchange(&server, &client, seed, 300);
    }
    let genuine = eavesdropper.heard(0x40..=0x4f);
    assert!(genuine.len() >= 30, "{} datagrams heard", genuine.len());

    let as_a = pair.lab.inside(Host::A, || {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap()
    });
    let (replayed, forged) = (drops_at_b(&pair, "replayed"), drops_at_b(&pair, "forged"));
    let count = genuine.len() as u64;
    for datagram in &genuine {
        send_as_a(&as_a, datagram);
    }
    wait_for("all replays to be counted", || {
        drops_at_b(&pair, "replayed") >= replayed + count
    });
    assert_eq!(drops_at_b(&pair, "forged"), forged, "a replay is genuine");
    for datagram in &genuine {
        // A number that A has not used yet, or the window would drop it before it is opened.
        let mut ahead = datagram.clone();
        let number = u32::from_be_bytes(ahead[4..8].try_into().unwrap()) + 10_000;
        ahead[4..8].copy_from_slice(&number.to_be_bytes());
        send_as_a(&as_a, &ahead);
        let mut flipped = ahead.clone();
        *flipped.last_mut().unwrap() ^= 0x10;
        send_as_a(&as_a, &flipped);
        send_as_a(&as_a, &ahead[..ahead.len() - 1]);
    }
    wait_for("all forgeries to be counted", || {
        drops_at_b(&pair, "forged") >= forged + 3 * count
    });
    exchange(&client, &server, 100, 1_000_000);

    // The same from another address: session datagrams get no answer, handshakes no more than
    // three times their bytes.
    let stranger = pair
        .lab
        .inside(Host::Client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    stranger
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    for datagram in &genuine {
        stranger.send_to(datagram, TO_B).unwrap();
    }
    let answer = stranger.recv_from(&mut [0; 2_048]);
    assert!(
        answer.is_err(),
        "a replay from elsewhere was answered: {answer:?}"
    );
    let mut sent = 0;
    for datagram in handshakes.iter().cycle().take(100) {
        sent += stranger.send_to(datagram, TO_B).unwrap();
    }
    let mut answered = 0;
    let start = Instant::now();
    while let Ok((length, _)) = stranger.recv_from(&mut [0; 2_048])
        && start.elapsed() < Duration::from_secs(5)
    {
        answered += length;
    }
    assert!(answered <= 3 * sent, "{answered} bytes in answer to {sent}");
    let peer = &pair.status(Host::B)["peers"][0];
    assert_eq!(
        (peer["up"].as_bool(), peer["endpoint"].as_str()),
        (Some(true), Some("10.9.0.1:47800")),
        "{peer}"
    );
    exchange(&client, &server, 101, 1_000_000);
    exchange(&server, &client, 102, 1_000_000);
}

#[test]
fn what_accept_does_not_name_is_refused() {
    let pair = Pair::start(&Options {
        accept: "destination_ports = \"1-1024\"",
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    assert!(to.port() > 1_024);
    let start = Instant::now();
    let client = pair.connect(to);
    expect_reset(&client);
    assert!(start.elapsed() < Duration::from_secs(2));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the server was never asked");
}

/// A compressed payload of `count` messages of a flow that never was, each with a sequence number
/// below `different`.
fn late_and_compressed(count: u16, different: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    for number in 0..usize::from(count) {
        raw.extend([1, 16, 3, 0, 0, 0, 0, 7, 0, 0, 0]);
        raw.push((number * 157 % different) as u8);
        raw.extend([0; 4]);
    }
    let mut frame = vec![0; zstd_safe::compress_bound(raw.len())];
    let length = zstd_safe::compress(&mut frame[..], &raw, 9).unwrap();
    // Without the magic number.
    let frame = &frame[4..length];
    let mut payload = vec![2, 0];
    payload.extend(count.to_be_bytes());
    payload.extend((8 + frame.len() as u32).to_be_bytes());
    payload.extend(0u32.to_be_bytes());
    payload.extend((raw.len() as u32).to_be_bytes());
    payload.extend(frame);
    payload
}

/// Its lane may be busy with what a peer says; the service manager hears of it that all others are
/// served.
#[test]
fn a_peer_that_keeps_its_lane_busy_keeps_no_life_sign_back() {
    let mut pair = Pair::new(&Options::default());
    let address = pair.config(Host::B).with_file_name("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    pair.run_with(
        Host::B,
        &[
            ("NOTIFY_SOCKET", address.as_os_str()),
            ("WATCHDOG_USEC", "1000000".as_ref()),
        ],
    );
    wait_for("B", || manager.recv(&mut [0; 64]).is_ok());
    manager.set_nonblocking(true).unwrap();
    let many = late_and_compressed(16_000, 1);
    let mut most = 200;
    while usize::from(most) <= late_and_compressed(most, 251).len() {
        most += 50;
    }
    let as_many_as_may_be = late_and_compressed(most - 50, 251);
    assert!(
        many.len() < 100 && as_many_as_may_be.len() < 1_200,
        "{}, {}",
        many.len(),
        as_many_as_may_be.len()
    );
    for payload in [as_many_as_may_be, many] {
        let mut liar = Liar::instead_of_a(&pair);
        let (start, mut said, mut gap, mut last) =
            (Instant::now(), 0, Duration::ZERO, Instant::now());
        while start.elapsed() < Duration::from_secs(10) {
            said += (0..2_000)
                .take_while(|_| liar.blurt(payload.clone()))
                .count();
            liar.listen(Duration::from_millis(20));
            while manager.recv(&mut [0; 64]).is_ok() {
                last = Instant::now();
            }
            gap = gap.max(last.elapsed());
        }
        println!(
            "{said} payloads of {} bytes, no life sign for {gap:?} at most",
            payload.len()
        );
        assert!(said > 1_000, "{said}");
        // Two come within a second.
        assert!(
            gap < Duration::from_secs(2),
            "no life sign for {gap:?}\n{}",
            pair.logs()
        );
    }
}
