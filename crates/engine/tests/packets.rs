//! Worlds of two peers that carry datagrams over a bad WAN: what arrives, how late, at what cost,
//! and that nothing is left behind.

#[path = "world/who.rs"]
#[allow(unreachable_pub)]
mod who;

use std::{io::IoSlice, net::SocketAddr, time::Duration, time::Instant};

use tpo_engine::{
    Class, Delivery, Event, FlowId, FlowKind, Limits, PacketKey, Peer, Read, SendError, Source,
    Status, StreamKey, Treatment,
};
use tpo_lab::{Node, Profile, World};
use who::{A, B, address, config};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const UDP: u8 = 17;

/// A stream of datagrams: each begins with its number and the time at which it was sent.
#[derive(Clone, Copy)]
struct Stream {
    key: PacketKey,
    delivery: Delivery,
    in_order: bool,
    size: usize,
    every: Duration,
    until: Duration,
}

/// A peer, what it sends, and what came.
struct Site {
    peer: Peer,
    start: Instant,
    streams: Vec<(Stream, u64, Duration)>,
    sent: u64,
    refused: Vec<SendError>,
    /// Number, delay.
    came: Vec<(u64, Duration)>,
    echoes: bool,
    replies: u64,
    forbids: bool,
    events: Vec<Event>,
    /// A transfer beside it, that always has more and is always taken.
    bulk: Option<FlowId>,
}

struct Always;

impl Source for Always {
    fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
        Read::Bytes(into.len())
    }
}

impl Site {
    fn follow(&mut self, now: Instant) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::PacketFlow { flow, .. } if self.forbids => {
                    self.peer.reset(flow, Status::NotAllowed, now)
                }
                Event::Open { flow, .. } => {
                    self.peer.accept(flow, now);
                    self.bulk = Some(flow);
                }
                _ => {}
            }
            self.events.push(event);
        }
        let mut answers = Vec::new();
        let (came, echoes, start) = (&mut self.came, self.echoes, self.start);
        let mut replies = 0;
        self.peer.take_packets(|arrived| {
            let word = |at: usize| {
                u64::from_be_bytes(arrived.bytes[at..at + 8].try_into().expect("eight bytes"))
            };
            assert!(arrived.bytes[16..].iter().all(|byte| *byte == 7));
            if arrived.is_reply {
                replies += 1;
            } else {
                came.push((word(0), now - start - Duration::from_nanos(word(8))));
                if echoes && *arrived.key == key(2) {
                    answers.push((arrived.key.turned(), arrived.bytes.to_vec()));
                }
            }
        });
        self.replies += replies;
        for (key, bytes) in answers {
            self.peer
                .send_packet(&key, (Class::Normal, Delivery::Timely), &bytes, now)
                .expect("room for an answer");
        }
        if let Some(flow) = self.bulk {
            let mut slices: Vec<IoSlice<'_>> = Vec::new();
            self.peer.deliverable(flow, &mut slices);
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            self.peer.delivered(flow, bytes, now);
        }
        self.peer.check_invariants();
    }
}

impl Node for Site {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant) {
        self.peer.handle_datagram(from, datagram, now);
        self.follow(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.peer.poll_timeout().is_some_and(|at| at <= now) {
            self.peer.handle_timeout(now);
        }
        if !self.peer.is_connected() {
            return;
        }
        let at = now - self.start;
        for (stream, number, next) in &mut self.streams {
            while *next <= at && *next < stream.until {
                let mut bytes = vec![7; stream.size];
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                bytes[8..16].copy_from_slice(&(next.as_nanos() as u64).to_be_bytes());
                let treatment = Treatment {
                    in_order: stream.in_order,
                    ..Class::Normal.into()
                };
                match self
                    .peer
                    .send_packet(&stream.key, (treatment, stream.delivery), &bytes, now)
                {
                    Ok(_) => self.sent += 1,
                    Err(error) => self.refused.push(error),
                }
                *number += 1;
                *next += stream.every;
            }
        }
        self.follow(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let streams = self
            .streams
            .iter()
            .filter(|(stream, _, next)| *next < stream.until && self.peer.is_connected());
        let next = streams.map(|(_, _, next)| self.start + *next);
        self.peer.poll_timeout().into_iter().chain(next).min()
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        let transmit = self.peer.poll_transmit(&mut Always, out, now)?;
        Some((transmit.to, transmit.segment_size))
    }

    fn drained(&mut self, now: Instant) {
        self.follow(now);
    }
}

fn site(side: usize, seed: u64, limits: Limits, start: Instant, now: Instant) -> Site {
    // What is sent here has no content to speak of: it would shrink to nothing.
    let mut config = config(side, seed, limits, true);
    config.compression.compress = tpo_engine::Compress::Off;
    Site {
        peer: Peer::new(config, now),
        start,
        streams: Vec::new(),
        sent: 0,
        refused: Vec::new(),
        came: Vec::new(),
        echoes: false,
        replies: 0,
        forbids: false,
        events: Vec::new(),
        bulk: None,
    }
}

fn world(seed: u64, wan: &str, limits: Limits) -> World<Site> {
    let mut world = World::new(seed);
    let now = world.now();
    for side in [A, B] {
        world.add(address(side), site(side, seed, limits, now, now));
    }
    let profile =
        |text: &str| -> Profile { text.parse().unwrap_or_else(|error| panic!("{error}")) };
    // Bursts are counted in packets. Few go back: a burst of them would last for half a second.
    let back = wan.split(" burst").next().expect("there is a first part");
    world.connect(A, B, profile(wan), profile(back));
    let connected = |world: &World<Site>| {
        [A, B]
            .iter()
            .all(|side| world.node(*side).peer.is_connected())
    };
    assert!(world.run_until(connected, 20 * SECOND));
    world
}

fn key(number: u32) -> PacketKey {
    let source = (std::net::Ipv4Addr::from(0x0a0a_0100 + number), 4_000).into();
    PacketKey::new(UDP, source, ([10, 10, 2, 2], 53).into()).unwrap()
}

fn begin(world: &mut World<Site>, side: usize, stream: Stream) {
    let at = world.elapsed();
    let stream = Stream {
        until: at + stream.until,
        ..stream
    };
    world.node_mut(side).streams.push((stream, 0, at));
    world.kick(side);
}

fn timely(size: usize, every: Duration, time: Duration) -> Stream {
    Stream {
        key: key(2),
        delivery: Delivery::Timely,
        in_order: false,
        size,
        every,
        until: time,
    }
}

/// What became of a stream over 40 ms: the share that arrived, how late, and wire bytes for each
/// byte of its packets.
struct Seen {
    share: f64,
    p50: Duration,
    p99: Duration,
    wire: f64,
}

/// Of the next eight seconds' datagrams, each of `size` bytes.
fn eight_seconds(world: &mut World<Site>, size: usize) -> Seen {
    let (before, first) = (world.link(A, B), world.node(A).sent);
    world.run_for(8 * SECOND);
    let after = world.link(A, B);
    world.run_for(SECOND);
    let sent = world.node(A).sent - first;
    let came: Vec<_> = world
        .node(B)
        .came
        .iter()
        .filter(|(number, _)| *number >= first)
        .collect();
    let mut late: Vec<Duration> = came
        .iter()
        .map(|(_, delay)| delay.saturating_sub(40 * MS))
        .collect();
    late.sort();
    let mut numbers: Vec<u64> = came.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), came.len(), "each comes once");
    Seen {
        share: came.len() as f64 / sent as f64,
        p50: late[late.len() / 2],
        p99: late[late.len() * 99 / 100],
        wire: (after.offered_bytes - before.offered_bytes) as f64
            / (sent as f64 * (size + 28) as f64),
    }
}

/// 20 Mbit/s in small and in large datagrams, with loss by chance and in bursts, alone and beside a
/// transfer that fills the link.
#[test]
fn a_timely_stream_arrives_whole_and_in_time() {
    for (loss, least) in [("loss=2%", 0.999), ("loss=2% burst=5", 0.995)] {
        for (size, every) in [
            (200, Duration::from_micros(80)),
            (1_200, Duration::from_micros(480)),
        ] {
            for beside in [false, true] {
                let mut world = world(
                    3,
                    &format!("rate=100mbit delay=40ms mtu=1500 {loss}"),
                    Limits::default(),
                );
                if beside {
                    let now = world.now();
                    let tcp = StreamKey::new(key(9).source, key(9).destination).unwrap();
                    let peer = &mut world.node_mut(A).peer;
                    let flow = peer.open(tcp, Class::Normal, now).expect("room for a flow");
                    peer.readable(flow, now);
                }
                world.kick(A);
                world.run_for(4 * SECOND);
                // The path learns what it carries in the first two seconds.
                begin(&mut world, A, timely(size, every, 10 * SECOND));
                world.run_for(2 * SECOND);
                let Seen {
                    share,
                    p50,
                    p99,
                    wire,
                } = eight_seconds(&mut world, size);
                println!(
                    "{loss:16} {size:5} bytes, beside a transfer {beside:5}: {:.3} % arrive, {p50:?} p99 {p99:?} late, wire {wire:.3}",
                    share * 100.0
                );
                assert!(share >= least, "{loss} {size} {beside}: {share}");
                // A burst takes the parity along with what it protects; then a round trip is
                // needed.
                let (longest, dearest) = if loss.contains("burst") {
                    (200 * MS, 1.17)
                } else {
                    (10 * MS, 1.15)
                };
                assert!(p99 <= longest, "{loss} {size} {beside}: {p99:?}");
                assert!(beside || wire <= dearest, "{loss} {size}: {wire}");
            }
        }
    }
}

/// Two of a hundred are lost: `reliable` brings every one, `plain` and `timely` nearly, and who is
/// protected hardly waits.
#[test]
fn each_delivery_keeps_its_word() {
    for (delivery, least, longest) in [
        (Delivery::Timely, 0.999, 10 * MS),
        (Delivery::Plain, 0.999, 110 * MS),
        (Delivery::Reliable, 1.0, 110 * MS),
    ] {
        let mut world = world(
            19,
            "rate=100mbit delay=40ms mtu=1500 loss=2%",
            Limits::default(),
        );
        begin(
            &mut world,
            A,
            Stream {
                delivery,
                ..timely(1_200, Duration::from_micros(480), 12 * SECOND)
            },
        );
        world.run_for(4 * SECOND);
        let Seen {
            share,
            p50,
            p99,
            wire,
        } = eight_seconds(&mut world, 1_200);
        println!(
            "{delivery:?}: {:.3} % arrive, {p50:?} p99 {p99:?} late, wire {wire:.3}",
            share * 100.0
        );
        assert!(
            share >= least && p99 <= longest,
            "{delivery:?}: {share}, {p99:?}"
        );
    }
}

/// What a network reorders by less than a millisecond arrives in order; by more, each waits for a
/// millisecond at most.
#[test]
fn order_is_kept_within_a_millisecond() {
    for (by, in_order) in [("900us", true), ("10ms", false)] {
        let wan = format!("rate=100mbit delay=20ms mtu=1500 reorder=10% reorder_by={by}");
        let mut world = world(13, &wan, Limits::default());
        begin(
            &mut world,
            A,
            timely(500, Duration::from_micros(250), 3 * SECOND),
        );
        world.run_for(4 * SECOND);
        let came = &world.node(B).came;
        assert_eq!(came.len() as u64, world.node(A).sent);
        let turned = came.windows(2).filter(|two| two[1].0 < two[0].0).count();
        // The link is still being found out in the first second.
        let longest = came
            .iter()
            .filter(|(number, _)| *number > 4_000)
            .map(|(_, delay)| *delay)
            .max()
            .expect("some came");
        println!(
            "reordered by {by}: {turned} of {} out of order, the longest took {longest:?}",
            came.len()
        );
        assert_eq!(turned == 0, in_order, "{turned} of {}", came.len());
        assert!(
            longest < if in_order { 24 * MS } else { 34 * MS },
            "{longest:?}"
        );
    }
}

/// Both sides begin a flow of the same name at the same time, again and again: each hears
/// everything, whichever of the two flows stays.
#[test]
fn flows_that_cross_are_one() {
    for seed in 0..40 {
        let mut world = world(
            seed,
            "rate=10mbit delay=30ms jitter=5ms mtu=1500",
            Limits::default(),
        );
        let some = |number: u32| Stream {
            key: key(number),
            ..timely(100, 70 * MS, 700 * MS)
        };
        for number in 10..14 {
            begin(&mut world, A, some(number));
            world.run_for(MS * (7 * seed as u32 % 80));
            begin(&mut world, B, some(number));
            world.run_for(SECOND);
        }
        for side in [A, B] {
            let site = world.node(side);
            let heard = site.came.len() as u64 + site.replies;
            assert_eq!((site.sent, heard), (40, 40), "seed {seed}, side {side}");
            assert_eq!(
                site.peer.packet_flows(),
                4,
                "seed {seed}: one for each pair of ends"
            );
        }
    }
}

/// A sender that takes three datagrams after a gap for a loss sees none of what parity brings back,
/// if its rule asks for order.
#[test]
fn order_is_kept_while_parity_brings_back_what_is_lost() {
    let run = |in_order| {
        let mut world = world(
            17,
            "rate=100mbit delay=20ms mtu=1500 loss=2%",
            Limits::default(),
        );
        begin(
            &mut world,
            A,
            Stream {
                in_order,
                ..timely(1_200, Duration::from_micros(480), 12 * SECOND)
            },
        );
        world.run_for(14 * SECOND);
        // The link is still being found out in the first second.
        let came: Vec<_> = world
            .node(B)
            .came
            .iter()
            .filter(|(number, _)| *number > 4_000)
            .collect();
        let mut late: Vec<Duration> = came
            .iter()
            .map(|(_, delay)| delay.saturating_sub(20 * MS))
            .collect();
        late.sort();
        let gaps = came.windows(4).filter(|four| {
            four[0].0 + 1 < four[1..].iter().map(|(number, _)| *number).min().unwrap()
        });
        (
            came.len(),
            gaps.count(),
            late[late.len() / 2],
            late[late.len() * 99 / 100],
            *late.last().unwrap(),
        )
    };
    let (with, without) = (run(true), run(false));
    println!(
        "arrived, gaps of three, late p50, p99, most; in order: {with:?}, as they come: {without:?}"
    );
    // Two losses in a block take a round trip, and nobody waits that long.
    assert!(without.1 > 500, "{without:?}");
    assert!(with.1 < without.1 * 2 / 5, "{with:?}");
    assert!(with.0 >= without.0 - 2, "none is lost by waiting");
    assert!(with.3 <= 13 * MS, "{with:?}");
}

/// On a path so long that a repair comes too late to be of use, it is not given on; a flow that
/// wants all of its datagrams gets them.
#[test]
fn what_is_too_late_is_dropped_unless_all_are_wanted() {
    let run = |delivery| {
        let mut world = world(
            15,
            "rate=50mbit delay=300ms mtu=1500 loss=5% burst=6",
            Limits::default(),
        );
        begin(
            &mut world,
            A,
            Stream {
                delivery,
                ..timely(1_000, 2 * MS, 10 * SECOND)
            },
        );
        world.run_for(20 * SECOND);
        // After the last of 5,000 nothing comes that would show how late they are.
        let settled = world
            .node(B)
            .came
            .iter()
            .filter(|(number, _)| (2_000..4_900).contains(number));
        let longest = settled.map(|(_, delay)| *delay).max().expect("some came");
        let late = world.node(B).peer.stats().counters.packets.late;
        let lost = world
            .node(B)
            .peer
            .flows()
            .map(|flow| match flow.kind {
                FlowKind::Packets(packets) => u64::from(packets.lost_in),
                FlowKind::Stream(_) => 0,
            })
            .sum::<u64>();
        let stale = world.node(A).peer.stats().counters.packets.stale;
        assert_eq!(
            world.node(B).came.len() as u64 + lost + stale,
            world.node(A).sent,
            "every one is known of"
        );
        (lost, late, longest)
    };
    let (lost, late, longest) = run(Delivery::Timely);
    assert!(late > 0 && lost == late, "{lost} lost, {late} late");
    assert!(longest < 700 * MS, "{longest:?}");
    let (lost, late, longest) = run(Delivery::Reliable);
    assert_eq!((lost, late), (0, 0));
    assert!(longest > 900 * MS, "{longest:?}");
}

/// A flow of packets both ways lives longer than a question without an answer, and both sides
/// forget it.
#[test]
fn a_flow_ends_when_it_rests() {
    let mut world = world(5, "rate=20mbit delay=30ms loss=2%", Limits::default());
    begin(&mut world, A, timely(100, 100 * MS, SECOND));
    world.run_for(20 * SECOND);
    assert_eq!(
        [A, B].map(|side| world.node(side).peer.stats().packet_flows),
        [1, 1]
    );
    world.run_for(25 * SECOND);
    assert_eq!(
        [A, B].map(|side| world.node(side).peer.stats().packet_flows),
        [0, 0],
        "nobody answered"
    );
    world.node_mut(B).echoes = true;
    begin(&mut world, A, timely(100, 100 * MS, SECOND));
    world.run_for(150 * SECOND);
    assert_eq!(world.node(A).replies, 10);
    assert_eq!(
        [A, B].map(|side| world.node(side).peer.stats().packet_flows),
        [1, 1]
    );
    world.run_for(60 * SECOND);
    assert_eq!(
        [A, B].map(|side| world.node(side).peer.stats().flows),
        [0, 0]
    );
    let closed = world
        .node(B)
        .events
        .iter()
        .filter(|event| matches!(event, Event::Closed { .. }))
        .count();
    assert_eq!(closed, 2);
}

/// Many sources that nobody knows take what is left of the room, and no more; whoever was there
/// before is not touched.
#[test]
fn a_flood_of_sources_stays_in_its_bounds() {
    let limits = Limits {
        packet_flows: 2_000,
        ..Limits::default()
    };
    let mut world = world(7, "rate=100mbit delay=20ms loss=1%", limits);
    world.node_mut(B).echoes = true;
    begin(&mut world, A, timely(100, 20 * MS, 60 * SECOND));
    world.run_for(SECOND);
    for number in 0..20_000 {
        begin(
            &mut world,
            A,
            Stream {
                key: key(1_000 + number),
                ..timely(60, SECOND, 500 * MS)
            },
        );
        if number % 20 == 0 {
            world.run_for(MS);
        }
    }
    world.run_for(59 * SECOND);
    let stats = world.node(A).peer.stats();
    assert!(stats.counters.packets.flows_refused > 17_000, "{stats:?}");
    let established = world
        .node(B)
        .came
        .iter()
        .filter(|(number, _)| *number > 0)
        .count();
    assert!(established >= 2_990, "{established} of 2,999 arrived");
    world.run_for(40 * SECOND);
    assert_eq!(
        [A, B].map(|side| world.node(side).peer.stats().packet_flows),
        [1, 1],
        "only the one that was answered"
    );
}

/// What the far side does not allow is not asked again with each datagram.
#[test]
fn a_refused_flow_rests_for_a_while() {
    let mut world = world(9, "rate=20mbit delay=20ms", Limits::default());
    world.node_mut(B).forbids = true;
    begin(&mut world, A, timely(100, 10 * MS, 25 * SECOND));
    world.run_for(30 * SECOND);
    let opened = world.node(B).peer.stats().counters.flows.opened_there;
    assert!((2..=4).contains(&opened), "{opened}");
    assert!(
        world
            .node(A)
            .refused
            .iter()
            .all(|error| *error == SendError::Refused)
    );
    assert!(world.node(A).refused.len() > 2_000);
    assert_eq!(world.node(B).came.len(), 0);
}

/// The far daemon is killed and started again: the flow goes on by itself.
#[test]
fn a_flow_goes_on_after_a_restart() {
    let mut world = world(11, "rate=20mbit delay=20ms loss=1%", Limits::default());
    begin(&mut world, A, timely(100, 10 * MS, 20 * SECOND));
    world.run_for(5 * SECOND);
    let (start, now) = (world.node(B).start, world.now());
    let old = world.replace(B, site(B, 99, Limits::default(), start, now));
    assert!(old.came.len() > 450);
    world.kick(B);
    world.run_for(16 * SECOND);
    assert!(
        world.node(B).came.len() > 1_000,
        "{}",
        world.node(B).came.len()
    );
    assert_eq!(world.node(A).peer.stats().packet_flows, 1);
}
