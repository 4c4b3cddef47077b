//! Which system calls the daemon and its programs may make (seccomp).
//!
//! Two filters, of which the stricter answer counts. What only an attacker calls ends the process
//! (`HOSTILE`). What is not in `ALLOWED` answers as in a kernel that does not know it, "function
//! not implemented": a new version of the C library then takes the older way, as it does on an
//! older kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use libc::c_long;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Calls by which a process that was taken over would leave its cage or look into others. Neither
/// we nor `nft` nor `ip` make them.
const HOSTILE: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
];

/// Calls that are made with any arguments: found by `strace` of the daemon and of its programs, and
/// what the C library may take in their place.
const ALLOWED: &[c_long] = &[
    // Descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
    // Files. Which ones is said in `files`.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    // Sockets. Of which kinds is said below.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, signals, time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Itself and its programs. Which ones is said in `files`.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_execve,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // The older names of some of these.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// The families of sockets that may be made: the control socket, the two of the Internet, the
/// kernel's tables, and what a LAN's groups are heard by.
const FAMILIES: [libc::c_int; 5] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_PACKET,
];

/// What may be asked of `prctl`: names of threads and of memory, and what `ip` looks at. Not among
/// them: to be dumpable again.
const SETTINGS: [libc::c_int; 5] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_CAPBSET_READ,
    libc::PR_CAP_AMBIENT,
    PR_SET_VMA,
];
/// linux/prctl.h; the C library names its arenas by it.
const PR_SET_VMA: libc::c_int = 0x5356_4d41;

/// Flags of `clone` that make a namespace, in which a process would have more rights than outside.
const NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// Confines all threads, and the programs that they start. Cannot be taken back.
///
/// # Errors
/// When this kernel has no seccomp, or this processor is none that filters are made for.
pub(crate) fn restrict() -> Result<()> {
    for filter in filters()? {
        seccompiler::apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2]> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .context("no filters for this processor")?;
    let compile = |rules, otherwise, listed| -> Result<BpfProgram> {
        Ok(SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()?)
    };
    let hostile = HOSTILE.iter().map(|call| (*call, Vec::new())).collect();
    Ok([
        compile(hostile, SeccompAction::Allow, SeccompAction::KillProcess)?,
        compile(
            allowed()?,
            SeccompAction::Errno(libc::ENOSYS as u32),
            SeccompAction::Allow,
        )?,
    ])
}

/// By call: nothing, or of which arguments one list must hold.
fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let is = |argument, operator, value: libc::c_int| {
        // Of the register the lower half is the argument.
        SeccompCondition::new(argument, Dword, operator, u64::from(value as u32))
    };
    let one_of = |values: &[libc::c_int]| -> Result<Vec<SeccompRule>> {
        values
            .iter()
            .map(|value| Ok(SeccompRule::new(vec![is(0, Eq, *value)?])?))
            .collect()
    };
    rules.insert(libc::SYS_socket, one_of(&FAMILIES)?);
    rules.insert(libc::SYS_prctl, one_of(&SETTINGS)?);
    // Its flags cannot be seen in `clone3`, for which the C library takes this one where it is not
    // there.
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![is(
            0,
            MaskedEq(NAMESPACES as u64),
            0,
        )?])?],
    );
    // Nobody types for the administrator at the terminal from which tpo was started.
    let types = |call: libc::c_ulong| is(1, Ne, call as libc::c_int);
    rules.insert(
        libc::SYS_ioctl,
        vec![SeccompRule::new(vec![
            types(libc::TIOCSTI)?,
            types(TIOCLINUX)?,
        ])?],
    );
    // No memory that can be written and run.
    let both = libc::PROT_WRITE | libc::PROT_EXEC;
    let protections = [0, libc::PROT_WRITE, libc::PROT_EXEC].map(|protection| {
        Ok(SeccompRule::new(vec![is(
            2,
            MaskedEq(both as u64),
            protection,
        )?])?)
    });
    rules.insert(
        libc::SYS_mmap,
        protections.into_iter().collect::<Result<_>>()?,
    );
    let runs = match cfg!(target_arch = "x86_64") {
        true => vec![SeccompRule::new(vec![is(
            2,
            MaskedEq(libc::PROT_EXEC as u64),
            0,
        )?])?],
        // The loader marks what runs as a landing place of jumps in this way.
        false => Vec::new(),
    };
    rules.insert(libc::SYS_mprotect, runs);
    Ok(rules)
}

/// linux/tiocl.h by way of asm-generic/ioctls.h: what else types at a console.
const TIOCLINUX: libc::c_ulong = 0x541c;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Says to a run of this very test that it is the child, and what to try.
    const TRY: &str = "TPO_TEST_TRY";

    /// Runs one attempt inside the filters in a process of its own; how that ended.
    fn attempt(what: &str) -> std::process::ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "host::privilege::calls::tests::hostile_calls_end_it_and_strange_ones_fail",
            "--nocapture",
        ]);
        command.env(TRY, what).output().unwrap().status
    }

    /// In the child: confines itself and tries; exits with 0 when the call failed with "not
    /// implemented", 1 when it did anything else.
    fn inside(what: &str) -> ! {
        crate::sys::refuse_new_privileges().unwrap();
        restrict().unwrap();
        let code = crate::sys::tests::error_of(what);
        std::process::exit(i32::from(code != Some(libc::ENOSYS)));
    }

    #[test]
    fn hostile_calls_end_it_and_strange_ones_fail() {
        if let Ok(what) = std::env::var(TRY) {
            inside(&what);
        }
        for hostile in [
            "ptrace",
            "mount",
            "bpf",
            "unshare",
            "setns",
            "init_module",
            "kexec_load",
        ] {
            let status = attempt(hostile);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{hostile}: {status}");
        }
        for strange in [
            "io_uring_setup",
            "socket AF_VSOCK",
            "clone CLONE_NEWUSER",
            "mmap WX",
            "prctl dumpable",
            "setuid",
        ] {
            let status = attempt(strange);
            assert_eq!(status.code(), Some(0), "{strange}: {status}");
        }
        let status = attempt("nothing strange");
        assert_eq!(
            status.code(),
            Some(1),
            "a call that is allowed works inside: {status}"
        );
    }

    #[test]
    fn no_call_is_both_hostile_and_allowed() {
        let allowed = allowed().unwrap();
        assert!(HOSTILE.iter().all(|call| !allowed.contains_key(call)));
        // The kernel takes at most 4,096 instructions of one program.
        assert!(filters().unwrap().iter().all(|filter| filter.len() < 4_096));
    }
}
