//! What is taken at most: SYNs of a source, descriptors.

use crate::net::{self, Answer, Daemon, Net, PORT, Place, ask, both, rules_for, table};
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tpo::intercept::lease::KnownSources;
use tpo::intercept::names::{Standing, counter};
use tpo::intercept::tcp::Listeners;
use tpo::table::bounds::Bounds;
use tpo::table::{Mode, OnFailure, Table};

#[test]
fn a_source_has_the_bound_of_its_standing_and_the_rest_goes_its_plain_way() {
    const CONNECTIONS: u64 = 200;
    let net = Net::up();
    // A new source two per second, a known one twelve, a busy one 2,250.
    let bounds = Bounds {
        syns_per_source: 12,
        syns: 4_000,
        ..Bounds::default()
    };
    for address in both() {
        let daemon = Daemon::start(
            &net,
            Table {
                bounds,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        daemon.keep(0);
        let taken = || {
            net.inside(Place::Client, || {
                let one = |_: &u64| {
                    let line =
                        net::first_line(&TcpStream::connect(address.server_at(PORT)).unwrap());
                    assert!(
                        line.starts_with("tpo ") || line.starts_with("server "),
                        "{line}"
                    );
                    line.starts_with("tpo ")
                };
                (0..CONNECTIONS).filter(one).count() as u64
            })
        };
        let start = Instant::now();
        let known = taken();
        let most = 4 + 12 + 12 * (start.elapsed().as_secs() + 1);
        assert!(
            (4..=most).contains(&known),
            "{known} of {CONNECTIONS}, {most} at most"
        );
        assert_eq!(
            daemon.counters()[counter::FLOOD].packets,
            CONNECTIONS - known
        );
        net.inside(Place::Tpo, || {
            KnownSources::open()
                .unwrap()
                .add(Standing::Busy, &[address.client], Duration::from_secs(60))
                .unwrap();
        });
        assert_eq!(taken(), CONNECTIONS, "a busy one is not bounded so");
        // This host's own applications are not bounded at all.
        for _ in 0..50 {
            let (answer, _) = ask(&net, Place::Tpo, address.server_at(PORT));
            assert!(matches!(answer, Answer::Tpo { .. }), "{answer:?}");
        }
    }
}

#[test]
fn out_of_descriptors_connections_are_reset_and_later_ones_live() {
    let net = Net::up();
    let output = net
        .command(Place::Tpo, std::env::current_exe().unwrap())
        .args([
            "--exact",
            "bounds::child_without_descriptors",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
#[ignore = "started by another test, in a namespace"]
fn child_without_descriptors() {
    // Redirect mode's listener can be reached by redirecting without our rules.
    let mut listeners = Listeners::open(Mode::Redirect).unwrap();
    let port = listeners.ports().v4;
    let rule = format!(
        "table inet t {{ chain o {{ type nat hook output priority -100; tcp dport 81 redirect to :{port}\n }}\n }}"
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(rule.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success());
    let connect = || TcpStream::connect("10.71.1.1:81").unwrap();
    let clients: Vec<TcpStream> = (0..5).map(|_| connect()).collect();
    let mut held = Vec::new();
    net::lower_descriptor_limit();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.pop();
    held.pop();
    let mut accepted = Vec::new();
    let batch = listeners.v4.accept_batch(64, &mut accepted).unwrap();
    assert_eq!(
        (accepted.len(), batch.no_descriptors, batch.drained),
        (2, 3, true)
    );
    // The kernel has spread them over the listener's sockets, so which ones had a descriptor is its
    // own choice.
    for client in &clients {
        let own = client.local_addr().unwrap();
        if accepted.iter().all(|one| one.client != own) {
            assert_eq!(
                net::read_kind(client),
                Some(std::io::ErrorKind::ConnectionReset)
            );
        }
    }
    drop(held);
    drop(accepted.pop());
    let _client = connect();
    let batch = listeners.v4.accept_batch(64, &mut accepted).unwrap();
    assert_eq!((accepted.len(), batch.no_descriptors), (2, 0));
    assert_eq!(accepted[1].destination, "10.71.1.1:81".parse().unwrap());
}
