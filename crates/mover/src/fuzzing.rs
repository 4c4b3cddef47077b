//! The doors for fuzz targets. Each takes any bytes and must neither panic nor break an invariant.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::ack::Words;
use crate::config::Config;
use crate::crypto::{HEADER, Session, Suite, TAG};
use crate::fec::rebuild::Rebuilder;
use crate::identity::Identity;
use crate::mover::Mover;
use crate::recv::bitmap::Bitmap;
use crate::subfield::{self, Subfield, Subfields};

pub use crate::handshake::fuzz_handshake as handshake;

/// The parser of subfields. What it accepts is emitted again and must be parsed as the same.
pub fn subfields(bytes: &[u8]) {
    let Some((number, plain)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let number = u64::from_le_bytes(*number) >> 2;
    for subfield in Subfields::new(plain, number, 1 << 18).flatten() {
        let mut out = Vec::new();
        match subfield {
            Subfield::Padding => subfield::emit_padding(&mut out, subfield::PREFIX),
            Subfield::Data(data) => subfield::emit_data(&mut out, &data, number),
            Subfield::Ack(ack) => subfield::emit_ack(&mut out, &ack, |_| ()),
            Subfield::Ping => subfield::emit_ping(&mut out),
            Subfield::Close { reason } => subfield::emit_close(&mut out, reason),
            Subfield::Parity(parity) => parity.emit(&mut out),
        }
        let again: Vec<_> = Subfields::new(&out, number, 1 << 18).collect();
        assert_eq!(again, [Ok(subfield)]);
    }
}

/// The decoder of acknowledgement words: newest first, each word once, nothing above the highest
/// number.
pub fn words(bytes: &[u8]) {
    let Some((highest, words)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let highest = u64::from_le_bytes(*highest) >> 2;
    let mut before = highest / 64 + 1;
    for (word, bits) in Words::new(words, highest).flatten() {
        assert!(word < before);
        before = word;
        assert!(word < highest / 64 || highest % 64 == 63 || bits >> (highest % 64 + 1) == 0);
    }
}

/// The receiver's side of parity: protected datagrams and rows with any content, in any order. Each
/// step is a kind, a length of one byte, and as many bytes.
pub fn parity(bytes: &[u8]) {
    let (mut received, mut rebuilder, mut rebuilt) =
        (Bitmap::new(), Rebuilder::default(), Vec::new());
    let (mut rest, mut number) = (bytes, 1_000);
    while let [kind, length, tail @ ..] = rest {
        let (text, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        number += u64::from(kind >> 4);
        if kind % 2 == 0 {
            if received.is_new(number) && !text.is_empty() {
                received.insert(number);
                rebuilder.on_protected(number, text, &received, &mut rebuilt);
            }
        } else if let [row, back, gaps, text @ ..] = text {
            let (gaps, bytes) = text.split_at(text.len().min(usize::from(gaps % 40)));
            let parity = subfield::Parity {
                row: *row,
                first: 0,
                gaps,
                bytes,
            };
            rebuilder.on_parity(
                &parity,
                number - u64::from(*back),
                number,
                &received,
                &mut rebuilt,
            );
        }
        for (number, plain) in rebuilt.drain(..) {
            assert!(!plain.is_empty() && received.is_new(number));
            received.insert(number);
        }
        rebuilder.check_invariants();
    }
}

/// A whole mover in a session. The bytes say what happens to it: each step is a kind, a length of
/// one byte, and as many bytes. Kinds: raw datagrams; datagrams of its true peer's keys with these
/// bytes as subfields; payloads to send; time; what the link may say. Its own datagrams vanish, or
/// are read by a second mover whose answers it gets.
pub fn mover(bytes: &[u8], start: Instant) {
    let mut stage = Stage::new(start);
    let mut rest = bytes;
    while let [kind, length, tail @ ..] = rest {
        let (text, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        stage.step(*kind, text);
    }
    // However it was treated: left alone with its peer, it comes to rest.
    for _ in 0..200 {
        stage.exchange(true);
        stage.pass(Duration::from_millis(50));
    }
    stage.check();
}

/// A datagram of this mover's session with subfields that no mover would send, well formed and not,
/// and its receiver. `dice` gives a number below the one that it is told. Whoever calls this has
/// given up its session's good name: its own payloads may be contradicted.
pub fn forge(
    mover: &mut Mover,
    dice: &mut dyn FnMut(u32) -> u32,
    now: Instant,
) -> Option<(SocketAddr, Vec<u8>)> {
    let near = mover.stats().counters.sender.payloads as u32;
    let skip = match dice(30) {
        0 => dice(40_000),
        1..6 => dice(100),
        _ => 0,
    };
    let room = if dice(10) == 0 { 30_000 } else { 1_300 };
    mover.forge(
        u64::from(skip),
        |number, out| hostile_subfields(number, near, room, out, dice),
        now,
    )
}

fn hostile_subfields(
    number: u64,
    near: u32,
    room: usize,
    out: &mut Vec<u8>,
    dice: &mut dyn FnMut(u32) -> u32,
) {
    let kind = dice(6);
    let (logical, size) = (near + dice(1 << 20), 2 + dice((256 << 10) - 1) as usize);
    let mut offset = dice(100) as usize;
    while out.len() < room {
        match if kind < 5 { kind } else { dice(8) } {
            // Pieces of one byte with gaps.
            0 if offset < size => {
                let data = subfield::Data {
                    at_once: dice(9) == 0,
                    protected: false,
                    logical: logical.wrapping_add(dice(50) / 49),
                    offset,
                    size,
                    segment: &[7],
                };
                subfield::emit_data(out, &data, number);
                offset += 2;
            }
            // The beginning of many payloads, near and far.
            1 => {
                let size = 1 + dice(256 << 10) as usize;
                let length = size.min(1 + dice(40) as usize);
                let far = if dice(2) == 0 { 100 } else { 1 << 21 };
                let logical = near.wrapping_add(dice(far));
                let segment = vec![1; length];
                let data = subfield::Data {
                    at_once: false,
                    protected: dice(2) == 0,
                    logical,
                    offset: 0,
                    size,
                    segment: &segment,
                };
                subfield::emit_data(out, &data, number);
            }
            2 => {
                let words: Vec<u8> = (0..dice(200))
                    .map(|_| if dice(2) == 0 { 0x7f } else { dice(256) as u8 })
                    .collect();
                let ack = subfield::Ack {
                    highest_sent: number as u32,
                    floor: (number as u32).wrapping_sub(dice(2_000)),
                    highest_received: if dice(2) == 0 {
                        dice(5_000)
                    } else {
                        dice(u32::MAX)
                    },
                    delay: dice(1 << 16) as u16,
                    rate: dice(u32::MAX),
                    rebuilt: dice(50),
                    words: &words,
                };
                subfield::emit_ack(out, &ack, |_| ());
            }
            3 => {
                let (bytes, gaps) = (vec![dice(256) as u8; 3 + dice(900) as usize], [1; 3]);
                let gaps = &gaps[..dice(4) as usize];
                let first = (number as u32).wrapping_sub(4 + dice(60));
                subfield::Parity {
                    row: dice(18) as u8,
                    first,
                    gaps,
                    bytes: &bytes,
                }
                .emit(out);
            }
            4 => subfield::emit_ping(out),
            6 => subfield::emit_padding(out, 3 + dice(300) as usize),
            7 if dice(50) == 0 => subfield::emit_close(out, 1),
            _ => out.extend((0..3 + dice(40)).map(|_| dice(256) as u8)),
        }
    }
}

const OURS: u32 = 0x00_1001;
const THEIRS: u32 = 0x00_2001;

struct Stage {
    now: Instant,
    movers: [Mover; 2],
    addresses: [SocketAddr; 2],
    /// The second mover's twin with the same keys, to seal what no mover would say. Its numbers are
    /// far above the true ones, so that no number is sealed twice; once it has spoken, the first
    /// mover no more knows the second.
    forger: Session,
    number: u64,
}

impl Stage {
    fn new(now: Instant) -> Stage {
        let identities =
            [[1; 32], [2; 32]].map(|seed| Arc::new(Identity::from_seed(Zeroizing::new(seed))));
        let addresses = [
            SocketAddr::from(([192, 0, 2, 1], 1)),
            SocketAddr::from(([192, 0, 2, 2], 2)),
        ];
        let session = |side: usize| {
            let (send, recv) = if side == 0 {
                ([3; 32], [4; 32])
            } else {
                ([4; 32], [3; 32])
            };
            let (local, remote) = if side == 0 {
                (OURS, THEIRS)
            } else {
                (THEIRS, OURS)
            };
            Session::new(Suite::Aes128Gcm, &send, &recv, local, remote, now)
        };
        let movers = [0, 1].map(|side: usize| {
            let key = identities[1 - side].public_key();
            let mut config = Config::new(
                identities[side].clone(),
                key,
                1 + side as u16,
                [side as u8; 32],
            );
            config.limits.reassembly_bytes = 1 << 20;
            config.limits.send_bytes = 1 << 20;
            let mut mover = Mover::new(config, now);
            mover.install(7 + side as u64, session(side), addresses[1 - side], now);
            mover
        });
        Stage {
            now,
            movers,
            addresses,
            forger: session(1),
            number: 1 << 30,
        }
    }

    fn step(&mut self, kind: u8, text: &[u8]) {
        let value = text
            .iter()
            .take(4)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match kind % 10 {
            0 => {
                self.movers[0].handle_datagram(self.addresses[1], &mut text.to_vec(), self.now);
            }
            1 => self.forge(text, 1 + value % 100),
            // Large jumps, as after the loss of very many.
            2 => self.forge(text, 1 + value % 200_000),
            3 => {
                let payload = vec![kind; 1 + value as usize % 70_000];
                let _ = self.movers[0].send(payload, kind & 16 != 0, self.now);
            }
            4 => self.pass(Duration::from_micros(value % 3_000_000)),
            5 => self.exchange(true),
            6 => self.exchange(false),
            7 => self.movers[0].on_too_large(value as usize % 10_000, self.now),
            8 => self.movers[0].on_refused(self.now),
            _ => {
                let budget = self.movers[0].poll_budget(self.now);
                let _ = self.movers[0].send(vec![1; budget], false, self.now);
            }
        }
        self.check();
    }

    /// Subfields of any kind, sealed as the true peer would.
    fn forge(&mut self, plain: &[u8], ahead: u64) {
        self.number += ahead;
        let mut datagram = vec![0; HEADER];
        datagram.extend_from_slice(plain);
        datagram.extend_from_slice(&[0; TAG]);
        self.forger.seal(self.number, &mut datagram, self.now);
        self.movers[0].handle_datagram(self.addresses[1], &mut datagram, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for mover in &mut self.movers {
            if mover.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                mover.handle_timeout(self.now);
            }
        }
    }

    /// Both send what they have; it arrives or not.
    fn exchange(&mut self, arrives: bool) {
        for from in [0, 1] {
            let mut out = Vec::new();
            let mut turns = 0;
            while let Some(transmit) = self.movers[from].poll_transmit(&mut out, self.now) {
                assert!(!out.is_empty() && transmit.segment_size > 0);
                for datagram in out.chunks_mut(transmit.segment_size).filter(|_| arrives) {
                    self.movers[1 - from].handle_datagram(self.addresses[from], datagram, self.now);
                }
                out.clear();
                turns += 1;
                assert!(turns < 10_000, "it never stops sending");
            }
        }
    }

    fn check(&mut self) {
        for mover in &mut self.movers {
            mover.check_invariants();
            mover.check_sums();
            while mover.poll_payload().is_some() {}
            while mover.poll_event().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short run of what the fuzzer does for hours.
    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "a test is its own caller and brings the clock"
    )]
    fn doors_withstand_dice() {
        let start = Instant::now();
        for seed in 0..1_500 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut bytes = Vec::new();
            for _ in 0..dice.usize(1..30) {
                let kind = dice.u8(..);
                let mut text: Vec<u8> = (0..dice.usize(0..60)).map(|_| dice.u8(..)).collect();
                if matches!(kind % 10, 1 | 2) {
                    text = likely_subfields(&mut dice);
                }
                bytes.push(kind);
                bytes.push(text.len() as u8);
                bytes.extend_from_slice(&text);
            }
            subfields(&bytes);
            words(&bytes);
            parity(&bytes);
            mover(&bytes, start);
        }
    }

    /// Well-formed subfields with nonsense in them: random bytes rarely get past the first length.
    fn likely_subfields(dice: &mut fastrand::Rng) -> Vec<u8> {
        let mut out = Vec::new();
        match dice.u8(0..5) {
            0 => subfield::emit_ping(&mut out),
            1 => {
                let words: Vec<u8> = (0..dice.usize(0..30)).map(|_| dice.u8(..)).collect();
                let near = if dice.bool() {
                    dice.u32(0..1 << 20)
                } else {
                    dice.u32(..)
                };
                let ack = subfield::Ack {
                    highest_sent: dice.u32(..),
                    floor: near.wrapping_sub(dice.u32(0..1_000)),
                    highest_received: near,
                    delay: dice.u16(..),
                    rate: dice.u32(..),
                    rebuilt: dice.u32(..),
                    words: &words,
                };
                subfield::emit_ack(&mut out, &ack, |_| ());
            }
            2 => {
                let segment = vec![1; dice.usize(1..100)];
                let offset = dice.usize(0..1_000);
                let size = offset + segment.len() + dice.usize(0..100_000);
                let logical = if dice.bool() {
                    dice.u32(0..100)
                } else {
                    dice.u32(..)
                };
                let data = subfield::Data {
                    at_once: dice.bool(),
                    protected: dice.bool(),
                    logical,
                    offset,
                    size,
                    segment: &segment,
                };
                // The number is not ours to know here; half of the fuzzer's luck is a wrong one.
                subfield::emit_data(&mut out, &data, dice.u64(0..1 << 31));
            }
            3 => {
                let bytes = vec![dice.u8(..); dice.usize(0..100)];
                let gaps: Vec<u8> = (0..dice.usize(0..5)).map(|_| dice.u8(0..4)).collect();
                let first = if dice.bool() {
                    dice.u32(0..100)
                } else {
                    dice.u32(..)
                };
                subfield::Parity {
                    row: dice.u8(0..9),
                    first,
                    gaps: &gaps,
                    bytes: &bytes,
                }
                .emit(&mut out);
            }
            _ => subfield::emit_padding(&mut out, dice.usize(0..100)),
        }
        out
    }
}
