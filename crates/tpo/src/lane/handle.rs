//! What other threads have of a lane: a handle that takes [`Command`]s, and its [`Pulse`].

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use mio::Waker;
use tpo_engine::{FlowInfo, StreamKey, Treatment, Worked};

use super::inlet::Inlet;
use crate::demultiplexer::Sighting;
use crate::edge::shares::{Lack, Level, Marks, Permit, Share};
use crate::lane::transit::Onward;
use crate::packets::edge;
use crate::packets::reader::{Batch, WAITING_BYTES};

/// What other threads ask of a lane.
pub enum Command {
    /// The interceptor accepted a connection that a rule gives to this peer.
    Accepted {
        /// The near application's connection.
        socket: TcpStream,
        /// Who wants to reach whom.
        key: StreamKey,
        /// How the rule wants it to be treated.
        treatment: Treatment,
        /// Its part of somebody's share of the descriptors.
        descriptor: Permit,
    },
    /// Packets of the near side that are no TCP, some of which may be this peer's.
    Packets(Batch),
    /// Datagrams that another peer has brought for this one.
    Onward(Onward),
    /// Somebody wants to know how it goes.
    Report(SyncSender<Report>),
    /// Somebody wants to see every flow.
    Flows(SyncSender<Vec<FlowInfo>>),
    /// A dictionary of the compression engine has been made.
    Worked(Worked),
    /// Groups of many that the peer shall be asked for from now on: all of them, by
    /// [`For`](crate::packets::multicast::groups::For).
    Groups([Vec<IpAddr>; 2]),
    /// The memory that flows may hold in all has changed.
    Budget(usize),
}

/// What a lane knows of itself.
pub struct Report {
    /// The engine's figures.
    pub stats: tpo_engine::Stats,
    /// Whether a session stands, heard or not.
    pub connected: bool,
    /// Called on demand, and nobody needs it.
    pub rests: bool,
    /// Where the peer is, as far as known.
    pub remote: Option<SocketAddr>,
    /// Edges that live.
    pub edges: usize,
    /// Counters of the lane itself.
    pub counters: Counters,
    /// Of packets that are no TCP.
    pub packets: edge::Counters,
    /// The last handshake datagram for other keys that came by the lane's own socket.
    pub stranger: Option<Sighting>,
    /// Groups of multicast that the peer asks for.
    pub groups_asked_here: Vec<IpAddr>,
    /// Groups of multicast that the peer is asked for.
    pub groups_asked_there: Vec<IpAddr>,
    /// LANs to which another TPO brings the peer's groups.
    pub lans_left: Vec<String>,
}

/// What happened at the lane's own doors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections that could not become flows because the peer was down when they arrived here.
    pub refused_not_connected: u64,
    /// The same for lack of room.
    pub refused_no_room: u64,
    /// Flows of the peer that were refused because its share of the descriptors is used up.
    pub no_descriptors: u64,
    /// Connects for the peer that were given up for newer ones, because its share of those without
    /// an answer was used up.
    pub connects_given_up: u64,
    /// Flows of the peer that no `accept` permits.
    pub not_allowed: u64,
    /// Batches that the kernel refused.
    pub send_failures: u64,
    /// Packets that the kernel dropped because the lane's socket was full.
    pub buffer_full: u64,
    /// ICMP errors that quote nothing that was sent: somebody else made them, or they cut it off.
    pub complaints_unproved: u64,
}

/// Session indices of one lane that are published: four of sessions, one of an attempt of our own,
/// and four of the peer's attempts.
const INDICES: usize = 16;
/// What stands where there is none: no session has it, because an index has 24 bits.
const NO_INDEX: u32 = u32::MAX;

/// A level of which the lane has not spoken yet: there is room.
fn unsaid() -> [AtomicUsize; 2] {
    [AtomicUsize::new(0), AtomicUsize::new(usize::MAX)]
}

/// Life signs of a lane, read by the interceptor's lease, and how much of its room is used.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    beat_ms: AtomicU64,
    up: AtomicBool,
    /// Streams that live, and how many may.
    pub flows: [AtomicUsize; 2],
    /// Bytes that streams hold for their applications, and how many they may.
    pub held: [AtomicUsize; 2],
    /// Connections that wait for a peer that was called on demand, and how many may.
    pub calling: [AtomicUsize; 2],
    /// Connections under way from the gate.
    pub connections: AtomicUsize,
    /// The far TPO has refused flows for lack of room just now.
    pub far_is_full: AtomicBool,
    /// A [`Lack`], as the gate has judged; zero: there is room.
    lack: AtomicU8,
    /// Bytes that the lane's flows hold, for the budget in all.
    pub memory: AtomicUsize,
    /// Bytes of packets that wait for the lane.
    pub packets: AtomicUsize,
    /// The session indices by which datagrams find the lane now, or [`NO_INDEX`].
    indices: [AtomicU32; INDICES],
}

impl Pulse {
    pub(super) fn new() -> Pulse {
        Pulse {
            start: Instant::now(),
            beat_ms: AtomicU64::new(0),
            up: AtomicBool::new(false),
            flows: unsaid(),
            held: unsaid(),
            calling: unsaid(),
            connections: AtomicUsize::new(0),
            far_is_full: AtomicBool::new(false),
            lack: AtomicU8::new(0),
            memory: AtomicUsize::new(0),
            packets: AtomicUsize::new(0),
            indices: [const { AtomicU32::new(NO_INDEX) }; INDICES],
        }
    }

    /// Says by which session indices the lane is found.
    pub(super) fn publish(&self, indices: impl Iterator<Item = u32>) {
        for (place, index) in self
            .indices
            .iter()
            .zip(indices.chain(std::iter::repeat(NO_INDEX)))
        {
            if place.load(Ordering::Relaxed) != index {
                place.store(index, Ordering::Relaxed);
            }
        }
    }

    /// Whether a session or an attempt of the lane has this index. A moment old, so a datagram that
    /// comes with the first of an index may be turned away; it is repeated.
    pub fn knows(&self, index: u32) -> bool {
        self.indices
            .iter()
            .any(|known| known.load(Ordering::Relaxed) == index)
    }

    /// Shows that the loop turns.
    pub(super) fn turn(&self, now: Instant) {
        self.beat_ms.store(
            now.duration_since(self.start).as_millis() as u64,
            Ordering::Relaxed,
        );
    }

    /// The same, and whether the peer is up; true when the peer has come up or gone down.
    pub(super) fn beat(&self, now: Instant, up: bool) -> bool {
        self.turn(now);
        self.up.swap(up, Ordering::Relaxed) != up
    }

    /// Whether the loop turned within `limit`.
    pub fn is_alive(&self, now: Instant, limit: Duration) -> bool {
        let beat = self.start + Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(beat) < limit
    }

    /// How much of its room the lane has used.
    pub(crate) fn levels(&self) -> [Level; 4] {
        let both =
            |pair: &[AtomicUsize; 2]| pair.each_ref().map(|number| number.load(Ordering::Relaxed));
        let level = |lack, pair| {
            let [used, most] = both(pair);
            Level {
                lack,
                used,
                marks: Marks::of(most),
            }
        };
        let [held, budget] = both(&self.held);
        [
            level(Lack::Flows, &self.flows),
            Level {
                lack: Lack::Memory,
                used: held,
                marks: Marks::of_memory(budget),
            },
            level(Lack::Queue, &self.calling),
            Level {
                lack: Lack::FarSide,
                used: usize::from(self.far_is_full.load(Ordering::Relaxed)),
                marks: Marks::YES_OR_NO,
            },
        ]
    }

    /// What there is no room of for new connections, if anything.
    pub fn lack(&self) -> Option<Lack> {
        Lack::from_number(self.lack.load(Ordering::Relaxed))
    }

    /// The gate's judgement.
    pub(crate) fn set_lack(&self, lack: Option<Lack>) {
        self.lack
            .store(lack.map_or(0, |lack| lack as u8), Ordering::Relaxed);
    }

    /// Whether the peer answers and new connections have room.
    pub fn has_room(&self) -> bool {
        self.is_up() && self.lack.load(Ordering::Relaxed) == 0
    }

    /// Whether the peer answers.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// The handle that other threads hold.
#[derive(Clone)]
pub struct Lane {
    pub(super) commands: SyncSender<Command>,
    pub(super) sessions: Inlet,
    pub(super) handshakes: Inlet,
    pub(super) waker: Arc<Waker>,
    pub(super) stopping: Arc<AtomicBool>,
    /// Life signs.
    pub pulse: Arc<Pulse>,
    /// The peer's name in the configuration.
    pub name: Arc<str>,
    /// The peer's share of the descriptors.
    pub descriptors: Share,
}

impl Lane {
    /// Hands over a command; gives it back when too many wait, or the lane has ended.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        let connections = usize::from(matches!(command, Command::Accepted { .. }));
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
    pub fn hear_session(&self, from: SocketAddr, local: Option<IpAddr>, datagram: &[u8]) -> bool {
        self.hear(&self.sessions, from, local, datagram)
    }

    /// Hands over a handshake datagram whose guard is right; false when too many of them wait.
    pub fn hear_handshake(&self, from: SocketAddr, local: Option<IpAddr>, datagram: &[u8]) -> bool {
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
    pub fn pass_on(&self, batch: Onward) -> bool {
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
    pub fn report(&self) -> Receiver<Report> {
        let (sender, receiver) = sync_channel(1);
        // A lane that takes no more commands does not answer, and the caller has a deadline.
        let _ = self.send(Command::Report(sender));
        receiver
    }

    /// Asks for every flow, likewise.
    pub fn flows(&self) -> Receiver<Vec<FlowInfo>> {
        let (sender, receiver) = sync_channel(1);
        let _ = self.send(Command::Flows(sender));
        receiver
    }

    /// Reset all flows, say goodbye, end. Heard even by a lane whose commands are full.
    pub fn close(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // A lane that cannot be woken has ended.
        let _ = self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_has_said_nothing_has_room_and_no_sessions() {
        let pulse = Pulse::new();
        for level in pulse.levels() {
            assert!(level.used < level.marks.low, "{level:?}");
        }
        assert!(
            ![0, 1, 0xff_ffff]
                .into_iter()
                .any(|index| pulse.knows(index))
        );
        pulse.publish([0, 7].into_iter());
        assert!(pulse.knows(0) && pulse.knows(7) && !pulse.knows(1));
        pulse.publish([7].into_iter());
        assert!(pulse.knows(7) && !pulse.knows(0));
    }
}
