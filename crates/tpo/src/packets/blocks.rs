//! The memory into which the TUN reader reads packets: blocks that several lanes share until the
//! last of them has packed its packets.
//!
//! The reader owns the blocks. What it hands over is a reference, so nobody gives a block back: it
//! is free again when no lane refers to it any more.

use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks that may be under way, 21 MB of address space in all. When all of them are, what was read
/// is copied for each lane into memory of its own size.
const MOST: usize = 64;
/// Free blocks that are kept.
const KEPT: usize = 4;

/// The blocks of the TUN reader.
pub(super) struct Blocks {
    /// Bytes of each.
    size: usize,
    /// Those that were handed over, the oldest first.
    lent: VecDeque<Arc<Vec<u8>>>,
    /// The one that is being filled. Nobody else refers to it.
    filling: Arc<Vec<u8>>,
}

impl Blocks {
    /// Blocks of `size` bytes.
    pub(super) fn new(size: usize) -> Blocks {
        Blocks {
            size,
            lent: VecDeque::new(),
            filling: Arc::new(vec![0; size]),
        }
    }

    /// The block that is being filled.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.filling
    }

    /// The same, from this byte on.
    pub(super) fn from(&mut self, from: usize) -> &mut [u8] {
        let filling = Arc::get_mut(&mut self.filling).expect("it is lent when another takes over");
        &mut filling[from..]
    }

    /// Hands over the block that was filled, and begins another one. None: too many are under way.
    pub(super) fn hand_over(&mut self) -> Option<Arc<Vec<u8>>> {
        let free = self.take_free();
        if free.is_none() && self.lent.len() >= MOST {
            return None;
        }
        let next = free.unwrap_or_else(|| Arc::new(vec![0; self.size]));
        let full = std::mem::replace(&mut self.filling, next);
        self.lent.push_back(full.clone());
        Some(full)
    }

    /// A block to which no lane refers any more. Of the others that are free some are kept.
    fn take_free(&mut self) -> Option<Arc<Vec<u8>>> {
        let (mut found, mut kept) = (None, 0);
        self.lent.retain_mut(|block| {
            if Arc::get_mut(block).is_none() {
                return true;
            }
            if found.is_none() {
                found = Some(block.clone());
                return false;
            }
            kept += 1;
            kept <= KEPT
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_when_nobody_has_it() {
        let mut blocks = Blocks::new(8);
        blocks.from(0)[..2].copy_from_slice(&[1, 2]);
        let first = blocks.hand_over().expect("the first");
        assert_eq!(first[..2], [1, 2]);
        let (again, place) = (first.clone(), first.as_ptr());
        drop(first);
        let second = blocks.hand_over().expect("the second");
        assert_ne!(second.as_ptr(), place, "one lane has it still");
        drop(second);
        drop(again);
        // In turn with the other one.
        let places = [0; 3].map(|_| blocks.hand_over().expect("one is free").as_ptr());
        assert!(places.contains(&place));
        assert!(blocks.lent.len() <= 2);
    }

    #[test]
    fn blocks_are_bounded() {
        let mut blocks = Blocks::new(8);
        let all: Vec<_> = (0..MOST).map(|_| blocks.hand_over()).collect();
        blocks.from(0)[..3].copy_from_slice(&[7; 3]);
        assert!(blocks.hand_over().is_none());
        assert_eq!(blocks.bytes()[..3], [7; 3], "to be copied from here");
        assert_eq!(blocks.lent.len(), MOST);
        drop(all);
        assert!(blocks.hand_over().is_some());
        assert!(blocks.lent.len() <= KEPT + 1);
    }
}
