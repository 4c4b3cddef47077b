//! Handshake datagrams as bytes (docs/wire.md section 2): parse and emit, and the proof that a
//! sender is one of the pair.
//!
//! The machines above hand in headers and fragments and get them back; nothing here keeps state.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::Prk;
use aws_lc_rs::hmac;
use zeroize::Zeroize;

use super::error::HandshakeError;
use crate::crypto::{
    KIND_HANDSHAKE, KIND_RETRY, TAG, VERSION, expand, extract, pair_hint, pair_text,
};
use crate::identity::{Identity, PreSharedKey, PublicKey};

/// No handshake datagram is larger: every path that a tunnel may use carries 1,200 bytes (RFC 9000
/// section 14).
pub(super) const DATAGRAM: usize = 1200;
/// The longest stream of one level. Ours have some 1,400 bytes; an attacker's must not fill memory.
pub(super) const STREAM: usize = 16 * 1024;
/// Bytes before the fragment.
pub(super) const HEADER: usize = 48;
/// Bytes of the truncated HMAC at the end.
pub(super) const MAC: usize = 16;
const RETRY: usize = 1 + 1 + 8 + 3 + 8 + 16 + MAC;
const COUNT_AT: usize = 25;
const COOKIE_AT: usize = 32;

/// TLS' encryption levels before the session's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Initial,
    Handshake,
}

/// The clear fields of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sender: u32,
    pub(super) receiver: u32,
    pub(super) attempt: u64,
    pub(super) level: Level,
    pub(super) from_responder: bool,
    pub(super) offset: u16,
    pub(super) total: u16,
    pub(super) length: u16,
    pub(super) cookie: [u8; 16],
}

/// A datagram whose HMAC is right and whose lengths fit each other.
pub(super) enum Parsed<'a> {
    Fragment(Fragment<'a>),
    Retry {
        index: u32,
        attempt: u64,
        cookie: [u8; 16],
    },
}

pub(super) struct Fragment<'a> {
    pub(super) header: Header,
    /// The header as the far side sealed it.
    pub(super) aad: [u8; HEADER],
    /// The fragment; at the handshake level with its tag, sealed.
    pub(super) body: &'a [u8],
}

/// Names and HMAC keys of both directions between us and one peer.
pub(super) struct Pair {
    ours: Direction,
    theirs: Direction,
}

struct Direction {
    hint: [u8; 8],
    key: hmac::Key,
}

impl Direction {
    fn new(secret: &Prk, sender: &PublicKey, receiver: &PublicKey) -> Direction {
        let mut key = [0; 32];
        expand(secret, &pair_text(b"tpo mac", sender, receiver), &mut key);
        let direction = Direction {
            hint: pair_hint(sender, receiver),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        };
        key.zeroize();
        direction
    }

    /// Whether a datagram of this direction proves that one of the pair made it: the names are
    /// those of the pair, and the HMAC fits.
    fn prove(&self, datagram: &[u8]) -> Result<(), HandshakeError> {
        if datagram[2..10] != self.hint {
            return Err(HandshakeError::Stranger);
        }
        let (text, mac) = datagram.split_at(datagram.len() - MAC);
        verify_slices_are_equal(&self.mac(text), mac).map_err(|_| HandshakeError::Unproved)
    }

    fn mac(&self, text: &[u8]) -> [u8; MAC] {
        let tag = hmac::sign(&self.key, text);
        tag.as_ref()[..MAC]
            .try_into()
            .expect("SHA-256 has 32 bytes")
    }
}

impl Pair {
    /// The keys of the HMACs follow from what the two alone can compute, and from the pre-shared
    /// key if there is one. So nobody else can make a datagram that is looked into; others can
    /// only repeat one that was made.
    pub(super) fn new(us: &Identity, peer: &PublicKey, pre_shared: Option<&PreSharedKey>) -> Pair {
        let secret = extract(pre_shared, &us.agree(peer));
        let own = us.public_key();
        Pair {
            ours: Direction::new(&secret, &own, peer),
            theirs: Direction::new(&secret, peer, &own),
        }
    }

    /// Whether the peer wrote this, or made it once for somebody to repeat.
    pub(super) fn prove(&self, datagram: &[u8]) -> Result<(), HandshakeError> {
        if datagram.len() < RETRY || datagram.len() > DATAGRAM {
            return Err(HandshakeError::Form {
                length: datagram.len(),
            });
        }
        if datagram[1] != VERSION {
            return Err(HandshakeError::Version { found: datagram[1] });
        }
        self.theirs.prove(datagram)
    }

    /// What the peer wrote; everything that someone else could have written is an error.
    pub(super) fn parse<'a>(&self, datagram: &'a [u8]) -> Result<Parsed<'a>, HandshakeError> {
        let form = HandshakeError::Form {
            length: datagram.len(),
        };
        self.prove(datagram)?;
        let text = &datagram[..datagram.len() - MAC];
        match datagram[0] {
            KIND_HANDSHAKE if text.len() > HEADER => parse_fragment(text).map(Parsed::Fragment),
            KIND_RETRY if datagram.len() == RETRY => Ok(Parsed::Retry {
                index: index(&text[10..13]),
                attempt: u64::from_be_bytes(array(&text[13..21])),
                cookie: array(&text[21..37]),
            }),
            _ => Err(form),
        }
    }

    /// The header of a fragment that we send, its transmission count zero: what the fragment is
    /// sealed with.
    pub(super) fn emit_header(&self, header: &Header) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = KIND_HANDSHAKE;
        bytes[1] = VERSION;
        bytes[2..10].copy_from_slice(&self.ours.hint);
        bytes[10..13].copy_from_slice(&header.sender.to_be_bytes()[1..]);
        bytes[13..16].copy_from_slice(&header.receiver.to_be_bytes()[1..]);
        bytes[16..24].copy_from_slice(&header.attempt.to_be_bytes());
        bytes[24] =
            u8::from(header.level == Level::Handshake) | u8::from(header.from_responder) << 1;
        bytes[26..28].copy_from_slice(&header.offset.to_be_bytes());
        bytes[28..30].copy_from_slice(&header.total.to_be_bytes());
        bytes[30..32].copy_from_slice(&header.length.to_be_bytes());
        bytes[COOKIE_AT..].copy_from_slice(&header.cookie);
        bytes
    }

    /// Appends a prepared fragment datagram as its `count`-th transmission.
    pub(super) fn emit_fragment(&self, prepared: &[u8], count: u8, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(prepared);
        out[begin + COUNT_AT] = count;
        self.emit_mac(begin, out);
    }

    /// Appends a retry for the initiator's `index` and `attempt`.
    pub(super) fn emit_retry(
        &self,
        index: u32,
        attempt: u64,
        cookie: &[u8; 16],
        out: &mut Vec<u8>,
    ) {
        let begin = out.len();
        out.extend_from_slice(&[KIND_RETRY, VERSION]);
        out.extend_from_slice(&self.ours.hint);
        out.extend_from_slice(&index.to_be_bytes()[1..]);
        out.extend_from_slice(&attempt.to_be_bytes());
        out.extend_from_slice(cookie);
        self.emit_mac(begin, out);
    }

    /// Puts version and hint into what else may be anything.
    pub(super) fn emit_name(&self, datagram: &mut [u8]) {
        if datagram.len() >= 10 {
            datagram[1] = VERSION;
            datagram[2..10].copy_from_slice(&self.ours.hint);
        }
    }

    pub(super) fn emit_mac(&self, begin: usize, out: &mut Vec<u8>) {
        let mac = self.ours.mac(&out[begin..]);
        out.extend_from_slice(&mac);
    }
}

/// The number of the attempt, of a fragment that an initiator sent.
pub(crate) fn call_number(datagram: &[u8]) -> Option<u64> {
    let from_initiator = datagram.first() == Some(&KIND_HANDSHAKE) && datagram.get(24)? & 2 == 0;
    from_initiator.then(|| u64::from_be_bytes(array(&datagram[16..24])))
}

/// Bytes of a stream that one datagram carries at this level.
pub(super) fn capacity(level: Level) -> usize {
    DATAGRAM - HEADER - MAC - seal_room(level)
}

/// Zeros until an initiator's first flight has the length that pays for the answer.
pub(super) fn pad(prepared: &mut Vec<u8>) {
    prepared.resize(prepared.len().max(DATAGRAM - MAC), 0);
}

/// Puts a cookie into a prepared fragment datagram.
pub(super) fn set_cookie(prepared: &mut [u8], cookie: &[u8; 16]) {
    prepared[COOKIE_AT..HEADER].copy_from_slice(cookie);
}

fn parse_fragment(text: &[u8]) -> Result<Fragment<'_>, HandshakeError> {
    let mut aad: [u8; HEADER] = array(&text[..HEADER]);
    aad[COUNT_AT] = 0;
    let short = |at: usize| u16::from_be_bytes([text[at], text[at + 1]]);
    let header = Header {
        sender: index(&text[10..13]),
        receiver: index(&text[13..16]),
        attempt: u64::from_be_bytes(array(&text[16..24])),
        level: if text[24] & 1 == 0 {
            Level::Initial
        } else {
            Level::Handshake
        },
        from_responder: text[24] & 2 != 0,
        offset: short(26),
        total: short(28),
        length: short(30),
        cookie: array(&text[COOKIE_AT..HEADER]),
    };
    let (offset, total, length) = (
        header.offset as usize,
        header.total as usize,
        header.length as usize,
    );
    let rest = &text[HEADER..];
    let body = length + seal_room(header.level);
    let padded = header.level == Level::Initial && !header.from_responder;
    // An initiator's first flight must be as long as the answer may be large; all others have no
    // padding.
    let fits = if padded {
        text.len() + MAC >= DATAGRAM && body <= rest.len()
    } else {
        body == rest.len()
    };
    if !fits || length == 0 || total > STREAM || offset + length > total || text[24] > 3 {
        return Err(HandshakeError::Fragment {
            offset,
            length,
            total,
        });
    }
    Ok(Fragment {
        header,
        aad,
        body: &rest[..body],
    })
}

fn seal_room(level: Level) -> usize {
    match level {
        Level::Initial => 0,
        Level::Handshake => TAG,
    }
}

fn index(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("sliced to this length")
}
