//! The control socket: a Unix socket on which the daemon tells what it is doing. One request line,
//! one reply line, both JSON.
//!
//! ```text
//! > {"request":"status"}
//! < {"ok":{"name":"paris","peers":[...]}}
//! ```
//!
//! The server has threads of its own, so that a busy or wedged daemon is seen as such rather than
//! making the socket disappear. It can only be asked; nothing can be changed through it. Who may
//! ask is decided by the mode of the file (0660).

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::privilege::Who;
use crate::status::{FlowReport, StatusReport};

/// Clients served at once. Each costs a thread for as long as it takes; people and a monitor never
/// need more.
const CLIENTS: usize = 16;
/// A request is some twenty bytes.
const REQUEST_BYTES: usize = 1_024;
/// How long one client may take in all, for its request and for reading the reply.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a client reads at most: a million flows are about 400 MB.
const REPLY_BYTES: u64 = 512 << 20;

/// What the daemon tells. Asked from the threads of the control socket, so it has to gather quickly
/// and without waiting for the network.
pub trait Facts: Send + Sync {
    /// The whole program at this moment.
    fn status(&self) -> StatusReport;
    /// Every open flow.
    fn flows(&self) -> Vec<FlowReport>;
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    request: Question,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    Status,
    Flows,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply<T> {
    Ok(T),
    Error(String),
}

/// The socket, at which nobody answers yet. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    /// Device and inode of our socket, so that we never remove somebody else's.
    own: (u64, u64),
    listener: Arc<UnixListener>,
}

impl Bound {
    /// Makes the socket, and its folder where that is missing. A socket that a dead daemon left
    /// behind is replaced; one that a program answers at, and a file that is no socket, are errors.
    /// A client that asks before the server runs waits for it.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Bound> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            make(folder).with_context(|| {
                format!(
                    "cannot make the folder of the control socket, {}",
                    folder.display()
                )
            })?;
        }
        refuse_if_taken(path)?;
        let (listener, own) = bind(path)?;
        Ok(Bound {
            path: path.to_owned(),
            own,
            listener: Arc::new(listener),
        })
    }

    /// Makes it this user's. The folder stays whose it is: in one that belongs to a user, what root
    /// does at the next start would be at that user's mercy.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn give(&self, who: &Who) -> anyhow::Result<()> {
        who.own(&self.path)
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.own) {
            // Fails where the folder is not ours; the next start replaces it, and whoever asks in
            // between hears that nobody is there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The running server. Dropping it ends its thread and removes the socket.
#[derive(Debug)]
pub struct Server {
    bound: Bound,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket and begins to answer.
    ///
    /// # Errors
    /// As [`Bound::new`] and [`Server::answer`].
    pub fn start(path: &Path, facts: Arc<dyn Facts>) -> anyhow::Result<Server> {
        Server::answer(Bound::new(path)?, facts)
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn answer(bound: Bound, facts: Arc<dyn Facts>) -> anyhow::Result<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("tpo-control".into()).spawn({
            let (listener, stop) = (bound.listener.clone(), stop.clone());
            move || serve(&listener, &stop, &facts)
        });
        let thread = thread.context("cannot start the thread of the control socket")?;
        Ok(Server {
            bound,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the thread and removes the socket.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept() of the thread, even if the file has been taken away from under us.
        let woken =
            socket2::SockRef::from(&*self.bound.listener).shutdown(std::net::Shutdown::Both);
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Makes a folder that everybody may look into, where there is none.
fn make(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn refuse_if_taken(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            bail!(
                "{} is there and is no socket; it is left alone: remove it, or set control in [tpo]",
                path.display()
            )
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot look at the control socket {}", path.display()));
        }
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "another tpo is running: it answers at {}; end it first, or give this one a control of its own",
            path.display()
        ),
        // Nobody listens: a left-over.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot tell who has the control socket {}", path.display())),
    }
}

/// Makes the socket under another name, gives it its mode, then puts it in place: at no moment can
/// others connect, and a left-over is replaced in one step.
fn bind(path: &Path) -> anyhow::Result<(UnixListener, (u64, u64))> {
    let mut name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?
        .to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    if fs::symlink_metadata(&beside).is_ok_and(|file| file.file_type().is_socket()) {
        let _ = fs::remove_file(&beside);
    }
    let listener = UnixListener::bind(&beside)
        .with_context(|| format!("cannot make the control socket {}", beside.display()))?;
    let placed = fs::set_permissions(&beside, fs::Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| fs::symlink_metadata(path));
    match placed {
        Ok(file) => Ok((listener, (file.dev(), file.ino()))),
        Err(error) => {
            let _ = fs::remove_file(&beside);
            Err(error).with_context(|| {
                format!("cannot put the control socket {} in place", path.display())
            })
        }
    }
}

fn serve(listener: &UnixListener, stop: &AtomicBool, facts: &Arc<dyn Facts>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: do not spin while it lasts.
                tracing::debug!(%error, "control socket");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(&clients);
        let facts = facts.clone();
        let answered = match place {
            Some(place) => thread::Builder::new()
                .name("tpo-control-client".into())
                .spawn(move || {
                    let _place = place;
                    answer(stream, &*facts);
                }),
            None => {
                let _ = refuse(stream, "too many clients at once");
                continue;
            }
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "no thread for a client of the control socket");
        }
    }
}

/// One of the places for clients; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// Only the accepting thread takes places, so looking and taking need not be one step.
    fn take(clients: &Arc<AtomicUsize>) -> Option<Place> {
        if clients.load(Ordering::SeqCst) >= CLIENTS {
            return None;
        }
        clients.fetch_add(1, Ordering::SeqCst);
        Some(Place(clients.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(mut stream: UnixStream, facts: &dyn Facts) {
    let deadline = Instant::now() + PATIENCE;
    let question = match read_line(&mut stream, deadline) {
        Ok(line) => serde_json::from_slice::<Request>(&line),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            let _ = refuse(stream, "a request is one line of at most 1024 bytes");
            return;
        }
        // It went away or said nothing in time.
        Err(_) => return,
    };
    let written = match question {
        Ok(Request {
            request: Question::Status,
        }) => send(&mut stream, &Reply::Ok(facts.status()), deadline),
        Ok(Request {
            request: Question::Flows,
        }) => send(&mut stream, &Reply::Ok(facts.flows()), deadline),
        Err(error) => refuse(stream, &format!("not a request: {error}")),
    };
    if let Err(error) = written {
        tracing::trace!(%error, "a client of the control socket did not take its reply");
    }
}

/// One line, without its end. `InvalidData` when it is too long.
fn read_line(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; REQUEST_BYTES];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let read = match stream.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&chunk[..read]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > REQUEST_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

fn refuse(mut stream: UnixStream, why: &str) -> io::Result<()> {
    // What was said and is not read would turn the reply into a reset at the other end.
    stream.set_nonblocking(true)?;
    let _ = stream.read(&mut [0; REQUEST_BYTES]);
    stream.set_nonblocking(false)?;
    send(
        &mut stream,
        &Reply::<()>::Error(why.into()),
        Instant::now() + Duration::from_millis(200),
    )
}

fn send<T: Serialize>(
    stream: &mut UnixStream,
    reply: &Reply<T>,
    deadline: Instant,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut rest = &line[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time that is left, never zero: zero would mean to wait without end.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Why the daemon could not be asked.
#[derive(Debug)]
pub(crate) enum AskError {
    /// Nobody listens at the control socket.
    NotRunning {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The socket is not for us.
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// It listens, but did not reply in time.
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It replied that it would not, or what it said made no sense.
    Refused(String),
}

impl std::error::Error for AskError {}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::NotRunning { path } => write!(
                f,
                "no tpo is running: nobody answers at {} (the control of [tpo]); start it with `tpo run` or `systemctl start tpo`",
                path.display()
            ),
            AskError::NotAllowed { path } => {
                write!(
                    f,
                    "{} may not be used by this user; ask as root or as a member of its group",
                    path.display()
                )
            }
            AskError::Silent { path } => {
                write!(
                    f,
                    "tpo is there but has not replied at {} in time: it is stopped, or far too busy",
                    path.display()
                )
            }
            AskError::Refused(why) => write!(f, "tpo replied: {why}"),
        }
    }
}

/// Asks the daemon for its status.
pub(crate) fn status(path: &Path) -> Result<StatusReport, AskError> {
    ask(path, Question::Status)
}

/// Asks the daemon for its flows.
pub(crate) fn flows(path: &Path) -> Result<Vec<FlowReport>, AskError> {
    ask(path, Question::Flows)
}

fn ask<T: DeserializeOwned>(path: &Path, question: Question) -> Result<T, AskError> {
    let failed = |error: io::Error| {
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NotRunning { path },
            ErrorKind::PermissionDenied => AskError::NotAllowed { path },
            ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent { path },
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => AskError::Refused(
                "nothing; it has too many clients at the moment, or it has just ended".into(),
            ),
            _ => AskError::Refused(error.to_string()),
        }
    };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    // The reply may take as long as the server allows itself, and a little for the way.
    stream
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(1)))
        .map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_vec(&Request { request: question })
        .map_err(|error| AskError::Refused(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut reply = Vec::new();
    stream
        .take(REPLY_BYTES)
        .read_to_end(&mut reply)
        .map_err(failed)?;
    match serde_json::from_slice(&reply) {
        Ok(Reply::Ok(facts)) => Ok(facts),
        Ok(Reply::Error(why)) => Err(AskError::Refused(why)),
        Err(_) if reply.is_empty() => {
            Err(AskError::Refused("nothing; it may just have ended".into()))
        }
        Err(error) => Err(AskError::Refused(format!(
            "something that this tpo does not understand ({error})"
        ))),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
