//! What was compressed, from a peer that says anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_engine::fuzzing::expand(bytes));
