//! A poll that other threads can ring, made before the thread that waits on it.

use std::io;
use std::sync::Arc;

use mio::{Poll, Token, Waker};

/// What the poll reports when another thread has rung.
pub(crate) const RUNG: Token = Token(0);

/// The poll of a thread (the gate's, multicast's), made before the lanes so that they can wake it.
pub(crate) struct Doorbell {
    pub(crate) poll: Poll,
    pub(crate) waker: Arc<Waker>,
}

impl Doorbell {
    /// A poll that nobody waits on yet.
    pub(crate) fn new() -> io::Result<Doorbell> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), RUNG)?);
        Ok(Doorbell { poll, waker })
    }

    /// What makes its thread look at once.
    pub(crate) fn ring(&self) -> impl Fn() + Send + 'static {
        let waker = self.waker.clone();
        // It looks every half second anyway.
        move || drop(waker.wake())
    }
}
