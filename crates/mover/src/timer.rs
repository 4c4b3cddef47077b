//! Time inside the mover, and the names of what it waits for.
//!
//! The parts count in nanoseconds since the mover was made: eight bytes in every flight record
//! instead of an `Instant`'s sixteen, and plain integer arithmetic. `mover.rs` turns the caller's
//! `Instant`s into these and back.

use std::time::{Duration, Instant};

/// Nanoseconds since the mover was made.
pub(crate) type Nanos = u64;

pub(crate) const MICROSECOND: Nanos = 1_000;
pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// A `Duration` in the parts' unit; what does not fit (584 years) means "never".
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Why the mover wants to be called at a certain time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// A lost handshake datagram is due to be resent.
    Handshake,
    /// The pacer's next release, while something waits to be sent.
    Pace,
    /// Parity over protected datagrams is due.
    Parity,
    /// A datagram becomes so old that it counts as lost.
    Loss,
    /// Acknowledgements are missing: the peer must be asked for one.
    Probe,
    /// What was received must be acknowledged.
    Acknowledge,
    /// Nothing was sent for [`Config::keepalive`](crate::Config::keepalive): a ping is due.
    Keepalive,
    /// The peer's silence reaches one of its limits.
    Silence,
    /// The next probe of the path's datagram size.
    Mtu,
    /// The previous session's keys are thrown away.
    Session,
    /// The keys are so old that new ones are agreed.
    Rekey,
}

/// The earliest of several named times.
#[derive(Default)]
pub(crate) struct Earliest(Option<(Nanos, Timer)>);

impl Earliest {
    pub(crate) fn consider(&mut self, at: Option<Nanos>, timer: Timer) {
        if let Some(at) = at
            && self.0.is_none_or(|(earliest, _)| at < earliest)
        {
            self.0 = Some((at, timer));
        }
    }

    pub(crate) fn get(self) -> Option<(Nanos, Timer)> {
        self.0
    }
}

/// A moment in both forms: keys age by the caller's clock, all else by the parts'.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    pub(crate) nanos: Nanos,
}

/// Turns the caller's clock into the parts' and back.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new(start: Instant) -> Clock {
        Clock { start }
    }

    /// A caller's clock that jumps back before our start reads as our start: nothing here may
    /// underflow.
    pub(crate) fn read(&self, now: Instant) -> Nanos {
        nanos(now.saturating_duration_since(self.start))
    }

    pub(crate) fn moment(&self, now: Instant) -> Moment {
        Moment {
            instant: now,
            nanos: self.read(now),
        }
    }

    pub(crate) fn instant(&self, at: Nanos) -> Instant {
        self.start + Duration::from_nanos(at)
    }
}
