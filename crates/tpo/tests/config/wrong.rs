//! What is wrong, and in which words it is told.

use crate::{KEY, base, check};

/// What is wrong, and the one line that says so. `from` is replaced by `to` in the good
/// configuration.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "name = \"paris\"",
        "",
        "/etc/tpo/tpo.toml:1: error: [tpo] name: missing; would do: a name for this TPO, such as \"paris\"",
    ),
    (
        "name = \"paris\"",
        "name = \"pa ris\"",
        ":2: error: [tpo] name: found \"pa ris\"; would do: a name of 1 to 63 letters",
    ),
    (
        "name = \"paris\"",
        "name = 7",
        ":2: error: [tpo] name: found 7; would do: a name",
    ),
    (
        "[tpo]",
        "[tpo]\nlissten = \"[::]:1\"",
        ":2: error: [tpo] lissten: no key of this name is known here; would do: listen (known are name, ",
    ),
    (
        "[tpo]",
        "[tpo]\nlisten = \"47800\"",
        ":2: error: [tpo] listen: found \"47800\"; would do: an address and a port",
    ),
    (
        "[tpo]",
        "[tpo]\nlisten = \"0.0.0.0:0\"",
        ":2: error: [tpo] listen: found \"0.0.0.0:0\"; would do: an address and a port",
    ),
    (
        "[tpo]",
        "[tpo]\nbuffer_size = \"1MiB\"",
        ":2: error: [tpo] buffer_size: found \"1MiB\"; would do: a size from \"4KiB\" to \"256KiB\"",
    ),
    (
        "[tpo]",
        "[tpo]\nbuffer_size = 1.5",
        ":2: error: [tpo] buffer_size: found a number with a fraction, without quotes; would do: a size",
    ),
    (
        "[tpo]",
        "[tpo]\nsegment_size = 900",
        ":2: error: [tpo] segment_size: found 900; would do: \"auto\", or a number of bytes from 1200 to 16356",
    ),
    (
        "[tpo]",
        "[tpo]\nmemory = \"lots\"",
        ":2: error: [tpo] memory: found \"lots\"; would do: a size from \"16MiB\" to \"1024GiB\"",
    ),
    (
        "[tpo]",
        "[tpo]\noutage = 300",
        ":2: error: [tpo] outage: found 300; would do: a time from \"5s\" to \"86400s\", with its unit",
    ),
    (
        "[tpo]",
        "[tpo]\nlog = \"verbose\"",
        ":2: error: [tpo] log: found \"verbose\"; would do: \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
    ),
    (
        "[tpo]",
        "[tpo]\nlog_format = \"xml\"",
        ":2: error: [tpo] log_format: found \"xml\"; would do: \"human\" or \"json\"",
    ),
    (
        "[tpo]",
        "[tpo]\non_failure = \"shut\"",
        ":2: error: [tpo] on_failure: found \"shut\"; would do: \"open\" or \"closed\"",
    ),
    (
        "[tpo]",
        "[tpo]\nhold_closed = 1",
        ":2: error: [tpo] hold_closed: found 1; would do: true or false",
    ),
    (
        "[tpo]",
        "[tpo]\nname = \"rome\"",
        ":3: error: not TOML: duplicate key",
    ),
    ("[tpo]", "[tpo]\nlog = info", ":2: error: not TOML: "),
    (
        "[tpo]",
        "[tpoo]",
        ":1: error: tpoo: no section of this name is known; would do: tpo (known are tpo, intercept, multicast, peer, rule, accept)",
    ),
    (
        "[tpo]",
        "[tpoo]",
        "/etc/tpo/tpo.toml: error: [tpo]: missing; would do: a section [tpo] with at least name and private_key_file",
    ),
    (
        "[tpo]",
        "[intercept]\nmode = \"magic\"\n[tpo]",
        ":2: error: [intercept] mode: found \"magic\"; would do: \"tproxy\" or \"redirect\"",
    ),
    (
        "[tpo]",
        "[intercept]\nlocal = \"yes\"\n[tpo]",
        ":2: error: [intercept] local: found \"yes\"; would do: true or false, without quotes",
    ),
    (
        "[tpo]",
        "[intercept]\ninterfaces = \"lan0\"\n[tpo]",
        ":2: error: [intercept] interfaces: found \"lan0\"; would do: a list of interface names",
    ),
    (
        "[tpo]",
        "[intercept]\ninterfaces = [\"lan 0\"]\n[tpo]",
        ":2: error: [intercept] interfaces: found a list of 1; would do: a list of interface names such as [\"lan0\"]; \"lan 0\" is no such name",
    ),
    (
        "[[peer]]\nname",
        "[peer]\nname",
        ":4: error: [[peer]]: found [peer]; would do: [[peer]], with two brackets",
    ),
    (
        "name = \"lyon\"\n",
        "",
        ":4: error: [[peer]] name: missing; would do: a name for the peer",
    ),
    (
        "MCow",
        "MCo",
        ":6: error: [[peer]] public_key: found \"MCoBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=\"; would do: the 44 characters",
    ),
    (
        "[[peer]]",
        "[[peer]]\nendpoint = \"lyon.example:47800\"",
        ":5: error: [[peer]] endpoint: found \"lyon.example:47800\"; would do: an address and a port",
    ),
    (
        "[[peer]]",
        "[[peer]]\nrate = \"fast\"",
        ":5: error: [[peer]] rate: found \"fast\"; would do: a rate from \"10kbit\" to \"400gbit\", such as \"100mbit\"",
    ),
    (
        "[[peer]]",
        "[[peer]]\ncongestion = \"reno\"",
        ":5: error: [[peer]] congestion: found \"reno\"; would do: \"auto\" or \"fixed\" or \"cubic\" or \"scavenger\"",
    ),
    (
        "[[peer]]",
        "[[peer]]\nloss_tolerance = \"30%\"",
        ":5: error: [[peer]] loss_tolerance: found \"30%\"; would do: a share from \"0%\" to \"25%\", such as \"5%\"",
    ),
    (
        "[[peer]]",
        "[[peer]]\ncongestion = \"fixed\"",
        ":4: error: [[peer]] rate: missing; would do: a rate such as \"100mbit\": congestion = \"fixed\" sends at that rate",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"upd\"",
        ":8: error: [[rule]] protocol: found \"upd\"; would do: \"tcp\", \"udp\", \"icmp\" or the number of another protocol, such as 47 for GRE",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = 58",
        ":8: error: [[rule]] protocol: found 58; would do: \"tcp\", \"udp\"",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"icmp\"\ndestination_ports = \"80\"",
        ":9: error: [[rule]] destination_ports: a protocol without ports; would do: leave it out",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\ndelivery = \"timely\"",
        ":9: error: [[rule]] delivery: a rule for TCP; would do: leave it out",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"udp\"\ndelivery = \"reliable\"\nkeep_order = true",
        ":10: error: [[rule]] keep_order: delivery = \"reliable\"; would do: timely or plain",
    ),
    (
        "protocol = \"tcp\"",
        "",
        ":7: error: [[rule]] protocol: missing; would do: \"tcp\"",
    ),
    (
        "source = \"10.10.1.0/24\"",
        "source = \"10.10.1.5/24\"",
        ":9: error: [[rule]] source: found \"10.10.1.5/24\"; would do: \"10.10.1.0/24\": the bits behind the prefix are zero",
    ),
    (
        "source = \"10.10.1.0/24\"",
        "source = \"lan\"",
        ":9: error: [[rule]] source: found \"lan\"; would do: a prefix such as",
    ),
    (
        "source = \"10.10.1.0/24\"",
        "source = \"fd10::/64\"",
        ":10: error: [[rule]] destination: found IPv4 while source is IPv6; would do: source and destination of one family",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\nsource_ports = \"80,443\"",
        ":9: error: [[rule]] source_ports: found \"80,443\"; would do: a port or a range",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\ndestination_ports = \"90-80\"",
        ":9: error: [[rule]] destination_ports: found \"90-80\"; would do: the lower port first: \"80-90\"",
    ),
    (
        "destination = \"10.10.2.0/24\"\npeer = \"lyon\"",
        "destination = \"10.10.2.0/24\"\npeer = [\"lyon\", \"lyon\"]",
        ":11: error: [[rule]] peer: found a list of 2; would do: one peer, or a list of different ones; the name of a [[peer]]: \"lyon\"",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\nclass = \"gold\"",
        ":9: error: [[rule]] class: found \"gold\"; would do: \"interactive\" or \"normal\" or \"bulk\"",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\non_failure = \"shut\"",
        ":9: error: [[rule]] on_failure: found \"shut\"; would do: \"open\" or \"closed\"",
    ),
    (
        "protocol = \"tcp\"",
        "protocol = \"tcp\"\nenabled = 1",
        ":9: error: [[rule]] enabled: found 1; would do: true or false",
    ),
    (
        "/24\"\npeer = \"lyon\"",
        "/24\"\npeer = \"rome\"",
        ":11: error: [[rule]] peer: found \"rome\"; would do: the name of a [[peer]]: \"lyon\"",
    ),
    (
        "[[accept]]\npeer = \"lyon\"",
        "[[accept]]\npeer = 1",
        ":13: error: [[accept]] peer: found 1; would do: the name of a [[peer]]: \"lyon\"",
    ),
    (
        "[[accept]]\npeer = \"lyon\"",
        "[[accept]]",
        ":12: error: [[accept]] peer: missing; would do: the name of a [[peer]]: \"lyon\"",
    ),
    (
        "[[accept]]",
        "[[accept]]\nprotocol = \"all\"",
        ":13: error: [[accept]] protocol: found \"all\"; would do: \"tcp\"",
    ),
    (
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"",
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.1.0.0/16\"",
        ":10: error: [[rule]] destination: found a group of multicast; would do: protocol = \"udp\": nothing else",
    ),
    (
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"",
        "protocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"224.0.0.0/3\"",
        ":10: error: [[rule]] destination: found 224.0.0.0/3, which is more than groups of multicast; would do: \"224.0.0.0/4\"",
    ),
    (
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"\npeer = \"lyon\"\n[[accept]]",
        "protocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.1.0.0/16\"\npeer = \"lyon\"\n[[accept]]\nsource = \"any\"",
        ":7: error: destination: found 239.1.0.0/16, a group of multicast, and no LAN for it; would do: [multicast] with interfaces",
    ),
    (
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"",
        "on_failure = \"closed\"\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.1.0.0/16\"",
        ":8: error: [[rule]] on_failure: found a rule for multicast; would do: leave it out",
    ),
    (
        "public_key",
        "connect = \"on-demand\"\npublic_key",
        ":6: error: [[peer]] connect: found \"on-demand\"; would do: an endpoint too",
    ),
    (
        "[[accept]]",
        "[[accept]]\nsource = \"127.0.0.0/8\"",
        ":13: error: [[accept]] source: found 127.0.0.0/8; would do: the prefix of the peer's clients: none of them is loopback",
    ),
    (
        "[[accept]]\npeer = \"lyon\"\ndestination = \"10.10.1.0/24\"",
        "[[accept]]\npeer = \"lyon\"\ndestination = \"169.254.0.0/16\"",
        ":14: error: [[accept]] destination: found 169.254.0.0/16; would do: each such address alone",
    ),
    (
        "[[accept]]",
        "[[accept]]\nprotocol = 60",
        ":13: error: [[accept]] protocol: found 60; would do: \"tcp\"",
    ),
    (
        "[[accept]]",
        "[[accept]]\npinned = true",
        ":13: error: [[accept]] pinned: found true; would do: a destination that is one group of multicast",
    ),
    (
        "[[accept]]",
        "[[accept]]\nsource_address = \"mine\"",
        ":13: error: [[accept]] source_address: found \"mine\"; would do: \"client\" or \"tpo\"",
    ),
    (
        "[[accept]]",
        "[[accept]]\n\"\\u001b[31m\" = 1",
        ":13: error: [[accept]] \"\\u{1b}[31m\": no key of this name is known here",
    ),
];

#[test]
fn what_is_wrong_is_said_with_its_line_the_key_and_what_would_do() {
    for (from, to, words) in WRONG {
        assert!(base().contains(from), "{from}");
        let refused = check(&base().replacen(from, to, 1))
            .map(|_| ())
            .expect_err(to)
            .to_string();
        assert!(
            refused.lines().any(|line| line.contains(words)),
            "{to:?}: expected {words:?} in\n{refused}"
        );
    }
}

#[test]
fn all_mistakes_are_reported_at_once_and_none_makes_others() {
    let text = base()
        .replace("name = \"paris\"", "name = \"\"\nlisten = 5")
        .replace(KEY, "short")
        .replace("\"tcp\"", "\"imcp\"")
        .replace("[[accept]]", "[[accept]]\ncolour = 1");
    let refused = check(&text).unwrap_err().to_string();
    let lines: Vec<&str> = refused
        .lines()
        .map(|line| line.split(": ").nth(2).unwrap())
        .collect();
    // The wrong key of the peer does not make its name unknown to the rule.
    assert_eq!(
        lines,
        [
            "[tpo] name",
            "[tpo] listen",
            "[[peer]] public_key",
            "[[rule]] protocol",
            "[[accept]] colour"
        ],
        "{refused}"
    );
}

#[test]
fn there_are_no_more_rules_than_the_kernel_is_given() {
    let rule =
        "[[rule]]\nprotocol = \"tcp\"\nsource = \"any\"\ndestination = \"any\"\npeer = \"lyon\"\n";
    // With the rule of the base; each of these counts twice.
    assert!(check(&(base() + &rule.repeat(16_383))).is_ok());
    let refused = check(&(base() + &rule.repeat(16_384)))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains(
            "error: [[rule]]: 32769 rules, one from any to any counted for IPv4 and for IPv6; would do: at most 32768"
        ),
        "{refused}"
    );
}

#[test]
fn several_breaks_of_syntax_are_reported_with_what_else_is_wrong() {
    let refused = check(
        &base()
            .replace("name = \"paris\"", "name = = \"paris\"")
            .replace("peer = \"lyon\"\n", "peer = \"lyon\n"),
    )
    .unwrap_err();
    let lines: Vec<usize> = refused
        .iter()
        .filter(|finding| finding.found.starts_with("not TOML"))
        .map(|finding| finding.line)
        .collect();
    assert!(lines.contains(&2) && lines.contains(&11), "{refused}");
}

#[test]
fn peers_are_told_apart() {
    let twice = format!("[[peer]]\nname = \"lyon\"\npublic_key = \"{KEY}\"\n");
    let refused = check(&(base() + &twice)).unwrap_err().to_string();
    assert!(
        refused.contains(":16: error: [[peer]] name: found \"lyon\" a second time; would do"),
        "{refused}"
    );
    assert!(
        refused
            .contains(":17: error: [[peer]] public_key: found the key of line 6 again; would do"),
        "{refused}"
    );
    let refused = check("[tpo]\nname = \"a\"\nprivate_key_file = \"b\"\n")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("error: [[peer]]: missing; would do: at least one section [[peer]]"),
        "{refused}"
    );
}
