//! Numbers in the units that people read, for [`super::render`].

use std::collections::BTreeMap;

use super::report::CompressionReport;

/// The kinds that came up, each with its count; `None`: none did.
pub(super) fn counts(counts: &BTreeMap<String, u64>) -> Option<String> {
    let counted: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    (!counted.is_empty()).then(|| counted.join(", "))
}

/// A count with its noun.
pub(super) fn plural(count: u64, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

/// The name of a protocol, or its number.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// Bytes in the unit that suits them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second, as the bits per second in which links are sold.
pub(super) fn rate(bytes_per_second: u64) -> String {
    let bits = bytes_per_second as f64 * 8.0;
    match bits {
        _ if bits >= 999.95e6 => format!("{:.2} Gbit/s", bits / 1e9),
        _ if bits >= 999.95e3 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.1} kbit/s", bits / 1e3),
    }
}

/// Seconds, in the two largest units that matter.
pub(super) fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 60.0 {
        // 59.96 would be printed as 60.0.
        return format!("{:.1}s", seconds.min(59.9));
    }
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}m {}s", whole % 60),
        (0, hours) => format!("{hours}h {minutes}m"),
        (days, hours) => format!("{days}d {hours}h"),
    }
}

/// How many bytes became one.
pub(super) fn times(compression: &CompressionReport) -> f64 {
    compression.before as f64 / compression.after.max(1) as f64
}
