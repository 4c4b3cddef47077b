//! The bench's load: bulk transfers, requests on new connections, echoes, idle flows. Plain
//! blocking sockets in the lab's hosts.
//!
//! Called by `measure.rs`; knows nothing of the way that the bytes take.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tpo_lab::{Host, Lab};

use super::corpora::noise;
use crate::ending::Ending;

/// Bytes of one write and one read; large enough that the load costs little beside what it
/// measures.
const CHUNK: usize = 256 << 10;
/// A request of a size that any network program knows.
const REQUEST: usize = 100;
/// The small object of the requests: 10 kB, seven or eight packets, no more than a first window.
pub(super) const OBJECT: usize = 10_000;
/// The answer when connections per second are counted.
pub(super) const SMALL_ANSWER: usize = 200;
/// One echo, as a keystroke or a query.
const ECHO: usize = 64;
/// Between the beginnings of two echoing connections: no usual round trip is a multiple of it.
const ECHOES_APART: Duration = Duration::from_millis(13);

/// How long a connection, or a part of one, may take before the bench gives up: beyond five SYN of
/// the kernel.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);
/// How often those who wait for others look whether they shall end.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the course of a bulk transfer is noted.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// Tells the threads of a measurement to end, also when it fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Which way the bulk goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the server to the client.
    Down,
    /// From the client to the server.
    Up,
}

/// What a bulk transfer reached.
pub(super) struct Bulk {
    /// Application bytes that arrived while it was counted, flow by flow.
    pub(super) bytes: Vec<u64>,
    /// How long it was counted.
    pub(super) took: Duration,
    /// Bytes that had arrived, from time to time, counted from the first one.
    pub(super) course: Vec<(Duration, u64)>,
}

/// Where the load goes, and with what congestion control of the hosts.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) lab: &'a Lab,
    pub(super) congestion: &'a str,
    pub(super) ending: &'a Ending,
}

impl Site<'_> {
    fn listen(&self) -> Result<TcpListener> {
        let listener = self
            .lab
            .inside(Host::Server, || TcpListener::bind("10.10.2.2:0"))
            .context("listen at the server")?;
        SockRef::from(&listener).set_read_timeout(Some(LOOK_EVERY))?;
        self.choose(&listener)?;
        Ok(listener)
    }

    fn choose(&self, socket: &impl std::os::fd::AsFd) -> Result<()> {
        let congestion = self.congestion;
        SockRef::from(socket)
            .set_tcp_congestion(congestion.as_bytes())
            .with_context(|| format!("use {congestion}"))
    }

    /// Connections from the client, and as many ends of them at the server; which belongs to which
    /// is not told.
    fn connect(&self, listener: &TcpListener, flows: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
        /// Connections that are opened at once, 16: so round trips overlap, and the listener's
        /// backlog holds them.
        const AT_ONCE: usize = 16;
        let to = listener.local_addr()?;
        let one = || -> Result<TcpStream> {
            let client = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
            client.set_nodelay(true)?;
            self.choose(&client)?;
            Ok(client)
        };
        let mut pairs = Vec::new();
        while pairs.len() < flows {
            self.ending.check()?;
            let count = (flows - pairs.len()).min(AT_ONCE);
            let clients = self.lab.inside(Host::Client, || {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
                    let joined = threads
                        .into_iter()
                        .map(|thread| thread.join().expect("connecting does not panic"));
                    joined.collect::<Result<Vec<_>>>()
                })
            })?;
            for client in clients {
                pairs.push((client, accept(listener, self.ending)?));
            }
        }
        Ok(pairs)
    }
}

pub(super) fn accept(listener: &TcpListener, ending: &Ending) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        ending.check()?;
        match listener.accept() {
            Ok((server, _)) => {
                server.set_nodelay(true)?;
                return Ok(server);
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {}
            Err(error) => return Err(error).context("accept at the server"),
        }
    }
}

/// Bulk over `flows` connections at once for `warm_up`, and then for as long as `counted` takes.
pub(super) fn bulk<T>(
    site: Site<'_>,
    direction: Direction,
    flows: usize,
    warm_up: Duration,
    counted: impl FnOnce() -> Result<T>,
) -> Result<(Bulk, T)> {
    let listener = site.listen()?;
    let pairs = site.connect(&listener, flows)?;
    let stop = AtomicBool::new(false);
    let received: Vec<AtomicU64> = (0..flows).map(|_| AtomicU64::new(0)).collect();
    let total = || {
        received
            .iter()
            .map(|one| one.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let course = Mutex::new(Vec::new());
    let (bytes, took, value) = std::thread::scope(|scope| -> Result<_> {
        // However this ends, the readers end too, and by their resets the writers.
        let _stop = StopOnDrop(&stop);
        for ((client, server), received) in pairs.into_iter().zip(&received) {
            let (reader, writer) = match direction {
                Direction::Down => (client, server),
                Direction::Up => (server, client),
            };
            writer.set_write_timeout(Some(PATIENCE))?;
            reader.set_read_timeout(Some(LOOK_EVERY))?;
            let stop = &stop;
            scope.spawn(move || write_all(&writer, stop));
            scope.spawn(move || read_all(&reader, stop, received));
        }
        scope.spawn(|| {
            let mut first = None;
            while !stop.load(Ordering::Relaxed) {
                let bytes = total();
                if bytes > 0 {
                    let start = *first.get_or_insert_with(Instant::now);
                    course
                        .lock()
                        .expect("nobody panics while it holds this")
                        .push((start.elapsed(), bytes));
                }
                std::thread::sleep(SAMPLE_EVERY);
            }
        });
        site.ending.sleep(warm_up)?;
        let each = || {
            received
                .iter()
                .map(|one| one.load(Ordering::Relaxed))
                .collect::<Vec<_>>()
        };
        let (start, before) = (Instant::now(), each());
        let value = counted()?;
        let bytes: Vec<u64> = each()
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before)
            .collect();
        Ok((bytes, start.elapsed(), value))
    })?;
    ensure!(
        bytes.iter().sum::<u64>() > 0,
        "nothing arrived while it was counted"
    );
    let course = course
        .into_inner()
        .expect("nobody panics while it holds this");
    Ok((
        Bulk {
            bytes,
            took,
            course,
        },
        value,
    ))
}

/// Writes until the reader goes or it is over, and ends the connection with a reset.
fn write_all(mut writer: &TcpStream, stop: &AtomicBool) {
    let chunk = noise(CHUNK);
    while !stop.load(Ordering::Relaxed) && writer.write_all(&chunk).is_ok() {}
    let _ = SockRef::from(writer).set_linger(Some(Duration::ZERO));
}

fn read_all(reader: &TcpStream, stop: &AtomicBool, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match (&*reader).read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => break,
            Ok(n) => {
                received.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
    }
    // A reset, so that the writer ends too, however full the connection is.
    let _ = SockRef::from(reader).set_linger(Some(Duration::ZERO));
}

/// What requests on new connections took, in milliseconds from the connect call; sorted.
pub(super) struct Requests {
    /// Until the first byte of the answer.
    pub(super) first: Vec<f64>,
    /// Until its last.
    pub(super) whole: Vec<f64>,
    /// How many were answered in a second.
    pub(super) per_second: f64,
}

/// How many requests, by whom.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// How many in all; the time may end it before.
    pub(super) requests: usize,
    pub(super) longest: Duration,
    /// How many clients ask at the same time, each one request after the other.
    pub(super) clients: usize,
    /// Bytes of an answer.
    pub(super) answer: usize,
}

/// Requests, each on a new connection; the server closes.
pub(super) fn requests(site: Site<'_>, asked: Asked) -> Result<Requests> {
    let listener = site.listen()?;
    let to = listener.local_addr()?;
    let stop = AtomicBool::new(false);
    let (left, failed) = (AtomicUsize::new(asked.requests), AtomicUsize::new(0));
    let times = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..asked.clients {
            scope.spawn(|| serve(&listener, &stop, asked.answer));
        }
        let one_client = || {
            let mut mine = Vec::new();
            while start.elapsed() < asked.longest && site.ending.check().is_ok() {
                if left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    })
                    .is_err()
                {
                    break;
                }
                match request(to, asked.answer, site.congestion) {
                    Ok(time) => mine.push(time),
                    Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                }
            }
            times
                .lock()
                .expect("nobody panics while it holds this")
                .extend(mine);
        };
        site.lab.inside(Host::Client, || {
            std::thread::scope(|clients| {
                for _ in 0..asked.clients {
                    clients.spawn(one_client);
                }
            });
        });
    });
    let took = start.elapsed();
    site.ending.check()?;
    let failed = failed.into_inner();
    ensure!(failed == 0, "{failed} requests failed");
    let times = times
        .into_inner()
        .expect("nobody panics while it holds this");
    ensure!(!times.is_empty(), "no request was answered");
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    Ok(Requests {
        per_second: times.len() as f64 / took.as_secs_f64(),
        first: sorted(
            times
                .iter()
                .map(|(first, _)| first.as_secs_f64() * 1e3)
                .collect(),
        ),
        whole: sorted(
            times
                .iter()
                .map(|(_, whole)| whole.as_secs_f64() * 1e3)
                .collect(),
        ),
    })
}

/// 64 bytes to the server and back, again and again on each of `connections`, whose beginnings are
/// apart: milliseconds, sorted.
pub(super) fn echoes(site: Site<'_>, connections: usize, longest: Duration) -> Result<Vec<f64>> {
    let listener = site.listen()?;
    let mut times = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let mut clients = Vec::new();
        for (client, server) in site.connect(&listener, connections)? {
            client.set_read_timeout(Some(PATIENCE))?;
            server.set_read_timeout(Some(PATIENCE))?;
            scope.spawn(move || {
                let mut bytes = [0; ECHO];
                while (&server).read_exact(&mut bytes).is_ok()
                    && (&server).write_all(&bytes).is_ok()
                {}
            });
            // Owned by its thread, so that the server's side ends with it, also when an echo fails.
            clients.push(scope.spawn(move || echo(site, &client, longest)));
            std::thread::sleep(ECHOES_APART);
        }
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.join().expect("echoing does not panic")?);
        }
        Ok(times)
    })?;
    ensure!(!times.is_empty(), "no echo came back");
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn echo(site: Site<'_>, mut client: &TcpStream, longest: Duration) -> Result<Vec<f64>> {
    let (start, mut bytes, mut times) = (Instant::now(), [7; ECHO], Vec::new());
    while start.elapsed() < longest {
        site.ending.check()?;
        let sent = Instant::now();
        client.write_all(&bytes).context("send an echo")?;
        client.read_exact(&mut bytes).context("hear an echo")?;
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Holds `flows` connections that carry nothing while `held` runs.
pub(super) fn idle_flows<T>(
    site: Site<'_>,
    flows: usize,
    held: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let listener = site.listen()?;
    let pairs = site.connect(&listener, flows)?;
    let value = held();
    for (client, _) in &pairs {
        // Ten thousand orderly ends would leave ten thousand ports in TIME_WAIT.
        let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
    }
    value
}

/// Answers until told to stop. The listener's waits are short.
fn serve(listener: &TcpListener, stop: &AtomicBool, bytes: usize) {
    let answer = noise(bytes);
    while !stop.load(Ordering::Relaxed) {
        if let Ok((mut connection, _)) = listener.accept() {
            let mut one = || -> io::Result<()> {
                connection.set_read_timeout(Some(PATIENCE))?;
                connection.read_exact(&mut [0; REQUEST])?;
                connection.write_all(&answer)
            };
            // The client notices what goes wrong.
            let _ = one();
        }
    }
}

fn request(to: SocketAddr, answer: usize, congestion: &str) -> io::Result<(Duration, Duration)> {
    let start = Instant::now();
    let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    SockRef::from(&connection).set_tcp_congestion(congestion.as_bytes())?;
    connection.write_all(&[1; REQUEST])?;
    connection.read_exact(&mut [0; 1])?;
    let first = start.elapsed();
    connection.read_exact(&mut vec![0; answer - 1])?;
    Ok((first, start.elapsed()))
}
