//! The gate: accepts what the kernel intercepts, gives each connection to its peer's lane, and holds the leases.
//!
//! One thread does both on purpose: the lease says "who accepts here is alive", so only the thread that accepts may renew it. A peer's lease is
//! renewed while its lane turns and its peer answers; when either stops, it is dropped at once, and if the whole process stops, it lapses by itself.

mod pressure;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use tpo_engine::{Policy, StreamKey};
use tracing::{debug, error, info, warn};

use crate::group::Group;
use crate::intercept::lease::{Lease, RENEW_EVERY};
use crate::intercept::rules::counter;
use crate::intercept::tcp::{Accepted, Listeners, reset_on_close};
use crate::lane::{Command, Lane};
use pressure::{FullQueues, Known, Pressure};

const WAKE: Token = Token(0);
const FIRST_LISTENER: usize = 1;
/// A lane that has not turned for this long is wedged: its peer's traffic goes its plain way.
const ALIVE: Duration = Duration::from_secs(1);
/// Connections accepted from one listener before the other one has its turn.
const ACCEPT_TURN: usize = 256;

/// Why connections that came here did not become flows, and how the leases stand.
#[derive(Debug, Default)]
pub struct Counters {
    /// Given to a lane.
    pub accepted: AtomicU64,
    /// Reset: no rule names it (a connection to the interceptor itself, or a rule that has just gone).
    pub not_intercepted: AtomicU64,
    /// Reset: the lane had too many waiting.
    pub lane_full: AtomicU64,
    /// Reset: no descriptor left.
    pub no_descriptors: AtomicU64,
    /// One for each peer: whether its lease is held.
    pub leases: Vec<AtomicBool>,
    /// Whether the rules in the kernel are as they were installed. While not, no lease is held: what is intercepted could end nowhere.
    /// Set by [`Gate::set_intact`].
    pub intact: AtomicBool,
    /// The listeners' queues were full: no lease holds TCP for some seconds.
    pub pressed: AtomicBool,
}

/// The running gate.
pub struct Gate {
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// What it counted.
    pub counters: Arc<Counters>,
}

/// The poll of a thread (the gate's, multicast's), made before the lanes so that they can wake it.
pub struct Doorbell {
    pub(crate) poll: Poll,
    waker: Arc<Waker>,
}

impl Doorbell {
    /// A poll that nobody waits on yet.
    pub fn new() -> io::Result<Doorbell> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok(Doorbell { poll, waker })
    }

    /// What makes its thread look at once.
    pub fn ring(&self) -> impl Fn() + Send + 'static {
        let waker = self.waker.clone();
        // It looks every half second anyway.
        move || drop(waker.wake())
    }
}

impl Gate {
    /// Starts the thread.
    pub fn start(
        doorbell: Doorbell,
        mut listeners: Listeners,
        lease: Lease,
        (policy, groups): (Policy, Vec<Group>),
        lanes: Vec<Lane>,
    ) -> io::Result<Gate> {
        let Doorbell { poll, waker } = doorbell;
        listeners.register(poll.registry(), FIRST_LISTENER)?;
        let counters = Arc::new(Counters {
            leases: lanes.iter().map(|_| AtomicBool::new(false)).collect(),
            intact: AtomicBool::new(true),
            ..Counters::default()
        });
        let stopping = Arc::new(AtomicBool::new(false));
        let failing = vec![false; lanes.len()];
        let (shared, stop) = (counters.clone(), stopping.clone());
        let thread = std::thread::Builder::new().name("gate".into()).spawn(move || {
            Loop {
                poll,
                known: Known::new(Instant::now()),
                pressure: Pressure::new(listeners.room()),
                full_queues: FullQueues::open(),
                taken: 0,
                listeners,
                lease,
                policy,
                groups,
                lanes,
                counters: shared,
                stopping: stop,
                failing,
                waiting: false,
                alive: false,
            }
            .run();
        })?;
        Ok(Gate { waker, stopping, thread, counters })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Says whether the rules in the kernel are whole. The gate acts on a change at once.
    pub fn set_intact(&self, intact: bool) {
        if self.counters.intact.swap(intact, Ordering::SeqCst) != intact {
            // The gate looks every half second anyway.
            let _ = self.waker.wake();
        }
    }

    /// Drops all leases and ends the thread: new connections go their plain way from now on.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        if self.waker.wake().is_ok() {
            // A gate that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

struct Loop {
    poll: Poll,
    listeners: Listeners,
    lease: Lease,
    policy: Policy,
    groups: Vec<Group>,
    lanes: Vec<Lane>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    /// For each peer: its last renewal failed, which has been said.
    failing: Vec<bool>,
    /// A listener had more than a turn's worth.
    waiting: bool,
    /// The lease behind the peers' is held.
    alive: bool,
    known: Known,
    pressure: Pressure,
    full_queues: FullQueues,
    /// Connections taken from the listeners' queues, whatever became of them.
    taken: u64,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut next_renewal = Instant::now();
        let mut batch = Vec::new();
        while !self.stopping.load(Ordering::SeqCst) {
            let now = Instant::now();
            if now >= next_renewal {
                self.watch_queues(now);
                self.renew(now, true);
                // Some may have been left for want of descriptors.
                self.listeners.mark_all_ready();
                next_renewal = now + RENEW_EVERY;
            }
            self.known.tell(now);
            let next = self.known.timeout().map_or(next_renewal, |at| at.min(next_renewal));
            let wait = if self.waiting { Duration::ZERO } else { next.saturating_duration_since(now) };
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                error!(%error, "the gate cannot wait for connections and ends: traffic goes its plain way");
                break;
            }
            if events.iter().any(|event| event.token() == WAKE) {
                self.renew(Instant::now(), false);
            }
            for event in events.iter().filter(|event| event.token() != WAKE) {
                self.listeners.mark_ready(event.token().0 - FIRST_LISTENER);
            }
            self.waiting = false;
            if let Err(error) = self.accept(&mut batch) {
                error!(%error, "a listener broke and the gate ends: traffic goes its plain way");
                break;
            }
        }
        for peer in 0..self.lanes.len() {
            self.let_go(peer);
        }
        self.show_life(false);
    }

    fn accept(&mut self, batch: &mut Vec<Accepted>) -> io::Result<()> {
        for listener in self.listeners.iter_mut() {
            let before = batch.len();
            let outcome = listener.accept_ready(ACCEPT_TURN, batch)?;
            self.waiting |= !outcome.drained;
            self.taken += (batch.len() - before) as u64
                + u64::from(outcome.not_intercepted + outcome.no_descriptors + outcome.aborted);
            self.counters.not_intercepted.fetch_add(outcome.not_intercepted.into(), Ordering::Relaxed);
            self.counters.no_descriptors.fetch_add(outcome.no_descriptors.into(), Ordering::Relaxed);
        }
        let now = Instant::now();
        for accepted in batch.drain(..) {
            self.known.note(accepted.client.ip(), now);
            route((&self.policy, &self.groups), &self.lanes, &self.counters, accepted);
        }
        Ok(())
    }

    /// TCP is in the leases while the listeners' queues have room.
    fn watch_queues(&mut self, now: Instant) {
        if !self.counters.intact.load(Ordering::SeqCst) {
            // Its counters and sets are gone with the table.
            self.known.forget();
        }
        self.known.age(now);
        // Where the kernel cannot be asked no lease can be renewed either.
        let Ok(handed) = self.lease.counter(counter::INTERCEPTED) else { return };
        let calm = self.pressure.look(handed.packets, self.taken, self.full_queues.count(), now);
        if self.counters.pressed.swap(!calm, Ordering::Relaxed) != calm {
            return;
        }
        self.lease.leave_out_tcp(!calm);
        match calm {
            true => info!("new TCP connections are taken again"),
            false => warn!(
                seconds = self.pressure.hold().as_secs(),
                "a flood of new connections has filled the listeners' queues: TCP is let go by its rules' on_failure for some time"
            ),
        }
    }

    /// Renews the lease of each peer that can carry traffic now, and drops that of each that cannot. Between the regular rounds only
    /// changes are acted on.
    fn renew(&mut self, now: Instant, regular: bool) {
        let intact = self.counters.intact.load(Ordering::SeqCst);
        for peer in 0..self.lanes.len() {
            let pulse = &self.lanes[peer].pulse;
            let fit = intact && pulse.is_up() && pulse.is_alive(now, ALIVE);
            let held = self.counters.leases[peer].load(Ordering::Relaxed);
            match (fit, held) {
                (true, true) if !regular => {}
                (true, _) => match self.lease.renew(peer) {
                    Ok(()) => {
                        if !held {
                            info!(peer = %self.lanes[peer].name, "new connections are accelerated");
                        }
                        self.counters.leases[peer].store(true, Ordering::Relaxed);
                        self.failing[peer] = false;
                    }
                    Err(error) => {
                        // Whatever is left of it lapses by itself.
                        self.counters.leases[peer].store(false, Ordering::Relaxed);
                        if !std::mem::replace(&mut self.failing[peer], true) {
                            warn!(peer = %self.lanes[peer].name, %error, "the lease cannot be renewed: new connections are let go by their rule's on_failure");
                        }
                    }
                },
                (false, true) => {
                    self.let_go(peer);
                    warn!(peer = %self.lanes[peer].name, "new connections are let go by their rule's on_failure");
                }
                (false, false) => {}
            }
        }
        self.show_life(regular);
    }

    /// Answers to packets that came from a peer are ours while the daemon lives and carries anything.
    fn show_life(&mut self, regular: bool) {
        let any = self.counters.leases.iter().any(|held| held.load(Ordering::Relaxed));
        if any && (regular || !self.alive) {
            self.alive = self.lease.renew(self.lanes.len()).is_ok();
        } else if !any && std::mem::take(&mut self.alive) {
            // What is not dropped lapses by itself.
            let _ = self.lease.drop_lease(self.lanes.len());
        }
    }

    fn let_go(&mut self, peer: usize) {
        if self.counters.leases[peer].swap(false, Ordering::Relaxed)
            && let Err(error) = self.lease.drop_lease(peer)
        {
            debug!(peer = %self.lanes[peer].name, %error, "the lease could not be dropped and lapses by itself");
        }
    }
}

/// Finds the lane of an accepted connection (claims 4 to 6: the look-up table says whose it is).
fn route((policy, groups): (&Policy, &[Group]), lanes: &[Lane], counters: &Counters, accepted: Accepted) {
    let Accepted { stream: socket, client, destination } = accepted;
    let key = StreamKey::new(client, destination);
    let Some((key, rule)) = key.ok().and_then(|key| Some((key, policy.find(&key)?))) else {
        debug!(%client, %destination, "a connection that no rule names reached the gate");
        counters.not_intercepted.fetch_add(1, Ordering::Relaxed);
        reset_on_close(&socket);
        return;
    };
    let peer = groups[rule.peer].choose(&key, |peer| lanes[peer].pulse.is_up());
    match lanes[peer].send(Command::Accepted { socket, key, treatment: rule.treatment }) {
        Ok(()) => {
            counters.accepted.fetch_add(1, Ordering::Relaxed);
        }
        Err(command) => {
            counters.lane_full.fetch_add(1, Ordering::Relaxed);
            if let Command::Accepted { socket, .. } = command {
                reset_on_close(&socket);
            }
        }
    }
}
