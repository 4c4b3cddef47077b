//! Whether what was installed is still there. Others may take it away without asking us: a reload
//! of the firewall flushes all of nftables, a network manager removes routing rules that it did not
//! make.
//!
//! Asks the kernel by netlink, some microseconds each: starting `nft` and `ip` once a second would
//! cost more than an idle daemon. Gives its answers to [`super::install`] and [`super::holding`].

use crate::host::netlink::{INET, attribute, find, message, next_message, nft};
use crate::table::marks::{MARK_DELIVER, MARK_PACKETS};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Times that table and chains are listed before a difference counts: a list that another's change
/// has interrupted may lack some.
const TRIES: usize = 3;

/// Looks at our table and at our route. Belongs to the network namespace of the thread that opened
/// it.
#[derive(Debug)]
pub(super) struct Watch {
    /// The name of the table that is looked at.
    table: &'static str,
    netfilter: Socket,
    routing: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    seen: Seen,
}

/// What is seen of our table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The table's own handle, which no other table of the namespace ever gets: another daemon's of
    /// the same shape has another one.
    table: Vec<u8>,
    chains: Vec<Chain>,
}

/// A chain of our table. The handle, counted within the table, changes when the chain is made anew;
/// the uses are its rules, and the jumps and map elements that lead to it, so they change when
/// rules or maps are flushed.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chain {
    handle: Vec<u8>,
    uses: Vec<u8>,
}

impl Watch {
    pub(super) fn open(table: &'static str) -> io::Result<Watch> {
        let (netfilter, routing) = (
            open_netlink(libc::NETLINK_NETFILTER)?,
            open_netlink(libc::NETLINK_ROUTE)?,
        );
        Ok(Watch {
            table,
            netfilter,
            routing,
            sequence: 0,
            buffer: vec![0; 32 * 1024],
            seen: Seen::default(),
        })
    }

    /// Whether there is a table of this name with any chain.
    pub(super) fn is_there(&mut self) -> io::Result<bool> {
        Ok(!self.look()?.chains.is_empty())
    }

    /// What the table is now is what it should be.
    pub(super) fn remember(&mut self) -> io::Result<()> {
        self.seen = self.look()?;
        Ok(())
    }

    /// Whether the table is as it was when it was remembered.
    pub(super) fn table_is_whole(&mut self) -> io::Result<bool> {
        for _ in 0..TRIES {
            let seen = self.look()?;
            if seen == self.seen && !seen.chains.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn look(&mut self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        self.list(
            (libc::NFT_MSG_GETTABLE, libc::NFT_MSG_NEWTABLE),
            NFTA_TABLE_NAME,
            |attributes| {
                seen.table = find(attributes, NFTA_TABLE_HANDLE)
                    .unwrap_or_default()
                    .to_vec();
            },
        )?;
        self.list(
            (libc::NFT_MSG_GETCHAIN, libc::NFT_MSG_NEWCHAIN),
            NFTA_CHAIN_TABLE,
            |attributes| {
                let value = |kind| find(attributes, kind).unwrap_or_default().to_vec();
                seen.chains.push(Chain {
                    handle: value(NFTA_CHAIN_HANDLE),
                    uses: value(NFTA_CHAIN_USE),
                });
            },
        )?;
        seen.chains.sort();
        Ok(seen)
    }

    /// Lists what there is of a kind, by its question and answer, and tells the attributes of each
    /// that names our table by the attribute `of`.
    fn list(
        &mut self,
        (get, new): (i32, i32),
        of: u16,
        mut tell: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        message(
            &mut request,
            nft(get),
            libc::NLM_F_DUMP as u16,
            self.sequence,
            &INET,
            &[],
        );
        let name = [self.table.as_bytes(), &[0]].concat();
        let on = |kind, body: &[u8]| {
            let attributes = body.get(INET.len()..).unwrap_or_default();
            if kind == nft(new) && find(attributes, of) == Some(&name) {
                tell(attributes);
            }
        };
        exchange(
            &self.netfilter,
            &mut self.buffer,
            &request,
            self.sequence,
            libc::NLMSG_DONE as u16,
            on,
        )
    }

    /// Whether a packet with our mark is delivered to this host. Asked by its effect, so it also
    /// finds a rule of others that comes before ours.
    pub(super) fn route_is_whole(&mut self, v6: bool) -> io::Result<bool> {
        let mut local = false;
        self.route(v6, MARK_DELIVER, |body| {
            local = body.get(RTMSG_TYPE) == Some(&libc::RTN_LOCAL)
        })?;
        Ok(local)
    }

    /// By which device a packet with the mark of the TUN device leaves: its number, if there is a
    /// way at all.
    pub(super) fn way_of_packets(&mut self, v6: bool) -> io::Result<Option<u32>> {
        let mut device = None;
        self.route(v6, MARK_PACKETS, |body| {
            let found = find(body.get(RTMSG..).unwrap_or_default(), libc::RTA_OIF);
            device = found
                .and_then(|number| number.try_into().ok())
                .map(u32::from_ne_bytes);
        })?;
        Ok(device)
    }

    /// Asks for the way of a packet with this mark; nothing is told when there is none.
    fn route(&mut self, v6: bool, mark: u32, mut tell: impl FnMut(&[u8])) -> io::Result<()> {
        // Addresses of the documentation: nobody's, so that the table of this host's own addresses
        // does not answer.
        let (family, address, length) = match v6 {
            false => (libc::AF_INET, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 32),
            true => (
                libc::AF_INET6,
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
                128,
            ),
        };
        // struct rtmsg: the family and the prefix length are all that a question needs.
        let mut header = [0; RTMSG];
        (header[0], header[1]) = (family as u8, length);
        let mut attributes = Vec::new();
        match address {
            IpAddr::V4(v4) => attribute(&mut attributes, libc::RTA_DST, &v4.octets()),
            IpAddr::V6(v6) => attribute(&mut attributes, libc::RTA_DST, &v6.octets()),
        }
        attribute(&mut attributes, libc::RTA_MARK, &mark.to_ne_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        message(
            &mut request,
            libc::RTM_GETROUTE,
            0,
            self.sequence,
            &header,
            &attributes,
        );
        let on = |_, body: &[u8]| tell(body);
        match exchange(
            &self.routing,
            &mut self.buffer,
            &request,
            self.sequence,
            libc::RTM_NEWROUTE,
            on,
        ) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EPERM | libc::ENOBUFS)
                ) =>
            {
                Err(error)
            }
            // No route, or one that refuses.
            Err(_) => Ok(()),
        }
    }
}

/// A socket to ask the kernel by.
pub(super) fn open_netlink(protocol: libc::c_int) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(protocol)),
    )?;
    // The kernel answers inside the call that asks; waiting means that something is badly wrong.
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// Sends the request and reads its answers, until one of type `last` has come, or the kernel has
/// said that it did as it was told.
pub(super) fn exchange(
    socket: &Socket,
    buffer: &mut [u8],
    request: &[u8],
    sequence: u32,
    last: u16,
    mut on: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let sent = socket.send(request)?;
    assert_eq!(sent, request.len(), "netlink takes a message whole");
    loop {
        let mut reader = socket;
        let length = reader.read(buffer)?;
        let mut rest = &buffer[..length];
        while let Some((kind, number, body)) = next_message(&mut rest) {
            if number != sequence {
                // The left-over of an exchange that failed.
                continue;
            }
            if kind == libc::NLMSG_ERROR as u16 {
                let code = body
                    .first_chunk()
                    .map_or(libc::EIO, |code| -i32::from_ne_bytes(*code));
                if code == 0 {
                    return Ok(());
                }
                return Err(io::Error::from_raw_os_error(code));
            }
            on(kind, body);
            if kind == last {
                return Ok(());
            }
        }
    }
}

/// Length of `struct rtmsg`, and the place of the route's type in it.
const RTMSG: usize = 12;
const RTMSG_TYPE: usize = 7;

// linux/netfilter/nf_tables.h, what libc leaves out.
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HANDLE: u16 = 2;
const NFTA_CHAIN_USE: u16 = 6;
