//! The Internet checksum (RFC 1071) of headers that this room writes. Pure.

/// The Internet checksum (RFC 1071).
#[derive(Clone, Copy, Default)]
pub(super) struct Sum(pub(super) u64);

impl Sum {
    /// Adds bytes; all but the last must be of even length.
    pub(super) fn add(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0;
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum(sum + u64::from(u32::from_be_bytes(last)))
    }

    pub(super) fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_documented_one() {
        // RFC 1071, section 3.
        assert_eq!(
            Sum::default()
                .add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])
                .finish(),
            !0xddf2
        );
    }
}
