//! How much the far side of a flow may send: the credit that we grant, sized by what the application takes.
//!
//! The window follows the flow: at least four times what was taken within a round trip, so that a sender in start-up, which
//! doubles each round trip, is never held back, and a repair that costs a round trip does not stop the flow. That is the
//! rule "if more than half of the window was taken within two round trips, double, up to 4 x rate x RTT", written as one
//! comparison. A sender that knows its rate does not double, it is there at once: while windows are small they grow to sixteen times. Credit is an absolute offset and the mover is reliable: it is sent when a quarter of the window has been
//! taken, and never repeated.

use std::time::{Duration, Instant};

use crate::config::MIN_RTT;

/// Windows below this grow faster: from the first credit it is reached within two round trips. A flow whose application stops taking may
/// make us hold so much.
const QUICKLY: u64 = 32 << 20;
/// So much taken in a round trip is the beginning of something long, and no request.
const FAST: u64 = 192 << 10;

/// What windows grow and shrink by: the path and the memory of the peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Climate {
    /// Smoothed round trip.
    pub(crate) rtt: Duration,
    /// Largest window.
    pub(crate) max: u64,
    /// Window that memory shortage shrinks to.
    pub(crate) min: u64,
    pub(crate) memory: Memory,
}

/// How much of the peer's memory budget is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Less than half: windows may grow.
    Ample,
    /// More than half: windows stay as they are.
    Filling,
    /// More than the budget: windows shrink.
    Short,
}

/// The window of a flow's receiving direction.
#[derive(Debug)]
pub(crate) struct Window {
    granted: u64,
    size: u64,
    /// Start of the round in which taken bytes are counted, and what had been taken then.
    round_at: Instant,
    round_from: u64,
    /// What was taken in the round trip before.
    before: u64,
}

impl Window {
    /// `initial` was told to the peer; `size` is what the flow shall work with once it runs.
    pub(crate) fn new(initial: u64, size: u64, now: Instant) -> Window {
        Window { granted: initial, size: size.max(initial), round_at: now, round_from: 0, before: 0 }
    }

    /// Offset up to which the far side may send.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The application has taken bytes, the last of them at offset `delivered - 1`. Returns whether a credit message is due.
    pub(crate) fn on_delivered(&mut self, n: usize, delivered: u64, climate: &Climate, now: Instant) -> bool {
        let in_one_rtt = self.taken_in_one_rtt(n, delivered, climate.rtt.max(MIN_RTT), now);
        match climate.memory {
            Memory::Ample => {
                let quickly = if in_one_rtt >= FAST { (16 * in_one_rtt).min(QUICKLY) } else { 0 };
                self.size = self.size.max((4 * in_one_rtt).max(quickly).min(climate.max));
            }
            Memory::Filling => {}
            Memory::Short => self.size = (self.size / 2).max(climate.min.min(self.size)),
        }
        self.update(delivered)
    }

    /// Bytes taken in the last round trip: what this round has so far, and of the one before the part that is not older. A
    /// burst that begins in one round and ends in the next counts whole.
    fn taken_in_one_rtt(&mut self, n: usize, delivered: u64, rtt: Duration, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.round_at);
        if elapsed > 2 * rtt {
            // A pause, or a slow flow: what it took before says nothing about its rate now.
            self.start_round(delivered - n as u64, 0, now);
            return n as u64;
        }
        let taken = delivered - self.round_from;
        let part = elapsed.as_secs_f64() / rtt.as_secs_f64();
        if part <= 1.0 {
            return taken + (self.before as f64 * (1.0 - part)) as u64;
        }
        let in_one_rtt = (taken as f64 / part) as u64;
        self.start_round(delivered, in_one_rtt, now);
        in_one_rtt
    }

    /// Grants what is due: a quarter of the window or more. Returns whether it did.
    pub(crate) fn update(&mut self, delivered: u64) -> bool {
        let limit = delivered + self.size;
        let due = limit >= self.granted + (self.size / 4).max(1);
        if due {
            self.granted = limit;
        }
        due
    }

    fn start_round(&mut self, from: u64, before: u64, now: Instant) {
        self.round_at = now;
        self.round_from = from;
        self.before = before;
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.granted += offset;
        self.round_from += offset;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn climate(rtt: Duration, memory: Memory) -> Climate {
        Climate { rtt, max: 128 << 20, min: 64 << 10, memory }
    }

    /// A sender that fills every credit at once over a path of `rtt`; the application takes all. Returns the bytes taken in
    /// each round trip.
    fn run(rtt: Duration, rounds: u32, cap_per_ms: u64, memory: Memory, start: Instant) -> (Vec<u64>, Window) {
        let mut window = Window::new(256 << 10, 256 << 10, start);
        let mut credit_at_sender = window.granted();
        let (mut sent, mut taken) = (0_u64, 0_u64);
        let mut credits = VecDeque::new();
        let mut data = VecDeque::new();
        let mut per_round = Vec::new();
        for tick in 0..rounds * rtt.as_millis() as u32 {
            let now = start + tick * MS;
            while credits.front().is_some_and(|(at, _)| *at <= now) {
                credit_at_sender = credits.pop_front().unwrap().1;
            }
            let n = (credit_at_sender - sent).min(cap_per_ms);
            sent += n;
            data.push_back((now + rtt / 2, n));
            while data.front().is_some_and(|(at, _)| *at <= now) {
                let (_, n) = data.pop_front().unwrap();
                taken += n;
                if n > 0 && window.on_delivered(n as usize, taken, &climate(rtt, memory), now) {
                    credits.push_back((now + rtt / 2, window.granted()));
                }
            }
            // Rounds as the receiver sees them: the first byte comes after half of one.
            if tick % rtt.as_millis() as u32 == rtt.as_millis() as u32 / 2 - 1 {
                per_round.push(taken - per_round.iter().sum::<u64>());
            }
        }
        (per_round, window)
    }

    #[test]
    fn start_up_is_at_least_doubled_each_round_trip() {
        // 1 Gbit/s x 100 ms = 12.5 MB in flight.
        let (taken, window) = run(100 * MS, 10, 125_000, Memory::Ample, crate::clock());
        for pair in taken.windows(2).skip(2) {
            assert!(pair[1] >= (2 * pair[0]).min(12_400_000), "{taken:?}");
        }
        assert!(window.size() >= 4 * 12_000_000 && window.size() <= 4 * 13_000_000, "{}", window.size());
    }

    #[test]
    fn memory_decides_about_growth() {
        let (_, window) = run(100 * MS, 10, 125_000, Memory::Filling, crate::clock());
        assert_eq!(window.size(), 256 << 10);
        let (taken, window) = run(100 * MS, 10, 125_000, Memory::Short, crate::clock());
        assert_eq!(window.size(), 64 << 10);
        assert!(taken.iter().skip(2).all(|n| *n > 0), "a short memory slows, it does not stop: {taken:?}");
    }

    #[test]
    fn a_slow_flow_keeps_its_window() {
        // 1 MB/s x 50 ms: 4 x 50 kB is less than the start.
        let (_, window) = run(50 * MS, 20, 1000, Memory::Ample, crate::clock());
        assert_eq!(window.size(), 256 << 10);
    }

    #[test]
    fn credit_is_due_after_a_quarter_and_not_before() {
        let now = crate::clock();
        let mut window = Window::new(1 << 20, 1 << 20, now);
        let climate = climate(100 * MS, Memory::Filling);
        assert!(!window.on_delivered((1 << 18) - 1, (1 << 18) - 1, &climate, now));
        assert!(window.on_delivered(1, 1 << 18, &climate, now));
        assert_eq!(window.granted(), (1 << 20) + (1 << 18));
    }
}
