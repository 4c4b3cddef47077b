//! The way of datagrams from the demultiplexer to a lane: bounded by number and bytes, apart from
//! the commands of other threads.
//!
//! Strangers can make the demultiplexer hear as much as they like. What they fill is a way of their
//! own, so that it never takes the place of a connection or of a datagram of the session.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// A datagram that the demultiplexer heard at the listening socket.
pub(crate) struct Arrival {
    /// Who sent it, as it says.
    pub(crate) from: SocketAddr,
    /// At which of our addresses it arrived.
    pub(crate) local: Option<IpAddr>,
    /// The datagram.
    pub(crate) bytes: Vec<u8>,
}

/// How much may wait.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) datagrams: usize,
    pub(super) bytes: usize,
}

/// Datagrams of sessions: as many as come while a lane is busy for 30 ms at 1 Gbit/s, when its peer
/// has just moved.
pub(super) const SESSIONS: Bound = Bound {
    datagrams: 4_096,
    bytes: 8 << 20,
};
/// Handshake datagrams with a right guard: a true attempt has at most six in each direction, and
/// more than fifty attempts in a second are not answered anyway.
pub(super) const HANDSHAKES: Bound = Bound {
    datagrams: 64,
    bytes: 64 * 1_200,
};

#[derive(Default)]
struct Waiting {
    datagrams: AtomicUsize,
    bytes: AtomicUsize,
}

/// The demultiplexer's end.
#[derive(Clone)]
pub(super) struct Inlet {
    sender: SyncSender<Arrival>,
    waiting: Arc<Waiting>,
    bound: Bound,
}

/// The lane's end.
pub(crate) struct Outlet {
    receiver: Receiver<Arrival>,
    waiting: Arc<Waiting>,
}

/// Both ends of a new way.
pub(super) fn inlet(bound: Bound) -> (Inlet, Outlet) {
    let (sender, receiver) = sync_channel(bound.datagrams);
    let waiting = Arc::new(Waiting::default());
    (
        Inlet {
            sender,
            waiting: waiting.clone(),
            bound,
        },
        Outlet { receiver, waiting },
    )
}

impl Inlet {
    /// Copies the datagram for the lane; false when too much waits, or the lane has ended. Nothing
    /// is allocated for what is dropped.
    pub(super) fn put(&self, from: SocketAddr, local: Option<IpAddr>, datagram: &[u8]) -> bool {
        let length = datagram.len();
        let datagrams = self.waiting.datagrams.load(Ordering::Relaxed);
        let bytes = self.waiting.bytes.load(Ordering::Relaxed);
        if datagrams >= self.bound.datagrams || bytes + length > self.bound.bytes {
            return false;
        }
        // Counted before it can be taken, so that the count never falls below zero. Only the
        // demultiplexer puts, so nobody is between look and count.
        self.waiting.datagrams.fetch_add(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_add(length, Ordering::Relaxed);
        match self.sender.try_send(Arrival {
            from,
            local,
            bytes: datagram.to_vec(),
        }) {
            Ok(()) => true,
            Err(TrySendError::Full(arrival) | TrySendError::Disconnected(arrival)) => {
                self.waiting.took(&arrival);
                false
            }
        }
    }
}

impl Outlet {
    /// The next one.
    pub(crate) fn take(&self) -> Option<Arrival> {
        let arrival = self.receiver.try_recv().ok()?;
        self.waiting.took(&arrival);
        Some(arrival)
    }
}

impl Waiting {
    fn took(&self, arrival: &Arrival) {
        self.datagrams.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(arrival.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_bytes_are_bounded_and_room_comes_back() {
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        for (bound, length, most) in [
            (
                Bound {
                    datagrams: 10,
                    bytes: 1_000,
                },
                1,
                10,
            ),
            (
                Bound {
                    datagrams: 10,
                    bytes: 1_000,
                },
                300,
                3,
            ),
            (
                Bound {
                    datagrams: 10,
                    bytes: 1_000,
                },
                1_001,
                0,
            ),
        ] {
            let (inlet, outlet) = inlet(bound);
            for _ in 0..3 {
                let put = (0..20)
                    .filter(|_| inlet.put(from, None, &vec![7; length]))
                    .count();
                assert_eq!(put, most);
                let taken = std::iter::from_fn(|| outlet.take())
                    .inspect(|got| assert_eq!(got.bytes, vec![7; length]));
                assert_eq!(taken.count(), most);
            }
            drop(outlet);
            assert!(!inlet.put(from, None, &[1]), "the lane has ended");
        }
    }
}
