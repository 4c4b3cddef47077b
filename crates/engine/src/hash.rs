//! The hash tables of this crate. Their hashers draw nothing from the OS, so that the same calls
//! give the same run.

#![expect(
    deprecated,
    reason = "the standard library has no other SipHash that takes a key: what replaces SipHasher \
              draws its key from the OS"
)]
#![expect(
    clippy::disallowed_types,
    reason = "this is the one place that names a hash table, each with its hasher"
)]

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, SipHasher},
};

use crate::FlowId;

/// A table by the number of a flow.
pub(crate) type NumberMap<V> = HashMap<FlowId, V, BuildHasherDefault<NumberHasher>>;

/// A table whose keys outsiders choose.
pub(crate) type KeyedMap<K, V> = HashMap<K, V, Keyed>;

/// A table that is built from the configuration alone, so that nobody outside can choose what
/// collides in it.
pub(crate) type ConfiguredMap<K, V> = HashMap<K, V, BuildHasherDefault<MultiplyHasher>>;

/// Numbers count up, and the peer is authenticated: multiplying spreads them well enough.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// SipHash-2-4 with a key of 128 bits that is made of a seed. Who does not know the seed cannot
/// find keys that collide, which would turn each look-up into a walk (Aumasson and Bernstein,
/// "SipHash: a fast short-input PRF", 2012). The seed is given at construction, from the OS's
/// randomness by the program and fixed in tests.
#[derive(Debug, Clone)]
pub(crate) struct Keyed {
    key: [u64; 2],
}

impl Keyed {
    /// The key is made of all bytes of the seed by SipHash itself, so that it tells nothing of the
    /// seed, which others are made of too.
    pub(crate) fn new(seed: &[u8; 32]) -> Keyed {
        Keyed {
            key: [0_u8, 1].map(|half| {
                let mut hasher = Keyed { key: [0; 2] }.build_hasher();
                hasher.write_u8(half);
                hasher.write(seed);
                hasher.finish()
            }),
        }
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        let [first, second] = self.key;
        SipHasher::new_with_keys(first, second)
    }
}

/// Multiplies and rotates: for keys of few words.
#[derive(Debug, Default)]
pub(crate) struct MultiplyHasher(u64);

impl MultiplyHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for MultiplyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u128(&mut self, word: u128) {
        self.mix(word as u64);
        self.mix((word >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_hash_and_another_one_another() {
        let of = |seed: u8| Keyed::new(&[seed; 32]).hash_one("a key of a flow");
        assert_eq!(of(7), of(7));
        let all: std::collections::BTreeSet<u64> = (0..=255).map(of).collect();
        assert_eq!(all.len(), 256);
    }
}
