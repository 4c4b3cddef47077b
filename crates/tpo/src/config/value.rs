//! Readers of single values: each takes what is written and gives what it means, or says what would
//! do.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use tpo_engine::{Compress, Prefix};
use tpo_mover::PublicKey;

use super::file::{Written, quoted};
use crate::table::address::masked;
use crate::table::interface::is_interface_name;

/// The names that peers, and the TPO itself, may have: they appear in kernel rules, logs and on the
/// command line.
pub(crate) fn name(written: &Written<'_>) -> Result<String, String> {
    const LONGEST: usize = 63;
    let fits = |text: &str| {
        (1..=LONGEST).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    text_that(
        written,
        fits,
        "a name of 1 to 63 letters, digits, dots, dashes or underscores, such as \"paris\"",
    )
}

/// Any text that names a file.
pub(crate) fn path(written: &Written<'_>) -> Result<String, String> {
    text_that(
        written,
        |text| !text.is_empty() && !text.contains('\0'),
        "the name of a file, such as \"paris.key\"",
    )
}

/// true or false.
pub(crate) fn boolean(written: &Written<'_>) -> Result<bool, String> {
    match written {
        Written::Bool(value) => Ok(*value),
        _ => Err("true or false, without quotes".into()),
    }
}

/// One word out of a few, with what it stands for.
pub(crate) fn one_of<T: Copy>(
    choices: &'static [(&'static str, T)],
) -> impl Fn(&Written<'_>) -> Result<T, String> {
    move |written| {
        let found = match written {
            Written::Text(text) => choices.iter().find(|(word, _)| word == text),
            _ => None,
        };
        let words = || {
            choices
                .iter()
                .map(|(word, _)| format!("\"{word}\""))
                .collect::<Vec<_>>()
                .join(" or ")
        };
        found.map(|(_, value)| *value).ok_or_else(words)
    }
}

/// What is asked of compression: "auto", "off", or a level of zstd.
pub(crate) fn compress(written: &Written<'_>) -> Result<Compress, String> {
    match written {
        Written::Text("auto") => Ok(Compress::Auto),
        Written::Text("off") => Ok(Compress::Off),
        Written::Integer(level @ 1..=6) => Ok(Compress::Level(*level as u8)),
        _ => Err("\"auto\", \"off\", or a level from 1 to 6".into()),
    }
}

/// The same of a rule, which may leave it to the peer.
pub(crate) fn compress_or_peer(written: &Written<'_>) -> Result<Option<Compress>, String> {
    match written {
        Written::Text("peer") => Ok(None),
        other => compress(other)
            .map(Some)
            .map_err(|would_do| format!("\"peer\", {would_do}")),
    }
}

/// An address and a port, as `192.0.2.7:47800` or `[2001:db8::7]:47800`.
pub(crate) fn socket_address(written: &Written<'_>) -> Result<SocketAddr, String> {
    let would_do = "an address and a port, such as \"192.0.2.7:47800\" or \"[2001:db8::7]:47800\" (host names are not looked up)";
    parsed(
        written,
        |text| {
            text.parse()
                .ok()
                .filter(|address: &SocketAddr| address.port() != 0)
        },
        would_do,
    )
}

/// A public key as `tpo keygen` prints it.
pub(crate) fn public_key(written: &Written<'_>) -> Result<PublicKey, String> {
    parsed(
        written,
        |text| text.parse().ok(),
        "the 44 characters that `tpo keygen` printed at the peer",
    )
}

/// A prefix: `10.10.1.0/24`, `2001:db8:1::/48`, a single address, or `any`. "Any" is any address of
/// any family.
pub(crate) fn prefix(written: &Written<'_>) -> Result<Prefix, String> {
    const WOULD_DO: &str =
        "a prefix such as \"10.10.1.0/24\", \"2001:db8:1::/48\", a single address, or \"any\"";
    let Written::Text(text) = written else {
        return Err(WOULD_DO.into());
    };
    if *text == "any" {
        return Ok(Prefix::ANY);
    }
    let (address, length) = text
        .split_once('/')
        .map_or((*text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| WOULD_DO.to_owned())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(digits) => match decimal::<u8>(digits) {
            Some(length) if length <= longest => length,
            _ => {
                return Err(format!(
                    "a prefix length from 0 to {longest} after the slash"
                ));
            }
        },
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(format!(
            "the IPv4 address itself, \"{v4}\": packets on the LAN never carry the mapped form"
        ));
    }
    let masked = masked(address, length);
    if masked != address {
        return Err(format!(
            "\"{masked}/{length}\": the bits behind the prefix are zero"
        ));
    }
    Ok(Prefix { address, length })
}

/// One port or a range of ports: `443`, `"443"`, `"8000-8999"`.
pub(crate) fn ports(written: &Written<'_>) -> Result<RangeInclusive<u16>, String> {
    const WOULD_DO: &str = "a port or a range such as \"443\" or \"8000-8999\", 1 to 65535, or \"0-65535\" for all; several ranges are several sections";
    let range = match written {
        Written::Integer(number) => u16::try_from(*number).ok().map(|port| port..=port),
        Written::Text(text) => match text.split_once('-') {
            None => decimal(text.trim()).map(|port| port..=port),
            Some((first, last)) => decimal(first.trim())
                .zip(decimal(last.trim()))
                .map(|(first, last)| first..=last),
        },
        _ => None,
    };
    match range {
        Some(range) if range.start() > range.end() => Err(format!(
            "the lower port first: \"{}-{}\"",
            range.end(),
            range.start()
        )),
        // Port 0 is no service to be named, but it is one of all.
        Some(range) if *range.start() > 0 || range == (0..=u16::MAX) => Ok(range),
        _ => Err(WOULD_DO.into()),
    }
}

/// A number of bytes: `65536`, `"64KiB"`, `"512MiB"`, `"1GB"`; between the two bounds.
pub(crate) fn size(bounds: RangeInclusive<u64>) -> impl Fn(&Written<'_>) -> Result<u64, String> {
    const UNITS: &[(&str, f64)] = &[
        ("b", 1.0),
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
    ];
    move |written| {
        let bytes = match written {
            Written::Integer(number) => u64::try_from(*number).ok(),
            Written::Text(text) => measure(text, UNITS).map(|bytes| bytes as u64),
            _ => None,
        };
        let would_do = || {
            format!(
                "a size from {} to {}",
                size_text(*bounds.start()),
                size_text(*bounds.end())
            )
        };
        bytes
            .filter(|bytes| bounds.contains(bytes))
            .ok_or_else(would_do)
    }
}

/// A whole number between the two bounds.
pub(crate) fn number(bounds: RangeInclusive<u32>) -> impl Fn(&Written<'_>) -> Result<u32, String> {
    move |written| {
        let number = match written {
            Written::Integer(number) => u32::try_from(*number).ok(),
            _ => None,
        };
        let would_do = || format!("a whole number from {} to {}", bounds.start(), bounds.end());
        number
            .filter(|number| bounds.contains(number))
            .ok_or_else(would_do)
    }
}

/// A rate in bytes per second: `"100mbit"`, `"1gbit"`, `"12.5MB/s"`.
pub(crate) fn rate(written: &Written<'_>) -> Result<u64, String> {
    const UNITS: &[(&str, f64)] = &[
        ("bit", 0.125),
        ("kbit", 125.0),
        ("mbit", 125e3),
        ("gbit", 125e6),
        ("b/s", 1.0),
        ("kb/s", 1e3),
        ("mb/s", 1e6),
        ("gb/s", 1e9),
    ];
    // Below this a single full datagram takes more than a second; above it no link goes and the
    // arithmetic of the pacer ends.
    const BOUNDS: RangeInclusive<u64> = 1_250..=50_000_000_000;
    let rate = match written {
        Written::Text(text) => measure(text, UNITS).map(|rate| rate as u64),
        _ => None,
    };
    rate.filter(|rate| BOUNDS.contains(rate))
        .ok_or_else(|| "a rate from \"10kbit\" to \"400gbit\", such as \"100mbit\"".into())
}

/// A share in percent: `"5%"`, `"0.5%"`; between the two bounds.
pub(crate) fn share(bounds: RangeInclusive<f64>) -> impl Fn(&Written<'_>) -> Result<f64, String> {
    move |written| {
        let share = match written {
            Written::Text(text) => measure(text, &[("%", 0.01)]),
            _ => None,
        };
        share.filter(|share| bounds.contains(share)).ok_or_else(|| {
            format!(
                "a share from \"{}%\" to \"{}%\", such as \"5%\"",
                bounds.start() * 100.0,
                bounds.end() * 100.0
            )
        })
    }
}

/// A span of time: `"300s"`, `"5m"`, `"500ms"`; between the two bounds.
pub(crate) fn duration(
    bounds: RangeInclusive<Duration>,
) -> impl Fn(&Written<'_>) -> Result<Duration, String> {
    const UNITS: &[(&str, f64)] = &[
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("min", 60.0),
        ("h", 3_600.0),
    ];
    move |written| {
        let span = match written {
            Written::Text(text) => {
                measure(text, UNITS).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            }
            _ => None,
        };
        let (least, most) = (bounds.start().as_secs_f64(), bounds.end().as_secs_f64());
        span.filter(|span| bounds.contains(span)).ok_or_else(|| {
            format!("a time from \"{least}s\" to \"{most}s\", with its unit: ms, s, m, h")
        })
    }
}

/// `"auto"` (`None`), or a datagram size in bytes.
pub(crate) fn segment_size(
    bounds: RangeInclusive<u16>,
) -> impl Fn(&Written<'_>) -> Result<Option<u16>, String> {
    move |written| {
        let bytes = match written {
            Written::Text("auto") => return Ok(None),
            Written::Text(text) => decimal(text),
            Written::Integer(number) => u16::try_from(*number).ok(),
            _ => None,
        };
        let would_do = || {
            format!(
                "\"auto\", or a number of bytes from {} to {}",
                bounds.start(),
                bounds.end()
            )
        };
        bytes
            .filter(|bytes| bounds.contains(bytes))
            .map(Some)
            .ok_or_else(would_do)
    }
}

/// A list of names of network interfaces.
pub(crate) fn interfaces(written: &Written<'_>) -> Result<Vec<String>, String> {
    const WOULD_DO: &str = "a list of interface names such as [\"lan0\"]";
    let Written::List(list) = written else {
        return Err(WOULD_DO.into());
    };
    list.iter()
        .map(|element| match element {
            Written::Text(text) if is_interface_name(text) => Ok((*text).to_owned()),
            Written::Text(text) => Err(format!("{WOULD_DO}; {} is no such name", quoted(text))),
            _ => Err(WOULD_DO.to_owned()),
        })
        .collect()
}

/// What to log: a level, or a list of them for parts of the program.
pub(crate) fn log_filter(written: &Written<'_>) -> Result<String, String> {
    text_that(
        written,
        crate::host::log::is_filter,
        "\"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a list such as \"info,tpo::edge=debug\"",
    )
}

/// A size in the unit that suits it.
pub(crate) fn size_text(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("\"{}{unit}\"", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

fn text_that(
    written: &Written<'_>,
    fits: impl Fn(&str) -> bool,
    would_do: &str,
) -> Result<String, String> {
    parsed(
        written,
        |text| fits(text).then(|| text.to_owned()),
        would_do,
    )
}

fn parsed<T>(
    written: &Written<'_>,
    parse: impl Fn(&str) -> Option<T>,
    would_do: &str,
) -> Result<T, String> {
    match written {
        Written::Text(text) => parse(text).ok_or_else(|| would_do.to_owned()),
        _ => Err(would_do.to_owned()),
    }
}

/// A number with a unit, times that unit. Letters may be small or large; without a unit there is no
/// meaning.
fn measure(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let unit = unit.trim_start();
    let (_, factor) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let number: f64 = number.parse().ok()?;
    Some(number * factor)
}

/// Digits only: `parse` alone would also take a sign.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T>(reader: impl Fn(&Written<'_>) -> Result<T, String>, text: &str) -> Option<T> {
        reader(&Written::Text(text)).ok()
    }

    #[test]
    fn rates_are_bytes_per_second() {
        let cases = [
            ("100mbit", Some(12_500_000)),
            ("1gbit", Some(125_000_000)),
            ("2.5 Gbit", Some(312_500_000)),
            ("12.5MB/s", Some(12_500_000)),
            ("10kbit", Some(1_250)),
            ("9kbit", None),
            ("401gbit", None),
            ("100", None),
            ("mbit", None),
            ("1.2.3mbit", None),
            ("-1mbit", None),
            ("1e9bit", None),
        ];
        for (written, bytes) in cases {
            assert_eq!(text(rate, written), bytes, "{written}");
        }
        assert!(
            rate(&Written::Integer(1_000_000)).is_err(),
            "a rate without a unit could mean bits or bytes"
        );
    }

    #[test]
    fn sizes_know_both_kinds_of_kilo() {
        let reader = size(1..=1 << 40);
        let cases = [
            ("64KiB", Some(65_536)),
            ("64kb", Some(64_000)),
            ("1 GiB", Some(1 << 30)),
            ("7b", Some(7)),
            ("0b", None),
            ("2TiB", None),
        ];
        for (written, bytes) in cases {
            assert_eq!(text(&reader, written), bytes, "{written}");
        }
        assert_eq!(reader(&Written::Integer(65_536)), Ok(65_536));
        assert_eq!(
            reader(&Written::Integer(-1)),
            Err("a size from 1 bytes to \"1024GiB\"".into())
        );
    }

    #[test]
    fn prefixes_have_no_bits_behind_them() {
        let read = |written: &str| prefix(&Written::Text(written));
        assert_eq!(
            read("10.0.0.0/8"),
            Ok(Prefix {
                address: "10.0.0.0".parse().unwrap(),
                length: 8
            })
        );
        assert_eq!(
            read("10.1.2.3"),
            Ok(Prefix {
                address: "10.1.2.3".parse().unwrap(),
                length: 32
            })
        );
        assert_eq!(
            read("2001:db8::/32"),
            Ok(Prefix {
                address: "2001:db8::".parse().unwrap(),
                length: 32
            })
        );
        assert_eq!(
            read("0.0.0.0/0"),
            Ok(Prefix {
                address: "0.0.0.0".parse().unwrap(),
                length: 0
            })
        );
        assert!(read("any").is_ok());
        assert!(
            read("10.1.2.3/8")
                .unwrap_err()
                .starts_with("\"10.0.0.0/8\"")
        );
        assert!(
            read("::ffff:10.1.2.3")
                .unwrap_err()
                .contains("\"10.1.2.3\"")
        );
        for wrong in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "lan",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_one_or_a_range() {
        let cases = [
            ("443", Some(443..=443)),
            ("1-65535", Some(1..=65_535)),
            ("0-65535", Some(0..=65_535)),
            ("8000 - 8999", Some(8_000..=8_999)),
        ];
        for (written, range) in cases {
            assert_eq!(text(ports, written), range, "{written}");
        }
        for wrong in [
            "0", "0-5", "9-1", "70000", "80,443", "http", "-", "1-", "+1",
        ] {
            assert_eq!(text(ports, wrong), None, "{wrong}");
        }
        assert_eq!(ports(&Written::Integer(22)), Ok(22..=22));
    }

    #[test]
    fn times_need_a_unit() {
        let reader = duration(Duration::from_secs(1)..=Duration::from_secs(3_600));
        assert_eq!(text(&reader, "5m"), Some(Duration::from_secs(300)));
        assert_eq!(text(&reader, "1500ms"), Some(Duration::from_millis(1_500)));
        assert_eq!(text(&reader, "300"), None);
        assert_eq!(text(&reader, "2h"), None);
    }
}
