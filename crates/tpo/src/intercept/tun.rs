//! The TUN device by which packets of what is no TCP come to us and go out again, whole.
//!
//! The kernel routes marked packets into it; what we write to it takes the way of any packet that
//! came in somewhere: the firewall, the hop limit, path MTU and ICMP errors are the kernel's. It
//! lives as long as the daemon: with it goes the route into it, and what no closed rule names takes
//! its plain way.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tracing::info;

use super::error::InstallError;
use crate::host::netlink::{NESTED, attribute, message, next_message};

/// The device's name. There is one daemon in a network namespace, so it is fixed.
pub(crate) const DEVICE: &str = "tpo0";

/// Packets that may wait for us: some ten milliseconds of the most that one thread reads.
const QUEUE: u32 = 4_096;
/// Bytes: no packet is cut on its way to us, whatever its size.
const MTU: u32 = 65_535;
/// The loose check of sources drops what comes in by a device without an address. This one is
/// nobody's, for such purposes (RFC 7600).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// What IPv4 does with what comes out of the device, by number. It bears addresses whose way back
/// leads elsewhere, so a strict check of sources would drop everything. Behind the device is no
/// network of ours: nothing that comes from there changes how this host routes, and no packet names
/// its own way.
const SETTINGS_V4: [(u16, u32); 4] = [
    (IPV4_DEVCONF_RP_FILTER, 2),
    // The check knows our mark, by which the rules that hold closed rules let its question pass.
    (IPV4_DEVCONF_SRC_VMARK, 1),
    (IPV4_DEVCONF_ACCEPT_REDIRECTS, 0),
    (IPV4_DEVCONF_ACCEPT_SOURCE_ROUTE, 0),
];

/// The same of IPv6, for which netlink has no word. Packets that would make use of them do not
/// leave the tunnel, so a host whose /proc/sys cannot be written loses nothing by it.
const SETTINGS_V6: [(&str, &str); 3] = [
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
    ("accept_source_route", "-1"),
];

/// Bytes in front of each packet at the TUN device (`struct virtio_net_hdr`); all zero says that
/// what follows is one packet, whole.
pub(crate) const VNET: usize = 10;

/// The device.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes the device in the calling thread's network namespace and puts it up.
    ///
    /// # Errors
    /// In words for the administrator: no permission, no driver, or another device of this name.
    pub(crate) fn open() -> Result<Tun, InstallError> {
        let file = crate::sys::open_tun(DEVICE).map_err(refused)?;
        set_up().map_err(refused)?;
        Ok(Tun { file })
    }

    /// Makes the device anew if it was deleted; whether that was so. Its reader goes on reading.
    /// Needs CAP_NET_ADMIN and nothing of /dev: the file is that of the first device.
    pub(crate) fn restore(&self) -> Result<bool, InstallError> {
        match crate::sys::attach_tun(&self.file, DEVICE) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            made => made.and_then(|()| set_up()).map(|()| true).map_err(refused),
        }
    }

    /// Reads the next packet; `None` when there is none now. No offload is asked for, so it is one
    /// packet, whole, with its checksum.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(buffer.get(VNET..length)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a packet on its way.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.write_parts(&[0; VNET], [packet, &[]])
    }

    /// Sends what the kernel makes of a packet in two parts by the header in front of it (`struct
    /// virtio_net_hdr`).
    pub(crate) fn write_parts(
        &self,
        vnet: &[u8; VNET],
        [front, behind]: [&[u8]; 2],
    ) -> io::Result<()> {
        let parts = [vnet, front, behind].map(IoSlice::new);
        (&self.file).write_vectored(&parts).map(drop)
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn refused(error: io::Error) -> InstallError {
    let what = "make the TUN device for UDP, ICMP and other packets";
    match error.kind() {
        io::ErrorKind::PermissionDenied => InstallError::NotPermitted {
            what,
            said: error.to_string(),
        },
        io::ErrorKind::NotFound => InstallError::Refused {
            what,
            said: "/dev/net/tun is not there; is the kernel's TUN driver loaded (modprobe tun)?"
                .into(),
        },
        _ => InstallError::Refused {
            what,
            said: error.to_string(),
        },
    }
}

/// Everything that a fresh device needs. By netlink, which asks for no more than CAP_NET_ADMIN and
/// works where /proc/sys cannot be written.
fn set_up() -> io::Result<()> {
    let index = crate::sys::interface_index(DEVICE)?;
    let mut link = Link::open()?;
    let nested = |kind: u16, inside: &[u8]| {
        let mut out = Vec::new();
        attribute(&mut out, NESTED | kind, inside);
        out
    };
    let mut conf = Vec::new();
    for (number, value) in SETTINGS_V4 {
        attribute(&mut conf, number, &value.to_ne_bytes());
    }
    let mut basic = Vec::new();
    attribute(&mut basic, libc::IFLA_MTU, &MTU.to_ne_bytes());
    attribute(&mut basic, libc::IFLA_TXQLEN, &QUEUE.to_ne_bytes());
    let v4 = nested(libc::AF_INET as u16, &nested(IFLA_INET_CONF, &conf));
    basic.extend(nested(libc::IFLA_AF_SPEC, &v4));
    link.change(libc::RTM_NEWLINK, &about(index, 0), &basic)?;
    // No link-local address, whose announcements nobody would hear.
    let mut none = Vec::new();
    attribute(
        &mut none,
        IFLA_INET6_ADDR_GEN_MODE,
        &[IN6_ADDR_GEN_MODE_NONE],
    );
    let v6 = nested(libc::IFLA_AF_SPEC, &nested(libc::AF_INET6 as u16, &none));
    match link.change(libc::RTM_NEWLINK, &about(index, 0), &v6) {
        // A host without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        done => {
            done?;
            calm_v6();
        }
    }
    // struct ifaddrmsg: family, prefix length, flags, scope, interface.
    let mut header = vec![libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_UNIVERSE];
    header.extend(index.to_ne_bytes());
    let mut address = Vec::new();
    attribute(&mut address, libc::IFA_LOCAL, &ADDRESS.octets());
    attribute(&mut address, libc::IFA_ADDRESS, &ADDRESS.octets());
    link.change(libc::RTM_NEWADDR, &header, &address)?;
    link.change(libc::RTM_NEWLINK, &about(index, libc::IFF_UP as u32), &[])
}

fn calm_v6() {
    for (setting, value) in SETTINGS_V6 {
        let path = format!("/proc/sys/net/ipv6/conf/{DEVICE}/{setting}");
        if let Err(error) = std::fs::write(&path, value) {
            info!(%error, path, value, "cannot be set; what it would forbid does not leave the tunnel");
        }
    }
}

/// struct ifinfomsg: any family, the device, flags to set.
fn about(index: u32, flags: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for word in [index, flags, flags] {
        header.extend(word.to_ne_bytes());
    }
    header
}

/// A talk with the kernel about devices and addresses.
struct Link {
    socket: Socket,
    sequence: u32,
}

impl Link {
    fn open() -> io::Result<Link> {
        let protocol = Protocol::from(libc::NETLINK_ROUTE);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
        // The kernel answers inside the call that asks; waiting means that something is badly
        // wrong.
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Link {
            socket,
            sequence: 0,
        })
    }

    /// Asks for one change, and waits until it is made.
    fn change(&mut self, kind: u16, header: &[u8], attributes: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut request = Vec::new();
        message(
            &mut request,
            kind,
            libc::NLM_F_ACK as u16,
            self.sequence,
            header,
            attributes,
        );
        let sent = self.socket.send(&request)?;
        assert_eq!(sent, request.len(), "netlink takes a message whole");
        // An acknowledgement is a number and the request's header, or, with the number of an error,
        // the request.
        let mut buffer = [0; 4_096];
        let length = (&self.socket).read(&mut buffer)?;
        match next_message(&mut &buffer[..length]) {
            Some((kind, sequence, body))
                if kind == libc::NLMSG_ERROR as u16 && sequence == self.sequence =>
            {
                match body
                    .first_chunk()
                    .map_or(libc::EIO, |code| -i32::from_ne_bytes(*code))
                {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code)),
                }
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

// linux/ip.h, linux/if_link.h: what libc leaves out.
const IPV4_DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_SRC_VMARK: u16 = 24;
const IPV4_DEVCONF_ACCEPT_SOURCE_ROUTE: u16 = 9;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
