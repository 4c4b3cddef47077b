//! A payload: the messages of many flows in one packet.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_engine::fuzzing::payload(bytes));
