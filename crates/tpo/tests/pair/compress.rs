//! Compression as the configuration wants it: by peer, by rule, and never against a side that has
//! switched it off.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::site::{Options, Pair, V4, wait_for};
use tpo_lab::Host;

const BYTES: usize = 2_000_000;

/// Text that shrinks to a third and less.
fn text() -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(5);
    let words = [
        "buffer",
        "datagram",
        "of the peer",
        "is acknowledged",
        "\n",
        "link",
        "a round trip",
        "and so on",
    ];
    let mut text = Vec::with_capacity(BYTES + 20);
    while text.len() < BYTES {
        text.extend_from_slice(words[dice.usize(..words.len())].as_bytes());
        text.extend_from_slice(format!(" {:x} ", dice.u16(..)).as_bytes());
    }
    text.truncate(BYTES);
    text
}

/// Wire bytes there and back for the same text each way, as shares of it.
fn shares(options: &Options) -> [f64; 2] {
    let pair = Pair::start(options);
    let listener = pair.listen(V4);
    let (client, server) = pair.joined(&listener);
    let text = text();
    let before = pair.lab.stats();
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(&client, &server), (&server, &client)] {
            let text = &text;
            scope.spawn(move || {
                from.write_all(text).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut came = Vec::new();
                to.read_to_end(&mut came).unwrap();
                assert!(came == *text, "every byte, in order");
            });
        }
    });
    wait_for("the flow's end", || {
        pair.flows(Host::A).is_empty() && pair.flows(Host::B).is_empty()
    });
    let after = pair.lab.stats();
    let share = |after: u64, before: u64| (after - before) as f64 / BYTES as f64;
    [
        share(after.0.offered_bytes, before.0.offered_bytes),
        share(after.1.offered_bytes, before.1.offered_bytes),
    ]
}

#[test]
fn a_rule_has_its_own_word_unless_the_far_side_is_off() {
    let wan = "rate=20mbit delay=10ms";
    for (peer, rule, shrinks) in [
        ("", "", [true, true]),
        ("", "compress = \"off\"", [false, false]),
        ("compress = 1", "compress = \"auto\"", [true, true]),
        // The near side's own rule counts there; the far side, which is off, sends as it likes.
        ("compress = \"off\"", "compress = 3", [true, false]),
        ("compress = \"off\"", "", [false, false]),
        ("", "compress = 6\ncompress_isolation = true", [true, true]),
    ] {
        let [there, back] = shares(&Options {
            wan,
            peer,
            rule,
            ..Options::default()
        });
        println!("peer {peer:?}, rule {rule:?}: {there:.3} there, {back:.3} back");
        for (share, shrinks) in [there, back].into_iter().zip(shrinks) {
            let within = if shrinks { 0.0..0.6 } else { 1.0..1.25 };
            assert!(
                within.contains(&share),
                "peer {peer:?}, rule {rule:?}: {there:.3} there, {back:.3} back"
            );
        }
    }
}
