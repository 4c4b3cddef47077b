//! The text of a lab's link. What is written back must read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tpo_lab::Profile;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Profile>() {
        Ok(profile) => {
            let again = profile.to_string();
            assert_eq!(again.parse::<Profile>().expect("what we write we can read"), profile, "{again}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
