//! Attempts of handshakes that may be answered, and at which of our addresses each came.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Attempts that are remembered, for their answers. Fifty in a second are answered at most, each
/// with some datagrams at once.
const MOST: usize = 64;

struct Caller {
    from: SocketAddr,
    /// The attempt's number.
    attempt: u64,
    /// Our address at which it came first.
    at: IpAddr,
}

/// The last attempts, the newest last.
#[derive(Default)]
pub(super) struct Callers(VecDeque<Caller>);

impl Callers {
    /// Somebody who knows both public keys, or copies one who does, began an attempt at this
    /// address of ours. A later copy of it that comes elsewhere changes nothing.
    pub(super) fn note(&mut self, from: SocketAddr, attempt: u64, at: IpAddr) {
        if self.came_at(from, attempt).is_none() {
            if self.0.len() == MOST {
                self.0.pop_front();
            }
            self.0.push_back(Caller { from, attempt, at });
        }
    }

    /// At which of our addresses an attempt came.
    pub(super) fn came_at(&self, from: SocketAddr, attempt: u64) -> Option<IpAddr> {
        self.0
            .iter()
            .find(|caller| (caller.from, caller.attempt) == (from, attempt))
            .map(|caller| caller.at)
    }
}
