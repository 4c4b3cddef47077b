use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    Class, CompressionStats, FlowId, Treatment, config::PROPOSED, message, stats::Uncompressed,
};

/// A shrinker with what the driver keeps for it. Its dictionaries are made when `work` is called.
struct Sender {
    shrinker: Shrinker,
    records: HashMap<Option<FlowId>, Record>,
    stats: CompressionStats,
}

impl Sender {
    fn new(how: Compression) -> Sender {
        Sender {
            shrinker: Shrinker::new(how),
            records: HashMap::new(),
            stats: CompressionStats::default(),
        }
    }

    fn shrink(&mut self, buffer: &mut Vec<u8>, flow: Option<FlowId>, rate: u64) {
        self.shrink_as(buffer, flow, Class::Normal.into(), rate);
    }

    fn shrink_as(
        &mut self,
        buffer: &mut Vec<u8>,
        flow: Option<FlowId>,
        treatment: Treatment,
        rate: u64,
    ) {
        let own = self.shrinker.how(&treatment, true);
        let how = if flow.is_some() {
            own
        } else {
            self.shrinker.how_together(own.keeps_apart())
        };
        let record = self.records.entry(flow).or_default();
        self.stats += self
            .shrinker
            .shrink(buffer, (how, flow.is_some()), record, rate);
    }

    fn work(&mut self) {
        if let Some(Made::Shrink { serial, dictionary }) =
            self.shrinker.poll_work().map(|work| work.run().0)
        {
            self.shrinker.on_made(serial, dictionary);
        }
    }
}

/// What has become whole is made at once.
fn poll_ready(expander: &mut Expander) -> Option<(u8, bool)> {
    match expander.poll_ready()? {
        Ok(work) => match work.run().0 {
            Made::Expand { serial, dictionary } => {
                Some((expander.on_made(serial, dictionary)?, true))
            }
            Made::Shrink { .. } => unreachable!("an expander makes dictionaries to expand with"),
        },
        Err(generation) => Some((generation, false)),
    }
}

/// A buffer with its routing header; its messages are opaque to compression.
fn buffer(content: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; message::ROUTING];
    buffer.extend_from_slice(content);
    message::emit_routing(&mut buffer, 1);
    buffer
}

/// Lines of a log: alike, and none like another.
fn text(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut text = Vec::new();
    while text.len() < bytes {
        let line = format!(
            "{{\"time\":\"2026-11-27T03:{:02}:{:02}Z\",\"level\":\"info\",\"request\":\"/api/v2/items/{}\",\"status\":200,\"took_ms\":{}}}\n",
            dice.u8(0..60),
            dice.u8(0..60),
            dice.u32(0..100_000),
            dice.u16(1..900)
        );
        text.extend_from_slice(line.as_bytes());
    }
    text.truncate(bytes);
    text
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| dice.u8(..)).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
fn start() -> Instant {
    Instant::now()
}

const SLOW: u64 = 250_000;

#[test]
fn what_shrinks_comes_out_the_same_and_what_does_not_is_left_alone() {
    let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
    for (size, flow) in [(96, 1), (1_000, 1), (1_000, 2), (16_000, 3), (65_000, 3)] {
        let raw = buffer(&text(size as u64, size));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(flow)), SLOW);
        if size > 500 {
            assert!(
                sent.len() < raw.len() / 2,
                "{size} bytes became {}",
                sent.len()
            );
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
    }
    let (mut tried, before) = (0, shrinker.stats.cpu_ns);
    for seed in 0..200 {
        let raw = buffer(&noise(seed, 16_000));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(9)), SLOW);
        assert_eq!(sent, raw);
        tried += 1;
    }
    let worked = shrinker.stats.cpu_ns - before;
    let all = (f64::from(tried) * 16_000.0 * Compression::default().costs[0]) as u64;
    assert!(
        worked < all / 5,
        "most of what does not shrink is not even tried: {worked} of {all}"
    );
    // Very small ones never are.
    let mut small = buffer(b"hello");
    shrinker.shrink(&mut small, Some(FlowId(1)), SLOW);
    assert_eq!(small, buffer(b"hello"));
}

/// Proposals and answers cross like any message: here at once. What is proposed counts the next
/// buffer in.
fn agree(shrinker: &mut Sender, expander: &mut Expander, rate: u64, now: Instant) {
    shrinker.work();
    while let Some((generation, holds)) = poll_ready(expander) {
        shrinker.shrinker.on_answer(generation, holds);
    }
    if let Some(proposal) = shrinker.shrinker.propose(rate, now)
        && !expander.on_proposal(proposal)
    {
        shrinker.shrinker.on_answer(proposal.generation, false);
    }
}

#[test]
fn small_buffers_gain_by_the_dictionary() {
    let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
    let mut now = start();
    let mut sizes = Vec::new();
    let mut cross = |shrinker: &mut Sender, expander: &mut Expander, number: u64| {
        let raw = buffer(&text(number, 1_000));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(number as u32)), SLOW);
        assert_eq!(expander.expand(&sent).unwrap(), raw);
        agree(shrinker, expander, SLOW, now);
        now += Duration::from_millis(20);
        sent.len()
    };
    sizes.extend((0..200).map(|number| cross(&mut shrinker, &mut expander, number)));
    let (first, last) = (sizes[0], sizes[199]);
    assert!(
        last < first * 3 / 4 && last < 1_000 / 4,
        "{first} bytes at first, {last} with a dictionary"
    );
    assert!(shrinker.shrinker.dictionaries >= 2, "{:?}", shrinker.stats);
    assert!(shrinker.shrinker.held() < 32 << 20 && expander.held() < 16 << 20);
    // At rest little is held, and afterwards it goes on without and with a dictionary.
    shrinker.shrinker.rest();
    expander.rest();
    assert!(
        shrinker.shrinker.held() < 1 << 20,
        "{}",
        shrinker.shrinker.held()
    );
    assert!(
        expander.held() > 0,
        "what is under way may refer to the last dictionaries"
    );
    expander.forget();
    assert_eq!(expander.held(), 0);
    sizes.extend((200..400).map(|number| cross(&mut shrinker, &mut expander, number)));
    assert!(
        sizes[200] > last && sizes[399] < first * 3 / 4,
        "{} {}",
        sizes[200],
        sizes[399]
    );
}

/// Whatever order buffers arrive in, and however late answers are, each is read.
#[test]
fn any_order_can_be_read() {
    for seed in 0..60 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
        let mut now = start();
        let mut under_way: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (mut proposals, mut answers) = (Vec::new(), Vec::new());
        for number in 0..400 {
            let content = if dice.u8(0..6) == 0 {
                noise(number, 2_000)
            } else {
                text(number, dice.usize(100..6_000))
            };
            let raw = buffer(&content);
            let mut sent = raw.clone();
            proposals.extend(shrinker.shrinker.propose(SLOW, now));
            shrinker.shrink(&mut sent, Some(FlowId(dice.u32(1..5))), SLOW);
            under_way.push((sent, raw));
            if dice.u8(0..3) == 0 {
                shrinker.work();
            }
            // Repairs come much later.
            while under_way.len() > 30 || !under_way.is_empty() && dice.bool() {
                let (sent, raw) = under_way.swap_remove(dice.usize(0..under_way.len()));
                let came = if sent[0] == COMPRESSED {
                    expander.expand(&sent).unwrap()
                } else {
                    sent
                };
                assert_eq!(came, raw, "seed {seed}");
                if dice.u8(0..4) == 0 {
                    for proposal in proposals.drain(..) {
                        if !expander.on_proposal(proposal) {
                            answers.push((proposal.generation, false));
                        }
                    }
                }
                answers.extend(poll_ready(&mut expander));
                if dice.bool() {
                    answers.drain(..).for_each(|(generation, holds)| {
                        shrinker.shrinker.on_answer(generation, holds);
                    });
                }
            }
            now += Duration::from_millis(dice.u64(0..40));
        }
        assert!(shrinker.shrinker.dictionaries > 0, "seed {seed}");
    }
}

/// Sizes that lie, frames that are bent, dictionaries that nobody made: refused, and nothing is
/// held for them.
#[test]
fn what_is_bent_is_refused() {
    let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
    let raw = buffer(&text(1, 4_000));
    let mut good = raw.clone();
    shrinker.shrink(&mut good, Some(FlowId(1)), SLOW);
    for seed in 0..20_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut bent = good.clone();
        for _ in 0..dice.usize(1..4) {
            let at = dice.usize(0..bent.len());
            bent[at] ^= 1 << dice.u8(0..8);
        }
        bent.truncate(dice.usize(0..=bent.len()));
        if let Ok(came) = expander.expand(&bent) {
            assert!(came.len() <= message::ROUTING + crate::config::MOST_RAW);
        }
    }
    // A bomb: it says that it is small, and would be large.
    let mut bomb = good.clone();
    bomb[12..16].copy_from_slice(&100_u32.to_be_bytes());
    assert!(expander.expand(&bomb).is_err());
    bomb[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(expander.expand(&bomb).is_err());
    let mut foreign = good.clone();
    foreign[1] = 77;
    assert!(
        expander.expand(&foreign).is_err(),
        "a dictionary that was never made"
    );
    assert_eq!(expander.expand(&good).unwrap(), raw);
    for (first, last) in [(0, 5), (5, 4), (1, u32::MAX)] {
        assert!(!expander.on_proposal(Proposal {
            generation: 1,
            first,
            last
        }));
    }
}

#[test]
fn isolated_buffers_know_nothing_of_each_other() {
    let how = Compression {
        isolated: true,
        ..Compression::default()
    };
    let mut shrinker = Sender::new(how);
    let mut mixed = buffer(&text(1, 1_000));
    shrinker.shrink(&mut mixed, None, SLOW);
    assert_eq!(
        mixed,
        buffer(&text(1, 1_000)),
        "several flows in one buffer"
    );
    let mut sizes = Vec::new();
    for number in 0..100 {
        let mut sent = buffer(&text(7, 1_000));
        shrinker.shrink(&mut sent, Some(FlowId(number)), SLOW);
        sizes.push(sent.len());
        assert_eq!(shrinker.shrinker.propose(SLOW, start()), None);
    }
    assert!(
        sizes.iter().all(|size| *size == sizes[0]),
        "the same content has the same size, whatever went before"
    );
}

#[test]
fn memory_is_bounded_whatever_the_peer_sends() {
    let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
    // Nothing below the first number comes for long.
    let mut first = buffer(&text(0, 30_000));
    shrinker.shrink(&mut first, Some(FlowId(1)), SLOW);
    assert!(expander.on_proposal(Proposal {
        generation: 1,
        first: 1,
        last: 3
    }));
    for number in 1..2_000 {
        let mut sent = buffer(&text(number, 30_000));
        shrinker.shrink(&mut sent, Some(FlowId(1)), SLOW);
        expander.expand(&sent).unwrap();
        assert!(expander.held() <= crate::config::MOST_HISTORY + (16 << 20));
    }
    assert_eq!(poll_ready(&mut expander), None);
    // Those in its range are here again, but not those before.
    expander.expand(&first).unwrap();
    assert_eq!(
        poll_ready(&mut expander),
        Some((1, true)),
        "what was waited for was kept"
    );
}

#[test]
fn bytes_of_any_kind_do_not_panic() {
    for seed in 0..3_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..dice.usize(0..600)).map(|_| dice.u8(..)).collect();
        crate::fuzzing::expand(&bytes);
    }
}

/// Proposals overtake each other: one that comes late does not push out what has been made since.
#[test]
fn a_late_proposal_replaces_nothing_newer() {
    let (mut sender, mut expander, mut now) = (
        Sender::new(Compression::default()),
        Expander::new(),
        start(),
    );
    let mut late = None;
    let cross = |sender: &mut Sender, expander: &mut Expander| {
        let raw = buffer(&text(1, 3_000));
        let mut sent = raw.clone();
        sender.shrink(&mut sent, Some(FlowId(1)), SLOW);
        assert_eq!(expander.expand(&sent).unwrap(), raw);
        sender.work();
        sent[1]
    };
    for generation in 1..=5 {
        let proposal = loop {
            now += Duration::from_millis(30);
            let found = sender.shrinker.propose(SLOW, now);
            cross(&mut sender, &mut expander);
            if let Some(found) = found {
                break found;
            }
        };
        assert_eq!(proposal.generation, generation);
        if generation == 2 {
            late = Some(proposal);
            continue;
        }
        assert!(expander.on_proposal(proposal));
        assert_eq!(poll_ready(&mut expander), Some((generation, true)));
        if generation == 4 {
            assert!(expander.on_proposal(late.take().unwrap()));
            assert_eq!(poll_ready(&mut expander), Some((2, true)));
        }
        // The answers to the last two are under way.
        if generation < 4 {
            sender.shrinker.on_answer(generation, true);
        }
    }
    assert_eq!(
        cross(&mut sender, &mut expander),
        3,
        "the dictionary that is in use"
    );
}

/// A buffer that is repaired for ever so long may still refer to an old dictionary: no new one is
/// made until it has come.
#[test]
fn a_late_buffer_finds_its_dictionary() {
    let (mut shrinker, mut expander) = (Sender::new(Compression::default()), Expander::new());
    let mut now = start();
    let (mut late, mut made) = (None, 0);
    for number in 0..300 {
        let raw = buffer(&text(number, 60_000));
        let mut sent = raw.clone();
        // So fast that a dictionary is of the two newest buffers alone.
        shrinker.shrink(&mut sent, Some(FlowId(1)), 10_000_000);
        if number == 62 {
            assert_ne!(sent[1], 0, "it refers to a dictionary");
            late = Some((sent, raw));
            made = shrinker.shrinker.dictionaries;
        } else {
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
        if number == 250 {
            let since = shrinker.shrinker.dictionaries - made;
            assert!(since <= PROPOSED as u64, "{since} since");
            let (sent, raw) = late.take().unwrap();
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
        agree(&mut shrinker, &mut expander, 10_000_000, now);
        now += Duration::from_millis(20);
    }
    assert!(
        shrinker.shrinker.dictionaries > made + PROPOSED as u64,
        "and then it goes on"
    );
}

/// What a rule says of its flows goes before what is set for the peer, and what is set for the peer
/// before what the far side's rule says.
#[test]
fn rules_go_before_the_peer() {
    let lines = text(3, 8_000);
    let asked = |compress, isolated| Treatment {
        compress,
        isolated,
        ..Class::Normal.into()
    };
    let size = |own: Compress, treatment: Treatment| {
        let mut sender = Sender::new(Compression {
            compress: own,
            ..Compression::default()
        });
        let mut sent = buffer(&lines);
        sender.shrink_as(&mut sent, Some(FlowId(1)), treatment, SLOW);
        let why = Uncompressed::ALL
            .into_iter()
            .find(|why| sender.stats.uncompressed[*why as usize] > 0);
        assert_eq!(why.is_some(), sent.len() == lines.len() + message::ROUTING);
        (sent.len(), why)
    };
    let level = |level| Some(Compress::Level(level));
    assert_eq!(
        size(Compress::Auto, asked(Some(Compress::Off), false)).1,
        Some(Uncompressed::Off)
    );
    assert_eq!(
        size(Compress::Off, asked(None, false)).1,
        Some(Uncompressed::Off)
    );
    assert_eq!(size(Compress::Off, asked(level(3), false)).1, None);
    let [one, six] = [1, 6].map(|number| size(Compress::Auto, asked(level(number), false)).0);
    assert!(six < one, "{six} bytes at level 6, {one} at level 1");
    assert_eq!(size(Compress::Level(6), asked(None, false)).0, six);
    let off = Shrinker::new(Compression {
        compress: Compress::Off,
        ..Compression::default()
    });
    assert_eq!(
        off.how(&asked(level(6), false), false).compress,
        Compress::Off,
        "it is the far side's rule"
    );

    // Beside another flow's messages, what keeps apart leaves the buffer as it is.
    let mut sender = Sender::new(Compression::default());
    for (treatment, stays) in [
        (asked(None, false), false),
        (asked(None, true), true),
        (asked(Some(Compress::Off), false), true),
    ] {
        let mut sent = buffer(&lines);
        sender.shrink_as(&mut sent, None, treatment, SLOW);
        assert_eq!(sent[0] != COMPRESSED, stays, "{treatment:?}");
    }
    assert_eq!(
        sender.stats.uncompressed[Uncompressed::Isolated as usize],
        2
    );

    // One flow's rule isolates it: others have a dictionary, and it none.
    let (mut sender, mut expander, mut now) = (
        Sender::new(Compression::default()),
        Expander::new(),
        start(),
    );
    for number in 0..100 {
        let mut sent = buffer(&text(number, 2_000));
        sender.shrink(&mut sent, Some(FlowId(1)), SLOW);
        expander.expand(&sent).unwrap();
        agree(&mut sender, &mut expander, SLOW, now);
        now += Duration::from_millis(50);
    }
    for (isolated, generation) in [(false, true), (true, false)] {
        let mut sent = buffer(&text(7, 2_000));
        sender.shrink_as(&mut sent, Some(FlowId(2)), asked(None, isolated), SLOW);
        assert_eq!(
            (sent[0], sent[1] != 0, sent[8..12] != [0; 4]),
            (COMPRESSED, generation, generation)
        );
    }
}

/// A new session begins while a dictionary of the old one is still being made.
#[test]
fn what_is_made_too_late_is_nobodys() {
    let (mut sender, mut expander, now) = (
        Sender::new(Compression::default()),
        Expander::new(),
        start(),
    );
    for turn in 0..2 {
        let mut proposals = Vec::new();
        for number in 0..10 {
            proposals.extend(sender.shrinker.propose(SLOW, now));
            let mut sent = buffer(&text(number, 2_000));
            sender.shrink(&mut sent, Some(FlowId(1)), SLOW);
            expander.expand(&sent).unwrap();
        }
        assert_eq!(proposals.len(), 1);
        let here = sender
            .shrinker
            .poll_work()
            .expect("it is made here too")
            .run();
        assert!(expander.on_proposal(proposals[0]));
        let Some(Ok(there)) = expander.poll_ready() else {
            panic!("all of it has come")
        };
        assert!(expander.poll_ready().is_none(), "it is being made");
        if turn == 0 {
            sender.shrinker.begin_anew();
            expander.begin_anew();
        }
        let (
            Made::Shrink { serial, dictionary },
            Made::Expand {
                serial: other,
                dictionary: made,
            },
        ) = (here.0, there.run().0)
        else {
            panic!("each makes its own")
        };
        sender.shrinker.on_made(serial, dictionary);
        sender.shrinker.on_answer(proposals[0].generation, true);
        assert_eq!(expander.on_made(other, made).is_some(), turn == 1);
        assert_eq!(sender.shrinker.dictionaries, turn);
    }
}

/// A buffer of nothing cost nothing in the accounts, and an entry in memory: there are no such
/// buffers any more, and what is kept is charged for its place.
#[test]
fn empty_buffers_are_no_history() {
    let mut expander = Expander::new();
    let numbered = |raw: &[u8], number: u32| {
        let mut frame = vec![0; 400];
        let length = zstd_safe::compress(&mut frame[..], raw, 1).unwrap();
        let mut payload = vec![0; super::HEADER];
        payload.extend_from_slice(&frame[4..length]);
        let inside = (payload.len() - message::ROUTING) as u32;
        payload[0] = COMPRESSED;
        payload[4..8].copy_from_slice(&inside.to_be_bytes());
        payload[8..12].copy_from_slice(&number.to_be_bytes());
        payload[12..16].copy_from_slice(&(raw.len() as u32).to_be_bytes());
        payload
    };
    assert!(
        expander.expand(&numbered(&[], 0)).is_ok(),
        "without a number it is kept nowhere"
    );
    for raw in [&[][..], &[7; 95]] {
        assert!(
            expander.expand(&numbered(raw, 1)).is_err(),
            "{} bytes",
            raw.len()
        );
    }
    let held = expander.held();
    // Numbers with gaps, so that none is ever done with.
    for number in 0..200_000_u32 {
        assert!(expander.expand(&numbered(&[7; 96], 1 + 2 * number)).is_ok());
    }
    let most = crate::config::MOST_HISTORY + (4 << 20);
    assert!(
        expander.held() - held > 6 << 20 && expander.held() < most,
        "{} held",
        expander.held()
    );
}
