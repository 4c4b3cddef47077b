//! Several sites around a backbone, for meshes, hubs and multicast: each site has a host, a
//! gateway, and a WAN link of its own.
//!
//! ```text
//!   host 1 ---- gateway 1 ==== link 1 ==== core ==== link 2 ==== gateway 2 ---- host 2
//!                                           ║
//!                                         link 3 ==== ...
//! ```

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{FORWARDING, SETTINGS, TUN_QUEUE, check_prefix};
use crate::link::LinkStats;
use crate::netns::{self, Namespace};
use crate::profile::Profile;
use crate::tun::Tun;
use crate::wan::Carrier;

/// The time, 5 s, that a new switch has to begin forwarding; after it comes an error.
const SWITCH_READY: Duration = Duration::from_secs(5);

/// A machine of one site. Sites are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Where applications run; its only way out is the gateway. Interface `eth0`.
    Host(usize),
    /// The gateway: `lan0` and `wan0`.
    Gateway(usize),
}

/// `<prefix>-core`, and for each site `<prefix>-gw<n>` and `<prefix>-host<n>`, until it is dropped.
/// The core and the gateways forward.
pub struct Sites {
    // The carriers go first: with them go the TUN devices.
    carriers: Vec<Carrier>,
    core: Namespace,
    sites: Vec<(Namespace, Namespace)>,
}

/// Each site has a thread for its link, and a number in its addresses.
const MOST: usize = 128;

impl Place {
    /// The IPv4 address in the site's LAN: `10.10.<site>.1` is the gateway, `10.10.<site>.2` the
    /// host.
    pub fn v4(self) -> IpAddr {
        let (site, number) = self.numbers();
        Ipv4Addr::new(10, 10, site, number).into()
    }

    /// The IPv6 address in the site's LAN: `fd10:<site>::1` and `fd10:<site>::2`.
    pub fn v6(self) -> IpAddr {
        let (site, number) = self.numbers();
        Ipv6Addr::new(0xfd10, site.into(), 0, 0, 0, 0, 0, number.into()).into()
    }

    fn numbers(self) -> (u8, u8) {
        match self {
            Place::Gateway(site) => (site as u8, 1),
            Place::Host(site) => (site as u8, 2),
        }
    }
}

/// The address of a site's gateway at its link: where peers call it.
pub fn wan_address(site: usize) -> IpAddr {
    Ipv4Addr::new(10, 9, site as u8, 1).into()
}

impl Sites {
    /// Makes one site for each link, after removing what is left of a lab with the same prefix. A
    /// link is the same in both directions.
    pub fn up(name_prefix: &str, links: &[Profile]) -> Result<Sites> {
        check_prefix(name_prefix)?;
        check_number(links.len())?;
        netns::permitted()?;
        let make = |name: &str| Namespace::new(&format!("{name_prefix}-{name}"));
        let core = make("core")?;
        core.sysctl(SETTINGS)?;
        core.sysctl(FORWARDING)?;
        let mut lab = Sites {
            carriers: Vec::new(),
            core,
            sites: Vec::new(),
        };
        for (link, site) in links.iter().zip(1..) {
            let (gateway, host) = (make(&format!("gw{site}"))?, make(&format!("host{site}"))?);
            gateway.sysctl(SETTINGS)?;
            gateway.sysctl(FORWARDING)?;
            host.sysctl(SETTINGS)?;
            host.ip(&format!(
                "link add eth0 type veth peer name lan0 netns {}\n",
                gateway.name()
            ))?;
            let port = format!("site{site}");
            let tun = |namespace: &Namespace, name: &str| {
                let tun = namespace.inside(|| Tun::open(name));
                let tun = tun.context(
                    "/dev/net/tun cannot make a device: is the kernel's TUN driver there?",
                )?;
                namespace.ip(&format!(
                    "link set {name} txqueuelen {TUN_QUEUE}\nlink set {name} addrgenmode none\n"
                ))?;
                anyhow::Ok(tun)
            };
            let ends = (tun(&gateway, "wan0")?, tun(&lab.core, &port)?);
            let seed = name_prefix.bytes().fold(site, |seed: u64, byte| {
                seed.wrapping_mul(31) + u64::from(byte)
            });
            let carrier = Carrier::start(ends.0, ends.1, link.clone(), link.clone(), seed)
                .context("the WAN thread")?;
            address(&lab.core, &gateway, &host, site, &port)?;
            lab.carriers.push(carrier);
            lab.sites.push((gateway, host));
        }
        Ok(lab)
    }

    /// Makes the LANs of two sites one: a switch at each host, with a cable between them. All
    /// hosts keep their addresses.
    pub fn join_lans(&self, one: usize, other: usize) -> Result<()> {
        let [(_, first), (_, second)] = [one, other].map(|site| &self.sites[site - 1]);
        first.ip(&format!(
            "link add cable type veth peer name cable netns {}\n",
            second.name()
        ))?;
        for (site, host) in [(one, first), (other, second)] {
            // The switch takes the name that the host's interface had.
            host.ip(&format!(
                "link set eth0 down\nlink set eth0 name port\naddr flush dev port\n\
                 link add eth0 type bridge forward_delay 0 mcast_snooping 0\n\
                 link set port master eth0\nlink set cable master eth0\nlink set port up\nlink set cable up\nlink set eth0 up\n\
                 addr add 10.10.{site}.2/24 dev eth0\nroute add default via 10.10.{site}.1\nlink show dev eth0\n"
            ))?;
        }
        for site in [one, other] {
            self.sites[site - 1].0.ip("link show dev lan0\n")?;
        }
        // The kernel looks at the state of links in its own time.
        let start = Instant::now();
        for host in [first, second] {
            while host.bridge_ports_forwarding()? < 2 {
                ensure!(
                    start.elapsed() < SWITCH_READY,
                    "the switches of the joined LANs do not forward"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// A command that will run inside the machine's namespace. What is started is the caller's to
    /// end.
    pub fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Command {
        self.namespace(place).command(program.as_ref())
    }

    /// Runs `f` in a fresh thread inside the machine's namespace; sockets made in it stay in the
    /// namespace.
    pub fn inside<T: Send>(&self, place: Place, f: impl FnOnce() -> T + Send) -> T {
        self.namespace(place).inside(f)
    }

    /// How many sites there are.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Never: there are two sites at least.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Changes both directions of a site's link from now on.
    pub fn set(&self, site: usize, link: &Profile) {
        self.carriers[site - 1].set(link.clone(), link.clone());
    }

    /// A site's link as it is now.
    pub fn profile(&self, site: usize) -> Profile {
        self.carriers[site - 1].profiles().0
    }

    /// What a site's link did so far: away from the site, and towards it.
    pub fn stats(&self, site: usize) -> (LinkStats, LinkStats) {
        self.carriers[site - 1].stats()
    }

    /// Packets that the lab itself, not the model, dropped.
    pub fn own_drops(&self) -> u64 {
        self.carriers.iter().map(Carrier::own_drops).sum()
    }

    fn namespace(&self, place: Place) -> &Namespace {
        match place {
            Place::Gateway(site) => &self.sites[site - 1].0,
            Place::Host(site) => &self.sites[site - 1].1,
        }
    }
}

/// Addresses, interfaces up, routes.
fn address(
    core: &Namespace,
    gateway: &Namespace,
    host: &Namespace,
    site: u64,
    port: &str,
) -> Result<()> {
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    let mut lines = [String::new(), String::new(), String::new()];
    let [at_core, at_gateway, at_host] = &mut lines;
    let _ = write!(
        at_core,
        "addr add 10.9.{site}.254/24 dev {port}\nlink set {port} up\nroute add 10.10.{site}.0/24 via 10.9.{site}.1\n"
    );
    let _ = write!(
        at_gateway,
        "addr add 10.9.{site}.1/24 dev wan0\naddr add 10.10.{site}.1/24 dev lan0\nlink set wan0 up\nlink set lan0 up\n\
         route add default via 10.9.{site}.254\n"
    );
    let _ = write!(
        at_host,
        "addr add 10.10.{site}.2/24 dev eth0\nlink set eth0 up\nlink show dev eth0\nroute add default via 10.10.{site}.1\n"
    );
    if v6 {
        let _ = write!(
            at_core,
            "addr add fd10:9{site:02}::fe/64 dev {port} nodad\nroute add fd10:{site:x}::/64 via fd10:9{site:02}::1\n"
        );
        let _ = write!(
            at_gateway,
            "addr add fd10:9{site:02}::1/64 dev wan0 nodad\naddr add fd10:{site:x}::1/64 dev lan0 nodad\n\
             route add default via fd10:9{site:02}::fe\n"
        );
        let _ = write!(
            at_host,
            "addr add fd10:{site:x}::2/64 dev eth0 nodad\nroute add default via fd10:{site:x}::1\n"
        );
    }
    core.ip(at_core)?;
    gateway.ip(at_gateway)?;
    host.ip(at_host)?;
    // A question makes the kernel look at the state of a link at once.
    gateway.ip("link show dev lan0\n")
}

fn check_number(sites: usize) -> Result<()> {
    match sites {
        2..=MOST => Ok(()),
        _ => bail!("sites: found {sites}, would accept 2 to {MOST}"),
    }
}

/// The topology with namespaces, interfaces and addresses, for people.
pub fn describe_sites(name_prefix: &str, sites: usize) -> String {
    let mut text =
        String::from("host ---- gateway ==== WAN link ==== core, once for each site\n\n");
    for site in 1..=sites {
        for (name, interface, v4, v6) in [
            (
                "host",
                "eth0",
                Place::Host(site).v4(),
                Place::Host(site).v6(),
            ),
            (
                "gw",
                "lan0",
                Place::Gateway(site).v4(),
                Place::Gateway(site).v6(),
            ),
        ] {
            let namespace = format!("{name_prefix}-{name}{site}");
            let _ = writeln!(
                text,
                "{namespace:<20} {interface}  {:<14} {v6}/64",
                format!("{v4}/24")
            );
        }
        let namespace = format!("{name_prefix}-gw{site}");
        let _ = writeln!(
            text,
            "{namespace:<20} wan0  {:<14}",
            format!("{}/24", wan_address(site))
        );
    }
    let _ = write!(
        text,
        "\nRun a program in one of them: ip netns exec {name_prefix}-host1 <program>\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_the_promised_ones() {
        let text = describe_sites("x", 3);
        for part in [
            "x-host3              eth0  10.10.3.2/24   fd10:3::2/64",
            "x-gw2                wan0  10.9.2.1/24",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn one_site_is_no_lab() {
        let link: Profile = "rate=10mbit".parse().unwrap();
        let Err(error) = Sites::up("x", &[link]) else {
            panic!("it was made")
        };
        assert!(error.to_string().contains("would accept 2 to"), "{error}");
    }
}
