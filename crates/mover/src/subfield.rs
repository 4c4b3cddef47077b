//! The sealed part of a session datagram: a sequence of subfields (`docs/wire.md`, section 3;
//! claims 21-23).
//!
//! Takes plain bytes from the crypto and gives typed subfields to the receiver and the sender, and
//! the other way round. Pure parsing: whatever the bytes are, the answer is a subfield or an error.

use crate::error::ParseError;
use crate::seq;

/// Length and type, in front of every subfield.
pub(crate) const PREFIX: usize = 3;
/// The fixed part of a data subfield.
pub(crate) const DATA_HEADER: usize = 18;
/// The fixed part of an acknowledgement subfield.
pub(crate) const ACK_HEADER: usize = 26;
/// The fixed part of a parity subfield.
pub(crate) const PARITY_HEADER: usize = 9;
/// A ping is its prefix.
pub(crate) const PING: usize = PREFIX;
/// A close is its prefix and a reason.
pub(crate) const CLOSE: usize = PREFIX + 1;
/// One unit of the acknowledgement delay.
pub(crate) const DELAY_UNIT_NANOS: u64 = 16_000;
/// One unit of the delivery rate.
pub(crate) const RATE_UNIT: u64 = 1_000;

const PADDING_TYPE: u8 = 0;
const DATA_TYPE: u8 = 1;
const ACK_TYPE: u8 = 2;
const PING_TYPE: u8 = 3;
const CLOSE_TYPE: u8 = 4;
const PARITY_TYPE: u8 = 5;
const FLAG_AT_ONCE: u8 = 1;
const FLAG_PROTECTED: u8 = 2;

/// One subfield of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subfield<'a> {
    Padding,
    Data(Data<'a>),
    Ack(Ack<'a>),
    Ping,
    Close { reason: u8 },
    Parity(Parity<'a>),
}

/// One segment of one payload (claim 22). The physical number is the datagram's and was compared by
/// the parser.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Data<'a> {
    pub(crate) at_once: bool,
    /// Parity over this datagram may come: keep its plain bytes.
    pub(crate) protected: bool,
    pub(crate) logical: u32,
    pub(crate) offset: usize,
    pub(crate) size: usize,
    pub(crate) segment: &'a [u8],
}

/// What the other side sent and received (claim 23). The words are decoded by `ack.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ack<'a> {
    pub(crate) highest_sent: u32,
    pub(crate) floor: u32,
    pub(crate) highest_received: u32,
    pub(crate) delay: u16,
    pub(crate) rate: u32,
    /// Datagrams rebuilt so far, modulo 2³²: the flags show them as received, but they were lost.
    pub(crate) rebuilt: u32,
    pub(crate) words: &'a [u8],
}

/// One parity row over protected datagrams (`fec`): their numbers, the row of the code, the coded
/// bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Parity<'a> {
    pub(crate) row: u8,
    /// The low half of the first datagram's number.
    pub(crate) first: u32,
    /// From each datagram's number to the next, as `fec::gaps` says it.
    pub(crate) gaps: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

impl Parity<'_> {
    /// Bytes of the subfield.
    pub(crate) fn length(&self) -> usize {
        PARITY_HEADER + self.gaps.len() + self.bytes.len()
    }

    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        debug_assert!(
            self.length() <= usize::from(u16::MAX) && self.gaps.len() <= usize::from(u8::MAX)
        );
        out.extend_from_slice(&(self.length() as u16).to_be_bytes());
        out.extend_from_slice(&[PARITY_TYPE, self.row]);
        out.extend_from_slice(&self.first.to_be_bytes());
        out.push(self.gaps.len() as u8);
        out.extend_from_slice(self.gaps);
        out.extend_from_slice(self.bytes);
    }
}

/// The subfields of an opened datagram, in order. Ends at the first error.
pub(crate) struct Subfields<'a> {
    rest: &'a [u8],
    physical: u32,
    max_payload: usize,
}

impl<'a> Subfields<'a> {
    /// `physical`: the datagram's number; `max_payload`: the largest payload that we accept.
    pub(crate) fn new(plain: &'a [u8], physical: u64, max_payload: usize) -> Subfields<'a> {
        Subfields {
            rest: plain,
            physical: seq::low(physical),
            max_payload,
        }
    }

    fn parse(&mut self) -> Result<Subfield<'a>, ParseError> {
        let have = self.rest.len();
        if have < PREFIX {
            return Err(ParseError::Short { need: PREFIX, have });
        }
        let length = usize::from(u16::from_be_bytes([self.rest[0], self.rest[1]]));
        let kind = self.rest[2];
        if length < PREFIX || length > have {
            return Err(ParseError::Length { kind, length });
        }
        let (subfield, rest) = self.rest.split_at(length);
        self.rest = rest;
        match kind {
            PADDING_TYPE => Ok(Subfield::Padding),
            DATA_TYPE => self.parse_data(subfield),
            ACK_TYPE => parse_ack(subfield),
            PING_TYPE => Ok(Subfield::Ping),
            CLOSE_TYPE if length < CLOSE => Err(ParseError::Length { kind, length }),
            CLOSE_TYPE => Ok(Subfield::Close {
                reason: subfield[PREFIX],
            }),
            PARITY_TYPE => parse_parity(subfield),
            other => Err(ParseError::Kind(other)),
        }
    }

    fn parse_data(&self, subfield: &'a [u8]) -> Result<Subfield<'a>, ParseError> {
        if subfield.len() < DATA_HEADER {
            return Err(ParseError::Length {
                kind: DATA_TYPE,
                length: subfield.len(),
            });
        }
        if word(subfield, 8) != self.physical {
            return Err(ParseError::Physical);
        }
        let (offset, size) = (triple(subfield, 12), triple(subfield, 15));
        let segment = &subfield[DATA_HEADER..];
        if segment.is_empty() || size > self.max_payload || offset + segment.len() > size {
            return Err(ParseError::Segment {
                offset,
                length: segment.len(),
                size,
            });
        }
        let (at_once, protected) = (
            subfield[3] & FLAG_AT_ONCE != 0,
            subfield[3] & FLAG_PROTECTED != 0,
        );
        Ok(Subfield::Data(Data {
            at_once,
            protected,
            logical: word(subfield, 4),
            offset,
            size,
            segment,
        }))
    }
}

impl<'a> Iterator for Subfields<'a> {
    type Item = Result<Subfield<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = self.parse();
        if parsed.is_err() {
            self.rest = &[];
        }
        Some(parsed)
    }
}

fn parse_ack(subfield: &[u8]) -> Result<Subfield<'_>, ParseError> {
    if subfield.len() < ACK_HEADER {
        return Err(ParseError::Length {
            kind: ACK_TYPE,
            length: subfield.len(),
        });
    }
    Ok(Subfield::Ack(Ack {
        highest_sent: word(subfield, 4),
        floor: word(subfield, 8),
        highest_received: word(subfield, 12),
        delay: u16::from_be_bytes([subfield[16], subfield[17]]),
        rate: word(subfield, 18),
        rebuilt: word(subfield, 22),
        words: &subfield[ACK_HEADER..],
    }))
}

fn parse_parity(subfield: &[u8]) -> Result<Subfield<'_>, ParseError> {
    let wrong = ParseError::Length {
        kind: PARITY_TYPE,
        length: subfield.len(),
    };
    if subfield.len() < PARITY_HEADER {
        return Err(wrong);
    }
    let rest = &subfield[PARITY_HEADER..];
    let (gaps, bytes) = rest
        .split_at_checked(usize::from(subfield[8]))
        .ok_or(wrong)?;
    Ok(Subfield::Parity(Parity {
        row: subfield[3],
        first: word(subfield, 4),
        gaps,
        bytes,
    }))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn triple(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 16 | usize::from(bytes[at + 1]) << 8 | usize::from(bytes[at + 2])
}

/// Appends a data subfield: the only copy that a payload's bytes meet on their way out.
pub(crate) fn emit_data(out: &mut Vec<u8>, data: &Data<'_>, physical: u64) {
    let length = DATA_HEADER + data.segment.len();
    debug_assert!(length <= usize::from(u16::MAX) && data.offset + data.segment.len() <= data.size);
    let mut header = [0; DATA_HEADER];
    header[..2].copy_from_slice(&(length as u16).to_be_bytes());
    header[2] = DATA_TYPE;
    header[3] = if data.at_once { FLAG_AT_ONCE } else { 0 }
        | if data.protected { FLAG_PROTECTED } else { 0 };
    header[4..8].copy_from_slice(&data.logical.to_be_bytes());
    header[8..12].copy_from_slice(&seq::low(physical).to_be_bytes());
    header[12..15].copy_from_slice(&(data.offset as u32).to_be_bytes()[1..]);
    header[15..18].copy_from_slice(&(data.size as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&header);
    out.extend_from_slice(data.segment);
}

/// Appends an acknowledgement subfield; `words` writes the flags behind the fixed part, which then
/// gets its length.
pub(crate) fn emit_ack(out: &mut Vec<u8>, ack: &Ack<'_>, words: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, ACK_TYPE, 0]);
    out.extend_from_slice(&ack.highest_sent.to_be_bytes());
    out.extend_from_slice(&ack.floor.to_be_bytes());
    out.extend_from_slice(&ack.highest_received.to_be_bytes());
    out.extend_from_slice(&ack.delay.to_be_bytes());
    out.extend_from_slice(&ack.rate.to_be_bytes());
    out.extend_from_slice(&ack.rebuilt.to_be_bytes());
    out.extend_from_slice(ack.words);
    words(out);
    let length = out.len() - start;
    debug_assert!(length <= usize::from(u16::MAX));
    out[start..start + 2].copy_from_slice(&(length as u16).to_be_bytes());
}

/// Marks an emitted data subfield, the first bytes of `subfield`, as protected.
pub(crate) fn protect(subfield: &mut [u8]) {
    debug_assert_eq!(subfield[2], DATA_TYPE);
    subfield[3] |= FLAG_PROTECTED;
}

pub(crate) fn emit_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, PING as u8, PING_TYPE]);
}

pub(crate) fn emit_close(out: &mut Vec<u8>, reason: u8) {
    out.extend_from_slice(&[0, CLOSE as u8, CLOSE_TYPE, reason]);
}

/// Appends padding so that `length` more bytes are there; fewer than a prefix cannot be filled.
pub(crate) fn emit_padding(out: &mut Vec<u8>, length: usize) {
    if length >= PREFIX {
        let length = length.min(usize::from(u16::MAX));
        out.extend_from_slice(&(length as u16).to_be_bytes());
        out.push(PADDING_TYPE);
        out.resize(out.len() + length - PREFIX, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(plain: &[u8], physical: u64) -> Vec<Result<Subfield<'_>, ParseError>> {
        Subfields::new(plain, physical, 1 << 18).collect()
    }

    #[test]
    fn what_is_emitted_is_parsed_again() {
        let mut dice = fastrand::Rng::with_seed(3);
        for _ in 0..2_000 {
            let physical = dice.u64(0..seq::LIMIT);
            let segment: Vec<u8> = (0..dice.usize(1..200)).map(|_| dice.u8(..)).collect();
            let words: Vec<u8> = (0..dice.usize(0..60)).map(|_| dice.u8(..)).collect();
            let offset = dice.usize(0..200_000);
            let size = offset + segment.len() + dice.usize(0..20_000);
            let (at_once, protected) = (dice.bool(), dice.bool());
            let data = Data {
                at_once,
                protected,
                logical: dice.u32(..),
                offset,
                size,
                segment: &segment,
            };
            let parity = Parity {
                row: dice.u8(..),
                first: dice.u32(..),
                gaps: &words,
                bytes: &segment,
            };
            let ack = Ack {
                highest_sent: dice.u32(..),
                floor: dice.u32(..),
                highest_received: dice.u32(..),
                delay: dice.u16(..),
                rate: dice.u32(..),
                rebuilt: dice.u32(..),
                words: &words,
            };
            let reason = dice.u8(..);
            let mut out = Vec::new();
            emit_ack(&mut out, &ack, |_| {});
            emit_data(&mut out, &data, physical);
            emit_ping(&mut out);
            emit_close(&mut out, reason);
            parity.emit(&mut out);
            emit_padding(&mut out, dice.usize(PREFIX..50));
            let expected = [
                Ok(Subfield::Ack(ack)),
                Ok(Subfield::Data(data)),
                Ok(Subfield::Ping),
                Ok(Subfield::Close { reason }),
                Ok(Subfield::Parity(parity)),
                Ok(Subfield::Padding),
            ];
            assert_eq!(all(&out, physical), expected);
            assert_eq!(all(&out, physical + 1)[1], Err(ParseError::Physical));
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut dice = fastrand::Rng::with_seed(4);
        for _ in 0..50_000 {
            let mut bytes: Vec<u8> = (0..dice.usize(0..80)).map(|_| dice.u8(..)).collect();
            if dice.bool() && bytes.len() > 3 {
                // Likely lengths and types, so that the parser gets further than the first
                // comparison.
                bytes[0] = 0;
                bytes[1] = dice.u8(0..80);
                bytes[2] = dice.u8(0..7);
            }
            let parsed = all(&bytes, u64::from(dice.u32(..)));
            assert!(
                parsed.iter().rev().skip(1).all(Result::is_ok),
                "nothing follows an error"
            );
            assert!(parsed.len() <= bytes.len() / PREFIX + 1);
        }
    }

    #[test]
    fn a_segment_outside_its_payload_is_refused() {
        let mut out = Vec::new();
        emit_data(
            &mut out,
            &Data {
                at_once: false,
                protected: false,
                logical: 1,
                offset: 10,
                size: 20,
                segment: &[7; 10],
            },
            5,
        );
        out[17] = 19;
        assert_eq!(
            all(&out, 5),
            [Err(ParseError::Segment {
                offset: 10,
                length: 10,
                size: 19
            })]
        );
        out[15] = 0xff;
        assert!(
            matches!(all(&out, 5)[0], Err(ParseError::Segment { .. })),
            "larger than we accept"
        );
    }
}
