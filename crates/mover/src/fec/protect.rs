//! The sender's side: blocks of protected datagrams, and how much parity each gets.
//!
//! `send` adds datagrams as they leave and asks for rows when one is due. A block is open for [`SHIFT`], or until it is full. How many
//! rows it gets follows from the measured loss and its bursts, within a budget of bytes.

use std::collections::VecDeque;

use super::SHARD_PREFIX;
use super::field::{self, MOST_ROWS, MOST_SHARDS};
use crate::congestion::Lost;
use crate::packet::Parity;
use crate::seq;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Parity leaves so long after its block's first datagram: two bursts of usual length on most links. At most an eighth of the round trip.
pub(crate) const SHIFT: Nanos = 4 * MILLISECOND;
/// Below this round trip a repair comes soon enough.
const SHORTEST_ROUND_TRIP: Nanos = 15 * MILLISECOND;
/// A block fails with at most this probability.
const FAILS: f64 = 1e-3;
/// Below this loss, by its upper bound, nothing is protected.
const NEGLIGIBLE: f64 = 5e-4;
/// Believed of a path that nobody has measured yet: one of a hundred lost, and no more weight than half of that, so that a clean path is known as
/// one after a few thousand datagrams.
const PRIOR: (f64, f64) = (50.0, 0.5);
/// Datagrams that the measured loss remembers.
const MEMORY: f64 = 16_000.0;
/// Standard deviations of the upper bound: 95 %, one-sided.
const CONFIDENCE: f64 = 1.64;
/// Bursts longer than this are not met by more rows: the shift has parted them.
const MOST_BURST: f64 = 2.0;
/// Parity's share of what leaves, one part of so many: 6 % in the long run, so that a stream with all its headers stays within 15 %, and
/// 5 % when bulk waits for what parity takes. What is short is protected from [`MOST_BUDGET`].
const SHARE: u64 = 16;
const SHARE_SATURATED: u64 = 20;
/// Parity that is always allowed, bytes per second, so that a few messages are protected on any link.
const ALWAYS: u64 = 32_000;
/// Parity that may leave at once after a rest: an answer of 64 kB, protected. On a slow link not more than it carries in [`BUDGET_TIME`]: there the
/// rest of the answer would wait for parity longer than it is likely to wait for a repair.
const MOST_BUDGET: i64 = 24_000;
const LEAST_BUDGET: i64 = 3_000;
const BUDGET_TIME: Nanos = 20 * MILLISECOND;
/// Numbers between two datagrams of a block at most: the wire has one byte.
const MOST_GAP: u64 = 255;

/// Counters.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) rows: u64,
    pub(crate) row_bytes: u64,
    pub(crate) protected: u64,
    /// Rows that the budget did not allow.
    pub(crate) unaffordable: u64,
}

/// The sender's side.
pub(crate) struct Protector {
    /// The open block: numbers, and shards with their length in front. Buffers are kept from block to block.
    numbers: Vec<u64>,
    shards: Vec<Vec<u8>>,
    due: Nanos,
    rows: VecDeque<Row>,
    spare: Vec<Vec<u8>>,
    delivered: f64,
    lost: f64,
    losses: f64,
    runs: f64,
    last_lost: u64,
    budget: i64,
    budget_at: Nanos,
    pub(crate) counters: Counters,
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
            numbers: Vec::new(),
            shards: Vec::new(),
            due: 0,
            rows: VecDeque::new(),
            spare: Vec::new(),
            delivered: PRIOR.0 - PRIOR.1,
            lost: PRIOR.1,
            losses: 0.0,
            runs: 0.0,
            last_lost: u64::MAX - 1,
            budget: MOST_BUDGET,
            budget_at: now,
            counters: Counters::default(),
        }
    }

    // --- what is known of the path ---------------------------------------------------------------------------------------

    /// So many datagrams arrived, and these did not.
    pub(crate) fn on_news(&mut self, delivered: u64, lost: &[Lost]) {
        self.delivered += delivered as f64;
        for loss in lost {
            self.lost += 1.0;
            self.losses += 1.0;
            if loss.number != self.last_lost + 1 {
                self.runs += 1.0;
            }
            self.last_lost = loss.number;
        }
        if self.delivered + self.lost > MEMORY {
            for count in [&mut self.delivered, &mut self.lost, &mut self.losses, &mut self.runs] {
                *count /= 2.0;
            }
        }
    }

    /// The loss that this path has at most (Wilson's upper bound).
    fn loss(&self) -> f64 {
        let count = self.delivered + self.lost;
        let (share, z) = (self.lost / count, CONFIDENCE);
        let middle = share + z * z / (2.0 * count);
        let spread = z * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
        (middle + spread) / (1.0 + z * z / count)
    }

    fn burst(&self) -> f64 {
        if self.losses < 10.0 { 1.0 } else { (self.losses / self.runs.max(1.0)).clamp(1.0, MOST_BURST) }
    }

    /// Is it worth protecting anything? `round_trip`: the shortest, if it is known.
    pub(crate) fn is_on(&self, round_trip: Option<Nanos>) -> bool {
        round_trip.is_none_or(|round_trip| round_trip >= SHORTEST_ROUND_TRIP) && self.loss() > NEGLIGIBLE
    }

    // --- datagrams in, rows out ------------------------------------------------------------------------------------------

    /// Wire bytes left: parity earns its share of them. `rate`: what may leave, bytes per second.
    pub(crate) fn on_sent(&mut self, bytes: u64, saturated: bool, rate: u64, now: Nanos) {
        let elapsed = now.saturating_sub(self.budget_at).min(SECOND);
        self.budget_at = now;
        let earned = bytes / if saturated { SHARE_SATURATED } else { SHARE } + ALWAYS * elapsed / SECOND;
        if earned == 0 && elapsed > 0 {
            // Too little time to count: it counts the next time.
            self.budget_at -= elapsed;
        }
        let most = (u128::from(rate) * u128::from(BUDGET_TIME) / u128::from(SECOND)) as i64;
        self.budget = (self.budget + earned as i64).min(most.clamp(LEAST_BUDGET, MOST_BUDGET));
    }

    /// A protected datagram leaves with these plain bytes, [`super::RESERVE`] shorter than the longest.
    pub(crate) fn add(&mut self, number: u64, plain: &[u8], round_trip: Option<Nanos>, now: Nanos) {
        if self.numbers.last().is_some_and(|last| number - last > MOST_GAP) {
            self.close();
        }
        if self.numbers.is_empty() {
            self.due = now + round_trip.map_or(SHIFT, |round_trip| SHIFT.min(round_trip / 8));
        }
        let at = self.numbers.len();
        if self.shards.len() == at {
            self.shards.push(Vec::new());
        }
        let shard = &mut self.shards[at];
        shard.clear();
        shard.extend_from_slice(&(plain.len() as u16).to_be_bytes());
        shard.extend_from_slice(plain);
        self.numbers.push(number);
        self.counters.protected += 1;
        if self.numbers.len() == MOST_SHARDS {
            self.close();
        }
    }

    /// Closes the open block: its rows wait to leave.
    fn close(&mut self) {
        let shards = self.numbers.len();
        let length = self.shards[..shards].iter().map(Vec::len).max().unwrap_or(0);
        // Copies of a lone datagram leave together: a burst takes both or none.
        let burst = if shards > 1 { self.burst() } else { 1.0 };
        let wanted = (rows_for(shards, self.loss(), FAILS) as f64 * burst).round() as usize;
        let wanted = wanted.min(MOST_ROWS);
        let affordable = usize::try_from(self.budget).unwrap_or(0) / (length + 80);
        let rows = wanted.min(affordable);
        self.counters.unaffordable += (wanted - rows) as u64;
        self.budget -= (rows * (length + 80)) as i64;
        let gaps: Vec<u8> = self.numbers.windows(2).map(|pair| (pair[1] - pair[0]) as u8).collect();
        for row in 0..rows {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.resize(length, 0);
            for (at, shard) in self.shards[..shards].iter().enumerate() {
                field::add_scaled(&mut bytes, shard, field::coefficient(row, at));
            }
            self.rows.push_back(Row { first: self.numbers[0], gaps: gaps.clone(), row: row as u8, bytes });
        }
        self.numbers.clear();
        // Rows that nothing lets out are of no use later; their number is bounded with their budget.
        while self.rows.len() > 4 * MOST_ROWS {
            let old = self.rows.pop_front().expect("there are some");
            self.spare.push(old.bytes);
        }
    }

    /// Not even one row could be paid for.
    fn is_poor(&self) -> bool {
        let length = self.shards.first().map_or(0, Vec::len);
        self.budget < (length + 80) as i64
    }

    /// When a row may leave; may lie in the past.
    pub(crate) fn due(&self) -> Option<Nanos> {
        if !self.rows.is_empty() {
            return Some(0);
        }
        let extended = if self.is_poor() { SHIFT } else { 0 };
        (!self.numbers.is_empty()).then_some(self.due + extended)
    }

    /// Does a row wait to leave now?
    pub(crate) fn has_row(&mut self, now: Nanos) -> bool {
        // A stream whose parity is not paid for yet goes on a little with the same block: any of its datagrams may then come back.
        let extended = self.is_poor() && now < self.due + SHIFT;
        if !self.numbers.is_empty() && now >= self.due && !extended {
            self.close();
        }
        !self.rows.is_empty()
    }

    /// Appends the next row, if it fits into `room`: one that does not, after the path has become narrower, is given up.
    pub(crate) fn emit(&mut self, out: &mut Vec<u8>, room: usize) {
        let Some(row) = self.rows.pop_front() else { return };
        let parity = Parity { row: row.row, first: seq::low(row.first), gaps: &row.gaps, bytes: &row.bytes };
        if parity.length() <= room {
            parity.emit(out);
            self.counters.rows += 1;
            self.counters.row_bytes += parity.length() as u64;
        }
        if self.spare.len() < MOST_ROWS {
            self.spare.push(row.bytes);
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.numbers.len() < MOST_SHARDS && self.shards.len() <= MOST_SHARDS);
        assert!(self.rows.len() <= 4 * MOST_ROWS && self.spare.len() <= 5 * MOST_ROWS);
        assert!(self.shards.iter().all(|shard| shard.len() >= SHARD_PREFIX));
    }
}

/// The fewest rows with which more of `shards` and rows are lost than there are rows with a probability of at most `fails`.
fn rows_for(shards: usize, loss: f64, fails: f64) -> usize {
    if shards == 0 || loss <= 0.0 {
        return 0;
    }
    let loss = loss.min(0.5);
    (0..MOST_ROWS).find(|&rows| more_than(rows, shards + rows, loss) <= fails).unwrap_or(MOST_ROWS)
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
    use super::*;

    #[test]
    fn rows_follow_the_loss_and_the_size() {
        assert_eq!(rows_for(1, 0.01, 1e-3), 1);
        assert_eq!(rows_for(8, 0.01, 1e-3), 2);
        assert_eq!(rows_for(14, 0.001, 1e-3), 1);
        assert_eq!(rows_for(1, 0.000_9, 1e-3), 0, "a lone datagram that is lost so rarely needs no copy");
        assert_eq!(rows_for(32, 0.02, 1e-3), 4);
        assert_eq!(rows_for(32, 0.3, 1e-3), MOST_ROWS);
        assert_eq!(rows_for(0, 0.3, 1e-3), 0);
    }

    #[test]
    fn a_clean_path_is_not_protected_and_a_short_one_neither() {
        let mut protector = Protector::new(0);
        assert!(protector.is_on(None) && protector.is_on(Some(100 * MILLISECOND)));
        assert!(!protector.is_on(Some(MILLISECOND)));
        for _ in 0..400 {
            protector.on_news(100, &[]);
        }
        assert!(!protector.is_on(Some(100 * MILLISECOND)), "{}", protector.loss());
        protector.on_news(0, &[Lost { number: 7, sent: 0, bytes: 1_500 }; 5]);
        assert!(protector.is_on(Some(100 * MILLISECOND)));
    }

    #[test]
    fn the_budget_is_kept() {
        let mut protector = Protector::new(0);
        let plain = [1; 1_000];
        let mut now = 0;
        for number in 0..20_000 {
            now += MILLISECOND;
            protector.on_sent(1_000, true, 12_500_000, now);
            protector.add(number, &plain, None, now);
            while protector.has_row(now) {
                protector.emit(&mut Vec::new(), 1_500);
            }
            protector.check_invariants();
        }
        // 5 % of 20 MB, 32 kB in each of 20 seconds, and the first budget.
        let most = 1_000_000 + 640_000 + MOST_BUDGET as u64;
        assert!((most * 9 / 10..=most).contains(&protector.counters.row_bytes), "{}", protector.counters.row_bytes);
        assert!(protector.counters.unaffordable > 0);
    }
}
