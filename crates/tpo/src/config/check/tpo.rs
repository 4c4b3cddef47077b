//! `[tpo]`, `[intercept]` and `[multicast]`: what this TPO is and does as a whole.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::paths::{beside, control_path};
use crate::config::checked::{CONTROL, Intercept, Multicast, Tpo};
use crate::config::file::File;
use crate::config::finding::Findings;
use crate::config::value;
use crate::host::log::LogFormat;
use crate::table::{Mode, OnFailure};

/// The word for "no user is named".
const AUTO: &str = "auto";
/// Where datagrams arrive when nothing is said: any address, and UDP port 47800, which is
/// registered for nothing else.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 47_800);

/// `buffer_size`, bytes: below 4 KiB aggregation does nothing; 256 KiB is the mover's largest
/// payload.
const BUFFER_SIZES: RangeInclusive<u64> = 4_096..=262_144;
/// `segment_size`, bytes of UDP payload: the handshake needs 1,200, which every usable path
/// carries; 16,356 is the largest jumbo frame that is probed for, less its IP and UDP headers.
const SEGMENT_SIZES: RangeInclusive<u16> = 1_200..=16_356;
/// `memory`, bytes for all flows: one peer with a long fat link needs 16 MiB to work at all; 1 TiB
/// is more than any host of today has to spare.
const MEMORIES: RangeInclusive<u64> = 16 << 20..=1 << 40;
/// `memory` when nothing is said: 512 MiB, some thirty such peers.
const MEMORY: u64 = 512 << 20;
/// `outage`: a peer counts as silent after 2 s, so below 5 s there is nothing to wait for; after a
/// day no application is still there.
const OUTAGES: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(86_400);
/// `outage` when nothing is said: five minutes, a router that starts anew.
const OUTAGE: Duration = Duration::from_secs(300);
/// `idle`, `idle_both` and `disconnect_after`: from one second to a day.
pub(super) const IDLES: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
/// How long a flow of packets lives without one when only one side has spoken: 30 s. RFC 4787 asks
/// for less than two minutes where no answer may come.
const IDLE: Duration = Duration::from_secs(30);
/// The same when both sides have spoken: 180 s. RFC 4787 asks for two minutes at least.
const IDLE_BOTH: Duration = Duration::from_secs(180);
/// What `on_failure` may say, of a rule or as the default of all rules.
pub(super) const FAILURES: &[(&str, OnFailure)] =
    &[("open", OnFailure::Open), ("closed", OnFailure::Closed)];
/// `syn_rate` and `syn_rate_per_source`, new connections per second: from those of one office to
/// more than any host of today accepts.
const SYN_RATES: RangeInclusive<u32> = 10..=1_000_000;

/// `[tpo]`; `None` when it is missing, or what it must have.
pub(super) fn check_tpo(file: &File<'_>, path: &Path, findings: &mut Findings) -> Option<Tpo> {
    let Some(mut tpo) = file.section("tpo", findings) else {
        findings.error(
            0,
            "[tpo]",
            "missing",
            "a section [tpo] with at least name and private_key_file; `tpo init` prints a sample",
        );
        return None;
    };
    let private_key_line = tpo.line_of("private_key_file");
    let name = tpo.require(
        "name",
        "a name for this TPO, such as \"paris\"",
        value::name,
        findings,
    );
    let private_key_file = tpo.require(
        "private_key_file",
        "the file that `tpo keygen --out` wrote, such as \"paris.key\"",
        value::path,
        findings,
    );
    let listen = tpo.read_or("listen", value::socket_address, LISTEN, findings);
    let control = tpo.read_or(
        "control",
        control_path(path),
        beside(path, CONTROL),
        findings,
    );
    let user = tpo.read("user", value::name, findings);
    let buffer_size = tpo.read("buffer_size", value::size(BUFFER_SIZES), findings);
    let segment_size = tpo.read("segment_size", value::segment_size(SEGMENT_SIZES), findings);
    let memory = tpo.read_or("memory", value::size(MEMORIES), MEMORY, findings);
    let outage = tpo.read_or("outage", value::duration(OUTAGES), OUTAGE, findings);
    let idle = tpo.read_or("idle", value::duration(IDLES), IDLE, findings);
    let idle_both = tpo.read_or("idle_both", value::duration(IDLES), IDLE_BOTH, findings);
    let compress_isolation = tpo.read_or("compress_isolation", value::boolean, false, findings);
    // Its value has been read before the rules were.
    let _ = tpo.read("on_failure", value::one_of(FAILURES), findings);
    let hold_closed = tpo.read_or("hold_closed", value::boolean, false, findings);
    let log = tpo.read_or("log", value::log_filter, "info".into(), findings);
    let formats = value::one_of(&[("human", LogFormat::Human), ("json", LogFormat::Json)]);
    let log_format = tpo.read_or("log_format", formats, LogFormat::default(), findings);
    tpo.finish(findings);
    Some(Tpo {
        name: name?,
        private_key_file: beside(path, &private_key_file?),
        private_key_line,
        listen,
        control,
        user: user.filter(|name| name != AUTO),
        buffer_size: buffer_size.map_or(tpo_engine::Config::BUFFER_SIZE, |bytes| bytes as usize),
        segment_size: segment_size.flatten(),
        memory,
        outage,
        idle,
        idle_both,
        compress_isolation,
        hold_closed,
        log,
        log_format,
    })
}

/// `on_failure` of `[tpo]`, by itself: what is wrong with it is said where the whole section is
/// read.
pub(super) fn default_on_failure(file: &File<'_>) -> OnFailure {
    let mut ignored = Findings::default();
    let section = file.section("tpo", &mut ignored);
    section
        .and_then(|mut tpo| tpo.read("on_failure", value::one_of(FAILURES), &mut ignored))
        .unwrap_or(OnFailure::Open)
}

/// `[intercept]`.
pub(super) fn check_intercept(file: &File<'_>, findings: &mut Findings) -> Intercept {
    let mut intercept = Intercept::default();
    let Some(mut section) = file.section("intercept", findings) else {
        return intercept;
    };
    let modes = value::one_of(&[("tproxy", Mode::Tproxy), ("redirect", Mode::Redirect)]);
    intercept.mode = section.read_or("mode", modes, intercept.mode, findings);
    intercept.local = section.read_or("local", value::boolean, intercept.local, findings);
    intercept.interfaces = section.read_or("interfaces", value::interfaces, Vec::new(), findings);
    for (key, rate) in [
        ("syn_rate_per_source", &mut intercept.syn_rate_per_source),
        ("syn_rate", &mut intercept.syn_rate),
    ] {
        *rate = section.read_or(key, value::number(SYN_RATES), *rate, findings);
    }
    section.finish(findings);
    intercept
}

/// `[multicast]`.
pub(super) fn check_multicast(file: &File<'_>, findings: &mut Findings) -> Multicast {
    let mut multicast = Multicast::default();
    let Some(mut section) = file.section("multicast", findings) else {
        return multicast;
    };
    multicast.interfaces = section.read_or("interfaces", value::interfaces, Vec::new(), findings);
    multicast.querier = section.read_or("querier", value::boolean, multicast.querier, findings);
    section.finish(findings);
    multicast
}
