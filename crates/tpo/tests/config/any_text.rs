//! Whatever the text is: large, or nonsense.

use crate::{base, check, good};
use std::time::{Duration, Instant};
use tpo::config::{Level, sample::SAMPLE};

#[test]
fn ten_thousand_rules_are_checked_in_no_time() {
    let mut text = base();
    for i in 0..10_000u32 {
        let (a, b, c) = (i >> 12, (i >> 4) & 0xff, (i & 0xf) << 4);
        text += &format!(
            "[[rule]]\nprotocol = \"tcp\"\nsource = \"172.16.{b}.{c}/{}\"\ndestination = \"192.168.{b}.{c}/28\"\ndestination_ports = \"{}-{}\"\npeer = \"lyon\"\n",
            28 + i % 3,
            1 + a * 1_000,
            1_000 + a * 1_000,
        );
    }
    let start = Instant::now();
    let (checked, findings) = good(&text);
    let took = start.elapsed();
    assert_eq!(checked.rules.len(), 10_001);
    assert_eq!(findings.count(Level::Warning), 0, "{findings}");
    // "Well under a second" with room for a busy machine.
    assert!(took < Duration::from_secs(1), "{took:?}");
    // The worst case of the search for covered rules: all prefixes equal, only the ports differ.
    let same: String = (0..10_000).map(|i| {
        format!("[[rule]]\nprotocol = \"tcp\"\nsource = \"172.16.0.0/16\"\ndestination = \"any\"\ndestination_ports = {}\npeer = \"lyon\"\n", i + 1)
    }).collect();
    let start = Instant::now();
    good(&(base() + &same));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // Ten thousand mistakes are not ten thousand lines.
    let refused = check(&text.replace("\"lyon\"\n[[rule]]", "\"rome\"\n[[rule]]")).unwrap_err();
    assert!(refused.count(Level::Error) > 9_000);
    assert_eq!(refused.to_string().lines().count(), 41);
    assert!(refused.to_string().ends_with("more\n"));
}

#[test]
fn any_text_is_survived() {
    let texts = [
        "",
        "\u{feff}",
        "[",
        "[[peer]]\n[peer]",
        "tpo = 1\npeer = [1]\nrule = {}",
        "tpo.name = \"x\"\npeer = []",
        "[tpo.name]",
        "\0",
        "[tpo]\r\nname=\"x\"\r\n",
    ];
    for text in texts {
        tpo::config::fuzz_config(text);
    }
    // Every cut and a broken letter at every place of a good one.
    let text = base();
    for at in 0..text.len() {
        tpo::config::fuzz_config(&text[..at]);
        tpo::config::fuzz_config(&format!("{}\u{7f}{}", &text[..at], &text[at + 1..]));
    }
    // Pieces of a good one in any order, from a fixed seed.
    let pieces: Vec<&str> = SAMPLE.split_inclusive([' ', '"', '=', '\n']).collect();
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..rounds() {
        let mut shuffled = pieces.clone();
        for _ in 0..=next(20) {
            let (from, to) = (next(shuffled.len()), next(shuffled.len()));
            match next(3) {
                0 => shuffled.swap(from, to),
                1 => shuffled[from] = shuffled[to],
                _ => shuffled[from] = "",
            }
        }
        tpo::config::fuzz_config(&shuffled.concat());
    }
}

/// More with `TPO_ROUNDS`, for a longer search.
fn rounds() -> usize {
    std::env::var("TPO_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(2_000)
}
