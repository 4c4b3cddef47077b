//! An ICMP echo, for machines without the `ping` program.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::sys;

const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// The round-trip time to an address, from the calling thread's namespace; an error of kind
/// `TimedOut` without an answer.
pub fn ping(address: IpAddr, timeout: Duration) -> io::Result<Duration> {
    let socket = sys::echo_socket(address.is_ipv6())?;
    socket.connect(SocketAddr::new(address, 0))?;
    // Type, code, checksum, identifier, sequence; the kernel fills in checksum and identifier.
    let mut request = [0u8; 8 + 48];
    request[0] = if address.is_ipv6() { ECHO_V6 } else { ECHO_V4 };
    request[8..16].copy_from_slice(b"tpo lab!");
    let begun = Instant::now();
    socket.send(&request)?;
    let mut answer = [0u8; 128];
    loop {
        let left = timeout
            .checked_sub(begun.elapsed())
            .filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.ok_or(ErrorKind::TimedOut)?))?;
        match socket.recv(&mut answer) {
            Ok(length) if length == request.len() && answer[8..length] == request[8..] => {
                return Ok(begun.elapsed());
            }
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}
