//! The only `unsafe` of this crate: namespaces, TUN devices, exact waiting, and the few socket
//! options that `std` lacks.

use std::ffi::{OsStr, c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Checksums, TCP over v4 and v6, UDP over v4 and v6 may come and go as super-packets (`TUN_F_*` in
/// linux/if_tun.h).
const TUN_OFFLOADS: c_ulong = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Whether this process acts as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// This thread's id in the kernel.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::gettid() }
}

/// Moves the calling thread, and only it, into a network namespace.
pub(crate) fn enter_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// A command whose process moves into a network namespace before it runs the program.
pub(crate) fn command_in(namespace: Arc<File>, program: &OsStr) -> Command {
    let mut command = Command::new(program);
    // SAFETY: the closure runs between fork and exec and makes one system call, no allocation, no
    // lock.
    unsafe { command.pre_exec(move || enter_namespace(&namespace)) };
    command
}

/// Makes a TUN device in the calling thread's namespace: whole super-packets, a virtio header
/// before each packet, reads never block. The device lives as long as the file.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    assert!(
        name.len() < libc::IFNAMSIZ,
        "an interface name has at most 15 bytes"
    );
    // SAFETY: all zero is a valid ifreq: plain integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is a whole, initialised ifreq that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &request) })?;
    // SAFETY: this request takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, TUN_OFFLOADS) })?;
    Ok(file)
}

/// Waits until one of the descriptors can be read or has ended, or until the time is over; tells
/// which can, by bit.
pub(crate) fn wait(descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<u32> {
    assert!(
        descriptors.len() <= 8,
        "more descriptors than anybody here waits for"
    );
    let mut polls = [libc::pollfd {
        fd: -1,
        events: libc::POLLIN,
        revents: 0,
    }; 8];
    for (poll, descriptor) in polls.iter_mut().zip(descriptors) {
        poll.fd = descriptor.as_raw_fd();
    }
    // SAFETY: all zero is a valid timespec.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    let time = timeout.map_or(std::ptr::null(), |timeout| {
        time.tv_sec = timeout.as_secs().min(1 << 30) as _;
        time.tv_nsec = timeout.subsec_nanos() as _;
        &raw const time
    });
    let count = descriptors.len() as libc::nfds_t;
    // SAFETY: `polls` holds `count` entries, `time` is null or points to a timespec that outlives
    // the call.
    match check(unsafe { libc::ppoll(polls.as_mut_ptr(), count, time, std::ptr::null()) }) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
        Err(error) => return Err(error),
    }
    Ok(polls.iter().enumerate().fold(0, |bits, (i, poll)| {
        bits | u32::from(poll.revents != 0) << i
    }))
}

/// Makes the calling thread's waits exact to a microsecond and lets it run before ordinary threads.
/// A host that refuses has a coarser link, not a broken one.
pub(crate) fn hurry() {
    const NICE: c_int = -10;
    // SAFETY: both calls take plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000 as c_ulong);
        libc::setpriority(libc::PRIO_PROCESS, thread_id() as libc::id_t, NICE);
    }
}

/// From now on SIGTERM and SIGINT do not end this thread and those it starts: they make the
/// descriptor readable.
pub(crate) fn termination_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used; the descriptor is fresh and
    // owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::other("the signal mask cannot be changed"));
        }
        let descriptor = check(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// A socket for ICMP echo; the kernel writes identifier and checksum. `UdpSocket` only lends its
/// calls.
pub(crate) fn echo_socket(v6: bool) -> io::Result<UdpSocket> {
    let (family, protocol) = if v6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    // SAFETY: plain numbers go in; the descriptor that comes out is fresh and owned by nobody else.
    unsafe {
        let descriptor = check(libc::socket(
            family,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            protocol,
        ))?;
        Ok(UdpSocket::from_raw_fd(descriptor))
    }
}

fn set_option(socket: &impl AsRawFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast::<c_void>(),
            length,
        )
    };
    check(result).map(drop)
}

/// Lets one send carry many datagrams of `segment` bytes each (the last may be shorter): UDP GSO.
pub fn set_udp_segment(socket: &UdpSocket, segment: u16) -> io::Result<()> {
    set_option(
        socket,
        libc::SOL_UDP,
        libc::UDP_SEGMENT,
        &c_int::from(segment).to_ne_bytes(),
    )
}

/// Lets one receive take many datagrams of the same length at once: UDP GRO.
pub fn set_udp_gro(socket: &UdpSocket) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, &1i32.to_ne_bytes())
}

/// Asks for a receive buffer of `bytes`, beyond the system's limit, as root may.
pub fn set_receive_buffer(socket: &UdpSocket, bytes: i32) -> io::Result<()> {
    set_option(
        socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        &bytes.to_ne_bytes(),
    )
}
