//! What is good, and what it means.

use crate::{KEY, OTHER_KEY, base, check, good};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tpo::config::Level;
use tpo::config::checked::SourceAddress;
use tpo::host::log::LogFormat;
use tpo::table::peers::PeerId;
use tpo::table::{Mode, OnFailure};
use tpo_engine::{PacketKey, Policy};

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

/// The README's ten lines work as they stand there.
#[test]
fn the_readme_is_a_good_configuration() {
    let readme = include_str!("../../../../README.md");
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
