use super::*;

fn link(text: &str) -> (Link, Instant) {
    let now = Instant::now();
    (Link::new(text.parse().unwrap(), 42, now), now)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn arrival(fate: Fate) -> Option<Instant> {
    match fate {
        Fate::Delivered(delivery) => Some(delivery.at),
        Fate::Dropped(_) => None,
    }
}

#[test]
fn the_rate_is_as_asked() {
    for (text, rate) in [
        ("1mbit", 1e6),
        ("100mbit", 1e8),
        ("1gbit", 1e9),
        ("97gbit", 97e9),
    ] {
        let (mut link, start) = link(&format!("rate={text} queue=100MB"));
        let mut last = start;
        for i in 0..20_000 {
            last = arrival(link.carry(1500 - i % 3, start)).unwrap_or(last);
        }
        let found = link.stats().delivered_bytes as f64 * 8.0 / (last - start).as_secs_f64();
        assert!((found / rate - 1.0).abs() < 1e-5, "{text}: {found}");
    }
}

#[test]
fn a_lone_packet_takes_serialisation_and_delay() {
    let (mut link, start) = link("rate=12mbit delay=50ms");
    assert_eq!(arrival(link.carry(1500, start)), Some(start + ms(51)));
    assert_eq!(
        arrival(link.carry(1500, start + ms(10))),
        Some(start + ms(61))
    );
}

#[test]
fn a_perfect_link_changes_nothing() {
    let (mut link, start) = link("perfect");
    for i in 0..1000 {
        let now = start + Duration::from_nanos(i);
        let expected = Fate::Delivered(Delivery {
            at: now,
            again: None,
            corrupt: false,
        });
        assert_eq!(link.carry(65_000, now), expected);
    }
    assert_eq!(link.stats().queue_max_bytes, 0);
}

#[test]
fn the_queue_drops_what_would_wait_beyond_its_limit() {
    let (mut link, start) = link("rate=12mbit delay=500ms queue=15000");
    let taken = (0..100)
        .filter(|_| arrival(link.carry(1500, start)).is_some())
        .count();
    assert_eq!(
        taken, 10,
        "the bytes in propagation do not count, those at the bottleneck do"
    );
    assert_eq!(
        (link.stats().dropped_queue, link.stats().queue_max_bytes),
        (90, 15_000)
    );
    assert_eq!(link.waiting(start + ms(5)), 7_500);
    assert!(
        arrival(link.carry(1500, start + ms(1))).is_some(),
        "one has left, one finds room"
    );
    assert!(arrival(link.carry(1500, start + ms(1))).is_none());
}

#[test]
fn an_idle_bottleneck_takes_a_packet_larger_than_the_queue() {
    let (mut link, start) = link("rate=12mbit queue=1000B");
    assert!(arrival(link.carry(1500, start)).is_some());
    assert!(arrival(link.carry(1500, start)).is_none());
    assert!(arrival(link.carry(1500, start + ms(1))).is_some());
}

#[test]
fn what_is_lost_has_used_the_bottleneck() {
    let (mut link, start) = link("rate=12mbit loss=100% queue=1MB");
    for _ in 0..10 {
        assert_eq!(link.carry(1500, start), Fate::Dropped(Cause::Loss));
    }
    assert_eq!(link.waiting(start), 15_000);
}

#[test]
fn loss_duplicates_and_corruption_are_as_asked() {
    let (mut link, start) = link("loss=5% duplicate=2% corrupt=1% reorder=3% delay=10ms");
    let total = 200_000;
    let mut late = 0;
    for _ in 0..total {
        late += u32::from(arrival(link.carry(100, start)).is_some_and(|at| at > start + ms(10)));
    }
    let stats = link.stats();
    let near = |count: u64, share: f64| (count as f64 / total as f64 / share - 1.0).abs() < 0.05;
    assert!(near(stats.dropped_loss, 0.05), "{stats:?}");
    assert!(near(stats.duplicated, 0.02 * 0.95), "{stats:?}");
    assert!(near(stats.corrupted, 0.01 * 0.95), "{stats:?}");
    assert!(near(stats.reordered, 0.03 * 0.95), "{stats:?}");
    assert_eq!(u64::from(late), stats.reordered);
    assert_eq!(stats.delivered_packets + stats.dropped_loss, total);
}

#[test]
fn jitter_is_uniform_and_inside_its_bounds() {
    let (mut link, start) = link("delay=10ms jitter=4ms");
    let delays: Vec<f64> = (0..50_000)
        .map(|_| (arrival(link.carry(100, start)).unwrap() - start).as_secs_f64() * 1e3)
        .collect();
    let mean = delays.iter().sum::<f64>() / delays.len() as f64;
    assert!((mean - 12.0).abs() < 0.05, "{mean}");
    assert!(delays.iter().all(|d| (10.0..=14.0).contains(d)));
    assert!(delays.iter().any(|d| *d < 10.1) && delays.iter().any(|d| *d > 13.9));
}

#[test]
fn order_holds_without_jitter_even_when_the_delay_shrinks() {
    let (mut link, start) = link("rate=100mbit delay=100ms at=20ms:delay=10ms");
    let mut last = start;
    for i in 0..100 {
        let at = arrival(link.carry(1500, start + ms(i))).unwrap();
        assert!(at >= last, "packet {i}");
        last = at;
    }
    assert_eq!(
        arrival(link.carry(1500, start + ms(500))),
        Some(start + ms(510) + Duration::from_micros(120))
    );
}

#[test]
fn an_outage_takes_all_that_leaves_within_it() {
    let (mut link, start) = link("rate=12mbit delay=5ms outage=10ms+20ms");
    let fate = |link: &mut Link, at| link.carry(1500, start + ms(at));
    assert!(arrival(fate(&mut link, 8)).is_some());
    assert_eq!(
        fate(&mut link, 9),
        Fate::Dropped(Cause::Outage),
        "leaves the bottleneck at 10 ms"
    );
    assert_eq!(fate(&mut link, 28), Fate::Dropped(Cause::Outage));
    assert!(arrival(fate(&mut link, 29)).is_some());
    assert_eq!(link.stats().dropped_outage, 2);
    link.set("outage=0s+10ms".parse().unwrap(), start + ms(100));
    assert_eq!(
        fate(&mut link, 105),
        Fate::Dropped(Cause::Outage),
        "counted from when the profile was set"
    );
    assert!(arrival(fate(&mut link, 111)).is_some());
}

#[test]
fn a_new_rate_holds_for_new_packets_and_the_backlog_keeps_its_bytes() {
    let (mut link, start) = link("rate=12mbit queue=30000");
    for _ in 0..10 {
        assert!(arrival(link.carry(1500, start)).is_some());
    }
    link.set("rate=120mbit queue=30000".parse().unwrap(), start + ms(5));
    assert_eq!(link.waiting(start + ms(5)), 7_500);
    let after = start + ms(10) + Duration::from_micros(100);
    assert_eq!(arrival(link.carry(1500, start + ms(5))), Some(after));
    assert_eq!(link.waiting(start + ms(5)), 9_000);
    let room = (0..100)
        .filter(|_| arrival(link.carry(1500, start + ms(5))).is_some())
        .count();
    assert_eq!(room, 14);
}

#[test]
fn packets_longer_than_the_mtu_vanish() {
    let (mut link, start) = link("mtu=1400 rate=12mbit");
    assert_eq!(link.carry(1401, start), Fate::Dropped(Cause::Size));
    assert!(arrival(link.carry(1400, start)).is_some());
    assert_eq!((link.stats().dropped_size, link.waiting(start)), (1, 1400));
}

#[test]
fn the_schedule_is_kept() {
    let (mut link, start) = link("delay=1ms at=10ms:loss=100% at=20ms:loss=0%,delay=2ms");
    assert_eq!(arrival(link.carry(100, start)), Some(start + ms(1)));
    assert_eq!(link.carry(100, start + ms(10)), Fate::Dropped(Cause::Loss));
    assert_eq!(
        arrival(link.carry(100, start + ms(20))),
        Some(start + ms(22))
    );
    assert_eq!(link.profile().delay, ms(2));
}

#[test]
fn the_same_seed_gives_the_same_fates() {
    let text = "storm";
    let now = Instant::now();
    let run = |seed| {
        let mut link = Link::new(text.parse().unwrap(), seed, now);
        (0..1000)
            .map(|i| link.carry(1000, now + ms(i)))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_policer_drops_what_comes_faster_and_makes_no_queue() {
    let start = Instant::now();
    let mut link = Link::new(
        "police=8mbit bucket=10000 delay=5ms".parse().unwrap(),
        1,
        start,
    );
    let mut passed = |from: u64, until: u64, step: u64| {
        let mut bytes = 0;
        for at in (from..until).step_by(step as usize) {
            let now = start + Duration::from_micros(at);
            if let Fate::Delivered(delivery) = link.carry(1_000, now) {
                assert_eq!(
                    delivery.at,
                    now + Duration::from_millis(5),
                    "it does not wait"
                );
                bytes += 1_000;
            }
        }
        bytes
    };
    // A megabyte per second, and a full bucket at first.
    assert_eq!(passed(0, 100_000, 100), 109_000);
    // Slower than that everything passes; after a rest the bucket is full again, and no fuller.
    assert_eq!(passed(200_000, 300_000, 2_000), 50_000);
    assert_eq!(passed(1_000_000, 1_010_000, 100), 19_000);
    assert_eq!(link.stats().dropped_police, 900 - 9 + 100 - 19);
}
