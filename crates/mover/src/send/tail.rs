//! The end of a burst: nothing follows the last datagram that would show its loss, so what was in
//! it leaves once more.
//!
//! One that parity covers needs none. The copy follows an eighth of a round trip later, so that the
//! burst of losses that took the one has ended. It costs one datagram for each burst, within the
//! budget of parity, and saves the probe that comes after a round trip; of what is lost shortly
//! before the end it makes the peer tell at once.

use crate::timer::{MILLISECOND, Nanos};

/// The copy follows its original after an eighth of the round trip, at most after this: longer
/// bursts of losses are outages.
const LATEST: Nanos = 25 * MILLISECOND;

/// Time after the pacer's release in which somebody who waited for it sends: the copy leaves after
/// it.
pub(crate) const CHANCE: Nanos = MILLISECOND;

/// The last datagram with payloads, while nothing else waits to be sent.
#[derive(Default)]
pub(crate) struct Tail {
    last: Option<Last>,
}

/// The last datagram of a burst.
pub(crate) struct Last {
    pub(crate) number: u64,
    /// On the wire.
    pub(crate) bytes: u64,
    sent: Nanos,
    due: Nanos,
}

impl Tail {
    /// A datagram with payloads left, `bytes` long on the wire, and the queue is empty.
    /// `round_trip`: the shortest.
    pub(crate) fn set(&mut self, number: u64, bytes: u64, round_trip: Nanos, now: Nanos) {
        self.last = Some(Last {
            number,
            bytes,
            sent: now,
            due: now + (round_trip / 8).min(LATEST),
        });
    }

    /// Another datagram with payloads left or is about to, or the last one needs no copy.
    pub(crate) fn clear(&mut self) {
        self.last = None;
    }

    /// When a copy should leave. `limited`: when the window held something back last. If that was
    /// since, more will follow.
    pub(crate) fn due(&self, limited: Option<Nanos>) -> Option<Nanos> {
        let last = self.last.as_ref()?;
        limited.is_none_or(|at| at < last.sent).then_some(last.due)
    }

    /// The datagram whose copy leaves now.
    pub(crate) fn take(&mut self) -> Option<Last> {
        self.last.take()
    }
}
