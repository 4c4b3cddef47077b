//! A hostile peer's messages in any order, against one driver.
#![no_main]

use std::sync::LazyLock;
use std::time::Instant;

/// One start for every run: a run must depend on its bytes only.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_engine::fuzzing::messages(bytes, *START));
