//! The bench's load: bulk transfers, requests on new connections, connections per second. Plain blocking sockets in the lab's hosts.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tpo_lab::{Host, Lab};

use super::Times;
use crate::demo::ending::Ending;

/// Bytes of one write; large enough that the load costs little beside what it measures.
const CHUNK: usize = 256 << 10;
/// A request and its answer, of a size that any network program knows.
const REQUEST: usize = 100;
const ANSWER: usize = 200;
/// Clients at the same time when connections per second are counted.
const CLIENTS: usize = 16;

/// How long a connection, or a part of one, may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often those who wait for others look whether they shall end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Tells the threads of a measurement to end, also when it fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a bulk transfer reached.
pub(super) struct Bulk {
    /// Application bits per second that arrived, in millions.
    pub(super) mbit: f64,
    /// Gigabits that arrived in the time counted.
    pub(super) gigabit: f64,
}

/// Downloads from the server to the client over `flows` connections for as long as `times` says; `mark` is called when counting begins and
/// when it ends.
pub(super) fn bulk(
    lab: &Lab,
    congestion: &str,
    flows: usize,
    times: Times,
    ending: &Ending,
    mut mark: impl FnMut(),
) -> Result<Bulk> {
    let listener = listen(lab, congestion)?;
    let to = listener.local_addr()?;
    let clients = connect(lab, to, flows)?;
    let stop = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    let (bytes, took) = std::thread::scope(|scope| -> Result<(u64, Duration)> {
        // However this ends, the readers end too, and by their resets the writers.
        let _stop = StopOnDrop(&stop);
        for _ in 0..flows {
            let (server, _) = listener.accept().context("accept at the server")?;
            server.set_write_timeout(Some(PATIENCE))?;
            scope.spawn(move || {
                let chunk = noise(CHUNK);
                // Ends when the client goes.
                while (&server).write_all(&chunk).is_ok() {}
            });
        }
        for client in clients {
            client.set_read_timeout(Some(LOOK_EVERY))?;
            let (stop, received) = (&stop, &received);
            scope.spawn(move || {
                let mut chunk = vec![0; CHUNK];
                while !stop.load(Ordering::Relaxed) {
                    match (&client).read(&mut chunk) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Ok(0) | Err(_) => break,
                        Ok(n) => {
                            received.fetch_add(n as u64, Ordering::Relaxed);
                        }
                    }
                }
                // A reset, so that the server's writer ends too, however full the connection is.
                let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            });
        }
        ending.sleep(times.warm_up)?;
        mark();
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        ending.sleep(times.count)?;
        let bytes = received.load(Ordering::Relaxed) - before;
        let took = start.elapsed();
        mark();
        Ok((bytes, took))
    })?;
    ensure!(bytes > 0, "nothing arrived");
    Ok(Bulk { mbit: bytes as f64 * 8e-6 / took.as_secs_f64(), gigabit: bytes as f64 * 8e-9 })
}

/// Requests one after the other, each on a new connection: milliseconds from the connect call to the first byte of the answer, sorted.
pub(super) fn first_bytes(lab: &Lab, congestion: &str, requests: usize, ending: &Ending) -> Result<Vec<f64>> {
    let listener = listen(lab, congestion)?;
    let to = listener.local_addr()?;
    let mut times = Vec::new();
    let stop = AtomicBool::new(false);
    SockRef::from(&listener).set_read_timeout(Some(LOOK_EVERY))?;
    std::thread::scope(|scope| -> Result<()> {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| serve(&listener, &stop));
        for _ in 0..requests {
            ending.check()?;
            times.push(lab.inside(Host::Client, || request(to))?.as_secs_f64() * 1e3);
        }
        Ok(())
    })?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Connections per second, each with a request and an answer, from [`CLIENTS`] clients at once; the server closes.
pub(super) fn connections(lab: &Lab, seconds: Duration, ending: &Ending) -> Result<f64> {
    let listener = listen(lab, "cubic")?;
    let to = listener.local_addr()?;
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    SockRef::from(&listener).set_read_timeout(Some(LOOK_EVERY))?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS / 2 {
            scope.spawn(|| serve(&listener, &stop));
        }
        lab.inside(Host::Client, || {
            std::thread::scope(|clients| {
                for _ in 0..CLIENTS {
                    clients.spawn(|| {
                        while start.elapsed() < seconds && ending.check().is_ok() {
                            let counter = if request(to).is_ok() { &done } else { &failed };
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    ending.check()?;
    let failed = failed.into_inner();
    ensure!(failed == 0, "{failed} connections failed");
    Ok(done.into_inner() as f64 / start.elapsed().as_secs_f64())
}

fn listen(lab: &Lab, congestion: &str) -> Result<TcpListener> {
    let listener = lab.inside(Host::Server, || TcpListener::bind("10.10.2.2:0")).context("listen at the server")?;
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    SockRef::from(&listener).set_tcp_congestion(congestion.as_bytes()).with_context(|| format!("use {congestion}"))?;
    Ok(listener)
}

fn connect(lab: &Lab, to: SocketAddr, flows: usize) -> Result<Vec<TcpStream>> {
    lab.inside(Host::Client, || {
        (0..flows).map(|_| TcpStream::connect_timeout(&to, PATIENCE)).collect::<io::Result<_>>()
    })
    .with_context(|| format!("connect to {to}"))
}

/// Answers until told to stop. The listener's waits are short.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((connection, _)) = listener.accept() {
            // The client notices what goes wrong.
            let _ = answer(&connection);
        }
    }
}

fn answer(mut connection: &TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.read_exact(&mut [0; REQUEST])?;
    connection.write_all(&[2; ANSWER])
}

fn request(to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    connection.write_all(&[1; REQUEST])?;
    connection.read_exact(&mut [0; 1])?;
    let first = start.elapsed();
    connection.read_exact(&mut [0; ANSWER - 1])?;
    Ok(first)
}

/// Bytes that no compressor makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out
}
