//! How a parity row names its block's datagrams: the number of the first, and the way from each to
//! the next, most of which are one.
//!
//! A byte of 1 to 127 is one such gap, one of 128 to 255 stands for 2 to 129 gaps of one.

use super::field::MOST_SHARDS;

/// Bytes of a block's gaps at most.
pub(super) const MOST_BYTES: usize = 31;
/// The longest gap.
const LONGEST: u64 = 0x7f;
/// Two gaps of one; the next bytes stand for more of them.
const ONES: u8 = 0x80;

/// Adds a gap. False, and nothing is changed, if that cannot be said.
pub(super) fn push(bytes: &mut Vec<u8>, gap: u64) -> bool {
    let full = bytes.len() == MOST_BYTES;
    match (gap, bytes.last_mut()) {
        (1, Some(last)) if *last == 1 => *last = ONES,
        (1, Some(last)) if (ONES..u8::MAX).contains(last) => *last += 1,
        (1..=LONGEST, _) if !full => bytes.push(gap as u8),
        _ => return false,
    }
    true
}

/// The numbers of the block that begins with `first`; none if no sender says so.
pub(super) fn numbers(first: u64, bytes: &[u8]) -> Option<Vec<u64>> {
    let mut numbers = vec![first];
    let mut last = first;
    for &byte in bytes {
        let (gap, times) = if byte < ONES {
            (u64::from(byte), 1)
        } else {
            (1, usize::from(byte - ONES) + 2)
        };
        if gap == 0 || numbers.len() + times > MOST_SHARDS {
            return None;
        }
        for _ in 0..times {
            last += gap;
            numbers.push(last);
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let mut dice = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let (mut bytes, mut said) = (Vec::new(), vec![dice.u64(0..1 << 60)]);
            while said.len() < MOST_SHARDS {
                let gap = if dice.u8(0..4) > 0 {
                    1
                } else {
                    dice.u64(1..130)
                };
                if !push(&mut bytes, gap) {
                    assert!(bytes.len() == MOST_BYTES || gap > LONGEST);
                    break;
                }
                said.push(said[said.len() - 1] + gap);
            }
            assert!(bytes.len() <= MOST_BYTES);
            assert_eq!(numbers(said[0], &bytes), Some(said));
        }
    }

    #[test]
    fn neighbours_take_one_byte_and_what_nobody_says_is_refused() {
        let mut bytes = Vec::new();
        assert!((1..MOST_SHARDS).all(|_| push(&mut bytes, 1)));
        assert_eq!(bytes, [ONES + MOST_SHARDS as u8 - 3]);
        assert_eq!(numbers(7, &[]), Some(vec![7]));
        assert_eq!(numbers(7, &[3, 0]), None);
        assert_eq!(numbers(7, &[ONES + MOST_SHARDS as u8 - 2]), None);
        assert_eq!(numbers(7, &[2; MOST_SHARDS]), None);
    }
}
