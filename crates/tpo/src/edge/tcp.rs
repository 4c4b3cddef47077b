//! Edges of TCP connections (stage 2 of the walk, claims 1b, 1f, 6, 7, 26-29): one for each
//! connection, near or far.
//!
//! An edge is the new end of its application's connection: the kernel's TCP acknowledges in its
//! place, the edge carries bytes between the socket and the engine. It holds no buffer: what the
//! application wrote waits in the kernel until the driver reads it ([`Source`]), what came from the
//! far side waits in the engine until the socket takes it.
//!
//! Life: near edges start open (the gate accepted them); far edges start connecting, become
//! open or are refused. Then data both ways, each direction may finish first, until the engine says
//! closed or reset.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};
use tpo_engine::{FlowId, Peer, Read, Source, Status};

use crate::edge::shares::{Opener, Permit, Share};

/// An idle connection is asked after ten minutes whether its application's host still lives, then
/// every minute. The flow of a host that vanished would otherwise stay open.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(600))
    .with_interval(Duration::from_secs(60));
/// Slices written by one system call; the engine keeps a flow's bytes in pieces of messages.
const SLICES: usize = 64;

/// How an edge begins.
pub(crate) enum Begins {
    /// Its connection stands.
    Open,
    /// It is on its way to a socket of this host, which answers at once.
    Joining,
    /// It is on its way to its destination, which may never answer.
    Connecting(Permit),
}

/// A socket that becomes an edge.
pub(crate) struct NewEdge {
    /// The connection, which stands or is under way.
    pub(crate) socket: std::net::TcpStream,
    /// Its part of a share of the descriptors.
    pub(crate) descriptor: Permit,
    /// How it begins.
    pub(crate) begins: Begins,
}

struct Edge {
    flow: FlowId,
    socket: TcpStream,
    connecting: bool,
    /// When it began to connect, in the order of all that do, and its part of what may. None: it is
    /// connected, or will be at once.
    half_open: Option<(u64, Permit)>,
    /// The socket took no more; the next writable event goes on.
    write_blocked: bool,
    /// The driver has been told of bytes to read, and has not found the end of them yet.
    readable: bool,
    /// Not watched for bytes to read: there were more before the last were read, which is all that
    /// such events would tell.
    parked: bool,
    /// The far application has finished and everything before that is written.
    finished: bool,
    /// Given back after the socket is closed.
    _descriptor: Permit,
}

struct Slot {
    generation: u32,
    edge: Option<Edge>,
}

/// All edges of one lane.
pub(crate) struct Edges {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_flow: HashMap<FlowId, u32>,
    /// Those whose destination has not answered, the oldest first.
    half_open: BTreeMap<u64, FlowId>,
    connects: u64,
    registry: Registry,
}

/// What an event of the poll meant for the flow of its edge.
pub(crate) enum Happened {
    /// The event is of an edge that is gone.
    Nothing,
    /// The far connection stands: tell the near side, then carry on.
    Connected(FlowId),
    /// The connection broke or never came to be.
    Broken(FlowId, Status),
    /// There may be bytes to read, or room to write.
    Ready {
        /// Whose edge it is.
        flow: FlowId,
        /// The application may have written, finished or gone.
        readable: bool,
        /// The socket has room again after it had none.
        writable: bool,
    },
}

impl Edges {
    /// No edges yet; sockets will be registered with `registry`.
    pub(crate) fn new(registry: Registry) -> Edges {
        Edges {
            slots: Vec::new(),
            free: Vec::new(),
            by_flow: HashMap::new(),
            half_open: BTreeMap::new(),
            connects: 0,
            registry,
        }
    }

    /// Edges that live.
    pub(crate) fn len(&self) -> usize {
        self.by_flow.len()
    }

    /// Takes a socket as the edge of `flow`.
    ///
    /// # Errors
    /// When the socket's options cannot be set or the poll does not take it.
    pub(crate) fn insert(&mut self, flow: FlowId, edge: NewEdge) -> io::Result<()> {
        let NewEdge {
            socket,
            descriptor,
            begins,
        } = edge;
        let mut socket = TcpStream::from_std(socket);
        let options = SockRef::from(&socket);
        options.set_tcp_nodelay(true)?;
        options.set_tcp_keepalive(&KEEPALIVE)?;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    edge: None,
                });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        let token = token(slot.generation, index);
        if let Err(error) =
            self.registry
                .register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)
        {
            self.free.push(index);
            return Err(error);
        }
        let (connecting, half_open) = match begins {
            Begins::Open => (false, None),
            Begins::Joining => (true, None),
            Begins::Connecting(permit) => (true, Some((self.connects, permit))),
        };
        if half_open.is_some() {
            self.half_open.insert(self.connects, flow);
            self.connects += 1;
        }
        slot.edge = Some(Edge {
            flow,
            socket,
            connecting,
            half_open,
            write_blocked: connecting,
            readable: false,
            parked: false,
            finished: false,
            _descriptor: descriptor,
        });
        self.by_flow.insert(flow, index);
        Ok(())
    }

    /// Room for one more connect. When the share is used up, the one that has waited longest for
    /// its destination has to go: who answers at all answers soon, so that destinations that never
    /// do cannot keep the others from being reached. Its flow is given back to be ended.
    pub(crate) fn begin_connect(&self, share: &Share) -> Result<Permit, Option<FlowId>> {
        share
            .take(Opener::Near)
            .ok_or_else(|| self.half_open.values().next().copied())
    }

    /// One event of the poll.
    pub(crate) fn handle_event(&mut self, event: &mio::event::Event) -> Happened {
        let token = event.token().0;
        let Some(slot) = self.slots.get_mut(token & 0xffff_ffff) else {
            return Happened::Nothing;
        };
        if slot.generation as usize != token >> 32 {
            return Happened::Nothing;
        }
        let Some(edge) = &mut slot.edge else {
            return Happened::Nothing;
        };
        let flow = edge.flow;
        if edge.connecting {
            if !event.is_writable() && !event.is_error() {
                return Happened::Nothing;
            }
            return match connect_outcome(&edge.socket) {
                Ok(true) => {
                    edge.connecting = false;
                    edge.write_blocked = false;
                    if let Some((number, _)) = edge.half_open.take() {
                        self.half_open.remove(&number);
                    }
                    Happened::Connected(flow)
                }
                Ok(false) => Happened::Nothing,
                Err(error) => Happened::Broken(flow, status_of(&error)),
            };
        }
        if event.is_error()
            && let Ok(Some(error)) = edge.socket.take_error()
        {
            return Happened::Broken(flow, status_of(&error));
        }
        let writable = event.is_writable() && edge.write_blocked;
        if writable {
            edge.write_blocked = false;
        }
        let readable = event.is_readable() || event.is_read_closed();
        if readable && edge.readable && !edge.parked {
            // A flow that waits for its turn: each segment of its application would wake the lane
            // for nothing.
            edge.parked = self
                .registry
                .reregister(&mut edge.socket, event.token(), Interest::WRITABLE)
                .is_ok();
        }
        edge.readable |= readable;
        Happened::Ready {
            flow,
            readable,
            writable,
        }
    }

    /// Writes what waits for the application of `flow`, as much as its socket takes.
    pub(crate) fn deliver(
        &mut self,
        peer: &mut Peer,
        flow: FlowId,
        now: Instant,
    ) -> Result<(), Status> {
        let Some(edge) = self.edge_mut(flow) else {
            return Ok(());
        };
        while !edge.write_blocked {
            let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(SLICES);
            peer.deliverable(flow, &mut slices);
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            if offered == 0 {
                break;
            }
            match edge.socket.write_vectored(&slices) {
                Ok(written) => {
                    peer.delivered(flow, written, now);
                    if written < offered {
                        edge.write_blocked = true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    edge.write_blocked = true
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(status_of(&error)),
            }
        }
        Ok(())
    }

    /// The far application has sent its last byte and all are written: tell the near one.
    pub(crate) fn finish(&mut self, flow: FlowId) {
        if let Some(edge) = self.edge_mut(flow) {
            edge.finished = true;
            // Fails only when the connection is gone already, which its own event tells.
            let _ = edge.socket.shutdown(Shutdown::Write);
        }
    }

    /// Ends the edge in order; the application has been told by [`Edges::finish`].
    pub(crate) fn close(&mut self, flow: FlowId) {
        if let Some(edge) = self.take(flow) {
            // Fails only for a socket that is gone.
            let _ = SockRef::from(&edge.socket).set_linger(None);
        }
    }

    /// Ends the edge with a reset, so that the application learns at once.
    pub(crate) fn reset(&mut self, flow: FlowId) {
        // As it was set from the start.
        drop(self.take(flow));
    }

    fn take(&mut self, flow: FlowId) -> Option<Edge> {
        let index = self.by_flow.remove(&flow)?;
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1) & 0x7fff_ffff;
        self.free.push(index);
        let mut edge = slot.edge.take()?;
        if let Some((number, _)) = &edge.half_open {
            self.half_open.remove(number);
        }
        // Closing the descriptor would do the same; asked for so that no event of it stays in the
        // poll.
        let _ = self.registry.deregister(&mut edge.socket);
        Some(edge)
    }

    fn edge_mut(&mut self, flow: FlowId) -> Option<&mut Edge> {
        let index = *self.by_flow.get(&flow)?;
        self.slots[index as usize].edge.as_mut()
    }

    /// All bytes are read: the next ones are news. Watching again reports those that have come
    /// since.
    fn on_drained(&mut self, flow: FlowId) -> io::Result<()> {
        let Some(&index) = self.by_flow.get(&flow) else {
            return Ok(());
        };
        let slot = &mut self.slots[index as usize];
        let token = token(slot.generation, index);
        let Some(edge) = &mut slot.edge else {
            return Ok(());
        };
        edge.readable = false;
        if std::mem::take(&mut edge.parked) {
            self.registry.reregister(
                &mut edge.socket,
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
        }
        Ok(())
    }
}

impl Source for Edges {
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Read {
        let Some(edge) = self.edge_mut(flow) else {
            return Read::Blocked;
        };
        if edge.connecting {
            return Read::Blocked;
        }
        loop {
            return match edge.socket.read(into) {
                Ok(0) => Read::End,
                // Even when it is less than was asked for it is read again: an end that follows at
                // once then goes with it, and connections that are short cost a datagram less.
                Ok(n) => Read::Bytes(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.on_drained(flow) {
                        Ok(()) => Read::Blocked,
                        Err(error) => Read::Failed(status_of(&error)),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Read::Failed(status_of(&error)),
            };
        }
    }
}

/// The poll's name for an edge. Carries a generation, so that an event of an edge that has ended
/// meets nobody.
fn token(generation: u32, index: u32) -> Token {
    Token((generation as usize) << 32 | index as usize)
}

/// The status that tells the far side what became of a connection.
pub(crate) fn status_of(error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Status::Refused,
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EACCES
            | libc::EPERM,
        ) => Status::Unreachable,
        Some(libc::ETIMEDOUT) => Status::TimedOut,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Status::NoResources,
        _ => Status::Reset,
    }
}

/// Whether a connecting socket is connected (`Ok(true)`), still on its way (`Ok(false)`) or
/// refused.
fn connect_outcome(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}
