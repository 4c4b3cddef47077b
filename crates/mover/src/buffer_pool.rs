//! Buffers that were used once and wait to be filled again, so that a steady stream costs no
//! allocation.
//!
//! Two stacks: a payload of one datagram never lies in a buffer of a hundred kilobytes, because
//! whoever holds it then holds all of that. The queue and the assembler take from here; what lies
//! here is counted, and goes when nothing moves.

use crate::timer::{Nanos, SECOND};

/// Capacity of a buffer for a payload of one datagram, bytes: an Ethernet frame and some.
const SMALL: usize = 2_048;
/// A buffer is taken for a payload if it is at most this many times as large: who holds a payload
/// of more than one datagram holds twice its bytes at most.
const WASTE: usize = 2;
/// Bytes of all spare buffers of one direction: 64 of the largest usual buffer.
const SPARE_BYTES: usize = 8 << 20;
/// They take at most one part of this many of what payloads of that direction may hold.
const SHARE: usize = 8;
/// Buffers that nobody has touched for this time are given back.
const REST: Nanos = 10 * SECOND;

/// Spare buffers of one direction.
pub(crate) struct BufferPool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    /// Buffers in each stack at most.
    most: usize,
    most_bytes: usize,
    bytes: usize,
    /// Something was taken or given since the last look, which was then.
    used: bool,
    looked: Nanos,
}

impl BufferPool {
    pub(crate) fn new(most: usize) -> BufferPool {
        BufferPool {
            small: Vec::new(),
            large: Vec::new(),
            most,
            most_bytes: SPARE_BYTES,
            bytes: 0,
            used: false,
            looked: 0,
        }
    }

    /// Payloads may hold `bytes` from now on.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.most_bytes = SPARE_BYTES.min(bytes / SHARE);
        if self.bytes > self.most_bytes {
            (self.small, self.large, self.bytes) = (Vec::new(), Vec::new(), 0);
        }
    }

    /// Bytes that the spare buffers take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn give(&mut self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let stack = if capacity <= SMALL {
            &mut self.small
        } else {
            &mut self.large
        };
        if capacity > 0 && stack.len() < self.most && self.bytes + capacity <= self.most_bytes {
            self.bytes += capacity;
            self.used = true;
            stack.push(buffer);
        }
    }

    /// Any buffer, a large one first: its content and length are arbitrary.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.used = true;
        let buffer = self
            .large
            .pop()
            .or_else(|| self.small.pop())
            .unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    /// A buffer for `bytes` bytes, in which not much more is wasted; its content and length are
    /// arbitrary.
    pub(crate) fn take_for(&mut self, bytes: usize) -> Vec<u8> {
        self.used = true;
        let stack = if bytes <= SMALL {
            &mut self.small
        } else {
            &mut self.large
        };
        let mut buffer = stack
            .pop_if(|buffer| !is_wasteful(buffer.capacity(), bytes))
            .unwrap_or_default();
        self.bytes -= buffer.capacity();
        if buffer.capacity() < bytes {
            buffer = Vec::with_capacity(bytes);
        }
        buffer
    }

    /// The payload in a buffer that wastes little of it.
    pub(crate) fn fit(&mut self, payload: Vec<u8>) -> Vec<u8> {
        if !is_wasteful(payload.capacity(), payload.len()) {
            return payload;
        }
        let mut fitting = self.take_for(payload.len());
        fitting.clear();
        fitting.extend_from_slice(&payload);
        self.give(payload);
        fitting
    }

    /// Gives everything back if nothing was taken or given for a while. To be called now and then.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        if self.used {
            (self.used, self.looked) = (false, now);
        } else if now >= self.looked + REST && self.bytes > 0 {
            (self.small, self.large, self.bytes) = (Vec::new(), Vec::new(), 0);
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.bytes,
            self.small
                .iter()
                .chain(&self.large)
                .map(Vec::capacity)
                .sum::<usize>()
        );
        assert!(self.bytes <= SPARE_BYTES && self.small.len().max(self.large.len()) <= self.most);
    }
}

fn is_wasteful(capacity: usize, bytes: usize) -> bool {
    capacity > SMALL && capacity > WASTE * bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_payload_never_holds_a_large_buffer() {
        let mut pool = BufferPool::new(4);
        for _ in 0..9 {
            pool.give(Vec::with_capacity(128 << 10));
        }
        assert_eq!(pool.bytes(), 4 * (128 << 10), "no more than there may be");
        assert!(pool.take_for(100).capacity() <= SMALL);
        assert!(pool.take_for(10_000).capacity() < 128 << 10);
        assert_eq!(pool.take_for(100_000).capacity(), 128 << 10);
        let mut payload = pool.take();
        payload.clear();
        payload.extend_from_slice(b"short");
        let payload = pool.fit(payload);
        assert!(payload == b"short" && payload.capacity() <= SMALL);
        pool.check_invariants();
        pool.release_idle(0);
        pool.release_idle(REST);
        assert_eq!(pool.bytes(), 0, "nothing is kept for ever");
    }
}
