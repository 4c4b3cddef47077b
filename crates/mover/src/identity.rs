//! Who a TPO is: an Ed25519 key pair, written as text in the way that WireGuard users know; and
//! what a pair of TPOs may share beside it, a pre-shared key.
//!
//! The program makes both (`tpo keygen`), reads them from their files and gives them to the mover;
//! the mover's handshake signs with the one, compares the far side's public key with the one pinned
//! in the configuration, and seals its first datagrams with what only the two sides can compute
//! ([`Identity::agree`]). Nothing here knows of datagrams.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use curve25519_dalek::edwards::CompressedEdwardsY;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::SigningKey;
use zeroize::{Zeroize, Zeroizing};

/// The public half of an [`Identity`]: 32 bytes, as text 44 characters of standard base64. Ordered
/// bytewise, which settles simultaneous starts of two handshakes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// The private key of this TPO with its public half, ready to sign. Its `Debug` shows the public
/// half only.
pub struct Identity {
    seed: Zeroizing<[u8; 32]>,
    public: PublicKey,
    signing: Arc<dyn SigningKey>,
}

/// 32 random bytes that both sides of a pair were given beside their public keys. Its `Debug` shows
/// nothing of it.
pub struct PreSharedKey(Zeroizing<[u8; 32]>);

/// Why a text is no key. Carries no part of the text: it may have been a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key is 44 characters long; this text is not.
    #[error("a key is 44 characters of base64, found {found}")]
    Length {
        /// How many bytes the text has, without white space at its ends.
        found: usize,
    },
    /// Something that base64, or hex where the length is that of hex, does not use.
    #[error("character {at} does not belong into a key")]
    Character {
        /// Which character, counted from 1.
        at: usize,
    },
    /// 43 characters carry two bits more than 32 bytes, and these must be zero; then one `=`.
    #[error("the end of the key is damaged")]
    Ending,
    /// A pre-shared key of zeros is what two sides have that share none.
    #[error("the key is all zeros")]
    Zeros,
}

impl PublicKey {
    /// The key of these bytes. Any 32 bytes are taken: bytes that are no point of the curve verify
    /// no signature.
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in the form in which TLS presents a raw public key (RFC 7250).
    pub(crate) fn spki(&self) -> SubjectPublicKeyInfoDer<'static> {
        rustls::sign::public_key_to_spki(&alg_id::ED25519, self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        decode(text).map(|bytes| PublicKey(*bytes))
    }
}

impl Identity {
    /// A new identity from the operating system's randomness: for `tpo keygen` and tests of the
    /// layers above. No mover calls it.
    pub fn generate() -> Identity {
        Identity::from_seed(random_key())
    }

    /// Reads what [`Identity::private_text`] wrote. White space at both ends is ignored (a file
    /// ends with a new line).
    pub fn from_private_text(text: &str) -> Result<Identity, KeyError> {
        decode(text).map(Identity::from_seed)
    }

    /// The private key as text, to be written to a file that only its owner may read. Wiped from
    /// memory when dropped.
    pub fn private_text(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(&self.seed))
    }

    /// The public half, to be told to the far side's administrator.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// What this side and the owner of `peer` alone can compute: X25519 of the two Ed25519 keys,
    /// each taken to the curve's Montgomery form (RFC 7748 section 4.1, RFC 8032 section 5.1.5). It
    /// does not change, so it proves who speaks, not when. That one key pair may both
    /// sign and agree was proved by Thormarker (IACR ePrint 2021/509).
    pub(crate) fn agree(&self, peer: &PublicKey) -> Zeroizing<[u8; 32]> {
        let mut shared = Zeroizing::new([0; 32]);
        if let Some(point) = CompressedEdwardsY(peer.0).decompress() {
            let mut expanded: [u8; 64] = digest(&SHA512, &self.seed[..])
                .as_ref()
                .try_into()
                .expect("SHA-512 has 64 bytes");
            let mut scalar: [u8; 32] = expanded[..32].try_into().expect("a half of 64 bytes");
            *shared = point.to_montgomery().mul_clamped(scalar).to_bytes();
            expanded.zeroize();
            scalar.zeroize();
        }
        if *shared == [0; 32] {
            // No point of the curve, or one of the few whose every multiple is nothing: nobody has
            // its private half, so nobody may be heard.
            let text = [&b"tpo nobody"[..], &self.seed[..]].concat();
            let text = Zeroizing::new(text);
            shared.copy_from_slice(&digest(&SHA512, &text).as_ref()[..32]);
        }
        shared
    }

    /// The key that signs the handshake.
    pub(crate) fn signing_key(&self) -> Arc<dyn SigningKey> {
        self.signing.clone()
    }

    pub(crate) fn from_seed(seed: Zeroizing<[u8; 32]>) -> Identity {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..])
            .expect("any 32 bytes are an Ed25519 seed");
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .expect("an Ed25519 public key has 32 bytes");
        let document = pair
            .to_pkcs8v1()
            .expect("a key pair made from its seed can be written");
        let document = PrivatePkcs8KeyDer::from(document.as_ref());
        let signing = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&document)
            .expect("what was written can be read");
        Identity {
            seed,
            public: PublicKey(public),
            signing,
        }
    }

    /// Someone who knows a public key without its private half and signs with his own.
    #[cfg(test)]
    pub(crate) fn impostor(public: PublicKey) -> Identity {
        Identity {
            public,
            ..Identity::from_seed(Zeroizing::new([0xee; 32]))
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl PreSharedKey {
    /// A new one from the operating system's randomness, as [`Identity::generate`].
    pub fn generate() -> PreSharedKey {
        PreSharedKey(random_key())
    }

    /// Reads 44 characters of base64 or 64 of hex. White space at both ends is ignored.
    pub fn from_text(text: &str) -> Result<PreSharedKey, KeyError> {
        let text = text.trim();
        let key = if text.len() == 64 {
            decode_hex(text)?
        } else {
            decode(text)?
        };
        if *key == [0; 32] {
            Err(KeyError::Zeros)
        } else {
            Ok(PreSharedKey(key))
        }
    }

    /// The key as base64, to be written to a file that only its owner may read. Wiped from memory
    /// when dropped.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(&self.0))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PreSharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreSharedKey").finish_non_exhaustive()
    }
}

/// 32 bytes of the operating system's randomness, for new keys. The one place of this crate that
/// asks for it, apart from TLS.
#[allow(
    clippy::disallowed_methods,
    reason = "a key that a person asks for follows from no seed"
)]
fn random_key() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut bytes[..]).expect("the operating system has randomness");
    bytes
}

/// 32 bytes as 43 characters of base64 (RFC 4648 section 4) and the one `=` that fills the last
/// group.
fn encode(bytes: &[u8; 32]) -> String {
    let mut text = String::with_capacity(44);
    for group in bytes.chunks(3) {
        let word = group.iter().enumerate().fold(0u32, |word, (i, &byte)| {
            word | u32::from(byte) << (16 - 8 * i)
        });
        for i in 0..=group.len() {
            text.push(letter(word >> (18 - 6 * i) & 63));
        }
    }
    text.push('=');
    text
}

/// The inverse of [`encode`], and of nothing else: one key has one text.
fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let text = text.trim().as_bytes();
    if text.len() != 44 {
        return Err(KeyError::Length { found: text.len() });
    }
    if text[43] != b'=' {
        return Err(KeyError::Ending);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    let (mut word, mut bits, mut filled) = (0u32, 0, 0);
    for (at, &character) in text[..43].iter().enumerate() {
        word = word << 6 | value(character).ok_or(KeyError::Character { at: at + 1 })?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes[filled] = (word >> bits) as u8;
            filled += 1;
        }
    }
    if word & 3 != 0 {
        return Err(KeyError::Ending);
    }
    Ok(bytes)
}

fn decode_hex(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    for (at, character) in text.bytes().enumerate() {
        let digit = char::from(character)
            .to_digit(16)
            .ok_or(KeyError::Character { at: at + 1 })?;
        bytes[at / 2] |= (digit as u8) << (4 - 4 * (at % 2));
    }
    Ok(bytes)
}

fn letter(value: u32) -> char {
    let value = value as u8;
    char::from(match value {
        0..=25 => b'A' + value,
        26..=51 => b'a' + value - 26,
        52..=61 => b'0' + value - 52,
        62 => b'+',
        _ => b'/',
    })
}

fn value(letter: u8) -> Option<u32> {
    Some(u32::from(match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 section 7.1, the first test: secret key and public key.
    const SECRET: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
    const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn the_pair_of_rfc_8032_is_read_and_written() {
        let identity = Identity::from_private_text(&format!(" {SECRET}\n")).unwrap();
        assert_eq!(identity.public_key().to_string(), PUBLIC);
        assert_eq!(*identity.private_text(), SECRET);
        assert_eq!(PUBLIC.parse::<PublicKey>(), Ok(identity.public_key()));
    }

    #[test]
    fn generated_identities_differ_and_survive_their_text() {
        let (one, two) = (Identity::generate(), Identity::generate());
        assert_ne!(one.public_key(), two.public_key());
        let again = Identity::from_private_text(&one.private_text()).unwrap();
        assert_eq!(again.public_key(), one.public_key());
    }

    #[test]
    fn texts_that_are_no_key_are_refused_with_the_reason() {
        let parse = |text: &str| text.parse::<PublicKey>().unwrap_err();
        assert_eq!(parse(""), KeyError::Length { found: 0 });
        assert_eq!(parse(&PUBLIC[..43]), KeyError::Length { found: 43 });
        assert_eq!(parse(&PUBLIC.replace('=', "A")), KeyError::Ending);
        assert_eq!(
            parse(&PUBLIC.replace("Ro=", "Rp=")),
            KeyError::Ending,
            "bits beyond the 256 must be zero"
        );
        assert_eq!(
            parse(&PUBLIC.replace('+', "-").replace('/', "_")),
            KeyError::Character { at: 14 }
        );
        assert_eq!(
            parse(&PUBLIC.replacen('1', "\u{e9}", 1).replacen('1', "", 1)),
            KeyError::Character { at: 1 }
        );
    }

    /// Both sides compute the same, and it is the X25519 of RFC 7748 over the Montgomery forms:
    /// computed once more by another program, from the formulas of the two RFCs.
    #[test]
    fn two_identities_agree_on_a_secret_that_their_public_keys_do_not_give() {
        let [one, two, three] =
            [1, 2, 3].map(|seed| Identity::from_seed(Zeroizing::new([seed; 32])));
        assert_eq!(one.agree(&two.public), two.agree(&one.public));
        assert_ne!(one.agree(&two.public), three.agree(&two.public));
        let hex: String = one
            .agree(&two.public)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, AGREED);
    }

    const AGREED: &str = "4181d7302557342bdb6d061c4b1eebea828ecb625c3368b7111680793307220b";

    #[test]
    fn with_a_key_that_is_nobodys_nobody_agrees() {
        let one = Identity::from_seed(Zeroizing::new([1; 32]));
        let no_point = PublicKey(
            (0..)
                .map(|last| {
                    let mut bytes = [2; 32];
                    bytes[31] = last;
                    bytes
                })
                .find(|bytes| CompressedEdwardsY(*bytes).decompress().is_none())
                .unwrap(),
        );
        let mut neutral = [0; 32];
        neutral[0] = 1;
        for nobody in [no_point, PublicKey([0; 32]), PublicKey(neutral)] {
            let shared = one.agree(&nobody);
            assert_eq!(shared, one.agree(&nobody));
            assert_ne!(*shared, [0; 32], "what anybody could compute");
        }
    }

    #[test]
    fn pre_shared_keys_are_read_as_base64_and_hex_and_shown_never() {
        let key = PreSharedKey::from_text(&format!("{PUBLIC}\n")).unwrap();
        let hex = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(
            PreSharedKey::from_text(hex).unwrap().as_bytes(),
            key.as_bytes()
        );
        assert_eq!(
            PreSharedKey::from_text(&hex.to_uppercase())
                .unwrap()
                .as_bytes(),
            key.as_bytes()
        );
        assert_eq!(*key.text(), PUBLIC);
        assert_eq!(
            PreSharedKey::from_text(&hex.replace('f', "g")).unwrap_err(),
            KeyError::Character { at: 21 }
        );
        assert_eq!(
            PreSharedKey::from_text(&"0".repeat(64)).unwrap_err(),
            KeyError::Zeros
        );
        assert_eq!(
            PreSharedKey::from_text("").unwrap_err(),
            KeyError::Length { found: 0 }
        );
        assert_eq!(format!("{key:?}"), "PreSharedKey { .. }");
        assert_ne!(
            PreSharedKey::generate().as_bytes(),
            PreSharedKey::generate().as_bytes()
        );
    }

    #[test]
    fn debug_shows_no_private_key() {
        let identity = Identity::from_private_text(SECRET).unwrap();
        let shown = format!("{identity:?} {identity:#?} {:?}", identity.signing);
        assert!(shown.contains(PUBLIC));
        for part in [&SECRET[..8], "9d61", "9D61", "157, 97"] {
            assert!(
                !shown.contains(part),
                "{part} of the private key in {shown}"
            );
        }
    }
}
