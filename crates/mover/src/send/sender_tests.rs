//! The sending half on a path of its own.

use std::sync::Arc;

use super::super::queue;
use super::*;
use crate::crypto::{HEADER, TAG};
use crate::identity::Identity;
use crate::timer::MILLISECOND;

/// One datagram with a payload of 1,000 bytes leaves.
fn send(sender: &mut Sender, path: &mut Path, now: Nanos) {
    sender
        .push(vec![7; 1_000], false, path, now)
        .expect("there is room");
    let load = sender
        .poll_load(false, path, now)
        .expect("the window is open");
    let size = path.size_for(load);
    let mut out = vec![0; HEADER];
    let filled = sender.fill(&mut out, size - TAG, load, path);
    let wire = sender.on_sent(out.len() + TAG, load, filled, path, now);
    sender.on_batch(wire, path, now);
}

#[test]
fn full_memory_waits_for_an_acknowledgement_and_not_for_the_pacer() {
    let identity = Arc::new(Identity::generate());
    let mut config = Config::new(identity.clone(), identity.public_key(), 0, [0; 32]);
    config.limits.send_bytes = 3 * (1_000 + queue::ENTRY_COST);
    let mut sender = Sender::new(&config, 0, 0);
    let mut path = Path::new(&config, "192.0.2.1:1".parse().expect("an address"), 0);
    for at in 0..3 {
        send(&mut sender, &mut path, at * 20 * MILLISECOND);
    }
    let mut now = 60 * MILLISECOND;
    assert!(
        sender.window_room(&path) > 0 && path.release() < now,
        "neither window nor pacer hold it back"
    );
    for _ in 0..3 {
        assert_eq!(sender.poll_budget(&mut path, now), 0);
        let mut earliest = Earliest::default();
        sender.deadlines(&path, &mut earliest);
        assert!(earliest.get().is_none_or(|(at, _)| at > now));
        sender.handle_timeout(&mut path, now);
        now += MILLISECOND;
    }
    // With room again it is the pacer that is waited for.
    sender.set_limit(100_000);
    assert!(sender.poll_budget(&mut path, now) > 0);
}
