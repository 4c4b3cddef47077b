//! Two sites in a world: a peer, its applications, and the WAN between them.

use std::{
    io::IoSlice,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tpo_engine::{Class, Compress, Event, FlowId, Limits, OpenError, Peer, Status, StreamKey};
use tpo_lab::{Node, Profile, World};

use crate::apps::{Apps, End, Engine, Plan, Script, check_ends};

pub use crate::who::{A, B};
use crate::who::{address, config};

/// Runs a scenario for many seeds: see [`tpo_lab::seeds`].
pub fn seeds(test: &str, count: u64, scenario: impl Fn(u64)) {
    tpo_lab::seeds(&format!("tpo-engine::world::{test}"), count, scenario);
}

/// What a world is made of.
pub struct Setup {
    pub seed: u64,
    pub wan: [Profile; 2],
    /// Both sides know where the other is; else only the first does.
    pub both_call: bool,
    pub limits: Limits,
    /// Whether buffers are compressed.
    pub compresses: bool,
}

impl Setup {
    pub fn new(seed: u64) -> Setup {
        let wan = [Profile::default(), Profile::default()];
        Setup {
            seed,
            wan,
            both_call: false,
            limits: Limits::default(),
            compresses: true,
        }
    }
}

/// Any bad link: slow or fast, near or far, with every kind of trouble now and then.
pub fn random_wan(random: &mut fastrand::Rng) -> Profile {
    let mut some = |most: f64| {
        if random.u8(0..3) == 0 {
            random.f64() * most
        } else {
            0.0
        }
    };
    let (loss, reorder, duplicate, corrupt, jitter) =
        (some(0.15), some(0.1), some(0.1), some(0.03), some(20.0));
    Profile {
        rate: Some([2_000_000, 10_000_000, 100_000_000][random.usize(0..3)]),
        delay: Duration::from_millis(random.u64(0..120)),
        jitter: Duration::from_secs_f64(jitter / 1000.0),
        mtu: [0, 1500, 1400, 1300][random.usize(0..4)],
        burst: if random.bool() {
            1.0
        } else {
            random.f64() * 8.0
        },
        loss,
        reorder,
        duplicate,
        corrupt,
        ..Profile::default()
    }
}

/// A peer with its applications.
pub struct Site {
    peer: Peer,
    pub apps: Apps,
    now: Instant,
}

impl Engine for Peer {
    fn open(&mut self, key: StreamKey, class: Class, now: Instant) -> Result<FlowId, OpenError> {
        self.open(key, class, now)
    }
    fn accept(&mut self, flow: FlowId, now: Instant) {
        self.accept(flow, now);
    }
    fn readable(&mut self, flow: FlowId, now: Instant) {
        self.readable(flow, now);
    }
    fn reset(&mut self, flow: FlowId, status: Status, now: Instant) {
        self.reset(flow, status, now);
    }
    fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        self.deliverable(flow, slices);
    }
    fn delivered(&mut self, flow: FlowId, n: usize, now: Instant) {
        self.delivered(flow, n, now);
    }
    fn poll_event(&mut self) -> Option<Event> {
        self.poll_event()
    }
}

impl Node for Site {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) {
        self.peer.handle_datagram(from, datagram, now);
        self.peer.check_invariants();
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.peer.poll_timeout().is_some_and(|at| at <= now) {
            self.peer.handle_timeout(now);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.peer
            .poll_timeout()
            .into_iter()
            .chain(self.apps.next_turn(self.peer.is_connected(), self.now))
            .min()
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        let transmit = self
            .peer
            .poll_transmit(&mut self.apps.source(now), out, now);
        while let Some(work) = self.peer.poll_work() {
            self.peer.on_worked(work.run());
        }
        let transmit = transmit?;
        Some((transmit.to, transmit.segment_size))
    }

    fn drained(&mut self, now: Instant) {
        self.now = now;
        let up = self.peer.is_connected();
        self.apps.turn(&mut self.peer, up, now);
        self.peer.check_invariants();
    }
}

/// Two sites and the WAN between them.
pub struct Pair {
    pub world: World<Site>,
    setup: Setup,
    numbers: [usize; 2],
    scripts: [Vec<Script>; 2],
}

impl Pair {
    pub fn new(setup: Setup, scripts: [Vec<Script>; 2]) -> Pair {
        let mut world = World::new(setup.seed);
        let now = world.now();
        for side in [A, B] {
            let apps = Apps::new(
                side as u8,
                scripts[side].clone(),
                scripts[1 - side].clone(),
                now,
            );
            world.add(address(side), site(&setup, side, setup.seed, apps, now));
        }
        let [there, back] = setup.wan.clone();
        world.connect(A, B, there, back);
        Pair {
            world,
            setup,
            numbers: [scripts[0].len(), scripts[1].len()],
            scripts,
        }
    }

    pub fn apps(&self, side: usize) -> &Apps {
        &self.world.node(side).apps
    }

    pub fn peer(&self, side: usize) -> &Peer {
        &self.world.node(side).peer
    }

    /// How a flow went, as one side saw it: by the side that opened it and its number.
    pub fn end(&self, side: usize, (opener, number): (u8, usize)) -> &End {
        self.apps(side).end(opener, number)
    }

    /// Sessions with a new instance that a side has had.
    pub fn sessions(&self, side: usize) -> usize {
        self.apps(side)
            .peer_events
            .iter()
            .filter(|event| **event == Event::Connected { fresh: true })
            .count()
    }

    pub fn run_until(&mut self, f: impl Fn(&Pair) -> bool, limit: Duration) -> bool {
        let end = self.world.elapsed() + limit;
        while !f(self) {
            if self.world.elapsed() >= end {
                return false;
            }
            let step = (end - self.world.elapsed()).min(Duration::from_millis(50));
            self.world.run_for(step);
        }
        true
    }

    /// Until every application has ended and nothing is left anywhere; then every end must be as
    /// the model says.
    pub fn run_to_the_end(&mut self, limit: Duration) {
        let quiet = |pair: &Pair| {
            [A, B].iter().all(|side| {
                let stats = pair.peer(*side).stats();
                pair.apps(*side).alive() == 0
                    && stats.flows == 0
                    && stats.mover.gauges.sender.unacked_payloads == 0
            })
        };
        let over = self.run_until(quiet, limit);
        check_ends(self.apps(A), self.apps(B));
        for side in [A, B] {
            let stats = self.peer(side).stats();
            assert!(
                over,
                "side {side} has {} applications and {} flows left: {stats:?}",
                self.apps(side).alive(),
                stats.flows
            );
            assert_eq!(
                (stats.held_bytes, stats.ready_flows),
                (0, 0),
                "side {side} keeps something: {stats:?}"
            );
            assert_eq!(
                (
                    stats.counters.malformed.total(),
                    stats.counters.breaches.total()
                ),
                (0, 0),
                "side {side}: {stats:?}"
            );
            assert_eq!(
                (
                    stats.mover.gauges.sender.unsent_bytes,
                    stats.mover.gauges.receiver.reassembly_bytes
                ),
                (0, 0),
                "side {side}: {stats:?}"
            );
        }
    }

    pub fn set_budget(&mut self, side: usize, bytes: usize) {
        self.world.node_mut(side).peer.set_budget(bytes);
    }

    /// From now on the application at this side of a flow does something else.
    pub fn set_plan(&mut self, side: usize, (opener, number): (u8, usize), plan: Plan) {
        let now = self.world.now();
        let site = self.world.node_mut(side);
        site.apps
            .set_plan(opener, number, plan, &mut site.peer, now);
    }

    /// Another flow, opened by this side. Returns its number.
    pub fn add(&mut self, side: usize, mut script: Script) -> usize {
        script.start = self.world.elapsed();
        self.scripts[side].push(script.clone());
        let number = self
            .world
            .node_mut(side)
            .apps
            .add(script.clone(), self.numbers[side]);
        self.world.node_mut(1 - side).apps.add_other(script, number);
        self.numbers[side] = number + 1;
        number
    }

    pub fn last_number(&self, side: usize) -> usize {
        self.numbers[side] - 1
    }

    /// The side's daemon is killed and started again: it knows nothing, and has none of its
    /// applications.
    pub fn restart(&mut self, side: usize, seed: u64) {
        let now = self.world.now();
        let apps = Apps::new(
            side as u8,
            vec![],
            vec![],
            self.world.now() - self.world.elapsed(),
        );
        let fresh = site(&self.setup, side, seed, apps, now);
        self.world.replace(side, fresh);
    }

    pub fn close(&mut self, side: usize) {
        let now = self.world.now();
        self.world.node_mut(side).peer.close(now);
        self.world.kick(side);
    }
}

fn site(setup: &Setup, side: usize, seed: u64, apps: Apps, now: Instant) -> Site {
    let mut config = config(side, seed, setup.limits, side == A || setup.both_call);
    config.compression.compress = if setup.compresses {
        Compress::Auto
    } else {
        Compress::Off
    };
    Site {
        peer: Peer::new(config, now),
        apps,
        now,
    }
}
