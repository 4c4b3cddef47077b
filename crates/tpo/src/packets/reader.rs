//! The tap: reads the packets that the kernel hands over (UDP, ICMP, whatever else a rule names)
//! and gives each to its peer's lane.
//!
//! One thread. A packet of a flow that a peer has opened goes to that peer; else the look-up table
//! says whose it is (claims 4 to 6). What is nobody's goes back to the kernel and takes its plain
//! way, unless a closed rule names it ([`crate::packets::plain_way`]).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tpo_engine::{PacketKey, Policy};
use tracing::{debug, warn};

use crate::host::life_signs::{TURN_EVERY, Turns};
use crate::intercept::tun::{Tun, VNET};
use crate::ip::{self, Parsed};
use crate::lanes::batch::{Batch, Item, Ruled, WAITING_BYTES};
use crate::lanes::handle::{Command, Lane};
use crate::packets::multicast::groups::{For, Wanted};
use crate::packets::plain_way::{Cause, Plain};
use crate::table::carriers::AllCarriers;
use crate::table::peers::{ByPeer, PeerId};

const TUN: Token = Token(0);
const WAKE: Token = Token(1);
/// Packets read before they are handed over: what comes while the lanes work is handed over at
/// once.
const BATCH_PACKETS: usize = 256;
/// Bytes of them, so that what waits for a lane is bounded in bytes too.
const BATCH_BYTES: usize = 256 << 10;
const LONGEST: usize = 65_535;
/// When so many come at once, the next ones may wait for each other a little: each turn wakes two
/// threads.
const MANY: usize = 4;
const MODERATION: Duration = Duration::from_micros(100);
/// Cut packets whose later pieces may be under way.
const FIRST_PIECES: usize = 256;

/// Whose a packet is: the peer of the lane, and by which rule it may open a flow there.
type Whose = (PeerId, Option<Ruled>);

/// The room that a flood took is given back when few are left.
pub fn shed<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if is_roomy(map.capacity(), map.len()) {
        map.shrink_to(2 * map.len());
    }
}

/// Whether a table has far more room than it needs.
pub fn is_roomy(capacity: usize, length: usize) -> bool {
    const KEPT: usize = 4_096;
    capacity > KEPT.max(8 * length)
}

/// Which lane's peer owns a flow, for the packets that come back.
#[derive(Debug)]
pub struct Opened {
    owners: RwLock<Owners>,
    /// Of each peer: it is heard. One that is not keeps nobody from a flow.
    heard: ByPeer<AtomicBool>,
}

#[derive(Debug, Default)]
struct Owners {
    /// Flows that a peer has opened.
    theirs: HashMap<PacketKey, PeerId>,
    /// Flows of our side, as the opener sees them, and who carries them. Only where there are
    /// several peers.
    ours: HashMap<PacketKey, PeerId>,
}

impl Opened {
    /// No flow of any of these peers yet.
    pub fn new(peers: usize) -> Opened {
        Opened {
            owners: RwLock::default(),
            heard: ByPeer::new(peers, |_| AtomicBool::new(false)),
        }
    }

    /// Whether a peer is heard.
    pub fn set_heard(&self, peer: PeerId, heard: bool) {
        self.heard[peer].store(heard, Ordering::SeqCst);
    }

    /// A peer opens a flow: its answers are that peer's from now on. False when they are another's
    /// already, because that one has opened the same flow, or carries ours of the other direction.
    pub fn insert(&self, key: PacketKey, peer: PeerId) -> bool {
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        let before = [owners.theirs.get(&key), owners.ours.get(&key.turned())];
        if before
            .into_iter()
            .flatten()
            .any(|owner| *owner != peer && self.heard[*owner].load(Ordering::SeqCst))
        {
            return false;
        }
        owners.theirs.insert(key, peer);
        true
    }

    /// It is over, unless another peer has opened the same since.
    pub fn remove(&self, key: &PacketKey, peer: PeerId) {
        remove(
            &mut self
                .owners
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .theirs,
            key,
            peer,
        );
    }

    /// Whether flows of our side are worth noting: with one peer alone nobody else could take them.
    pub fn notes_ours(&self) -> bool {
        self.heard.len() > 1
    }

    /// A flow of our side is carried by this peer.
    pub fn insert_ours(&self, key: PacketKey, peer: PeerId) {
        self.owners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .ours
            .insert(key, peer);
    }

    /// It is over, unless another peer carries it since.
    pub fn remove_ours(&self, key: &PacketKey, peer: PeerId) {
        remove(
            &mut self
                .owners
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .ours,
            key,
            peer,
        );
    }

    fn contains(&self, key: &PacketKey) -> bool {
        self.by(key).is_some()
    }

    /// The peer that has opened exactly this flow.
    pub fn by(&self, key: &PacketKey) -> Option<PeerId> {
        self.owners
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .theirs
            .get(key)
            .copied()
    }
}

fn remove(map: &mut HashMap<PacketKey, PeerId>, key: &PacketKey, peer: PeerId) {
    if map.get(key) == Some(&peer) {
        map.remove(key);
        shed(map);
    }
}

/// The first pieces of cut packets, whose later ones tell no ports: bounded, the oldest goes first.
#[derive(Debug, Default)]
struct Pieces {
    firsts: VecDeque<(IpAddr, IpAddr, u32, Parsed)>,
}

impl Pieces {
    /// A later piece is of the flow that its first one was of.
    fn complete(&mut self, mut seen: Parsed) -> Option<Parsed> {
        let Some(piece) = seen.fragment else {
            return Some(seen);
        };
        let (from, to) = (seen.key.source.ip(), seen.key.destination.ip());
        if piece.is_first {
            if self.firsts.len() == FIRST_PIECES {
                self.firsts.pop_front();
            }
            self.firsts
                .push_back((from, to, piece.number, seen.clone()));
            return Some(seen);
        }
        let same = |(a, b, number, _): &&(IpAddr, IpAddr, u32, Parsed)| {
            (*a, *b, *number) == (from, to, piece.number)
        };
        let (.., first) = self.firsts.iter().rev().find(same)?;
        (seen.key, seen.opens) = (first.key, first.opens);
        Some(seen)
    }
}

/// What became of the packets.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sent on their plain way.
    pub let_go: AtomicU64,
    /// The lane had too many waiting: lost, unless their rule lets them take their plain way.
    pub lane_full: AtomicU64,
}

/// The running tap.
pub struct TunReader {
    waker: Waker,
    thread: JoinHandle<()>,
    /// What it counted.
    pub counters: Arc<Counters>,
    /// Turns of its loop: a life sign.
    pub turns: Turns,
}

/// Everything that says whose a packet is.
pub struct Table {
    /// The look-up table, and for each of its rules whether it fails open.
    pub policy: Policy,
    /// In the order of the policy's rules.
    pub fails_open: Vec<bool>,
    /// What may take its plain way.
    pub plain: Arc<Plain>,
    /// Whom the rules' carriers mean.
    pub carriers: AllCarriers,
    /// Flows that peers have opened.
    pub opened: Arc<Opened>,
    /// Those of all peers.
    pub lanes: ByPeer<Lane>,
    /// What is carried to groups of many, if anything.
    pub groups_of_many: Option<GroupTable>,
}

/// Who gets what is sent to groups of many.
pub struct GroupTable {
    /// The rules whose destinations are such groups.
    pub policy: Policy,
    /// Whom the rules' carriers mean: all of them that ask.
    pub carriers: AllCarriers,
    /// What the peers ask for.
    pub wanted: Arc<Wanted>,
}

impl GroupTable {
    /// Every lane whose peer asks for this flow and gets it by a rule, and for whom it asks.
    pub fn each(&self, key: &PacketKey, mut each: impl FnMut(PeerId, For, Ruled)) {
        let Some(rule) = self.policy.find(key) else {
            return;
        };
        // The packet itself is on its way in its LAN whatever becomes of this copy.
        let ruled = Ruled {
            treatment: rule.treatment,
            delivery: rule.delivery,
            fails_open: false,
        };
        let peers = &self.carriers[rule.carriers].peers;
        self.wanted.each(key.destination.ip(), |peer, whom| {
            if peers.contains(&peer) {
                each(peer, whom, ruled);
            }
        });
    }
}

impl Table {
    fn find(&self, seen: &Parsed) -> Option<Whose> {
        // As our side sees the flow: an error is about what the far side has sent in it.
        let key = if seen.is_error {
            seen.key.turned()
        } else {
            seen.key
        };
        if let Some(peer) = self.opened.by(&key.turned()) {
            return Some((peer, None));
        }
        let (number, rule) = self.policy.find_with_number(&key)?;
        let peer = self.carriers[rule.carriers].choose(&key, |peer| self.lanes[peer].pulse.is_up());
        let fails_open = self.fails_open[number];
        let ruled = Ruled {
            treatment: rule.treatment,
            delivery: rule.delivery,
            fails_open,
        };
        Some((peer, seen.opens.then_some(ruled)))
    }
}

impl TunReader {
    /// Starts the thread.
    pub fn start(tun: Arc<Tun>, table: Table) -> io::Result<TunReader> {
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        poll.registry()
            .register(&mut SourceFd(&tun.as_raw_fd()), TUN, Interest::READABLE)?;
        let counters = Arc::new(Counters::default());
        let turns = Turns::default();
        let (shared, turning) = (counters.clone(), turns.clone());
        let thread = std::thread::Builder::new()
            .name("tap".into())
            .spawn(move || {
                let mut events = Events::with_capacity(8);
                let mut wait = TURN_EVERY;
                let mut buffer = vec![0; VNET + LONGEST];
                let mut pieces = Pieces::default();
                let mut batches: ByPeer<Batch> =
                    table.lanes.iter().map(|_| Batch::default()).collect();
                loop {
                    turning.count();
                    if let Err(error) = poll.poll(&mut events, Some(wait))
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        warn!(%error, "the tap cannot wait for packets and ends");
                        return;
                    }
                    if events.iter().any(|event| event.token() == WAKE) {
                        return;
                    }
                    // The poll is edge triggered: what a turn leaves waiting would not be announced
                    // again.
                    let drained = read(
                        &tun,
                        &table,
                        &mut pieces,
                        &mut batches,
                        &mut buffer,
                        &shared,
                    );
                    wait = if drained { TURN_EVERY } else { Duration::ZERO };
                    let packets: usize = batches.iter().map(|batch| batch.items.len()).sum();
                    for (lane, batch) in table.lanes.iter().zip(batches.iter_mut()) {
                        hand_over(lane, std::mem::take(batch), &tun, &table.plain, &shared);
                    }
                    if drained && packets >= MANY {
                        std::thread::sleep(MODERATION);
                    }
                }
            })?;
        Ok(TunReader {
            waker,
            thread,
            counters,
            turns,
        })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread.
    pub fn stop(self) {
        if self.waker.wake().is_ok() {
            // A tap that panicked has said so already.
            let _ = self.thread.join();
        }
    }
}

/// One turn; whether nothing is left waiting.
fn read(
    tun: &Tun,
    table: &Table,
    pieces: &mut Pieces,
    batches: &mut ByPeer<Batch>,
    buffer: &mut [u8],
    counters: &Counters,
) -> bool {
    let mut bytes = 0;
    // Packets of a flow come in a row, more often than not.
    let mut last: Option<(Parsed, Option<Whose>)> = None;
    for _ in 0..BATCH_PACKETS {
        let packet = match tun.read(buffer) {
            Ok(Some(packet)) => packet,
            Ok(None) => return true,
            Err(error) => {
                // The device is down, or gone: a new edge tells when it is up again.
                debug!(%error, "no packets can be read");
                return true;
            }
        };
        let seen = ip::parse(packet).and_then(|seen| pieces.complete(seen));
        bytes += packet.len();
        if let Some(seen) = seen
            .as_ref()
            .filter(|seen| seen.key.destination.ip().is_multicast())
        {
            // Or the kernel's own, about the device: nobody's.
            if let Some(groups) = &table.groups_of_many
                && seen.opens
                // What a peer has brought does not come from our LANs.
                && !table.opened.contains(&seen.key)
            {
                groups.each(&seen.key, |peer, _, ruled| {
                    batches[peer].push(seen.clone(), Some(ruled), packet)
                });
            }
            continue;
        }
        let found = seen.as_ref().and_then(|seen| {
            let found = match &last {
                Some((same, found))
                    if (same.key, same.opens, same.is_error)
                        == (seen.key, seen.opens, seen.is_error) =>
                {
                    *found
                }
                _ => table.find(seen),
            };
            last = Some((seen.clone(), found));
            found
        });
        match (seen, found) {
            (Some(seen), Some((peer, ruled))) => {
                batches[peer].push(seen, ruled, packet);
            }
            (seen, _) if table.plain.may_go(seen.as_ref(), Cause::NoFlow) => {
                counters.let_go.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = tun.write(packet) {
                    debug!(%error, "a packet that is nobody's is lost");
                }
            }
            // A closed rule names it.
            _ => {}
        }
        if bytes > BATCH_BYTES {
            break;
        }
    }
    false
}

/// Gives a batch to its lane. What the lane has no room for takes its plain way if its rule fails
/// open.
fn hand_over(lane: &Lane, batch: Batch, tun: &Tun, plain: &Plain, counters: &Counters) {
    let packets = batch.items.len() as u64;
    if packets == 0 {
        return;
    }
    let (bytes, waiting) = (batch.bytes.len(), &lane.pulse.packets);
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
    let may_go = |item: &&Item| plain.may_go(Some(&item.seen), Cause::FlowLimit);
    batch
        .items
        .iter()
        .filter(fails_open)
        .filter(may_go)
        .map(|item| &batch.bytes[item.bytes.clone()])
}

#[cfg(test)]
mod tests {
    use tpo_engine::{Class, Delivery};

    use super::*;

    const A: PeerId = PeerId::new(0);
    const B: PeerId = PeerId::new(1);
    const C: PeerId = PeerId::new(2);

    fn key(source: &str, destination: &str) -> PacketKey {
        PacketKey::new(17, source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    /// What a full lane gives back goes in the clear: it is told as all else that does.
    #[test]
    fn what_no_lane_takes_is_counted_by_its_rule() {
        let rule = |ports| tpo_engine::Rule {
            protocol: crate::table::protocols::UDP,
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
        let mut batch = Batch::default();
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
            batch.push(ip::parse(&bytes).unwrap(), fails_open.map(ruled), &bytes);
            bytes
        };
        let open = push(53, Some(true));
        push(54, Some(false));
        // An answer in a flow that a peer has opened, and a copy of what is sent to many.
        push(53, None);
        push(53, Some(false));
        assert_eq!(let_go(&batch, &plain).collect::<Vec<_>>(), [&open[..]]);
        assert_eq!(
            plain.counts(),
            [(Some(0), crate::status::Reason::FlowLimit, 1)]
        );
    }

    /// Who opened a flow keeps it while it lives, and so does who carries one of ours; one that is
    /// silent keeps nothing.
    #[test]
    fn an_owner_is_not_replaced_while_it_is_heard() {
        let opened = Opened::new(3);
        [A, B, C]
            .into_iter()
            .for_each(|peer| opened.set_heard(peer, true));
        let theirs = key("10.1.1.2:4000", "10.2.2.2:53");
        assert!(opened.insert(theirs, A) && opened.insert(theirs, A));
        assert!(!opened.insert(theirs, B));
        opened.remove(&theirs, B);
        assert_eq!(
            opened.by(&theirs),
            Some(A),
            "it is not the other one's to end"
        );
        opened.set_heard(A, false);
        assert!(opened.insert(theirs, B));
        opened.set_heard(A, true);
        opened.remove(&theirs, A);
        assert_eq!(
            (opened.by(&theirs), opened.insert(theirs, A)),
            (Some(B), false)
        );
        opened.remove(&theirs, B);
        assert!(opened.insert(theirs, A));
        // A flow of our side: its answers come from who carries it.
        let ours = key("10.2.2.2:5000", "10.1.1.2:53");
        opened.insert_ours(ours, C);
        assert!(!opened.insert(ours.turned(), B));
        assert!(opened.insert(ours.turned(), C));
        opened.remove(&ours.turned(), C);
        opened.remove_ours(&ours, B);
        assert!(!opened.insert(ours.turned(), B));
        opened.remove_ours(&ours, C);
        assert!(opened.insert(ours.turned(), B));
    }
}
