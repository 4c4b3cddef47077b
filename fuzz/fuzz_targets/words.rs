//! The words of an acknowledgement.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_mover::fuzzing::words(bytes));
