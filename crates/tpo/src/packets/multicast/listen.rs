//! What the kernel of this host knows of multicast: packets about members on a LAN, and this host's
//! own memberships and addresses.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{SockFilter, Socket};

use super::igmp::{self, Heard};
use crate::sys;

/// Bytes of a packet that are read. IGMP and MLD are far shorter; what is longer is read cut and
/// not understood.
const LONGEST: usize = 9_216;

/// A packet socket on one LAN.
pub(super) struct Listener {
    socket: Socket,
    /// The number of the interface that it hears.
    pub(super) index: u32,
}

impl Listener {
    /// Hears this interface from now on.
    pub(super) fn open(index: u32, registry: &Registry, token: Token) -> io::Result<Listener> {
        let socket = sys::open_packet_socket(index, &membership_filter())?;
        registry.register(
            &mut SourceFd(&socket.as_raw_fd()),
            token,
            Interest::READABLE,
        )?;
        Ok(Listener { socket, index })
    }

    /// The next packet that was heard: `None` when there is none, `Some(None)` when it says
    /// nothing.
    pub(super) fn next(&self) -> Option<Option<Heard>> {
        let mut buffer = [0; LONGEST];
        let length = (&self.socket).read(&mut buffer).ok()?;
        Some(igmp::read(&buffer[..length]))
    }
}

/// Lets IGMP, and ICMPv6 behind a header of options, through: `A` and the rest are of the classic
/// packet filter's machine.
fn membership_filter() -> [SockFilter; 12] {
    const BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const END: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = SockFilter::new;
    [
        step(BYTE, 0, 0, 0),
        step(AND, 0, 0, 0xf0),
        step(IS, 0, 2, 0x40),
        step(BYTE, 0, 0, 9),
        step(IS, 6, 5, igmp::IGMP.into()),
        step(IS, 0, 4, 0x60),
        step(BYTE, 0, 0, 6),
        step(IS, 0, 2, 0),
        step(BYTE, 0, 0, 40),
        step(IS, 1, 0, crate::table::protocols::ICMP_V6.into()),
        step(END, 0, 0, 0),
        step(END, 0, 0, LONGEST as u32),
    ]
}

/// The link-local address of an interface, in the kernel's list of addresses.
pub(super) fn link_local(list: &str, interface: &str) -> Option<Ipv6Addr> {
    list.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        (words.last()? == interface && address >> 112 == 0xfe80).then(|| Ipv6Addr::from(address))
    })
}

/// Members of a group on one interface of this host.
pub(super) struct OwnMembers {
    pub(super) interface: String,
    pub(super) group: IpAddr,
    pub(super) users: u32,
}

/// What this host is a member of.
pub(super) fn own_members() -> Vec<OwnMembers> {
    let v4 = std::fs::read_to_string("/proc/self/net/igmp").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/self/net/igmp6").unwrap_or_default();
    let mut all = read_igmp_list(&v4);
    all.extend(v6.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let group = Ipv6Addr::from(u128::from_str_radix(words.get(2)?, 16).ok()?);
        Some(OwnMembers {
            interface: words[1].to_owned(),
            group: group.into(),
            users: words.get(3)?.parse().ok()?,
        })
    }));
    all
}

fn read_igmp_list(text: &str) -> Vec<OwnMembers> {
    let mut interface = "";
    let mut all = Vec::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(char::is_whitespace) {
            interface = words.get(1).copied().unwrap_or_default();
        } else if let [group, users, ..] = words[..]
            && let (Ok(group), Ok(users)) = (u32::from_str_radix(group, 16), users.parse())
        {
            // As it lies in memory, read as a number of this machine.
            all.push(OwnMembers {
                interface: interface.to_owned(),
                group: Ipv4Addr::from(group.to_ne_bytes()).into(),
                users,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_lists_are_read() {
        let list = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\tlan0      :     2      V3\n\t\t\t\t010101EF     2 0:00000000\t\t0\n";
        let seen = read_igmp_list(list);
        assert_eq!(
            (seen[1].interface.clone(), seen[1].group, seen[1].users),
            ("lan0".to_owned(), "239.1.1.1".parse().unwrap(), 2)
        );
        let list = "fd100001000000000000000000000001 02 40 00 80     lan0\nfe800000000000000000000000000007 02 40 20 80     lan0\n";
        assert_eq!(link_local(list, "lan0"), Some("fe80::7".parse().unwrap()));
        assert_eq!(link_local(list, "lan1"), None);
    }
}
