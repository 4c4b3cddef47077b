//! This host's own addresses, as they are now: addresses come and go, with a lease of DHCP or a
//! router that takes over from another.
//!
//! Asks the kernel by netlink for its table of local routes, which also knows the broadcast
//! addresses of its networks and what it takes for a whole prefix, and hears of changes. Gives its
//! answer to [`exit`](crate::edge::exit), on every lane's thread.

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};
use tpo_engine::Prefix;
use tracing::{debug, warn};

use super::netlink::{find, message, next_message};
use crate::sys::set_option;

const CHANGES: Token = Token(0);
const WAKE: Token = Token(1);
/// Without any news the table is read again after this time, 10 s, which mends a failed read.
const READ_EVERY: Duration = Duration::from_secs(10);

/// The addresses at which this host itself would get a packet.
#[derive(Debug, Default)]
pub(crate) struct Own {
    known: RwLock<Known>,
    changes: AtomicU64,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    addresses: HashSet<IpAddr>,
    /// Whole networks, such as 127.0.0.0/8.
    prefixes: Vec<Prefix>,
}

impl Own {
    /// Whether a packet to this address would be for this host.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.addresses.contains(&address)
            || known.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// How often they have changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Of a host with these addresses, for tests.
    #[cfg(test)]
    pub(crate) fn of(addresses: &[&str]) -> Own {
        let own = Own::default();
        own.set(Known {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            prefixes: Vec::new(),
        });
        own
    }

    fn set(&self, known: Known) {
        let mut own = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if *own != known {
            *own = known;
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The thread that keeps [`Own`] true.
pub(crate) struct Following {
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Following {
    /// Reads the addresses of the calling thread's network namespace and follows them from now on.
    pub(crate) fn start() -> io::Result<(Arc<Own>, Following)> {
        let mut table = Table::open()?;
        let changes = subscribe()?;
        let own = Arc::new(Own::default());
        // After the socket hears of changes, so that none in between is missed.
        own.set(table.read()?);
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        poll.registry().register(
            &mut SourceFd(&changes.as_raw_fd()),
            CHANGES,
            Interest::READABLE,
        )?;
        let shared = own.clone();
        let thread = std::thread::Builder::new()
            .name("addresses".into())
            .spawn(move || {
                let mut events = Events::with_capacity(4);
                let mut buffer = vec![0; BUFFER];
                loop {
                    if let Err(error) = poll.poll(&mut events, Some(READ_EVERY))
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        warn!(%error, "this host's addresses are not followed any more");
                        return;
                    }
                    if events.iter().any(|event| event.token() == WAKE) {
                        return;
                    }
                    if !hear(&changes, &mut buffer) && !events.is_empty() {
                        continue;
                    }
                    match table.read() {
                        Ok(known) => shared.set(known),
                        Err(error) => debug!(%error, "this host's addresses cannot be read now"),
                    }
                }
            })?;
        Ok((own, Following { waker, thread }))
    }

    /// Whether the thread has ended by itself, which it never should.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        if self.waker.wake().is_ok() {
            // One that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

fn socket() -> io::Result<Socket> {
    Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(libc::NETLINK_ROUTE)),
    )
}

/// A socket that hears of changes of addresses and of routes.
fn subscribe() -> io::Result<Socket> {
    let socket = socket()?;
    // The first message gives the socket its number, without which it counts as the kernel itself,
    // to whom nothing is told.
    let mut nothing = Vec::new();
    message(&mut nothing, libc::NLMSG_NOOP as u16, 0, 0, &[], &[]);
    socket.send(&nothing)?;
    for group in [
        libc::RTNLGRP_IPV4_IFADDR,
        libc::RTNLGRP_IPV6_IFADDR,
        libc::RTNLGRP_IPV4_ROUTE,
        libc::RTNLGRP_IPV6_ROUTE,
    ] {
        set_option(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            group as libc::c_int,
        )?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Takes all news; whether any is about this host's addresses. Most are about routes to others.
fn hear(changes: &Socket, buffer: &mut [u8]) -> bool {
    let mut about_us = false;
    loop {
        let mut reader = changes;
        match reader.read(buffer) {
            Ok(length) => {
                let mut rest = &buffer[..length];
                while let Some((kind, _, body)) = next_message(&mut rest) {
                    about_us |= match kind {
                        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                            body.get(RTMSG_TABLE) == Some(&libc::RT_TABLE_LOCAL)
                        }
                        libc::RTM_NEWADDR | libc::RTM_DELADDR => true,
                        _ => false,
                    };
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return about_us,
            // More than the kernel kept for us.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => about_us = true,
            Err(error) => {
                debug!(%error, "changes of addresses cannot be read");
                return about_us;
            }
        }
    }
}

/// The kernel's table of local routes.
struct Table {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Table {
    fn open() -> io::Result<Table> {
        let socket = socket()?;
        // The kernel answers at once; waiting means that something is badly wrong.
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        // So that it lists this table alone, not a million routes of a border router. An older
        // kernel (before 4.20) lists all.
        let _ = set_option(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_GET_STRICT_CHK,
            1,
        );
        Ok(Table {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    fn read(&mut self) -> io::Result<Known> {
        let mut known = Known::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            match self.list(family as u8, &mut known) {
                // No address of this family yet, or no such family here.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                    ) => {}
                other => other?,
            }
        }
        known
            .prefixes
            .sort_by_key(|prefix| (prefix.address, prefix.length));
        Ok(known)
    }

    fn list(&mut self, family: u8, known: &mut Known) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = [0; RTMSG];
        (header[0], header[RTMSG_TABLE]) = (family, libc::RT_TABLE_LOCAL);
        let mut request = Vec::new();
        message(
            &mut request,
            libc::RTM_GETROUTE,
            libc::NLM_F_DUMP as u16,
            self.sequence,
            &header,
            &[],
        );
        self.socket.send(&request)?;
        loop {
            let mut reader = &self.socket;
            let length = reader.read(&mut self.buffer)?;
            let mut rest = &self.buffer[..length];
            while let Some((kind, sequence, body)) = next_message(&mut rest) {
                if sequence != self.sequence {
                    // The left-over of a list that failed.
                    continue;
                }
                let code = body
                    .first_chunk()
                    .map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                match kind {
                    libc::RTM_NEWROUTE => note(body, known),
                    kind if kind == libc::NLMSG_ERROR as u16
                        || (kind == libc::NLMSG_DONE as u16 && code < 0) =>
                    {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    kind if kind == libc::NLMSG_DONE as u16 => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// Notes a route of the table of local ones, if it is for this host.
fn note(body: &[u8], known: &mut Known) {
    let Some((header, attributes)) = body.split_first_chunk::<RTMSG>() else {
        return;
    };
    let for_us = matches!(
        header[RTMSG_TYPE],
        libc::RTN_LOCAL | libc::RTN_BROADCAST | libc::RTN_ANYCAST
    );
    if header[RTMSG_TABLE] != libc::RT_TABLE_LOCAL || !for_us {
        return;
    }
    let destination = find(attributes, libc::RTA_DST);
    let address: IpAddr = match i32::from(header[0]) {
        libc::AF_INET => Ipv4Addr::from(
            destination
                .and_then(|bytes| bytes.try_into().ok())
                .unwrap_or([0_u8; 4]),
        )
        .into(),
        libc::AF_INET6 => Ipv6Addr::from(
            destination
                .and_then(|bytes| bytes.try_into().ok())
                .unwrap_or([0_u8; 16]),
        )
        .into(),
        _ => return,
    };
    let length = header[1];
    if length == if address.is_ipv4() { 32 } else { 128 } {
        known.addresses.insert(address);
    } else {
        known.prefixes.push(Prefix { address, length });
    }
}

/// Of one answer; the kernel makes none larger.
const BUFFER: usize = 32 * 1024;
/// Length of `struct rtmsg`, and the places of the table and of the route's type in it.
const RTMSG: usize = 12;
const RTMSG_TABLE: usize = 4;
const RTMSG_TYPE: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever else this host has: its loopback network is its own, and an address of the
    /// documentation is not.
    #[test]
    fn this_host_knows_itself() {
        let (own, following) = Following::start().unwrap();
        assert!(
            own.contains("127.0.0.1".parse().unwrap())
                && own.contains("127.7.7.7".parse().unwrap())
        );
        assert!(
            !own.contains("192.0.2.1".parse().unwrap())
                && !own.contains("2001:db8::1".parse().unwrap())
        );
        following.stop();
    }

    #[test]
    fn cut_routes_are_passed_over() {
        let mut body = vec![
            libc::AF_INET as u8,
            32,
            0,
            0,
            libc::RT_TABLE_LOCAL,
            0,
            0,
            libc::RTN_LOCAL,
            0,
            0,
            0,
            0,
        ];
        super::super::netlink::attribute(&mut body, libc::RTA_DST, &[10, 1, 2, 3]);
        for length in 0..=body.len() {
            let mut known = Known::default();
            note(&body[..length], &mut known);
            assert_eq!(
                known
                    .addresses
                    .contains(&"10.1.2.3".parse::<IpAddr>().unwrap()),
                length == body.len()
            );
        }
    }
}
