//! What this host's settings mean for interception. Reads, and never sets: they belong to the administrator.
//!
//! For `tpo check` and for the log at start. Most of the settings belong to the network namespace of the thread that asks.

use super::rules::TABLE;
use super::{MARK_DELIVER, Mode, Table};
use serde_json::Value;
use std::fmt::{self, Display};
use std::process::{Command, Stdio};

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
    pub means: &'static str,
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
        std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
    });
    found.extend(input_policies(&chains()));
    found
}

/// A descriptor for each connection, and some for ourselves: below this many a site of a hundred people runs out.
const FEW_DESCRIPTORS: u64 = 8_192;

/// Warns when the limit of open files is low, once it has been raised as far as it goes.
pub fn descriptors(limit: u64) -> Option<Finding> {
    (limit < FEW_DESCRIPTORS).then(|| Finding {
        severity: Severity::Warning,
        found: format!("at most {limit} open files"),
        means: "each connection needs one; beyond it new connections are reset",
        remedy: "raise the hard limit (LimitNOFILE= of the service, or ulimit -Hn)".to_owned(),
    })
}

/// The judgement, apart from where the values come from.
fn judge(table: &Table, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut add = |severity, key: &str, means, to: &str| {
        let value = read(key).unwrap_or_default();
        let (found_text, remedy) = (format!("{key} = {value}"), format!("set it with: sysctl -w {key}={to}"));
        found.push(Finding { severity, found: found_text, means, remedy });
    };
    let is = |key: &str, value: &str| read(key).as_deref() == Some(value);
    let below = |key: &str, least: u64| read(key).and_then(|v| v.parse().ok()).is_some_and(|v: u64| v < least);
    if is("net.ipv4.tcp_syncookies", "2") {
        let means =
            "a SYN cookie leaves nothing behind by which the answer is recognised: every intercepted connection fails";
        add(Severity::Problem, "net.ipv4.tcp_syncookies", means, "1");
    }
    if table.mode == Mode::Tproxy && below("net.core.somaxconn", 1_024) {
        let means = "a burst of new connections fills the listener's queue; SYN cookies begin then, and intercepted connections fail";
        add(Severity::Warning, "net.core.somaxconn", means, "65535");
    }
    for (family, key) in [(true, "net.ipv4.ip_forward"), (false, "net.ipv6.conf.all.forwarding")] {
        let of_family = |rule: &super::RuleSpec| rule.enabled && rule.source.0.is_ipv4() == family;
        if is(key, "0") && table.rules.iter().any(of_family) {
            let means = "this host is no router: only connections of its own applications can be intercepted";
            add(if table.local { Severity::Info } else { Severity::Warning }, key, means, "1");
        }
    }
    for key in ["net.ipv4.conf.all.src_valid_mark", "net.ipv4.conf.lo.src_valid_mark"] {
        if is(key, "1") && (is("net.ipv4.conf.all.rp_filter", "1") || is("net.ipv4.conf.default.rp_filter", "1")) {
            let means = "with rp_filter the source address of marked packets is looked up in the table that delivers everything here: they are dropped";
            add(Severity::Warning, key, means, "0");
        }
    }
    for key in ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"] {
        if is(key, "1") {
            let means = "packets that are only bridged here meet the rules too, and cannot be intercepted in a bridge";
            add(Severity::Warning, key, means, "0");
        }
    }
    found
}

fn has_bridge() -> bool {
    let output = Command::new("ip")
        .args(["-o", "link", "show", "type", "bridge"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| !output.stdout.is_empty())
}

/// `nft -j list chains`, or nothing where it cannot be asked.
fn chains() -> Value {
    let output = Command::new("nft").args(["-j", "list", "chains"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or(Value::Null)
}

/// Intercepted packets are delivered to this host, with foreign destinations: a firewall that lets in only what it knows drops them.
fn input_policies(chains: &Value) -> Vec<Finding> {
    let all = chains["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let dropping = all.iter().map(|object| &object["chain"]).filter(|chain| {
        chain["hook"] == "input" && chain["policy"] == "drop" && chain["table"] != TABLE && chain["family"] != "bridge"
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
    use crate::intercept::{OnFailure, RuleSpec};

    fn check(settings: &[(&str, &str)], local: bool) -> Vec<Severity> {
        let rule = RuleSpec {
            source: ("10.0.0.0".parse().unwrap(), 8),
            source_ports: 0..=u16::MAX,
            destination: ("10.0.0.0".parse().unwrap(), 8),
            destination_ports: 0..=u16::MAX,
            peer: 0,
            on_failure: OnFailure::Open,
            enabled: true,
        };
        let table = Table {
            rules: vec![rule],
            mode: Mode::Tproxy,
            local,
            interfaces: Vec::new(),
            peers: 1,
            far_source_is_client: true,
        };
        let read = |key: &str| settings.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        judge(&table, read).into_iter().map(|finding| finding.severity).collect()
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
        assert_eq!(check(&[], false), [], "settings that do not exist on this kernel");
    }

    #[test]
    fn bad_settings_are_named() {
        assert_eq!(check(&[("net.ipv4.tcp_syncookies", "2")], true), [Severity::Problem]);
        assert_eq!(check(&[("net.core.somaxconn", "128")], true), [Severity::Warning]);
        assert_eq!(check(&[("net.ipv4.ip_forward", "0")], true), [Severity::Info]);
        assert_eq!(check(&[("net.ipv4.ip_forward", "0")], false), [Severity::Warning]);
        assert_eq!(check(&[("net.bridge.bridge-nf-call-iptables", "1")], true), [Severity::Warning]);
        let marked = [("net.ipv4.conf.all.src_valid_mark", "1"), ("net.ipv4.conf.all.rp_filter", "1")];
        assert_eq!(check(&marked, true), [Severity::Warning]);
    }

    #[test]
    fn a_firewall_that_drops_is_named_ours_is_not() {
        let chain = |table: &str, policy: &str| serde_json::json!({ "chain": { "family": "inet", "table": table, "name": "input", "hook": "input", "policy": policy } });
        let all = serde_json::json!({ "nftables": [chain("filter", "drop"), chain("other", "accept"), chain(TABLE, "drop"), { "table": {} }] });
        let found = input_policies(&all);
        assert_eq!(found.len(), 1);
        assert!(found[0].remedy.contains("insert rule inet filter input meta mark and 0x1 == 0x1 accept"));
        assert_eq!(input_policies(&Value::Null), []);
    }
}
