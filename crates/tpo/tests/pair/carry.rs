//! Bytes: all of them, both ways, for many connections, beside slow and stalled ones.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::site::{
    Options, Pair, V4, V6, accept, exchange, expect_end, expect_pattern, send_pattern, wait_for,
};
use tpo_lab::Host;

fn lossy() -> Options {
    Options {
        wan: "rate=400mbit delay=10ms loss=1%",
        ..Options::default()
    }
}

#[test]
fn two_hundred_megabytes_each_way_at_one_percent_loss() {
    const BYTES: usize = 200_000_000;
    let pair = Pair::start(&lossy());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        let (client, server) = pair.joined(&listener);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&client, 1, BYTES);
                client.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                send_pattern(&server, 2, BYTES);
                server.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                expect_pattern(&server, 1, BYTES);
                expect_end(&server);
            });
            expect_pattern(&client, 2, BYTES);
            expect_end(&client);
        });
        wait_for("the flow's end at both TPOs", || {
            pair.flows(Host::A).is_empty() && pair.flows(Host::B).is_empty()
        });
    }
    let status = pair.status(Host::A);
    assert!(
        status["peers"][0]["sent"].as_u64().unwrap() >= 2 * BYTES as u64,
        "it went through the TPO: {status}"
    );
    assert!(
        status["peers"][0]["retransmissions"].as_u64().unwrap() > 0,
        "the WAN lost some: {status}"
    );
}

#[test]
fn two_hundred_connections_at_once_and_the_server_sees_each_client() {
    const CONNECTIONS: usize = 200;
    const BYTES: usize = 100_000;
    let pair = Pair::start(&lossy());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        let to = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| pair.connect(to)).collect();
        let mut expected: Vec<_> = clients
            .iter()
            .map(|client| client.local_addr().unwrap())
            .collect();
        std::thread::scope(|scope| {
            for client in &clients {
                scope.spawn(move || {
                    let port = u64::from(client.local_addr().unwrap().port());
                    send_pattern(client, port, BYTES);
                    client.shutdown(Shutdown::Write).unwrap();
                    expect_pattern(client, port + 1, BYTES);
                    expect_end(client);
                });
            }
            let mut seen = Vec::new();
            for _ in 0..CONNECTIONS {
                let (server, from) = accept(&listener);
                seen.push(from);
                scope.spawn(move || {
                    let port = u64::from(from.port());
                    expect_pattern(&server, port, BYTES);
                    expect_end(&server);
                    send_pattern(&server, port + 1, BYTES);
                });
            }
            seen.sort();
            expected.sort();
            assert_eq!(
                seen, expected,
                "the server sees the clients' own addresses and ports"
            );
        });
    }
}

#[test]
fn both_sides_open_flows() {
    let pair = Pair::start(&Options::default());
    for (address, _) in [("10.10.1.2", ""), ("fd10:1::2", "")] {
        let listener = pair.listen_at(Host::Client, address);
        let to = listener.local_addr().unwrap();
        let start = Instant::now();
        let stream = pair.try_connect_at(Host::Server, to).unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(32),
            "the connection from the other side is accelerated too"
        );
        let (near, from) = accept(&listener);
        assert_eq!(from, stream.local_addr().unwrap());
        exchange(&stream, &near, 5, 1_000_000);
    }
    assert!(
        pair.flows(Host::A)
            .iter()
            .all(|flow| flow["opened_by"] == "peer"),
        "{:?}",
        pair.flows(Host::A)
    );
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let pair = Pair::start(&Options::default());
    for address in [V4, V6] {
        let listener = pair.listen(address);
        let (mut client, mut server) = pair.joined(&listener);
        server.write_all(b"220 ready\r\n").unwrap();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    }
}

#[test]
fn a_slow_reader_holds_no_more_than_its_credit_and_the_budget() {
    let pair = Pair::start(&Options {
        tpo: "memory = \"64MiB\"",
        ..lossy()
    });
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    let before = resident(&pair, Host::B);
    let writer = std::thread::spawn(move || {
        // More than kernel buffers and credit together would take within the time.
        let start = Instant::now();
        let chunk = vec![7; 1 << 16];
        let mut written = 0usize;
        client
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        while start.elapsed() < Duration::from_secs(6) {
            match (&client).write(&chunk) {
                Ok(n) => written += n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("write: {error}"),
            }
        }
        (client, written)
    });
    let mut server = server;
    let mut chunk = vec![0; 10_000];
    let mut read = 0usize;
    for _ in 0..30 {
        read += server.read(&mut chunk).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = pair.status(Host::B)["memory"]["used"].as_u64().unwrap();
    assert!(
        used <= 64 << 20,
        "flows hold {used} bytes of a budget of 64 MiB"
    );
    let grown = resident(&pair, Host::B).saturating_sub(before);
    assert!(grown < 160 << 20, "the daemon grew by {grown} bytes");
    let (client, written) = writer.join().unwrap();
    assert!(written > read, "the writer was ahead, and was held back");
    // The rest arrives once the reader reads.
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = vec![0; 1 << 20];
    loop {
        match server.read(&mut rest).unwrap() {
            0 => break,
            n => read += n,
        }
    }
    assert_eq!(read, written, "nothing was lost");
}

#[test]
fn a_stalled_flow_does_not_slow_another() {
    let pair = Pair::start(&lossy());
    let listener = pair.listen(V4);
    let alone = transfer(&pair, &listener);
    let (stalled, _unread) = pair.joined(&listener);
    let filler = std::thread::spawn(move || {
        let chunk = vec![1; 1 << 16];
        stalled
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        while (&stalled).write(&chunk).is_ok() {}
        stalled
    });
    let _stalled = filler.join().unwrap();
    let beside = transfer(&pair, &listener);
    assert!(
        beside < 3 * alone + Duration::from_millis(300),
        "alone {alone:?}, beside a stalled flow {beside:?}"
    );
}

/// How long 20 MB take.
fn transfer(pair: &Pair, listener: &std::net::TcpListener) -> Duration {
    const BYTES: usize = 20_000_000;
    let (client, server) = pair.joined(listener);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| send_pattern(&client, 9, BYTES));
        expect_pattern(&server, 9, BYTES);
    });
    start.elapsed()
}

#[test]
fn loss_on_a_bulk_flow_does_not_delay_another_flow() {
    // 3 % of the datagrams are lost, nearly all of them the bulk flow's. In a tunnel with one order
    // for all, nearly every echo would wait a round trip more.
    let pair = Pair::start(&Options {
        wan: "rate=100mbit delay=50ms loss=3%",
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let (bulk, sink) = pair.joined(&listener);
    let (mut client, mut server) = pair.joined(&listener);
    bulk.set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![1; 1 << 16];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Held back is what a bulk flow mostly is.
                let _ = (&bulk).write(&chunk);
            }
            bulk.shutdown(Shutdown::Both).unwrap();
        });
        scope.spawn(|| {
            let mut chunk = vec![0; 1 << 16];
            while (&sink).read(&mut chunk).is_ok_and(|n| n > 0) {}
        });
        scope.spawn(move || {
            let mut byte = [0];
            while server.read(&mut byte).is_ok_and(|n| n > 0) {
                server.write_all(&byte).unwrap();
            }
        });
        std::thread::sleep(Duration::from_secs(2));
        let times = (0..40)
            .map(|_| {
                let start = Instant::now();
                client.write_all(&[1]).unwrap();
                client.read_exact(&mut [0]).unwrap();
                start.elapsed()
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(client);
        times
    });
    times.sort();
    let median = times[times.len() / 2];
    assert!(
        median < Duration::from_millis(150),
        "echo beside a lossy bulk flow: median {median:?} at 100 ms round trip"
    );
}

/// Resident memory of a daemon, bytes.
fn resident(pair: &Pair, host: Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pair.process(host))).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn what_the_own_devices_queue_drops_is_lost_like_any_datagram() {
    // A device slower than the WAN behind it, with room for a dozen datagrams.
    let prepare: &[&[&str]] = &[&[
        "tc", "qdisc", "add", "dev", "wan0", "root", "tbf", "rate", "50mbit", "burst", "20kb",
        "limit", "20kb",
    ]];
    let pair = Pair::start(&Options {
        prepare,
        ..Options::default()
    });
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    exchange(&client, &server, 1, 5_000_000);
    let shown = pair
        .lab
        .command(Host::A, "tc")
        .args(["-s", "qdisc", "show", "dev", "wan0"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("dropped") && !shown.contains("dropped 0,"),
        "the queue never was full: {shown}"
    );
    let peer = &pair.status(Host::A)["peers"][0];
    assert_eq!(
        peer["drops"]["send failures"],
        serde_json::Value::Null,
        "{peer}"
    );
}
