//! The router: hears everybody who calls at the configured port and hands each datagram to the lane it names.
//!
//! Only first handshakes and datagrams of peers whose address has just changed come this way: a lane that knows its peer's address has a
//! socket of its own ([`crate::link::udp`]). The router looks at the clear header alone; whether a datagram is genuine, its lane finds out.
//! What names no lane is counted and dropped, and never answered.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_mover::{Outer, PublicKey, pair_hint, peek};
use tracing::{debug, warn};

use crate::lane::{Command, Lane};
use crate::link::udp::{Link, Runs};

const LINK: Token = Token(0);
const WAKE: Token = Token(1);
/// The slot of a peer is in the upper bits of the session indices that we chose (docs/wire.md, section 1).
const SLOT_SHIFT: u32 = 12;

/// Longer datagrams than the mover ever makes (16,356 bytes) are nobody's; so what waits for a lane is bounded in bytes too.
const LONGEST: usize = 16_384;
/// Receive calls before the router looks whether it shall end, so that a flood cannot keep it.
const TURN: usize = 16;

/// What the router dropped.
#[derive(Debug, Default)]
pub struct Drops {
    /// Not of our protocol, too short or too long, or of no session of ours.
    pub unknown: AtomicU64,
    /// Handshakes between other keys than ours and our peers'.
    pub hints: AtomicU64,
    /// For a lane that had too much waiting.
    pub full: AtomicU64,
}

/// Where each datagram goes: built once, from the configuration.
pub struct Table {
    lanes: Vec<Lane>,
    hints: HashMap<[u8; 8], usize>,
}

impl Table {
    /// The lanes in the order of their slots, each with its peer's key.
    pub fn new(own: &PublicKey, lanes: Vec<(Lane, PublicKey)>) -> Table {
        let hints = lanes.iter().enumerate().map(|(slot, (_, key))| (pair_hint(key, own), slot)).collect();
        Table { lanes: lanes.into_iter().map(|(lane, _)| lane).collect(), hints }
    }

    fn find(&self, datagram: &[u8], drops: &Drops) -> Option<&Lane> {
        let (slot, counter) = match peek(datagram) {
            Some(Outer::Handshake { hint } | Outer::Retry { hint }) if datagram.len() <= LONGEST => {
                (self.hints.get(&hint).copied(), &drops.hints)
            }
            Some(Outer::Session { index, .. }) if datagram.len() <= LONGEST => {
                (Some((index >> SLOT_SHIFT) as usize), &drops.unknown)
            }
            _ => (None, &drops.unknown),
        };
        let lane = slot.and_then(|slot| self.lanes.get(slot));
        if lane.is_none() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        lane
    }
}

/// The running router.
pub struct Router {
    waker: Waker,
    thread: JoinHandle<()>,
    /// What it dropped so far.
    pub drops: Arc<Drops>,
}

impl Router {
    /// Starts the thread.
    pub fn start(link: Link, table: Table) -> io::Result<Router> {
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        poll.registry().register(&mut SourceFd(&link.as_raw_fd()), LINK, Interest::READABLE)?;
        let drops = Arc::new(Drops::default());
        let counters = drops.clone();
        let thread = std::thread::Builder::new().name("router".into()).spawn(move || {
            let mut events = Events::with_capacity(8);
            let mut runs = Runs::new();
            let mut wait = None;
            loop {
                if let Err(error) = poll.poll(&mut events, wait)
                    && error.kind() != io::ErrorKind::Interrupted
                {
                    warn!(%error, "the router cannot wait for datagrams and ends");
                    return;
                }
                if events.iter().any(|event| event.token() == WAKE) {
                    return;
                }
                // The poll is edge triggered: what a turn leaves waiting would not be announced again.
                let drained = route(&link, &mut runs, &table, &counters);
                wait = (!drained).then_some(Duration::ZERO);
            }
        })?;
        Ok(Router { waker, thread, drops })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread.
    pub fn stop(self) {
        if self.waker.wake().is_ok() {
            // A router that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

/// One turn; whether nothing is left waiting.
fn route(link: &Link, runs: &mut Runs, table: &Table, drops: &Drops) -> bool {
    for _ in 0..TURN {
        match link.receive(runs) {
            Ok(0) => return true,
            Ok(_) => runs.for_each(|from, local, datagram| {
                let Some(lane) = table.find(datagram, drops) else { return };
                if lane.send(Command::Datagram { from, local, bytes: datagram.to_vec() }).is_err() {
                    drops.full.fetch_add(1, Ordering::Relaxed);
                }
            }),
            // An unconnected socket hears of its own sends that failed; the lanes find out by silence.
            Err(error) => debug!(%error, "receive failed"),
        }
    }
    false
}
