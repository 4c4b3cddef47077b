//! The demultiplexer: hears everybody who calls at the configured port and hands each datagram to
//! the lane it names.
//!
//! Only first handshakes and datagrams of peers whose address has just changed come this way: a
//! lane that knows its peer's address has a socket of its own ([`crate::link::udp`]). Strangers can
//! send here as much as they like, so the demultiplexer hands on only what a lane can use: a
//! datagram that bears the whole index of a session, and a handshake datagram whose guard is right,
//! each by a way of its own with its own bound. Whether a datagram is genuine, its lane finds out.
//! Everything else is counted by kind and dropped, without being copied, and never answered.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_mover::{Guard, GuardError, Outer, PublicKey, pair_hint, peek};
use tracing::{debug, warn};

use crate::host::life_signs::{TURN_EVERY, Turns};
use crate::host::log::Seldom;
use crate::lanes::handle::Lane;
use crate::lanes::sighting::Sighting;
use crate::link::udp::{Link, Runs};
use crate::table::peers::{ByPeer, PeerId};

mod sightings;

pub(crate) use sightings::Sightings;

const LINK: Token = Token(0);
const WAKE: Token = Token(1);
/// The slot of a peer is in the upper bits of the session indices that we chose (docs/wire.md,
/// section 1).
const SLOT_SHIFT: u32 = 12;

/// Longer datagrams, bytes, are dropped: the mover makes none above 16,356.
const LONGEST: usize = 16_384;
/// Receive calls, 16, before the demultiplexer looks whether it shall end, so that no flood holds
/// it up.
const TURN: usize = 16;
/// The shortest time, 10 s, between two lines of the log about what strangers can cause.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the demultiplexer dropped, by kind.
#[derive(Debug)]
pub(crate) struct Drops {
    /// Not of our protocol, too short or too long.
    pub(crate) noise: AtomicU64,
    /// Of no session that we have now.
    pub(crate) unknown_sessions: AtomicU64,
    /// Handshakes between other keys than ours and our peers'.
    pub(crate) other_keys: AtomicU64,
    /// Handshakes that name our key and a peer's, but were made without the secrets of the pair.
    pub(crate) wrong_guards: AtomicU64,
    /// Handshakes with a right guard, for a lane that had too many of them waiting.
    pub(crate) handshakes_full: AtomicU64,
    /// Of a session, for a lane that had too much of it waiting.
    pub(crate) sessions_full: AtomicU64,
    /// What the kernel dropped because the listening socket was full. Looked at once in a second at
    /// most.
    pub(crate) buffer_full: AtomicU64,
    /// The handshakes among them that may be a peer's with a wrong key.
    pub(crate) sightings: Mutex<Sightings>,
}

impl Drops {
    fn new(sightings: Sightings) -> Drops {
        let none = AtomicU64::default;
        Drops {
            noise: none(),
            unknown_sessions: none(),
            other_keys: none(),
            wrong_guards: none(),
            handshakes_full: none(),
            sessions_full: none(),
            buffer_full: none(),
            sightings: Mutex::new(sightings),
        }
    }

    /// The last handshake for other keys that may be this peer's.
    pub(crate) fn sighting(&self, peer: PeerId, now: Instant) -> Option<Sighting> {
        self.with_sightings(|sightings| sightings.of(peer, now))
    }

    fn with_sightings<T>(&self, use_them: impl FnOnce(&mut Sightings) -> T) -> T {
        // Whoever panicked with the lock left at worst an older sighting.
        use_them(
            &mut self
                .sightings
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// A peer as the demultiplexer knows it.
pub(crate) struct Listed {
    /// Who hears its datagrams.
    pub(crate) lane: Lane,
    /// Its key.
    pub(crate) key: PublicKey,
    /// What tells its handshakes from strangers'.
    pub(crate) guard: Guard,
    /// Where it is expected, if we know.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// Where each datagram goes: built once, from the configuration.
pub(crate) struct Table {
    lanes: ByPeer<(Lane, Guard)>,
    hints: HashMap<[u8; 8], PeerId>,
    endpoints: ByPeer<Option<SocketAddr>>,
}

impl Table {
    /// Of all peers.
    pub(crate) fn new(own: &PublicKey, peers: ByPeer<Listed>) -> Table {
        Table {
            hints: peers
                .iter_with_id()
                .map(|(id, peer)| (pair_hint(&peer.key, own), id))
                .collect(),
            endpoints: peers.iter().map(|peer| peer.endpoint).collect(),
            lanes: peers
                .into_iter()
                .map(|peer| (peer.lane, peer.guard))
                .collect(),
        }
    }

    /// Gives the datagram to the lane that can use it, or counts why none can.
    fn hand_on(
        &self,
        (from, local): (SocketAddr, Option<IpAddr>),
        datagram: &[u8],
        now: Instant,
        drops: &Drops,
    ) {
        let dropped = match peek(datagram) {
            Some(Outer::Session { index, .. }) if datagram.len() <= LONGEST => {
                match self
                    .lanes
                    .get(PeerId::new((index >> SLOT_SHIFT) as usize))
                    .filter(|(lane, _)| lane.pulse.knows(index))
                {
                    Some((lane, _)) if lane.hear_session(from, local, datagram) => return,
                    Some(_) => &drops.sessions_full,
                    None => &drops.unknown_sessions,
                }
            }
            Some(Outer::Handshake { hint } | Outer::Retry { hint }) => {
                match self.hints.get(&hint) {
                    Some(&peer) => {
                        let (lane, guard) = &self.lanes[peer];
                        match guard.admit(datagram) {
                            Ok(()) if lane.hear_handshake(from, local, datagram) => return,
                            Ok(()) => &drops.handshakes_full,
                            Err(GuardError::Unproved) => {
                                drops.with_sightings(|sightings| {
                                    sightings.on_wrong_guard(peer, from, now)
                                });
                                &drops.wrong_guards
                            }
                            Err(GuardError::Stranger) => &drops.noise,
                        }
                    }
                    None => {
                        drops.with_sightings(|sightings| sightings.on_other_keys(from, now));
                        &drops.other_keys
                    }
                }
            }
            _ => &drops.noise,
        };
        dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// The running demultiplexer.
pub(crate) struct Demultiplexer {
    waker: Waker,
    thread: JoinHandle<()>,
    /// What it dropped so far.
    pub(crate) drops: Arc<Drops>,
    /// Turns of its loop: a life sign.
    pub(crate) turns: Turns,
}

impl Demultiplexer {
    /// Starts the thread.
    pub(crate) fn start(link: Link, table: Table) -> io::Result<Demultiplexer> {
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        poll.registry()
            .register(&mut SourceFd(&link.as_raw_fd()), LINK, Interest::READABLE)?;
        let drops = Arc::new(Drops::new(Sightings::new(&table.endpoints)));
        let turns = Turns::default();
        let (counters, turning) = (drops.clone(), turns.clone());
        let thread = std::thread::Builder::new()
            .name("demultiplexer".into())
            .spawn(move || {
                let mut events = Events::with_capacity(8);
                let mut runs = Runs::new();
                let (mut wait, mut line, mut look) = (
                    TURN_EVERY,
                    Seldom::new(LINE_EVERY),
                    Seldom::new(Duration::from_secs(1)),
                );
                loop {
                    turning.count();
                    if let Err(error) = poll.poll(&mut events, Some(wait))
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        warn!(%error, "the demultiplexer cannot wait for datagrams and ends");
                        return;
                    }
                    if events.iter().any(|event| event.token() == WAKE) {
                        return;
                    }
                    // The poll is edge triggered: what a turn leaves waiting would not be announced
                    // again.
                    let drained = route(&link, &mut runs, &table, &counters, &mut line);
                    wait = if drained { TURN_EVERY } else { Duration::ZERO };
                    if look.admits(Instant::now()).is_some() {
                        counters
                            .buffer_full
                            .store(link.dropped(), Ordering::Relaxed);
                    }
                }
            })?;
        Ok(Demultiplexer {
            waker,
            thread,
            drops,
            turns,
        })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        if self.waker.wake().is_ok() {
            // A demultiplexer that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

/// One turn; whether nothing is left waiting.
fn route(link: &Link, runs: &mut Runs, table: &Table, drops: &Drops, line: &mut Seldom) -> bool {
    for _ in 0..TURN {
        let now = Instant::now();
        match link.receive(runs) {
            Ok(0) => return true,
            Ok(_) => {
                runs.for_each(|from, local, datagram| {
                    table.hand_on((from, local), datagram, now, drops)
                });
            }
            // Nothing that was sent from here is told to a socket without a peer; the lanes find
            // out by silence.
            Err(error) => {
                if let Some(more) = line.admits(now) {
                    debug!(%error, more, "receive failed");
                }
            }
        }
    }
    false
}
