//! Sequence numbers on the wire are the low 32 bits of offsets.

/// The offset nearest to `near` whose low 32 bits are `sequence`; none if it would lie before the
/// start.
pub(crate) fn full_offset(near: u64, sequence: u32) -> Option<u64> {
    let distance = sequence.wrapping_sub(near as u32) as i32;
    near.checked_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_survive_the_wrap() {
        for near in [
            0_u64,
            5,
            0x7fff_ffff,
            0xffff_fff0,
            0x1_0000_0000,
            0x1_0000_0010,
            0xffff_ffff_0000,
        ] {
            for distance in [-0x4000_0000_i64, -17, -1, 0, 1, 17, 0x4000_0000] {
                let Some(offset) = near.checked_add_signed(distance) else {
                    continue;
                };
                assert_eq!(
                    full_offset(near, offset as u32),
                    Some(offset),
                    "{near} {distance}"
                );
            }
        }
        assert_eq!(full_offset(3, 0xffff_ffff), None);
    }
}
