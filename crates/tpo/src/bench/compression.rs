//! `tpo bench --compression`: real files across links of four rates, compressed and not: time, bytes on the WAN, CPU.
//!
//! The files are what a Debian machine has: documentation, source, programs, a database dump of our own making, files that are compressed already,
//! random bytes. Each crosses on a connection of its own, and every byte that arrives is compared.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tpo_lab::{Host, Lab, Profile, Wan};

use super::stats::median;
use crate::demo::ending::Ending;
use crate::demo::pair::{Pair, Scratch};
use crate::intercept::install::check_tools;
use crate::sys::process_cpu_seconds;

/// Links: rate in Mbit/s, and how much of each kind of file crosses it.
const LINKS: [(u32, usize); 4] = [(2, 4 << 20), (20, 16 << 20), (100, 48 << 20), (1_000, 96 << 20)];
/// A transfer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// What `compress` is set to, as it is written: with the fixed levels `auto` must keep up.
const SETTINGS: [&str; 5] = ["\"off\"", "\"auto\"", "1", "3", "6"];
/// From this setting on only files that shrink are sent.
const LEVELS_FROM: usize = 2;

/// One kind of file.
struct Corpus {
    name: &'static str,
    shrinks: bool,
    bytes: Vec<u8>,
}

/// What one transfer took.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    wire: f64,
    cpu: f64,
}

/// Measures and prints the table; with a folder it is written there, too.
///
/// # Errors
/// When a transfer fails or a byte is wrong, or a signal asks for the end.
pub fn run(runs: usize, out: Option<&Path>) -> Result<()> {
    check_tools()?;
    let ending = Ending::watch()?;
    let corpora = corpora()?;
    let mut text = String::from(
        "| link | files | MiB | off, s | auto, s | level 1, s | 3, s | 6, s | auto: times faster than off | than the best level | WAN bytes, times fewer | CPU off, s | CPU auto, s |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (mbit, most) in LINKS {
        let link = format!("rate={mbit}mbit delay=40ms loss=0.1% mtu=1500");
        let profile: Profile = link.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        // By setting, by kind, each run.
        let mut took = vec![vec![Vec::new(); corpora.len()]; SETTINGS.len()];
        for run in 0..runs {
            for (number, (setting, took)) in SETTINGS.iter().zip(&mut took).enumerate() {
                eprintln!("{mbit} Mbit/s, compress = {setting}, run {}", run + 1);
                let files = (&corpora[..], number < LEVELS_FROM);
                for (one, took) in measure(&profile, setting, files, most, &ending)?.into_iter().zip(took) {
                    took.extend(one);
                }
            }
        }
        for (at, corpus) in corpora.iter().enumerate() {
            let middle = |setting: usize, of: fn(&Took) -> f64| {
                median(took[setting][at].iter().map(of).collect()).expect("there is one run at least")
            };
            let (off, auto) = (middle(0, |took| took.seconds), middle(1, |took| took.seconds));
            let levels: Vec<f64> = (LEVELS_FROM..SETTINGS.len())
                .filter(|_| corpus.shrinks)
                .map(|level| middle(level, |took| took.seconds))
                .collect();
            let best = levels.iter().copied().reduce(f64::min);
            let mut fixed = String::new();
            for at in 0..SETTINGS.len() - LEVELS_FROM {
                let _ =
                    write!(fixed, "{} | ", levels.get(at).map_or_else(|| "-".into(), |level| format!("{level:.2}")));
            }
            let than_best = best.map_or_else(|| "-".into(), |best| format!("{:.2}", best / auto));
            let _ = writeln!(
                text,
                "| {mbit} Mbit/s, 80 ms, 0.1 % | {} | {:.1} | {off:.2} | {auto:.2} | {fixed}{:.2} | {than_best} | {:.2} | {:.2} | {:.2} |",
                corpus.name,
                corpus.bytes.len().min(most) as f64 / f64::from(1 << 20),
                off / auto,
                middle(0, |took| took.wire) / middle(1, |took| took.wire),
                middle(0, |took| took.cpu),
                middle(1, |took| took.cpu),
            );
        }
    }
    let _ = writeln!(
        text,
        "\nMedians of {runs} run(s). CPU: both TPOs. The rate is found out by the TPOs; each kind of file once on each link."
    );
    if let Some(folder) = out {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::write(folder.join("compression.md"), &text)?;
    }
    print!("{text}");
    Ok(())
}

/// Sends the files, or only those that shrink; `None` stands for the others.
fn measure(
    profile: &Profile,
    setting: &str,
    (corpora, all_of_them): (&[Corpus], bool),
    most: usize,
    ending: &Ending,
) -> Result<Vec<Option<Took>>> {
    let prefix = format!("tpocomp{}", std::process::id());
    let scratch = Scratch::new(&prefix)?;
    let lab = Lab::up(&prefix, Wan::symmetric(profile.clone()))?;
    let pair = Pair::start(&lab, &scratch.folder, &format!("compress = {setting}"), &["\"tcp\""], None)?;
    let listener = lab.inside(Host::Server, || TcpListener::bind("10.10.2.2:8080"))?;
    // The path is found out by a transfer that counts for nothing, whose bytes do not shrink.
    transfer(&lab, &listener, &noise(100 + most / 8))?;
    let cpu = || pair.processes().into_iter().map(process_cpu_seconds).sum::<std::io::Result<f64>>();
    let mut all = Vec::new();
    for corpus in corpora {
        ending.check()?;
        if !corpus.shrinks && !all_of_them {
            all.push(None);
            continue;
        }
        let bytes = &corpus.bytes[..corpus.bytes.len().min(most)];
        let (wire, before) = (lab.stats().1.offered_bytes, cpu()?);
        let seconds = transfer(&lab, &listener, bytes).with_context(|| format!("{} do not arrive", corpus.name))?;
        // Acknowledgements and parity are behind it.
        std::thread::sleep(Duration::from_millis(300));
        let wire = (lab.stats().1.offered_bytes - wire) as f64;
        all.push(Some(Took { seconds, wire, cpu: cpu()? - before }));
    }
    drop(listener);
    pair.stop()?;
    Ok(all)
}

/// Seconds from the client's call to the last byte.
fn transfer(lab: &Lab, listener: &TcpListener, bytes: &[u8]) -> Result<f64> {
    let to = listener.local_addr()?;
    let start = Instant::now();
    let mut client = lab.inside(Host::Client, || std::net::TcpStream::connect(to)).context("connect")?;
    client.set_read_timeout(Some(PATIENCE))?;
    let (mut server, _) = listener.accept()?;
    server.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // What fails here is missing at the other end.
            let _ = server.write_all(bytes).and_then(|()| server.shutdown(Shutdown::Write));
        });
        let (mut at, mut chunk) = (0, vec![0; 256 << 10]);
        while at < bytes.len() {
            let length = client.read(&mut chunk)?;
            ensure!(length > 0, "the connection ends after {at} bytes");
            ensure!(bytes.get(at..at + length) == Some(&chunk[..length]), "a byte is wrong after {at}");
            at += length;
        }
        Ok(start.elapsed().as_secs_f64())
    })
}

fn corpora() -> Result<Vec<Corpus>> {
    let most = LINKS.iter().map(|(_, most)| *most).max().unwrap_or_default();
    let all = [
        ("documentation", true, gather(&["/usr/share/doc"], most, |path| !is_compressed(path))),
        (
            "source",
            true,
            gather(&["/usr/include", "/usr/share/perl", "/usr/lib/python3", "/usr/lib/gcc"], most, is_source),
        ),
        ("programs", true, gather(&["/usr/bin", "/usr/lib"], most, is_program)),
        ("database dump", true, dump(most / 4)),
        ("compressed files", false, gather(&["/usr/share"], most, is_compressed)),
        ("random", false, noise(most / 4)),
    ];
    let all: Vec<Corpus> = all.into_iter().map(|(name, shrinks, bytes)| Corpus { name, shrinks, bytes }).collect();
    for corpus in &all {
        ensure!(corpus.bytes.len() >= 1 << 20, "this machine has less than 1 MiB of {}", corpus.name);
    }
    Ok(all)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_compressed(path: &Path) -> bool {
    ["gz", "xz", "zst", "bz2", "png", "jpg"].contains(&extension(path))
}

fn is_source(path: &Path) -> bool {
    ["h", "hpp", "c", "pl", "pm", "py", "rs"].contains(&extension(path))
}

fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The files below some folders that are wanted, one behind the other in the order of their names, until there is enough.
fn gather(folders: &[&str], most: usize, wanted: impl Fn(&Path) -> bool) -> Vec<u8> {
    let (mut bytes, mut waiting) = (Vec::new(), folders.iter().rev().map(PathBuf::from).collect::<Vec<_>>());
    while let Some(path) = waiting.pop() {
        // What cannot be read, or is a link to elsewhere, is passed over.
        let Ok(kind) = std::fs::symlink_metadata(&path).map(|found| found.file_type()) else { continue };
        if kind.is_dir() {
            let mut inside: Vec<PathBuf> =
                std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            inside.sort();
            waiting.extend(inside.into_iter().rev());
        } else if kind.is_file() && wanted(&path) {
            bytes.extend(std::fs::read(&path).unwrap_or_default());
            if bytes.len() >= most {
                bytes.truncate(most);
                break;
            }
        }
    }
    bytes
}

/// Rows as a database writes them into a dump.
fn dump(most: usize) -> Vec<u8> {
    let mut random = Random(7);
    let mut text = String::from("COPY public.orders (id, customer, created, status, total, note) FROM stdin;\n");
    let mut number = 0;
    while text.len() < most {
        number += 1;
        let status = ["open", "paid", "shipped", "returned"][random.below(4) as usize];
        let note = ["\\N", "\\N", "gift", "call before delivery", "leave at the door"][random.below(5) as usize];
        let (day, second) = (random.below(28) + 1, random.below(86_400));
        let _ = writeln!(
            text,
            "{number}\t{}\t2026-{:02}-{day:02} {:02}:{:02}:{:02}\t{status}\t{}.{:02}\t{note}",
            random.below(50_000),
            random.below(12) + 1,
            second / 3_600,
            second / 60 % 60,
            second % 60,
            random.below(900),
            random.below(100)
        );
    }
    text.into_bytes()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = Random(11);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(bytes).collect()
}

/// xorshift64*: the same files at each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}
