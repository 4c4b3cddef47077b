//! What somebody else removes or breaks is found.

use crate::net::{Answer, Daemon, Net, PORT, Place, V4, ask, both, rules_for, table};
use std::time::{Duration, Instant};
use tpo::intercept::findings;
use tpo::table::{Mode, OnFailure, Table};

#[test]
fn settings_that_break_interception_are_found_and_do_break_it() {
    let net = Net::up();
    let table = Table {
        local: false,
        ..table(rules_for(PORT, OnFailure::Open), 1)
    };
    let found = || net.inside(Place::Tpo, || findings::findings(&table));
    assert_eq!(found(), []);
    let daemon = Daemon::start(&net, table.clone());
    daemon.keep(0);
    net.sysctl(Place::Tpo, "net.ipv4.tcp_syncookies", "2");
    assert_eq!(found()[0].severity, findings::Severity::Problem);
    assert!(!matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.sysctl(Place::Tpo, "net.ipv4.tcp_syncookies", "1");
    net.sysctl(Place::Tpo, "net.ipv4.conf.all.rp_filter", "1");
    assert_eq!(found(), []);
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.sysctl(Place::Tpo, "net.ipv4.conf.all.src_valid_mark", "1");
    assert_eq!(found().len(), 1);
    assert!(!matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.nft(
        Place::Tpo,
        "table ip filter { chain INPUT { type filter hook input priority 0; policy drop; }; }",
    );
    assert_eq!(found().len(), 2);
    net.ip(
        Place::Tpo,
        "rule add fwmark 0x4000000/0x4000000 lookup 55 pref 100",
    );
    assert_eq!(found().len(), 3);
    assert!(
        found()[2].found.contains("100: fwmark 0x4000000/0x4000000"),
        "{}",
        found()[2]
    );
    net.ip6(Place::Tpo, "rule add fwmark 0x1/0xff lookup 55 pref 100");
    assert_eq!(
        found().len(),
        3,
        "ours, and those of others that share nothing with it, are fine"
    );
    let local = net.inside(Place::Tpo, || {
        findings::findings(&Table {
            local: true,
            ..table.clone()
        })
    });
    assert_eq!(local.len(), 4);
    assert!(local.iter().any(
        |one| one.severity == findings::Severity::Info && one.remedy.contains("local = false")
    ));
}

#[test]
fn a_lost_routing_rule_is_found_and_repaired() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    let before = net.state(Place::Tpo);
    daemon.keep(0);
    assert!(daemon.is_whole());
    const TIMES: u32 = 200;
    let start = Instant::now();
    assert!((0..TIMES).all(|_| daemon.is_whole()));
    let each = start.elapsed() / TIMES;
    println!("looking costs {each:?}");
    assert!(each < Duration::from_millis(5), "{each:?}");
    for address in both() {
        let everything = if address.server.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        for loss in [
            "rule del pref 478".to_owned(),
            format!("route del local {everything} dev lo table 478"),
        ] {
            match address.server.is_ipv4() {
                true => net.ip(Place::Tpo, &loss),
                false => net.ip6(Place::Tpo, &loss),
            }
            assert!(!daemon.is_whole(), "{loss}");
            // This is what must be found: the SYN is taken, and has nowhere to go.
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT));
            assert!(!matches!(answer, Answer::Tpo { .. }), "{loss}: {answer:?}");
            daemon.repair().unwrap_or_else(|e| panic!("{loss}: {e}"));
            assert!(daemon.is_whole(), "{loss}");
            // The leases have stayed.
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT));
            assert!(matches!(answer, Answer::Tpo { .. }), "{loss}: {answer:?}");
        }
    }
    assert_eq!(
        net.state(Place::Tpo).matches("lookup 478").count(),
        before.matches("lookup 478").count()
    );
    // Somebody else's rule that comes first cannot be repaired, and is told.
    net.ip(
        Place::Tpo,
        "route add unreachable default table 55\nrule add fwmark 0x4000000/0x4000000 lookup 55 pref 100",
    );
    assert!(!daemon.is_whole());
    assert!(
        daemon
            .repair()
            .unwrap_err()
            .to_string()
            .contains("preference below 478")
    );
}

#[test]
fn a_flushed_ruleset_is_found_and_repaired() {
    let net = Net::up();
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        for loss in [
            "flush ruleset",
            "flush table inet tpo",
            "delete table inet tpo\nadd table inet tpo",
            "flush map inet tpo v4_0",
        ] {
            daemon.keep(0);
            assert!(
                matches!(
                    ask(&net, Place::Client, V4.server_at(PORT)).0,
                    Answer::Tpo { .. }
                ),
                "{mode:?}"
            );
            assert!(daemon.is_whole());
            daemon.renew_last(0);
            net.nft(Place::Tpo, loss);
            assert!(!daemon.is_whole(), "{mode:?} {loss}");
            assert!(
                matches!(
                    ask(&net, Place::Client, V4.server_at(PORT)).0,
                    Answer::Server { .. }
                ),
                "{mode:?} {loss}"
            );
            daemon.repair().unwrap();
            assert!(daemon.is_whole(), "{mode:?} {loss}");
        }
    }
}

/// As a second daemon does whose lock is another file: its table has the same name, chains and
/// rules.
#[test]
fn a_table_of_the_same_shape_in_the_place_of_ours_is_found() {
    let net = Net::up();
    let table = || table(rules_for(PORT, OnFailure::Closed), 1);
    let daemon = Daemon::start(&net, table());
    daemon.keep(0);
    assert!(daemon.is_whole());
    net.nft(
        Place::Tpo,
        &tpo::intercept::rules::render(&table(), daemon.ports()).unwrap(),
    );
    assert!(!daemon.is_whole());
    daemon.repair().unwrap();
    assert!(daemon.is_whole());
}
