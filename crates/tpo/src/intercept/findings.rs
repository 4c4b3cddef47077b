//! What this host's settings mean for interception. Reads, and never sets: they belong to the
//! administrator.
//!
//! For `tpo check` and for the log at start. Most of the settings belong to the network namespace
//! of the thread that asks.

use super::hold;
use super::names::{ROUTE_TABLE, TABLE};
use crate::host::program;
use crate::table::marks::{MARK_DELIVER, MARK_OWN};
use crate::table::{Mode, OnFailure, Table};
use serde_json::Value;
use std::fmt::{self, Display};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Some traffic may not be accelerated, or not under load.
    Warning,
    /// Intercepted connections will fail.
    Problem,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The setting, and its value.
    pub found: String,
    /// What follows from it.
    pub(crate) means: &'static str,
    /// What would do.
    pub remedy: String,
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.found, self.means, self.remedy)
    }
}

/// Looks at everything that is known to matter for this table.
pub fn findings(table: &Table) -> Vec<Finding> {
    let bridged = has_bridge();
    let mut found = judge(table, |key| {
        // The setting is on by default and matters only where there is a bridge.
        if key.starts_with("net.bridge.") && !bridged {
            return None;
        }
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        std::fs::read_to_string(path)
            .ok()
            .map(|value| value.trim().to_owned())
    });
    found.extend(tracking(table));
    found.extend(input_policies(&ask("nft", &["-j", "list", "chains"])));
    for family in ["-4", "-6"] {
        found.extend(mark_rules(
            family,
            &ask("ip", &[family, "-j", "rule", "list"]),
        ));
    }
    found
}

/// What the rules' `on_failure` means: what may go in the clear, said once for all rules, and which
/// closed rules have only one thing that holds them.
pub(crate) fn failures(table: &Table) -> Vec<Finding> {
    let of = |mode| {
        table
            .rules
            .iter()
            .filter(|rule| rule.enabled && rule.on_failure == mode)
            .count()
    };
    let open = (of(OnFailure::Open) > 0).then(|| Finding {
        severity: Severity::Info,
        found: "on_failure = open".to_owned(),
        means: "while a peer is not up, what these rules name goes on in the clear, and whoever can drop UDP between the two TPOs for two seconds can bring that about",
        remedy: "on_failure = \"closed\", in [tpo] for all rules or in a rule, refuses it instead".to_owned(),
    });
    let fits = |v6| hold::routing(table, v6).is_ok_and(|(_, all)| all);
    let many = (!fits(false) || !fits(true)).then(|| Finding {
        severity: Severity::Info,
        found: format!("closed rules need more than {} routing rules", hold::MOST_ROUTING_RULES),
        means: "the later ones are held by the nftables table alone: a flush of the whole ruleset opens them for up to a second",
        remedy: "join prefixes or port ranges".to_owned(),
    });
    open.into_iter().chain(many).collect()
}

/// A descriptor for each connection, and some for ourselves: below this many a site of a hundred
/// people runs out.
const FEW_DESCRIPTORS: u64 = 8_192;

/// Warns when the limit of open files is low, once it has been raised as far as it goes.
pub(crate) fn descriptors(limit: u64) -> Option<Finding> {
    (limit < FEW_DESCRIPTORS).then(|| Finding {
        severity: Severity::Warning,
        found: format!("at most {limit} open files"),
        means: "each connection needs one; near it new connections go as their rule's on_failure says",
        remedy: "raise the hard limit (LimitNOFILE= of the service, or ulimit -Hn)".to_owned(),
    })
}

/// The judgement, apart from where the values come from.
fn judge(table: &Table, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |severity, key: &str, means, to: &str| {
        let value = read(key).unwrap_or_default();
        let (found_text, remedy) = (
            format!("{key} = {value}"),
            format!("set it with: sysctl -w {key}={to}"),
        );
        found.push(Finding {
            severity,
            found: found_text,
            means,
            remedy,
        });
    };
    let is = |key: &str, value: &str| read(key).as_deref() == Some(value);
    let below = |key: &str, least: u64| {
        read(key)
            .and_then(|v| v.parse().ok())
            .is_some_and(|v: u64| v < least)
    };
    if is("net.ipv4.tcp_syncookies", "2") {
        let means = "a SYN cookie leaves nothing behind by which the answer is recognised: every intercepted connection fails";
        add(Severity::Problem, "net.ipv4.tcp_syncookies", means, "1");
    }
    if table.mode == Mode::Tproxy && below("net.core.somaxconn", 1_024) {
        let means = "the listeners' queues are short: a flood of new connections that the bounds let come fills them, and for some seconds no TCP is taken";
        add(Severity::Warning, "net.core.somaxconn", means, "65535");
    }
    for (family, key) in [
        (true, "net.ipv4.ip_forward"),
        (false, "net.ipv6.conf.all.forwarding"),
    ] {
        let of_family =
            |rule: &crate::table::RuleSpec| rule.enabled && rule.source.0.is_ipv4() == family;
        if is(key, "0") && table.rules.iter().any(of_family) {
            let means = "this host is no router: only connections of its own applications can be intercepted";
            add(
                if table.local {
                    Severity::Info
                } else {
                    Severity::Warning
                },
                key,
                means,
                "1",
            );
        }
    }
    for key in [
        "net.ipv4.conf.all.src_valid_mark",
        "net.ipv4.conf.lo.src_valid_mark",
    ] {
        if is(key, "1")
            && (is("net.ipv4.conf.all.rp_filter", "1")
                || is("net.ipv4.conf.default.rp_filter", "1"))
        {
            let means = "with rp_filter the source address of marked packets is looked up in the table that delivers everything here: they are dropped";
            add(Severity::Warning, key, means, "0");
        }
    }
    for key in [
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    ] {
        if is(key, "1") {
            let means = "packets that are only bridged here meet the rules too, and cannot be intercepted in a bridge";
            add(Severity::Warning, key, means, "0");
        }
    }
    found
}

fn has_bridge() -> bool {
    program::run("ip", &["-o", "link", "show", "type", "bridge"], "")
        .is_ok_and(|said| !said.out.is_empty())
}

/// What the tool says as JSON, or nothing where it cannot be asked.
fn ask(program: &'static str, arguments: &[&str]) -> Value {
    let said = program::run(program, arguments, "");
    said.ok()
        .and_then(|said| serde_json::from_slice(&said.out).ok())
        .unwrap_or(Value::Null)
}

/// In redirect mode nothing works without connection tracking, so there is no choice to point out.
fn tracking(table: &Table) -> Option<Finding> {
    (table.local && table.mode == Mode::Tproxy).then(|| Finding {
        severity: Severity::Info,
        found: "local = true".to_owned(),
        means: "this host's own connections are intercepted too; for that the kernel tracks every connection here, forwarded ones that no rule names too, \
                and drops new ones when net.netfilter.nf_conntrack_max is reached",
        remedy: "set local = false in [intercept] if only forwarded connections matter".to_owned(),
    })
}

/// Routing rules of others, by mark, that would take our packets, or whose packets ours would take.
/// `ip -j rule list` of one family.
fn mark_rules(family: &str, rules: &Value) -> Vec<Finding> {
    let all = rules.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .filter_map(|rule| mark_rule(family, rule))
        .collect()
}

fn mark_rule(family: &str, rule: &Value) -> Option<Finding> {
    let number = |key: &str| {
        rule[key]
            .as_str()
            .and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok())
    };
    let mark = number("fwmark")?;
    let mask = number("fwmask").unwrap_or(u32::MAX);
    let preference = rule["priority"].as_u64().unwrap_or_default();
    let ours = preference == u64::from(ROUTE_TABLE) && (mark, mask) == (MARK_DELIVER, MARK_DELIVER);
    // "All but this mark" does not single out any mark: it means our packets as it means those
    // without mark.
    if ours || rule.get("not").is_some() {
        return None;
    }
    let takes = |packet: u32| packet & mask == mark;
    // Behind our rule nothing that is to be delivered is seen any more. A rule for unmarked packets
    // routes the daemon's own as it should.
    let takes_delivered = preference <= u64::from(ROUTE_TABLE)
        && (takes(MARK_DELIVER) || takes(MARK_DELIVER | MARK_OWN));
    let takes_own = mark != 0 && takes(MARK_OWN);
    let means = if takes_delivered {
        "packets that are to be delivered to tpo bear that mark too and go where this rule leads: intercepted connections fail"
    } else if takes_own {
        "what tpo itself sends bears that mark too and goes where this rule leads"
    } else if mark & MARK_DELIVER == MARK_DELIVER {
        "packets with that mark bear tpo's too: they are delivered to this host instead of going where this rule leads"
    } else if mark & MARK_OWN == MARK_OWN {
        "packets with that mark are taken for tpo's own: connections of this host that bear it are not intercepted"
    } else {
        return None;
    };
    Some(Finding {
        severity: Severity::Warning,
        found: format!(
            "the routing rule `ip {family} rule` {preference}: fwmark {mark:#x}/{mask:#x}"
        ),
        means,
        remedy: format!(
            "use other bits for it: tpo's marks are {MARK_DELIVER:#x} and {MARK_OWN:#x}"
        ),
    })
}

/// Intercepted packets are delivered to this host, with foreign destinations: a firewall that lets
/// in only what it knows drops them.
fn input_policies(chains: &Value) -> Vec<Finding> {
    let all = chains["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let dropping = all.iter().map(|object| &object["chain"]).filter(|chain| {
        chain["hook"] == "input"
            && chain["policy"] == "drop"
            && chain["table"] != TABLE
            && chain["family"] != "bridge"
    });
    dropping
        .map(|chain| {
            let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            let place = format!("{} {} {}", text("family"), text("table"), text("name"));
            Finding {
                severity: Severity::Warning,
                found: format!("the firewall chain `{place}` drops what it does not know"),
                means: "intercepted connections come in there, with their own addresses",
                remedy: format!("let marked packets pass: nft insert rule {place} meta mark and {MARK_DELIVER:#x} == {MARK_DELIVER:#x} accept"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{OnFailure, RuleSpec};

    fn check(settings: &[(&str, &str)], local: bool) -> Vec<Severity> {
        let rule = RuleSpec {
            protocol: 6,
            source: ("10.0.0.0".parse().unwrap(), 8),
            source_ports: 0..=u16::MAX,
            destination: ("10.0.0.0".parse().unwrap(), 8),
            destination_ports: 0..=u16::MAX,
            carriers: tpo_engine::CarriersId::new(0),
            on_failure: OnFailure::Open,
            enabled: true,
        };
        let table = Table {
            local,
            ..Table::of_rules(vec![rule], 1)
        };
        let read = |key: &str| {
            settings
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| (*v).to_owned())
        };
        judge(&table, read)
            .into_iter()
            .map(|finding| finding.severity)
            .collect()
    }

    #[test]
    fn a_good_host_gives_no_finding() {
        let good = [
            ("net.ipv4.tcp_syncookies", "1"),
            ("net.core.somaxconn", "4096"),
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "0"),
            ("net.ipv4.conf.all.src_valid_mark", "1"),
            ("net.ipv4.conf.all.rp_filter", "2"),
        ];
        assert_eq!(check(&good, false), []);
        assert_eq!(
            check(&[], false),
            [],
            "settings that do not exist on this kernel"
        );
    }

    #[test]
    fn bad_settings_are_named() {
        assert_eq!(
            check(&[("net.ipv4.tcp_syncookies", "2")], true),
            [Severity::Problem]
        );
        assert_eq!(
            check(&[("net.core.somaxconn", "128")], true),
            [Severity::Warning]
        );
        assert_eq!(
            check(&[("net.ipv4.ip_forward", "0")], true),
            [Severity::Info]
        );
        assert_eq!(
            check(&[("net.ipv4.ip_forward", "0")], false),
            [Severity::Warning]
        );
        assert_eq!(
            check(&[("net.bridge.bridge-nf-call-iptables", "1")], true),
            [Severity::Warning]
        );
        let marked = [
            ("net.ipv4.conf.all.src_valid_mark", "1"),
            ("net.ipv4.conf.all.rp_filter", "1"),
        ];
        assert_eq!(check(&marked, true), [Severity::Warning]);
    }

    #[test]
    fn a_firewall_that_drops_is_named_ours_is_not() {
        let chain = |table: &str, policy: &str| serde_json::json!({ "chain": { "family": "inet", "table": table, "name": "input", "hook": "input", "policy": policy } });
        let all = serde_json::json!({ "nftables": [chain("filter", "drop"), chain("other", "accept"), chain(TABLE, "drop"), { "table": {} }] });
        let found = input_policies(&all);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].remedy.contains(
                "insert rule inet filter input meta mark and 0x4780000 == 0x4780000 accept"
            )
        );
        assert_eq!(input_policies(&Value::Null), []);
    }

    #[test]
    fn routing_rules_that_share_our_marks_are_named() {
        let means = |preference: u32, mark: &str, mask: Option<&str>| {
            let mut rule = serde_json::json!({ "priority": preference, "src": "all", "fwmark": mark, "table": "55" });
            if let Some(mask) = mask {
                rule["fwmask"] = mask.into();
            }
            mark_rules(
                "-4",
                &serde_json::json!([{ "priority": 0, "src": "all", "table": "local" }, rule]),
            )
            .pop()
            .map(|f| f.means)
        };
        for harmless in [
            (100, "0x1", None),
            (100, "0x5", Some("0xff")),
            (100, "0x80000", Some("0xff0000")),
            (500, "0x0", Some("0xff")),
        ] {
            assert_eq!(
                means(harmless.0, harmless.1, harmless.2),
                None,
                "{harmless:?}"
            );
        }
        let ours = format!("{MARK_DELIVER:#x}");
        assert_eq!(means(ROUTE_TABLE, &ours, Some(&ours)), None);
        assert!(
            means(100, "0x4000000", Some("0x4000000"))
                .unwrap()
                .contains("intercepted connections fail")
        );
        assert!(
            means(100, "0x0", Some("0xff"))
                .unwrap()
                .contains("intercepted connections fail")
        );
        assert_eq!(
            means(500, "0x4000000", Some("0x4000000")),
            None,
            "ours comes first"
        );
        assert!(
            means(500, "0x10000", Some("0x10000"))
                .unwrap()
                .contains("tpo itself sends")
        );
        assert!(
            means(500, "0xfff0000", None)
                .unwrap()
                .contains("instead of going")
        );
        assert!(
            means(500, "0x8870000", None)
                .unwrap()
                .contains("not intercepted")
        );
        let others = serde_json::json!([{ "priority": 1, "not": null, "src": "all", "fwmark": "0xca6c", "table": "51820" }]);
        assert_eq!(mark_rules("-4", &others), []);
        assert_eq!(mark_rules("-6", &Value::Null), []);
    }
}
