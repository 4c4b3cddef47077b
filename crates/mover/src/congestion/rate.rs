//! Bytes, time and rates in one another. Rates are bytes per second.

use crate::timer::{Nanos, SECOND};

/// The bytes that `rate` makes in `time`.
pub(super) fn bytes_in(rate: u64, time: Nanos) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(time) / u128::from(SECOND)).unwrap_or(u64::MAX)
}

/// The rate at which `bytes` take `time`; a time of zero counts as one nanosecond.
pub(super) fn rate_of(bytes: u64, time: Nanos) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(SECOND) / u128::from(time.max(1)))
        .unwrap_or(u64::MAX)
}
