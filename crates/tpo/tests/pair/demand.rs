//! A peer that is called on demand: nothing is on the WAN until a rule needs it, and nothing
//! afterwards.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tpo_lab::Host;

use crate::packets;
use crate::site::{Options, Pair, SOON, V4, accept, wait_for};

fn options() -> Options {
    Options {
        peer: "connect = \"on-demand\"\ndisconnect_after = \"2s\"",
        ..packets::options()
    }
}

fn wan(pair: &Pair) -> u64 {
    let (forth, back) = pair.lab.stats();
    forth.offered_packets + back.offered_packets
}

/// Both say that they rest, and nothing is on the wire.
fn wait_resting(pair: &Pair) {
    wait_for("the peers to rest", || {
        [Host::A, Host::B]
            .iter()
            .all(|host| pair.status(*host)["peers"][0]["state"] == "resting")
    });
    // The last acknowledgement of a goodbye may still be under way.
    std::thread::sleep(Duration::from_millis(200));
    let before = wan(pair);
    std::thread::sleep(Duration::from_millis(1_500));
    // The kernel says a word of its own now and then.
    assert!(
        wan(pair) <= before + 2,
        "{} packets while they rest",
        wan(pair) - before
    );
}

fn exchange(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn a_peer_is_called_when_it_is_needed_and_left_when_it_is_not() {
    let pair = Pair::start(&options());
    wait_resting(&pair);
    let listener = pair.listen(V4);
    for _ in 0..2 {
        let before = Instant::now();
        let (client, server) = pair.joined(&listener);
        exchange(&client, &server);
        // Locally accepted, a handshake, a round trip for the connection and one for the answer.
        let took = before.elapsed();
        let says = |host| pair.status(host);
        assert!(
            took < Duration::from_millis(500),
            "{took:?}\n{}\n{}",
            says(Host::A),
            says(Host::B)
        );
        assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(pair.is_accelerated(listener.local_addr().unwrap()));
        drop(accept(&listener));
        drop((client, server));
        wait_resting(&pair);
    }
    // The other side calls as well.
    let listener = pair.listen_at(Host::Client, "10.10.1.2");
    let client = pair
        .try_connect_at(Host::Server, listener.local_addr().unwrap())
        .unwrap();
    let (server, from) = accept(&listener);
    exchange(&client, &server);
    assert_eq!(from, client.local_addr().unwrap());
    assert_eq!(pair.status(Host::A)["peers"][0]["state"], "up");
    drop((client, server));
    wait_resting(&pair);
    // Packets call it too: the first take their plain way.
    let server = packets::udp(&pair, Host::Server, packets::address(V4, packets::PORT));
    let client = packets::udp(&pair, Host::Client, "0.0.0.0:0".parse().unwrap());
    wait_for("a flow of datagrams through the pair", || {
        client
            .send_to(b"ping", packets::address(V4, packets::PORT))
            .unwrap();
        packets::echo(&server);
        client
            .recv(&mut [0; 10])
            .expect("the answer arrives, by whichever way");
        !packets::flows(&pair, Host::A, 17).is_empty()
    });
}

#[test]
fn a_peer_that_does_not_answer_is_as_one_that_is_down() {
    let mut pair = Pair::new(&options());
    pair.run(Host::A);
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    pair.wait_up_at(Host::A);
    wait_for("the peer to rest", || {
        pair.status(Host::A)["intercept"]["leases"][0]["held"] == true
    });
    // The first connection finds it out.
    let start = Instant::now();
    let mut first = pair.connect(to);
    let error = first.read(&mut [0; 1]).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // From then on they take their plain way.
    wait_for("the plain way", || {
        pair.status(Host::A)["intercept"]["leases"][0]["held"] == false
    });
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server);
    // It is called until it answers.
    pair.run(Host::B);
    let start = Instant::now();
    while !pair.is_accelerated(to) {
        assert!(start.elapsed() < SOON, "it was not called again");
        std::thread::sleep(Duration::from_millis(100));
    }
}
