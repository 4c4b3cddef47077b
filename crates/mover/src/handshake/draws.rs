//! Our random numbers of the handshake: attempts and session indices.

use std::collections::VecDeque;

use aws_lc_rs::hkdf::Prk;

use crate::crypto::expand;

/// Session indices given out last, which are not given out again: the mover may still hear the
/// sessions of the last ones.
pub(super) const RECENT: usize = 8;

/// Our random numbers: HKDF over the seed and a count. Nothing of the seed can be learnt from them.
pub(super) struct Draws {
    secret: Prk,
    drawn: u64,
    /// Low halves of the indices given out last; at most [`RECENT`].
    indices: VecDeque<u16>,
}

impl Draws {
    pub(super) fn new(secret: Prk) -> Draws {
        Draws {
            secret,
            drawn: 0,
            indices: VecDeque::new(),
        }
    }

    /// The number of a fresh attempt.
    pub(super) fn draw_attempt(&mut self) -> u64 {
        u64::from_be_bytes(self.draw())
    }

    /// A session index in our slot, never 0 (which says "not known yet") and none of the last ones.
    pub(super) fn draw_index(&mut self, slot: u16) -> u32 {
        loop {
            let low = u16::from_be_bytes(self.draw()) & 0x0fff;
            if low != 0 && !self.indices.contains(&low) {
                if self.indices.len() == RECENT {
                    self.indices.pop_front();
                }
                self.indices.push_back(low);
                return u32::from(slot) << 12 | u32::from(low);
            }
        }
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        let mut drawn = [0; N];
        expand(&self.secret, &self.drawn.to_be_bytes(), &mut drawn);
        self.drawn += 1;
        drawn
    }
}
