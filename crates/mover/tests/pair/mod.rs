//! Two movers in a deterministic world: the stage that all world tests of this crate share.
//!
//! Each node is a mover with an application that writes payloads when it may and notes what it
//! reads. Every payload names its sender, its instance and its number, and the rest of its bytes
//! follow from these: so the reader knows what is wrong with it without the sender's help.

// Each test file uses its own part of the stage.
#![allow(dead_code)]

pub(crate) mod reach;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tpo_lab::{Node, Profile, World};
use tpo_mover::{Config, Event, Identity, Mover, PublicKey, Stats};

/// Bytes of a payload's name: side, instance, number.
const NAME: usize = 1 + 4 + 8;

/// What an application does.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Payloads to send.
    pub(crate) payloads: u64,
    /// Their sizes, uniformly.
    pub(crate) sizes: std::ops::RangeInclusive<usize>,
    /// Share of urgent ones in percent.
    pub(crate) urgent: u8,
    /// One payload per so much time instead of as many as the mover takes.
    pub(crate) every: Option<Duration>,
    /// Rounded to fill datagrams.
    pub(crate) whole_datagrams: bool,
    /// Beside the rest: a message of so many urgent payloads, one datagram each, per so much time.
    pub(crate) messages: Option<(usize, Duration)>,
    /// Streams that all this is said to belong to.
    pub(crate) flows: usize,
}

impl Default for Task {
    fn default() -> Task {
        Task {
            payloads: 0,
            sizes: 13..=20_000,
            urgent: 10,
            every: None,
            whole_datagrams: false,
            messages: None,
            flows: 1,
        }
    }
}

impl Task {
    /// As much as the mover takes, in buffers of whole datagrams.
    pub(crate) fn bulk() -> Task {
        Task {
            payloads: u64::MAX,
            sizes: 65_000..=65_536,
            urgent: 0,
            whole_datagrams: true,
            ..Task::default()
        }
    }

    pub(crate) fn payloads(payloads: u64) -> Task {
        Task {
            payloads,
            ..Task::default()
        }
    }
}

/// One side.
pub(crate) struct Side {
    pub(crate) mover: Mover,
    side: u8,
    run: u32,
    dice: fastrand::Rng,
    task: Task,
    pub(crate) sent: u64,
    next_at: Option<Instant>,
    next_message_at: Option<Instant>,
    /// When each message was sent, and the numbers of its payloads.
    pub(crate) messages: Vec<(Instant, std::ops::Range<u64>)>,
    /// When each payload of the peer's messages came, while there are such.
    pub(crate) came_at: BTreeMap<u64, Instant>,
    /// Numbers received, of each run of the peer.
    pub(crate) received: BTreeMap<u32, Vec<bool>>,
    pub(crate) received_count: u64,
    pub(crate) received_bytes: u64,
    pub(crate) events: Vec<Event>,
    /// Nothing is written any more.
    pub(crate) stopped: bool,
    calls: u64,
    /// Notes when each payload came.
    pub(crate) logs: bool,
    /// Buffers go back to the mover after reading.
    pub(crate) recycles: bool,
    /// The most unsent payload bytes seen after an event.
    pub(crate) backlog_max: u64,
    /// Bytes per second that may leave, and the burst beside it.
    rate: Option<(f64, f64)>,
    bucket: f64,
    bucket_at: Instant,
}

impl Side {
    fn write(&mut self, now: Instant) {
        self.mover.set_stream_count(self.task.flows, now);
        self.write_message(now);
        let mut turns = 0;
        while !self.stopped && self.sent < self.task.payloads && self.mover.is_up() {
            if let Some(every) = self.task.every {
                let next = *self.next_at.get_or_insert(now);
                if now < next {
                    return;
                }
                self.next_at = Some(next + every);
            }
            let budget = self.mover.poll_budget(now);
            if budget == 0 && self.task.every.is_none() {
                return;
            }
            let mut size = self.dice.usize(self.task.sizes.clone());
            if self.task.whole_datagrams {
                let segment = self.mover.segment_payload();
                size = size.min(budget.max(segment)) / segment * segment;
                size = size.max(segment);
            }
            let mut payload = self.mover.take_buffer();
            fill(&mut payload, size.max(NAME), self.side, self.run, self.sent);
            let urgent = self.dice.u8(0..100) < self.task.urgent;
            match self.mover.send(payload, urgent, now) {
                Ok(()) => self.sent += 1,
                Err(payload) => {
                    self.mover.return_buffer(payload);
                    return;
                }
            }
            turns += 1;
            assert!(turns < 100_000, "the budget never ends");
        }
    }

    fn write_message(&mut self, now: Instant) {
        let Some((payloads, every)) = self
            .task
            .messages
            .filter(|_| !self.stopped && self.mover.is_up())
        else {
            return;
        };
        // The first one waits until the path is known.
        let due = *self.next_message_at.get_or_insert(now + secs(3.0));
        if now < due {
            return;
        }
        self.next_message_at = Some(due + every + every.mul_f64(0.2 * self.dice.f64()));
        let first = self.sent;
        for _ in 0..payloads {
            let mut payload = self.mover.take_buffer();
            fill(
                &mut payload,
                self.mover.urgent_payload(),
                self.side,
                self.run,
                self.sent,
            );
            self.mover
                .send(payload, true, now)
                .expect("there is room for a message");
            self.sent += 1;
        }
        self.messages.push((now, first..self.sent));
    }

    /// With a configured rate, what leaves in any time stays below rate times time and a burst.
    fn check_rate(&mut self, wire: usize, now: Instant) {
        let Some((rate, burst)) = self.rate else {
            return;
        };
        let earned = (now - self.bucket_at).as_secs_f64() * rate;
        self.bucket = (self.bucket - earned).max(0.0) + wire as f64;
        self.bucket_at = now;
        assert!(
            self.bucket <= burst,
            "{} bytes above the rate, {burst} are allowed",
            self.bucket
        );
    }

    fn read(&mut self, now: Instant) {
        while let Some(payload) = self.mover.poll_payload() {
            let (side, run, number) = name(&payload);
            assert_ne!(side, self.side, "our own payload came back");
            check(&payload, side, run, number);
            let numbers = self.received.entry(run).or_default();
            let at = usize::try_from(number).unwrap();
            if numbers.len() <= at {
                numbers.resize(at + 1, false);
            }
            assert!(
                !std::mem::replace(&mut numbers[at], true),
                "payload {number} of run {run} came twice"
            );
            if self.logs {
                self.came_at.insert(number, now);
            }
            self.received_count += 1;
            self.received_bytes += payload.len() as u64;
            if self.recycles {
                self.mover.recycle(payload);
            }
        }
    }

    /// Everything of this run of the peer, without gaps.
    pub(crate) fn has_all(&self, run: u32, payloads: u64) -> bool {
        payloads == 0
            || self.received.get(&run).is_some_and(|numbers| {
                numbers.len() as u64 == payloads && numbers.iter().all(|received| *received)
            })
    }

    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    pub(crate) fn set_task(&mut self, task: Task) {
        self.task = Task {
            payloads: self.sent + task.payloads,
            ..task
        };
        (self.next_at, self.next_message_at) = (None, None);
    }
}

impl Node for Side {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) {
        self.mover.handle_datagram(from, datagram, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.mover.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let mover = self.mover.poll_timeout().map(|(at, _)| at);
        let own = self
            .next_at
            .filter(|_| !self.stopped && self.sent < self.task.payloads && self.mover.is_up());
        let message = self.next_message_at.filter(|_| !self.stopped);
        mover.into_iter().chain(own).chain(message).min()
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        let transmit = self.mover.poll_transmit(out, now)?;
        let datagrams = out.len().div_ceil(transmit.segment_size);
        assert!(out.len() <= 64_000 && datagrams <= 64, "a batch too large");
        self.check_rate(out.len() + datagrams * 48, now);
        Some((transmit.to, transmit.segment_size))
    }

    fn drained(&mut self, now: Instant) {
        while let Some(event) = self.mover.poll_event() {
            if event == Event::Restarted {
                // What was on its way is lost, and the application knows: it begins again, under
                // another name.
                self.run += 1_000;
                self.sent = 0;
            }
            self.events.push(event);
        }
        self.read(now);
        self.write(now);
        self.mover.check_invariants();
        self.calls += 1;
        if self.calls.is_multiple_of(256) {
            self.mover.check_sums();
        }
        if self.task.every.is_none() {
            self.backlog_max = self
                .backlog_max
                .max(self.mover.stats().gauges.sender.unsent_bytes);
        }
    }
}

fn fill(payload: &mut Vec<u8>, size: usize, side: u8, run: u32, number: u64) {
    payload.clear();
    payload.push(side);
    payload.extend_from_slice(&run.to_be_bytes());
    payload.extend_from_slice(&number.to_be_bytes());
    let mut word = start(side, run, number);
    while payload.len() < size {
        word = next(word);
        let bytes = word.to_le_bytes();
        payload.extend_from_slice(&bytes[..bytes.len().min(size - payload.len())]);
    }
}

fn start(side: u8, run: u32, number: u64) -> u64 {
    (u64::from(side) << 56 | u64::from(run) << 40) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn next(word: u64) -> u64 {
    word.wrapping_mul(0xd129_42f0_5a3c_6b87)
        .rotate_left(23)
        .wrapping_add(0x1234_5678_9abc_def1)
}

fn name(payload: &[u8]) -> (u8, u32, u64) {
    assert!(
        payload.len() >= NAME,
        "a payload of {} bytes",
        payload.len()
    );
    let run = u32::from_be_bytes(payload[1..5].try_into().unwrap());
    (
        payload[0],
        run,
        u64::from_be_bytes(payload[5..13].try_into().unwrap()),
    )
}

fn check(payload: &[u8], side: u8, run: u32, number: u64) {
    let mut word = start(side, run, number);
    for (at, chunk) in payload[NAME..].chunks(8).enumerate() {
        word = next(word);
        assert!(
            chunk == &word.to_le_bytes()[..chunk.len()],
            "payload {number} of run {run} differs at {}",
            NAME + at * 8
        );
    }
}

/// What a test changes in the configuration of a side.
pub(crate) type Change = Box<dyn Fn(&mut Config, usize)>;

/// How a pair is made.
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) a_to_b: Profile,
    pub(crate) b_to_a: Profile,
    pub(crate) a: Task,
    pub(crate) b: Task,
    /// Changes both configurations.
    pub(crate) change: Change,
    pub(crate) v6: bool,
    /// Who knows the other's address.
    pub(crate) calls: [bool; 2],
    /// Tells pairs of one world apart: a part of their addresses.
    pub(crate) net: u8,
}

impl Setup {
    pub(crate) fn new(seed: u64, link: &str) -> Setup {
        Setup {
            seed,
            a_to_b: profile(link),
            b_to_a: profile(link),
            a: Task::default(),
            b: Task::default(),
            change: Box::new(|_, _| ()),
            v6: false,
            calls: [true, false],
            net: 0,
        }
    }
}

pub(crate) fn profile(text: &str) -> Profile {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Two movers and what is needed to make them again.
pub(crate) struct Pair {
    pub(crate) world: World<Side>,
    setup: Setup,
    keys: [(Arc<Identity>, PublicKey); 2],
    addresses: [SocketAddr; 2],
    runs: u32,
}

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

impl Pair {
    pub(crate) fn new(setup: Setup) -> Pair {
        let keys = [0, 1].map(|side| {
            let identity = Arc::new(identity(side));
            let public = identity.public_key();
            (identity, public)
        });
        let addresses = [1, 2].map(|host| {
            if setup.v6 {
                format!("[fd00::{host}]:47800")
            } else {
                format!("10.0.{}.{host}:47800", setup.net)
            }
            .parse()
            .unwrap()
        });
        let world = World::new(setup.seed);
        let mut pair = Pair {
            world,
            setup,
            keys,
            addresses,
            runs: 0,
        };
        for side in [A, B] {
            let task = if side == A {
                pair.setup.a.clone()
            } else {
                pair.setup.b.clone()
            };
            let node = pair.make(side, task, pair.world.now());
            pair.world.add(addresses[side], node);
        }
        let (forth, back) = (pair.setup.a_to_b.clone(), pair.setup.b_to_a.clone());
        pair.world.connect(A, B, forth, back);
        pair
    }

    /// Two more sides in a world that they share with others: A's bulk, which is stopped at first,
    /// passes the bottleneck on its way to B. Their numbers there.
    pub(crate) fn join(setup: Setup, world: &mut World<Side>, bottleneck: usize) -> [usize; 2] {
        let mut pair = Pair::new(setup);
        let now = world.now();
        let (mut a, b) = (
            pair.make(A, Task::bulk(), now),
            pair.make(B, Task::default(), now),
        );
        a.stopped = true;
        let (a, b) = (world.add(pair.address(A), a), world.add(pair.address(B), b));
        world.connect(a, b, pair.setup.a_to_b.clone(), pair.setup.b_to_a.clone());
        world.lead_through(a, b, bottleneck);
        [a, b]
    }

    pub(crate) fn address(&self, side: usize) -> SocketAddr {
        self.addresses[side]
    }

    pub(crate) fn make(&mut self, side: usize, task: Task, now: Instant) -> Side {
        self.runs += 1;
        // Each start of each side has chances of its own: tunnels that share a bottleneck would
        // move in step otherwise.
        let mut dice = fastrand::Rng::with_seed(
            self.setup.seed ^ u64::from(self.runs) << 32 ^ (side as u64) << 56,
        );
        let mut seed = [0; 32];
        dice.fill(&mut seed);
        let mut config = Config::new(
            self.keys[side].0.clone(),
            self.keys[1 - side].1,
            5 + side as u16,
            seed,
        );
        config.endpoint = self.setup.calls[side].then_some(self.addresses[1 - side]);
        (self.setup.change)(&mut config, side);
        // Beside the data: acknowledgements have two percent of their own; two batches, probes of
        // the path's size and after a silence, handshakes.
        let rate = config.rate.map(|rate| {
            (
                rate as f64 * 1.03,
                40_000.0 + 3.0 * (rate as f64 / 1_000.0).min(64_000.0),
            )
        });
        let dice = fastrand::Rng::with_seed(self.setup.seed ^ u64::from(self.runs) << 32);
        Side {
            mover: Mover::new(config, now),
            side: side as u8,
            run: self.runs,
            dice,
            task,
            sent: 0,
            next_at: None,
            next_message_at: None,
            messages: Vec::new(),
            came_at: BTreeMap::new(),
            logs: false,
            received: BTreeMap::new(),
            received_count: 0,
            received_bytes: 0,
            events: Vec::new(),
            stopped: false,
            calls: 0,
            recycles: self.runs.is_multiple_of(2),
            backlog_max: 0,
            rate,
            bucket: 0.0,
            bucket_at: now,
        }
    }

    /// Replaces a side by a new instance with a new task.
    pub(crate) fn restart(&mut self, side: usize, task: Task) -> Side {
        let node = self.make(side, task, self.world.now());
        self.world.replace(side, node)
    }

    pub(crate) fn side(&self, side: usize) -> &Side {
        self.world.node(side)
    }

    pub(crate) fn stats(&self, side: usize) -> Stats {
        self.world.node(side).mover.stats()
    }

    /// Runs until both are up.
    pub(crate) fn connect(&mut self) {
        let up = self.world.run_until(
            |world| [A, B].iter().all(|side| world.node(*side).mover.is_up()),
            secs(60.0),
        );
        assert!(
            up,
            "seed {}: not connected after {:?}",
            self.setup.seed,
            self.world.elapsed()
        );
    }

    /// Runs until everything that both were told to send has come to the other.
    pub(crate) fn finish(&mut self, limit: Duration) {
        let done = self.world.run_until(all_came, limit);
        let state = [A, B].map(|side| {
            let side = self.side(side);
            (
                side.sent,
                side.received_count,
                side.mover.is_up(),
                side.mover.stats(),
            )
        });
        assert!(
            done,
            "seed {}: not done after {:?}: {state:#?}",
            self.setup.seed,
            self.world.elapsed()
        );
    }

    /// The network heals, and a while later nothing is left of it all: memory is back at its
    /// baseline.
    pub(crate) fn rest(&mut self) {
        for (from, to) in [(A, B), (B, A)] {
            self.world.set(from, to, profile("delay=10ms mtu=1500"));
        }
        let quiet = self.world.run_until(
            |world| {
                [A, B].iter().all(|side| {
                    let stats = world.node(*side).mover.stats();
                    stats.gauges.sender.unacked_bytes == 0 && stats.gauges.sender.unsent_bytes == 0
                })
            },
            secs(30.0),
        );
        assert!(
            quiet,
            "seed {}: still unacknowledged: {:#?} {:#?}",
            self.setup.seed,
            self.stats(A),
            self.stats(B)
        );
        self.world.run_for(secs(5.0));
        for side in [A, B] {
            let stats = self.stats(side);
            let seed = self.setup.seed;
            assert_eq!(
                (
                    stats.gauges.sender.unacked_bytes,
                    stats.gauges.sender.unacked_payloads
                ),
                (0, 0),
                "seed {seed}: {stats:?}"
            );
            assert_eq!(
                (
                    stats.gauges.sender.unsent_bytes,
                    stats.gauges.receiver.reassembly_bytes
                ),
                (0, 0),
                "seed {seed}: {stats:?}"
            );
            assert!(
                stats.gauges.sender.flight_datagrams < 200,
                "seed {seed}: {stats:?}"
            );
            assert_eq!(
                stats.counters.drops.breaches.of_subfields(),
                0,
                "seed {seed}: {stats:?}"
            );
            assert_eq!(stats.counters.events_lost, 0);
            self.world.node(side).mover.check_sums();
        }
    }

    /// Both sides' counts of payloads agree.
    pub(crate) fn agree(&self) {
        if [A, B]
            .iter()
            .any(|side| self.side(*side).events.contains(&Event::Restarted))
        {
            return;
        }
        for (from, to) in [(A, B), (B, A)] {
            let (sent, received) = (self.stats(from), self.stats(to));
            assert_eq!(
                sent.counters.sender.payloads, received.counters.receiver.payloads,
                "seed {}",
                self.setup.seed
            );
            assert_eq!(
                sent.counters.sender.payload_bytes, received.counters.receiver.payload_bytes,
                "seed {}",
                self.setup.seed
            );
        }
    }
}

fn all_came(world: &World<Side>) -> bool {
    // The counts first: they are cheap, and this is asked after every event.
    [(A, B), (B, A)].iter().all(|(from, to)| {
        let (from, to) = (world.node(*from), world.node(*to));
        to.received_count >= from.task.payloads && to.has_all(from.run, from.task.payloads)
    })
}

fn identity(side: u8) -> Identity {
    // Any 32 bytes are a private key; in base64 these are 43 letters and the padding.
    let text: String = (0..42)
        .map(|at| char::from(b'A' + ((at * 7 + u32::from(side) * 11) % 26) as u8))
        .collect();
    Identity::from_private_text(&format!("{text}A=")).expect("32 bytes in base64")
}

pub(crate) fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Runs a scenario for many seeds: see [`tpo_lab::seeds`].
pub(crate) fn seeds(file: &str, test: &str, count: u64, scenario: impl Fn(u64)) {
    tpo_lab::seeds(&format!("tpo-mover::{file}::{test}"), count, scenario);
}
