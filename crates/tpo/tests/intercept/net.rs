//! Three namespaces, a server that says whom it sees, a daemon that says what it intercepted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tpo::intercept::error::InstallError;
use tpo::intercept::install::{Installed, install};
use tpo::intercept::lease::{Count, KnownSources, Lease, RENEW_EVERY};
use tpo::intercept::names::Standing;
use tpo::intercept::tcp::Listeners;
use tpo::intercept::tcp::Ports;
use tpo::intercept::tun::Tun;
use tpo::table::peers::PeerId;
use tpo::table::{OnFailure, RuleSpec, Table};
use tpo_engine::CarriersId;

/// The server's ports.
pub(crate) const PORT: u16 = 8080;
pub(crate) const PORT_OTHER: u16 = 8081;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) client: IpAddr,
    pub(crate) tpo_lan: IpAddr,
    pub(crate) tpo_wan: IpAddr,
    pub(crate) server: IpAddr,
}

pub(crate) const V4: Addresses = Addresses {
    client: IpAddr::V4(Ipv4Addr::new(10, 71, 1, 2)),
    tpo_lan: IpAddr::V4(Ipv4Addr::new(10, 71, 1, 1)),
    tpo_wan: IpAddr::V4(Ipv4Addr::new(10, 71, 2, 1)),
    server: IpAddr::V4(Ipv4Addr::new(10, 71, 2, 2)),
};

pub(crate) const V6: Addresses = Addresses {
    client: IpAddr::V6(Ipv6Addr::new(0xfd71, 1, 0, 0, 0, 0, 0, 2)),
    tpo_lan: IpAddr::V6(Ipv6Addr::new(0xfd71, 1, 0, 0, 0, 0, 0, 1)),
    tpo_wan: IpAddr::V6(Ipv6Addr::new(0xfd71, 2, 0, 0, 0, 0, 0, 1)),
    server: IpAddr::V6(Ipv6Addr::new(0xfd71, 2, 0, 0, 0, 0, 0, 2)),
};

impl Addresses {
    pub(crate) fn server_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server, port)
    }
}

pub(crate) fn both() -> [Addresses; 2] {
    [V4, V6]
}

/// From anywhere to the server's network, at one port, failing open.
pub(crate) fn rule(addresses: Addresses, port: u16, peer: usize) -> RuleSpec {
    RuleSpec {
        protocol: 6,
        source: (addresses.client, 0),
        source_ports: 0..=u16::MAX,
        destination: (
            addresses.server,
            if addresses.server.is_ipv4() { 24 } else { 64 },
        ),
        destination_ports: port..=port,
        carriers: CarriersId::new(peer),
        on_failure: OnFailure::Open,
        enabled: true,
    }
}

/// The same for both families, for peer 0.
pub(crate) fn rules_for(port: u16, on_failure: OnFailure) -> Vec<RuleSpec> {
    both()
        .into_iter()
        .map(|a| RuleSpec {
            on_failure,
            ..rule(a, port, 0)
        })
        .collect()
}

pub(crate) fn table(rules: Vec<RuleSpec>, peers: usize) -> Table {
    Table::of_rules(rules, peers)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Client,
    Tpo,
    Server,
}

/// The namespaces, and servers in the server's and the TPO's.
pub(crate) struct Net {
    prefix: String,
    servers: Vec<(TcpListener, JoinHandle<()>)>,
}

impl Net {
    pub(crate) fn up() -> Net {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("tpo-i{}-{number}", std::process::id());
        let mut net = Net {
            prefix,
            servers: Vec::new(),
        };
        let [c, t, s] = [Place::Client, Place::Tpo, Place::Server].map(|place| net.name(place));
        run(
            Command::new("ip").args(["-batch", "-"]),
            &format!("netns add {c}\nnetns add {t}\nnetns add {s}\n"),
        );
        for place in [Place::Client, Place::Tpo, Place::Server] {
            // Addresses are of use at once, without waiting for others who might have them.
            for which in ["all", "default"] {
                net.sysctl(place, &format!("net.ipv6.conf.{which}.accept_dad"), "0");
            }
        }
        net.ip(
            Place::Tpo,
            &format!("link add lan0 type veth peer name eth0 netns {c}"),
        );
        net.ip(
            Place::Tpo,
            &format!("link add srv0 type veth peer name eth0 netns {s}"),
        );
        net.ip(
            Place::Client,
            "link set lo up\nlink set eth0 up\naddr add 10.71.1.2/24 dev eth0\naddr add fd71:1::2/64 dev eth0
             route add default via 10.71.1.1\nroute add default via fd71:1::1",
        );
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ] {
            net.sysctl(Place::Tpo, key, value);
        }
        net.ip(
            Place::Tpo,
            "link set lo up\nlink set lan0 up\nlink set srv0 up\naddr add 10.71.1.1/24 dev lan0\naddr add fd71:1::1/64 dev lan0
             addr add 10.71.2.1/24 dev srv0\naddr add fd71:2::1/64 dev srv0",
        );
        net.ip(
            Place::Server,
            "link set lo up\nlink set eth0 up\naddr add 10.71.2.2/24 dev eth0\naddr add fd71:2::2/64 dev eth0
             route add default via 10.71.2.1\nroute add default via fd71:2::1",
        );
        for place in [Place::Server, Place::Tpo] {
            for port in [PORT, PORT_OTHER] {
                let server = net.serve(place, port);
                net.servers.push(server);
            }
        }
        net
    }

    fn name(&self, place: Place) -> String {
        let letter = match place {
            Place::Client => "c",
            Place::Tpo => "t",
            Place::Server => "s",
        };
        format!("{}{letter}", self.prefix)
    }

    /// Runs `f` on a thread of its own in that namespace.
    pub(crate) fn inside<T: Send>(&self, place: Place, f: impl FnOnce() -> T + Send) -> T {
        let name = self.name(place);
        let enter = || {
            set_namespace(&name);
            f()
        };
        std::thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    pub(crate) fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name(place)])
            .arg(program);
        command
    }

    pub(crate) fn ip(&self, place: Place, lines: &str) {
        run(
            Command::new("ip").args(["-n", &self.name(place), "-batch", "-"]),
            lines,
        );
    }

    /// For a line of IPv6, which a batch has no word for.
    pub(crate) fn ip6(&self, place: Place, line: &str) {
        run(
            Command::new("ip").args(["-6", "-n", &self.name(place), "-batch", "-"]),
            line,
        );
    }

    pub(crate) fn nft(&self, place: Place, rules: &str) {
        run(self.command(place, "nft").args(["-f", "-"]), rules);
    }

    pub(crate) fn sysctl(&self, place: Place, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(place, || std::fs::write(&path, value))
            .unwrap_or_else(|e| panic!("{key}: {e}"));
    }

    /// Everything that interception could have changed.
    pub(crate) fn state(&self, place: Place) -> String {
        let name = self.name(place);
        let mut all = run(self.command(place, "nft").args(["list", "ruleset"]), "");
        for arguments in [
            ["-4", "rule"],
            ["-6", "rule"],
            ["-4", "route"],
            ["-6", "route"],
        ] {
            let mut command = Command::new("ip");
            command.args(["-n", &name]).args(arguments).args(["list"]);
            if arguments[1] == "route" {
                command.args(["table", "all"]);
            }
            all += &run(&mut command, "");
        }
        all
    }

    pub(crate) fn connect(
        &self,
        place: Place,
        to: SocketAddr,
    ) -> Result<BufReader<TcpStream>, ErrorKind> {
        let stream = self.inside(place, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(5))
        });
        let stream = stream.map_err(|error| error.kind())?;
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut stream = BufReader::new(stream);
        stream
            .read_line(&mut String::new())
            .map_err(|error| error.kind())?;
        Ok(stream)
    }

    /// The time of a connect from the client: the tenth percentile, least disturbed by what else
    /// the machine does.
    pub(crate) fn connect_time(&self, to: SocketAddr) -> Duration {
        self.inside(Place::Client, || {
            let one = || {
                let start = Instant::now();
                let stream = TcpStream::connect(to).unwrap();
                let time = start.elapsed();
                first_line(&stream);
                time
            };
            let mut times: Vec<Duration> = (0..500).map(|_| one()).collect();
            times.sort();
            times[times.len() / 10]
        })
    }

    /// Says whom it sees, then repeats each line, until "bye" or the end.
    fn serve(&self, place: Place, port: u16) -> (TcpListener, JoinHandle<()>) {
        let listener = self.inside(place, || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()
        });
        let shared = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let peer = stream.peer_addr()?;
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    let mut writer = stream.try_clone()?;
                    writer.write_all(format!("server {peer}\n").as_bytes())?;
                    for line in BufReader::new(stream).lines() {
                        match line?.as_str() {
                            "bye" => break,
                            text => writer.write_all(format!("{text}\n").as_bytes())?,
                        }
                    }
                    Ok::<(), std::io::Error>(())
                });
            }
        });
        (shared, thread)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for (listener, thread) in self.servers.drain(..) {
            let _ = socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both);
            let _ = thread.join();
        }
        for place in [Place::Client, Place::Tpo, Place::Server] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(place)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The interceptor: listens, accepts, and tells each client what it knows of the connection.
pub(crate) struct Daemon<'a> {
    net: &'a Net,
    ports: Ports,
    lease: Arc<Mutex<(Lease, BTreeSet<usize>)>>,
    keeper: Option<(Sender<()>, JoinHandle<()>)>,
    installed: Mutex<Option<Installed>>,
    table: Table,
    stop: Arc<AtomicBool>,
    not_intercepted: Arc<AtomicU32>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<'a> Daemon<'a> {
    pub(crate) fn start(net: &'a Net, table: Table) -> Daemon<'a> {
        let (listeners, installed, lease, known) = net.inside(Place::Tpo, || {
            let listeners = Listeners::open(table.mode).unwrap();
            let installed = install(&table, listeners.ports()).unwrap_or_else(|e| panic!("{e}"));
            (
                listeners,
                installed,
                Lease::open().unwrap(),
                KnownSources::open().unwrap(),
            )
        });
        let ports = listeners.ports();
        let (stop, not_intercepted) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let (s, n) = (stop.clone(), not_intercepted.clone());
        let thread = Mutex::new(Some(std::thread::spawn(move || {
            accept(listeners, known, &s, &n)
        })));
        let lease = Arc::new(Mutex::new((lease, BTreeSet::new())));
        let (end, ended) = channel();
        let kept = lease.clone();
        let keeper = std::thread::spawn(move || {
            while ended.recv_timeout(RENEW_EVERY) == Err(RecvTimeoutError::Timeout) {
                let (lease, peers) = &mut *kept.lock().unwrap();
                peers
                    .iter()
                    .for_each(|peer| lease.renew(PeerId::new(*peer)).unwrap());
            }
        });
        let (keeper, installed) = (Some((end, keeper)), Mutex::new(Some(installed)));
        Daemon {
            net,
            ports,
            lease,
            keeper,
            installed,
            table,
            stop,
            not_intercepted,
            thread,
        }
    }

    /// Renews the peer's lease now and from now on.
    pub(crate) fn keep(&self, peer: usize) {
        let (lease, peers) = &mut *self.lease.lock().unwrap();
        lease.renew(PeerId::new(peer)).unwrap();
        peers.insert(peer);
    }

    /// Renews the peer's lease for the last time.
    pub(crate) fn renew_last(&self, peer: usize) {
        let (lease, peers) = &mut *self.lease.lock().unwrap();
        lease.renew(PeerId::new(peer)).unwrap();
        peers.remove(&peer);
    }

    pub(crate) fn drop_lease(&self, peer: usize) {
        let (lease, peers) = &mut *self.lease.lock().unwrap();
        lease.drop_lease(PeerId::new(peer)).unwrap();
        peers.remove(&peer);
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.installed
            .lock()
            .unwrap()
            .as_mut()
            .unwrap()
            .is_whole()
            .unwrap()
    }

    pub(crate) fn repair(&self) -> Result<(), InstallError> {
        let mut installed = self.installed.lock().unwrap();
        let installed = installed.as_mut().unwrap();
        self.net
            .inside(Place::Tpo, || installed.repair(&self.table, self.ports))
    }

    /// The device for packets of what is no TCP.
    pub(crate) fn tun(&self) -> Arc<Tun> {
        self.installed
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .tun()
            .expect("the table carries packets")
    }

    pub(crate) fn counters(&self) -> BTreeMap<&'static str, Count> {
        self.lease.lock().unwrap().0.counters().unwrap()
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    pub(crate) fn not_intercepted(&self) -> u32 {
        self.not_intercepted.load(Ordering::SeqCst)
    }

    /// As if the daemon had died: its sockets are gone, rules and leases are not.
    pub(crate) fn stop_listening(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.stop_listening();
        let (end, keeper) = self.keeper.take().unwrap();
        drop(end);
        let kept = keeper.join();
        let installed = self.installed.lock().unwrap().take();
        self.net.inside(Place::Tpo, || drop(installed));
        assert!(kept.is_ok() || std::thread::panicking(), "a renewal failed");
    }
}

fn accept(
    mut listeners: Listeners,
    mut known: KnownSources,
    stop: &AtomicBool,
    not_intercepted: &AtomicU32,
) {
    let mut poll = mio::Poll::new().unwrap();
    listeners.register(poll.registry(), 0).unwrap();
    let mut events = mio::Events::with_capacity(8);
    // Connections are kept until the end, so that a client never sees one end before it has read
    // its line.
    let mut kept = Vec::new();
    let mut sources = BTreeSet::new();
    while !stop.load(Ordering::SeqCst) {
        poll.poll(&mut events, Some(Duration::from_millis(20)))
            .unwrap();
        for listener in listeners.iter_mut() {
            loop {
                let mut accepted = Vec::new();
                let batch = listener.accept_batch(4, &mut accepted).unwrap();
                not_intercepted.fetch_add(batch.not_intercepted, Ordering::SeqCst);
                for one in accepted {
                    // Best effort, as the gate does it: a test may just have taken the table away.
                    if sources.insert(one.client.ip()) {
                        let _ = known.add(
                            Standing::Known,
                            &[one.client.ip()],
                            Duration::from_secs(600),
                        );
                    }
                    let line = format!("tpo {} {}\n", one.client, one.destination);
                    (&one.stream).write_all(line.as_bytes()).unwrap();
                    kept.push(one);
                }
                if batch.drained {
                    break;
                }
            }
        }
    }
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Tpo {
        client: SocketAddr,
        destination: SocketAddr,
    },
    Server {
        client: SocketAddr,
    },
    Refused,
    Reset,
    Silence,
}

/// Connects, and reads who answers. Also the client's own address, once connected.
pub(crate) fn ask(net: &Net, place: Place, to: SocketAddr) -> (Answer, Option<SocketAddr>) {
    let connected = net.inside(place, || {
        TcpStream::connect_timeout(&to, Duration::from_secs(5))
    });
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => return (failure(error.kind()), None),
    };
    let own = stream.local_addr().ok();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut line = String::new();
    if let Err(error) = BufReader::new(&stream).read_line(&mut line) {
        return (failure(error.kind()), own);
    }
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let answer = match words[..] {
        ["tpo", client, destination] => Answer::Tpo {
            client: address(client),
            destination: address(destination),
        },
        ["server", client] => Answer::Server {
            client: address(client),
        },
        _ => panic!("{to} said {line:?}"),
    };
    (answer, own)
}

fn failure(kind: ErrorKind) -> Answer {
    match kind {
        ErrorKind::ConnectionRefused => Answer::Refused,
        ErrorKind::ConnectionReset => Answer::Reset,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Answer::Silence,
        other => panic!("{other}"),
    }
}

pub(crate) fn first_line(stream: &TcpStream) -> String {
    let mut line = String::new();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// Waits until a non-blocking connect has come to its end.
pub(crate) fn finish(stream: std::io::Result<TcpStream>) -> std::io::Result<TcpStream> {
    let stream = stream?;
    let mut poll = mio::Poll::new()?;
    let mut watched = mio::net::TcpStream::from_std(stream);
    poll.registry()
        .register(&mut watched, mio::Token(0), mio::Interest::WRITABLE)?;
    let mut events = mio::Events::with_capacity(1);
    poll.poll(&mut events, Some(Duration::from_secs(5)))?;
    if let Some(error) = watched.take_error()? {
        return Err(error);
    }
    poll.registry().deregister(&mut watched)?;
    watched.peer_addr()?;
    let stream = TcpStream::from(watched);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// How a read of that stream fails.
pub(crate) fn read_kind(mut stream: &TcpStream) -> Option<ErrorKind> {
    use std::io::Read;
    stream.read(&mut [0]).err().map(|error| error.kind())
}

/// The same seed gives the same rules for ever.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn run(command: &mut Command, input: &str) -> String {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; these tests need `ip` and `nft`"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {said}; these tests need root (CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Moves this thread into the namespace.
fn set_namespace(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    // SAFETY: the descriptor is open; only this thread's namespace changes.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}

/// CPU time of this thread so far.
pub(crate) fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Few enough descriptors that a test can use them up.
pub(crate) fn lower_descriptor_limit() {
    let limit = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    // SAFETY: `limit` is initialised.
    assert_eq!(
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) },
        0
    );
}
