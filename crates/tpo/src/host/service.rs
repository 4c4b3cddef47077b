//! What the daemon tells the service manager that started it (sd_notify of systemd, `Type=notify`):
//! that it is ready, that it is alive, that it ends.
//!
//! The manager says by the environment where it listens and how often it wants a life sign; without
//! that, nothing is told. One datagram each, by a socket that is connected while the daemon may
//! still open files.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Service {
    socket: Option<UnixDatagram>,
    /// Between two life signs; none are wanted without it.
    every: Option<Duration>,
    last: Option<Instant>,
}

impl Service {
    /// As the environment says.
    pub(crate) fn from_environment() -> Service {
        let value = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let number = |name| value(name)?.to_str()?.parse::<u64>().ok();
        let Some(address) = value("NOTIFY_SOCKET") else {
            return Service::default();
        };
        // Where the manager names a process, it wants the life signs of that one.
        let is_us =
            number("WATCHDOG_PID").is_none_or(|process| process == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC")
            .filter(|limit| *limit > 0 && is_us)
            .map(Duration::from_micros);
        match connect(address.as_bytes()) {
            Ok(socket) => Service::new(socket, limit),
            Err(error) => {
                warn!(%error, ?address, "the service manager cannot be told anything");
                Service::default()
            }
        }
    }

    fn new(socket: UnixDatagram, limit: Option<Duration>) -> Service {
        // Twice within the time that it waits, as sd_watchdog_enabled(3) advises.
        Service {
            socket: Some(socket),
            every: limit.map(|limit| limit / 2),
            last: None,
        }
    }

    /// The daemon is up: what waits for it may start.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\n");
    }

    /// It begins to end.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    /// A life sign, when one is due. To be called often, and only while what serves all peers
    /// turns.
    pub(crate) fn alive(&mut self, now: Instant) {
        let Some(every) = self.every else { return };
        if self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= every)
        {
            self.last = Some(now);
            self.tell("WATCHDOG=1\n");
        }
    }

    fn tell(&self, words: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(words.as_bytes())
        {
            debug!(%error, words, "the service manager was not told");
        }
    }
}

/// A path, or a name in the abstract space where it begins with `@`.
fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not stop us.
    socket.set_nonblocking(true)?;
    match address.strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(std::ffi::OsStr::from_bytes(address))?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_signs_come_twice_within_the_limit_and_a_deaf_manager_stops_nobody() {
        let name = format!("@tpo-service-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut service = Service::new(
            connect(name.as_bytes()).unwrap(),
            Some(Duration::from_secs(30)),
        );
        let heard = || {
            let mut bytes = [0; 64];
            manager
                .recv(&mut bytes)
                .ok()
                .map(|length| String::from_utf8(bytes[..length].to_vec()).unwrap())
        };
        service.ready();
        assert_eq!(heard().as_deref(), Some("READY=1\n"));
        let start = Instant::now();
        for (after, sign) in [
            (0, true),
            (1, false),
            (14, false),
            (15, true),
            (29, false),
            (30, true),
        ] {
            service.alive(start + Duration::from_secs(after));
            assert_eq!(heard().is_some(), sign, "after {after} s");
        }
        // More than its queue holds.
        (0..10_000).for_each(|_| service.stopping());
        let mut nobody = Service::default();
        nobody.alive(start);
        nobody.ready();
    }
}
