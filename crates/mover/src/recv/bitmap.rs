//! Which datagrams were received: the replay window and what acknowledgements tell, in one ring of
//! a million bits (256 KiB with their numbers).
//!
//! Fed by `mover.rs` with every authenticated datagram's number; read by `ack.rs` word by word.

/// Numbers that the ring holds: 1.2 s at 10 Gbit/s, 12 s at 1 Gbit/s, so that the flight of the
/// longest path fits with its repairs.
pub(crate) const WINDOW: u64 = 1 << 20;
const WORDS: u64 = WINDOW / 64;

/// The numbers received, from the highest down to `WINDOW` below it. Each word says which one it
/// is, so that nothing has to be emptied when the window moves, however far.
pub(crate) struct Bitmap {
    words: Box<[Word]>,
    /// One more than the highest number received; 0: nothing yet.
    end: u64,
}

#[derive(Clone, Copy, Default)]
struct Word {
    /// Its number.
    of: u64,
    bits: u64,
}

impl Bitmap {
    pub(crate) fn new() -> Bitmap {
        Bitmap {
            words: vec![Word::default(); WORDS as usize].into_boxed_slice(),
            end: 0,
        }
    }

    /// Would this number be new? False for what was received already and for what is too old to
    /// know.
    pub(crate) fn is_new(&self, number: u64) -> bool {
        number >= self.end || (number >= self.start() && !self.contains(number))
    }

    /// Notes a number that `is_new`.
    pub(crate) fn insert(&mut self, number: u64) {
        debug_assert!(self.is_new(number));
        self.end = self.end.max(number + 1);
        let of = number / 64;
        let word = &mut self.words[index(of)];
        if word.of != of {
            *word = Word { of, bits: 0 };
        }
        word.bits |= 1 << (number % 64);
    }

    /// The highest number received.
    pub(crate) fn highest(&self) -> Option<u64> {
        self.end.checked_sub(1)
    }

    /// The lowest number whose bit is still known. A whole word is given up at a time, as the ring
    /// reuses it.
    pub(crate) fn start(&self) -> u64 {
        (self.end.div_ceil(64) * 64).saturating_sub(WINDOW)
    }

    /// Was this number received? Only for numbers from `start` to the highest.
    pub(crate) fn contains(&self, number: u64) -> bool {
        number < self.end
            && number >= self.start()
            && self.word(number / 64) >> (number % 64) & 1 == 1
    }

    /// The bits of numbers `64 * word` and following. Only for words from `start / 64` to the
    /// highest's.
    pub(crate) fn word(&self, word: u64) -> u64 {
        let Word { of, bits } = self.words[index(word)];
        if of == word { bits } else { 0 }
    }
}

fn index(word: u64) -> usize {
    (word % WORDS) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_a_set() {
        for seed in 0..20 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut bitmap = Bitmap::new();
            let mut set = BTreeSet::new();
            let mut near = dice.u64(0..(1 << 40));
            for _ in 0..3_000 {
                near += match dice.u8(0..100) {
                    0 => dice.u64(0..3 * WINDOW),
                    1..5 => dice.u64(0..2_000),
                    _ => dice.u64(0..3),
                };
                let number = near.saturating_sub(if dice.bool() {
                    dice.u64(0..WINDOW + 5_000)
                } else {
                    dice.u64(0..200)
                });
                let start = bitmap.start();
                let known = number < start || set.contains(&number);
                assert_eq!(
                    bitmap.is_new(number),
                    !known,
                    "seed {seed}, number {number}, start {start}"
                );
                if bitmap.is_new(number) {
                    bitmap.insert(number);
                    set.insert(number);
                }
                assert_eq!(bitmap.highest(), set.last().copied());
            }
            let (start, highest) = (bitmap.start(), bitmap.highest().unwrap());
            assert!(highest - start < WINDOW && highest - start >= WINDOW - 64);
            assert_eq!(
                (start..=highest)
                    .filter(|number| bitmap.contains(*number))
                    .count(),
                set.range(start..).count()
            );
            for number in (start..=highest)
                .filter(|number| number - start < 1_000 || highest - number < 70_000)
            {
                assert_eq!(
                    bitmap.contains(number),
                    set.contains(&number),
                    "seed {seed}, number {number}"
                );
            }
        }
    }
}
