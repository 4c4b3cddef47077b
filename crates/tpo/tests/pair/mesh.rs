//! Several sites, each with a TPO: a mesh of pairs, with one link cut.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tpo_lab::{Place, Profile, Scratch, Sites, ping, wan_address};

use crate::site::{NUMBER, take_down, tpo, wait_for};
use crate::turn::Turn;

/// A TPO at every site's gateway.
pub(crate) struct Mesh {
    pub(crate) sites: Sites,
    daemons: Vec<Option<Child>>,
    folder: Scratch,
    files: Option<(usize, u32)>,
    _turn: Turn,
}

/// Who is a peer of whom, and what each has beside its peers.
pub(crate) struct Plan<'a> {
    pub(crate) link: &'a str,
    pub(crate) sites: usize,
    /// Whether these two are peers.
    pub(crate) joined: fn(usize, usize) -> bool,
    /// More lines for the section of a peer: at which site, of which peer.
    pub(crate) peer: fn(usize, usize) -> String,
    /// Whether the endpoint of the peer (second) is known at the site (first).
    pub(crate) calls: fn(usize, usize) -> bool,
    /// The sections behind `[tpo]` and the peers.
    pub(crate) sections: fn(usize) -> String,
}

impl Mesh {
    /// All daemons run; none is waited for.
    pub(crate) fn start(plan: &Plan<'_>) -> Mesh {
        Mesh::start_with(plan, None)
    }

    /// The same; `files` names a site and how many descriptors its daemon may have.
    pub(crate) fn start_with(plan: &Plan<'_>, files: Option<(usize, u32)>) -> Mesh {
        let turn = Turn::take();
        let name = format!(
            "tm{}x{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let folder = Scratch::new(&name).unwrap();
        let link: Profile = plan.link.parse().unwrap();
        let sites =
            Sites::up(&name, &vec![link; plan.sites]).expect("make the lab (needs root and ip)");
        let all = 1..=plan.sites;
        let keys: Vec<String> = all
            .clone()
            .map(|site| {
                let file = folder.join(format!("{site}.key"));
                let output = tpo().args(["keygen", "--out"]).arg(file).output().unwrap();
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                String::from_utf8(output.stdout).unwrap().trim().to_owned()
            })
            .collect();
        for site in all.clone() {
            let mut text = format!(
                "[tpo]\nname = \"s{site}\"\nprivate_key_file = \"{site}.key\"\ncontrol = \"{site}.sock\"\nlisten = \"0.0.0.0:47800\"\n\n"
            );
            for peer in all
                .clone()
                .filter(|peer| *peer != site && (plan.joined)(site, *peer))
            {
                let _ = write!(
                    text,
                    "[[peer]]\nname = \"s{peer}\"\npublic_key = \"{}\"\n",
                    keys[peer - 1]
                );
                if (plan.calls)(site, peer) {
                    let _ = writeln!(text, "endpoint = \"{}:47800\"", wan_address(peer));
                }
                let _ = writeln!(text, "{}\n", (plan.peer)(site, peer));
            }
            text.push_str(&(plan.sections)(site));
            std::fs::write(folder.join(format!("{site}.toml")), text).unwrap();
        }
        let daemons = all.clone().map(|_| None).collect();
        let mut mesh = Mesh {
            sites,
            daemons,
            files,
            folder,
            _turn: turn,
        };
        all.for_each(|site| mesh.run(site));
        mesh
    }

    pub(crate) fn run(&mut self, site: usize) {
        let log = self.folder.join(format!("{site}.log"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut command = match self.files.filter(|(of, _)| *of == site) {
            None => self
                .sites
                .command(Place::Gateway(site), env!("CARGO_BIN_EXE_tpo")),
            Some((_, files)) => {
                let mut command = self.sites.command(Place::Gateway(site), "prlimit");
                command
                    .arg(format!("--nofile={files}:{files}"))
                    .arg(env!("CARGO_BIN_EXE_tpo"));
                command
            }
        };
        command
            .args(["run", "--config"])
            .arg(self.config(site))
            .stdout(Stdio::null())
            .stderr(log);
        self.daemons[site - 1] = Some(command.spawn().unwrap());
    }

    /// SIGKILL, and gone.
    pub(crate) fn kill(&mut self, site: usize) {
        let mut child = self.daemons[site - 1]
            .take()
            .expect("the daemon was started");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn config(&self, site: usize) -> PathBuf {
        self.folder.join(format!("{site}.toml"))
    }

    /// Until each daemon's peers are up and what they carry is taken.
    pub(crate) fn wait_up(&self) {
        for site in 1..=self.sites.len() {
            let output = tpo()
                .args(["status", "--wait-up", "20", "--config"])
                .arg(self.config(site))
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}\n{}",
                String::from_utf8_lossy(&output.stderr),
                self.logs()
            );
        }
        wait_for("the leases", || {
            let leases = |site| {
                self.ask(site, "status")["intercept"]["leases"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            };
            (1..=self.sites.len())
                .all(|site| leases(site).iter().all(|lease| lease["held"] == true))
        });
    }

    pub(crate) fn ask(&self, site: usize, what: &str) -> Value {
        let output = tpo()
            .args([what, "--json", "--config"])
            .arg(self.config(site))
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
        (1..=self.sites.len())
            .map(|site| {
                let log = std::fs::read_to_string(self.folder.join(format!("{site}.log")))
                    .unwrap_or_default();
                format!("--- log of site {site}\n{log}")
            })
            .collect()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let logs = if std::thread::panicking() {
            self.logs()
        } else {
            String::new()
        };
        take_down(&mut self.daemons, &logs);
    }
}

/// A rule for each protocol from this site to that one through that peer, and what is accepted from
/// it.
pub(crate) fn rules_and_accepts(site: usize, to: usize, peer: usize) -> String {
    ["\"tcp\"", "\"udp\"", "\"icmp\""]
        .map(|protocol| {
            format!(
                "[[rule]]\nprotocol = {protocol}\nsource = \"10.10.{site}.0/24\"\ndestination = \"10.10.{to}.0/24\"\npeer = \"s{peer}\"\n\n\
                 [[accept]]\npeer = \"s{peer}\"\nprotocol = {protocol}\nsource = \"10.10.{to}.0/24\"\ndestination = \"10.10.{site}.0/24\"\n\n"
            )
        })
        .concat()
}

pub(crate) const PORT: u16 = 5_300;

/// A server of echoes at each site: TCP and UDP, from whom each came is kept.
pub(crate) fn serve(sites: &Sites, site: usize) -> (TcpListener, UdpSocket) {
    let at = SocketAddr::new(Place::Host(site).v4(), PORT);
    sites.inside(Place::Host(site), || {
        (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
    })
}

/// Answers until `stop`, on a thread of its own for each socket and connection.
pub(crate) fn answer<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    (tcp, udp): &'scope (TcpListener, UdpSocket),
    stop: &'scope AtomicBool,
) {
    tcp.set_nonblocking(true).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    scope.spawn(move || {
        let mut bytes = [0; 2_000];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, from)) = udp.recv_from(&mut bytes) {
                udp.send_to(&bytes[..length], from).unwrap();
            }
        }
    });
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, from)) = tcp.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            scope.spawn(move || {
                // Who calls is told first: the client's own address.
                let mut bytes = [0; 4_096];
                let _ = stream.write_all(format!("{:<22}", from.to_string()).as_bytes());
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// A connection through the pair, whose server has told that it sees the client's own address.
pub(crate) fn connect(sites: &Sites, from: usize, to: IpAddr) -> std::io::Result<TcpStream> {
    let at = SocketAddr::new(to, PORT);
    let mut stream = sites.inside(Place::Host(from), || {
        TcpStream::connect_timeout(&at, Duration::from_secs(10))
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    let mut seen = [0; 22];
    stream.read_exact(&mut seen)?;
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert_eq!(
        seen.trim_end(),
        stream.local_addr()?.to_string(),
        "the server sees the client"
    );
    Ok(stream)
}

/// What one pair of sites saw.
#[derive(Default)]
struct Saw {
    /// Echoes on one TCP connection, and the longest of them.
    tcp: AtomicU64,
    tcp_worst_ms: AtomicU64,
    udp_sent: AtomicU64,
    udp_came: AtomicU64,
    pings: AtomicU64,
    pings_lost: AtomicU64,
}

#[test]
fn five_sites_and_one_of_them_is_cut_off_for_a_while() {
    const SITES: usize = 5;
    const CUT: usize = 5;
    let link = "rate=50mbit delay=10ms";
    let mesh = Mesh::start(&Plan {
        link,
        sites: SITES,
        joined: |_, _| true,
        peer: |_, _| String::new(),
        calls: |_, _| true,
        sections: |site| {
            let others = (1..=SITES).filter(|other| *other != site);
            others
                .map(|other| rules_and_accepts(site, other, other))
                .collect()
        },
    });
    mesh.wait_up();
    let cut_for = Duration::from_secs(
        std::env::var("TPO_CUT").map_or(20, |text| text.parse().expect("seconds")),
    );
    let servers: Vec<_> = (1..=SITES).map(|site| serve(&mesh.sites, site)).collect();
    let stop = AtomicBool::new(false);
    let pairs: Vec<(usize, usize)> = (1..=SITES)
        .flat_map(|from| (1..=SITES).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
        .collect();
    let saw: Vec<Saw> = pairs.iter().map(|_| Saw::default()).collect();
    let is_cut = |pair: &(usize, usize)| pair.0 == CUT || pair.1 == CUT;
    let reset = |saw: &[Saw]| {
        for one in saw {
            one.tcp_worst_ms.store(0, Ordering::Relaxed);
            one.udp_sent.store(0, Ordering::Relaxed);
            one.udp_came.store(0, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        // Whatever fails in here, the other threads are told to end.
        let guard = Stop(&stop);
        servers
            .iter()
            .for_each(|server| answer(scope, server, &stop));
        for (pair, saw) in pairs.iter().zip(&saw) {
            let (sites, stop) = (&mesh.sites, &stop);
            scope.spawn(move || talk_tcp(sites, *pair, saw, stop));
            scope.spawn(move || talk_udp(sites, *pair, saw, stop));
            scope.spawn(move || talk_ping(sites, *pair, saw, stop));
        }
        let echoes = |of: &dyn Fn(&(usize, usize)) -> bool| -> Vec<u64> {
            let those = pairs.iter().zip(&saw).filter(|(pair, _)| of(pair));
            those
                .map(|(_, saw)| saw.tcp.load(Ordering::Relaxed))
                .collect()
        };
        wait_for("every pair to speak", || {
            echoes(&|_| true).iter().all(|count| *count > 5)
        });
        let dark: Profile = format!("{link} outage=0s+1h").parse().unwrap();
        mesh.sites.set(CUT, &dark);
        // What was under way when the link was cut is the cut ones' alone.
        reset(&saw);
        let before = echoes(&is_cut);
        std::thread::sleep(cut_for);
        for (pair, saw) in pairs.iter().zip(&saw).filter(|(pair, _)| !is_cut(pair)) {
            let worst = saw.tcp_worst_ms.load(Ordering::Relaxed);
            assert!(
                worst < 300,
                "{pair:?}: an echo took {worst} ms while another site was cut off"
            );
            let (sent, came) = (
                saw.udp_sent.load(Ordering::Relaxed),
                saw.udp_came.load(Ordering::Relaxed),
            );
            assert!(
                sent > 20 && came + 2 >= sent,
                "{pair:?}: {came} of {sent} datagrams were answered"
            );
            assert_eq!(saw.pings_lost.load(Ordering::Relaxed), 0, "{pair:?}");
        }
        let during = echoes(&is_cut);
        assert!(
            during
                .iter()
                .zip(&before)
                .all(|(during, before)| during - before <= 1),
            "{before:?} {during:?}"
        );
        mesh.sites.set(CUT, &link.parse().unwrap());
        // On the same connections.
        wait_for("the site that was cut off", || {
            echoes(&is_cut)
                .iter()
                .zip(&during)
                .all(|(now, during)| *now > during + 3)
        });
        drop(guard);
    });
    for (pair, saw) in pairs.iter().zip(&saw) {
        assert!(saw.pings.load(Ordering::Relaxed) > 0, "{pair:?} was pinged");
    }
    for site in 1..=SITES {
        let flows = mesh.ask(site, "flows");
        let udp = flows
            .as_array()
            .unwrap()
            .iter()
            .filter(|flow| flow["protocol"] == 17)
            .count();
        assert_eq!(
            udp,
            2 * (SITES - 1),
            "every stream of datagrams went through the TPO of site {site}"
        );
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One connection for the whole time.
fn talk_tcp(sites: &Sites, (from, to): (usize, usize), saw: &Saw, stop: &AtomicBool) {
    let mut stream = connect(sites, from, Place::Host(to).v4()).expect("the connection opens");
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let mut bytes = [from as u8; 500];
        stream.write_all(&bytes).expect("the connection lives");
        stream.read_exact(&mut bytes).expect("the connection lives");
        assert_eq!(bytes, [from as u8; 500]);
        saw.tcp_worst_ms
            .fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        saw.tcp.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn talk_udp(sites: &Sites, (from, to): (usize, usize), saw: &Saw, stop: &AtomicBool) {
    let socket = sites.inside(Place::Host(from), || {
        UdpSocket::bind((Place::Host(from).v4(), 0)).unwrap()
    });
    socket.connect((Place::Host(to).v4(), PORT)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    while !stop.load(Ordering::Relaxed) {
        // One that is cut off may hear that nobody is reached; it goes on.
        let _ = socket.send(b"once more");
        saw.udp_sent.fetch_add(1, Ordering::Relaxed);
        if socket.recv(&mut [0; 100]).is_ok() {
            saw.udp_came.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn talk_ping(sites: &Sites, (from, to): (usize, usize), saw: &Saw, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match sites.inside(Place::Host(from), || {
            ping(Place::Host(to).v4(), Duration::from_secs(1))
        }) {
            Ok(_) => saw.pings.fetch_add(1, Ordering::Relaxed),
            Err(_) => saw.pings_lost.fetch_add(1, Ordering::Relaxed),
        };
        std::thread::sleep(Duration::from_millis(300));
    }
}
