use super::super::report::*;
use super::*;

fn peer(name: &str, state: PeerState) -> PeerReport {
    PeerReport {
        name: name.into(),
        up: state == PeerState::Up,
        state,
        ..PeerReport::default()
    }
}

fn lyon() -> PeerReport {
    PeerReport {
        endpoint: Some("192.0.2.7:47800".into()),
        rtt_ms: Some(100.42),
        min_rtt_ms: Some(100.1),
        loss_since_start_percent: 1.017,
        rate: 11_625_000,
        delivery_rate: 11_400_000,
        segment: 1_452,
        in_flight: 1_150_000,
        flows: 12,
        flows_total: 4_711,
        sent: 1_300_000_000,
        received: 42_000_000,
        datagrams_sent: 912_345,
        datagrams_received: 456_123,
        retransmissions: 9_279,
        parity_sent: 1_200,
        rebuilt: 31,
        compression: CompressionReport {
            before: 4 << 20,
            after: 1 << 20,
            raw: [("small".to_owned(), 1)].into(),
            cpu: 0.031,
            dictionaries: 8,
            saved: 12.6,
            classes: [("bulk", 4 << 20, 1 << 19), ("interactive", 1_000, 900)]
                .map(|(class, before, after)| {
                    (
                        class.to_owned(),
                        CompressionReport {
                            before,
                            after,
                            ..CompressionReport::default()
                        },
                    )
                })
                .into(),
        },
        drops: [
            ("replayed".to_owned(), 3),
            ("truncated".to_owned(), 0),
            ("wrong tag".to_owned(), 1),
        ]
        .into(),
        groups_asked_there: vec!["239.1.1.1".into(), "ff05::1".into()],
        lans_left: vec!["lan1".into()],
        handshake: HandshakeReport {
            completed: 2,
            failed: 1,
            key_age: Some(1_234.5),
        },
        ..peer("lyon", PeerState::Up)
    }
}

fn report() -> StatusReport {
    let leases = vec![
        LeaseReport {
            peer: "lyon".into(),
            held: true,
            reason: None,
        },
        LeaseReport {
            peer: "oslo".into(),
            held: false,
            reason: None,
        },
    ];
    StatusReport {
        name: "paris".into(),
        version: "0.1.0".into(),
        pid: 4_242,
        uptime: 273_600.0,
        intercept: InterceptReport {
            installed: true,
            mode: "tproxy".into(),
            local: true,
            rules: 4,
            rules_disabled: 1,
            leases,
            ..InterceptReport::default()
        },
        memory: MemoryReport {
            used: 19 << 20,
            peak: 40 << 20,
            budget: 512 << 20,
        },
        peers: vec![lyon(), peer("oslo", PeerState::Waiting)],
        passed: vec![
            PassedReport::new(Reason::PeerDown, 17),
            PassedReport::new(Reason::Memory, 0),
            PassedReport::new(Reason::NotAccepted, 2),
        ],
        plain: vec![
            PlainReport {
                rule: Some(3),
                line: Some(41),
                names: "udp from 10.10.1.0/24 to 10.10.2.0/24 port 53".into(),
                number: Reason::PeerDown.number(),
                reason: Reason::PeerDown.name().into(),
                count: 9,
            },
            PlainReport {
                number: Reason::NoFlow.number(),
                reason: Reason::NoFlow.name().into(),
                count: 12,
                ..PlainReport::default()
            },
        ],
        strangers: [("of an unknown key".to_owned(), 8)].into(),
    }
}

#[test]
fn status_says_whether_what_and_why_not() {
    let golden = "\
paris: working in part; 1 of 2 peers up, 12 flows, running for 3d 4h (tpo 0.1.0)

PEER  STATE    ENDPOINT              RTT   MIN RTT  LOSS SO FAR       PACING    DELIVERED  IN FLIGHT  DATAGRAM  FLOWS     SENT  RECEIVED
lyon  up       192.0.2.7:47800  100.4 ms  100.1 ms       1.02 %  93.0 Mbit/s  91.2 Mbit/s    1.1 MiB      1452     12  1.2 GiB  40.1 MiB
oslo  waiting  -                       -         -            -            -            -        0 B         -      0      0 B       0 B
lyon: 912345 datagrams sent, 9279 segments retransmitted (1.02 %), 456123 datagrams received, 1200 parity rows sent, 31 lost datagrams rebuilt, dropped: 3 replayed, 1 wrong tag; 4711 flows since the start
lyon: compressed 4.0 MiB to 1.0 MiB (4.0 times), 0.03 s of CPU, saved 12.6s of the link's time; bulk 8.0 times, interactive 1.1 times; buffers sent uncompressed: 1 small
lyon is asked for 2 multicast groups: 239.1.1.1 ff05::1
lyon: another TPO brings its multicast groups to lan1
lyon: 2 handshakes, keys 20m 34s old; 1 more not authenticated (anybody can replay one)
oslo is not up: it has no endpoint here, so it must call us, and it has not called yet

interception: installed, tproxy, 4 rules (1 more disabled), any interface, this host's applications too
  lyon: held, new connections are intercepted
  oslo: NOT HELD, the peer is not up
memory: 19.0 MiB of 512.0 MiB, peak 40.0 MiB
datagrams of no known peer: 8 of an unknown key

connections that were not accelerated:
COUNT  NO.  REASON        WHAT TO DO
   17    2  peer down     see the peer and its lease above: they say why
    2    8  not accepted  add an [[accept]] at the far TPO, or narrow the rule here
  2: The rule's peer was not up, or had no room, when the connection began.
  8: The far TPO has no [[accept]] for this client and destination.

went in the clear (TCP: connections, all else: packets):
COUNT  NO.  REASON     LINE  RULE
   12   14  no flow          no single rule
    9    2  peer down    41  udp from 10.10.1.0/24 to 10.10.2.0/24 port 53
";
    assert_eq!(status(&report()), golden);
}

#[test]
fn rates_of_a_path_that_is_not_used_are_not_shown() {
    let idle = PeerReport {
        in_flight: 0,
        ..lyon()
    };
    let shown = peers(&[idle]);
    let row = shown.lines().nth(1).unwrap();
    assert_eq!(row.matches(" idle").count(), 2, "{row}");
    assert!(!row.contains("bit/s"), "{row}");
}

#[test]
fn the_first_line_is_the_verdict() {
    let verdict = |report: &StatusReport| status(report).lines().next().unwrap().to_owned();
    let mut report = report();
    report.peers.pop();
    assert_eq!(
        verdict(&report),
        "paris: working; 1 of 1 peer up, 12 flows, running for 3d 4h (tpo 0.1.0)"
    );
    report.intercept.installed = false;
    report.intercept.problem = Some("nft is not there".into());
    assert!(
        verdict(&report)
            .starts_with("paris: NOT INTERCEPTING, peers are up but nothing is intercepted; ")
    );
    assert!(status(&report).contains("\ninterception: NOT INSTALLED, nft is not there\n"));
    report.peers[0] = PeerReport {
        reason: Some("nothing heard for 3 s".into()),
        ..peer("lyon", PeerState::Silent)
    };
    assert!(
        verdict(&report).starts_with("paris: NOT WORKING, no peer is up; 0 of 1 peer up, 0 flows")
    );
    assert!(status(&report).contains("\nlyon is not up: nothing heard for 3 s\n"));
}

fn flow() -> FlowReport {
    FlowReport {
        id: 0x8000_0003,
        peer: "lyon".into(),
        protocol: 6,
        client: "10.10.1.2:40122".into(),
        server: "10.10.2.2:443".into(),
        opened_by: OpenedBy::Peer,
        state: FlowState::Open,
        class: "normal".into(),
        sent: 1_234,
        received: 5_000_000,
        age: 61.0,
        idle: 0.02,
        credit: 262_144,
        ..FlowReport::default()
    }
}

#[test]
fn flows_are_one_line_each() {
    let slow = FlowReport {
        id: 12,
        client: "[fd10:1::2]:40123".into(),
        server: "[fd10:2::2]:80".into(),
        opened_by: OpenedBy::Us,
        credit: 0,
        reason: Some("the far application\nreads slowly".into()),
        ..flow()
    };
    let call = FlowReport {
        id: 13,
        protocol: 17,
        packets_sent: Some(200),
        packets_received: Some(199),
        lost_percent: Some(0.5),
        delay_ms: Some(41.26),
        credit: 0,
        ..flow()
    };
    let shrunk = CompressionReport {
        before: 900,
        after: 200,
        ..CompressionReport::default()
    };
    let first = FlowReport {
        compression: shrunk,
        ..flow()
    };
    let stubborn = [("small".to_owned(), 3), ("does not shrink".to_owned(), 50)].into();
    let slow = FlowReport {
        compression: CompressionReport {
            before: 9_000,
            after: 9_000,
            raw: stubborn,
            ..CompressionReport::default()
        },
        ..slow
    };
    let golden = "\
FLOW  PEER  PROTO  CLIENT             SERVER          OPENED BY  STATE  CLASS      SENT  RECEIVED  PACKETS       COMPRESSED    LOST    DELAY    AGE  IDLE     CREDIT  HELD UP BY
   3  lyon  tcp    10.10.1.2:40122    10.10.2.2:443   peer       open   normal  1.2 KiB   4.8 MiB                      4.5x                   1m 1s  0.0s  256.0 KiB
  12  lyon  tcp    [fd10:1::2]:40123  [fd10:2::2]:80  us         open   normal  1.2 KiB   4.8 MiB           does not shrink                   1m 1s  0.0s        0 B  the far application reads slowly
  13  lyon  udp    10.10.1.2:40122    10.10.2.2:443   peer       open   normal  1.2 KiB   4.8 MiB  200/199                   0.50 %  41.3 ms  1m 1s  0.0s        0 B
";
    assert_eq!(flows(&[first, slow, call]), golden);
    let plain = flows(&[flow()]);
    assert!(
        !plain.contains("HELD UP BY"),
        "an empty column is left out: {plain}"
    );
    assert_eq!(flows(&[]), "no flows\n");
}

#[test]
fn numbers_are_in_the_unit_that_suits_them() {
    let sizes = [
        (0, "0 B"),
        (1_023, "1023 B"),
        (1_024, "1.0 KiB"),
        (1_048_575, "1.0 MiB"),
        (u64::MAX, "16384.0 PiB"),
    ];
    for (count, text) in sizes {
        assert_eq!(bytes(count), text);
    }
    let rates = [
        (0, "0.0 kbit/s"),
        (124_999, "1.0 Mbit/s"),
        (12_500_000, "100.0 Mbit/s"),
        (125_000_000, "1.00 Gbit/s"),
    ];
    for (count, text) in rates {
        assert_eq!(rate(count), text);
    }
    let spans = [
        (-1.0, "0.0s"),
        (7.24, "7.2s"),
        (59.97, "59.9s"),
        (60.0, "1m 0s"),
        (3_725.0, "1h 2m"),
        (90_000.0, "1d 1h"),
    ];
    for (seconds, text) in spans {
        assert_eq!(span(seconds), text);
    }
}

#[test]
fn reports_survive_the_way_and_an_update() {
    let json = serde_json::to_string(&report()).unwrap();
    assert_eq!(
        serde_json::from_str::<StatusReport>(&json).unwrap(),
        report()
    );
    let json = serde_json::to_string(&flow()).unwrap();
    assert_eq!(serde_json::from_str::<FlowReport>(&json).unwrap(), flow());
    let newer: StatusReport = serde_json::from_str(
        r#"{"name":"paris","colour":"blue","peers":[{"name":"lyon","state":"up"}]}"#,
    )
    .unwrap();
    assert_eq!(
        (newer.name.as_str(), newer.peers[0].state),
        ("paris", PeerState::Up)
    );
}
