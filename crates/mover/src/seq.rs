//! Sequence numbers: 62 bits inside, the low 32 on the wire.
//!
//! Physical numbers count datagrams, logical numbers count payloads. Both grow by one and are never
//! reused, so the full number can be found again from its low half and a number known to be near
//! (RFC 9000, appendix A.3).

/// Physical and logical numbers stay below this.
pub(crate) const LIMIT: u64 = 1 << 62;

const WINDOW: u64 = 1 << 32;
const HALF: u64 = WINDOW / 2;

/// The number with these low 32 bits that is nearest to `expected`.
pub(crate) fn recover(expected: u64, low: u32) -> u64 {
    let candidate = (expected & !(WINDOW - 1)) | u64::from(low);
    if candidate + HALF <= expected && candidate < LIMIT - WINDOW {
        candidate + WINDOW
    } else if candidate > expected + HALF && candidate >= WINDOW {
        candidate - WINDOW
    } else {
        candidate
    }
}

/// What goes on the wire.
pub(crate) fn low(number: u64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_number_within_half_the_window() {
        let mut dice = fastrand::Rng::with_seed(1);
        for base in [
            0,
            1,
            1 << 20,
            HALF,
            WINDOW - 1,
            WINDOW,
            WINDOW + 1,
            3 * WINDOW - 7,
            LIMIT - HALF,
        ] {
            for _ in 0..2_000 {
                let expected = base + dice.u64(0..100_000).min(LIMIT - 1 - base);
                let distance = dice.u64(0..HALF);
                let number = if dice.bool() {
                    expected.saturating_sub(distance)
                } else {
                    expected + distance
                };
                if number < LIMIT {
                    assert_eq!(
                        recover(expected, low(number)),
                        number,
                        "expected {expected}, number {number}"
                    );
                }
            }
        }
    }

    #[test]
    fn never_leaves_the_range() {
        let mut dice = fastrand::Rng::with_seed(2);
        for _ in 0..100_000 {
            let expected = dice.u64(0..LIMIT);
            assert!(recover(expected, dice.u32(..)) < LIMIT);
        }
        assert_eq!(
            recover(0, u32::MAX),
            u64::from(u32::MAX),
            "there is nothing below zero"
        );
    }
}
