//! Hostile datagrams and peers that ask for what they may not have.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::site::{Options, Pair, V4, exchange, expect_reset};
use tpo_lab::Host;

#[test]
fn strangers_get_no_answer_and_truncated_or_replayed_datagrams_only_a_counter() {
    let pair = Pair::start(&Options::default());
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    let stranger = pair.lab.inside(Host::Client, || UdpSocket::bind("0.0.0.0:0").unwrap());
    stranger.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let to = "10.9.0.2:47800";
    for first in 0..=255u8 {
        for length in [1, 7, 8, 24, 63, 64, 400, 1_200] {
            let mut datagram = vec![first.wrapping_mul(37); length];
            datagram[0] = first;
            stranger.send_to(&datagram, to).unwrap();
        }
    }
    let answer = stranger.recv_from(&mut [0; 2_048]);
    assert!(answer.is_err(), "a stranger was answered: {answer:?}");
    let strangers = pair.status(Host::B)["strangers"].clone();
    assert!(
        strangers.as_object().is_some_and(|kinds| kinds.values().filter_map(|n| n.as_u64()).sum::<u64>() > 0),
        "{strangers}"
    );
    // The flows of the pair did not notice.
    exchange(&client, &server, 8, 1_000_000);
}

#[test]
fn what_accept_does_not_name_is_refused() {
    let pair = Pair::start(&Options { accept: "destination_ports = \"1-1024\"", ..Options::default() });
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
