//! Interception holds while a lease is renewed.

use crate::net::{
    self, Answer, Daemon, Net, PORT, PORT_OTHER, Place, V4, ask, both, rule, rules_for, table,
};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tpo::intercept::lease::{Lease, TIMEOUT};
use tpo::intercept::names::counter;
use tpo::table::peers::PeerId;
use tpo::table::{Mode, OnFailure, Table};

#[test]
fn without_a_lease_open_rules_pass_and_closed_rules_refuse() {
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let net = Net::up();
        let mut rules = rules_for(PORT, OnFailure::Open);
        rules.extend(rules_for(PORT_OTHER, OnFailure::Closed));
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules, 1)
            },
        );
        let expect = |leased: bool| {
            for place in [Place::Client, Place::Tpo] {
                for address in both() {
                    let (open, _) = ask(&net, place, address.server_at(PORT));
                    let (closed, _) = ask(&net, place, address.server_at(PORT_OTHER));
                    match leased {
                        true => {
                            assert!(
                                matches!(open, Answer::Tpo { .. }),
                                "{mode:?} {place:?} {open:?}"
                            );
                            assert!(
                                matches!(closed, Answer::Tpo { .. }),
                                "{mode:?} {place:?} {closed:?}"
                            );
                        }
                        false => {
                            assert!(
                                matches!(open, Answer::Server { .. }),
                                "{mode:?} {place:?} {open:?}"
                            );
                            assert_eq!(closed, Answer::Refused, "{mode:?} {place:?}");
                        }
                    }
                }
            }
        };
        expect(false);
        daemon.keep(0);
        expect(true);
        daemon.drop_lease(0);
        // Twice is as good as once.
        daemon.drop_lease(0);
        expect(false);
        let counts = daemon.counters();
        assert_eq!(
            (
                counts[counter::NO_LEASE].packets,
                counts[counter::REFUSED].packets
            ),
            (8, 8),
            "{mode:?}"
        );
        // Nobody renews: the kernel itself ends it.
        let renewed = Instant::now();
        daemon.renew_last(0);
        while matches!(
            ask(&net, Place::Client, V4.server_at(PORT)).0,
            Answer::Tpo { .. }
        ) {
            assert!(
                renewed.elapsed() < Duration::from_secs(3),
                "the lease outlives its promise"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // The kernel counts in timer ticks of up to 10 ms.
        assert!(
            renewed.elapsed() >= TIMEOUT - Duration::from_millis(20),
            "the lease ended early, after {:?}",
            renewed.elapsed()
        );
        expect(false);
    }
}

#[test]
fn renewals_leave_no_gap() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    daemon.keep(0);
    const CONNECTIONS: u32 = 2_000;
    const RENEWALS: u32 = 1_000;
    let (mut direct, mut cost) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        let renewer = scope.spawn(|| {
            let start = Instant::now();
            for _ in 0..RENEWALS {
                daemon.keep(0);
            }
            start.elapsed()
        });
        net.inside(Place::Client, || {
            for _ in 0..CONNECTIONS {
                let line = net::first_line(&TcpStream::connect(V4.server_at(PORT)).unwrap());
                direct += u32::from(!line.starts_with("tpo "));
            }
        });
        cost = renewer.join().unwrap();
    });
    assert_eq!(direct, 0, "of {CONNECTIONS} connections");
    println!("a renewal beside connections: {:?}", cost / RENEWALS);
    let (start, cpu) = (Instant::now(), net::thread_cpu());
    let mut lease = net.inside(Place::Tpo, || Lease::open().unwrap());
    for _ in 0..200 {
        lease.renew(PeerId::new(0)).unwrap();
    }
    println!(
        "a renewal alone: {:?}, cpu {:?}",
        start.elapsed() / 200,
        (net::thread_cpu() - cpu) / 200
    );
}

#[test]
fn nobody_listening_is_as_good_as_no_lease() {
    let net = Net::up();
    let mut rules = rules_for(PORT, OnFailure::Open);
    rules.extend(rules_for(PORT_OTHER, OnFailure::Closed));
    let daemon = Daemon::start(&net, table(rules, 1));
    daemon.keep(0);
    daemon.stop_listening();
    for address in both() {
        assert!(matches!(
            ask(&net, Place::Client, address.server_at(PORT)).0,
            Answer::Server { .. }
        ));
        assert_eq!(
            ask(&net, Place::Client, address.server_at(PORT_OTHER)).0,
            Answer::Refused
        );
        assert_eq!(
            ask(&net, Place::Tpo, address.server_at(PORT_OTHER)).0,
            Answer::Refused
        );
    }
    assert_eq!(daemon.counters()[counter::NO_LISTENER].packets, 6);
    // An application of this host waits for the lease to end; its second or third SYN then goes the
    // plain way.
    daemon.renew_last(0);
    let start = Instant::now();
    assert!(matches!(
        ask(&net, Place::Tpo, V4.server_at(PORT)).0,
        Answer::Server { .. }
    ));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn any_of_several_peers_holds_a_rule() {
    let net = Net::up();
    let mut table = table(vec![rule(V4, PORT, 2)], 2);
    table.rules[0].carriers = table.carriers.id_of(&tpo::table::carriers::Carriers {
        peers: [0, 1].map(PeerId::new).into(),
        spread: false,
    });
    let daemon = Daemon::start(&net, table);
    for held in [0, 1] {
        daemon.drop_lease(1 - held);
        daemon.keep(held);
        assert!(
            matches!(
                ask(&net, Place::Client, V4.server_at(PORT)).0,
                Answer::Tpo { .. }
            ),
            "{held}"
        );
    }
    daemon.drop_lease(1);
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Server { .. }
    ));
}

#[test]
fn a_lease_can_be_held_for_all_but_tcp() {
    let net = Net::up();
    let daemon = Daemon::start(
        &net,
        Table {
            packets: vec![17],
            ..table(rules_for(PORT, OnFailure::Open), 1)
        },
    );
    let mut lease = net.inside(Place::Tpo, || Lease::for_protocols(&[17]).unwrap());
    let held = || {
        let state = net.state(Place::Tpo);
        let (_, set) = state.split_once("set alive_0 {").unwrap();
        let (set, _) = set.split_once('}').unwrap();
        (set.contains("tcp"), set.contains("udp"))
    };
    for (without_tcp, expected) in [
        (false, (true, true)),
        (true, (false, true)),
        (false, (true, true)),
    ] {
        match without_tcp {
            true => lease.renew_without_tcp(PeerId::new(0)).unwrap(),
            false => lease.renew(PeerId::new(0)).unwrap(),
        }
        // At once, not when the old element's time is over.
        assert_eq!(held(), expected);
        let (answer, _) = ask(&net, Place::Client, V4.server_at(PORT));
        assert_eq!(
            matches!(answer, Answer::Tpo { .. }),
            !without_tcp,
            "{answer:?}"
        );
    }
    drop(daemon);
}

#[test]
fn a_lease_without_rules_is_an_error() {
    let net = Net::up();
    let mut lease = net.inside(Place::Tpo, || Lease::open().unwrap());
    assert_eq!(
        lease.renew(PeerId::new(0)).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    assert_eq!(
        lease.counters().unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    let daemon = Daemon::start(&net, table(Vec::new(), 1));
    lease.renew(PeerId::new(0)).unwrap();
    // An earlier error's answers are not taken for a later call's.
    assert_eq!(
        lease.renew(PeerId::new(2)).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    lease.renew(PeerId::new(0)).unwrap();
    assert_eq!(lease.counters().unwrap().len(), counter::ALL.len());
    drop(daemon);
}
