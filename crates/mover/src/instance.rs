//! Who we are in this run of the program, and where our numbers begin.

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};

use crate::config::Config;
use crate::crypto::expand;

/// The first physical number is random below 2 to this power: not guessable, and far from the wrap
/// of the low 32 bits.
const FIRST_PHYSICAL_BITS: u32 = 20;

/// What follows from the seed, once for each run.
#[derive(Clone, Copy)]
pub(crate) struct Instance {
    /// Told to the peer in the handshake: another number says that everything before it is gone.
    pub(crate) number: u64,
    /// The number of the first datagram of each connection.
    pub(crate) first_physical: u64,
}

impl Instance {
    pub(crate) fn new(config: &Config) -> Instance {
        let root = Prk::new_less_safe(HKDF_SHA256, &config.seed);
        let mut random = [0; 12];
        expand(&root, b"tpo instance", &mut random);
        let (number, first) = random.split_at(8);
        let number = u64::from_le_bytes(number.try_into().expect("eight bytes"));
        let first =
            u32::from_le_bytes(first.try_into().expect("four bytes")) >> (32 - FIRST_PHYSICAL_BITS);
        Instance {
            // Zero would mean "none".
            number: number.max(1),
            first_physical: config.limits.first_physical.unwrap_or(u64::from(first)),
        }
    }
}
