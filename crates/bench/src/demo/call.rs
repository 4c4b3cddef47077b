//! A call beside the downloads: datagrams one way at a steady pace, as voice sends them, and how
//! they arrive; a ping; and a group of multicast.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tpo_lab::{Host, Lab};

use crate::ending::Ending;
use crate::steady::{self, Steady};

const TO: &str = "10.10.2.2:5004";
const DATAGRAMS: usize = 400;
const BYTES: usize = 200;
const EVERY: Duration = Duration::from_millis(10);
/// What has not arrived by then is lost to a call.
const TOO_LATE: Duration = Duration::from_millis(400);
const PINGS: u16 = 10;
/// What the client says to many.
pub(crate) const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 7, 7);
const GROUP_PORT: u16 = 5_006;
/// Both TPOs are routers on the way.
const HOPS: u32 = 8;
/// A membership has come to the far site by then.
const JOINED: Duration = Duration::from_secs(5);

/// How it went.
pub(crate) struct Call {
    /// Datagrams that never arrived, or too late, in percent.
    pub(crate) lost_percent: f64,
    /// Of those that arrived, one way, milliseconds.
    pub(crate) p99_ms: f64,
}

/// Makes the call.
pub(crate) fn call(lab: &Lab, ending: &Ending) -> Result<Call> {
    let (client, server) = steady::sockets(lab, TO)?;
    let voice = Steady {
        size: BYTES,
        every: EVERY,
        count: DATAGRAMS,
        last: TOO_LATE,
    };
    let delays = voice.send((&client, &server), ending, |_| ())?;
    let in_time = delays
        .into_iter()
        .flatten()
        .filter(|delay| *delay <= TOO_LATE);
    let mut delays: Vec<f64> = in_time.map(|delay| delay.as_secs_f64() * 1e3).collect();
    ensure!(!delays.is_empty(), "no datagram arrived");
    delays.sort_by(f64::total_cmp);
    Ok(Call {
        lost_percent: 100.0 * (DATAGRAMS - delays.len()) as f64 / DATAGRAMS as f64,
        p99_ms: delays[(delays.len() * 99).div_ceil(100) - 1],
    })
}

/// The median time of some echo requests, milliseconds. Lost ones count as nothing.
pub(crate) fn ping(lab: &Lab, ending: &Ending) -> Result<f64> {
    let socket = lab.inside(Host::Client, || {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))
    });
    let socket: UdpSocket = socket.context("make a raw socket")?.into();
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut times = Vec::new();
    for number in 1..=PINGS {
        ending.check()?;
        // Type 8, its checksum, an identifier and the number.
        let [high, low] = number.to_be_bytes();
        let sum = !(0x0800_u16 + 0x7470 + number);
        let request = [8, 0, (sum >> 8) as u8, sum as u8, 0x74, 0x70, high, low];
        let start = Instant::now();
        socket
            .send_to(&request, "10.10.2.2:0")
            .context("send an echo request")?;
        let mut answer = [0; 100];
        while let Ok(length) = socket.recv(&mut answer) {
            if length == 28 && answer[20] == 0 && answer[24..28] == request[4..] {
                times.push(start.elapsed().as_secs_f64() * 1e3);
                break;
            }
        }
    }
    times.sort_by(f64::total_cmp);
    ensure!(!times.is_empty(), "no echo request was answered");
    Ok(times[times.len() / 2])
}

/// The same datagrams to a group that the server's host has joined: how many do not arrive in time,
/// in percent.
pub(crate) fn multicast(lab: &Lab, ending: &Ending) -> Result<f64> {
    let (IpAddr::V4(own), IpAddr::V4(there)) = (Host::Client.v4("eth0"), Host::Server.v4("eth0"))
    else {
        unreachable!("IPv4 addresses were asked for")
    };
    let listen = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GROUP_PORT))?;
        socket.join_multicast_v4(&GROUP, &there)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    };
    let speak = || -> Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_ttl_v4(HOPS)?;
        let socket: UdpSocket = socket.into();
        socket.connect((GROUP, GROUP_PORT))?;
        Ok(socket)
    };
    let server = lab
        .inside(Host::Server, listen)
        .context("join the group at the server")?;
    let client = lab
        .inside(Host::Client, speak)
        .context("make a socket for the group")?;
    let start = Instant::now();
    loop {
        ending.check()?;
        ensure!(
            start.elapsed() < JOINED,
            "nothing sent to {GROUP} has reached the far site in {JOINED:?}"
        );
        client.send(&[0xff; 4]).context("send to the group")?;
        if server.recv(&mut [0; 4]).is_ok() {
            break;
        }
    }
    let talk = Steady {
        size: BYTES,
        every: EVERY,
        count: DATAGRAMS,
        last: TOO_LATE,
    };
    let delays = talk.send((&client, &server), ending, |_| ())?;
    let in_time = delays
        .into_iter()
        .flatten()
        .filter(|delay| *delay <= TOO_LATE)
        .count();
    Ok(100.0 * (DATAGRAMS - in_time) as f64 / DATAGRAMS as f64)
}
