//! How the datagrams sent last began, to tell true ICMP errors about them from forged ones.
//!
//! An ICMP error quotes the packet that it is about. Addresses and ports of the tunnel are no
//! secret, so any host can forge one for any local address of ours. What it cannot know is what we
//! have sent to the peer: the session index of the far side, the number of the datagram, and the
//! first sealed bytes. Only a host that has seen the datagram can quote them, and a host on the
//! path could as well drop it.

use tpo_mover::{HEADER, Outer, TAG, peek};

/// Datagrams remembered, a power of two: what is in flight at 450 Mbit/s and 100 ms. A peer whose
/// port is closed acknowledges nothing, so what follows are single probes, which are remembered for
/// minutes. 74 KiB for each lane.
const REMEMBERED: usize = 4_096;
/// Bytes of a datagram that must be quoted: the clear header and eight sealed ones. RFC 792 asks
/// for none of them, RFC 1812 (section 4.3.2.3) for as many as fit into 576 bytes, and Linux, on
/// which every peer runs, quotes as many as that.
pub(super) const QUOTED: usize = HEADER + 8;
const _: () = assert!(QUOTED <= HEADER + TAG, "every session datagram is as long");

#[derive(Clone, Copy)]
struct Mark {
    begin: [u8; QUOTED],
    /// Bytes of the whole datagram; 0: nothing was sent yet.
    length: u16,
}

/// The beginnings, by the low bits of the datagram's number.
pub(super) struct Marks(Box<[Mark]>);

impl Marks {
    pub(super) fn new() -> Marks {
        Marks(
            vec![
                Mark {
                    begin: [0; QUOTED],
                    length: 0
                };
                REMEMBERED
            ]
            .into(),
        )
    }

    /// A datagram is given to the kernel. Those of handshakes are not remembered.
    pub(super) fn note(&mut self, datagram: &[u8]) {
        if let (Some(place), Some(begin)) = (place(datagram), datagram.first_chunk()) {
            self.0[place] = Mark {
                begin: *begin,
                length: u16::try_from(datagram.len()).unwrap_or(u16::MAX),
            };
        }
    }

    /// The length of the datagram that is quoted, if it is one of ours.
    pub(super) fn length_of(&self, quoted: &[u8]) -> Option<usize> {
        let mark = self.0[place(quoted)?];
        (mark.length > 0 && quoted.first_chunk() == Some(&mark.begin)).then_some(mark.length.into())
    }
}

/// A quote may end anywhere, so the header alone says whether it is of a session datagram.
fn place(begin: &[u8]) -> Option<usize> {
    let mut whole = [0; HEADER + TAG];
    whole[..QUOTED].copy_from_slice(begin.first_chunk::<QUOTED>()?);
    match peek(&whole)? {
        Outer::Session { seq_low, .. } => Some(seq_low as usize % REMEMBERED),
        Outer::Handshake { .. } | Outer::Retry { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u32, length: usize) -> Vec<u8> {
        let mut datagram = vec![0x41, 0, 0x51, 0x23];
        datagram.extend(number.to_be_bytes());
        let mut sealed = fastrand::Rng::with_seed(number.into());
        datagram.extend((0..length - HEADER).map(|_| sealed.u8(..)));
        datagram
    }

    #[test]
    fn only_what_was_sent_and_not_too_long_ago_is_known() {
        let mut marks = Marks::new();
        assert_eq!(marks.length_of(&[0; QUOTED]), None);
        assert_eq!(
            marks.length_of(&datagram(7, 1_200)),
            None,
            "nothing was sent"
        );
        for number in 0..6_000 {
            marks.note(&datagram(number, 100 + number as usize % 1_000));
        }
        for number in [6_000 - REMEMBERED as u32, 3_000, 5_999] {
            let sent = datagram(number, 100 + number as usize % 1_000);
            assert_eq!(marks.length_of(&sent), Some(sent.len()));
            assert_eq!(
                marks.length_of(&sent[..QUOTED]),
                Some(sent.len()),
                "the beginning is enough"
            );
            assert_eq!(marks.length_of(&sent[..QUOTED - 1]), None, "less is not");
            for bit in 0..QUOTED * 8 {
                let mut guessed = sent.clone();
                guessed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(marks.length_of(&guessed), None, "bit {bit}");
            }
        }
        assert_eq!(
            marks.length_of(&datagram(6_000 - REMEMBERED as u32 - 1, 100)),
            None,
            "too long ago"
        );
        for handshake in [0x10, 0x20] {
            let mut sent = [handshake; 64];
            sent[1] = 1;
            marks.note(&sent);
            assert_eq!(marks.length_of(&sent), None);
        }
    }
}
