//! The only `unsafe` of the program: Linux calls that no well-kept crate wraps, each behind a safe
//! function.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::Socket;

/// A timer descriptor: epoll's own timeout counts whole milliseconds, which is too coarse to pace
/// with (timerfd: 0.23 ms measured).
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// A disarmed timer on the monotonic clock.
    pub(crate) fn new() -> io::Result<Timer> {
        // SAFETY: no pointers are passed; the result is checked before it becomes an owned
        // descriptor.
        let fd = unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and is owned by nobody else.
        Ok(Timer {
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    /// Fires once, `after` from now (at least a nanosecond: zero would disarm it). Takes back an
    /// expiry that was not read, so that an edge-triggered poll reports the next one.
    pub(crate) fn arm(&self, after: Duration) -> io::Result<()> {
        let after = after.max(Duration::from_nanos(1));
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: after.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(after.subsec_nanos() as i32),
            },
        };
        // SAFETY: `spec` outlives the call; the old value is not asked for.
        check(unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) })
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Makes a TUN device in the calling thread's namespace: a `virtio_net_hdr` in front of each
/// packet, reads never block. The device lives as long as the file.
pub(crate) fn open_tun(name: &str) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    attach_tun(&file, name)?;
    Ok(file)
}

/// Makes the device that belongs to the file: at first, and again after it was deleted, in the
/// namespace in which the file was opened.
///
/// # Errors
/// `EEXIST` when the file has its device.
pub(crate) fn attach_tun(file: &std::fs::File, name: &str) -> io::Result<()> {
    assert!(
        name.len() < libc::IFNAMSIZ,
        "an interface name has at most 15 bytes"
    );
    // SAFETY: all zero is a valid ifreq: plain integers and bytes.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request is a whole, initialised ifreq that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &request) })
}

/// The calling thread runs after threads of ordinary priority.
pub(crate) fn yield_to_others() {
    const NICE: libc::c_int = 10;
    // SAFETY: plain numbers; 0 is the calling thread. Everybody may become nicer; where a service
    // manager's filter says otherwise, the work competes with all else.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// What is free in the allocator goes back to the system. Takes some milliseconds of a process that
/// has much.
pub(crate) fn give_back_memory() {
    // SAFETY: takes a plain number and touches only what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks for large socket buffers: beyond `net.core.{r,w}mem_max` where we may (CAP_NET_ADMIN), up
/// to them where not.
pub(crate) fn force_buffer_sizes(socket: &Socket, receive: usize, send: usize) {
    for (forced, plain, bytes) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, send),
    ] {
        let bytes = bytes.min(i32::MAX as usize / 2) as libc::c_int;
        if set_option(socket.as_raw_fd(), libc::SOL_SOCKET, forced, bytes).is_err() {
            // Cannot fail for a socket: the kernel clamps to its limit. The caller looks at what
            // was granted.
            let _ = set_option(socket.as_raw_fd(), libc::SOL_SOCKET, plain, bytes);
        }
    }
}

/// One integer socket option.
pub(crate) fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// How many packets the kernel dropped at a socket since it was opened, mostly because its receive
/// buffer was full; a run of datagrams that was received together counts once.
pub(crate) fn socket_drops(socket: &impl AsRawFd) -> io::Result<u32> {
    // linux/sock_diag.h: SK_MEMINFO_DROPS, the last of nine.
    const DROPS: usize = 8;
    let mut memory = [0_u32; DROPS + 1];
    let mut length = mem::size_of_val(&memory) as libc::socklen_t;
    // SAFETY: the pointer and the length describe `memory`, which outlives the call.
    check(unsafe {
        let place = memory.as_mut_ptr().cast();
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            place,
            &raw mut length,
        )
    })?;
    Ok(memory[DROPS])
}

/// Asks for the error queue of a UDP socket: what ICMP messages say is kept there, with what they
/// quote.
pub(crate) fn keep_complaints(socket: &impl AsRawFd, v6: bool) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::SOL_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::SOL_IP, libc::IP_RECVERR)
    };
    set_option(socket.as_raw_fd(), level, name, 1)
}

/// Takes the next message from the error queue of a socket: the error that an ICMP message told of,
/// and how many bytes it quoted of the datagram, which lie in `quoted` as far as there is room.
/// Errors that are no ICMP's have the number 0. `None`: the queue is empty.
pub(crate) fn take_complaint(
    socket: &impl AsRawFd,
    quoted: &mut [u8],
) -> io::Result<Option<(i32, usize)>> {
    // Room for the extended error and the address of who complains, aligned for the kernel's
    // structures.
    let mut control = [0_u64; 32];
    let mut place = libc::iovec {
        iov_base: quoted.as_mut_ptr().cast(),
        iov_len: quoted.len(),
    };
    // SAFETY: all zero is a valid msghdr: plain integers and null pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut place;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: every pointer of the message is to a place of the length given, which outlives the
    // call.
    let got = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut message,
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock {
            Ok(None)
        } else {
            Err(error)
        };
    }
    let mut number = 0;
    // SAFETY: the kernel filled in the control messages; the walk stays within the length that it
    // left in the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: `next` is a whole header inside `control`; an IP_RECVERR or IPV6_RECVERR message
        // holds a sock_extended_err, read unaligned.
        unsafe {
            let kind = ((*next).cmsg_level, (*next).cmsg_type);
            if kind == (libc::SOL_IP, libc::IP_RECVERR)
                || kind == (libc::SOL_IPV6, libc::IPV6_RECVERR)
            {
                let failure = libc::CMSG_DATA(next)
                    .cast::<libc::sock_extended_err>()
                    .read_unaligned();
                if matches!(
                    failure.ee_origin,
                    libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6
                ) {
                    number = failure.ee_errno as i32;
                }
            }
            next = libc::CMSG_NXTHDR(&raw const message, next);
        }
    }
    Ok(Some((number, (got as usize).min(quoted.len()))))
}

/// Raises the limit of open files to the hard limit, one descriptor for each connection, and
/// returns what it is now.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is initialised and outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// Takes the exclusive lock of an open file (`flock`); false if another process has it.
pub(crate) fn try_lock(file: &std::fs::File) -> io::Result<bool> {
    // SAFETY: a plain call without pointers on an open descriptor.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        result => result.map(|()| true),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The addresses of all interfaces of the calling thread's namespace.
pub(crate) fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is a valid place for the list, which is freed below, once.
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: each entry is part of the list until it is freed; null ends it.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: an address that is there is as long as its family says, and aligned for it.
        let address = unsafe {
            match entry
                .ifa_addr
                .as_ref()
                .map(|address| i32::from(address.sa_family))
            {
                Some(libc::AF_INET) => {
                    let v4 = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                    Some(IpAddr::from(Ipv4Addr::from_bits(u32::from_be(
                        v4.sin_addr.s_addr,
                    ))))
                }
                Some(libc::AF_INET6) => {
                    let v6 = &*entry.ifa_addr.cast::<libc::sockaddr_in6>();
                    Some(IpAddr::from(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
                }
                _ => None,
            }
        };
        addresses.extend(address);
    }
    // SAFETY: it came from `getifaddrs`, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// 32 bytes of the kernel's randomness.
pub fn random_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    // SAFETY: the pointer and the length describe `seed`.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if got == seed.len() as isize {
        Ok(seed)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The number of an interface of the calling thread's namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer is to a string that ends with a zero and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// One question about an interface (`ioctl` with an `ifreq`), asked through any socket of its
/// namespace.
fn ask_interface(socket: &Socket, name: &str, what: libc::Ioctl) -> io::Result<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zero is a valid ifreq: plain integers and bytes.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a whole, initialised ifreq that outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) })?;
    Ok(request)
}

/// Bytes of an IP packet that the interface takes whole.
pub(crate) fn interface_mtu(socket: &Socket, name: &str) -> io::Result<usize> {
    let request = ask_interface(socket, name, libc::SIOCGIFMTU)?;
    // SAFETY: SIOCGIFMTU filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.max(0) as usize)
}

/// The first IPv4 address of an interface.
pub(crate) fn interface_v4(socket: &Socket, name: &str) -> io::Result<std::net::Ipv4Addr> {
    let request = ask_interface(socket, name, libc::SIOCGIFADDR)?;
    // SAFETY: SIOCGIFADDR filled in this member of the union; family, port and address lie in its
    // first eight bytes.
    let data = unsafe { request.ifr_ifru.ifru_addr.sa_data };
    Ok(std::net::Ipv4Addr::from(
        [data[2], data[3], data[4], data[5]].map(|byte| byte as u8),
    ))
}

/// A socket that hears what passes an interface, IP headers first, as far as `filter` lets it
/// through; frames to any group too, but not what this host sends.
pub(crate) fn open_packet_socket(index: u32, filter: &[socket2::SockFilter]) -> io::Result<Socket> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // No protocol yet: nothing comes before the filter stands.
    let socket = Socket::new(
        socket2::Domain::PACKET,
        socket2::Type::DGRAM.nonblocking().cloexec(),
        None,
    )?;
    socket.attach_filter(filter)?;
    set_option(
        socket.as_raw_fd(),
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        1,
    )?;
    // SAFETY: all zero is a valid sockaddr_ll and packet_mreq: plain integers and bytes.
    let (mut address, mut groups): (libc::sockaddr_ll, libc::packet_mreq) =
        unsafe { mem::zeroed() };
    groups.mr_ifindex = index as libc::c_int;
    groups.mr_type = libc::PACKET_MR_ALLMULTI as libc::c_ushort;
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = all;
    address.sll_ifindex = index as libc::c_int;
    // SAFETY: each pointer and length describe one of the two, which outlive the calls.
    unsafe {
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const groups).cast(),
            mem::size_of_val(&groups) as libc::socklen_t,
        ))?;
        let length = mem::size_of_val(&address) as libc::socklen_t;
        check(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length,
        ))?;
    }
    Ok(socket)
}

/// By which interface an IPv4 socket sends to groups, by its number.
pub(crate) fn set_multicast_interface_v4(socket: &Socket, index: u32) -> io::Result<()> {
    let any = libc::in_addr { s_addr: 0 };
    let request = libc::ip_mreqn {
        imr_multiaddr: any,
        imr_address: any,
        imr_ifindex: index as libc::c_int,
    };
    // SAFETY: the pointer and the length describe `request`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MULTICAST_IF,
            (&raw const request).cast(),
            mem::size_of_val(&request) as libc::socklen_t,
        )
    })
}

/// A file that has no name, in memory only, gone with its last descriptor. What a program reads
/// from it or writes to it makes nobody wait.
pub(crate) fn memory_file() -> io::Result<std::fs::File> {
    // SAFETY: the name is a string that ends with a zero; the result is checked before it becomes
    // an owned descriptor.
    let fd = unsafe { libc::memfd_create(c"tpo".as_ptr(), libc::MFD_CLOEXEC) };
    check(fd)?;
    // SAFETY: `fd` was just created and is owned by nobody else.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// No core file is written, whatever happens: not of this process, not of any that it starts.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `none` is initialised and outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })
}

/// Nobody but root reads this process's memory: no core goes to a handler, no debugger of the same
/// user attaches. A change of the user takes it back.
pub(crate) fn hide_memory() -> io::Result<()> {
    set_process(libc::PR_SET_DUMPABLE, 0)
}

/// No program that this thread starts, nor any thread that it starts, gains a right by it.
pub(crate) fn refuse_new_privileges() -> io::Result<()> {
    set_process(libc::PR_SET_NO_NEW_PRIVS, 1)
}

fn set_process(what: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: a plain call without pointers; both settings want zeros in what they do not use.
    check(unsafe { libc::prctl(what, value, zero, zero, zero) })
}

/// The user on whose behalf the process acts.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: a plain call without pointers that cannot fail.
    unsafe { libc::geteuid() }
}

/// A user's numbers by its name: its own and that of its group. `None`: there is no such user.
pub(crate) fn user_by_name(name: &str) -> io::Result<Option<(u32, u32)>> {
    /// Bytes for the texts of one entry; the longest that are in use have some hundred.
    const TEXTS: usize = 16 << 10;
    let name = std::ffi::CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut texts = vec![0 as libc::c_char; TEXTS];
    // SAFETY: all zero is a valid passwd: integers and null pointers.
    let mut entry: libc::passwd = unsafe { mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with a zero; the entry, the texts of that length and the answer outlive
    // the call.
    let code = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            texts.as_mut_ptr(),
            texts.len(),
            &raw mut found,
        )
    };
    match code {
        // getpwnam_r(3): these, too, mean that there is none.
        0 | libc::ENOENT | libc::ESRCH => {
            Ok((!found.is_null()).then_some((entry.pw_uid, entry.pw_gid)))
        }
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Becomes this user for good, in no other group than its own. For all threads.
pub(crate) fn become_user(user: u32, group: u32) -> io::Result<()> {
    // SAFETY: plain numbers; no groups are read from the null pointer, since there are none.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(group, group, group))?;
        check(libc::setresuid(user, user, user))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes the system call of this name, which may end the process; the error that it gave.
    pub(crate) fn error_of(call: &str) -> Option<libc::c_int> {
        let (null, zero) = (std::ptr::null::<libc::c_void>(), 0 as libc::c_long);
        // SAFETY: each call fails or does something that this process, made for it, can bear; what
        // pointers are wanted are null or, for a page of anonymous memory, the kernel's choice.
        let result = unsafe {
            match call {
                "ptrace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, zero, null, null),
                "mount" => libc::syscall(libc::SYS_mount, null, null, null, zero, null),
                "bpf" => libc::syscall(libc::SYS_bpf, zero, null, zero),
                "unshare" => libc::syscall(libc::SYS_unshare, zero),
                "setns" => libc::syscall(libc::SYS_setns, -1 as libc::c_long, zero),
                "init_module" => libc::syscall(libc::SYS_init_module, null, zero, null),
                "kexec_load" => libc::syscall(libc::SYS_kexec_load, zero, zero, null, zero),
                "io_uring_setup" => libc::syscall(libc::SYS_io_uring_setup, zero, null),
                "socket AF_VSOCK" => {
                    libc::syscall(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, zero)
                }
                "clone CLONE_NEWUSER" => {
                    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
                    libc::syscall(libc::SYS_clone, flags, null, null, null, zero)
                }
                "mmap WX" => {
                    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                    libc::syscall(
                        libc::SYS_mmap,
                        null,
                        4_096 as libc::c_long,
                        protection,
                        kind,
                        -1,
                        zero,
                    )
                }
                "prctl dumpable" => libc::syscall(
                    libc::SYS_prctl,
                    libc::PR_SET_DUMPABLE,
                    1 as libc::c_long,
                    zero,
                    zero,
                    zero,
                ),
                "setuid" => libc::syscall(libc::SYS_setuid, zero),
                _ => libc::syscall(libc::SYS_getuid),
            }
        };
        (result < 0).then(|| {
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or_default()
        })
    }
}
