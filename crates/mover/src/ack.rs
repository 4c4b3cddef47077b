//! Acknowledgements: their flags as run-length coded words, and when the receiver sends them.
//!
//! `encode` reads the receiver's bitmap, newest word first; `Words` gives the same words to the
//! sender's loss detection. `Schedule` decides when one is due.

use crate::error::ParseError;
use crate::recv::bitmap::Bitmap;
use crate::timer::{MICROSECOND, MILLISECOND, Nanos, SECOND};

/// The token in front of a literal word of 64 flags. Tokens below it are runs of words of ones,
/// tokens above it runs of words of zeros.
const LITERAL: u8 = 0x80;
/// Words of the longest run that one token stands for.
const LONGEST_ONES: u64 = 128;
const LONGEST_ZEROS: u64 = 127;

/// Appends the flags of `bitmap` from the highest number down to `floor`, in at most `room` bytes.
pub(crate) fn encode(bitmap: &Bitmap, floor: u64, room: usize, out: &mut Vec<u8>) {
    let Some(highest) = bitmap.highest() else {
        return;
    };
    let start = out.len();
    let lowest = floor.max(bitmap.start()).min(highest);
    // Bits that mean nothing count as ones: above the highest, and below the floor where every fate
    // is known.
    let padded = |word: u64| {
        let mut bits = bitmap.word(word);
        if word == highest / 64 {
            bits |= u64::MAX.checked_shl((highest % 64 + 1) as u32).unwrap_or(0);
        }
        if word == lowest / 64 {
            bits |= (1 << (lowest % 64)) - 1;
        }
        bits
    };
    let mut run = Run::default();
    for word in (lowest / 64..=highest / 64).rev() {
        // A pending run may need a byte, a literal nine.
        if out.len() - start + 10 > room {
            break;
        }
        match padded(word) {
            u64::MAX => run.add(true, out),
            0 => run.add(false, out),
            bits => {
                run.flush(out);
                // The true bits: a one above the highest would name a datagram that nobody sent.
                let bits = if word == highest / 64 {
                    bitmap.word(word) | (bits & low_mask(lowest, word))
                } else {
                    bits
                };
                out.push(LITERAL);
                out.extend_from_slice(&bits.to_be_bytes());
            }
        }
    }
    run.flush(out);
}

fn low_mask(lowest: u64, word: u64) -> u64 {
    if word == lowest / 64 {
        (1 << (lowest % 64)) - 1
    } else {
        0
    }
}

#[derive(Default)]
struct Run {
    ones: bool,
    length: u64,
}

impl Run {
    fn add(&mut self, ones: bool, out: &mut Vec<u8>) {
        let longest = if ones { LONGEST_ONES } else { LONGEST_ZEROS };
        if self.ones != ones || self.length == longest {
            self.flush(out);
        }
        self.ones = ones;
        self.length += 1;
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if self.length > 0 {
            out.push(if self.ones {
                (self.length - 1) as u8
            } else {
                LITERAL + self.length as u8
            });
        }
        self.length = 0;
    }
}

/// The words of an acknowledgement, newest first: number of the word and its bits. Runs of zeros
/// are left out.
pub(crate) struct Words<'a> {
    rest: &'a [u8],
    /// The next word, plus one; 0: there are no more.
    next: u64,
    ones: u64,
    highest: u64,
}

impl<'a> Words<'a> {
    pub(crate) fn new(words: &'a [u8], highest: u64) -> Words<'a> {
        Words {
            rest: words,
            next: highest / 64 + 1,
            ones: 0,
            highest,
        }
    }

    fn step(&mut self) -> u64 {
        self.next -= 1;
        self.next
    }

    /// Only the newest word may have ones that mean nothing.
    fn real(&self, word: u64, bits: u64) -> u64 {
        if word == self.highest / 64 && self.highest % 64 != 63 {
            bits & ((2 << (self.highest % 64)) - 1)
        } else {
            bits
        }
    }
}

impl Iterator for Words<'_> {
    type Item = Result<(u64, u64), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.next == 0 {
                return None;
            }
            if self.ones > 0 {
                self.ones -= 1;
                let word = self.step();
                return Some(Ok((word, self.real(word, u64::MAX))));
            }
            let (&token, rest) = self.rest.split_first()?;
            self.rest = rest;
            match token {
                LITERAL => {
                    let Some((bits, rest)) = self.rest.split_first_chunk::<8>() else {
                        self.next = 0;
                        return Some(Err(ParseError::Words));
                    };
                    self.rest = rest;
                    let word = self.step();
                    return Some(Ok((word, self.real(word, u64::from_be_bytes(*bits)))));
                }
                ones if ones < LITERAL => self.ones = u64::from(ones) + 1,
                zeros => self.next = self.next.saturating_sub(u64::from(zeros - LITERAL)),
            }
        }
    }
}

/// The longest, 25 ms, that an acknowledgement of data is held back.
pub(crate) const LONGEST_DELAY: Nanos = 25 * MILLISECOND;
/// The longest, 1 s, that the acknowledgement of parity is held back: parity is never sent again.
/// The wire's field for the delay holds 1,048 ms.
const LONGEST_PATIENCE: Nanos = SECOND;
const SHORTEST_DELAY: Nanos = MILLISECOND;
/// Times, 8, that the delay is longer for what asks for no acknowledgement, which rides on what
/// leaves anyhow: the peer's own floor follows it.
const UNASKED: u64 = 8;
/// Part of the round trip, 1/32 as a shift, by which a gap is told later: a gap that is only
/// reordering closes in that time.
const GAP_DELAY_SHIFT: u32 = 5;
/// Datagrams, 256, that are acknowledged together at most.
const DATAGRAMS: u32 = 256;
/// Datagrams, 64, that are acknowledged together at most while some are missing: their repairs
/// shall not wait.
const DATAGRAMS_MISSING: u32 = 64;
/// The share of the return path that acknowledgements may take: one fiftieth.
const BUDGET_SHARE: u64 = 50;
/// Bytes of acknowledgements that may leave at once after a rest.
const BUDGET_BURST: i64 = 8_192;
/// What the return path carries at least: the narrowest link that we are made for.
const BUDGET_RATE_FLOOR: u64 = 125_000;

/// When to acknowledge.
pub(crate) struct Schedule {
    /// Datagrams received since the last acknowledgement that ask for one.
    waiting: u32,
    /// Anything was received since the last acknowledgement: it may ride on data.
    is_due: bool,
    /// When the acknowledgement is due.
    due: Option<Nanos>,
    /// When the highest number was received.
    highest_at: Nanos,
    last_sent_at: Nanos,
    /// Bytes that may be spent on acknowledgements now; below zero they wait.
    budget: i64,
    budget_at: Nanos,
    missing: bool,
}

/// What a received datagram means for the schedule.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    /// It carries data or a ping.
    pub(crate) asks: bool,
    /// It asks for an answer at once.
    pub(crate) at_once: bool,
    /// It holds parity and would like to be acknowledged with whatever leaves next.
    pub(crate) patient: bool,
    /// It has the highest number so far.
    pub(crate) is_highest: bool,
    /// Numbers just below it are missing.
    pub(crate) gap: bool,
}

impl Schedule {
    pub(crate) fn new(now: Nanos) -> Schedule {
        Schedule {
            waiting: 0,
            is_due: false,
            due: None,
            highest_at: now,
            last_sent_at: now,
            budget: BUDGET_BURST,
            budget_at: now,
            missing: false,
        }
    }

    /// How long acknowledgements of a stream of data are held back, given the shortest round trip.
    pub(crate) fn interval(minimum_rtt: Option<Nanos>) -> Nanos {
        minimum_rtt.map_or(SHORTEST_DELAY, |rtt| {
            (rtt / 8).clamp(SHORTEST_DELAY, LONGEST_DELAY)
        })
    }

    /// How long the acknowledgement of parity is held back: whoever answers the answer to what it
    /// protects has done so by then, and it rides on that.
    pub(crate) fn patience(minimum_rtt: Option<Nanos>) -> Nanos {
        minimum_rtt.map_or(LONGEST_DELAY, |rtt| {
            (rtt + rtt / 2).clamp(LONGEST_DELAY, LONGEST_PATIENCE)
        })
    }

    pub(crate) fn on_arrival(&mut self, arrival: Arrival, minimum_rtt: Option<Nanos>, now: Nanos) {
        self.is_due = true;
        if arrival.is_highest {
            self.highest_at = now;
        }
        if arrival.gap {
            self.missing = true;
            let soon = minimum_rtt
                .map_or(0, |rtt| rtt >> GAP_DELAY_SHIFT)
                .clamp(SHORTEST_DELAY, LONGEST_DELAY);
            self.make_due(now + soon);
        }
        if arrival.patient {
            self.make_due(now + Schedule::patience(minimum_rtt));
        }
        if !arrival.asks {
            return;
        }
        self.waiting += 1;
        let interval = Schedule::interval(minimum_rtt);
        let interval = if self.missing {
            (interval / 2).max(SHORTEST_DELAY)
        } else {
            interval
        };
        let many = if self.missing {
            DATAGRAMS_MISSING
        } else {
            DATAGRAMS
        };
        if arrival.at_once || self.waiting >= many {
            self.make_due(now);
        } else {
            // Also the first after a rest: an answer may come for it to ride on, or its parity.
            self.make_due(now + interval);
        }
    }

    fn make_due(&mut self, at: Nanos) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Datagrams are missing that were not when the last acknowledgement left.
    pub(crate) fn is_missing(&self) -> bool {
        self.missing
    }

    /// When an acknowledgement must leave even without data to ride on.
    pub(crate) fn deadline(&self, return_rate: u64) -> Option<Nanos> {
        let due = self.due?;
        if self.budget >= 0 {
            return Some(due);
        }
        let rate = return_rate.max(BUDGET_RATE_FLOOR) / BUDGET_SHARE;
        Some(due.max(self.budget_at + self.budget.unsigned_abs() * SECOND / rate + MICROSECOND))
    }

    /// May one ride on a datagram that leaves now? Not on each: what it would say is news only
    /// after a while, and what nobody waits for only after a round trip. On `urgent` data, which it
    /// may push into a second datagram, only if the peer asked for it.
    pub(crate) fn may_ride(&self, urgent: bool, minimum_rtt: Option<Nanos>, now: Nanos) -> bool {
        let interval = Schedule::interval(minimum_rtt);
        match self.due {
            Some(due) => due <= now || now >= self.last_sent_at + interval,
            None => self.is_due && !urgent && now >= self.last_sent_at + UNASKED * interval,
        }
    }

    /// How long the acknowledgement of the highest number was held back.
    pub(crate) fn delay(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.highest_at)
    }

    /// An acknowledgement of `bytes` left.
    pub(crate) fn on_sent(&mut self, bytes: usize, return_rate: u64, now: Nanos) {
        let rate = return_rate.max(BUDGET_RATE_FLOOR) / BUDGET_SHARE;
        let elapsed = now.saturating_sub(self.budget_at).min(SECOND);
        let earned = (u128::from(elapsed) * u128::from(rate) / u128::from(SECOND)) as i64;
        self.budget = (self.budget + earned).min(BUDGET_BURST) - bytes as i64;
        self.budget_at = now;
        self.waiting = 0;
        self.is_due = false;
        self.due = None;
        self.missing = false;
        self.last_sent_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(words: &[u8], highest: u64) -> Vec<u64> {
        let mut numbers = Vec::new();
        for word in Words::new(words, highest) {
            let (word, bits) = word.unwrap();
            numbers.extend(
                (0..64)
                    .filter(|bit| bits >> bit & 1 == 1)
                    .map(|bit| word * 64 + bit),
            );
        }
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn says_exactly_what_was_received_from_the_floor_up() {
        for seed in 0..300 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut bitmap = Bitmap::new();
            let first = dice.u64(0..200_000);
            let share = dice.f64() * dice.f64();
            let last = first + dice.u64(1..30_000);
            for number in first..=last {
                if dice.f64() >= share {
                    bitmap.insert(number);
                }
            }
            let Some(highest) = bitmap.highest() else {
                continue;
            };
            let floor = dice.u64(first.saturating_sub(300)..=highest);
            let mut words = Vec::new();
            encode(&bitmap, floor, usize::MAX, &mut words);
            let said: Vec<u64> = decoded(&words, highest)
                .into_iter()
                .filter(|number| *number >= floor)
                .collect();
            let received: Vec<u64> = (floor..=highest)
                .filter(|number| bitmap.contains(*number))
                .collect();
            assert!(said == received, "seed {seed}");
            // Cut off for want of room, it says the newest and nothing wrong.
            let room = dice.usize(10..100);
            let mut short = Vec::new();
            encode(&bitmap, floor, room, &mut short);
            assert!(short.len() <= room);
            assert!(
                decoded(&short, highest)
                    .iter()
                    .all(|number| *number < floor || bitmap.contains(*number))
            );
            assert!(
                decoded(&short, highest).last() == Some(&highest),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn a_clean_stream_costs_two_bytes() {
        let mut bitmap = Bitmap::new();
        (1_000..9_000).for_each(|number| bitmap.insert(number));
        let mut words = Vec::new();
        encode(&bitmap, 1_000, usize::MAX, &mut words);
        assert_eq!(words.len(), 1);
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut dice = fastrand::Rng::with_seed(9);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..dice.usize(0..40)).map(|_| dice.u8(..)).collect();
            let highest = if dice.bool() {
                dice.u64(0..500)
            } else {
                dice.u64(0..crate::seq::LIMIT)
            };
            let words: Vec<_> = Words::new(&bytes, highest).collect();
            assert!(words.len() <= bytes.len() * 128);
            assert!(
                words
                    .iter()
                    .flatten()
                    .all(|(word, _)| *word <= highest / 64)
            );
        }
    }

    #[test]
    fn a_stream_is_acknowledged_together_and_a_lone_datagram_soon() {
        let mut schedule = Schedule::new(0);
        let rtt = Some(80 * MILLISECOND);
        let arrival = Arrival {
            asks: true,
            at_once: false,
            patient: false,
            is_highest: true,
            gap: false,
        };
        schedule.on_arrival(arrival, rtt, 1);
        assert_eq!(
            schedule.deadline(0),
            Some(1 + 10 * MILLISECOND),
            "the first after a rest"
        );
        schedule.on_sent(60, 0, 1);
        for at in 2..200 {
            schedule.on_arrival(arrival, rtt, at);
            assert_eq!(schedule.deadline(0), Some(2 + 10 * MILLISECOND));
        }
        schedule.on_arrival(
            Arrival {
                at_once: true,
                ..arrival
            },
            rtt,
            300,
        );
        assert_eq!(schedule.deadline(0), Some(300));
    }

    #[test]
    fn what_nobody_waits_for_rides_once_in_a_round_trip() {
        let rtt = Some(80 * MILLISECOND);
        let arrival = Arrival {
            asks: false,
            at_once: false,
            patient: false,
            is_highest: true,
            gap: false,
        };
        let mut schedule = Schedule::new(0);
        schedule.on_arrival(arrival, rtt, 1);
        assert_eq!(schedule.deadline(0), None);
        assert!(!schedule.may_ride(false, rtt, 79 * MILLISECOND));
        assert!(
            schedule.may_ride(false, rtt, 80 * MILLISECOND)
                && !schedule.may_ride(true, rtt, 80 * MILLISECOND)
        );
        schedule.on_arrival(
            Arrival {
                asks: true,
                ..arrival
            },
            rtt,
            2,
        );
        assert!(
            schedule.may_ride(true, rtt, 10 * MILLISECOND),
            "what asks, after an eighth"
        );
        schedule.on_sent(60, 0, 10 * MILLISECOND);
        assert!(!schedule.may_ride(false, rtt, SECOND), "nothing came since");
    }

    #[test]
    fn many_acknowledgements_wait_for_their_budget() {
        let mut schedule = Schedule::new(0);
        let arrival = Arrival {
            asks: true,
            at_once: true,
            patient: false,
            is_highest: true,
            gap: false,
        };
        let mut sent = 0;
        for now in (0..SECOND).step_by(MICROSECOND as usize * 100) {
            schedule.on_arrival(arrival, None, now);
            if schedule.deadline(0).is_some_and(|due| due <= now) {
                schedule.on_sent(100, 0, now);
                sent += 100;
            }
        }
        let allowed = BUDGET_BURST as u64 + BUDGET_RATE_FLOOR / BUDGET_SHARE;
        assert!(
            sent <= allowed + 200 && sent + 200 >= allowed,
            "{sent} of {allowed}"
        );
    }
}
