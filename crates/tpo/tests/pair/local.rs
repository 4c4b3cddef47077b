//! Deployments: applications and servers on the TPO's own host, redirect mode, the TPO's address at the server, no IPv6.

use crate::site::{Options, Pair, V4, V6, accept, expect_pattern, send_pattern};
use std::time::{Duration, Instant};
use tpo_lab::Host;

#[test]
fn applications_on_the_hosts_of_the_tpos_are_carried_too() {
    let pair = Pair::start(&Options::default());
    for (client, server, address) in [
        (Host::A, Host::Server, V4),
        (Host::A, Host::Server, V6),
        (Host::Client, Host::B, "10.10.2.1"),
        (Host::Client, Host::B, "fd10:2::1"),
        (Host::A, Host::B, "10.10.2.1"),
    ] {
        let listener = pair.listen_at(server, address);
        let start = Instant::now();
        let stream = pair.try_connect_at(client, listener.local_addr().unwrap()).unwrap();
        assert!(start.elapsed() < Duration::from_millis(20), "{client:?} to {server:?} at {address} is accelerated");
        let (far, from) = accept(&listener);
        assert_eq!(from, stream.local_addr().unwrap(), "{client:?} to {server:?} at {address}");
        send_pattern(&stream, 1, 2_000_000);
        expect_pattern(&far, 1, 2_000_000);
        send_pattern(&far, 2, 2_000_000);
        expect_pattern(&stream, 2, 2_000_000);
    }
}

#[test]
fn redirect_mode_carries_both_families() {
    let pair = Pair::start(&Options { intercept: "mode = \"redirect\"", ..Options::default() });
    for (client, address) in [(Host::Client, V4), (Host::Client, V6), (Host::A, V4), (Host::A, V6)] {
        let listener = pair.listen(address);
        let start = Instant::now();
        let stream = pair.try_connect_at(client, listener.local_addr().unwrap()).unwrap();
        assert!(start.elapsed() < Duration::from_millis(20), "{client:?} to {address} is accelerated");
        let (far, from) = accept(&listener);
        assert_eq!(from, stream.local_addr().unwrap());
        send_pattern(&stream, 1, 2_000_000);
        expect_pattern(&far, 1, 2_000_000);
        send_pattern(&far, 2, 2_000_000);
        expect_pattern(&stream, 2, 2_000_000);
    }
}

#[test]
fn the_server_sees_the_tpo_where_accept_says_so() {
    let pair = Pair::start(&Options { accept: "source_address = \"tpo\"", ..Options::default() });
    for (address, seen) in [(V4, "10.10.2.1"), (V6, "fd10:2::1")] {
        let listener = pair.listen(address);
        let stream = pair.connect(listener.local_addr().unwrap());
        let (far, from) = accept(&listener);
        assert_eq!(from.ip(), seen.parse::<std::net::IpAddr>().unwrap());
        send_pattern(&stream, 1, 100_000);
        expect_pattern(&far, 1, 100_000);
    }
}

#[test]
fn without_ipv6_in_the_kernel_ipv4_works() {
    let off: &[&[&str]] = &[
        &["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"],
        &["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"],
        &["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"],
    ];
    let pair = Pair::start(&Options { prepare: off, ..Options::default() });
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    assert!(pair.is_accelerated(to));
    drop(accept(&listener));
    let (client, server) = pair.joined(&listener);
    send_pattern(&client, 3, 1_000_000);
    expect_pattern(&server, 3, 1_000_000);
}
