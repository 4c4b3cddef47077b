//! Pairs of machines in virtual time, over a channel that loses, doubles, reorders and damages.
//! Each seed is one run; a failing one names its seed.

use zeroize::Zeroizing;

use super::*;
use crate::crypto::{Outer, peek};
use crate::handshake::draws::RECENT;
use crate::handshake::{Guard, GuardError, HandshakeDrops, fuzz_handshake, wire};

const TAG: usize = crate::crypto::TAG;
const ROOM: usize = crate::crypto::HEADER;
const MS: Duration = Duration::from_millis(1);

fn start() -> Instant {
    // The worlds need some instant to count from; which one does not matter.
    #[allow(clippy::disallowed_methods)]
    Instant::now()
}

fn identity(number: u8) -> Identity {
    Identity::from_seed(Zeroizing::new([number; 32]))
}

/// Two identities, the lower public key first.
fn pair() -> [Arc<Identity>; 2] {
    let mut pair = [identity(1), identity(2)];
    pair.sort_by_key(Identity::public_key);
    pair.map(Arc::new)
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + node as u8], 47800))
}

/// What the channel does to a datagram; each a chance of 100.
#[derive(Clone, Copy, Default)]
struct Channel {
    loss: u8,
    copies: u8,
    flips: u8,
    /// A flipped datagram gets a right HMAC again: whoever does this has one of the private keys.
    flips_with_mac: bool,
    delay_ms: u64,
    jitter_ms: u64,
}

const CALM: Channel = Channel {
    loss: 0,
    copies: 0,
    flips: 0,
    flips_with_mac: false,
    delay_ms: 20,
    jitter_ms: 0,
};
const WILD: Channel = Channel {
    loss: 30,
    copies: 15,
    flips: 0,
    flips_with_mac: false,
    delay_ms: 20,
    jitter_ms: 80,
};

struct Node {
    handshake: Handshake,
    identity: Arc<Identity>,
    /// Established here, the newest last.
    sessions: Vec<Established>,
    /// Local indices of those sessions in which something was heard.
    heard: Vec<u32>,
    seq: u64,
    /// Bytes received from, and sent in answer to, each address before a session.
    account: Vec<(SocketAddr, usize, usize)>,
}

struct Flying {
    at: Instant,
    to: usize,
    from: SocketAddr,
    datagram: Vec<u8>,
}

struct World {
    nodes: [Node; 2],
    now: Instant,
    begin: Instant,
    channel: Channel,
    rng: fastrand::Rng,
    flying: Vec<Flying>,
    /// Every handshake datagram that was ever sent, with its receiver.
    seen: Vec<(usize, Vec<u8>)>,
    next_ping: Instant,
    /// An attacker on the path, who sees all and loses nothing: sends so many copies of each
    /// handshake datagram ahead of it, each from another address.
    copies: usize,
    /// He gives the peers what is sent to those addresses.
    hands_on: bool,
}

impl Node {
    fn new(identity: Arc<Identity>, peer: PublicKey, number: usize, seed: u64) -> Node {
        let mut root = [number as u8; 32];
        root[..8].copy_from_slice(&seed.to_be_bytes());
        let mut handshake = Handshake::new(identity.clone(), peer, None, 7 + number as u16, root);
        handshake.set_params(params(number));
        Node {
            handshake,
            identity,
            sessions: Vec::new(),
            heard: Vec::new(),
            seq: 0,
            account: Vec::new(),
        }
    }

    fn account(&mut self, address: SocketAddr) -> &mut (SocketAddr, usize, usize) {
        let at = self
            .account
            .iter()
            .position(|account| account.0 == address)
            .unwrap_or_else(|| {
                self.account.push((address, 0, 0));
                self.account.len() - 1
            });
        &mut self.account[at]
    }

    fn newest(&mut self) -> Option<&mut Established> {
        self.sessions.last_mut()
    }

    /// The newest session works in the direction towards us.
    fn is_up(&self) -> bool {
        self.sessions
            .last()
            .is_some_and(|newest| self.heard.contains(&newest.session.local_index()))
    }
}

fn params(number: usize) -> Vec<u8> {
    format!("record of node {number}").into_bytes()
}

impl World {
    fn new(channel: Channel, seed: u64) -> World {
        let [one, two] = pair();
        let keys = [one.public_key(), two.public_key()];
        let begin = start();
        World {
            nodes: [
                Node::new(one, keys[1], 0, seed),
                Node::new(two, keys[0], 1, seed),
            ],
            now: begin,
            begin,
            channel,
            rng: fastrand::Rng::with_seed(seed),
            flying: Vec::new(),
            seen: Vec::new(),
            next_ping: begin,
            copies: 0,
            hands_on: true,
        }
    }

    fn start(&mut self, node: usize) {
        self.nodes[node]
            .handshake
            .start(address(1 - node), self.now);
    }

    /// The program of this node ends and runs again; datagrams on their way stay on their way.
    fn restart(&mut self, node: usize, seed: u64) {
        let peer = self.nodes[1 - node].identity.public_key();
        self.nodes[node] = Node::new(self.nodes[node].identity.clone(), peer, node, seed);
    }

    fn send(&mut self, from: usize, to: SocketAddr, datagram: Vec<u8>) {
        let Some(receiver) = (0..2).find(|&node| address(node) == to) else {
            return;
        };
        let channel = self.channel;
        let copies = 1 + usize::from(self.rng.u8(..100) < channel.copies);
        for _ in 0..copies {
            if self.rng.u8(..100) < channel.loss {
                continue;
            }
            let mut datagram = datagram.clone();
            if self.rng.u8(..100) < channel.flips {
                self.damage(from, &mut datagram);
            }
            let delay = MS * (channel.delay_ms + self.rng.u64(..=channel.jitter_ms)) as u32;
            self.flying.push(Flying {
                at: self.now + delay,
                to: receiver,
                from: address(from),
                datagram,
            });
        }
    }

    fn damage(&mut self, from: usize, datagram: &mut Vec<u8>) {
        let at = self.rng.usize(..datagram.len());
        datagram[at] ^= 1 << self.rng.u8(..8);
        if self.channel.flips_with_mac && datagram[0] < 0x40 {
            sign_again(&self.nodes[from].handshake.pair, datagram);
        }
    }

    /// Takes what the machines want to say, after each input.
    fn drain(&mut self) {
        for number in 0..2 {
            loop {
                let node = &mut self.nodes[number];
                let mut datagram = Vec::new();
                let Some((to, what)) = node.handshake.poll_transmit(&mut datagram, self.now) else {
                    break;
                };
                assert!(datagram.len() <= wire::DATAGRAM);
                assert!(matches!(
                    peek(&datagram),
                    Some(Outer::Handshake { .. } | Outer::Retry { .. })
                ));
                let answers = datagram[0] == 0x20 || datagram[24] & 2 != 0;
                assert_eq!(matches!(what, TransmitKind::Answer(_)), answers, "{what:?}");
                if answers {
                    let account = node.account(to);
                    account.2 += datagram.len();
                    assert!(
                        account.2 <= 3 * account.1,
                        "answered {} bytes to {}",
                        account.2,
                        account.1
                    );
                }
                self.seen.push((1 - number, datagram.clone()));
                self.attack(number, to, &datagram);
                self.send(number, to, datagram);
            }
            if let Some(established) = self.nodes[number].handshake.poll_established() {
                assert_eq!(established.peer_params, params(1 - number));
                self.nodes[number].sessions.push(established);
            }
        }
    }

    fn attack(&mut self, number: usize, to: SocketAddr, datagram: &[u8]) {
        let at = self.now + MS;
        let fly = |from, datagram: &[u8]| Flying {
            at,
            to: 1 - number,
            from,
            datagram: datagram.to_vec(),
        };
        if to != address(1 - number) {
            if self.copies > 0 && self.hands_on {
                self.flying.push(fly(address(number), datagram));
            }
            return;
        }
        for _ in 0..self.copies {
            let from = spoofed(&mut self.rng);
            self.flying.push(fly(from, datagram));
        }
    }

    /// One event.
    fn step(&mut self) {
        self.drain();
        let arrival = self.flying.iter().map(|flying| flying.at).min();
        let timeout = |node: &Node| node.handshake.poll_timeout();
        let timeouts = self.nodes.iter().filter_map(timeout).min();
        self.now = arrival
            .into_iter()
            .chain(timeouts)
            .chain([self.next_ping])
            .min()
            .unwrap()
            .max(self.now);
        for node in &mut self.nodes {
            node.handshake.handle_timeout(self.now);
        }
        if self.now >= self.next_ping {
            self.next_ping += 100 * MS;
            (0..2).for_each(|node| self.ping(node));
        }
        if let Some(at) = self.flying.iter().position(|flying| flying.at <= self.now) {
            let flying = self.flying.swap_remove(at);
            self.receive(flying);
        }
        self.drain();
    }

    fn receive(&mut self, mut flying: Flying) {
        let node = &mut self.nodes[flying.to];
        match peek(&flying.datagram) {
            Some(Outer::Session { index, seq_low, .. }) => {
                let known = node
                    .sessions
                    .iter_mut()
                    .find(|established| established.session.local_index() == index);
                let Some(established) = known else { return };
                if established
                    .session
                    .open(u64::from(seq_low), &mut flying.datagram, self.now)
                    .is_ok()
                {
                    // As the mover does: the peer is where its datagrams come from.
                    established.remote = flying.from;
                    if !node.heard.contains(&index) {
                        node.handshake.on_confirmed(index);
                    }
                    node.heard.push(index);
                }
            }
            _ => {
                node.account(flying.from).1 += flying.datagram.len();
                let _ = node
                    .handshake
                    .handle_datagram(flying.from, &flying.datagram, self.now);
            }
        }
    }

    /// What the mover does: sends in the newest session.
    fn ping(&mut self, number: usize) {
        let (now, node) = (self.now, &mut self.nodes[number]);
        let Some(newest) = node.sessions.last_mut() else {
            return;
        };
        let mut datagram = vec![0; ROOM + 4 + TAG];
        newest.session.seal(node.seq, &mut datagram, now);
        node.seq += 1;
        let to = newest.remote;
        self.send(number, to, datagram);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn run_until_up(&mut self, limit: Duration) {
        let end = self.now + limit;
        while !(self.nodes[0].is_up() && self.nodes[1].is_up()) {
            assert!(
                self.now < end,
                "not up after {limit:?}: {:?} {:?}",
                self.stats(0),
                self.stats(1)
            );
            self.step();
        }
    }

    fn stats(&self, node: usize) -> HandshakeCounters {
        self.nodes[node].handshake.counters()
    }

    /// How long both take to have keys.
    fn run_until_agreed(&mut self, limit: Duration) -> Duration {
        let begin = self.now;
        while self.nodes.iter().any(|node| node.sessions.is_empty()) {
            assert!(
                self.now < begin + limit,
                "no keys after {limit:?}: {:?} {:?}",
                self.stats(0),
                self.stats(1)
            );
            self.step();
        }
        self.now - begin
    }

    /// Both have ended with the same session, and nothing goes on.
    fn check_settled(&mut self) {
        self.channel = CALM;
        self.run_for(Duration::from_secs(40));
        for number in 0..2 {
            let node = &self.nodes[number];
            assert!(node.is_up() && !node.handshake.is_active(), "node {number}");
            assert_eq!(node.handshake.poll_timeout(), None, "node {number}");
        }
        let begun = |node: &Node| node.sessions.last().unwrap().initiator;
        assert_ne!(
            begun(&self.nodes[0]),
            begun(&self.nodes[1]),
            "one started it, the other answered"
        );
    }
}

/// One of many thousand addresses.
fn spoofed(rng: &mut fastrand::Rng) -> SocketAddr {
    SocketAddr::from(([198, 51, rng.u8(..), rng.u8(1..)], rng.u16(1..)))
}

/// First flights of other runs of node 0, towards node 1: all of them genuine.
fn recorded_first_flights(runs: u64) -> Vec<Vec<u8>> {
    let mut recorded = Vec::new();
    for seed in 1_000..1_000 + runs {
        let mut other = World::new(CALM, seed);
        other.start(0);
        other.drain();
        recorded.extend(other.seen.into_iter().map(|(_, datagram)| datagram));
    }
    recorded
}

/// What only a thief of one of the private keys can do.
fn sign_again(pair: &Pair, datagram: &mut Vec<u8>) {
    datagram.truncate(datagram.len().saturating_sub(wire::MAC));
    pair.emit_mac(0, datagram);
}

fn check_seeds(seeds: std::ops::Range<u64>, run: impl Fn(u64)) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_calm_channel_needs_one_round_trip_and_a_half() {
    let mut world = World::new(CALM, 1);
    world.start(0);
    world.run_for(41 * MS);
    assert_eq!(
        world.nodes[0].sessions.len(),
        1,
        "the initiator has keys after one round trip"
    );
    world.run_for(20 * MS);
    assert_eq!(
        world.nodes[1].sessions.len(),
        1,
        "the responder half a round trip later"
    );
    world.run_until_up(200 * MS);
    world.check_settled();
    assert_eq!((world.stats(0).resent, world.stats(1).resent), (0, 0));
    assert_eq!(
        (world.stats(0).established, world.stats(1).established),
        (1, 1)
    );
    assert_eq!(
        world.nodes[0].newest().unwrap().session.local_index() >> 12,
        7,
        "the slot is in the index"
    );
}

#[test]
fn loss_copies_and_reordering_only_delay() {
    check_seeds(0..300, |seed| {
        let mut world = World::new(WILD, seed);
        match seed % 3 {
            0 => world.start(0),
            1 => world.start(1),
            _ => {
                world.start(0);
                world.run_for(MS * (seed % 90) as u32);
                world.start(1);
            }
        }
        world.run_until_up(Duration::from_secs(30));
        world.check_settled();
    });
}

#[test]
fn damage_is_never_believed() {
    check_seeds(0..60, |seed| {
        let channel = Channel {
            flips: 30,
            flips_with_mac: seed % 2 == 0,
            jitter_ms: 30,
            ..CALM
        };
        let mut world = World::new(channel, seed);
        world.start((seed / 2 % 2) as usize);
        world.run_until_up(Duration::from_secs(120));
        world.check_settled();
    });
}

#[test]
fn no_flipped_bit_of_a_first_flight_is_answered() {
    let mut world = World::new(CALM, 3);
    world.start(0);
    world.drain();
    let flight: Vec<Vec<u8>> = world
        .seen
        .iter()
        .map(|(_, datagram)| datagram.clone())
        .collect();
    assert_eq!(
        flight.iter().map(Vec::len).collect::<Vec<_>>(),
        [1200, 1200]
    );
    let (now, responder) = (world.now, &mut world.nodes[1].handshake);
    let mut tried = 0;
    for datagram in &flight {
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(
                responder
                    .handle_datagram(address(0), &changed, now)
                    .is_err(),
                "byte {at}"
            );
            assert!(
                responder
                    .handle_datagram(address(0), &datagram[..at], now)
                    .is_err(),
                "cut to {at}"
            );
            tried += 2;
        }
    }
    assert_eq!(responder.poll_transmit(&mut Vec::new(), now), None);
    let stats = responder.counters();
    assert_eq!(
        stats.drops.strangers + stats.drops.unproved + stats.drops.malformed(),
        tried
    );
    assert_eq!((stats.answered, responder.poll_timeout()), (0, None));
}

#[test]
fn a_stranger_gets_no_answer() {
    let now = start();
    let [one, two] = pair();
    let stranger = Arc::new(identity(9));
    // The stranger means the right key; we mean another. And the other way round.
    for (identity, peer) in [
        (stranger.clone(), two.public_key()),
        (one.clone(), stranger.public_key()),
    ] {
        let mut caller = Handshake::new(identity, peer, None, 0, [1; 32]);
        let mut called = Handshake::new(two.clone(), one.public_key(), None, 0, [2; 32]);
        caller.start(address(1), now);
        let mut datagram = Vec::new();
        while caller.poll_transmit(&mut datagram, now).is_some() {
            assert_eq!(
                called.handle_datagram(address(0), &datagram, now),
                Err(HandshakeError::Stranger)
            );
            datagram.clear();
        }
        assert_eq!(called.poll_transmit(&mut datagram, now), None);
        assert_eq!(
            called.counters(),
            HandshakeCounters {
                drops: HandshakeDrops {
                    strangers: 2,
                    ..HandshakeDrops::default()
                },
                ..HandshakeCounters::default()
            }
        );
        assert_eq!(called.poll_timeout(), None);
    }
}

/// Who knows both public keys alone is not even looked at; a thief of what the pair shares is, and
/// TLS refuses him.
#[test]
fn knowing_the_public_keys_is_not_enough() {
    for (impostor, starter, thief) in [0, 1]
        .map(|i| [0, 1].map(|j| [true, false].map(|k| (i, j, k))))
        .concat()
        .concat()
    {
        let mut world = World::new(CALM, 5);
        let genuine = world.nodes[impostor].identity.clone();
        let honest = 1 - impostor;
        world.nodes[impostor].identity = Arc::new(Identity::impostor(genuine.public_key()));
        world.restart(impostor, 6);
        if thief {
            let peer = world.nodes[honest].identity.public_key();
            world.nodes[impostor].handshake.pair = Pair::new(&genuine, &peer, None);
        }
        world.start(starter);
        world.run_for(Duration::from_secs(20));
        assert!(
            world.nodes[honest].sessions.is_empty(),
            "established with an impostor"
        );
        let stats = world.stats(honest);
        assert_eq!(stats.drops.refused > 0, thief, "{stats:?}");
        assert_eq!(
            stats.drops.unproved > 0,
            !thief && starter == impostor,
            "{stats:?}"
        );
        assert_eq!(
            stats.answered > 0,
            thief && starter == impostor,
            "{stats:?}"
        );
    }
}

#[test]
fn under_load_a_cookie_is_demanded_and_brought() {
    let mut world = World::new(CALM, 7);
    // Other runs of the same program: first flights whose initiators have gone.
    for seed in 100..100 + 8 {
        let mut other = World::new(CALM, seed);
        other.start(0);
        other.drain();
        for (_, datagram) in other.seen {
            let from = SocketAddr::from(([198, 51, 100, 1], 1000 + seed as u16));
            world.flying.push(Flying {
                at: world.now,
                to: 1,
                from,
                datagram,
            });
        }
    }
    world.run_for(5 * MS);
    assert_eq!(
        world.stats(1).answered,
        2,
        "two attempts from one address; the others must bring a cookie"
    );
    assert_eq!(
        world.stats(1).retries_sent,
        12,
        "each of the six others sent two fragments"
    );
    // From elsewhere there is room, until as many are answered as are at all, or five in a second.
    world.start(0);
    world.run_until_up(Duration::from_secs(1));
    assert_eq!(
        (world.stats(0).retries_taken, world.stats(0).started),
        (0, 1)
    );
    world.check_settled();
    world.check_settled();
}

#[test]
fn many_attempts_in_a_second_need_cookies_even_when_none_is_under_way() {
    let now = start();
    let mut admission = Admission::new(Prk::new_less_safe(HKDF_SHA256, &[7; 32]));
    admission.start(now);
    for _ in 0..5 {
        assert!(!admission.is_loaded(now) && admission.admit(now));
    }
    assert!(admission.is_loaded(now), "the sixth in a second");
    assert!(admission.is_loaded(now + 999 * MS));
    assert!(!admission.is_loaded(now + 1000 * MS));
    assert_eq!(
        (0..100)
            .filter(|_| admission.admit(now + 1000 * MS))
            .count(),
        50,
        "the limit for all"
    );

    let cookie = admission.cookie(1, 5, now);
    let fits = |admission: &mut Admission, index, attempt, now| {
        admission.cookie_fits(&cookie, index, attempt, now)
    };
    assert!(fits(&mut admission, 1, 5, now + Duration::from_secs(120)));
    assert!(!fits(&mut admission, 1, 5, now + Duration::from_secs(240)));
    assert!(!fits(&mut admission, 2, 5, now));
    assert!(!fits(&mut admission, 1, 6, now));
    assert!(!admission.cookie_fits(&[0; 16], 1, 5, now));
}

#[test]
fn simultaneous_starts_end_in_one_session() {
    check_seeds(0..100, |seed| {
        let channel = if seed % 2 == 0 { CALM } else { WILD };
        let mut world = World::new(channel, seed);
        world.start(0);
        world.start(1);
        world.run_until_up(Duration::from_secs(30));
        if seed % 2 == 0 {
            assert!(
                world.nodes[0].newest().unwrap().initiator,
                "the lower key stays the initiator"
            );
            assert_eq!(
                (world.stats(0).established, world.stats(1).established),
                (1, 1)
            );
        }
        world.check_settled();
    });
}

#[test]
fn the_lower_side_answers_when_its_own_attempt_gets_nowhere() {
    let mut world = World::new(CALM, 8);
    world.nodes[0]
        .handshake
        .start(SocketAddr::from(([203, 0, 113, 9], 1)), world.now);
    world.start(1);
    world.run_until_up(Duration::from_secs(3));
    assert!(!world.nodes[0].newest().unwrap().initiator);
    world.check_settled();
}

#[test]
fn a_restart_in_the_middle_is_survived() {
    check_seeds(0..200, |seed| {
        let channel = if seed % 4 < 2 { CALM } else { WILD };
        let mut world = World::new(channel, seed);
        let starter = (seed % 2) as usize;
        world.start(starter);
        world.run_for(MS * (seed * 7 % 150) as u32);
        let restarted = (seed / 2 % 2) as usize;
        world.restart(restarted, seed + 1_000_000);
        if seed / 8 % 2 == 0 || restarted == starter {
            world.start(restarted);
        }
        // What the mover does when it has not heard for its time.
        let other = 1 - restarted;
        for _ in 0..60 {
            world.run_for(500 * MS);
            let same = world.nodes[0].is_up() && world.nodes[1].is_up();
            if same {
                break;
            }
            if world.nodes[other].sessions.last().is_some() || starter == other {
                world.start(other);
            }
        }
        world.run_until_up(Duration::from_secs(30));
    });
}

#[test]
fn a_peer_that_comes_late_is_found_soon() {
    let mut world = World::new(Channel { loss: 100, ..CALM }, 9);
    world.start(0);
    world.run_for(Duration::from_secs(100));
    assert!(world.stats(0).started > 3, "fresh attempts are made");
    world.channel = CALM;
    world.run_until_up(Duration::from_millis(2300));
    world.check_settled();
}

#[test]
fn a_later_handshake_replaces_the_session() {
    let mut world = World::new(CALM, 10);
    for round in 0..20 {
        world.start(round % 2);
        world.run_for(Duration::from_secs(1));
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.is_up() && node.sessions.len() == round + 1)
        );
    }
    let mut indices: Vec<_> = world.nodes[0]
        .sessions
        .iter()
        .rev()
        .map(|old| old.session.local_index())
        .collect();
    indices.truncate(RECENT);
    indices.sort();
    indices.dedup();
    assert_eq!(
        indices.len(),
        RECENT,
        "the indices of the last sessions differ"
    );
    world.check_settled();
}

#[test]
fn replays_harm_neither_a_session_nor_an_attempt() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        world.run_until_up(Duration::from_secs(1));
        world.check_settled();
        let old = world.seen.clone();
        let sessions = world.nodes[1].sessions.len();

        // To the same run of the program: nothing is answered.
        let spoofed = SocketAddr::from(([198, 51, 100, 7], 7));
        for (to, datagram) in &old {
            assert!(
                world.nodes[*to]
                    .handshake
                    .handle_datagram(spoofed, datagram, world.now)
                    .is_err()
            );
        }
        assert!(world.nodes.iter_mut().all(|node| {
            node.handshake
                .poll_transmit(&mut Vec::new(), world.now)
                .is_none()
        }));
        assert_eq!(world.nodes[1].sessions.len(), sessions);

        // To a later run, all the time while the true peer connects: one more round trip at most.
        world.restart(1, seed + 500);
        world.restart(0, seed + 600);
        let began = world.now;
        world.run_for(MS * (seed % 40) as u32);
        world.start(0);
        while !(world.nodes[0].is_up() && world.nodes[1].is_up()) {
            let (to, datagram) = old[world.rng.usize(..old.len())].clone();
            let at = world.now;
            world.flying.push(Flying {
                at,
                to,
                from: spoofed,
                datagram,
            });
            world.run_for(3 * MS);
            assert!(
                world.now - began < Duration::from_secs(2),
                "replays keep the true peer out"
            );
        }
    });
}

/// A thousand recordings in a second, each from another address: at most the peer's attempt needs a
/// cookie.
#[test]
fn a_flood_of_recorded_first_flights_keeps_nobody_out() {
    let recorded = recorded_first_flights(100);
    for channel in [CALM, WILD] {
        let (mut quiet, mut flooded) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..40 {
            let mut world = World::new(channel, seed);
            world.start(0);
            quiet += world.run_until_agreed(Duration::from_secs(20));

            let mut world = World::new(channel, seed);
            for at in 0..8_000 {
                let datagram = recorded[world.rng.usize(..recorded.len())].clone();
                let from = spoofed(&mut world.rng);
                world.flying.push(Flying {
                    at: world.now + MS * at,
                    to: 1,
                    from,
                    datagram,
                });
            }
            world.run_for(MS * 1_000);
            world.start(0);
            let time = world.run_until_agreed(Duration::from_secs(6));
            let stats = world.stats(1);
            assert!(
                stats.answered < 100 && stats.retries_sent > 500,
                "seed {seed}: {stats:?}"
            );
            assert_eq!(
                world.stats(0).started,
                1,
                "seed {seed}: the first attempt gets through"
            );
            flooded += time;
            world.run_until_up(Duration::from_secs(7));
            world.check_settled();
        }
        // One round trip more than one and a half.
        assert!(
            flooded < quiet * 2,
            "{:?} instead of {:?}",
            flooded / 40,
            quiet / 40
        );
    }
}

/// The attacker knows both public keys, and is faster than the peers; what he cannot do is drop.
#[test]
fn copies_of_an_attempt_from_anywhere_do_not_delay_it() {
    for channel in [CALM, Channel { loss: 20, ..CALM }] {
        let (mut quiet, mut attacked) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..60 {
            for (copies, total) in [(0, &mut quiet), (1 + seed as usize % 30, &mut attacked)] {
                let mut world = World::new(channel, seed);
                world.copies = copies;
                world.hands_on = seed % 4 < 2;
                let starter = (seed % 2) as usize;
                world.start(starter);
                *total += world.run_until_agreed(Duration::from_secs(20));
                let called = address(1 - starter);
                assert_eq!(
                    world.nodes[starter].newest().unwrap().remote,
                    called,
                    "seed {seed}: we know where we called"
                );
                world.copies = 0;
                world.run_until_up(Duration::from_secs(20));
                world.check_settled();
            }
        }
        // His copies are not lost: with them it may even be faster.
        assert!(
            attacked < quiet * 11 / 10,
            "{:?} instead of {:?}",
            attacked / 60,
            quiet / 60
        );
    }
}

/// Both at once: the cookie that a copy draws is as good as the peer's own.
#[test]
fn copies_and_recordings_together_keep_nobody_out() {
    let recorded = recorded_first_flights(100);
    for seed in 0..40 {
        let mut world = World::new(CALM, seed);
        for at in 0..4_000 {
            let datagram = recorded[world.rng.usize(..recorded.len())].clone();
            let from = spoofed(&mut world.rng);
            world.flying.push(Flying {
                at: world.now + MS * at,
                to: 1,
                from,
                datagram,
            });
        }
        world.run_for(MS * 1_000);
        world.copies = 5;
        world.hands_on = seed % 2 == 0;
        world.start(0);
        let time = world.run_until_agreed(Duration::from_secs(6));
        assert!(
            time <= 110 * MS,
            "seed {seed}: two and a half round trips of 40 ms, and not {time:?}"
        );
    }
}

/// What strangers say to the one who calls: answers and demands in the peer's name, for the very
/// attempt.
#[test]
fn forged_answers_do_not_end_an_attempt() {
    let mut world = World::new(CALM, 15);
    let [one, two] = pair();
    let stranger = Pair::new(
        &Identity::impostor(two.public_key()),
        &one.public_key(),
        None,
    );
    world.start(0);
    world.drain();
    let header = |attempt, index| wire::Header {
        sender: 0x123_456,
        receiver: index,
        attempt,
        level: Level::Initial,
        from_responder: true,
        offset: 0,
        total: 100,
        length: 100,
        cookie: [0; 16],
    };
    let initiator = &world.nodes[0].handshake.initiator.as_ref().unwrap().machine;
    let (attempt, index) = (
        u64::from_be_bytes(world.seen[0].1[16..24].try_into().unwrap()),
        initiator.local(),
    );
    let mut forged = vec![
        Vec::new(),
        stranger.emit_header(&header(attempt, index)).to_vec(),
    ];
    stranger.emit_retry(index, attempt, &[7; 16], &mut forged[0]);
    forged[1].extend_from_slice(&[1; 100]);
    stranger.emit_mac(0, &mut forged[1]);
    for _ in 0..1_000 {
        for datagram in &forged {
            let result = world.nodes[0]
                .handshake
                .handle_datagram(address(1), datagram, world.now);
            assert_eq!(result, Err(HandshakeError::Unproved));
        }
    }
    assert_eq!(world.run_until_agreed(Duration::from_secs(1)), 60 * MS);
    assert_eq!(
        (
            world.stats(0).started,
            world.stats(0).resent,
            world.stats(0).retries_taken
        ),
        (1, 0, 0)
    );
    world.check_settled();
}

/// Both start, and the lower side's attempt counts; somebody keeps the other's last flight back
/// until all is over.
#[test]
fn a_late_copy_of_a_last_flight_brings_no_session_up() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(1);
        // The lower side has answered the other's attempt when it begins its own.
        world.run_for(MS * 21 + MS * (seed % 19) as u32);
        world.start(0);
        let is_kept_back = |flying: &Flying| {
            flying.to == 0 && flying.datagram[0] == 0x10 && flying.datagram[24] == 1
        };
        while !(world.nodes[0].is_up() && world.nodes[1].is_up()) {
            world.step();
            world.flying.retain(|flying| !is_kept_back(flying));
            assert!(world.now - world.begin < Duration::from_secs(2));
        }
        assert!(world.nodes[0].newest().unwrap().initiator);
        let sessions = [0, 1].map(|node: usize| world.nodes[node].sessions.len());
        for (to, datagram) in world.seen.clone() {
            world.flying.push(Flying {
                at: world.now,
                to,
                from: address(1 - to),
                datagram,
            });
        }
        assert!(world.flying.iter().any(is_kept_back), "there is one");
        world.run_for(Duration::from_secs(1));
        assert_eq!(
            [0, 1].map(|node: usize| world.nodes[node].sessions.len()),
            sessions
        );
        world.check_settled();
    });
}

/// A translator that gives each datagram of the caller another port, and remembers the last few.
#[test]
fn a_caller_whose_address_changes_all_the_time_gets_in() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        let mut port = 1_000;
        while world.nodes.iter().any(|node| node.sessions.is_empty()) {
            world.drain();
            for flying in &mut world.flying {
                if flying.to == 1 && flying.from == address(0) {
                    port += 1;
                    flying.from = SocketAddr::new(address(0).ip(), port);
                }
            }
            // The answers, which went to a port that the world does not know.
            for (to, datagram) in std::mem::take(&mut world.seen)
                .into_iter()
                .filter(|(to, _)| *to == 0)
            {
                world.flying.push(Flying {
                    at: world.now + 20 * MS,
                    to,
                    from: address(1),
                    datagram,
                });
            }
            world.step();
            assert!(world.now - world.begin < 200 * MS, "{:?}", world.stats(1));
        }
    });
}

#[test]
fn a_pre_shared_key_is_needed_at_both_ends() {
    let key = |byte| {
        Some(Arc::new(
            PreSharedKey::from_text(&format!("{byte:02x}").repeat(32)).unwrap(),
        ))
    };
    for (ours, theirs) in [
        (key(1), None),
        (None, key(1)),
        (key(1), key(2)),
        (key(1), key(1)),
    ] {
        for starter in [0, 1] {
            let mut world = World::new(CALM, 16);
            let equal = ours.is_some()
                && theirs.is_some()
                && ours.as_ref().unwrap().as_bytes() == theirs.as_ref().unwrap().as_bytes();
            for (number, pre_shared) in [ours.clone(), theirs.clone()].into_iter().enumerate() {
                let (own, peer) = (
                    world.nodes[number].identity.clone(),
                    world.nodes[1 - number].identity.public_key(),
                );
                world.nodes[number].handshake =
                    Handshake::new(own, peer, pre_shared, 7 + number as u16, [number as u8; 32]);
                world.nodes[number].handshake.set_params(params(number));
            }
            world.start(starter);
            world.run_for(Duration::from_secs(20));
            let called = world.stats(1 - starter);
            if equal {
                world.check_settled();
                assert_eq!(called.drops.unproved, 0);
            } else {
                assert!(world.nodes.iter().all(|node| node.sessions.is_empty()));
                assert!(
                    called.drops.unproved > 5 && called.answered == 0,
                    "it is silent, and knows why: {called:?}"
                );
                assert!(
                    !world.seen.iter().any(|(to, _)| *to == starter),
                    "no datagram in answer"
                );
            }
        }
    }
}

/// Whatever becomes known of the handshake, the keys of the session need the pre-shared key too:
/// one side computes them without it.
#[test]
fn without_the_pre_shared_key_no_datagram_of_the_session_opens() {
    let mut world = World::new(CALM, 17);
    let key = Arc::new(PreSharedKey::from_text(&"5a".repeat(32)).unwrap());
    for number in 0..2 {
        let (own, peer) = (
            world.nodes[number].identity.clone(),
            world.nodes[1 - number].identity.public_key(),
        );
        world.nodes[number].handshake =
            Handshake::new(own, peer, Some(key.clone()), 7, [number as u8; 32]);
        world.nodes[number].handshake.set_params(params(number));
    }
    world.nodes[1].handshake.pre_shared = None;
    world.start(0);
    world.run_until_agreed(Duration::from_secs(1));
    world.run_for(Duration::from_secs(2));
    for node in &world.nodes {
        assert!(node.heard.is_empty() && node.sessions[0].session.failures() > 5);
    }
}

#[test]
fn an_answer_is_never_more_than_three_times_what_came() {
    // A first flight from a spoofed address, and copies of parts of it. The bound itself is
    // asserted in every world's drain.
    let mut world = World::new(CALM, 11);
    world.start(0);
    world.drain();
    let flight: Vec<_> = world
        .seen
        .iter()
        .map(|(_, datagram)| datagram.clone())
        .collect();
    world.flying.clear();
    let from = SocketAddr::from(([198, 51, 100, 9], 9));
    for datagram in &flight {
        world.flying.push(Flying {
            at: world.now,
            to: 1,
            from,
            datagram: datagram.clone(),
        });
    }
    world.nodes[0].handshake.stop();
    world.run_for(Duration::from_secs(6));
    let (_, received, sent) = *world.nodes[1].account(from);
    assert_eq!(received, 2400);
    assert!((2000..=7200).contains(&sent), "{sent} bytes");
    world.run_for(Duration::from_secs(4));
    assert_eq!(
        world.nodes[1].handshake.poll_timeout(),
        None,
        "then it is forgotten"
    );
}

#[test]
fn a_copy_from_elsewhere_does_not_steal_the_attempt() {
    let mut world = World::new(CALM, 12);
    world.start(0);
    world.drain();
    let thief = SocketAddr::from(([198, 51, 100, 11], 11));
    let flight = world.seen.clone();
    for (to, datagram) in flight {
        world.flying.push(Flying {
            at: world.now + MS,
            to,
            from: thief,
            datagram,
        });
    }
    world.run_until_up(Duration::from_secs(2));
    assert_eq!(world.nodes[1].newest().unwrap().remote, address(0));
    world.check_settled();
}

#[test]
fn a_copied_answer_leads_no_further_attempt_astray() {
    let mut world = World::new(CALM, 13);
    world.start(0);
    while world.seen.iter().all(|(to, _)| *to == 1) {
        world.step();
    }
    let answers: Vec<_> = world
        .seen
        .iter()
        .filter(|(to, _)| *to == 0)
        .cloned()
        .collect();
    let thief = SocketAddr::from(([198, 51, 100, 11], 11));
    for (to, datagram) in answers {
        world.flying.push(Flying {
            at: world.now + MS,
            to,
            from: thief,
            datagram,
        });
    }
    while world.nodes[0].sessions.is_empty() {
        world.step();
    }
    assert_eq!(
        world.nodes[0].newest().unwrap().remote,
        address(1),
        "where we called is where the peer is"
    );
    world.run_until_up(Duration::from_secs(5));
    assert_eq!(world.nodes[0].newest().unwrap().remote, address(1));
    world.check_settled();
}

#[test]
fn the_guard_admits_what_a_pair_sends_and_nothing_else() {
    let [one, two] = pair();
    let mut world = World::new(WILD, 14);
    world.start(0);
    world.run_for(Duration::from_secs(3));
    let key = PreSharedKey::from_text(&"5a".repeat(32)).unwrap();
    let guards = [
        Guard::new(&one, &two.public_key(), None),
        Guard::new(&two, &one.public_key(), None),
    ];
    let foreign = Guard::new(&two, &identity(9).public_key(), None);
    let keyed = [
        Guard::new(&one, &two.public_key(), Some(&key)),
        Guard::new(&two, &one.public_key(), Some(&key)),
    ];
    assert!(world.seen.iter().any(|(to, _)| *to == 0) && world.seen.iter().any(|(to, _)| *to == 1));
    for (to, datagram) in &world.seen {
        assert_eq!(guards[*to].admit(datagram), Ok(()));
        assert_eq!(guards[1 - to].admit(datagram), Err(GuardError::Stranger));
        assert_eq!(foreign.admit(datagram), Err(GuardError::Stranger));
        assert_eq!(keyed[*to].admit(datagram), Err(GuardError::Unproved));
        assert!(guards[*to].admit(&datagram[1..]).is_err());
        assert!(guards[*to].admit(&datagram[..datagram.len() - 1]).is_err());
        let mut flipped = datagram.clone();
        let at = world.rng.usize(..flipped.len());
        flipped[at] ^= 1 << world.rng.u8(..8);
        assert!(guards[*to].admit(&flipped).is_err(), "bit of byte {at}");
    }
    for length in [0, 1, 10, 55, 56, 1_200, 1_201, 9_000] {
        assert_eq!(
            guards[0].admit(&vec![0x10; length]),
            Err(GuardError::Stranger)
        );
    }
}

#[test]
fn streams_are_bounded_and_contradictions_refused() {
    let [one, two] = pair();
    let forger = Pair::new(&one, &two.public_key(), None);
    let mut called = Handshake::new(two.clone(), one.public_key(), None, 0, [3; 32]);
    let now = start();
    let mut send_padded = |offset: u16, total: u16, length: u16, size: usize| {
        let header = wire::Header {
            sender: 0x111,
            receiver: 0,
            attempt: 77,
            level: Level::Initial,
            from_responder: false,
            offset,
            total,
            length,
            cookie: [0; 16],
        };
        let mut datagram = forger.emit_header(&header).to_vec();
        datagram.resize(size - wire::MAC, 0);
        forger.emit_mac(0, &mut datagram);
        called.handle_datagram(address(0), &datagram, now)
    };
    for size in [164, 1199] {
        let short = send_padded(0, 1000, 100, size);
        assert!(
            matches!(short, Err(HandshakeError::Fragment { .. })),
            "a first flight that does not pay for the answer"
        );
    }
    assert_eq!(
        send_padded(0, 1000, 100, 1201),
        Err(HandshakeError::Form { length: 1201 })
    );
    let mut send = |offset, total, length| send_padded(offset, total, length, 1200);
    assert!(matches!(
        send(0, 16385, 100),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(950, 1000, 51),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(0, 1000, 0),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(0, 5000, 1200),
        Err(HandshakeError::Fragment { .. })
    ));
    assert_eq!(send(0, 16384, 100), Ok(()));
    assert_eq!(send(16284, 16384, 100), Ok(()));
    assert_eq!(send(0, 16383, 100), Err(HandshakeError::Inconsistent));
    for offset in (0..16384).step_by(1024) {
        let last = send(offset, 16384, 1024);
        assert_eq!(
            matches!(last, Err(HandshakeError::Tls(_))),
            offset == 15360,
            "zeros are no hello: {last:?}"
        );
    }
    assert_eq!(send(0, 16384, 100), Err(HandshakeError::Over));
}

#[test]
fn debug_shows_no_secret() {
    let mut world = World::new(CALM, 13);
    world.start(0);
    world.run_until_up(Duration::from_secs(1));
    let shown = format!("{:?}", world.nodes[0].newest().unwrap());
    let (_, before_params) = shown.split_once("session: Session { ").unwrap();
    let (session, _) = before_params.split_once(" }").unwrap();
    let fields: Vec<&str> = session
        .split(", ")
        .map(|field| field.split(':').next().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["local", "remote", "send_phase", "recv_phase", ".."]
    );
}

#[test]
fn fuzzing_takes_anything() {
    let mut rng = fastrand::Rng::with_seed(14);
    for _ in 0..200 {
        let length = rng.usize(..4000);
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        fuzz_handshake(&bytes, start());
    }
}

#[test]
#[ignore = "a measurement: run in release with --nocapture"]
#[allow(clippy::disallowed_methods)]
fn speed() {
    let best = |run: &dyn Fn(u64)| {
        let timed = |seed| {
            let begin = Instant::now();
            run(seed);
            begin.elapsed()
        };
        (0..300).map(timed).min().unwrap()
    };
    let handshake = best(&|seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        world.run_until_up(Duration::from_secs(1));
    });
    println!("handshake, both ends, with set-up of both machines: {handshake:?}");
    let [one, two] = pair();
    let set_up = best(&|_| {
        drop(Handshake::new(
            one.clone(),
            two.public_key(),
            None,
            0,
            [0; 32],
        ))
    });
    println!("set-up of one machine: {set_up:?}");
}
