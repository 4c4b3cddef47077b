use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    compressor::Compressor,
    decompressor::Decompressor,
    dictionary::Made,
    format::{COMPRESSED, HEADER, Proposal},
    record::Record,
};
use crate::{
    Class, Compress, Compression, CompressionStats, FlowId, Treatment, Uncompressed,
    config::PROPOSED, message,
};

/// A compressor with what the driver keeps for it. Its dictionaries are made when `work` is called.
struct Sender {
    compressor: Compressor,
    records: BTreeMap<Option<FlowId>, Record>,
    stats: CompressionStats,
}

impl Sender {
    fn new(how: Compression) -> Sender {
        Sender {
            compressor: Compressor::new(how),
            records: BTreeMap::new(),
            stats: CompressionStats::default(),
        }
    }

    fn compress(&mut self, buffer: &mut Vec<u8>, flow: Option<FlowId>, rate: u64) {
        self.compress_as(buffer, flow, Class::Normal.into(), rate);
    }

    fn compress_as(
        &mut self,
        buffer: &mut Vec<u8>,
        flow: Option<FlowId>,
        treatment: Treatment,
        rate: u64,
    ) {
        let own = self.compressor.settings().of_flow(&treatment, true);
        let record = self.records.entry(flow).or_default();
        self.stats += if flow.is_some() {
            self.compressor.compress(buffer, own, record, rate)
        } else {
            let how = self.compressor.settings().of_many(own.keeps_apart());
            self.compressor.compress_together(buffer, how, record, rate)
        };
    }

    fn work(&mut self) {
        if let Some(Made::Compress { serial, dictionary }) =
            self.compressor.poll_work().map(|work| work.run().0)
        {
            self.compressor.on_made(serial, dictionary);
        }
    }
}

/// What has become whole is made at once.
fn poll_ready(decompressor: &mut Decompressor) -> Option<(u8, bool)> {
    match decompressor.poll_ready()? {
        Ok(work) => match work.run().0 {
            Made::Decompress { serial, dictionary } => {
                Some((decompressor.handle_made(serial, dictionary)?, true))
            }
            Made::Compress { .. } => {
                unreachable!("an decompressor makes dictionaries to expand with")
            }
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
    let (mut compressor, mut decompressor) =
        (Sender::new(Compression::default()), Decompressor::new());
    for (size, flow) in [(96, 1), (1_000, 1), (1_000, 2), (16_000, 3), (65_000, 3)] {
        let raw = buffer(&text(size as u64, size));
        let mut sent = raw.clone();
        compressor.compress(&mut sent, Some(FlowId(flow)), SLOW);
        if size > 500 {
            assert!(
                sent.len() < raw.len() / 2,
                "{size} bytes became {}",
                sent.len()
            );
            assert_eq!(decompressor.decompress(&sent).unwrap(), raw);
        }
    }
    let (mut tried, before) = (0, compressor.stats.cpu_ns);
    for seed in 0..200 {
        let raw = buffer(&noise(seed, 16_000));
        let mut sent = raw.clone();
        compressor.compress(&mut sent, Some(FlowId(9)), SLOW);
        assert_eq!(sent, raw);
        tried += 1;
    }
    let worked = compressor.stats.cpu_ns - before;
    let all = (f64::from(tried) * 16_000.0 * Compression::default().costs[0]) as u64;
    assert!(
        worked < all / 5,
        "most of what does not shrink is not even tried: {worked} of {all}"
    );
    // Very small ones never are.
    let mut small = buffer(b"hello");
    compressor.compress(&mut small, Some(FlowId(1)), SLOW);
    assert_eq!(small, buffer(b"hello"));
}

/// Proposals and answers cross like any message: here at once. What is proposed counts the next
/// buffer in.
fn agree(compressor: &mut Sender, decompressor: &mut Decompressor, rate: u64, now: Instant) {
    compressor.work();
    while let Some((generation, holds)) = poll_ready(decompressor) {
        compressor.compressor.on_answer(generation, holds);
    }
    if let Some(proposal) = compressor.compressor.propose(rate, now)
        && !decompressor.handle_proposal(proposal)
    {
        compressor.compressor.on_answer(proposal.generation, false);
    }
}

#[test]
fn small_buffers_gain_by_the_dictionary() {
    let (mut compressor, mut decompressor) =
        (Sender::new(Compression::default()), Decompressor::new());
    let mut now = start();
    let mut sizes = Vec::new();
    let mut cross = |compressor: &mut Sender, decompressor: &mut Decompressor, number: u64| {
        let raw = buffer(&text(number, 1_000));
        let mut sent = raw.clone();
        compressor.compress(&mut sent, Some(FlowId(number as u32)), SLOW);
        assert_eq!(decompressor.decompress(&sent).unwrap(), raw);
        agree(compressor, decompressor, SLOW, now);
        now += Duration::from_millis(20);
        sent.len()
    };
    sizes.extend((0..200).map(|number| cross(&mut compressor, &mut decompressor, number)));
    let (first, last) = (sizes[0], sizes[199]);
    assert!(
        last < first * 3 / 4 && last < 1_000 / 4,
        "{first} bytes at first, {last} with a dictionary"
    );
    assert!(
        compressor.compressor.dictionaries >= 2,
        "{:?}",
        compressor.stats
    );
    assert!(compressor.compressor.held() < 32 << 20 && decompressor.held() < 16 << 20);
    // At rest little is held, and afterwards it goes on without and with a dictionary.
    compressor.compressor.rest();
    decompressor.rest();
    assert!(
        compressor.compressor.held() < 1 << 20,
        "{}",
        compressor.compressor.held()
    );
    assert!(
        decompressor.held() > 0,
        "what is under way may refer to the last dictionaries"
    );
    decompressor.forget();
    assert_eq!(decompressor.held(), 0);
    sizes.extend((200..400).map(|number| cross(&mut compressor, &mut decompressor, number)));
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
        let (mut compressor, mut decompressor) =
            (Sender::new(Compression::default()), Decompressor::new());
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
            proposals.extend(compressor.compressor.propose(SLOW, now));
            compressor.compress(&mut sent, Some(FlowId(dice.u32(1..5))), SLOW);
            under_way.push((sent, raw));
            if dice.u8(0..3) == 0 {
                compressor.work();
            }
            // Repairs come much later.
            while under_way.len() > 30 || !under_way.is_empty() && dice.bool() {
                let (sent, raw) = under_way.swap_remove(dice.usize(0..under_way.len()));
                let came = if sent[0] == COMPRESSED {
                    decompressor.decompress(&sent).unwrap()
                } else {
                    sent
                };
                assert_eq!(came, raw, "seed {seed}");
                if dice.u8(0..4) == 0 {
                    for proposal in proposals.drain(..) {
                        if !decompressor.handle_proposal(proposal) {
                            answers.push((proposal.generation, false));
                        }
                    }
                }
                answers.extend(poll_ready(&mut decompressor));
                if dice.bool() {
                    answers.drain(..).for_each(|(generation, holds)| {
                        compressor.compressor.on_answer(generation, holds);
                    });
                }
            }
            now += Duration::from_millis(dice.u64(0..40));
        }
        assert!(compressor.compressor.dictionaries > 0, "seed {seed}");
    }
}

/// Sizes that lie, frames that are bent, dictionaries that nobody made: refused, and nothing is
/// held for them.
#[test]
fn what_is_bent_is_refused() {
    let (mut compressor, mut decompressor) =
        (Sender::new(Compression::default()), Decompressor::new());
    let raw = buffer(&text(1, 4_000));
    let mut good = raw.clone();
    compressor.compress(&mut good, Some(FlowId(1)), SLOW);
    for seed in 0..20_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut bent = good.clone();
        for _ in 0..dice.usize(1..4) {
            let at = dice.usize(0..bent.len());
            bent[at] ^= 1 << dice.u8(0..8);
        }
        bent.truncate(dice.usize(0..=bent.len()));
        if let Ok(came) = decompressor.decompress(&bent) {
            assert!(came.len() <= message::ROUTING + crate::config::MOST_RAW);
        }
    }
    // A bomb: it says that it is small, and would be large.
    let mut bomb = good.clone();
    bomb[12..16].copy_from_slice(&100_u32.to_be_bytes());
    assert!(decompressor.decompress(&bomb).is_err());
    bomb[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(decompressor.decompress(&bomb).is_err());
    let mut foreign = good.clone();
    foreign[1] = 77;
    assert!(
        decompressor.decompress(&foreign).is_err(),
        "a dictionary that was never made"
    );
    assert_eq!(decompressor.decompress(&good).unwrap(), raw);
    for (first, last) in [(0, 5), (5, 4), (1, u32::MAX)] {
        assert!(!decompressor.handle_proposal(Proposal {
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
    let mut compressor = Sender::new(how);
    let mut mixed = buffer(&text(1, 1_000));
    compressor.compress(&mut mixed, None, SLOW);
    assert_eq!(
        mixed,
        buffer(&text(1, 1_000)),
        "several flows in one buffer"
    );
    let mut sizes = Vec::new();
    for number in 0..100 {
        let mut sent = buffer(&text(7, 1_000));
        compressor.compress(&mut sent, Some(FlowId(number)), SLOW);
        sizes.push(sent.len());
        assert_eq!(compressor.compressor.propose(SLOW, start()), None);
    }
    assert!(
        sizes.iter().all(|size| *size == sizes[0]),
        "the same content has the same size, whatever went before"
    );
}

#[test]
fn memory_is_bounded_whatever_the_peer_sends() {
    let (mut compressor, mut decompressor) =
        (Sender::new(Compression::default()), Decompressor::new());
    // Nothing below the first number comes for long.
    let mut first = buffer(&text(0, 30_000));
    compressor.compress(&mut first, Some(FlowId(1)), SLOW);
    assert!(decompressor.handle_proposal(Proposal {
        generation: 1,
        first: 1,
        last: 3
    }));
    for number in 1..2_000 {
        let mut sent = buffer(&text(number, 30_000));
        compressor.compress(&mut sent, Some(FlowId(1)), SLOW);
        decompressor.decompress(&sent).unwrap();
        assert!(decompressor.held() <= crate::config::MOST_HISTORY + (16 << 20));
    }
    assert_eq!(poll_ready(&mut decompressor), None);
    // Those in its range are here again, but not those before.
    decompressor.decompress(&first).unwrap();
    assert_eq!(
        poll_ready(&mut decompressor),
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
    let (mut sender, mut decompressor, mut now) = (
        Sender::new(Compression::default()),
        Decompressor::new(),
        start(),
    );
    let mut late = None;
    let cross = |sender: &mut Sender, decompressor: &mut Decompressor| {
        let raw = buffer(&text(1, 3_000));
        let mut sent = raw.clone();
        sender.compress(&mut sent, Some(FlowId(1)), SLOW);
        assert_eq!(decompressor.decompress(&sent).unwrap(), raw);
        sender.work();
        sent[1]
    };
    for generation in 1..=5 {
        let proposal = loop {
            now += Duration::from_millis(30);
            let found = sender.compressor.propose(SLOW, now);
            cross(&mut sender, &mut decompressor);
            if let Some(found) = found {
                break found;
            }
        };
        assert_eq!(proposal.generation, generation);
        if generation == 2 {
            late = Some(proposal);
            continue;
        }
        assert!(decompressor.handle_proposal(proposal));
        assert_eq!(poll_ready(&mut decompressor), Some((generation, true)));
        if generation == 4 {
            assert!(decompressor.handle_proposal(late.take().unwrap()));
            assert_eq!(poll_ready(&mut decompressor), Some((2, true)));
        }
        // The answers to the last two are under way.
        if generation < 4 {
            sender.compressor.on_answer(generation, true);
        }
    }
    assert_eq!(
        cross(&mut sender, &mut decompressor),
        3,
        "the dictionary that is in use"
    );
}

/// A buffer that is repaired for ever so long may still refer to an old dictionary: no new one is
/// made until it has come.
#[test]
fn a_late_buffer_finds_its_dictionary() {
    let (mut compressor, mut decompressor) =
        (Sender::new(Compression::default()), Decompressor::new());
    let mut now = start();
    let (mut late, mut made) = (None, 0);
    for number in 0..300 {
        let raw = buffer(&text(number, 60_000));
        let mut sent = raw.clone();
        // So fast that a dictionary is of the two newest buffers alone.
        compressor.compress(&mut sent, Some(FlowId(1)), 10_000_000);
        if number == 62 {
            assert_ne!(sent[1], 0, "it refers to a dictionary");
            late = Some((sent, raw));
            made = compressor.compressor.dictionaries;
        } else {
            assert_eq!(decompressor.decompress(&sent).unwrap(), raw);
        }
        if number == 250 {
            let since = compressor.compressor.dictionaries - made;
            assert!(since <= PROPOSED as u64, "{since} since");
            let (sent, raw) = late.take().unwrap();
            assert_eq!(decompressor.decompress(&sent).unwrap(), raw);
        }
        agree(&mut compressor, &mut decompressor, 10_000_000, now);
        now += Duration::from_millis(20);
    }
    assert!(
        compressor.compressor.dictionaries > made + PROPOSED as u64,
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
        sender.compress_as(&mut sent, Some(FlowId(1)), treatment, SLOW);
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
    let off = Compressor::new(Compression {
        compress: Compress::Off,
        ..Compression::default()
    });
    assert_eq!(
        off.settings()
            .of_flow(&asked(level(6), false), false)
            .compress,
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
        sender.compress_as(&mut sent, None, treatment, SLOW);
        assert_eq!(sent[0] != COMPRESSED, stays, "{treatment:?}");
    }
    assert_eq!(
        sender.stats.uncompressed[Uncompressed::Isolated as usize],
        2
    );

    // One flow's rule isolates it: others have a dictionary, and it none.
    let (mut sender, mut decompressor, mut now) = (
        Sender::new(Compression::default()),
        Decompressor::new(),
        start(),
    );
    for number in 0..100 {
        let mut sent = buffer(&text(number, 2_000));
        sender.compress(&mut sent, Some(FlowId(1)), SLOW);
        decompressor.decompress(&sent).unwrap();
        agree(&mut sender, &mut decompressor, SLOW, now);
        now += Duration::from_millis(50);
    }
    for (isolated, generation) in [(false, true), (true, false)] {
        let mut sent = buffer(&text(7, 2_000));
        sender.compress_as(&mut sent, Some(FlowId(2)), asked(None, isolated), SLOW);
        assert_eq!(
            (sent[0], sent[1] != 0, sent[8..12] != [0; 4]),
            (COMPRESSED, generation, generation)
        );
    }
}

/// A new session begins while a dictionary of the old one is still being made.
#[test]
fn what_is_made_too_late_is_nobodys() {
    let (mut sender, mut decompressor, now) = (
        Sender::new(Compression::default()),
        Decompressor::new(),
        start(),
    );
    for turn in 0..2 {
        let mut proposals = Vec::new();
        for number in 0..10 {
            proposals.extend(sender.compressor.propose(SLOW, now));
            let mut sent = buffer(&text(number, 2_000));
            sender.compress(&mut sent, Some(FlowId(1)), SLOW);
            decompressor.decompress(&sent).unwrap();
        }
        assert_eq!(proposals.len(), 1);
        let here = sender
            .compressor
            .poll_work()
            .expect("it is made here too")
            .run();
        assert!(decompressor.handle_proposal(proposals[0]));
        let Some(Ok(there)) = decompressor.poll_ready() else {
            panic!("all of it has come")
        };
        assert!(decompressor.poll_ready().is_none(), "it is being made");
        if turn == 0 {
            sender.compressor.begin_anew();
            decompressor.begin_anew();
        }
        let (
            Made::Compress { serial, dictionary },
            Made::Decompress {
                serial: other,
                dictionary: made,
            },
        ) = (here.0, there.run().0)
        else {
            panic!("each makes its own")
        };
        sender.compressor.on_made(serial, dictionary);
        sender.compressor.on_answer(proposals[0].generation, true);
        assert_eq!(decompressor.handle_made(other, made).is_some(), turn == 1);
        assert_eq!(sender.compressor.dictionaries, turn);
    }
}

/// A buffer of nothing cost nothing in the accounts, and an entry in memory: there are no such
/// buffers any more, and what is kept is charged for its place.
#[test]
fn empty_buffers_are_no_history() {
    let mut decompressor = Decompressor::new();
    let numbered = |raw: &[u8], number: u32| {
        let mut frame = vec![0; 400];
        let length = zstd_safe::compress(&mut frame[..], raw, 1).unwrap();
        let mut payload = vec![0; HEADER];
        payload.extend_from_slice(&frame[4..length]);
        let inside = (payload.len() - message::ROUTING) as u32;
        payload[0] = COMPRESSED;
        payload[4..8].copy_from_slice(&inside.to_be_bytes());
        payload[8..12].copy_from_slice(&number.to_be_bytes());
        payload[12..16].copy_from_slice(&(raw.len() as u32).to_be_bytes());
        payload
    };
    assert!(
        decompressor.decompress(&numbered(&[], 0)).is_ok(),
        "without a number it is kept nowhere"
    );
    for raw in [&[][..], &[7; 95]] {
        assert!(
            decompressor.decompress(&numbered(raw, 1)).is_err(),
            "{} bytes",
            raw.len()
        );
    }
    let held = decompressor.held();
    // Numbers with gaps, so that none is ever done with.
    for number in 0..200_000_u32 {
        assert!(
            decompressor
                .decompress(&numbered(&[7; 96], 1 + 2 * number))
                .is_ok()
        );
    }
    let most = crate::config::MOST_HISTORY + (4 << 20);
    assert!(
        decompressor.held() - held > 6 << 20 && decompressor.held() < most,
        "{} held",
        decompressor.held()
    );
}
