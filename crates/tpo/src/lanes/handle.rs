//! The handle of a lane: how other threads give it work. Every way is bounded.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use mio::Waker;
use tpo_engine::{FlowInfo, StreamKey, Treatment, Worked};

use super::batch::{Batch, Onward, WAITING_BYTES};
use super::inlet::{HANDSHAKES, Inlet, Outlet, SESSIONS, inlet};
use super::pulse::Pulse;
use super::report::Report;
use crate::edge::shares::{Permit, Share};

/// Commands that may wait for a lane: a burst of new connections, beyond which new ones are turned
/// away.
const COMMANDS: usize = 4_096;

/// A connection that the gate has accepted, or that another lane hands on.
pub(crate) struct Accepted {
    /// The near application's connection, or our end of the one that joins two lanes.
    pub(crate) socket: TcpStream,
    /// Who wants to reach whom.
    pub(crate) key: StreamKey,
    /// How the rule wants it to be treated.
    pub(crate) treatment: Treatment,
    /// Its part of somebody's share of the descriptors.
    pub(crate) descriptor: Permit,
}

/// What other threads ask of a lane.
pub(crate) enum Command {
    /// A connection that a rule gives to this peer.
    Accepted(Accepted),
    /// Packets of the near side, some of which may be this peer's.
    Packets(Batch),
    /// Packets that another peer has brought for this one.
    Onward(Onward),
    /// A report is asked for.
    Report(SyncSender<Report>),
    /// The list of every flow is asked for.
    Flows(SyncSender<Vec<FlowInfo>>),
    /// A dictionary of the compression engine has been made.
    Worked(Worked),
    /// Groups of many that the peer shall be asked for from now on: all of them, by
    /// [`For`](crate::packets::multicast::groups::For).
    Groups([Vec<IpAddr>; 2]),
    /// The memory that flows may hold in all has changed.
    Budget(usize),
}

/// The handle that other threads hold.
#[derive(Clone)]
pub(crate) struct Lane {
    commands: SyncSender<Command>,
    sessions: Inlet,
    handshakes: Inlet,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    /// Life signs.
    pub(crate) pulse: Arc<Pulse>,
    /// The peer's name in the configuration.
    pub(crate) name: Arc<str>,
    /// The peer's share of the descriptors.
    pub(crate) descriptors: Share,
}

impl Lane {
    /// The two ends of a new lane: what other threads hold of it, and what its own thread takes
    /// from.
    pub(crate) fn new(name: &str, waker: Arc<Waker>, descriptors: Share) -> (Lane, LaneEnd) {
        let (commands, inbox) = sync_channel(COMMANDS);
        let (sessions, session_inbox) = inlet(SESSIONS);
        let (handshakes, handshake_inbox) = inlet(HANDSHAKES);
        let (pulse, stopping) = (Arc::new(Pulse::new()), Arc::new(AtomicBool::new(false)));
        let end = LaneEnd {
            inbox,
            handshakes: handshake_inbox,
            sessions: session_inbox,
            stopping: stopping.clone(),
            pulse: pulse.clone(),
        };
        let lane = Lane {
            commands,
            sessions,
            handshakes,
            waker,
            stopping,
            pulse,
            name: name.into(),
            descriptors,
        };
        (lane, end)
    }

    /// Hands over a command; gives it back when too many wait, or the lane has ended.
    pub(crate) fn send(&self, command: Command) -> Result<(), Command> {
        let connections = usize::from(matches!(command, Command::Accepted(_)));
        self.pulse
            .connections
            .fetch_add(connections, Ordering::Relaxed);
        match self.commands.try_send(command) {
            Ok(()) => {
                // Waking can fail only when the lane has ended, which its next command will show.
                let _ = self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => {
                self.pulse
                    .connections
                    .fetch_sub(connections, Ordering::Relaxed);
                Err(command)
            }
        }
    }

    /// Hands over a datagram of one of the lane's sessions; false when too much of them waits.
    pub(crate) fn hear_session(
        &self,
        from: SocketAddr,
        local: Option<IpAddr>,
        datagram: &[u8],
    ) -> bool {
        self.hear(&self.sessions, from, local, datagram)
    }

    /// Hands over a handshake datagram whose guard is right; false when too many of them wait.
    pub(crate) fn hear_handshake(
        &self,
        from: SocketAddr,
        local: Option<IpAddr>,
        datagram: &[u8],
    ) -> bool {
        self.hear(&self.handshakes, from, local, datagram)
    }

    fn hear(
        &self,
        inlet: &Inlet,
        from: SocketAddr,
        local: Option<IpAddr>,
        datagram: &[u8],
    ) -> bool {
        let taken = inlet.put(from, local, datagram);
        if taken {
            // As for commands.
            let _ = self.waker.wake();
        }
        taken
    }

    /// Hands over what another peer has brought for this one; false when too much waits.
    pub(crate) fn pass_on(&self, batch: Onward) -> bool {
        let (bytes, waiting) = (batch.bytes.len(), &self.pulse.packets);
        waiting.fetch_add(bytes, Ordering::Relaxed);
        let full = waiting.load(Ordering::Relaxed) > WAITING_BYTES;
        let taken = !full && self.send(Command::Onward(batch)).is_ok();
        if !taken {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Asks what the lane knows of itself; the answer comes through the receiver, or never.
    pub(crate) fn report(&self) -> Receiver<Report> {
        let (sender, receiver) = sync_channel(1);
        // A lane that takes no more commands does not answer, and the caller has a deadline.
        let _ = self.send(Command::Report(sender));
        receiver
    }

    /// Asks for every flow, likewise.
    pub(crate) fn flows(&self) -> Receiver<Vec<FlowInfo>> {
        let (sender, receiver) = sync_channel(1);
        let _ = self.send(Command::Flows(sender));
        receiver
    }

    /// Reset all flows, say goodbye, end. Heard even by a lane whose commands are full.
    pub(crate) fn close(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // A lane that cannot be woken has ended.
        let _ = self.waker.wake();
    }
}

/// The lane's own end of its handle.
pub(crate) struct LaneEnd {
    /// What other threads ask.
    pub(crate) inbox: Receiver<Command>,
    /// Handshake datagrams from the demultiplexer.
    pub(crate) handshakes: Outlet,
    /// Datagrams of sessions from the demultiplexer.
    pub(crate) sessions: Outlet,
    /// The lane shall end.
    pub(crate) stopping: Arc<AtomicBool>,
    /// What the lane shows of itself.
    pub(crate) pulse: Arc<Pulse>,
}
