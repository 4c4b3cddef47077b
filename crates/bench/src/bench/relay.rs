//! The kernel's best without any protocol of ours: a relay at each TPO's place that splits the
//! connection, BBR on the WAN between them, bytes moved by `splice(2)`. A column of the bench,
//! nothing more: it is cleartext and hides neither loss nor set-up from the flows.
//!
//! Each relay is a process of this very program, so that its CPU time and memory are read like a
//! daemon's. The one at A takes connections transparently and opens one to B for each, the
//! destination in front as six bytes; the one at B connects to that destination.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, SockRef, Socket, Type};
use tpo_lab::{Host, Lab};

use crate::sys::{splice, widen_pipe};

/// Where the relays listen, both.
const PORT: u16 = 47_900;
/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;
/// What one pipe holds: a mebibyte, the most that Linux gives without privilege.
const PIPE_BYTES: usize = 1 << 20;
/// A relay listens within a moment; one that does not has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Marks what shall be delivered locally; any number would do in a namespace of our own.
const MARK: u32 = 0x7e1;

/// Which of the two relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum End {
    /// Takes connections where they are on their way
    Near,
    /// Connects to their destinations
    Far,
}

/// Both relays, running. Dropping it ends them.
pub(super) struct Relays {
    children: Vec<Child>,
}

impl Relays {
    pub(super) fn start(lab: &Lab) -> Result<Relays> {
        divert(lab)?;
        let program = std::env::current_exe().context("find this program")?;
        let mut relays = Relays {
            children: Vec::new(),
        };
        for (host, end) in [(Host::B, "far"), (Host::A, "near")] {
            let child = lab
                .command(host, &program)
                .args(["relay", end])
                .spawn()
                .context("start a relay")?;
            relays.children.push(child);
            let address = match host {
                Host::B => SocketAddr::new(Host::B.v4("wan0"), PORT),
                _ => SocketAddr::new(Host::A.v4("lan0"), PORT),
            };
            let start = Instant::now();
            // The probe's connection is relayed to nowhere and ends.
            while lab
                .inside(host, || TcpStream::connect_timeout(&address, PATIENCE))
                .is_err()
            {
                ensure!(
                    start.elapsed() < PATIENCE,
                    "the relay at {} does not listen",
                    host.name()
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(relays)
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It holds nothing that an orderly end would save; the namespaces' rules go with the
            // namespaces.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lets connections from the client's site come to the relay at A.
fn divert(lab: &Lab) -> Result<()> {
    let rules = format!(
        "table ip bench {{\n chain relay {{\n  type filter hook prerouting priority mangle\n  \
         iifname \"lan0\" ip daddr 10.10.2.0/24 meta l4proto tcp tproxy to 127.0.0.1:{PORT} meta mark set {MARK:#x} accept\n }}\n}}\n"
    );
    run(lab.command(Host::A, "nft").args(["-f", "-"]), &rules)?;
    let ip = |words: &str| run(lab.command(Host::A, "ip").args(words.split(' ')), "");
    ip(&format!("rule add fwmark {MARK:#x} lookup 100"))?;
    ip("route add local default dev lo table 100")
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let words = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {words}"))?;
    // Should it end early, its own message says more than a broken pipe.
    let _ = child
        .stdin
        .take()
        .expect("stdin was asked to be a pipe")
        .write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// A relay's process: until it is killed.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn serve(end: End) -> Result<()> {
    crate::sys::raise_descriptor_limit()?;
    let listener = listen(end).context("listen as a relay")?;
    loop {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => bail!("a relay accepts no more: {error}"),
        };
        let spawned = std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                // Whatever goes wrong is the connection's end, which both sides see.
                let _ = relay(end, &connection);
            });
        spawned.context("a thread for a connection")?;
    }
}

fn listen(end: End) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    match end {
        End::Near => socket.set_ip_transparent_v4(true)?,
        // Accepted connections inherit it: they are the WAN's.
        End::Far => socket.set_tcp_congestion(b"bbr")?,
    }
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn relay(end: End, connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let onward = match end {
        End::Near => {
            // A transparent socket's own address is where the client wanted to go.
            let SocketAddr::V4(destination) = connection.local_addr()? else {
                return Ok(());
            };
            if destination.port() == PORT {
                // A probe whether this relay listens. Relayed, it would come back here without
                // end.
                return Ok(());
            }
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_tcp_congestion(b"bbr")?;
            socket.set_tcp_nodelay(true)?;
            socket.connect(&SocketAddr::new(Host::B.v4("wan0"), PORT).into())?;
            let mut onward = TcpStream::from(socket);
            onward.write_all(&emit(destination))?;
            onward
        }
        End::Far => {
            let mut front = [0; 6];
            (&*connection).read_exact(&mut front)?;
            let onward = TcpStream::connect(SocketAddr::V4(parse(front)))?;
            onward.set_nodelay(true)?;
            onward
        }
    };
    std::thread::scope(|scope| {
        let back = std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn_scoped(scope, || carry(&onward, connection));
        let there = carry(connection, &onward);
        // A direction that has failed takes the other with it.
        back?.join().unwrap_or(Ok(())).and(there)
    })
}

/// The destination as it stands in front of the bytes: address and port, big-endian.
fn emit(destination: SocketAddrV4) -> [u8; 6] {
    let [a, b, c, d] = destination.ip().octets();
    let [high, low] = destination.port().to_be_bytes();
    [a, b, c, d, high, low]
}

fn parse([a, b, c, d, high, low]: [u8; 6]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]))
}

/// Moves bytes until the end of one direction, and passes the end on.
fn carry(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (pipe_out, pipe_in) = io::pipe()?;
    widen_pipe(&pipe_in, PIPE_BYTES as i32);
    let moved = (|| {
        loop {
            let mut held = splice(from, &pipe_in, PIPE_BYTES)?;
            if held == 0 {
                return to.shutdown(std::net::Shutdown::Write);
            }
            while held > 0 {
                held -= splice(&pipe_out, to, held)?;
            }
        }
    })();
    if moved.is_err() {
        // So the other direction's thread ends too.
        for stream in [from, to] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_survives_its_six_bytes() {
        let destination = SocketAddrV4::new(Ipv4Addr::new(10, 10, 2, 2), 40_961);
        assert_eq!(emit(destination), [10, 10, 2, 2, 0xa0, 0x01]);
        assert_eq!(parse(emit(destination)), destination);
    }

    #[test]
    fn bytes_and_ends_are_carried() {
        let pair = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (one, listener.accept().unwrap().0)
        };
        let ((mut near, from), (to, mut far)) = (pair(), pair());
        let thread = std::thread::spawn(move || carry(&from, &to));
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let writer = {
            let sent = sent.clone();
            std::thread::spawn(move || near.write_all(&sent))
        };
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} bytes of {} arrived", got.len(), sent.len());
        writer.join().unwrap().unwrap();
        thread.join().unwrap().unwrap();
    }
}
