//! The bench's load: bulk transfers, requests on new connections, connections per second. Plain blocking sockets in the lab's hosts.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tpo_lab::{Host, Lab};

/// Bytes of one write; large enough that the load costs little beside what it measures.
const CHUNK: usize = 256 << 10;
/// A request and its answer, of a size that any network program knows.
const REQUEST: usize = 100;
const ANSWER: usize = 200;
/// Clients at the same time when connections per second are counted.
const CLIENTS: usize = 16;

/// What a bulk transfer reached.
pub(super) struct Bulk {
    /// Application bits per second that arrived, in millions.
    pub(super) mbit: f64,
    /// Gigabits that arrived in the time counted.
    pub(super) gigabit: f64,
}

/// Downloads from the server to the client over `flows` connections for `seconds` after `warm_up`; `mark` is called when counting begins and
/// when it ends.
pub(super) fn bulk(
    lab: &Lab,
    congestion: &str,
    flows: usize,
    warm_up: Duration,
    seconds: Duration,
    mut mark: impl FnMut(),
) -> Result<Bulk> {
    let listener = listen(lab, congestion)?;
    let to = listener.local_addr()?;
    let clients = connect(lab, to, flows)?;
    let stop = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    let (bytes, took) = std::thread::scope(|scope| -> Result<(u64, Duration)> {
        for _ in 0..flows {
            let (server, _) = listener.accept().context("accept at the server")?;
            scope.spawn(move || {
                let chunk = noise(CHUNK);
                // Ends when the client goes.
                while (&server).write_all(&chunk).is_ok() {}
            });
        }
        for client in clients {
            let (stop, received) = (&stop, &received);
            scope.spawn(move || {
                let mut chunk = vec![0; CHUNK];
                while !stop.load(Ordering::Relaxed) {
                    match (&client).read(&mut chunk) {
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
        std::thread::sleep(warm_up);
        mark();
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        std::thread::sleep(seconds);
        let bytes = received.load(Ordering::Relaxed) - before;
        let took = start.elapsed();
        mark();
        stop.store(true, Ordering::Relaxed);
        Ok((bytes, took))
    })?;
    ensure!(bytes > 0, "nothing arrived");
    Ok(Bulk { mbit: bytes as f64 * 8e-6 / took.as_secs_f64(), gigabit: bytes as f64 * 8e-9 })
}

/// Requests one after the other, each on a new connection: milliseconds from the connect call to the first byte of the answer, sorted.
pub(super) fn first_bytes(lab: &Lab, congestion: &str, requests: usize) -> Result<Vec<f64>> {
    let listener = listen(lab, congestion)?;
    let to = listener.local_addr()?;
    let mut times = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| serve(&listener, requests));
        for _ in 0..requests {
            times.push(lab.inside(Host::Client, || request(to))?.as_secs_f64() * 1e3);
        }
        Ok(())
    })?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Connections per second, each with a request and an answer, from [`CLIENTS`] clients at once; the server closes.
pub(super) fn connections(lab: &Lab, seconds: Duration) -> Result<f64> {
    let listener = listen(lab, "cubic")?;
    let to = listener.local_addr()?;
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(200)))?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS / 2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((connection, _)) = listener.accept() {
                        // A client that was stopped in the middle is not counted either.
                        let _ = answer(&connection);
                    }
                }
            });
        }
        lab.inside(Host::Client, || {
            std::thread::scope(|clients| {
                for _ in 0..CLIENTS {
                    clients.spawn(|| {
                        while start.elapsed() < seconds {
                            let counter = if request(to).is_ok() { &done } else { &failed };
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    let failed = failed.into_inner();
    ensure!(failed == 0, "{failed} connections failed");
    Ok(done.into_inner() as f64 / start.elapsed().as_secs_f64())
}

fn listen(lab: &Lab, congestion: &str) -> Result<TcpListener> {
    let listener = lab.inside(Host::Server, || TcpListener::bind("10.10.2.2:0")).context("listen at the server")?;
    SockRef::from(&listener).set_tcp_congestion(congestion.as_bytes()).with_context(|| format!("use {congestion}"))?;
    Ok(listener)
}

fn connect(lab: &Lab, to: SocketAddr, flows: usize) -> Result<Vec<TcpStream>> {
    lab.inside(Host::Client, || {
        (0..flows).map(|_| TcpStream::connect_timeout(&to, Duration::from_secs(10))).collect::<io::Result<_>>()
    })
    .with_context(|| format!("connect to {to}"))
}

fn serve(listener: &TcpListener, requests: usize) {
    for _ in 0..requests {
        if let Ok((connection, _)) = listener.accept() {
            // The client notices what goes wrong.
            let _ = answer(&connection);
        }
    }
}

fn answer(mut connection: &TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    connection.read_exact(&mut [0; REQUEST])?;
    connection.write_all(&[2; ANSWER])
}

fn request(to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
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
