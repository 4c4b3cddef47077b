//! The demo's server: just enough HTTP/1.1 for real clients to download bytes that both ends can
//! compute.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::SockRef;

/// Bytes made at a time.
const CHUNK: usize = 65_536;

/// A server that answers `GET /<seed>/<bytes>` until it is dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Listens in the namespace of the calling thread. `congestion` is the kernel's algorithm for
    /// its connections.
    pub(crate) fn start(address: SocketAddr, congestion: &'static str) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        SockRef::from(&listener).set_tcp_congestion(congestion.as_bytes())?;
        // Accepting wakes up now and then to see whether the demo is over.
        SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name(format!("http {congestion}"))
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok((connection, _)) = listener.accept() {
                        // A client that goes away in the middle is the client's business.
                        std::thread::spawn(move || serve(&connection));
                    }
                }
            })?;
        Ok(Server {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, has been printed.
            let _ = thread.join();
        }
    }
}

fn serve(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    // An accepted socket inherits the listener's limit, which a request that was lost once would
    // exceed.
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(connection.take(1 << 20));
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut writer = connection;
        let Some((seed, bytes)) = wanted(&request) else {
            writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n\r\n"
        )?;
        let mut body = Body::new(seed);
        let mut left = bytes;
        while left > 0 {
            let chunk = body.next(left.min(CHUNK));
            writer.write_all(chunk)?;
            left -= chunk.len();
        }
    }
}

fn wanted(request: &str) -> Option<(u64, usize)> {
    let path = request.strip_prefix("GET /")?.split(' ').next()?;
    let (seed, bytes) = path.split_once('/')?;
    Some((seed.parse().ok()?, bytes.parse().ok()?))
}

/// Bytes that do not compress and that both ends can make again.
pub(crate) struct Body {
    state: u64,
    chunk: Vec<u8>,
}

impl Body {
    /// The bytes of one object.
    pub(crate) fn new(seed: u64) -> Body {
        Body {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            chunk: vec![0; CHUNK],
        }
    }

    /// Its next bytes, at most a chunk. All but the last call ask for whole chunks.
    pub(crate) fn next(&mut self, bytes: usize) -> &[u8] {
        for word in self.chunk[..bytes.next_multiple_of(8).min(CHUNK)].chunks_mut(8) {
            // xorshift64: quick and without pattern to a compressor.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
        &self.chunk[..bytes]
    }
}

/// Compares what was received with what was sent, byte by byte; the number of good bytes when
/// something is wrong.
pub(crate) fn verify(mut received: impl Read, seed: u64, bytes: usize) -> Result<(), usize> {
    let mut body = Body::new(seed);
    let mut got = vec![0; CHUNK];
    let mut done = 0;
    while done < bytes {
        let take = (bytes - done).min(CHUNK);
        if received.read_exact(&mut got[..take]).is_err() || body.next(take) != &got[..take] {
            return Err(done);
        }
        done += take;
    }
    match received.read(&mut got) {
        Ok(0) => Ok(()),
        _ => Err(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_verifies_and_nothing_else_does() {
        let server_address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let probe = TcpListener::bind(server_address).unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let server = Server::start(address, "reno").unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client
            .write_all(b"GET /7/100001 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let start = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        let body = &mut answer[start..];
        assert_eq!(verify(&*body, 7, 100_001), Ok(()));
        assert_eq!(verify(&*body, 8, 100_001), Err(0));
        assert_eq!(verify(&body[..100_000], 7, 100_001), Err(65_536));
        body[70_000] ^= 1;
        assert_eq!(verify(&*body, 7, 100_001), Err(65_536));
        drop(server);
    }
}
