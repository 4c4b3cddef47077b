//! Pairs of machines in virtual time, over a channel that loses, doubles, reorders and damages.
//! Each seed is one run; a failing one names its seed.

mod agreeing;
mod hostile;

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
