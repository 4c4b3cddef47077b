//! `tpo-bench bench --compression`: files of this machine across links of four rates, and requests
//! with their answers across one: time, bytes on the WAN, CPU.
//!
//! Each file crosses on a connection of its own, and every byte that arrives is compared.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tpo_lab::{Host, Lab, Profile, Scratch, Wan};

use super::corpora::{Corpus, Random, corpora, noise, order};
use super::load::{LOOK_EVERY, PATIENCE, accept};
use super::stats::median;
use crate::ending::Ending;
use crate::pair::{Pair, Setup};
use crate::sys::process_cpu_seconds;
use crate::tools::check_tools;

/// Links: rate in Mbit/s, and how much of each kind of file crosses it.
const LINKS: [(u32, usize); 4] = [
    (2, 4 << 20),
    (20, 16 << 20),
    (100, 48 << 20),
    (1_000, 96 << 20),
];
/// Up to this rate the files that shrink cross without TPOs, too: the kernel's TCP does not fill
/// faster ones with this loss, however long one waits.
const DIRECT_UP_TO: u32 = 2;
/// Time in which the path is found out, if the link is full from the beginning.
const WARM_UP: Duration = Duration::from_secs(3);
/// What `compress` is set to, as it is written: with the fixed levels `auto` must keep up.
const SETTINGS: [&str; 5] = ["\"off\"", "\"auto\"", "1", "3", "6"];
/// From this setting on only files that shrink are sent.
const LEVELS_FROM: usize = 2;

/// Requests, each with its answer.
const EXCHANGES: usize = 300;
/// Their loss on a link of 20 Mbit/s and 20 ms: where there is some, each of such messages has a
/// copy, compressed or not.
const EXCHANGE_LOSSES: [&str; 2] = ["0 %", "0.1 %"];

/// What one transfer took.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    wire: f64,
    cpu: f64,
}

/// Two sites with or without TPOs, and a server that listens.
struct Bed {
    // Ended in this order: the TPOs before their network, their files last.
    pair: Option<Pair>,
    listener: TcpListener,
    lab: Lab,
    _scratch: Scratch,
}

impl Bed {
    /// With the program `tpo` at both sites and `compress` at this setting; or, without a setting,
    /// no TPOs at all.
    fn new(tpo: &Path, profile: &Profile, setting: Option<&str>) -> Result<Bed> {
        let prefix = format!("tpocomp{}", std::process::id());
        let scratch = Scratch::new(&prefix)?;
        let lab = Lab::up(&prefix, Wan::symmetric(profile.clone()))?;
        let pair = setting
            .map(|setting| {
                Pair::start(
                    &lab,
                    scratch.path(),
                    &Setup {
                        program: tpo,
                        peer_settings: &format!("compress = {setting}"),
                        protocols: &["\"tcp\""],
                        group: None,
                    },
                )
            })
            .transpose()?;
        let listener = lab.inside(Host::Server, || TcpListener::bind("10.10.2.2:8080"))?;
        let socket = SockRef::from(&listener);
        socket.set_tcp_congestion(b"cubic").context("use cubic")?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        Ok(Bed {
            pair,
            listener,
            lab,
            _scratch: scratch,
        })
    }

    fn stop(self) -> Result<()> {
        self.pair.map_or(Ok(()), Pair::stop)
    }

    fn cpu(&self) -> Result<f64> {
        let processes = self.pair.iter().flat_map(Pair::processes);
        Ok(processes
            .map(process_cpu_seconds)
            .sum::<std::io::Result<f64>>()?)
    }

    /// Bytes that both directions of the WAN were given.
    fn both_ways(&self) -> u64 {
        let (up, down) = self.lab.stats();
        up.offered_bytes + down.offered_bytes
    }

    /// The client's end of a new connection.
    fn call(&self) -> Result<TcpStream> {
        let to = self.listener.local_addr()?;
        let client = self
            .lab
            .inside(Host::Client, || TcpStream::connect(to))
            .context("connect")?;
        prepare(client)
    }

    /// The server's end.
    fn accept(&self, ending: &Ending) -> Result<TcpStream> {
        prepare(accept(&self.listener, ending)?)
    }

    /// The path is found out by transfers that count for nothing, whose bytes do not shrink: as
    /// much as the link carries in [`WARM_UP`].
    fn find_path(&self, profile: &Profile, upwards_too: bool, ending: &Ending) -> Result<()> {
        let rate = profile.rate.unwrap_or_default() as f64 / 8.0;
        let bytes = noise((rate * WARM_UP.as_secs_f64()) as usize);
        self.transfer(&bytes, ending)?;
        if upwards_too {
            let (client, server) = (self.call()?, self.accept(ending)?);
            carry(client, server, &bytes, ending)?;
        }
        Ok(())
    }

    /// Seconds from the client's call to the last byte.
    fn transfer(&self, bytes: &[u8], ending: &Ending) -> Result<f64> {
        let start = Instant::now();
        let (client, server) = (self.call()?, self.accept(ending)?);
        carry(server, client, bytes, ending)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Requests and answers of some kilobyte of JSON over HTTP, one after the other: all on one
    /// connection, or each on a new one, which the server ends.
    fn packet_flows(&self, one_connection: bool, ending: &Ending) -> Result<()> {
        let mut random = Random(if one_connection { 3 } else { 5 });
        let connection = if one_connection {
            "keep-alive"
        } else {
            "close"
        };
        let mut kept = None;
        for number in 0..EXCHANGES {
            let body = order(number, &mut random);
            let request = format!(
                "POST /api/v2/orders HTTP/1.1\r\nHost: erp.example.com\r\nUser-Agent: orders/2.28.1\r\nAccept-Encoding: gzip, deflate\r\n\
                 Accept: application/json\r\nConnection: {connection}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let body = order(EXCHANGES + number, &mut random);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nServer: shop/1.22.1\r\nDate: Sat, 28 Nov 2026 10:{:02}:{:02} GMT\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
                number / 60,
                number % 60,
                body.len()
            );
            let (mut client, server) = match kept.take() {
                Some((client, server)) => (client, Some(server)),
                None => (self.call()?, None),
            };
            client.write_all(request.as_bytes())?;
            // The request is on its way before anybody knows whether the server accepts.
            let mut server = server.map_or_else(|| self.accept(ending), Ok)?;
            expect(&mut server, &request, ending)?;
            server.write_all(answer.as_bytes())?;
            if one_connection {
                expect(&mut client, &answer, ending)?;
                kept = Some((client, server));
            } else {
                drop(server);
                expect(&mut client, &answer, ending)?;
                ensure!(
                    read(&mut client, &mut [0], ending)? == 0,
                    "something comes behind the answer"
                );
            }
        }
        Ok(())
    }
}

/// Every byte from one end to the other.
fn carry(mut from: TcpStream, mut to: TcpStream, bytes: &[u8], ending: &Ending) -> Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // What fails here is missing at the other end.
            let _ = from
                .write_all(bytes)
                .and_then(|()| from.shutdown(Shutdown::Write));
        });
        let (mut at, mut chunk) = (0, vec![0; 256 << 10]);
        while at < bytes.len() {
            let length = read(&mut to, &mut chunk, ending)?;
            ensure!(length > 0, "the connection ends after {at} bytes");
            ensure!(
                bytes.get(at..at + length) == Some(&chunk[..length]),
                "a byte is wrong after {at}"
            );
            at += length;
        }
        Ok(())
    })
}

/// Reads this text.
fn expect(from: &mut impl Read, text: &str, ending: &Ending) -> Result<()> {
    let mut arrived = vec![0; text.len()];
    let mut at = 0;
    while at < arrived.len() {
        let length = read(from, &mut arrived[at..], ending)?;
        ensure!(length > 0, "the connection ends within a message");
        at += length;
    }
    ensure!(arrived == text.as_bytes(), "a message is wrong");
    Ok(())
}

fn prepare(end: TcpStream) -> Result<TcpStream> {
    end.set_nodelay(true)?;
    end.set_read_timeout(Some(LOOK_EVERY))?;
    end.set_write_timeout(Some(PATIENCE))?;
    Ok(end)
}

/// Waits for bytes, or for the signal that ends the bench.
fn read(from: &mut impl Read, into: &mut [u8], ending: &Ending) -> Result<usize> {
    let start = Instant::now();
    loop {
        match from.read(into) {
            Err(error) if error.kind() == ErrorKind::Interrupted => ending.check()?,
            Err(error) if error.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                ending.check()?
            }
            other => return Ok(other?),
        }
    }
}

/// Measures and prints the tables; with a folder they are written there, too.
///
/// # Errors
/// When a transfer fails or a byte is wrong, or a signal asks for the end.
pub(crate) fn run(runs: usize, out: Option<&Path>, tpo: &Path) -> Result<()> {
    check_tools()?;
    let session = Session {
        tpo,
        runs,
        ending: &Ending::watch()?,
    };
    let mut text = session.messages()?;
    println!("{text}");
    let mut rest = session.files()?;
    let _ = writeln!(
        rest,
        "\nMedians of {runs} run(s). CPU: both TPOs. The rate is found out by the TPOs; each kind of file once on each link. Direct: the kernel's CUBIC without TPOs.\n\
         Messages: {EXCHANGES} requests with their answers over HTTP; bytes of both directions of the WAN."
    );
    print!("{rest}");
    let _ = write!(text, "\n{rest}");
    if let Some(folder) = out {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::write(folder.join("compression.md"), &text)?;
    }
    Ok(())
}

/// What all measurements of one call of this program share.
struct Session<'a> {
    tpo: &'a Path,
    /// How often each is measured.
    runs: usize,
    ending: &'a Ending,
}

/// The files of one measurement.
#[derive(Clone, Copy)]
struct Files<'a> {
    corpora: &'a [Corpus],
    /// Bytes of each that are sent at most.
    most: usize,
    /// Whether those that do not shrink are left out.
    only_shrinking: bool,
}

impl Session<'_> {
    /// The table of the requests and answers.
    fn messages(&self) -> Result<String> {
        let Session { tpo, runs, ending } = *self;
        let mut text = String::from(
            "| link | requests and answers in JSON | off, kB | auto, kB | WAN bytes, times fewer |\n|---|---|--:|--:|--:|\n",
        );
        for loss in EXCHANGE_LOSSES {
            let link = format!(
                "rate=20mbit delay=10ms loss={} mtu=1500",
                loss.replace(' ', "")
            );
            let profile: Profile = link.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
            // By setting, then by connection: one, or new ones.
            let mut wire: [[Vec<f64>; 2]; 2] = Default::default();
            for run in 0..runs {
                for (setting, wire) in SETTINGS.iter().zip(&mut wire) {
                    eprintln!(
                        "requests and answers, {loss}, compress = {setting}, run {}",
                        run + 1
                    );
                    let bed = Bed::new(tpo, &profile, Some(setting))?;
                    bed.find_path(&profile, true, ending)?;
                    for (one_connection, wire) in [true, false].into_iter().zip(wire) {
                        let before = bed.both_ways();
                        bed.packet_flows(one_connection, ending)?;
                        // Endings and acknowledgements are behind them.
                        ending.sleep(Duration::from_millis(500))?;
                        wire.push((bed.both_ways() - before) as f64);
                    }
                    bed.stop()?;
                }
            }
            for (at, name) in ["on one connection", "on a new connection each"]
                .into_iter()
                .enumerate()
            {
                let [off, auto] =
                    [0, 1].map(|setting| median(wire[setting][at].clone()).unwrap_or(f64::NAN));
                let _ = writeln!(
                    text,
                    "| 20 Mbit/s, 20 ms, {loss} | {name} | {:.0} | {:.0} | {:.2} |",
                    off / 1e3,
                    auto / 1e3,
                    off / auto
                );
            }
        }
        Ok(text)
    }

    /// The table of the files.
    fn files(&self) -> Result<String> {
        let most = LINKS.iter().map(|(_, most)| *most).max();
        let corpora = corpora(most.unwrap_or_default())?;
        let mut text = String::from(
            "| link | files | MiB | direct, s | off, s | auto, s | level 1, s | 3, s | 6, s | auto: times faster than direct | than off | than the best level | WAN bytes, times fewer | CPU off, s | CPU auto, s |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for (mbit, most) in LINKS {
            let link = format!("rate={mbit}mbit delay=40ms loss=0.1% mtu=1500");
            let profile: Profile = link.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
            let files = |only_shrinking| Files {
                corpora: &corpora,
                most,
                only_shrinking,
            };
            // By setting, by kind, each run.
            let mut took = vec![vec![Vec::new(); corpora.len()]; SETTINGS.len()];
            let mut direct = vec![Vec::new(); corpora.len()];
            for run in 0..self.runs {
                if mbit <= DIRECT_UP_TO {
                    eprintln!("{mbit} Mbit/s, direct, run {}", run + 1);
                    for (one, direct) in self
                        .measure(&profile, None, files(true))?
                        .into_iter()
                        .zip(&mut direct)
                    {
                        direct.extend(one);
                    }
                }
                for (number, (setting, took)) in SETTINGS.iter().zip(&mut took).enumerate() {
                    eprintln!("{mbit} Mbit/s, compress = {setting}, run {}", run + 1);
                    let files = files(number >= LEVELS_FROM);
                    for (one, took) in self
                        .measure(&profile, Some(setting), files)?
                        .into_iter()
                        .zip(took)
                    {
                        took.extend(one);
                    }
                }
            }
            for (at, corpus) in corpora.iter().enumerate() {
                let middle = |setting: usize, of: fn(&Took) -> f64| {
                    median(took[setting][at].iter().map(of).collect())
                        .expect("there is one run at least")
                };
                let (off, auto) = (
                    middle(0, |took| took.seconds),
                    middle(1, |took| took.seconds),
                );
                let direct = median(direct[at].iter().map(|took: &Took| took.seconds).collect());
                let levels: Vec<f64> = (LEVELS_FROM..SETTINGS.len())
                    .filter(|_| corpus.shrinks)
                    .map(|level| middle(level, |took| took.seconds))
                    .collect();
                let best = levels.iter().copied().reduce(f64::min);
                let or_none = |value: Option<f64>| {
                    value.map_or_else(|| "-".into(), |value| format!("{value:.2}"))
                };
                let mut fixed = String::new();
                for at in 0..SETTINGS.len() - LEVELS_FROM {
                    let _ = write!(fixed, "{} | ", or_none(levels.get(at).copied()));
                }
                let _ = writeln!(
                    text,
                    "| {mbit} Mbit/s, 80 ms, 0.1 % | {} | {:.1} | {} | {off:.2} | {auto:.2} | {fixed}{} | {:.2} | {} | {:.2} | {:.2} | {:.2} |",
                    corpus.name,
                    corpus.bytes.len().min(most) as f64 / f64::from(1 << 20),
                    or_none(direct),
                    or_none(direct.map(|direct| direct / auto)),
                    off / auto,
                    or_none(best.map(|best| best / auto)),
                    middle(0, |took| took.wire) / middle(1, |took| took.wire),
                    middle(0, |took| took.cpu),
                    middle(1, |took| took.cpu),
                );
            }
        }
        Ok(text)
    }

    /// Sends the files, or only those that shrink; `None` stands for the others.
    fn measure(
        &self,
        profile: &Profile,
        setting: Option<&str>,
        files: Files<'_>,
    ) -> Result<Vec<Option<Took>>> {
        let ending = self.ending;
        let bed = Bed::new(self.tpo, profile, setting)?;
        bed.find_path(profile, false, ending)?;
        let mut all = Vec::new();
        for corpus in files.corpora {
            ending.check()?;
            if files.only_shrinking && !corpus.shrinks {
                all.push(None);
                continue;
            }
            let bytes = &corpus.bytes[..corpus.bytes.len().min(files.most)];
            let (wire, before) = (bed.lab.stats().1.offered_bytes, bed.cpu()?);
            let seconds = bed
                .transfer(bytes, ending)
                .with_context(|| format!("{} do not arrive", corpus.name))?;
            // Acknowledgements and parity are behind it.
            ending.sleep(Duration::from_millis(300))?;
            let wire = (bed.lab.stats().1.offered_bytes - wire) as f64;
            all.push(Some(Took {
                seconds,
                wire,
                cpu: bed.cpu()? - before,
            }));
        }
        bed.stop()?;
        Ok(all)
    }
}
