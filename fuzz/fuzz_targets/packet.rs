//! IP packets of what is no TCP, and the forms in which they cross.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo::packets::form::fuzz(bytes));
