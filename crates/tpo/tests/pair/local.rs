//! Deployments: applications and servers on the TPO's own host, redirect mode, the TPO's address at
//! the server, no IPv6.

use crate::site::{Options, Pair, V4, V6, accept, exchange, expect_pattern, send_pattern};
use std::time::{Duration, Instant};
use tpo_lab::Host;

/// The far TPO's own host is reached where an accept names its address alone.
const OWN_HOST: &str = r#"
[[accept]]
peer = "a"
source = "any"
destination = "10.10.2.1"

[[accept]]
peer = "a"
source = "any"
destination = "fd10:2::1"
"#;

#[test]
fn applications_on_the_hosts_of_the_tpos_are_carried_too() {
    let pair = Pair::start(&Options {
        sections: ["", OWN_HOST],
        ..Options::default()
    });
    for (client, server, address) in [
        (Host::A, Host::Server, V4),
        (Host::A, Host::Server, V6),
        (Host::Client, Host::B, "10.10.2.1"),
        (Host::Client, Host::B, "fd10:2::1"),
        (Host::A, Host::B, "10.10.2.1"),
    ] {
        let listener = pair.listen_at(server, address);
        let start = Instant::now();
        let stream = pair
            .try_connect_at(client, listener.local_addr().unwrap())
            .unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(32),
            "{client:?} to {server:?} at {address} is accelerated"
        );
        let (far, from) = accept(&listener);
        assert_eq!(
            from,
            stream.local_addr().unwrap(),
            "{client:?} to {server:?} at {address}"
        );
        exchange(&stream, &far, 1, 2_000_000);
        exchange(&far, &stream, 2, 2_000_000);
    }
}

#[test]
fn redirect_mode_carries_both_families() {
    let pair = Pair::start(&Options {
        intercept: "mode = \"redirect\"",
        ..Options::default()
    });
    for (client, address) in [
        (Host::Client, V4),
        (Host::Client, V6),
        (Host::A, V4),
        (Host::A, V6),
    ] {
        let listener = pair.listen(address);
        let start = Instant::now();
        let stream = pair
            .try_connect_at(client, listener.local_addr().unwrap())
            .unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(32),
            "{client:?} to {address} is accelerated"
        );
        let (far, from) = accept(&listener);
        assert_eq!(from, stream.local_addr().unwrap());
        exchange(&stream, &far, 1, 2_000_000);
        exchange(&far, &stream, 2, 2_000_000);
    }
}

#[test]
fn the_server_sees_the_tpo_where_accept_says_so() {
    let pair = Pair::start(&Options {
        accept: "source_address = \"tpo\"",
        ..Options::default()
    });
    for (address, seen) in [(V4, "10.10.2.1"), (V6, "fd10:2::1")] {
        let listener = pair.listen(address);
        let stream = pair.connect(listener.local_addr().unwrap());
        let (far, from) = accept(&listener);
        assert_eq!(from.ip(), seen.parse::<std::net::IpAddr>().unwrap());
        exchange(&stream, &far, 1, 100_000);
    }
}

#[test]
fn without_ipv6_in_the_kernel_ipv4_works() {
    let off: &[&[&str]] = &[
        &["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"],
        &["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"],
        &["sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"],
    ];
    let pair = Pair::start(&Options {
        prepare: off,
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    assert!(pair.is_accelerated(to));
    drop(accept(&listener));
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server, 3, 1_000_000);
}

#[test]
fn the_tunnel_may_run_over_ipv6_and_one_side_may_wait_to_be_called() {
    let pair = Pair::start(&Options {
        endpoints: ["[fd10:9::2]:47800", ""],
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server, 3, 3_000_000);
    exchange(&server, &client, 4, 3_000_000);
}

#[test]
fn flows_live_on_when_the_address_of_a_site_changes() {
    let pair = Pair::start(&Options {
        endpoints: ["10.9.0.2:47800", ""],
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server, 3, 1_000_000);
    for command in [
        "addr del 10.9.0.1/24 dev wan0",
        "addr add 10.9.0.77/24 dev wan0",
        "route replace default via 10.9.0.2",
    ] {
        let status = pair
            .lab
            .command(Host::A, "ip")
            .args(command.split(' '))
            .status()
            .unwrap();
        assert!(status.success(), "{command}");
    }
    // The way back to the client, which went with the old address.
    let status = pair
        .lab
        .command(Host::B, "ip")
        .args(["route", "replace", "10.10.1.0/24", "via", "10.9.0.77"])
        .status()
        .unwrap();
    assert!(status.success());
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| send_pattern(&client, 5, 3_000_000));
        scope.spawn(|| send_pattern(&server, 6, 3_000_000));
        scope.spawn(|| expect_pattern(&client, 6, 3_000_000));
        expect_pattern(&server, 5, 3_000_000);
    });
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "it took {:?} to go on",
        start.elapsed()
    );
}
