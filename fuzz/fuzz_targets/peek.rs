//! The clear header of a datagram, which anyone can write.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tpo_mover::{HEADER, Outer, TAG, peek};

fuzz_target!(|bytes: &[u8]| match peek(bytes) {
    None => {}
    Some(Outer::Handshake { hint } | Outer::Retry { hint }) => assert_eq!(hint, bytes[2..10]),
    Some(Outer::Session { phase, index, seq_low }) => {
        assert!(bytes.len() >= HEADER + TAG && phase < 16 && index < 1 << 24);
        assert_eq!(seq_low.to_be_bytes(), bytes[4..8]);
    }
});
