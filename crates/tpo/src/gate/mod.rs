//! The gate: accepts what the kernel intercepts, gives each connection to its peer's lane, and
//! holds the leases.
//!
//! One thread does both on purpose: the lease says "who accepts here is alive", so only the thread
//! that accepts may renew it. A peer's lease is renewed while its lane turns and its peer answers;
//! when either stops, it is dropped at once, and if the whole process stops, it lapses by itself.

mod pressure;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Waker};
use tpo_engine::{Policy, StreamKey};
use tracing::{debug, error, info, warn};

use crate::edge::shares::{ACCEPT_TURN, ARRIVING, Lack, Level, Marks, Opener, Room};
use crate::host::doorbell::{Doorbell, RUNG};
use crate::host::life_signs::Turns;
use crate::intercept::lease::{Lease, RENEW_EVERY};
use crate::intercept::names::counter;
use crate::intercept::tcp::{Accepted, Listeners, reset_on_close};
use crate::lanes;
use crate::lanes::handle::{Command, Lane};
use crate::table::carriers::AllCarriers;
use crate::table::peers::{ByPeer, PeerId};
use pressure::{FullQueues, Known, Pressure};

const FIRST_LISTENER: usize = 1;
/// A lane that has not turned for this long, 1 s, is wedged: its peer's traffic goes its plain way.
const ALIVE: Duration = Duration::from_secs(1);
/// Connections that wait here because their lanes have too many waiting: as many as may come until
/// the lanes' leases are gone.
const MOST_PARKED: usize = ARRIVING;
/// Time, 2 ms, between two offers of parked connections to their lanes.
const PARKED_EVERY: Duration = Duration::from_millis(2);
/// Connections under way to a lane from which on its lease is dropped, and down to which it comes
/// back.
const WAITING: Marks = Marks {
    most: 4_096,
    high: 2_048,
    low: 256,
    far: 4_096,
};
/// The shortest time, 1 s, for which a lease that was dropped for lack of room stays so.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Why connections that came here did not become flows, and how the leases stand.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Given to a lane.
    pub(crate) accepted: AtomicU64,
    /// Reset: a connection to our listener itself.
    pub(crate) not_intercepted: AtomicU64,
    /// Reset: redirected, and the kernel no longer knows from where.
    pub(crate) no_destination: AtomicU64,
    /// Reset: no rule names it, though the kernel brought it here. A rule has just gone.
    pub(crate) no_rule: AtomicU64,
    /// Reset: the lane had too many waiting, and too many waited for it here.
    pub(crate) lane_full: AtomicU64,
    /// Reset: no descriptor left, or none of the peer's share.
    pub(crate) no_descriptors: AtomicU64,
    /// Times that a lease was dropped for lack of room.
    pub(crate) no_room: AtomicU64,
    /// One for each peer: whether its lease is held, for TCP and all else.
    pub(crate) leases: ByPeer<AtomicBool>,
    /// Whether the rules in the kernel are as they were installed. While not, no lease is held:
    /// what is intercepted could end nowhere. Set by [`Gate::set_intact`].
    pub(crate) intact: AtomicBool,
    /// The rules were not intact, or were made anew, since the gate looked last: their sets and
    /// counters are empty.
    pub(crate) made_anew: AtomicBool,
    /// Turns of the gate's loop, two a second at least: a life sign.
    pub(crate) turns: Turns,
    /// The listeners' queues were full: no lease holds TCP for some seconds.
    pub(crate) pressed: AtomicBool,
}

/// The running gate.
pub(crate) struct Gate {
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// What it counted.
    pub(crate) counters: Arc<Counters>,
}

/// What the gate is given.
pub(crate) struct Given {
    /// Where the kernel hands over connections.
    pub listeners: Listeners,
    /// All leases.
    pub lease: Lease,
    /// The look-up table.
    pub policy: Policy,
    /// What its rules name.
    pub carriers: AllCarriers,
    /// Who is given the connections.
    pub lanes: ByPeer<Lane>,
}

impl Gate {
    /// Starts the thread.
    pub(crate) fn start(doorbell: Doorbell, given: Given) -> io::Result<Gate> {
        let Given {
            mut listeners,
            lease,
            policy,
            carriers,
            lanes,
        } = given;
        let Doorbell { poll, waker } = doorbell;
        listeners.register(poll.registry(), FIRST_LISTENER)?;
        let counters = Arc::new(Counters {
            leases: lanes.iter().map(|_| AtomicBool::new(false)).collect(),
            intact: AtomicBool::new(true),
            ..Counters::default()
        });
        let stopping = Arc::new(AtomicBool::new(false));
        let peers = ByPeer::new(lanes.len(), |_| OfPeer {
            held: Held::Nothing,
            failing: false,
            room: Room::default(),
            parked: 0,
            paused_until: None,
        });
        let (shared, stop) = (counters.clone(), stopping.clone());
        let thread = std::thread::Builder::new()
            .name("gate".into())
            .spawn(move || {
                Loop {
                    poll,
                    floods: Floods {
                        known: Known::new(Instant::now()),
                        pressure: Pressure::new(listeners.room()),
                        full_queues: FullQueues::open(),
                        taken: 0,
                    },
                    listeners,
                    lease,
                    policy,
                    carriers,
                    lanes,
                    counters: shared,
                    stopping: stop,
                    peers,
                    parked: VecDeque::new(),
                    waiting: false,
                    alive: false,
                }
                .run();
            })?;
        Ok(Gate {
            waker,
            stopping,
            thread,
            counters,
        })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Says whether the rules in the kernel are whole. The gate acts on a change at once.
    pub(crate) fn set_intact(&self, intact: bool) {
        if self.counters.intact.swap(intact, Ordering::SeqCst) != intact {
            // Both ways: what the gate has told while they were not is gone too.
            self.counters.made_anew.store(true, Ordering::SeqCst);
            // The gate looks every half second anyway.
            let _ = self.waker.wake();
        }
    }

    /// Drops all leases and ends the thread: new connections go their plain way from now on.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        if self.waker.wake().is_ok() {
            // A gate that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

/// What is leased to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Its rules' traffic takes its plain way, or none.
    Nothing,
    /// All but TCP.
    Packets,
    /// All.
    All,
}

/// How a peer stands at the gate.
#[derive(Debug)]
struct OfPeer {
    held: Held,
    /// Its last renewal failed, which has been said.
    failing: bool,
    room: Room,
    /// Connections that wait here for its lane.
    parked: usize,
    /// Its lease was dropped for lack of room, and stays so until then at least.
    paused_until: Option<Instant>,
}

/// What the gate knows of floods of SYNs.
struct Floods {
    /// Sources that have completed handshakes.
    known: Known,
    pressure: Pressure,
    full_queues: FullQueues,
    /// Connections taken from the listeners' queues, whatever became of them.
    taken: u64,
}

struct Loop {
    poll: Poll,
    listeners: Listeners,
    lease: Lease,
    policy: Policy,
    carriers: AllCarriers,
    lanes: ByPeer<Lane>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    peers: ByPeer<OfPeer>,
    /// Connections whose lane had too many waiting, and of which peer it is.
    parked: VecDeque<(PeerId, Command)>,
    /// A listener had more than a turn's worth.
    waiting: bool,
    /// The lease behind the peers' is held.
    alive: bool,
    floods: Floods,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut next_renewal = Instant::now();
        let mut batch = Vec::new();
        while !self.stopping.load(Ordering::SeqCst) {
            self.counters.turns.count();
            let now = Instant::now();
            if now >= next_renewal {
                self.watch_queues(now);
                self.renew(now, true);
                // Some may have been left for want of descriptors.
                self.listeners.mark_all_ready();
                next_renewal = now + RENEW_EVERY;
            }
            self.floods.known.tell(now);
            let next = self
                .floods
                .known
                .timeout()
                .map_or(next_renewal, |at| at.min(next_renewal));
            let until_next = next.saturating_duration_since(now);
            let wait = match (self.waiting, self.parked.is_empty()) {
                (true, _) => Duration::ZERO,
                (false, false) => PARKED_EVERY.min(until_next),
                (false, true) => until_next,
            };
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                error!(%error, "the gate cannot wait for connections and ends: traffic goes its plain way");
                break;
            }
            if events.iter().any(|event| event.token() == RUNG) {
                self.renew(Instant::now(), false);
            }
            for event in events.iter().filter(|event| event.token() != RUNG) {
                self.listeners.mark_ready(event.token().0 - FIRST_LISTENER);
            }
            self.waiting = false;
            self.offer_parked();
            if let Err(error) = self.accept(&mut batch) {
                error!(%error, "a listener broke and the gate ends: traffic goes its plain way");
                break;
            }
        }
        for peer in self.lanes.ids() {
            self.let_go(peer);
        }
        self.show_life(false);
    }

    fn accept(&mut self, batch: &mut Vec<Accepted>) -> io::Result<()> {
        let now = Instant::now();
        for number in 0.. {
            let Some(listener) = self.listeners.iter_mut().nth(number) else {
                break;
            };
            let outcome = listener.accept_ready(ACCEPT_TURN, batch)?;
            self.waiting |= !outcome.drained;
            self.floods.taken += batch.len() as u64
                + u64::from(
                    outcome.not_intercepted
                        + outcome.no_destination
                        + outcome.no_descriptors
                        + outcome.aborted,
                );
            self.counters
                .not_intercepted
                .fetch_add(outcome.not_intercepted.into(), Ordering::Relaxed);
            self.counters
                .no_destination
                .fetch_add(outcome.no_destination.into(), Ordering::Relaxed);
            self.counters
                .no_descriptors
                .fetch_add(outcome.no_descriptors.into(), Ordering::Relaxed);
            for accepted in batch.drain(..) {
                self.floods.known.note(accepted.client.ip(), now);
                self.route(accepted);
            }
        }
        Ok(())
    }

    /// Finds the lane of an accepted connection (claims 4 to 6: the look-up table says whose it
    /// is), and drops the lease of one that has no room for more before more are accepted.
    fn route(&mut self, accepted: Accepted) {
        let Accepted {
            stream: socket,
            client,
            destination,
        } = accepted;
        let key = StreamKey::new(client, destination);
        let Some((key, rule)) = key
            .ok()
            .and_then(|key| Some((key, self.policy.find(&key)?)))
        else {
            debug!(%client, %destination, "a connection that no rule names reached the gate");
            self.counters.no_rule.fetch_add(1, Ordering::Relaxed);
            reset_on_close(&socket);
            return;
        };
        let treatment = rule.treatment;
        let peer = self.carriers[rule.carriers].choose_with_room(
            &key,
            |peer| self.lanes[peer].pulse.has_room(),
            |peer| self.lanes[peer].pulse.is_up(),
        );
        match self.lanes[peer].descriptors.take(Opener::Near) {
            Some(descriptor) => {
                let connection = lanes::handle::Accepted {
                    socket,
                    key,
                    treatment,
                    descriptor,
                };
                self.hand_over(peer, Command::Accepted(connection));
            }
            None => {
                self.counters.no_descriptors.fetch_add(1, Ordering::Relaxed);
                reset_on_close(&socket);
            }
        }
        let now = Instant::now();
        if self.counters.leases[peer].load(Ordering::Relaxed) && self.lack(peer, now).is_some() {
            self.renew_one(peer, now, false);
        }
    }

    fn hand_over(&mut self, peer: PeerId, connection: Command) {
        match self.lanes[peer].send(connection) {
            Ok(()) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(connection) if self.parked.len() < MOST_PARKED => {
                self.parked.push_back((peer, connection));
                self.peers[peer].parked += 1;
            }
            Err(connection) => {
                self.counters.lane_full.fetch_add(1, Ordering::Relaxed);
                reset(&connection);
            }
        }
    }

    /// Offers what waits here to its lanes again, each in its order.
    fn offer_parked(&mut self) {
        let now = Instant::now();
        for _ in 0..self.parked.len() {
            let Some((peer, connection)) = self.parked.pop_front() else {
                break;
            };
            self.peers[peer].parked -= 1;
            if self.lanes[peer].pulse.is_alive(now, ALIVE) {
                self.hand_over(peer, connection);
            } else {
                self.counters.lane_full.fetch_add(1, Ordering::Relaxed);
                reset(&connection);
            }
        }
    }

    /// What there is no room of for new connections to this peer, told to all who ask its pulse.
    fn lack(&mut self, peer: PeerId, now: Instant) -> Option<Lack> {
        let (lane, of) = (&self.lanes[peer], &mut self.peers[peer]);
        let [flows, memory, calling, far_side] = lane.pulse.levels();
        let (used, most) = lane.descriptors.level();
        let descriptors = Level {
            lack: Lack::Descriptors,
            used,
            marks: Marks::of(most),
        };
        let waiting = lane.pulse.connections.load(Ordering::Relaxed) + of.parked;
        let queue = Level {
            lack: Lack::Queue,
            used: waiting,
            marks: WAITING,
        };
        let before = lane.pulse.lack();
        let found = of
            .room
            .update(&[flows, memory, descriptors, calling, queue, far_side]);
        let lack = match (found, of.paused_until) {
            (None, Some(until)) if now < until => before,
            (found, _) => found,
        };
        if lack.is_some() && before.is_none() {
            of.paused_until = Some(now + LEAST_PAUSE);
        }
        lane.pulse.set_lack(lack);
        lack
    }

    /// TCP is in the leases while the listeners' queues have room.
    fn watch_queues(&mut self, now: Instant) {
        if self.counters.made_anew.swap(false, Ordering::SeqCst) {
            // A repair may take less time than there is between two looks.
            self.floods.known.forget();
        }
        self.floods.known.age(now);
        // Where the kernel cannot be asked no lease can be renewed either.
        let Ok(handed) = self.lease.counter(counter::INTERCEPTED) else {
            return;
        };
        let calm = self.floods.pressure.look(
            handed.packets,
            self.floods.taken,
            self.floods.full_queues.count(),
            now,
        );
        if self.counters.pressed.swap(!calm, Ordering::Relaxed) != calm {
            return;
        }
        match calm {
            true => info!("new TCP connections are taken again"),
            false => warn!(
                seconds = self.floods.pressure.hold().as_secs(),
                "a flood of new connections has filled the listeners' queues: TCP is let go by its rules' on_failure for some time"
            ),
        }
    }

    /// Renews the lease of each peer that can carry traffic now, and drops that of each that
    /// cannot. Between the regular rounds only changes are acted on.
    fn renew(&mut self, now: Instant, regular: bool) {
        for peer in self.lanes.ids() {
            self.renew_one(peer, now, regular);
        }
        self.show_life(regular);
    }

    /// The same of one peer. Without room for connections its lease is for packets alone: of those
    /// the flows that are there go on, and for the new ones the lane finds a way.
    fn renew_one(&mut self, peer: PeerId, now: Instant, regular: bool) {
        let intact = self.counters.intact.load(Ordering::SeqCst);
        let lack = self.lack(peer, now);
        let pulse = &self.lanes[peer].pulse;
        let name = self.lanes[peer].name.clone();
        let fit = intact && pulse.is_up() && pulse.is_alive(now, ALIVE);
        let pressed = self.counters.pressed.load(Ordering::Relaxed);
        let wanted = match (fit, lack) {
            (false, _) => Held::Nothing,
            (true, None) if !pressed => Held::All,
            (true, _) => Held::Packets,
        };
        let held = self.peers[peer].held;
        if held == wanted && (!regular || wanted == Held::Nothing) {
            return;
        }
        let outcome = match wanted {
            Held::Nothing => {
                self.let_go(peer);
                warn!(peer = %name, "new connections are let go by their rule's on_failure");
                return;
            }
            Held::Packets => self.lease.renew_without_tcp(peer),
            Held::All => self.lease.renew(peer),
        };
        match outcome {
            Ok(()) => {
                self.peers[peer].failing = false;
                self.set_held(peer, wanted);
                match (held, wanted, lack) {
                    (Held::Nothing | Held::Packets, Held::All, _) => {
                        info!(peer = %name, "new connections are accelerated");
                    }
                    (Held::Nothing | Held::All, Held::Packets, Some(lack)) => {
                        self.counters.no_room.fetch_add(1, Ordering::Relaxed);
                        warn!(peer = %name, "{}; new connections are let go by their rule's on_failure", lack.sentence());
                    }
                    _ => {}
                }
            }
            Err(error) => {
                // Whatever is left of it lapses by itself.
                if !std::mem::replace(&mut self.peers[peer].failing, true) {
                    warn!(peer = %name, %error, "the lease cannot be renewed: new connections are let go by their rule's on_failure");
                }
                self.set_held(peer, Held::Nothing);
            }
        }
    }

    fn set_held(&mut self, peer: PeerId, held: Held) {
        self.peers[peer].held = held;
        self.counters.leases[peer].store(held == Held::All, Ordering::Relaxed);
    }

    /// Answers to packets that came from a peer are ours while the daemon lives and carries
    /// anything.
    fn show_life(&mut self, regular: bool) {
        let any = self.peers.iter().any(|of| of.held != Held::Nothing);
        if any && (regular || !self.alive) {
            self.alive = self.lease.show_life(self.lanes.len()).is_ok();
        } else if !any && std::mem::take(&mut self.alive) {
            // What is not dropped lapses by itself.
            let _ = self.lease.end_life(self.lanes.len());
        }
    }

    fn let_go(&mut self, peer: PeerId) {
        let held = self.peers[peer].held != Held::Nothing;
        self.set_held(peer, Held::Nothing);
        if held && let Err(error) = self.lease.drop_lease(peer) {
            debug!(peer = %self.lanes[peer].name, %error, "the lease could not be dropped and lapses by itself");
        }
    }
}

/// What goes with a connection that is given up.
fn reset(connection: &Command) {
    if let Command::Accepted(accepted) = connection {
        reset_on_close(&accepted.socket);
    }
}
