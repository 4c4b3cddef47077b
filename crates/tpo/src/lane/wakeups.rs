//! What wakes a lane: sockets, other threads, and a timer that is finer than the poll's timeout.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::sys::Timer;

// Edges use tokens with a 32-bit index below a generation of 31 bits; these lie above all of them.
/// Something happened at the lane's own socket towards the peer.
pub(super) const LINK: Token = Token(usize::MAX);
/// The fine timer has expired.
pub(super) const TIMER: Token = Token(usize::MAX - 1);
/// Another thread has given something.
pub(super) const WAKE: Token = Token(usize::MAX - 2);

/// The poll of one lane and its timer.
pub(super) struct Wakeups {
    poll: Poll,
    timer: Timer,
    /// When the timer will expire.
    armed: Option<Instant>,
}

impl Wakeups {
    pub(super) fn new() -> io::Result<Wakeups> {
        let (poll, timer) = (Poll::new()?, Timer::new()?);
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Wakeups {
            poll,
            timer,
            armed: None,
        })
    }

    /// What other threads wake the lane with.
    pub(super) fn waker(&self) -> io::Result<Arc<Waker>> {
        Waker::new(self.poll.registry(), WAKE).map(Arc::new)
    }

    /// Where a room of the lane registers its sockets.
    pub(super) fn registry(&self) -> io::Result<Registry> {
        self.poll.registry().try_clone()
    }

    /// Waits for events, no longer than `limit`. `Ok(false)`: a signal came instead.
    pub(super) fn wait(&mut self, events: &mut Events, limit: Duration) -> io::Result<bool> {
        match self.poll.poll(events, Some(limit)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The timer has expired. It is not read: arming it anew makes the next expiry a new edge.
    pub(super) fn on_timer(&mut self) {
        self.armed = None;
    }

    /// How long the poll may sleep until `when`, at most `limit`. The poll's own timeout is coarse,
    /// so the timer is armed where it would oversleep.
    pub(super) fn sleep_until(&mut self, when: Instant, limit: Duration, now: Instant) -> Duration {
        let wait = when.saturating_duration_since(now);
        if wait < limit && self.armed.is_none_or(|armed| armed > when || armed <= now) {
            match self.timer.arm(wait) {
                Ok(()) => self.armed = Some(when),
                Err(_) => return wait,
            }
        }
        limit
    }
}
