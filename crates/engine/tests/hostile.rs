//! A peer with true keys that says anything, in worlds of their own: messages of all kinds in any
//! order, what was compressed and what only looks so, acknowledgements, segments and parity that no
//! mover would send. Nothing is given on that is not allowed, what is held stays below the budget
//! as the allocator counts it, messages cost few steps, and an honest peer beside it does not
//! notice.
//!
//! A failure prints the command that runs its seed again.
#![allow(unsafe_code, reason = "an allocator cannot be written without")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "counters of a test"
)]

#[path = "world/who.rs"]
#[allow(unreachable_pub)]
mod who;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::IoSlice,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tpo_engine::{
    Class, Delivery, Event, FlowId, FlowKey, Limits, PacketKey, Peer, Read, Source, Status,
    StreamKey,
    fuzzing::{Hostile, is_allowed, most_steps},
};
use tpo_lab::{Node, Profile, World};
use tpo_mover::Mover;
use who::{A, B, address, config};

struct Counting;

thread_local! {
    /// Bytes of this thread that live.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has lost its counter, and nobody asks for it.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What each peer has beside what is counted: tables of fixed size, and queues up to the size from
/// which on they are counted. Bytes.
const BESIDE: isize = 6 << 20;

/// What happens to the engine of a site that guards itself.
struct Victim {
    peer: Peer,
    dice: fastrand::Rng,
    /// Bytes that it holds, as the allocator counts them.
    live: isize,
    budget: usize,
    allowed: BTreeSet<FlowId>,
    /// Its own flows, and how much each may still send.
    own: BTreeMap<FlowId, u64>,
    /// Bytes that arrived in order in flows that were allowed.
    delivered: u64,
    datagrams: u64,
    opens_at: Instant,
    checks: u32,
    connected: bool,
}

struct Lines<'a>(&'a mut BTreeMap<FlowId, u64>);

impl Source for Lines<'_> {
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Read {
        match self.0.get_mut(&flow) {
            Some(0) => Read::End,
            Some(left) => {
                let n = (*left).min(into.len() as u64);
                into[..n as usize].fill(b'a' + (*left % 7) as u8);
                *left -= n;
                Read::Bytes(n as usize)
            }
            None => Read::Blocked,
        }
    }
}

impl Victim {
    /// `place`: where it is in the world, with its peer behind it.
    fn new((side, place): (usize, usize), seed: u64, limits: Limits, now: Instant) -> Victim {
        let before = LIVE.get();
        let mut config = config(side, seed, limits, side == A);
        config.mover.endpoint = (side == A).then(|| address(place + 1));
        config.mover.max_payload = tpo_mover::Limits::MAX_PAYLOAD;
        let peer = Peer::new(config, now);
        Victim {
            peer,
            dice: fastrand::Rng::with_seed(seed),
            live: LIVE.get() - before,
            budget: limits.peer_bytes,
            allowed: BTreeSet::new(),
            own: BTreeMap::new(),
            delivered: 0,
            datagrams: 0,
            opens_at: now,
            checks: 0,
            connected: false,
        }
    }

    /// Does something with the peer, and counts what it holds since.
    fn counted<T>(&mut self, act: impl FnOnce(&mut Victim) -> T) -> T {
        let before = LIVE.get();
        let result = act(self);
        self.live += LIVE.get() - before;
        result
    }

    fn turn(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            self.on_event(event, now);
        }
        let (allowed, datagrams) = (&self.allowed, &mut self.datagrams);
        self.peer.take_packets(|arrived| {
            let is_allowed = allowed.contains(&arrived.flow) && is_allowed(arrived.key);
            assert!(is_allowed || arrived.is_reply, "{arrived:?} is not allowed");
            *datagrams += 1;
        });
        while let Some(work) = self.peer.poll_work() {
            self.peer.on_worked(work.run());
        }
        if self.peer.is_connected() && now >= self.opens_at {
            self.opens_at = now + Duration::from_millis(self.dice.u64(1..60));
            let number = self.dice.u16(1..60_000);
            let (source, destination) =
                (([10, 9, 0, 1], number).into(), ([10, 9, 0, 2], 80).into());
            let key = StreamKey::new(source, destination).expect("both are IPv4");
            if let Ok(flow) = self.peer.open(key, Class::Normal, now) {
                self.own.insert(flow, self.dice.u64(0..200_000));
                self.peer.readable(flow, now);
            }
            let key = PacketKey::new(17, source, destination).expect("both are IPv4");
            // Lost or not, as datagrams are.
            let _ = self
                .peer
                .send_packet(&key, (Class::Normal, Delivery::Timely), &[7; 200], now);
        }
        self.check();
    }

    /// The peer opens a flow: nothing of it is given before it is accepted.
    fn asked(&mut self, flow: FlowId, key: &FlowKey, now: Instant) {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        self.peer.deliverable(flow, &mut slices);
        assert!(
            slices.is_empty(),
            "{flow} gives something before it is accepted"
        );
        if is_allowed(key) {
            self.allowed.insert(flow);
            self.peer.accept(flow, now);
            if self.dice.bool() {
                self.own.insert(flow, self.dice.u64(0..20_000));
                self.peer.readable(flow, now);
            }
        } else {
            self.peer.reset(flow, Status::NotAllowed, now);
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Open { flow, key, .. } => self.asked(flow, &key, now),
            Event::PacketFlow { flow, key, .. } => self.asked(flow, &key, now),
            Event::Deliver { flow } => {
                assert!(
                    self.allowed.contains(&flow) || self.own.contains_key(&flow),
                    "{flow} is not allowed"
                );
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                self.peer.deliverable(flow, &mut slices);
                let all: usize = slices.iter().map(|slice| slice.len()).sum();
                // Every third reader has stopped.
                if flow.0 % 3 > 0 {
                    self.delivered += all as u64;
                    self.peer.delivered(flow, all, now);
                }
            }
            Event::Reset { flow, .. } | Event::Closed { flow } => {
                self.allowed.remove(&flow);
                self.own.remove(&flow);
            }
            Event::Connected { .. } => self.connected = true,
            Event::Silent
            | Event::Heard
            | Event::Dead
            | Event::Finish { .. }
            | Event::Accepted { .. } => {}
        }
    }

    fn check(&mut self) {
        let memory = self.peer.memory();
        let most = self.budget + self.budget / 10;
        assert!(
            self.live <= memory as isize + BESIDE,
            "{} bytes live, and {memory} are counted",
            self.live
        );
        // What movers hold in any case is more than the smallest budgets of these worlds leave.
        assert!(
            memory <= most + (10 << 20),
            "{memory} bytes are held, the budget is {}",
            self.budget
        );
        self.checks += 1;
        if self.checks.is_multiple_of(64) {
            self.peer.check_invariants();
            let stats = self.peer.stats();
            let counters = stats.counters;
            assert!(
                counters.walked <= most_steps(&counters),
                "too many steps: {counters:?}"
            );
            let bytes = stats.mover.counters.path.bytes_received;
            // What was rebuilt came in fewer bytes.
            assert!(
                counters.traffic.messages_in <= 2 * bytes,
                "{bytes} bytes became {} messages",
                counters.traffic.messages_in
            );
            assert!(
                stats.mover.counters.receiver.walked <= 128 * bytes + 100_000,
                "{} steps for {bytes} bytes",
                stats.mover.counters.receiver.walked
            );
        }
    }
}

/// A mover behind true keys whose owner says anything.
struct Bad {
    mover: Mover,
    says: Hostile,
    dice: fastrand::Rng,
    /// What it does: from time to time, how often.
    every: Duration,
    next: Instant,
    forges: bool,
    /// Datagrams of the other side that it does not want to have got, of 256.
    deaf: u8,
    forged: Vec<(SocketAddr, Vec<u8>)>,
    said: u64,
}

impl Bad {
    fn new(side: usize, seed: u64, now: Instant) -> Bad {
        let mut config = config(side, seed, Limits::default(), false).mover;
        config.max_payload = tpo_mover::Limits::MAX_PAYLOAD;
        let higher = config.identity.public_key() > config.peer_key;
        let mut dice = fastrand::Rng::with_seed(seed ^ 0xbad);
        Bad {
            mover: Mover::new(config, now),
            says: Hostile::new(higher),
            every: Duration::from_millis([1, 2, 10][dice.usize(0..3)]),
            next: now,
            forges: dice.u8(0..3) == 0,
            deaf: [0, 0, 40, 250][dice.usize(0..4)],
            forged: Vec::new(),
            said: 0,
            dice,
        }
    }

    fn act(&mut self, now: Instant) {
        while self.mover.poll_event().is_some() {}
        while self.mover.poll_payload().is_some() {}
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        let dice = &mut self.dice;
        let mut throw = |most: u32| dice.u32(0..most.max(1));
        if self.forges && throw(3) == 0 {
            self.forged
                .extend(tpo_mover::fuzzing::forge(&mut self.mover, &mut throw, now));
        }
        if self.mover.poll_budget(now) > 0 {
            let payload = self.says.payload(200 << 10, &mut throw);
            self.said += u64::from(self.mover.send(payload, throw(2) == 0, now).is_ok());
        }
    }
}

#[allow(clippy::large_enum_variant, reason = "there are four of them")]
enum Site {
    Victim(Victim),
    Bad(Bad),
}

impl Node for Site {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) {
        match self {
            Site::Victim(victim) => {
                victim.counted(|victim| victim.peer.handle_datagram(from, datagram, now));
            }
            Site::Bad(bad) => {
                // The handshake it does like others.
                let is_session = datagram.first().is_some_and(|first| *first >= 0x40);
                if !is_session || bad.dice.u8(..) >= bad.deaf {
                    bad.mover.handle_datagram(from, datagram, now);
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Site::Victim(victim) => victim.counted(|victim| victim.peer.handle_timeout(now)),
            Site::Bad(bad) => bad.mover.handle_timeout(now),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Site::Victim(victim) => {
                let opens = victim.peer.is_connected().then_some(victim.opens_at);
                victim.peer.poll_timeout().into_iter().chain(opens).min()
            }
            Site::Bad(bad) => bad
                .mover
                .poll_timeout()
                .map(|(at, _)| at)
                .into_iter()
                .chain([bad.next])
                .min(),
        }
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        match self {
            Site::Victim(victim) => {
                // The batch is the world's.
                out.reserve(70_000);
                let transmit = victim.counted(|victim| {
                    victim
                        .peer
                        .poll_transmit(&mut Lines(&mut victim.own), out, now)
                })?;
                Some((transmit.to, transmit.segment_size))
            }
            Site::Bad(bad) => {
                if let Some((to, datagram)) = bad.forged.pop() {
                    out.extend_from_slice(&datagram);
                    return Some((to, datagram.len()));
                }
                let transmit = bad.mover.poll_transmit(out, now)?;
                Some((transmit.to, transmit.segment_size))
            }
        }
    }

    fn drained(&mut self, now: Instant) {
        match self {
            Site::Victim(victim) => victim.counted(|victim| victim.turn(now)),
            Site::Bad(bad) => bad.act(now),
        }
    }
}

fn victim(world: &World<Site>, place: usize) -> &Victim {
    match world.node(place) {
        Site::Victim(victim) => victim,
        Site::Bad(_) => panic!("that is the bad one"),
    }
}

/// Places in the world: the bad one, whose victim is before it, and two who know nothing of it.
const BAD: usize = 1;
const HONEST: usize = 2;

/// What came of all seeds: so that a world in which nothing happens is noticed.
#[derive(Default, Debug)]
struct Seen {
    said: u64,
    delivered: u64,
    datagrams: u64,
    refused: u64,
    breaches: u64,
    out_of_memory: u64,
    malformed: u64,
    most: usize,
}

fn run(seed: u64, seen: &mut Seen) {
    let dice = &mut fastrand::Rng::with_seed(seed);
    let mut world = World::new(seed);
    let now = world.now();
    let budget = [4 << 20, 6 << 20, 16 << 20, 64 << 20][dice.usize(0..4)];
    let limits = Limits {
        peer_bytes: budget,
        flows: 10_000,
        packet_flows: 3_000,
        ..Limits::default()
    };
    world.add(
        address(BAD - 1),
        Site::Victim(Victim::new((A, BAD - 1), seed, limits, now)),
    );
    world.add(address(BAD), Site::Bad(Bad::new(B, seed, now)));
    let link: Profile = "rate=100mbit delay=5ms mtu=0".parse().expect("a link");
    world.connect(BAD - 1, BAD, link.clone(), link.clone());
    let beside = seed.is_multiple_of(4);
    if beside {
        for (side, place) in [(A, HONEST), (B, HONEST + 1)] {
            world.add(
                address(place),
                Site::Victim(Victim::new((side, place), seed, limits, now)),
            );
        }
        world.connect(HONEST, HONEST + 1, link.clone(), link);
    }
    // They meet before anything is lost.
    world.run_for(Duration::from_millis(60));
    let link: Profile = "rate=100mbit delay=5ms loss=0.5% mtu=0"
        .parse()
        .expect("a link");
    for (from, to) in [(BAD - 1, BAD), (BAD, BAD - 1)] {
        world.set(from, to, link.clone());
    }
    world.run_for(Duration::from_millis(dice.u64(200..600)));
    let Site::Bad(bad) = world.node(BAD) else {
        panic!("it was added as such")
    };
    seen.said += bad.said;
    for place in [HONEST, HONEST + 1].into_iter().filter(|_| beside) {
        let honest = victim(&world, place);
        let counters = honest.peer.stats().counters;
        assert!(
            honest.delivered > 0 && honest.datagrams > 0,
            "nothing goes on beside it: {counters:?}"
        );
        assert_eq!(
            (
                counters.breaches.total(),
                counters.malformed.total(),
                counters.flows.out_of_memory,
                counters.flows.lost
            ),
            (0, 0, 0, 0)
        );
        honest.peer.check_invariants();
    }
    let victim = victim(&world, BAD - 1);
    assert!(victim.connected, "there was never a session");
    victim.peer.check_invariants();
    let stats = victim.peer.stats();
    seen.delivered += victim.delivered;
    seen.datagrams += victim.datagrams;
    seen.refused += stats.counters.flows.refused;
    seen.breaches += stats.counters.breaches.total();
    seen.out_of_memory += stats.counters.flows.out_of_memory;
    seen.malformed +=
        stats.counters.malformed.total() + stats.mover.counters.drops.breaches.of_subfields();
    seen.most = seen.most.max(victim.peer.memory());
}

/// Some twenty seconds of one core.
const SEEDS: u64 = 1_000;

#[test]
fn a_peer_may_say_anything() {
    let mut seen = Seen::default();
    tpo_lab::seeds(
        "tpo-engine::hostile::a_peer_may_say_anything",
        SEEDS,
        |seed| {
            run(seed, &mut seen);
        },
    );
    if tpo_lab::one_seed().is_some() || tpo_lab::only_a_part() {
        return;
    }
    println!("{seen:?}");
    assert!(
        seen.said > 1_000 && seen.delivered > 0 && seen.datagrams > 0,
        "nothing happened: {seen:?}"
    );
    assert!(
        seen.breaches > 0 && seen.malformed > 0,
        "nothing bad was said: {seen:?}"
    );
    assert!(
        seen.out_of_memory > 0 && seen.refused > 0,
        "memory was never short: {seen:?}"
    );
}
