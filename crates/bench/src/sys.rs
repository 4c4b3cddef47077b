//! The only `unsafe` of the bench: Linux calls that no well-kept crate wraps, each behind a safe
//! function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use libc::c_int;

/// Asks a child process of ours to end (SIGTERM).
pub(crate) fn terminate(process: u32) {
    // SAFETY: a plain call without pointers; the process id is that of a child not yet waited for,
    // so it cannot be another's.
    unsafe { libc::kill(process as libc::pid_t, libc::SIGTERM) };
}

/// Moves up to `bytes` from one descriptor to the other inside the kernel, waiting for what is not
/// there yet; one of the two is a pipe. Zero: the end.
pub(crate) fn splice(from: &impl AsRawFd, to: &impl AsRawFd, bytes: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open for the length of the call; null offsets are what sockets
    // and pipes ask for.
    let moved = unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            bytes,
            libc::SPLICE_F_MOVE,
        )
    };
    if moved < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(moved as usize)
    }
}

/// Asks for a pipe that holds `bytes`; a host that refuses leaves it at its size.
pub(crate) fn widen_pipe(pipe: &impl AsRawFd, bytes: i32) {
    // SAFETY: a plain call without pointers on an open descriptor.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
}

/// User and system CPU time of a process, seconds.
pub(crate) fn process_cpu_seconds(process: u32) -> io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold anything; user and system time are the 12th and 13th fields
    // after it (proc(5): 14 and 15).
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .into_iter()
        .flat_map(|rest| rest.split_whitespace().skip(11).take(2))
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // SAFETY: a plain call without pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
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

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
