//! The TUN reader, the first step of the way out: reads the packets that the kernel hands over
//! (UDP, ICMP, whatever else a rule names) and gives each to its peer's lane, in batches.
//!
//! One thread. A packet is read into a block of memory, stays there until the lane's engine packs
//! it, and is not copied before (`packets/blocks.rs`). Whose it is says the [`Directory`]. What is
//! nobody's goes back to the kernel and takes its plain way, unless a closed rule names it
//! ([`super::plain_way`]).

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_engine::PacketKey;
use tracing::{debug, warn};

use super::blocks::Blocks;
use super::directory::{Directory, Whose};
use super::fragments::Fragments;
use super::plain_way::{Cause, Plain};
use crate::host::life_signs::{TURN_EVERY, Turns};
use crate::intercept::tun::{Tun, VNET};
use crate::ip::{self, Parsed};
use crate::lanes::batch::{Batch, Item, WAITING_BYTES};
use crate::lanes::handle::{Command, Lane};
use crate::table::peers::ByPeer;

const TUN: Token = Token(0);
const WAKE: Token = Token(1);
/// Packets of a batch, at most: what comes while the lanes work is handed over at once.
const BATCH_PACKETS: usize = 256;
/// Bytes of a block after which the batch ends, so that what waits for a lane is bounded in bytes
/// too.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of the longest packet.
const LONGEST: usize = 65_535;
/// From this many packets in one turn on, the next ones may wait for each other for
/// [`MODERATION`]: each turn wakes two threads.
const MANY: usize = 4;
const MODERATION: Duration = Duration::from_micros(100);

/// What became of packets that no lane has seen.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Sent on their plain way.
    pub(crate) let_go: AtomicU64,
    /// The lane had too many waiting: lost, unless their rule lets them take their plain way.
    pub(crate) lane_full: AtomicU64,
}

/// The running TUN reader.
pub(crate) struct TunReader {
    waker: Waker,
    thread: JoinHandle<()>,
    /// What it counted.
    pub(crate) counters: Arc<Counters>,
    /// Turns of its loop: a life sign.
    pub(crate) turns: Turns,
}

impl TunReader {
    /// Starts the thread.
    pub(crate) fn start(tun: Arc<Tun>, directory: Directory) -> io::Result<TunReader> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        poll.registry()
            .register(&mut SourceFd(&tun.as_raw_fd()), TUN, Interest::READABLE)?;
        let counters = Arc::new(Counters::default());
        let turns = Turns::default();
        let reader = Reader {
            tun,
            batches: directory.lanes.iter().map(|_| Vec::new()).collect(),
            directory,
            fragments: Fragments::default(),
            blocks: Blocks::new(BATCH_BYTES + VNET + LONGEST),
            counters: counters.clone(),
        };
        let turning = turns.clone();
        let thread = std::thread::Builder::new()
            .name("TUN reader".into())
            .spawn(move || reader.run(poll, &turning))?;
        Ok(TunReader {
            waker,
            thread,
            counters,
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
            // A reader that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

/// What the thread owns.
struct Reader {
    tun: Arc<Tun>,
    directory: Directory,
    fragments: Fragments,
    blocks: Blocks,
    /// The packets of this turn, for each lane.
    batches: ByPeer<Vec<Item>>,
    counters: Arc<Counters>,
}

/// Whose the packet before was. Packets of a flow come in a row, more often than not. It is
/// forgotten with the turn, so a flow that begins or ends meanwhile is seen by the next one.
struct LastFound {
    key: PacketKey,
    is_error: bool,
    opens: bool,
    whose: Option<Whose>,
}

impl Reader {
    fn run(mut self, mut poll: Poll, turning: &Turns) {
        let mut events = Events::with_capacity(8);
        let mut wait = TURN_EVERY;
        loop {
            turning.count();
            if let Err(error) = poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn!(%error, "the TUN reader cannot wait for packets and ends");
                return;
            }
            if events.iter().any(|event| event.token() == WAKE) {
                return;
            }
            // The poll is edge triggered: what a turn leaves waiting would not be announced again.
            let drained = self.read();
            wait = if drained { TURN_EVERY } else { Duration::ZERO };
            let packets = self.hand_over_all();
            if drained && packets >= MANY {
                std::thread::sleep(MODERATION);
            }
        }
    }

    /// Reads one batch. Gives whether nothing is left waiting.
    fn read(&mut self) -> bool {
        let (mut used, mut last) = (0, None);
        for _ in 0..BATCH_PACKETS {
            let length = match self.tun.read(self.blocks.from(used)) {
                Ok(Some(packet)) => packet.len(),
                Ok(None) => return true,
                Err(error) => {
                    // The device is down, or gone: a new edge tells when it is up again.
                    debug!(%error, "no packets can be read");
                    return true;
                }
            };
            let place = used + VNET..used + VNET + length;
            if self.sort(place.clone(), &mut last) {
                used = place.end;
            }
            if used > BATCH_BYTES {
                return false;
            }
        }
        false
    }

    /// Gives the packet at this place of the block to the batch of its lane, or back to the kernel.
    /// Whether some batch has it.
    fn sort(&mut self, place: Range<usize>, last: &mut Option<LastFound>) -> bool {
        let packet = &self.blocks.bytes()[place.clone()];
        let parsed = ip::parse(packet).and_then(|parsed| self.fragments.complete(parsed));
        let Some(parsed) = parsed else {
            self.let_go(place, None);
            return false;
        };
        if parsed.key.destination.ip().is_multicast() {
            let mut is_wanted = false;
            self.directory.find_all(&parsed, |whose| {
                is_wanted = true;
                self.batches[whose.peer].push(Item {
                    parsed: parsed.clone(),
                    ruled: whose.ruled,
                    place: place.clone(),
                });
            });
            return is_wanted;
        }
        let found = match last {
            Some(last)
                if (last.key, last.is_error, last.opens)
                    == (parsed.key, parsed.is_error, parsed.opens) =>
            {
                last.whose
            }
            _ => {
                let whose = self.directory.find(&parsed);
                *last = Some(LastFound {
                    key: parsed.key,
                    is_error: parsed.is_error,
                    opens: parsed.opens,
                    whose,
                });
                whose
            }
        };
        let Some(Whose { peer, ruled }) = found else {
            self.let_go(place, Some(&parsed));
            return false;
        };
        self.batches[peer].push(Item {
            parsed,
            ruled,
            place,
        });
        true
    }

    /// A packet that is nobody's takes its plain way, unless a closed rule names it.
    fn let_go(&self, place: Range<usize>, parsed: Option<&Parsed>) {
        if self.directory.plain.may_go(parsed, Cause::NoFlow) {
            self.counters.let_go.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.tun.write(&self.blocks.bytes()[place]) {
                debug!(%error, "a packet that is nobody's is lost");
            }
        }
    }

    /// Gives each lane its batch. Gives how many packets there were.
    fn hand_over_all(&mut self) -> usize {
        let packets: usize = self.batches.iter().map(Vec::len).sum();
        if packets == 0 {
            return 0;
        }
        // Without one: what was read stays where it is, and each lane gets a copy of what is its
        // own.
        let shared = self.blocks.hand_over();
        for (lane, items) in self.directory.lanes.iter().zip(self.batches.iter_mut()) {
            if !items.is_empty() {
                // The next one may be as long.
                let next = Vec::with_capacity(items.len());
                let mut items = std::mem::replace(items, next);
                let block = shared
                    .clone()
                    .unwrap_or_else(|| Arc::new(Batch::copy_out(self.blocks.bytes(), &mut items)));
                let batch = Batch::new(block, items);
                hand_over(
                    lane,
                    batch,
                    &self.tun,
                    &self.directory.plain,
                    &self.counters,
                );
            }
        }
        packets
    }
}

/// Gives a batch to its lane. What the lane has no room for takes its plain way if its rule fails
/// open.
fn hand_over(lane: &Lane, batch: Batch, tun: &Tun, plain: &Plain, counters: &Counters) {
    let packets = batch.items.len() as u64;
    let (bytes, waiting) = (batch.bytes(), &lane.pulse.packets);
    waiting.fetch_add(bytes, Ordering::Relaxed);
    let full = waiting.load(Ordering::Relaxed) > WAITING_BYTES;
    let outcome = if full {
        Err(Command::Packets(batch))
    } else {
        lane.send(Command::Packets(batch))
    };
    let Err(refused) = outcome else { return };
    waiting.fetch_sub(bytes, Ordering::Relaxed);
    counters.lane_full.fetch_add(packets, Ordering::Relaxed);
    if let Command::Packets(batch) = refused {
        for packet in let_go(&batch, plain) {
            if let Err(error) = tun.write(packet) {
                debug!(%error, "a packet that no lane takes is lost");
            }
        }
    }
}

/// The packets of a batch that may take their plain way, each of which is counted as it is taken.
fn let_go<'b>(batch: &'b Batch, plain: &'b Plain) -> impl Iterator<Item = &'b [u8]> {
    let fails_open = |item: &&Item| item.ruled.is_some_and(|rule| rule.fails_open);
    let may_go = |item: &&Item| plain.may_go(Some(&item.parsed), Cause::FlowLimit);
    batch
        .items
        .iter()
        .filter(fails_open)
        .filter(may_go)
        .map(|item| batch.packet(item))
}

#[cfg(test)]
mod tests {
    use tpo_engine::{Class, Delivery, Policy};

    use super::*;
    use crate::lanes::batch::Ruled;
    use crate::table::protocols::UDP;

    fn key(source: &str, destination: &str) -> PacketKey {
        PacketKey::new(17, source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    /// What a full lane gives back goes in the clear: it is told as all else that does.
    #[test]
    fn what_no_lane_takes_is_counted_by_its_rule() {
        let rule = |ports| tpo_engine::Rule {
            protocol: UDP,
            source: "10.1.0.0/16".parse().unwrap(),
            source_ports: 0..=u16::MAX,
            destination: "10.2.0.0/16".parse().unwrap(),
            destination_ports: ports,
            carriers: tpo_engine::CarriersId::new(0),
            treatment: Class::Normal.into(),
            delivery: Delivery::Timely,
        };
        let plain = Plain::new(
            Policy::new(vec![rule(53..=53), rule(54..=54)]),
            vec![false, true],
        );
        let (mut block, mut items) = (Vec::new(), Vec::new());
        let mut push = |port: u16, fails_open: Option<bool>| {
            let key = key("10.1.0.1:5000", &format!("10.2.0.1:{port}"));
            let mut bytes = Vec::new();
            assert!(crate::packets::udp::emit(
                &key,
                ip::Head {
                    hops: 64,
                    ..Default::default()
                },
                b"word",
                7,
                &mut bytes
            ));
            let ruled = |fails_open| Ruled {
                treatment: Class::Normal.into(),
                delivery: Delivery::Timely,
                fails_open,
            };
            items.push(Item {
                parsed: ip::parse(&bytes).unwrap(),
                ruled: fails_open.map(ruled),
                place: block.len()..block.len() + bytes.len(),
            });
            block.extend_from_slice(&bytes);
            bytes
        };
        let open = push(53, Some(true));
        push(54, Some(false));
        // An answer in a flow that a peer has opened, and a copy of what is sent to many.
        push(53, None);
        push(53, Some(false));
        let batch = Batch::new(Arc::new(block), items);
        assert_eq!(let_go(&batch, &plain).collect::<Vec<_>>(), [&open[..]]);
        assert_eq!(
            plain.counts(),
            [(Some(0), crate::status::Reason::FlowLimit, 1)]
        );
    }
}
