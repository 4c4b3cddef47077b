//! The sender's side: blocks of protected datagrams, and how much parity each gets.
//!
//! `send` adds datagrams as they leave and asks for rows when one is due. A block is open for
//! [`SHIFT`], or until it is full. How many rows it gets follows from the measured loss and its
//! bursts (`estimate`), within a budget of bytes (`budget`). A stream that cannot pay for them has
//! longer blocks: the same share of parity brings back more of a long one.

use std::collections::VecDeque;

use super::budget::Budget;
use super::estimate::LossEstimate;
use super::field::{self, MOST_ROWS, MOST_SHARDS};
use super::{SHARD_PREFIX, gaps};
use crate::congestion::Lost;
use crate::seq;
use crate::stats::ParityCounters;
use crate::subfield::Parity;
use crate::timer::{MILLISECOND, Nanos};

/// Time from a block's first datagram to its parity: two bursts of losses of usual length on most
/// links. At most an eighth of the round trip.
pub(crate) const SHIFT: Nanos = 4 * MILLISECOND;
/// The datagrams of a stream follow one another within this time.
const STREAM_EVERY: Nanos = MILLISECOND;
/// Below this round trip a repair comes soon enough.
const SHORTEST_ROUND_TRIP: Nanos = 15 * MILLISECOND;
/// The probability with which a block may fail to bring back what it lost.
const FAILS: f64 = 1e-3;
/// The same of a block that has ended while the budget is scarce: the first row is worth most.
const FAILS_IN_NEED: f64 = 3e-2;
/// Below this share of lost datagrams, by its upper bound, nothing is protected.
const NEGLIGIBLE: f64 = 5e-4;
/// Mean length of bursts beyond which more rows do not help: the shift has parted longer ones.
const MOST_BURST: f64 = 2.0;
/// Bytes around a row's coded bytes: headers and gaps.
const AROUND_ROW: usize = 80;

/// The sender's side.
pub(crate) struct Protector {
    block: Block,
    /// Rows that wait to leave.
    rows: VecDeque<Row>,
    /// Buffers of rows that have left.
    spare: Vec<Vec<u8>>,
    estimate: LossEstimate,
    budget: Budget,
    /// Of what is sent; what is received is the rebuilder's to count.
    counters: ParityCounters,
}

/// The open block. Buffers are kept from block to block.
#[derive(Default)]
struct Block {
    numbers: Vec<u64>,
    /// From each number to the next, as [`gaps`] says it.
    gaps: Vec<u8>,
    /// Plain bytes with their length in front: one for each number, and buffers behind them.
    shards: Vec<Vec<u8>>,
    due: Nanos,
    /// When the last datagram left.
    added: Nanos,
    /// Until then a block that cannot be paid for may stay open.
    latest: Nanos,
}

impl Block {
    fn len(&self) -> usize {
        self.numbers.len()
    }

    fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Of each datagram in it.
    fn shards(&self) -> &[Vec<u8>] {
        &self.shards[..self.numbers.len()]
    }

    /// Bytes of its longest shard.
    fn length(&self) -> usize {
        self.shards().iter().map(Vec::len).max().unwrap_or(0)
    }

    fn add(&mut self, number: u64, plain: &[u8], round_trip: Option<Nanos>, now: Nanos) {
        if self.is_empty() {
            let shift = round_trip.map_or(SHIFT, |round_trip| SHIFT.min(round_trip / 8));
            (self.due, self.latest) = (now + shift, now + 2 * shift);
        }
        self.added = now;
        let at = self.numbers.len();
        if self.shards.len() == at {
            self.shards.push(Vec::new());
        }
        let shard = &mut self.shards[at];
        shard.clear();
        shard.extend_from_slice(&(plain.len() as u16).to_be_bytes());
        shard.extend_from_slice(plain);
        self.numbers.push(number);
    }

    /// Row number `row` over its datagrams, written into `bytes`.
    fn row(&self, row: usize, mut bytes: Vec<u8>) -> Row {
        bytes.clear();
        bytes.resize(self.length(), 0);
        for (at, shard) in self.shards().iter().enumerate() {
            field::add_scaled(&mut bytes, shard, field::coefficient(row, at));
        }
        Row {
            first: self.numbers[0],
            gaps: self.gaps.clone(),
            row: row as u8,
            bytes,
        }
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.gaps.clear();
    }
}

/// A parity row that waits to leave.
struct Row {
    first: u64,
    gaps: Vec<u8>,
    row: u8,
    bytes: Vec<u8>,
}

impl Protector {
    pub(crate) fn new(now: Nanos) -> Protector {
        Protector {
            block: Block::default(),
            rows: VecDeque::new(),
            spare: Vec::new(),
            estimate: LossEstimate::new(),
            budget: Budget::new(now),
            counters: ParityCounters::default(),
        }
    }

    /// `delivered` datagrams arrived, and these did not.
    pub(crate) fn on_outcome(&mut self, delivered: u64, lost: &[Lost]) {
        self.estimate.on_outcome(delivered, lost);
    }

    /// Is it worth protecting anything? `round_trip`: the shortest, if it is known.
    pub(crate) fn is_on(&self, round_trip: Option<Nanos>) -> bool {
        round_trip.is_none_or(|round_trip| round_trip >= SHORTEST_ROUND_TRIP)
            && self.estimate.loss() > NEGLIGIBLE
    }

    // --- datagrams in, rows out
    // ---------------------------------------------------------------------------------------------

    /// `bytes` on the wire left: parity earns its share of them. `saturated`: more waits to leave.
    /// `rate`: what may leave, bytes per second.
    pub(crate) fn on_sent(&mut self, bytes: u64, saturated: bool, rate: u64, now: Nanos) {
        let burst = self.estimate.burst();
        self.budget.on_sent(bytes, burst, saturated, rate, now);
    }

    /// A protected datagram leaves with these plain bytes, [`super::RESERVE`] shorter than the
    /// longest.
    pub(crate) fn add(&mut self, number: u64, plain: &[u8], round_trip: Option<Nanos>, now: Nanos) {
        let block = &mut self.block;
        if block
            .numbers
            .last()
            .is_some_and(|last| !gaps::push(&mut block.gaps, number - last))
        {
            self.close(false);
        }
        self.block.add(number, plain, round_trip, now);
        self.counters.datagrams_protected += 1;
        if self.block.len() == MOST_SHARDS {
            self.close(false);
        }
    }

    /// Closes the open block: its rows wait to leave. `ended`: nothing has followed it for a while.
    fn close(&mut self, ended: bool) {
        let wanted = self.wanted(ended);
        let rows = wanted.min(self.affordable(ended));
        self.counters.rows_unaffordable += (wanted - rows) as u64;
        let bytes = rows * (self.block.length() + AROUND_ROW);
        self.budget.spend(bytes, self.may_use_more(ended));
        for row in 0..rows {
            let buffer = self.spare.pop().unwrap_or_default();
            self.rows.push_back(self.block.row(row, buffer));
        }
        self.block.clear();
        // Rows that nothing lets out are of no use later; their number is bounded with their
        // budget.
        while self.rows.len() > 2 * MOST_ROWS {
            let old = self.rows.pop_front().expect("there are some");
            self.spare.push(old.bytes);
        }
    }

    /// Rows that the open block should have.
    fn wanted(&self, ended: bool) -> usize {
        let shards = self.block.len();
        // Copies of a lone datagram leave together: a burst takes both or none.
        let burst = if shards > 1 {
            self.estimate.burst().min(MOST_BURST)
        } else {
            1.0
        };
        let in_need = self.may_use_more(ended) && self.budget.is_scarce();
        let fails = if in_need { FAILS_IN_NEED } else { FAILS };
        let rows = rows_for(shards, self.estimate.loss(), fails) as f64;
        ((rows * burst).round() as usize).min(MOST_ROWS)
    }

    /// Rows of the open block that can be paid for.
    fn affordable(&self, ended: bool) -> usize {
        let available = self.budget.available(self.may_use_more(ended));
        available / (self.block.length() + AROUND_ROW)
    }

    /// A block of several datagrams that has ended. Lone ones in a row are a stream of its own,
    /// whose copies have their bound.
    fn may_use_more(&self, ended: bool) -> bool {
        ended && self.block.len() > 1
    }

    /// Takes the wire bytes of a copy from what parity may cost, if there are as many. It counts as
    /// a row over one datagram.
    pub(crate) fn pay(&mut self, bytes: u64) -> bool {
        let pays = self.budget.pay(bytes);
        if pays {
            self.counters.rows_sent += 1;
            self.counters.bytes_sent += bytes;
        }
        pays
    }

    /// When a row may leave; may lie in the past.
    pub(crate) fn due(&self) -> Option<Nanos> {
        if !self.rows.is_empty() {
            return Some(0);
        }
        (!self.block.is_empty()).then_some(self.block.due)
    }

    /// Closes the open block if it is time to. True if a row waits to leave.
    pub(crate) fn prepare_row(&mut self, now: Nanos) -> bool {
        if !self.block.is_empty() && now >= self.block.due {
            // A stream whose parity is not paid for yet goes on with the same block. What has ended
            // is better off with the rows that it can have.
            let ended = now > self.block.added + STREAM_EVERY;
            let affordable = self.affordable(ended);
            let can_wait = affordable == 0 || !ended && affordable < self.wanted(ended);
            if now < self.block.latest && can_wait {
                self.block.due = (now + STREAM_EVERY).min(self.block.latest);
            } else {
                self.close(ended);
            }
        }
        !self.rows.is_empty()
    }

    /// Appends the next row, if it fits into `room`: one that does not, after the path has become
    /// narrower, is given up.
    pub(crate) fn emit(&mut self, out: &mut Vec<u8>, room: usize) {
        let Some(row) = self.rows.pop_front() else {
            return;
        };
        let parity = Parity {
            row: row.row,
            first: seq::low(row.first),
            gaps: &row.gaps,
            bytes: &row.bytes,
        };
        if parity.length() <= room {
            parity.emit(out);
            self.counters.rows_sent += 1;
            self.counters.bytes_sent += parity.length() as u64;
        }
        if self.spare.len() < MOST_ROWS {
            self.spare.push(row.bytes);
        }
    }

    pub(crate) fn counters(&self) -> &ParityCounters {
        &self.counters
    }

    pub(crate) fn check_invariants(&self) {
        let shards = &self.block.shards;
        assert!(self.block.len() < MOST_SHARDS && shards.len() <= MOST_SHARDS);
        assert!(self.rows.len() <= 2 * MOST_ROWS && self.spare.len() <= 3 * MOST_ROWS);
        assert!(shards.iter().all(|shard| shard.len() >= SHARD_PREFIX));
    }
}

/// The fewest rows with which more of `shards` and rows are lost than there are rows with a
/// probability of at most `fails`.
fn rows_for(shards: usize, loss: f64, fails: f64) -> usize {
    if shards == 0 || loss <= 0.0 {
        return 0;
    }
    let loss = loss.min(0.5);
    (0..MOST_ROWS)
        .find(|&rows| more_than(rows, shards + rows, loss) <= fails)
        .unwrap_or(MOST_ROWS)
}

/// The probability that of `count` more than `least` are lost.
fn more_than(least: usize, count: usize, loss: f64) -> f64 {
    let mut none_to_least = 0.0;
    let mut term = (1.0 - loss).powi(count as i32);
    for lost in 0..=least {
        none_to_least += term;
        term *= (count - lost) as f64 / (lost + 1) as f64 * loss / (1.0 - loss);
    }
    1.0 - none_to_least
}

#[cfg(test)]
mod tests {
    use super::super::budget::{self, SHARE_IN_BURSTS};
    use super::*;

    #[test]
    fn rows_follow_the_loss_and_the_size() {
        assert_eq!(rows_for(1, 0.01, 1e-3), 1);
        assert_eq!(rows_for(8, 0.01, 1e-3), 2);
        assert_eq!(rows_for(14, 0.001, 1e-3), 1);
        assert_eq!(
            rows_for(1, 0.000_9, 1e-3),
            0,
            "a lone datagram that is lost so rarely needs no copy"
        );
        assert_eq!(rows_for(32, 0.02, 1e-3), 4);
        assert_eq!(rows_for(32, 0.3, 1e-3), MOST_ROWS);
        assert_eq!(rows_for(0, 0.3, 1e-3), 0);
    }

    #[test]
    fn short_answers_share_the_budget_and_streams_do_not_take_theirs() {
        let (round_trip, mut now) = (Some(100 * MILLISECOND), 0);
        let mut answers = |protector: &mut Protector, ended: bool| {
            let mut rows = Vec::new();
            for answer in 0..300 {
                let before = protector.counters.rows_sent;
                for at in 0..8 {
                    protector.on_sent(1_500, false, 12_500_000, now);
                    protector.add(answer * 9 + at, &[7; 1_400], round_trip, now);
                }
                let look = now + 2 * SHIFT + if ended { 0 } else { STREAM_EVERY / 2 };
                if !ended {
                    protector.on_sent(1_500, false, 12_500_000, look);
                    protector.add(answer * 9 + 8, &[7; 1_400], round_trip, look);
                }
                while protector.prepare_row(look) {
                    protector.emit(&mut Vec::new(), 2_000);
                }
                rows.push(protector.counters.rows_sent - before);
                now += 9 * MILLISECOND;
            }
            rows
        };
        let mut protector = Protector::new(0);
        protector.on_outcome(980, &[]);
        protector.on_outcome(
            0,
            &(0..20)
                .map(|at| Lost {
                    number: at * 50,
                    sent: 0,
                    bytes: 1_500,
                })
                .collect::<Vec<_>>(),
        );
        let rows = answers(&mut protector, true);
        assert!(rows.iter().all(|rows| *rows >= 1), "a row each: {rows:?}");
        assert!(rows.iter().sum::<u64>() < 450);
        let rows = answers(&mut protector, false);
        assert!(
            rows.iter().sum::<u64>() < 250,
            "what goes on has the share of a stream: {rows:?}"
        );
    }

    #[test]
    fn a_clean_path_is_not_protected_and_a_short_one_neither() {
        let mut protector = Protector::new(0);
        assert!(protector.is_on(None) && protector.is_on(Some(100 * MILLISECOND)));
        assert!(!protector.is_on(Some(MILLISECOND)));
        for _ in 0..400 {
            protector.on_outcome(100, &[]);
        }
        assert!(
            !protector.is_on(Some(100 * MILLISECOND)),
            "{}",
            protector.estimate.loss()
        );
        protector.on_outcome(
            0,
            &[Lost {
                number: 7,
                sent: 0,
                bytes: 1_500,
            }; 5],
        );
        assert!(protector.is_on(Some(100 * MILLISECOND)));
    }

    #[test]
    fn losses_of_another_time_are_soon_forgotten_and_those_of_the_path_are_not() {
        let lost = |number| Lost {
            number,
            sent: 0,
            bytes: 1_500,
        };
        // Start-up's own queue: twenty of two hundred, two of three in a row.
        let mut protector = Protector::new(0);
        for burst in 0..10 {
            protector.on_outcome(18, &[lost(burst * 3), lost(burst * 3 + 1)]);
        }
        assert!(protector.estimate.loss() > 0.05);
        protector.on_outcome(1_000, &[]);
        assert!(
            protector.estimate.loss() < 0.005,
            "{}",
            protector.estimate.loss()
        );
        protector.on_outcome(2_800, &[]);
        assert_eq!(
            rows_for(1, protector.estimate.loss(), FAILS),
            0,
            "a lone datagram needs no copy: {}",
            protector.estimate.loss()
        );

        // One of a hundred by chance: never taken for less than three of a thousand.
        let mut random = 1_u64;
        let mut protector = Protector::new(0);
        for number in 0..200_000_u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if (random >> 33).is_multiple_of(100) {
                protector.on_outcome(0, &[lost(number)]);
            } else {
                protector.on_outcome(1, &[]);
            }
            assert!(
                protector.estimate.loss() > 0.003,
                "{number}: {}",
                protector.estimate.loss()
            );
        }
    }

    /// `count` datagrams of a kilobyte leave, one each `every`. The numbers of datagrams in its
    /// blocks.
    fn stream(protector: &mut Protector, count: u64, every: Nanos, saturated: bool) -> Vec<usize> {
        let (mut now, mut blocks) = (0, Vec::new());
        for number in 0..count {
            now += every;
            let open = protector.block.len();
            protector.on_sent(1_000, saturated, 12_500_000, now);
            protector.add(number, &[1; 1_000], None, now);
            let full = open + 1 == MOST_SHARDS;
            let before = protector.block.len();
            while protector.prepare_row(now) {
                protector.emit(&mut Vec::new(), 1_500);
            }
            if full || protector.block.len() < before {
                blocks.push(open + 1);
            }
            protector.check_invariants();
        }
        blocks
    }

    #[test]
    fn the_budget_is_kept() {
        let mut protector = Protector::new(0);
        stream(&mut protector, 20_000, MILLISECOND, true);
        // 5 % of 20 MB, 32 kB in each of 20 seconds, and the first budget.
        let most = 1_000_000 + 640_000 + budget::MOST as u64;
        assert!(
            (most * 9 / 10..=most).contains(&protector.counters.bytes_sent),
            "{}",
            protector.counters.bytes_sent
        );
        assert!(protector.counters.rows_unaffordable > 0);
    }

    #[test]
    fn who_cannot_pay_for_rows_has_longer_blocks() {
        let mean_block = |loss: u64, every| {
            let mut protector = Protector::new(0);
            for number in 0..100 {
                protector.on_outcome(1_000 - loss, &[]);
                for at in 0..loss {
                    protector.on_outcome(
                        0,
                        &[Lost {
                            number: 1_000 * number + 10 * at,
                            sent: 0,
                            bytes: 1_500,
                        }],
                    );
                }
            }
            let blocks = stream(&mut protector, 20_000, every, false);
            blocks.iter().sum::<usize>() as f64 / blocks.len() as f64
        };
        // One of a thousand lost: a row over each four milliseconds is enough, and within the
        // budget.
        let clean = mean_block(1, MILLISECOND / 10);
        assert!((40.0..=42.0).contains(&clean), "{clean}");
        // At 2 % it would need four and can have two and a half: twice the time, or as many as
        // there may be.
        let lossy = mean_block(20, MILLISECOND / 10);
        assert!(lossy > 60.0, "{lossy}");
        let slow = mean_block(20, MILLISECOND / 2);
        assert!((14.0..=17.0).contains(&slow), "{slow}");
    }

    #[test]
    fn bursts_that_no_row_brings_back_cost_less() {
        let mut protector = Protector::new(0);
        for burst in 0..100 {
            protector.on_outcome(245, &[]);
            for at in 0..5 {
                protector.on_outcome(
                    0,
                    &[Lost {
                        number: 250 * burst + at,
                        sent: 0,
                        bytes: 1_500,
                    }],
                );
            }
        }
        stream(&mut protector, 20_000, MILLISECOND / 10, false);
        // 4 % of 20 MB, 32 kB in each of two seconds, and the first budget.
        let most = 20_000_000 / SHARE_IN_BURSTS + 64_000 + budget::MOST as u64;
        assert!(
            (most * 9 / 10..=most).contains(&protector.counters.bytes_sent),
            "{}",
            protector.counters.bytes_sent
        );
    }
}
