//! What every controller begins with, and what it never goes below.

use crate::timer::{MILLISECOND, Nanos, SECOND};

/// First window: 32 datagrams, before anything is known of the path. About three times what one TCP
/// connection begins with (RFC 6928), since a tunnel carries several.
pub(super) const INITIAL_DATAGRAMS: u64 = 32;
/// The first window leaves over 20 ms: on a short path that is one burst, on a long path it delays
/// nothing that one could notice.
pub(super) const INITIAL_SPREAD: Nanos = 20 * MILLISECOND;
/// Smallest window: 4 datagrams, because fewer cannot keep acknowledgements coming (BBRMinPipeCwnd
/// of draft-ietf-ccwg-bbr).
pub(super) const SMALLEST_WINDOW_DATAGRAMS: u64 = 4;

/// The pacing rate, bytes per second, before the first round trip is measured.
pub(super) fn initial_rate(cap: Option<u64>, datagram: u64) -> u64 {
    let rate = INITIAL_DATAGRAMS * datagram * (SECOND / INITIAL_SPREAD);
    cap.map_or(rate, |cap| rate.min(cap))
}
