//! Two machines that connect while the bytes decide what arrives.
#![no_main]

use std::sync::LazyLock;
use std::time::Instant;

/// One start for every run: a run should depend on its bytes only (the keys of TLS are fresh each
/// time all the same).
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_mover::fuzzing::handshake(bytes, *START));
