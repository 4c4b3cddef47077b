//! The TUN device by which packets of what is no TCP come to us and go out again, whole.
//!
//! The kernel routes marked packets into it; what we write to it takes the way of any packet that came in somewhere: the firewall, the hop
//! limit, path MTU and ICMP errors are the kernel's. It lives as long as the daemon: with it goes the route into it, and traffic takes its plain way.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::install::{InstallError, run_ip};
use crate::packet::VNET;

/// The device's name. There is one daemon in a network namespace, so it is fixed.
pub const DEVICE: &str = "tpo0";

/// Packets that may wait for us: some ten milliseconds of the most that one thread reads.
const QUEUE: &str = "4096";
const ADDRESS: &str = "192.0.0.8/32";
/// Behind the device is no network of ours: nothing that comes from there changes how this host
/// routes, and no packet names its own way.
const SETTINGS: [(&str, &str); 6] = [
    ("ipv4/conf/DEVICE/rp_filter", "2"),
    ("ipv4/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/accept_source_route", "0"),
    ("ipv6/conf/DEVICE/accept_ra", "0"),
    ("ipv6/conf/DEVICE/accept_redirects", "0"),
    ("ipv6/conf/DEVICE/accept_source_route", "-1"),
];

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
    pub fn open() -> Result<Tun, InstallError> {
        let what = "make the TUN device for UDP, ICMP and other packets";
        let file = crate::sys::open_tun(DEVICE).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => InstallError::NotPermitted { what, said: error.to_string() },
            io::ErrorKind::NotFound => InstallError::Refused {
                what,
                said: "/dev/net/tun is not there; is the kernel's TUN driver loaded (modprobe tun)?".into(),
            },
            _ => InstallError::Refused { what, said: error.to_string() },
        })?;
        // No packet is cut on its way to us, whatever its size.
        run_ip(&["link", "set", DEVICE, "mtu", "65535", "txqueuelen", QUEUE, "addrgenmode", "none"], what)?;
        // What we write bears addresses whose way back leads elsewhere: a strict check would drop everything, and the loose one drops what comes
        // in by a device without an address. This one is nobody's, for such purposes (RFC 7600).
        run_ip(&["address", "add", ADDRESS, "dev", DEVICE], what)?;
        for (setting, value) in SETTINGS {
            let setting = format!("/proc/sys/net/{}", setting.replace("DEVICE", DEVICE));
            match std::fs::write(&setting, value) {
                // A host without IPv6 has none of its settings.
                Err(error) if error.kind() == io::ErrorKind::NotFound && setting.contains("/ipv6/") => {}
                other => other.map_err(|error| InstallError::Refused { what, said: format!("{setting}: {error}") })?,
            }
        }
        run_ip(&["link", "set", DEVICE, "up"], what)?;
        Ok(Tun { file })
    }

    /// Reads the next packet; `None` when there is none now. No offload is asked for, so it is one packet, whole, with its checksum.
    pub fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(buffer.get(VNET..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a packet on its way.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.write_told(&[0; VNET], packet)
    }

    /// Sends what the kernel makes of it by what it is told.
    pub fn write_told(&self, told: &[u8; VNET], packet: &[u8]) -> io::Result<()> {
        (&self.file).write_vectored(&[IoSlice::new(told), IoSlice::new(packet)]).map(drop)
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
