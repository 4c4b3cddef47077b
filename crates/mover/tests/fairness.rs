//! Several tunnels through one bottleneck: how they share it, and what they make it drop. A table under version control, `fairness.txt`,
//! kept like `matrix.txt` (see `matrix.rs`).

mod pair;
#[path = "pair/rival.rs"]
mod rival;

use std::sync::atomic::{AtomicUsize, Ordering};

use std::net::SocketAddr;
use std::time::Instant;

use pair::{A, B, Pair, Setup, Side, Task, profile, secs};
use rival::Rival;
use tpo_lab::{Node, World};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fairness.txt");

/// Who meets at a bottleneck.
enum Guest {
    Tunnel(Box<Side>),
    Rival(Rival),
}

impl Guest {
    fn start(&mut self) {
        match self {
            Guest::Tunnel(side) => side.stopped = false,
            Guest::Rival(rival) => rival.start(),
        }
    }

    fn received_bytes(&self) -> u64 {
        match self {
            Guest::Tunnel(side) => side.received_bytes,
            Guest::Rival(rival) => rival.received_bytes,
        }
    }

    fn tunnel(&self) -> Option<&Side> {
        match self {
            Guest::Tunnel(side) => Some(side),
            Guest::Rival(_) => None,
        }
    }
}

impl Node for Guest {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) {
        match self {
            Guest::Tunnel(side) => side.handle_datagram(from, datagram, now),
            Guest::Rival(rival) => rival.handle_datagram(from, datagram, now),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Guest::Tunnel(side) => side.handle_timeout(now),
            Guest::Rival(rival) => rival.handle_timeout(now),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Guest::Tunnel(side) => side.poll_timeout(),
            Guest::Rival(rival) => rival.poll_timeout(),
        }
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        match self {
            Guest::Tunnel(side) => side.poll_transmit(out, now),
            Guest::Rival(rival) => rival.poll_transmit(out, now),
        }
    }

    fn drained(&mut self, now: Instant) {
        if let Guest::Tunnel(side) = self {
            side.drained(now);
        }
    }
}

/// Tunnels that share a bottleneck, and what each does to the link.
#[derive(Clone, Copy)]
struct Crowd {
    tunnels: usize,
    /// CUBIC flows beside them.
    rivals: usize,
    mbit: f64,
    rtt_ms: f64,
    /// The bottleneck's buffer in bandwidth-delay products.
    buffer: f64,
    loss_percent: f64,
    seed: u64,
}

struct Shared {
    /// Of the sum.
    shares: Vec<f64>,
    jain: f64,
    /// The sum's payload bytes as a share of what 96 % of the link's surviving bytes would be.
    eta: f64,
    dropped: f64,
    queue_ms: f64,
}

impl Crowd {
    fn name(&self) -> String {
        let Crowd { tunnels, rivals, mbit, rtt_ms, buffer, loss_percent, .. } = self;
        let rivals = if *rivals > 0 { format!(" {rivals} CUBIC") } else { String::new() };
        format!("{tunnels} tunnels{rivals} {mbit:4} Mbit/s {rtt_ms:3} ms {buffer:4} products {loss_percent} %")
    }

    /// The tunnels start one second after the other; `time` seconds are measured after `warm`.
    fn share(&self, warm: f64, time: f64) -> Shared {
        let Crowd { tunnels, rivals, mbit, rtt_ms, buffer, loss_percent, seed } = *self;
        let guests = tunnels + rivals;
        let mut world: World<Guest> = World::new(seed);
        let product = mbit * 125.0 * rtt_ms;
        let neck = world.bottleneck(profile(&format!("rate={}kbit queue={}", mbit * 1e3, (product * buffer) as u64)));
        for guest in 0..guests {
            let mut setup = Setup::new(seed * 100 + guest as u64, "perfect");
            setup.net = guest as u8;
            let mut pair = Pair::new(setup);
            let now = world.now();
            let [a, b] = if guest < tunnels {
                let bulk = Task {
                    payloads: u64::MAX,
                    sizes: 65_000..=65_536,
                    urgent: 0,
                    whole_datagrams: true,
                    ..Task::default()
                };
                let (mut a, b) = (pair.make(A, bulk, now), pair.make(B, Task::default(), now));
                a.stopped = true;
                [a, b].map(|side| Guest::Tunnel(Box::new(side)))
            } else {
                [B, A].map(|other| Guest::Rival(Rival::new(pair.address(other), false, now)))
            };
            let (a, b) = (world.add(pair.address(A), a), world.add(pair.address(B), b));
            let way = format!("delay={}us mtu=1500", rtt_ms * 500.0);
            world.connect(a, b, profile(&format!("{way} loss={loss_percent}%")), profile(&way));
            world.lead_through(a, b, neck);
        }
        for guest in 0..guests {
            world.run_for(secs(1.0));
            world.node_mut(2 * guest).start();
        }
        world.run_for(secs(warm));
        let received = |world: &World<Guest>| -> Vec<u64> {
            (0..guests).map(|guest| world.node(2 * guest + 1).received_bytes()).collect()
        };
        let (before, stats) = (received(&world), world.bottleneck_stats(neck));
        let mut queue_ms = 0.0;
        let steps = (time * 10.0) as usize;
        let mut last = before.clone();
        for _ in 0..steps {
            world.run_for(secs(0.1));
            let rtt = world
                .node(0)
                .tunnel()
                .expect("the first is a tunnel")
                .mover
                .stats()
                .rtt
                .expect("it is up")
                .as_secs_f64()
                * 1e3;
            queue_ms += (rtt - rtt_ms) / steps as f64;
            if std::env::var("TPO_TRACE").is_ok() {
                let is = received(&world);
                let rates: String = (0..guests)
                    .map(|guest| {
                        let got = (is[guest] - last[guest]) as f64 * 8e-5;
                        let stats = world.node(2 * guest).tunnel().map(|side| side.mover.stats());
                        let state =
                            stats.map(|stats| format!("({:5.1} {:9})", stats.bandwidth as f64 * 8e-6, stats.phase));
                        format!("{got:5.1} {} ", state.unwrap_or_default())
                    })
                    .collect();
                println!("{:6.1} rtt {rtt:5.1} {rates}", world.elapsed().as_secs_f64());
                last = is;
            }
        }
        let got: Vec<f64> = received(&world).iter().zip(&before).map(|(is, was)| (is - was) as f64).collect();
        let (sum, squares) = (got.iter().sum::<f64>(), got.iter().map(|got| got * got).sum::<f64>());
        let after = world.bottleneck_stats(neck);
        Shared {
            shares: got.iter().map(|got| got / sum).collect(),
            jain: sum * sum / (guests as f64 * squares),
            eta: sum / time / (mbit * 125_000.0 * 0.96 * (1.0 - loss_percent / 100.0)),
            dropped: (after.dropped_queue - stats.dropped_queue) as f64
                / (after.offered_packets - stats.offered_packets) as f64,
            queue_ms,
        }
    }
}

impl Shared {
    fn row(&self) -> String {
        let shares: Vec<String> = self.shares.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
        format!(
            "Jain {:.3}  η {:.3}  dropped {:.2} %  queue {:5.1} ms  shares {}",
            self.jain,
            self.eta,
            self.dropped * 100.0,
            self.queue_ms,
            shares.join(" ")
        )
    }
}

/// Runs the crowds on two threads.
fn run(crowds: &[Crowd], warm: f64, time: f64) -> Vec<Shared> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut shared = Vec::new();
        while let Some((at, crowd)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, crowds.get(at)?)))
        {
            shared.push((at, crowd.share(warm, time)));
        }
        shared
    };
    let mut shared = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().flat_map(|thread| thread.join().expect("no crowd panicked")).collect::<Vec<_>>()
    });
    shared.sort_by_key(|(at, _)| *at);
    shared.into_iter().map(|(_, shared)| shared).collect()
}

fn crowds(tunnels: &[usize], buffers: &[f64], losses: &[f64], seed: u64) -> Vec<Crowd> {
    let mut crowds = Vec::new();
    for &loss_percent in losses {
        for &tunnels in tunnels {
            crowds.extend(buffers.iter().map(|&buffer| Crowd {
                tunnels,
                rivals: 0,
                mbit: 100.0,
                rtt_ms: 50.0,
                buffer,
                loss_percent,
                seed,
            }));
        }
    }
    crowds
}

#[test]
fn tunnels_share_as_they_did() {
    let crowds = [crowds(&[2, 4, 8], &[0.5, 2.0], &[0.0], 7), crowds(&[4], &[1.0], &[1.0], 7)].concat();
    let shared = run(&crowds, 10.0, 30.0);
    let table: String =
        crowds.iter().zip(&shared).map(|(crowd, shared)| format!("{}: {}\n", crowd.name(), shared.row())).collect();
    println!("{table}");
    if std::env::var("TPO_MATRIX").is_ok_and(|value| value == "write") {
        std::fs::write(TABLE, &table).expect("the table can be written");
    }
    assert_eq!(std::fs::read_to_string(TABLE).unwrap_or_default(), table, "if the change is meant: TPO_MATRIX=write");
    for (crowd, shared) in crowds.iter().zip(&shared) {
        // Many small shares move more than a few large ones within the measured time.
        let least = if crowd.tunnels > 4 { 0.88 } else { 0.95 };
        assert!(shared.jain >= least, "{}: Jain below {least}", crowd.name());
        assert!(shared.dropped <= 0.01, "{}: drops above 1 %", crowd.name());
        assert!(shared.eta >= 0.95, "{}: η below 0.95", crowd.name());
    }
}

/// `TPO_SEED` chooses another world.
#[test]
#[ignore = "a table for people"]
fn table() {
    let seed = std::env::var("TPO_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    let crowds = crowds(&[2, 4, 8], &[0.5, 1.0, 2.0, 5.0], &[0.0, 1.0], seed);
    for (crowd, shared) in crowds.iter().zip(run(&crowds, 10.0, 60.0)) {
        println!("{}: {}", crowd.name(), shared.row());
    }
}

/// One crowd of your choice: `TPO_CROWD="2 0 100 50 1 0"` is tunnels, CUBIC flows, Mbit/s, ms, products of buffer, loss in percent.
#[test]
#[ignore = "a tool for people"]
fn crowd() {
    let Ok(text) = std::env::var("TPO_CROWD") else { return };
    let fields: Vec<f64> = text.split_whitespace().map(|field| field.parse().expect("a number")).collect();
    let [tunnels, rivals, mbit, rtt_ms, buffer, loss_percent] = fields[..] else { panic!("six numbers") };
    let crowd =
        Crowd { tunnels: tunnels as usize, rivals: rivals as usize, mbit, rtt_ms, buffer, loss_percent, seed: 7 };
    println!("{}: {}", crowd.name(), crowd.share(0.0, 60.0).row());
}
