//! The lab's cutter of super-packets. It has no public door, so its file is included as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/lab/src/segment.rs"]
mod segment;

fuzz_target!(|frame: &[u8]| {
    let mut dice = fastrand::Rng::with_seed(1);
    segment::corrupt(&mut frame.to_vec(), &mut dice);
    let Some(parts) = segment::Super::parse(frame) else { return };
    let count = parts.count();
    let mut bytes = 0;
    for i in 0..count {
        let mut piece = Vec::new();
        parts.cut(frame, i..i + 1, &mut piece);
        assert_eq!(piece.len(), segment::VIRTIO + parts.length(i));
        assert_eq!(segment::Super::parse(&piece), None, "a single segment is cut no further");
        bytes += piece.len();
        segment::corrupt(&mut piece, &mut dice);
    }
    let headers = frame.len() + (count - 1) * (segment::VIRTIO + parts.length(0) - parts_segment(frame));
    assert_eq!(bytes, headers, "every byte of the payload once");
    let middle = count / 2;
    let mut halves = [Vec::new(), Vec::new()];
    parts.cut(frame, 0..middle, &mut halves[0]);
    parts.cut(frame, middle..count, &mut halves[1]);
    let counts = halves.map(|half| segment::Super::parse(&half).map_or(1, |parts| parts.count()));
    assert_eq!(counts, [middle, count - middle]);
});

/// The length of a segment's payload, as the virtio header says.
fn parts_segment(frame: &[u8]) -> usize {
    usize::from(u16::from_ne_bytes([frame[4], frame[5]]))
}
