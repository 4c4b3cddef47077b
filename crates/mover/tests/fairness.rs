//! Several tunnels through one bottleneck: how they share it, and what they make it drop. A table
//! under version control, `fairness.txt`, kept like `matrix.txt` (see `matrix.rs`).

mod pair;

use pair::table::{compare, on_two_threads};
use pair::{Pair, Setup, Side, profile, secs};
use tpo_lab::World;
use tpo_mover::Congestion;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fairness.txt");

/// Tunnels that share a bottleneck, and what each does to the link.
#[derive(Clone, Copy)]
struct Mix {
    tunnels: usize,
    /// Tunnels beside them that behave as TCP does.
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

impl Mix {
    fn name(&self) -> String {
        let Mix {
            tunnels,
            rivals,
            mbit,
            rtt_ms,
            buffer,
            loss_percent,
            ..
        } = self;
        let rivals = if *rivals > 0 {
            format!(" {rivals} CUBIC")
        } else {
            String::new()
        };
        format!(
            "{tunnels} tunnels{rivals} {mbit:4} Mbit/s {rtt_ms:3} ms {buffer:4} products {loss_percent} %"
        )
    }

    /// The tunnels start one second after the other; `time` seconds are measured after `warm`.
    fn share(&self, warm: f64, time: f64) -> Shared {
        let Mix {
            tunnels,
            rivals,
            mbit,
            rtt_ms,
            buffer,
            loss_percent,
            seed,
        } = *self;
        let guests = tunnels + rivals;
        let mut world: World<Side> = World::new(seed);
        let product = mbit * 125.0 * rtt_ms;
        let neck = world.bottleneck(profile(&format!(
            "rate={}kbit queue={}",
            mbit * 1e3,
            (product * buffer) as u64
        )));
        let way = format!("delay={}us mtu=1500", rtt_ms * 500.0);
        let sides: Vec<[usize; 2]> = (0..guests)
            .map(|guest| {
                let mut setup = Setup::new(
                    seed * 100 + guest as u64,
                    &format!("{way} loss={loss_percent}%"),
                );
                setup.b_to_a = profile(&way);
                setup.net = guest as u8;
                let congestion = if guest < tunnels {
                    Congestion::Auto
                } else {
                    Congestion::Cubic
                };
                setup.change = Box::new(move |config, _| config.congestion = congestion);
                Pair::join(setup, &mut world, neck)
            })
            .collect();
        for [a, _] in &sides {
            world.run_for(secs(1.0));
            world.node_mut(*a).stopped = false;
        }
        world.run_for(secs(warm));
        let received = |world: &World<Side>| -> Vec<u64> {
            sides
                .iter()
                .map(|[_, b]| world.node(*b).received_bytes)
                .collect()
        };
        let (before, stats) = (received(&world), world.bottleneck_stats(neck));
        let mut queue_ms = 0.0;
        let steps = (time * 10.0) as usize;
        let mut last = before.clone();
        for _ in 0..steps {
            world.run_for(secs(0.1));
            let rtt = world
                .node(sides[0][0])
                .mover
                .stats()
                .gauges
                .path
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
                        let stats = world.node(sides[guest][0]).mover.stats();
                        format!(
                            "{got:5.1} ({:5.1} {:9}) ",
                            stats.gauges.path.bandwidth as f64 * 8e-6,
                            stats.gauges.path.phase
                        )
                    })
                    .collect();
                println!(
                    "{:6.1} rtt {rtt:5.1} {rates}",
                    world.elapsed().as_secs_f64()
                );
                last = is;
            }
        }
        let got: Vec<f64> = received(&world)
            .iter()
            .zip(&before)
            .map(|(is, was)| (is - was) as f64)
            .collect();
        let (sum, squares) = (
            got.iter().sum::<f64>(),
            got.iter().map(|got| got * got).sum::<f64>(),
        );
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
        let shares: Vec<String> = self
            .shares
            .iter()
            .map(|share| format!("{:.0}", share * 100.0))
            .collect();
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

fn run(mixes: &[Mix], warm: f64, time: f64) -> Vec<Shared> {
    on_two_threads(mixes, |mix| mix.tunnels as u64, |mix| mix.share(warm, time))
}

fn mixes(tunnels: &[usize], buffers: &[f64], losses: &[f64], seed: u64) -> Vec<Mix> {
    let mut mixes = Vec::new();
    for &loss_percent in losses {
        for &tunnels in tunnels {
            mixes.extend(buffers.iter().map(|&buffer| Mix {
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
    mixes
}

/// A scavenger and another on 100 Mbit/s and 50 ms: its share of both while the other sends, and of
/// the link some time afterwards.
fn scavenge(other: Congestion, buffer: usize) -> (f64, f64) {
    const MBIT: u64 = 100;
    let mut world: World<Side> = World::new(5);
    let neck = world.bottleneck(profile(&format!("rate={MBIT}mbit queue={buffer}")));
    let [scavenger, other] = [Congestion::Scavenger, other].map(|congestion| {
        let net = u8::from(congestion != Congestion::Scavenger);
        let mut setup = Setup::new(500 + u64::from(net), "delay=25ms mtu=1500");
        setup.net = net;
        setup.change = Box::new(move |config, _| config.congestion = congestion);
        Pair::join(setup, &mut world, neck)
    });
    let received = |world: &World<Side>, [_, b]: [usize; 2]| world.node(b).received_bytes as f64;
    world.node_mut(scavenger[0]).stopped = false;
    world.run_for(secs(8.0));
    world.node_mut(other[0]).stopped = false;
    world.run_for(secs(10.0));
    let before = [received(&world, scavenger), received(&world, other)];
    world.run_for(secs(20.0));
    let got = [
        received(&world, scavenger) - before[0],
        received(&world, other) - before[1],
    ];
    world.node_mut(other[0]).stopped = true;
    world.run_for(secs(10.0));
    let before = received(&world, scavenger);
    world.run_for(secs(10.0));
    let alone = (received(&world, scavenger) - before) / 10.0 / (MBIT as f64 * 125_000.0 * 0.96);
    (got[0] / (got[0] + got[1]), alone)
}

#[test]
fn a_scavenger_leaves_the_link_to_others_and_takes_it_back() {
    for other in [Congestion::Cubic, Congestion::Auto] {
        for buffer in [1_250_000, 3_000_000] {
            let (share, alone) = scavenge(other, buffer);
            println!(
                "beside {other:?}, buffer {buffer}: {share:.3} of both, then {alone:.3} of the link"
            );
            // `auto` leaves queues alone that TCP fills: it is given way to a little later.
            let most = if other == Congestion::Auto {
                0.25
            } else {
                0.05
            };
            assert!(share <= most, "{share}");
            assert!(alone >= 0.9, "{alone}");
        }
    }
}

/// Of eight tunnels one minute is a matter of chance: they are judged by the mean of three worlds.
#[test]
fn tunnels_share_as_they_did() {
    let rivals = [2.0, 5.0].map(|buffer| Mix {
        rivals: 1,
        ..mixes(&[1], &[buffer], &[0.0], 7)[0]
    });
    let mut mixes_of_one_world = mixes(&[2, 4], &[0.5, 2.0], &[0.0], 7);
    mixes_of_one_world.extend(mixes(&[4], &[1.0], &[1.0], 7));
    mixes_of_one_world.extend(rivals);
    let eight: Vec<Mix> = [0.5, 2.0]
        .iter()
        .flat_map(|&buffer| [7, 8, 9].map(|seed| (buffer, seed)))
        .map(of_eight)
        .collect();
    let mixes = [mixes_of_one_world, eight].concat();
    let shared = run(&mixes, 10.0, 60.0);
    let table: String = mixes
        .iter()
        .zip(&shared)
        .map(|(mix, shared)| format!("{}: {}\n", mix.name(), shared.row()))
        .collect();
    println!("{table}");
    compare(TABLE, &table);
    let mut rest = &shared[..];
    for alike in mixes.chunk_by(|one, next| one.name() == next.name()) {
        let (shared, others) = rest.split_at(alike.len());
        rest = others;
        let (name, count) = (alike[0].name(), shared.len() as f64);
        let mean = |of: fn(&Shared) -> f64| shared.iter().map(of).sum::<f64>() / count;
        if alike[0].rivals > 0 {
            assert!(
                (0.35..=0.65).contains(&shared[0].shares[0]),
                "{name}: a share of {}",
                shared[0].shares[0]
            );
        } else {
            assert!(
                mean(|shared| shared.jain) >= 0.95,
                "{name}: Jain below 0.95"
            );
            assert!(
                shared.iter().all(|shared| shared.jain >= 0.9),
                "{name}: Jain below 0.9"
            );
        }
        assert!(
            mean(|shared| shared.dropped) <= 0.01,
            "{name}: drops above 1 %"
        );
        assert!(mean(|shared| shared.eta) >= 0.95, "{name}: η below 0.95");
    }
}

fn of_eight((buffer, seed): (f64, u64)) -> Mix {
    mixes(&[8], &[buffer], &[0.0], seed)[0]
}

/// `TPO_SEED` chooses another world.
fn seed() -> u64 {
    std::env::var("TPO_SEED").map_or(7, |seed| seed.parse().expect("a number"))
}

#[test]
#[ignore = "a table for people"]
fn table() {
    let mixes = mixes(&[2, 4, 8], &[0.5, 1.0, 2.0, 5.0], &[0.0, 1.0], seed());
    for (mix, shared) in mixes.iter().zip(run(&mixes, 10.0, 60.0)) {
        println!("{}: {}", mix.name(), shared.row());
    }
}

/// One mix of flows of your choice: `TPO_MIX="2 0 100 50 1 0"` is tunnels, CUBIC flows, Mbit/s,
/// ms, products of buffer, loss in percent.
#[test]
#[ignore = "a tool for people"]
fn mix() {
    let Ok(text) = std::env::var("TPO_MIX") else {
        return;
    };
    let fields: Vec<f64> = text
        .split_whitespace()
        .map(|field| field.parse().expect("a number"))
        .collect();
    let [tunnels, rivals, mbit, rtt_ms, buffer, loss_percent] = fields[..] else {
        panic!("six numbers")
    };
    let mix = Mix {
        tunnels: tunnels as usize,
        rivals: rivals as usize,
        mbit,
        rtt_ms,
        buffer,
        loss_percent,
        seed: seed(),
    };
    println!("{}: {}", mix.name(), mix.share(0.0, 60.0).row());
}
