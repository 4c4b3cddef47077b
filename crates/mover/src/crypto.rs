//! The secrecy of a session: every datagram sealed in place under keys that step with age and use.
//!
//! The handshake makes a [`Session`] from its two secrets; the mover seals each datagram that
//! leaves and opens each that arrives. The physical sequence number is the nonce, so the mover
//! never seals a number twice (asserted here).
//!
//! Life of the keys: both directions start in phase 0. One of the two sides, that whose sending
//! secret is the lower, leads: it steps its sending phase when 120 s or 2^27 datagrams have passed,
//! but not before it has heard its present phase back. The other side follows with its own sending
//! as soon as a datagram of the next phase has opened. So neither side is ever more than one step
//! from the other, however long an outage lasts. The phase stands in the clear header and picks one
//! key: a forged datagram costs one AEAD operation and changes nothing but a counter.

use std::fmt;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{
    AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroize;

use crate::error::OpenError;
use crate::identity::{PreSharedKey, PublicKey};

/// Bytes of the clear header of a session datagram.
pub const HEADER: usize = 8;
/// Bytes of the AEAD tag at the end of a session datagram.
pub const TAG: usize = 16;

/// First byte of a handshake fragment.
pub(crate) const KIND_HANDSHAKE: u8 = 0x10;
/// First byte of a retry.
pub(crate) const KIND_RETRY: u8 = 0x20;
/// First byte of a session datagram without its phase.
const KIND_SESSION: u8 = 0x40;
/// The version in the second byte of handshake datagrams.
pub(crate) const VERSION: u8 = 1;

/// A key seals for 120 s at most, as WireGuard's does: old traffic stays secret when a running
/// process is seized.
const PHASE_AGE: Duration = Duration::from_secs(120);
/// A key seals 2^27 datagrams at most: half of what RFC 9001 appendix B.1.1 allows AES-GCM for
/// datagrams of 2 KiB.
const PHASE_DATAGRAMS: u64 = 1 << 27;
/// A session opens nothing more after 2^36 forgeries: the integrity limit of ChaCha20-Poly1305 (RFC
/// 9001 section 6.6), the lower of our two suites.
const FAILURES: u64 = 1 << 36;

/// The AEAD that the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    Aes128Gcm,
    ChaCha20Poly1305,
}

/// Keys and counters of one handshake's outcome.
pub(crate) struct Session {
    send: Sending,
    recv: Receiving,
    /// Whether this side decides when the phases step.
    leads: bool,
    local: u32,
    remote: u32,
    failures: u64,
}

/// The clear beginning of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// A fragment of a handshake message.
    Handshake {
        /// Names sender and receiver, see [`pair_hint`].
        hint: [u8; 8],
    },
    /// A demand to repeat the first handshake message with a cookie.
    Retry {
        /// Names sender and receiver, see [`pair_hint`].
        hint: [u8; 8],
    },
    /// A sealed datagram of an established session.
    Session {
        /// Key phase modulo 16.
        phase: u8,
        /// The receiver's session index; its upper 12 of 24 bits are the slot.
        index: u32,
        /// Low 32 bits of the physical sequence number.
        seq_low: u32,
    },
}

/// Looks at the clear header of a datagram; None if it can be none of ours. Proves nothing: anyone
/// can write a header.
pub fn peek(datagram: &[u8]) -> Option<Outer> {
    let hint = |at: usize| datagram.get(at..at + 8)?.try_into().ok();
    match *datagram.first()? {
        KIND_HANDSHAKE if *datagram.get(1)? == VERSION => Some(Outer::Handshake { hint: hint(2)? }),
        KIND_RETRY if *datagram.get(1)? == VERSION => Some(Outer::Retry { hint: hint(2)? }),
        kind if kind & 0xf0 == KIND_SESSION && datagram.len() >= HEADER + TAG => {
            Some(Outer::Session {
                phase: kind & 0x0f,
                index: u32::from_be_bytes([0, datagram[1], datagram[2], datagram[3]]),
                seq_low: u32::from_be_bytes([datagram[4], datagram[5], datagram[6], datagram[7]]),
            })
        }
        _ => None,
    }
}

/// The bytes that name a pair and a direction in handshake datagrams, so that a receiver with many
/// peers finds the right one.
pub fn pair_hint(sender: &PublicKey, receiver: &PublicKey) -> [u8; 8] {
    let hash = digest(&SHA256, &pair_text(b"tpo hint", sender, receiver));
    hash.as_ref()[..8].try_into().expect("SHA-256 has 32 bytes")
}

/// A label and the keys of a pair, in the direction of a datagram.
pub(crate) fn pair_text(label: &[u8], sender: &PublicKey, receiver: &PublicKey) -> Vec<u8> {
    [label, sender.as_bytes(), receiver.as_bytes()].concat()
}

impl Session {
    /// A session in phase 0. `local` is the index that the far side puts into its datagrams,
    /// `remote` the one that we put into ours.
    pub(crate) fn new(
        suite: Suite,
        send_secret: &[u8; 32],
        recv_secret: &[u8; 32],
        local: u32,
        remote: u32,
        now: Instant,
    ) -> Session {
        let leads = send_secret < recv_secret;
        Session {
            send: Sending::new(suite, send_secret, now),
            recv: Receiving::new(suite, recv_secret),
            leads,
            local,
            remote,
            failures: 0,
        }
    }

    /// The index by which datagrams of this session find us.
    pub(crate) fn local_index(&self) -> u32 {
        self.local
    }

    /// Seals in place. `datagram` is 8 bytes of room for the header, the plain subfields, 16 bytes
    /// of room for the tag; the header is written here. `seq` is larger than at every call before:
    /// a number sealed twice would give the key away.
    pub(crate) fn seal(&mut self, seq: u64, datagram: &mut [u8], now: Instant) {
        assert!(
            datagram.len() >= HEADER + TAG,
            "a datagram of {} bytes has no room for header and tag",
            datagram.len()
        );
        assert!(
            seq >= self.send.next_seq,
            "number {seq} sealed after {}",
            self.send.next_seq
        );
        if self.leads && self.is_due(now) {
            self.send.step(now);
        }
        self.send.seal(seq, self.remote, datagram);
    }

    /// Opens in place and returns the plain subfields. `seq` is the whole number whose low bits the
    /// header carries. Whether the number was seen before is the caller's question, to be asked
    /// before and answered after.
    pub(crate) fn open<'a>(
        &mut self,
        seq: u64,
        datagram: &'a mut [u8],
        now: Instant,
    ) -> Result<&'a mut [u8], OpenError> {
        let Some(Outer::Session { phase, index, .. }) = peek(datagram) else {
            return Err(OpenError::Form {
                length: datagram.len(),
            });
        };
        if index != self.local {
            return Err(OpenError::Index { found: index });
        }
        if self.failures >= FAILURES {
            return Err(OpenError::Worn);
        }
        let place = self.recv.place(phase)?;
        let key = match place {
            Place::Previous => self.recv.previous.as_ref().ok_or(OpenError::Phase {
                found: phase,
                current: 0,
            })?,
            Place::Current => &self.recv.current,
            Place::Next => &self.recv.next,
        };
        let (header, sealed) = datagram.split_at_mut(HEADER);
        let Ok(plain) = key
            .aead
            .open_in_place(key.nonce(seq), Aad::from(&*header), sealed)
        else {
            self.failures += 1;
            return Err(OpenError::Tag);
        };
        match place {
            Place::Previous => {}
            Place::Current => self.recv.opened += 1,
            Place::Next => self.on_next_phase(now),
        }
        Ok(plain)
    }

    /// Datagrams that came for this session and did not open. The mover counts them over all
    /// sessions itself.
    #[cfg(test)]
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// The far side has stepped. The leader hears that its own step arrived; the follower steps its
    /// sending too.
    fn on_next_phase(&mut self, now: Instant) {
        self.recv.step();
        self.recv.opened = 1;
        if !self.leads {
            self.send.step(now);
        }
    }

    /// Only asked on the leading side, which also counts what it received: the follower's key wears
    /// just as its own.
    fn is_due(&self, now: Instant) -> bool {
        let worn = now.saturating_duration_since(self.send.since) >= PHASE_AGE
            || self.send.sealed >= PHASE_DATAGRAMS
            || self.recv.opened >= PHASE_DATAGRAMS;
        worn && self.send.phase == self.recv.phase
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .field("send_phase", &self.send.phase)
            .field("recv_phase", &self.recv.phase)
            .finish_non_exhaustive()
    }
}

/// The keys of our direction.
struct Sending {
    suite: Suite,
    secret: Prk,
    key: PhaseKey,
    /// Ratchet steps since the session began; the wire carries the low four bits.
    phase: u64,
    /// When this phase began.
    since: Instant,
    /// Datagrams sealed in this phase.
    sealed: u64,
    next_seq: u64,
}

impl Sending {
    fn new(suite: Suite, secret: &[u8; 32], now: Instant) -> Sending {
        let secret = Prk::new_less_safe(HKDF_SHA256, secret);
        let key = PhaseKey::derive(suite, &secret);
        Sending {
            suite,
            secret,
            key,
            phase: 0,
            since: now,
            sealed: 0,
            next_seq: 0,
        }
    }

    fn seal(&mut self, seq: u64, index: u32, datagram: &mut [u8]) {
        let (header, rest) = datagram.split_at_mut(HEADER);
        let (plain, tag) = rest.split_at_mut(rest.len() - TAG);
        header[..4].copy_from_slice(&index.to_be_bytes());
        header[0] = KIND_SESSION | (self.phase & 0x0f) as u8;
        header[4..].copy_from_slice(&(seq as u32).to_be_bytes());
        let sealed = self.key.aead.seal_in_place_separate_tag(
            self.key.nonce(seq),
            Aad::from(&*header),
            plain,
        );
        tag.copy_from_slice(
            sealed
                .expect("a datagram is far shorter than an AEAD may seal")
                .as_ref(),
        );
        self.sealed += 1;
        self.next_seq = seq + 1;
    }

    fn step(&mut self, now: Instant) {
        self.secret = next_secret(&self.secret);
        self.key = PhaseKey::derive(self.suite, &self.secret);
        self.phase += 1;
        self.since = now;
        self.sealed = 0;
    }
}

/// The keys of the far side's direction. Those of the next phase are made when a phase begins, so
/// that a forged header causes no work.
struct Receiving {
    suite: Suite,
    /// Of the next phase.
    secret: Prk,
    previous: Option<PhaseKey>,
    current: PhaseKey,
    next: PhaseKey,
    phase: u64,
    /// Datagrams opened in this phase.
    opened: u64,
}

/// Where the phase of a datagram stands from the present one.
#[derive(Clone, Copy)]
enum Place {
    Previous,
    Current,
    Next,
}

impl Receiving {
    fn new(suite: Suite, secret: &[u8; 32]) -> Receiving {
        let secret = Prk::new_less_safe(HKDF_SHA256, secret);
        let current = PhaseKey::derive(suite, &secret);
        let secret = next_secret(&secret);
        let next = PhaseKey::derive(suite, &secret);
        Receiving {
            suite,
            secret,
            previous: None,
            current,
            next,
            phase: 0,
            opened: 0,
        }
    }

    fn place(&self, phase: u8) -> Result<Place, OpenError> {
        let current = (self.phase & 0x0f) as u8;
        match phase.wrapping_sub(current) & 0x0f {
            0 => Ok(Place::Current),
            1 => Ok(Place::Next),
            15 => Ok(Place::Previous),
            _ => Err(OpenError::Phase {
                found: phase,
                current,
            }),
        }
    }

    fn step(&mut self) {
        self.secret = next_secret(&self.secret);
        let after = PhaseKey::derive(self.suite, &self.secret);
        let current = std::mem::replace(&mut self.next, after);
        self.previous = Some(std::mem::replace(&mut self.current, current));
        self.phase += 1;
    }
}

/// What seals or opens in one phase of one direction.
struct PhaseKey {
    aead: LessSafeKey,
    iv: [u8; 12],
}

impl PhaseKey {
    fn derive(suite: Suite, secret: &Prk) -> PhaseKey {
        let key = secret
            .expand(&[b"tpo key"], suite.algorithm())
            .expect("a key is shorter than HKDF can give");
        let aead = LessSafeKey::new(UnboundKey::from(key));
        let mut iv = [0; 12];
        expand(secret, b"tpo iv", &mut iv);
        PhaseKey { aead, iv }
    }

    fn nonce(&self, seq: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(seq.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for PhaseKey {
    fn drop(&mut self) {
        self.iv.zeroize();
    }
}

impl Suite {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Suite::Aes128Gcm => &AES_128_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

fn next_secret(secret: &Prk) -> Prk {
    Prk::from(
        secret
            .expand(&[b"tpo next"], HKDF_SHA256)
            .expect("a secret is shorter than HKDF can give"),
    )
}

/// HKDF-Extract with SHA-256. The pre-shared key is the salt, zeros where there is none: who lacks
/// it cannot compute the result though he has the secret, nor the other way round.
pub(crate) fn extract(pre_shared: Option<&PreSharedKey>, secret: &[u8; 32]) -> Prk {
    let salt = pre_shared.map_or(&[0; 32], PreSharedKey::as_bytes);
    Salt::new(HKDF_SHA256, salt).extract(secret)
}

/// HKDF-Expand with SHA-256.
pub(crate) fn expand(secret: &Prk, info: &[u8], out: &mut [u8]) {
    let okm = secret
        .expand(std::slice::from_ref(&info), Length(out.len()))
        .expect("as long as HKDF can give");
    okm.fill(out).expect("the length was given");
}

/// A length for HKDF-Expand.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
#[path = "crypto_tests.rs"]
mod tests;
