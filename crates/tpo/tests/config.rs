//! Configurations as people write them: what is good, what is not, and in which words they are
//! told.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tpo::config::checked::SourceAddress;
use tpo::config::{Checked, Findings, Level, parse, sample::SAMPLE};
use tpo::host::log::LogFormat;
use tpo::table::peers::PeerId;
use tpo::table::{Mode, OnFailure};
use tpo_engine::{PacketKey, Policy};

const KEY: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=";
const OTHER_KEY: &str = "AAowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqo=";

fn check(text: &str) -> Result<(Checked, Findings), Findings> {
    parse(text, Path::new("/etc/tpo/tpo.toml"))
}

fn good(text: &str) -> (Checked, Findings) {
    check(text).unwrap_or_else(|findings| panic!("{findings}"))
}

/// A good configuration, each section on known lines: [tpo] 1-3, [[peer]] 4-6, [[rule]] 7-11,
/// [[accept]] 12-14.
fn base() -> String {
    format!(
        "[tpo]\nname = \"paris\"\nprivate_key_file = \"paris.key\"\n\
         [[peer]]\nname = \"lyon\"\npublic_key = \"{KEY}\"\n\
         [[rule]]\nprotocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"\npeer = \"lyon\"\n\
         [[accept]]\npeer = \"lyon\"\ndestination = \"10.10.1.0/24\"\n"
    )
}

#[test]
fn what_is_left_out_has_its_default() {
    let (checked, findings) = good(&base());
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    assert_eq!(checked.tpo.name, "paris");
    assert_eq!(
        checked.tpo.private_key_file,
        Path::new("/etc/tpo/paris.key")
    );
    assert_eq!(checked.tpo.listen.to_string(), "[::]:47800");
    assert_eq!(checked.tpo.control, Path::new("/run/tpo/tpo.sock"));
    assert_eq!(checked.tpo.user, None);
    assert_eq!(
        (
            checked.tpo.buffer_size,
            checked.tpo.segment_size,
            checked.tpo.memory
        ),
        (131_072, None, 512 << 20)
    );
    assert_eq!(checked.tpo.outage, Duration::from_secs(300));
    assert_eq!(
        (checked.tpo.log.as_str(), checked.tpo.log_format),
        ("info", LogFormat::Human)
    );
    assert_eq!(
        (
            checked.intercept.mode,
            checked.intercept.local,
            checked.intercept.interfaces.len()
        ),
        (Mode::Tproxy, true, 0)
    );
    let rule = &checked.rules[0];
    assert_eq!(
        (
            rule.matches.protocol,
            rule.matches.carriers.number(),
            rule.on_failure,
            rule.enabled
        ),
        (6, 0, OnFailure::Open, true)
    );
    assert_eq!(
        (
            rule.matches.source_ports.clone(),
            rule.matches.destination_ports.clone()
        ),
        (0..=65_535, 0..=65_535)
    );
    assert_eq!((rule.line, checked.accepts[0].line), (7, 12));
    assert_eq!(
        (
            checked.accepts[0].protocol,
            checked.accepts[0].source_address
        ),
        (6, SourceAddress::Client)
    );
}

/// What goes on from peer to peer needs no LAN: a hub may stand where nobody listens.
#[test]
fn a_hub_for_groups_needs_no_lan() {
    let hub = base().replace(
        "protocol = \"tcp\"\nsource = \"10.10.1.0/24\"\ndestination = \"10.10.2.0/24\"",
        "protocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"239.1.0.0/16\"\ntransit = true",
    ) + "protocol = \"udp\"\nsource = \"any\"\n\
         [[accept]]\npeer = \"lyon\"\nprotocol = \"udp\"\nsource = \"10.10.2.0/24\"\ndestination = \"239.1.0.0/16\"\n";
    let (checked, _) = good(&hub);
    assert!(checked.rules[0].transit && checked.rules[0].is_for_many());
    assert!(check(&hub.replace("transit = true", "transit = false")).is_err());
}

#[test]
fn what_is_given_arrives() {
    let text = format!(
        r#"
[tpo]
name = "lyon-2"
private_key_file = "/keys/lyon.key"
listen = "0.0.0.0:4000"
control = "run/lyon.sock"
user = "carrier"
buffer_size = 131072
segment_size = 1400
memory = "1GiB"
outage = "10m"
idle = "1m"
idle_both = "5m"
log = "warn,tpo::edge=debug"
log_format = "json"

[intercept]
mode = "redirect"
local = false
interfaces = ["lan0", "br-lan.7"]

[[peer]]
name = "paris"
public_key = "{KEY}"
pre_shared_key_file = "paris.psk"
endpoint = "[2001:db8::1]:47800"
rate = "1gbit"
congestion = "fixed"

[[peer]]
name = "oslo"
public_key = "{OTHER_KEY}"

[[rule]]
protocol = "tcp"
source = "fd10:1::/64"
source_ports = "1024-65535"
destination = "fd10:2::2"
destination_ports = 443
peer = "oslo"
class = "bulk"
on_failure = "closed"

[[rule]]
protocol = "tcp"
source = "any"
destination = "any"
peer = "paris"
class = "interactive"
enabled = false

[[accept]]
peer = "oslo"
protocol = "tcp"
source = "fd10:1::/64"
destination = "fd10:3::/64"
destination_ports = "80"
source_address = "tpo"

[[accept]]
peer = "paris"
source = "any"
destination = "any"

[[accept]]
peer = "oslo"
destination = "any"
"#
    );
    let (checked, _) = good(&text);
    assert_eq!(checked.tpo.private_key_file, Path::new("/keys/lyon.key"));
    assert_eq!(checked.tpo.control, Path::new("/etc/tpo/run/lyon.sock"));
    assert_eq!(checked.tpo.user.as_deref(), Some("carrier"));
    assert_eq!(
        (
            checked.tpo.buffer_size,
            checked.tpo.segment_size,
            checked.tpo.memory
        ),
        (131_072, Some(1_400), 1 << 30)
    );
    assert_eq!(
        (checked.tpo.outage, checked.tpo.log_format),
        (Duration::from_secs(600), LogFormat::Json)
    );
    assert_eq!(
        (checked.tpo.idle, checked.tpo.idle_both),
        (Duration::from_secs(60), Duration::from_secs(300))
    );
    assert_eq!(
        (checked.intercept.mode, checked.intercept.local),
        (Mode::Redirect, false)
    );
    assert_eq!(checked.intercept.interfaces, ["lan0", "br-lan.7"]);
    let (file, line) = checked.peers[PeerId::new(0)]
        .pre_shared_key_file
        .clone()
        .unwrap();
    assert_eq!(
        (file.as_path(), text.lines().nth(line - 1)),
        (
            Path::new("/etc/tpo/paris.psk"),
            Some("pre_shared_key_file = \"paris.psk\"")
        )
    );
    assert_eq!(checked.peers[PeerId::new(1)].pre_shared_key_file, None);
    assert_eq!(
        checked.peers[PeerId::new(0)].endpoint.unwrap().to_string(),
        "[2001:db8::1]:47800"
    );
    assert_eq!(checked.peers[PeerId::new(0)].rate, Some(125_000_000));
    assert_eq!(
        (
            checked.peers[PeerId::new(1)].endpoint,
            checked.peers[PeerId::new(1)].rate
        ),
        (None, None)
    );
    let rule = &checked.rules[0];
    assert_eq!(
        (
            rule.matches.carriers.number(),
            rule.on_failure,
            rule.matches.destination.length
        ),
        (1, OnFailure::Closed, 128)
    );
    assert_eq!(
        (
            rule.matches.source_ports.clone(),
            rule.matches.destination_ports.clone()
        ),
        (1_024..=65_535, 443..=443)
    );
    assert!(!checked.rules[1].enabled);
    assert_eq!(
        (
            checked.accepts[0].peer.number(),
            checked.accepts[0].source_address
        ),
        (1, SourceAddress::Tpo)
    );
    assert_eq!(checked.accepts[0].destination_ports, 80..=80);
    let sources = |accept: usize| {
        checked.accepts[accept]
            .sources
            .iter()
            .map(|prefix| prefix.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        [sources(0), sources(1), sources(2)],
        [["fd10:1::/64"], ["any"], ["fd10:2::2/128"]]
    );
}

/// Who may come from a peer, where nothing is said, is who is behind it by our own rules; where no
/// rule says so, it must be said.
#[test]
fn who_is_behind_a_peer_follows_from_the_rules() {
    let rule = |destination: &str, more: &str| {
        format!(
            "[[rule]]\nprotocol = \"udp\"\nsource = \"any\"\ndestination = \"{destination}\"\npeer = \"lyon\"\n{more}\n"
        )
    };
    let text = base()
        + &rule("10.10.3.0/24", "transit = true")
        + &rule("10.10.4.0/24", "enabled = false")
        + &rule("fd10:2::/64", "")
        + &rule("239.1.0.0/16", "transit = true");
    let sources = |text: &str| {
        let (checked, findings) = good(text);
        assert_eq!(findings.count(Level::Warning), 0, "{findings}");
        checked.accepts[0]
            .sources
            .iter()
            .map(|prefix| prefix.to_string())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let is = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.to_string())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let accept = "[[accept]]\npeer = \"lyon\"\ndestination = \"10.10.1.0/24\"";
    assert_eq!(sources(&text), is(&["10.10.2.0/24", "10.10.3.0/24"]));
    assert_eq!(
        sources(&text.replace(accept, &accept.replace("10.10.1.0/24", "fd10:1::/64"))),
        is(&["fd10:2::/64"])
    );
    assert_eq!(
        sources(&text.replace(accept, &format!("{accept}\nsource = \"10.10.9.0/24\""))),
        is(&["10.10.9.0/24"])
    );
    // Servers alone: no rule, or none of that family, or none that is switched on.
    let line = ":12: error: [[accept]] source: missing, and no enabled [[rule]] sends anything to somebody behind peer \"lyon\"; \
                would do: the line source = \"10.10.2.0/24\", with the prefix of the clients behind \"lyon\"";
    let (before, after) = (
        base().find("[[rule]]").unwrap(),
        base().find("[[accept]]").unwrap(),
    );
    let none = base()[..before].to_owned() + &base()[after..];
    let off = base().replace("[[accept]]", "enabled = false\n[[accept]]");
    let other = base().replace(
        "10.10.1.0/24\"\ndestination = \"10.10.2.0/24",
        "any\"\ndestination = \"fd10:2::/64",
    );
    for (text, line) in [
        (none, line.replace(":12:", ":7:")),
        (off, line.replace(":12:", ":13:")),
        (other, line.into()),
    ] {
        let refused = check(&text).unwrap_err().to_string();
        assert!(refused.contains(&line), "{refused}");
    }
}

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

/// The README's ten lines work as they stand there.
#[test]
fn the_readme_is_a_good_configuration() {
    let readme = include_str!("../../../README.md");
    let text = readme
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("its configuration");
    let (checked, findings) = good(&text.replace("<what keygen printed in Lyon>", KEY));
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    assert_eq!(
        findings.to_string(),
        "/etc/tpo/tpo.toml:21: note: [[accept]] source: left out, so nobody may come from \"lyon\" but the destinations of the \
         rules for it, 10.10.2.0/24: others are refused, unless a line with source names them\n"
    );
    let sources: Vec<_> = checked.accepts[0]
        .sources
        .iter()
        .map(|prefix| prefix.to_string())
        .collect();
    assert_eq!(sources, ["10.10.2.0/24"]);
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

/// Who wants no answer may send from port 0: a rule and an accept that name no ports mean it too.
#[test]
fn rules_without_ports_mean_port_0_too() {
    let (checked, _) = good(&base().replace("\"tcp\"", "\"udp\""));
    let policy = Policy::new(vec![checked.rules[0].matches.clone()]);
    for (source, destination) in [(0, 53), (4_000, 0), (0, 0), (65_535, 65_535)] {
        let from = SocketAddr::from(([10, 10, 1, 2], source));
        let to = SocketAddr::from(([10, 10, 2, 2], destination));
        assert!(
            policy
                .find(&PacketKey::new(17, from, to).unwrap())
                .is_some(),
            "{from} to {to}"
        );
    }
    assert!(checked.accepts[0].destination_ports.contains(&0));
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

#[test]
fn the_sample_is_good_once_its_key_is_filled_in() {
    let refused = check(SAMPLE).unwrap_err();
    let errors: Vec<&str> = refused
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .map(|finding| finding.key.as_str())
        .collect();
    assert_eq!(errors, ["[[peer]] public_key"], "{refused}");
    let filled = SAMPLE.replace("<what `tpo keygen` printed in Lyon>", KEY);
    let (checked, findings) = good(&filled);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    // Every optional key of the sample shows its default, so that taking the # away changes
    // nothing...
    let all: String = filled
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| is_key_or_section(rest))
                .unwrap_or(line)
                .to_owned()
                + "\n"
        })
        .collect();
    let all = all
        .replace("rate = \"100mbit\"", "#")
        .replace("pre_shared_key_file", "#");
    let (with_all, findings) = good(&all);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    let plain = |mut checked: Checked| {
        checked.tpo.private_key_line = 0;
        checked.peers.iter_mut().for_each(|peer| peer.line = 0);
        checked.rules.iter_mut().for_each(|rule| rule.line = 0);
        checked
            .accepts
            .iter_mut()
            .for_each(|accept| accept.line = 0);
        format!("{checked:?}")
    };
    assert_eq!(plain(with_all), plain(checked));
    // ...and every key that is known is in it: a key that does not exist makes the check list those
    // that do.
    let wrong = base()
        .replace("private_key_file", "x = 1\nprivate_key_file")
        .replace("public_key", "x = 1\npublic_key");
    let wrong = wrong
        .replace("protocol", "x = 1\nprotocol")
        .replace("[[accept]]", "[[accept]]\nx = 1")
        + "[intercept]\nx = 1\n[multicast]\nx = 1\n";
    let mut known = 0;
    for finding in check(&wrong)
        .unwrap_err()
        .iter()
        .filter(|finding| finding.key.ends_with(" x"))
    {
        for key in finding.would_do.trim_start_matches("one of ").split(", ") {
            assert!(
                all.lines()
                    .chain(["rate = ", "pre_shared_key_file = "])
                    .any(|line| line.starts_with(&format!("{key} = "))),
                "{key} is not in the sample"
            );
            known += 1;
        }
    }
    assert_eq!(
        known,
        16 + 5 + 2 + 10 + 15 + 7,
        "{}",
        check(&wrong).unwrap_err()
    );
}

fn is_key_or_section(line: &str) -> bool {
    line.starts_with('[')
        || line
            .split_once(" = ")
            .is_some_and(|(key, _)| !key.is_empty() && !key.contains(' '))
}

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
fn closed_for_all_rules_but_those_that_say_otherwise_and_multicast() {
    let rule = |more: &str, destination: &str| {
        format!(
            "\n[[rule]]\nprotocol = \"udp\"\nsource = \"10.10.1.0/24\"\ndestination = \"{destination}\"\npeer = \"lyon\"\n{more}\n"
        )
    };
    let rules = rule("", "10.10.2.0/24")
        + &rule("on_failure = \"open\"", "10.10.3.0/24")
        + &rule("", "239.1.0.0/16");
    let more = "[multicast]\ninterfaces = [\"lan0\"]\n";
    let failures = |text: &str| {
        good(text)
            .0
            .rules
            .iter()
            .map(|rule| rule.on_failure)
            .collect::<Vec<_>>()
    };
    let text = base() + &rules + more;
    let [open, closed] = [OnFailure::Open, OnFailure::Closed];
    assert!(failures(&text).iter().all(|failure| *failure == open));
    let text = text.replacen("[tpo]", "[tpo]\non_failure = \"closed\"", 1);
    let found = failures(&text);
    assert_eq!(found[found.len() - 3..], [closed, open, open]);
    assert!(
        found[..found.len() - 3]
            .iter()
            .all(|failure| *failure == closed)
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

#[test]
fn ten_thousand_rules_are_checked_in_no_time() {
    let mut text = base();
    for i in 0..10_000u32 {
        let (a, b, c) = (i >> 12, (i >> 4) & 0xff, (i & 0xf) << 4);
        text += &format!(
            "[[rule]]\nprotocol = \"tcp\"\nsource = \"172.16.{b}.{c}/{}\"\ndestination = \"192.168.{b}.{c}/28\"\ndestination_ports = \"{}-{}\"\npeer = \"lyon\"\n",
            28 + i % 3,
            1 + a * 1_000,
            1_000 + a * 1_000,
        );
    }
    let start = Instant::now();
    let (checked, findings) = good(&text);
    let took = start.elapsed();
    assert_eq!(checked.rules.len(), 10_001);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    // "Well under a second" with room for a busy machine.
    assert!(took < Duration::from_secs(1), "{took:?}");
    // The worst case of the search for covered rules: all prefixes equal, only the ports differ.
    let same: String = (0..10_000).map(|i| {
        format!("[[rule]]\nprotocol = \"tcp\"\nsource = \"172.16.0.0/16\"\ndestination = \"any\"\ndestination_ports = {}\npeer = \"lyon\"\n", i + 1)
    }).collect();
    let start = Instant::now();
    good(&(base() + &same));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // Ten thousand mistakes are not ten thousand lines.
    let refused = check(&text.replace("\"lyon\"\n[[rule]]", "\"rome\"\n[[rule]]")).unwrap_err();
    assert!(refused.count(Level::Error) > 9_000);
    assert_eq!(refused.to_string().lines().count(), 41);
    assert!(refused.to_string().ends_with("more\n"));
}

#[test]
fn any_text_is_survived() {
    let texts = [
        "",
        "\u{feff}",
        "[",
        "[[peer]]\n[peer]",
        "tpo = 1\npeer = [1]\nrule = {}",
        "tpo.name = \"x\"\npeer = []",
        "[tpo.name]",
        "\0",
        "[tpo]\r\nname=\"x\"\r\n",
    ];
    for text in texts {
        tpo::config::fuzz_config(text);
    }
    // Every cut and a broken letter at every place of a good one.
    let text = base();
    for at in 0..text.len() {
        tpo::config::fuzz_config(&text[..at]);
        tpo::config::fuzz_config(&format!("{}\u{7f}{}", &text[..at], &text[at + 1..]));
    }
    // Pieces of a good one in any order, from a fixed seed.
    let pieces: Vec<&str> = SAMPLE.split_inclusive([' ', '"', '=', '\n']).collect();
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..rounds() {
        let mut shuffled = pieces.clone();
        for _ in 0..=next(20) {
            let (from, to) = (next(shuffled.len()), next(shuffled.len()));
            match next(3) {
                0 => shuffled.swap(from, to),
                1 => shuffled[from] = shuffled[to],
                _ => shuffled[from] = "",
            }
        }
        tpo::config::fuzz_config(&shuffled.concat());
    }
}

/// More with `TPO_ROUNDS`, for a longer search.
fn rounds() -> usize {
    std::env::var("TPO_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(2_000)
}

#[test]
fn numbers_may_be_written_in_every_way_of_toml() {
    for written in ["1400", "1_400", "0x578", "\"1400\"", "'1400'", "+1400"] {
        let (checked, _) =
            good(&base().replacen("[tpo]", &format!("[tpo]\nsegment_size = {written}"), 1));
        assert_eq!(checked.tpo.segment_size, Some(1_400), "{written}");
    }
    let refused = check(&base().replacen("[tpo]", "[tpo]\nsegment_size = 99999999999999999999", 1))
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("segment_size: found a number out of range; would do"),
        "{refused}"
    );
}
