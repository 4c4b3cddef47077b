//! The sockets of TCP interception: listeners that take over connections, and connections in the
//! client's name.
//!
//! Gives accepted connections (with the client and the original destination) to whoever moves them
//! to their lane, and connecting sockets to the far edge. Everything that these sockets send
//! carries [`MARK_OWN`], so the rules pass it by.

use crate::sys;
use crate::table::Mode;
use crate::table::bounds::Bounds;
use crate::table::marks::MARK_OWN;
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Connections that may wait to be accepted, and half-open ones beside them, at one socket; the
/// kernel clamps it to `net.core.somaxconn`. Large, because beyond it SYN cookies begin, which
/// transparent sockets cannot serve.
const BACKLOG: usize = 65_535;

/// Sockets of one listener at most, for hosts whose `net.core.somaxconn` is small: with the old
/// default of 128 they hold 8,192.
const MOST_SOCKETS: usize = 64;

/// Times that a SYN-ACK is repeated: after 1 s, and 2 s later the half-open connection is given up,
/// where the kernel's default of five would keep those of a flood for 63 s. A client whose SYN-ACK
/// was lost twice asks again itself.
const SYN_ACK_RETRIES: libc::c_int = 1;

/// Bytes that a socket holds unsent before it says "not writable". Without it the kernel's buffer
/// grows to megabytes that no other flow can overtake; with it a stopped reader costs 285 kB,
/// measured.
const NOTSENT_LOWAT_BYTES: u32 = 128 * 1024;

/// Congestion control on the LAN side, by preference. The host's default may be one that paces
/// (BBR), which on a LAN halves the rate and costs 70 % more CPU.
const CONGESTION: [&[u8]; 2] = [b"cubic", b"reno"];

/// Times that an unanswered SYN to a destination is repeated: the client, whose own connection
/// stands already, hears after 31 s that nobody answers, where the kernel's default would let it
/// hope for two minutes.
const SYN_RETRIES: libc::c_int = 4;

/// Ports of the listeners. No `v6` where the host has no IPv6: then nothing of it is intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// On 127.0.0.1, or on every address in redirect mode.
    pub v4: u16,
    /// On ::1, or on every address in redirect mode.
    pub v6: Option<u16>,
}

/// The listening sockets, in the network namespace of the thread that opened them.
#[derive(Debug)]
pub struct Listeners {
    /// For IPv4.
    pub v4: Listener,
    /// For IPv6; none where the host has none.
    pub(crate) v6: Option<Listener>,
}

impl Listeners {
    /// Opens them at free ports, with room for what the default bounds let come.
    pub fn open(mode: Mode) -> io::Result<Listeners> {
        Listeners::with_room(mode, Bounds::default().half_open())
    }

    /// Opens them at free ports, with room for this many half-open connections of each family, as
    /// far as `net.core.somaxconn` lets.
    pub(crate) fn with_room(mode: Mode, half_open: usize) -> io::Result<Listeners> {
        let (any4, any6) = match mode {
            // Bound to loopback, so that no four-tuple of forwarded traffic can ever be the
            // listener's own.
            Mode::Tproxy => (
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ),
            // The kernel redirects to an address of the interface by which the connection came.
            Mode::Redirect => (
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ),
        };
        let clear = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => io::Error::new(
                error.kind(),
                format!("tpo needs root or the capability CAP_NET_ADMIN ({error})"),
            ),
            _ => error,
        };
        let v4 = Listener::open(mode, any4, half_open).map_err(clear)?;
        let v6 = if has_ipv6() {
            Some(Listener::open(mode, any6, half_open).map_err(clear)?)
        } else {
            None
        };
        Ok(Listeners { v4, v6 })
    }

    /// Half-open connections of one family that the queues hold before the kernel sends SYN
    /// cookies.
    pub(crate) fn room(&self) -> usize {
        self.v4.sockets.len() * queue_length()
    }

    /// Registers all sockets for readability, with tokens from `first` on.
    pub fn register(&mut self, registry: &Registry, first: usize) -> io::Result<()> {
        for (token, socket) in self
            .iter_mut()
            .flat_map(|listener| &mut listener.sockets)
            .enumerate()
        {
            registry.register(&mut socket.socket, Token(first + token), Interest::READABLE)?;
        }
        Ok(())
    }

    /// The socket with this token, counted from the first, is readable: connections may wait there.
    pub(crate) fn mark_ready(&mut self, token: usize) {
        if let Some(socket) = self
            .iter_mut()
            .flat_map(|listener| &mut listener.sockets)
            .nth(token)
        {
            socket.is_ready = true;
        }
    }

    /// Connections may wait at any of them.
    pub(crate) fn mark_all_ready(&mut self) {
        self.iter_mut()
            .flat_map(|listener| &mut listener.sockets)
            .for_each(|socket| socket.is_ready = true);
    }

    /// Their ports, for the rules.
    pub fn ports(&self) -> Ports {
        Ports {
            v4: self.v4.address.port(),
            v6: self.v6.as_ref().map(|l| l.address.port()),
        }
    }

    /// Each of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Listener> {
        std::iter::once(&mut self.v4).chain(&mut self.v6)
    }
}

/// Whether this network namespace can speak IPv6: it can when loopback has its address.
pub(crate) fn has_ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// The listening sockets of one family, all at one address: the kernel spreads new connections
/// among them (`SO_REUSEPORT`). The queue of one is too short for a flood that the bounds let come.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<Listening>,
    address: SocketAddr,
    mode: Mode,
    /// Given up for a moment when descriptors run out, to accept and reset connections that would
    /// otherwise keep waiting, and keep the listener readable, in a spin.
    reserve: Option<File>,
}

/// One of them.
#[derive(Debug)]
struct Listening {
    socket: TcpListener,
    /// Connections may be waiting.
    is_ready: bool,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// Non-blocking, with `TCP_NODELAY`.
    pub stream: TcpStream,
    /// The near application.
    pub client: SocketAddr,
    /// Whom it wanted to reach.
    pub destination: SocketAddr,
}

/// What one round of accepting came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Nothing more is waiting: sleep until the listener is readable again. Else call again.
    pub drained: bool,
    /// Connections to the listener itself, by nobody's rule: reset.
    pub not_intercepted: u32,
    /// Redirected connections of which the kernel no longer knows the destination: reset.
    pub(crate) no_destination: u32,
    /// Reset because the process has no descriptor left.
    pub no_descriptors: u32,
    /// Gone before they were accepted.
    pub(crate) aborted: u32,
}

impl Listener {
    fn open(mode: Mode, address: IpAddr, half_open: usize) -> io::Result<Listener> {
        let mut address = SocketAddr::new(address, 0);
        let mut sockets = Vec::new();
        for _ in 0..half_open.div_ceil(queue_length()).clamp(1, MOST_SOCKETS) {
            let socket = Listener::open_one(mode, address)?;
            // The others join the first one at its port.
            address = local_address(&socket)?;
            sockets.push(Listening {
                socket: TcpListener::from_std(socket.into()),
                is_ready: true,
            });
        }
        Ok(Listener {
            sockets,
            address,
            mode,
            reserve: Some(reserve()?),
        })
    }

    fn open_one(mode: Mode, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if mode == Mode::Tproxy {
            set_transparent(&socket, address)?;
        }
        // Accepted sockets inherit all of these, which saves system calls for each.
        lan_options(&socket)?;
        // Of a listener it says how often the SYN-ACK is repeated.
        sys::set_option(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            SYN_ACK_RETRIES,
        )?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG as i32)?;
        Ok(socket)
    }

    /// Accepts connections into `out`, up to `limit` from each socket.
    ///
    /// # Errors
    /// Only those of the listener itself, after which it is of no more use.
    pub fn accept_batch(&mut self, limit: usize, out: &mut Vec<Accepted>) -> io::Result<Batch> {
        self.sockets
            .iter_mut()
            .for_each(|socket| socket.is_ready = true);
        self.accept_ready(limit, out)
    }

    /// The same, from those sockets alone that were marked ready, or were left with some.
    ///
    /// # Errors
    /// Only those of the listener itself, after which it is of no more use.
    pub(crate) fn accept_ready(
        &mut self,
        limit: usize,
        out: &mut Vec<Accepted>,
    ) -> io::Result<Batch> {
        let mut all = Batch {
            drained: true,
            ..Batch::default()
        };
        for index in 0..self.sockets.len() {
            if !self.sockets[index].is_ready {
                continue;
            }
            let batch = self.accept_at(index, limit, out)?;
            self.sockets[index].is_ready = !batch.drained;
            all.drained &= batch.drained;
            all.not_intercepted += batch.not_intercepted;
            all.no_destination += batch.no_destination;
            all.no_descriptors += batch.no_descriptors;
            all.aborted += batch.aborted;
        }
        Ok(all)
    }

    fn accept_at(
        &mut self,
        index: usize,
        limit: usize,
        out: &mut Vec<Accepted>,
    ) -> io::Result<Batch> {
        let mut batch = Batch::default();
        for _ in 0..limit {
            match self.sockets[index].socket.accept() {
                Ok((stream, client)) => {
                    let stream = TcpStream::from(stream);
                    match original_destination(&stream, self.mode) {
                        Ok(destination) if !self.is_own(&stream, destination) => {
                            out.push(Accepted {
                                stream,
                                client: canonical(client),
                                destination,
                            });
                        }
                        Ok(_) => {
                            batch.not_intercepted += 1;
                            reset_on_close(&stream);
                        }
                        // The kernel has forgotten where it was going, or nobody redirected it.
                        Err(_) => {
                            batch.no_destination += 1;
                            reset_on_close(&stream);
                        }
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        batch.drained = true;
                        break;
                    }
                    Some(libc::EMFILE | libc::ENFILE) => {
                        if !self.shed(index) {
                            // Another thread took the descriptor that we gave up. Do not spin: the
                            // caller comes back with the next connection or its next round.
                            batch.drained = true;
                            break;
                        }
                        batch.no_descriptors += 1;
                    }
                    Some(
                        libc::EBADF
                        | libc::EINVAL
                        | libc::ENOTSOCK
                        | libc::EFAULT
                        | libc::EOPNOTSUPP,
                    ) => {
                        return Err(error);
                    }
                    // All others are errors of the waiting connection, which accept(2) passes on.
                    _ => batch.aborted += 1,
                },
            }
        }
        Ok(batch)
    }

    /// A connection to the listener's own port that no rule brought here: answering it would
    /// connect us to ourselves.
    fn is_own(&self, stream: &TcpStream, destination: SocketAddr) -> bool {
        match self.mode {
            Mode::Tproxy => destination == self.address,
            Mode::Redirect => stream
                .local_addr()
                .is_ok_and(|local| canonical(local) == destination),
        }
    }

    /// Out of descriptors: accepts one connection with the reserve and resets it. Whether that was
    /// possible.
    fn shed(&mut self, index: usize) -> bool {
        self.reserve = None;
        let taken = self.sockets[index]
            .socket
            .accept()
            .map(|(stream, _)| reset_on_close(&stream))
            .is_ok();
        self.reserve = reserve().ok();
        taken
    }
}

/// Where an accepted connection was really meant to go.
pub(crate) fn original_destination(stream: &TcpStream, mode: Mode) -> io::Result<SocketAddr> {
    match mode {
        Mode::Tproxy => stream.local_addr().map(canonical),
        Mode::Redirect => {
            let socket = SockRef::from(stream);
            let found = if stream.local_addr()?.is_ipv4() {
                socket.original_dst_v4()
            } else {
                socket.original_dst_v6()
            };
            found.map(|address| {
                address
                    .as_socket()
                    .map(canonical)
                    .expect("the kernel gives an IP address")
            })
        }
    }
}

/// A connection on its way to `destination`, from `client` or, without one, from this host's own
/// address. Non-blocking: it is connected, or refused, when it becomes writable.
///
/// The client's port may be 0, for any.
///
/// # Errors
/// `AddrInUse` when another connection from the client's address and port to this destination still
/// exists here.
pub fn connect_from(client: Option<SocketAddr>, destination: SocketAddr) -> io::Result<TcpStream> {
    let destination = canonical(destination);
    let socket = Socket::new(
        Domain::for_address(destination),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    lan_options(&socket)?;
    sys::set_option(
        socket.as_raw_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_SYNCNT,
        SYN_RETRIES,
    )?;
    if let Some(client) = client.map(canonical) {
        if client.is_ipv4() != destination.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "client and destination are of different families",
            ));
        }
        set_transparent(&socket, client)?;
        // One client's port may talk to many destinations, each by a socket of its own.
        socket.set_reuse_address(true)?;
        if client.port() == 0 {
            // The port is chosen at connect, where only the four-tuple has to be free.
            sys::set_option(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                1,
            )?;
        }
        socket.bind(&client.into())?;
    }
    match socket.connect(&SockAddr::from(destination)) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
        // With the port fixed, "no address available" means that the four-tuple is taken.
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && client.is_some() => {
            Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
        }
        Err(error) => Err(error),
    }
}

/// Makes the coming close a reset, whatever is still unsent. Sockets from here begin so; this is
/// for those that may have been changed.
pub(crate) fn reset_on_close<S: AsFd>(stream: &S) {
    // Fails only on something that is no socket; then there is nothing to reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What every LAN-side socket of ours has.
///
/// Until the edge says otherwise its close is a reset: if the process dies, a connection must not
/// look to the application as if it had come to its orderly end. The edge takes that back when the
/// other side did end in order.
pub(crate) fn lan_options(socket: &Socket) -> io::Result<()> {
    socket.set_mark(MARK_OWN)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    // A kernel without either keeps its default: slower, not wrong.
    let _ = CONGESTION
        .iter()
        .any(|name| socket.set_tcp_congestion(name).is_ok());
    Ok(())
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// An IPv4 address in its IPv6 clothes is an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    Ok(socket
        .local_addr()?
        .as_socket()
        .expect("the socket was bound to an IP address"))
}

/// What one socket's queue holds here.
fn queue_length() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Where it cannot be read: the kernel's default since 5.4.
    limit.unwrap_or(4_096).clamp(1, BACKLOG)
}

fn reserve() -> io::Result<File> {
    File::open("/dev/null")
}
