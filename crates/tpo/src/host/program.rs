//! The programs that interception calls: `nft` and `ip`. They are looked for where distributions
//! put them, never by `PATH`; their environment is empty. Each must answer within [`LIMIT`], and so
//! must all together that are called for one purpose ([`within_limit`]).
//!
//! Takes from [`crate::intercept`] what to run, and gives it what the program said.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take, 10 s: the largest look-up table loads in one second, and a program
/// that takes longer hangs. The thread that watches over the rules waits for it.
///
/// Far below the time that the service manager waits for a life sign of that thread: 30 s, of which
/// half may have passed before.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

thread_local! {
    /// When all that this thread calls must have ended.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `act`, which calls programs one after the other: all of them together take no longer than
/// [`LIMIT`]. Each may take half of what is left, so that one that hangs leaves time to those after
/// it.
pub(crate) fn within_limit<T>(act: impl FnOnce() -> T) -> T {
    within(LIMIT, act)
}

fn within<T>(limit: Duration, act: impl FnOnce() -> T) -> T {
    let deadline = Instant::now() + limit;
    let before = DEADLINE.get();
    DEADLINE.set(Some(before.map_or(deadline, |before| before.min(deadline))));
    let done = act();
    DEADLINE.set(before);
    done
}

/// Where distributions put them, in the order in which they are looked for.
pub(crate) const FOLDERS: [&str; 6] = [
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/run/current-system/sw/bin",
];

/// The programs, each with the package that brings it.
pub(crate) const PROGRAMS: [(&str, &str); 2] = [("nft", "nftables"), ("ip", "iproute2")];

/// Pauses between two looks whether the program has ended, from the first, 0.5 ms, to the longest,
/// 10 ms: most programs take some milliseconds.
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error(
        "the program `{program}` was not found; install the package {package} (or run without rules)"
    )]
    Missing {
        /// What was started.
        program: &'static str,
        /// Where distributions keep it.
        package: &'static str,
    },
    /// It could not be started.
    #[error("could not start `{program}`: {error}")]
    Start {
        /// What was started.
        program: &'static str,
        /// Why it could not be.
        error: io::Error,
    },
    /// It did not end in time.
    #[error("`{program}` did not end within {} s and was killed", limit.as_secs_f64())]
    TooSlow {
        /// What was started.
        program: &'static str,
        /// How long it was given.
        limit: Duration,
    },
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

/// Where the program is, if it is there at all.
pub(crate) fn place(program: &str) -> Option<PathBuf> {
    find(program, &FOLDERS)
}

/// Runs the program to its end, with `input` as its standard input.
pub(crate) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<Said, ProgramError> {
    run_of(program, &FOLDERS, arguments, input, LIMIT)
}

fn find(program: &str, folders: &[impl AsRef<Path>]) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.as_ref().join(program))
        .find(|path| path.is_file())
}

fn run_of(
    program: &'static str,
    folders: &[impl AsRef<Path>],
    arguments: &[&str],
    input: &str,
    limit: Duration,
) -> Result<Said, ProgramError> {
    let failed = |error: io::Error| ProgramError::Start { program, error };
    let missing = || {
        let package = PROGRAMS
            .iter()
            .find(|(name, _)| *name == program)
            .map_or(program, |(_, package)| package);
        ProgramError::Missing { program, package }
    };
    let path = find(program, folders).ok_or_else(missing)?;
    // Files in memory in the place of pipes: neither side ever waits for the other, so there is one
    // wait, and it has an end.
    let (mut stdin, mut out, mut err) = (memory(failed)?, memory(failed)?, memory(failed)?);
    stdin
        .write_all(input.as_bytes())
        .and_then(|()| stdin.rewind())
        .map_err(failed)?;
    let share = |file: &File| file.try_clone().map(Stdio::from).map_err(failed);
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("LC_ALL", "C");
    command
        .stdin(stdin)
        .stdout(share(&out)?)
        .stderr(share(&err)?);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(),
        _ => failed(error),
    })?;
    let start = Instant::now();
    let left = DEADLINE
        .get()
        .map(|deadline| deadline.saturating_duration_since(start));
    let limit = left.map_or(limit, |left| limit.min(left / 2));
    let deadline = start + limit;
    let mut pause = PAUSE;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            // It cannot have ended in between without our having waited for it, so this is still
            // our child.
            let _ = child.kill();
            let _ = child.wait();
            return Err(ProgramError::TooSlow { program, limit });
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    };
    Ok(Said {
        status,
        out: whole(&mut out).map_err(failed)?,
        err: whole(&mut err).map_err(failed)?,
    })
}

fn memory(failed: impl Fn(io::Error) -> ProgramError) -> Result<File, ProgramError> {
    crate::sys::memory_file().map_err(failed)
}

fn whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder with a program `nft` of ours in it.
    struct Fake(PathBuf);

    impl Fake {
        fn new(test: &str, script: &str) -> Fake {
            let folder =
                std::env::temp_dir().join(format!("tpo-tool-{}-{test}", std::process::id()));
            std::fs::create_dir(&folder).unwrap();
            let file = folder.join("nft");
            // Written by another process: a program that another test starts at this moment would
            // inherit our descriptor, and a file that is open for writing cannot be executed.
            let mut writer = Command::new("/bin/sh")
                .args(["-c", "cat > \"$0\""])
                .arg(&file)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = writer.stdin.take().unwrap();
            write!(input, "#!/bin/sh\n{script}\n").unwrap();
            drop(input);
            assert!(writer.wait().unwrap().success());
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            Fake(folder)
        }

        fn run(&self, input: &str, limit: Duration) -> Result<Said, ProgramError> {
            run_of("nft", &[&self.0], &["-f", "-"], input, limit)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_said() {
        let fake = Fake::new("hangs", "echo $$ > \"${0%/*}/process\"; exec sleep 1000");
        let start = Instant::now();
        // More than a pipe holds, which nobody reads.
        let error = fake
            .run(&"x".repeat(1 << 20), Duration::from_millis(300))
            .unwrap_err();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(
            error.to_string(),
            "`nft` did not end within 0.3 s and was killed"
        );
        let process = std::fs::read_to_string(fake.0.join("process")).unwrap();
        assert!(
            !Path::new("/proc").join(process.trim()).exists(),
            "it is gone, and not a zombie"
        );
    }

    /// As many calls as a repair of everything makes.
    #[test]
    fn calls_for_one_purpose_hang_no_longer_together_than_one() {
        let fake = Fake::new("hang", "exec sleep 1000");
        let start = Instant::now();
        within(Duration::from_secs(1), || {
            for _ in 0..20 {
                let error = within_limit(|| fake.run("", LIMIT)).unwrap_err();
                assert!(matches!(error, ProgramError::TooSlow { .. }), "{error}");
            }
        });
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        // What comes after it has all of its own time again.
        assert!(DEADLINE.get().is_none());
    }

    #[test]
    fn what_it_says_comes_back_and_it_sees_nothing_of_our_environment() {
        let fake = Fake::new("says", "/usr/bin/env; /bin/cat; echo trouble >&2; exit 3");
        let said = fake.run("the input", LIMIT).unwrap();
        let out = String::from_utf8(said.out).unwrap();
        assert_eq!(said.status.code(), Some(3));
        assert_eq!(String::from_utf8(said.err).unwrap(), "trouble\n");
        assert!(out.ends_with("the input"), "{out}");
        // PATH is set for every test; PWD and such are the shell's own.
        assert!(
            out.contains("LC_ALL=C\n") && !out.contains("CARGO") && !out.contains("HOME="),
            "{out}"
        );
    }

    #[test]
    fn one_that_is_not_there_is_named_with_its_package() {
        let error = run_of("nft", &["/nonexistent"], &[], "", LIMIT).unwrap_err();
        assert!(
            error.to_string().contains("install the package nftables"),
            "{error}"
        );
    }
}
