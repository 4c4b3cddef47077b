//! The small texts that people write: prefixes, public, private and pre-shared keys.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tpo_engine::Prefix;
use tpo_mover::{Identity, PreSharedKey, PublicKey};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Prefix>() {
        Ok(prefix) => assert_eq!(prefix.to_string().parse(), Ok(prefix)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match text.parse::<PublicKey>() {
        Ok(key) => assert_eq!(key.to_string(), text.trim()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match Identity::from_private_text(text) {
        Ok(identity) => assert_eq!(*identity.private_text(), text.trim()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match PreSharedKey::from_text(text) {
        // Hex is written back as base64, which reads as the same.
        Ok(key) => assert_eq!(PreSharedKey::from_text(&key.text()).map(|again| again.text()), Ok(key.text())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
