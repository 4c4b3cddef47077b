//! UDP with segmentation offload: one socket for everybody who calls, one connected socket for each
//! lane.
//!
//! All sockets share the configured port (`SO_REUSEPORT`). The *listening* socket is not connected:
//! it hears first handshakes and peers whose address has changed, and its reader
//! ([`crate::demultiplexer`]) hands those datagrams to the lane that they name. Once a lane knows
//! its peer's address it opens a socket connected to it, which the kernel prefers for that peer's
//! datagrams, so the bulk of the traffic goes from the kernel straight to the lane's own thread.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};

use crate::table::marks::MARK_OWN;

/// Receive buffer asked of the kernel: 64 ms at 4 Gbit/s, more than the longest pause of a lane
/// that still keeps its lease.
const RECEIVE_BUFFER: usize = 32 << 20;
/// Send buffer: a full batch for each of many millisecond quanta; the pacer, not this, bounds what
/// waits.
const SEND_BUFFER: usize = 8 << 20;
/// Datagram runs taken by one system call. Each may hold 64 datagrams; more would only lengthen the
/// lane's turn.
pub(crate) const RECEIVE_RUNS: usize = 8;
/// Calls that are tried again after an error which may be an ICMP message's about another datagram.
/// Each call takes one such error away; who sends 100,000 of them in a second hits one call in ten.
const AGAIN: usize = 4;
/// Largest run that the kernel hands up with GRO.
const RUN_BYTES: usize = 65_536;

/// One UDP socket with its offloads.
pub(crate) struct Link {
    socket: UdpSocket,
    state: UdpSocketState,
    /// An IPv6 socket: asked for once, not with each batch.
    v6: bool,
}

/// What the kernel said of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Handed to the kernel.
    All,
    /// The socket's buffer is full: try again when it is writable.
    Blocked,
    /// Datagrams of this size do not fit the device.
    TooLarge,
    /// Another error (unreachable, not permitted, no buffers): the batch is lost like any datagram.
    Failed,
}

impl Link {
    /// The socket that everybody calls: dual-stack when `[::]` is asked for and the kernel has
    /// IPv6, IPv4 alone where it has not.
    pub(crate) fn listen(address: SocketAddr) -> io::Result<Link> {
        match Link::open(address, None) {
            Err(error)
                if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                    ) =>
            {
                Link::open(
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
                    None,
                )
            }
            other => other,
        }
    }

    /// A socket for one lane: our port, connected to the peer. `local` is the address at which the
    /// peer called us, if it did.
    pub(crate) fn connect(port: u16, local: Option<IpAddr>, peer: SocketAddr) -> io::Result<Link> {
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let local = local
            .filter(|ip| ip.is_ipv4() == peer.is_ipv4())
            .unwrap_or(any);
        Link::open(SocketAddr::new(local, port), Some(peer))
    }

    fn open(local: SocketAddr, peer: Option<SocketAddr>) -> io::Result<Link> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() {
            // The listening socket hears IPv4 callers too; a lane's socket has one peer of one
            // family.
            socket.set_only_v6(peer.is_some())?;
        }
        socket.set_reuse_port(true)?;
        if let Err(error) = socket.set_mark(MARK_OWN) {
            warn!(%error, "the tunnel's socket could not be marked: without CAP_NET_ADMIN its packets are not exempt from interception");
        }
        enlarge(&socket);
        socket.bind(&local.into())?;
        if let Some(peer) = peer {
            socket.connect(&peer.into())?;
            crate::sys::keep_complaints(&socket, peer.is_ipv6())?;
        }
        socket.set_nonblocking(true)?;
        let socket: UdpSocket = socket.into();
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Link {
            socket,
            state,
            v6: local.is_ipv6(),
        })
    }

    /// The local address, for logs and to learn a port that the kernel chose.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// A second handle on the same socket.
    pub(crate) fn try_clone(&self) -> io::Result<Link> {
        let socket = self.socket.try_clone()?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Link {
            socket,
            state,
            v6: self.v6,
        })
    }

    /// Sends one batch: datagrams of `segment` bytes each, the last may be shorter. An unconnected
    /// socket can be told from which address.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        batch: &[u8],
        segment: usize,
    ) -> Sent {
        let most = self.state.max_gso_segments().max(1) * segment;
        let mut rest = batch;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(most.min(rest.len()));
            match self.send_run(to, source, now, segment, AGAIN) {
                Ok(()) => rest = later,
                // Segmentation offload was refused late: the state has noted it, the same bytes go
                // again one by one.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
                        && now.len() > segment =>
                {
                    debug!(%error, "segmentation offload refused");
                    return self.send_singly(to, source, rest, segment);
                }
                Err(error) => return outcome(&error),
            }
        }
        Sent::All
    }

    fn send_singly(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        batch: &[u8],
        segment: usize,
    ) -> Sent {
        for datagram in batch.chunks(segment) {
            if let Err(error) = self.send_run(to, source, datagram, segment, AGAIN) {
                return outcome(&error);
            }
        }
        Sent::All
    }

    /// A connected socket tells the next call what an ICMP message said of an earlier datagram, and
    /// sends nothing in that call. What is said may be forged, and says nothing of this run: so the
    /// run is sent again, as often as `again` says. What is true stays in the error queue
    /// ([`Link::take_complaint`]), and an error of this run's own comes back.
    fn send_run(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        run: &[u8],
        segment: usize,
        again: usize,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: self.destination(to),
            ecn: None,
            contents: run,
            segment_size: (run.len() > segment).then_some(segment),
            src_ip: source.filter(|ip| ip.is_ipv4() == to.is_ipv4()),
        };
        let sent = self
            .state
            .try_send(UdpSockRef::from(&self.socket), &transmit);
        let own = |error: &io::Error| {
            matches!(
                error.raw_os_error(),
                Some(libc::EAGAIN | libc::EIO | libc::EINVAL)
            )
        };
        match sent {
            // The device's queue had no room: lost like any datagram. Without the error queue the
            // kernel does not even tell.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) if again > 0 && !own(&error) => {
                self.send_run(to, source, run, segment, again - 1)
            }
            sent => sent,
        }
    }

    /// The next thing that an ICMP message said of what a connected socket has sent: the error, and
    /// how many bytes of the datagram it quoted into `quoted`. Proves nothing by itself: whoever
    /// reaches one of our addresses can send such a message.
    pub(crate) fn take_complaint(&self, quoted: &mut [u8]) -> Option<(i32, usize)> {
        crate::sys::take_complaint(&self.socket, quoted).unwrap_or_else(|error| {
            debug!(%error, "the error queue cannot be read");
            None
        })
    }

    /// An IPv6 socket wants an IPv4 peer in mapped form.
    fn destination(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.v6 => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            _ => to,
        }
    }

    /// Packets that the kernel dropped here because we did not take them soon enough. A system
    /// call: for reports, not for each datagram.
    pub(crate) fn dropped(&self) -> u64 {
        crate::sys::socket_drops(&self.socket).map_or(0, u64::from)
    }

    /// Receives some runs of datagrams. `Ok(0)`: nothing waits.
    pub(crate) fn receive(&self, into: &mut Runs) -> io::Result<usize> {
        let mut runs = into.bytes.chunks_mut(RUN_BYTES);
        let mut slices: [IoSliceMut<'_>; RECEIVE_RUNS] =
            std::array::from_fn(|_| IoSliceMut::new(runs.next().unwrap_or_default()));
        match self
            .state
            .recv(UdpSockRef::from(&self.socket), &mut slices, &mut into.meta)
        {
            Ok(n) => {
                into.filled = n;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                into.filled = 0;
                Ok(0)
            }
            Err(error) => {
                into.filled = 0;
                Err(error)
            }
        }
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Buffers for what one system call receives.
pub(crate) struct Runs {
    bytes: Vec<u8>,
    meta: Vec<RecvMeta>,
    filled: usize,
}

impl Runs {
    /// Room for a handful of the largest runs.
    pub(crate) fn new() -> Runs {
        Runs {
            bytes: vec![0; RECEIVE_RUNS * RUN_BYTES],
            meta: vec![RecvMeta::default(); RECEIVE_RUNS],
            filled: 0,
        }
    }

    /// Each datagram received, with its sender and the local address it was sent to.
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(SocketAddr, Option<IpAddr>, &mut [u8])) {
        for (run, meta) in self
            .bytes
            .chunks_mut(RUN_BYTES)
            .zip(&self.meta)
            .take(self.filled)
        {
            let from = unmapped(meta.addr);
            let local = meta.dst_ip.map(|ip| ip.to_canonical());
            for datagram in run[..meta.len].chunks_mut(meta.stride.max(1)) {
                each(from, local, datagram);
            }
        }
    }
}

impl Default for Runs {
    fn default() -> Self {
        Runs::new()
    }
}

/// An IPv4 peer heard through a dual-stack socket is an IPv4 peer.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn outcome(error: &io::Error) -> Sent {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Sent::Blocked,
        Some(libc::EMSGSIZE) => Sent::TooLarge,
        _ => {
            debug!(%error, "send failed");
            Sent::Failed
        }
    }
}

/// Large socket buffers: beyond the administrator's limit with CAP_NET_ADMIN, up to it without, and
/// a warning when that is too little.
fn enlarge(socket: &Socket) {
    crate::sys::force_buffer_sizes(socket, RECEIVE_BUFFER, SEND_BUFFER);
    let got = socket.recv_buffer_size().unwrap_or(0);
    if got < RECEIVE_BUFFER / 16 {
        warn!(
            bytes = got,
            "the kernel grants only a small receive buffer: raise net.core.rmem_max or grant CAP_NET_ADMIN"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(link: &Link, runs: &mut Runs) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut got = Vec::new();
        while link.receive(runs).unwrap() > 0 {
            runs.for_each(|from, _, datagram| got.push((from, datagram.to_vec())));
        }
        got
    }

    #[test]
    fn a_connected_lane_hears_its_peer_and_the_listener_hears_the_rest() {
        let listener = Link::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let here = listener.local_addr().unwrap();
        let peer = Link::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let stranger = Link::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let lane = Link::connect(here.port(), Some(here.ip()), peer.local_addr().unwrap()).unwrap();

        let batch: Vec<u8> = (0..2_500).map(|i| i as u8).collect();
        assert_eq!(peer.send(here, None, &batch, 1_000), Sent::All);
        assert_eq!(stranger.send(here, None, b"hello", 1_000), Sent::All);

        let mut runs = Runs::new();
        let to_lane = collect(&lane, &mut runs);
        assert_eq!(
            to_lane.iter().map(|(_, d)| d.len()).collect::<Vec<_>>(),
            [1_000, 1_000, 500]
        );
        assert_eq!(to_lane.concat_bytes(), batch);
        let to_listener = collect(&listener, &mut runs);
        assert_eq!(
            to_listener,
            [(stranger.local_addr().unwrap(), b"hello".to_vec())]
        );
    }

    #[test]
    fn a_closed_port_is_told_with_what_was_sent_and_costs_nothing_that_follows() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let peer = Link::listen(address.parse().unwrap()).unwrap();
            let to = peer.local_addr().unwrap();
            drop(peer);
            let lane = Link::connect(0, None, to).unwrap();
            assert_eq!(lane.take_complaint(&mut [0; 16]), None);
            assert_eq!(lane.send(to, None, b"anyone?", 1_000), Sent::All);
            let mut quoted = [0; 16];
            assert_eq!(
                lane.take_complaint(&mut quoted),
                Some((libc::ECONNREFUSED, 7))
            );
            assert_eq!(&quoted[..7], b"anyone?");
            assert_eq!(lane.take_complaint(&mut quoted), None);
            // The error of the first call is told to the second, which nevertheless sends: the
            // port is open by now.
            assert_eq!(lane.send(to, None, b"anyone?", 1_000), Sent::All);
            let peer = Link::listen(to).unwrap();
            assert_eq!(lane.send(to, None, b"and now?", 1_000), Sent::All);
            assert_eq!(
                collect(&peer, &mut Runs::new()),
                [(lane.local_addr().unwrap(), b"and now?".to_vec())]
            );
        }
    }

    #[test]
    fn what_does_not_fit_into_the_buffer_is_counted() {
        let peer = Link::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let link = Link::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        crate::sys::set_option(link.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 4_096).unwrap();
        let here = link.local_addr().unwrap();
        assert_eq!(link.dropped(), 0);
        for _ in 0..100 {
            assert_eq!(peer.send(here, None, &[1; 1_000], 1_000), Sent::All);
        }
        let got = collect(&link, &mut Runs::new()).len() as u64;
        assert!((1..20).contains(&got), "{got}");
        assert_eq!(link.dropped(), 100 - got);
    }

    trait Concat {
        fn concat_bytes(&self) -> Vec<u8>;
    }
    impl Concat for Vec<(SocketAddr, Vec<u8>)> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter()
                .flat_map(|(_, bytes)| bytes.iter().copied())
                .collect()
        }
    }
}
