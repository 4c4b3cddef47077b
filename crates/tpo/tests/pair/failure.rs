//! Failure: the daemon killed, stopped, its peer gone, the WAN away. New connections go their plain
//! way, old ones end at once or wait, as they should.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::site::{
    Options, Pair, V4, V6, accept, expect_pattern, expect_reset, send_pattern, wait_for,
};
use tpo_lab::{Host, Profile};

/// Tries new connections until one goes the plain way, and says how long that took.
fn until_direct(pair: &Pair, to: SocketAddr) -> Duration {
    let start = Instant::now();
    loop {
        assert!(
            start.elapsed() < Duration::from_secs(6),
            "still not direct\n{}",
            pair.logs()
        );
        // A connection of the interim may be reset or hang: what counts is when the first direct
        // one gets through.
        let attempt = Instant::now();
        let outcome = pair.lab.inside(Host::Client, || {
            std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300))
        });
        if outcome.is_ok() && attempt.elapsed() > Duration::from_millis(35) {
            return start.elapsed();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn kill_resets_the_flows_on_both_sides_and_the_next_connection_is_direct() {
    let mut pair = Pair::start(&Options::default());
    for victim in [Host::A, Host::B] {
        let listener = pair.listen(V4);
        let to = listener.local_addr().unwrap();
        let (mut client, mut server) = pair.joined(&listener);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert!(pair.is_accelerated(to));
        drop(accept(&listener));
        pair.kill(victim);
        if victim == Host::A {
            // Nobody listens for the kernel to hand connections to: the very next one is direct.
            let start = Instant::now();
            let direct = pair.connect(to);
            assert!(
                start.elapsed() > Duration::from_millis(35),
                "the connection right after the kill is direct"
            );
            let (_, from) = accept(&listener);
            assert_eq!(from, direct.local_addr().unwrap());
        } else {
            let took = until_direct(&pair, to);
            assert!(took < Duration::from_secs(3), "direct after {took:?}");
        }
        let start = Instant::now();
        expect_reset(&client);
        expect_reset(&server);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "both sides were reset after {:?}",
            start.elapsed()
        );
        pair.run(victim);
        pair.wait_up();
        assert!(
            pair.is_accelerated(to),
            "accelerated again after the next start"
        );
    }
}

#[test]
fn a_stopped_daemon_lets_new_connections_go_within_three_seconds() {
    let pair = Pair::start(&Options::default());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        let to = listener.local_addr().unwrap();
        assert!(pair.is_accelerated(to));
        pair.signal(Host::A, "-STOP");
        let took = until_direct(&pair, to);
        assert!(took < Duration::from_secs(3), "direct after {took:?}");
        pair.signal(Host::A, "-CONT");
        pair.wait_up();
        wait_for("acceleration after SIGCONT", || pair.is_accelerated(to));
    }
}

#[test]
fn a_dead_peer_lets_new_connections_go_within_three_seconds() {
    let pair = Pair::start(&Options::default());
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    pair.signal(Host::B, "-STOP");
    // The WAN still works, only the peer is mute: the plain way exists.
    let took = until_direct(&pair, to);
    assert!(took < Duration::from_secs(3), "direct after {took:?}");
    pair.signal(Host::B, "-CONT");
    wait_for("acceleration after SIGCONT", || pair.is_accelerated(to));
}

#[test]
fn a_closed_rule_refuses_instead_of_letting_go() {
    let mut pair = Pair::start(&Options {
        rule: "on_failure = \"closed\"",
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    assert!(pair.is_accelerated(to));
    pair.kill(Host::A);
    std::thread::sleep(Duration::from_millis(2_500));
    let error = pair.try_connect(to).expect_err("the rule says closed");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    pair.run(Host::A);
    pair.wait_up();
    assert!(pair.is_accelerated(to));
}

#[test]
fn an_outage_of_twenty_seconds_loses_no_flow_and_no_byte() {
    const BYTES: usize = 40_000_000;
    let wan = "rate=50mbit delay=20ms loss=1%";
    let pair = Pair::start(&Options {
        wan,
        ..Options::default()
    });
    for address in [V4] {
        let listener = pair.listen(address);
        let (client, server) = pair.joined(&listener);
        let (mut quiet_client, mut quiet_server) = pair.joined(&listener);
        for stream in [&client, &server, &quiet_client, &quiet_server] {
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            stream
                .set_write_timeout(Some(Duration::from_secs(60)))
                .unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| send_pattern(&client, 4, BYTES));
            scope.spawn(|| send_pattern(&server, 5, BYTES / 4));
            scope.spawn(|| expect_pattern(&client, 5, BYTES / 4));
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(2));
                let dark: Profile = format!("{wan} outage=0s+1h").parse().unwrap();
                pair.lab.set(dark.clone(), dark);
                std::thread::sleep(Duration::from_secs(20));
                let light: Profile = wan.parse().unwrap();
                pair.lab.set(light.clone(), light);
            });
            expect_pattern(&server, 4, BYTES);
        });
        quiet_client.write_all(b"still here").unwrap();
        let mut words = [0; 10];
        quiet_server.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"still here");
    }
}

#[test]
fn everything_installed_is_removed_on_exit_and_after_a_kill_at_the_next_start() {
    let mut pair = Pair::new(&Options::default());
    let installed = |pair: &Pair| {
        let mut text = String::new();
        for command in [
            &["nft", "list", "ruleset"][..],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
        ] {
            let output = pair
                .lab
                .command(Host::A, command[0])
                .args(&command[1..])
                .output()
                .unwrap();
            text += &String::from_utf8_lossy(&output.stdout);
        }
        text
    };
    let before = installed(&pair);
    pair.run(Host::A);
    pair.run(Host::B);
    pair.wait_up();
    assert_ne!(installed(&pair), before);
    pair.end(Host::A);
    assert_eq!(installed(&pair), before, "all is as before after SIGTERM");
    pair.run(Host::A);
    pair.wait_up();
    pair.kill(Host::A);
    assert_ne!(
        installed(&pair),
        before,
        "a kill leaves the rules, without a lease"
    );
    pair.run(Host::A);
    pair.wait_up();
    pair.end(Host::A);
    assert_eq!(
        installed(&pair),
        before,
        "the next start took over what the kill had left"
    );
}

#[test]
fn rules_and_routes_that_others_remove_come_back() {
    let pair = Pair::start(&Options::default());
    let listener = pair.listen(V4);
    let to = listener.local_addr().unwrap();
    for command in [
        &["ip", "rule", "del", "pref", "478"][..],
        &["nft", "flush", "ruleset"],
    ] {
        assert!(pair.is_accelerated(to));
        let status = pair
            .lab
            .command(Host::A, command[0])
            .args(&command[1..])
            .status()
            .unwrap();
        assert!(status.success(), "{command:?}");
        let start = Instant::now();
        // In between, connections go their plain way or hang for a moment.
        wait_for("acceleration again", || {
            let attempt = Instant::now();
            let outcome = pair.lab.inside(Host::Client, || {
                std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500))
            });
            outcome.is_ok() && attempt.elapsed() < Duration::from_millis(32)
        });
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{command:?}: back after {:?}",
            start.elapsed()
        );
    }
    assert_eq!(pair.status(Host::A)["intercept"]["installed"], true);
}
