//! The sender's side: blocks of protected datagrams, and how much parity each gets.
//!
//! `send` adds datagrams as they leave and asks for rows when one is due. A block is open for
//! [`SHIFT`], or until it is full. How many rows it gets follows from the measured loss and its
//! bursts, within a budget of bytes. A stream that cannot pay for them has longer blocks: the same
//! share of parity brings back more of a long one.

use std::collections::VecDeque;

use super::field::{self, MOST_ROWS, MOST_SHARDS};
use super::{SHARD_PREFIX, gaps};
use crate::congestion::Lost;
use crate::seq;
use crate::subfield::Parity;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Parity leaves so long after its block's first datagram: two bursts of usual length on most
/// links. At most an eighth of the round trip.
pub(crate) const SHIFT: Nanos = 4 * MILLISECOND;
/// A stream's datagrams follow one another so soon.
const STREAM_EVERY: Nanos = MILLISECOND;
/// Below this round trip a repair comes soon enough.
const SHORTEST_ROUND_TRIP: Nanos = 15 * MILLISECOND;
/// A block fails with at most this probability, and one that has ended with this while the budget
/// is below a half: the first row is worth most.
const FAILS: f64 = 1e-3;
const FAILS_IN_NEED: f64 = 3e-2;
/// Below this loss, by its upper bound, nothing is protected.
const NEGLIGIBLE: f64 = 5e-4;
/// Believed of a path that nobody has measured yet: one of a hundred lost, and no more weight than
/// half of that, so that a clean path is known as one after a few thousand datagrams.
const PRIOR: (f64, f64) = (50.0, 0.5);
/// Datagrams that the measured loss remembers.
const MEMORY: f64 = 16_000.0;
/// A stretch without a loss that what was counted before makes less likely than this says that the
/// path is another now. What start-up pushed over the brim of its own queue is forgotten so.
const BY_CHANCE: f64 = 1e-3;
/// Standard deviations of the upper bound: 95 %, one-sided.
const CONFIDENCE: f64 = 1.64;
/// Bursts longer than this are not met by more rows: the shift has parted them.
const MOST_BURST: f64 = 2.0;
/// What is around a row's coded bytes: headers and gaps.
const AROUND_ROW: usize = 80;
/// Parity's share of what leaves, one part of so many: 6 % in the long run, so that a stream with
/// all its headers stays within 15 %, and 5 % when bulk waits for what parity takes. What is short
/// is protected from [`MOST_BUDGET`].
const SHARE: u64 = 16;
const SHARE_SATURATED: u64 = 20;
/// And where losses come in bursts of this mean: they take more than rows bring back, and what is
/// repaired counts as well.
const SHARE_IN_BURSTS: u64 = 24;
const LONG_BURSTS: f64 = 3.0;
/// Beside [`SHARE`], while nothing else waits, for blocks that have ended: a short answer cannot
/// wait for its share as a stream can. Together 15 %.
const SHARE_ENDED: u64 = 12;
/// Parity that is always allowed, bytes per second, so that a few messages are protected on any
/// link.
const ALWAYS: u64 = 32_000;
/// Parity that may leave at once after a rest: an answer of 64 kB, protected. On a slow link not
/// more than it carries in [`BUDGET_TIME`]: there the rest of the answer would wait for parity
/// longer than it is likely to wait for a repair.
const MOST_BUDGET: i64 = 24_000;
const LEAST_BUDGET: i64 = 3_000;
const BUDGET_TIME: Nanos = 20 * MILLISECOND;

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
    /// The open block: numbers, and shards with their length in front. Buffers are kept from block
    /// to block.
    numbers: Vec<u64>,
    gaps: Vec<u8>,
    shards: Vec<Vec<u8>>,
    due: Nanos,
    /// When the block's last datagram left.
    added: Nanos,
    /// Until then a block that cannot be paid for may stay open.
    latest: Nanos,
    rows: VecDeque<Row>,
    spare: Vec<Vec<u8>>,
    delivered: f64,
    lost: f64,
    losses: f64,
    runs: f64,
    last_lost: u64,
    /// Datagrams counted up to the last loss, and arrived since.
    known: f64,
    clean: f64,
    budget: i64,
    /// What only blocks that have ended may use.
    for_ended: i64,
    most_budget: i64,
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
            gaps: Vec::new(),
            shards: Vec::new(),
            due: 0,
            added: 0,
            latest: 0,
            rows: VecDeque::new(),
            spare: Vec::new(),
            delivered: PRIOR.0 - PRIOR.1,
            lost: PRIOR.1,
            losses: 0.0,
            runs: 0.0,
            last_lost: u64::MAX - 1,
            known: 0.0,
            clean: 0.0,
            budget: MOST_BUDGET,
            for_ended: 0,
            most_budget: MOST_BUDGET,
            budget_at: now,
            counters: Counters::default(),
        }
    }

    // --- what is known of the path
    // ---------------------------------------------------------------------------------------------

    /// So many datagrams arrived, and these did not.
    pub(crate) fn on_news(&mut self, delivered: u64, lost: &[Lost]) {
        self.delivered += delivered as f64;
        self.clean += delivered as f64;
        for loss in lost {
            self.lost += 1.0;
            self.losses += 1.0;
            if loss.number != self.last_lost + 1 {
                self.runs += 1.0;
            }
            self.last_lost = loss.number;
        }
        if !lost.is_empty() {
            (self.known, self.clean) = (self.delivered + self.lost, 0.0);
        } else if self.is_refuted() {
            (self.delivered, self.lost, self.losses, self.runs) =
                (self.clean.min(MEMORY), PRIOR.1, 0.0, 0.0);
        }
        if self.delivered + self.lost > MEMORY {
            for count in [
                &mut self.delivered,
                &mut self.lost,
                &mut self.losses,
                &mut self.runs,
                &mut self.known,
            ] {
                *count /= 2.0;
            }
        }
    }

    /// Is nothing lost any more? The probability of no run of losses in the datagrams since the
    /// last one, if so many runs were seen in those before (a Poisson process whose rate has the
    /// gamma distribution that they give it).
    fn is_refuted(&self) -> bool {
        self.runs > 0.0 && (self.known / (self.known + self.clean)).powf(self.runs) < BY_CHANCE
    }

    /// The loss that this path has at most (Wilson's upper bound).
    fn loss(&self) -> f64 {
        let count = self.delivered + self.lost;
        let (share, z) = (self.lost / count, CONFIDENCE);
        let middle = share + z * z / (2.0 * count);
        let spread = z * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
        (middle + spread) / (1.0 + z * z / count)
    }

    /// The mean length of the runs of losses.
    fn burst(&self) -> f64 {
        if self.losses < 10.0 {
            1.0
        } else {
            self.losses / self.runs.max(1.0)
        }
    }

    fn share(&self, saturated: bool) -> u64 {
        if self.burst() >= LONG_BURSTS {
            SHARE_IN_BURSTS
        } else if saturated {
            SHARE_SATURATED
        } else {
            SHARE
        }
    }

    /// Is it worth protecting anything? `round_trip`: the shortest, if it is known.
    pub(crate) fn is_on(&self, round_trip: Option<Nanos>) -> bool {
        round_trip.is_none_or(|round_trip| round_trip >= SHORTEST_ROUND_TRIP)
            && self.loss() > NEGLIGIBLE
    }

    // --- datagrams in, rows out
    // ---------------------------------------------------------------------------------------------

    /// Wire bytes left: parity earns its share of them. `rate`: what may leave, bytes per second.
    pub(crate) fn on_sent(&mut self, bytes: u64, saturated: bool, rate: u64, now: Nanos) {
        let elapsed = now.saturating_sub(self.budget_at).min(SECOND);
        self.budget_at = now;
        let earned = bytes / self.share(saturated) + ALWAYS * elapsed / SECOND;
        if earned == 0 && elapsed > 0 {
            // Too little time to count: it counts the next time.
            self.budget_at -= elapsed;
        }
        let most = (u128::from(rate) * u128::from(BUDGET_TIME) / u128::from(SECOND)) as i64;
        self.most_budget = most.clamp(LEAST_BUDGET, MOST_BUDGET);
        self.budget = (self.budget + earned as i64).min(self.most_budget);
        if !saturated {
            self.for_ended = (self.for_ended + (bytes / SHARE_ENDED) as i64).min(self.most_budget);
        }
    }

    /// A protected datagram leaves with these plain bytes, [`super::RESERVE`] shorter than the
    /// longest.
    pub(crate) fn add(&mut self, number: u64, plain: &[u8], round_trip: Option<Nanos>, now: Nanos) {
        if self
            .numbers
            .last()
            .is_some_and(|last| !gaps::push(&mut self.gaps, number - last))
        {
            self.close(false);
        }
        if self.numbers.is_empty() {
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
        self.counters.protected += 1;
        if self.numbers.len() == MOST_SHARDS {
            self.close(false);
        }
    }

    /// Closes the open block: its rows wait to leave. `ended`: nothing has followed it for a while.
    fn close(&mut self, ended: bool) {
        let shards = self.numbers.len();
        let length = self.shards[..shards]
            .iter()
            .map(Vec::len)
            .max()
            .unwrap_or(0);
        let wanted = self.wanted(ended);
        let rows = wanted.min(self.affordable(ended));
        self.counters.unaffordable += (wanted - rows) as u64;
        let bytes = (rows * (length + AROUND_ROW)) as i64;
        let own = if self.may_use_more(ended) {
            bytes.min(self.for_ended)
        } else {
            0
        };
        self.for_ended -= own;
        self.budget -= bytes - own;
        for row in 0..rows {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.resize(length, 0);
            for (at, shard) in self.shards[..shards].iter().enumerate() {
                field::add_scaled(&mut bytes, shard, field::coefficient(row, at));
            }
            self.rows.push_back(Row {
                first: self.numbers[0],
                gaps: self.gaps.clone(),
                row: row as u8,
                bytes,
            });
        }
        self.numbers.clear();
        self.gaps.clear();
        // Rows that nothing lets out are of no use later; their number is bounded with their
        // budget.
        while self.rows.len() > 2 * MOST_ROWS {
            let old = self.rows.pop_front().expect("there are some");
            self.spare.push(old.bytes);
        }
    }

    /// Rows that the open block should have.
    fn wanted(&self, ended: bool) -> usize {
        let shards = self.numbers.len();
        // Copies of a lone datagram leave together: a burst takes both or none.
        let burst = if shards > 1 {
            self.burst().min(MOST_BURST)
        } else {
            1.0
        };
        let in_need =
            self.may_use_more(ended) && self.budget + self.for_ended < self.most_budget / 2;
        let fails = if in_need { FAILS_IN_NEED } else { FAILS };
        ((rows_for(shards, self.loss(), fails) as f64 * burst).round() as usize).min(MOST_ROWS)
    }

    /// Rows of the open block that can be paid for.
    fn affordable(&self, ended: bool) -> usize {
        let length = self.shards[..self.numbers.len()]
            .iter()
            .map(Vec::len)
            .max()
            .unwrap_or(0);
        let more = if self.may_use_more(ended) {
            self.for_ended
        } else {
            0
        };
        usize::try_from(self.budget + more).unwrap_or(0) / (length + AROUND_ROW)
    }

    /// A block of several datagrams that has ended. Lone ones in a row are a stream of its own,
    /// whose copies have their bound.
    fn may_use_more(&self, ended: bool) -> bool {
        ended && self.numbers.len() > 1
    }

    /// Takes so many wire bytes of a copy from what parity may cost, if there are as many. It
    /// counts as a row over one datagram.
    pub(crate) fn pays(&mut self, bytes: u64) -> bool {
        let pays = self.budget >= bytes as i64;
        if pays {
            self.budget -= bytes as i64;
            self.counters.rows += 1;
            self.counters.row_bytes += bytes;
        }
        pays
    }

    /// When a row may leave; may lie in the past.
    pub(crate) fn due(&self) -> Option<Nanos> {
        if !self.rows.is_empty() {
            return Some(0);
        }
        (!self.numbers.is_empty()).then_some(self.due)
    }

    /// Does a row wait to leave now?
    pub(crate) fn has_row(&mut self, now: Nanos) -> bool {
        if !self.numbers.is_empty() && now >= self.due {
            // A stream whose parity is not paid for yet goes on with the same block. What has ended
            // is better off with the rows that it can have.
            let ended = now > self.added + STREAM_EVERY;
            let affordable = self.affordable(ended);
            let can_wait = affordable == 0 || !ended && affordable < self.wanted(ended);
            if now < self.latest && can_wait {
                self.due = (now + STREAM_EVERY).min(self.latest);
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
            self.counters.rows += 1;
            self.counters.row_bytes += parity.length() as u64;
        }
        if self.spare.len() < MOST_ROWS {
            self.spare.push(row.bytes);
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.numbers.len() < MOST_SHARDS && self.shards.len() <= MOST_SHARDS);
        assert!(self.rows.len() <= 2 * MOST_ROWS && self.spare.len() <= 3 * MOST_ROWS);
        assert!(self.shards.iter().all(|shard| shard.len() >= SHARD_PREFIX));
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
                let before = protector.counters.rows;
                for at in 0..8 {
                    protector.on_sent(1_500, false, 12_500_000, now);
                    protector.add(answer * 9 + at, &[7; 1_400], round_trip, now);
                }
                let look = now + 2 * SHIFT + if ended { 0 } else { STREAM_EVERY / 2 };
                if !ended {
                    protector.on_sent(1_500, false, 12_500_000, look);
                    protector.add(answer * 9 + 8, &[7; 1_400], round_trip, look);
                }
                while protector.has_row(look) {
                    protector.emit(&mut Vec::new(), 2_000);
                }
                rows.push(protector.counters.rows - before);
                now += 9 * MILLISECOND;
            }
            rows
        };
        let mut protector = Protector::new(0);
        protector.on_news(980, &[]);
        protector.on_news(
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
            protector.on_news(100, &[]);
        }
        assert!(
            !protector.is_on(Some(100 * MILLISECOND)),
            "{}",
            protector.loss()
        );
        protector.on_news(
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
            protector.on_news(18, &[lost(burst * 3), lost(burst * 3 + 1)]);
        }
        assert!(protector.loss() > 0.05);
        protector.on_news(1_000, &[]);
        assert!(protector.loss() < 0.005, "{}", protector.loss());
        protector.on_news(2_800, &[]);
        assert_eq!(
            rows_for(1, protector.loss(), FAILS),
            0,
            "a lone datagram needs no copy: {}",
            protector.loss()
        );

        // One of a hundred by chance: never taken for less than three of a thousand.
        let mut random = 1_u64;
        let mut protector = Protector::new(0);
        for number in 0..200_000_u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if (random >> 33).is_multiple_of(100) {
                protector.on_news(0, &[lost(number)]);
            } else {
                protector.on_news(1, &[]);
            }
            assert!(protector.loss() > 0.003, "{number}: {}", protector.loss());
        }
    }

    /// So many datagrams of a kilobyte, one each `every`. The numbers of datagrams in its blocks.
    fn stream(protector: &mut Protector, count: u64, every: Nanos, saturated: bool) -> Vec<usize> {
        let (mut now, mut blocks) = (0, Vec::new());
        for number in 0..count {
            now += every;
            let open = protector.numbers.len();
            protector.on_sent(1_000, saturated, 12_500_000, now);
            protector.add(number, &[1; 1_000], None, now);
            let full = open + 1 == MOST_SHARDS;
            let before = protector.numbers.len();
            while protector.has_row(now) {
                protector.emit(&mut Vec::new(), 1_500);
            }
            if full || protector.numbers.len() < before {
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
        let most = 1_000_000 + 640_000 + MOST_BUDGET as u64;
        assert!(
            (most * 9 / 10..=most).contains(&protector.counters.row_bytes),
            "{}",
            protector.counters.row_bytes
        );
        assert!(protector.counters.unaffordable > 0);
    }

    #[test]
    fn who_cannot_pay_for_rows_has_longer_blocks() {
        let mean_block = |loss: u64, every| {
            let mut protector = Protector::new(0);
            for number in 0..100 {
                protector.on_news(1_000 - loss, &[]);
                for at in 0..loss {
                    protector.on_news(
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
            protector.on_news(245, &[]);
            for at in 0..5 {
                protector.on_news(
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
        let most = 20_000_000 / SHARE_IN_BURSTS + 64_000 + MOST_BUDGET as u64;
        assert!(
            (most * 9 / 10..=most).contains(&protector.counters.row_bytes),
            "{}",
            protector.counters.row_bytes
        );
    }
}
