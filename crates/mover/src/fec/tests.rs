//! Both sides together: whatever is lost, what can be rebuilt is rebuilt, and nothing wrong ever
//! is.

use super::field::{MOST_ROWS, MOST_SHARDS, add_scaled, coefficient};
use super::protect::Protector;
use super::rebuild::{Rebuilder, Rebuilt};
use crate::congestion::Lost;
use crate::recv::bitmap::Bitmap;
use crate::seq;
use crate::subfield::{Parity, Subfield, Subfields};
use crate::timer::MILLISECOND;

fn datagram(dice: &mut fastrand::Rng) -> Vec<u8> {
    (0..dice.usize(1..1_300)).map(|_| dice.u8(..)).collect()
}

/// Rows of a block as `Protector` makes them.
fn rows(numbers: &[u64], plains: &[Vec<u8>], count: usize) -> Vec<Vec<u8>> {
    assert_eq!(numbers.len(), plains.len());
    let length = plains.iter().map(Vec::len).max().unwrap() + 2;
    (0..count)
        .map(|row| {
            let mut bytes = vec![0; length];
            for (at, plain) in plains.iter().enumerate() {
                let mut shard = (plain.len() as u16).to_be_bytes().to_vec();
                shard.extend_from_slice(plain);
                add_scaled(&mut bytes, &shard, coefficient(row, at));
            }
            bytes
        })
        .collect()
}

/// Every pattern of as many losses as there are rows, of datagrams and of rows.
#[test]
fn any_rows_give_back_as_many_datagrams() {
    let mut dice = fastrand::Rng::with_seed(1);
    for shards in 1..=6_usize {
        let plains: Vec<Vec<u8>> = (0..shards).map(|_| datagram(&mut dice)).collect();
        let numbers: Vec<u64> = (0..shards as u64).map(|at| 100 + 3 * at).collect();
        let rows = rows(&numbers, &plains, 4);
        let gaps = vec![3; shards - 1];
        for lost in 0..1_u32 << (shards + 4) {
            let (lost_shards, lost_rows) = (lost & ((1 << shards) - 1), lost >> shards);
            let came_rows = (4 - lost_rows.count_ones()) as usize;
            let (mut bitmap, mut rebuilder, mut rebuilt) =
                (Bitmap::new(), Rebuilder::default(), Vec::new());
            for at in (0..shards).filter(|at| lost_shards >> at & 1 == 0) {
                bitmap.insert(numbers[at]);
                rebuilder.on_protected(numbers[at], &plains[at], &bitmap, &mut rebuilt);
            }
            for row in (0..4).filter(|row| lost_rows >> row & 1 == 0) {
                let parity = Parity {
                    row: row as u8,
                    first: 100,
                    gaps: &gaps,
                    bytes: &rows[row],
                };
                rebuilder.on_parity(&parity, 100, 1_000, &bitmap, &mut rebuilt);
                for (number, _) in rebuilt
                    .iter()
                    .filter(|(number, _)| bitmap.is_new(*number))
                    .collect::<Vec<_>>()
                {
                    bitmap.insert(*number);
                }
            }
            let missing = lost_shards.count_ones() as usize;
            let expected: Vec<Rebuilt> = (0..shards)
                .filter(|at| lost_shards >> at & 1 == 1 && missing <= came_rows)
                .map(|at| (numbers[at], plains[at].clone()))
                .collect();
            assert!(rebuilt == expected, "{shards} datagrams, lost {lost:b}");
            assert_eq!(
                rebuilder.counters.malformed + rebuilder.counters.contradictory,
                0
            );
        }
    }
}

#[test]
fn what_the_sender_protects_the_receiver_rebuilds() {
    let mut whole = 0;
    for seed in 0..300 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut protector = Protector::new(0);
        let loss = dice.f64() * 0.1;
        for number in 0..500 {
            let lost = [Lost {
                number: 7 * number,
                sent: 0,
                bytes: 1_500,
            }];
            protector.on_outcome(1, if dice.f64() < loss { &lost } else { &[] });
        }
        let (mut bitmap, mut rebuilder, mut rebuilt) =
            (Bitmap::new(), Rebuilder::default(), Vec::new());
        let mut number = dice.u64(0..1 << 40);
        let mut sent = Vec::new();
        for _ in 0..dice.usize(1..=MOST_SHARDS) {
            number += if dice.u8(0..8) == 0 {
                dice.u64(1..20)
            } else {
                1
            };
            let plain = datagram(&mut dice);
            protector.on_sent(20_000, false, 12_500_000, 0);
            protector.add(number, &plain, None, 0);
            if dice.f64() >= loss {
                bitmap.insert(number);
                rebuilder.on_protected(number, &plain, &bitmap, &mut rebuilt);
            } else {
                sent.push((number, plain));
            }
        }
        assert!(protector.due().is_some_and(|due| due <= 4 * MILLISECOND));
        let mut rows = 0;
        while protector.prepare_row(4 * MILLISECOND) {
            let mut out = Vec::new();
            protector.emit(&mut out, 1_500);
            number += 1;
            rows += 1;
            let Some(Ok(Subfield::Parity(parity))) = Subfields::new(&out, number, 1 << 16).next()
            else {
                panic!("a row is a subfield")
            };
            if dice.f64() >= loss {
                let first = seq::recover(number, parity.first);
                rebuilder.on_parity(&parity, first, number, &bitmap, &mut rebuilt);
                for (number, _) in &rebuilt {
                    if bitmap.is_new(*number) {
                        bitmap.insert(*number);
                    }
                }
            }
        }
        assert!((1..=MOST_ROWS).contains(&rows), "seed {seed}: {rows} rows");
        rebuilt.sort();
        assert!(rebuilt.is_empty() || rebuilt == sent, "seed {seed}");
        whole += u32::from(rebuilt.len() == sent.len());
    }
    assert!(whole >= 298, "{whole} of 300 blocks are whole");
}

#[test]
fn whatever_a_broken_peer_says_is_survived() {
    for seed in 0..200 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let (mut bitmap, mut rebuilder, mut rebuilt) =
            (Bitmap::new(), Rebuilder::default(), Vec::new());
        for number in 1_000..2_000 {
            if dice.u8(0..4) == 0 {
                continue;
            }
            let bytes: Vec<u8> = (0..dice.usize(0..40)).map(|_| dice.u8(..)).collect();
            let gaps: Vec<u8> = (0..dice.usize(0..40)).map(|_| dice.u8(0..9)).collect();
            let parity = Parity {
                row: dice.u8(0..10),
                first: 0,
                gaps: &gaps,
                bytes: &bytes,
            };
            if dice.bool() {
                let first = number - dice.u64(0..300);
                rebuilder.on_parity(&parity, first, number, &bitmap, &mut rebuilt);
            }
            bitmap.insert(number);
            rebuilder.on_protected(number, &bytes, &bitmap, &mut rebuilt);
            rebuilder.check_invariants();
        }
    }
}
