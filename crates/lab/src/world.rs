//! The deterministic world: any machines that speak in datagrams, links between them, and a clock
//! that only events move.
//!
//! One input goes to one node, then every poll of that node is drained, then comes the next event:
//! the same loop as the real program's, so that a machine cannot tell the two apart. The same seed
//! and the same calls give the same run, which [`World::trace`] proves by one number.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::link::{Fate, Link, LinkStats};
use crate::profile::Profile;

/// A machine in a world. [`World`] says in which order it is called.
pub trait Node {
    /// A datagram arrived.
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant);
    /// The time that [`Node::poll_timeout`] named has come.
    fn handle_timeout(&mut self, now: Instant);
    /// When this machine next wants [`Node::handle_timeout`].
    fn poll_timeout(&self) -> Option<Instant>;
    /// Appends datagrams of `segment` bytes each (the last may be shorter) to `out`, which is
    /// empty; returns where to and `segment`.
    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)>;
    /// The application's turn (read payloads, write new ones) and the place for invariants: called
    /// after each input, once [`Node::poll_transmit`] has nothing left. What it makes the machine
    /// send is polled right after.
    fn drained(&mut self, _now: Instant) {}
}

/// What the closure of [`World::on_send`] does with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the link, as the closure left it.
    Keep,
    /// It never existed.
    Drop,
}

type OnSend = Box<dyn FnMut(SocketAddr, SocketAddr, &mut Vec<u8>) -> Verdict>;

/// Nodes, links and a virtual clock.
///
/// How it drives a node: one input ([`Node::handle_datagram`] or [`Node::handle_timeout`]), then
/// [`Node::poll_transmit`] until it gives `None`, then [`Node::drained`], then what that made it
/// send, then [`Node::poll_timeout`]. A timeout that is due already is the next input. Only then
/// comes the next event, and the clock moves to it: no time passes within one input. A datagram to
/// an address without a node or a link is counted ([`World::unroutable`]).
///
/// ```
/// use std::net::SocketAddr;
/// use std::time::{Duration, Instant};
/// use tpo_lab::{Node, World};
///
/// /// Sends one datagram each 10 ms to `to`, if there is one, and counts what arrives.
/// struct Beacon {
///     to: Option<SocketAddr>,
///     next: Instant,
///     due: bool,
///     heard: u32,
/// }
///
/// impl Node for Beacon {
///     fn handle_datagram(&mut self, _from: SocketAddr, _datagram: &mut [u8], _now: Instant) {
///         self.heard += 1;
///     }
///     fn handle_timeout(&mut self, now: Instant) {
///         (self.due, self.next) = (true, now + Duration::from_millis(10));
///     }
///     fn poll_timeout(&self) -> Option<Instant> {
///         self.to.map(|_| self.next)
///     }
///     fn poll_transmit(
///         &mut self,
///         out: &mut Vec<u8>,
///         _now: Instant,
///     ) -> Option<(SocketAddr, usize)> {
///         let to = self.to.filter(|_| std::mem::take(&mut self.due))?;
///         out.extend_from_slice(&[0; 100]);
///         Some((to, 100))
///     }
/// }
///
/// let (one, other) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
/// let mut world = World::new(7); // the seed of all dice
/// let next = world.now();
/// let a = world.add(one, Beacon { to: Some(other), next, due: false, heard: 0 });
/// let b = world.add(other, Beacon { to: None, next, due: false, heard: 0 });
/// let link = "rate=1mbit delay=20ms".parse().unwrap();
/// world.connect(a, b, link, "delay=20ms".parse().unwrap());
/// assert!(world.run_until(|world| world.node(b).heard == 3, Duration::from_secs(1)));
/// // Two intervals, 20 ms of way, and 128 bytes at 1 Mbit/s.
/// assert_eq!(world.elapsed(), Duration::from_micros(20_000 + 20_000 + 1_024));
/// ```
pub struct World<N: Node> {
    seed: u64,
    start: Instant,
    elapsed: Duration,
    places: Vec<Place<N>>,
    links: Vec<Road>,
    bottlenecks: Vec<Link>,
    events: BinaryHeap<Reverse<Event>>,
    /// Datagrams on their way; events name their slots.
    flying: Vec<Flying>,
    free: Vec<usize>,
    /// Counts events, so that those of the same time keep their order.
    order: u64,
    out: Vec<u8>,
    on_send: Option<OnSend>,
    dice: fastrand::Rng,
    trace: u64,
    unroutable: u64,
}

struct Place<N> {
    address: SocketAddr,
    node: N,
    timeout: Option<Instant>,
    /// Touched from outside since it was last drained.
    dirty: bool,
    timers: Timers,
}

/// Watches for timer storms.
#[derive(Default)]
struct Timers {
    /// The virtual millisecond that is counted.
    millisecond: u128,
    count: u32,
}

struct Road {
    from: usize,
    to: usize,
    /// Passed before the link: a number in `bottlenecks`.
    bottleneck: Option<usize>,
    link: Link,
}

struct Flying {
    from: SocketAddr,
    to: usize,
    bytes: Vec<u8>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Duration,
    order: u64,
    slot: usize,
}

/// IP and UDP headers of a datagram, which the link carries too.
const HEADERS_V4: usize = 20 + 8;
const HEADERS_V6: usize = 40 + 8;
/// Timeouts of one node within one virtual millisecond: more is a storm. A sender paced in steps of
/// a microsecond has a thousand.
const TIMEOUTS_PER_MILLISECOND: u32 = 20_000;

impl<N: Node> World<N> {
    /// An empty world. Its clock starts at some instant and moves only by events.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            start: Instant::now(),
            elapsed: Duration::ZERO,
            places: Vec::new(),
            links: Vec::new(),
            bottlenecks: Vec::new(),
            events: BinaryHeap::new(),
            flying: Vec::new(),
            free: Vec::new(),
            order: 0,
            out: Vec::new(),
            on_send: None,
            dice: fastrand::Rng::with_seed(seed),
            trace: 0xcbf2_9ce4_8422_2325,
            unroutable: 0,
        }
    }

    /// Puts a node into the world; it is drained before the next event. Returns its number.
    pub fn add(&mut self, address: SocketAddr, node: N) -> usize {
        assert!(
            self.find(address).is_none(),
            "two nodes with the address {address}"
        );
        self.places.push(Place {
            address,
            node,
            timeout: None,
            dirty: true,
            timers: Timers::default(),
        });
        self.places.len() - 1
    }

    /// Lays both directions between two nodes.
    pub fn connect(&mut self, a: usize, b: usize, a_to_b: Profile, b_to_a: Profile) {
        for (from, to, profile) in [(a, b, a_to_b), (b, a, b_to_a)] {
            assert!(
                self.road(from, to).is_none(),
                "nodes {from} and {to} are connected already"
            );
            let seed = self.dice.u64(..);
            self.links.push(Road {
                from,
                to,
                bottleneck: None,
                link: Link::new(profile, seed, self.now()),
            });
        }
    }

    /// Builds a bottleneck that several directions may share. Returns its number.
    pub fn bottleneck(&mut self, profile: Profile) -> usize {
        let seed = self.dice.u64(..);
        self.bottlenecks.push(Link::new(profile, seed, self.now()));
        self.bottlenecks.len() - 1
    }

    /// Leads one direction through a bottleneck: its datagrams pass that first, then their own
    /// link. A bottleneck duplicates and corrupts nothing: that is left to the links behind it.
    pub fn lead_through(&mut self, from: usize, to: usize, bottleneck: usize) {
        assert!(
            bottleneck < self.bottlenecks.len(),
            "no bottleneck {bottleneck}"
        );
        let road = self
            .road(from, to)
            .unwrap_or_else(|| panic!("no link from node {from} to node {to}"));
        self.links[road].bottleneck = Some(bottleneck);
    }

    /// Counters of a bottleneck.
    pub fn bottleneck_stats(&self, bottleneck: usize) -> LinkStats {
        self.bottlenecks[bottleneck].stats()
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    /// The virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// A node.
    pub fn node(&self, i: usize) -> &N {
        &self.places[i].node
    }

    /// A node, to change it; it is drained before the next event, or at once by [`World::kick`].
    pub fn node_mut(&mut self, i: usize) -> &mut N {
        self.places[i].dirty = true;
        &mut self.places[i].node
    }

    /// A restart: another node at the same address. Datagrams in flight still arrive.
    pub fn replace(&mut self, i: usize, node: N) -> N {
        self.places[i].dirty = true;
        std::mem::replace(&mut self.places[i].node, node)
    }

    /// Changes one direction from now on.
    pub fn set(&mut self, from: usize, to: usize, profile: Profile) {
        let now = self.now();
        let road = self
            .road(from, to)
            .unwrap_or_else(|| panic!("no link from node {from} to node {to}"));
        self.links[road].link.set(profile, now);
    }

    /// Counters of one direction.
    pub fn link(&self, from: usize, to: usize) -> LinkStats {
        let road = self
            .road(from, to)
            .unwrap_or_else(|| panic!("no link from node {from} to node {to}"));
        self.links[road].link.stats()
    }

    /// Datagrams sent to an address that no node has, or to which no link leads.
    pub fn unroutable(&self) -> u64 {
        self.unroutable
    }

    /// Delivers a datagram that nobody sent: a replay, garbage. It passes no link, and
    /// [`World::on_send`] does not see it.
    pub fn inject(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>, after: Duration) {
        self.fly(from, to, bytes, self.elapsed + after);
    }

    /// Shows every datagram to a closure as it is sent, before the link, to record, alter or drop
    /// it.
    pub fn on_send(
        &mut self,
        look: impl FnMut(SocketAddr, SocketAddr, &mut Vec<u8>) -> Verdict + 'static,
    ) {
        self.on_send = Some(Box::new(look));
    }

    /// Drains a node now, after something changed it from outside.
    pub fn kick(&mut self, i: usize) {
        self.drain(i);
    }

    /// The next event: one input to one node, then every poll of it. False when nothing will ever
    /// happen again.
    pub fn step(&mut self) -> bool {
        self.step_before(Duration::MAX)
    }

    /// Steps until `f` holds, at most `limit` of virtual time from now. Returns whether it held;
    /// the clock stands at the event that made it hold, or at the limit.
    pub fn run_until(&mut self, mut f: impl FnMut(&Self) -> bool, limit: Duration) -> bool {
        let end = self.elapsed + limit;
        loop {
            if f(self) {
                return true;
            }
            if !self.step_before(end) {
                self.elapsed = end;
                return f(self);
            }
        }
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(|_| false, time);
    }

    /// A hash of all events so far: times, nodes, sizes. The same seed gives the same value.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    fn step_before(&mut self, end: Duration) -> bool {
        if let Some(i) = self.places.iter().position(|place| place.dirty) {
            self.drain(i);
            return true;
        }
        let timer = self
            .places
            .iter()
            .enumerate()
            .filter_map(|(i, place)| Some((place.timeout?, i)))
            .min();
        let timer = timer.map(|(at, i)| {
            (
                at.saturating_duration_since(self.start).max(self.elapsed),
                i,
            )
        });
        let datagram = self.events.peek().map(|Reverse(event)| event.at);
        match (timer, datagram) {
            // Of the same time, the datagram goes first: it may make the timeout needless.
            (Some((at, i)), datagram) if datagram.is_none_or(|datagram| at < datagram) => {
                if at > end {
                    return false;
                }
                self.elapsed = at;
                self.fire(i);
                self.drain(i);
            }
            (_, Some(at)) if at <= end => {
                let Reverse(event) = self.events.pop().expect("it was peeked at");
                self.elapsed = at;
                self.land(event.slot);
            }
            _ => return false,
        }
        true
    }

    fn fire(&mut self, i: usize) {
        let now = self.now();
        self.note(1, i, 0);
        let millisecond = self.elapsed.as_millis();
        let (seed, elapsed) = (self.seed, self.elapsed);
        let place = &mut self.places[i];
        if place.timers.millisecond != millisecond {
            place.timers = Timers {
                millisecond,
                count: 0,
            };
        }
        place.timers.count += 1;
        assert!(
            place.timers.count <= TIMEOUTS_PER_MILLISECOND,
            "timer storm: node {i} wanted {TIMEOUTS_PER_MILLISECOND} timeouts within a millisecond, seed {seed}, at {elapsed:?}"
        );
        place.node.handle_timeout(now);
    }

    fn land(&mut self, slot: usize) {
        let now = self.now();
        let to = self.flying[slot].to;
        let length = self.flying[slot].bytes.len();
        self.note(2, to, length);
        let flying = &mut self.flying[slot];
        self.places[to]
            .node
            .handle_datagram(flying.from, &mut flying.bytes, now);
        self.free.push(slot);
        self.drain(to);
    }

    /// Every poll of a node: transmit until nothing is left, the application's turn, what that made
    /// it send, and the timeouts that are due.
    fn drain(&mut self, i: usize) {
        let now = self.now();
        self.places[i].dirty = false;
        let mut stuck = 0;
        let mut before = None;
        loop {
            let mut sent = self.transmit(i, now);
            self.places[i].node.drained(now);
            while self.transmit(i, now) {
                sent = true;
                self.places[i].node.drained(now);
            }
            let timeout = self.places[i].node.poll_timeout();
            self.places[i].timeout = timeout;
            if timeout.is_none_or(|timeout| timeout > now) {
                return;
            }
            stuck = if sent || timeout != before {
                0
            } else {
                stuck + 1
            };
            before = timeout;
            assert!(
                stuck < 2,
                "timer storm: node {i} asks for a timeout in the past again and again, seed {}, at {:?}",
                self.seed,
                self.elapsed
            );
            self.fire(i);
        }
    }

    /// All that a node wants to send now; whether it was anything.
    fn transmit(&mut self, i: usize, now: Instant) -> bool {
        let mut out = std::mem::take(&mut self.out);
        let mut any = false;
        loop {
            out.clear();
            let Some((to, segment)) = self.places[i].node.poll_transmit(&mut out, now) else {
                break;
            };
            assert!(
                segment > 0 && !out.is_empty(),
                "node {i} sends nothing to {to}, seed {}",
                self.seed
            );
            any = true;
            for datagram in out.chunks(segment) {
                self.send(i, to, datagram, now);
            }
        }
        self.out = out;
        any
    }

    fn send(&mut self, i: usize, address: SocketAddr, datagram: &[u8], now: Instant) {
        self.note(3, i, datagram.len());
        let from = self.places[i].address;
        let Some((to, road)) = self
            .find(address)
            .and_then(|to| Some((to, self.road(i, to)?)))
        else {
            self.unroutable += 1;
            return;
        };
        if self.on_send.is_none() {
            // The link first: what it drops is never copied.
            return self.carry(from, to, road, datagram, now);
        }
        let mut bytes = datagram.to_vec();
        let look = self.on_send.as_mut().expect("looked at just above");
        if look(from, address, &mut bytes) == Verdict::Keep {
            self.carry(from, to, road, &bytes, now);
        }
    }

    fn carry(&mut self, from: SocketAddr, to: usize, road: usize, datagram: &[u8], now: Instant) {
        let headers = if from.is_ipv4() {
            HEADERS_V4
        } else {
            HEADERS_V6
        };
        let length = datagram.len() + headers;
        let mut at = now;
        if let Some(bottleneck) = self.links[road].bottleneck {
            let Fate::Delivered(delivery) = self.bottlenecks[bottleneck].carry(length, now) else {
                return;
            };
            at = delivery.at;
        }
        let Fate::Delivered(delivery) = self.links[road].link.carry(length, at) else {
            return;
        };
        let first = self.copy(datagram);
        let slot = self.fly(from, to, first, delivery.at - self.start);
        if delivery.corrupt && !datagram.is_empty() {
            for _ in 0..self.dice.usize(1..=8) {
                let bit = self.dice.usize(0..datagram.len() * 8);
                self.flying[slot].bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        if let Some(again) = delivery.again {
            let second = self.copy(datagram);
            self.fly(from, to, second, again - self.start);
        }
    }

    /// A copy of a datagram, in a used buffer where there is one.
    fn copy(&mut self, datagram: &[u8]) -> Vec<u8> {
        let used = self
            .free
            .last()
            .map(|slot| std::mem::take(&mut self.flying[*slot].bytes));
        let mut bytes = used.unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(datagram);
        bytes
    }

    fn fly(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>, at: Duration) -> usize {
        let flying = Flying { from, to, bytes };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.flying[slot] = flying;
                slot
            }
            None => {
                self.flying.push(flying);
                self.flying.len() - 1
            }
        };
        self.order += 1;
        self.events.push(Reverse(Event {
            at,
            order: self.order,
            slot,
        }));
        slot
    }

    fn find(&self, address: SocketAddr) -> Option<usize> {
        self.places
            .iter()
            .position(|place| place.address == address)
    }

    fn road(&self, from: usize, to: usize) -> Option<usize> {
        self.links
            .iter()
            .position(|road| road.from == from && road.to == to)
    }

    /// Folds an event into the trace.
    fn note(&mut self, kind: u64, node: usize, length: usize) {
        let time = self.elapsed.as_nanos() as u64;
        for word in [time, kind << 56 | (node as u64) << 32 | length as u64] {
            self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
