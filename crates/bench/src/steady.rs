//! Datagrams one way at a steady pace, for the demo's call and the bench's streams: when each
//! arrives.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tpo_lab::{Host, Lab};

use crate::ending::Ending;

/// What is sent.
pub(crate) struct Steady {
    /// Bytes of each, 4 at least: they begin with their number.
    pub(crate) size: usize,
    /// Between two of them.
    pub(crate) every: Duration,
    /// How many.
    pub(crate) count: usize,
    /// How long the last ones are waited for.
    pub(crate) last: Duration,
}

/// A client's socket connected to the server's.
pub(crate) fn sockets(lab: &Lab, to: &str) -> Result<(UdpSocket, UdpSocket)> {
    let bind = |host, at: &str| {
        lab.inside(host, || UdpSocket::bind(at))
            .with_context(|| format!("bind {at}"))
    };
    let (client, server) = (bind(Host::Client, "0.0.0.0:0")?, bind(Host::Server, to)?);
    lab.inside(Host::Client, || client.connect(to))
        .context("connect the client's socket")?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok((client, server))
}

impl Steady {
    /// Sends them all; gives how long each took from when it was due, if it arrived. `before` is
    /// told each number before it is sent, and their count after the last.
    pub(crate) fn send(
        &self,
        (client, server): (&UdpSocket, &UdpSocket),
        ending: &Ending,
        mut before: impl FnMut(usize),
    ) -> Result<Vec<Option<Duration>>> {
        let due = |number: usize| self.every * number as u32;
        let (over, start) = (AtomicBool::new(false), Instant::now());
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| {
                let (mut delays, mut bytes) = (vec![None; self.count], vec![0; self.size]);
                while !over.load(Ordering::Relaxed) {
                    if server.recv(&mut bytes).is_err() {
                        continue;
                    }
                    let number =
                        u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
                    if let Some(delay) = delays.get_mut(number) {
                        delay.get_or_insert(start.elapsed().saturating_sub(due(number)));
                    }
                }
                delays
            });
            let mut send = || -> Result<()> {
                let (mut bytes, mut random) = (vec![0; self.size], fastrand::Rng::with_seed(7));
                for number in 0..self.count {
                    // Sleeping takes 0.1 ms at least: what is due by then leaves together.
                    while start.elapsed() < due(number) {
                        std::thread::sleep(Duration::from_micros(200));
                        ending.check()?;
                    }
                    before(number);
                    // As sound, pictures and what is encrypted: it does not shrink.
                    random.fill(&mut bytes);
                    bytes[..4].copy_from_slice(&(number as u32).to_be_bytes());
                    client.send(&bytes).context("send a datagram")?;
                }
                before(self.count);
                std::thread::sleep(self.last);
                Ok(())
            };
            let sent = send();
            over.store(true, Ordering::Relaxed);
            let delays = listening.join().expect("listening does not panic");
            sent.map(|()| delays)
        })
    }
}
