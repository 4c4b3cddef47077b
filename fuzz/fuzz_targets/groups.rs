//! What hosts say about groups of multicast, and what peers ask for.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo::packets::multicast::groups::fuzz(bytes));
