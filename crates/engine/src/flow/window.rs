//! How much the far side of a stream may send: the credit that we grant, sized by what the near
//! application takes.
//!
//! The window is at least four times what was taken within a round trip. So a sender in start-up,
//! which doubles each round trip, is never held back, and a repair that costs a round trip does not
//! stop the stream. That is the rule "if more than half of the window was taken within two round
//! trips, double, up to 4 x rate x RTT", written as one comparison. A sender that knows its rate is
//! there at once instead of doubling: while windows are small they grow to sixteen times.
//!
//! What an application does not take waits here. When far more waits than it takes, the rest of the
//! credit is taken back until it has caught up. So for a reader that has stopped only what was
//! under way is held, however large its window had become, and the memory is left to the others.
//!
//! Credit is an absolute offset and the mover is reliable: it is sent when a quarter of the window
//! has been taken, and never repeated.

use std::time::{Duration, Instant};

use crate::config::{AHEAD, MIN_RTT, PAUSE_FROM, STALLED};

/// Bytes up to which windows grow faster: 32 MiB. From the first credit it is reached within two
/// round trips. A stream whose application stops taking may make us hold as much.
const QUICKLY: u64 = 32 << 20;
/// Bytes taken in a round trip from which a stream is long, and no request: 192 KiB.
const FAST: u64 = 192 << 10;

/// What windows are sized by: the path and the memory of the peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizing {
    /// Smoothed round trip.
    pub(crate) rtt: Duration,
    /// The largest window, bytes.
    pub(crate) max: u64,
    /// The window that memory shortage shrinks to, bytes.
    pub(crate) min: u64,
    pub(crate) memory: MemoryUse,
}

/// What the application has taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// Bytes that it took just now.
    pub(crate) bytes: usize,
    /// Offset behind the last of them.
    pub(crate) delivered: u64,
    /// Bytes that are there and that it has left.
    pub(crate) waiting: u64,
}

/// What is to be said to the far side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Credit,
    Pause,
}

/// How much of the peer's memory budget is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryUse {
    /// Less than half: windows may grow.
    Ample,
    /// More than half: windows grow up to this many bytes, a part of what is free. So a stream
    /// that stops next leaves most of that to those after it.
    Filling(u64),
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
    /// Bytes taken in the round trip before, as far as 32 bits can say.
    before: u32,
    /// The application left something when it took last, or has taken nothing yet. Since then the
    /// bytes wait for the application, and the application does not wait for the link.
    left: bool,
    /// The rest of the credit is taken back.
    paused: bool,
}

impl Window {
    /// `initial` was told to the peer; `size` is what the flow shall work with once it runs.
    pub(crate) fn new(initial: u64, size: u64, now: Instant) -> Window {
        Window {
            granted: initial,
            size: size.max(initial),
            round_at: now,
            round_from: 0,
            before: 0,
            left: true,
            paused: false,
        }
    }

    /// Offset up to which the far side may send.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Data has come, and `waiting` bytes wait for the application. Whether a pause is due: nothing
    /// was taken for a round trip.
    pub(crate) fn handle_arrived(&mut self, waiting: u64, rtt: Duration, now: Instant) -> bool {
        // A round ends with what is taken after it was a round trip old.
        let stalled = now.saturating_duration_since(self.round_at) > (2 * rtt).max(STALLED);
        let due = !self.paused && self.left && waiting >= PAUSE_FROM && stalled;
        self.paused |= due;
        due
    }

    /// The application has taken bytes. Says what is to be said to the far side for it.
    pub(crate) fn handle_delivered(
        &mut self,
        Taken {
            bytes: n,
            delivered,
            waiting,
        }: Taken,
        sizing: &Sizing,
        now: Instant,
    ) -> Due {
        let rtt = sizing.rtt.max(MIN_RTT);
        let round_at = self.round_at;
        let left = std::mem::replace(&mut self.left, waiting > 0);
        let in_one_rtt = self.taken_in_one_rtt(n, delivered, rtt, now);
        // What it takes in such a time, judged over the pause before if there was one.
        let elapsed = now.saturating_duration_since(round_at);
        let pace = if elapsed > 2 * rtt {
            n as f64 / elapsed.as_secs_f64()
        } else {
            in_one_rtt as f64 / rtt.as_secs_f64()
        };
        let ahead = (pace * rtt.max(AHEAD).as_secs_f64()) as u64;
        match sizing.memory {
            MemoryUse::Ample => {
                let quickly = if in_one_rtt >= FAST {
                    (16 * in_one_rtt).min(QUICKLY)
                } else {
                    0
                };
                self.size = self.size.max((4 * in_one_rtt).max(quickly).min(sizing.max));
            }
            MemoryUse::Filling(most) => {
                self.size = self.size.max((4 * in_one_rtt).min(sizing.max).min(most))
            }
            MemoryUse::Short => self.size = (self.size / 2).max(sizing.min.min(self.size)),
        }
        if self.paused {
            // What is left lasts four round trips at its rate: it does not wait for the next bytes.
            self.paused = waiting > (4 * ahead).max(PAUSE_FROM / 2);
            if self.paused {
                return Due::Nothing;
            }
            self.granted = (self.granted + 1).max(delivered + self.size);
            return Due::Credit;
        }
        if left && self.round_at > round_at && waiting > (8 * ahead).max(PAUSE_FROM) {
            self.paused = true;
            return Due::Pause;
        }
        if self.update(delivered) {
            Due::Credit
        } else {
            Due::Nothing
        }
    }

    /// Bytes taken in the last round trip: what this round has so far, and of the one before the
    /// part that is not older. A burst that begins in one round and ends in the next counts whole.
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
            return taken + (f64::from(self.before) * (1.0 - part)) as u64;
        }
        let in_one_rtt = (taken as f64 / part) as u64;
        self.start_round(delivered, in_one_rtt, now);
        in_one_rtt
    }

    /// Grants what is due: a quarter of the window or more. Returns whether it did.
    pub(crate) fn update(&mut self, delivered: u64) -> bool {
        let limit = delivered + self.size;
        let due = !self.paused && limit >= self.granted + (self.size / 4).max(1);
        if due {
            self.granted = limit;
        }
        due
    }

    fn start_round(&mut self, from: u64, before: u64, now: Instant) {
        self.round_at = now;
        self.round_from = from;
        self.before = u32::try_from(before).unwrap_or(u32::MAX);
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

    fn took(bytes: usize, delivered: u64, waiting: u64) -> Taken {
        Taken {
            bytes,
            delivered,
            waiting,
        }
    }

    fn sizing(rtt: Duration, memory: MemoryUse) -> Sizing {
        Sizing {
            rtt,
            max: 128 << 20,
            min: 64 << 10,
            memory,
        }
    }

    /// A sender that fills every credit at once over a path of `rtt`; the application takes all.
    /// Returns the bytes taken in each round trip.
    fn run(
        rtt: Duration,
        rounds: u32,
        cap_per_ms: u64,
        memory: MemoryUse,
        start: Instant,
    ) -> (Vec<u64>, Window) {
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
                if n > 0
                    && window.handle_delivered(
                        took(n as usize, taken, 0),
                        &sizing(rtt, memory),
                        now,
                    ) == Due::Credit
                {
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
        let (taken, window) = run(100 * MS, 10, 125_000, MemoryUse::Ample, crate::clock());
        for pair in taken.windows(2).skip(2) {
            assert!(pair[1] >= (2 * pair[0]).min(12_400_000), "{taken:?}");
        }
        assert!(
            window.size() >= 4 * 12_000_000 && window.size() <= 4 * 13_000_000,
            "{}",
            window.size()
        );
    }

    #[test]
    fn memory_decides_about_growth() {
        let (_, window) = run(100 * MS, 10, 125_000, MemoryUse::Filling(0), crate::clock());
        assert_eq!(window.size(), 256 << 10);
        let (_, window) = run(
            100 * MS,
            10,
            125_000,
            MemoryUse::Filling(1 << 20),
            crate::clock(),
        );
        assert_eq!(window.size(), 1 << 20);
        let (taken, window) = run(100 * MS, 10, 125_000, MemoryUse::Short, crate::clock());
        assert_eq!(window.size(), 64 << 10);
        assert!(
            taken.iter().skip(2).all(|n| *n > 0),
            "a short memory slows, it does not stop: {taken:?}"
        );
    }

    #[test]
    fn a_slow_flow_keeps_its_window() {
        // 1 MB/s x 50 ms: 4 x 50 kB is less than the start.
        let (_, window) = run(50 * MS, 20, 1000, MemoryUse::Ample, crate::clock());
        assert_eq!(window.size(), 256 << 10);
    }

    #[test]
    fn credit_is_due_after_a_quarter_and_not_before() {
        let now = crate::clock();
        let mut window = Window::new(1 << 20, 1 << 20, now);
        let sizing = sizing(100 * MS, MemoryUse::Filling(0));
        assert_eq!(
            window.handle_delivered(took((1 << 18) - 1, (1 << 18) - 1, 0), &sizing, now),
            Due::Nothing
        );
        assert_eq!(
            window.handle_delivered(took(1, 1 << 18, 0), &sizing, now),
            Due::Credit
        );
        assert_eq!(window.granted(), (1 << 20) + (1 << 18));
    }

    #[test]
    fn a_reader_that_has_stopped_or_is_slow_pauses_the_sender() {
        let start = crate::clock();
        let sizing = sizing(20 * MS, MemoryUse::Ample);
        let mut window = Window::new(256 << 10, 256 << 10, start);
        // A megabyte in each round trip, all of it taken.
        let mut taken = 0;
        for tick in 1..=200u32 {
            taken += 50 << 10;
            let left = if tick == 200 { 1 << 20 } else { 0 };
            assert_ne!(
                window.handle_delivered(took(50 << 10, taken, left), &sizing, start + tick * MS),
                Due::Pause
            );
        }
        assert!(window.size() >= 16_000_000, "{}", window.size());
        // Then nothing any more.
        let stopped = start + 200 * MS;
        assert!(
            !window.handle_arrived(2 << 20, sizing.rtt, stopped + 25 * MS),
            "a moment is no stop"
        );
        assert!(
            !window.handle_arrived(PAUSE_FROM - 1, sizing.rtt, stopped + 200 * MS),
            "so little may wait"
        );
        assert!(window.handle_arrived(2 << 20, sizing.rtt, stopped + 200 * MS));
        assert!(
            !window.handle_arrived(3 << 20, sizing.rtt, stopped + 300 * MS),
            "said once"
        );
        let granted = window.granted();
        assert!(
            !window.update(taken + window.size()),
            "nothing is granted in a pause"
        );
        // It goes on.
        let resumed = stopped + 500 * MS;
        taken += 1 << 20;
        assert_eq!(
            window.handle_delivered(took(1 << 20, taken, 8 << 20), &sizing, resumed),
            Due::Nothing
        );
        taken += 7 << 20;
        assert_eq!(
            window.handle_delivered(took(7 << 20, taken, 1 << 20), &sizing, resumed + MS),
            Due::Credit
        );
        assert!(
            window.granted() > granted,
            "what ends a pause is more than it took back"
        );
        // A slow one is paused when eight round trips of its own rate wait.
        let slow = resumed + 1_000 * MS;
        let due = (0..100).map(|tick| {
            taken += 20 << 10;
            window.handle_delivered(
                took(20 << 10, taken, 1 << 20),
                &sizing,
                slow + tick * 20 * MS,
            )
        });
        assert_eq!(due.filter(|due| *due == Due::Pause).count(), 1);
    }
}
