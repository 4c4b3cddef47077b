//! Figures for people.

use super::*;

/// The driver's own cost, for people: `cargo test --release -p tpo-engine driver -- --ignored
/// --nocapture`.
#[test]
#[ignore = "measures, asserts nothing about time"]
#[allow(clippy::disallowed_methods)]
fn measure() {
    for (name, size, idle) in [
        ("64 KiB, alone", usize::MAX, 0),
        ("64 KiB, 100,000 idle", usize::MAX, 100_000),
        ("100 bytes", 100, 0),
    ] {
        struct Pieces(usize);
        impl Source for Pieces {
            fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
                Read::Bytes(into.len().min(self.0))
            }
        }
        let start = Instant::now();
        let mut sender = new_driver(Limits::default(), false);
        let mut receiver = new_driver(Limits::default(), true);
        sender.on_connected(true, 256 << 10);
        receiver.on_connected(true, 256 << 10);
        let room = Room {
            segment: 1424,
            urgent: 1424,
            largest: 46 * 1424,
            compressed: 0,
            max: 65_536,
        };
        let mut buffer = Vec::new();
        for _ in 0..idle {
            sender.open(key(0, 0), Class::Normal, start).unwrap();
        }
        while sender.pack(&mut Silent, &mut buffer, room, start).is_some() {}
        let flow = sender.open(key(0, 0), Class::Normal, start).unwrap();
        let mut source = Pieces(size);
        let (mut buffers, mut bytes) = (0, 0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(300) {
            let now = Instant::now();
            for _ in 0..100 {
                let mut buffer = receiver.poll_spent().unwrap_or_default();
                if sender.pack(&mut source, &mut buffer, room, now).is_some() {
                    buffers += 1;
                    receiver.unpack(buffer, now);
                }
                receiver.accept(flow);
                let mut slices = Vec::new();
                receiver.deliverable(flow, &mut slices);
                let n = slices.iter().map(|slice| slice.len()).sum();
                receiver.delivered(flow, n, now);
                bytes += n;
                let mut back = Vec::new();
                if receiver.pack(&mut Silent, &mut back, room, now).is_some() {
                    sender.unpack(back, now);
                }
                while receiver.poll_event().is_some() || sender.poll_event().is_some() {}
            }
        }
        let each = begin.elapsed() / buffers;
        println!(
            "{name:<22} {each:>8.0?} a buffer, {:.1} Gbit/s",
            bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9
        );
    }
}
