use super::*;
use crate::table::OnFailure;
use crate::table::RuleSpec;
use crate::table::carriers::Carriers;
use tpo_engine::CarriersId;

fn table(interfaces: &[&str]) -> Table {
    let any = RuleSpec {
        protocol: 6,
        source: ("10.10.1.9".parse().unwrap(), 24),
        source_ports: 0..=u16::MAX,
        destination: ("10.10.2.0".parse().unwrap(), 24),
        destination_ports: 80..=80,
        carriers: CarriersId::new(0),
        on_failure: OnFailure::Open,
        enabled: true,
    };
    let closed = RuleSpec {
        destination_ports: 81..=90,
        carriers: CarriersId::new(1),
        on_failure: OnFailure::Closed,
        ..any.clone()
    };
    Table {
        interfaces: interfaces.iter().map(|s| s.to_string()).collect(),
        ..Table::of_rules(vec![any, closed], 2)
    }
}

const PORTS: Ports = Ports {
    v4: 15001,
    v6: Some(15002),
};

#[test]
fn elements_carry_ranges_and_their_peers_chain() {
    let text = render(&table(&["lan0"]), PORTS).unwrap();
    assert!(text.contains(
        "10.10.2.0-10.10.2.255 . 10.10.1.0-10.10.1.255 . 80 . 0-65535 : goto rule_0_open,"
    ));
    assert!(text.contains("10.10.1.0-10.10.1.255 . 81-90 . 0-65535 : goto peer_1_closed,"));
    assert!(text.contains("iifname != { \"lan0\" } accept"));
    assert!(text.starts_with("add table inet tpo\ndelete table inet tpo\n"));
}

#[test]
fn any_of_several_peers_will_do() {
    let mut table = table(&[]);
    table.rules[0].carriers = table.carriers.id_of(&Carriers {
        peers: [1, 0].map(PeerId::new).into(),
        spread: false,
    });
    let text = render(&table, PORTS).unwrap();
    let both = "meta l4proto @alive_1 goto bounded_open\n    meta l4proto @alive_0 goto bounded_open\n    counter name plain_0 counter name no_lease accept";
    assert!(text.contains(both), "{text}");
}

#[test]
fn many_rules_share_their_counters() {
    let mut table = table(&[]);
    let more = (0..MOST_COUNTED as u16).map(|port| RuleSpec {
        destination_ports: port..=port,
        ..table.rules[0].clone()
    });
    table.rules = more.collect();
    assert!(
        render(&table, PORTS)
            .unwrap()
            .contains("goto rule_999_open")
    );
    table.rules.push(RuleSpec {
        destination_ports: 5_000..=5_000,
        ..table.rules[0].clone()
    });
    let text = render(&table, PORTS).unwrap();
    assert!(text.contains("goto peer_0_open") && !text.contains("plain_"));
}

#[test]
fn groups_are_copied_only_where_they_are_carried() {
    let text = render(&table(&[]), PORTS).unwrap();
    assert!(
        !text.contains("dup to") && text.contains("delete table ip6 tpo"),
        "what an earlier run left goes"
    );
    let text = render(
        &Table {
            multicast: vec!["lan0".into()],
            ..table(&[])
        },
        PORTS,
    )
    .unwrap();
    assert!(
        text.contains("dup to 192.0.0.9 device \"tpo0\"") && text.contains("dup to 100::9 device"),
        "{text}"
    );
}

#[test]
fn without_ipv6_nothing_of_it_is_named() {
    let text = render(
        &table(&[]),
        Ports {
            v4: 15001,
            v6: None,
        },
    )
    .unwrap();
    assert!(!text.contains("ip6 to"));
}

#[test]
fn connection_tracking_only_for_this_hosts_own_traffic() {
    let text = render(
        &Table {
            local: false,
            ..table(&[])
        },
        PORTS,
    )
    .unwrap();
    assert!(!text.contains("ct mark"));
    assert!(!text.contains("ct direction"));
}

#[test]
fn an_interface_name_cannot_smuggle_rules() {
    for bad in ["", "a\"; accept; \"", "a b", "sixteen-letters-"] {
        assert_eq!(
            render(&table(&[bad]), PORTS).unwrap_err(),
            RuleError::Interface(bad.to_owned())
        );
    }
}
