use super::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Sends numbered datagrams on a timer and notes what it gets.
struct Talker {
    to: SocketAddr,
    left: u32,
    batch: u32,
    size: usize,
    every: Duration,
    next: Option<Instant>,
    due: bool,
    got: Vec<(Instant, Vec<u8>)>,
    drained: u32,
}

impl Node for Talker {
    fn handle_datagram(&mut self, _: SocketAddr, datagram: &mut [u8], now: Instant) {
        self.got.push((now, datagram.to_vec()));
    }

    fn handle_timeout(&mut self, now: Instant) {
        assert!(self.next.is_some_and(|next| next <= now), "not due yet");
        self.due = true;
        self.next = Some(now + self.every);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.next.filter(|_| self.left > 0)
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, _: Instant) -> Option<(SocketAddr, usize)> {
        if !std::mem::take(&mut self.due) || self.left == 0 {
            return None;
        }
        let batch = self.batch.min(self.left);
        for _ in 0..batch {
            self.left -= 1;
            out.extend_from_slice(&self.left.to_be_bytes());
            out.resize(out.len() + self.size - 4, 0x5a);
        }
        Some((self.to, self.size))
    }

    fn drained(&mut self, _: Instant) {
        self.drained += 1;
    }
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 1000))
}

fn talker(to: u8, left: u32, world: &World<Talker>) -> Talker {
    Talker {
        to: address(to),
        left,
        batch: 1,
        size: 972,
        every: Duration::from_millis(1),
        next: Some(world.now()),
        due: false,
        got: Vec::new(),
        drained: 0,
    }
}

/// Two talkers, the first of which sends.
fn pair(seed: u64, link: &str, left: u32) -> World<Talker> {
    let mut world = World::new(seed);
    let sender = talker(2, left, &world);
    let receiver = talker(1, 0, &world);
    let a = world.add(address(1), sender);
    let b = world.add(address(2), receiver);
    world.connect(a, b, link.parse().unwrap(), link.parse().unwrap());
    world
}

#[test]
fn datagrams_arrive_when_the_link_says() {
    let mut world = pair(1, "rate=8mbit delay=10ms", 3);
    assert!(world.run_until(|w| w.node(1).got.len() == 3, Duration::from_secs(1)));
    // 1000 bytes with headers take 1 ms at 8 Mbit/s.
    let times: Vec<u128> = world
        .node(1)
        .got
        .iter()
        .map(|(at, _)| (*at - world.start).as_micros())
        .collect();
    assert_eq!(times, [11_000, 12_000, 13_000]);
    assert_eq!(world.link(0, 1).delivered_bytes, 3_000);
    assert!(world.node(1).drained >= 3);
    assert!(!world.step(), "nothing is left to happen");
}

#[test]
fn a_train_is_cut_into_its_segments() {
    let mut world = pair(1, "perfect", 10);
    world.node_mut(0).batch = 10;
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.node(1).got.len(), 10);
    assert!(
        world
            .node(1)
            .got
            .iter()
            .all(|(_, bytes)| bytes.len() == 972)
    );
    assert_eq!(world.elapsed(), Duration::from_secs(1));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = pair(seed, "storm", 2_000);
        world.run_for(Duration::from_secs(5));
        (world.trace(), world.node(1).got.len())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}

#[test]
fn corruption_flips_bits_and_duplicates_come_whole() {
    let mut world = pair(5, "corrupt=100% duplicate=100%", 100);
    world.run_for(Duration::from_secs(1));
    let got = &world.node(1).got;
    assert_eq!(got.len(), 200);
    let whole = got
        .iter()
        .filter(|(_, bytes)| bytes[0..2] == [0, 0] && bytes[4..].iter().all(|b| *b == 0x5a))
        .count();
    assert!((100..110).contains(&whole), "{whole} whole ones");
}

#[test]
fn taps_see_alter_and_drop_and_replays_arrive() {
    let mut world = pair(1, "delay=1ms", 10);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let notes = seen.clone();
    world.on_send(move |from, to, bytes| {
        assert_eq!((from, to), (address(1), address(2)));
        notes.borrow_mut().push(bytes.clone());
        bytes.truncate(20);
        if bytes[3] % 2 == 0 {
            Verdict::Keep
        } else {
            Verdict::Drop
        }
    });
    world.run_for(Duration::from_millis(100));
    assert_eq!(seen.borrow().len(), 10);
    assert_eq!(world.node(1).got.len(), 5);
    assert!(world.node(1).got.iter().all(|(_, bytes)| bytes.len() == 20));
    let replay = seen.borrow()[0].clone();
    world.inject(address(9), 1, replay.clone(), Duration::from_millis(7));
    world.run_for(Duration::from_millis(7));
    assert_eq!(world.node(1).got.last(), Some(&(world.now(), replay)));
}

#[test]
fn a_restart_keeps_what_flies_and_links_change() {
    let mut world = pair(1, "delay=50ms", 20);
    world.run_for(Duration::from_millis(10));
    let fresh = talker(1, 0, &world);
    let old = world.replace(1, fresh);
    assert!(old.got.is_empty());
    world.set(0, 1, "loss=100%".parse().unwrap());
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.node(1).got.len(), 11, "those sent from 0 to 10 ms");
}

#[test]
fn nobody_there_is_counted() {
    let mut world = pair(1, "perfect", 1);
    world.node_mut(0).to = address(77);
    world.run_for(Duration::from_millis(5));
    assert_eq!(world.unroutable(), 1);
}

/// Asks for a timeout that has passed, without end.
struct Stuck(Instant, Duration);

impl Node for Stuck {
    fn handle_datagram(&mut self, _: SocketAddr, _: &mut [u8], _: Instant) {}
    fn handle_timeout(&mut self, now: Instant) {
        if !self.1.is_zero() {
            self.0 = now + self.1;
        }
    }
    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.0)
    }
    fn poll_transmit(&mut self, _: &mut Vec<u8>, _: Instant) -> Option<(SocketAddr, usize)> {
        None
    }
}

#[test]
#[should_panic(expected = "timer storm")]
fn a_timeout_that_stays_in_the_past_is_a_failure() {
    let mut world = World::new(1);
    let now = world.now();
    world.add(address(1), Stuck(now, Duration::ZERO));
    world.run_for(Duration::from_secs(1));
}

#[test]
#[should_panic(expected = "timer storm")]
fn a_timeout_every_nanosecond_is_a_failure() {
    let mut world = World::new(1);
    let now = world.now();
    world.add(address(1), Stuck(now, Duration::from_nanos(1)));
    world.run_for(Duration::from_secs(1));
}

/// Sends trains as fast as a timer lets it; counts what it gets.
struct Counter {
    to: SocketAddr,
    next: Option<Instant>,
    due: bool,
    got: u32,
}

impl Node for Counter {
    fn handle_datagram(&mut self, _: SocketAddr, _: &mut [u8], _: Instant) {
        self.got += 1;
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.due = true;
        self.next = Some(now + Duration::from_millis(1));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, _: Instant) -> Option<(SocketAddr, usize)> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        out.resize(40 * 1400, 7);
        Some((self.to, 1400))
    }
}

/// Prints what a datagram costs (`--nocapture`), some 0.2 microseconds. Real time is not asserted.
#[test]
fn it_is_fast() {
    let mut world = World::new(1);
    let next = Some(world.now());
    let a = world.add(
        address(1),
        Counter {
            to: address(2),
            next,
            due: false,
            got: 0,
        },
    );
    let b = world.add(
        address(2),
        Counter {
            to: address(1),
            next: None,
            due: false,
            got: 0,
        },
    );
    let link: Profile = "rate=1gbit delay=20ms loss=1%".parse().unwrap();
    world.connect(a, b, link.clone(), link);
    let begun = Instant::now();
    world.run_for(Duration::from_secs(5));
    let each = begun.elapsed() / 200_000;
    println!(
        "{each:?} per datagram, {:.0} per second",
        1.0 / each.as_secs_f64()
    );
    assert!(world.node(b).got > 190_000, "{}", world.node(b).got);
}

#[test]
fn a_bottleneck_is_shared() {
    let mut world = World::new(3);
    for n in 0..4 {
        let node = Talker {
            batch: 10,
            next: (n % 2 == 0).then(|| world.now()),
            ..talker(n + 2, 10, &world)
        };
        world.add(address(n + 1), node);
    }
    let profile = |text: &str| text.parse::<Profile>().unwrap();
    world.connect(0, 1, profile("delay=10ms"), Profile::default());
    world.connect(2, 3, profile("delay=20ms"), Profile::default());
    // A datagram of 1,000 bytes takes a millisecond, and 14 wait at most.
    let neck = world.bottleneck(profile("rate=8mbit queue=14000"));
    world.lead_through(0, 1, neck);
    world.lead_through(2, 3, neck);
    let start = world.now();
    world.run_for(Duration::from_millis(100));
    let came = |n: usize| -> Vec<u128> {
        world
            .node(n)
            .got
            .iter()
            .map(|(at, _)| (*at - start).as_millis())
            .collect()
    };
    // The first ten in their order, then those of the other that found room, each behind its own
    // delay.
    assert_eq!(came(1), (11..=20).collect::<Vec<_>>());
    assert_eq!(came(3), (31..=34).collect::<Vec<_>>());
    let stats = world.bottleneck_stats(neck);
    assert_eq!((stats.offered_packets, stats.dropped_queue), (20, 6));
    assert_eq!(
        (
            world.link(0, 1).offered_packets,
            world.link(2, 3).offered_packets
        ),
        (10, 4)
    );
}
