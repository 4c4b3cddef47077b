//! Ends: half-close, reset, refusal, faithfully across.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use crate::site::{
    Options, Pair, V4, V6, expect_end, expect_pattern, expect_reset, reset, send_pattern, wait_for,
};
use tpo_lab::Host;

#[test]
fn half_close_crosses_both_ways() {
    let pair = Pair::start(&Options::default());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        // The client finishes first, and still hears the server.
        let (client, server) = pair.joined(&listener);
        send_pattern(&client, 1, 50_000);
        client.shutdown(Shutdown::Write).unwrap();
        expect_pattern(&server, 1, 50_000);
        expect_end(&server);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&server, 2, 3_000_000);
                drop(server);
            });
            expect_pattern(&client, 2, 3_000_000);
            expect_end(&client);
        });
        // The server finishes first, and still hears the client.
        let (client, server) = pair.joined(&listener);
        server.shutdown(Shutdown::Write).unwrap();
        expect_end(&client);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&client, 3, 3_000_000);
                client.shutdown(Shutdown::Write).unwrap();
            });
            expect_pattern(&server, 3, 3_000_000);
            expect_end(&server);
        });
    }
    wait_for("all flows to end", || {
        pair.flows(Host::A).is_empty() && pair.flows(Host::B).is_empty()
    });
}

#[test]
fn reset_crosses_both_ways_after_the_data_before_it() {
    let pair = Pair::start(&Options::default());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        let (mut client, mut server) = pair.joined(&listener);
        client.write_all(b"last words").unwrap();
        let mut words = [0; 10];
        server.read_exact(&mut words).unwrap();
        reset(client);
        expect_reset(&server);

        let (mut client, mut server) = pair.joined(&listener);
        server.write_all(b"last words").unwrap();
        client.read_exact(&mut words).unwrap();
        reset(server);
        expect_reset(&client);
    }
    wait_for("all flows to end", || {
        pair.flows(Host::A).is_empty() && pair.flows(Host::B).is_empty()
    });
}

#[test]
fn a_refused_destination_resets_the_client() {
    let pair = Pair::start(&Options::default());
    for address in [V4, V6] {
        let closed = pair.listen(address).local_addr().unwrap();
        let start = Instant::now();
        let client = pair.connect(closed);
        expect_reset(&client);
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "a refusal takes a round trip, not {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn an_unreachable_destination_resets_the_client() {
    let pair = Pair::start(&Options::default());
    for address in ["10.10.2.77", "fd10:2::77"] {
        let client = pair.connect(SocketAddr::new(address.parse().unwrap(), 80));
        // The far kernel gives up looking for the host's link address after some three seconds.
        expect_reset(&client);
    }
}
