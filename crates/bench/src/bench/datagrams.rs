//! The bench's load of UDP: as many small packets as come across, and a steady stream of them over
//! a bad link.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::load::Site;
use super::stats::quantile;
use crate::steady::{self, Steady};

const TO: &str = "10.10.2.2:5300";
/// Bytes of a small packet, as many programs send them, and how many leave by one system call: the
/// sender shares the machine with what is measured.
const SMALL: usize = 64;
const AT_ONCE: usize = 32;
/// Offered loads, per second. The first at which more than [`LOST`] are lost ends the search.
const OFFERED: [u32; 9] = [
    40_000, 80_000, 120_000, 150_000, 180_000, 210_000, 250_000, 300_000, 400_000,
];
const STEP: Duration = Duration::from_millis(500);
const LOST: f64 = 0.001;
/// A stream of a camera or a tunnel, bits per second.
const STREAM: f64 = 20e6;
/// The link learns what it carries.
const LEARNING: Duration = Duration::from_millis(1_500);
/// What is still on its way when the sender ends.
const LAST: Duration = Duration::from_millis(700);
const BUFFER: i32 = 16 << 20;

/// How a stream arrived.
pub(super) struct Stream {
    /// In percent of what was sent.
    pub(super) arrived: f64,
    /// Beyond the link's own time, milliseconds.
    pub(super) late_p99: f64,
    /// Bytes on the wire for each byte that the datagrams have on a LAN, where the link is
    /// emulated.
    pub(super) wire: f64,
}

fn sockets(site: Site<'_>) -> Result<(UdpSocket, UdpSocket)> {
    let (client, server) = steady::sockets(site.lab, TO)?;
    tpo_lab::set_receive_buffer(&server, BUFFER).context("widen the server's buffer")?;
    Ok((client, server))
}

/// The highest offered load, datagrams of 64 bytes per second, at which at least 99.9 % arrive; 0
/// if there is none.
pub(super) fn most(site: Site<'_>) -> Result<f64> {
    let (client, server) = sockets(site)?;
    let (over, came) = (AtomicBool::new(false), AtomicU64::new(0));
    tpo_lab::set_udp_segment(&client, SMALL as u16).context("have the kernel cut datagrams")?;
    std::thread::scope(|scope| -> Result<f64> {
        scope.spawn(|| {
            let mut bytes = [0; SMALL];
            while !over.load(Ordering::Relaxed) {
                if server.recv(&mut bytes).is_ok() {
                    came.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let search = || -> Result<f64> {
            let mut best = 0.0;
            for offered in OFFERED {
                site.ending.check()?;
                let before = came.load(Ordering::Relaxed);
                let start = Instant::now();
                let mut sent = 0_u64;
                while start.elapsed() < STEP {
                    if sent as f64 <= start.elapsed().as_secs_f64() * f64::from(offered) {
                        client
                            .send(&[7; SMALL * AT_ONCE])
                            .context("send datagrams")?;
                        sent += AT_ONCE as u64;
                    } else {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
                let took = start.elapsed().as_secs_f64();
                std::thread::sleep(Duration::from_millis(200));
                let arrived = came.load(Ordering::Relaxed) - before;
                if (arrived as f64) < sent as f64 * (1.0 - LOST) {
                    break;
                }
                best = sent as f64 / took;
            }
            Ok(best)
        };
        let found = search();
        over.store(true, Ordering::Relaxed);
        found
    })
}

/// A stream of datagrams of this size for `time`, after the link has learned.
pub(super) fn stream(
    site: Site<'_>,
    size: usize,
    time: Duration,
    one_way: Duration,
) -> Result<Stream> {
    let (client, server) = sockets(site)?;
    let every = Duration::from_secs_f64(size as f64 * 8.0 / STREAM);
    let count = |span: Duration| (span.as_secs_f64() / every.as_secs_f64()) as usize;
    let (first, total) = (count(LEARNING), count(LEARNING + time));
    let mut wire = 0;
    let steady = Steady {
        size,
        every,
        count: total,
        last: LAST,
    };
    let delays = steady.send((&client, &server), site.ending, |number| match number {
        _ if number == first => wire = site.lab.stats().0.offered_bytes,
        _ if number == total => wire = site.lab.stats().0.offered_bytes - wire,
        _ => {}
    })?;
    let counted = &delays[first..];
    let late = |delay: &Duration| delay.saturating_sub(one_way).as_secs_f64() * 1e3;
    let mut times: Vec<f64> = counted.iter().flatten().map(late).collect();
    times.sort_by(f64::total_cmp);
    anyhow::ensure!(!times.is_empty(), "no datagram arrived");
    Ok(Stream {
        arrived: 100.0 * times.len() as f64 / counted.len() as f64,
        late_p99: quantile(&times, 0.99),
        wire: wire as f64 / (counted.len() * (size + 28)) as f64,
    })
}
