//! Loads the rules into the kernel and takes them away again, with the policy route that delivers
//! marked packets to this host.
//!
//! Everything that is made here bears our name or our numbers: the nft tables `tpo` (`inet`; `ip`
//! and `ip6` where groups are copied), the routing tables [`ROUTE_TABLE`] and [`PACKET_TABLE`] with
//! an `ip rule` each, the device. Nothing else is touched. What holds the closed rules
//! ([`Holding`]) comes first and goes last. What a killed run has left over bears the same names,
//! so installing replaces it, in one transaction: there is no moment without rules.

use super::commands::{load, run, said, verdict};
use super::error::InstallError;
use super::holding::{self, Holding};
use super::names::{PACKET_TABLE, ROUTE_TABLE, TABLE};
use super::rules;
use super::rules::multicast::VIA_V6;
use super::tcp::Ports;
use super::tcp::has_ipv6;
use super::tun::{DEVICE, Tun};
use super::watch::Watch;
use crate::host::lock::Lock;
use crate::host::program;
use crate::table::Table;
use crate::table::marks::{MARK_DELIVER, MARK_PACKETS};
use std::io;
use std::sync::Arc;
use tracing::{info, warn};

/// The installed rules. Dropping it removes them, from the network namespace of the thread that
/// drops it: that must be the one that they were installed in.
#[derive(Debug)]
pub struct Installed {
    /// Keeps other daemons from this namespace; the kernel releases it however we end.
    _lock: Lock,
    watch: Watch,
    holding: Holding,
    /// What holds the closed rules stays after an orderly end.
    hold_closed: bool,
    /// What holds the closed rules goes with the rest.
    let_go: bool,
    v6: bool,
    /// The device for packets, where there is one.
    tun: Option<Arc<Tun>>,
    /// Its number.
    device: Option<u32>,
    removed: bool,
}

/// Puts `table` in force, in the place of whatever an earlier run has left. Interception begins
/// with the first lease.
pub fn install(table: &Table, ports: Ports) -> Result<Installed, InstallError> {
    let text = rules::render(table, ports)?;
    let lock = Lock::take()?;
    // First, so that no closed rule waits for anything else.
    let holding = Holding::put(table)?;
    // A start that fails leaves nothing new behind, and lets nothing go that was held before.
    let let_go = !holding.was_there() && !table.hold_closed;
    let watch = Watch::open(TABLE).map_err(|error| InstallError::unseen(&error))?;
    if ports.v6.is_none() {
        info!("this host has no IPv6 (or it is switched off): only IPv4 is intercepted");
    }
    // From here on a failure takes back what was done.
    let mut installed = Installed {
        _lock: lock,
        watch,
        holding,
        hold_closed: table.hold_closed,
        let_go,
        v6: ports.v6.is_some(),
        tun: None,
        device: None,
        removed: false,
    };
    if !table.packets.is_empty() {
        installed.tun = Some(Arc::new(Tun::open()?));
    }
    // Without marked packets the route means nothing, so it may come first.
    for family in families(installed.v6) {
        add_route(family)?;
        if installed.tun.is_some() {
            add_packet_route(family)?;
        }
    }
    if !table.multicast.is_empty() && installed.v6 {
        add_copy_route()?;
    }
    load(&text)?;
    installed
        .watch
        .remember()
        .map_err(|error| InstallError::unseen(&error))?;
    if installed.tun.is_some() {
        installed.device = installed
            .watch
            .way_of_packets(false)
            .map_err(|error| InstallError::unseen(&error))?;
    }
    Ok(installed)
}

fn families(v6: bool) -> &'static [&'static str] {
    if v6 { &["-4", "-6"] } else { &["-4"] }
}

impl Installed {
    /// Whether everything is still in force: the table with its chains, and for each family the way
    /// of marked packets to this host. Costs some microseconds, so it may be asked once a second.
    ///
    /// While it is not, no lease may be held: intercepted packets could end nowhere.
    pub fn is_whole(&mut self) -> io::Result<bool> {
        Ok(self.watch.table_is_whole()? && self.routes_are_whole()?)
    }

    fn routes_are_whole(&mut self) -> io::Result<bool> {
        // Where IPv6 has been switched off meanwhile there are no packets that would need the way.
        Ok(self.watch.route_is_whole(false)?
            && (!self.v6 || self.watch.route_is_whole(true)? || !has_ipv6()))
    }

    /// Whether marked packets still go to the TUN device. While they do not, they take their plain
    /// way, or are held ([`Holding`]).
    pub(crate) fn packets_are_whole(&mut self) -> io::Result<bool> {
        Ok(self.tun.is_none()
            || (self.watch.way_of_packets(false)? == self.device
                && (!self.v6 || self.watch.way_of_packets(true)? == self.device || !has_ipv6())))
    }

    /// Leads them there again, and makes the device anew if it is gone.
    pub(crate) fn repair_packets(&mut self, table: &Table) -> Result<(), InstallError> {
        let anew = match &self.tun {
            Some(tun) => tun.restore()?,
            None => return Ok(()),
        };
        let v6 = self.v6 && has_ipv6();
        families(v6)
            .iter()
            .try_for_each(|family| add_packet_route(family))?;
        if anew {
            if !table.multicast.is_empty() {
                if v6 {
                    add_copy_route()?;
                }
                // They name the device by its number.
                self.repair_groups(table)?;
            }
            self.device = self
                .watch
                .way_of_packets(false)
                .map_err(|error| InstallError::unseen(&error))?;
        }
        Ok(())
    }

    /// Puts the tables of groups in force again. Until then nothing is copied from the LANs, and
    /// nothing else happens.
    pub(crate) fn repair_groups(&self, table: &Table) -> Result<(), InstallError> {
        load(&rules::multicast::multicast(&table.multicast, self.v6))
    }

    /// Whether IPv6 is intercepted.
    pub(crate) fn has_v6(&self) -> bool {
        self.v6
    }

    /// The device for packets, if any rule or `accept` needs it.
    pub fn tun(&self) -> Option<Arc<Tun>> {
        self.tun.clone()
    }

    /// Puts in force again what [`Installed::is_whole`] misses, as [`install`] does. The table is
    /// loaded only when something of it is gone; then all leases are gone too, and the counters
    /// begin anew.
    pub fn repair(&mut self, table: &Table, ports: Ports) -> Result<(), InstallError> {
        let text = rules::render(table, ports)?;
        for family in families(ports.v6.is_some() && has_ipv6()) {
            add_route(family)?;
            if self.tun.is_some() {
                add_packet_route(family)?;
            }
        }
        if !self
            .watch
            .table_is_whole()
            .map_err(|error| InstallError::unseen(&error))?
        {
            load(&text)?;
            self.watch
                .remember()
                .map_err(|error| InstallError::unseen(&error))?;
        }
        match self.routes_are_whole() {
            Ok(true) => Ok(()),
            Ok(false) => Err(InstallError::Refused {
                what: "have intercepted packets delivered to this host",
                said: format!(
                    "a routing rule with a preference below {ROUTE_TABLE} takes them elsewhere; see `ip rule`"
                ),
            }),
            Err(error) => Err(InstallError::unseen(&error)),
        }
    }

    /// Puts back what holds the closed rules where somebody else has removed it, or a part; whether
    /// that was so.
    pub(crate) fn keep_holding(&mut self) -> Result<bool, InstallError> {
        self.holding.keep()
    }

    /// Removes everything, in an orderly end: new connections go their plain way at once; those
    /// that are open lose their way to us. What holds the closed rules stays where the
    /// administrator wants it so ([`Table::hold_closed`]).
    pub fn remove(mut self) -> Result<(), InstallError> {
        self.removed = true;
        self.let_go = !self.hold_closed;
        self.take_away()
    }

    /// The same when the daemon ends by a failure: what holds the closed rules stays.
    pub(crate) fn give_up(mut self) -> Result<(), InstallError> {
        self.removed = true;
        self.let_go = false;
        self.take_away()
    }

    fn take_away(&self) -> Result<(), InstallError> {
        // The service manager waits for an end for some time only.
        program::within_limit(|| {
            let removed = remove_left_overs();
            match self.let_go {
                true => removed.and(holding::remove()),
                false => removed,
            }
        })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        self.let_go &= !std::thread::panicking();
        if !self.removed
            && let Err(error) = self.take_away()
        {
            warn!(%error, "the interception rules could not be removed; `tpo off` does it");
        }
    }
}

/// Removes what a killed run has left, but for what holds the closed rules ([`holding::remove`]).
/// Does nothing where there is nothing.
pub fn remove_left_overs() -> Result<(), InstallError> {
    // The table first: the route without it is harmless, it without the route is not.
    let nft = load(&rules::nothing());
    for family in ["-4", "-6"] {
        // One of each at most; an error says that there was none (or no such family).
        let _ = run("ip", &rule_command(family, "del"), "");
        let _ = run("ip", &route_command(family, "del"), "");
        let _ = run("ip", &packet_rule_command(family, "del"), "");
    }
    nft
}

/// Packets that carry our mark are delivered to this host, whatever their destination.
fn add_route(family: &str) -> Result<(), InstallError> {
    let output = run(
        "ip",
        &foreign_to_nobody(route_command(family, "replace")),
        "",
    )?;
    verdict(
        &output,
        "add the route of the table for intercepted packets (is the interface `lo` up?)",
    )?;
    let output = run("ip", &foreign_to_nobody(rule_command(family, "add")), "")?;
    match said(&output).contains("File exists") {
        // Left by a killed run: exactly the same rule.
        true => Ok(()),
        false => verdict(&output, "add the routing rule for intercepted packets"),
    }
}

/// Packets that carry the other mark go to the TUN device. The route goes with the device.
fn add_packet_route(family: &str) -> Result<(), InstallError> {
    let table = PACKET_TABLE.to_string();
    let route = [
        family, "route", "replace", "default", "dev", DEVICE, "table", &table,
    ]
    .map(str::to_owned)
    .to_vec();
    let output = run("ip", &foreign_to_nobody(route), "")?;
    verdict(&output, "add the route into the TUN device")?;
    let output = run(
        "ip",
        &foreign_to_nobody(packet_rule_command(family, "add")),
        "",
    )?;
    match said(&output).contains("File exists") {
        true => Ok(()),
        false => verdict(&output, "add the routing rule for packets"),
    }
}

/// IPv6 copies packets only where a route leads. It goes with the device.
fn add_copy_route() -> Result<(), InstallError> {
    let via = VIA_V6.to_string();
    let route = ["-6", "route", "replace", &via, "dev", DEVICE]
        .map(str::to_owned)
        .to_vec();
    verdict(
        &run("ip", &foreign_to_nobody(route), "")?,
        "add the route for copies of packets to groups",
    )
}

fn packet_rule_command(family: &str, verb: &str) -> Vec<String> {
    let mark = format!("{MARK_PACKETS:#x}/{MARK_PACKETS:#x}");
    let table = PACKET_TABLE.to_string();
    [
        family, "rule", verb, "fwmark", &mark, "lookup", &table, "pref", &table,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// systemd-networkd removes rules and routes that it did not make, at its start and when a link
/// changes, unless `protocol` says that they are the kernel's own. That word has no other effect.
fn foreign_to_nobody(mut command: Vec<String>) -> Vec<String> {
    command.extend(["protocol", "kernel"].map(str::to_owned));
    command
}

fn route_command(family: &str, verb: &str) -> Vec<String> {
    let everything = if family == "-4" { "0.0.0.0/0" } else { "::/0" };
    let table = ROUTE_TABLE.to_string();
    [
        family, "route", verb, "local", everything, "dev", "lo", "table", &table,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn rule_command(family: &str, verb: &str) -> Vec<String> {
    let mark = format!("{MARK_DELIVER:#x}/{MARK_DELIVER:#x}");
    let table = ROUTE_TABLE.to_string();
    [
        family, "rule", verb, "fwmark", &mark, "lookup", &table, "pref", &table,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Whether the tools would do again what [`install`] had them do, without doing it: for a daemon
/// that has given up rights since.
pub(crate) fn rehearse(table: &Table, ports: Ports) -> Result<(), InstallError> {
    let text = rules::render(table, ports)?;
    let output = run("nft", &["-c", "-f", "-"].map(str::to_owned), &text)?;
    verdict(&output, "load the nftables rules again")?;
    let output = run("ip", &["rule", "list"].map(str::to_owned), "")?;
    verdict(&output, "list the routing rules")
}

/// Whether the tools are there that installing needs: for `tpo check`.
pub(crate) fn check_tools() -> Result<(), InstallError> {
    for (program, version) in [("nft", "--version"), ("ip", "-V")] {
        run(program, &[version.to_owned()], "")?;
    }
    Ok(())
}
