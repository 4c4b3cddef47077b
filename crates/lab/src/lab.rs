//! The live lab: client - A = WAN = B - server, four namespaces on one machine, with the link model
//! in the middle.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::link::LinkStats;
use crate::netns::{self, Namespace};
use crate::profile::Profile;
use crate::tun::Tun;
use crate::wan::Carrier;

/// A machine of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host {
    /// Where applications run; its only way out is A.
    Client,
    /// The gateway at the client's site.
    A,
    /// The gateway at the server's site.
    B,
    /// Where servers run; its only way out is B.
    Server,
}

/// What lies between A and B.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time; a box would be in every caller's way"
)]
pub enum Wan {
    /// The link model, between two TUN devices.
    Emulated {
        /// From A to B.
        a_to_b: Profile,
        /// From B to A.
        b_to_a: Profile,
    },
    /// A veth pair, no emulation.
    Plain,
}

impl Wan {
    /// The same link in both directions.
    pub fn symmetric(profile: Profile) -> Wan {
        Wan::Emulated {
            a_to_b: profile.clone(),
            b_to_a: profile,
        }
    }
}

/// Four namespaces, `<prefix>-client`, `-a`, `-b` and `-server`, until it is dropped.
///
/// Interfaces: `eth0` in client and server, `lan0` and `wan0` in A and B. A and B forward; client
/// and server have their default routes through them, and they have theirs through each other.
pub struct Lab {
    // The carrier goes first: with it go the TUN devices.
    carrier: Option<Carrier>,
    namespaces: [Namespace; 4],
}

struct Interface {
    host: Host,
    name: &'static str,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

const fn interface(host: Host, name: &'static str, net: u8, number: u8) -> Interface {
    let (v4, v6) = match net {
        9 => (Ipv4Addr::new(10, 9, 0, number), 0x9),
        net => (Ipv4Addr::new(10, 10, net, number), net as u16),
    };
    Interface {
        host,
        name,
        v4,
        v6: Ipv6Addr::new(0xfd10, v6, 0, 0, 0, 0, 0, number as u16),
    }
}

/// Every address of the lab: /24 and /64 each.
const INTERFACES: [Interface; 6] = [
    interface(Host::Client, "eth0", 1, 2),
    interface(Host::A, "lan0", 1, 1),
    interface(Host::A, "wan0", 9, 1),
    interface(Host::B, "wan0", 9, 2),
    interface(Host::B, "lan0", 2, 1),
    interface(Host::Server, "eth0", 2, 2),
];

/// Packets that wait in a TUN device while our thread does not run; all other waiting belongs to
/// the link model.
pub(crate) const TUN_QUEUE: u32 = 10_000;

impl Host {
    const ALL: [Host; 4] = [Host::Client, Host::A, Host::B, Host::Server];

    /// Its name, which ends the namespace's name.
    pub fn name(self) -> &'static str {
        match self {
            Host::Client => "client",
            Host::A => "a",
            Host::B => "b",
            Host::Server => "server",
        }
    }

    /// The IPv4 address of one of its interfaces (`eth0`, `lan0`, `wan0`).
    pub fn v4(self, interface: &str) -> IpAddr {
        self.interface(interface).v4.into()
    }

    /// The IPv6 address of one of its interfaces.
    pub fn v6(self, interface: &str) -> IpAddr {
        self.interface(interface).v6.into()
    }

    fn interface(self, name: &str) -> &'static Interface {
        let found = INTERFACES
            .iter()
            .find(|interface| interface.host == self && interface.name == name);
        found.unwrap_or_else(|| panic!("{} has no interface {name}", self.name()))
    }
}

impl Lab {
    /// Makes the lab, after removing what is left of one with the same prefix.
    pub fn up(name_prefix: &str, wan: Wan) -> Result<Lab> {
        check_prefix(name_prefix)?;
        netns::permitted()?;
        let make = |host: Host| Namespace::new(&format!("{name_prefix}-{}", host.name()));
        let namespaces = [
            make(Host::Client)?,
            make(Host::A)?,
            make(Host::B)?,
            make(Host::Server)?,
        ];
        let mut lab = Lab {
            carrier: None,
            namespaces,
        };
        for host in Host::ALL {
            lab.namespace(host).sysctl(SETTINGS)?;
        }
        for gateway in [Host::A, Host::B] {
            lab.namespace(gateway).sysctl(FORWARDING)?;
        }
        lab.join(Host::Client, "eth0", Host::A, "lan0")?;
        lab.join(Host::Server, "eth0", Host::B, "lan0")?;
        match wan {
            Wan::Plain => lab.join(Host::A, "wan0", Host::B, "wan0")?,
            Wan::Emulated { a_to_b, b_to_a } => {
                let tun = |host| {
                    let tun = lab.namespace(host).inside(|| Tun::open("wan0"));
                    tun.context(
                        "/dev/net/tun cannot make a device: is the kernel's TUN driver there?",
                    )
                };
                let (a, b) = (tun(Host::A)?, tun(Host::B)?);
                for host in [Host::A, Host::B] {
                    let lines = format!(
                        "link set wan0 txqueuelen {TUN_QUEUE}\nlink set wan0 addrgenmode none\n"
                    );
                    lab.namespace(host).ip(&lines)?;
                }
                let seed = name_prefix
                    .bytes()
                    .fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
                lab.carrier =
                    Some(Carrier::start(a, b, a_to_b, b_to_a, seed).context("the WAN thread")?);
            }
        }
        lab.address()?;
        Ok(lab)
    }

    /// A command that will run inside the host's namespace. What is started is the caller's to end.
    pub fn command(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        self.namespace(host).command(program.as_ref())
    }

    /// Runs `f` in a fresh thread inside the host's namespace; sockets made in it stay in the
    /// namespace.
    pub fn inside<T: Send>(&self, host: Host, f: impl FnOnce() -> T + Send) -> T {
        self.namespace(host).inside(f)
    }

    /// Changes both directions of an emulated WAN from now on. Panics on a plain one, which has
    /// nothing to set.
    pub fn set(&self, a_to_b: Profile, b_to_a: Profile) {
        self.carrier
            .as_ref()
            .expect("a plain WAN cannot be set")
            .set(a_to_b, b_to_a);
    }

    /// The two directions as they are now; `None` for a plain WAN.
    pub fn profiles(&self) -> Option<(Profile, Profile)> {
        self.carrier.as_ref().map(Carrier::profiles)
    }

    /// What the two directions, A to B and B to A, did so far; all zero for a plain WAN.
    pub fn stats(&self) -> (LinkStats, LinkStats) {
        self.carrier
            .as_ref()
            .map_or_else(Default::default, Carrier::stats)
    }

    /// Bytes that wait for the bottleneck of each direction, A to B and B to A, at this moment;
    /// zero for a plain WAN.
    pub fn waiting(&self) -> (u64, u64) {
        self.carrier.as_ref().map_or((0, 0), Carrier::waiting)
    }

    /// Packets that the lab itself, not the model, dropped: a measurement with any is worth
    /// nothing.
    pub fn own_drops(&self) -> u64 {
        self.carrier.as_ref().map_or(0, Carrier::own_drops)
    }

    fn namespace(&self, host: Host) -> &Namespace {
        &self.namespaces[host as usize]
    }

    /// A veth pair between two hosts.
    fn join(&self, one: Host, interface: &str, other: Host, far: &str) -> Result<()> {
        let far_namespace = self.namespace(other).name();
        self.namespace(one).ip(&format!(
            "link add {interface} type veth peer name {far} netns {far_namespace}\n"
        ))
    }

    /// Addresses, interfaces up, routes.
    fn address(&self) -> Result<()> {
        let v6 = Path::new("/proc/sys/net/ipv6").exists();
        for host in Host::ALL {
            let mut lines = String::new();
            for Interface {
                name, v4, v6: six, ..
            } in INTERFACES.iter().filter(|interface| interface.host == host)
            {
                let _ = writeln!(lines, "addr add {v4}/24 dev {name}");
                if v6 {
                    let _ = writeln!(lines, "addr add {six}/64 dev {name} nodad");
                }
                let _ = writeln!(lines, "link set {name} up");
            }
            self.namespace(host).ip(&lines)?;
        }
        for host in Host::ALL {
            let mut lines = String::new();
            // A link whose other end came up later counts as down for up to a second, and IPv6
            // waits for it. A question for its state makes the kernel look at once.
            for Interface { name, .. } in
                INTERFACES.iter().filter(|interface| interface.host == host)
            {
                let _ = writeln!(lines, "link show dev {name}");
            }
            let gateway = match host {
                Host::Client => Host::A.interface("lan0"),
                Host::A => Host::B.interface("wan0"),
                Host::B => Host::A.interface("wan0"),
                Host::Server => Host::B.interface("lan0"),
            };
            let _ = writeln!(lines, "route add default via {}", gateway.v4);
            if v6 {
                let _ = writeln!(lines, "route add default via {}", gateway.v6);
            }
            self.namespace(host).ip(&lines)?;
        }
        Ok(())
    }
}

/// Removes what is left of a lab whose process was killed.
pub fn remove(name_prefix: &str) -> Result<()> {
    check_prefix(name_prefix)?;
    netns::permitted()?;
    Host::ALL
        .into_iter()
        .try_for_each(|host| netns::remove(&format!("{name_prefix}-{}", host.name())))
}

/// The topology with namespaces, interfaces and addresses, for people.
pub fn describe(name_prefix: &str) -> String {
    let mut text = String::from("client ---- A ==== WAN ==== B ---- server\n\n");
    for Interface { host, name, v4, v6 } in &INTERFACES {
        let namespace = format!("{name_prefix}-{}", host.name());
        let _ = writeln!(
            text,
            "{namespace:<20} {name}  {:<14} {v6}/64",
            format!("{v4}/24")
        );
    }
    let _ = write!(
        text,
        "\nRun a program in one of them: ip netns exec {name_prefix}-client <program>\n"
    );
    text
}

pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    let plain = prefix
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if prefix.is_empty() || prefix.len() > 64 || !plain {
        bail!(
            "lab prefix: found `{prefix}`, would accept 1 to 64 letters, digits, - or _, such as `tpo`"
        );
    }
    Ok(())
}

/// Kernel settings of every host.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    // 128 MiB, 10 Gbit/s for 100 ms: direct TCP must not be held back by its window. No run may
    // remember another.
    ("net/ipv4/tcp_rmem", "4096 131072 134217728"),
    ("net/ipv4/tcp_wmem", "4096 65536 134217728"),
    ("net/ipv4/tcp_slow_start_after_idle", "0"),
    ("net/ipv4/tcp_no_metrics_save", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Anybody may use an ICMP echo socket.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Addresses can be used at once, and nobody announces routers.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

/// Kernel settings of the gateways.
pub(crate) const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // They would tell clients to use a shorter way that does not exist.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_the_promised_ones() {
        let text = describe("x");
        for part in [
            "x-client             eth0  10.10.1.2/24   fd10:1::2/64",
            "x-a                  lan0  10.10.1.1/24   fd10:1::1/64",
            "x-a                  wan0  10.9.0.1/24    fd10:9::1/64",
            "x-b                  wan0  10.9.0.2/24    fd10:9::2/64",
            "x-b                  lan0  10.10.2.1/24   fd10:2::1/64",
            "x-server             eth0  10.10.2.2/24   fd10:2::2/64",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(Host::B.v6("wan0").to_string(), "fd10:9::2");
    }

    #[test]
    fn a_bad_prefix_is_refused_before_anything_is_done() {
        for bad in ["", "a b", "../etc", "a/b"] {
            let Err(error) = Lab::up(bad, Wan::Plain) else {
                panic!("{bad} was taken")
            };
            assert!(error.to_string().contains("would accept"), "{error}");
            assert!(remove(bad).is_err());
        }
    }
}
