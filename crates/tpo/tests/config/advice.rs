//! What is good and worth a warning or a note.

use crate::{OTHER_KEY, base, good};
use tpo::config::Level;

/// Where our rules send the answers to one peer, packets of the same clients through another would
/// be refused: that is said.
#[test]
fn clients_of_another_peer_are_noticed() {
    let two = |rules_peer: &str, accept: &str| {
        base()
            + &format!("[[peer]]\nname = \"oslo\"\npublic_key = \"{OTHER_KEY}\"\n")
            + &format!(
                "[[rule]]\nprotocol = \"udp\"\nsource = \"any\"\ndestination = \"10.10.2.0/23\"\npeer = {rules_peer}\n"
            )
            + &format!("[[accept]]\npeer = \"oslo\"\n{accept}\n")
    };
    let accept = "protocol = \"udp\"\nsource = \"10.10.2.0/24\"\ndestination = \"10.10.1.0/24\"";
    assert_eq!(
        warnings(&two("\"lyon\"", accept)),
        [
            "23: 10.10.2.0/24 is behind \"lyon\" by the rule of line 18: packets from there through \"oslo\" are refused"
        ]
    );
    for (peer, accept) in [
        ("[\"lyon\", \"oslo\"]", accept.to_owned()),
        ("\"lyon\"", accept.replace("udp", "tcp")),
        ("\"lyon\"", accept.replace("10.10.2.0/24", "10.10.4.0/24")),
        ("\"lyon\"", accept.replace("10.10.2.0/24", "10.10.0.0/16")),
        ("\"lyon\"\ndestination_ports = 53", accept.to_owned()),
        ("\"lyon\"\nenabled = false", accept.to_owned()),
    ] {
        assert_eq!(
            warnings(&two(peer, &accept)),
            Vec::<String>::new(),
            "{peer} {accept}"
        );
    }
}

#[test]
fn every_wide_accept_is_named() {
    let notes = |text: &str| {
        let (_, findings) = good(text);
        assert_eq!(findings.count(Level::Warning), 0, "{findings}");
        let notes = findings
            .iter()
            .filter(|finding| finding.key.starts_with("[[accept]]"));
        notes
            .map(|finding| format!("{}: {}: {}", finding.line, finding.key, finding.found))
            .collect::<Vec<_>>()
    };
    let accept = |destination: &str, source: &str| {
        base().replace(
            "peer = \"lyon\"\ndestination = \"10.10.1.0/24\"",
            &format!("peer = \"lyon\"\ndestination = \"{destination}\"\n{source}"),
        )
    };
    for narrow in ["10.0.0.0/8", "2001::/16"] {
        assert_eq!(
            notes(&accept(narrow, &format!("source = \"{narrow}\""))),
            Vec::<String>::new(),
            "{narrow}"
        );
    }
    for wide in ["any", "0.0.0.0/0", "10.0.0.0/7", "2000::/3", "fc00::/7"] {
        let family = if wide.contains(':') {
            "2001::/16"
        } else {
            "10.0.0.0/8"
        };
        assert_eq!(
            notes(&accept(wide, &format!("source = \"{family}\""))),
            [format!("12: [[accept]] destination: {wide} is wide")]
        );
        assert_eq!(
            notes(&accept(family, &format!("source = \"{wide}\""))),
            [format!("12: [[accept]] source: {wide} is wide")]
        );
    }
    // What follows from a rule is no less wide.
    let any = base().replace("destination = \"10.10.2.0/24\"", "destination = \"any\"");
    let (_, findings) = good(&any);
    let note = findings
        .iter()
        .find(|finding| finding.key == "[[accept]] source")
        .unwrap();
    assert!(
        note.found.ends_with(", any") && note.would_do.starts_with("any is wide: a client behind"),
        "{note}"
    );
    assert_eq!(notes(&any).len(), 1);
}

/// Who leaves `source` out is told once, for each accept, whom that means: the others are refused.
#[test]
fn an_accept_without_source_says_whom_it_means() {
    let notes = |text: &str| {
        let (_, findings) = good(text);
        assert_eq!(findings.count(Level::Warning), 0, "{findings}");
        let notes = findings
            .iter()
            .filter(|finding| finding.level == Level::Note && finding.key == "[[accept]] source");
        notes
            .map(|finding| format!("{}: {}", finding.line, finding.found))
            .collect::<Vec<_>>()
    };
    let rule = |destination: &str| {
        format!(
            "[[rule]]\nprotocol = \"udp\"\nsource = \"any\"\ndestination = \"{destination}\"\npeer = \"lyon\"\n"
        )
    };
    let accept = |destination: &str, more: &str| {
        format!("[[accept]]\npeer = \"lyon\"\ndestination = \"{destination}\"\n{more}")
    };
    let means = |line: usize, who: &str| {
        format!(
            "{line}: left out, so nobody may come from \"lyon\" but the destinations of the rules for it, {who}"
        )
    };
    assert_eq!(notes(&base()), [means(12, "10.10.2.0/24")]);
    let text = base()
        + &accept("10.10.1.0/24", "protocol = \"udp\"\n")
        + &accept("10.10.9.0/24", "source = \"10.10.2.0/24\"\n")
        + &accept("fd10:1::/64", "protocol = \"udp\"\n")
        + &rule("fd10:2::/64")
        + &rule("10.10.2.0/24")
        + &rule("10.10.0.0/24");
    let v4 = "10.10.2.0/24, 10.10.0.0/24";
    assert_eq!(
        notes(&text),
        [means(12, v4), means(15, v4), means(23, "fd10:2::/64")]
    );
    // A line to read, however many there are.
    let many: String = (1..=20).map(|i| rule(&format!("10.20.{i}.0/24"))).collect();
    let [note] = &notes(&(base() + &many))[..] else {
        panic!("one accept")
    };
    assert!(note.ends_with(", 10.10.2.0/24, 10.20.1.0/24, 10.20.2.0/24, 10.20.3.0/24, 10.20.4.0/24, 10.20.5.0/24, 10.20.6.0/24, 10.20.7.0/24 and 13 more"), "{note}");
}

/// A prefix never means the host's own addresses: who might think so is told.
#[test]
fn an_accept_that_holds_an_address_of_this_host_says_that_it_is_not_meant() {
    let notes = |text: &str, own: &[&str]| {
        let (checked, _) = good(text);
        let own: Vec<_> = own.iter().map(|text| text.parse().unwrap()).collect();
        let notes = tpo::config::on_host(&checked, &own);
        assert_eq!(notes.count(Level::Note), notes.iter().count());
        notes
            .iter()
            .map(|finding| format!("{}: {}", finding.line, finding.found))
            .collect::<Vec<_>>()
    };
    let accept = |destination: &str, more: &str| {
        format!(
            "[[accept]]\npeer = \"lyon\"\nsource = \"any\"\ndestination = \"{destination}\"\n{more}"
        )
    };
    let own = [
        "127.0.0.1",
        "192.0.2.1",
        "10.10.1.1",
        "fd10:1::1",
        "fe80::1",
    ];
    let held = "12: 10.10.1.0/24 holds 10.10.1.1, an address of this host";
    assert_eq!(notes(&base(), &own), [held]);
    assert_eq!(notes(&base(), &["10.10.2.1", "fd10:1::1"]), [""; 0]);
    // Said once for a destination, whatever the protocols; not where it is meant; "any" has its own
    // words.
    let udp = base() + &accept("10.10.1.0/24", "protocol = \"udp\"\n");
    assert_eq!(notes(&udp, &own), [held]);
    assert_eq!(notes(&(base() + &accept("10.10.1.1", "")), &own), [""; 0]);
    assert_eq!(notes(&(base() + &accept("any", "")), &own), [held]);
}

fn warnings(text: &str) -> Vec<String> {
    let (_, findings) = good(text);
    findings
        .iter()
        .filter(|finding| finding.level == Level::Warning)
        .map(|finding| format!("{}: {}", finding.line, finding.found))
        .collect()
}

#[test]
fn a_rule_that_never_matches_is_noticed() {
    let rule = |source: &str, destination: &str, more: &str| {
        format!(
            "[[rule]]\nprotocol = \"tcp\"\npeer = \"lyon\"\nsource = \"{source}\"\ndestination = \"{destination}\"\n{more}\n"
        )
    };
    // The rule of the base is at line 7 and takes 10.10.1.0/24 to 10.10.2.0/24.
    let covered = [
        rule("10.10.1.7", "10.10.2.0/24", ""),
        rule("10.10.1.0/24", "10.10.2.128/25", "destination_ports = 80"),
    ];
    for rule in covered {
        assert_eq!(
            warnings(&(base() + &rule)),
            ["15: never matches: the rule of line 7 takes everything first"],
            "{rule}"
        );
    }
    let free = [
        rule("10.10.0.0/16", "10.10.2.0/24", ""),
        rule("10.10.1.0/24", "10.10.3.0/24", ""),
        rule("any", "10.10.2.0/24", ""),
        rule("fd10:1::/64", "fd10:2::/64", ""),
        rule("10.10.1.7", "10.10.2.0/24", "enabled = false"),
    ];
    for rule in free {
        assert_eq!(warnings(&(base() + &rule)), Vec::<String>::new(), "{rule}");
    }
    let any = base()
        .replacen("source = \"10.10.1.0/24\"", "source = \"any\"", 1)
        .replacen("\"10.10.2.0/24\"", "\"any\"", 1);
    assert_eq!(
        warnings(&(any.clone() + &rule("fd10:1::/64", "any", ""))).len(),
        1
    );
    let narrow = any.replacen("\"any\"\npeer", "\"any\"\ndestination_ports = 22\npeer", 1);
    assert_eq!(
        warnings(&(narrow + &rule("10.10.1.0/24", "10.10.2.0/24", ""))).len(),
        0,
        "only one port was taken first"
    );
}

#[test]
fn a_peer_that_nothing_names_is_noticed() {
    let text = base()
        + &format!(
            "[[peer]]\nname = \"oslo\"\npublic_key = \"{OTHER_KEY}\"\nendpoint = \"192.0.2.1:47800\"\n"
        );
    assert_eq!(
        warnings(&text),
        [
            "15: no [[rule]] and no [[accept]] names peer \"oslo\": nothing is carried to it or from it"
        ]
    );
    let (_, findings) =
        good(&base().replace("[[accept]]", "[[accept]]\nsource = \"10.10.2.0/24\""));
    let notes = findings.to_string();
    assert_eq!(
        notes,
        "/etc/tpo/tpo.toml:4: note: [[peer]] endpoint: peer \"lyon\" has none: it must call us, so its own configuration needs an endpoint for us\n"
    );
}
