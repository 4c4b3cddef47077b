//! The pair under test: the lab, two daemons with mirrored configurations, and how to look into
//! them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tpo_lab::{Host, Lab, Profile, Scratch, Wan};

use crate::turn::Turn;

/// How many stages this process has made: each has names of its own.
pub(crate) static NUMBER: AtomicU32 = AtomicU32::new(0);

/// How long anything may take that should take a moment.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const V4: &str = "10.10.2.2";
pub(crate) const V6: &str = "fd10:2::2";

/// What differs between tests.
pub(crate) struct Options {
    pub(crate) wan: &'static str,
    /// More lines for `[tpo]` of both.
    pub(crate) tpo: &'static str,
    /// More lines for `[intercept]` of both.
    pub(crate) intercept: &'static str,
    /// More lines for the `[[peer]]` of both.
    pub(crate) peer: &'static str,
    /// More lines for each `[[rule]]` of A.
    pub(crate) rule: &'static str,
    /// More lines for each `[[accept]]` of B.
    pub(crate) accept: &'static str,
    /// Where A finds B and B finds A; an empty one waits to be called.
    pub(crate) endpoints: [&'static str; 2],
    /// More sections for A and for B.
    pub(crate) sections: [&'static str; 2],
    /// Descriptors that the daemons of A and B may have; none: as many as we.
    pub(crate) files: [Option<u32>; 2],
    /// Run before the daemons start, in the namespaces of A and B.
    pub(crate) prepare: &'static [&'static [&'static str]],
}

impl Default for Options {
    fn default() -> Options {
        Options {
            wan: "rate=200mbit delay=20ms",
            tpo: "",
            intercept: "",
            peer: "",
            rule: "",
            accept: "",
            endpoints: ["10.9.0.2:47800", "10.9.0.1:47800"],
            sections: ["", ""],
            files: [None; 2],
            prepare: &[],
        }
    }
}

pub(crate) struct Pair {
    pub(crate) lab: Lab,
    daemons: [Option<Child>; 2],
    folder: Scratch,
    files: [Option<u32>; 2],
    _turn: Turn,
}

impl Pair {
    /// Up and connected.
    pub(crate) fn start(options: &Options) -> Pair {
        let mut pair = Pair::new(options);
        pair.run(Host::A);
        pair.run(Host::B);
        pair.wait_up();
        pair
    }

    /// The lab and the files; no daemon yet.
    pub(crate) fn new(options: &Options) -> Pair {
        let turn = Turn::take();
        let name = format!(
            "tp{}x{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let folder = Scratch::new(&name).unwrap();
        let profile: Profile = options.wan.parse().unwrap();
        let lab = Lab::up(
            &name,
            Wan::Emulated {
                a_to_b: profile.clone(),
                b_to_a: profile,
            },
        )
        .expect("make the lab (needs root and ip)");
        for host in [Host::A, Host::B] {
            for command in options.prepare {
                let status = lab
                    .command(host, command[0])
                    .args(&command[1..])
                    .status()
                    .unwrap();
                assert!(status.success(), "{command:?}");
            }
        }
        let key = |site: &str| {
            let output = tpo()
                .args(["keygen", "--out"])
                .arg(folder.join(format!("{site}.key")))
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let (key_a, key_b) = (key("a"), key("b"));
        for (site, peer, peer_key, endpoint, here, there) in [
            (
                "a",
                "b",
                &key_b,
                options.endpoints[0],
                ["10.10.1.0/24", "fd10:1::/64"],
                ["10.10.2.0/24", "fd10:2::/64"],
            ),
            (
                "b",
                "a",
                &key_a,
                options.endpoints[1],
                ["10.10.2.0/24", "fd10:2::/64"],
                ["10.10.1.0/24", "fd10:1::/64"],
            ),
        ] {
            let mut text = format!(
                "[tpo]\nname = \"{site}\"\nprivate_key_file = \"{site}.key\"\ncontrol = \"{site}.sock\"\n{}\n\n[intercept]\n{}\n\n\
                 [[peer]]\nname = \"{peer}\"\npublic_key = \"{peer_key}\"\n{}\n",
                options.tpo, options.intercept, options.peer
            );
            if !endpoint.is_empty() {
                let _ = writeln!(text, "endpoint = \"{endpoint}\"");
            }
            for (here, there) in here.iter().zip(there) {
                let (rule, accept) = if site == "a" {
                    (options.rule, "")
                } else {
                    ("", options.accept)
                };
                // The TPOs' own WAN addresses too: applications on the TPO's host come from there.
                let own = if here.contains(':') {
                    "fd10:9::/64"
                } else {
                    "10.9.0.0/24"
                };
                for source in [here, &own] {
                    let _ = write!(
                        text,
                        "\n[[rule]]\nprotocol = \"tcp\"\nsource = \"{source}\"\ndestination = \"{there}\"\npeer = \"{peer}\"\n{rule}\n"
                    );
                }
                // From whom: those to whom our rules send, where nothing is said.
                for from in [String::new(), format!("source = \"{own}\"\n")] {
                    let _ = write!(
                        text,
                        "\n[[accept]]\npeer = \"{peer}\"\n{from}destination = \"{here}\"\n{accept}\n"
                    );
                }
            }
            text.push_str(options.sections[usize::from(site == "b")]);
            std::fs::write(folder.join(format!("{site}.toml")), text).unwrap();
        }
        Pair {
            lab,
            daemons: [None, None],
            files: options.files,
            folder,
            _turn: turn,
        }
    }

    /// Starts one daemon.
    pub(crate) fn run(&mut self, host: Host) {
        self.run_with(host, &[]);
    }

    /// The same, with this in its environment.
    pub(crate) fn run_with(&mut self, host: Host, environment: &[(&str, &OsStr)]) {
        let config = self.config(host);
        let run = ["run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let Some(files) = self.files[index(host)] else {
            return self.run_by(host, env!("CARGO_BIN_EXE_tpo"), &run, environment);
        };
        let limit = format!("--nofile={files}:{files}");
        let before = [OsStr::new(&limit), env!("CARGO_BIN_EXE_tpo").as_ref()];
        self.run_by(
            host,
            "prlimit",
            &[&before[..], &run[..]].concat(),
            environment,
        );
    }

    /// Starts one daemon by a program that becomes it.
    pub(crate) fn run_by(
        &mut self,
        host: Host,
        program: &str,
        arguments: &[&OsStr],
        environment: &[(&str, &OsStr)],
    ) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.log", site(host))))
            .unwrap();
        let mut command = self.lab.command(host, program);
        command
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log);
        self.daemons[index(host)] = Some(command.spawn().unwrap());
    }

    pub(crate) fn config(&self, host: Host) -> PathBuf {
        self.folder.join(format!("{}.toml", site(host)))
    }

    /// The daemon's process.
    pub(crate) fn process(&self, host: Host) -> u32 {
        self.daemons[index(host)]
            .as_ref()
            .expect("the daemon was started")
            .id()
    }

    pub(crate) fn signal(&self, host: Host, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process(host).to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// SIGKILL, and gone.
    pub(crate) fn kill(&mut self, host: Host) {
        let mut child = self.daemons[index(host)]
            .take()
            .expect("the daemon was started");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and a clean end.
    pub(crate) fn end(&mut self, host: Host) {
        self.signal(host, "-TERM");
        let mut child = self.daemons[index(host)]
            .take()
            .expect("the daemon was started");
        let status = child.wait().unwrap();
        assert!(
            status.success(),
            "tpo run ended with {status}\n{}",
            self.logs()
        );
    }

    pub(crate) fn wait_up_at(&self, host: Host) {
        let output = tpo()
            .args(["status", "--wait-up", "15", "--config"])
            .arg(self.config(host))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "not up: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
    }

    pub(crate) fn wait_up(&self) {
        [Host::A, Host::B]
            .into_iter()
            .for_each(|host| self.wait_up_at(host));
        // Up is what the lane says; the lease follows within the gate's next turn.
        wait_for("the leases", || {
            [Host::A, Host::B]
                .iter()
                .all(|&host| self.status(host)["intercept"]["leases"][0]["held"] == true)
        });
    }

    /// Whether the daemon runs so far that it answers: its sockets are there.
    pub(crate) fn answers(&self, host: Host) -> bool {
        tpo()
            .args(["status", "--json", "--config"])
            .arg(self.config(host))
            .output()
            .unwrap()
            .stdout
            .starts_with(b"{")
    }

    pub(crate) fn status(&self, host: Host) -> Value {
        self.ask(host, "status")
    }

    pub(crate) fn flows(&self, host: Host) -> Vec<Value> {
        self.ask(host, "flows")
            .as_array()
            .cloned()
            .expect("a list of flows")
    }

    fn ask(&self, host: Host, what: &str) -> Value {
        let output = tpo()
            .args([what, "--json", "--config"])
            .arg(self.config(host))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "tpo {what}: {error}: {}\n{}",
                String::from_utf8_lossy(&output.stderr),
                self.logs()
            )
        })
    }

    pub(crate) fn logs(&self) -> String {
        ["a", "b"]
            .iter()
            .map(|site| {
                format!(
                    "--- log of {site}\n{}",
                    std::fs::read_to_string(self.folder.join(format!("{site}.log")))
                        .unwrap_or_default()
                )
            })
            .collect()
    }

    /// A listener on the server.
    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        self.listen_at(Host::Server, address)
    }

    pub(crate) fn listen_at(&self, host: Host, address: &str) -> TcpListener {
        let address = SocketAddr::new(address.parse().unwrap(), 0);
        self.lab
            .inside(host, || TcpListener::bind(address).unwrap())
    }

    /// A connection of the client.
    pub(crate) fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to)
            .unwrap_or_else(|error| panic!("connect to {to}: {error}\n{}", self.logs()))
    }

    pub(crate) fn try_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.try_connect_at(Host::Client, to)
    }

    pub(crate) fn try_connect_at(&self, host: Host, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self
            .lab
            .inside(host, || TcpStream::connect_timeout(&to, SOON))?;
        stream.set_read_timeout(Some(3 * SOON))?;
        stream.set_write_timeout(Some(3 * SOON))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Both ends of a fresh connection, client's first.
    pub(crate) fn joined(&self, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.connect(listener.local_addr().unwrap());
        let (server, _) = accept(listener);
        (client, server)
    }

    /// Whether a new connection goes through the TPOs: then it is answered at once, otherwise after
    /// a whole round trip.
    pub(crate) fn is_accelerated(&self, to: SocketAddr) -> bool {
        let start = Instant::now();
        drop(self.connect(to));
        start.elapsed() < Duration::from_millis(32)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let logs = if std::thread::panicking() {
            self.logs()
        } else {
            String::new()
        };
        take_down(&mut self.daemons, &logs);
    }
}

/// Ends the daemons, before their files go; a test that failed brings its logs, to be shown first.
pub(crate) fn take_down(daemons: &mut [Option<Child>], logs: &str) {
    eprint!("{logs}");
    for child in daemons.iter_mut().flatten() {
        // A stopped one ends by SIGKILL too; one that is gone needs nothing.
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(crate) fn tpo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tpo"))
}

fn index(host: Host) -> usize {
    match host {
        Host::A => 0,
        Host::B => 1,
        Host::Client | Host::Server => unreachable!("no daemon runs there"),
    }
}

fn site(host: Host) -> &'static str {
    ["a", "b"][index(host)]
}

/// The next connection, with a limit.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(3 * SOON)).unwrap();
                stream.set_write_timeout(Some(3 * SOON)).unwrap();
                stream.set_nodelay(true).unwrap();
                return (stream, from);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(
                    start.elapsed() < SOON,
                    "no connection arrived at the server"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

pub(crate) fn wait_for(what: &str, mut true_soon: impl FnMut() -> bool) {
    let start = Instant::now();
    while !true_soon() {
        assert!(start.elapsed() < SOON, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that both ends can make: the stream of one number.
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Pattern {
        Pattern(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

const CHUNK: usize = 1 << 16;

/// Writes the stream of `seed`.
pub(crate) fn send_pattern(mut to: &TcpStream, seed: u64, bytes: usize) {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK);
        pattern.fill(&mut chunk[..n]);
        to.write_all(&chunk[..n])
            .unwrap_or_else(|error| panic!("write after {} bytes: {error}", bytes - left));
        left -= n;
    }
}

/// Reads and compares the stream of `seed`.
pub(crate) fn expect_pattern(mut from: &TcpStream, seed: u64, bytes: usize) {
    let mut pattern = Pattern::new(seed);
    let (mut chunk, mut want) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK);
        from.read_exact(&mut chunk[..n])
            .unwrap_or_else(|error| panic!("read after {} bytes: {error}", bytes - left));
        pattern.fill(&mut want[..n]);
        assert!(
            chunk[..n] == want[..n],
            "bytes differ after {}",
            bytes - left
        );
        left -= n;
    }
}

/// One stream from `from` to `to`, read while it is written.
pub(crate) fn exchange(from: &TcpStream, to: &TcpStream, seed: u64, bytes: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| send_pattern(from, seed, bytes));
        expect_pattern(to, seed, bytes);
    });
}

/// The end of the stream, in order.
pub(crate) fn expect_end(mut from: &TcpStream) {
    let mut byte = [0];
    match from.read(&mut byte) {
        Ok(0) => {}
        other => panic!("expected the end of the stream, got {other:?}"),
    }
}

/// A reset, not an orderly end.
pub(crate) fn expect_reset(mut from: &TcpStream) {
    let mut bytes = [0; 1024];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => panic!("expected a reset, got an orderly end"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("expected a reset, got {error}"),
        }
    }
}

/// Ends a connection with a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
