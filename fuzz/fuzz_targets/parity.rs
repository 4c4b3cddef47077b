//! The rebuilding of lost datagrams from parity.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_mover::fuzzing::parity(bytes));
