use std::time::{Duration, Instant};

use super::*;
use crate::{FlowId, message};

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

#[expect(clippy::disallowed_methods, reason = "tests need some instant to begin with")]
fn start() -> Instant {
    Instant::now()
}

const SLOW: u64 = 250_000;

#[test]
fn what_shrinks_comes_out_the_same_and_what_does_not_is_left_alone() {
    let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
    for (size, flow) in [(96, 1), (1_000, 1), (1_000, 2), (16_000, 3), (65_000, 3)] {
        let raw = buffer(&text(size as u64, size));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(flow)), SLOW);
        if size > 500 {
            assert!(sent.len() < raw.len() / 2, "{size} bytes became {}", sent.len());
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
    }
    let (mut tried, before) = (0, shrinker.squeezed.cpu_ns);
    for seed in 0..200 {
        let raw = buffer(&noise(seed, 16_000));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(9)), SLOW);
        assert_eq!(sent, raw);
        tried += 1;
    }
    let worked = shrinker.squeezed.cpu_ns - before;
    let all = (f64::from(tried) * 16_000.0 * Compression::default().costs[0]) as u64;
    assert!(worked < all / 5, "most of what does not shrink is not even tried: {worked} of {all}");
    // Very small ones never are.
    let mut small = buffer(b"hello");
    shrinker.shrink(&mut small, Some(FlowId(1)), SLOW);
    assert_eq!(small, buffer(b"hello"));
}

/// Proposals and answers cross like any message: here at once.
fn agree(shrinker: &mut Shrinker, expander: &mut Expander, now: Instant) {
    if let Some(proposal) = shrinker.propose(SLOW, now)
        && !expander.on_proposal(proposal)
    {
        shrinker.on_answer(proposal.generation, false, Duration::ZERO, now);
    }
    if let Some((generation, holds)) = expander.poll_ready() {
        shrinker.on_answer(generation, holds, Duration::ZERO, now);
    }
}

#[test]
fn small_buffers_gain_by_the_dictionary() {
    let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
    let mut now = start();
    let mut sizes = Vec::new();
    let mut cross = |shrinker: &mut Shrinker, expander: &mut Expander, number: u64| {
        let raw = buffer(&text(number, 1_000));
        let mut sent = raw.clone();
        shrinker.shrink(&mut sent, Some(FlowId(number as u32)), SLOW);
        assert_eq!(expander.expand(&sent).unwrap(), raw);
        agree(shrinker, expander, now);
        now += Duration::from_millis(20);
        sent.len()
    };
    sizes.extend((0..200).map(|number| cross(&mut shrinker, &mut expander, number)));
    let (first, last) = (sizes[0], sizes[199]);
    assert!(last < first * 3 / 4 && last < 1_000 / 4, "{first} bytes at first, {last} with a dictionary");
    assert!(shrinker.squeezed.dictionaries >= 2, "{:?}", shrinker.squeezed);
    assert!(shrinker.held() < 32 << 20 && expander.held() < 16 << 20);
    // At rest little is held, and afterwards it goes on without and with a dictionary.
    shrinker.rest();
    expander.rest();
    assert!(shrinker.held() < 1 << 20, "{}", shrinker.held());
    sizes.extend((200..400).map(|number| cross(&mut shrinker, &mut expander, number)));
    assert!(sizes[200] > last && sizes[399] < first * 3 / 4, "{} {}", sizes[200], sizes[399]);
}

/// Whatever order buffers arrive in, and however late answers are, each is read.
#[test]
fn any_order_can_be_read() {
    for seed in 0..60 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
        let mut now = start();
        let mut under_way: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (mut proposals, mut answers) = (Vec::new(), Vec::new());
        for number in 0..400 {
            let content = if dice.u8(0..6) == 0 { noise(number, 2_000) } else { text(number, dice.usize(100..6_000)) };
            let raw = buffer(&content);
            let mut sent = raw.clone();
            shrinker.shrink(&mut sent, Some(FlowId(dice.u32(1..5))), SLOW);
            under_way.push((sent, raw));
            proposals.extend(shrinker.propose(SLOW, now));
            // Repairs come much later.
            while under_way.len() > 30 || !under_way.is_empty() && dice.bool() {
                let (sent, raw) = under_way.swap_remove(dice.usize(0..under_way.len()));
                let came = if sent[0] == COMPRESSED { expander.expand(&sent).unwrap() } else { sent };
                assert_eq!(came, raw, "seed {seed}");
                if dice.u8(0..4) == 0 {
                    for proposal in proposals.drain(..) {
                        if !expander.on_proposal(proposal) {
                            answers.push((proposal.generation, false));
                        }
                    }
                }
                answers.extend(expander.poll_ready());
                if dice.bool() {
                    answers.drain(..).for_each(|(generation, holds)| {
                        shrinker.on_answer(generation, holds, Duration::from_millis(10), now);
                    });
                }
            }
            now += Duration::from_millis(dice.u64(0..40));
        }
        assert!(shrinker.squeezed.dictionaries > 0, "seed {seed}");
    }
}

/// Sizes that lie, frames that are bent, dictionaries that nobody made: refused, and nothing is held for them.
#[test]
fn what_is_bent_is_refused() {
    let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
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
    assert!(expander.expand(&foreign).is_err(), "a dictionary that was never made");
    assert_eq!(expander.expand(&good).unwrap(), raw);
    for (first, last) in [(0, 5), (5, 4), (1, u32::MAX)] {
        assert!(!expander.on_proposal(Proposal { generation: 1, first, last }));
    }
}

#[test]
fn isolated_buffers_know_nothing_of_each_other() {
    let how = Compression { isolated: true, ..Compression::default() };
    let mut shrinker = Shrinker::new(how);
    let mut mixed = buffer(&text(1, 1_000));
    shrinker.shrink(&mut mixed, None, SLOW);
    assert_eq!(mixed, buffer(&text(1, 1_000)), "several flows in one buffer");
    let mut sizes = Vec::new();
    for number in 0..100 {
        let mut sent = buffer(&text(7, 1_000));
        shrinker.shrink(&mut sent, Some(FlowId(number)), SLOW);
        sizes.push(sent.len());
        assert_eq!(shrinker.propose(SLOW, start()), None);
    }
    assert!(sizes.iter().all(|size| *size == sizes[0]), "the same content has the same size, whatever went before");
}

#[test]
fn memory_is_bounded_whatever_the_peer_sends() {
    let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
    // Nothing below the first number comes for long.
    let mut first = buffer(&text(0, 30_000));
    shrinker.shrink(&mut first, Some(FlowId(1)), SLOW);
    assert!(expander.on_proposal(Proposal { generation: 1, first: 1, last: 3 }));
    for number in 1..2_000 {
        let mut sent = buffer(&text(number, 30_000));
        shrinker.shrink(&mut sent, Some(FlowId(1)), SLOW);
        expander.expand(&sent).unwrap();
        assert!(expander.held() <= crate::config::MOST_HISTORY + (16 << 20));
    }
    assert_eq!(expander.poll_ready(), None);
    // Those in its range are here again, but not those before.
    expander.expand(&first).unwrap();
    assert_eq!(expander.poll_ready(), Some((1, true)), "what was waited for was kept");
}

#[test]
fn bytes_of_any_kind_do_not_panic() {
    for seed in 0..3_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..dice.usize(0..600)).map(|_| dice.u8(..)).collect();
        crate::fuzzing::expand(&bytes);
    }
}

/// A buffer that is repaired for ever so long may still refer to an old dictionary: no new one is made until it has come.
#[test]
fn a_late_buffer_finds_its_dictionary() {
    let (mut shrinker, mut expander) = (Shrinker::new(Compression::default()), Expander::new());
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
            made = shrinker.squeezed.dictionaries;
        } else {
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
        if number == 250 {
            assert!(shrinker.squeezed.dictionaries <= made + 1, "{} since", shrinker.squeezed.dictionaries - made);
            let (sent, raw) = late.take().unwrap();
            assert_eq!(expander.expand(&sent).unwrap(), raw);
        }
        if let Some(proposal) = shrinker.propose(10_000_000, now)
            && !expander.on_proposal(proposal)
        {
            shrinker.on_answer(proposal.generation, false, Duration::ZERO, now);
        }
        if let Some((generation, holds)) = expander.poll_ready() {
            shrinker.on_answer(generation, holds, Duration::ZERO, now);
        }
        now += Duration::from_millis(20);
    }
    assert!(shrinker.squeezed.dictionaries > made + 1, "and then it goes on");
}
