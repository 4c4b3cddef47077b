//! Spreads datagrams over time: quanta of at most one millisecond, paid for afterwards.
//!
//! `send` asks how much may leave now and says what left; the rate comes from the congestion
//! control. The bucket holds wire bytes. It may go into debt by one batch, so that a batch leaves
//! whole, and holds at most two batches' or two milliseconds' credit, so that a rest is not
//! followed by a burst. Fast links are woken for a whole quantum of several batches: a wake-up
//! costs more than a system call, and the queue that it makes is still one millisecond.

use crate::config::Limits;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Datagrams of the smallest batch: on a slow link, where one takes more than a millisecond.
const BATCH_DATAGRAMS: u64 = 2;

/// The bucket.
pub(crate) struct Pacer {
    /// Bytes per second.
    rate: u64,
    /// Wire bytes of one full datagram.
    datagram: u64,
    /// Wire bytes that may leave, in parts of one byte per second of rate: bytes times nanoseconds
    /// per second.
    credit: i128,
    at: Nanos,
}

impl Pacer {
    pub(crate) fn new(rate: u64, datagram: usize, now: Nanos) -> Pacer {
        let mut pacer = Pacer {
            rate: rate.max(1),
            datagram: datagram as u64,
            credit: 0,
            at: now,
        };
        pacer.credit = i128::from(pacer.batch()) * i128::from(SECOND);
        pacer
    }

    /// Wire bytes of one batch.
    pub(crate) fn batch(&self) -> u64 {
        (self.rate / 1_000)
            .min(Limits::BATCH_BYTES as u64)
            .max(BATCH_DATAGRAMS * self.datagram)
    }

    fn most_credit(&self) -> i128 {
        // A busy lane may come late by a millisecond after the quantum; what it missed then is not
        // idleness.
        i128::from((2 * self.batch()).max(self.rate / 500)) * i128::from(SECOND)
    }

    fn credit_at(&self, now: Nanos) -> i128 {
        let earned = i128::from(now.saturating_sub(self.at)) * i128::from(self.rate);
        (self.credit + earned).min(self.most_credit())
    }

    /// The rate or the datagram size changed. What was earned at the old rate stays earned.
    pub(crate) fn set(&mut self, rate: u64, datagram: usize, now: Nanos) {
        let rate = rate.max(1);
        if rate != self.rate || datagram as u64 != self.datagram {
            self.credit = self.credit_at(now);
            self.at = self.at.max(now);
            // Debt is time: at a new rate the same wait.
            if self.credit < 0 {
                self.credit = self.credit * i128::from(rate) / i128::from(self.rate);
            }
            self.rate = rate;
            self.datagram = datagram as u64;
            self.credit = self.credit.min(self.most_credit());
        }
    }

    /// Wire bytes that may leave now; 0 while in debt.
    pub(crate) fn allowance(&self, now: Nanos) -> u64 {
        let credit = self.credit_at(now);
        if credit < 0 {
            return 0;
        }
        // With the one batch of debt that is allowed, at most two leave at once; more only for a
        // late lane.
        let credit = (credit / i128::from(SECOND)) as u64;
        (credit + self.batch()).min((2 * self.batch()).max(credit))
    }

    /// When it is worth asking for an `allowance` again: a quantum may leave. May lie in the past.
    pub(crate) fn release(&self) -> Nanos {
        // One batch of the quantum is on credit.
        let quantum =
            i128::from((self.rate / 1_000).saturating_sub(self.batch())) * i128::from(SECOND);
        let wait = (quantum - self.credit)
            .max(0)
            .unsigned_abs()
            .div_ceil(u128::from(self.rate));
        self.at
            .saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// The bucket is full: the sender has had less to send than it might.
    pub(crate) fn is_idle(&self, now: Nanos) -> bool {
        self.credit_at(now) >= self.most_credit()
    }

    /// `bytes` on the wire left.
    pub(crate) fn on_sent(&mut self, bytes: u64, now: Nanos) {
        self.credit = self.credit_at(now) - i128::from(bytes) * i128::from(SECOND);
        self.at = self.at.max(now);
        // Probes and acknowledgements leave without asking; they may not silence the data for long.
        let floor = -i128::from(self.rate) * i128::from(50 * MILLISECOND)
            - i128::from(4 * self.batch()) * i128::from(SECOND);
        self.credit = self.credit.max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends whenever allowed, looking every `step`; gives the bytes sent in one second.
    fn sent_in_a_second(rate: u64, step: Nanos) -> u64 {
        let mut pacer = Pacer::new(rate, 1_500, 0);
        let mut sent = 0;
        let mut now = 0;
        while now < SECOND {
            let allowance = pacer.allowance(now) / 1_500 * 1_500;
            if allowance > 0 {
                let batch = allowance.min(64_500);
                pacer.on_sent(batch, now);
                sent += batch;
            } else {
                now = pacer.release().max(now + step);
            }
        }
        sent
    }

    #[test]
    fn keeps_its_rate_at_every_speed() {
        for rate in [125_000, 1_250_000, 12_500_000, 125_000_000, 875_000_000] {
            for step in [1_000, 100_000, 900_000] {
                let sent = sent_in_a_second(rate, step);
                let burst = 4 * 64_500.min((rate / 1_000).max(3_000));
                assert!(
                    sent <= rate + burst && sent + burst >= rate * 99 / 100,
                    "{sent} at {rate}, step {step}"
                );
            }
        }
    }

    #[test]
    fn a_rest_is_not_followed_by_a_burst() {
        let mut pacer = Pacer::new(12_500_000, 1_500, 0);
        pacer.on_sent(12_500, 0);
        assert!(pacer.is_idle(10 * SECOND));
        assert_eq!(pacer.allowance(10 * SECOND), 25_000);
    }

    #[test]
    fn a_new_rate_keeps_the_wait() {
        let mut pacer = Pacer::new(1_000_000, 1_500, 0);
        pacer.on_sent(13_000, 0);
        assert_eq!(pacer.release(), 10 * MILLISECOND);
        pacer.set(10_000_000, 1_500, 0);
        assert_eq!(pacer.release(), 10 * MILLISECOND);
    }
}
