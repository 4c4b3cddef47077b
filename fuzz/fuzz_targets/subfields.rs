//! The subfields within an opened datagram.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_mover::fuzzing::subfields(bytes));
